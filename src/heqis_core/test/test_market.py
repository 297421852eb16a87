# SPDX-License-Identifier: Apache-2.0
"""A-share rules: boards, dated limits, and limit prices against exact arithmetic and real ones."""

from __future__ import annotations

import csv
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_core.market import Board, board_of, from_ticks, limit_percent, limit_ticks, to_ticks
from heqis_core.testing import shared_data

CENT = Decimal('0.01')


@pytest.mark.parametrize(
    ('symbol', 'board'),
    [
        ('600519.SH', Board.MAIN),
        ('000001.SZ', Board.MAIN),
        ('000004.XSHE', Board.MAIN),
        ('SSE.600000Q_d', Board.MAIN),
        ('300750.SZ', Board.CHINEXT),
        ('301001.SZ', Board.CHINEXT),
        ('sh.688981', Board.STAR),
        ('430047.BJ', Board.BSE),
        ('920002.BJ', Board.BSE),
        ('oil', Board.MAIN),
        ('20230057', Board.MAIN),
    ],
)
def test_board_is_told_from_the_code(symbol: str, board: Board) -> None:
    assert board_of(symbol) is board


@pytest.mark.parametrize(
    ('board', 'day', 'st_stock', 'percent'),
    [
        (Board.MAIN, date(1996, 12, 15), False, None),
        (Board.MAIN, date(1996, 12, 16), False, 10),
        (Board.MAIN, date(1998, 4, 21), True, 10),
        (Board.MAIN, date(2026, 7, 3), True, 5),
        (Board.MAIN, date(2026, 7, 6), True, 10),
        (Board.CHINEXT, date(2020, 8, 21), False, 10),
        (Board.CHINEXT, date(2020, 8, 21), True, 5),
        (Board.CHINEXT, date(2020, 8, 24), False, 20),
        (Board.CHINEXT, date(2020, 8, 24), True, 20),
        (Board.STAR, date(2019, 7, 22), False, 20),
        (Board.BSE, date(2021, 11, 15), False, 30),
    ],
)
def test_limits_hold_from_their_dates_on(
    board: Board, day: date, st_stock: bool, percent: int | None
) -> None:
    assert limit_percent(board, day, st=st_stock) == percent


def test_half_a_tick_rounds_up_where_floats_go_wrong() -> None:
    # 1.05 CNY less 30 % is 0.735, 0.45 CNY more 10 % is 0.495, 10.05 CNY more 10 % is 11.055
    assert limit_ticks(105, 30)[0] == 74
    assert limit_ticks(45, 10)[1] == 50
    assert limit_ticks(1005, 10)[1] == 1106


def test_small_prices_move_by_one_tick_at_least_and_stay_above_zero() -> None:
    assert [int(limit) for limit in limit_ticks(3, 10)] == [2, 4]
    assert [int(limit) for limit in limit_ticks(1, 10)] == [1, 2]


@given(st.integers(10, 10_000_000), st.sampled_from([5, 10, 20, 30, 44]))
def test_limits_equal_exact_decimal_arithmetic(reference: int, percent: int) -> None:
    price = reference * CENT
    up = (price * (100 + percent) / 100).quantize(CENT, ROUND_HALF_UP)
    down = (price * (100 - percent) / 100).quantize(CENT, ROUND_HALF_UP)
    low, high = limit_ticks(reference, percent)
    assert int(high) * CENT == max(up, price + CENT)
    assert int(low) * CENT == min(down, price - CENT)


@given(st.integers(10, 10_000_000))
def test_the_move_is_cut_off_on_the_bse(reference: int) -> None:
    price = reference * CENT
    low, high = limit_ticks(np.array([reference, reference]), 30, truncate=np.array([True, False]))
    assert int(high[0]) * CENT == (price * 130 / 100).quantize(CENT, ROUND_FLOOR)
    assert int(low[0]) * CENT == (price * 70 / 100).quantize(CENT, ROUND_CEILING)
    assert low[0] >= low[1]


@given(st.integers(1, 10**9))
def test_ticks_and_prices_are_the_same_thing(ticks: int) -> None:
    price = from_ticks(np.array([ticks]))
    assert price[0] == float(f'{ticks // 100}.{ticks % 100:02d}')
    assert to_ticks(price)[0] == ticks


def test_other_ticks_work_too() -> None:
    assert from_ticks(np.array([4713]), 0.001)[0] == 4.713
    assert from_ticks(np.array([3]), 5.0)[0] == 15.0
    assert to_ticks([15.0], 5.0)[0] == 3


def test_price_between_ticks_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r'price 10\.005 is on no tick of 0\.01'):
        to_ticks([10.0, 10.005])
    with pytest.raises(DataError, match='price nan'):
        to_ticks([float('nan')])


def test_real_limits_of_unadjusted_days() -> None:
    # Ping An Bank has never been ST, and its prices are as traded where the factor is 1.
    path = shared_data() / 'ashare_daily/joinquant_qfq_limits_2005_2023/000001.XSHE.csv'
    with path.open(newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['factor'] == '1.0']
    assert len(rows) > 10
    reference = to_ticks([float(row['pre_close']) for row in rows])
    low, high = limit_ticks(reference, 10)
    assert high.tolist() == to_ticks([float(row['high_limit']) for row in rows]).tolist()
    assert low.tolist() == to_ticks([float(row['low_limit']) for row in rows]).tolist()


def test_real_prices_stay_within_the_limits() -> None:
    folder = shared_data() / 'ashare_daily/tushare_raw_2020_2024'
    for path in sorted(folder.glob('*.csv')):
        with path.open(newline='') as file:
            rows = list(csv.DictReader(file))
        low, high = limit_ticks(to_ticks([float(row['pre_close']) for row in rows]), 10)
        assert (to_ticks([float(row['high']) for row in rows]) <= high).all(), path.name
        assert (to_ticks([float(row['low']) for row in rows]) >= low).all(), path.name
