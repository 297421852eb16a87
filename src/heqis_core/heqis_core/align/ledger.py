# SPDX-License-Identifier: Apache-2.0
"""What became of each bar and each reading: one count for every one, and the lost ones by name."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

ALWAYS_NS = 2**63 - 1
"""After every event time (the greatest int64)."""
_MAX_REFUSED = 10_000


class Fate(str, Enum):
    """What became of a bar (one symbol at one event time) or of a reading."""

    DELIVERED = 'delivered'
    """It is in a block (a reading: in one at least)."""
    AMENDED = 'amended'
    """A bar that came late and changed a block that was out already."""
    SUPERSEDED = 'superseded'
    """A newer reading came before any block used this one."""
    EXPIRED = 'expired'
    """A reading that was older than its tolerance at the next block."""
    LATE = 'late'
    """Its event time was past the watermark of everything that came out."""
    REPEATED = 'repeated'
    """A source that was opened again said once more what had come out before."""
    DUPLICATE = 'duplicate'
    CONFLICTING = 'conflicting_duplicate'
    """Two that differ for one symbol and event time: nothing says which is right, none is used."""
    UNKNOWN_SYMBOL = 'unknown_symbol'
    UNKNOWN_CHANNEL = 'unknown_channel'
    """A reading that nobody asked for: its channel is not among those that are joined."""
    NOT_A_NUMBER = 'not_a_number'
    AHEAD = 'ahead'
    """Its event time is later than the clock of whoever put it in can be right."""
    OVERFLOW = 'overflow'
    """More was pending than there is room for."""


KEPT_APART = frozenset(
    {
        Fate.LATE,
        Fate.CONFLICTING,
        Fate.UNKNOWN_SYMBOL,
        Fate.NOT_A_NUMBER,
        Fate.AHEAD,
        Fate.OVERFLOW,
    }
)
"""What a quarantine keeps: it was lost, and not because something newer replaced it."""


class Refused(NamedTuple):
    """One bar or reading that was not used."""

    feed: str
    event_time_ns: int
    symbol: str
    channel: str
    """Empty for a bar."""
    value: float
    """Of a bar: its close."""


class Ledger:
    """Counts by feed and fate, and what was kept apart until a quarantine takes it."""

    def __init__(self, feeds: Iterable[str]) -> None:
        self.counts: dict[str, Counter[str]] = {feed: Counter() for feed in feeds}
        self._refused: deque[tuple[Fate, Refused]] = deque(maxlen=_MAX_REFUSED)

    def count(self, feed: str, fate: Fate, n: int = 1) -> None:
        """Count `n` of one fate (fewer where an earlier judgement is taken back)."""
        if n:
            self.counts[feed][fate.value] += n

    def refuse(self, fate: Fate, refused: Refused) -> None:
        """Count one that is not used, and keep it if it is lost."""
        self.count(refused.feed, fate)
        if fate in KEPT_APART:
            self._refused.append((fate, refused))

    def take_refused(self) -> list[tuple[Fate, Refused]]:
        """Hand over what was kept apart since the last call; beyond 10,000 the oldest are gone."""
        taken = list(self._refused)
        self._refused.clear()
        return taken
