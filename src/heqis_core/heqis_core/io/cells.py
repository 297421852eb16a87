# SPDX-License-Identifier: Apache-2.0
"""CSV and Parquet files as columns of cells, with the line of each row.

What the columns mean is not known here, only which lines are no rows. CSV needs nothing but the
standard library, so a board reads it without pandas; pyarrow is imported for Parquet.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import re
import string
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.clean import Fault
from heqis_core.errors import DataError

SUFFIXES = ('.csv', '.csv.gz', '.parquet')

_SHOWN = 120
"""Characters of a broken header that an error shows."""

_CHUNK = 1_000
"""Rows read at a time: more at once cost more in garbage collection than they save."""

_EMPTY = frozenset(('', 'nan', 'nat', 'null', 'none', 'na', 'n/a', '#n/a', '-', '--', '\\n'))
"""What people write, in lower case, where there is no number."""

_DAMAGE = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u2400\ud800-\udfff]')
"""Control characters, and bytes that could not be decoded (surrogates)."""

_NUL = '\u2400'
"""What stands for NUL, which Python 3.10's csv refuses: the sign that shows one."""

Column = Sequence[str] | npt.NDArray[np.float64]


class Chunk(NamedTuple):
    """Some rows of a file."""

    lines: Sequence[int]
    columns: list[Column]
    """One for each wanted column: texts, or numbers where the file holds numbers."""
    refused: list[tuple[int, str, Fault]]
    """Line, text and fault of what is no row of this file; not in `columns`."""


class CellFile:
    """One open file: its header, and its rows in chunks."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raise DataError if the file is missing, empty, or not what its suffix says.
        """
        self.path = path
        self.unfinished = False
        """Whether a text file breaks off without an end of line."""
        self.mixed_ends = False
        """Whether the lines of a text file end in more than one way."""
        self._damaged = False
        self._last_line = 0
        self._parquet: Any = None
        self._rows: Iterator[list[str]] = iter(())
        if path.name.lower().endswith('.parquet'):
            self._parquet = _open_parquet(path)
            self.header = [str(name) for name in self._parquet.schema_arrow.names]
            self.header_line = 0
        else:
            text = _read_text(path)
            self.unfinished = not text.endswith(('\n', '\r'))
            self.mixed_ends = _has_mixed_ends(text)
            self._damaged = _DAMAGE.search(text) is not None
            self._rows = _csv_rows(text)
            self.header_line, self.header = _read_header(path, self._rows)
            if self.unfinished:
                self._last_line = sum(1 for _ in io.StringIO(text, newline=''))

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
            refused = self._refuse(rows, line - len(rows), width)
            if refused:
                kept = [at for at in lines if at not in refused]
                rows = [rows[at - lines[0]] for at in kept]
                # An empty line is no row at all.
                listed = [(at, *why) for at, why in refused.items() if why[1] != Fault.NONE]
                yield Chunk(kept, [[row[index] for row in rows] for index in wanted], listed)
            else:
                yield Chunk(lines, [[row[index] for row in rows] for index in wanted], [])

    def _refuse(
        self, rows: list[list[str]], before: int, width: int
    ) -> dict[int, tuple[str, Fault]]:
        """Return text and fault of the lines that are no rows, by line.

        Empty lines have the fault NONE.
        """
        refused: dict[int, tuple[str, Fault]] = {}
        if (
            all(width == len(row) for row in rows)
            and not self._damaged
            and self.header not in rows
        ):
            return refused
        for at, row in enumerate(rows, before + 1):
            text = ','.join(row)
            if _is_blank(text) and (width > 1 or not row):
                refused[at] = (text, Fault.NONE)
            elif self._damaged and _DAMAGE.search(text):
                refused[at] = (_DAMAGE.sub(_escape, text), Fault.DAMAGED_LINE)
            elif row == self.header:
                refused[at] = (text, Fault.REPEATED_HEADER)
            elif len(row) < width and at == self._last_line:
                refused[at] = (text, Fault.TRUNCATED_LINE)
            elif len(row) != width:
                refused[at] = (text, Fault.WRONG_CELL_COUNT)
        return refused


def to_floats(cells: Column) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Return float64 (N,), NaN where a cell is empty or text, and by row what is no number."""
    if isinstance(cells, np.ndarray):
        return cells, {}
    # float() takes 1_000 and １０ for numbers; no market file does.
    joined = ''.join(cells)
    if '_' not in joined and joined.isascii():
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells)), {}
        except ValueError:
            pass
    values, texts = np.full(len(cells), np.nan), {}
    for row, cell in enumerate(cells):
        bare = cell.strip()
        if bare.lower() in _EMPTY:
            continue
        try:
            if '_' in bare or not bare.isascii():
                raise ValueError
            values[row] = float(bare)
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
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        # Not a matter of rights: the bytes were read, and are no gzip, or not all of it.
        raise DataError(
            f'{path}: not a whole gzip file: {error}; '
            'copy it again, or rename it if it is plain text'
        ) from error
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error}; check its rights') from error
    text = _decode(raw)
    return text.replace('\0', _NUL) if '\0' in text else text


def _decode(raw: bytes) -> str:
    """Return the text; in lines that are none, each byte that is no ASCII becomes a surrogate."""
    if raw.startswith((b'\xff\xfe', b'\xfe\xff')):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode('utf-16')
        return raw.decode('utf-16', 'replace').replace('\ufffd', '\udcff')
    raw = raw.removeprefix(codecs.BOM_UTF8)
    encodings = ('utf-8', 'gb18030')
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    # Some bytes are damaged: the encoding that loses fewer lines is the file's.
    both = [[_decode_line(line, encoding) for line in raw.split(b'\n')] for encoding in encodings]
    return '\n'.join(min(both, key=lambda lines: sum(map(_is_damaged, lines))))


def _decode_line(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return line.decode('ascii', 'surrogateescape')


def _is_damaged(text: str) -> bool:
    return _DAMAGE.search(text) is not None


def _escape(found: re.Match[str]) -> str:
    """Return a damaged character so that it can be shown and written."""
    code = 0 if found[0] == _NUL else ord(found[0])
    return f'\\x{code - 0xDC00 if code >= 0xDC00 else code:02x}'


def _is_blank(text: str) -> bool:
    """Return whether there is nothing but ASCII blanks: other ones are no layout, but damage."""
    return not text.strip(string.whitespace)


def _has_mixed_ends(text: str) -> bool:
    both = text.count('\r\n')
    return sum(n > 0 for n in (both, text.count('\n') - both, text.count('\r') - both)) > 1


def _csv_rows(text: str) -> Iterator[list[str]]:
    """Return the rows of a text file; one line is one row, whatever its quotes say."""
    lines = io.StringIO(text, newline='')
    head = next((line for line in lines if not _is_blank(line)), '')
    lines.seek(0)
    delimiter = max(',;\t', key=head.count)
    if '"' not in text:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    # A quote that never closes would swallow the rest of the file as one cell.
    return (_quoted_row(line, delimiter) for line in lines)


def _quoted_row(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        # The quotes do not match: "39.5"1 would be read as 39.51. Nothing has a single cell.
        return [line.strip('\r\n')]


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
            if _DAMAGE.search(','.join(row)):
                raise DataError(
                    f'{path}: line {line}: the header is damaged: '
                    f"'{_DAMAGE.sub(_escape, ','.join(row))[:_SHOWN]}'; "
                    'save the file as UTF-8 text, or fetch it again'
                )
            if not _is_blank(''.join(row)):
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
        # Pages that carry a checksum are held against it; those without one are taken as they are.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file; check the path') from error
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f'{path}: not a whole Parquet file: {error}; write it again') from error


def _parquet_chunks(path: Path, file: Any, wanted: list[str]) -> Iterator[Chunk]:
    import pyarrow

    row = 0
    try:
        for batch in file.iter_batches(65_536, columns=wanted):
            columns = [_arrow_column(batch.column(name)) for name in wanted]
            yield Chunk(range(row + 1, row + 1 + batch.num_rows), columns, [])
            row += batch.num_rows
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
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
    if types.is_floating(kind) or types.is_decimal(kind):
        numbers: npt.NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy(
            zero_copy_only=False
        )
        return numbers
    return [text or '' for text in column.cast(pyarrow.string()).to_pylist()]
