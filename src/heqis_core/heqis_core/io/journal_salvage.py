# SPDX-License-Identifier: Apache-2.0
"""Rows of a damaged SQLite file, read from its leaf pages without the tree above them.

Where an inner page is lost, everything below it cannot be found by SQLite any more, although the
leaves are whole. A leaf names no table: rows are told apart by their number of columns, and who
reads them must check them. Format: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

_TABLE_LEAF = 0x0D
_INTS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of an integer by its serial type."""

Value = int | str | bytes | None
Place = tuple[int, int]
"""Page number, from 1, and offset of a cell in it."""


class Pages:
    """The pages of a damaged file and of its WAL, in a copy; used in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Copy the file and its WAL to the folder they are in, and join the copies."""
        self._folder = TemporaryDirectory(dir=path.parent, prefix='salvage-')
        copy = Path(self._folder.name) / path.name
        shutil.copyfile(path, copy)
        wal = Path(f'{path}-wal')
        if wal.exists():
            shutil.copyfile(wal, f'{copy}-wal')
            with suppress(sqlite3.Error), closing(sqlite3.connect(copy)) as db:
                db.execute('PRAGMA writable_schema=ON')
                db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        self._file = copy.open('rb')
        head = self._file.read(100)
        size = int.from_bytes(head[16:18], 'big')
        self._size = 65536 if size == 1 else size if size >= 512 else 4096
        self._usable = self._size - (head[20] if len(head) > 20 else 0)
        self.count = copy.stat().st_size // self._size

    def __enter__(self) -> Pages:
        """Return the pages."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Delete the copy."""
        self._file.close()
        self._folder.cleanup()

    def rows(self) -> Iterator[tuple[int, int, Place]]:
        """Yield row id, number of columns and place of every row in a leaf that can be read."""
        for number in range(1, self.count + 1):
            page = self._page(number)
            start = 100 if number == 1 else 0
            if len(page) < self._size or page[start] != _TABLE_LEAF:
                continue
            n = int.from_bytes(page[start + 3 : start + 5], 'big')
            for i in range(min(n, self._size // 4)):
                at = start + 8 + 2 * i
                offset = int.from_bytes(page[at : at + 2], 'big')
                with suppress(IndexError, ValueError):
                    _, at = _varint(page, offset)
                    row, at = _varint(page, at)
                    n_bytes, first = _varint(page, at)
                    yield row, _count(page[first : at + n_bytes]), (number, offset)

    def read(self, place: Place) -> list[Value]:
        """Return the columns of a row; ValueError or IndexError if it is not whole."""
        page = self._page(place[0])
        n_bytes, at = _varint(page, place[1])
        _, at = _varint(page, at)
        return _columns(self._payload(page, at, n_bytes))

    def _payload(self, page: bytes, at: int, n_bytes: int) -> bytes:
        most, least = self._usable - 35, (self._usable - 12) * 32 // 255 - 23
        if n_bytes <= most:
            return page[at : at + n_bytes]
        here = least + (n_bytes - least) % (self._usable - 4)
        here = here if here <= most else least
        parts, left = [page[at : at + here]], n_bytes - here
        number = int.from_bytes(page[at + here : at + here + 4], 'big')
        while left > 0 and 0 < number <= self.count:
            page = self._page(number)
            parts.append(page[4 : 4 + min(left, self._usable - 4)])
            left -= self._usable - 4
            number = int.from_bytes(page[:4], 'big')
        if left > 0:
            raise ValueError('a page of the row is missing')
        return b''.join(parts)

    def _page(self, number: int) -> bytes:
        self._file.seek((number - 1) * self._size)
        return self._file.read(self._size)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and the offset after it."""
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


def _count(types: bytes) -> int:
    at = n = 0
    while at < len(types):
        _, at = _varint(types, at)
        n += 1
    return n


def _columns(payload: bytes) -> list[Value]:
    end, at = _varint(payload, 0)
    data = end
    values: list[Value] = []
    while at < end:
        kind, at = _varint(payload, at)
        n_bytes = _INTS.get(kind, (kind - 12) // 2 if kind >= 12 else 0)
        part = payload[data : data + n_bytes]
        data += n_bytes
        if len(part) != n_bytes or kind in (7, 10, 11):
            raise ValueError('no row of a journal')
        if kind in (0, 8, 9):
            values.append(None if kind == 0 else kind - 8)
        elif kind < 12:
            values.append(int.from_bytes(part, 'big', signed=True))
        else:
            values.append(part.decode() if kind % 2 else part)
    return values
