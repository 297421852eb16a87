# SPDX-License-Identifier: Apache-2.0
"""What `update` does is what the ladder's table says, whatever happens and in whatever order."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heqis_core.control import Kill, NodeState, Transit, Transition
from heqis_supervisor.facts import Facts, Note, Reset, State
from heqis_supervisor.hearing import AGENT_LEASE_S, GAP_S
from heqis_supervisor.ladder import Case, Step
from heqis_supervisor.ladder_docs import BEGIN, END, diagram, fill, main, table
from heqis_supervisor.policy import KILL_ANSWER_S, update
from heqis_supervisor.reset.rules import CommandReset

KEY, NODE = 'compute/compute', 'compute'
RESET = CommandReset(
    board='compute',
    argv=('true',),
    timeout_ms=10,
    reset_after_ms=4_000,
    boot_ms=8_000,
    resets_max=2,
    window_ms=120_000,
    cooldown_ms=10_000,
    soft_reboot=True,
)


def cases(state: State) -> dict[str, Case]:
    """Return the case of every part."""
    found = {f'node {name}': mind.case for name, mind in state.nodes.items()}
    found |= {f'process {key}': mind.case for key, mind in state.processes.items()}
    found |= {f'board {board}': mind.case for board, mind in state.resets.items()}
    return found | {'graph': state.case}


class Watch:
    """Judges every single update of a world, and remembers what it has seen."""

    def __init__(self, world) -> None:
        self.world = world
        self.seen: set[Case] = set()
        self.ways: set[tuple[Case, Case]] = set()
        self.kills: dict[str, float] = {}
        """Processes whose kill has no outcome yet, and how long it may still take."""
        self.resets: list[float] = []
        self._supervise = world.supervise
        world.supervise = self.supervise

    def supervise(self, facts) -> None:
        before, world = self.world.state, self.world
        commands, notes, resets = len(world.commands), len(world.notes), len(world.resets)
        facts = replace(facts, unsent=tuple(world._unsent))
        self._supervise(facts)
        after = world.state
        self.seen |= set(cases(after).values())
        new = [command for _, command in world.commands[commands:]]
        self.check_orders(before, after, new)
        self.check_resets([reset for _, reset in world.resets[resets:]])
        if before is not None and before.since_s == after.since_s:
            self.check_ways(before, after, facts)
            self.check_kills(before, after, world.notes[notes:], facts)

    def check_ways(self, before: State, after: State, facts) -> None:
        old = cases(before)
        for part, case in cases(after).items():
            was = old[part]
            if was == case:
                continue
            assert was.value.part == case.value.part
            self.ways.add((was, case))
            if was.sticky:
                kind, _, name = part.partition(' ')
                rule = self.world.rules.nodes.get(name)
                home = f'{rule.board}/{rule.process}' if rule else ''
                names = {name, home, f'board/{name}' if kind == 'board' else name, '*'}
                assert names & set(facts.cleared), f'{part} left {was.name} by itself'

    def check_orders(self, before: State | None, after: State, commands) -> None:
        world = self.world
        for command in commands:
            heard_s = after.boards.get(command.board, float('-inf'))
            assert after.time_s - heard_s <= AGENT_LEASE_S, 'an order to a silent board'
            order = command.message
            if isinstance(order, Kill):
                key = f'{command.board}/{order.process}'
                process = world.processes[key]
                well = process.alive and not process.stopped and not process.hung
                stuck = any(node.pending for node in process.nodes)
                ended = any(node.state == NodeState.FINALIZED for node in process.nodes)
                same = process.start_id == order.start_id
                assert not (well and same) or stuck or ended, f'{key} is well and is killed'
                assert before is None or before.processes[key].killing is None, 'killed twice'
                assert after.processes[key].case == Case.PROCESS_DOWN
            elif isinstance(order, Transit):
                mind = after.nodes[order.node[7:]]
                assert mind.running is not None
                assert mind.case in {Case.NODE_COMING, Case.NODE_FAILED}

    def check_kills(self, before: State, after: State, notes: list[Note], facts) -> None:
        """A kill is over only when its effect was seen, or its absence was told."""
        told = {(note.kind, note.subject) for note in notes}
        for key, mind in before.processes.items():
            was, now = mind.killing, after.processes[key].killing
            if was is None:
                continue
            if now is None or now.start_id != was.start_id:
                outcomes = {('process_restarted', key), ('kill_failed', key)}
                assert outcomes & told or was.id in facts.unsent or ends_by_boot(before, after)
            elif not now.missed:
                rule = self.world.rules.processes[key]
                limit_s = rule.respawn_s if now.confirmed else KILL_ANSWER_S
                # Time in which nobody could be heard does not count: the deadline moves with it.
                assert now.deadline_s <= after.time_s + limit_s + GAP_S

    def check_resets(self, resets: list[Reset]) -> None:
        for _ in resets:
            self.resets.append(self.world.now)
            oldest_s = self.world.now - RESET.window_ms / 1000
            window = [at_s for at_s in self.resets if at_s > oldest_s + 1e-6]
            assert len(window) <= RESET.resets_max, 'more resets than the budget allows'


def ends_by_boot(before: State, after: State) -> bool:
    """Whether a board booted anew in this update."""
    return any(before.resets[b].boot_id != after.resets[b].boot_id for b in after.resets)


def impatient(rules, **changes):
    """Return rules that give up soon, so that the upper end of the ladder is reached."""
    processes = {
        key: replace(rule, restarts_max=2, **({'respawn_s': 4.0} if key == KEY else {}))
        for key, rule in rules.processes.items()
    }
    nodes = {
        name: replace(rule, configure_s=4.0, transition_s=4.0, attempts=3, progress_s=4.0)
        for name, rule in rules.nodes.items()
    }
    resets = {'compute': replace_struct(RESET, **changes)}
    return replace(rules, processes=processes, nodes=nodes, resets=resets)


def replace_struct(how: CommandReset, **changes) -> CommandReset:
    return type(how)(**{name: getattr(how, name) for name in how.__struct_fields__} | changes)


# --- one scenario for each way ---


def up(world) -> None:
    world.run_until(world.all_active, 10)
    world.run(1)


def die_often(world, key: str = KEY, times: int = 3) -> None:
    for _ in range(times):
        world.run_until(lambda: world.processes[key].alive, 10)
        world.run(1)
        world.die(key)


def never_comes(world) -> None:
    world.rules = impatient(world.rules, soft_reboot=False)
    start = world._start

    def silent(process) -> None:
        start(process)
        process.stopped = process.key == KEY

    world._start = silent
    world.processes[KEY].stopped = True
    world.run(60)
    assert world.silent_kills == 3


def refuses(world) -> None:
    up(world)
    world.refuse['risk_gate', Transition.CONFIGURE] = 3
    world.node('risk_gate').state = NodeState.UNCONFIGURED
    world.run_until(lambda: world.state.hold, 30)
    world.cleared = ('risk_gate',)
    world.run_until(lambda: world.all_active() and not world.state.hold, 30)


def hears_nothing(world) -> None:
    world.lost_orders = 10**6
    world.run(40)


def stops(world) -> None:
    up(world)
    world.processes[KEY].stopped = True
    world.run_until(world.all_active, 30)
    world.processes[KEY].hung = True
    world.run(15)


def waits(world) -> None:
    up(world)
    for name in (NODE, 'risk_gate'):
        world.node(name).pending = 3
    world.run(8)
    world.no_respawn.add(KEY)
    world.processes[KEY].stopped = True
    world.run(10)


def gets_stuck_and_stays_away(world) -> None:
    up(world)
    world.respawn_s = 8.0
    world.node(NODE).pending = 3
    world.run(20)


def is_finalized(world) -> None:
    up(world)
    world.respawn_s = 8.0
    world.node(NODE).state = NodeState.FINALIZED
    world.run(20)


def is_out_of_reach(world) -> None:
    up(world)
    world.cut.add('gateway')
    world.run(5)
    world.cut.clear()
    world.run(5)


def is_rebooted(world) -> None:
    up(world)
    world.heals = {'compute': {'soft'}}
    world.respawn_s = 3.0
    die_often(world)
    world.run_until(lambda: world.state.processes[KEY].reboot == '' and world.all_active(), 60)


def is_reset(world) -> None:
    up(world)
    world.heals = {'compute': {'hard'}}
    die_often(world)
    world.run_until(lambda: len(world.resets) == 2, 60)
    world.run_until(world.all_active, 60)


def cannot_be_helped(world) -> None:
    up(world)
    world.respawn_s = 3.0
    die_often(world)
    world.run_until(lambda: bool(world.state.processes[KEY].latched), 60)
    world.cleared = ('*',)
    world.run_until(world.all_active, 30)


def falls_silent(world) -> None:
    up(world)
    world.cut.add('compute')
    world.run_until(lambda: bool(world.state.resets['compute'].latched), 60)
    world.cleared = ('board/compute',)
    world.cut.clear()
    world.run(5)


def is_latched_without_reboots(world) -> None:
    world.rules = impatient(world.rules, soft_reboot=False)
    up(world)
    world.respawn_s = 3.0
    die_often(world)
    world.run_until(lambda: bool(world.state.processes[KEY].latched), 30)


SCENARIOS = [
    never_comes,
    refuses,
    hears_nothing,
    stops,
    waits,
    gets_stuck_and_stays_away,
    is_finalized,
    is_out_of_reach,
    is_rebooted,
    is_reset,
    cannot_be_helped,
    falls_silent,
    is_latched_without_reboots,
]


def test_every_case_and_every_way_of_the_table_is_reached(make_world, shipped_rules) -> None:
    seen: set[Case] = set()
    ways: set[tuple[Case, Case]] = set()
    for scenario in SCENARIOS:
        world = make_world(rules=impatient(shipped_rules))
        watch = Watch(world)
        scenario(world)
        seen |= watch.seen
        ways |= watch.ways
    assert set(Case) - seen == set()
    written = {(case, Case[name]) for case in Case for name in case.value.otherwise}
    assert {(a.name, b.name) for a, b in written - ways} == set()


def test_every_step_of_the_ladder_has_a_case_and_every_case_but_well_a_check() -> None:
    assert {case.step for case in Case} == set(Step)
    for case in Case:
        assert (case.step == Step.NONE) == (not case.value.check), case.name
        assert case.sticky == (case.step == Step.SAFE_LATCH), case.name
        for name in case.value.otherwise:
            assert Case[name].value.part == case.value.part


# --- whatever happens ---

PROCESSES = st.sampled_from(['gateway/journal', 'gateway/gateway', KEY])
NODES = st.sampled_from(['journal', 'risk_gate', 'bridge', 'gateway', NODE])
BOARDS = st.sampled_from(['gateway', 'compute'])
PAUSE = st.floats(0.05, 6.0)


class AnyFault(RuleBasedStateMachine):
    """Faults of processes, nodes, boards, links and people, in any order."""

    rules = None
    make_world = None

    @initialize(heals=st.sets(st.sampled_from(['soft', 'hard'])))
    def start(self, heals) -> None:
        make_world, rules = type(self).make_world, type(self).rules
        self.world = make_world(rules=impatient(rules))
        self.world.heals = {'compute': heals}
        self.watch = Watch(self.world)
        self.world.run(2)

    @rule(seconds=PAUSE)
    def time_passes(self, seconds) -> None:
        self.world.run(seconds)

    @rule(key=PROCESSES, seconds=PAUSE)
    def a_process_dies(self, key, seconds) -> None:
        if self.world.processes[key].alive:
            self.world.die(key)
        self.world.run(seconds)

    @rule(key=PROCESSES, seconds=PAUSE)
    def a_process_stops(self, key, seconds) -> None:
        self.world.processes[key].stopped = self.world.processes[key].alive
        self.world.run(seconds)

    @rule(key=PROCESSES, seconds=PAUSE)
    def an_executor_hangs(self, key, seconds) -> None:
        self.world.processes[key].hung = self.world.processes[key].alive
        self.world.run(seconds)

    @rule(key=PROCESSES, how=st.sampled_from(['works', 'fails', 'is lost']))
    def from_now_on_a_kill(self, key, how) -> None:
        for there, keys in (('fails', self.world.kill_fails), ('is lost', self.world.kill_lost)):
            (keys.add if how == there else keys.discard)(key)

    @rule(name=NODES, times=st.integers(1, 4))
    def a_node_falls_and_refuses(self, name, times) -> None:
        if self.world.node(name).state == NodeState.ACTIVE:
            self.world.node(name).state = NodeState.UNCONFIGURED
        self.world.refuse[name, Transition.CONFIGURE] = times
        self.world.run(0.5)

    @rule(name=NODES)
    def work_waits(self, name) -> None:
        self.world.node(name).pending = 3
        self.world.run(5)

    @rule(board=BOARDS, seconds=PAUSE)
    def a_board_is_cut_off(self, board, seconds) -> None:
        self.world.cut.add(board)
        self.world.run(seconds)
        self.world.cut.clear()

    @rule()
    def a_board_boots_by_itself(self) -> None:
        self.world.boot('compute')
        self.world.run(1)

    @rule(refused=st.booleans())
    def reboots_are_refused_or_not(self, refused) -> None:
        self.world.refuse_reboot = refused

    @rule(seconds=PAUSE)
    def the_supervisor_stalls(self, seconds) -> None:
        self.world._supervisor_away = True
        self.world.run(seconds)
        self.world._supervisor_away = False

    @rule(what=st.sampled_from(['*', KEY, NODE, 'board/compute', 'risk_gate']))
    def a_person_clears(self, what) -> None:
        self.world.cleared = (what,)
        self.world.run(0.2)

    @invariant()
    def update_is_pure(self) -> None:
        if not hasattr(self, 'world') or self.world.state is None:
            return
        world = self.world
        facts = world_facts(world)
        before = repr(world.state)
        one = update(world.rules, world.now + 0.05, world.state, facts)
        assert one == update(world.rules, world.now + 0.05, world.state, facts)
        assert repr(world.state) == before

    @invariant()
    def what_is_not_well_says_why(self) -> None:
        if not hasattr(self, 'world') or self.world.state is None:
            return
        state = self.world.state
        for mind in (*state.nodes.values(), *state.processes.values(), *state.resets.values()):
            assert (mind.step == Step.NONE) == (not mind.reason), mind


def world_facts(world):
    """Return what the policy would hear next, without taking it away."""
    return Facts(tuple(message for at_s, message in world._mail if at_s <= world.now + 0.05))


EXAMPLES = int(os.environ.get('HEQIS_POLICY_EXAMPLES', '30'))
AnyFault.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None)


class TestAnyFault(AnyFault.TestCase):
    @pytest.fixture(autouse=True)
    def _world(self, make_world, shipped_rules) -> None:
        AnyFault.make_world, AnyFault.rules = staticmethod(make_world), shipped_rules


# --- the page ---


def test_table_and_diagram_name_every_case_and_nothing_else() -> None:
    names = {case.name.lower() for case in Case}
    assert {line.split('`')[1] for line in table().splitlines()[2:]} == names
    lines = diagram().splitlines()
    states = [m[1] for line in lines if (m := re.match(r'    state ".+" as (\w+)$', line))]
    assert sorted(states) == sorted(names)
    ways = [
        re.match(r'    (\w+|\[\*\]) --> (\w+)( : [^:;`]+)?$', line)
        for line in lines
        if '-->' in line
    ]
    assert all(way and way[1] in {*names, '[*]'} and way[2] in names for way in ways)
    reached = {way[2] for way in ways if way}
    assert names - reached == set(), 'nothing stands alone'


def test_the_page_is_filled_between_its_marks_and_compared(tmp_path: Path, capsys) -> None:
    page = tmp_path / 'page.md'
    page.write_text(f'# Head\n\n{BEGIN}\nOUTDATED\n{END}\ntail\n')
    assert main(['--compare', str(page)]) == 1
    assert 'run make docs' in capsys.readouterr().err
    assert main(['--write', str(page)]) == 0
    assert main(['--compare', str(page)]) == 0
    text = page.read_text()
    assert (text.startswith('# Head\n'), text.endswith(f'{END}\ntail\n')) == (True, True)
    assert 'OUTDATED' not in text
    with pytest.raises(ValueError, match='has no lines'):
        fill('# Head\n')
