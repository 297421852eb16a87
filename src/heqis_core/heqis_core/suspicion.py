# SPDX-License-Identifier: Apache-2.0
"""The names of what is odd about bars that break no rule, and the rows that are looked at.

What is odd about several symbols together is here too; the checks of one are `heqis_core.suspect`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import DataError
from heqis_core.market.codes import Board, Exchange, board_of, exchange_of
from heqis_core.market.ticks import tick_of

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DAY_NS = 86_400_000_000_000


class Suspicion(Enum):
    """Why a row, a symbol or a file is worth a look."""

    PRICE_JUMP = 'price_jump'
    """Beyond any price limit, and neither a first day nor an adjustment explains it."""
    OUTSIDE_LIMITS = 'outside_limits'
    """Beyond the limit prices that stand in the same row."""
    PLACEHOLDER_PRICE = 'placeholder_price'
    """What vendors write for "no limit" stands as a price."""
    OFF_TICK = 'off_tick'
    """On no tick, while the symbol's other prices are."""
    STALE_REPEAT = 'stale_repeat'
    """The bar before it once more, volume included."""
    ZERO_VOLUME = 'zero_volume'
    """A whole day without volume that does not repeat the last close."""
    AMOUNT_OUTSIDE_RANGE = 'amount_outside_range'
    """Amount / volume is not within low and high, while it is in the symbol's other rows."""
    UNITS_CHANGED = 'units_changed'
    """Volume or amount in another unit than in the symbol's other rows."""
    WEEKEND = 'weekend'
    OUTSIDE_SESSION = 'outside_session'
    """The bar closes when the exchange does not trade."""
    UNCONFIRMED_EX_DATE = 'unconfirmed_ex_date'
    """The factor steps, and the reference price denies it."""
    REFERENCE_MISMATCH = 'reference_mismatch'
    """The reference price is not the last close, and the factor denies an ex-date."""
    FACTOR_BLIP = 'factor_blip'
    """The factor moves by less than any corporate action that can be told from noise."""
    MISSING_FACTOR = 'missing_factor'
    """No factor above zero, while the symbol's other rows have one."""
    UNITS = 'units'
    """The whole symbol: volume or amount is in another unit than its file seems to say."""
    LOOKS_ADJUSTED = 'looks_adjusted'
    """The whole symbol: prices are on no tick, or far from what was paid: hfq or qfq, not raw."""
    TIME_ZONE = 'time_zone'
    """The whole symbol: bars fit the sessions once they are moved by whole hours."""
    SPELLINGS = 'spellings'
    """The symbol stands in the data under several names."""
    UNFINISHED = 'unfinished'
    """The file ends without an end of line: its last row may be cut."""
    MIXED_ENDS = 'mixed_ends'
    """The lines of the file end in more than one way: it was put together, or cut."""


@dataclass(frozen=True, slots=True)
class Series:
    """The accepted rows of one symbol, N of them, in time order.

    Attributes:
        symbol: its name.
        event_ns: int64 (N,).
        day: int64 (N,), the day in the time zone of the market, counted from 1970-01-01.
        values: float64 (6, N), rows in `BAR_FIELDS` order, NaN in suspensions.
        extras: float64 (N,) by name: `pre_close`, `up_limit`, `down_limit`, `adj_factor`.
        broken: bool (N,), rows before which a row of the symbol was refused: what stands before
            them here is not their last close.
        since_listing: whether the first row may be the first day of trading.
    """

    symbol: str
    event_ns: Ints
    day: Ints
    values: Floats
    extras: dict[str, Floats]
    broken: Bools
    since_listing: bool = False

    def extra(self, name: str) -> Floats:
        """Return an extra column, all NaN where the data has none."""
        found = self.extras.get(name)
        return np.full(len(self.event_ns), np.nan) if found is None else found


class Suspect(NamedTuple):
    """One suspicion."""

    suspicion: Suspicion
    row: int
    """Row of the series; -1 for the symbol as a whole."""
    field: str
    value: float
    note: str
    """What it looks like, as far as that can be said."""


class Kind(NamedTuple):
    """What a symbol of a Chinese exchange is, by its code."""

    board: Board
    exchange: Exchange
    tick: float
    """CNY; 0 where there is none."""


def kind_of(symbol: str) -> Kind | None:
    """Return what a symbol of a Chinese exchange is, None for any other.

    Without an exchange 000300 may be a stock or an index: None too.
    """
    if symbol.startswith('000') and not any(char.isalpha() for char in symbol):
        return None
    try:
        board, exchange = board_of(symbol), exchange_of(symbol)
    except DataError:
        return None
    try:
        return Kind(board, exchange, tick_of(board, exchange))
    except DataError:
        return Kind(board, exchange, 0.0)


def find_spellings(symbols: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that mean one symbol: 600519.SH, sh600519, SSE.600519."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in sorted(set(symbols)):
        digits = ''.join(char for char in name if char.isdigit())
        kind = kind_of(name)
        if kind is not None and len(digits) == 6:
            groups[kind.exchange, digits].append(name)
        else:
            groups[name.strip().casefold()].append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def told_reference(series: Series) -> Floats:
    """Return the reference price (N,), NaN where it is not to be held against the row before.

    That of a day says nothing of its minutes, nor of a close that was refused.
    """
    told = ~series.broken & is_daily(series.event_ns)
    return np.where(told, series.extra('pre_close'), np.nan)


def is_daily(event_ns: Ints) -> Bools:
    """Return bool (N,): rows that stand alone in their half day."""
    near = np.diff(event_ns) < _DAY_NS // 2
    alone: Bools = ~(np.r_[near, False] | np.r_[False, near])
    return alone


def local_days(event_ns: Ints, zone: ZoneInfo) -> Ints:
    """Return int64 (N,): the day in a time zone, counted from 1970-01-01."""
    days, which = np.unique(event_ns // _DAY_NS, return_inverse=True)
    offsets = np.array([_offset_ns(int(day) * 86_400, zone) for day in days], np.int64)
    local: Ints = (event_ns + offsets[which]) // _DAY_NS
    return local


def _offset_ns(utc_s: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(utc_s, timezone.utc).astimezone(zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds()) * 1_000_000_000


def first_other(values: Floats, row: Floats) -> tuple[int, list[str]]:
    """Return which of some rows (6, N) first differs from a row (6,), and in which fields."""
    differs = (values != row[:, None]) & ~(np.isnan(values) & np.isnan(row[:, None]))
    other = int(differs.any(axis=0).argmax())
    return other, [BAR_FIELDS[field] for field in np.flatnonzero(differs[:, other]).tolist()]


def rows_beside(lost: Sequence[int], line: Ints, symbol: Ints, event_ns: Ints) -> Ints:
    """Return the rows of a file that may follow a refused line of no day or no symbol.

    Of two rows of one symbol around such a line, it is the later one.

    Args:
        lost: the refused lines.
        line: int64 (N,), rising, of the rows that have a day and a symbol.
        symbol: int64 (N,), a code for each symbol.
        event_ns: int64 (N,).
    """
    below = np.searchsorted(line, lost)
    below = below[(below > 0) & (below < len(line))]
    above = below - 1
    alike = symbol[above] == symbol[below]
    later: Ints = np.where(event_ns[above] > event_ns[below], above, below)[alike]
    return later


def find_missing(days: Sequence[Ints]) -> list[Ints]:
    """Return for each symbol the days that most of those that trade then have, and it lacks.

    Args:
        days: int64 for each symbol, sorted, without repeats.
    """
    every = np.unique(np.concatenate(days)) if days else np.zeros(0, np.int64)
    has = np.zeros((len(days), len(every)), np.bool_)
    alive = np.zeros_like(has)
    for symbol, own in enumerate(days):
        if len(own):
            at = np.searchsorted(every, own)
            has[symbol, at] = True
            alive[symbol, at[0] : at[-1] + 1] = True
    # The symbol itself is no witness of its own gap.
    witnessed = 2 * has.sum(axis=0) > alive.sum(axis=0) - 1
    return [every[lacks] for lacks in alive & ~has & witnessed]
