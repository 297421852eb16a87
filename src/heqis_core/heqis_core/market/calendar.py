# SPDX-License-Identifier: Apache-2.0
"""Trading days, as the caller's data gives them; no list of holidays is built in."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, DataError
from heqis_core.market.codes import Board, Exchange
from heqis_core.market.sessions import Session, local_days, session_of

_Days = npt.NDArray[np.datetime64]
DaysLike = npt.ArrayLike | date | Sequence[date]
"""A day or days: dates, datetime64, or texts such as 2024-01-02."""


@dataclass(frozen=True, slots=True, eq=False)
class TradingCalendar:
    """The trading days from a first to a last day; outside it knows nothing, and says so.

    Attributes:
        days: datetime64[D] (N,), the trading days, strictly increasing.
        first: first day that it knows about, a trading day or not.
        last: last day that it knows about.
    """

    days: _Days = field(repr=False)
    first: np.datetime64
    last: np.datetime64

    def is_trading(self, days: DaysLike) -> npt.NDArray[np.bool_]:
        """Return which days are trading days."""
        asked = self._known(days)
        return np.asarray(self._upto(asked, 'right') > self._upto(asked, 'left'))

    def next(self, days: DaysLike) -> _Days:
        """Return the first trading day after each day."""
        return self._at(self._upto(self._known(days), 'right'), 'after', days)

    def previous(self, days: DaysLike) -> _Days:
        """Return the last trading day before each day."""
        return self._at(self._upto(self._known(days), 'left') - 1, 'before', days)

    def offset(self, days: DaysLike, count: npt.ArrayLike) -> _Days:
        """Return the trading day `count` trading days after each trading day, before if negative.

        Raise DataError if one of the days is no trading day.
        """
        return self._at(self.index(days) + np.asarray(count, np.int64), 'from', days)

    def index(self, days: DaysLike) -> npt.NDArray[np.int64]:
        """Return the place of each trading day in `days`; raise DataError if one is none."""
        asked = self._known(days)
        closed = ~self.is_trading(asked)
        if closed.any():
            raise DataError(f'{_first(asked, closed)} is no trading day of the calendar')
        return self._upto(asked, 'left')

    def count(self, start: DaysLike, end: DaysLike) -> npt.NDArray[np.int64]:
        """Return how many trading days lie from `start` to before `end`, negative if reversed."""
        return self._upto(self._known(end), 'left') - self._upto(self._known(start), 'left')

    def days_listed(self, listed: DaysLike, day: DaysLike) -> npt.NDArray[np.int64]:
        """Return 1 on the listing day, 2 on the next trading day, ...; 0 or less before it.

        Listing days before the calendar's first count as that one.
        """
        begun = np.maximum(_to_days(listed), self.first)
        today = self._known(day)
        begun = np.minimum(begun, self.last)
        count = self._upto(today, 'right') - self._upto(begun, 'left')
        return np.asarray(np.where(_to_days(listed) > today, 0, count))

    def _upto(self, days: _Days, side: str) -> npt.NDArray[np.int64]:
        return np.asarray(np.searchsorted(self.days, days, side=side), np.int64)  # type: ignore[call-overload]

    def _known(self, days: DaysLike) -> _Days:
        asked = _to_days(days)
        outside = ~((asked >= self.first) & (asked <= self.last))
        if outside.any():
            raise DataError(
                f'{_first(asked, outside)} is outside the trading calendar, which goes from '
                f'{self.first} to {self.last}: load more days of it'
            )
        return asked

    def _at(self, places: npt.NDArray[np.int64], word: str, days: DaysLike) -> _Days:
        outside = (places < 0) | (places >= len(self.days))
        if outside.any():
            asked = np.broadcast_to(_to_days(days), places.shape)
            raise DataError(
                f'the trading day {word} {_first(asked, outside)} that is asked for is outside '
                f'the calendar, which goes from {self.first} to {self.last}: load more days of it'
            )
        return np.asarray(self.days[places])


def calendar_from_days(
    days: Iterable[date | str | int] | _Days, first: date | None = None, last: date | None = None
) -> TradingCalendar:
    """Return the calendar of trading days in any order, each as often as it likes.

    Days are dates, datetime64, or texts and numbers such as 2024-01-02 and 20240102. Raise
    DataError if there is none or if one cannot be read.

    Args:
        days: the trading days.
        first: first day that the list covers; the first trading day if not given.
        last: last day that the list covers; the last trading day if not given.
    """
    each = days if isinstance(days, np.ndarray) else np.array([_day(d) for d in days], 'M8[D]')
    known = np.unique(each.astype('datetime64[D]'))
    if not len(known):
        raise DataError('trading calendar: no trading day; expected at least one')
    if np.isnat(known).any():
        raise DataError('trading calendar: a day is missing (NaT) among the trading days')
    begin = known[0] if first is None else np.datetime64(first, 'D')
    end = known[-1] if last is None else np.datetime64(last, 'D')
    if begin > known[0] or end < known[-1]:
        raise ConfigError(
            f'trading calendar: first {begin} and last {end} leave out trading days, which go '
            f'from {known[0]} to {known[-1]}'
        )
    return TradingCalendar(known, begin, end)


def calendar_from_trade_cal(
    cal_dates: Iterable[date | str | int], is_open: Iterable[str | int]
) -> TradingCalendar:
    """Return the calendar of Tushare's `trade_cal`: each day with 1 if open, 0 if closed.

    Raise DataError if a flag is neither, or if a day is both.
    """
    known: dict[date, bool] = {}
    for cell, flag in zip(cal_dates, is_open, strict=True):
        day, text = _day(cell), str(flag).strip()
        if text not in ('0', '1'):
            raise DataError(f"is_open: '{flag}' on {day}; expected 0 or 1")
        if known.setdefault(day, text == '1') != (text == '1'):
            raise DataError(f'{day} is open and closed: give the rows of one exchange')
    if not known:
        raise DataError('trading calendar: no rows')
    days = [day for day, trading in known.items() if trading]
    return calendar_from_days(days, min(known), max(known))


def calendar_from_events(event_time_ns: npt.ArrayLike) -> TradingCalendar:
    """Return the calendar of every day in Shanghai that has an event time, int64 ns UTC.

    A day on which none of the data has a row is then taken for closed.
    """
    return calendar_from_days(np.unique(local_days(event_time_ns)))


def is_open(
    calendar: TradingCalendar,
    event_time_ns: npt.ArrayLike,
    exchange: Exchange,
    board: Board,
    *,
    closing: bool = False,
) -> npt.NDArray[np.bool_]:
    """Return at which moments there is a session of some kind, see `session_of`.

    Raise DataError for days outside the calendar and for those whose sessions are not covered.
    """
    trading = calendar.is_trading(local_days(event_time_ns))
    session = session_of(event_time_ns, exchange, board, closing=closing)
    return np.asarray(trading & (session != Session.CLOSED))


def read_calendar(path: str | Path) -> TradingCalendar:
    """Return the calendar of a text file.

    It is a CSV with `cal_date` and `is_open` columns as `trade_cal` has them, or holds one trading
    day a line; blank lines and lines that begin with # are passed over. Raise DataError that
    names file and line.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{file}: cannot be read as a trading calendar: {error}') from error
    numbered = [
        (number, line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith('#')
    ]
    if not numbered:
        raise DataError(f'{file}: no trading day in it')
    header = [name.strip().lower() for name in numbered[0][1].split(',')]
    try:
        if {'cal_date', 'is_open'}.issubset(header):
            rows = list(csv.reader(line for _, line in numbered[1:]))
            cells = [
                [_cell(row, header.index(n)) for row in rows] for n in ('cal_date', 'is_open')
            ]
            return calendar_from_trade_cal(cells[0], cells[1])
    except DataError as error:
        raise DataError(f'{file}: {error}') from error
    days = []
    for number, line in numbered:
        try:
            days.append(_day(line))
        except DataError as error:
            raise DataError(f'{file}, line {number}: {error}') from error
    return calendar_from_days(days)


def _cell(row: list[str], place: int) -> str:
    if place >= len(row):
        raise DataError(f"row '{','.join(row)}': fewer cells than the header")
    return row[place].strip()


def _day(value: date | str | int) -> date:
    if isinstance(value, date):
        return date(value.year, value.month, value.day)
    text = str(value).strip()
    if len(text) == 8 and text.isascii() and text.isdigit():
        text = f'{text[:4]}-{text[4:6]}-{text[6:]}'
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"'{value}' is no day; expected such as 2024-01-02 or 20240102") from error


def _to_days(days: DaysLike) -> _Days:
    try:
        return np.asarray(days, 'datetime64[D]')
    except (ValueError, TypeError) as error:
        raise DataError(f'{days!r}: no days; expected such as 2024-01-02: {error}') from error


def _first(days: _Days, which: npt.NDArray[np.bool_]) -> str:
    return str(np.asarray(days)[which].flat[0] if which.ndim else days)
