# SPDX-License-Identifier: Apache-2.0
"""The names of what is odd about bars that break no rule, and the rows that are looked at.

The checks are `heqis_core.suspect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError
from heqis_core.market.codes import Board, Exchange, board_of, exchange_of
from heqis_core.market.ticks import tick_of

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
