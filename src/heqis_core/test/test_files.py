# SPDX-License-Identifier: Apache-2.0
"""Files to bars: each layout, each kind of bad input, and the real files."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heqis_core.bars import AMOUNT, VOLUME, BarStatus, BarTable
from heqis_core.clean import CleaningReport, clean_rows
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.files import load_bars

HEADER = 'date,open,high,low,close,volume'
GOOD = '{},10,11,9,10.5,100'


def ns(text: str) -> int:
    """Return a UTC time such as 2024-01-02T07:00 as int64 ns."""
    return int(np.datetime64(text, 'ns').astype(np.int64))


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    """Write a CSV file of these rows and return its path."""
    path.write_text('\n'.join([header, *rows]) + '\n', encoding='utf-8')
    return path


def tushare(symbol: str, days: list[int]) -> list[str]:
    """Return `daily` rows of January 2024."""
    return [f'{symbol},202401{day:02d},10,11,9,10.5,10,0.5,5.0,1234.5,1300.25' for day in days]


TUSHARE = 'ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount'


def same(one: BarTable, other: BarTable) -> bool:
    """Return whether two tables are equal bit for bit."""
    return (
        one.symbols == other.symbols
        and one.event_time_ns.tobytes() == other.event_time_ns.tobytes()
        and one.values.tobytes() == other.values.tobytes()
        and one.status.tobytes() == other.status.tobytes()
    )


def test_tushare_rows_become_shares_and_cny_oldest_first(tmp_path: Path) -> None:
    path = write(tmp_path / 'x.csv', *tushare('600519.SH', [4, 3, 2]), header=TUSHARE)
    table, report = load_bars(path)
    assert table.symbols == ('600519.SH',)
    assert table.event_time_ns.tolist() == [ns(f'2024-01-0{day}T07:00') for day in (2, 3, 4)]
    assert table.values[0, :, 0].tolist() == [10, 11, 9, 10.5, 123450, 1300250]
    assert (report.rows, report.valid, report.counts) == (3, 3, {})


def test_one_file_for_each_symbol(tmp_path: Path) -> None:
    write(tmp_path / '000001.SZ.csv', *map(GOOD.format, ['2024-01-02', '2024-01-03']))
    write(tmp_path / '600519.SH.CSV', GOOD.format('2024-01-03'))
    text = f'{HEADER}\n{GOOD.format("2024-01-04")}\n'
    (tmp_path / 'b.csv.gz').write_bytes(gzip.compress(text.encode()))
    pd.read_csv(tmp_path / '000001.SZ.csv').to_parquet(tmp_path / 'p.parquet')
    (tmp_path / '.hidden.csv').write_text('x')
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'more.csv').mkdir()
    table, report = load_bars(tmp_path)
    assert table.symbols == ('000001.SZ', '600519.SH', 'b', 'p')
    assert table.status.tolist() == [[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0]]
    assert np.isnan(table.values.transpose(0, 2, 1)[table.status != 1]).all()
    assert report.valid == 6


def test_many_symbols_in_one_file(tmp_path: Path) -> None:
    rows = [*tushare('B', [3]), *tushare('A', [2, 3])]
    table, _ = load_bars(write(tmp_path / 'all.csv', *rows, header=TUSHARE))
    assert table.symbols == ('A', 'B')
    assert table.status.tolist() == [[1, 0], [1, 1]]


def test_three_rows_of_one_symbol_do_not_hurt_the_others(tmp_path: Path) -> None:
    rows = tushare('A', list(range(2, 30))) + tushare('B', [5, 6, 7])
    path = write(tmp_path / 'all.csv', *rows, header=TUSHARE)
    table, _ = load_bars(path)
    assert (table.status == 1).sum(axis=0).tolist() == [28, 3]
    with pytest.raises(
        DataError, match=r'all\.csv: too few valid rows: B has 3, the minimum is 4'
    ):
        load_bars(path, min_rows=4)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'gbk', 'utf-16'])
def test_chinese_files_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = '日期,股票代码,名称,开盘,收盘,最高,最低,成交量(手),成交额\r\n'
    text += '2024/1/2,600519,贵州茅台,10,10.5,11,9,3,9.5\r\n'
    (tmp_path / 'x.csv').write_bytes(text.encode(encoding))
    table, _ = load_bars(tmp_path / 'x.csv')
    assert table.symbols == ('600519',)
    assert table.values[0, :, 0].tolist() == [10, 11, 9, 10.5, 300, 9.5]


def test_mixed_date_formats_are_read_row_by_row(tmp_path: Path) -> None:
    days = ['20240102', '2024-01-03', '2024/1/4', '2024.1.5', '2024-01-08 15:00:00', '01/09/2024']
    table, report = load_bars(write(tmp_path / 'x.csv', *map(GOOD.format, days)))
    assert table.event_time_ns.tolist() == [ns(f'2024-01-0{day}T07:00') for day in (2, 3, 4, 5, 8)]
    assert report.counts == {'ambiguous_date': 1}


def test_zone_and_close_are_the_callers(tmp_path: Path) -> None:
    path = write(tmp_path / 'SPY.csv', GOOD.format('2024-01-02'), GOOD.format('2024-07-02'))
    table, _ = load_bars(path, tz='America/New_York', close_time='16:00')
    assert table.event_time_ns.tolist() == [ns('2024-01-02T21:00'), ns('2024-07-02T20:00')]
    with pytest.raises(ConfigError, match="tz: no time zone 'Nowhere'"):
        load_bars(path, tz='Nowhere')


BAD_ROWS = [
    ('2024-01-03,ten,11,9,10.5,100', 'not_a_number', 'open', 'ten'),
    ('2024-01-03,10,11,9,1_0.5,100', 'not_a_number', 'close', '1_0.5'),
    ('2024-01-03,10,inf,9,10.5,100', 'not_a_number', 'high', 'inf'),
    ('2024-01-03,10,11,9,10.5,many', 'not_a_number', 'volume', 'many'),
    ('2024-01-03,10,11,NaN,10.5,100', 'missing_price', 'low', ''),
    ('2024-01-03,,11,9,10.5,100', 'missing_price', 'open', ''),
    ('2024-01-03,10,11,0,10.5,100', 'not_positive', 'low', '0.0'),
    ('2024-01-03,-10,11,9,10.5,100', 'not_positive', 'open', '-10.0'),
    ('2024-01-03,9.5,9,9.8,9.5,100', 'high_below_low', 'high', '9.0'),
    ('2024-01-03,12,11,9,10.5,100', 'outside_range', 'open', '12.0'),
    ('2024-01-03,10,11,9,8.5,100', 'outside_range', 'close', '8.5'),
    ('2024-01-03,10,11,9,10.5,', 'missing_volume', 'volume', ''),
    ('2024-01-03,10,11,9,10.5,-5', 'negative_volume', 'volume', '-5.0'),
]


@pytest.mark.parametrize(('row', 'reason', 'field', 'value'), BAD_ROWS)
def test_a_bad_row_is_counted_and_its_day_is_rejected(
    tmp_path: Path, row: str, reason: str, field: str, value: str
) -> None:
    rows = [GOOD.format('2024-01-02'), '', row, GOOD.format('2024-01-04')]
    path = write(tmp_path / 'x.csv', *rows)
    table, report = load_bars(path, quarantine=tmp_path / 'bad' / 'q.csv')
    assert table.status[:, 0].tolist() == [BarStatus.VALID, BarStatus.REJECTED, BarStatus.VALID]
    assert np.isnan(table.values[1]).all()
    assert report.counts == {reason: 1}
    assert (report.rows, report.valid) == (3, 2)
    with (tmp_path / 'bad' / 'q.csv').open(newline='') as file:
        assert list(csv.reader(file)) == [
            ['file', 'line', 'symbol', 'reason', 'field', 'value'],
            [str(path), '4', 'x', reason, field, value],
        ]


@pytest.mark.parametrize(
    ('row', 'reason', 'field', 'value'),
    [
        (GOOD.format('someday'), 'unknown_date_format', 'date', 'someday'),
        (GOOD.format('2024-02-30'), 'bad_date', 'date', '2024-02-30'),
        (GOOD.format(''), 'missing_date', 'date', ''),
        ('2024-01-03,10,11', 'wrong_cell_count', '', '2024-01-03,10,11'),
        ('2024-01-03,10,11,9,10.5,100,7', 'wrong_cell_count', '', '2024-01-03,10,11,9,10.5,100,7'),
    ],
)
def test_a_row_without_a_day_is_counted_and_leaves_no_trace(
    tmp_path: Path, row: str, reason: str, field: str, value: str
) -> None:
    table, report = load_bars(write(tmp_path / 'x.csv', GOOD.format('2024-01-02'), row))
    assert len(table) == 1
    assert report.counts == {reason: 1}
    rejected = report.rejected[0]
    assert (rejected.line, rejected.field, rejected.value) == (3, field, value)


def test_row_without_a_symbol(tmp_path: Path) -> None:
    rows = [*tushare('A', [2]), *tushare('', [3])]
    table, report = load_bars(write(tmp_path / 'x.csv', *rows, header=TUSHARE))
    assert table.symbols == ('A',)
    assert report.counts == {'missing_symbol': 1}


def test_lots_are_shown_as_they_stand_in_the_file(tmp_path: Path) -> None:
    bad = tushare('A', [3])[0].replace('1234.5', '-7')
    _, report = load_bars(write(tmp_path / 'x.csv', *tushare('A', [2]), bad, header=TUSHARE))
    assert (report.rejected[0].field, report.rejected[0].value) == ('volume', '-7.0')


def test_the_same_row_twice_counts_once(tmp_path: Path) -> None:
    rows = [GOOD.format('2024-01-02'), GOOD.format('20240102'), GOOD.format('2024-01-03')]
    table, report = load_bars(write(tmp_path / 'x.csv', *rows))
    assert table.status[:, 0].tolist() == [1, 1]
    assert report.counts == {'duplicate': 1}
    assert report.rejected[0].line == 3


def test_of_conflicting_rows_none_is_believed(tmp_path: Path) -> None:
    rows = [
        '2024-01-02,10,11,9,10.5,100',
        '2024-01-02,10,11,9,10.6,100',
        GOOD.format('2024-01-03'),
    ]
    table, report = load_bars(write(tmp_path / 'x.csv', *rows))
    assert table.status[:, 0].tolist() == [BarStatus.REJECTED, BarStatus.VALID]
    assert report.counts == {'conflicting_duplicate': 2}


def test_a_clean_row_wins_over_a_broken_one_of_the_same_day(tmp_path: Path) -> None:
    rows = ['2024-01-02,10,x,9,10.5,100', GOOD.format('2024-01-02')]
    table, report = load_bars(write(tmp_path / 'x.csv', *rows))
    assert table.status[:, 0].tolist() == [BarStatus.VALID]
    assert report.counts == {'not_a_number': 1}


def test_a_copy_of_a_file_is_counted_as_duplicates(tmp_path: Path) -> None:
    for name in ('a.csv', 'copy of a.csv'):
        write(tmp_path / name, *tushare('A', [2, 3]), header=TUSHARE)
    table, report = load_bars(tmp_path)
    assert len(table) == 2
    assert report.counts == {'duplicate': 2}
    assert {row.file for row in report.rejected} == {str(tmp_path / 'copy of a.csv')}


def test_paused_rows_are_suspensions_whatever_they_hold(tmp_path: Path) -> None:
    rows = ['2024-01-02,10,11,9,10.5,100,0', '2024-01-03,,,,,,1', '2024-01-04,9,9,9,9,0,True']
    table, report = load_bars(write(tmp_path / 'x.csv', *rows, header=f'{HEADER},paused'))
    assert table.status[:, 0].tolist() == [1, BarStatus.SUSPENDED, BarStatus.SUSPENDED]
    assert np.isnan(table.values[1:]).all()
    assert (report.valid, report.suspended, report.counts) == (1, 2, {})


def test_what_is_left_in_paused_rows_says_nothing(tmp_path: Path) -> None:
    # Vendors fill such rows with this or that: no conflict, and no volume for an index.
    rows = ['2024-01-02,9,9,9,9,0,1', '2024-01-02,8,8,8,8,,1', '2024-01-03,10,11,9,10.5,,0']
    table, report = load_bars(write(tmp_path / 'x.csv', *rows, header=f'{HEADER},paused'))
    assert table.status[:, 0].tolist() == [BarStatus.SUSPENDED, BarStatus.VALID]
    assert report.counts == {'duplicate': 1}


def test_no_volume_is_fine_where_there_is_none_at_all(tmp_path: Path) -> None:
    write(tmp_path / 'index.csv', '2024-01-02,10,11,9,10', header='time,open,high,low,close')
    write(tmp_path / 'empty.csv', '2024-01-02,10,11,9,10.5,')
    table, report = load_bars(tmp_path)
    assert report.counts == {}
    assert np.isnan(table.values[:, [VOLUME, AMOUNT]]).all()
    assert not table.has_volume


@pytest.mark.parametrize(
    'index',
    [
        pd.to_datetime(['2024-01-02', '2024-01-03']),
        pd.to_datetime(['2024-01-02', '2024-01-03']).date,
        pd.to_datetime(['2024-01-02 15:00', '2024-01-03 15:00']).tz_localize('Asia/Shanghai'),
        [20240102, 20240103],
        [20240102.0, 20240103.0],
        ['2024-01-02', '2024/1/3'],
    ],
)
def test_parquet_dates_of_any_type(tmp_path: Path, index: object) -> None:
    frame = pd.DataFrame(
        {'open': [10, 10.0], 'high': 11, 'low': 9.0, 'close': 10.5, 'vol': [100, None]}
    )
    frame.index = pd.Index(index, name='date')
    frame.to_parquet(tmp_path / 'A.parquet')
    table, report = load_bars(tmp_path / 'A.parquet')
    assert table.event_time_ns.tolist() == [ns('2024-01-02T07:00'), ns('2024-01-03T07:00')]
    assert table.status[:, 0].tolist() == [BarStatus.VALID, BarStatus.REJECTED]
    assert report.rejected[0][1:] == (2, 'A', 'missing_volume', 'volume', '')


def test_parquet_with_text_in_a_price(tmp_path: Path) -> None:
    text = f'{HEADER}\n{GOOD.format("2024-01-02")}\n2024-01-03,x,11,9,10.5,100\n'
    (tmp_path / 'a.csv').write_text(text)
    pd.read_csv(tmp_path / 'a.csv', dtype=str).to_parquet(tmp_path / 'b.parquet')
    _, from_csv = load_bars(tmp_path / 'a.csv')
    _, from_parquet = load_bars(tmp_path / 'b.parquet')
    assert from_csv.counts == from_parquet.counts == {'not_a_number': 1}


@pytest.mark.parametrize(
    ('name', 'text', 'named'),
    [
        ('a.csv', '', r'a\.csv: the file is empty'),
        ('a.csv', HEADER, r'a\.csv: the file is empty: a header and no rows'),
        ('a.csv', 'x,y\n1,2', r"a\.csv: line 1: no bars: found the columns 'x', 'y'; expected"),
        ('a.csv', f'{HEADER}\n01/02/2024,10,11,9,10.5,100',
         r"nothing but rejected rows \(ambiguous_date: 1\); the first: line 2, date '01/02/2024'"),
        ('a.csv', f'{HEADER}\n1;2', r'nothing but rejected rows \(truncated_line: 1\)'),
        ('a.csv', f'{HEADER}\n1;2\n', r'nothing but rejected rows \(wrong_cell_count: 1\)'),
        ('a.json', '[]', r'a\.json: unknown kind of file; expected a name that ends in \.csv'),
        ('a.parquet', 'x', r'a\.parquet: not a whole Parquet file'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('in_folder', [False, True])
def test_files_that_hold_no_bars(
    tmp_path: Path, name: str, text: str, named: str, in_folder: bool
) -> None:
    (tmp_path / name).write_text(text)
    if in_folder and name == 'a.json':
        named = 'no data in this folder: none of its 1 entries ends in'
    with pytest.raises(DataError, match=named):
        load_bars(tmp_path if in_folder else tmp_path / name)


@pytest.mark.parametrize('path', ['nowhere.csv', 'nowhere', ''])
def test_paths_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r'no such file or folder|path: empty'):
        load_bars(tmp_path / path / 'nothing' if path == 'nowhere' else path)


def test_quarantine_is_written_even_if_loading_fails(tmp_path: Path) -> None:
    path = write(tmp_path / 'x.csv', GOOD.format('01/02/2024'))
    with pytest.raises(DataError, match='nothing but rejected rows'):
        load_bars(path, quarantine=tmp_path / 'q.csv')
    assert 'ambiguous_date' in (tmp_path / 'q.csv').read_text()


def test_a_symbol_without_a_valid_row_is_named_or_let_through(tmp_path: Path) -> None:
    bad = tushare('B', [2])[0].replace(',10.5,', ',0,')
    path = write(tmp_path / 'x.csv', *tushare('A', [2]), bad, header=TUSHARE)
    with pytest.raises(
        DataError, match=r'B has 0, the minimum is 1 \(of B were rejected: not_positive'
    ):
        load_bars(path)
    table, _ = load_bars(path, min_rows=0)
    assert table.status.tolist() == [[BarStatus.VALID, BarStatus.REJECTED]]


CELL = st.sampled_from(
    ['10', '10', '9', '11', '10.50', '0', '0', '-1', '', 'NaN', 'x', 'inf', '1e1']
)
DAY = st.sampled_from(
    ['20240102', '2024-01-02', '2024/1/3', '2024-01-04 10:00', '', '1/2/2024', '?']
)
ROW = st.tuples(st.sampled_from(['A', 'B', '']), DAY, CELL, CELL, CELL, CELL, CELL, CELL)


def load_rows(folder: Path, rows: list[tuple[str, ...]]) -> tuple[BarTable, CleaningReport]:
    header = 'symbol,date,open,high,low,close,volume,amount'
    # One good row, so that the file is never hopeless.
    text = [','.join(row) for row in (('Z', '2024-01-09', '1', '1', '1', '1', '1', '1'), *rows)]
    return load_bars(write(folder / 'x.csv', *text, header=header), min_rows=0)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=12), random=st.randoms(use_true_random=False))
def test_any_rows_are_either_clean_or_counted_in_any_order(
    tmp_path: Path, rows: list[tuple[str, ...]], random: Random
) -> None:
    table, report = load_rows(tmp_path, rows)
    assert report.rows == len(rows) + 1
    assert report.rows == report.valid + report.suspended + len(report.rejected)
    assert sum(report.counts.values()) == len(report.rejected)
    valid = table.status == BarStatus.VALID
    assert valid.sum() == report.valid
    bars: npt.NDArray[np.float64] = table.values.transpose(1, 0, 2)[:, valid]
    assert clean_rows(bars).valid.all()
    assert np.isnan(table.values.transpose(1, 0, 2)[:, ~valid]).all()
    shuffled = list(rows)
    random.shuffle(shuffled)
    again, other = load_rows(tmp_path, shuffled)
    assert same(table, again)
    assert report.counts == other.counts


def test_further_columns_come_as_channels_where_bars_are(tmp_path: Path) -> None:
    """One file has the column, one has text in it, one lacks it."""
    head = 'date,open,high,low,close,turnover_rate\n'
    bar = '2024-01-{:02d},10,10,10,10'
    (tmp_path / 'A.csv').write_text(head + bar.format(2) + ',1.5\n' + bar.format(3) + ',\n')
    (tmp_path / 'B.csv').write_text(head + bar.format(2) + ',much\n' + bar.format(3) + ',2.5\n')
    (tmp_path / 'C.csv').write_text(head[: head.rindex(',')] + '\n' + bar.format(2) + '\n')
    table, report = load_bars(tmp_path, channels=['turnover_rate'])
    assert table.channels == ('turnover_rate',)
    nan = float('nan')
    np.testing.assert_equal(table.extra, [[[1.5, nan, nan]], [[nan, 2.5, nan]]])
    assert report.unread == {'turnover_rate': 1}
    assert report.valid == 5
    plain, _ = load_bars(tmp_path)
    assert plain.channels == ()
    assert plain.extra is None
    np.testing.assert_equal(table.block(1).extra, [[nan, 2.5, nan]])
    np.testing.assert_equal(table.select(['B']).head(1).extra, [[[nan]]])


def test_a_channel_that_no_file_has_is_named(tmp_path: Path) -> None:
    (tmp_path / 'A.csv').write_text('date,open,high,low,close\n2024-01-02,1,1,1,1\n')
    with pytest.raises(DataError, match="no column 'turnover_rate'"):
        load_bars(tmp_path, channels=['turnover_rate'])


def test_a_channel_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'A.csv').write_text(
        'date,open,high,low,close,state\n2024-01-02,1,1,1,1,VALID\n2024-01-03,1,1,1,1,VALID\n'
    )
    with pytest.raises(DataError, match="'state' holds no number in any of its 2 cells"):
        load_bars(tmp_path, channels=['state'])


def test_a_channel_that_may_be_missing_is_taken_where_it_is(tmp_path: Path) -> None:
    (tmp_path / 'A.csv').write_text('date,open,high,low,close,rate\n2024-01-02,1,1,1,1,0.5\n')
    table, _ = load_bars(tmp_path, optional_channels=['rate', 'other'])
    assert table.channels == ('rate',)
    np.testing.assert_equal(table.extra, [[[0.5]]])
