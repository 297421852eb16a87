# SPDX-License-Identifier: Apache-2.0
"""What codes and names say: exchange, board, status; and prices as ticks."""

from __future__ import annotations

import contextlib
import unicodedata
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_core.market import (
    Board,
    Exchange,
    Status,
    board_of,
    exchange_of,
    from_ticks,
    limit_percent,
    listings,
    status_of,
    tick_of,
    to_ticks,
)


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
        ('SH600519', Board.MAIN),
        ('302132.SZ', Board.CHINEXT),
        ('689009.SH', Board.STAR),
        ('900901.SH', Board.B_SHARE),
        ('200002.SZ', Board.B_SHARE),
        ('510300.SH', Board.FUND),
        ('588000.SH', Board.FUND),
        ('159915.SZ', Board.FUND),
        ('161725.SZ', Board.FUND),
        ('508000.SH', Board.REIT),
        ('180101.SZ', Board.REIT),
        ('113050.SH', Board.CONVERTIBLE),
        ('123001.SZ', Board.CONVERTIBLE),
        ('000300.SH', Board.INDEX),
        ('399006.SZ', Board.INDEX),
        ('899050.BJ', Board.INDEX),
        ('931643.CSI', Board.INDEX),
        ('000001', Board.MAIN),
        ('000001.SH', Board.INDEX),
        ('204001.SH', Board.OTHER),
        ('777777', Board.OTHER),
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


@pytest.mark.parametrize(
    ('symbol', 'exchange'),
    [
        ('600519.SH', Exchange.SSE),
        ('000300.XSHG', Exchange.SSE),
        ('000300', Exchange.SZSE),
        ('510300', Exchange.SSE),
        ('sz.159915', Exchange.SZSE),
        ('920002', Exchange.BSE),
        ('SSE.600000Q_d', Exchange.SSE),
    ],
)
def test_exchange_is_told_from_the_symbol(symbol: str, exchange: Exchange) -> None:
    assert exchange_of(symbol) is exchange


@pytest.mark.parametrize('symbol', ['oil', '777777', '931643.CSI'])
def test_symbol_of_no_exchange_is_refused_by_name(symbol: str) -> None:
    with pytest.raises(DataError, match=f"symbol '{symbol}' names no exchange"):
        exchange_of(symbol)


def test_listings_take_from_the_caller_what_no_code_tells() -> None:
    found = listings(['588000.SH', '600519.SH', '300750.SZ'], {'588000.SH': Board.FUND_20})
    assert found.board.tolist() == [Board.FUND_20, Board.MAIN, Board.CHINEXT]
    assert found.exchange.tolist() == [Exchange.SSE, Exchange.SSE, Exchange.SZSE]


def test_listings_refuse_what_has_no_rules_and_boards_of_other_symbols() -> None:
    with pytest.raises(DataError, match=r'no trading rules for 204001\.SH \(1 symbols\)'):
        listings(['600519.SH', '204001.SH'])
    with pytest.raises(DataError, match=r'boards: 588000\.SH not among'):
        listings(['600519.SH'], {'588000.SH': Board.FUND_20})


@pytest.mark.parametrize(
    ('name', 'day', 'status'),
    [
        ('贵州茅台', date(2024, 1, 2), Status.NORMAL),
        ('ST国华', date(2023, 6, 27), Status.ST),
        ('*ST国华', date(2022, 5, 6), Status.ST),
        ('＊ＳＴ国华', date(2022, 5, 6), Status.ST),
        ('S*ST圣方', date(2008, 1, 2), Status.ST),
        ('SST中华A', date(2010, 3, 17), Status.ST),
        ('XD*ST华', date(2024, 1, 2), Status.ST),
        ('G*ST金马', date(2006, 6, 1), Status.ST),
        ('ST苏三山', date(1998, 4, 21), Status.NORMAL),
        ('ST苏三山', date(1998, 4, 28), Status.ST),
        ('S深发展A', date(2007, 1, 5), Status.NORMAL),
        ('S深发展A', date(2007, 1, 8), Status.UNREFORMED),
        ('S佳通', date(2026, 9, 24), Status.UNREFORMED),
        ('N盛景', date(2024, 1, 24), Status.NEW),
        ('NST宝龙', date(2013, 2, 8), Status.NEW),
        ('C盛景', date(2024, 1, 25), Status.EARLY),
        ('C盛景', date(2018, 1, 25), Status.NORMAL),
        ('暴风退', date(2020, 9, 21), Status.DELISTING),
        ('退市海润', date(2019, 6, 1), Status.DELISTING),
        ('XD贵州茅', date(2024, 6, 19), Status.NORMAL),
        ('TCL科技', date(2024, 1, 2), Status.NORMAL),
        ('GQY视讯', date(2024, 1, 2), Status.NORMAL),
        ('NTTC', date(2024, 1, 2), Status.NORMAL),
        ('万 科Ａ', date(2000, 1, 4), Status.NORMAL),
        ('PT水仙', date(2024, 1, 2), Status.NORMAL),
    ],
)
def test_status_is_told_from_the_name_of_the_day(name: str, day: date, status: Status) -> None:
    assert status_of(name, day) is status


def test_names_that_tell_no_status_are_refused() -> None:
    with pytest.raises(DataError, match="name: 'PT水仙' on 2001-02-02"):
        status_of('PT水仙', date(2001, 2, 2))
    with pytest.raises(DataError, match='name: empty'):
        status_of(' ', date(2024, 1, 2))


@given(st.text(max_size=8), st.dates(date(1990, 12, 19), date(2030, 1, 1)))
def test_any_text_has_a_status_or_is_refused(name: str, day: date) -> None:
    found = None
    with contextlib.suppress(DataError):
        found = status_of(name, day)
    refused = not name.strip() or name.upper().startswith(('PT', 'X', 'D'))
    assert found is not None or refused or unicodedata.normalize('NFKC', name) != name


def test_ticks_differ_by_what_is_traded() -> None:
    assert tick_of(Board.STAR, Exchange.SSE) == 0.01
    assert tick_of(Board.FUND, Exchange.SZSE) == 0.001
    assert tick_of(Board.B_SHARE, Exchange.SSE) == 0.001
    assert tick_of(Board.B_SHARE, Exchange.SZSE) == 0.01
    with pytest.raises(DataError, match='board INDEX: there is no tick'):
        tick_of(Board.INDEX, Exchange.SSE)
