# SPDX-License-Identifier: Apache-2.0
"""What the local Tushare server serves: a simulated market, or real rows of `daily` from CSV.

What the files lack is derived where rows tell it (factors from `pre_close`, suspensions and closed
days from missing rows, limits from the rules), else made up (names, `daily_basic`), the same each
time.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from heqis_core.bars import AMOUNT, CLOSE, VOLUME, BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.tushare_endpoints import ENDPOINTS, parse_day
from heqis_core.io.tushare_query import UNITS, VENDOR_FIELDS, days_between
from heqis_core.market import board_of, from_ticks, limit_percent, limit_ticks, to_ticks
from heqis_core.simulator import MarketSimulator, default_symbols

Row = dict[str, Any]
Tables = dict[str, list[Row]]
"""Rows by endpoint, each a dictionary of its columns, newest first."""

NAMES = {
    '600519.SH': '贵州茅台', '000858.SZ': '五 粮 液', '000568.SZ': '泸州老窖',
    '000001.SZ': '平安银行', '600036.SH': '招商银行', '601166.SH': '兴业银行',
    '300750.SZ': '宁德时代', '002594.SZ': '比亚迪', '688981.SH': '中芯国际',
    '002415.SZ': '海康威视',
    '000002.SZ': '万  科Ａ', '601318.SH': '中国平安', '000004.SZ': '*ST国华',
}  # fmt: skip
"""Stocks with names; the first `N_EXAMPLE` are those of config/universe.example.txt."""
N_EXAMPLE = 10
FUND, INDICES = '510300.SH', ('000300.SH', '399300.SZ')
_NO_LIMITS = {'up_limit': 99999.99, 'down_limit': 0.0}
_CALENDAR_FROM = '19901219'
_EXCHANGES = {'SH': 'SSE', 'SZ': 'SZSE', 'BJ': 'BSE'}


def today() -> str:
    """Return the day in Shanghai, YYYYMMDD."""
    return f'{datetime.now(ZoneInfo("Asia/Shanghai")):%Y%m%d}'


def weekdays_until_yesterday(start: str) -> int:
    """Return how many weekdays there are from `start` on; raise ConfigError if there is none."""
    first = parse_day(start, 'start')
    n_days = int(np.busday_count(first, parse_day(today(), 'today')))
    if n_days < 1:
        raise ConfigError(f'start {start}: no weekday until yesterday; choose an earlier one')
    return n_days


def named_stocks(n: int) -> tuple[str, ...]:
    """Return `n` stocks, those with names first; raise ConfigError if so many cannot be made."""
    return tuple(dict.fromkeys((*NAMES, *default_symbols(n))))[:n]


def simulated_tables(
    symbols: Sequence[str] | int, n_days: int, *, seed: int = 7, start: date | str = '2023-01-02'
) -> Tables:
    """Return a market of stocks, a fund and an index under two codes, `n_days` weekdays long.

    A longer market begins with the rows of a shorter one. Raises ConfigError for symbols or a
    start that cannot be simulated.
    """
    stocks = named_stocks(symbols) if isinstance(symbols, int) else tuple(symbols)
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
            values = block.values[:, s]
            if name in others:
                values = _other_values(values, before[name] or 1.0, is_fund=name == FUND)
            elif block.status[s] != BarStatus.VALID:
                suspended.append((name, days[-1]))
                continue
            row = _daily_row(name, days[-1], values, before[name])
            before[name] = row['close']
            daily[name].append(row)
    tables = _tables({name: daily[name] for name in stocks}, days, suspended)
    tables['fund_daily'] = daily[FUND][::-1]
    tables['index_daily'] = [
        {**row, 'ts_code': code} for code in INDICES for row in daily[INDICES[0]][::-1]
    ]
    names = {'name': '沪深300ETF', 'status': 'L', 'market': 'E', 'list_date': days[0]}
    tables['fund_basic'] = [_row('fund_basic', ts_code=FUND, **names)]
    tables['index_basic'] = [
        _row(
            'index_basic',
            ts_code=code,
            name='沪深300',
            market=_EXCHANGES[code[-2:]],
            list_date=days[0],
        )
        for code in INDICES
    ]
    return tables


def real_tables(folder: Path) -> Tables:
    """Return the rows of CSV files with the columns of `daily`, any number of stocks in a file.

    Raises DataError for a folder without such files, or a row that is none of `daily`.
    """
    paths = sorted(folder.glob('*.csv'))
    if not paths:
        raise DataError(f'{folder}: no CSV file; expected a folder of files with rows of daily')
    daily: dict[str, list[Row]] = {}
    for path in paths:
        for row in _read_csv(path):
            daily.setdefault(row['ts_code'], []).append(row)
    if not daily:
        raise DataError(f'{folder}: no row in {len(paths)} CSV files; expected rows of daily')
    for rows in daily.values():
        rows.sort(key=lambda row: row['trade_date'])
    days = sorted({row['trade_date'] for rows in daily.values() for row in rows})
    suspended = [
        (name, day)
        for name, rows in daily.items()
        for day in sorted(set(days).difference(row['trade_date'] for row in rows))
    ]
    return _tables(daily, days, suspended)


def _read_csv(path: Path) -> list[Row]:
    columns = ENDPOINTS['daily'].columns
    rows = []
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f'{path}: no column {", ".join(missing)}; expected those of daily: '
                    f'{", ".join(columns)}'
                )
            rows = [_real_row(f'{path}: line {reader.line_num}', cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f'{path}: cannot be read: {error}; expected CSV in UTF-8') from error
    return rows


def _real_row(where: str, cells: Mapping[str, str | None]) -> Row:
    row: Row = {name: cells[name] or '' for name in ENDPOINTS['daily'].texts}
    if row['ts_code'][-3:] not in {f'.{name}' for name in _EXCHANGES}:
        raise DataError(f"{where}: ts_code: '{row['ts_code']}'; expected one such as 600519.SH")
    parse_day(row['trade_date'], f'{where}: trade_date')
    for name in ENDPOINTS['daily'].numbers:
        try:
            row[name] = float(cells[name] or '')
        except ValueError:
            row[name] = np.nan
        if not np.isfinite(row[name]) or (name == 'pre_close' and row[name] <= 0):
            raise DataError(f"{where}: {name}: '{cells[name]}'; expected a number")
    return row


def _other_values(values: Any, before: float, *, is_fund: bool) -> Any:
    """Return the bar of a fund or an index, which the simulator makes as those of stocks."""
    if not np.isfinite(values[CLOSE]):
        # Funds and indices are not suspended: the price stands still, and one lot is traded.
        return np.array([before] * 4 + [UNITS[VOLUME], UNITS[VOLUME] * before])
    # A tenth has the tick of a fund, 0.001 CNY, and so its limits.
    return values * np.array([0.1] * 4 + [1.0, 0.1]) if is_fund else values


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
    first_days = {name: rows[0]['trade_date'] if rows else days[0] for name, rows in daily.items()}
    for name, rows in daily.items():
        by_day = {row['trade_date']: row for row in rows}
        first = first_days[name]
        factor, before = 1.0, 0.0
        for day in days:
            if day < first:
                continue
            key = {'ts_code': name, 'trade_date': day}
            row = by_day.get(day)
            if row is not None:
                # Ex-right: the exchange's reference price is not the last close.
                factor *= before / row['pre_close'] if before else 1.0
                before = row['close']
            # A factor has rows on days without a bar, too; the vendor gives it four decimals.
            tables['adj_factor'].append({**key, 'adj_factor': round(factor, 4)})
            if (name, day) in idle:
                tables['suspend_d'].append({**key, 'suspend_timing': None, 'suspend_type': 'S'})
            if row is None:
                continue
            tables['daily'].append(row)
            tables['stk_limit'].append({**key, **_limits(row, is_new=day == first)})
            tables['daily_basic'].append({**key, **_basic(row)})
    for name in ('daily', 'adj_factor', 'stk_limit', 'daily_basic', 'suspend_d'):
        tables[name].sort(key=lambda row: row['trade_date'], reverse=True)
    tables['trade_cal'] = _calendar(days)
    tables['stock_basic'] = [_stock(name, first) for name, first in first_days.items()]
    return tables


def _row(endpoint: str, **cells: Any) -> Row:
    return {**dict.fromkeys(ENDPOINTS[endpoint].columns), **cells}


def _stock(symbol: str, day: str) -> Row:
    return _row(
        'stock_basic',
        ts_code=symbol,
        symbol=symbol[:6],
        name=NAMES.get(symbol, f'模拟{symbol[:6]}'),
        exchange=_EXCHANGES[symbol[-2:]],
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
    """Return the calendar as far as the vendor's: closed on every day on which no stock has a row.

    Before its first and after its last day there is no market, so nothing is missing there.
    """
    open_days = set(days)
    before = ''
    rows = []
    last_year = int(max(days[-1], today())[:4])
    for day in days_between(min(_CALENDAR_FROM, days[0]), f'{last_year + 1}1231'):
        is_open = day in open_days
        cells = {'cal_date': day, 'is_open': int(is_open), 'pretrade_date': before}
        rows.append({'exchange': 'SSE', **cells})
        before = day if is_open else before
    return rows[::-1]
