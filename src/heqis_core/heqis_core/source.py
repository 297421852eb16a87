# SPDX-License-Identifier: Apache-2.0
"""Where bars come from: the source protocol, and the sources that need nothing but memory.

A source hands over one bar block at a time, and its cursor says where to go on after a restart.
Reading files is `heqis_core.io.files`; the rules of cleaning are `heqis_core.clean`; neither
threads nor ROS live here.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from heqis_core.bars import BarBlock, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.simulator import MarketSimulator

_CATCH_UP_S = 0.2
"""What a late paced source makes up for; after more it starts its schedule anew."""

Cursor = dict[str, Any]
"""JSON-able position of a source: strings, numbers, lists and dicts, integers within 64 bits."""


class EndOfStream(Exception):  # noqa: N818 - an outcome, not an error
    """A finite source has handed over its last bar."""


class Source(Protocol):
    """One source of bar blocks.

    Used from one thread, except `close`, which any thread may call.
    """

    @property
    def symbols(self) -> tuple[str, ...]:
        """S names, the same tuple object for every block."""

    @property
    def channels(self) -> tuple[str, ...]:
        """C names of what `BarBlock.extra` holds; mostly none."""

    @property
    def finite(self) -> bool:
        """Whether the source ends by itself."""

    @property
    def total(self) -> int | None:
        """Number of blocks from the first to the last; None where nobody knows."""

    @property
    def counts(self) -> dict[str, int]:
        """Rejected rows by reason."""

    def open(self, cursor: Cursor | None) -> None:
        """Start at the first block, or go on with the block after `cursor`.

        Raise DataError if that cannot be.
        """

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block, or None if nothing came in time.

        Raise EndOfStream after the last one.
        """

    def cursor(self) -> Cursor:
        """Return the position after the last block that `poll` returned."""

    def close(self) -> None:
        """Give everything back, and wake a waiting `poll`."""


class TableSource:
    """Hand over a table from its first row to its last, as fast as it is polled."""

    finite = True

    def __init__(self, table: BarTable, counts: Mapping[str, int] | None = None) -> None:
        """Start at the first row.

        `counts` are the rejected rows by reason that came with the table.
        """
        self.table = table
        self.symbols = table.symbols
        self.channels = table.channels
        self.total: int | None = len(table)
        self.counts = dict(counts or {})
        self._next = 0
        self._digest = hashlib.sha256('\n'.join(table.symbols).encode()).hexdigest()[:16]

    def open(self, cursor: Cursor | None) -> None:
        """Start again, or go on after `cursor`.

        Raise DataError if the table is not the one it was taken from.
        """
        if cursor is None:
            self._next = 0
            return
        try:
            index, last_ns, symbols = (
                int(cursor['index']),
                int(cursor['event_time_ns']),
                cursor['symbols'],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'cursor {cursor!r} is not of a table: {error!r}: remove the checkpoint'
            ) from error
        fits = 0 <= index <= len(self.table) and symbols == self._digest
        if not fits or last_ns != self._last_ns(index):
            raise DataError(
                f'the data changed since the checkpoint: block {index} is not at {last_ns} ns of '
                f'the same symbols ({len(self.table)} blocks of {len(self.symbols)} symbols now): '
                'bring the old data back, or remove the checkpoint'
            )
        self._next = index

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next row at once; raise EndOfStream after the last one."""
        if self._next >= len(self.table):
            raise EndOfStream
        self._next += 1
        return self.table.block(self._next - 1, time.time_ns())

    def cursor(self) -> Cursor:
        """Return the number of rows handed over, the last event time, and whose rows they are."""
        return {
            'kind': 'table',
            'index': self._next,
            'event_time_ns': self._last_ns(self._next),
            'symbols': self._digest,
            'counts': dict(self.counts),
        }

    def close(self) -> None:
        """Do nothing: memory is all that is held."""

    def _last_ns(self, index: int) -> int:
        return int(self.table.event_time_ns[index - 1]) if index else 0


class SimulatorSource:
    """Hand over what a market simulator makes up, without end or up to a limit."""

    def __init__(self, simulator: MarketSimulator, limit: int | None = None) -> None:
        """Start where the simulator stands; `limit` is the number of blocks, None for no end."""
        if limit is not None and limit < 0:
            raise ConfigError(f'limit: {limit}; expected 0 or more blocks, or none')
        self.symbols = simulator.symbols
        self.channels: tuple[str, ...] = ()
        self.total = limit
        self.counts: dict[str, int] = {}
        self._simulator = simulator
        self._first = simulator.save()
        self._done = 0

    @property
    def finite(self) -> bool:
        """Whether there is a limit."""
        return self.total is not None

    def open(self, cursor: Cursor | None) -> None:
        """Start again, or go on after `cursor`; raise DataError if it is not of this simulator."""
        if cursor is None:
            self._simulator.load(self._first)
            self._done = 0
            return
        try:
            done, state = int(cursor['done']), dict(cursor['simulator'])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'cursor {cursor!r} is not of a simulator: {error!r}: remove the checkpoint'
            ) from error
        self._simulator.load(state)
        self._done = done

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block at once; raise EndOfStream after the last one."""
        if self.total is not None and self._done >= self.total:
            raise EndOfStream
        block = self._simulator.next_block()
        self._done += 1
        return replace(block, ingest_ns=time.time_ns())

    def cursor(self) -> Cursor:
        """Return the number of blocks handed over and the state of the simulator."""
        return {
            'kind': 'simulator',
            'done': self._done,
            'simulator': self._simulator.save(),
            'counts': dict(self.counts),
        }

    def close(self) -> None:
        """Do nothing: memory is all that is held."""


class PacedSource:
    """Slow another source down to a number of event times a second.

    Deadlines are of the monotonic clock: the n-th paced block is due n periods after the first
    one, so the pace does not drift. What was late by up to 0.2 s is made up for; after a longer
    stall the schedule starts anew, so a consumer that was away is not met by a burst.
    """

    def __init__(self, source: Source, bars_per_s: float, unpaced_until_ns: int = 0) -> None:
        """Pace `source`; raise ConfigError for a pace that is negative or no number.

        Args:
            source: what to slow down.
            bars_per_s: event times a second; 0 for as fast as possible.
            unpaced_until_ns: blocks up to this event time go through at once (warm-up).
        """
        if not (math.isfinite(bars_per_s) and bars_per_s >= 0):
            raise ConfigError(
                f'bars_per_s: {bars_per_s!r}; expected 0 (as fast as possible) or more'
            )
        self._source = source
        self._period_s = 1 / bars_per_s if bars_per_s else 0.0
        self._unpaced_until_ns = unpaced_until_ns
        self._due_s: float | None = None
        self._closed = threading.Event()

    @property
    def symbols(self) -> tuple[str, ...]:
        """S names."""
        return self._source.symbols

    @property
    def channels(self) -> tuple[str, ...]:
        """C names of what `BarBlock.extra` holds."""
        return self._source.channels

    @property
    def finite(self) -> bool:
        """Whether the source ends by itself."""
        return self._source.finite

    @property
    def total(self) -> int | None:
        """Number of blocks, if known."""
        return self._source.total

    @property
    def counts(self) -> dict[str, int]:
        """Rejected rows by reason."""
        return self._source.counts

    def open(self, cursor: Cursor | None) -> None:
        """Open the source; the schedule starts with the next paced block."""
        self._due_s = None
        self._closed.clear()
        self._source.open(cursor)

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block when it is due, or None if that is not within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        if self._due_s is not None and not self._wait(min(self._due_s, deadline_s), self._due_s):
            return None
        block = self._source.poll(max(0.0, deadline_s - time.monotonic()))
        if block is None or not self._period_s or block.event_time_ns <= self._unpaced_until_ns:
            return block
        now_s = time.monotonic()
        if self._due_s is None or now_s > self._due_s + max(self._period_s, _CATCH_UP_S):
            self._due_s = now_s
        self._due_s += self._period_s
        return block

    def cursor(self) -> Cursor:
        """Return the source's cursor: the pace has no memory."""
        return self._source.cursor()

    def close(self) -> None:
        """Wake a waiting `poll`, and close the source."""
        self._closed.set()
        self._source.close()

    def _wait(self, until_s: float, due_s: float) -> bool:
        """Wait until `until_s`.

        Return whether the block is due then. An early wake-up means closed.
        """
        left_s = until_s - time.monotonic()
        if left_s > 0 and self._closed.wait(left_s):
            return False
        return until_s >= due_s


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Which source to open, and how.

    Attributes:
        kind: `file` or `simulator`.
        path: file or folder of bars (`file`).
        symbols: names: of a file, those to take; of the simulator, what to call them. A number is
            how many the simulator makes up; a file gives all it has then.
        seed: of the simulator.
        start_date: the simulator's first day, YYYY-MM-DD.
        limit: blocks until the end; None or 0 for all there are.
        bars_per_s: event times a second; 0 for as fast as possible.
        unpaced_until_ns: blocks up to this event time are not paced.
        tz, close_time, min_rows, quarantine, channels: see `heqis_core.io.files.load_bars`; no
            quarantine file if empty.
    """

    kind: str
    path: str = ''
    symbols: Sequence[str] | int = 8
    seed: int = 1
    start_date: str = '2021-01-04'
    limit: int | None = None
    bars_per_s: float = 0.0
    unpaced_until_ns: int = 0
    tz: str = 'Asia/Shanghai'
    close_time: str = '15:00'
    min_rows: int = 1
    quarantine: str = ''
    channels: Sequence[str] = ()


def open_source(config: SourceConfig) -> Source:
    """Build the source that `config` names.

    It stands at its first block, `open(cursor)` moves it elsewhere. Raises ConfigError for a value
    that cannot be used, DataError for data that cannot.
    """
    if config.limit is not None and config.limit < 0:
        raise ConfigError(f'limit: {config.limit}; expected 0 (all there are) or more blocks')
    source: Source
    if config.kind == 'simulator':
        simulator = MarketSimulator(config.symbols, config.seed, config.start_date)
        source = SimulatorSource(simulator, config.limit or None)
    elif config.kind == 'file':
        source = file_source(config)
    else:
        raise ConfigError(f"kind: '{config.kind}'; expected file or simulator")
    if config.bars_per_s or not math.isfinite(config.bars_per_s):
        source = PacedSource(source, config.bars_per_s, config.unpaced_until_ns)
    return source


def file_source(config: SourceConfig) -> TableSource:
    """Load the bars of `config.path`; the counts are those of what cleaning refused.

    The price limits of the days are taken along where the files have them.
    """
    # Here, not above: a gateway that only simulates imports no file readers.
    from heqis_core.io.files import load_bars
    from heqis_core.market_facts import LIMIT_CHANNELS

    table, report = load_bars(
        config.path,
        tz=config.tz,
        close_time=config.close_time,
        min_rows=config.min_rows,
        quarantine=Path(config.quarantine) if config.quarantine else None,
        channels=config.channels,
        optional_channels=LIMIT_CHANNELS,
    )
    unread = {f'unread_{name}': n for name, n in report.unread.items() if n}
    return TableSource(_part(table, config), report.counts | unread)


def _part(table: BarTable, config: SourceConfig) -> BarTable:
    """Return the wanted symbols and the first blocks of a table.

    Event times that only others have stay.
    """
    if not isinstance(config.symbols, int) and config.symbols:
        table = table.select(config.symbols)
    return table.head(config.limit or len(table))
