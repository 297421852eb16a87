# SPDX-License-Identifier: Apache-2.0
"""Rules of the Chinese A-share market, each with its dates; prices are int64 ticks, never floats.

Here: boards, price limits, ticks. Not here: the first days after a listing and the delisting
period (they need listing dates), fees, lots, sessions.
"""

from __future__ import annotations

import re
from datetime import date
from enum import Enum

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError

TICK = 0.01
"""Price step of A-shares, CNY."""

_CODE = re.compile(r'(?<!\d)\d{6}(?!\d)')


class Board(Enum):
    """Where a stock is listed, as far as the price limits tell boards apart."""

    MAIN = 'main'
    CHINEXT = 'chinext'
    STAR = 'star'
    BSE = 'bse'


_LIMITS: dict[Board, tuple[tuple[date, int], ...]] = {
    Board.MAIN: ((date(1996, 12, 16), 10),),
    Board.CHINEXT: ((date(2009, 10, 30), 10), (date(2020, 8, 24), 20)),
    Board.STAR: ((date(2019, 7, 22), 20),),
    Board.BSE: ((date(2021, 11, 15), 30),),
}
"""Percent, from the day on."""

_ST_LIMITS: dict[Board, tuple[tuple[date, int], ...]] = {
    Board.MAIN: ((date(1998, 4, 22), 5), (date(2026, 7, 6), 10)),
    Board.CHINEXT: ((date(2009, 10, 30), 5), (date(2020, 8, 24), 20)),
    Board.STAR: _LIMITS[Board.STAR],
    Board.BSE: _LIMITS[Board.BSE],
}


def board_of(symbol: str) -> Board:
    """Return the board of a symbol by its six digits.

    It may be written `300750.SZ`, `sh.688981`, `SSE.600000` or `430047.BJ`. What is no ChiNext,
    STAR or BSE code is taken for the main board, names without a code too.
    """
    code = _CODE.search(symbol)
    digits = code.group() if code else ''
    if digits.startswith(('300', '301', '302')):
        return Board.CHINEXT
    if digits.startswith(('688', '689')):
        return Board.STAR
    if digits.startswith(('43', '83', '87', '88', '920')):
        return Board.BSE
    return Board.MAIN


def limit_percent(board: Board, day: date, *, st: bool = False) -> int | None:
    """Return the limit in percent of the reference price, None where there was none that day.

    Args:
        board: where the stock is listed.
        day: trading day.
        st: whether the stock is under special treatment (ST, *ST).
    """
    percent = None
    for since, value in _LIMITS[board]:
        percent = value if day >= since else percent
    if st:
        for since, value in _ST_LIMITS[board]:
            percent = value if day >= since else percent
    return percent


def limit_ticks(
    reference_ticks: npt.NDArray[np.int64] | int,
    percent: npt.NDArray[np.int64] | int,
    *,
    truncate: npt.NDArray[np.bool_] | bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the lowest and the highest price of the day.

    Both are int64 ticks, of the shape that the arguments broadcast to. The limit price is rounded
    half up to a tick. A move of less than one tick counts as one tick, and no price falls below
    one tick.

    Args:
        reference_ticks: ex-right reference price (`pre_close`) in ticks.
        percent: limit in percent.
        truncate: where the move is cut off to whole ticks instead (BSE).
    """
    reference, share = np.asarray(reference_ticks, np.int64), np.asarray(percent, np.int64)
    move = reference * share // 100
    up = np.where(truncate, reference + move, (reference * (100 + share) * 2 + 100) // 200)
    down = np.where(truncate, reference - move, (reference * (100 - share) * 2 + 100) // 200)
    return np.maximum(np.minimum(down, reference - 1), 1), np.maximum(up, reference + 1)


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
            'use raw prices, not adjusted ones'
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
