# SPDX-License-Identifier: Apache-2.0
"""The local server as a program: what it says, what it serves, and what it refuses."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from heqis_core.errors import HeqisError
from heqis_core.io import testing_tushare
from heqis_core.io.testing_tushare_tables import (
    FUND,
    INDICES,
    N_EXAMPLE,
    Tables,
    named_stocks,
    real_tables,
    simulated_tables,
    today,
    weekdays_until_yesterday,
)
from heqis_core.io.tushare_endpoints import ENDPOINTS
from heqis_core.io.tushare_universe import Security, read_universe, resolve, to_securities
from heqis_core.testing import shared_data

HEADER = 'ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount'
START = '20240102'


@pytest.fixture(scope='module')
def tables() -> Tables:
    return simulated_tables(N_EXAMPLE, weekdays_until_yesterday(START), start='2024-01-02')


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    program = [sys.executable, '-m', 'heqis_core.io.testing_tushare', '--start', START]
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_program_prints_days_symbols_and_lines_to_paste(
    process: subprocess.Popen[str], tables: Tables
) -> None:
    assert process.stdout is not None
    first, second, variables, command = (process.stdout.readline().strip() for _ in range(4))
    assert first == '# Serves a simulated market, every row made up.'
    last = tables['daily'][0]['trade_date']
    assert f'10 stocks, 3 funds and indices, {weekdays_until_yesterday(START)} open' in second
    assert f'from {START} to {last}. ' in second
    assert variables.startswith('export HEQIS_TUSHARE_URL=http://127.0.0.1:')
    assert variables.endswith(f' TUSHARE_TOKEN={testing_tushare.TOKEN}')
    codes = ' '.join((*named_stocks(N_EXAMPLE), FUND, *INDICES))
    assert command == (f'heqis fetch --symbols {codes} --start {START} --out output/local_market')


def test_every_entry_of_the_example_universe_is_served(tables: Tables) -> None:
    folder = Path(__file__).resolve().parents[3]
    entries = read_universe(folder / 'config' / 'universe.example.txt')

    def listed(kind: str) -> list[Security]:
        facts = ENDPOINTS[f'{kind}_basic']
        rows = tables[facts.name]
        return to_securities(kind, {name: [row[name] for row in rows] for name in facts.columns})

    kinds = ('stock', 'fund', 'index')
    universe = resolve(entries, tuple(functools.partial(listed, kind) for kind in kinds))
    assert not universe.unresolved
    served = {
        row['ts_code'] for name in ('daily', 'fund_daily', 'index_daily') for row in tables[name]
    }
    assert {one.ts_code for one in universe.securities()} <= served


def test_the_simulated_market_reaches_until_yesterday_and_its_calendar_further(
    tables: Tables,
) -> None:
    calendar = tables['trade_cal']
    assert calendar[-1]['cal_date'] == '19901219'
    assert calendar[0]['cal_date'] > today()
    open_days = [row['cal_date'] for row in calendar if row['is_open']]
    assert open_days[-1] == START
    assert open_days[0] < today()
    assert np.busday_count(f'{open_days[0][:4]}-{open_days[0][4:6]}-{open_days[0][6:]}',
        f'{today()[:4]}-{today()[4:6]}-{today()[6:]}') == 1  # fmt: skip


def test_a_longer_simulated_market_begins_with_the_rows_of_a_shorter_one() -> None:
    short, longer = simulated_tables(3, 30), simulated_tables(3, 40)
    for name in ('daily', 'fund_daily', 'index_daily', 'adj_factor', 'stk_limit', 'suspend_d'):
        last = short['daily'][0]['trade_date']
        assert short[name] == [row for row in longer[name] if row['trade_date'] <= last]


def test_funds_and_indices_have_a_bar_on_every_open_day(tables: Tables) -> None:
    n_days = sum(row['is_open'] for row in tables['trade_cal'])
    rows = Counter(row['ts_code'] for row in tables['fund_daily'] + tables['index_daily'])
    assert rows == dict.fromkeys((FUND, *INDICES), n_days)


def test_factors_of_real_rows_step_where_pre_close_is_not_the_last_close() -> None:
    tables = real_tables(shared_data() / 'ashare_daily/tushare_raw_2020_2024')
    factors = {
        (row['ts_code'], row['trade_date']): row['adj_factor'] for row in tables['adj_factor']
    }
    n_steps = 0
    for symbol in {row['ts_code'] for row in tables['daily']}:
        rows = [row for row in tables['daily'] if row['ts_code'] == symbol][::-1]
        assert factors[symbol, rows[0]['trade_date']] == 1.0
        for before, row in itertools.pairwise(rows):
            old = factors[symbol, before['trade_date']]
            new = factors[symbol, row['trade_date']]
            assert new == round(new, 4)
            assert new / old == pytest.approx(before['close'] / row['pre_close'], abs=1.1e-4)
            n_steps += new != old
    assert n_steps == 24


def row_of(day: str, close: float, symbol: str = '600519.SH') -> str:
    return f'{symbol},{day},{close},{close},{close},{close},{close},0,0,1,1'


def test_a_stock_that_is_listed_later_is_not_suspended_before(tmp_path: Path) -> None:
    days = ('20240102', '20240103', '20240104')
    lines = [HEADER, *(row_of(day, 10.0) for day in days), row_of(days[1], 5.0, '000001.SZ')]
    (tmp_path / 'a.csv').write_text('\n'.join(lines) + '\n')
    tables = real_tables(tmp_path)
    suspended = [(row['ts_code'], row['trade_date']) for row in tables['suspend_d']]
    assert suspended == [('000001.SZ', days[2])]
    listed = {row['ts_code']: row['list_date'] for row in tables['stock_basic']}
    assert listed == {'600519.SH': days[0], '000001.SZ': days[1]}
    assert tables['fund_basic'] == tables['index_basic'] == []


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'a.csv: no column ts_code, '),
        ('date,open\n1,2\n', 'a.csv: no column ts_code, '),
        (f'{HEADER}\n', 'no row in 1 CSV files'),
        (f'{HEADER}\n{row_of("2024-01-02", 1.0)}\n', 'a.csv: line 2: trade_date: '),
        (f'{HEADER}\n{row_of("20240102", 1.0, "AAPL")}\n', "line 2: ts_code: 'AAPL'"),
        (f'{HEADER}\n{row_of("20240102", 1.0).replace(",0,0,", ",x,0,")}\n', "change: 'x'"),
        (f'{HEADER}\n{row_of("20240102", float("nan"))}\n', "open: 'nan'"),
        (f'{HEADER}\n{row_of("20240102", 0.0)}\n', "pre_close: '0.0'"),
        (f'{HEADER}\n600519.SH,20240102,1\n', "line 2: high: 'None'"),
    ],
)
def test_a_file_without_rows_of_daily_is_named_with_line_and_column(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(HeqisError, match=message):
        real_tables(tmp_path)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', '/nope'], '/nope: no CSV file'),
        (['--symbols', '0'], '0 symbols cannot be simulated'),
        (['--symbols', '100000'], 'cannot be simulated'),
        (['--start', '20991231'], 'no weekday until yesterday'),
        (['--start', 'x'], 'expected YYYYMMDD'),
        (['--start', START, '--port', '99999'], 'choose another --port'),
        (['--data', '.', '--symbols', '3'], 'leave out --data'),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert testing_tushare.main(args) == 2
    out, error = capsys.readouterr()
    assert out == ''
    assert message in error
    assert error.count('\n') == 1
    assert error.startswith('testing_tushare: ')
