# SPDX-License-Identifier: Apache-2.0
"""The files of a fetched store: what the vendor sent, by endpoint and symbol, and which days.

Each Parquet file says in its own metadata which days it is complete for, so data and bookkeeping
change in one rename and a kill at any moment leaves both or neither. Equal content gives equal
bytes. Layout, under one folder:

    symbol=600519.SH/bars.parquet                   clean bars (`tushare_bars`)
    _vendor/daily/symbol=600519.SH/rows.parquet     rows as sent, of one endpoint and symbol
    _vendor/stock_basic/rows.parquet                a whole table as sent
    _vendor/{universe,rejected}.csv                 what was asked for; rows that were refused
    _stage/…                                        answers for whole days, until they are merged
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from heqis_core.errors import DataError
from heqis_core.io.tushare_endpoints import Endpoint, Rejected, Rows

BARS_FILE = 'bars.parquet'
_ROWS_FILE = 'rows.parquet'
_VENDOR, _STAGE, _TEMPORARY, _LOCK = '_vendor', '_stage', '_tmp', '.lock'
_SYMBOL = 'symbol='
_META = b'heqis'
_TS_CODE = re.compile(r'[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*')
_VERSION = 1

Ranges = tuple[tuple[str, str], ...]
"""Ranges of days, both ends included, sorted, neither overlapping nor touching."""


class VendorRows(NamedTuple):
    """What is stored of one endpoint for one symbol."""

    table: Any
    """pyarrow Table, columns of the endpoint, sorted by day and the rest of the key."""
    covered: Ranges = ()
    """Days for which everything that the vendor had was stored."""
    rejected: tuple[Rejected, ...] = ()
    """Rows that were sent and are not in the table."""


class Changes(NamedTuple):
    """What an answer did to rows that were stored before."""

    added: int = 0
    changed: int = 0
    """Rows of equal key whose cells differ: the vendor corrected them."""
    removed: int = 0
    """Rows that the vendor no longer has."""


@contextmanager
def lock_store(root: Path) -> Iterator[None]:
    """Hold the store for this process alone, and clear what a killed one left half written.

    Raises DataError if another process holds it, the folder cannot be written, or holds something
    else.
    """
    _refuse_other_content(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / _LOCK).open('w')
    except OSError as error:
        raise DataError(f'{root}: cannot be written: {error}; choose another folder') from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f'{root}: another heqis fetch is writing there; wait for its end'
            ) from error
        shutil.rmtree(root / _TEMPORARY, ignore_errors=True)
        yield
        shutil.rmtree(root / _TEMPORARY, ignore_errors=True)


def _refuse_other_content(root: Path) -> None:
    """Raise DataError for a folder with files, none of which is of a store."""
    if not root.is_dir():
        return
    names = {path.name for path in root.iterdir()}
    # A run that ended before its first table leaves just these.
    others = sorted(names - {_LOCK, _STAGE, _TEMPORARY})
    is_store = _VENDOR in names or any(name.startswith(_SYMBOL) for name in names)
    if others and not is_store:
        raise DataError(
            f'{root}: holds {others[0]} and nothing of a store; choose a new or an empty folder'
        )


def rows_path(root: Path, endpoint: str, symbol: str = '') -> Path:
    """Return where the rows of an endpoint (and symbol) are.

    Raise DataError for a symbol that is no `ts_code`: names come from outside.
    """
    folder = root / _VENDOR / endpoint
    return (folder / _symbol_folder(symbol) if symbol else folder) / _ROWS_FILE


def bars_path(root: Path, symbol: str) -> Path:
    """Return where the clean bars of a symbol are; raise DataError as `rows_path`."""
    return root / _symbol_folder(symbol) / BARS_FILE


def _symbol_folder(symbol: str) -> str:
    if not _TS_CODE.fullmatch(symbol):
        raise DataError(f'{symbol!r} is no ts_code; expected one such as 600519.SH')
    return f'{_SYMBOL}{symbol}'


def list_path(root: Path, name: str) -> Path:
    """Return where a list about the whole store is, such as `rejected.csv`."""
    return root / _VENDOR / name


def read_rows(root: Path, endpoint: Endpoint, symbol: str = '') -> VendorRows:
    """Return what is stored, no rows if there is no file.

    Raise DataError for a file that is not one of this store.
    """
    path = rows_path(root, endpoint.name, symbol)
    if not path.exists():
        return no_rows(endpoint)
    table, meta = read_parquet(path)
    if meta.get('version') != _VERSION or table.schema.names != list(endpoint.columns):
        raise DataError(f'{path}: not written by this version: fetch into another folder')
    return _head(meta)._replace(table=table.replace_schema_metadata(None))


def read_head(root: Path, endpoint: Endpoint, symbol: str) -> VendorRows:
    """Return what `read_rows` returns, without reading the rows: its table is empty."""
    path = rows_path(root, endpoint.name, symbol)
    if not path.exists():
        return no_rows(endpoint)
    from pyarrow import parquet

    head = _head(_meta_of(path, lambda: parquet.read_schema(path).metadata))
    return no_rows(endpoint)._replace(covered=head.covered, rejected=head.rejected)


def no_rows(endpoint: Endpoint) -> VendorRows:
    """Return no rows of an endpoint."""
    return VendorRows(to_table(endpoint, {name: [] for name in endpoint.columns}))


def to_answer(endpoint: Endpoint, rows: Rows) -> VendorRows:
    """Return an answer in the form in which it is stored."""
    return VendorRows(to_table(endpoint, rows.columns), rejected=tuple(rows.rejected))


def _head(meta: Mapping[str, Any]) -> VendorRows:
    return VendorRows(
        None,
        tuple((first, last) for first, last in meta.get('covered', ())),
        tuple(Rejected(tuple(key), *rest) for key, *rest in meta.get('rejected', ())),
    )


def write_rows(root: Path, endpoint: Endpoint, symbol: str, rows: VendorRows) -> None:
    """Put rows and bookkeeping in the place of what is stored, in one step."""
    meta = {
        'version': _VERSION,
        'endpoint': endpoint.name,
        'covered': rows.covered,
        'rejected': rows.rejected,
    }
    write_parquet(root, rows_path(root, endpoint.name, symbol), rows.table, meta)


def merge(
    endpoint: Endpoint, old: VendorRows, new: VendorRows, start: str, end: str, complete_until: str
) -> tuple[VendorRows, Changes]:
    """Return the stored rows with those of days `start` to `end` replaced by an answer's rows.

    Args:
        endpoint: whose rows they are.
        old: what is stored.
        new: the answer.
        start: first day that was asked for.
        end: last day that was asked for.
        complete_until: day after which the vendor may still add rows; those days stay uncovered.
    """
    import pyarrow
    from pyarrow import compute

    days = old.table['trade_date']
    inside = compute.and_(compute.greater_equal(days, start), compute.less_equal(days, end))
    before = _by_key(endpoint, old.table.filter(inside))
    after = _by_key(endpoint, new.table) if before else {}
    changes = Changes(
        added=len(new.table) - sum(key in before for key in after),
        changed=sum(before[key] != row for key, row in after.items() if key in before),
        removed=sum(key not in after for key in before),
    )
    table = _sorted(
        endpoint, pyarrow.concat_tables([old.table.filter(compute.invert(inside)), new.table])
    )
    place = endpoint.key.index('trade_date')
    kept = [one for one in old.rejected if not start <= one.key[place] <= end]
    rejected = tuple(sorted({*kept, *new.rejected}))
    last = min(end, complete_until)
    covered = add_range(old.covered, start, last) if start <= last else old.covered
    return VendorRows(table, covered, rejected), changes


def to_table(endpoint: Endpoint, columns: Mapping[str, list[Any]]) -> Any:
    """Return columns of texts and floats as a pyarrow Table of an endpoint."""
    import pyarrow

    arrays = {
        name: pyarrow.array(
            columns[name], pyarrow.string() if name in endpoint.texts else pyarrow.float64()
        )
        for name in endpoint.columns
    }
    return pyarrow.table(arrays)


def write_whole(root: Path, endpoint: Endpoint, rows: Rows) -> None:
    """Store a whole table such as `stock_basic`."""
    answer = to_answer(endpoint, rows)
    rejected = tuple(sorted(answer.rejected))
    write_rows(root, endpoint, '', VendorRows(_sorted(endpoint, answer.table), (), rejected))


def _sorted(endpoint: Endpoint, table: Any) -> Any:
    keys = sorted(endpoint.key, key=lambda name: name != 'trade_date')
    return table.sort_by([(name, 'ascending') for name in keys]).combine_chunks()


def _by_key(endpoint: Endpoint, table: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    columns = [table[name].to_pylist() for name in endpoint.columns]
    place = [endpoint.columns.index(name) for name in endpoint.key]
    return {tuple(row[index] for index in place): row for row in zip(*columns, strict=True)}


def add_range(covered: Ranges, first: str, last: str) -> Ranges:
    """Return the ranges with one more."""
    out: list[tuple[str, str]] = []
    for start, end in sorted((*covered, (first, last))):
        if out and start <= shift_day(out[-1][1], 1):
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return tuple(out)


def missing_ranges(covered: Ranges, first: str, last: str) -> Ranges:
    """Return the days from `first` to `last` that no range covers."""
    out = []
    for start, end in covered:
        if end < first or start > last:
            continue
        if start > first:
            out.append((first, shift_day(start, -1)))
        first = shift_day(end, 1)
    if first <= last:
        out.append((first, last))
    return tuple(out)


def shift_day(day: str, days: int) -> str:
    """Return the day that is some days later, or earlier."""
    moved = date(int(day[:4]), int(day[4:6]), int(day[6:])) + timedelta(days=days)
    return f'{moved:%Y%m%d}'


def write_stage(
    root: Path, endpoint: Endpoint, day: str, symbols: Sequence[str], answer: VendorRows
) -> None:
    """Keep the rows of just these symbols of one day until all days are there."""
    meta = {'rejected': answer.rejected, 'symbols': symbols}
    write_parquet(root, _stage_path(root, endpoint, day), answer.table, meta)


def read_stage(
    root: Path, endpoint: Endpoint, day: str, symbols: Sequence[str]
) -> VendorRows | None:
    """Return what is kept of one day; None if nothing is, or not of all these symbols."""
    path = _stage_path(root, endpoint, day)
    if not path.exists():
        return None
    table, meta = read_parquet(path)
    if not set(symbols) <= set(meta.get('symbols', ())):
        return None
    return _head(meta)._replace(table=table.replace_schema_metadata(None))


def _stage_path(root: Path, endpoint: Endpoint, day: str) -> Path:
    return root / _STAGE / endpoint.name / f'{day}.parquet'


def clear_stage(root: Path, endpoint: str = '') -> None:
    """Remove kept answers (of one endpoint): all that is wanted of them was merged."""
    shutil.rmtree(root / _STAGE / endpoint, ignore_errors=True)


def read_parquet(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return a table of the store and its metadata; raise DataError for a damaged file."""
    from pyarrow import parquet

    held: list[Any] = []

    def read() -> Mapping[bytes, bytes]:
        held.append(parquet.ParquetFile(path).read())
        return held[0].schema.metadata or {}

    meta = _meta_of(path, read)
    return held[0], meta


def _meta_of(path: Path, read: Any) -> dict[str, Any]:
    import pyarrow

    try:
        meta = json.loads((read() or {}).get(_META, b'{}'))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f'{path}: not a whole file of this store: {error}; remove it and fetch again'
        ) from error
    return meta if isinstance(meta, dict) else {}


def write_parquet(root: Path, path: Path, table: Any, meta: Mapping[str, Any]) -> None:
    """Replace one file in one step; equal arguments give equal bytes with one pyarrow version."""
    from pyarrow import parquet

    text = json.dumps(meta, ensure_ascii=False, sort_keys=True, separators=(',', ':'))
    buffer = io.BytesIO()
    parquet.write_table(
        table.replace_schema_metadata({_META: text.encode()}),
        buffer,
        compression='zstd',
        row_group_size=1 << 20,
        write_page_checksum=True,
    )
    replace_file(root, path, buffer.getvalue())


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """Write a file of the store beside its place, force it to the disk, then rename it.

    The folder is not forced: after a power loss the old file may be back, which only means that
    its days are fetched again.
    """
    temporary = root / _TEMPORARY / path.name
    try:
        temporary.parent.mkdir(exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f'{path}: cannot be written: {error}; free space, then fetch again'
        ) from error
