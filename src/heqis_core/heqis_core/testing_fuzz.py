# SPDX-License-Identifier: Apache-2.0
"""Damaged data files for the readers, and what must hold of whatever the readers make of them.

A mutation is named by whole numbers, so that hypothesis can shrink it and a random run repeat it.
Only tests and `scripts/fuzz_readers.py` import it.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import string
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.clean import Fault, clean_rows
from heqis_core.errors import HeqisError
from heqis_core.event_time import TimeParser
from heqis_core.io.check import check_files
from heqis_core.io.columns import FileRows, read_file
from heqis_core.io.files import judge, load_bars
from heqis_core.simulator import MarketSimulator

Ints = npt.NDArray[np.int64]

CELLS = (
    '', ' ', '0', '-0', '-1', '1', '1e3', '1E400', '1e-400', '.5', '5.', '+5', '5 ', '1 2',
    'nan', 'inf', '-inf', 'None', '--', 'x', 'TRUE', '0x10', '1_000', '10,5', '1,234.5',
    '"1,234.5"', '１２.５', '٣', '1.2亿', '3%', '¥5', '#REF!', '####', '99999.99', '100000',
    '999999.999', '20240102', '2024-01-02', '2024/1/2', '2024-02-30', '45293', '240102',
    '01/02/2024', '２０２４-01-02', '2024-01-1２', '2024年1月2日 星期二', '1704178800', '"', '""',
    "'", '\0', '\x1a', '\ufeff', '\ud83d', '\u2028', '600519.SH', 'sh.600519',
)  # fmt: skip
"""What people, spreadsheets and broken disks put into a cell."""

OPERATIONS = 16

_NUMBER = re.compile(r'\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*')
_DAY = re.compile(
    r'\s*([0-9]{4})(?:[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})|([0-9]{2})([0-9]{2}))(?![0-9])'
)
_FIRST_DAY = datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=8)))
_NAMES = {
    'open': ('open',), 'high': ('high',), 'low': ('low',), 'close': ('close',),
    'volume': ('volume', 'vol', '成交量(手)'), 'amount': ('amount',),
}  # fmt: skip


class Operation(NamedTuple):
    """One damage: `kind` below `OPERATIONS`; `a` and `b` choose the place, `c` what is put there.

    Numbers beyond what there is wrap around.
    """

    kind: int
    a: int
    b: int
    c: int


class Case(NamedTuple):
    """One file of a case: its name decides how it is read."""

    name: str
    content: bytes


def clean_files(seed: int = 1, rows: int = 12) -> list[Case]:
    """Return small clean files of every layout, encoding and container that is read."""
    simulator = MarketSimulator(('000001.SZ', '600519.SH', '300750.SZ'), seed)
    plain, daily, minute, chinese = [], [], [], []
    for index in range(rows):
        block = simulator.next_block()
        day = datetime.fromtimestamp(block.event_time_ns // 10**9, timezone.utc)
        for symbol, name in enumerate(block.symbols):
            bar = block.values[:, symbol].tolist()
            if block.status[symbol] != BarStatus.VALID:
                continue
            o, h, low, c = (f'{price:.2f}' for price in bar[:4])
            volume, amount = round(bar[4]), round(bar[5], 3)
            daily.append(f'{name},{day:%Y%m%d},{o},{h},{low},{c},{volume / 100},{amount / 1000}')
            if symbol == 0:
                plain.append(f'{day:%Y-%m-%d},{o},{h},{low},{c},{volume}')
                minute.append(f'2024/1/2,{9 + index // 30:02d}:{31 + index},{o},{h},{low},{c},7')
                chinese.append(f'{day:%Y/%m/%d} 星期二,{o},{c},{h},{low},{volume // 100}')
    text = {
        'daily': 'ts_code,trade_date,open,high,low,close,vol,amount\n' + '\n'.join(daily[::-1]),
        'plain': 'date,open,high,low,close,volume\n' + '\n'.join(plain),
        'minute': 'Date,Time,Open,High,Low,Close,Volume\n' + '\n'.join(minute),
        'chinese': 'date,open,close,high,low,成交量(手)\n' + '\n'.join(chinese),
    }
    files = [Case(f'{name}.csv', (body + '\n').encode()) for name, body in text.items()]
    quoted = re.sub(r'([^,\n]+)', r'"\1"', text['plain'])
    files += [
        Case('gbk.csv', text['chinese'].replace('\n', '\r\n').encode('gbk')),
        Case('utf16.csv', text['chinese'].encode('utf-16')),
        Case('bom.csv', text['plain'].encode('utf-8-sig')),
        Case('semicolon.csv', text['plain'].replace(',', ';').encode()),
        Case('quoted.csv', quoted.encode()),
        Case('daily.csv.gz', gzip.compress(files[0].content, mtime=0)),
        Case('daily.parquet', _as_parquet(text['daily'], numbers=True)),
        Case('texts.parquet', _as_parquet(text['plain'], numbers=False)),
    ]
    return files


def mutate(content: bytes, name: str, operations: Sequence[Operation]) -> bytes:
    """Return the file with every damage done, one after the other."""
    packed = name.endswith('.gz')
    if packed:
        # Half of the damage goes to what is inside.
        inside = gzip.decompress(content)
        for operation in operations[::2]:
            inside = _mutate(inside, operation)
        content, operations = gzip.compress(inside, mtime=0), operations[1::2]
        operations = [one._replace(kind=one.kind % 5) for one in operations]
    elif name.endswith('.parquet'):
        operations = [one._replace(kind=one.kind % 5) for one in operations]
    for operation in operations:
        content = _mutate(content, operation)
    return content


def _mutate(content: bytes, operation: Operation) -> bytes:
    kind, a, b, c = operation
    if not content:
        return content
    at, other = a % len(content), b % len(content)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << c % 8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + bytes([c % 256]) + content[at:]
    if kind == 2:
        return content[:at] + content[at + 1 + c % 4 :]
    if kind == 3:
        return content[: max(at, 1)]
    if kind == 4:
        low, high = min(at, other), max(at, other)
        return content[:low] + content[high:] + content[low:high]
    return _mutate_lines(content, operation)


def _mutate_lines(content: bytes, operation: Operation) -> bytes:
    kind, a, b, c = operation
    lines = content.split(b'\n')
    row, other = a % len(lines), b % len(lines)
    cells = lines[row].split(b',')
    cell = b % len(cells)
    if kind == 5:
        lines.insert(other, lines[row])
    elif kind == 6:
        lines[row], lines[other] = lines[other], lines[row]
    elif kind == 7:
        del lines[row]
    elif kind in (8, 9, 10):
        cells[cell] = CELLS[c % len(CELLS)].encode('utf-8', 'surrogatepass')
        lines[row] = b','.join(cells)
    elif kind == 11:
        swap = c % len(cells)
        cells[cell], cells[swap] = cells[swap], cells[cell]
        lines[row] = b','.join(cells)
    elif kind == 12:
        mine, theirs = lines[row].split(b','), lines[other].split(b',')
        mine[cell], theirs[cell % len(theirs)] = theirs[cell % len(theirs)], mine[cell]
        lines[row] = b','.join(mine)
    elif kind == 13:
        ends = (b'\r\n', b'\r', b'\n\n', b'\n\r')
        return b'\n'.join(lines[:row]) + ends[c % len(ends)] + b'\n'.join(lines[row:])
    elif kind == 14:
        lines = lines[:row] + lines[: c % 3 + 1] + lines[row:]
    else:
        lines[row] = lines[row][: b % (len(lines[row]) + 1)]
    return b'\n'.join(lines)


def verify(folder: Path, case: Case) -> str:
    """Read one file in every way and return what became of it: `read` or `refused`.

    Raise AssertionError, or whatever else a reader lets out, where an invariant is broken: only
    HeqisError is raised; every row is a bar, a suspension or refused; no bar breaks a rule; every
    accepted number and day is what the text says; load and check agree.
    """
    path = folder / case.name
    path.write_bytes(case.content)
    try:
        checked = check_files(path)
    except HeqisError:
        checked = None
    try:
        table, report = load_bars(path, min_rows=0, quarantine=folder / 'quarantine.out')
    except HeqisError:
        return 'refused'
    assert report.rows == report.valid + report.suspended + len(report.rejected)
    assert len(report.rejected) == sum(report.counts.values())
    valid = table.status == BarStatus.VALID
    assert valid.sum() == report.valid
    assert clean_rows(table.values.transpose(1, 0, 2)[:, valid]).valid.all()
    assert np.isnan(table.values.transpose(1, 0, 2)[:, ~valid]).all()
    if report.valid:
        assert checked is not None
        assert checked.report == report
        for one in checked.symbols:
            assert one.rows == one.valid + one.suspended + sum(one.rejected.values())
    parser, names = TimeParser(), dict[str, int]()
    rows = read_file(path, parser, names)
    judged = judge([rows], parser, len(names))
    kept = np.flatnonzero((judged.fault == Fault.NONE) & ~judged.paused)
    if case.name.endswith('.parquet'):
        _verify_parquet(case.content, rows, kept)
    else:
        _verify_text(case, rows, kept, judged.event_ns)
    return 'read'


def _verify_text(
    case: Case,
    rows: FileRows,
    kept: Ints,
    event_ns: Ints,
) -> None:
    """Read the lines once more, in the plainest way there is, and compare."""
    content = gzip.decompress(case.content) if case.name.endswith('.gz') else case.content
    encoding = 'utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'latin-1'
    text = content.decode(encoding, 'replace').removeprefix('ï»¿')
    lines = re.split('\r\n|\r|\n', text)
    start = next(index for index, line in enumerate(lines) if line.strip(string.whitespace))
    separator = max(',;\t', key=lines[start].count)
    filled = [
        line.replace(separator, 'x').replace('"', '').strip(string.whitespace) for line in lines
    ]
    n_rows = len(rows.lines) + len(rows.refused)
    assert n_rows == sum(map(bool, filled[start + 1 :])) or '"' in text
    header = next(csv.reader([lines[start]], delimiter=separator))
    head = [cell.strip(' "<>').lower() for cell in header]
    for row in kept.tolist():
        line = lines[int(rows.lines[row]) - 1]
        cells = line.split(separator)
        if '"' in line + lines[start]:
            # A separator within quotes: this plain reading does not see it.
            cells = next(csv.reader([line], delimiter=separator))
        assert len(cells) == len(head)
        for index, field in enumerate(BAR_FIELDS):
            column = next((head.index(name) for name in _NAMES[field] if name in head), None)
            number = rows.values[index, row]
            if column is None or np.isnan(number):
                continue
            said = cells[column]
            assert _NUMBER.fullmatch(said), (field, said)
            assert number == float(said) * rows.scale[index], (field, said)
        for name in ('trade_date', 'date'):
            if name in head:
                _verify_day(cells[head.index(name)], int(event_ns[row]))


def _verify_day(said: str, event_ns: int) -> None:
    """Hold an event time against the year, month and day that its cell begins with."""
    found = _DAY.match(said)
    if found is None:
        return
    year, month, day = (int(part) for part in found.groups() if part)
    moment = _FIRST_DAY.replace(hour=8) + timedelta(microseconds=event_ns // 1000)
    assert (moment.year, moment.month, moment.day) == (year, month, day), said


def _verify_parquet(content: bytes, rows: FileRows, kept: Ints) -> None:
    """Hold the numbers against those that pyarrow reads."""
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(content))
    for index, field in enumerate(BAR_FIELDS):
        name = next((one for one in _NAMES[field] if one in table.column_names), None)
        if name is None:
            continue
        cells = table.column(name).to_pylist()
        for row in kept.tolist():
            number = rows.values[index, row]
            if not np.isnan(number):
                said = cells[int(rows.lines[row]) - 1]
                assert number == float(said) * rows.scale[index], (field, said)


def _as_parquet(text: str, *, numbers: bool) -> bytes:
    import pyarrow
    from pyarrow import parquet

    header, *lines = (line.split(',') for line in text.split('\n'))
    columns = {name: [line[index] for line in lines] for index, name in enumerate(header)}
    arrays = {
        name: pyarrow.array([float(cell) for cell in cells])
        if numbers and name not in ('ts_code', 'trade_date', 'date')
        else pyarrow.array(cells)
        for name, cells in columns.items()
    }
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), sink)
    return sink.getvalue()
