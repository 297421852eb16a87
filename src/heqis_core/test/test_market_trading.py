# SPDX-License-Identifier: Apache-2.0
"""How much may be traded, what it costs, and how soon it can be sold again."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError, DataError
from heqis_core.market import (
    Board,
    Exchange,
    FundKind,
    amount_fen,
    buy_quantity,
    fee_rates,
    fees,
    fund_kind,
    holding_days,
    sell_quantity,
)
from heqis_core.market.fees import STAMP_DUTY, TRANSFER_FEES
from heqis_core.market.settlement import HOLDING_RULES

SHARES = st.integers(0, 100_000)
TRADED = st.sampled_from([b for b in Board if b not in (Board.INDEX, Board.OTHER)])
A_SHARES = (Board.MAIN, Board.CHINEXT, Board.STAR, Board.BSE)


@pytest.mark.parametrize(
    ('board', 'wanted', 'bought'),
    [
        (Board.MAIN, 99, 0),
        (Board.MAIN, 100, 100),
        (Board.CHINEXT, 399, 300),
        (Board.STAR, 199, 0),
        (Board.STAR, 200, 200),
        (Board.STAR, 201, 201),
        (Board.BSE, 99, 0),
        (Board.BSE, 101, 101),
        (Board.FUND, 250, 200),
        (Board.CONVERTIBLE, 19, 10),
    ],
)
def test_buys_are_cut_to_what_the_board_allows(board: Board, wanted: int, bought: int) -> None:
    assert buy_quantity(wanted, board) == bought


@pytest.mark.parametrize(
    ('board', 'wanted', 'held', 'sold'),
    [
        # 50 shares beyond whole lots: all of them or none
        (Board.MAIN, 250, 250, 250),
        (Board.MAIN, 240, 250, 200),
        (Board.MAIN, 149, 250, 100),
        (Board.MAIN, 150, 250, 150),
        (Board.MAIN, 60, 250, 50),
        (Board.MAIN, 49, 250, 0),
        (Board.MAIN, 40, 30, 30),
        (Board.STAR, 199, 500, 0),
        (Board.STAR, 333, 500, 333),
        (Board.STAR, 150, 150, 150),
        (Board.STAR, 149, 150, 0),
        (Board.BSE, 101, 150, 101),
        (Board.BSE, 99, 150, 0),
        (Board.BSE, 99, 99, 99),
        (Board.FUND, 1, 1, 1),
    ],
)
def test_sells_keep_an_odd_remainder_in_one_order(
    board: Board, wanted: int, held: int, sold: int
) -> None:
    assert sell_quantity(wanted, held, board) == sold


def is_allowed(shares: int, held: int, board: Board) -> bool:
    """Say it in the words of the rules: is an order to sell so many allowed?"""
    if board in (Board.STAR, Board.BSE):
        least = 200 if board is Board.STAR else 100
        return shares >= least or (held < least and shares == held)
    lot = 10 if board is Board.CONVERTIBLE else 100
    return shares % lot in (0, held % lot)


@given(st.integers(0, 1500), st.integers(0, 1500), TRADED)
def test_sells_are_the_largest_that_the_rules_allow(wanted: int, held: int, board: Board) -> None:
    most = max(n for n in range(min(wanted, held) + 1) if n == 0 or is_allowed(n, held, board))
    assert sell_quantity(wanted, held, board) == most


@given(SHARES, TRADED)
def test_everything_held_can_be_sold_in_one_order(held: int, board: Board) -> None:
    assert sell_quantity(held, held, board) == held
    assert sell_quantity(held + 1000, held, board) == held


@given(st.lists(st.tuples(SHARES, SHARES, TRADED), min_size=1, max_size=20))
def test_quantities_of_many_symbols_equal_those_of_each(
    orders: list[tuple[int, int, Board]],
) -> None:
    wanted, held, boards = (np.array(column) for column in zip(*orders, strict=True))
    bought, sold = buy_quantity(wanted, boards), sell_quantity(wanted, held, boards)
    assert bought.dtype == sold.dtype == np.int64
    assert bought.tolist() == [int(buy_quantity(w, b)) for w, _, b in orders]
    assert sold.tolist() == [int(sell_quantity(w, h, b)) for w, h, b in orders]


def test_impossible_orders_are_refused_by_name() -> None:
    with pytest.raises(DataError, match='wanted: -1 shares; expected 0 or more'):
        buy_quantity([100, -1], Board.MAIN)
    with pytest.raises(DataError, match='held: -5 shares'):
        sell_quantity(100, -5, Board.MAIN)
    with pytest.raises(DataError, match='board INDEX: no order can be sent'):
        buy_quantity([100, 100], [Board.MAIN, Board.INDEX])


@pytest.mark.parametrize(
    ('day', 'board', 'rates'),
    [
        (date(2008, 4, 23), Board.MAIN, (3000, 3000, 7)),
        (date(2008, 4, 24), Board.MAIN, (1000, 1000, 7)),
        (date(2008, 9, 18), Board.MAIN, (1000, 1000, 7)),
        (date(2008, 9, 19), Board.MAIN, (0, 1000, 7)),
        (date(2022, 4, 28), Board.BSE, (0, 1000, 7)),
        (date(2023, 8, 28), Board.STAR, (0, 500, 7)),
        (date(2023, 8, 28), Board.FUND, (0, 0, 0)),
    ],
)
def test_given_transfer_fee_takes_the_place_of_the_table_for_stocks(
    day: date, board: Board, rates: tuple[int, int, int]
) -> None:
    assert [int(rate) for rate in fee_rates(board, day, transfer_ppm=7)] == list(rates)


@pytest.mark.parametrize(
    ('day', 'board', 'rates'),
    [
        (date(2015, 8, 1), Board.MAIN, (0, 1000, 20)),
        (date(2022, 4, 28), Board.CHINEXT, (0, 1000, 20)),
        (date(2022, 4, 28), Board.BSE, (0, 1000, 25)),
        (date(2022, 4, 29), Board.BSE, (0, 1000, 10)),
        (date(2023, 8, 27), Board.STAR, (0, 1000, 10)),
        (date(2023, 8, 28), Board.STAR, (0, 500, 10)),
        (date(2010, 1, 4), Board.FUND, (0, 0, 0)),
    ],
)
def test_rates_hold_from_their_dates_on(
    day: date, board: Board, rates: tuple[int, int, int]
) -> None:
    assert [int(rate) for rate in fee_rates(board, day)] == list(rates)


def test_rates_of_many_boards_come_in_one_call() -> None:
    rates = fee_rates([Board.MAIN, Board.FUND, Board.BSE], date(2022, 1, 4))
    assert rates.stamp_sell_ppm.tolist() == [1000, 0, 1000]
    assert rates.transfer_ppm.tolist() == [20, 0, 25]


@given(
    st.integers(1, 10**12),
    st.booleans(),
    st.sampled_from(A_SHARES),
    st.dates(date(2021, 11, 15), date(2026, 12, 31)),
    st.integers(0, 3000),
)
def test_fees_equal_exact_arithmetic(
    amount: int, sells: bool, board: Board, day: date, commission_ppm: int
) -> None:
    def half_up(share: Fraction) -> int:
        return floor(amount * share + Fraction(1, 2))

    stamp = Fraction(1, 1000) if day < date(2023, 8, 28) else Fraction(1, 2000)
    old_transfer = Fraction(25 if board is Board.BSE else 20, 10**6)
    transfer = old_transfer if day < date(2022, 4, 29) else Fraction(1, 10**5)
    cost = fees(amount, sells, fee_rates(board, day), commission_ppm)
    assert cost.commission == max(half_up(Fraction(commission_ppm, 10**6)), 500)
    assert cost.stamp_duty == (half_up(stamp) if sells else 0)
    assert cost.transfer == half_up(transfer)
    assert cost.total == cost.commission + cost.stamp_duty + cost.transfer


def test_a_known_order_costs_what_a_statement_says() -> None:
    # 1,000 shares at 12.34 sold on 2024-01-02 with 2.5 per 10,000: 12,340 CNY
    amount = amount_fen(1234, 1000)
    assert amount == 1_234_000
    cost = fees(amount, True, fee_rates(Board.MAIN, date(2024, 1, 2)), 250)
    # 3.085 is below the minimum of 5 CNY; duty 6.17; transfer 0.1234
    assert [int(part) for part in cost] == [500, 617, 12]


def test_an_order_of_nothing_costs_nothing() -> None:
    cost = fees([0, 100], True, fee_rates(Board.MAIN, date(2024, 1, 2)), 250)
    assert cost.total.tolist() == [0, 500]


@given(st.integers(0, 10**7), st.integers(0, 10**6))
def test_amounts_are_rounded_half_up_to_a_fen(ticks: int, shares: int) -> None:
    assert amount_fen(ticks, shares) == ticks * shares
    fine = Fraction(ticks * shares, 10)
    assert amount_fen(ticks, shares, 0.001) == floor(fine + Fraction(1, 2))


def test_costs_that_no_rule_allows_are_refused_by_name() -> None:
    rates = fee_rates(Board.MAIN, date(2024, 1, 2))
    with pytest.raises(ConfigError, match='commission_ppm: 3001; expected 0 to 3000'):
        fees(100, True, rates, 3001)
    with pytest.raises(ConfigError, match='commission_minimum: -1 fen'):
        fees(100, True, rates, 250, -1)
    with pytest.raises(DataError, match='amount: -100 fen'):
        fees([5, -100], True, rates, 250)
    with pytest.raises(ConfigError, match=r'tick: 0\.005; expected'):
        amount_fen(1, 1, 0.005)
    with pytest.raises(ConfigError, match='transfer_ppm: -1'):
        fee_rates(Board.MAIN, date(2024, 1, 2), transfer_ppm=-1)
    with pytest.raises(DataError, match='no stamp duty is known for board B_SHARE'):
        fee_rates([Board.MAIN, Board.B_SHARE], date(2024, 1, 2))
    with pytest.raises(
        DataError, match=r'transfer fee is known for board MAIN on 2015-07-31.*give'
    ):
        fee_rates(Board.MAIN, date(2015, 7, 31))


@pytest.mark.parametrize(
    ('exchange', 'board', 'day', 'kind', 'days'),
    [
        (Exchange.SSE, Board.MAIN, date(1995, 1, 1), None, 1),
        (Exchange.SSE, Board.STAR, date(2024, 1, 2), None, 1),
        (Exchange.BSE, Board.BSE, date(2024, 1, 2), None, 1),
        (Exchange.SZSE, Board.CONVERTIBLE, date(2024, 1, 2), None, 0),
        (Exchange.SSE, Board.FUND, date(2024, 1, 2), FundKind.EQUITY, 1),
        (Exchange.SSE, Board.FUND, date(2015, 1, 16), FundKind.GOLD, 1),
        (Exchange.SSE, Board.FUND, date(2015, 1, 19), FundKind.GOLD, 0),
        (Exchange.SZSE, Board.FUND, date(2015, 1, 19), FundKind.CROSS_BORDER, 0),
        (Exchange.SZSE, Board.FUND, date(2015, 1, 19), FundKind.COMMODITY, 1),
        (Exchange.SZSE, Board.FUND, date(2019, 1, 11), FundKind.COMMODITY, 0),
        (Exchange.SSE, Board.FUND, date(2020, 1, 17), FundKind.COMMODITY, 1),
        (Exchange.SSE, Board.FUND, date(2020, 1, 20), FundKind.COMMODITY, 0),
        (Exchange.SSE, Board.REIT, date(2024, 1, 2), None, 1),
    ],
)
def test_holding_follows_what_is_held_by_date(
    exchange: Exchange, board: Board, day: date, kind: FundKind | None, days: int
) -> None:
    assert holding_days(exchange, board, day, kind) == days


def test_holding_of_a_fund_is_never_guessed() -> None:
    with pytest.raises(DataError, match='give its kind'):
        holding_days(Exchange.SSE, Board.FUND, date(2024, 1, 2))
    with pytest.raises(DataError, match='bought on 1994-12-30'):
        holding_days(Exchange.SSE, Board.MAIN, date(1994, 12, 30))
    with pytest.raises(DataError, match='board INDEX on SSE'):
        holding_days(Exchange.SSE, Board.INDEX, date(2024, 1, 2))


@pytest.mark.parametrize(
    ('fund_type', 'invest_type', 'cross_border', 'kind'),
    [
        ('股票型', '被动指数型', False, FundKind.EQUITY),
        ('股票型', '被动指数型', True, FundKind.CROSS_BORDER),
        ('债券型', '被动指数型', False, FundKind.BOND),
        ('货币市场型', '货币型', False, FundKind.MONEY),
        ('商品型', '黄金现货合约', False, FundKind.GOLD),
        ('商品型', '商品期货型', False, FundKind.COMMODITY),
    ],
)
def test_kind_of_a_fund_is_told_from_its_types(
    fund_type: str, invest_type: str, cross_border: bool, kind: FundKind
) -> None:
    assert fund_kind(fund_type, invest_type, cross_border=cross_border) is kind


@pytest.mark.parametrize(
    ('fund_type', 'invest_type'), [('', ''), ('商品型', ''), ('另类投资型', 'x')]
)
def test_unknown_fund_types_are_refused_by_name(fund_type: str, invest_type: str) -> None:
    with pytest.raises(DataError, match=f"fund_type '{fund_type}' with invest_type"):
        fund_kind(fund_type, invest_type, cross_border=False)


def test_every_row_of_the_tables_has_a_source() -> None:
    assert all(duty.source for duty in STAMP_DUTY)
    assert all(fee.source for fee in TRANSFER_FEES)
    assert all(rule.source for rule in HOLDING_RULES)
