# SPDX-License-Identifier: Apache-2.0
"""Put bar blocks of several feeds together by event time, and readings as-of beside them."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from heqis_core.align.asof import AsOf, Channel
from heqis_core.align.ledger import ALWAYS_NS, Fate, Ledger, Refused
from heqis_core.bars import BAR_FIELDS, CLOSE, BarBlock, BarStatus
from heqis_core.errors import ConfigError
from heqis_core.readings import NEVER_NS, Reading

Ints = npt.NDArray[np.int64]

MAX_PENDING_BLOCKS = 4096
"""Event times that may wait for a feed; beyond it new ones are refused."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One source as the alignment sees it.

    Attributes:
        name: of the source.
        symbols: symbols whose bars it gives; empty for a feed of readings.
        lateness_ns: how much older than its newest row another one may still be when it comes.
    """

    name: str
    symbols: tuple[str, ...] = ()
    lateness_ns: int = 0


@dataclass(slots=True)
class _Draft:
    """A block that is being put together."""

    values: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    ingest_ns: int = 0
    repeats: Counter[int] = field(default_factory=Counter)
    """Of a column: bars that came once more."""
    conflicts: set[int] = field(default_factory=set)
    """Columns with bars that differ."""


class Aligner:
    """Align bars and readings of several feeds.

    Args:
        feeds: all sources; those with symbols give bars, and no two of them the same symbol.
        channels: columns of `BarBlock.extra`, in order.
        amend: blocks that a late bar may still change; such a block comes out again with its
            revision raised. 0 drops late bars. A late reading is dropped in any case, and so is a
            late bar of an event time that had no block.

    Raises ConfigError for feeds that cannot be aligned.
    """

    def __init__(
        self, feeds: Sequence[Feed], channels: Sequence[Channel] = (), *, amend: int = 0
    ) -> None:
        self.feeds = {feed.name: feed for feed in feeds}
        _check(feeds, channels)
        self.symbols = tuple(symbol for feed in feeds for symbol in feed.symbols)
        self.ledger = Ledger(self.feeds)
        self._readings = AsOf(self.symbols, channels, self.ledger)
        column = {symbol: index for index, symbol in enumerate(self.symbols)}
        self._columns = {
            feed.name: np.array([column[symbol] for symbol in feed.symbols], np.int64)
            for feed in feeds
        }
        self._newest_ns = dict.fromkeys(self.feeds, NEVER_NS)
        self._floor_ns = dict.fromkeys(self.feeds, NEVER_NS)
        self._drafts: dict[int, _Draft] = {}
        self._times: list[int] = []
        self._out_ns = NEVER_NS
        # Of each feed: the newest bar that is out, now and when this began.
        self._shown_ns = dict.fromkeys(self.feeds, NEVER_NS)
        self._resumed_ns = dict.fromkeys(self.feeds, NEVER_NS)
        self._done: deque[BarBlock] = deque(maxlen=amend)
        self._amended: deque[BarBlock] = deque()

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the names of the columns of `BarBlock.extra`."""
        return self._readings.names

    @property
    def n_pending(self) -> int:
        """Return how many bars and readings wait for their block."""
        bars = sum(int(_there(draft).sum()) for draft in self._drafts.values())
        return bars + self._readings.n_pending

    # --- what comes in ---

    def put_block(self, feed: str, block: BarBlock, not_after_ns: int = ALWAYS_NS) -> None:
        """Take the bars of one feed at one event time (its symbols, in the feed's order).

        NO_BAR cells say nothing; a block later than `not_after_ns` is refused as a whole. Raises
        ValueError for a block of other symbols.
        """
        columns = self._columns[feed]
        if block.values.shape != (len(BAR_FIELDS), len(columns)):
            raise ValueError(
                f'{feed}: a block of {block.values.shape[1]} symbols; expected {len(columns)}'
            )
        now = block.event_time_ns
        said = np.flatnonzero(block.status != BarStatus.NO_BAR)
        if now > not_after_ns:
            self._refuse(feed, block, columns, said, Fate.AHEAD)
            return
        if now <= self._out_ns:
            self._late(feed, block, columns, said)
        elif now not in self._drafts and len(self._drafts) >= MAX_PENDING_BLOCKS:
            self._refuse(feed, block, columns, said, Fate.OVERFLOW)
        else:
            self._draft(feed, block, columns, said)
        self._newest_ns[feed] = max(self._newest_ns[feed], now)

    def put_readings(
        self, feed: str, readings: Iterable[Reading], not_after_ns: int = ALWAYS_NS
    ) -> None:
        """Take readings in any order; NaN says that the channel knows nothing from then on."""
        newest_ns = self._readings.put(feed, readings, not_after_ns)
        self._newest_ns[feed] = max(self._newest_ns[feed], newest_ns)

    def advance(self, feed: str, event_time_ns: int) -> None:
        """Declare that a feed has nothing more up to an event time (`ALWAYS_NS`: it has ended)."""
        self._floor_ns[feed] = max(self._floor_ns[feed], event_time_ns)

    # --- what comes out ---

    def watermark_ns(self, ignore: frozenset[str] = frozenset()) -> int:
        """Return the event time up to which all feeds but `ignore` have said everything."""
        marks = [self._mark(name) for name in self.feeds if name not in ignore]
        return min(marks, default=ALWAYS_NS)

    def waits_for(self, ignore: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Return the feeds without which the oldest pending block cannot come out."""
        if not self._times:
            return ()
        now = self._times[0]
        return tuple(name for name in self.feeds if name not in ignore and self._mark(name) < now)

    def pop(self, ignore: frozenset[str] = frozenset()) -> BarBlock | None:
        """Return the next block, amended ones first; None if none is due.

        Args:
            ignore: feeds that nobody waits for any longer.
        """
        if self._amended:
            return self._amended.popleft()
        if not self._times or self._times[0] > self.watermark_ns(ignore):
            return None
        now = heapq.heappop(self._times)
        block = self._finish(now, self._drafts.pop(now))
        self._out_ns = now
        if self._done.maxlen:
            self._done.append(block)
        return block

    # --- across a restart ---

    def save(self) -> dict[str, Any]:
        """Return what must outlive the process, JSON-able: how far it is, and the last readings.

        What is pending is not in it: block sources hand it over again from their cursors.
        """
        counts = {name: dict(counts) for name, counts in self.ledger.counts.items()}
        return {
            'out_ns': self._out_ns,
            'shown_ns': dict(self._shown_ns),
            'last': self._readings.save(),
            'counts': counts,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on after `save`.

        Bars at or before the last one of their feed that came out then count as repeated; those
        after it that come too late for their block are late, as without a restart.
        """
        self._out_ns = int(saved['out_ns'])
        for name, shown_ns in saved['shown_ns'].items():
            if name in self.feeds:
                self._shown_ns[name] = self._resumed_ns[name] = int(shown_ns)
        self._readings.load(saved['last'], self._out_ns)
        for name, counts in saved['counts'].items():
            if name in self.ledger.counts:
                self.ledger.counts[name].update(counts)

    # --- inside ---

    def _mark(self, name: str) -> int:
        newest, feed = self._newest_ns[name], self.feeds[name]
        # A block says all of its event time; of readings a further one of the same time may come.
        behind = feed.lateness_ns + (0 if feed.symbols else 1)
        mark = newest if newest == NEVER_NS else newest - behind
        return max(mark, self._floor_ns[name])

    def _draft(self, feed: str, block: BarBlock, columns: Ints, said: Ints) -> None:
        draft = self._drafts.get(block.event_time_ns)
        if draft is None:
            draft = self._drafts[block.event_time_ns] = _Draft(
                np.full((len(BAR_FIELDS), len(self.symbols)), np.nan),
                np.full(len(self.symbols), BarStatus.NO_BAR, np.uint8),
            )
            heapq.heappush(self._times, block.event_time_ns)
        draft.ingest_ns = max(draft.ingest_ns, block.ingest_ns)
        free = draft.status[columns[said]] == BarStatus.NO_BAR
        for index in said[~free].tolist():
            self._repeat(feed, block, draft, int(columns[index]), index)
        new = said[free]
        draft.values[:, columns[new]] = block.values[:, new]
        draft.status[columns[new]] = block.status[new]

    def _repeat(self, feed: str, block: BarBlock, draft: _Draft, column: int, index: int) -> None:
        """Judge a further bar of one symbol and event time; the counts do not show the order."""
        if column not in draft.conflicts and _same_bar(draft, column, block, index):
            draft.repeats[column] += 1
            self.ledger.count(feed, Fate.DUPLICATE)
            return
        head = feed, block.event_time_ns, self.symbols[column], ''
        self.ledger.refuse(Fate.CONFLICTING, Refused(*head, float(block.values[CLOSE, index])))
        if column in draft.conflicts:
            return
        # Those before it are refused as well: nothing says that they were right.
        draft.conflicts.add(column)
        first = Refused(*head, float(draft.values[CLOSE, column]))
        for _ in range(1 + draft.repeats[column]):
            self.ledger.refuse(Fate.CONFLICTING, first)
        self.ledger.count(feed, Fate.DUPLICATE, -draft.repeats[column])
        draft.values[:, column] = np.nan
        draft.status[column] = BarStatus.REJECTED

    def _late(self, feed: str, block: BarBlock, columns: Ints, said: Ints) -> None:
        now = block.event_time_ns
        if now <= self._resumed_ns[feed]:
            self.ledger.count(feed, Fate.REPEATED, len(said))
            return
        place = next((k for k, done in enumerate(self._done) if done.event_time_ns == now), None)
        if place is None:
            self._refuse(feed, block, columns, said, Fate.LATE)
            return
        done = self._done[place]
        changed = [i for i in said.tolist() if not _same_bar(done, int(columns[i]), block, i)]
        self.ledger.count(feed, Fate.DUPLICATE, len(said) - len(changed))
        if not changed:
            return
        self.ledger.count(feed, Fate.AMENDED, len(changed))
        values, status = done.values.copy(), done.status.copy()
        values[:, columns[changed]] = block.values[:, changed]
        status[columns[changed]] = block.status[changed]
        self._done[place] = replace(
            done,
            values=values,
            status=status,
            revision=done.revision + 1,
            ingest_ns=block.ingest_ns,
        )
        self._amended.append(self._done[place])

    def _refuse(self, feed: str, block: BarBlock, columns: Ints, said: Ints, fate: Fate) -> None:
        for index in said.tolist():
            head = feed, block.event_time_ns, self.symbols[columns[index]], ''
            self.ledger.refuse(fate, Refused(*head, float(block.values[CLOSE, index])))

    def _finish(self, now: int, draft: _Draft) -> BarBlock:
        there = _there(draft)
        for name, columns in self._columns.items():
            self.ledger.count(name, Fate.DELIVERED, int(there[columns].sum()))
            if (draft.status[columns] != BarStatus.NO_BAR).any():
                self._shown_ns[name] = now
        extra = self._readings.join(now) if self.channels else None
        return BarBlock(
            now, self.symbols, draft.values, draft.status, 0, draft.ingest_ns, self.channels, extra
        )


def _there(draft: _Draft) -> npt.NDArray[np.bool_]:
    there: npt.NDArray[np.bool_] = draft.status != BarStatus.NO_BAR
    there[list(draft.conflicts)] = False
    return there


def _same_bar(one: _Draft | BarBlock, column: int, block: BarBlock, index: int) -> bool:
    same_status = one.status[column] == block.status[index]
    values = one.values[:, column], block.values[:, index]
    return bool(same_status and np.array_equal(*values, equal_nan=True))


def _check(feeds: Sequence[Feed], channels: Sequence[Channel]) -> None:
    owner: dict[str, str] = {}
    for feed in feeds:
        if sum(feed.name == other.name for other in feeds) > 1:
            raise ConfigError(f'source {feed.name}: two of this name; give each its own')
        for symbol in feed.symbols:
            if symbol in owner:
                raise ConfigError(
                    f'source {feed.name}: {symbol} is given by {owner[symbol]} too; '
                    'leave it out of one of them'
                )
            owner[symbol] = feed.name
    if not owner:
        raise ConfigError('sources: none gives bars; readings need bars to be joined to')
    for channel in channels:
        if channel.feed not in {feed.name for feed in feeds}:
            raise ConfigError(
                f'channel {channel.name}: no source {channel.feed!r}; '
                f'there are {", ".join(feed.name for feed in feeds)}'
            )
