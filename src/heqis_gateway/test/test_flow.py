# SPDX-License-Identifier: Apache-2.0
"""Flow control: only durable decisions close a frame, and silence brings open ones back."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heqis_gateway.flow import FlowControl


def test_nothing_is_due_while_answers_come_in():
    flow = FlowControl(max_in_flight=4, resend_after_s=1.0)
    for seq in range(4):
        flow.opened(seq, 0.0)
    assert not flow.may_send
    assert flow.closed([0], 0.9) == 1
    assert flow.may_send
    assert flow.due(1.5) == []
    assert flow.due(2.0) == [1, 2, 3]


def test_a_resend_waits_the_whole_time_again_and_is_bounded():
    flow = FlowControl(max_in_flight=9, resend_after_s=1.0, resend_burst=2)
    for seq in (5, 3, 4):
        flow.opened(seq, 0.0)
    assert flow.due(1.0) == [3, 4]
    assert flow.due(1.5) == []
    assert flow.due(2.0) == [3, 4]


def test_an_idle_stream_is_never_due_and_its_first_frame_gets_the_whole_time():
    flow = FlowControl(max_in_flight=4, resend_after_s=1.0)
    assert flow.due(1e9) == []
    flow.opened(0, 1e9)
    assert flow.due(1e9 + 0.5) == []


def test_newer_frames_that_are_closed_do_not_hide_an_old_one_that_waits():
    flow = FlowControl(max_in_flight=8, resend_after_s=1.0)
    flow.opened(0, 0.0)
    for seq in range(1, 7):
        flow.opened(seq, 0.15 * seq)
        assert flow.closed([seq], 0.15 * seq) == 1
    assert flow.due(0.99) == []
    assert flow.due(1.0) == [0]


def test_an_open_frame_is_never_left_further_behind_than_allowed():
    # The ring keeps what is in flight and no more: who runs ahead could not send it again.
    flow = FlowControl(max_in_flight=4, resend_after_s=1.0)
    for seq in range(4):
        assert flow.may_send
        flow.opened(seq, 0.0)
    flow.closed([1, 2, 3], 0.1)
    assert flow.n_open == 1
    assert not flow.may_send
    flow.closed([0], 0.2)
    assert flow.may_send


def test_the_next_burst_follows_the_one_that_is_closed_without_a_wait():
    flow = FlowControl(max_in_flight=9, resend_after_s=1.0, resend_burst=2)
    for seq in range(5):
        flow.opened(seq, 0.0)
    assert flow.due(1.0) == [0, 1]
    flow.closed([0], 1.1)
    assert flow.due(1.1) == []
    flow.closed([1], 1.2)
    flow.opened(5, 1.2)
    assert flow.due(1.2) == [2, 3]
    flow.closed([2, 3], 1.3)
    assert flow.due(1.3) == [4]
    flow.closed([4], 1.4)
    assert flow.due(1.4) == []
    assert flow.due(2.4) == [5]


def test_unknown_and_repeated_acknowledgements_change_nothing():
    flow = FlowControl(max_in_flight=4, resend_after_s=1.0)
    flow.opened(7, 0.0)
    assert flow.closed([3, 7, 7], 0.1) == 1
    assert flow.closed([7], 0.2) == 0
    assert flow.first_open(8) == 8


class FlowMachine(RuleBasedStateMachine):
    """Frames open and close in any order; the book always equals a plain set."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = FlowControl(max_in_flight=8, resend_after_s=1.0)
        self.open: set[int] = set()
        self.next_seq = 0
        self.now = 0.0

    @precondition(lambda self: self.flow.may_send)
    @rule()
    def send(self) -> None:
        self.flow.opened(self.next_seq, self.now)
        self.open.add(self.next_seq)
        self.next_seq += 1

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        seqs = data.draw(st.lists(st.integers(0, self.next_seq + 2), max_size=4))
        assert self.flow.closed(seqs, self.now) == len(self.open & set(seqs))
        self.open -= set(seqs)

    @rule(step=st.floats(0, 3))
    def wait(self, step: float) -> None:
        self.now += step
        due = self.flow.due(self.now)
        assert set(due) <= self.open
        assert due == sorted(due)

    @invariant()
    def book_is_right(self) -> None:
        assert self.flow.n_open == len(self.open)
        assert self.next_seq - min(self.open, default=self.next_seq) <= 8
        assert self.flow.first_open(self.next_seq) == min(self.open, default=self.next_seq)


TestFlowMachine = FlowMachine.TestCase
