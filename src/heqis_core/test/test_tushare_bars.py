# SPDX-License-Identifier: Apache-2.0
"""Clean bars of fetched rows: joined by day, judged by the rules, nothing filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('pyarrow')

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.io import tushare_store as store
from heqis_core.io.files import load_bars
from heqis_core.io.testing_tushare_tables import real_tables
from heqis_core.io.tushare_bars import build_bars, count_statuses, update_bars
from heqis_core.io.tushare_endpoints import ENDPOINTS, SERIES, check_rows
from heqis_core.io.tushare_store import VendorRows
from heqis_core.testing import shared_data

SYMBOL = '600519.SH'
DAYS = ['20240102', '20240103', '20240104', '20240105']


def rows(name: str, items: list[dict[str, Any]]) -> VendorRows:
    columns = ENDPOINTS[name].columns
    cells = [[{'ts_code': SYMBOL, **item}.get(column) for column in columns] for item in items]
    return store.to_answer(ENDPOINTS[name], check_rows(ENDPOINTS[name], columns, cells))


def bar(day: str, **changes: Any) -> dict[str, Any]:
    sent = {
        'open': 10.0, 'high': 11.0, 'low': 9.0, 'close': 10.5, 'pre_close': 10.0, 'change': 0.5,
        'pct_chg': 5.0, 'vol': 12.5, 'amount': 13.1,
    }  # fmt: skip
    return {'trade_date': day, **sent, **changes}


def build(**tables: list[dict[str, Any]]) -> dict[str, list[Any]]:
    made = build_bars(SYMBOL, 'stock', {name: rows(name, items) for name, items in tables.items()})
    columns: dict[str, list[Any]] = made.to_pydict()
    return columns


def test_units_times_and_the_columns_as_sent() -> None:
    made = build(daily=[bar(DAYS[0])])
    assert made['volume'] == [1250.0]
    assert made['amount'] == [13_100.0]
    assert (made['raw_vol'], made['raw_amount'], made['raw_pct_chg']) == ([12.5], [13.1], [5.0])
    assert made['event_time'][0].isoformat() == '2024-01-02T07:00:00+00:00'
    assert (made['status'], made['fault']) == (['VALID'], [None])
    assert made['suspended'] == [None], 'nobody asked for suspensions'
    assert made['adj_factor'] == made['up_limit'] == made['turnover_rate'] == [None]


def test_endpoints_join_by_day_and_nothing_is_filled() -> None:
    made = build(
        daily=[bar(DAYS[0]), bar(DAYS[2])],
        adj_factor=[{'trade_date': day, 'adj_factor': 1.0 + n} for n, day in enumerate(DAYS)],
        stk_limit=[
            {'trade_date': DAYS[2], 'up_limit': 11.0, 'down_limit': 9.0, 'pre_close': 10.0}
        ],
        daily_basic=[{'trade_date': DAYS[0], 'turnover_rate': 0.5}],
        suspend_d=[{'trade_date': DAYS[1], 'suspend_type': 'S'}],
    )
    assert made['trade_date'] == DAYS[:3]
    assert made['status'] == ['VALID', 'SUSPENDED', 'VALID']
    assert made['suspended'] == [False, True, False]
    assert made['adj_factor'] == [1.0, 2.0, 3.0]
    assert made['close'] == [10.5, None, 10.5]
    assert made['up_limit'] == [None, None, 11.0]
    assert made['turnover_rate'] == [0.5, None, None]


@pytest.mark.parametrize(
    ('up', 'down'), [(99999.99, 0.0), (100000.0, 0.0), (999999.999, 0.01), (None, None)]
)
def test_limit_sentinels_mean_no_limit_and_stay_beside(up: float, down: float) -> None:
    made = build(
        daily=[bar(DAYS[0])],
        stk_limit=[{'trade_date': DAYS[0], 'up_limit': up, 'down_limit': down}],
    )
    assert made['up_limit'] == made['down_limit'] == [None]
    assert (made['raw_up_limit'], made['raw_down_limit']) == ([up], [down])


def test_a_bar_that_breaks_a_rule_is_rejected_with_its_reason_and_its_cells_beside() -> None:
    made = build(daily=[bar(DAYS[0]), bar(DAYS[1], high=8.0), bar(DAYS[2], close=None)])
    assert made['status'] == ['VALID', 'REJECTED', 'REJECTED']
    assert made['fault'] == [None, 'high_below_low', 'missing_price']
    assert made['open'] == [10.0, None, None]
    assert made['raw_high'] == [11.0, 8.0, 11.0]


def test_a_row_that_was_no_row_is_rejected_on_its_day() -> None:
    made = build(daily=[bar(DAYS[0]), bar(DAYS[1], open='x')])
    assert made['trade_date'] == DAYS[:2]
    assert made['fault'] == [None, 'not_a_number']
    assert made['raw_close'] == [10.5, None]


def test_a_halt_of_some_minutes_is_no_suspension_but_a_day_without_trades_is() -> None:
    made = build(
        daily=[bar(DAYS[0]), bar(DAYS[1], vol=0.0, amount=0.0), bar(DAYS[2])],
        suspend_d=[
            {'trade_date': DAYS[0], 'suspend_type': 'S', 'suspend_timing': '09:30-10:00'},
            {'trade_date': DAYS[1], 'suspend_type': 'S'},
            {'trade_date': DAYS[2], 'suspend_type': 'R'},
        ],
    )
    assert made['status'] == ['VALID', 'SUSPENDED', 'VALID']
    assert made['close'] == [10.5, None, 10.5]
    assert made['raw_close'] == [10.5, 10.5, 10.5]


def test_the_file_reader_reads_the_clean_file(tmp_path: Path) -> None:
    tables = {
        'daily': [bar(DAYS[0]), bar(DAYS[1], high=8.0), bar(DAYS[3])],
        'suspend_d': [{'trade_date': DAYS[2], 'suspend_type': 'S'}],
    }
    for name, items in tables.items():
        store.write_rows(tmp_path, ENDPOINTS[name], SYMBOL, rows(name, items))
    made = update_bars(tmp_path, SYMBOL, 'stock')
    assert count_statuses(made) == {'valid': 2, 'rejected:high_below_low': 1, 'suspended': 1}
    table, report = load_bars(store.bars_path(tmp_path, SYMBOL))
    assert table.symbols == (SYMBOL,)
    assert table.event_time_ns.tolist() == [at.value for at in made['event_time'].to_pandas()]
    assert table.status[:, 0].tolist() == [
        BarStatus.VALID, BarStatus.REJECTED, BarStatus.SUSPENDED, BarStatus.VALID,
    ]  # fmt: skip
    assert table.values[0, :, 0].tolist() == [10.0, 11.0, 9.0, 10.5, 1250.0, 13_100.0]
    assert (report.rows, report.valid, report.suspended) == (4, 2, 1)


def test_bars_are_written_again_only_when_their_rows_have_changed(tmp_path: Path) -> None:
    assert update_bars(tmp_path, SYMBOL, 'stock') is None
    store.write_rows(tmp_path, ENDPOINTS['daily'], SYMBOL, rows('daily', [bar(DAYS[0])]))
    update_bars(tmp_path, SYMBOL, 'stock')
    path = store.bars_path(tmp_path, SYMBOL)
    first = path.stat()
    update_bars(tmp_path, SYMBOL, 'stock')
    assert path.stat().st_ino == first.st_ino, 'not replaced'
    factor = [{'trade_date': DAYS[0], 'adj_factor': 2.0}]
    store.write_rows(tmp_path, ENDPOINTS['adj_factor'], SYMBOL, rows('adj_factor', factor))
    assert update_bars(tmp_path, SYMBOL, 'stock')['adj_factor'].to_pylist() == [2.0]
    assert path.stat().st_ino != first.st_ino


def test_no_rows_make_no_bars() -> None:
    made = build_bars(SYMBOL, 'index', {'index_daily': store.no_rows(ENDPOINTS['index_daily'])})
    assert len(made) == 0
    assert count_statuses(made) == {}


def test_real_rows_become_the_bars_that_the_file_reader_makes_of_the_csv() -> None:
    folder = shared_data() / 'ashare_daily/tushare_raw_2020_2024'
    table, _ = load_bars(folder)
    tables = real_tables(folder)
    for s, symbol in enumerate(table.symbols):
        given = {
            name: rows(name, [row for row in tables[name] if row['ts_code'] == symbol])
            for name in SERIES['stock']
        }
        sorted_rows = {
            name: store.merge(
                ENDPOINTS[name], store.no_rows(ENDPOINTS[name]), one, '19900101', '20991231', ''
            )[0]
            for name, one in given.items()
        }
        made = build_bars(symbol, 'stock', sorted_rows)
        values = np.stack([made[name].to_numpy() for name in BAR_FIELDS], axis=1)
        assert values.tobytes() == np.ascontiguousarray(table.values[:, :, s]).tobytes()
        assert set(made['status'].to_pylist()) == {'VALID'}
