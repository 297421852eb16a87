# SPDX-License-Identifier: Apache-2.0
"""Save what can be read of a damaged journal: `python3 -m heqis_core.io.journal_repair PATH`.

Every frame whose row stands in a leaf that can be read and whose checksum holds, wherever the tree
above it is damaged, events, holdings and named texts (the kill switch) go into a new journal; the
damaged file is only read. Predictions are left behind: they can be made again. Saved frames count
as published: a repair never sends an old signal once more. Where the named texts cannot be read
the kill switch is engaged.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.errors import HeqisError, JournalError
from heqis_core.io import journal_format as fmt
from heqis_core.io.journal import Journal
from heqis_core.io.journal_reader import JournalReader
from heqis_core.io.journal_salvage import Pages, Place

_BLOCK = 256
_UNIVERSES, _COMMITS, _EVENTS, _FRAMES = 2, 3, 7, 15
"""Columns of the tables: by these their rows are told apart."""
_T = TypeVar('_T')


class _Damaged(JournalReader):
    """A damaged journal, opened without any check; its rows come from the leaves."""

    def __init__(self, path: Path, pages: Pages) -> None:
        self.path = path
        self._db = sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro', uri=True)
        # A file that is shorter than it says is read as far as it goes.
        self._db.execute('PRAGMA writable_schema=ON')
        self._names = {}
        self._published = 0
        self._pages = pages
        tables = (_UNIVERSES, _COMMITS, _EVENTS, _FRAMES)
        self._places: dict[int, dict[int, list[Place]]] = {n: {} for n in tables}
        for row, n_columns, place in pages.rows():
            if n_columns in self._places:
                self._places[n_columns].setdefault(row, []).append(place)
        self._archived: dict[int, int] = {}
        self._commits = sorted(self._found(_COMMITS, self._commit))
        # What was dropped stands in free pages until they are used again: it is in the archive.
        marks = next(iter(_readable(lambda: [self.archived()])), {})
        self._archived = {_FRAMES: marks.get('frames', 0), _EVENTS: marks.get('events', 0)}

    def close(self) -> None:
        self._db.close()

    def last_frame(self) -> int:
        """Return the position of the newest frame of which anything is left."""
        return max((*self._places[_FRAMES], *(last for _, last, _ in self._commits)), default=0)

    def named(self) -> list[tuple[str, str]]:
        """Return the named texts, and up to where keys of dropped frames never come again."""
        floors = self.get_meta('floors')
        return [*self.meta().items(), *([('floors', floors)] if floors else [])]

    def saved_frames(self) -> Iterator[Decisions]:
        """Yield every frame that is whole, oldest commit first."""
        return self._found(_FRAMES, self._frame)

    def saved_events(self) -> Iterator[Event]:
        """Yield every event that is whole, oldest first."""
        return self._found(_EVENTS, self._event)

    def _found(self, table: int, make: Callable[[int, list[Any]], _T]) -> Iterator[_T]:
        archived = self._archived.get(table, 0)
        for number in sorted(self._places[table]):
            if number <= archived and not _readable(self._still_there, table, number):
                continue
            for place in self._places[table][number]:
                found = _readable(lambda n, p: [make(n, self._pages.read(p))], number, place)
                yield from found
                if found:
                    break

    def _still_there(self, table: int, number: int) -> list[int]:
        name = {_FRAMES: 'frames', _EVENTS: 'events'}[table]
        return [n for (n,) in self.rows(f'SELECT id FROM {name} WHERE id = ?', (number,))]

    def _frame(self, number: int, row: list[Any]) -> Decisions:
        _, stream, event_ns, revision, epoch, seq, bundle, generator, universe, *rest = row
        names = next(self._read(_UNIVERSES, universe))[1]
        head = (stream, epoch, seq, event_ns, revision, bundle, generator, names)
        return self.frame_of((*head, *rest[-3:], self._committed_ns(number)))

    def _read(self, table: int, number: int) -> Iterator[list[Any]]:
        for place in self._places[table].get(number, []):
            yield from _readable(lambda p: [self._pages.read(p)], place)

    def _committed_ns(self, number: int) -> int:
        at = bisect_right(self._commits, number, key=lambda commit: commit[0]) - 1
        if at < 0 or number > self._commits[at][1]:
            return 0
        return self._commits[at][2]

    @staticmethod
    def _commit(number: int, row: list[Any]) -> tuple[int, int, int]:
        _, last, committed_ns = row
        return number, int(last), int(committed_ns)

    @staticmethod
    def _event(_: int, row: list[Any]) -> Event:
        _, stamp_ns, level, *texts = row
        return Event(int(stamp_ns), Level(level), *texts)


def repair(source: Path | str, target: Path | str) -> dict[str, tuple[int, int]]:
    """Write what can be read into a new journal; return (saved, lost) of frames, events and texts.

    Of the named texts either all can be read, or 1 counts as lost.

    Raises JournalError if the new file exists already, nothing of the old one can be read, or
    there is no room for a copy beside it.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise JournalError(f'{target} exists already; move it away first')
    if not source.is_file():
        raise JournalError(f'no journal at {source}')
    try:
        pages = Pages(source)
    except OSError as error:
        raise JournalError(
            f'{source} cannot be copied in its folder: {error}; make room there'
        ) from error
    with pages:
        damaged = _Damaged(source, pages)
        try:
            return _save(damaged, target)
        finally:
            damaged.close()


def _save(damaged: _Damaged, target: Path) -> dict[str, tuple[int, int]]:
    frames, events = damaged.saved_frames(), damaged.saved_events()
    first_frames, first_events = list(islice(frames, _BLOCK)), list(islice(events, _BLOCK))
    if not first_frames and not first_events:
        raise JournalError(
            f'nothing of {damaged.path} can be read; move it away and start a new journal'
        )
    n_frames = n_events = 0
    with Journal.open(target) as journal:
        for block in _blocks(first_frames, frames):
            n_frames += journal.restore(block)
        for some in _blocks(first_events, events):
            journal.add_events(some)
            n_events += len(some)
        # The signals that moved them may be among what was lost, or in the archive.
        for held in _readable(lambda: [damaged.holdings()]):
            journal.set_holdings(held)
        named = next(iter(_readable(lambda: [damaged.named()])), None)
        # Perhaps a person had engaged it: better one who clears it than none who is asked.
        lost = [(fmt.KILL_SWITCH, 'lost in a repair')]
        for key, value in lost if named is None else named:
            journal.set_meta(key, value)
        journal.mark_published()
    last_event = max((n for (n,) in _readable(_last_event, damaged)), default=n_events)
    return {
        'frames': (n_frames, max(0, damaged.last_frame() - n_frames)),
        'events': (n_events, max(0, last_event - n_events)),
        'named texts': (len(named or ()), int(named is None)),
    }


def _last_event(damaged: _Damaged) -> list[tuple[int]]:
    return [(damaged.last_event(),)]


def _blocks(first: list[_T], rest: Iterator[_T]) -> Iterator[list[_T]]:
    block = first
    while block:
        yield block
        block = list(islice(rest, _BLOCK))


def _readable(read: Callable[..., list[_T]], *args: object) -> list[_T]:
    try:
        return read(*args)
    except (JournalError, sqlite3.Error, ValueError, IndexError, TypeError, StopIteration):
        return []


def main(argv: list[str] | None = None) -> int:
    """Repair the journal that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description='Save what can be read of a damaged journal.')
    parser.add_argument('path', type=Path, help='the damaged journal; it is only read')
    path = parser.parse_args(argv).path
    target = path.with_name(f'{path.name}.repaired')
    try:
        done = repair(path, target)
        for name, (saved, lost) in done.items():
            print(f'{name}: {saved} saved, {lost} lost, dropped or trimmed')
        if done['named texts'][1]:
            print('the kill switch is engaged, for what it was is lost: heqis kill-switch off')
    except HeqisError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'written to {target}; move {path.name}, {path.name}-wal and {path.name}-shm away')
    print(f'together, then rename {target.name} to {path.name}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
