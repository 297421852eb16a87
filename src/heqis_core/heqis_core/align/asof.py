# SPDX-License-Identifier: Apache-2.0
"""Join readings as-of: of each channel and symbol the newest one at or before an event time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.align.ledger import ALWAYS_NS, Fate, Ledger, Refused
from heqis_core.errors import ConfigError
from heqis_core.readings import NEVER_NS, Reading

EVERY_SYMBOL = '*'
"""In a reading's symbol: it is of all symbols (an index, a sensor of the plant)."""
MAX_PENDING = 100_000
"""Readings that may wait for their block; beyond it the oldest ones wait no longer."""


class Channel(NamedTuple):
    """One column of readings: which feed says it, and how old a reading may be."""

    name: str
    feed: str
    tolerance_ns: int = ALWAYS_NS


_Key = tuple[int, int, int]
"""Event time, channel and column of a reading."""


@dataclass(slots=True)
class _Waiting:
    """A reading that waits for its block."""

    value: float
    repeats: int = 0
    conflict: bool = False


class AsOf:
    """Keep the readings of S symbols on C channels, and say what was known at an event time.

    Args:
        symbols: S names.
        channels: C columns, in order; a reading of another one is refused.
        ledger: counts what became of each reading.

    Raises ConfigError for two channels of one name.
    """

    def __init__(
        self, symbols: Sequence[str], channels: Sequence[Channel], ledger: Ledger
    ) -> None:
        self.names = tuple(channel.name for channel in channels)
        for name in self.names:
            if self.names.count(name) > 1:
                raise ConfigError(f'channel {name}: given twice; name each once')
        self._channels = tuple(channels)
        self._ledger = ledger
        # One column more than symbols: the readings that are of all of them.
        self._columns = (*symbols, EVERY_SYMBOL)
        self._column = {symbol: index for index, symbol in enumerate(self._columns)}
        self._row = {name: index for index, name in enumerate(self.names)}
        self._tolerance_ns = np.array([c.tolerance_ns for c in channels], np.int64)[:, None]
        self._pending: dict[_Key, _Waiting] = {}
        self._order: list[_Key] = []
        shape = len(channels), len(self._columns)
        self._value = np.full(shape, np.nan)
        self._when_ns = np.full(shape, NEVER_NS, np.int64)
        self._unused = np.zeros(shape, np.bool_)
        self._joined_ns = NEVER_NS
        self._resumed_ns = NEVER_NS

    @property
    def n_pending(self) -> int:
        """Return how many readings wait for their block."""
        waiting = sum(not reading.conflict for reading in self._pending.values())
        return waiting + int(self._unused.sum())

    def put(self, feed: str, readings: Iterable[Reading], not_after_ns: int) -> int:
        """Take readings in any order; return the newest event time that can be believed."""
        newest_ns = NEVER_NS
        for reading in readings:
            fate = self._put(feed, reading, not_after_ns)
            if fate is not None:
                when_ns, symbol, channel, value = reading[:4]
                self._ledger.refuse(fate, Refused(feed, when_ns, symbol, channel, value))
            if fate is not Fate.AHEAD:
                newest_ns = max(newest_ns, reading.event_time_ns)
        return newest_ns

    def join(self, event_time_ns: int) -> npt.NDArray[np.float64]:
        """Return float64 (C, S): the newest readings at or before an event time, NaN if too old.

        Event times must not go back.
        """
        while self._order and self._order[0][0] <= event_time_ns:
            self._take(heapq.heappop(self._order))
        # A reading that could wait no longer may be younger than this event time.
        known_at = (self._when_ns != NEVER_NS) & (self._when_ns <= event_time_ns)
        age_ns = np.where(known_at, event_time_ns - self._when_ns, 0)
        fresh = known_at & (age_ns <= self._tolerance_ns)
        due = self._unused & known_at
        for row in np.flatnonzero(due.any(axis=1)).tolist():
            feed = self._channels[row].feed
            self._ledger.count(feed, Fate.DELIVERED, int((due[row] & fresh[row]).sum()))
            self._ledger.count(feed, Fate.EXPIRED, int((due[row] & ~fresh[row]).sum()))
        self._unused[due] = False
        self._joined_ns = event_time_ns
        known = np.where(fresh, self._value, np.nan)
        # What is said of all symbols counts for each whose own reading is older.
        newer = self._when_ns[:, -1:] > self._when_ns[:, :-1]
        joined: npt.NDArray[np.float64] = np.where(newer, known[:, -1:], known[:, :-1])
        return joined

    def save(self) -> list[list[Any]]:
        """Return the last reading of each channel and symbol, JSON-able; not what is pending."""
        known = np.argwhere(self._when_ns != NEVER_NS)
        return [
            [
                self.names[row],
                self._columns[column],
                int(self._when_ns[row, column]),
                None if math.isnan(self._value[row, column]) else float(self._value[row, column]),
            ]
            for row, column in known
        ]

    def load(self, saved: Iterable[Sequence[Any]], joined_ns: int) -> None:
        """Go on after `save` and the join of `joined_ns`.

        Channels and symbols that are no longer there are left out.
        """
        self._joined_ns = self._resumed_ns = joined_ns
        for name, symbol, when_ns, value in saved:
            row, column = self._row.get(name), self._column.get(symbol)
            if row is not None and column is not None:
                self._when_ns[row, column] = when_ns
                self._value[row, column] = math.nan if value is None else value

    def _put(self, feed: str, reading: Reading, not_after_ns: int) -> Fate | None:
        row = self._row.get(reading.channel)
        column = self._column.get(reading.symbol)
        when_ns, value = reading.event_time_ns, reading.value
        if row is None or self._channels[row].feed != feed:
            return Fate.UNKNOWN_CHANNEL
        if column is None:
            return Fate.UNKNOWN_SYMBOL
        if math.isinf(value):
            return Fate.NOT_A_NUMBER
        if when_ns > not_after_ns:
            return Fate.AHEAD
        if when_ns <= self._joined_ns:
            return Fate.REPEATED if when_ns <= self._resumed_ns else Fate.LATE
        return self._pend(feed, (when_ns, row, column), value)

    def _pend(self, feed: str, key: _Key, value: float) -> Fate | None:
        waiting = self._pending.get(key)
        if waiting is None:
            self._pending[key] = _Waiting(value)
            heapq.heappush(self._order, key)
            if len(self._pending) > MAX_PENDING:
                self._take(heapq.heappop(self._order))
            return None
        same = waiting.value == value or (math.isnan(waiting.value) and math.isnan(value))
        if same and not waiting.conflict:
            waiting.repeats += 1
            return Fate.DUPLICATE
        if not waiting.conflict:
            # Those before it are refused as well: the counts must not show who came first.
            waiting.conflict = True
            when_ns, row, column = key
            first = Refused(feed, when_ns, self._columns[column], self.names[row], waiting.value)
            for _ in range(1 + waiting.repeats):
                self._ledger.refuse(Fate.CONFLICTING, first)
            self._ledger.count(feed, Fate.DUPLICATE, -waiting.repeats)
        return Fate.CONFLICTING

    def _take(self, key: _Key) -> None:
        """Make a reading the newest one of its channel and symbol."""
        waiting = self._pending.pop(key)
        if waiting.conflict:
            return
        when_ns, row, column = key
        feed = self._channels[row].feed
        if when_ns < self._when_ns[row, column]:
            self._ledger.count(feed, Fate.SUPERSEDED)
            return
        self._ledger.count(feed, Fate.SUPERSEDED, int(self._unused[row, column]))
        self._when_ns[row, column] = when_ns
        self._value[row, column] = waiting.value
        self._unused[row, column] = True
