# SPDX-License-Identifier: Apache-2.0
"""The quirks of real files: each is said, with its count, and nothing else is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from heqis_core.bars import BarStatus
from heqis_core.io.check import DataCheck, check_files
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data

SUSPENDED = int(BarStatus.SUSPENDED)


class Real(NamedTuple):
    """A real file or folder and what must be said of it."""

    name: str
    suspicious: dict[str, int] = {}  # noqa: RUF012
    rejected: dict[str, int] = {}  # noqa: RUF012
    suspended: int = 0
    actions: int = 0


REAL = (
    Real('ashare_daily/tushare_raw_2020_2024', actions=24),
    # Two date formats; two files without a last end of line; SSE50 repeats two days of 2007.
    Real('benchmark_daily', {'unfinished': 2, 'stale_repeat': 2}),
    # What is called daily of a stock is hfq.
    Real('ashare_daily/tushare_factor_2023_2025/002594.SZ_d.csv', {'looks_adjusted': 1},
         actions=2),
    Real('ashare_daily/tushare_factor_2023_2025/600519.SH_d.csv', {'looks_adjusted': 1},
         actions=6),
    # The factor's blips of 2024-06-25 and 26.
    Real('ashare_daily/tushare_factor_2023_2025/600519.SH_techin.csv', {'factor_blip': 2},
         actions=4),
    Real('ashare_daily/tushare_factor_2023_2025/600036.SH_techin.csv', {'factor_blip': 2},
         actions=2),
    Real('ashare_daily/tushare_factor_2023_2025/002594.SZ_techin.csv', {'factor_blip': 2},
         actions=2),
    # What is called technical data of a fund is its index; the fund's own bars are raw.
    Real('ashare_daily/tushare_factor_2023_2025/510300.SH_techin.csv'),
    Real('ashare_daily/tushare_factor_2023_2025/510300.SH_d.csv', actions=2),
    # qfq beside its factor; the first day after the share reform of 2007 had no limit.
    Real('ashare_daily/joinquant_qfq_limits_2005_2023/000001.XSHE.csv',
         {'looks_adjusted': 1, 'price_jump': 1}, suspended=148, actions=14),
    Real('ashare_daily/vnpy_tushare_qfq_2014_2020/000001.SZ.csv', {'looks_adjusted': 1}),
    # Raw prices and nothing that tells the seven times that shares were given.
    Real('ashare_daily/wondertrader', {'price_jump': 7}),
    Real('ashare_daily/baostock_600519_2005_2024_MIT', {'looks_adjusted': 1, 'price_jump': 1},
         suspended=68),
    Real('ashare_index'),
    # 64 minutes without a trade: no suspensions.
    Real('ashare_minute'),
)  # fmt: skip


def reasons(found: DataCheck) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in found.suspects:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return counts


@pytest.mark.parametrize('real', REAL, ids=[real.name.split('/', 1)[-1] for real in REAL])
def test_the_quirks_of_real_files_are_said_and_nothing_else(real: Real) -> None:
    found = check_files(shared_data() / real.name)
    assert reasons(found) == real.suspicious
    assert found.report.counts == real.rejected
    assert found.report.suspended == real.suspended
    assert sum(len(one.actions) for one in found.symbols) == real.actions


@pytest.mark.parametrize(
    ('name', 'column'),
    [
        ('joinquant_qfq_limits_2005_2023/000001.XSHE.csv', 'paused'),
        ('joinquant_qfq_limits_2005_2023/000004.XSHE.csv', 'paused'),
        ('baostock_600519_2005_2024_MIT/600519.SH.csv', 'paused'),
    ],
)
def test_real_suspensions_are_found_where_the_vendor_s_mark_is_taken_away(
    tmp_path: Path, name: str, column: str
) -> None:
    path = shared_data() / 'ashare_daily' / name
    marked, _ = load_bars(path)
    with path.open(newline='') as file:
        rows = list(csv.reader(file))
    at = rows[0].index(column)
    with (tmp_path / path.name).open('w', newline='') as file:
        csv.writer(file).writerows([row[:at] + row[at + 1 :] for row in rows])
    found, report = load_bars(tmp_path / path.name)
    assert (found.status == marked.status).all()
    assert report.disguised == report.suspended == (marked.status == SUSPENDED).sum() > 60


def test_vendor_files_that_say_different_things_of_one_symbol_are_not_believed() -> None:
    # hfq in *_d, raw in *_techin, under one ts_code: 1,500 days of three stocks.
    found = check_files(shared_data() / 'ashare_daily/tushare_factor_2023_2025')
    stocks = [
        one for one in found.symbols if one.symbol in ('600519.SH', '600036.SH', '002594.SZ')
    ]
    assert [one.rejected for one in stocks] == [{'conflicting_duplicate': 1000}] * 3
    assert all(one.valid == 0 and not one.actions for one in stocks)
    unusable = {Path(one.path).name for one in found.files if one.error}
    assert {'trade_cal.csv', 'column_description.csv', '510300.SH_adj_d.csv'} <= unusable
    for one in found.symbols:
        assert one.rows == one.valid + one.suspended + sum(one.rejected.values())
