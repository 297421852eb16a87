# SPDX-License-Identifier: Apache-2.0
"""A board is reset within its budget, each reset is followed to its effect, a latch stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heqis_core.control import Hello, Level
from heqis_supervisor.facts import Asked, Facts, Note, Pulsed, Reset
from heqis_supervisor.health import report
from heqis_supervisor.ladder import Step
from heqis_supervisor.policy import initial, latched, update
from heqis_supervisor.reset.ledger import Uptime, decode, encode
from heqis_supervisor.reset.policy import refusal
from heqis_supervisor.reset.rules import CommandReset, DryRun
from heqis_supervisor.rules import Rules

TICK_S = 0.25
WHEN = {
    'board': 'compute',
    'reset_after_ms': 3_000,
    'boot_ms': 2_000,
    'resets_max': 2,
    'window_ms': 30_000,
    'cooldown_ms': 1_500,
}
COMMAND = CommandReset(argv=('true',), timeout_ms=10, **WHEN)
OUTCOMES = {'board_reset', 'reset_failed', 'reset_without_effect'}


class Board:
    """One board, the supervisor that may reset it, and a person, with time by argument."""

    def __init__(self, how=COMMAND) -> None:
        self.rule = how
        self.rules = Rules(0.1, {}, {}, {'compute': how})
        self.real_s = 1000.0
        self.booted_s = 0.0
        self.machine_boots = 1
        self.alive, self.boots, self.reported = True, 1, 0
        self.record = b''
        self.resets: list[tuple[float, Reset]] = []
        self.notes: list[Note] = []
        self.started = 0.0
        self.start()

    # --- the supervisor and its machine ---

    @property
    def here(self) -> Uptime:
        return Uptime(f'machine {self.machine_boots}', self.real_s - self.booted_s)

    @property
    def now(self) -> float:
        return self.here.up_s + 7

    @property
    def mind(self):
        return self.state.resets['compute']

    def start(self) -> None:
        known = {}
        if self.record:
            known = decode(self.record, self.rules.resets, self.now, self.here)
        self.state = initial(self.rules, self.now, known)

    def reboot_machine(self, off_s: float) -> None:
        self.real_s += off_s
        self.booted_s = self.real_s
        self.machine_boots += 1
        self.start()

    def turn(self, **facts) -> tuple[Note, ...]:
        hello = Hello('compute', self.boots, 'h', f'boot {self.boots}', 1)
        heard = (hello,) if self.alive else ()
        self.reported = self.boots if self.alive else self.reported
        self.state, actions = update(self.rules, self.now, self.state, Facts(heard, **facts))
        self.record = encode(self.state.resets, self.now, self.here)
        notes = tuple(action for action in actions if isinstance(action, Note))
        self.notes += notes
        self.resets += [(self.real_s, a) for a in actions if isinstance(a, Reset)]
        return notes

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.real_s += TICK_S
            self.turn()

    # --- looking ---

    def kinds(self) -> list[str]:
        return [note.kind for note in self.notes]

    def acted(self, ok: bool = True) -> None:
        self.turn(pulsed=(Pulsed(self.resets[-1][1].id, ok, 'by the test'),))

    def health(self):
        parts = {p.name: p for p in report(self.with_process(), self.state)}
        return parts['board/compute']

    def with_process(self) -> Rules:
        """Boards come from their processes; this one has none to be judged."""

        class Named(Rules):
            boards = ('compute',)

        return Named(0.1, {}, {}, self.rules.resets)


@pytest.fixture
def board() -> Board:
    made = Board()
    made.wait(1)
    assert made.notes == []
    return made


def silence(board: Board) -> None:
    board.alive = False
    board.wait(3.5)


def test_a_silent_board_is_reset_and_done_only_with_a_new_boot(board) -> None:
    board.alive = False
    board.wait(2.75)
    assert board.resets == []
    board.wait(0.75)
    assert len(board.resets) == 1
    assert board.mind.step == Step.HARD_RESET
    begun = next(note for note in board.notes if note.kind == 'board_reset_begun')
    assert (begun.level, begun.subject) == (Level.ERROR, 'compute')
    assert 'silent for 3 s; command true; 1 of 2 resets in 30 s' in begun.text
    board.acted()
    board.alive = True  # the same boot: the reset had no effect
    board.wait(1)
    assert board.mind.running is not None
    board.boots = 2
    board.wait(TICK_S)
    assert board.mind.running is None
    assert board.notes[-1].kind == 'board_reset'
    assert 'it was reset because: silent for 3 s' in board.notes[-1].text
    board.wait(60)
    assert len(board.resets) == 1


def test_a_reset_without_effect_is_made_again_after_the_cool_down_then_latched(board) -> None:
    board.rule = replace_rule(board, cooldown_ms=10_000)
    silence(board)
    board.acted()
    board.wait(2.5)
    assert 'reset_without_effect' in board.kinds()
    assert board.mind.step == Step.WARN
    assert 'next reset in 7 s' in board.health().message
    board.wait(8)
    first, second = (at for at, _ in board.resets)
    assert second - first == pytest.approx(10, abs=2 * TICK_S)
    board.acted(ok=False)
    board.wait(1)
    assert board.mind.latched == 'silent for 14 s although 2 of 2 resets in 30 s are used up'
    assert (board.mind.step, board.state.hold) == (Step.SAFE_LATCH, True)
    assert (board.health().level, board.health().values['step']) == (Level.ERROR, 'SAFE_LATCH')
    assert latched(board.state) == ('board/compute',)


def replace_rule(board: Board, **changes):
    changed = type(board.rule)(**{**{'argv': ('true',), 'timeout_ms': 10}, **WHEN, **changes})
    board.rules = replace(board.rules, resets={'compute': changed})
    return changed


def give_up(board: Board) -> None:
    silence(board)
    board.wait(40)
    assert board.mind.latched
    assert len(board.resets) == 2


@pytest.mark.parametrize('reboots', [False, True])
def test_a_latch_outlives_the_supervisor_and_a_board_that_comes_back(board, reboots) -> None:
    give_up(board)
    if reboots:
        board.reboot_machine(100_000)
    else:
        board.start()
    board.wait(20)
    board.alive, board.boots = True, 2
    board.wait(60)
    assert (board.mind.latched != '', len(board.resets), board.state.hold) == (True, 2, True)
    assert board.health().message.startswith('given up: ')
    board.turn(cleared=('compute',))
    assert board.mind.latched, 'compute is the name of a node'
    board.turn(cleared=('board/compute',))
    assert (board.mind.latched, board.state.hold) == ('', False)
    assert [note.kind for note in board.notes[-2:]] == ['cleared', 'hold']
    assert board.health().level == Level.INFO


def test_a_clear_does_not_refill_the_budget(board) -> None:
    board.rule = replace_rule(board, window_ms=600_000)
    give_up(board)
    board.turn(cleared=('*',))
    board.wait(5)
    assert board.mind.latched
    assert len(board.resets) == 2


def test_a_machine_that_was_off_counts_nothing_and_its_uptime_does(board) -> None:
    silence(board)
    board.reboot_machine(off_s=1_000)
    board.alive, board.boots = True, 2
    board.turn()
    assert len(board.mind.begun_s) == 1, 'the window is 30 s, but nobody knows the time'
    board.wait(31)
    assert board.mind.begun_s == ()


def test_a_supervisor_that_was_killed_looks_for_the_effect_of_the_reset_before(board) -> None:
    silence(board)
    board.start()
    assert board.mind.running.reason == 'silent for 3 s'
    board.wait(1)
    board.alive, board.boots = True, 2
    board.wait(TICK_S)
    assert board.notes[-1].kind == 'board_reset'


def test_a_board_that_never_reported_in_is_reset_by_a_person_alone() -> None:
    board = Board()
    board.alive = False
    board.wait(60)
    assert board.resets == []
    board.turn(asked=(Asked('compute', 'it was just installed'),))
    board.acted()
    board.alive = True
    board.wait(TICK_S)
    assert 'nobody knows whether the reset booted it' in board.notes[-1].text


def test_with_zero_only_a_person_resets(board) -> None:
    board.rule = replace_rule(board, reset_after_ms=0)
    board.alive = False
    board.wait(200)
    assert board.resets == []
    board.turn(asked=(Asked('compute', 'by hand'),))
    assert len(board.resets) == 1


def test_a_person_takes_from_the_same_budget_and_is_told_why_not(board) -> None:
    def ask() -> str:
        notes = board.turn(asked=(Asked('compute', 'it hangs'),))
        return next((n.text for n in notes if n.kind == 'reset_refused'), '')

    assert ask() == ''
    assert 'a reset is under way: asked for by a person: it hangs' in ask()
    board.acted(ok=False)
    assert 'cool-down, 2 s are left' in ask() or 'cool-down, 1 s are left' in ask()
    board.wait(2)
    assert ask() == ''
    board.acted(ok=False)
    board.wait(2)
    assert 'refused: 2 of 2 resets in 30 s are used up' in ask()
    assert board.mind.latched == '', 'the board is well'
    silence(board)
    assert 'latched: ' in refusal(board.rule, board.mind, board.now)


def test_a_driver_that_says_nothing_is_given_up(board) -> None:
    silence(board)
    board.wait(COMMAND.act_s + COMMAND.boot_ms / 1000)
    note = next(note for note in board.notes if note.kind == 'reset_without_effect')
    assert 'its driver gave no answer' in note.text


def test_a_reboot_of_its_own_is_told_and_is_no_reset(board) -> None:
    board.boots = 2
    board.wait(TICK_S)
    assert board.kinds() == ['board_rebooted']


def test_time_in_which_the_supervisor_was_away_is_no_silence(board) -> None:
    board.alive = False
    board.wait(2)
    board.real_s += 100
    board.turn()
    assert board.resets == []
    board.wait(1.5)
    assert len(board.resets) == 1


def test_a_dry_run_goes_all_the_way_but_holds_no_output() -> None:
    board = Board(DryRun(**WHEN))
    board.wait(1)
    give_up(board)
    assert (board.mind.step, board.state.hold) == (Step.SAFE_LATCH, False)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens to boards, drivers, people and the supervisor, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.seen = self.told = 0
        self.latched = False
        self.open: Reset | None = None
        self.boots_before = 0
        self.open_s = 0.0
        self.unanswered = False

    # --- what happens ---

    @rule(ticks=st.integers(1, 60))
    def time_passes(self, ticks: int) -> None:
        for _ in range(ticks):
            self.board.wait(TICK_S)
            self.open_s += TICK_S
            self.look()

    @rule(seconds=st.floats(0.5, 100))
    def the_supervisor_stalls(self, seconds: float) -> None:
        self.board.real_s += seconds
        self.turn()

    @rule(alive=st.booleans())
    def the_board_speaks_or_not(self, alive: bool) -> None:
        self.board.alive = alive
        self.turn()

    @rule(alive=st.booleans())
    def the_board_boots(self, alive: bool) -> None:
        self.board.boots += 1
        self.board.alive = alive
        self.turn()

    @precondition(lambda self: self.unanswered)
    @rule(ok=st.booleans(), boots=st.booleans())
    def the_driver_answers(self, ok: bool, boots: bool) -> None:
        self.unanswered = False
        self.board.boots += boots
        self.board.alive = boots
        if ok:
            self.open_s = 0.0
        self.board.acted(ok)
        self.look()

    @rule(times=st.integers(1, 3))
    def a_person_asks(self, times: int) -> None:
        self.turn(asked=(Asked('compute', 'by hand'),) * times)

    @rule()
    def a_person_clears(self) -> None:
        self.latched = False
        self.turn(cleared=('board/compute',))

    @rule()
    def the_supervisor_is_killed(self) -> None:
        self.board.start()
        self.after_restart()

    @rule(off_s=st.floats(0, 200))
    def its_machine_reboots(self, off_s: float) -> None:
        self.board.reboot_machine(off_s)
        self.after_restart()

    def after_restart(self) -> None:
        self.unanswered, self.open_s = False, 0.0
        self.turn()

    def turn(self, **facts) -> None:
        self.board.turn(**facts)
        self.look()

    # --- what must hold ---

    def look(self) -> None:
        board = self.board
        new = board.resets[self.seen :]
        ends = [note.kind for note in board.notes[self.told :] if note.kind in OUTCOMES]
        self.seen, self.told = len(board.resets), len(board.notes)
        assert len(new) <= 1
        assert len(ends) <= (self.open is not None) + len(new)
        if ends:
            if 'board_reset' in ends:
                assert board.reported > self.boots_before
            self.open = None
        if new:
            assert self.open is None, 'the effect of the one before is not known yet'
            assert not self.latched
            self.check_budget()
            self.open, self.open_s, self.unanswered = new[0][1], 0.0, True
            self.boots_before = board.reported
        if self.open is not None:
            assert self.open_s <= COMMAND.act_s + COMMAND.boot_ms / 1000 + TICK_S

    def check_budget(self) -> None:
        times = [at for at, _ in self.board.resets]
        window = [at for at in times if at > times[-1] - COMMAND.window_ms / 1000 + 1e-6]
        assert len(window) <= COMMAND.resets_max
        if len(times) > 1:
            assert times[-1] - times[-2] >= COMMAND.cooldown_ms / 1000 - 1e-6

    @invariant()
    def what_is_latched_stays_latched(self) -> None:
        now = bool(self.board.mind.latched)
        assert now or not self.latched
        self.latched = now
        assert self.board.state.hold == now


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
