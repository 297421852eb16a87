# SPDX-License-Identifier: Apache-2.0
"""What a link is: the two ends of the bypass, and the question that asks for frames again.

Plain data and protocols only. The ZeroMQ implementation is `heqis_core.io.zmq_link`; the bytes are
`heqis_core.wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame


@dataclass(frozen=True, slots=True)
class MissedRequest:
    """Ask the gateway for frames again.

    Attributes:
        epoch: the producer epoch that the asker knows; 0 = none.
        first_seq: first frame wanted.
        last_seq: last frame wanted, inclusive; `last_seq < first_seq` asks for the position alone.
    """

    epoch: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class MissedReply:
    """What the gateway holds of the frames that were asked for.

    Attributes:
        epoch: of the producer now.
        oldest_seq: oldest frame that its ring still holds (equal to `next_seq` when it holds
        none). next_seq: first frame that does not exist yet.
        first_open_seq: first frame whose decisions are not known to be durable.
        frames: those asked for that the ring holds, in order.
    """

    epoch: int
    oldest_seq: int
    next_seq: int
    first_open_seq: int
    frames: list[FeatureFrame] = field(default_factory=list)


class GatewayEnd(Protocol):
    """The end that owns the frames; every loss is in `counters`."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Return a snapshot of what was sent, received, refused and lost since the start."""

    @property
    def last_error(self) -> str:
        """Return the most recent fault as one line; empty if there was none."""

    def send(self, frame: FeatureFrame, timeout_ms: int) -> bool:
        """Hand one frame over; return False if no peer took it in time. May raise WireError."""

    def recv_decisions(self, timeout_ms: int) -> Decisions | None:
        """Return the next decisions, or None if none came in time."""

    def serve(
        self, handler: Callable[[MissedRequest], MissedReply], timeout_ms: int = 100
    ) -> bool:
        """Answer at most one request for missed frames; return whether one was answered."""

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns empty-handed."""


class ComputeEnd(Protocol):
    """The end that judges the frames; every loss is in `counters`."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Return a snapshot of what was sent, received, refused and lost since the start."""

    @property
    def last_error(self) -> str:
        """Return the most recent fault as one line; empty if there was none."""

    def recv(self, timeout_ms: int) -> FeatureFrame | None:
        """Return the next frame, or None if none came in time. Its tensors are read-only."""

    def send_decisions(self, decisions: Decisions, timeout_ms: int) -> bool:
        """Hand decisions over; return False if no peer took them in time. May raise WireError."""

    def request(
        self, epoch: int, first_seq: int, last_seq: int, timeout_ms: int
    ) -> MissedReply | None:
        """Ask for frames again; None if no whole answer came in time."""

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns empty-handed."""
