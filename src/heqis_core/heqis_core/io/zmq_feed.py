# SPDX-License-Identifier: Apache-2.0
"""Bars and readings that any program sends over ZeroMQ: one MessagePack map a message.

`FeedBars` puts rows together to bar blocks (a `Source`), `FeedReadings` hands single values on (a
`ChannelSource`). docs/feed.md gives the format with a producer to copy.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, BarBlock, BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.zmq_feed_format import BarRow, Bars, Readings, Ticks
from heqis_core.io.zmq_feed_socket import FeedConfig, FeedSocket, OnError, OnRefused
from heqis_core.readings import NEVER_NS, Reading
from heqis_core.source import Cursor

MOST_PENDING = 64
"""Event times that are put together at once; one more sends the oldest off as it is."""


@dataclass(slots=True)
class _Pending:
    """An event time that is being put together."""

    values: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    since_s: float
    complete: bool = False


@dataclass(slots=True)
class _Backlog:
    """Rows of the last message that are not in a block yet, in order of time."""

    rows: deque[BarRow] = field(default_factory=deque)
    times: set[int] = field(default_factory=set)
    complete: bool = False


class FeedBars:
    """A `Source` of the bar blocks that rows from a feed make up, in order of event time.

    The bars are as they were sent: a live source's are judged where they are joined
    (`heqis_core.clean.clean_block`).
    """

    finite = False
    total: int | None = None
    channels: tuple[str, ...] = ()

    def __init__(
        self,
        config: FeedConfig,
        on_error: OnError | None = None,
        on_refused: OnRefused | None = None,
    ) -> None:
        """Check the configuration.

        `on_error` gets each kind of fault once, as one line; `on_refused` every row that is not
        used. Raises ConfigError or LinkError that names what is wrong.
        """
        if not config.symbols:
            raise ConfigError('symbols: none given; a feed of bars needs its symbols beforehand')
        self._feed = FeedSocket(config, on_error, on_refused)
        self.symbols = config.symbols
        self.counts = self._feed.refused
        """Rows that did not make it into a block, by reason."""
        self.counts.update(late_rows=0, repeated_rows=0)
        self.counters = self._feed.counters
        """Everything else that is counted."""
        self.counters.update(blocks=0, incomplete_blocks=0)
        self._index = {symbol: at for at, symbol in enumerate(config.symbols)}
        self._digest = hashlib.sha256('\n'.join(config.symbols).encode()).hexdigest()[:16]
        self._last_ns = 0
        self._pending: dict[int, _Pending] = {}
        self._backlog = _Backlog()

    @property
    def endpoint(self) -> str:
        """Return where the feed listens or connects to."""
        return self._feed.endpoint

    @property
    def last_error(self) -> str:
        """Return the most recent fault as one line; empty if there was none."""
        return self._feed.last_error

    def open(self, cursor: Cursor | None) -> None:
        """Listen; rows up to the cursor's event time are late then.

        Raises DataError for a cursor of another feed, LinkError if the socket cannot be had.
        """
        last_ns = 0
        if cursor is not None:
            last_ns = cursor.get('event_time_ns', -1)
            fits = type(last_ns) is int and last_ns >= 0 and cursor.get('symbols') == self._digest
            if not fits:
                raise DataError(
                    f'cursor {cursor!r} is not of a feed of these {len(self.symbols)} symbols: '
                    'bring the old symbols back, or remove the checkpoint'
                )
        self._last_ns, self._pending, self._backlog = last_ns, {}, _Backlog()
        self._feed.open()

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block, or None if none was whole, or had waited long enough, in time."""
        deadline_s, last = time.monotonic() + timeout_s, False
        while not self._feed.closed.is_set():
            self._fill()
            now_s, due_s = time.monotonic(), self._due_s()
            if due_s <= now_s:
                return self._finish()
            if last:
                break
            last = now_s >= deadline_s
            message = self._feed.receive(max(0.0, min(due_s, deadline_s) - now_s))
            if isinstance(message, Bars):
                self._take(message)
            elif message is not None:
                self.counters['other_kind'] += 1
        return None

    def cursor(self) -> Cursor:
        """Return the event time of the last block, and whose blocks they are."""
        return {
            'kind': 'feed',
            'event_time_ns': self._last_ns,
            'symbols': self._digest,
            'counts': dict(self.counts),
        }

    def close(self) -> None:
        """Close the socket, and wake a waiting `poll`."""
        self._feed.close()

    def _take(self, message: Bars) -> None:
        rows = sorted(self._feed.rows(message.rows), key=lambda row: row.event_time_ns)
        times = {row.event_time_ns for row in rows}
        self._backlog = _Backlog(deque(rows), times, message.complete)

    def _fill(self) -> None:
        """Put rows into their blocks, but keep no more blocks than `MOST_PENDING`."""
        backlog = self._backlog
        while backlog.rows and len(self._pending) <= MOST_PENDING:
            row = backlog.rows.popleft()
            if row.event_time_ns <= self._last_ns:
                self._feed.refuse(row, 'late_rows', 'its block has gone out')
            else:
                self._put(row)
        if backlog.complete:
            next_ns = backlog.rows[0].event_time_ns if backlog.rows else math.inf
            for time_ns in [t for t in backlog.times if t < next_ns]:
                backlog.times.discard(time_ns)
                if time_ns in self._pending:
                    self._pending[time_ns].complete = True

    def _put(self, row: BarRow) -> None:
        block = self._pending.get(row.event_time_ns)
        if block is None:
            n = len(self.symbols)
            block = self._pending[row.event_time_ns] = _Pending(
                np.full((len(BAR_FIELDS), n), np.nan), np.zeros(n, np.uint8), time.monotonic()
            )
        at = self._index[row.symbol]
        self.counts['repeated_rows'] += int(block.status[at] != BarStatus.NO_BAR)
        cells = row.open, row.high, row.low, row.close, row.volume, row.amount
        suspended = row.suspended
        block.values[:, at] = [math.nan if cell is None or suspended else cell for cell in cells]
        block.status[at] = BarStatus.SUSPENDED if suspended else BarStatus.VALID

    def _due_s(self) -> float:
        """Return when the oldest event time is handed over, infinity if there is none."""
        if not self._pending:
            return math.inf
        oldest = self._pending[min(self._pending)]
        whole = oldest.complete or bool((oldest.status != BarStatus.NO_BAR).all())
        if whole or len(self._pending) > MOST_PENDING:
            return -math.inf
        return oldest.since_s + self._feed.config.close_after_s

    def _finish(self) -> BarBlock:
        self._last_ns = min(self._pending)
        block = self._pending.pop(self._last_ns)
        values, status = block.values, block.status
        self.counters['blocks'] += 1
        self.counters['incomplete_blocks'] += bool((status == BarStatus.NO_BAR).any())
        return BarBlock(self._last_ns, self.symbols, values, status, 0, time.time_ns())


class FeedReadings:
    """A `ChannelSource` of the readings and ticks of a feed."""

    complete_ns = NEVER_NS
    """A producer may always send an older one."""

    def __init__(
        self,
        config: FeedConfig,
        on_error: OnError | None = None,
        on_refused: OnRefused | None = None,
    ) -> None:
        """Check the configuration; what is told and raised is as with `FeedBars`."""
        self._feed = FeedSocket(config, on_error, on_refused)
        # One dictionary: whoever reads a source of readings looks at `counts` alone.
        self.counts = self._feed.counters
        self.counts.update(self._feed.refused, readings=0, bad_values=0)
        self._feed.refused = self.counts

    @property
    def endpoint(self) -> str:
        """Return where the feed listens or connects to."""
        return self._feed.endpoint

    @property
    def last_error(self) -> str:
        """Return the most recent fault as one line; empty if there was none."""
        return self._feed.last_error

    def open(self) -> None:
        """Listen; raise LinkError if the socket cannot be had."""
        self._feed.open()

    def poll(self, timeout_s: float) -> list[Reading]:
        """Return the readings of the next message, oldest first; empty if none came in time."""
        deadline_s = time.monotonic() + timeout_s
        while not self._feed.closed.is_set():
            message = self._feed.receive(deadline_s - time.monotonic())
            if isinstance(message, Bars):
                self.counts['other_kind'] += 1
            elif message is not None:
                every = self._readings(message)
                found = [reading for reading in every if math.isfinite(reading.value)]
                self.counts['bad_values'] += len(every) - len(found)
                self.counts['readings'] += len(found)
                if found:
                    return sorted(found, key=lambda reading: reading.event_time_ns)
            if time.monotonic() >= deadline_s:
                break
        return []

    def close(self) -> None:
        """Close the socket, and wake a waiting `poll`."""
        self._feed.close()

    def _readings(self, message: Readings | Ticks) -> list[Reading]:
        if isinstance(message, Readings):
            return [
                Reading(row.event_time_ns, row.symbol, row.channel, row.value)
                for row in self._feed.rows(message.rows)
            ]
        found = []
        for row in self._feed.rows(message.rows):
            found.append(Reading(row.event_time_ns, row.symbol, 'tick_price', row.price))
            if row.volume is not None:
                found.append(Reading(row.event_time_ns, row.symbol, 'tick_volume', row.volume))
        return found
