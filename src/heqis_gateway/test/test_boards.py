# SPDX-License-Identifier: Apache-2.0
"""Frames in parts: every frame is published whole, once, by one bundle, whatever boards do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import FeatureFrame, Stage
from heqis_core.testing_link import (
    COLUMNS,
    assert_same_decisions,
    assert_same_frame,
    make_decisions,
    make_frame,
)
from heqis_gateway.boards import REMEMBER, Merge, Share, Shares, part_of
from heqis_gateway.params import GATEWAY

BOARDS = ('a', 'b', 'c')
N = 9
LEASE_S = 1.0


def answer(frame: FeatureFrame, share: Share, **changes: object) -> Decisions:
    """Return what a board says of its rows: those of decisions that follow from the seq."""
    whole = make_decisions(frame.seq, N)
    columns = {name: getattr(whole, name)[share.places] for name in COLUMNS if name != 'stamps'}
    part = replace(whole, symbols=share.symbols, revision=frame.revision, **columns)
    return replace(part, **changes)  # type: ignore[arg-type]


def offered(merge: Merge, seq: int = 0, epoch: int = 7) -> tuple[FeatureFrame, dict[str, Share]]:
    frame = make_frame(seq, N, epoch=epoch)
    assert merge.offer(frame) is None
    return frame, merge.missing(seq)


def test_every_board_of_this_file_has_symbols():
    assert set(Shares(BOARDS).of(make_frame(0, N).symbols)) == set(BOARDS)


@given(st.integers(1, 40), st.integers(1, 5))
def test_parts_of_a_frame_hold_each_row_once_and_nothing_else_changes(n_symbols, n_boards):
    frame = make_frame(4, n_symbols)
    shares = Shares([f'board-{i}' for i in range(n_boards)]).of(frame.symbols)
    parts = {name: part_of(frame, share) for name, share in shares.items()}
    assert sorted(s for part in parts.values() for s in part.symbols) == sorted(frame.symbols)
    for name, part in parts.items():
        for tensor, array in frame.tensors.items():
            assert part.tensors[tensor].tobytes() == array[shares[name].places].tobytes()
            assert part.tensors[tensor].flags.c_contiguous
        whole = replace(part, symbols=frame.symbols, tensors=frame.tensors)
        assert_same_frame(whole, frame)


def test_frames_of_one_stream_share_one_tuple_of_names_for_each_board():
    # The wire's descriptor is made anew when the names change, and a board drops its windows.
    shares = Shares(BOARDS)
    first, second = make_frame(0, N), make_frame(1, N)
    assert shares.of(first.symbols)['a'].symbols is shares.of(second.symbols)['a'].symbols


def test_a_frame_of_one_board_alone_is_passed_on_as_it_is():
    frame = make_frame(0, N)
    assert part_of(frame, Shares(['only']).of(frame.symbols)['only']) is frame


@given(st.permutations(BOARDS))
def test_parts_in_any_order_make_what_one_board_would_have_said(order):
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    said = [merge.part(name, answer(frame, shares[name]), 0.0) for name in order]
    assert said[:-1] == [None, None]
    assert said[-1] is not None
    assert_same_decisions(said[-1], replace(make_decisions(0, N), revision=0))


def test_a_stage_of_the_whole_is_reached_when_its_last_board_reached_it():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    for i, name in enumerate(BOARDS):
        part = answer(frame, shares[name])
        part.stamps[Stage.DECIDED] = 100 - i
        whole = merge.part(name, part, 0.0)
    assert whole is not None
    assert whole.stamps[Stage.DECIDED] == 100


def test_a_board_beyond_the_lease_is_none_and_the_next_frames_do_not_wait_for_it():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    for name in 'ab':
        assert merge.part(name, answer(frame, shares[name]), 5.0) is None
    assert merge.overdue('c', 5.0 + LEASE_S) == []
    (whole,) = merge.overdue('c', 5.1 + LEASE_S)
    gone = shares['c'].places
    assert (whole.action[gone] == Action.NONE).all()
    assert (whole.reasons[gone] == Reason.BOARD_AWAY).all()
    assert np.isnan(whole.score[gone]).all()
    assert np.isnan(whole.probabilities[gone]).all()
    assert whole.symbols == frame.symbols
    assert merge.away == {'c'}
    frame, shares = offered(merge, 1)
    assert merge.part('a', answer(frame, shares['a']), 9.0) is None
    assert merge.part('b', answer(frame, shares['b']), 9.0) is not None
    assert merge.counters['c'].frames_none == 2
    assert merge.counters['c'].absences == 1


def test_the_lease_runs_from_the_first_answer_so_that_nobody_is_away_while_nobody_answers():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    for name in BOARDS:
        assert merge.overdue(name, 1e6) == []
    assert merge.away == set()
    merge.part('b', answer(frame, shares['b']), 1e6)
    assert merge.overdue('a', 1e6 + LEASE_S) == []


def test_a_board_is_back_with_its_first_part_within_the_lease_and_waited_for_again():
    merge = Merge(BOARDS, LEASE_S)
    for seq in (0, 1):
        frame, shares = offered(merge, seq)
        for name in 'ab':
            merge.part(name, answer(frame, shares[name]), float(seq))
        merge.overdue('c', seq + 1.5)
    old = make_frame(0, N)
    assert merge.part('c', answer(old, shares['c']), 3.0) is None
    assert merge.away == {'c'}
    frame, shares = offered(merge, 2)
    for name in 'ab':
        merge.part(name, answer(frame, shares[name]), 4.0)
    # Published without it already, but not later than the others would wait.
    assert merge.part('c', answer(frame, shares['c']), 4.5) is None
    assert merge.away == set()
    assert merge.counters['c'].late == 2
    frame, shares = offered(merge, 3)
    for name in 'ab':
        assert merge.part(name, answer(frame, shares[name]), 5.0) is None
    assert merge.part('c', answer(frame, shares['c']), 5.5) is not None


def test_a_published_frame_that_is_offered_again_gives_the_very_same_decisions():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    for name in 'ab':
        merge.part(name, answer(frame, shares[name]), 0.0)
    (whole,) = merge.overdue('c', 2.0)
    assert merge.offer(frame) is whole
    assert merge.part('c', answer(frame, shares['c']), 2.1) is None
    assert merge.offer(frame) is whole


def test_a_frame_that_comes_again_is_missing_only_what_nobody_said():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    merge.part('a', answer(frame, shares['a']), 0.0)
    assert merge.offer(frame) is None
    assert set(merge.missing(0)) == {'b', 'c'}
    assert merge.part('a', answer(frame, shares['a']), 0.1) is None
    assert merge.counters['a'].repeated == 1


@pytest.mark.parametrize(
    'changes',
    [
        {'stream': 'other'},
        {'event_time_ns': 1},
        {'revision': 5},
        {'symbols': ('600000.SH',)},
    ],
)
def test_an_answer_to_something_else_is_refused_and_counted(changes):
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    assert merge.part('a', answer(frame, shares['a'], **changes), 0.0) is None
    assert merge.counters['a'].refused == 1
    assert set(merge.missing(0)) == set(BOARDS)


@pytest.mark.parametrize('changes', [{'epoch': 6}, {'seq': 99}])
def test_an_answer_to_a_frame_that_nobody_knows_is_counted_as_late(changes):
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    assert merge.part('a', answer(frame, shares['a'], **changes), 0.0) is None
    assert merge.counters['a'].late == 1


def test_a_new_epoch_forgets_parts_of_the_old_one():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    merge.part('a', answer(frame, shares['a']), 0.0)
    _, shares = offered(merge, epoch=8)
    assert set(shares) == set(BOARDS)
    assert merge.part('b', answer(frame, shares['b']), 0.0) is None
    assert set(merge.missing(0)) == set(BOARDS)


def test_during_a_swap_a_frame_names_the_bundle_of_most_symbols_and_nothing_of_the_other():
    merge = Merge(BOARDS, LEASE_S)
    frame, shares = offered(merge)
    order = sorted(BOARDS, key=lambda name: -len(shares[name].places))
    small = order[-1]
    for name in BOARDS:
        bundle = 'b' * 16 if name == small else 'a' * 16
        whole = merge.part(name, answer(frame, shares[name], bundle_id=bundle), 0.0)
    assert whole is not None
    assert whole.bundle_id == 'a' * 16
    assert (whole.reasons[shares[small].places] == Reason.BOARD_AWAY).all()
    assert merge.counters[small].other_bundle == 1
    assert merge.away == set()
    assert [merge.counters[name].merged for name in order] == [1, 1, 0]


def two_boards(n_symbols: int, of_first: int) -> tuple[str, str]:
    """Return names of which the first serves `of_first` symbols and the second the rest."""
    symbols = make_frame(0, n_symbols).symbols
    pairs = ((f'x{i}', f'y{i}') for i in range(1000))
    return next(
        pair
        for pair in pairs
        if (share := Shares(pair).of(symbols).get(pair[0])) and len(share.symbols) == of_first
    )


def by_own_bundle(names: tuple[str, str], n_symbols: int, said_first: str) -> Decisions:
    """Let each board answer by a bundle that has its name; return the whole."""
    merge = Merge(names, LEASE_S)
    merge.offer(make_frame(0, n_symbols))
    shares = merge.missing(0)
    for name in sorted(names, key=lambda name: name != said_first):
        part = make_decisions(0, len(shares[name].symbols))
        part = replace(part, symbols=shares[name].symbols, revision=0, bundle_id=name)
        whole = merge.part(name, part, 0.0)
    assert whole is not None
    return whole


def test_symbols_count_and_not_boards_when_two_bundles_speak():
    names = two_boards(5, of_first=1)
    assert {by_own_bundle(names, 5, first).bundle_id for first in names} == {names[1]}


def test_of_two_bundles_with_as_many_symbols_that_of_the_first_board_is_taken():
    names = two_boards(2, of_first=1)
    assert {by_own_bundle(names, 2, first).bundle_id for first in names} == {names[0]}


def test_as_many_frames_are_remembered_as_a_stream_may_have_open():
    most = GATEWAY.get('max_in_flight')
    assert most is not None
    assert most.maximum == REMEMBER


class Frames(RuleBasedStateMachine):
    """Any order of frames, answers, repeats, silences and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.merge = Merge(BOARDS, LEASE_S)
        self.now_s = 0.0
        self.next_seq = 0
        self.frames: dict[int, FeatureFrame] = {}
        self.published: dict[int, Decisions] = {}
        self.heard: dict[int, set[str]] = {}
        self.parts = dict.fromkeys(BOARDS, 0)

    def publish(self, whole: Decisions | None) -> None:
        if whole is not None:
            assert whole.seq not in self.published
            self.published[whole.seq] = whole

    @rule()
    @precondition(lambda self: self.next_seq < REMEMBER)
    def new_frame(self) -> None:
        frame = self.frames[self.next_seq] = make_frame(self.next_seq, N)
        assert self.merge.offer(frame) is None
        self.heard[self.next_seq] = set()
        self.next_seq += 1

    @rule(data=st.data(), board=st.sampled_from(BOARDS))
    @precondition(lambda self: self.frames)
    def part(self, data: st.DataObject, board: str) -> None:
        seq = data.draw(st.sampled_from(sorted(self.frames)))
        frame = self.frames[seq]
        share = self.merge.shares.of(frame.symbols)[board]
        self.heard[seq].add(board)
        self.parts[board] += 1
        self.publish(self.merge.part(board, answer(frame, share), self.now_s))

    @rule(data=st.data())
    @precondition(lambda self: self.frames)
    def same_frame_again(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.frames)))
        assert self.merge.offer(self.frames[seq]) is self.published.get(seq)

    @rule(board=st.sampled_from(BOARDS), after_s=st.sampled_from([0.1, 0.6, 1.2]))
    def silence(self, board: str, after_s: float) -> None:
        self.now_s += after_s
        for whole in self.merge.overdue(board, self.now_s):
            self.publish(whole)

    @invariant()
    def each_symbol_has_what_its_board_said_or_none_with_the_reason(self) -> None:
        for seq, whole in self.published.items():
            assert self.heard[seq]
            right = make_decisions(seq, N)
            said = whole.reasons != Reason.BOARD_AWAY
            assert (whole.action[~said] == Action.NONE).all()
            for column in ('action', 'reasons', 'score', 'predicted_return'):
                got, want = getattr(whole, column)[said], getattr(right, column)[said]
                assert got.tobytes() == want.tobytes()
            for board, share in self.merge.shares.of(whole.symbols).items():
                if board not in self.heard[seq]:
                    assert not said[share.places].any()

    @invariant()
    def a_frame_that_all_boards_answered_is_published(self) -> None:
        for seq, heard in self.heard.items():
            assert seq in self.published or heard != set(BOARDS)

    @invariant()
    def each_part_is_counted_once_or_still_waits(self) -> None:
        for board, counters in self.merge.counters.items():
            counted = counters.merged + counters.repeated + counters.late + counters.refused
            waiting = sum(
                board in heard and seq not in self.published for seq, heard in self.heard.items()
            )
            assert counted + counters.other_bundle + waiting == self.parts[board]


TestFrames = Frames.TestCase
TestFrames.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
