# SPDX-License-Identifier: Apache-2.0
"""Two graphs to supervise: a simulated one with time by argument, and one of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from heqis_core.control import (
    Beats,
    Hello,
    Kill,
    KillSilent,
    NodeBeat,
    NodeState,
    ProcessBeat,
    Reboot,
    Result,
    Transit,
    Transition,
)
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.testing import free_port
from heqis_msgs.msg import Event, Heartbeat
from heqis_ros import qos
from heqis_ros.testing import ros_graph
from heqis_supervisor.facts import Command, Facts, Note, Pulsed, Reset, State
from heqis_supervisor.policy import initial, update
from heqis_supervisor.rules import Rules, load_rules

BEAT_S = 0.1
LOOP_S = 0.05
LINK_S = 0.01
BOOT_S = 5.0
"""A board takes so long until its agent speaks again."""


@dataclass
class SimNode:
    name: str
    state: NodeState = NodeState.UNCONFIGURED
    until_s: float = 0.0
    order: Transit | None = None
    spin: int = 0
    progress: int = 0
    pending: int = 0
    degraded: bool = False
    info: str = ''
    counters: dict[str, int] = field(default_factory=dict)


@dataclass
class SimProcess:
    key: str
    nodes: list[SimNode]
    start_id: int = 1
    count: int = 0
    alive: bool = True
    stopped: bool = False
    hung: bool = False
    born_s: float = 0.0
    spoke_s: float = 0.0
    restarts: int = 0
    spin_s: float = 0.0


@dataclass
class World:
    """Boards, processes and nodes that obey, and a log of what was asked of them."""

    rules: Rules
    now: float = 1000.0
    respawn_s: float = 0.5
    configure_s: float = 0.3
    activate_s: float = 0.02
    processes: dict[str, SimProcess] = field(default_factory=dict)
    agent_ids: dict[str, int] = field(default_factory=dict)
    finds_s: dict[str, float] = field(default_factory=dict)
    """When the agent of a board hears others than itself."""
    back_s: dict[str, float] = field(default_factory=dict)
    """When a board that boots speaks again."""
    cut: set[str] = field(default_factory=set)
    """Boards whose agent says nothing."""
    refuse: dict[tuple[str, Transition], int] = field(default_factory=dict)
    """How often a node refuses a transition yet."""
    lost_orders: int = 0
    """So many orders do not reach their node yet."""
    kill_fails: set[str] = field(default_factory=set)
    kill_lost: set[str] = field(default_factory=set)
    """Processes whose kill is neither done nor answered."""
    no_respawn: set[str] = field(default_factory=set)
    silent_kills: int = 0
    """How many starts were ended whose identity the supervisor does not know."""
    left_out: set[str] = field(default_factory=set)
    """Processes that nobody starts; take one away and it is started."""
    commands: list[tuple[float, Command]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    state: State | None = None
    _mail: deque = field(default_factory=deque)
    _unsent: list[int] = field(default_factory=list)
    _beat_due: float = 0.0
    _supervisor_away: bool = False
    cleared: tuple[str, ...] = ()
    boots: dict[str, int] = field(default_factory=dict)
    """How often a board has booted anew."""
    heals: dict[str, set[str]] = field(default_factory=dict)
    """Of a board, what boots it: soft, hard; what is not named has no effect."""
    refuse_reboot: bool = False
    resets: list[tuple[float, Reset]] = field(default_factory=list)
    _pulsed: list[Pulsed] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, rule in self.rules.processes.items():
            nodes = [SimNode(f'/heqis/{name}') for name in rule.nodes]
            for node in nodes:
                if not self.rules.nodes[node.name[7:]].managed:
                    node.state = NodeState.ACTIVE
            alive = key not in self.left_out
            self.processes[key] = SimProcess(key, nodes, alive=alive, born_s=self.now)

    def node(self, name: str) -> SimNode:
        return next(
            n for p in self.processes.values() for n in p.nodes if n.name == f'/heqis/{name}'
        )

    def home(self, name: str) -> SimProcess:
        return next(p for p in self.processes.values() if self.node(name) in p.nodes)

    def restart_supervisor(self) -> None:
        self.state = None
        self._unsent.clear()

    # --- time ---

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.tick()

    def run_until(self, condition, timeout_s: float) -> float:
        start = self.now
        while not condition():
            assert self.now - start < timeout_s, f'not within {timeout_s} s\n' + self.describe()
            self.tick()
        return self.now - start

    def tick(self) -> None:
        self.now = round(self.now + LOOP_S, 6)
        self._live()
        if self._supervisor_away:
            return
        inbox = []
        while self._mail and self._mail[0][0] <= self.now:
            inbox.append(self._mail.popleft()[1])
        self.supervise(Facts(tuple(inbox), cleared=self.cleared))
        self.cleared = ()

    def supervise(self, facts: Facts) -> None:
        if self.state is None:
            self.state = initial(self.rules, self.now)
        facts = replace(facts, unsent=tuple(self._unsent), pulsed=tuple(self._pulsed))
        self._unsent.clear()
        self._pulsed.clear()
        self.state, actions = update(self.rules, self.now, self.state, facts)
        for action in actions:
            if isinstance(action, Note):
                self.notes.append(action)
                continue
            if isinstance(action, Reset):
                self._reset(action)
                continue
            self.check(action)
            self.commands.append((self.now, action))
            if action.board in self.cut:
                self._unsent.append(action.message.id)
            elif isinstance(action.message, Kill):
                self._kill(action.board, action.message)
            elif isinstance(action.message, KillSilent):
                self._kill_silent(action.board, action.message)
            elif isinstance(action.message, Reboot):
                self._reboot(action.board, action.message)
            else:
                self._order(action.board, action.message)

    def check(self, command: Command) -> None:
        """Overridden by tests that watch every command."""

    # --- what boards do ---

    def _live(self) -> None:
        for process in self.processes.values():
            if not process.alive:
                if (
                    self.now >= process.born_s
                    and process.key not in self.no_respawn | self.left_out
                ):
                    self._start(process)
                continue
            if process.stopped:
                continue
            busy = any(node.state == NodeState.TRANSITIONING for node in process.nodes)
            for node in process.nodes:
                if not process.hung and not busy:
                    node.spin += 1
                if (
                    node.state == NodeState.TRANSITIONING
                    and not process.hung
                    and self.now >= node.until_s
                ):
                    self._finish(process, node)
        if self.now >= self._beat_due:
            self._beat_due = self.now + BEAT_S
            self._beat()

    def _start(self, process: SimProcess) -> None:
        process.alive, process.stopped, process.hung = True, False, False
        process.start_id += 1
        process.count = 0
        process.restarts += 1
        for node in process.nodes:
            managed = self.rules.nodes[node.name[7:]].managed
            state = NodeState.UNCONFIGURED if managed else NodeState.ACTIVE
            node.__dict__.update(SimNode(node.name, state).__dict__)

    def _beat(self) -> None:
        for process in self.processes.values():
            if process.alive and not process.stopped:
                process.spoke_s = self.now
        for board in self.rules.boards:
            if board in self.cut or self.now < self.back_s.get(board, 0.0):
                continue
            agent_id = self.agent_ids.setdefault(board, 1)
            self._post(Hello(board, agent_id, 'h', self.boot_id(board), 1))
            for process in self.processes.values():
                if process.key.startswith(f'{board}/') and process.alive and not process.stopped:
                    process.count += 1
                    found = self.now >= self.finds_s.get(board, 0.0) or 'agent' in process.key
                    if found:
                        self._post(Beats(board, agent_id, (self._process_beat(process),)))

    def _process_beat(self, process: SimProcess) -> ProcessBeat:
        board, _, name = process.key.partition('/')
        nodes = tuple(
            NodeBeat(
                *(n.name, int(n.state), n.spin, n.progress, n.pending, n.counters),
                info=n.info,
                degraded=n.degraded,
            )
            for n in process.nodes
        )
        return ProcessBeat(
            board,
            name,
            'h',
            100 + process.start_id,
            process.start_id,
            process.count,
            0,
            self.boot_id(board),
            nodes=nodes,
            proc_start=7,
        )

    def _post(self, message) -> None:
        self._mail.append((self.now + LINK_S, message))

    def _order(self, board: str, order: Transit) -> None:
        node = self.node(order.node[7:])
        process = self.home(order.node[7:])
        if self.lost_orders > 0:
            self.lost_orders -= 1
            return
        if not process.alive or process.stopped or process.hung:
            return
        node.order = order
        start = {
            Transition.CONFIGURE: NodeState.UNCONFIGURED,
            Transition.ACTIVATE: NodeState.INACTIVE,
            Transition.CLEANUP: NodeState.INACTIVE,
        }[order.transition]
        if node.state != start:
            self._post(
                Result(
                    order.id,
                    board,
                    self.agent_ids.get(board, 1),
                    False,
                    f'not possible from {node.state.name}',
                )
            )
            return
        takes = self.configure_s if order.transition == Transition.CONFIGURE else self.activate_s
        node.state, node.until_s = NodeState.TRANSITIONING, self.now + takes

    def _finish(self, process: SimProcess, node: SimNode) -> None:
        order = node.order
        assert order is not None
        left = self.refuse.get((node.name[7:], order.transition), 0)
        ok = left <= 0
        forward = {
            Transition.CONFIGURE: (NodeState.UNCONFIGURED, NodeState.INACTIVE),
            Transition.ACTIVATE: (NodeState.INACTIVE, NodeState.ACTIVE),
            Transition.CLEANUP: (NodeState.INACTIVE, NodeState.UNCONFIGURED),
        }[order.transition]
        node.state = forward[ok]
        if not ok:
            self.refuse[node.name[7:], order.transition] = left - 1
            node.info = 'refused by the test'
        board = process.key.partition('/')[0]
        if board not in self.cut:
            self._post(
                Result(
                    order.id,
                    board,
                    self.agent_ids.get(board, 1),
                    ok,
                    '' if ok else 'refused',
                    node.state,
                )
            )

    def _kill(self, board: str, order: Kill) -> None:
        process = self.processes[f'{board}/{order.process}']
        if process.key in self.kill_lost:
            return
        if process.key in self.kill_fails:
            self._post(
                Result(order.id, board, self.agent_ids.get(board, 1), False, 'not permitted')
            )
            return
        if order.start_id == process.start_id and process.alive:
            self.die(process.key)
        self._post(
            Result(order.id, board, self.agent_ids.get(board, 1), True, f'killed {order.pid}')
        )

    def _kill_silent(self, board: str, order: KillSilent) -> None:
        process = self.processes[f'{board}/{order.process}']
        silent_s = self.now - max(process.born_s, process.spoke_s)
        found = process.alive and silent_s >= order.silent_ms / 1000
        if found:
            self.die(process.key)
        self.silent_kills += found
        self._post(Result(order.id, board, self.agent_ids.get(board, 1), True, '', gone=not found))

    def _reset(self, action: Reset) -> None:
        self.resets.append((self.now, action))
        self._pulsed.append(Pulsed(action.id, True, 'by the test'))
        if not action.soft and 'hard' in self.heals.get(action.board, ()):
            self.boot(action.board)

    def _reboot(self, board: str, order: Reboot) -> None:
        right = order.boot_id == self.boot_id(board) and not self.refuse_reboot
        agent_id = self.agent_ids.get(board, 1)
        self._post(Result(order.id, board, agent_id, right, 'by the test'))
        if right and 'soft' in self.heals.get(board, ()):
            self.boot(board)

    # --- faults ---

    def boot_id(self, board: str) -> str:
        boots = self.boots.get(board, 0)
        return f'b{boots}' if boots else 'b'

    def boot(self, board: str) -> None:
        """Boot a board anew: everything on it ends, and starts after a while."""
        self.boots[board] = self.boots.get(board, 0) + 1
        self.back_s[board] = self.now + BOOT_S
        self.agent_ids[board] = self.agent_ids.get(board, 1) + 1
        for key, process in self.processes.items():
            if key.startswith(f'{board}/'):
                process.alive, process.born_s = False, self.now + BOOT_S + self.respawn_s

    def restart_agent(self, board: str, finds_after_s: float) -> None:
        self.agent_ids[board] = self.agent_ids.get(board, 1) + 1
        self.finds_s[board] = self.now + finds_after_s

    def die(self, key: str) -> None:
        process = self.processes[key]
        process.alive, process.born_s = False, self.now + self.respawn_s

    # --- looking ---

    def all_active(self) -> bool:
        wanted = [p for p in self.processes.values() if p.key not in self.left_out]
        return all(
            p.alive and not p.stopped and all(n.state == NodeState.ACTIVE for n in p.nodes)
            for p in wanted
        )

    def kills(self) -> list[str]:
        return [
            f'{c.board}/{c.message.process}'
            for _, c in self.commands
            if isinstance(c.message, Kill)
        ]

    def transitions(self) -> list[tuple[str, str]]:
        return [
            (c.message.node[7:], c.message.transition.value)
            for _, c in self.commands
            if isinstance(c.message, Transit)
        ]

    def kinds(self, *levels) -> list[str]:
        return [note.kind for note in self.notes]

    def describe(self) -> str:
        assert self.state is not None
        lines = [f'{n.name}: {n.state.name}' for p in self.processes.values() for n in p.nodes]
        lines += [
            f'{name}: {mind.step.name} {mind.reason}' for name, mind in self.state.nodes.items()
        ]
        return '\n'.join([*lines, *map(str, self.notes[-10:])])


def find_graph() -> Path:
    """Return the shipped rules."""
    for folder in Path(__file__).resolve().parents:
        if (folder / 'config' / 'graph.yaml').is_file():
            return folder / 'config' / 'graph.yaml'
    pytest.skip('config/graph.yaml is not here: run from the source tree')


@pytest.fixture(scope='session')
def shipped_rules() -> Rules:
    return load_rules(find_graph())


@pytest.fixture
def world(shipped_rules: Rules) -> World:
    return World(shipped_rules)


@pytest.fixture(scope='session')
def make_world(shipped_rules: Rules):
    def make(impatient: bool = False, rules: Rules = shipped_rules, **options) -> World:
        if impatient:
            short = {
                n: replace(r, configure_s=4.0, transition_s=4.0) for n, r in rules.nodes.items()
            }
            rules = replace(rules, nodes=short)
        return World(rules, **options)

    return make


# --- decisions ---


def _frame(
    seq: int = 0, event_ns: int = 100, valid_until: int = 200, stream: str = 's'
) -> Decisions:
    values = np.linspace(0, 1, 4, dtype=np.float32)
    return Decisions(
        stream,
        1,
        seq,
        event_ns,
        0,
        'b',
        'g',
        tuple('abcd'),
        np.array([Action.NONE, Action.HOLD, Action.BUY, Action.SELL], np.uint8),
        np.array([Reason.GAP, Reason.INSIDE_BAND, Reason.UP, Reason.DOWN], np.uint32),
        values,
        np.array([np.nan, np.nan, 1, 0], np.float32),
        np.ones((4, 3), np.float32),
        values,
        np.full(4, valid_until, np.int64),
    )


@pytest.fixture(scope='session')
def frame():
    """Return a function that makes the decisions of a frame: NONE, HOLD, BUY and SELL."""
    return _frame


# --- real processes ---

HERE = Path(__file__).parent
GRAPH = """\
version: 1
heartbeat_ms: 100
defaults:
  lease_ms: {lease_ms}
  hang_ms: 1500
  progress_ms: 1500
  backoff_ms: 100
  attempts: 4
  stable_ms: 2000
  respawn_ms: 15000
boards:
  gateway:
    store:
      nodes:
        base: {{}}
        gate: {{depends_on: [base]}}
    supervisor: {{kill: false, nodes: {{supervisor: {{managed: false}}}}}}
    agent: {{nodes: {{gateway_agent: {{managed: false}}}}}}
  compute:
    brain:
      nodes:
        thinker: {{depends_on: [gate]}}
    agent: {{nodes: {{compute_agent: {{managed: false}}}}}}
"""
COMMANDS = {
    'store': ('gateway', [str(HERE / 'fake_process.py'), 'store', 'base,gate']),
    'brain': ('compute', [str(HERE / 'fake_process.py'), 'brain', 'thinker']),
    'supervisor': ('gateway', ['-m', 'heqis_supervisor.supervisor_node']),
    'gateway_agent': ('gateway', ['-m', 'heqis_supervisor.agent_node']),
    'compute_agent': ('compute', ['-m', 'heqis_supervisor.agent_node']),
}


class RealGraph:
    """Processes of a small graph, started and respawned as launch would, and what they say."""

    def __init__(self, graph, folder: Path, lease_ms: int) -> None:
        self.graph, self.folder = graph, folder
        self.endpoint = f'tcp://127.0.0.1:{free_port()}'
        self.rules = folder / 'graph.yaml'
        self.rules.write_text(GRAPH.format(lease_ms=lease_ms))
        self.commands = dict(COMMANDS)
        self.running: dict[str, subprocess.Popen] = {}
        self.starts: dict[str, int] = {}
        self.respawn = True
        self.environment: dict[str, str] = {}
        self.params: dict[str, dict[str, object]] = {}
        """Parameters by process, beside those that each gets."""
        self.diagnostics: dict[str, object] = {}
        self.told: list[DiagnosticArray] = []
        """Every message on /diagnostics, in order."""
        self.events: list[Event] = []
        self.since_ns = 0
        """Events from before do not count, however late they arrive."""
        self.beats: dict[str, Heartbeat] = {}
        self.first: dict[str, int] = {}
        node = graph.add(Node('observer', namespace='/heqis'))
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, qos.DIAGNOSTICS)
        node.create_subscription(Event, 'events', self._event, qos.EVENTS)
        node.create_subscription(Heartbeat, 'heartbeat', self._beat, qos.HEARTBEAT)
        self.tell = node.create_publisher(Event, 'in', qos.EVENTS)
        self.node = node

    def _diagnose(self, message: DiagnosticArray) -> None:
        self.told.append(message)
        self.diagnostics = {
            status.name.removeprefix('heqis/'): status for status in message.status
        }

    def _event(self, message: Event) -> None:
        if message.stamp_ns >= self.since_ns:
            self.events.append(message)

    def _beat(self, message: Heartbeat) -> None:
        self.beats[f'{message.board}/{message.process}'] = message

    def start(self, *names: str) -> None:
        for name in names:
            board, command = self.commands[name]
            arguments = [
                '--ros-args',
                '-r',
                '__ns:=/heqis',
                '-p',
                f'control_endpoint:={self.endpoint}',
            ]
            if name == 'supervisor':
                arguments += ['-p', f'graph:={self.rules}']
            if name in ('store', 'brain'):
                arguments = arguments[:3]
            for param, value in self.params.get(name, {}).items():
                arguments += ['-p', f'{param}:={value}']
            self.starts[name] = self.starts.get(name, 0) + 1
            with (self.folder / f'{name}.log').open('a') as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, *command, *arguments],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, 'HEQIS_BOARD': board, **self.environment},
                )

    def keep_up(self) -> None:
        """Start again what has ended, as launch does."""
        for name, process in list(self.running.items()):
            if process.poll() is not None and self.respawn:
                self.start(name)

    def until(self, condition, timeout_s: float, what: str = '') -> None:
        def kept() -> bool:
            self.keep_up()
            return condition()

        try:
            self.graph.spin_until(kept, timeout_s, what)
        except AssertionError as error:
            logs = ''.join(
                f'--- {path.name}\n{path.read_text()[-2500:]}'
                for path in self.folder.glob('*.log')
            )
            raise AssertionError(f'{error}\n{self.levels()}\n{logs}') from None

    def levels(self) -> dict[str, str]:
        return {
            name: f'{status.level[0]} {status.message}'
            for name, status in self.diagnostics.items()
        }

    def well(self) -> bool:
        nodes = {n: s for n, s in self.diagnostics.items() if n.startswith('node/')}
        return len(nodes) == 6 and all(
            status.level == b'\x00' for status in self.diagnostics.values()
        )

    def values(self, name: str) -> dict[str, str]:
        status = self.diagnostics.get(name)
        return {} if status is None else {pair.key: pair.value for pair in status.values}

    def order(self, node: str, text: str) -> None:
        self.tell.publish(Event(subject=node, text=text))

    def signal(self, name: str, number: int) -> None:
        self.running[name].send_signal(number)

    def end(self) -> None:
        self.respawn = False
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def real_graph(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RealGraph]:
    lease_ms = getattr(request, 'param', 1000)
    with ros_graph() as graph:
        real = RealGraph(graph, tmp_path, lease_ms)
        try:
            yield real
        finally:
            real.end()


@pytest.fixture
def start(tmp_path: Path):
    """Return a function that starts the journal process, whose nodes bring themselves up here."""
    running: list[subprocess.Popen] = []

    def start(kind: str, *arguments: str) -> subprocess.Popen:
        with (tmp_path / f'{kind}.log').open('a') as log:
            running.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        str(HERE / 'self_starting.py'),
                        *('--ros-args', '-p', f'path:={tmp_path / "journal.sqlite"}'),
                        *('-p', 'require_supervisor:=false'),
                        *arguments,
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
