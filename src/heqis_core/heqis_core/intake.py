# SPDX-License-Identifier: Apache-2.0
"""Puts frames in order and finds out which ones to ask for again. Pure: no clock, no socket.

The gateway numbers its frames without a gap. Whoever consumes them offers each arrival here,
delivers what comes out in order, and asks the gateway for what `wanted` names. A new epoch (the
gateway started again), a
restart of the consumer and a lost frame are all answered the same way: fetch what is missing from
the gateway's ring, then go on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from heqis_core.frame import FeatureFrame
from heqis_core.link import MissedReply

_ENDED_EPOCHS = 64


@dataclass(frozen=True, slots=True)
class Delivery:
    """One frame in order.

    Attributes:
        frame: the frame.
        decide: False for a frame that only warms the windows: its decisions are durable already.
        after_hole: frames just before this one are gone for good; no window may reach across.
        restart: the frame begins a new history; windows of the old one must be dropped.
    """

    frame: FeatureFrame
    decide: bool
    after_hole: bool = False
    restart: bool = False


@dataclass(slots=True)
class Counters:
    """Each frame that arrives is counted once in `received`, whatever becomes of it."""

    received: int = 0
    duplicate: int = 0
    outdated: int = 0
    """Frames of an epoch that has ended."""
    gaps: int = 0
    """Times that the next frame was not the expected one."""
    recovered: int = 0
    """Frames that came in by request."""
    lost: int = 0
    """Frames that the gateway no longer had."""
    overflow: int = 0
    """Frames beyond the buffer for early arrivals; they are asked for again."""


@dataclass(slots=True)
class Intake:
    """Order frames of one stream.

    Args:
        horizon: frames before a decision that its windows may reach back to.
        max_early: bound of the buffer for frames that arrive ahead of a missing one.
        chunk: most frames asked for in one request.
    """

    horizon: int
    max_early: int = 256
    chunk: int = 64
    counters: Counters = field(default_factory=Counters)
    _epoch: int = 0
    _ended: deque[int] = field(default_factory=lambda: deque(maxlen=_ENDED_EPOCHS))
    _next_seq: int | None = None
    _first_open: int = 0
    _fresh: bool = True
    _hole: bool = False
    _early: dict[int, FeatureFrame] = field(default_factory=dict)

    def offer(self, frame: FeatureFrame) -> tuple[list[Delivery], int | None]:
        """Take an arrival; return the deliveries it allows, and its seq if it is a repeat.

        A sender repeats a frame when it has not heard of its decisions, so the caller answers the
        second value by sending those decisions again.
        """
        self.counters.received += 1
        if frame.epoch in self._ended:
            self.counters.outdated += 1
            return [], None
        if frame.epoch != self._epoch:
            self._begin(frame.epoch)
        if self._next_seq is not None and frame.seq < self._next_seq:
            self.counters.duplicate += 1
            return [], frame.seq
        if self._next_seq is not None and frame.seq > self._next_seq and not self._early:
            self.counters.gaps += 1
        self._keep(frame)
        return self._drain(), None

    def wanted(self) -> tuple[int, int, int] | None:
        """Return (epoch, first, last) to ask for now, or None; last < first: the position."""
        if self._epoch == 0 or not self._early:
            return None
        if self._next_seq is None:
            return self._epoch, 1, 0
        last = min(min(self._early) - 1, self._next_seq + self.chunk - 1)
        return self._epoch, self._next_seq, last

    def answer(self, reply: MissedReply) -> list[Delivery]:
        """Take the gateway's answer to `wanted`; return the deliveries it allows."""
        if reply.epoch in self._ended:
            return []
        if reply.epoch != self._epoch:
            # It started again while we asked; its next frame, which stays open, brings us back
            # here.
            self._begin(reply.epoch)
        if self._next_seq is None:
            self._first_open = reply.first_open_seq
            first = max(0, reply.first_open_seq - self.horizon + 1)
            self._next_seq = max(first, reply.oldest_seq)
            self._hole = self._next_seq > first
            self._early = {s: f for s, f in self._early.items() if s >= self._next_seq}
        elif reply.oldest_seq > self._next_seq:
            self.counters.lost += reply.oldest_seq - self._next_seq
            self._next_seq = reply.oldest_seq
            self._hole = True
            self._early = {s: f for s, f in self._early.items() if s >= self._next_seq}
        for frame in reply.frames:
            if frame.seq >= self._next_seq and frame.seq not in self._early:
                self.counters.recovered += 1
                self._early[frame.seq] = frame
        return self._drain()

    @property
    def waiting(self) -> int:
        """Frames held back because an earlier one is missing."""
        return len(self._early)

    def _begin(self, epoch: int) -> None:
        # Epochs are identities, not numbers that grow: which one is over shows only when another
        # one speaks.
        if self._epoch:
            self._ended.append(self._epoch)
        self._epoch = epoch
        self._next_seq = None
        self._fresh = True
        self._hole = False
        self._early.clear()

    def _keep(self, frame: FeatureFrame) -> None:
        in_order = frame.seq == self._next_seq
        if in_order or frame.seq in self._early or len(self._early) < self.max_early:
            self._early[frame.seq] = frame
        else:
            self.counters.overflow += 1

    def _drain(self) -> list[Delivery]:
        ready: list[Delivery] = []
        while self._next_seq is not None and self._next_seq in self._early:
            frame = self._early.pop(self._next_seq)
            decide = frame.seq >= self._first_open
            ready.append(Delivery(frame, decide, self._hole, self._fresh))
            self._hole = self._fresh = False
            self._next_seq += 1
        return ready
