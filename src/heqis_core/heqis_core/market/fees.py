# SPDX-License-Identifier: Apache-2.0
"""What a trade costs: stamp duty, transfer fee and commission, in whole fen (0.01 CNY).

Each part of each order is rounded half up to a fen by itself; the orders of a day are not summed
first, as a clearing house may do. Commission is the broker's whole charge, with the handling and
regulatory fees of exchange and CSRC in it. Covered: stamp duty since 2001-11-16; transfer fee
since 2015-08-01 (before, SSE charged by face value, 0.3 per mille at the end, and SZSE 0.0255 per
mille of the amount: give `transfer_ppm` for such days). B-shares have other fees and are refused.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import date
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, DataError
from heqis_core.market.codes import Board

COMMISSION_CAP_PPM = 3000
"""CSRC [2002] 21 of 2002-04-04, in force 2002-05-01: at most 3 per mille."""
COMMISSION_MINIMUM_FEN = 500
"""The same: an order that comes to less than 5 CNY is charged 5 CNY (A-shares and funds)."""

_STOCKS = (Board.MAIN, Board.CHINEXT, Board.STAR, Board.BSE)
_TAX_FREE = (Board.FUND, Board.FUND_20, Board.REIT, Board.CONVERTIBLE)


class StampDuty(NamedTuple):
    """Rates from a day on, millionths of the amount."""

    since: date
    buy_ppm: int
    sell_ppm: int
    source: str


class TransferFee(NamedTuple):
    """Rate of both sides from a day on, millionths of the amount."""

    since: date
    ppm: int
    boards: tuple[Board, ...]
    source: str


STAMP_DUTY: tuple[StampDuty, ...] = (
    StampDuty(date(2001, 11, 16), 2000, 2000, 'MoF and STA, in force 2001-11-16'),
    StampDuty(date(2005, 1, 24), 1000, 1000, 'MoF and STA [2005] 11'),
    StampDuty(date(2007, 5, 30), 3000, 3000, 'MoF and STA [2007] 84'),
    StampDuty(date(2008, 4, 24), 1000, 1000, 'MoF and STA, in force 2008-04-24'),
    StampDuty(date(2008, 9, 19), 0, 1000, 'MoF, 2008-09-19: the seller alone pays'),
    StampDuty(date(2023, 8, 28), 0, 500, 'MoF and STA, announcement 39 of 2023: halved'),
)
TRANSFER_FEES: tuple[TransferFee, ...] = (
    TransferFee(date(2015, 8, 1), 20, _STOCKS[:3], 'ChinaClear notice of 2015-07-09'),
    TransferFee(
        date(2021, 11, 15), 25, (Board.BSE,), 'ChinaClear notice of 2022-04-28: as before'
    ),
    TransferFee(date(2022, 4, 29), 10, _STOCKS, 'ChinaClear notice of 2022-04-28'),
)
_CHANGES = tuple(
    sorted({duty.since for duty in STAMP_DUTY} | {fee.since for fee in TRANSFER_FEES})
)
_UNKNOWN = -1


class FeeRates(NamedTuple):
    """What state and clearing house take, millionths of the amount, int64."""

    stamp_buy_ppm: npt.NDArray[np.int64]
    stamp_sell_ppm: npt.NDArray[np.int64]
    transfer_ppm: npt.NDArray[np.int64]


class Fees(NamedTuple):
    """What orders cost, int64 fen."""

    commission: npt.NDArray[np.int64]
    stamp_duty: npt.NDArray[np.int64]
    transfer: npt.NDArray[np.int64]

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """Return the sum of the three."""
        return self.commission + self.stamp_duty + self.transfer


def fee_rates(board: npt.ArrayLike, day: date, *, transfer_ppm: int | None = None) -> FeeRates:
    """Return the rates of each board on a day.

    Raise DataError where a rate of that day is not covered.

    Args:
        board: `Board` of each symbol.
        day: trading day.
        transfer_ppm: transfer fee of stocks to use instead of the table's.
    """
    boards = np.asarray(board, np.intp)
    table = _rates_after(bisect_right(_CHANGES, day))
    buy, sell, transfer = (table[i][boards] for i in range(3))
    if transfer_ppm is not None:
        if transfer_ppm < 0:
            raise ConfigError(f'transfer_ppm: {transfer_ppm}; expected 0 or more')
        transfer = np.where(np.isin(boards, _STOCKS), transfer_ppm, transfer)
    for name, rates in (('stamp duty', sell), ('transfer fee', transfer)):
        missing = rates == _UNKNOWN
        if missing.any():
            which = Board(int(boards[missing].flat[0]))
            raise DataError(
                f'no {name} is known for board {which.name} on {day}: choose later days, or other '
                'symbols' + (', or give transfer_ppm' if name == 'transfer fee' else '')
            )
    return FeeRates(buy, sell, transfer)


def amount_fen(
    price_ticks: npt.ArrayLike, shares: npt.ArrayLike, tick: float = 0.01
) -> npt.NDArray[np.int64]:
    """Return price times shares in fen, int64, rounded half up where ticks are finer than a fen.

    Raise ConfigError for a tick other than 0.01 and 0.001 CNY.
    """
    per_fen = {0.01: 1, 0.001: 10}.get(tick)
    if per_fen is None:
        raise ConfigError(f'tick: {tick!r}; expected 0.01 or 0.001 CNY')
    amount = np.asarray(price_ticks, np.int64) * np.asarray(shares, np.int64)
    return np.asarray((amount * 2 + per_fen) // (2 * per_fen))


def fees(
    amount: npt.ArrayLike,
    sells: npt.ArrayLike,
    rates: FeeRates,
    commission_ppm: int,
    commission_minimum: int = COMMISSION_MINIMUM_FEN,
) -> Fees:
    """Return what each order costs; an order of no amount costs nothing.

    Raise ConfigError for a commission that the rules do not allow, DataError for a negative
    amount.

    Args:
        amount: fen, see `amount_fen`.
        sells: true for sells, false for buys.
        rates: of each order, see `fee_rates`.
        commission_ppm: the broker's rate, millionths of the amount (250 is 2.5 per 10,000).
        commission_minimum: fen; least commission of an order.
    """
    if not 0 <= commission_ppm <= COMMISSION_CAP_PPM:
        raise ConfigError(
            f'commission_ppm: {commission_ppm}; expected 0 to {COMMISSION_CAP_PPM} millionths'
        )
    if commission_minimum < 0:
        raise ConfigError(f'commission_minimum: {commission_minimum} fen; expected 0 or more')
    paid = np.asarray(amount, np.int64)
    if (paid < 0).any():
        raise DataError(f'amount: {int(paid.min())} fen; expected 0 or more')
    commission = np.maximum(_part(paid, commission_ppm), commission_minimum)
    stamp = np.where(np.asarray(sells, np.bool_), rates.stamp_sell_ppm, rates.stamp_buy_ppm)
    return Fees(
        np.where(paid > 0, commission, 0),
        _part(paid, stamp),
        _part(paid, rates.transfer_ppm),
    )


def _part(
    amount: npt.NDArray[np.int64], ppm: npt.NDArray[np.int64] | int
) -> npt.NDArray[np.int64]:
    """Return millionths of an amount, rounded half up; exact while int64 holds."""
    millions, rest = np.divmod(amount, 1_000_000)
    return np.asarray(millions * ppm + (rest * ppm + 500_000) // 1_000_000)


@cache
def _rates_after(change: int) -> npt.NDArray[np.int64]:
    """Return int64 (3, boards): stamp duty of buys and sells, transfer fee."""
    day = _CHANGES[change - 1] if change else date.min
    rates = np.full((3, len(Board)), _UNKNOWN, np.int64)
    rates[:, list(_TAX_FREE)] = 0
    for duty in STAMP_DUTY:
        if duty.since <= day:
            rates[0, list(_STOCKS)], rates[1, list(_STOCKS)] = duty.buy_ppm, duty.sell_ppm
    for fee in TRANSFER_FEES:
        if fee.since <= day:
            rates[2, list(fee.boards)] = fee.ppm
    return rates
