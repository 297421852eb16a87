# SPDX-License-Identifier: Apache-2.0
"""Tushare Pro as a live source: daily bars, and columns of other daily endpoints as readings.

A day is asked for from the local time on at which the vendor has published it; what lies between
the last day and today comes first, so a gateway that was away catches up. What a day lacks then is
missing: the vendor does not say when a day is complete.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from heqis_core.bars import BAR_FIELDS, BarBlock, BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.tushare_client import TushareClient
from heqis_core.io.tushare_endpoints import ENDPOINTS, Rows, parse_day
from heqis_core.io.tushare_query import (
    ask_series,
    closes_ns,
    fetch_daily,
)
from heqis_core.readings import NEVER_NS, Reading
from heqis_core.source import Cursor

_MOST_DAYS = 366
"""Asked for at once: a long way back comes in parts, each handed over before the next."""
_SHANGHAI = ZoneInfo('Asia/Shanghai')


class Timetable(NamedTuple):
    """When a day may be asked for.

    Attributes:
        start: YYYYMMDD, first day.
        ready: HH:MM in Shanghai; from then on the vendor has the day.
        check_s: seconds between two questions for a day that is not there.
        now: the clock, seconds since 1970.
    """

    start: str
    ready: str = '17:00'
    check_s: float = 300.0
    now: Callable[[], float] = time.time

    def last_day(self) -> str:
        """Return the last day that the vendor may have published."""
        now = datetime.fromtimestamp(self.now(), _SHANGHAI)
        is_ready = f'{now:%H:%M}' >= self.ready
        return f'{now.date() - timedelta(days=0 if is_ready else 1):%Y%m%d}'


class _Days:
    """Which days come next, and when."""

    def __init__(self, timetable: Timetable) -> None:
        parse_day(timetable.start, 'start')
        if not (len(timetable.ready) == 5 and '00:00' <= timetable.ready <= '23:59'):
            raise ConfigError(f"ready: '{timetable.ready}'; expected HH:MM, such as 17:00")
        self._timetable = timetable
        self._next_s = 0.0
        self.next_day = timetable.start

    def restart(self, next_day: str) -> None:
        """Go on with `next_day`, at once."""
        self.next_day = next_day
        self._next_s = 0.0

    def due(self) -> tuple[str, str] | None:
        """Return the first and the last day to ask for now, None if it is not time."""
        if time.monotonic() < self._next_s:
            return None
        last = self._timetable.last_day()
        if self.next_day > last:
            self.wait()
            return None
        return self.next_day, min(last, shift(self.next_day, _MOST_DAYS - 1))

    def wait(self) -> None:
        """Ask no more until the next check."""
        self._next_s = time.monotonic() + self._timetable.check_s

    def answered(self, last_asked: str, found: Sequence[str]) -> None:
        """Go on after the last day that was found; a day without anything is asked for again."""
        if found:
            self.next_day = shift(max(found), 1)
        elif last_asked < self._timetable.last_day():
            self.next_day = shift(last_asked, 1)
        if self.next_day > self._timetable.last_day() or not found:
            self.wait()


class TushareSource:
    """Hand over daily bars as the vendor publishes them (a `Source`).

    Args:
        connect: makes the client when the source is opened.
        symbols: `ts_code`s, in the order of the blocks.
        timetable: from which day on, and when a day is asked for.
        endpoint: `daily`, `fund_daily` or `index_daily`.

    Raises ConfigError for what cannot be asked for.
    """

    finite = False
    total: int | None = None
    channels: tuple[str, ...] = ()

    def __init__(
        self,
        connect: Callable[[], TushareClient],
        symbols: Sequence[str],
        timetable: Timetable,
        endpoint: str = 'daily',
    ) -> None:
        self.symbols = tuple(symbols)
        if not self.symbols:
            raise ConfigError('symbols: none; expected ts_codes such as 600519.SH')
        self.counts: dict[str, int] = {}
        self._connect = connect
        self._endpoint = endpoint
        self._timetable = timetable
        self._days = _Days(timetable)
        self._ready: deque[tuple[str, BarBlock]] = deque()
        self._closed = threading.Event()
        self._client: TushareClient | None = None
        self._done = ''

    def open(self, cursor: Cursor | None) -> None:
        """Start with the first day, or after `cursor`; raise DataError if it is of another."""
        self._closed.clear()
        self._ready.clear()
        self._done = ''
        if cursor is not None:
            try:
                self._done = str(cursor['last_day'])
            except (KeyError, TypeError) as error:
                raise DataError(
                    f'cursor {cursor!r} is not of Tushare: {error!r}: remove the checkpoint'
                ) from error
        self._days.restart(shift(self._done, 1) if self._done else self._timetable.start)
        self._client = self._connect()

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next day, or None; raise TushareError if the vendor refuses for good."""
        if not self._ready:
            due = self._days.due()
            if due is None:
                self._closed.wait(timeout_s)
                return None
            self._ask(*due)
        if not self._ready:
            return None
        self._done, block = self._ready.popleft()
        return block

    def cursor(self) -> Cursor:
        """Return the last day that was handed over."""
        return {'kind': 'tushare', 'last_day': self._done, 'counts': dict(self.counts)}

    def close(self) -> None:
        """Wake a waiting `poll`; a question that is under way ends by its own time-out."""
        self._closed.set()

    def _ask(self, first: str, last: str) -> None:
        client = self._client
        assert client is not None
        rows = fetch_daily(client, self.symbols, first, last, endpoint=self._endpoint)
        days = sorted(set(rows.days))
        suspended = self._suspended(client, days) if days and self._endpoint == 'daily' else set()
        # Only now: a question that fails is asked again as a whole.
        counts = dict(self.counts)
        for reason, n in rows.rejected.items():
            counts[reason] = counts.get(reason, 0) + n
        self.counts = counts
        column = {symbol: index for index, symbol in enumerate(self.symbols)}
        place = {day: index for index, day in enumerate(days)}
        shape = len(days), len(BAR_FIELDS), len(self.symbols)
        values = np.full(shape, np.nan)
        status = np.full((shape[0], shape[2]), BarStatus.NO_BAR, np.uint8)
        for symbol, day in suspended:
            if symbol in column and day in place:
                status[place[day], column[symbol]] = BarStatus.SUSPENDED
        at = [place[day] for day in rows.days], [column[symbol] for symbol in rows.symbols]
        values[at[0], :, at[1]] = rows.values.T
        status[at] = BarStatus.VALID
        ingest_ns = time.time_ns()
        for day, when_ns in zip(days, closes_ns(days).tolist(), strict=True):
            k = place[day]
            block = BarBlock(when_ns, self.symbols, values[k], status[k], 0, ingest_ns)
            self._ready.append((day, block))
        self._days.answered(last, days)

    def _suspended(self, client: TushareClient, days: Sequence[str]) -> set[tuple[str, str]]:
        """Return the symbols and days of which trading was suspended from open to close."""
        return {
            (symbol, day)
            for rows in ask_series(client, ENDPOINTS['suspend_d'], self.symbols, days[0], days[-1])
            for symbol, day, kind, timing in zip(
                *(
                    rows.columns[name]
                    for name in ('ts_code', 'trade_date', 'suspend_type', 'suspend_timing')
                ),
                strict=True,
            )
            # With a time of day it was for a part of the day, and the day has a bar.
            if kind == 'S' and not timing
        }


class TushareReadings:
    """Hand over columns of a daily endpoint as readings (a `ChannelSource`).

    The event time is that of the day's bar, so a block of the same day waits for them.

    Args:
        connect, symbols, timetable: see `TushareSource`.
        columns: of the endpoint; each is a channel of the same name.
        endpoint: `daily_basic`, `adj_factor` or `stk_limit`.

    Raises ConfigError for a column that the endpoint does not have.
    """

    def __init__(
        self,
        connect: Callable[[], TushareClient],
        symbols: Sequence[str],
        timetable: Timetable,
        columns: Sequence[str],
        endpoint: str = 'daily_basic',
    ) -> None:
        known = ENDPOINTS[endpoint].numbers if endpoint in ENDPOINTS else ()
        for name in columns:
            if name not in known:
                raise ConfigError(
                    f'channel {name}: no number of {endpoint}; it has {", ".join(known)}'
                )
        self.counts: dict[str, int] = {}
        self._symbols = tuple(symbols)
        self._columns = tuple(columns)
        self._endpoint = endpoint
        self._connect = connect
        self._timetable = timetable
        self._days = _Days(timetable)
        self._closed = threading.Event()
        self._client: TushareClient | None = None
        self.complete_ns = NEVER_NS

    def open(self) -> None:
        """Start with the first day; what was said before a restart is said again."""
        self._closed.clear()
        self._days.restart(self._timetable.start)
        self._client = self._connect()

    def poll(self, timeout_s: float) -> list[Reading]:
        """Return what the vendor has published since the last call."""
        due = self._days.due()
        if due is None:
            self._closed.wait(timeout_s)
            return []
        first, last = due
        found: list[Reading] = []
        assert self._client is not None
        facts = ENDPOINTS[self._endpoint]
        for rows in ask_series(self._client, facts, self._symbols, first, last):
            found += self._readings(rows)
        found.sort()
        if found:
            # The vendor publishes a day of this endpoint as a whole.
            self.complete_ns = found[-1].event_time_ns
        self._days.answered(last, [day_of(reading.event_time_ns) for reading in found[-1:]])
        self.counts['readings'] = self.counts.get('readings', 0) + len(found)
        return found

    def close(self) -> None:
        """Wake a waiting `poll`."""
        self._closed.set()

    def _readings(self, rows: Rows) -> list[Reading]:
        days: list[str] = list(rows.columns['trade_date'])
        when_ns = closes_ns(days).tolist()
        return [
            Reading(at, symbol, name, float('nan') if value is None else float(value))
            for name in self._columns
            for at, symbol, value in zip(
                when_ns, rows.columns['ts_code'], rows.columns[name], strict=True
            )
            if symbol in self._symbols
        ]


def shift(day: str, days: int) -> str:
    """Return the day (YYYYMMDD) that lies some days later."""
    return f'{parse_day(day, "day") + timedelta(days=days):%Y%m%d}'


def day_of(event_time_ns: int) -> str:
    """Return the day (YYYYMMDD) in Shanghai of an event time."""
    return f'{datetime.fromtimestamp(event_time_ns / 1e9, _SHANGHAI):%Y%m%d}'
