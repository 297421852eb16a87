# SPDX-License-Identifier: Apache-2.0
"""Intake: whatever the link does, frames come out once, in order, and no hole is hidden."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.frame import FeatureFrame
from heqis_core.intake import Delivery, Intake
from heqis_core.link import MissedReply

HORIZON = 6


def frame(seq: int, epoch: int = 1) -> FeatureFrame:
    tensors = {'features': np.full((1, 1), seq, np.float32)}
    return FeatureFrame('s', epoch, seq, seq * 10, 0, 'f' * 16, ('A',), tensors)


def reply(first: int, last: int, *, oldest=0, next_seq=100, first_open=0, epoch=1) -> MissedReply:
    held = [frame(seq, epoch) for seq in range(max(first, oldest), min(last + 1, next_seq))]
    return MissedReply(epoch, oldest, next_seq, first_open, held)


def settle(intake: Intake, **gateway) -> list[Delivery]:
    """Answer every question of the intake from a gateway's ring."""
    out: list[Delivery] = []
    while (question := intake.wanted()) is not None:
        out += intake.answer(reply(question[1], question[2], **gateway))
    return out


def synced(epoch: int = 1, **gateway) -> Intake:
    intake = Intake(HORIZON)
    intake.offer(frame(0, epoch))
    settle(intake, epoch=epoch, **gateway)
    return intake


def test_first_frame_asks_for_the_position_and_then_warms_exactly_one_horizon():
    intake = Intake(HORIZON)
    assert intake.offer(frame(40)) == ([], None)
    assert intake.wanted() == (1, 1, 0)
    out = settle(intake, first_open=38)
    assert [d.frame.seq for d in out] == list(range(38 - HORIZON + 1, 41))
    assert [d.frame.seq for d in out if d.decide] == [38, 39, 40]
    assert out[0].restart
    assert not any(d.restart for d in out[1:])
    assert not any(d.after_hole for d in out)


def test_a_stream_at_its_first_frame_is_complete_without_a_hole():
    intake = Intake(HORIZON)
    intake.offer(frame(0))
    (only,) = settle(intake, first_open=0, next_seq=1)
    assert (only.frame.seq, only.decide, only.after_hole) == (0, True, False)


def test_a_ring_too_short_for_the_horizon_shows_as_a_hole():
    intake = Intake(HORIZON)
    intake.offer(frame(40))
    out = settle(intake, first_open=40, oldest=38)
    assert out[0].frame.seq == 38
    assert out[0].after_hole


def test_a_gap_is_asked_for_and_filled_in_order():
    intake = synced()
    assert intake.offer(frame(3)) == ([], None)
    assert intake.offer(frame(4)) == ([], None)
    assert intake.wanted() == (1, 1, 2)
    out = settle(intake)
    assert [d.frame.seq for d in out] == [1, 2, 3, 4]
    assert all(d.decide for d in out)
    assert intake.counters.gaps == 1
    assert intake.counters.recovered == 2


def test_frames_that_the_gateway_lost_are_counted_and_leave_a_hole():
    intake = synced()
    intake.offer(frame(9))
    out = settle(intake, oldest=7)
    assert [d.frame.seq for d in out] == [7, 8, 9]
    assert [d.after_hole for d in out] == [True, False, False]
    assert intake.counters.lost == 6


def test_a_frame_seen_before_names_itself_for_a_repeated_answer():
    intake = synced()
    assert [d.frame.seq for d in intake.offer(frame(1))[0]] == [1]
    assert intake.offer(frame(1)) == ([], 1)
    assert intake.counters.duplicate == 1


@pytest.mark.parametrize('old', [1, 9])
def test_a_new_epoch_starts_a_new_history_and_an_old_one_is_ignored(old):
    # Epochs are random identities: a gateway's next one is as often smaller as it is larger.
    intake = synced(old)
    assert intake.offer(frame(1, epoch=2)) == ([], None)
    out = settle(intake, epoch=2, first_open=1)
    assert [d.frame.seq for d in out] == [0, 1]
    assert out[0].restart
    assert [d.decide for d in out] == [False, True]
    assert intake.offer(frame(2, epoch=old)) == ([], None)
    assert intake.counters.outdated == 1


@pytest.mark.parametrize('old', [1, 9])
def test_an_answer_of_a_gateway_that_has_started_again_is_not_mixed_in(old):
    intake = synced(old)
    intake.offer(frame(5, epoch=old))
    assert intake.answer(reply(1, 4, epoch=2, first_open=3)) == []
    assert intake.offer(frame(6, epoch=old)) == ([], None)
    out, _ = intake.offer(frame(3, epoch=2))
    out += settle(intake, epoch=2, first_open=3)
    assert [d.frame.seq for d in out] == [0, 1, 2, 3, 4]
    assert {d.frame.epoch for d in out} == {2}


def test_early_frames_beyond_the_bound_are_counted_and_come_again_by_request():
    intake = Intake(HORIZON, max_early=4)
    intake.offer(frame(0))
    settle(intake)
    for seq in range(2, 12):
        intake.offer(frame(seq))
    assert intake.counters.overflow == 6
    assert intake.waiting == 4
    out = settle(intake)
    out += [d for seq in range(6, 12) for d in intake.offer(frame(seq))[0]]
    assert [d.frame.seq for d in out] == list(range(1, 12))


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(['keep', 'drop', 'twice', 'late'])),
        max_size=60,
    ),
    st.integers(0, 10),
)
def test_any_loss_and_any_order_give_each_frame_once_and_in_order(events, start):
    intake = Intake(HORIZON, chunk=4)
    arrivals: list[int] = []
    late: list[int] = []
    for seq in range(start, start + 31):
        what = dict(events).get(seq - start, 'keep')
        arrivals += {'keep': [seq], 'drop': [], 'twice': [seq, seq], 'late': []}[what]
        late += [seq] if what == 'late' else []
    last = start + 31
    out: list[Delivery] = []
    for seq in [*arrivals, *late, last]:
        out += intake.offer(frame(seq))[0]
        out += settle(intake, first_open=start, next_seq=last + 1)
    seqs = [d.frame.seq for d in out]
    assert seqs == list(range(max(0, start - HORIZON + 1), last + 1))
    assert [d.frame.seq for d in out if d.decide] == list(range(start, last + 1))
    assert sum(d.restart for d in out) == 1
    assert not any(d.after_hole for d in out)
