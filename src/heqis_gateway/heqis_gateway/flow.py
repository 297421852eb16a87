# SPDX-License-Identifier: Apache-2.0
"""Flow control on acknowledged frames: how many may be open, when to send them again. Pure.

A frame is open from its first sending until its decisions are durable in the journal. Only that
closes it, so whatever dies on the way (compute board, bridge, risk gate), the frame is still here
to be sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class FlowControl:
    """Book of the open frames of one stream.

    Progress is what the oldest open frame makes: newer ones that close beside it must neither hide
    that it waits nor run so far ahead that the ring loses it.

    Args:
        max_in_flight: most frames from the oldest open one to the newest.
        resend_after_s: seconds that the oldest stays open until the open ones are sent again.
        resend_burst: most frames sent again at once; the next burst follows when this one is
            closed, or after the time-out.
    """

    max_in_flight: int
    resend_after_s: float
    resend_burst: int = 16
    _open: dict[int, None] = field(default_factory=dict)
    _last_progress_s: float = 0.0
    _newest: int = -1
    _burst: frozenset[int] = frozenset()
    _stale_end: int = 0

    @property
    def n_open(self) -> int:
        """Frames sent whose decisions are not known to be durable."""
        return len(self._open)

    @property
    def may_send(self) -> bool:
        """Whether one more frame may be opened."""
        return not self._open or self._newest - min(self._open) + 1 < self.max_in_flight

    def first_open(self, next_seq: int) -> int:
        """Return the first open seq, or `next_seq` if none is open."""
        return min(self._open, default=next_seq)

    def opened(self, seq: int, now_s: float) -> None:
        """Note that frame `seq` was handed to the link for the first time."""
        if not self._open:
            self._last_progress_s = now_s
        self._open[seq] = None
        self._newest = max(self._newest, seq)

    def closed(self, seqs: Iterable[int], now_s: float) -> int:
        """Note durable decisions; return how many frames that closed."""
        oldest = min(self._open, default=None)
        n = sum(self._open.pop(seq, 0) is None for seq in seqs)
        if oldest not in self._open:
            self._last_progress_s = now_s
        return n

    def due(self, now_s: float) -> list[int]:
        """Return the seqs to send again now, in order; empty while answers come in."""
        if not self._open:
            return []
        if now_s - self._last_progress_s >= self.resend_after_s:
            self._stale_end = self._newest + 1
        elif not self._burst or not self._burst.isdisjoint(self._open):
            return []
        stale = sorted(seq for seq in self._open if seq < self._stale_end)[: self.resend_burst]
        self._burst = frozenset(stale)
        if stale:
            self._last_progress_s = now_s
        return stale
