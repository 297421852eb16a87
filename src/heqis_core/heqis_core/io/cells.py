# SPDX-License-Identifier: Apache-2.0
"""CSV and Parquet files as columns of cells, with the line of each row.

What the columns mean is not known here. CSV needs nothing but the standard library, so a board
reads it without pandas; pyarrow is imported for Parquet.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError

SUFFIXES = ('.csv', '.csv.gz', '.parquet')

_CHUNK = 1_000
"""Rows read at a time: more at once cost more in garbage collection than they save."""

_EMPTY = frozenset(('', 'nan', 'nat', 'null', 'none', 'na', 'n/a', '#n/a', '-', '--', '\\n'))
"""What people write, in lower case, where there is no number."""

Column = Sequence[str] | npt.NDArray[np.float64]


class Chunk(NamedTuple):
    """Some rows of a file."""

    lines: Sequence[int]
    columns: list[Column]
    """One for each wanted column: texts, or numbers where the file holds numbers."""
    ragged: list[tuple[int, str]]
    """Line and text of rows with more or fewer cells than the header; not in `columns`."""


class CellFile:
    """One open file: its header, and its rows in chunks."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raise DataError if the file is missing, empty, or not what its suffix says.
        """
        self.path = path
        self._parquet: Any = None
        self._rows: Iterator[list[str]] = iter(())
        if path.name.lower().endswith('.parquet'):
            self._parquet = _open_parquet(path)
            self.header = [str(name) for name in self._parquet.schema_arrow.names]
            self.header_line = 0
        else:
            self._rows = _csv_rows(path)
            self.header_line, self.header = _read_header(path, self._rows)

    def chunks(self, wanted: Sequence[int]) -> Iterator[Chunk]:
        """Yield the columns `wanted` (indices into the header) of all rows.

        Raise DataError if reading fails.
        """
        if self._parquet is not None:
            return _parquet_chunks(
                self.path, self._parquet, [self.header[index] for index in wanted]
            )
        return self._csv_chunks(wanted)

    def _csv_chunks(self, wanted: Sequence[int]) -> Iterator[Chunk]:
        width = len(self.header)
        line = self.header_line
        while True:
            rows = _take(self.path, self._rows, line)
            if not rows:
                return
            lines = range(line + 1, line + 1 + len(rows))
            line += len(rows)
            good = [width == len(row) for row in rows]
            ragged: list[tuple[int, str]] = []
            if not all(good):
                # An empty line is no row at all.
                ragged = [
                    (at, ','.join(row))
                    for at, row, fits in zip(lines, rows, good, strict=True)
                    if row and not fits
                ]
                kept: Sequence[int] = list(itertools.compress(lines, good))
                rows = list(itertools.compress(rows, good))
            else:
                kept = lines
            yield Chunk(kept, [[row[index] for row in rows] for index in wanted], ragged)


def to_floats(cells: Column) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Return float64 (N,), NaN where a cell is empty or text, and by row what is no number."""
    if isinstance(cells, np.ndarray):
        return cells, {}
    # float() takes 1_000 for a number; no market file does.
    if '_' not in ''.join(cells):
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells)), {}
        except ValueError:
            pass
    values, texts = np.full(len(cells), np.nan), {}
    for row, cell in enumerate(cells):
        if cell.strip().lower() in _EMPTY:
            continue
        try:
            if '_' in cell:
                raise ValueError
            values[row] = float(cell)
        except ValueError:
            texts[row] = cell
    return values, texts


def to_texts(cells: Column) -> Sequence[str]:
    """Return the cells as texts; whole numbers without a fraction, NaN as an empty text."""
    if not isinstance(cells, np.ndarray):
        return cells
    return [
        '' if cell != cell else f'{cell:.0f}' if cell.is_integer() else repr(cell)
        for cell in cells.tolist()
    ]


def _read_text(path: Path) -> str:
    try:
        raw = (
            gzip.decompress(path.read_bytes())
            if path.name.lower().endswith('.gz')
            else path.read_bytes()
        )
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file; check the path') from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f'{path}: cannot be read: {error}; check its rights, or copy it again'
        ) from error
    if raw.startswith((b'\xff\xfe', b'\xfe\xff')):
        encodings: tuple[str, ...] = ('utf-16',)
    else:
        encodings = ('utf-8-sig', 'gb18030')
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b'\n') + 1
    raise DataError(
        f'{path}: line {line}: neither UTF-8 nor GB18030 (GBK) text; '
        'save the file as UTF-8 and try again'
    )


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """Return the rows of a text file; one line is one row, whatever its quotes say."""
    text = _read_text(path)
    lines = io.StringIO(text, newline='')
    head = next((line for line in lines if line.strip()), '')
    lines.seek(0)
    delimiter = max(',;\t', key=head.count)
    if '"' not in text:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    # A quote that never closes would swallow the rest of the file as one cell.
    return (next(csv.reader([line], delimiter=delimiter), []) for line in lines)


def _take(path: Path, rows: Iterator[list[str]], line: int) -> list[list[str]]:
    try:
        return list(itertools.islice(rows, _CHUNK))
    except csv.Error as error:
        raise DataError(
            f'{path}: after line {line}: not a CSV file: {error}; export it again'
        ) from error


def _read_header(path: Path, rows: Iterator[list[str]]) -> tuple[int, list[str]]:
    line = 0
    try:
        for line, row in enumerate(rows, 1):
            if any(cell.strip() for cell in row):
                return line, row
    except csv.Error as error:
        raise DataError(
            f'{path}: line {line + 1}: not a CSV file: {error}; export it again'
        ) from error
    raise DataError(
        f'{path}: the file is empty; expected a header and one row for each bar: fetch it again'
    )


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f'{path}: Parquet needs the package pyarrow: install it, or convert to CSV'
        ) from error
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file; check the path') from error
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f'{path}: not a whole Parquet file: {error}; write it again') from error


def _parquet_chunks(path: Path, file: Any, wanted: list[str]) -> Iterator[Chunk]:
    import pyarrow

    row = 0
    try:
        for batch in file.iter_batches(65_536, columns=wanted):
            columns = [_arrow_column(batch.column(name)) for name in wanted]
            yield Chunk(range(row + 1, row + 1 + batch.num_rows), columns, [])
            row += batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f'{path}: after row {row}: damaged Parquet file: {error}; write it again'
        ) from error


def _arrow_column(column: Any) -> Column:
    """Return numbers as float64 and everything else as text."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind):
        numbers: npt.NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy(
            zero_copy_only=False
        )
        return numbers
    return [text or '' for text in column.cast(pyarrow.string()).to_pylist()]
