# SPDX-License-Identifier: Apache-2.0
"""A simulated graph of two boards that the policy is let loose on, with time by argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from heqis_core.control import (
    Beats,
    Hello,
    Kill,
    NodeBeat,
    NodeState,
    ProcessBeat,
    Result,
    Transit,
    Transition,
)
from heqis_supervisor.facts import Command, Facts, Note, State
from heqis_supervisor.policy import initial, update
from heqis_supervisor.rules import Rules, load_rules

BEAT_S = 0.1
LOOP_S = 0.05
LINK_S = 0.01


@dataclass
class SimNode:
    name: str
    state: NodeState = NodeState.UNCONFIGURED
    until_s: float = 0.0
    order: Transit | None = None
    spin: int = 0
    progress: int = 0
    pending: int = 0
    info: str = ''


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
    cut: set[str] = field(default_factory=set)
    """Boards whose agent says nothing."""
    refuse: dict[tuple[str, Transition], int] = field(default_factory=dict)
    """How often a node refuses a transition yet."""
    deaf: set[str] = field(default_factory=set)
    """Nodes that never answer."""
    kill_fails: set[str] = field(default_factory=set)
    no_respawn: set[str] = field(default_factory=set)
    commands: list[tuple[float, Command]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    state: State | None = None
    _mail: deque = field(default_factory=deque)
    _beat_due: float = 0.0
    _supervisor_away: bool = False
    cleared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, rule in self.rules.processes.items():
            nodes = [SimNode(f'/heqis/{name}') for name in rule.nodes]
            for node in nodes:
                if not self.rules.nodes[node.name[7:]].managed:
                    node.state = NodeState.ACTIVE
            self.processes[key] = SimProcess(key, nodes, born_s=self.now)

    def node(self, name: str) -> SimNode:
        return next(
            n for p in self.processes.values() for n in p.nodes if n.name == f'/heqis/{name}'
        )

    def home(self, name: str) -> SimProcess:
        return next(p for p in self.processes.values() if self.node(name) in p.nodes)

    def restart_supervisor(self) -> None:
        self.state = None

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
        self.state, actions = update(self.rules, self.now, self.state, facts)
        unsent = []
        for action in actions:
            if isinstance(action, Note):
                self.notes.append(action)
                continue
            self.check(action)
            self.commands.append((self.now, action))
            if action.board in self.cut:
                unsent.append(action.message.id)
            elif isinstance(action.message, Kill):
                self._kill(action.board, action.message)
            else:
                self._order(action.board, action.message)
        if unsent:
            self.state, more = update(
                self.rules, self.now, self.state, Facts(unsent=tuple(unsent))
            )
            assert not any(isinstance(action, Command) for action in more)

    def check(self, command: Command) -> None:
        """Overridden by tests that watch every command."""

    # --- what boards do ---

    def _live(self) -> None:
        for process in self.processes.values():
            if not process.alive:
                if self.now >= process.born_s and process.key not in self.no_respawn:
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
        for board in self.rules.boards:
            if board in self.cut:
                continue
            self._post(Hello(board, 1, 'h', 'b', 1))
            for process in self.processes.values():
                if process.key.startswith(f'{board}/') and process.alive and not process.stopped:
                    process.count += 1
                    self._post(Beats(board, 1, (self._process_beat(process),)))

    def _process_beat(self, process: SimProcess) -> ProcessBeat:
        board, _, name = process.key.partition('/')
        nodes = tuple(
            NodeBeat(n.name, int(n.state), n.spin, n.progress, n.pending, info=n.info)
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
            'b',
            nodes=nodes,
            proc_start=7,
        )

    def _post(self, message) -> None:
        self._mail.append((self.now + LINK_S, message))

    def _order(self, board: str, order: Transit) -> None:
        node = self.node(order.node[7:])
        process = self.home(order.node[7:])
        if not process.alive or process.stopped or process.hung or order.node[7:] in self.deaf:
            return
        node.order = order
        start = {
            Transition.CONFIGURE: NodeState.UNCONFIGURED,
            Transition.ACTIVATE: NodeState.INACTIVE,
            Transition.CLEANUP: NodeState.INACTIVE,
        }[order.transition]
        if node.state != start:
            self._post(Result(order.id, board, 1, False, f'not possible from {node.state.name}'))
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
            self._post(Result(order.id, board, 1, ok, '' if ok else 'refused', node.state))

    def _kill(self, board: str, order: Kill) -> None:
        process = self.processes[f'{board}/{order.process}']
        if process.key in self.kill_fails:
            self._post(Result(order.id, board, 1, False, 'not permitted'))
            return
        if order.start_id == process.start_id and process.alive:
            self.die(process.key)
        self._post(Result(order.id, board, 1, True, f'killed {order.pid}'))

    # --- faults ---

    def die(self, key: str) -> None:
        process = self.processes[key]
        process.alive, process.born_s = False, self.now + self.respawn_s

    # --- looking ---

    def all_active(self) -> bool:
        return all(
            node.state == NodeState.ACTIVE
            for p in self.processes.values()
            if p.alive
            for node in p.nodes
        ) and all(p.alive and not p.stopped for p in self.processes.values())

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
    def make(impatient: bool = False, **options) -> World:
        rules = shipped_rules
        if impatient:
            short = {
                n: replace(r, configure_s=4.0, transition_s=4.0) for n, r in rules.nodes.items()
            }
            rules = replace(rules, nodes=short)
        return World(rules, **options)

    return make
