# SPDX-License-Identifier: Apache-2.0
"""Sessions of a trading day: calls, continuous trading, after-hours trading at the close.

Local time is Shanghai's, UTC+8 without summer time since 1992; event times are int64 ns UTC.
Covered since 2001-12-01. Halts of single symbols and the call after one are not sessions.
"""

from __future__ import annotations

from datetime import date, datetime, timezone
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, DataError
from heqis_core.market.codes import Board, Exchange

_MINUTE = 60_000_000_000
_DAY = 1440 * _MINUTE
_SHANGHAI = 8 * 60 * _MINUTE


class Session(IntEnum):
    """What goes on at a moment (uint8 in arrays)."""

    CLOSED = 0
    """Before, between and after the sessions."""
    OPEN_CALL = 1
    CONTINUOUS = 2
    CLOSE_CALL = 3
    AFTER_HOURS = 4
    """Trading at the closing price."""


class Span(NamedTuple):
    """One session of a day."""

    session: Session
    start: int
    """Minute of the local day."""
    end: int


class Schedule(NamedTuple):
    """The sessions of some boards from a day on."""

    exchange: Exchange
    boards: tuple[Board, ...]
    since: date
    spans: tuple[Span, ...]
    source: str


_OPENING = (
    Span(Session.OPEN_CALL, 9 * 60 + 15, 9 * 60 + 25),
    Span(Session.CONTINUOUS, 9 * 60 + 30, 11 * 60 + 30),
)
_TO_THE_END = (*_OPENING, Span(Session.CONTINUOUS, 13 * 60, 15 * 60))
_WITH_CALL = (
    *_OPENING,
    Span(Session.CONTINUOUS, 13 * 60, 14 * 60 + 57),
    Span(Session.CLOSE_CALL, 14 * 60 + 57, 15 * 60),
)
_AFTER_HOURS = (*_WITH_CALL, Span(Session.AFTER_HOURS, 15 * 60 + 5, 15 * 60 + 30))

_FUNDS = (Board.FUND, Board.FUND_20, Board.REIT)
_EACH = (Board.MAIN, Board.B_SHARE, Board.INDEX)
_RULES_2001 = 'SSE and SZSE, trading rules of 2001-08-31, in force 2001-12-01'
_SZSE_2006 = 'SZSE, trading rules of 2006-05-15, 2.3.2'
_STAR_2019 = 'SSE [2019] 23, special rules of trading on STAR'
_CHINEXT_2020 = 'SZSE, special rules of trading on ChiNext, 2020-06-12'
_SSE_2018 = 'SSE, notice of 2018-08-06: stocks, not funds'
_SSE_2026 = 'SSE, trading rules of 2026-04-24, 2.4.2, in force 2026-07-06'
_SZSE_2026 = 'SZSE [2026] 551, trading rules of 2026-04-24, in force 2026-07-06'
_BSE_2021 = 'BSE [2021] 15, trading rules (trial), 2021-11-01'

SCHEDULES: tuple[Schedule, ...] = (
    Schedule(Exchange.SSE, _EACH + _FUNDS, date(2001, 12, 1), _TO_THE_END, _RULES_2001),
    Schedule(Exchange.SZSE, _EACH + _FUNDS, date(2001, 12, 1), _TO_THE_END, _RULES_2001),
    Schedule(Exchange.SZSE, _EACH + _FUNDS, date(2006, 7, 1), _WITH_CALL, _SZSE_2006),
    Schedule(Exchange.SZSE, (Board.CHINEXT,), date(2009, 10, 30), _WITH_CALL, _SZSE_2006),
    Schedule(Exchange.SSE, _EACH, date(2018, 8, 20), _WITH_CALL, _SSE_2018),
    Schedule(Exchange.SSE, (Board.STAR,), date(2019, 7, 22), _AFTER_HOURS, _STAR_2019),
    Schedule(Exchange.SZSE, (Board.CHINEXT,), date(2020, 8, 24), _AFTER_HOURS, _CHINEXT_2020),
    Schedule(Exchange.BSE, (Board.BSE, Board.INDEX), date(2021, 11, 15), _WITH_CALL, _BSE_2021),
    Schedule(Exchange.SSE, _FUNDS, date(2026, 7, 6), _WITH_CALL, _SSE_2026),
    Schedule(Exchange.SSE, (Board.MAIN,), date(2026, 7, 6), _AFTER_HOURS, _SSE_2026),
    Schedule(Exchange.SZSE, (Board.MAIN,), date(2026, 7, 6), _AFTER_HOURS, _SZSE_2026),
)
"""Every schedule with its dates; a later row of the same exchange and board takes over."""


def sessions_of(exchange: Exchange, board: Board, day: date) -> tuple[Span, ...]:
    """Return the sessions of a trading day in order.

    Raise DataError where they are not covered. Whether it is a trading day, the calendar says.
    """
    spans: tuple[Span, ...] = ()
    for row in _schedules(exchange, board):
        spans = row.spans if row.since <= day else spans
    if not spans:
        raise _unknown(exchange, board, day)
    return spans


def session_of(
    event_time_ns: npt.ArrayLike, exchange: Exchange, board: Board, *, closing: bool = False
) -> npt.NDArray[np.uint8]:
    """Return the `Session` of each moment, uint8, as if each day were a trading day.

    A session begins with its first moment and ends before its last. Raise DataError where the
    sessions of a day are not covered.

    Args:
        event_time_ns: int64 ns UTC.
        exchange: of the symbol.
        board: of the symbol.
        closing: the moments are closes of bars, so a moment belongs to the session that it ends.
    """
    times = np.asarray(event_time_ns, np.int64)
    local = times + (_SHANGHAI - 1 if closing else _SHANGHAI)
    days, clock = local // _DAY, local % _DAY
    rows = _schedules(exchange, board)
    since = np.array([(row.since - date(1970, 1, 1)).days for row in rows], np.int64)
    which = np.searchsorted(since, days, side='right') - 1
    if times.size and int(which.min()) < 0:
        raise _unknown(exchange, board, date.fromordinal(719_163 + int(days.min())))
    found = np.zeros(times.shape, np.uint8)
    for index, row in enumerate(rows):
        for span in row.spans:
            inside = (clock >= span.start * _MINUTE) & (clock < span.end * _MINUTE)
            found = np.where((which == index) & inside, np.uint8(span.session), found)
    return found


def bar_closes(day: date, minutes: int = 1) -> npt.NDArray[np.int64]:
    """Return the closes of a trading day's bars, int64 ns UTC.

    They divide the two hours before and the two hours after noon, the closing call with them;
    with 1 minute they are 240, from 09:31 to 11:30 and from 13:01 to 15:00. What the opening call
    trades belongs to the first. Raise ConfigError for minutes that do not divide two hours.
    """
    if not 1 <= minutes <= 120 or 120 % minutes:
        raise ConfigError(
            f'minutes: {minutes}; expected a divisor of 120, the minutes of a half day'
        )
    steps = np.arange(minutes, 121, minutes, dtype=np.int64)
    clock = np.concatenate([9 * 60 + 30 + steps, 13 * 60 + steps])
    return midnight_ns(day) + clock * _MINUTE


def midnight_ns(day: date) -> int:
    """Return the event time at which a day begins in Shanghai, ns UTC."""
    moment = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
    return int(moment.timestamp()) * 1_000_000_000 - _SHANGHAI


def local_days(event_time_ns: npt.ArrayLike) -> npt.NDArray[np.datetime64]:
    """Return the day in Shanghai of each event time, datetime64[D]."""
    days = (np.asarray(event_time_ns, np.int64) + _SHANGHAI) // _DAY
    return np.asarray(days.astype('datetime64[D]'))


def _schedules(exchange: Exchange, board: Board) -> list[Schedule]:
    rows = [row for row in SCHEDULES if row.exchange == exchange and board in row.boards]
    return sorted(rows, key=lambda row: row.since)


def _unknown(exchange: Exchange, board: Board, day: date) -> DataError:
    return DataError(
        f'no sessions are known for board {board.name} on {exchange.name} on {day}: they are '
        'covered since 2001-12-01, and since the board opened'
    )
