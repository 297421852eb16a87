# SPDX-License-Identifier: Apache-2.0
"""Limit prices: the dated table, exact arithmetic, and what is tested against a limit."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_core.market import (
    NO_HIGH,
    NO_LOW,
    Board,
    Exchange,
    Status,
    can_buy,
    can_sell,
    closes_at_limit,
    is_sealed_down,
    is_sealed_up,
    limit_ticks,
    price_limits,
    within_limits,
)
from heqis_core.market.limits import LEAST_MOVE_RULES, LIMIT_RULES

SSE, SZSE, BSE = Exchange.SSE, Exchange.SZSE, Exchange.BSE
REFERENCES = st.integers(1, 10_000_000)


def limits(
    reference: int,
    day: date,
    exchange: Exchange,
    board: Board,
    status: Status = Status.NORMAL,
    days_listed: int = 0,
) -> tuple[int, int]:
    low, high = price_limits(reference, day, exchange, board, status, days_listed)
    return int(low), int(high)


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def test_half_a_tick_rounds_up_where_floats_go_wrong() -> None:
    # 1.05 CNY less 30 % is 0.735, 0.45 CNY more 10 % is 0.495, 10.05 CNY more 10 % is 11.055
    assert limit_ticks(105, 30)[0] == 74
    assert limit_ticks(45, 10)[1] == 50
    assert limit_ticks(1005, 10)[1] == 1106


def test_small_prices_move_by_one_tick_at_least_and_stay_above_zero() -> None:
    assert [int(limit) for limit in limit_ticks(3, 10)] == [2, 4]
    assert [int(limit) for limit in limit_ticks(1, 10)] == [1, 2]


@given(REFERENCES, st.sampled_from([5, 10, 20, 30]))
def test_limits_of_a_percentage_equal_exact_arithmetic(reference: int, percent: int) -> None:
    move = Fraction(reference * percent, 100)
    low, high = limit_ticks(reference, percent)
    assert high == max(half_up(reference + move), reference + 1)
    assert low == max(min(half_up(reference - move), reference - 1), 1)


@given(
    REFERENCES,
    st.sampled_from(
        [
            (SSE, Board.MAIN, Status.NORMAL, 0, 100, 100),
            (SZSE, Board.MAIN, Status.UNREFORMED, 0, 50, 50),
            (SZSE, Board.CHINEXT, Status.ST, 0, 200, 200),
            (SSE, Board.STAR, Status.NORMAL, 0, 200, 200),
            (SSE, Board.FUND, Status.NORMAL, 0, 100, 100),
            (SSE, Board.REIT, Status.NORMAL, 1, 300, 300),
            (SZSE, Board.CONVERTIBLE, Status.NORMAL, 1, 573, 433),
        ]
    ),
)
def test_limits_of_a_day_equal_exact_arithmetic(
    reference: int, case: tuple[Exchange, Board, Status, int, int, int]
) -> None:
    exchange, board, status, age, up, down = case
    low, high = limits(reference, date(2024, 1, 2), exchange, board, status, age)
    assert high == max(half_up(reference * (1 + Fraction(up, 1000))), reference + 1)
    assert low == max(min(half_up(reference * (1 - Fraction(down, 1000))), reference - 1), 1)


@given(REFERENCES)
def test_first_day_limits_of_44_and_36_percent_equal_exact_arithmetic(reference: int) -> None:
    low, high = limits(reference, date(2018, 1, 2), SZSE, Board.MAIN, Status.NEW)
    assert high == max(half_up(reference * Fraction(144, 100)), reference + 1)
    assert low == max(min(half_up(reference * Fraction(64, 100)), reference - 1), 1)


@given(REFERENCES)
def test_the_move_is_cut_off_on_the_bse(reference: int) -> None:
    low, high = limits(reference, date(2024, 1, 2), BSE, Board.BSE)
    assert high == max(floor(reference * Fraction(130, 100)), reference + 1)
    assert low == max(min(ceil(reference * Fraction(70, 100)), reference - 1), 1)
    both = limit_ticks(np.array([reference] * 2), 30, truncate=np.array([True, False]))
    assert (int(both[0][0]), int(both[1][0])) == (low, high)
    assert low >= both[0][1]
    assert high <= both[1][1]


@pytest.mark.parametrize(
    ('reference', 'high'), [(8463, 11001), (1709, 2221), (3146, 4089), (285, 370)]
)
def test_the_bse_limits_that_the_exchange_showed_come_out(reference: int, high: int) -> None:
    assert limits(reference, date(2026, 9, 24), BSE, Board.BSE)[1] == high


@pytest.mark.parametrize(
    ('day', 'exchange', 'board', 'status', 'age', 'expected'),
    [
        # the first limits, and funds of stocks with 20 %
        (date(1992, 5, 21), SSE, Board.MAIN, Status.NORMAL, 0, (NO_LOW, NO_HIGH)),
        (date(1996, 12, 15), SSE, Board.FUND, Status.NORMAL, 0, (NO_LOW, NO_HIGH)),
        (date(1996, 12, 16), SSE, Board.FUND, Status.NORMAL, 0, (9000, 11000)),
        (date(2020, 8, 20), SSE, Board.FUND_20, Status.NORMAL, 0, (9000, 11000)),
        (date(2020, 8, 21), SSE, Board.FUND_20, Status.NORMAL, 0, (8000, 12000)),
        (date(2020, 8, 23), SZSE, Board.FUND_20, Status.NORMAL, 0, (9000, 11000)),
        (date(2020, 8, 24), SZSE, Board.FUND_20, Status.NORMAL, 0, (8000, 12000)),
        # share structure not reformed
        (date(2007, 1, 7), SZSE, Board.MAIN, Status.UNREFORMED, 0, (9000, 11000)),
        (date(2007, 1, 8), SZSE, Board.MAIN, Status.UNREFORMED, 0, (9500, 10500)),
        (date(2026, 7, 6), SSE, Board.MAIN, Status.UNREFORMED, 0, (9500, 10500)),
        # special treatment
        (date(1998, 4, 21), SSE, Board.MAIN, Status.ST, 0, (9000, 11000)),
        (date(1998, 4, 22), SSE, Board.MAIN, Status.ST, 0, (9500, 10500)),
        (date(2026, 7, 3), SSE, Board.B_SHARE, Status.ST, 0, (9500, 10500)),
        (date(2026, 7, 6), SSE, Board.B_SHARE, Status.ST, 0, (9000, 11000)),
        (date(2024, 1, 2), BSE, Board.BSE, Status.ST, 0, (7000, 13000)),
        # listing days
        (date(2013, 12, 12), SSE, Board.MAIN, Status.NORMAL, 1, (NO_LOW, NO_HIGH)),
        (date(2013, 12, 13), SSE, Board.MAIN, Status.NORMAL, 1, (6400, 14400)),
        (date(2009, 10, 30), SZSE, Board.CHINEXT, Status.NORMAL, 1, (NO_LOW, NO_HIGH)),
        (date(2014, 6, 12), SZSE, Board.CHINEXT, Status.NORMAL, 1, (NO_LOW, NO_HIGH)),
        (date(2014, 6, 13), SZSE, Board.CHINEXT, Status.NORMAL, 1, (6400, 14400)),
        (date(2020, 8, 21), SZSE, Board.CHINEXT, Status.NORMAL, 1, (6400, 14400)),
        (date(2020, 8, 24), SZSE, Board.CHINEXT, Status.NORMAL, 1, (NO_LOW, NO_HIGH)),
        (date(2023, 4, 7), SSE, Board.MAIN, Status.NORMAL, 2, (9000, 11000)),
        (date(2024, 1, 2), SSE, Board.MAIN, Status.NORMAL, 5, (NO_LOW, NO_HIGH)),
        (date(2024, 1, 2), SSE, Board.MAIN, Status.NORMAL, 6, (9000, 11000)),
        (date(2024, 1, 2), SSE, Board.MAIN, Status.EARLY, 0, (NO_LOW, NO_HIGH)),
        (date(2024, 1, 2), BSE, Board.BSE, Status.NORMAL, 1, (NO_LOW, NO_HIGH)),
        (date(2024, 1, 2), BSE, Board.BSE, Status.NORMAL, 2, (7000, 13000)),
        # delisting period
        (date(2020, 8, 23), SZSE, Board.CHINEXT, Status.DELISTING, 0, (9000, 11000)),
        (date(2020, 8, 24), SZSE, Board.CHINEXT, Status.DELISTING, 0, (8000, 12000)),
        (date(2020, 8, 23), SZSE, Board.CHINEXT, Status.DELISTING_FIRST, 0, (9000, 11000)),
        (date(2020, 8, 24), SZSE, Board.CHINEXT, Status.DELISTING_FIRST, 0, (8000, 12000)),
        (date(2020, 12, 30), SZSE, Board.CHINEXT, Status.DELISTING_FIRST, 0, (8000, 12000)),
        (date(2020, 12, 30), SZSE, Board.MAIN, Status.DELISTING_FIRST, 0, (9000, 11000)),
        (date(2020, 12, 31), SZSE, Board.MAIN, Status.DELISTING_FIRST, 0, (NO_LOW, NO_HIGH)),
        (date(2020, 12, 30), SSE, Board.MAIN, Status.DELISTING_FIRST, 0, (9000, 11000)),
        (date(2020, 12, 31), SSE, Board.MAIN, Status.DELISTING_FIRST, 0, (NO_LOW, NO_HIGH)),
        (date(2020, 12, 31), SSE, Board.MAIN, Status.DELISTING, 0, (9000, 11000)),
        (date(2024, 1, 2), SSE, Board.STAR, Status.DELISTING, 0, (8000, 12000)),
        # the exchange has lifted the limit; an index has none
        (date(2007, 6, 20), SZSE, Board.MAIN, Status.FREE, 0, (NO_LOW, NO_HIGH)),
        (date(1990, 12, 19), SSE, Board.INDEX, Status.NORMAL, 0, (NO_LOW, NO_HIGH)),
        (date(2021, 11, 15), BSE, Board.INDEX, Status.NORMAL, 0, (NO_LOW, NO_HIGH)),
    ],
)
def test_limits_follow_board_status_and_age_by_date(
    day: date,
    exchange: Exchange,
    board: Board,
    status: Status,
    age: int,
    expected: tuple[int, int],
) -> None:
    assert limits(10_000, day, exchange, board, status, age) == expected


@pytest.mark.parametrize(
    ('first', 'exchange', 'board', 'regular'),
    [
        (date(2020, 8, 24), SZSE, Board.CHINEXT, (8000, 12000)),
        (date(2023, 4, 10), SSE, Board.MAIN, (9000, 11000)),
    ],
)
def test_only_stocks_listed_since_a_reform_have_five_free_days(
    first: date, exchange: Exchange, board: Board, regular: tuple[int, int]
) -> None:
    # `first` is a Monday; a stock in its n-th day on the m-th day of the reform was listed before
    # it where n is above m
    for m in range(1, 6):
        for n in range(1, 7):
            free = n <= min(m, 5)
            expected = (NO_LOW, NO_HIGH) if free else regular
            today = date.fromordinal(first.toordinal() + m - 1)
            assert limits(10_000, today, exchange, board, Status.NORMAL, n) == expected, (m, n)


def test_a_move_below_a_tick_counts_as_one_since_the_exchange_says_so() -> None:
    for since, exchange in ((date(2011, 2, 28), SZSE), (date(2023, 4, 10), SSE)):
        day_before = date.fromordinal(since.toordinal() - 1)
        assert limits(4, day_before, exchange, Board.MAIN) == (4, 4)
        assert limits(4, since, exchange, Board.MAIN) == (3, 5)
    assert limits(3, date(2021, 11, 15), BSE, Board.BSE) == (2, 4)
    assert limits(4, date(2012, 12, 31), SSE, Board.MAIN, Status.DELISTING) == (4, 4)
    assert limits(4, date(2013, 1, 1), SSE, Board.MAIN, Status.DELISTING) == (3, 5)
    assert limits(5, date(2013, 1, 1), SSE, Board.MAIN, Status.DELISTING) == (5, 6)
    assert limits(5, date(2021, 6, 1), SSE, Board.MAIN, Status.DELISTING) == (4, 6)


def test_many_symbols_at_once_equal_each_alone() -> None:
    random = np.random.default_rng(7)
    cells = [(SSE, Board.MAIN), (SZSE, Board.CHINEXT), (SSE, Board.STAR), (SSE, Board.FUND)]
    for day in (date(2019, 7, 24), date(2020, 8, 26), date(2023, 4, 11), date(2026, 7, 6)):
        picks = random.integers(0, len(cells), 300)
        exchange = np.array([cells[i][0] for i in picks])
        board = np.array([cells[i][1] for i in picks])
        status = random.integers(0, len(Status), 300)
        age = random.integers(0, 8, 300)
        reference = random.integers(1, 50_000, 300)
        low, high = price_limits(reference, day, exchange, board, status, age)
        assert low.dtype == high.dtype == np.int64
        for i in range(300):
            cell = cells[picks[i]]
            alone = limits(
                int(reference[i]), day, cell[0], cell[1], Status(status[i]), int(age[i])
            )
            assert (int(low[i]), int(high[i])) == alone


def test_nothing_is_within_the_limits_of_an_unknown_reference_price() -> None:
    low, high = price_limits(np.array([0, 1000]), date(2024, 1, 2), SSE, Board.MAIN)
    price = np.array([1000, 1000])
    assert can_buy(price, low, high).tolist() == [False, True]
    assert can_sell(price, low, high).tolist() == [False, True]
    assert within_limits(price, low, high).tolist() == [False, True]


@pytest.mark.parametrize(
    ('exchange', 'board', 'day', 'name'),
    [
        (SSE, Board.STAR, date(2019, 7, 21), 'STAR on SSE on 2019-07-21'),
        (SZSE, Board.CHINEXT, date(2009, 10, 29), 'CHINEXT on SZSE on 2009-10-29'),
        (SZSE, Board.REIT, date(2021, 1, 28), 'REIT on SZSE on 2021-01-28'),
        (SSE, Board.CONVERTIBLE, date(2006, 6, 30), 'CONVERTIBLE on SSE on 2006-06-30'),
        (BSE, Board.INDEX, date(2021, 11, 14), 'INDEX on BSE on 2021-11-14'),
        (SZSE, Board.INDEX, date(1990, 12, 18), 'INDEX on SZSE on 1990-12-18'),
        (SSE, Board.CHINEXT, date(2024, 1, 2), 'CHINEXT on SSE on 2024-01-02'),
        (BSE, Board.BSE, date(2021, 11, 14), 'BSE on BSE on 2021-11-14'),
        (SSE, Board.OTHER, date(2024, 1, 2), 'OTHER on SSE'),
        (SSE, Board.MAIN, date(1992, 5, 20), 'MAIN on SSE on 1992-05-20'),
    ],
)
def test_boards_without_rules_are_refused_by_name(
    exchange: Exchange, board: Board, day: date, name: str
) -> None:
    with pytest.raises(DataError, match=f'no price limits are known for board {name}'):
        limits(1000, day, exchange, board)


def test_every_row_of_the_table_has_a_source_and_rows_of_one_key_have_their_own_dates() -> None:
    keys = [
        (exchange, board, rule.status, rule.listing_days, rule.since)
        for rule in LIMIT_RULES
        for exchange in rule.exchanges
        for board in rule.boards
    ]
    assert len(set(keys)) == len(keys)
    assert all(rule.source for rule in LIMIT_RULES)
    assert all(least.source for least in LEAST_MOVE_RULES)
    # the weekday count that tells the five free days needs a Monday
    fives = [rule for rule in LIMIT_RULES if rule.listing_days > 1]
    assert fives
    assert all(rule.since.weekday() == 0 for rule in fives)


def test_an_order_is_judged_at_its_own_price_not_at_the_range_of_the_day() -> None:
    low, high = 900, 1100
    # opens at the upper limit, leaves it, closes below: no buy at the open, one at the close
    assert not can_buy(1100, low, high)
    assert can_buy(1050, low, high)
    assert can_sell(1100, low, high)
    assert not is_sealed_up(1040, high)
    assert not closes_at_limit(1050, high)
    # opens below and closes at it
    assert can_buy(1099, low, high)
    assert closes_at_limit(1100, high)
    # at the lower limit nobody sells
    assert not can_sell(900, low, high)
    assert can_buy(900, low, high)


def test_a_day_of_one_price_at_the_limit_fills_nobody_on_the_wrong_side() -> None:
    low, high = price_limits(np.array([1000, 1000, 1000]), date(2024, 1, 2), SSE, Board.MAIN)
    price = np.array([1100, 900, 1000])
    assert is_sealed_up(price, high).tolist() == [True, False, False]
    assert is_sealed_down(price, low).tolist() == [False, True, False]
    assert can_buy(price, low, high).tolist() == [False, True, True]
    assert can_sell(price, low, high).tolist() == [True, False, True]


@given(st.integers(1, 100_000), st.integers(1, 200_000))
def test_without_a_limit_every_price_is_filled(reference: int, price: int) -> None:
    low, high = price_limits(reference, date(2024, 1, 2), SSE, Board.STAR, Status.NEW)
    assert can_buy(price, low, high)
    assert can_sell(price, low, high)
    assert not is_sealed_up(price, high)
    assert not is_sealed_down(price, low)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'reference_ticks': 10**17}, 'expected at most'),
        ({'days_listed': -1}, 'days_listed: -1'),
        ({'day': '2024-01-03'}, 'expected a datetime.date'),
    ],
)
def test_what_can_be_no_price_age_or_day_is_refused(given, words) -> None:
    sound = {'reference_ticks': 1000, 'day': date(2024, 1, 3)}
    sound |= {'exchange': Exchange.SSE, 'board': Board.MAIN}
    with pytest.raises(DataError, match=words):
        price_limits(**(sound | given))
