# SPDX-License-Identifier: Apache-2.0
"""The gate refuses what must not go out, and gives the same verdicts however frames come."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.decision import Action, Reason
from heqis_supervisor.risk_gate import EventClock, GateState, judge


def test_fresh_decisions_pass_untouched(frame) -> None:
    decisions = frame()
    assert judge(decisions, 200, GateState()) is decisions


def test_a_stale_signal_is_refused_and_other_decisions_stay(frame) -> None:
    decisions = frame()
    decisions.valid_until_ns[3] = 300
    verdict = judge(decisions, 201, GateState())
    assert verdict.action.tolist() == [Action.NONE, Action.HOLD, Action.NONE, Action.SELL]
    assert verdict.reasons.tolist() == [
        Reason.GAP,
        Reason.INSIDE_BAND,
        Reason.UP | Reason.STALE,
        Reason.DOWN,
    ]
    assert np.isnan(verdict.target_position[2])
    assert verdict.score[2] == decisions.score[2], 'what was said stays in the journal'
    assert decisions.action[2] == Action.BUY, 'the proposal is not changed'


def test_kill_switch_and_hold_refuse_every_signal_with_their_reason(frame) -> None:
    for state, reason in (
        (GateState(kill_switch=True, hold=True), Reason.KILL_SWITCH),
        (GateState(hold=True), Reason.HELD),
    ):
        verdict = judge(frame(), 10**18, state)
        assert not verdict.is_signal().any()
        assert verdict.reasons[2] == Reason.UP | reason
        assert verdict.reasons[1] == Reason.INSIDE_BAND


def test_at_the_limit_only_the_side_that_is_served_goes_out(frame) -> None:
    decisions = frame()
    decisions.reasons |= np.uint32(Reason.AT_LIMIT_UP)
    verdict = judge(decisions, 200, GateState())
    assert verdict.action.tolist() == [Action.NONE, Action.HOLD, Action.NONE, Action.SELL]
    assert verdict.reasons[2] == Reason.UP | Reason.AT_LIMIT_UP | Reason.PRICE_LIMIT
    assert verdict.reasons[3] == Reason.DOWN | Reason.AT_LIMIT_UP
    assert verdict.refusals() == {'price_limit': 1}
    decisions = frame()
    decisions.reasons |= np.uint32(Reason.AT_LIMIT_DOWN)
    verdict = judge(decisions, 200, GateState())
    assert verdict.action.tolist() == [Action.NONE, Action.HOLD, Action.BUY, Action.NONE]


def test_the_reason_of_a_refusal_is_the_first_that_applies(frame) -> None:
    decisions = frame()
    decisions.reasons |= np.uint32(Reason.AT_LIMIT_UP)
    assert judge(decisions, 201, GateState()).refusals() == {'stale': 2}
    assert judge(decisions, 201, GateState(hold=True)).refusals() == {'held': 2}
    both = GateState(kill_switch=True, hold=True)
    assert judge(decisions, 201, both).refusals() == {'kill_switch': 2}
    assert judge(frame(), 200, GateState()).refusals() == {}


def test_the_clock_of_a_replay_is_the_newest_event_time_up_to_a_frame(frame) -> None:
    clock = EventClock()
    times = [clock.now_ns(frame(seq, event)) for seq, event in ((1, 100), (2, 110), (3, 105))]
    assert times == [100, 110, 110], 'an amendment of an old bar is judged at the present'
    assert clock.now_ns(frame(1, 100)) == 100, 'a frame that comes again is judged as at first'
    assert clock.now_ns(frame(1, 90, stream='other')) == 90


def test_a_restarted_clock_goes_on_after_the_journal(frame) -> None:
    clock = EventClock()
    clock.resume([frame(7, 700)])
    assert clock.now_ns(frame(8, 650)) == 700
    assert clock.now_ns(frame(6, 600)) == 600


@given(events=st.lists(st.integers(0, 1000), min_size=1, max_size=30), data=st.data())
def test_verdicts_do_not_depend_on_loss_and_redelivery(
    frame, events: list[int], data: st.DataObject
) -> None:
    frames = [frame(seq, event) for seq, event in enumerate(events)]
    in_order = EventClock()
    wanted = [in_order.now_ns(each) for each in frames]
    clock = EventClock()
    for each in frames:
        assert clock.now_ns(each) == wanted[each.seq]
        again = data.draw(st.integers(0, each.seq))
        assert clock.now_ns(frames[again]) == wanted[again]


def test_a_clock_that_runs_for_long_stays_small(frame) -> None:
    clock = EventClock()
    for seq in range(20_000):
        assert clock.now_ns(frame(seq, 1000 + seq)) == 1000 + seq
    assert clock.now_ns(frame(19_000, 20_000)) == 20_000
    assert len(clock._seen['s'][0]) <= 8192
