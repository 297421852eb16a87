# SPDX-License-Identifier: Apache-2.0
"""What the risk gate decides: kill switch, hold, freshness, price limits. Pure, time is passed in.

The bounds of the risk rules are in `bounds.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heqis_core.decision import Action, Decisions, Reason

_REMEMBERED = 4096
# Plain numbers: numpy is slow with enums, and this is done for every frame.
_BUY, _SELL = int(Action.BUY), int(Action.SELL)
_UP, _DOWN = np.uint32(int(Reason.AT_LIMIT_UP)), np.uint32(int(Reason.AT_LIMIT_DOWN))


@dataclass(frozen=True)
class GateState:
    """What the gate knows besides the decisions.

    Attributes:
        kill_switch: a person said that nothing may go out.
        hold: the supervisor says that output must be held.
    """

    kill_switch: bool = False
    hold: bool = False


def judge(decisions: Decisions, now_ns: int, state: GateState) -> Decisions:
    """Return the decisions with every signal that may not go out turned into NONE.

    The first that applies is the reason: kill switch, hold, `valid_until_ns` before `now_ns`, a
    BUY at the upper price limit or a SELL at the lower one. Decisions that are no signals are
    untouched; where nothing is refused the same object comes back.
    """
    everywhere = np.ones(len(decisions.symbols), np.bool_)
    if state.kill_switch:
        return decisions.refuse(everywhere, Reason.KILL_SWITCH)
    if state.hold:
        return decisions.refuse(everywhere, Reason.HELD)
    stale = decisions.valid_until_ns < now_ns
    if stale.any():
        decisions = decisions.refuse(stale, Reason.STALE)
    sealed = _sealed(decisions)
    return decisions.refuse(sealed, Reason.PRICE_LIMIT) if sealed.any() else decisions


def _sealed(decisions: Decisions) -> npt.NDArray[np.bool_]:
    """Return bool (S,): where only the other side is served at the limit."""
    at_limit = decisions.reasons & (_UP | _DOWN)
    if not at_limit.any():
        return np.zeros(len(at_limit), np.bool_)
    buy = (decisions.action == _BUY) & (at_limit & _UP != 0)
    sell = (decisions.action == _SELL) & (at_limit & _DOWN != 0)
    return np.asarray(buy | sell)


class EventClock:
    """The time of a replay: the newest event time of a stream up to a frame's `seq`.

    Frames that come again, or late, are judged as if they had come in order: the same frames
    give the same verdicts whatever was lost and sent again in between.
    """

    def __init__(self) -> None:
        """Start with no frame seen."""
        self._seen: dict[str, tuple[list[int], list[int]]] = {}

    def resume(self, newest: Iterable[Decisions]) -> None:
        """Go on after the newest frames that a journal holds."""
        for frame in newest:
            self.now_ns(frame)

    def now_ns(self, frame: Decisions) -> int:
        """Return the time to judge a frame by, and take note of it."""
        seqs, times = self._seen.setdefault(frame.stream, ([], []))
        at = bisect_left(seqs, frame.seq)
        now = max(frame.event_time_ns, times[at - 1] if at else frame.event_time_ns)
        if at == len(seqs):
            seqs.append(frame.seq)
            times.append(now)
            if len(seqs) > 2 * _REMEMBERED:
                del seqs[:_REMEMBERED], times[:_REMEMBERED]
        return now
