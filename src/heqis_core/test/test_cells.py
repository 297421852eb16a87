# SPDX-License-Identifier: Apache-2.0
"""Files as cells: any encoding, exact line numbers, ragged rows set apart, damage named."""

from __future__ import annotations

import datetime
import decimal
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from heqis_core.errors import DataError
from heqis_core.io.cells import CellFile, to_floats, to_texts


def read(path: Path) -> tuple[list[int], list[list[str]], list[tuple[int, str, str]]]:
    """Return line numbers and columns of a whole file, and its refused lines with the reason."""
    file = CellFile(path)
    width = range(len(file.header))
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in width]
    refused: list[tuple[int, str, str]] = []
    for chunk in file.chunks(width):
        lines += chunk.lines
        refused += [(line, text, fault.label) for line, text, fault in chunk.refused]
        for column, cells in zip(columns, chunk.columns, strict=True):
            column += to_texts(cells)
    return lines, columns, refused


def write(path: Path, text: str | bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gbk', 'gb18030', 'utf-16'])
@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    text = newline.join(['名称,价', '贵州茅台,1', '平安,2', ''])
    path = write(tmp_path / 'a.csv', text.encode(encoding))
    assert CellFile(path).header == ['名称', '价']
    assert read(path) == ([2, 3], [['贵州茅台', '平安'], ['1', '2']], [])


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_separators(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path / 'a.csv', 'a,b\n1,2\n'.replace(',', separator))
    assert read(path)[1] == [['1'], ['2']]


def test_lines_are_counted_through_blank_and_ragged_ones(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.csv', '\n\na,b\n1,2\n\n3\n4,5,6\n7,8')
    assert CellFile(path).header_line == 3
    ragged = [(6, '3', 'wrong_cell_count'), (7, '4,5,6', 'wrong_cell_count')]
    assert read(path) == ([4, 8], [['1', '7'], ['2', '8']], ragged)


def test_a_quote_that_never_closes_costs_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.csv', 'a,b\n"1","x,y"\n"2,3\n4,5\n')
    lines, columns, refused = read(path)
    assert (lines, columns) == ([2, 4], [['1', '4'], ['x,y', '5']])
    assert refused == [(3, '"2,3', 'wrong_cell_count')]


def test_text_after_a_closing_quote_is_not_joined_to_what_is_quoted(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.csv', 'a,b\n"39.5"1,2\n"39.5","2"\n')
    assert read(path) == ([3], [['39.5'], ['2']], [(2, '"39.5"1,2', 'wrong_cell_count')])


@pytest.mark.parametrize(
    ('content', 'refused'),
    [
        (b'a,b\n1,\x002\n3,4\n', (2, '1,\\x002', 'damaged_line')),
        (b'a,b\n1,2\x07\n3,4\n', (2, '1,2\\x07', 'damaged_line')),
        (b'a,b\n1,\xff2\n3,4\n', (2, '1,\\xff2', 'damaged_line')),
        (b'a,b\na,b\n3,4\n', (2, 'a,b', 'repeated_header')),
        (b'a,b\n \xe3\x80\x80\n3,4\n', (2, ' \u3000', 'wrong_cell_count')),
        (b'a,b\n3,4\n5', (3, '5', 'truncated_line')),
    ],
)
def test_lines_that_are_no_rows_cost_themselves_alone(
    tmp_path: Path, content: bytes, refused: tuple[int, str, str]
) -> None:
    lines, columns, found = read(write(tmp_path / 'a.csv', content))
    assert columns == [['3'], ['4']]
    assert found == [refused]
    assert lines == [2 if refused[0] == 3 else 3]


def test_one_damaged_byte_of_a_gbk_file_costs_one_line(tmp_path: Path) -> None:
    good = 'name,b\n贵州茅台,1\n平安银行,2\n'.encode('gbk')
    lines, columns, refused = read(write(tmp_path / 'a.csv', good + b'\xb9,3\n'))
    assert (lines, columns) == ([2, 3], [['贵州茅台', '平安银行'], ['1', '2']])
    assert refused == [(4, '\\xb9,3', 'damaged_line')]


@pytest.mark.parametrize(
    ('content', 'unfinished', 'mixed'),
    [
        (b'a\n1\n', False, False),
        (b'a\r\n1\r\n', False, False),
        (b'a\n1', True, False),
        (b'a\r\n1\n', False, True),
        (b'a\r1\n', False, True),
    ],
)
def test_ends_of_lines_are_remarked(
    tmp_path: Path, content: bytes, unfinished: bool, mixed: bool
) -> None:
    file = CellFile(write(tmp_path / 'a.csv', content))
    assert (file.unfinished, file.mixed_ends) == (unfinished, mixed)


def test_gzip_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.csv.gz', gzip.compress(b'a\n1\n'))
    assert read(path) == ([2], [['1']], [])


def test_parquet_columns_of_many_types(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 2)
    naive = datetime.datetime(2024, 1, 2, 9, 31)
    table = pa.table(
        {
            'date': [day],
            'naive': pa.array([naive], pa.timestamp('ns')),
            'zoned': pa.array([naive], pa.timestamp('us', 'Asia/Shanghai')),
            'number': [20240102],
            'float': [20240102.0],
            'text': ['x'],
            'category': pa.array(['600519.SH']).dictionary_encode(),
            'price': pa.array([decimal.Decimal('1.25')]),
            'flag': [True],
            'nothing': pa.array([None], pa.null()),
            'hole': pa.array([None], pa.float64()),
        }
    )
    parquet.write_table(table, tmp_path / 'a.parquet')
    lines, columns, _ = read(tmp_path / 'a.parquet')
    assert lines == [1]
    assert [column[0] for column in columns] == [
        '2024-01-02',
        '2024-01-02 09:31:00.000000000',
        '2024-01-02 17:31:00.000000+0800',
        '20240102',
        '20240102',
        'x',
        '600519.SH',
        '1.25',
        'true',
        '',
        '',
    ]


def test_parquet_rows_are_numbered_across_batches(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({'a': np.arange(200_000), 'b': np.arange(200_000.0)}), tmp_path / 'a.parquet'
    )
    lines, columns, _ = read(tmp_path / 'a.parquet')
    assert lines == list(range(1, 200_001))
    assert columns[0][-1] == columns[1][-1] == '199999'


@pytest.mark.parametrize(
    ('name', 'content', 'named'),
    [
        ('a.csv', b'', 'the file is empty'),
        ('a.csv', b' \n\n', 'the file is empty'),
        ('a.csv', b'a,\xff\n1,2\n', 'line 1: the header is damaged'),
        ('a.csv.gz', b'no gzip', 'not a whole gzip file.*rename it if it is plain text'),
        ('a.csv.gz', gzip.compress(b'a,b\n' * 1000)[:20], 'not a whole gzip file.*copy it again'),
        ('a.csv.gz', gzip.compress(b'a,b\n')[:-8] + bytes(8), 'not a whole gzip file: CRC'),
        ('a.parquet', b'', 'not a whole Parquet file'),
        ('a.parquet', b'PAR1 and no more', 'not a whole Parquet file'),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=named) as caught:
        CellFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('name', ['a.csv', 'a.parquet'])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f'{name}: no such file'):
        CellFile(tmp_path / name)


def test_numbers_and_what_is_none() -> None:
    values, texts = to_floats(
        ['1', ' 2.5 ', '', 'NaN', '--', 'None', '1,000', '1_000', 'abc', '1e3', 'inf', '１２', '٣']
    )
    assert values[[0, 1, 9, 10]].tolist() == [1.0, 2.5, 1000.0, np.inf]
    assert np.isnan(values[[2, 3, 4, 5, 6, 7, 8, 11, 12]]).all()
    assert texts == {6: '1,000', 7: '1_000', 8: 'abc', 11: '１２', 12: '٣'}


@given(st.lists(st.floats(allow_nan=False)))
def test_numbers_are_read_exactly(numbers: list[float]) -> None:
    values, texts = to_floats([repr(number) for number in numbers])
    assert values.tolist() == numbers
    assert texts == {}
