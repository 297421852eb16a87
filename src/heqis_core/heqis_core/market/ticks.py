# SPDX-License-Identifier: Apache-2.0
"""Prices as whole numbers of ticks, and the tick of each kind of symbol."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError
from heqis_core.market.codes import Board, Exchange

TICK = 0.01
"""Price step of A-shares, CNY."""

_TICKS = {
    **dict.fromkeys((Board.MAIN, Board.CHINEXT, Board.STAR, Board.BSE), TICK),
    **dict.fromkeys((Board.FUND, Board.FUND_20, Board.REIT, Board.CONVERTIBLE), 0.001),
}


def tick_of(board: Board, exchange: Exchange) -> float:
    """Return the price step: CNY, of B-shares USD (SSE) or HKD (SZSE).

    SSE and SZSE trading rules of 2006 (3.4.11 and 3.3.12, in force 2006-07-01) and since; BSE
    2021; convertible bonds by the detailed rules of 2022-07-29 (in force 2022-08-01). What was
    before is not covered: funds had 0.01 CNY until 2003. Raise DataError for what has no tick.
    """
    if board is Board.B_SHARE:
        return 0.001 if exchange is Exchange.SSE else TICK
    if board not in _TICKS:
        raise DataError(f'board {board.name}: there is no tick, because it is not traded here')
    return _TICKS[board]


def to_ticks(prices: npt.ArrayLike, tick: float = TICK) -> npt.NDArray[np.int64]:
    """Return prices as int64 ticks.

    Raise DataError that names the first price that is on no tick.
    """
    values = np.asarray(prices, np.float64)
    ticks = np.rint(values / tick)
    wrong = ~(np.abs(values / tick - ticks) <= 1e-6)
    if wrong.any():
        raise DataError(
            f'price {float(values[wrong].flat[0])!r} is on no tick of {tick:g}: '
            'use raw prices, not adjusted ones, and the tick of the board (`tick_of`)'
        )
    return ticks.astype(np.int64)


def from_ticks(ticks: npt.NDArray[np.int64], tick: float = TICK) -> npt.NDArray[np.float64]:
    """Return prices, float64.

    Where 1/tick is a whole number they are exactly what the written decimal parses to.
    """
    per_unit = round(1 / tick)
    if per_unit >= 1 and abs(per_unit * tick - 1) < 1e-12:
        return np.asarray(ticks / per_unit, np.float64)
    return np.asarray(ticks * tick, np.float64)
