# SPDX-License-Identifier: Apache-2.0
"""What the columns of a file mean is told from its header, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from heqis_core.errors import DataError
from heqis_core.event_time import TimeParser
from heqis_core.io.columns import EXTRAS, find_layout, read_file

FILE = Path('bars.csv')
OHLC = 'open,high,low,close'


@pytest.mark.parametrize(
    ('header', 'kind', 'date', 'time', 'symbol', 'values'),
    [
        (
            'ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount',
            'tushare', 1, None, 0, (2, 3, 4, 5, 9, 10),
        ),
        (
            'trade_date,ts_code,close,open,high,low,vol,amount',
            'tushare', 0, None, 1, (3, 4, 5, 2, 6, 7),
        ),
        (
            'x_ts_code,x_trade_date,x_open,x_high,x_low,x_close,x_vol',
            'tushare', 1, None, 0, (2, 3, 4, 5, 6, None),
        ),
        (f'time,{OHLC}', 'ohlcv', 0, None, None, (1, 2, 3, 4, None, None)),
        (f'Date,{OHLC.title()},Adj Close,Volume', 'ohlcv', 0, None, None, (1, 2, 3, 4, 6, None)),
        (
            '<Date>, <Time>, <Open>, <High>, <Low>, <Close>, <Volume>',
            'ohlcv', 0, 1, None, (2, 3, 4, 5, 6, None),
        ),
        (f'date, time, {OHLC}, volumn, turnover', 'ohlcv', 0, 1, None, (2, 3, 4, 5, 6, None)),
        (f'"Date Time",{OHLC.upper()}', 'ohlcv', 0, None, None, (1, 2, 3, 4, None, None)),
        (f'time,symbol,date,{OHLC}', 'ohlcv', 2, 0, 1, (3, 4, 5, 6, None, None)),
        (f'time,timestamp,code,{OHLC},vol,money', 'ohlcv', 1, None, 2, (3, 4, 5, 6, 7, 8)),
        (f',{OHLC},volume', 'ohlcv', 0, None, None, (1, 2, 3, 4, 5, None)),
        (f'{OHLC},__index_level_0__', 'ohlcv', 4, None, None, (0, 1, 2, 3, None, None)),
        (
            '日期,股票代码,开盘,收盘,最高,最低,成交量,成交额',
            'ohlcv', 0, None, 1, (2, 4, 5, 3, 6, 7),
        ),
        (f'trade_date,{OHLC},vol,amount', 'ohlcv', 0, None, None, (1, 2, 3, 4, 5, 6)),
    ],
)  # fmt: skip
def test_layouts(
    header: str,
    kind: str,
    date: int,
    time: int | None,
    symbol: int | None,
    values: tuple[int | None],
) -> None:
    layout = find_layout(FILE, header.split(','))
    assert (layout.kind, layout.date, layout.time, layout.symbol) == (kind, date, time, symbol)
    assert layout.values == values


def test_only_tushare_counts_in_lots_and_thousands() -> None:
    tushare = find_layout(FILE, f'ts_code,trade_date,{OHLC},vol,amount'.split(','))
    assert list(tushare.scale) == [1, 1, 1, 1, 100, 1000]
    # Baostock has Tushare's ts_code and vol, but shares and CNY.
    baostock = find_layout(FILE, f',ts_code,{OHLC},pre_close,vol,amount'.split(','))
    assert list(baostock.scale) == [1, 1, 1, 1, 1, 1]


def test_clean_bars_beside_the_vendor_s_columns_are_in_shares_and_cny() -> None:
    header = f'ts_code,trade_date,event_time,{OHLC},volume,amount,suspended,raw_vol,raw_amount'
    layout = find_layout(FILE, header.split(','))
    assert (layout.date, layout.paused, layout.values[4:]) == (2, 9, (7, 8))
    assert list(layout.scale) == [1, 1, 1, 1, 1, 1]


def test_what_stands_beside_the_bars_is_found_by_its_names() -> None:
    header = f'date,{OHLC},factor,high_limit,pre_close,low_limit'.split(',')
    named = dict(zip(EXTRAS, find_layout(FILE, header).extras, strict=True))
    assert named == {'pre_close': 7, 'up_limit': 6, 'down_limit': 8, 'adj_factor': 5}
    # Bars do not need it: where two columns say it, none is believed.
    assert find_layout(FILE, [*header, 'pre_close']).extras == (None, 6, 8, 5)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_rows_come_with_their_extras_if_they_are_asked_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'a.{suffix}'
    columns = {name: ['10', '10'] for name in OHLC.split(',')}
    columns = {'date': ['20240102', '20240103'], **columns, 'factor': ['1.5', 'x']}
    if suffix == 'csv':
        rows = [','.join(columns), *map(','.join, zip(*columns.values(), strict=True))]
        path.write_text('\n'.join(rows) + '\n')
    else:
        parquet.write_table(pa.table(columns), path)
    names: dict[str, int] = {}
    rows_with = read_file(path, TimeParser(), names, extras=EXTRAS)
    assert list(rows_with.extras) == ['adj_factor']
    assert str(rows_with.extras['adj_factor'].tolist()) == '[1.5, nan]'
    assert names == {'a': 0}
    assert read_file(path, TimeParser(), names).extras == {}


def test_a_unit_in_the_header_counts() -> None:
    header = ['日期', '开盘', '最高', '最低', '收盘', '成交量(手)', '成交额（千元）']
    layout = find_layout(FILE, header)
    assert list(layout.scale) == [1, 1, 1, 1, 100, 1000]


def test_paused_column_is_found() -> None:
    assert find_layout(FILE, f',{OHLC},volume,paused'.split(',')).paused == 6


@pytest.mark.parametrize(
    ('header', 'named'),
    [
        (
            'a,b,c',
            r"found the columns 'a', 'b', 'c'; expected a date .*'open', 'high', 'low', 'close'",
        ),
        ('date,open,high,close', "expected 'low': name"),
        (f'idx,{OHLC}', 'expected a date'),
        ('x_trade_date,x_close', "expected 'open', 'high', 'low': name"),
        (','.join('abcdefghijklmnop'), "'l' and 4 more; expected"),
        (f'date,{OHLC},close', "two columns are named 'close'"),
        (f'date,{OHLC},Volume,volume', "two columns are named 'Volume'"),
    ],
)
def test_what_is_missing_is_named_with_file_and_line(header: str, named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        find_layout(FILE, header.split(','), 3)
    assert str(caught.value).startswith('bars.csv: line 3: ')
