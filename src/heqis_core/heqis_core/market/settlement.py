# SPDX-License-Identifier: Apache-2.0
"""How long what was bought must be held: T+1, or T+0 for some funds and for bonds.

The cash of a sale can be used the same day in every case. What a fund is, its code does not tell:
the caller says it, from the fund's own documents or from Tushare's `fund_basic`.
"""

from __future__ import annotations

from datetime import date
from enum import IntEnum
from typing import NamedTuple

from heqis_core.errors import DataError
from heqis_core.market.codes import Board, Exchange


class FundKind(IntEnum):
    """What a listed fund holds, as far as the rules on selling the same day tell funds apart."""

    EQUITY = 0
    """Stocks of the mainland, mixed funds, REITs: everything without a rule of its own."""
    BOND = 1
    MONEY = 2
    GOLD = 3
    COMMODITY = 4
    """Futures on commodities."""
    CROSS_BORDER = 5
    """Foreign securities that can themselves be sold on the day they were bought."""


class HoldingRule(NamedTuple):
    """Trading days that a purchase must be held, from a day on."""

    exchanges: tuple[Exchange, ...]
    boards: tuple[Board, ...]
    kinds: tuple[FundKind, ...]
    since: date
    days: int
    source: str


_BOTH = (Exchange.SSE, Exchange.SZSE)
_ANY = tuple(FundKind)
_FUNDS = (Board.FUND, Board.FUND_20)
_STOCKS = (Board.MAIN, Board.CHINEXT, Board.STAR)
_NOTICES_2015 = 'SSE [2015] 6 and SZSE notice of 2015-01-09, in force 2015-01-19'

HOLDING_RULES: tuple[HoldingRule, ...] = (
    HoldingRule(_BOTH, _STOCKS, _ANY, date(1995, 1, 1), 1, 'SZSE, chronicle of 1995; SSE alike'),
    HoldingRule(_BOTH, _FUNDS, _ANY, date(1995, 1, 1), 1, 'SZSE, chronicle of 1995'),
    HoldingRule(_BOTH, (Board.B_SHARE,), _ANY, date(2001, 12, 1), 1, 'trading rules of 2001'),
    HoldingRule(_BOTH, (Board.CONVERTIBLE,), _ANY, date(2006, 7, 1), 0, 'rules of 2006, 3.1.5'),
    HoldingRule(
        _BOTH, _FUNDS, (FundKind.BOND, FundKind.MONEY, FundKind.GOLD, FundKind.CROSS_BORDER),
        date(2015, 1, 19), 0, _NOTICES_2015,
    ),
    HoldingRule((Exchange.SZSE,), _FUNDS, (FundKind.COMMODITY,), date(2019, 1, 11), 0,
                'SZSE [2019] 23 (a reprint; the rules of 2026 name it)'),
    HoldingRule((Exchange.SSE,), _FUNDS, (FundKind.COMMODITY,), date(2020, 1, 20), 0,
                'SSE [2020] 1'),
    HoldingRule(_BOTH, (Board.REIT,), _ANY, date(2021, 1, 29), 1, 'SSE [2021] 9; SZSE alike'),
    HoldingRule((Exchange.BSE,), (Board.BSE,), _ANY, date(2021, 11, 15), 1, 'BSE [2021] 15'),
)  # fmt: skip
"""Every rule with its dates. Bond, money and gold funds could be sold the same day since the end
of 2013 already; the text that says since when was not found, so T+1 is kept until 2015-01-19."""

_BY_TYPE = {
    '债券型': FundKind.BOND,
    '货币市场型': FundKind.MONEY,
    '货币型': FundKind.MONEY,
    '股票型': FundKind.EQUITY,
    '混合型': FundKind.EQUITY,
    'REITs': FundKind.EQUITY,
}
_GOLD = ('黄金', '贵金属')


def holding_days(exchange: Exchange, board: Board, day: date, kind: FundKind | None = None) -> int:
    """Return how many trading days a purchase of that day is held at least: 1 is T+1, 0 is T+0.

    Raise DataError for a fund whose kind is not given, and where no rule is known.

    Args:
        exchange: of the symbol.
        board: of the symbol.
        day: day of the purchase.
        kind: of a fund; not asked for elsewhere.
    """
    if board in _FUNDS and kind is None:
        raise DataError(
            f'board {board.name}: whether it can be sold the same day depends on what the fund '
            'holds; give its kind, such as FundKind.EQUITY (see fund_kind)'
        )
    days = None
    for rule in HOLDING_RULES:
        if rule.since > day or exchange not in rule.exchanges or board not in rule.boards:
            continue
        if kind is None or kind in rule.kinds:
            days = rule.days
    if days is None:
        raise DataError(
            f'no rule is known for how long board {board.name} on {exchange.name} is held that '
            f'was bought on {day}'
        )
    return days


def fund_kind(fund_type: str, invest_type: str, *, cross_border: bool) -> FundKind:
    """Return the kind of a fund from the columns `fund_type` and `invest_type` of `fund_basic`.

    Those columns do not tell cross-border funds: an ETF on the Nasdaq is a 股票型 of 被动指数型
    too. Raise DataError for types that are not known.

    Args:
        fund_type: such as 股票型, 债券型, 货币市场型, 商品型.
        invest_type: such as 被动指数型, 黄金现货合约.
        cross_border: it holds foreign securities that can be sold on the day they were bought.
    """
    if cross_border:
        return FundKind.CROSS_BORDER
    if fund_type in _BY_TYPE:
        return _BY_TYPE[fund_type]
    if fund_type in ('商品型', '另类投资型') and invest_type.startswith(_GOLD):
        return FundKind.GOLD
    if fund_type == '商品型' and invest_type:
        return FundKind.COMMODITY
    raise DataError(
        f"fund_type '{fund_type}' with invest_type '{invest_type}' is not known; expected one of "
        f'{", ".join(_BY_TYPE)}, 商品型 with its invest_type: say what the fund holds instead'
    )
