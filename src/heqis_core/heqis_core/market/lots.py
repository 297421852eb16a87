# SPDX-License-Identifier: Apache-2.0
"""How many shares an order may be for.

Sources: SSE and SZSE trading rules (of 2006 and since): bought in whole lots of 100 shares or fund
units; what is held below a lot is sold in one order. STAR: SSE [2019] 23: at least 200 shares,
then in steps of one. BSE [2021] 15: at least 100, then in steps of one. Convertible bonds: 10
pieces (detailed rules of 2022-07-29). The largest order (1,000,000 shares on the main board, less
elsewhere) is not checked: a larger one is sent in parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError
from heqis_core.market.codes import Board

_LOTS: dict[Board, tuple[int, int]] = {
    **dict.fromkeys((Board.MAIN, Board.CHINEXT, Board.B_SHARE), (100, 100)),
    **dict.fromkeys((Board.FUND, Board.FUND_20, Board.REIT), (100, 100)),
    Board.STAR: (200, 1),
    Board.BSE: (100, 1),
    Board.CONVERTIBLE: (10, 10),
}
_TABLE = np.array([_LOTS.get(board, (0, 0)) for board in Board], np.int64)


def buy_quantity(wanted: npt.ArrayLike, board: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the largest number of shares that may be bought of those wanted, int64.

    0 where that is less than the smallest order. Raise DataError for a negative number and for
    what cannot be traded.

    Args:
        wanted: shares (pieces of a bond), 0 or more.
        board: `Board` of each symbol.
    """
    shares = _shares(wanted, 'wanted')
    least, step = _lots(board)
    whole = shares // step * step
    return np.asarray(np.where(whole < least, 0, whole))


def sell_quantity(
    wanted: npt.ArrayLike, held: npt.ArrayLike, board: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Return the largest number of shares that one order may sell of those wanted, int64.

    What is held beyond whole lots (below the smallest order on STAR and BSE) can only be sold as a
    whole. Raise DataError as `buy_quantity` does.

    Args:
        wanted: shares to sell, 0 or more; no more than is held is sold.
        held: shares held that may be sold today, see `holding_days`.
        board: `Board` of each symbol.
    """
    held_shares = _shares(held, 'held')
    shares = np.minimum(_shares(wanted, 'wanted'), held_shares)
    least, step = _lots(board)
    whole = shares // step * step
    whole = np.where(whole < least, 0, whole)
    odd = np.where(step > 1, held_shares % step, np.where(held_shares < least, held_shares, 0))
    with_odd = np.where((odd > 0) & (shares >= odd), odd + (shares - odd) // step * step, 0)
    return np.asarray(np.maximum(whole, with_odd))


def _shares(values: npt.ArrayLike, field: str) -> npt.NDArray[np.int64]:
    shares = np.asarray(values, np.int64)
    if (shares < 0).any():
        raise DataError(f'{field}: {int(shares.min())} shares; expected 0 or more')
    return shares


def _lots(board: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    boards = np.asarray(board, np.intp)
    lots = _TABLE[boards]
    if (lots[..., 0] == 0).any():
        wrong = Board(int(boards[lots[..., 0] == 0].flat[0]))
        raise DataError(f'board {wrong.name}: no order can be sent for it')
    return lots[..., 0], lots[..., 1]
