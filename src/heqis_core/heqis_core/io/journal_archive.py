# SPDX-License-Identifier: Apache-2.0
"""Decisions, signals and events of a journal as Parquet, in bounded memory.

One row a decision, with everything that the journal knows of it. A file is written under another
name, forced to the disk and renamed: it is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from heqis_core.control import Event
from heqis_core.decision import Action, Decisions, reason_names
from heqis_core.durable import force_folder
from heqis_core.errors import DataError
from heqis_core.frame import Stage
from heqis_core.io.journal_reader import JournalReader

BLOCK_ROWS = 50_000
"""Decisions or events that are held at a time (some 15 MB), and the size of a row group."""

_TIME = pa.timestamp('ns', 'UTC')
_DECISIONS = pa.schema(
    [
        ('position', pa.int64()),
        ('stream', pa.string()),
        ('event_time', _TIME),
        ('revision', pa.int64()),
        ('symbol', pa.string()),
        ('action', pa.string()),
        ('reasons', pa.string()),
        ('score', pa.float32()),
        ('target_position', pa.float32()),
        ('p_down', pa.float32()),
        ('p_flat', pa.float32()),
        ('p_up', pa.float32()),
        ('predicted_return', pa.float32()),
        ('valid_until', _TIME),
        ('epoch', pa.uint64()),
        ('seq', pa.uint64()),
        ('bundle_id', pa.string()),
        ('generator', pa.string()),
        *((f'{stage.name.lower()}_ns', pa.int64()) for stage in Stage),
    ]
)
_EVENTS = pa.schema(
    [
        ('stamp', _TIME),
        ('level', pa.string()),
        ('source', pa.string()),
        ('kind', pa.string()),
        ('subject', pa.string()),
        ('text', pa.string()),
    ]
)
_ACTIONS = np.array([action.name for action in Action], object)
_HEADS = ('stream', 'revision', 'epoch', 'seq', 'bundle_id', 'generator')


def write_decisions(
    journal: JournalReader,
    out: Path,
    *,
    signals_only: bool = False,
    first: int = 1,
    last: int | None = None,
    since_ns: int | None = None,
    most_rows: int | None = None,
) -> tuple[int, int]:
    """Write the decisions of frames, oldest commit first; return rows and the last position.

    Args:
        journal: what to read; it may be written meanwhile.
        out: file to write; what stood there stays until the new one is whole.
        signals_only: leave out what is no BUY and no SELL.
        first, last: positions of the first and the last frame; None is the newest of now.
        since_ns: leave out frames of an earlier event time.
        most_rows: end with the frame that reaches this many rows.

    Raises JournalError if a frame cannot be read, DataError if the file cannot be written.
    """
    last = journal.last_position() if last is None else last
    reached = first - 1

    def blocks() -> Iterator[pa.Table]:
        nonlocal reached
        rows, taken = 0, 1
        while reached < last and (most_rows is None or rows < most_rows):
            found = journal.frames_between(reached + 1, last, max(1, BLOCK_ROWS // taken))
            if not found:
                break
            reached = found[-1][0]
            taken = max(len(item.symbols) for _, item in found) or 1
            if since_ns is not None:
                found = [pair for pair in found if pair[1].event_time_ns >= since_ns]
            if found:
                table = _decision_table(found, signals_only)
                rows += len(table)
                yield table

    return _write(out, _DECISIONS, blocks), reached


def write_events(
    journal: JournalReader,
    out: Path,
    *,
    first: int = 1,
    last: int | None = None,
    since_ns: int | None = None,
) -> tuple[int, int]:
    """Write the events from an id up to another, oldest first; return rows and the last id.

    Args and errors are those of `write_decisions`; `since_ns` is held against the event's stamp.
    """
    reached = first - 1

    def blocks() -> Iterator[pa.Table]:
        nonlocal reached
        while found := journal.events_after(reached, BLOCK_ROWS, last):
            reached = found[-1][0]
            events = [event for _, event in found if event.stamp_ns >= (since_ns or 0)]
            yield _event_table(events)

    return _write(out, _EVENTS, blocks), reached


def _decision_table(found: Sequence[tuple[int, Decisions]], signals_only: bool) -> pa.Table:
    items = [item for _, item in found]
    sizes = [len(item.symbols) for item in items]
    action = np.concatenate([item.action for item in items])
    keep = np.flatnonzero(action >= Action.BUY) if signals_only else np.arange(len(action))
    of = np.repeat(np.arange(len(items)), sizes)[keep]

    def each(values: Sequence[object], dtype: Any = object) -> Any:
        return np.array(values, dtype)[of]

    def column(name: str) -> Any:
        return np.concatenate([getattr(item, name) for item in items])[keep]

    symbols = np.array([symbol for item in items for symbol in item.symbols], object)
    probabilities = column('probabilities')
    stamps = np.array([item.stamps for item in items])[of]
    data: dict[str, Any] = {
        'position': each([number for number, _ in found], np.int64),
        'event_time': each([item.event_time_ns for item in items], np.int64),
        'symbol': symbols[keep],
        'action': _ACTIONS[action[keep]],
        'reasons': _reason_texts(column('reasons')),
        'valid_until': column('valid_until_ns'),
    }
    for name in _HEADS:
        kind = _DECISIONS.field(name).type
        dtype = object if kind == pa.string() else kind.to_pandas_dtype()
        data[name] = each([getattr(item, name) for item in items], dtype)
    for name in ('score', 'target_position', 'predicted_return'):
        data[name] = column(name)
    for i, name in enumerate(('p_down', 'p_flat', 'p_up')):
        data[name] = probabilities[:, i]
    for stage in Stage:
        data[f'{stage.name.lower()}_ns'] = stamps[:, stage]
    return _table(_DECISIONS, data)


def _reason_texts(bits: Any) -> Any:
    values, at = np.unique(bits, return_inverse=True)
    texts = [','.join(reason_names(int(value))) for value in values]
    return np.array(texts, object)[at] if texts else np.array([], object)


def _event_table(events: Sequence[Event]) -> pa.Table:
    names = ('source', 'kind', 'subject', 'text')
    data: dict[str, Any] = {name: [getattr(event, name) for event in events] for name in names}
    data['stamp'] = np.array([event.stamp_ns for event in events], np.int64)
    data['level'] = [event.level.name for event in events]
    return _table(_EVENTS, data)


def _table(schema: pa.Schema, data: dict[str, Any]) -> pa.Table:
    arrays = []
    for field in schema:
        is_float = pa.types.is_floating(field.type)
        array = pa.array(np.ascontiguousarray(data[field.name])) if is_float else None
        if array is None:
            whole = pa.int64() if field.type == _TIME else field.type
            array = pa.array(data[field.name], whole).cast(field.type)
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def _write(out: Path, schema: pa.Schema, blocks: Callable[[], Iterator[pa.Table]]) -> int:
    partial = out.with_name(f'{out.name}.partial')
    rows = 0
    try:
        with partial.open('wb') as file:
            with parquet.ParquetWriter(file, schema, compression='zstd') as writer:
                for table in blocks():
                    writer.write_table(table)
                    rows += len(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out)
        force_folder(out.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        why = error.strerror or error
        raise DataError(f'{out}: the file cannot be written: {why}; make room there') from error
    return rows
