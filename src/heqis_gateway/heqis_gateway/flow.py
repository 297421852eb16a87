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

    Args:
        max_in_flight: most frames that may be open at once.
        resend_after_s: seconds without any frame being closed until the open ones are sent again.
        resend_burst: most frames sent again at once; the next burst waits for an answer or the
            time-out.
    """

    max_in_flight: int
    resend_after_s: float
    resend_burst: int = 16
    _open: dict[int, None] = field(default_factory=dict)
    _last_progress_s: float = 0.0

    @property
    def n_open(self) -> int:
        """Frames sent whose decisions are not known to be durable."""
        return len(self._open)

    @property
    def may_send(self) -> bool:
        """Whether one more frame may be opened."""
        return len(self._open) < self.max_in_flight

    def first_open(self, next_seq: int) -> int:
        """Return the first open seq, or `next_seq` if none is open."""
        return min(self._open, default=next_seq)

    def opened(self, seq: int, now_s: float) -> None:
        """Note that frame `seq` was handed to the link for the first time."""
        if not self._open:
            self._last_progress_s = now_s
        self._open[seq] = None

    def closed(self, seqs: Iterable[int], now_s: float) -> int:
        """Note durable decisions; return how many frames that closed."""
        n = sum(self._open.pop(seq, 0) is None for seq in seqs)
        if n:
            self._last_progress_s = now_s
        return n

    def due(self, now_s: float) -> list[int]:
        """Return the seqs to send again now, in order; empty while answers come in."""
        if not self._open or now_s - self._last_progress_s < self.resend_after_s:
            return []
        self._last_progress_s = now_s
        return sorted(self._open)[: self.resend_burst]
