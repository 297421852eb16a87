# SPDX-License-Identifier: Apache-2.0
"""Price limits of SSE, SZSE and BSE: one dated table, and limit prices in whole ticks.

Limits apply to the reference price of the day. That is what vendors call `pre_close`, and it is
already ex-right: on an ex-day it is the exchange's reference price, not the last close; on a
listing day it is the issue price. Nothing here adjusts it again.

Not covered: limits before 1996-12-16 (none are assumed from 1992-05-21 on), the PT stocks of 1999
to 2002, narrower ranges of valid orders within the limits (opening call of a listing day, cages
around the best price), the first day of closed-end funds, and three ChiNext stocks that were in
their delisting period on 2020-08-24 and kept 10 % until its end.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import date, timedelta
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError
from heqis_core.market.codes import ST_SINCE, UNREFORMED_SINCE, Board, Exchange, Status

NO_LOW = 0
NO_HIGH = int(np.iinfo(np.int64).max)
"""What stands for no limit: every price is above the one and below the other."""

_FREE = -1
"""In place of a share: no limit that day."""
_NO_RULE = -2
_ALWAYS = NO_HIGH
_LISTING_DAYS = 5
_MOST_TICKS = 10**12
"""Above it the arithmetic of limits could overflow; no price comes near it."""


class LimitRule(NamedTuple):
    """One row of the table, in force until a later row of the same key takes over."""

    exchanges: tuple[Exchange, ...]
    boards: tuple[Board, ...]
    status: Status
    listing_days: int
    """It holds for the first so many days after a listing; 0 for every other day."""
    since: date
    up: int
    """Thousandths of the reference price; -1 for no limit."""
    down: int
    source: str


_SSE, _SZSE, _BSE = (Exchange.SSE,), (Exchange.SZSE,), (Exchange.BSE,)
_BOTH = _SSE + _SZSE
_A_AND_B = (Board.MAIN, Board.B_SHARE)
_OLD = (*_A_AND_B, Board.FUND, Board.FUND_20)
_NORMAL, _ST, _BARE_S = Status.NORMAL, Status.ST, Status.UNREFORMED
_LAST, _LAST_FIRST = Status.DELISTING, Status.DELISTING_FIRST

_CSRC_1996 = 'CSRC notice of 1996-12, retold in SZSE, Origin of the price limits, 2018-03-28'
_ST_1998 = 'SSE, chronicle of 1998; SZSE, Origin of the price limits, 2018-03-28'
_CHINEXT_2009 = 'SZSE notice of 2009-09-24: ChiNext trades as the main board does'
_CHINEXT_2020 = 'SZSE, special rules of trading on ChiNext, 2020-06-12, 2.1'
_SZSE_620 = 'SZSE [2020] 620, risk warning and delisting on ChiNext, 2020-07-10'
_STAR_2019 = 'SSE [2019] 23, special rules of trading on STAR, 2019-03-01, art. 18'
_BSE_2021 = 'BSE [2021] 15, trading rules (trial), 2021-11-01, 3.3.11 and 3.3.12'
_SSE_2020 = 'SSE [2020] 103, risk warning board, 2020-12-31, art. 7 and 8'
_SZSE_2020 = 'SZSE, listing rules of 2020-12-31'
_RULES_2023 = 'SSE [2023] 32 and SZSE [2023] 98, trading rules, 2023-02-17'
_RULES_2026 = 'SSE trading rules and SZSE [2026] 551, 2026-04-24, 3.3.13'
_UNREFORMED_2007 = 'SSE and SZSE, notices on stocks marked S, in force 2007-01-08'
_REIT_2021 = 'SSE [2021] 9, REITs (trial), 2021-01-29, art. 33; SZSE alike'
_CONVERTIBLE_2006 = 'SSE and SZSE, trading rules of 2006: limits for stocks and funds only'
_CONVERTIBLE_2022 = 'SSE and SZSE, detailed rules of convertible bonds, 2022-07-29'

LIMIT_RULES: tuple[LimitRule, ...] = tuple(
    LimitRule(*row)
    for row in (
        # every day
        (_BOTH, _OLD, _NORMAL, 0, date(1992, 5, 21), -1, -1, 'no limits before 1996-12-16'),
        (_BOTH, _OLD, _NORMAL, 0, date(1996, 12, 16), 100, 100, _CSRC_1996),
        (_SZSE, (Board.CHINEXT,), _NORMAL, 0, date(2009, 10, 30), 100, 100, _CHINEXT_2009),
        (_SZSE, (Board.CHINEXT,), _NORMAL, 0, date(2020, 8, 24), 200, 200, _CHINEXT_2020),
        (_SSE, (Board.STAR,), _NORMAL, 0, date(2019, 7, 22), 200, 200, _STAR_2019),
        (_BSE, (Board.BSE,), _NORMAL, 0, date(2021, 11, 15), 300, 300, _BSE_2021),
        (_SSE, (Board.FUND_20,), _NORMAL, 0, date(2020, 8, 21), 200, 200, 'SSE [2020] 61'),
        (_SZSE, (Board.FUND_20,), _NORMAL, 0, date(2020, 8, 24), 200, 200, _CHINEXT_2020),
        (_BOTH, (Board.REIT,), _NORMAL, 0, date(2021, 1, 29), 100, 100, _REIT_2021),
        (_BOTH, (Board.CONVERTIBLE,), _NORMAL, 0, date(2006, 7, 1), -1, -1, _CONVERTIBLE_2006),
        (_BOTH, (Board.CONVERTIBLE,), _NORMAL, 0, date(2022, 8, 1), 200, 200, _CONVERTIBLE_2022),
        (_BOTH, (Board.INDEX,), _NORMAL, 0, date(1990, 12, 19), -1, -1, 'an index is no security'),
        (_BSE, (Board.INDEX,), _NORMAL, 0, date(2021, 11, 15), -1, -1, 'an index is no security'),
        # special treatment and share structure
        (_BOTH, _A_AND_B, _ST, 0, ST_SINCE, 50, 50, _ST_1998),
        (_BOTH, _A_AND_B, _ST, 0, date(2026, 7, 6), 100, 100, _RULES_2026),
        (_SZSE, (Board.CHINEXT,), _ST, 0, date(2009, 10, 30), 50, 50, _SZSE_620),
        (_SZSE, (Board.CHINEXT,), _ST, 0, date(2020, 8, 24), 200, 200, _SZSE_620),
        (_BOTH, (Board.MAIN,), _BARE_S, 0, UNREFORMED_SINCE, 50, 50, _UNREFORMED_2007),
        # delisting period; where there is no row of its own, the limit of the board holds
        (_SZSE, (*_A_AND_B, Board.CHINEXT), _LAST, 0, date(2012, 12, 17), 100, 100, 'SZSE, 4.5.2'),
        (_SSE, _A_AND_B, _LAST, 0, date(2013, 1, 1), 100, 100, 'SSE, risk warning board, art. 7'),
        (_SZSE, (Board.CHINEXT,), _LAST, 0, date(2020, 8, 24), 200, 200, _SZSE_620),
        (_SZSE, (*_A_AND_B, Board.CHINEXT), _LAST_FIRST, 0, date(2012, 12, 17), 100, 100,
         'SZSE, trading rules of 2012-11-30, 4.5.2'),
        (_SSE, _A_AND_B, _LAST_FIRST, 0, date(2013, 1, 1), 100, 100,
         'SSE, risk warning board, 2012-12-16, art. 7'),
        (_SZSE, (Board.CHINEXT,), _LAST_FIRST, 0, date(2020, 8, 24), 200, 200, _SZSE_620),
        (_SZSE, (*_A_AND_B, Board.CHINEXT), _LAST_FIRST, 0, date(2020, 12, 31), -1, -1,
         _SZSE_2020),
        (_SSE, (*_A_AND_B, Board.STAR), _LAST_FIRST, 0, date(2020, 12, 31), -1, -1, _SSE_2020),
        (_BSE, (Board.BSE,), _LAST_FIRST, 0, date(2021, 11, 15), -1, -1, _BSE_2021),
        # first days after a listing
        (_BOTH, _A_AND_B, _NORMAL, 1, date(1996, 12, 16), -1, -1, _CSRC_1996),
        (_SSE, _A_AND_B, _NORMAL, 1, date(2013, 12, 13), 440, 360, 'SSE [2013] 47'),
        (_SZSE, (Board.CHINEXT,), _NORMAL, 1, date(2009, 10, 30), -1, -1, _CHINEXT_2009),
        (_SZSE, (*_A_AND_B, Board.CHINEXT), _NORMAL, 1, date(2014, 6, 13), 440, 360,
         'SZSE [2014] 54'),
        (_BOTH, _A_AND_B, _NORMAL, 5, date(2023, 4, 10), -1, -1, _RULES_2023),
        (_SZSE, (Board.CHINEXT,), _NORMAL, 5, date(2020, 8, 24), -1, -1, _CHINEXT_2020),
        (_SSE, (Board.STAR,), _NORMAL, 5, date(2019, 7, 22), -1, -1, _STAR_2019),
        (_BSE, (Board.BSE,), _NORMAL, 1, date(2021, 11, 15), -1, -1, _BSE_2021),
        (_BOTH, (Board.REIT,), _NORMAL, 1, date(2021, 1, 29), 300, 300, _REIT_2021),
        (_BOTH, (Board.CONVERTIBLE,), _NORMAL, 1, date(2006, 7, 1), -1, -1, _CONVERTIBLE_2006),
        (_BOTH, (Board.CONVERTIBLE,), _NORMAL, 1, date(2022, 8, 1), 573, 433, _CONVERTIBLE_2022),
    )
)  # fmt: skip
"""Every limit with its dates."""


class LeastMoveRule(NamedTuple):
    """Since when a limit lies at least one tick from the reference price.

    Before, a very low price could have a limit that equals it.
    """

    exchanges: tuple[Exchange, ...]
    statuses: tuple[Status, ...]
    since: date
    up_to_ticks: int
    """It holds for reference prices up to this."""
    source: str


_EVERY = tuple(Status)
LEAST_MOVE_RULES: tuple[LeastMoveRule, ...] = (
    LeastMoveRule(_SZSE, _EVERY, date(2011, 2, 28), _ALWAYS, 'SZSE, trading rules, 3.3.16'),
    LeastMoveRule(
        _SSE, (_LAST, _LAST_FIRST), date(2013, 1, 1), 4,
        'SSE, risk warning board, 2012-12-16, art. 7: below 0.05 CNY',
    ),
    LeastMoveRule(_SSE, (_LAST, _LAST_FIRST), date(2020, 12, 31), 5, _SSE_2020),
    LeastMoveRule(_SSE, _EVERY, date(2023, 4, 10), _ALWAYS, f'{_RULES_2023}, 3.3.17'),
    LeastMoveRule(_BSE, _EVERY, date(2021, 11, 15), _ALWAYS, _BSE_2021),
)  # fmt: skip

_SHAPE = (len(Exchange), len(Board), len(Status), _LISTING_DAYS + 1)


class _Today(NamedTuple):
    """The rules of one day, flat arrays over (exchange, board, status, days listed)."""

    up: npt.NDArray[np.int64]
    down: npt.NDArray[np.int64]
    least_up_to: npt.NDArray[np.int64]


def price_limits(
    reference_ticks: npt.ArrayLike,
    day: date,
    exchange: npt.ArrayLike,
    board: npt.ArrayLike,
    status: npt.ArrayLike = Status.NORMAL,
    days_listed: npt.ArrayLike = 0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the lowest and the highest price of a day, int64 ticks, of the broadcast shape.

    Where there is no limit they are `NO_LOW` and `NO_HIGH`. Where the reference price is unknown
    (below one tick) they are the other way round, so no price is within them. Raise DataError if
    a symbol's board had no rules yet on that day, or is none that has limits; if a reference
    price is more than any price can be, or an age is negative; and if the day is no `date`.

    Args:
        reference_ticks: ex-right reference price (`pre_close`), on a listing day the issue price.
        day: trading day.
        exchange: `Exchange` of each symbol.
        board: `Board` of each symbol, see `listings`.
        status: `Status` of each symbol that day.
        days_listed: 1 on the listing day, 2 on the next trading day, ...; 0 for long ago.
    """
    reference = np.asarray(reference_ticks, np.int64)
    states = np.asarray(status, np.intp)
    age = np.asarray(days_listed, np.intp)
    if type(day) is not date:
        raise DataError(f'day: {day!r}; expected a datetime.date')
    if (reference > _MOST_TICKS).any():
        raise DataError(
            f'reference price of {int(reference.max())} ticks; expected at most {_MOST_TICKS}'
        )
    if (age < 0).any():
        raise DataError(f'days_listed: {int(age.min())}; expected 0 or more trading days')
    age = np.where(age > _LISTING_DAYS, 0, age)
    age = np.where(states == Status.NEW, 1, np.where(states == Status.EARLY, 2, age))
    cells = (np.asarray(exchange, np.intp) * _SHAPE[1] + np.asarray(board, np.intp)) * _SHAPE[2]
    cells = np.asarray((cells + states) * _SHAPE[3] + age)
    today = _rules_of(day)
    up, down = today.up[cells], today.down[cells]
    if (up == _NO_RULE).any():
        raise _no_rule(int(cells[up == _NO_RULE].flat[0]), day)
    boards = np.asarray(board)
    low, high = _limits(
        reference, up, down, boards == Board.BSE, reference <= today.least_up_to[cells]
    )
    low, high = np.where(down == _FREE, NO_LOW, low), np.where(up == _FREE, NO_HIGH, high)
    unknown = reference < 1
    return np.where(unknown, NO_HIGH, low), np.where(unknown, NO_LOW, high)


def limit_ticks(
    reference_ticks: npt.NDArray[np.int64] | int,
    percent: npt.NDArray[np.int64] | int,
    *,
    truncate: npt.NDArray[np.bool_] | bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the lowest and the highest price for a given limit in percent.

    Both are int64 ticks, of the shape that the arguments broadcast to. The limit price is rounded
    half up to a tick. A move of less than one tick counts as one tick, and no price falls below
    one tick.

    Args:
        reference_ticks: ex-right reference price (`pre_close`) in ticks.
        percent: limit in percent.
        truncate: where the move is cut off to whole ticks instead (BSE).
    """
    share = np.asarray(percent, np.int64) * 10
    return _limits(np.asarray(reference_ticks, np.int64), share, share, truncate, True)


def limit_percent(board: Board, day: date, *, st: bool = False) -> int | None:
    """Return the limit in percent of the reference price, None where there was none that day.

    It is that of the days after the first ones of a listing.

    Args:
        board: where the stock is listed.
        day: trading day.
        st: whether the stock is under special treatment (ST, *ST).
    """
    today = _rules_of(day)
    status = Status.ST if st else Status.NORMAL
    shares = today.up.reshape(_SHAPE)[:, board, status, 0]
    share = int(shares.max())
    return share // 10 if share > 0 else None


def _limits(
    reference: npt.NDArray[np.int64],
    up: npt.NDArray[np.int64],
    down: npt.NDArray[np.int64],
    truncate: npt.NDArray[np.bool_] | bool,
    least_one: npt.NDArray[np.bool_] | bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return low and high; `up` and `down` in thousandths, `least_one` where a tick is the least.

    Rounding: SSE and SZSE half up to the tick; BSE cuts the move off, so that no price is more
    than the limit away (on the exchange: 84.63 gives 110.01, 17.09 gives 22.21).
    """
    high = np.where(
        truncate,
        reference + reference * up // 1000,
        (reference * (1000 + up) + 500) // 1000,
    )
    low = np.where(
        truncate,
        reference - reference * down // 1000,
        (reference * (1000 - down) + 500) // 1000,
    )
    high = np.where(least_one, np.maximum(high, reference + 1), high)
    low = np.where(least_one, np.minimum(low, reference - 1), low)
    return np.maximum(low, 1), high


def _rules_of(day: date) -> _Today:
    return _rules_from(bisect_right(_CHANGES, day))


@cache
def _rules_from(change: int) -> _Today:
    """Return the rules in force after so many of the changes."""
    day = _CHANGES[change - 1] if change else date.min
    shares = np.full((2, *_SHAPE), _NO_RULE, np.int64)
    ordered = sorted(LIMIT_RULES, key=lambda rule: rule.since)
    in_force = [rule for rule in ordered if rule.since <= day]
    for rule in (r for r in in_force if r.status is Status.NORMAL and not r.listing_days):
        _put(shares, rule, slice(None), slice(None))
    for rule in (r for r in in_force if r.status is not Status.NORMAL):
        _put(shares, rule, rule.status, slice(None))
    for rule in (r for r in in_force if r.listing_days):
        # A row is for stocks listed since it came. Both rows of five days came on the Monday of a
        # week without holidays, so weekdays tell which of the first five days those are.
        days = min(rule.listing_days, 1 + int(np.busday_count(rule.since, day)))
        for status in (s for s in Status if s not in (_LAST, _LAST_FIRST)):
            _put(shares, rule, status, slice(1, days + 1))
    known = shares[:, :, :, Status.FREE, :] != _NO_RULE
    shares[:, :, :, Status.FREE, :][known] = _FREE

    least = np.zeros(_SHAPE, np.int64)
    for least_rule in sorted(LEAST_MOVE_RULES, key=lambda rule: rule.since):
        if least_rule.since <= day:
            for exchange in least_rule.exchanges:
                least[exchange, :, list(least_rule.statuses), :] = least_rule.up_to_ticks
    return _Today(shares[0].ravel(), shares[1].ravel(), least.ravel())


def _put(
    shares: npt.NDArray[np.int64], rule: LimitRule, status: Status | slice, ages: slice
) -> None:
    for exchange in rule.exchanges:
        for board in rule.boards:
            shares[0, exchange, board, status, ages] = rule.up
            shares[1, exchange, board, status, ages] = rule.down


def _changes() -> tuple[date, ...]:
    """Return every day on which some rule begins, or reaches one more day of a listing."""
    days = {rule.since for rule in LIMIT_RULES} | {rule.since for rule in LEAST_MOVE_RULES}
    for rule in LIMIT_RULES:
        days.update(rule.since + timedelta(days=n) for n in range(rule.listing_days))
    return tuple(sorted(days))


_CHANGES = _changes()


def _no_rule(cell: int, day: date) -> DataError:
    exchange, board, _, _ = (int(i) for i in np.unravel_index(cell, _SHAPE))
    return DataError(
        f'no price limits are known for board {Board(board).name} on {Exchange(exchange).name} '
        f'on {day}: the board had not opened yet, or the symbol is on another exchange'
    )
