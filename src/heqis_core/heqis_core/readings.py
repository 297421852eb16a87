# SPDX-License-Identifier: Apache-2.0
"""Readings: single values of a channel, from sources slower or less regular than the bars.

The primary source gives bar blocks (`heqis_core.source`); what a channel source gives is joined
onto them as of their event time.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol

NEVER_NS = -(2**63)
"""Before every event time (the least int64)."""


class ReadingStatus(IntEnum):
    """Whether a reading may be used."""

    OK = 0
    STALE = 1
    """The channel has no current value from here on; the reading's value is NaN."""


class Reading(NamedTuple):
    """One value of one channel.

    Attributes:
        event_time_ns: when it was known at the latest, int64 ns UTC.
        symbol, channel: what it belongs to, and its name there.
        value: in the channel's unit; NaN where `status` is not OK.
        status: `ReadingStatus`.
    """

    event_time_ns: int
    symbol: str
    channel: str
    value: float
    status: ReadingStatus = ReadingStatus.OK


class ChannelSource(Protocol):
    """One source of readings.

    Used from one thread, except `close`, which any thread may call, and `counts`, which any
    thread may read.
    """

    counts: dict[str, int]
    """What came, and what was refused or lost, by reason."""

    @property
    def complete_ns(self) -> int:
        """Return the event time up to which it has said everything; `NEVER_NS` if it cannot know.

        Where it knows, no block has to wait for a later reading to be sure.
        """

    def open(self) -> None:
        """Get ready; raise HeqisError if that cannot be, whatever the far end does."""

    def poll(self, timeout_s: float) -> list[Reading]:
        """Return what came within `timeout_s`, oldest first; empty if nothing did.

        A far end that is away is counted and tried again, not raised. EndOfStream of
        `heqis_core.source` says that a finite source has said its last.
        """

    def close(self) -> None:
        """Give everything back, and wake a waiting `poll`."""
