# SPDX-License-Identifier: Apache-2.0
"""Save what can be read of a damaged journal: `python3 -m heqis_core.io.journal_repair PATH`.

Frames whose row can be read and whose checksum holds, events and named texts (the kill switch) go
into a new journal; the damaged file is only read. Predictions are left behind: they can be made
again. Saved frames count as published: a repair never sends an old signal once more.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from heqis_core.control import Event
from heqis_core.decision import Decisions
from heqis_core.errors import HeqisError, JournalError
from heqis_core.io.journal import Journal
from heqis_core.io.journal_reader import JournalReader

_BLOCK = 256
_T = TypeVar('_T')


class _Damaged(JournalReader):
    """A damaged journal, opened without any check."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise JournalError(f'no journal at {path}')
        self.path = path
        self._db = sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro', uri=True)
        self._names = {}
        self._published = 0

    def last_id(self, *columns: str) -> int:
        """Return the highest id that one of some `column table` pairs still shows."""
        found = [row[0] for pair in columns for row in _readable(self._max, *pair.split())]
        return max((int(value or 0) for value in found), default=0)

    def _max(self, column: str, table: str) -> list[tuple[int | None]]:
        return [self._one(f'SELECT MAX({column}) FROM {table}')]

    def named(self) -> list[tuple[str, str]]:
        """Return the named texts."""
        return list(self.meta().items())

    def frames_between(self, first: int, last: int) -> list[Decisions]:
        """Return the frames with these ids."""
        return list(self._frames('WHERE f.id BETWEEN ? AND ? ORDER BY f.id', (first, last)))

    def events_between(self, first: int, last: int) -> list[Event]:
        """Return the events with these ids."""
        return list(self._events('WHERE id BETWEEN ? AND ? ORDER BY id', (first, last)))


def repair(source: Path | str, target: Path | str) -> dict[str, tuple[int, int]]:
    """Write what can be read into a new journal; return (saved, lost) of frames and events.

    Raises JournalError if the new file exists already or nothing of the old one can be read.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise JournalError(f'{target} exists already; move it away first')
    damaged = _Damaged(source)
    n_frames = damaged.last_id('id frames', 'last_frame commits')
    n_events = damaged.last_id('id events')
    if not n_frames + n_events:
        raise JournalError(
            f'nothing of {source} can be read; move it away and start a new journal'
        )
    saved_frames = saved_events = 0
    with Journal.open(target) as journal:
        for frames in _blocks(damaged.frames_between, n_frames):
            saved_frames += journal.restore(frames)
        for events in _blocks(damaged.events_between, n_events):
            journal.add_events(events)
            saved_events += len(events)
        for key, value in _readable(damaged.named):
            journal.set_meta(key, value)
        journal.mark_published()
    lost_events = n_events - saved_events
    return {
        'frames': (saved_frames, n_frames - saved_frames),
        'events': (saved_events, lost_events),
    }


def _blocks(read: Callable[[int, int], list[_T]], last: int) -> Iterator[list[_T]]:
    for first in range(1, last + 1, _BLOCK):
        end = min(first + _BLOCK - 1, last)
        block = _readable(read, first, end)
        if not block:
            for row in range(first, end + 1):
                block = block + _readable(read, row, row)
        yield block


def _readable(read: Callable[..., list[_T]], *args: object) -> list[_T]:
    try:
        return read(*args)
    except (JournalError, sqlite3.Error, ValueError):
        return []


def main(argv: list[str] | None = None) -> int:
    """Repair the journal that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description='Save what can be read of a damaged journal.')
    parser.add_argument('path', type=Path, help='the damaged journal; it is only read')
    path = parser.parse_args(argv).path
    target = path.with_name(f'{path.name}.repaired')
    try:
        for name, (saved, lost) in repair(path, target).items():
            print(f'{name}: {saved} saved, {lost} lost or trimmed')
    except HeqisError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'written to {target}; move {path.name}, {path.name}-wal and {path.name}-shm away')
    print(f'together, then rename {target.name} to {path.name}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
