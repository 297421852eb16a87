# SPDX-License-Identifier: Apache-2.0
"""`heqis fetch` with the real client against a local server: what is stored, said and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('tushare')

from heqis_core.bars import CLOSE, BarStatus
from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_core.io import tushare_store as store
from heqis_core.io.files import load_bars
from heqis_core.io.testing_tushare import TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import Tables, simulated_tables
from heqis_core.io.tushare_client import TushareClient, TushareError
from heqis_core.io.tushare_endpoints import ENDPOINTS, SERIES
from heqis_core.io.tushare_universe import Entry
from heqis_training.fetch_plan import FetchPlan
from heqis_training.fetch_run import Outcome, Progress, run_fetch

STOCKS = ['000001.SZ', '000858.SZ', '600519.SH']
NAMES = [*STOCKS, '510300.SH', '000300.SH']
START, MIDDLE, END = '20230102', '20230215', '20230331'
TODAY = '20240601'
ALL = frozenset(name for names in SERIES.values() for name in names)

Tree = dict[str, bytes]


def make_tables() -> Tables:
    """Make 100 days of which some are suspended, and one index and fund without a gap."""
    tables = simulated_tables(STOCKS, 100)
    tables['daily'] = [
        row
        for row in tables['daily']
        if (row['ts_code'], row['trade_date']) != ('600519.SH', '20230110')
    ]
    suspension = {'ts_code': '600519.SH', 'trade_date': '20230110', 'suspend_type': 'S'}
    tables['suspend_d'].append({**suspension, 'suspend_timing': None})
    return tables


@pytest.fixture
def server() -> Iterator[TushareServer]:
    with TushareServer(make_tables(), page_rows=25) as server:
        yield server


Fetch = Callable[..., Outcome]


@pytest.fixture
def run(server: TushareServer, tmp_path: Path) -> Fetch:
    """Return a function that fetches into a folder of the test."""

    def run(name: str, start: str = START, end: str = END, **options: Any) -> Outcome:
        names = options.pop('names', NAMES)
        today = options.pop('today', TODAY)
        report = options.pop('report', lambda _: None)
        # A limiter that never waits: its clock runs a minute with each call.
        ticks = iter(range(0, 10**9, 60))
        client = TushareClient(
            options.pop('token', TOKEN), url=server.url, timeout_s=0.5, attempts=3,
            clock=lambda: float(next(ticks)), sleep=lambda _: None,
        )  # fmt: skip
        plan = FetchPlan(
            tmp_path / name, tuple(Entry(one, '', n) for n, one in enumerate(names)),
            start, end, options.pop('endpoints', ALL), **options,
        )  # fmt: skip
        return run_fetch(client, plan, report, today=today)

    return run


def tree(folder: Path) -> Tree:
    """Return every file of a store by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def asked(server: TushareServer, endpoint: str) -> list[dict[str, Any]]:
    return [params for name, params in server.questions if name == endpoint]


def test_what_the_server_has_is_stored_once_each(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    outcome = run('a')
    for name in sorted(ALL):
        facts = ENDPOINTS[name]
        sent = {
            tuple(row.get(column) for column in facts.columns)
            for row in server.tables[name]
            if row['ts_code'] in NAMES and row['trade_date'] <= END
        }
        kept = [
            row
            for symbol in NAMES
            for row in zip(
                *(store.read_rows(tmp_path / 'a', facts, symbol).table.to_pydict().values()),
                strict=True,
            )
        ]
        assert set(kept) == sent
        assert len(kept) == len(sent)
    assert outcome.bars['valid'] + outcome.bars['suspended'] == sum(outcome.bars.values())
    assert outcome.bars['suspended'] >= 1
    assert not outcome.corrected
    assert [one.ts_code for one in outcome.securities] == sorted(NAMES)


def test_a_second_run_asks_for_nothing_and_changes_nothing(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    run('a')
    before = tree(tmp_path / 'a')
    server.questions.clear()
    outcome = run('a')
    assert {name for name, _ in server.questions}.isdisjoint(ALL)
    assert outcome.changes.total() == 0
    assert tree(tmp_path / 'a') == before


@pytest.mark.parametrize('middle', ['20230102', '20230217', '20230219', '20230330'])
def test_an_incremental_update_equals_a_full_fetch_bit_for_bit(
    run: Fetch, tmp_path: Path, middle: str
) -> None:
    run('full')
    run('parts', end=middle)
    run('parts')
    assert tree(tmp_path / 'parts') == tree(tmp_path / 'full')


def test_an_earlier_start_equals_a_full_fetch_too(run: Fetch, tmp_path: Path) -> None:
    run('full')
    run('parts', start=MIDDLE)
    run('parts')
    assert tree(tmp_path / 'parts') == tree(tmp_path / 'full')


def test_few_days_are_asked_for_as_a_whole_and_equal_those_by_symbol(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    run('full')
    run('parts', end='20230330')
    server.questions.clear()
    run('parts')
    assert [params.get('trade_date') for params in asked(server, 'daily')] == [END]
    assert tree(tmp_path / 'parts') == tree(tmp_path / 'full')


def test_a_symbol_that_joins_later_equals_one_that_was_there_from_the_start(
    run: Fetch, tmp_path: Path
) -> None:
    run('full')
    run('parts', names=NAMES[:2], end=MIDDLE)
    run('parts')
    assert tree(tmp_path / 'parts') == tree(tmp_path / 'full')


def test_what_today_has_is_asked_for_again_tomorrow(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    rows = server.tables['daily']
    late = [row for row in rows if row['trade_date'] == MIDDLE and row['ts_code'] != STOCKS[0]]
    server.tables['daily'] = [row for row in rows if row not in late]
    outcome = run('a', today=MIDDLE, end=MIDDLE)
    assert not outcome.holes, 'the day is not over'
    server.tables['daily'] = rows
    run('a', today='20230216')
    run('a')
    run('full')
    assert tree(tmp_path / 'a') == tree(tmp_path / 'full')


def test_a_correction_is_seen_counted_and_taken_over_by_refresh(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    run('a')
    for row in server.tables['adj_factor']:
        if row['ts_code'] == STOCKS[0] and row['trade_date'] == MIDDLE:
            row['adj_factor'] = 1.5
    server.tables['daily'] = [
        row
        for row in server.tables['daily']
        if (row['ts_code'], row['trade_date']) != (STOCKS[1], MIDDLE)
    ]
    assert not run('a').corrected, 'nobody asked for these days again'
    outcome = run('a', refresh=True)
    assert outcome.corrected == {f'adj_factor {STOCKS[0]}': 1, f'daily {STOCKS[1]}': 1}
    assert (outcome.changes['changed'], outcome.changes['removed']) == (1, 1)
    assert outcome.holes == {STOCKS[1]: [MIDDLE]}
    run('full')
    assert tree(tmp_path / 'a') == tree(tmp_path / 'full')


FAULTS = (
    'http_500', 'http_503', 'http_429', 'busy', 'rate_text', 'time_out', 'half_body', 'hang_up',
    'broken_json', 'no_data', 'missing_column', 'short_row', 'column_order', 'repeat_page',
    'has_more_forever', 'empty_frame', 'empty_more', 'other_symbol', 'null_key', 'double_rows',
    'nan_cells', 'text_numbers',
)  # fmt: skip


@pytest.mark.parametrize('endpoint', ['daily', 'adj_factor'])
@pytest.mark.parametrize('page', [1, 2])
def test_no_passing_fault_loses_or_doubles_a_row(
    server: TushareServer, run: Fetch, tmp_path: Path, endpoint: str, page: int
) -> None:
    part: dict[str, Any] = {
        'end': MIDDLE, 'names': STOCKS[1:], 'endpoints': frozenset((endpoint, 'suspend_d')),
    }  # fmt: skip
    run('good', **part)
    good = tree(tmp_path / 'good')
    for fault in FAULTS:
        server.misbehave(*[''] * (page - 1), fault, api_name=endpoint)
        run(fault, **part)
        assert tree(tmp_path / fault) == good, fault


@pytest.mark.parametrize('fault', ['http_500', 'empty_more', 'broken_json', 'wrong_token'])
def test_a_fault_that_stays_ends_the_run_and_the_next_one_goes_on(
    server: TushareServer, run: Fetch, tmp_path: Path, fault: str
) -> None:
    run('good')
    server.always['stk_limit'] = fault
    with pytest.raises(TushareError, match='Tushare stk_limit'):
        run('a')
    assert store.read_head(tmp_path / 'a', ENDPOINTS['daily'], STOCKS[0]).covered == (
        (START, END),
    ), 'what came before is kept'
    server.always.clear()
    server.questions.clear()
    run('a')
    assert all(params.get('ts_code') != STOCKS[0] for params in asked(server, 'daily'))
    assert tree(tmp_path / 'a') == tree(tmp_path / 'good')


def test_answers_for_days_that_a_broken_run_has_are_not_asked_for_again(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    names = [*STOCKS]
    tables = {'names': names, 'endpoints': frozenset(('daily', 'suspend_d'))}
    run('good', **tables)
    run('a', end='20230330', **tables)
    # One day of three symbols is asked for by day: it fails after suspensions are there.
    server.always['daily'] = 'http_500'
    with pytest.raises(TushareError):
        run('a', **tables)
    server.always.clear()
    server.questions.clear()
    run('a', **tables)
    assert asked(server, 'suspend_d') == []
    assert tree(tmp_path / 'a') == tree(tmp_path / 'good')


def test_refused_rows_are_kept_counted_and_rejected_in_the_bars(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    bad = next(
        row
        for row in server.tables['daily']
        if (row['ts_code'], row['trade_date']) == (STOCKS[0], MIDDLE)
    )
    bad['open'] = 'n.a.'
    outcome = run('a')
    assert outcome.rejected == {'daily: not_a_number': 1}
    assert outcome.bars['rejected:not_a_number'] == 1
    assert not outcome.holes
    listed = (tmp_path / 'a' / '_vendor' / 'rejected.csv').read_text()
    assert f'daily,{STOCKS[0]},{MIDDLE},not_a_number,open,' in listed
    assert 'n.a.' in listed
    bars = store.bars_path(tmp_path / 'a', STOCKS[0])
    _, report = load_bars(bars)
    assert report.counts == {'missing_price': 1}


def test_rows_of_days_on_which_the_exchanges_are_closed_are_left_out_and_counted(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    run('good')
    server.tables['adj_factor'] += [
        {'ts_code': STOCKS[0], 'trade_date': '20230108', 'adj_factor': 1.0}
    ]
    outcome = run('a')
    assert outcome.notes['closed_day'] == 1
    assert tree(tmp_path / 'a') == tree(tmp_path / 'good')


def test_an_open_day_without_a_row_is_a_hole_that_is_said(
    server: TushareServer, run: Fetch
) -> None:
    server.tables['daily'] = [
        row
        for row in server.tables['daily']
        if (row['ts_code'], row['trade_date']) != (STOCKS[0], '20230113')
    ]
    assert run('a').holes[STOCKS[0]] == ['20230113']


def test_progress_is_told_to_its_end(run: Fetch) -> None:
    told: list[Progress] = []
    run('a', end=MIDDLE, report=told.append)
    assert [one.done for one in told] == list(range(1, len(told) + 1))
    assert {one.total for one in told} == {len(told)}
    told.clear()
    run('a', end='20230216', report=told.append)
    assert told[-1].done == told[-1].total


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'start': '2023-01-02'}, ConfigError, 'start: '),
        ({'start': '20230401'}, ConfigError, 'after end'),
        ({'start': '19900101'}, ConfigError, 'before the first trading day'),
        ({'start': '20240701', 'end': '20240801'}, ConfigError, 'in the future'),
        ({'endpoints': frozenset(['daly'])}, ConfigError, 'endpoints: daly'),
        ({'names': ['没有']}, DataError, 'nothing to fetch'),
        ({'token': 'wrong'}, TushareError, 'auth'),
    ],
)
def test_what_cannot_be_fetched_is_a_named_error(
    run: Fetch, options: dict[str, Any], error: type[HeqisError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run('a', **options)


def test_days_outside_the_market_of_the_server_are_closed_and_nothing_is_missing(
    server: TushareServer, run: Fetch
) -> None:
    outcome = run('a', start='20150101', end='20240531')
    assert not outcome.holes
    assert outcome.bars['valid'] + outcome.bars['suspended'] == len(
        server.tables['daily'] + server.tables['suspend_d'] + server.tables['fund_daily']
    ) + sum(row['ts_code'] == NAMES[-1] for row in server.tables['index_daily'])


def test_an_end_after_the_calendar_is_named(server: TushareServer, run: Fetch) -> None:
    server.tables['trade_cal'] = [
        row for row in server.tables['trade_cal'] if row['cal_date'] <= '20231231'
    ]
    with pytest.raises(
        ConfigError, match='end 20240531: the calendar of this server ends on 2023'
    ):
        run('a', end='20240531')


def test_a_folder_of_something_else_stays_as_it_is_and_nothing_is_asked(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'thesis.txt').write_text('mine')
    with pytest.raises(DataError, match=r'thesis\.txt'):
        run('a')
    assert tree(tmp_path / 'a') == {'thesis.txt': b'mine'}
    assert not server.questions


def test_the_whole_store_loads_as_one_table(
    server: TushareServer, run: Fetch, tmp_path: Path
) -> None:
    outcome = run('a')
    table, report = load_bars(tmp_path / 'a')
    assert table.symbols == tuple(sorted(NAMES))
    assert report.counts == {}
    assert (report.valid, report.suspended) == (
        outcome.bars['valid'], outcome.bars['suspended'],
    )  # fmt: skip
    closes = {
        (row['ts_code'], row['trade_date']): row['close']
        for name in ('daily', 'fund_daily', 'index_daily')
        for row in server.tables[name]
    }
    days = [
        str(day).replace('-', '')
        for day in table.event_time_ns.astype('datetime64[ns]').astype('datetime64[D]')
    ]
    for s, symbol in enumerate(table.symbols):
        for t in np.flatnonzero(table.status[:, s] == BarStatus.VALID):
            assert table.values[t, CLOSE, s] == closes[symbol, days[t]]
