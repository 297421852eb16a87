# SPDX-License-Identifier: Apache-2.0
"""Ex-dates from raw prices, the exchange's reference price and the vendor's factor; hfq and qfq.

All of it is causal: what is said of a row needs no later row. Adjusted prices are for signals.
Limits, ticks, lots, fees and fills stay on raw prices.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from heqis_core.bars import CLOSE
from heqis_core.market.codes import Board
from heqis_core.market.ticks import TICK
from heqis_core.suspicion import Series, is_daily, kind_of, told_reference

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

BLIP = 5e-4
"""A factor's step of no more than this, relative, is no ex-date by itself.

Vendors' factors carry 4 decimals and move by some units of the last one on days without any
corporate action (2e-4 relative is the largest that was seen). A factor
with fewer decimals (those of funds have 3) is taken to move by 1.5 units of its last one. A
dividend so small goes unseen where there is no reference price, and then costs at most this.
"""

_DECIMALS = range(3, 6)
"""A factor that has shown fewer has had no occasion to show more."""

_LEAST_SHARES = 1.09
"""Of A-shares at least 1 for each 10 is given, a step of 1.1, less what rounding takes from it."""


class ExDate(NamedTuple):
    """One ex-date of a symbol."""

    row: int
    step: float
    """What a raw price before it is divided by to compare with one from it on."""
    kind: str
    """`cash` (dividend), `shares` (bonus, split or rights, perhaps with cash) or `consolidation`.

    It is told from the step alone: a dividend of more than 9 % reads as shares.
    """
    confirmed: bool
    """Not so where a reference price is there and denies the factor's step."""


def find_ex_dates(
    close: Floats,
    *,
    pre_close: Floats | None = None,
    adj_factor: Floats | None = None,
    tick: float = 0.01,
) -> list[ExDate]:
    """Return the ex-dates of one symbol, in order.

    A row is an ex-date if the factor steps by more than a blip (see `BLIP`), or if its reference
    price differs from the last close by half a tick or more, unless a factor that is known denies
    it: then a day is missing between. The step is the factor's where that moves, else last close
    over reference price. Without either of them no ex-date can be known.

    Args:
        close: float64 (N,), raw, in time order, NaN where there was no trading.
        pre_close: float64 (N,), the ex-right reference price of the exchange (Tushare's
            `pre_close` of `daily`); NaN where it is not known.
        adj_factor: float64 (N,), backward factor (Tushare's `adj_factor`, or one in proportion to
            it); NaN where it is not known.
        tick: price step.
    """
    none = np.full(len(close), np.nan)
    reference = none if pre_close is None else pre_close
    factor = none if adj_factor is None else adj_factor
    before = last_valid_row(np.isfinite(close))
    known = (before >= 0) & np.isfinite(close)
    last = np.where(known, close[before], np.nan)
    with np.errstate(divide='ignore', invalid='ignore'):
        by_reference = np.where(reference > 0, last / reference, np.nan)
        moved = np.abs(last - reference) > tick * 0.499
        shown = np.where(moved & (reference > 0), by_reference, 1.0)
        by_factor = _factor_steps(factor, shown, np.isfinite(close))
        unit = _last_decimal(factor) / factor
        stepped = np.abs(by_factor - 1) > np.maximum(BLIP, 1.5 * unit)
        # Each side is rounded: the reference price to a tick, the factor to its decimals.
        apart = np.abs(by_factor / by_reference - 1) > BLIP + unit + tick / reference
    found = []
    for row in np.flatnonzero(stepped | (moved & ~apart)).tolist():
        size = float(by_factor[row] if stepped[row] else by_reference[row])
        if 0 < size < np.inf:
            found.append(ExDate(row, size, _kind(size), not apart[row]))
    return found


def _factor_steps(factor: Floats, by_reference: Floats, trading: Bools) -> Floats:
    """Return by how much the factor steps on each row (N,), NaN where it is not known.

    After rows without a factor it is held against the last one that is known, over the steps (N,)
    that the reference price has shown since: a hole hides no step, and doubles none.
    """
    given = trading & (factor > 0)
    before = last_valid_row(given)
    seen = np.cumprod(np.where(trading & ~given, by_reference, 1.0))
    step = factor / factor[before] / (seen / seen[before])
    return np.where(given & (before >= 0), step, np.nan)


def find_untold(
    close: Floats, *, pre_close: Floats | None = None, adj_factor: Floats | None = None
) -> Bools:
    """Return bool (N,): rows of which nothing tells whether an ex-date lies before them.

    They have no reference price, and no factor or none before it. `find_ex_dates`, which see for
    the arguments, takes it for none there.
    """
    none = np.full(len(close), np.nan)
    reference = none if pre_close is None else pre_close
    given = (none if adj_factor is None else adj_factor) > 0
    trading = np.isfinite(close)
    known = trading & (last_valid_row(trading) >= 0)
    return known & ~(reference > 0) & ~(given & (last_valid_row(given & trading) >= 0))


def last_valid_row(valid: Bools) -> npt.NDArray[np.int64]:
    """Return int64 (N,): of each row the last valid one before it, -1 where there is none."""
    rows = np.where(valid, np.arange(len(valid)), -1)
    return np.r_[-1, np.maximum.accumulate(rows)[:-1]] if len(rows) else rows


def factor_of(
    close: Floats,
    *,
    pre_close: Floats | None = None,
    adj_factor: Floats | None = None,
    tick: float = 0.01,
) -> Floats:
    """Return the backward factor (N,) that steps on ex-dates and nowhere else.

    It begins at the first factor that is known, else at 1, and is multiplied by each `step` of
    `find_ex_dates`, which see for the arguments.
    """
    start = 1.0
    if adj_factor is not None and (adj_factor > 0).any():
        start = float(adj_factor[np.flatnonzero(adj_factor > 0)[0]])
    steps = np.ones(len(close))
    for ex_date in find_ex_dates(close, pre_close=pre_close, adj_factor=adj_factor, tick=tick):
        steps[ex_date.row] = ex_date.step
    return np.asarray(start * np.cumprod(steps), np.float64)


def hfq(prices: Floats, factor: Floats) -> Floats:
    """Return backward-adjusted prices (..., N): raw price × factor of its own day.

    Their level is far from the raw one, but what was computed once never changes.
    """
    return prices * factor


def qfq(prices: Floats, factor: Floats, as_of: int) -> Floats:
    """Return forward-adjusted prices (..., as_of + 1) as they stood on row `as_of`.

    Raw price × factor of its own day / factor of the row `as_of`: the last one is raw. Anchored
    at any later row than the one that decides, qfq holds dividends and splits that nobody knew.

    Args:
        prices: float64 (..., N), raw, time along the last axis.
        factor: float64 (N,), see `factor_of`.
        as_of: the row on which a decision is made.
    """
    adjusted: Floats = prices[..., : as_of + 1] * (factor[: as_of + 1] / factor[as_of])
    return adjusted


class Adjusted(NamedTuple):
    """Adjusted bars of one symbol; suspensions are left out."""

    symbol: str
    event_ns: npt.NDArray[np.int64]
    """int64 (N,)."""
    values: Floats
    """float64 (7, N): rows in `BAR_FIELDS` order, then the factor."""


def adjust_series(series: Series, as_of_day: int | None) -> Adjusted:
    """Return the bars of a symbol as hfq, or as qfq of a day, without later ones.

    A row that follows a refused one is an ex-date by its factor alone: its reference price is the
    close that was refused. An index has no ex-dates.

    Args:
        series: raw bars.
        as_of_day: counted from 1970-01-01; None for hfq.
    """
    close, factor = series.values[CLOSE], np.ones(len(series.day))
    kind = kind_of(series.symbol)
    if not _is_index(series):
        factor = factor_of(close, **_told(series), tick=kind.tick if kind and kind.tick else TICK)
    end = len(close)
    if as_of_day is not None:
        end = int(np.searchsorted(series.day, as_of_day, side='right'))
    values = np.vstack([series.values, factor])[:, :end]
    if as_of_day is None:
        values[: CLOSE + 1] = hfq(values[: CLOSE + 1], factor)
    elif end:
        values[: CLOSE + 1] = qfq(values[: CLOSE + 1], factor, end - 1)
    kept = np.isfinite(values[CLOSE])
    return Adjusted(series.symbol, series.event_ns[:end][kept], values[:, kept])


def can_adjust(series: Series) -> bool:
    """Return whether any bar has a factor, or the reference price of its day."""
    factor, reference = series.extra('adj_factor'), series.extra('pre_close')
    told = (factor > 0) | ((reference > 0) & is_daily(series.event_ns))
    return _is_index(series) or bool((told & np.isfinite(series.values[CLOSE])).any())


def untold_days(series: Series) -> list[int]:
    """Return the days, from 1970-01-01, of the rows of `find_untold`."""
    if _is_index(series):
        return []
    untold: list[int] = series.day[find_untold(series.values[CLOSE], **_told(series))].tolist()
    return untold


class _Told(TypedDict):
    """What tells the ex-dates of a symbol."""

    pre_close: Floats
    adj_factor: Floats


def _told(series: Series) -> _Told:
    return _Told(pre_close=told_reference(series), adj_factor=series.extra('adj_factor'))


def _is_index(series: Series) -> bool:
    kind = kind_of(series.symbol)
    return kind is not None and kind.board is Board.INDEX


def _last_decimal(factor: Floats) -> Floats:
    """Return the unit of the last decimal (N,) that the factor has used up to each row."""
    decimals = np.full(len(factor), _DECIMALS.start)
    for digits in _DECIMALS:
        scaled = factor * 10.0**digits
        decimals[np.abs(scaled - np.rint(scaled)) > 1e-6] = digits + 1
    return np.power(10.0, -np.maximum.accumulate(decimals)).astype(np.float64)


def _kind(step: float) -> str:
    if step < 1:
        return 'consolidation'
    return 'shares' if step >= _LEAST_SHARES else 'cash'
