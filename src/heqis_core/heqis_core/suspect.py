# SPDX-License-Identifier: Apache-2.0
"""What is odd about bars that break no rule: suspicions. They are reported, and the bars kept.

Each check takes the accepted rows of one symbol in time order; what is refused is
`heqis_core.clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt

from heqis_core.adjust import BLIP, ExDate, find_ex_dates, last_valid_row
from heqis_core.bars import AMOUNT, BAR_FIELDS, CLOSE, HIGH, LOW, OPEN, VOLUME
from heqis_core.clean import no_limit
from heqis_core.errors import DataError
from heqis_core.market.codes import Board
from heqis_core.market.limits import limit_percent
from heqis_core.market.sessions import Session, session_of
from heqis_core.market.ticks import TICK
from heqis_core.suspicion import (
    Kind,
    Series,
    Suspect,
    Suspicion,
    is_daily,
    kind_of,
    told_reference,
)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HOUR_NS = 3_600_000_000_000
_STOCKS = (Board.MAIN, Board.CHINEXT, Board.STAR, Board.BSE)
_UNITS_TOLD = (*_STOCKS, Board.FUND, Board.FUND_20)
_WIDEST = 0.5
"""A move that no rule allows or forbids is suspicious beyond this share of the last close."""
_FREE_ROWS = 5
"""Rows after a listing on which there may be no limit."""
_MOST = 0.5
"""A share of the rows from which on an oddity is one of the symbol, not of its rows."""
_WEEKEND_SHARE = 0.1
"""What trades on weekends as on other days has 2 of 7 rows there."""
_PLACEHOLDERS = (99_999.99, 100_000.0, 999_999.999)

_UNITS = {
    1.0: '',
    100.0: 'volume is in lots of 100 and was taken for shares',
    0.01: 'volume is in shares and was taken for lots of 100',
    1000.0: 'amount is in CNY and was taken for thousands',
    0.001: 'amount is in thousand CNY and was taken for CNY',
    0.1: 'volume is in lots and amount in thousand CNY; both were taken for shares and CNY',
    10.0: 'volume is in shares and amount in CNY; they were taken for lots and thousands',
    1e4: 'amount is in CNY and was taken for ten thousands',
    1e-4: 'amount is in ten thousand CNY and was taken for CNY',
}
"""What it means if amount / volume is that multiple of the price."""
_NEAR = 1.25
"""How far a row's multiple may be from one of `_UNITS`: further than a day's range goes."""
_NEAR_USUAL = 1.05
"""How far the median of a symbol may be: an adjustment factor is rarely so near."""


def examine(series: Series) -> tuple[list[Suspect], list[ExDate]]:
    """Return what is suspicious about a symbol, in the order of its rows, and its ex-dates."""
    kind = kind_of(series.symbol)
    tick = kind.tick if kind and kind.tick else TICK
    close, factor = series.values[CLOSE], series.extra('adj_factor')
    reference = told_reference(series)
    ex_dates = (
        []
        if kind and kind.board is Board.INDEX
        else find_ex_dates(close, pre_close=reference, adj_factor=factor, tick=tick)
    )
    checks: list[Callable[[Series, Kind | None], Iterable[Suspect]]] = [
        _outside_limits, _placeholders, _prices_and_units, _stale, _zero_volume, _sessions,
    ]  # fmt: skip
    found = [one for check in checks for one in check(series, kind)]
    found += _jumps(series, kind, ex_dates)
    found += _factors(series, ex_dates)
    found += _mismatches(series, reference, ex_dates, tick)
    found += _weekends(series, kind)
    return sorted(found, key=lambda one: one.row), ex_dates


def _list(
    suspicion: Suspicion, where: Bools, field: int | str, values: Floats, note: str = ''
) -> Iterator[Suspect]:
    name = field if isinstance(field, str) else BAR_FIELDS[field]
    for row in np.flatnonzero(where).tolist():
        yield Suspect(suspicion, row, name, float(values[row]), note)


def _jumps(series: Series, kind: Kind | None, ex_dates: list[ExDate]) -> Iterator[Suspect]:
    close, high, low = series.values[CLOSE], series.values[HIGH], series.values[LOW]
    # The last close of an earlier day: limits hold for a day, not from minute to minute.
    first = np.searchsorted(series.day, series.day)
    before = last_valid_row(np.isfinite(close))[first]
    reference = np.where((before >= 0) & ~series.broken[first], close[before], np.nan)
    for ex_date in ex_dates:
        reference[first == first[ex_date.row]] /= ex_date.step
    said = series.extra('pre_close')
    reference = np.where(said > 0, said, reference)
    share, slack = _limit_share(series, kind), kind.tick if kind else 0.0
    if series.since_listing:
        share[:_FREE_ROWS] = np.inf
    up, down = reference * (1 + share) + 1.01 * slack, reference * (1 - share) - 1.01 * slack
    for row in np.flatnonzero((high > up) | (low < down)).tolist():
        field = CLOSE if close[row] > up[row] or close[row] < down[row] else (
            HIGH if high[row] > up[row] else LOW
        )  # fmt: skip
        value = float(series.values[field, row])
        ratio = value / float(reference[row])
        note = (
            f'{ratio:.4g} × the reference {reference[row]:g}, at most ±{share[row]:.0%} is usual'
        )
        told = bool(said[row] > 0 or series.extra('adj_factor')[row] > 0)
        yield Suspect(
            Suspicion.PRICE_JUMP, row, BAR_FIELDS[field], value, note + _why(ratio, told)
        )  # fmt: skip


def _why(ratio: float, told: bool) -> str:
    for power in (10.0, 100.0, 1000.0):
        if 1 / _NEAR < ratio / power < _NEAR or 1 / _NEAR < ratio * power < _NEAR:
            return ': a slipped decimal point?'
    return ': a split or dividend that nothing here tells?' if ratio < 1 and not told else ''


def _limit_share(series: Series, kind: Kind | None) -> Floats:
    """Return the price limit (N,) as a share of the reference price, infinite where none."""
    if kind is None or kind.board not in _UNITS_TOLD:
        return np.full(len(series.event_ns), _WIDEST)
    days, which = np.unique(series.day, return_inverse=True)
    dates = [datetime.fromtimestamp(int(day) * 86_400, timezone.utc).date() for day in days]
    # No code tells a fund whose limit is 20 % from the others.
    board = Board.FUND_20 if kind.board is Board.FUND else kind.board
    percent = [limit_percent(board, day) for day in dates]
    return np.array([np.inf if one is None else one / 100 for one in percent])[which]


def _outside_limits(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    up, down = series.extra('up_limit'), series.extra('down_limit')
    judged = ~no_limit(up, down)
    # Adjusted limits and prices are each rounded: one tick apart is none.
    slack = 1.01 * (kind.tick if kind else 0.0)
    high, low = series.values[HIGH], series.values[LOW]
    yield from _list(Suspicion.OUTSIDE_LIMITS, judged & (high > up + slack), HIGH, high)
    yield from _list(Suspicion.OUTSIDE_LIMITS, judged & (low < down - slack), LOW, low)


def _placeholders(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    rest = np.nanmedian(series.values[CLOSE]) if np.isfinite(series.values[CLOSE]).any() else 0.0
    for field in (OPEN, HIGH, LOW, CLOSE):
        prices = series.values[field]
        where = np.isin(prices, _PLACEHOLDERS) & (prices > 3 * rest)
        yield from _list(
            Suspicion.PLACEHOLDER_PRICE, where, field, prices, 'vendors write it for "no limit"'
        )


def _prices_and_units(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    """Compare prices with the tick, and with amount / volume."""
    if kind is None or kind.board not in _UNITS_TOLD:
        return
    prices = series.values[[OPEN, HIGH, LOW, CLOSE]]
    valid = np.isfinite(prices[0])
    if not valid.any():
        return
    off = (np.abs(prices / kind.tick - np.rint(prices / kind.tick)) > 1e-4) & valid
    adjusted = off.any(axis=0).sum() > _MOST * valid.sum()
    volume, amount = series.values[VOLUME], series.values[AMOUNT]
    traded = valid & (volume > 0) & (amount > 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        paid = np.where(traded, amount / volume, np.nan)
    multiple = paid / ((prices[1] + prices[2]) / 2)
    # Rounding: volume to a lot's hundredth, amount to a CNY, prices to a tick.
    slack = kind.tick + paid * (1e-3 + 1 / np.maximum(volume, 1))
    outside = traded & ((paid > prices[1] + slack) | (paid < prices[2] - slack))
    unit = _nearest_units(multiple)
    usual = _usual(unit[traded], multiple[traded])
    many_outside = outside.sum() > _MOST * max(int(traded.sum()), 1)
    if usual != 1.0 and not np.isnan(usual):
        yield Suspect(
            Suspicion.UNITS, -1, 'amount', float(np.nanmedian(multiple)),
            f'amount / volume is about {usual:g} × the price: {_UNITS[usual]}?',
        )  # fmt: skip
    elif adjusted or many_outside:
        middle = float(np.nanmedian(multiple)) if traded.any() else np.nan
        yield Suspect(
            Suspicion.LOOKS_ADJUSTED, -1, 'close', middle,
            f'{off.any(axis=0).sum()} of {valid.sum()} rows are on no tick of {kind.tick:g}, and '
            f'amount / volume is outside {outside.sum()} of {traded.sum()} ranges: hfq or qfq?',
        )  # fmt: skip
    if not adjusted:
        for index, field in enumerate((OPEN, HIGH, LOW, CLOSE)):
            yield from _list(Suspicion.OFF_TICK, off[index], field, prices[index])
    if not np.isnan(usual):
        changed = traded & (unit != usual) & ~np.isnan(unit)
        for row in np.flatnonzero(changed).tolist():
            note = f'amount / volume is {multiple[row]:.3g} × the price, {usual:g} × elsewhere'
            yield Suspect(Suspicion.UNITS_CHANGED, row, 'volume', float(volume[row]), note)
        if usual == 1.0 and not adjusted and not many_outside:
            odd = outside & ((unit == usual) | np.isnan(unit))
            note = 'amount / volume is not within low and high'
            yield from _list(Suspicion.AMOUNT_OUTSIDE_RANGE, odd, AMOUNT, amount, note)


def _nearest_units(multiples: Floats) -> Floats:
    """Return the multiple of `_UNITS` (N,) that is near, NaN where none is."""
    units = np.array(list(_UNITS))
    ratio = multiples[:, None] / units
    near = (ratio > 1 / _NEAR) & (ratio < _NEAR)
    return np.where(near.any(axis=1), units[near.argmax(axis=1)], np.nan)


def _usual(units: Floats, multiples: Floats) -> float:
    """Return the unit of most rows, NaN if there is none."""
    known, counts = np.unique(units[~np.isnan(units)], return_counts=True)
    if not len(known) or counts.max() < _MOST * len(units):
        return np.nan
    most = float(known[counts.argmax()])
    middle = float(np.median(multiples)) / most
    return most if 1 / _NEAR_USUAL < middle < _NEAR_USUAL else np.nan


def _stale(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    values = series.values
    valid = np.flatnonzero(np.isfinite(values[CLOSE]))
    if len(valid) < 2:
        return
    bars = values[:, valid]
    with_life = (bars[HIGH] > bars[LOW]) & ~(bars[VOLUME] == 0)
    alike = (bars[:, 1:] == bars[:, :-1]) | (np.isnan(bars[:, 1:]) & np.isnan(bars[:, :-1]))
    same = np.r_[False, alike.all(axis=0)] & with_life
    # Two minutes may happen to be alike, two days or three minutes do not.
    enough = is_daily(series.event_ns)[valid] | np.r_[False, same[:-1]]
    where = np.zeros(values.shape[1], np.bool_)
    where[valid] = same & enough
    yield from _list(Suspicion.STALE_REPEAT, where, CLOSE, values[CLOSE])


def _zero_volume(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    volume = series.values[VOLUME]
    where = (volume == 0) & is_daily(series.event_ns) & np.isfinite(series.values[CLOSE])
    yield from _list(Suspicion.ZERO_VOLUME, where, VOLUME, volume)


def _sessions(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    intraday = ~is_daily(series.event_ns)
    if kind is None or not intraday.any():
        return
    try:
        closed = intraday & (_session(series.event_ns, kind) == Session.CLOSED)
    except DataError:
        # The sessions of that time are not on record.
        return
    if closed.sum() <= _MOST * intraday.sum():
        clock = (series.event_ns // 60_000_000_000 + 480) % 1440
        shown = (clock // 60 * 100 + clock % 60).astype(np.float64)
        yield from _list(
            Suspicion.OUTSIDE_SESSION, closed, 'date', shown, 'time in Shanghai, HHMM'
        )
        return
    times = series.event_ns[intraday]
    fits = {
        hours: (_session(times + hours * _HOUR_NS, kind) != Session.CLOSED).mean()
        for hours in sorted(range(-12, 13), key=abs)
    }
    best = max(fits, key=lambda hours: fits[hours])
    note = f'{closed.sum()} of {intraday.sum()} bars close when the exchange does not trade'
    if fits[best] > 0.95:
        note += f'; moved by {best:+d} h they do not: another time zone?'
    yield Suspect(Suspicion.TIME_ZONE, -1, 'date', float(best), note)


def _session(event_ns: Ints, kind: Kind) -> npt.NDArray[np.uint8]:
    return session_of(event_ns, kind.exchange, kind.board, closing=True)


def _weekends(series: Series, kind: Kind | None) -> Iterator[Suspect]:
    # 1970-01-01 was a Thursday.
    weekday = (series.day + 3) % 7
    where = weekday >= 5
    if kind is None and where.sum() > _WEEKEND_SHARE * len(where):
        return
    shown = (weekday + 1).astype(np.float64)
    yield from _list(Suspicion.WEEKEND, where, 'date', shown, 'day of the week, Monday is 1')


def _factors(series: Series, ex_dates: list[ExDate]) -> Iterator[Suspect]:
    apart = [ex_date for ex_date in ex_dates if not ex_date.confirmed]
    if len(apart) > max(_MOST * len(ex_dates), 1):
        yield Suspect(
            Suspicion.LOOKS_ADJUSTED, -1, 'adj_factor', float(len(apart)),
            f'the factor steps on {len(ex_dates)} days, on {len(apart)} of them the reference '
            'price does not: the prices are adjusted already, or pre_close was overwritten',
        )  # fmt: skip
        apart = []
    for ex_date in apart:
        yield Suspect(
            Suspicion.UNCONFIRMED_EX_DATE, ex_date.row, 'adj_factor', ex_date.step,
            'the factor steps, the reference price is the last close',
        )  # fmt: skip
    factor = series.extra('adj_factor')
    trading = np.isfinite(series.values[CLOSE])
    given = factor > 0
    if not given.any():
        return
    yield from _list(Suspicion.MISSING_FACTOR, trading & ~given, 'adj_factor', factor)
    before = last_valid_row(trading & given)
    ex_rows = np.zeros(len(factor), np.bool_)
    ex_rows[[ex_date.row for ex_date in ex_dates]] = True
    moved = trading & given & (before >= 0) & (factor != factor[before]) & ~ex_rows
    yield from _list(
        Suspicion.FACTOR_BLIP, moved, 'adj_factor', factor,
        f'it moves without an ex-date; below {BLIP:g} that is noise',
    )  # fmt: skip


def _mismatches(
    series: Series, reference: Floats, ex_dates: list[ExDate], tick: float
) -> Iterator[Suspect]:
    close, factor = series.values[CLOSE], series.extra('adj_factor')
    before = last_valid_row(np.isfinite(close))
    known = (before >= 0) & np.isfinite(close) & (factor > 0) & (factor[before] > 0)
    apart = known & (np.abs(reference - close[before]) > 0.499 * tick)
    apart[[ex_date.row for ex_date in ex_dates]] = False
    yield from _list(
        Suspicion.REFERENCE_MISMATCH, apart, 'pre_close', reference,
        'not the last close, and no ex-date: is a day missing before it?',
    )  # fmt: skip
