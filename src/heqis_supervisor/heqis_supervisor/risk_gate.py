# SPDX-License-Identifier: Apache-2.0
"""What the risk gate decides: freshness, hold and kill switch. Pure; time is an argument."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from heqis_core.decision import Decisions, Reason

_REMEMBERED = 4096


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

    The first that applies is the reason: kill switch, hold, `valid_until_ns` before `now_ns`.
    Decisions that are no signals are untouched; where nothing is refused the same object comes
    back.
    """
    everywhere = np.ones(len(decisions.symbols), np.bool_)
    if state.kill_switch:
        return decisions.refuse(everywhere, Reason.KILL_SWITCH)
    if state.hold:
        return decisions.refuse(everywhere, Reason.HELD)
    stale = decisions.valid_until_ns < now_ns
    return decisions.refuse(stale, Reason.STALE) if stale.any() else decisions


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
