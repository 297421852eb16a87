# SPDX-License-Identifier: Apache-2.0
"""What the local Tushare server serves: a simulated market, or real rows of `daily` from CSV.

What the files lack (calendar, factors, limits, basics, names) is made up, the same each time.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from heqis_core.bars import AMOUNT, CLOSE, VOLUME, BarStatus
from heqis_core.io.tushare_endpoints import ENDPOINTS
from heqis_core.io.tushare_query import UNITS, VENDOR_FIELDS, days_between
from heqis_core.market import board_of, from_ticks, limit_percent, limit_ticks, to_ticks
from heqis_core.simulator import MarketSimulator, default_symbols

Row = dict[str, Any]
Tables = dict[str, list[Row]]
"""Rows by endpoint, each a dictionary of its columns, newest first."""

NAMES = {
    '600519.SH': '贵州茅台', '000858.SZ': '五 粮 液', '000001.SZ': '平安银行',
    '000002.SZ': '万  科Ａ', '601318.SH': '中国平安', '300750.SZ': '宁德时代',
    '000004.SZ': '*ST国华',
}  # fmt: skip
FUND, INDICES = '510300.SH', ('000300.SH', '399300.SZ')
_NO_LIMITS = {'up_limit': 99999.99, 'down_limit': 0.0}


def simulated_tables(
    symbols: Sequence[str] | int, n_days: int, *, seed: int = 7, start: str = '2023-01-02'
) -> Tables:
    """Return a market of stocks, a fund and an index under two codes, `n_days` weekdays long."""
    stocks = default_symbols(symbols) if isinstance(symbols, int) else tuple(symbols)
    others = (FUND, INDICES[0])
    simulator = MarketSimulator([*stocks, *others], seed, start)
    daily: dict[str, list[Row]] = {name: [] for name in (*stocks, *others)}
    suspended: list[tuple[str, str]] = []
    days = []
    before = dict.fromkeys(daily, 0.0)
    for _ in range(n_days):
        block = simulator.next_block()
        moment = datetime.fromtimestamp(block.event_time_ns / 1e9, timezone.utc)
        days.append(f'{moment:%Y%m%d}')
        for s, name in enumerate(block.symbols):
            if block.status[s] != BarStatus.VALID:
                suspended.append((name, days[-1]))
                continue
            row = _daily_row(name, days[-1], block.values[:, s], before[name])
            before[name] = row['close']
            daily[name].append(row)
    tables = _tables({name: daily[name] for name in stocks}, days, suspended)
    tables['fund_daily'] = daily[FUND][::-1]
    tables['index_daily'] = [
        {**row, 'ts_code': code} for code in INDICES for row in daily[INDICES[0]][::-1]
    ]
    return tables


def real_tables(folder: Path) -> Tables:
    """Return the rows of CSV files with the columns of `daily`, one file a stock."""
    daily: dict[str, list[Row]] = {}
    for path in sorted(folder.glob('*.csv')):
        with path.open(encoding='utf-8', newline='') as file:
            for cells in csv.DictReader(file):
                row: Row = {
                    name: cells[name] if name in ENDPOINTS['daily'].texts else float(cells[name])
                    for name in ENDPOINTS['daily'].columns
                }
                daily.setdefault(row['ts_code'], []).append(row)
    for rows in daily.values():
        rows.sort(key=lambda row: row['trade_date'])
    days = sorted({row['trade_date'] for rows in daily.values() for row in rows})
    suspended = [
        (name, day)
        for name, rows in daily.items()
        for day in sorted(set(days).difference(row['trade_date'] for row in rows))
    ]
    return _tables(daily, days, suspended)


def _daily_row(symbol: str, day: str, values: Any, before: float) -> Row:
    sent = [round(float(value) / unit, 4) for value, unit in zip(values, UNITS, strict=True)]
    close = sent[CLOSE]
    before = before or close
    return {
        'ts_code': symbol,
        'trade_date': day,
        **dict(zip(VENDOR_FIELDS[:4], sent[:4], strict=True)),
        'pre_close': before,
        'change': round(close - before, 4),
        'pct_chg': round((close / before - 1) * 100, 4),
        'vol': sent[VOLUME],
        'amount': sent[AMOUNT],
    }


def _tables(
    daily: Mapping[str, list[Row]], days: list[str], suspended: list[tuple[str, str]]
) -> Tables:
    """Return all tables of stocks whose rows are given oldest first."""
    tables: Tables = {name: [] for name in ENDPOINTS}
    idle = set(suspended)
    for index, (name, rows) in enumerate(daily.items()):
        by_day = {row['trade_date']: row for row in rows}
        for n, day in enumerate(days):
            key = {'ts_code': name, 'trade_date': day}
            # A factor has rows on days without a bar, too.
            tables['adj_factor'].append({**key, 'adj_factor': 1.0 + 0.125 * index})
            if (name, day) in idle:
                tables['suspend_d'].append({**key, 'suspend_timing': None, 'suspend_type': 'S'})
            if day not in by_day:
                continue
            row = by_day[day]
            tables['daily'].append(row)
            tables['stk_limit'].append({**key, **_limits(row, is_new=n == 0)})
            tables['daily_basic'].append({**key, **_basic(row)})
    for name in ('daily', 'adj_factor', 'stk_limit', 'daily_basic', 'suspend_d'):
        tables[name].sort(key=lambda row: row['trade_date'], reverse=True)
    tables['trade_cal'] = _calendar(days)
    tables['stock_basic'] = [_stock(name, days[0]) for name in daily]
    tables['fund_basic'] = [
        _row(
            'fund_basic',
            ts_code=FUND,
            name='沪深300ETF',
            status='L',
            market='E',
            list_date=days[0],
        )
    ]
    tables['index_basic'] = [
        _row(
            'index_basic',
            ts_code=code,
            name='沪深300',
            market={'SH': 'SSE', 'SZ': 'SZSE'}[code[-2:]],
            list_date=days[0],
        )
        for code in INDICES
    ]
    return tables


def _row(endpoint: str, **cells: Any) -> Row:
    return {**dict.fromkeys(ENDPOINTS[endpoint].columns), **cells}


def _stock(symbol: str, day: str) -> Row:
    return _row(
        'stock_basic',
        ts_code=symbol,
        symbol=symbol[:6],
        name=NAMES.get(symbol, f'模拟{symbol[:6]}'),
        exchange={'SH': 'SSE', 'SZ': 'SZSE', 'BJ': 'BSE'}[symbol[-2:]],
        list_status='L',
        list_date=day,
    )


def _limits(row: Row, *, is_new: bool) -> Row:
    day = row['trade_date']
    percent = limit_percent(
        board_of(row['ts_code']), date(int(day[:4]), int(day[4:6]), int(day[6:]))
    )
    if is_new or percent is None:
        return {'pre_close': row['pre_close'], **_NO_LIMITS}
    down, up = limit_ticks(to_ticks(row['pre_close']), percent)
    limits = from_ticks(np.array([up, down], np.int64)).tolist()
    return {'pre_close': row['pre_close'], 'up_limit': limits[0], 'down_limit': limits[1]}


def _basic(row: Row) -> Row:
    cells = dict.fromkeys(ENDPOINTS['daily_basic'].numbers)
    shares = 1_000_000.0
    return {
        **cells,
        'close': row['close'],
        'turnover_rate': round(row['vol'] / shares, 4),
        'volume_ratio': 1.0,
        'total_share': shares,
        'float_share': shares,
        'total_mv': round(row['close'] * shares, 4),
    }


def _calendar(days: list[str]) -> list[Row]:
    """Return the calendar of whole years, closed on days between on which no stock has a row."""
    open_days = set(days)
    before = ''
    rows = []
    for day in days_between(f'{days[0][:4]}0101', f'{days[-1][:4]}1231'):
        is_weekday = date(int(day[:4]), int(day[4:6]), int(day[6:])).weekday() < 5
        is_open = day in open_days or (is_weekday and not days[0] <= day <= days[-1])
        cells = {'cal_date': day, 'is_open': int(is_open), 'pretrade_date': before}
        rows.append({'exchange': 'SSE', **cells})
        before = day if is_open else before
    return rows[::-1]
