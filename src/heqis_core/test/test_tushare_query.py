# SPDX-License-Identifier: Apache-2.0
"""Rows of Tushare: what is kept, what is refused, and daily bars as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from heqis_core.bars import AMOUNT, CLOSE, VOLUME
from heqis_core.errors import ConfigError
from heqis_core.io.files import load_bars
from heqis_core.io.testing_tushare import TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import real_tables, simulated_tables
from heqis_core.io.tushare_client import TushareClient, TushareError
from heqis_core.io.tushare_endpoints import ENDPOINTS, KeyCellError, Rows, check_rows, parse_day
from heqis_core.io.tushare_query import ask, ask_calendar, days_between, fetch_daily
from heqis_core.testing import shared_data

pytest.importorskip('tushare')

SYMBOLS = ['000001.SZ', '000858.SZ', '600519.SH']
FACTOR = ENDPOINTS['adj_factor']


@pytest.fixture
def server() -> Iterator[TushareServer]:
    with TushareServer(simulated_tables(SYMBOLS, 30)) as server:
        yield server


@pytest.fixture
def client(server: TushareServer) -> TushareClient:
    return TushareClient(TOKEN, url=server.url, attempts=2, sleep=lambda _: None)


def factors(*cells: list[Any]) -> Rows:
    return check_rows(FACTOR, FACTOR.columns, list(cells))


def test_daily_bars_of_few_days_are_asked_for_by_day_and_equal_those_by_symbol(
    server: TushareServer, client: TushareClient
) -> None:
    by_day = fetch_daily(client, SYMBOLS, '20230105', '20230106')
    assert [params['trade_date'] for _, params in server.questions] == ['20230105', '20230106']
    server.questions.clear()
    by_symbol = fetch_daily(client, SYMBOLS, '20230102', '20230131')
    assert [params['ts_code'] for _, params in server.questions] == SYMBOLS
    inside = [at for at, day in enumerate(by_symbol.days) if day in ('20230105', '20230106')]
    assert by_day.symbols == tuple(by_symbol.symbols[at] for at in inside)
    assert by_day.values.tobytes() == by_symbol.values[:, inside].tobytes()
    assert by_day.event_time_ns.tolist() == by_symbol.event_time_ns[inside].tolist()
    assert by_day.pre_close.tolist() == by_symbol.pre_close[inside].tolist()


def test_daily_bars_of_no_trading_day_are_none(client: TushareClient) -> None:
    rows = fetch_daily(client, SYMBOLS, '20230107', '20230108')
    assert rows.symbols == rows.days == ()
    assert rows.values.shape == (6, 0)
    assert rows.event_time_ns.shape == (0,)


def test_another_endpoint_is_no_source_of_daily_bars(client: TushareClient) -> None:
    with pytest.raises(ConfigError, match='expected daily, fund_daily or index_daily'):
        fetch_daily(client, SYMBOLS, '20230105', '20230106', endpoint='stk_limit')


def test_real_rows_are_the_bars_that_the_file_reader_makes_of_them() -> None:
    folder = shared_data() / 'ashare_daily/tushare_raw_2020_2024'
    table, _ = load_bars(folder)
    with TushareServer(real_tables(folder), page_rows=500) as server:
        client = TushareClient(TOKEN, url=server.url)
        rows = fetch_daily(client, table.symbols, '20200101', '20241231')
    assert len(rows.symbols) == 3 * 1212
    for s, symbol in enumerate(table.symbols):
        at = [index for index, name in enumerate(rows.symbols) if name == symbol]
        assert rows.event_time_ns[at].tolist() == table.event_time_ns.tolist()
        assert rows.values[:, at].tobytes() == table.values[:, :, s].T.tobytes()


def test_units_are_shares_and_cny(server: TushareServer, client: TushareClient) -> None:
    rows = fetch_daily(client, ['600519.SH'], '20230105', '20230105')
    (sent,) = (
        row
        for row in server.tables['daily']
        if (row['ts_code'], row['trade_date']) == ('600519.SH', '20230105')
    )
    assert rows.values[CLOSE, 0] == sent['close']
    assert rows.values[VOLUME, 0] == sent['vol'] * 100
    assert rows.values[AMOUNT, 0] == sent['amount'] * 1000
    assert str(np.datetime64(int(rows.event_time_ns[0]), 'ns')) == '2023-01-05T07:00:00.000000000'


def test_columns_are_told_by_name_and_further_ones_are_left() -> None:
    rows = check_rows(
        FACTOR, ['adj_factor', 'new', 'trade_date', 'ts_code'], [[1.5, 9, '20240102', 'A']]
    )
    assert rows.columns == {'ts_code': ['A'], 'trade_date': ['20240102'], 'adj_factor': [1.5]}


@pytest.mark.parametrize('cell', [None, float('nan'), '', 'nan', 'None', ' '])
def test_what_means_nothing_is_an_empty_cell(cell: Any) -> None:
    rows = factors(['A', '20240102', cell])
    assert rows.columns['adj_factor'] == [None]
    assert (rows.rejected, rows.notes) == ([], {})


@pytest.mark.parametrize('cell', ['x', '1_000', float('inf'), True, [1], '1e999', 10**400])
def test_what_is_no_number_refuses_its_row_with_the_row_kept(cell: Any) -> None:
    rows = factors(['A', '20240102', cell], ['A', '20240103', 1.0])
    assert rows.columns['trade_date'] == ['20240103']
    (one,) = rows.rejected
    assert (one.key, one.reason, one.field) == (('A', '20240102'), 'not_a_number', 'adj_factor')
    assert '20240102' in one.text


def test_numbers_as_text_are_taken_and_counted_and_whole_numbers_as_days_too() -> None:
    rows = factors(['A', 20240102, '1.25'], ['A', '20240103', 2])
    assert rows.columns['adj_factor'] == [1.25, 2.0]
    assert rows.columns['trade_date'] == ['20240102', '20240103']
    assert rows.notes == {'number_as_text': 1}


def test_equal_rows_stay_once_and_of_contradicting_ones_none_stays() -> None:
    rows = factors(
        ['A', '20240102', 1.0], ['A', '20240102', 1.0],
        ['A', '20240103', 1.0], ['A', '20240103', 2.0], ['A', '20240104', 3.0],
    )  # fmt: skip
    assert rows.columns['trade_date'] == ['20240102', '20240104']
    assert rows.notes == {'duplicate': 1}
    assert [(one.key[1], one.reason) for one in rows.rejected] == [
        ('20240103', 'conflicting_duplicate')
    ] * 2


@pytest.mark.parametrize(
    'row',
    [[None, '20240102', 1.0], ['A', None, 1.0], ['A', '2024-01-02', 1.0], ['A', '20240230', 1]],
)
def test_a_row_that_does_not_say_what_it_is_of_makes_the_answer_unusable(row: list[Any]) -> None:
    with pytest.raises(KeyCellError):
        factors(row)


@pytest.mark.parametrize('text', ['', '2024-01-02', '20240230', '202401020', 'today'])
def test_what_is_no_day_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match='start: '):
        parse_day(text, 'start')


def test_a_calendar_without_a_day_is_refused(server: TushareServer, client: TushareClient) -> None:
    assert len(ask_calendar(client, '20230101', '20230131')) == 31
    server.tables['trade_cal'] = [
        row for row in server.tables['trade_cal'] if row['cal_date'] != '20230110'
    ]
    with pytest.raises(TushareError, match='no row of 20230110'):
        ask_calendar(client, '20230101', '20230131')


def test_a_first_day_that_was_lost_on_the_way_is_asked_for_again(
    server: TushareServer, client: TushareClient
) -> None:
    server.misbehave('empty_frame', api_name='trade_cal')
    assert len(ask_calendar(client, '20230101', '20230131')) == 31
    assert client.counts['retry_protocol'] == 1


@pytest.mark.parametrize(
    ('start', 'message'),
    [
        ('20230101', 'start 20230101: the calendar of this server begins on 20230111'),
        ('20221201', 'start 20221201: the calendar of this server begins on 20230111'),
    ],
)
def test_a_start_before_the_calendar_is_no_fault_of_the_protocol(
    server: TushareServer, client: TushareClient, start: str, message: str
) -> None:
    server.tables['trade_cal'] = [
        row for row in server.tables['trade_cal'] if row['cal_date'] > '20230110'
    ]
    with pytest.raises(ConfigError, match=message):
        ask_calendar(client, start, '20230131')
    with pytest.raises(ConfigError, match='has none of them'):
        ask_calendar(client, '20230101', '20230105')


def test_days_between_are_all_days_of_the_calendar() -> None:
    assert days_between('20240228', '20240301') == ['20240228', '20240229', '20240301']
    assert days_between('20240302', '20240301') == []


def test_rows_that_really_come_twice_are_accepted_after_a_second_look(
    server: TushareServer, client: TushareClient
) -> None:
    server.tables['adj_factor'] *= 2
    server.tables['adj_factor'].sort(key=lambda row: (row['ts_code'], row['trade_date']))
    rows = ask(client, FACTOR, {'ts_code': SYMBOLS[0]}, page_rows=8)
    assert len(rows) == 30
    assert rows.notes == {'duplicate': 30}
