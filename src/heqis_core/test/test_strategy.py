# SPDX-License-Identifier: Apache-2.0
"""Strategy: thresholds, reasons, and one verdict for each symbol whatever the models answer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.decision import Action, Reason
from heqis_core.strategy import StrategyConfig, decide

CONFIG = StrategyConfig(buy_threshold=0.2, sell_threshold=-0.1)


def verdict(probabilities, reasons=None, log_return=None):
    p = np.asarray(probabilities, np.float32)
    n = len(p)
    return decide(
        CONFIG,
        p,
        np.zeros(n, np.float32) if log_return is None else np.asarray(log_return, np.float32),
        np.zeros(n, np.uint32) if reasons is None else np.asarray(reasons, np.uint32),
    )


def test_thresholds_are_inclusive_and_the_targets_follow_the_action():
    v = verdict([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.3, 0.4, 0.3]])
    assert v.action.tolist() == [Action.BUY, Action.SELL, Action.HOLD]
    assert v.reasons.tolist() == [Reason.UP, Reason.DOWN, Reason.INSIDE_BAND]
    np.testing.assert_array_equal(v.target_position, [1, 0, np.nan])
    exact = decide(
        StrategyConfig(0.25, -0.25),
        np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]], np.float32),
        np.zeros(2, np.float32),
        np.zeros(2, np.uint32),
    )
    assert exact.action.tolist() == [Action.BUY, Action.SELL]


def test_arrays_that_are_read_only_or_strided_are_judged_alike_and_left_as_they_are():
    wide = np.array([[0.0, 9, 0.5, 9, 0.5, 9], [0.5, 9, 0.5, 9, 0.0, 9]], np.float32)
    reasons = np.zeros(2, np.uint32)
    wide.flags.writeable = reasons.flags.writeable = False
    found = decide(CONFIG, wide[:, ::2], np.zeros(4, np.float32)[::2], reasons)
    assert found.action.tolist() == [Action.BUY, Action.SELL]
    assert reasons.tolist() == [0, 0]


def test_a_symbol_that_cannot_be_judged_is_none_with_its_reason_and_no_score():
    v = verdict([[0.0, 0.0, 1.0]] * 2, reasons=[Reason.SUSPENDED, 0])
    assert v.action.tolist() == [Action.NONE, Action.BUY]
    assert v.reasons[0] == Reason.SUSPENDED
    assert np.isnan(v.score[0])


def test_nan_or_infinity_from_a_model_is_none_and_said():
    v = verdict([[0, 0, np.nan], [0, 0, 1], [0, 0, 1]], log_return=[0, np.inf, 0])
    assert v.action.tolist() == [Action.NONE, Action.NONE, Action.BUY]
    assert v.reasons[:2].tolist() == [Reason.NOT_FINITE] * 2


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3))),
    st.randoms(use_true_random=False),
)
def test_every_symbol_gets_one_verdict_and_only_signals_have_a_target(probabilities, random):
    reasons = np.array(
        [random.choice([0, Reason.NO_BAR, Reason.WARMING]) for _ in probabilities], np.uint32
    )
    v = verdict(probabilities, reasons=reasons)
    assert (v.reasons != 0).all()
    signal = v.action >= Action.BUY
    np.testing.assert_array_equal(np.isfinite(v.target_position), signal)
    np.testing.assert_array_equal(np.isnan(v.score), v.action == Action.NONE)
    assert (v.action[reasons != 0] == Action.NONE).all()
