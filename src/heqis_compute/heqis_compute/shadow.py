# SPDX-License-Identifier: Apache-2.0
"""The shadow of a swap: the new decider judges the frames of the old one, and is compared.

The judge's thread only hands frames over; judging is for the thread of the swap, so what goes
wrong or takes long there costs the served bundle nothing but a share of the processor.
"""

from __future__ import annotations

import queue

import numpy as np
import numpy.typing as npt

from heqis_core.decider import Decider
from heqis_core.decision import Action, Decisions, Predictions
from heqis_core.errors import EngineError
from heqis_core.frame import FeatureFrame
from heqis_core.intake import Delivery


class Shadow:
    """A decider that looks on, over the frames that were decided last and the next few.

    Args:
        decider: of the new bundle, for the symbols of the stream; nobody else uses it meanwhile.
        n_frames: deliveries that it looks at; that many frames may be held in memory.

    Attributes:
        decider: as given.
        frames: frames that both have judged.
        judged: decisions of those frames in which the served bundle said something.
        same: those with the same action.
    """

    def __init__(self, decider: Decider, n_frames: int) -> None:
        self.decider = decider
        self.frames = 0
        self.judged = 0
        self.same = 0
        self._left = n_frames
        self._last: tuple[FeatureFrame, Decisions] | None = None
        self._todo: queue.SimpleQueue[tuple[Delivery, Decisions | None]] = queue.SimpleQueue()
        self._undone = n_frames

    @property
    def done(self) -> bool:
        """Whether it has looked at as many deliveries as it should."""
        return self._undone == 0

    @property
    def agreement(self) -> float:
        """Return the share of the decisions judged that are the same action, NaN without any."""
        return self.same / self.judged if self.judged else float('nan')

    # ---- the judge's thread ---------------------------------------------------------------------

    def look_back(self, frame: FeatureFrame, decisions: Decisions) -> None:
        """Take the last frame that was decided, whose rows are in the windows already."""
        self._last = (frame, decisions)

    def offer(self, delivery: Delivery, decisions: Decisions | None) -> None:
        """Take a delivery with what the served bundle said; None for one that only warms.

        Never waits. What comes after the last one wanted is let go.
        """
        if self._left:
            self._left -= 1
            self._todo.put((delivery, decisions))

    # ---- the swap's thread ----------------------------------------------------------------------

    def judge_last(self) -> None:
        """Judge the frame of `look_back` once more, if there is one; raises as `step`."""
        if self._last is not None:
            self._compare(self._last[1], *self.decider.judge(self._last[0]))

    def step(self, timeout_s: float) -> None:
        """Judge the next delivery, if one comes in time, and compare.

        Raises EngineError if an engine fails, or if a model's answer is not finite for a symbol
        that the served bundle could judge.
        """
        try:
            delivery, decisions = self._todo.get(timeout=timeout_s)
        except queue.Empty:
            return
        self._undone -= 1
        if delivery.restart:
            self.decider.restart()
        if delivery.after_hole:
            self.decider.hole(delivery.frame.seq)
        if decisions is None:
            self.decider.warm(delivery.frame)
        else:
            self._compare(decisions, *self.decider.decide(delivery.frame))

    def _compare(self, old: Decisions, new: Decisions, predictions: Predictions) -> None:
        judged = old.action != Action.NONE
        _check_finite(old, predictions, judged)
        self.frames += 1
        self.judged += int(judged.sum())
        self.same += int((judged & (old.action == new.action)).sum())


def _check_finite(old: Decisions, predictions: Predictions, judged: npt.NDArray[np.bool_]) -> None:
    # Every generator, not only the one that is served: all of them go to the journal.
    finite = np.isfinite(predictions.log_return)
    finite &= np.isfinite(predictions.probabilities).all(axis=2)
    bad = judged & ~finite
    if bad.any():
        g, s = (int(index) for index in np.argwhere(bad)[0])
        raise EngineError(
            f'bundle {predictions.bundle_id} is not finite where bundle {old.bundle_id} is: '
            f'generator {predictions.generators[g]!r} answers NaN or infinity for '
            f'{int(bad.any(axis=0).sum())} of {len(judged)} symbols at frame {old.seq}, '
            f'the first is {old.symbols[s]}'
        )
