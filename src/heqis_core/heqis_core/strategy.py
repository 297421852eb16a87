# SPDX-License-Identifier: Apache-2.0
"""The strategy: class probabilities in, actions with reasons out. Pure and without memory."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.decision import Action, Reason
from heqis_core.jit import one_layout, strict_njit

DOWN, FLAT, UP = range(3)
"""Columns of a probability array."""

# Plain numbers: compiled code knows no enums.
_NONE, _HOLD, _BUY, _SELL = map(int, (Action.NONE, Action.HOLD, Action.BUY, Action.SELL))
_NOT_FINITE, _INSIDE = int(Reason.NOT_FINITE), int(Reason.INSIDE_BAND)
_UP, _DOWN = int(Reason.UP), int(Reason.DOWN)


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
    n = len(reasons)
    verdict = Verdict(
        np.empty(n, np.uint8), np.empty(n, np.uint32), np.empty(n, np.float32),
        np.empty(n, np.float32),
    )  # fmt: skip
    _judge(
        np.float32(config.buy_threshold),
        np.float32(config.sell_threshold),
        one_layout(probabilities, np.float32),
        one_layout(log_return, np.float32),
        one_layout(reasons, np.uint32),
        *verdict,
    )
    return verdict


@strict_njit
def _judge(
    buy: np.float32,
    sell: np.float32,
    probabilities: npt.NDArray[np.float32],
    log_return: npt.NDArray[np.float32],
    reasons: npt.NDArray[np.uint32],
    action: npt.NDArray[np.uint8],
    said: npt.NDArray[np.uint32],
    score: npt.NDArray[np.float32],
    target: npt.NDArray[np.float32],
) -> None:
    for s in range(len(reasons)):
        action[s], said[s] = _NONE, reasons[s]
        score[s] = target[s] = np.nan
        if reasons[s]:
            continue
        if not (np.isfinite(log_return[s]) and np.isfinite(probabilities[s]).all()):
            said[s] = _NOT_FINITE
            continue
        x = score[s] = probabilities[s, UP] - probabilities[s, DOWN]
        if x >= buy:
            action[s], said[s], target[s] = _BUY, _UP, 1
        elif x <= sell:
            action[s], said[s], target[s] = _SELL, _DOWN, 0
        else:
            action[s], said[s] = _HOLD, _INSIDE
