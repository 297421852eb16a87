# SPDX-License-Identifier: Apache-2.0
"""What a symbol's code and a stock's name say: exchange, board, and status on a day.

Boards that no code tells (a fund all of whose stocks have 20 % limits) are given by the caller.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import date
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError


class Exchange(IntEnum):
    """Where a symbol is traded."""

    SSE = 0
    SZSE = 1
    BSE = 2


class Board(IntEnum):
    """What a symbol is, as far as the rules tell symbols apart."""

    MAIN = 0
    CHINEXT = 1
    STAR = 2
    BSE = 3
    B_SHARE = 4
    FUND = 5
    """ETF, LOF and closed-end funds."""
    FUND_20 = 6
    """A fund that tracks nothing but stocks with limits of 20 %; no code tells it."""
    REIT = 7
    CONVERTIBLE = 8
    INDEX = 9
    """Cannot be traded."""
    OTHER = 10
    """Bonds, repo, warrants and whatever else these rules do not cover."""


class Status(IntEnum):
    """How a stock is traded on one day, as its name tells it."""

    NORMAL = 0
    ST = 1
    """Special treatment: ST, *ST, SST, S*ST."""
    UNREFORMED = 2
    """A bare S: the share structure has not been reformed."""
    DELISTING = 3
    """The delisting period, from its second day on."""
    DELISTING_FIRST = 4
    """Its first day; the name is the same, so the caller says it."""
    NEW = 5
    """N: the first day after a listing."""
    EARLY = 6
    """C: the second to the fifth day, without a limit."""
    FREE = 7
    """The exchange has lifted the limit for this day (first day after a share reform or after a
    resumption of listing); the caller says it."""


class Listings(NamedTuple):
    """Exchange and board of S symbols, uint8 (S,) each."""

    exchange: npt.NDArray[np.uint8]
    board: npt.NDArray[np.uint8]


ST_SINCE = date(1998, 4, 22)
"""SSE, chronicle of 1998; SZSE's own history says 1998-04-27, when no stock had the mark yet."""
UNREFORMED_SINCE = date(2007, 1, 8)
"""SSE and SZSE, notices on stocks marked S; the mark itself came on 2006-10-09."""
_EARLY_SINCE = date(2019, 7, 22)
_PT = (date(1999, 7, 9), date(2002, 5, 1))

_CODE = re.compile(r'(?<!\d)\d{6}(?!\d)')
_LETTERS = re.compile(r'[A-Z]+')
_EXCHANGES = {
    **dict.fromkeys(('SH', 'SS', 'SSE', 'XSHG'), Exchange.SSE),
    **dict.fromkeys(('SZ', 'SZSE', 'XSHE'), Exchange.SZSE),
    **dict.fromkeys(('BJ', 'BSE', 'BJSE'), Exchange.BSE),
}
_INDEX_HOUSES = ('CSI', 'CNI', 'SI')

_PREFIXES: dict[Exchange, tuple[tuple[Board, tuple[str, ...]], ...]] = {
    Exchange.SSE: (
        (Board.STAR, ('688', '689')),
        (Board.MAIN, ('60',)),
        (Board.B_SHARE, ('900',)),
        (Board.REIT, ('508',)),
        (Board.FUND, ('5',)),
        (Board.CONVERTIBLE, ('110', '111', '113', '118')),
        (Board.INDEX, ('000', '93', '95')),
    ),
    Exchange.SZSE: (
        (Board.CHINEXT, ('300', '301', '302')),
        (Board.MAIN, ('000', '001', '002', '003', '004')),
        (Board.B_SHARE, ('200', '201')),
        (Board.REIT, ('180',)),
        (Board.FUND, ('15', '16', '184')),
        (Board.CONVERTIBLE, ('123', '127', '128')),
        (Board.INDEX, ('399', '98')),
    ),
    Exchange.BSE: (
        (Board.INDEX, ('899',)),
        (Board.BSE, ('43', '83', '87', '88', '92')),
    ),
}
_OWNERS = {
    Exchange.SSE: ('6', '5', '900', '110', '111', '113', '118'),
    Exchange.SZSE: ('0', '2', '3', '15', '16', '18', '123', '127', '128'),
    Exchange.BSE: ('43', '83', '87', '88', '899', '92'),
}
"""Which exchange a code without one belongs to; 000001 is then the stock, not the index."""


def board_of(symbol: str) -> Board:
    """Return the board of a symbol by its six digits and its exchange.

    It may be written `300750.SZ`, `sh.688981`, `SSE.600000`, `SH600519` or `430047.BJ`. Where the
    text names no exchange the digits decide (`000001` is the stock, `000001.SH` the index). A
    name without six digits is taken for a stock of the main board.
    """
    found = _find(symbol)
    if found is None:
        return Board.MAIN
    digits, exchange = found
    if exchange is None:
        return Board.INDEX if _is_of_index_house(symbol) else Board.OTHER
    for board, prefixes in _PREFIXES[exchange]:
        if digits.startswith(prefixes):
            return board
    return Board.OTHER


def exchange_of(symbol: str) -> Exchange:
    """Return the exchange of a symbol; raise DataError if neither text nor digits tell it."""
    found = _find(symbol)
    if found is None or found[1] is None:
        raise DataError(
            f"symbol '{symbol}' names no exchange; expected such as 600519.SH or 000001.SZ"
        )
    return found[1]


def listings(symbols: Iterable[str], boards: dict[str, Board] | None = None) -> Listings:
    """Return exchange and board of S symbols.

    Raise DataError for a symbol whose exchange is not told, or of which there is no rule.

    Args:
        symbols: S codes, see `board_of`.
        boards: symbols whose board the code does not tell (`Board.FUND_20`).
    """
    names = tuple(symbols)
    known = boards or {}
    unknown = sorted(set(known).difference(names))
    if unknown:
        raise DataError(f'boards: {", ".join(unknown)} not among the symbols')
    each = [known.get(name, board_of(name)) for name in names]
    outside = [name for name, board in zip(names, each, strict=True) if board is Board.OTHER]
    if outside:
        raise DataError(
            f'no trading rules for {", ".join(outside[:5])} ({len(outside)} symbols): leave out '
            'what is no stock, fund, convertible bond or index of SSE, SZSE or BSE'
        )
    return Listings(
        np.array([exchange_of(name) for name in names], np.uint8), np.array(each, np.uint8)
    )


def status_of(name: str, day: date) -> Status:
    """Return the status that a stock's name tells on a day.

    Marks of an ex-day (XD, XR, DR) before the name are passed over, full-width letters are read
    as plain ones. The first day of a delisting period has the same name as the others and comes
    back as DELISTING. Raise DataError for an empty name and for PT (1999 to 2002), whose trading
    rules are not covered.

    Args:
        name: short name as shown that day, such as `*ST国华` or `N茅台`.
        day: trading day; marks mean nothing before their rule began.
    """
    text = re.sub(r'\s+', '', unicodedata.normalize('NFKC', name)).upper()
    text = re.sub(r'^(XD|XR|DR)(?=.)', '', text)
    if not text:
        raise DataError('name: empty; expected the short name of a stock')
    if text.startswith('PT') and _PT[0] <= day < _PT[1]:
        raise DataError(f"name: '{name}' on {day}: trading rules of PT stocks are not covered")
    if re.match(r'N(?![A-RT-Z0-9])', text):
        return Status.NEW
    if day >= _EARLY_SINCE and re.match(r'C(?![A-Z0-9])', text):
        return Status.EARLY
    if text.startswith('退市') or text.endswith('退'):
        return Status.DELISTING
    if re.match(r'[GS]?\*?ST', text):
        return Status.ST if day >= ST_SINCE else Status.NORMAL
    if re.match(r'S(?![A-Z0-9])', text) and day >= UNREFORMED_SINCE:
        return Status.UNREFORMED
    return Status.NORMAL


def _find(symbol: str) -> tuple[str, Exchange | None] | None:
    """Return the six digits and the exchange, if the symbol has six digits."""
    code = _CODE.search(symbol)
    if code is None:
        return None
    digits = code.group()
    for letters in _LETTERS.findall(symbol.upper()):
        if letters in _EXCHANGES:
            return digits, _EXCHANGES[letters]
    if _is_of_index_house(symbol):
        return digits, None
    for exchange, prefixes in _OWNERS.items():
        if digits.startswith(prefixes):
            return digits, exchange
    return digits, None


def _is_of_index_house(symbol: str) -> bool:
    return any(letters in _INDEX_HOUSES for letters in _LETTERS.findall(symbol.upper()))
