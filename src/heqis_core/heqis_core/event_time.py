# SPDX-License-Identifier: Apache-2.0
"""From the dates and times that people write to event times, int64 ns UTC; strict, value by value.

What could be read in two ways is refused, never guessed. The forms that are known: 20240102,
2024-01-02, 2024/1/2, 2024.1.2, 2024年1月2日, each also with a weekday after it and with a time of
day; ISO 8601 with or without an offset; 202401020931 with seconds and milliseconds if need be; and
Unix time in s, ms, µs or ns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from heqis_core.clean import Fault
from heqis_core.errors import ConfigError

_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND
_BUCKET = 900 * _SECOND
"""Clock changes fall on quarters of an hour, so one look-up of the zone serves a quarter."""

_NO_SUCH_TIME, _NO_TIME = -2, -3
"""In place of a time of day: the form is right but the hour is 25; the form is none."""

_UNSET = np.iinfo(np.int64).min
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_CLOCK = r'(?P<H>[0-9]{1,2}):(?P<M>[0-9]{2})(?::(?P<S>[0-9]{2})(?:[.,](?P<f>[0-9]{1,9}))?)?'
_CLOCK_ONLY = re.compile(_CLOCK)
_WEEKDAY = r'(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{0,6}\.?|(?:星期|礼拜|周)[一二三四五六日天]'
# What encoding mishaps leave of a Chinese weekday stands apart and holds no digit.
_AFTER_DATE = rf'(?:\s*\(?(?:{_WEEKDAY})\)?|\s+\(?[^\x00-\x7f\d]{{1,8}}\)?)'
_WRITTEN = re.compile(
    r'(?P<y>[0-9]{4})(?:(?P<sep>[-/.])(?P<m>[0-9]{1,2})(?P=sep)(?P<d>[0-9]{1,2})'
    r'|年\s*(?P<m2>[0-9]{1,2})\s*月\s*(?P<d2>[0-9]{1,2})\s*日|(?P<m3>[0-9]{2})(?P<d3>[0-9]{2}))'
    rf'{_AFTER_DATE}?'
    rf'(?:(?:\s+|T){_CLOCK}\s*(?P<offset>Z|UTC|[+-][0-9]{{2}}(?::?[0-9]{{2}})?)?)?',
    re.IGNORECASE,
)
_COMPACT = re.compile(
    r'([0-9]{4})([0-9][0-9])([0-9][0-9])T?([0-9][0-9])([0-9][0-9])(?:([0-9][0-9])([0-9]{3})?)?'
)
_DAY_FIRST = re.compile(r'[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})(?![0-9]).*')
_SERIAL_DAY = re.compile(r'[1-6][0-9]{4}(?:\.[0-9]+)?')
"""Days since 1900 or 1904, from the year 1927 on."""
_UNIX_SCALE = {10: _SECOND, 13: 1_000_000, 16: 1_000, 19: 1}
_LAST_UNIX_S = 1_900_000_000
"""Ten digits from here on are more likely YYYYMMDDHH than Unix time (2030): ambiguous."""

_Cell = str | tuple[str, str]
"""A date cell, or a date and a time cell."""


class Moment(NamedTuple):
    """One parsed cell: a local day and time of day, or an absolute time, or a fault."""

    day_ns: int = 0
    """Local midnight, ns as if the zone were UTC."""
    clock_ns: int = -1
    """Time of day, ns; -1 where the text has none."""
    utc_ns: int = _UNSET
    """Absolute time, where the text says one."""
    fault: Fault = Fault.NONE


class TimeParser:
    """Turn the date (and time) cells of a file into event times in one time zone.

    Equal texts are parsed once in the life of a parser: dates recur from symbol to symbol.
    """

    def __init__(self, tz: str = 'Asia/Shanghai', close_time: str = '15:00') -> None:
        """Raise ConfigError if there is no such time zone or time of day.

        Args:
            tz: IANA name of the zone of every time without an offset.
            close_time: local time at which a bar of a whole day closes, HH:MM or HH:MM:SS.
        """
        try:
            self._zone = ZoneInfo(tz)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"tz: no time zone '{tz}'; expected an IANA name such as Asia/Shanghai "
                "(where every name fails, install the system's or PyPI's tzdata)"
            ) from error
        clock = _CLOCK_ONLY.fullmatch(close_time.strip())
        close_ns = _clock_ns(clock) if clock else -1
        if close_ns < 0:
            raise ConfigError(
                f"close_time: '{close_time}' is no time of day; expected HH:MM, such as 15:00"
            )
        self._close_ns = close_ns
        self._codes: dict[_Cell, int] = {}
        self._cells: list[_Cell] = []
        self._moments: list[Moment] = []
        self._dates: dict[str, Moment] = {}
        self._clocks: dict[str, int] = {}

    def parse(
        self, dates: Sequence[str], times: Sequence[str] | None = None
    ) -> npt.NDArray[np.int64]:
        """Read N date cells, and N time cells if the file has them.

        Return int64 (N,) codes for `event_times`.
        """
        cells: Sequence[_Cell] = dates if times is None else list(zip(dates, times, strict=True))
        codes = self._codes
        for cell in set(cells).difference(codes):
            codes[cell] = len(self._moments)
            self._cells.append(cell)
            self._moments.append(
                self._moment(cell) if isinstance(cell, str) else self._join(*cell)
            )
        return np.fromiter(map(codes.__getitem__, cells), np.int64, len(cells))

    def event_times(
        self, files: Sequence[npt.NDArray[np.int64]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Return event times int64 (N,) and `Fault` codes uint8 (N,) of the rows of all files.

        Files come one after the other. A row without a time of day closes at `close_time`. A file
        in which every time of day is midnight holds days, not moments, and all its rows close at
        `close_time` too. The event time of a faulty row is 0.

        Args:
            files: the codes of each file's rows.
        """
        table = np.array(self._moments, np.int64).reshape(-1, 4)
        timed = (table[:, 1] > 0) & (table[:, 3] == Fault.NONE)
        # twice the code, plus one where the file holds days: equal keys have equal event times
        keys = np.concatenate([codes * 2 + (not timed[codes].any()) for codes in files])
        distinct, inverse = np.unique(keys, return_inverse=True)
        day, clock, utc, fault = table[distinct // 2].T
        in_days = distinct % 2 == 1
        clock[in_days], utc[in_days] = -1, _UNSET
        local = day + np.where(clock < 0, self._close_ns, clock)
        wanted = (fault == Fault.NONE) & (utc == _UNSET)
        buckets, which = np.unique(local[wanted] // _BUCKET, return_inverse=True)
        offsets = np.array(
            [self._offset(bucket) for bucket in buckets.tolist()], np.int64
        ).reshape(-1, 2)
        utc[wanted] = local[wanted] - offsets[which, 0]
        fault[wanted] = offsets[which, 1]
        utc[fault != Fault.NONE] = 0
        return utc[inverse], fault[inverse].astype(np.uint8)

    def text(self, code: int) -> str:
        """Return the cell, or the cells joined by a blank, that `parse` gave this code."""
        cell = self._cells[code]
        return cell if isinstance(cell, str) else ' '.join(cell)

    def _offset(self, bucket: int) -> tuple[int, Fault]:
        """Return the offset in ns of a local quarter of an hour, a fault around clock changes."""
        naive = datetime(1970, 1, 1) + timedelta(seconds=bucket * (_BUCKET // _SECOND))
        first = naive.replace(tzinfo=self._zone).utcoffset() or timedelta(0)
        second = naive.replace(tzinfo=self._zone, fold=1).utcoffset() or timedelta(0)
        # The clock goes back: this local time comes twice. It goes forward: it never comes.
        fault = (
            Fault.AMBIGUOUS_DATE
            if first > second
            else Fault.BAD_DATE
            if first < second
            else Fault.NONE
        )
        return first // timedelta(microseconds=1) * 1000, fault

    def _join(self, date: str, time: str) -> Moment:
        """Join a date cell with the time cell of the same row."""
        moment = self._dates.get(date)
        if moment is None:
            moment = self._dates[date] = self._moment(date)
        if moment.fault or not time.strip():
            return moment
        clock_ns = self._clocks.get(time)
        if clock_ns is None:
            clock_ns = self._clocks[time] = _time_cell_ns(_tidy(time))
        if clock_ns == _NO_SUCH_TIME:
            return Moment(fault=Fault.BAD_DATE)
        if clock_ns < 0:
            # Some vendors repeat the whole date in the time column.
            whole = self._moment(time)
            if whole.fault or whole.clock_ns < 0 or whole.day_ns != moment.day_ns:
                return Moment(fault=Fault.UNKNOWN_DATE_FORMAT)
            return whole
        if moment.utc_ns != _UNSET or (moment.clock_ns > 0 and moment.clock_ns != clock_ns):
            return Moment(fault=Fault.AMBIGUOUS_DATE)
        return moment._replace(clock_ns=clock_ns)

    def _moment(self, text: str) -> Moment:
        text = _tidy(text)
        if not text or text.lower() in ('nan', 'nat', 'null', 'none', 'na', 'n/a', '-', '--'):
            return Moment(fault=Fault.MISSING_DATE)
        written = _WRITTEN.fullmatch(text)
        if written:
            return self._from_written(written)
        compact = _COMPACT.fullmatch(text)
        if compact:
            year, month, day, hour, minute, second, milli = (
                int(part or 0) for part in compact.groups()
            )
            return _moment_of(
                year, month, day, _clock_sum(hour, minute, second, milli * 1_000_000)
            )
        if text.isascii() and text.isdigit() and len(text) in _UNIX_SCALE:
            return self._from_unix(text)
        if _DAY_FIRST.fullmatch(text) or re.fullmatch(r'[0-9]{6}', text):
            return Moment(fault=Fault.AMBIGUOUS_DATE)
        if _SERIAL_DAY.fullmatch(text):
            return Moment(fault=Fault.SPREADSHEET_DATE)
        return Moment(fault=Fault.UNKNOWN_DATE_FORMAT)

    def _from_written(self, parts: re.Match[str]) -> Moment:
        month = parts['m'] or parts['m2'] or parts['m3']
        day = parts['d'] or parts['d2'] or parts['d3']
        clock_ns = -1
        if parts['H'] is not None:
            clock_ns = _clock_ns(parts)
            if clock_ns < 0:
                return Moment(fault=Fault.BAD_DATE)
        moment = _moment_of(int(parts['y']), int(month), int(day), clock_ns)
        if parts['offset'] is None or moment.fault:
            return moment
        return self._from_utc(moment.day_ns + clock_ns - _offset_ns(parts['offset']))

    def _from_unix(self, text: str) -> Moment:
        if len(text) == 10 and int(text) >= _LAST_UNIX_S:
            return Moment(fault=Fault.AMBIGUOUS_DATE)
        return self._from_utc(int(text) * _UNIX_SCALE[len(text)])

    def _from_utc(self, utc_ns: int) -> Moment:
        """Return an absolute time with its local day and time of day."""
        seconds, below_ns = divmod(utc_ns, _SECOND)
        try:
            local = (_EPOCH + timedelta(seconds=seconds)).astimezone(self._zone)
        except OverflowError:
            return Moment(fault=Fault.BAD_DATE)
        clock_ns = _clock_sum(local.hour, local.minute, local.second, below_ns)
        moment = _moment_of(local.year, local.month, local.day, clock_ns)
        return moment if moment.fault else moment._replace(utc_ns=utc_ns)


def _tidy(text: str) -> str:
    """Strip blanks and the `.0` that integer columns with holes get when written as floats."""
    text = text.strip()
    return text[:-2] if text.endswith('.0') and text[:-2].isdigit() else text


def _moment_of(year: int, month: int, day: int, clock_ns: int) -> Moment:
    # Event time 0 means "unknown" elsewhere, and int64 ns end in 2262: keep away from both.
    if not 1970 <= year < 2200 or clock_ns < -1:
        return Moment(fault=Fault.BAD_DATE)
    try:
        date = datetime(year, month, day, tzinfo=timezone.utc)
    except ValueError:
        return Moment(fault=Fault.BAD_DATE)
    return Moment((date - _EPOCH).days * _DAY, clock_ns)


def _clock_sum(hour: int, minute: int, second: int, below_ns: int) -> int:
    """Return the time of day in ns, or _NO_SUCH_TIME."""
    if hour > 23 or minute > 59 or second > 59:
        return _NO_SUCH_TIME
    return ((hour * 60 + minute) * 60 + second) * _SECOND + below_ns


def _clock_ns(parts: re.Match[str]) -> int:
    fraction = int((parts['f'] or '0').ljust(9, '0'))
    return _clock_sum(int(parts['H']), int(parts['M']), int(parts['S'] or 0), fraction)


def _time_cell_ns(text: str) -> int:
    """Return the ns of a time cell such as 9:31, 09:31:00, 931 or 93100; negative if none."""
    clock = _CLOCK_ONLY.fullmatch(text)
    if clock:
        return _clock_ns(clock)
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        return _NO_TIME
    digits = text.zfill(4).ljust(6, '0') if len(text) <= 4 else text.zfill(6)
    return _clock_sum(int(digits[:2]), int(digits[2:4]), int(digits[4:]), 0)


def _offset_ns(text: str) -> int:
    if text.upper() in ('Z', 'UTC'):
        return 0
    sign = -1 if text[0] == '-' else 1
    digits = text[1:].replace(':', '')
    return sign * (int(digits[:2]) * 60 + int(digits[2:] or 0)) * 60 * _SECOND
