# SPDX-License-Identifier: Apache-2.0
"""The file reader on real files of many vendors: whole, at the right times, in the right units."""

from __future__ import annotations

import csv
import math
from datetime import datetime, timezone

import numpy as np
import pytest

from heqis_core.bars import AMOUNT, CLOSE, VOLUME, BarStatus
from heqis_core.errors import DataError
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data

DAILY = 'ashare_daily'


def ns(text: str) -> int:
    """Return a UTC time such as 2024-01-02T07:00 as int64 ns."""
    return int(np.datetime64(text, 'ns').astype(np.int64))


def test_the_three_real_series() -> None:
    folder = shared_data() / 'ashare_daily/tushare_raw_2020_2024'
    table, report = load_bars(folder)
    assert table.symbols == ('000001.SZ', '600519.SH', '601318.SH')
    assert table.values.shape == (1212, 6, 3)
    assert (table.status == BarStatus.VALID).all()
    assert (report.rows, report.valid, report.counts) == (3636, 3636, {})
    for s, symbol in enumerate(table.symbols):
        with (folder / f'{symbol}.csv').open(newline='') as file:
            rows = list(csv.DictReader(file))[::-1]
        for name, index, scale in (
            ('close', CLOSE, 1),
            ('vol', VOLUME, 100),
            ('amount', AMOUNT, 1000),
        ):
            assert table.values[:, index, s].tolist() == [float(row[name]) * scale for row in rows]
        days = [datetime.fromtimestamp(t // 10**9, timezone.utc) for t in table.event_time_ns]
        assert [day.strftime('%Y%m%d %H:%M') for day in days] == [
            f'{row["trade_date"]} 07:00' for row in rows
        ]


@pytest.mark.parametrize(
    ('name', 'rows', 'first', 'last'),
    [
        ('benchmark_daily/csi300.csv', 3805, '2009-07-31T07:00', '2025-04-02T07:00'),
        ('benchmark_daily/sse50.csv', 4328, '2007-06-07T07:00', '2025-04-02T07:00'),
        ('benchmark_daily/sp500.csv', 4334, '2007-12-26T07:00', '2025-03-18T07:00'),
        ('benchmark_daily/corn_dce.csv', 4914, '2005-01-05T07:00', '2025-03-31T07:00'),
        ('ashare_index/000300_2013_2018.csv', 1423, '2013-01-04T07:00', '2018-11-09T07:00'),
        ('ashare_minute/SSE.600009Q_m1.csv', 15353, '2020-01-02T01:31', '2020-04-10T02:27'),
        (f'{DAILY}/wondertrader/SSE.600000Q_d.csv', 4753, '1999-11-10T07:00', '2019-12-16T07:00'),
        (f'{DAILY}/vnpy_tushare_qfq_2014_2020/000001.SZ.csv', 1488,
         '2014-01-02T07:00', '2020-02-13T07:00'),
        (f'{DAILY}/tushare_factor_2023_2025/600519.SH_techin.csv', 500,
         '2023-09-25T07:00', '2025-10-23T07:00'),
        ('futures_cn/CFFEX.IF.HOT_m5.csv.gz', 68145, '2014-01-02T01:35', None),
    ],
)  # fmt: skip
def test_real_files_load_whole(name: str, rows: int, first: str, last: str | None) -> None:
    table, report = load_bars(shared_data() / name)
    assert (report.rows, report.valid, report.counts) == (rows, rows, {})
    assert len(table) == rows
    assert table.event_time_ns[0] == ns(first)
    assert last is None or table.event_time_ns[-1] == ns(last)


def test_real_pauses_are_suspensions() -> None:
    path = shared_data() / 'ashare_daily/joinquant_qfq_limits_2005_2023/000004.XSHE.csv'
    with path.open(newline='') as file:
        paused = sum(float(row['paused']) > 0 for row in csv.DictReader(file))
    table, report = load_bars(path)
    assert report.suspended == (table.status == BarStatus.SUSPENDED).sum() == paused > 100
    assert report.valid == 4492 - paused


def test_real_file_without_bars_is_named() -> None:
    path = shared_data() / 'ashare_daily/tushare_factor_2023_2025/trade_cal.csv'
    with pytest.raises(
        DataError, match=r"trade_cal\.csv: line 1: no bars: found the columns 'cal_date'"
    ):
        load_bars(path)


def test_shares_and_cny_agree_in_real_files() -> None:
    # Amount over volume is the average price: it lies within low and high, or the units are wrong.
    for name in (
        'tushare_raw_2020_2024/600519.SH.csv',
        'baostock_600519_2005_2024_MIT/600519.SH.csv',
    ):
        table, _ = load_bars(shared_data() / 'ashare_daily' / name)
        _, high, low, _, volume, amount = table.values[-200:, :, 0].T
        ratio = np.nanmedian(amount / volume / ((high + low) / 2))
        assert math.isclose(ratio, 1, rel_tol=0.3), name
