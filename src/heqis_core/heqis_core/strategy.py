# SPDX-License-Identifier: Apache-2.0
"""The strategy: class probabilities in, actions with reasons out. Pure and without memory."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.decision import Action, Reason

DOWN, FLAT, UP = range(3)
"""Columns of a probability array."""


class StrategyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of a bundle.

    Attributes:
        buy_threshold: BUY where the score is at least this; score = P(up) - P(down), in [-1, 1].
        sell_threshold: SELL where the score is at most this; below `buy_threshold`.
        valid_for_s: seconds from the bar time until a decision is stale.
    """

    buy_threshold: float
    sell_threshold: float
    valid_for_s: float = 345600.0


class Verdict(NamedTuple):
    """Columns of the decisions of one frame, each with first axis S."""

    action: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint32]
    score: npt.NDArray[np.float32]
    target_position: npt.NDArray[np.float32]


def decide(
    config: StrategyConfig,
    probabilities: npt.NDArray[np.float32],
    log_return: npt.NDArray[np.float32],
    reasons: npt.NDArray[np.uint32],
) -> Verdict:
    """Turn one frame's predictions into actions.

    Args:
        config: thresholds.
        probabilities: float32 (S, 3), classes down, flat, up.
        log_return: float32 (S,), only checked for being finite.
        reasons: uint32 (S,), why a symbol cannot be judged; 0 where it can.

    Where `reasons` is not 0 the action is NONE and the score NaN; a judged symbol whose model
    answered NaN or infinity is NONE with NOT_FINITE. The target is 1 for BUY, 0 for SELL, else
    NaN.
    """
    finite = np.isfinite(probabilities).all(axis=1) & np.isfinite(log_return)
    out_reasons = reasons.copy()
    out_reasons[(reasons == 0) & ~finite] |= np.uint32(Reason.NOT_FINITE)
    judged = out_reasons == 0
    score = np.full(len(reasons), np.nan, np.float32)
    np.subtract(probabilities[:, UP], probabilities[:, DOWN], out=score, where=judged)
    buy = judged & (score >= np.float32(config.buy_threshold))
    sell = judged & ~buy & (score <= np.float32(config.sell_threshold))
    action = np.zeros(len(reasons), np.uint8)
    action[judged] = Action.HOLD
    action[buy] = Action.BUY
    action[sell] = Action.SELL
    out_reasons[buy] |= np.uint32(Reason.UP)
    out_reasons[sell] |= np.uint32(Reason.DOWN)
    out_reasons[judged & ~buy & ~sell] |= np.uint32(Reason.INSIDE_BAND)
    target = np.full(len(reasons), np.nan, np.float32)
    target[buy] = 1.0
    target[sell] = 0.0
    return Verdict(action, out_reasons, score, target)
