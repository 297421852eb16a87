# SPDX-License-Identifier: Apache-2.0
"""The journal: every decision durable, exactly once, with predictions and events beside it.

SQLite in WAL mode. `commit` returns only when the frames are on the disk (`synchronous=FULL`). A
frame's key is (stream, event time, revision): the same key again is not new and changes nothing.
One process writes (file lock), any number read; a journal belongs to one thread at a time. What
a row looks like is in `journal_format.py`, what can be asked in `journal_reader.py`. Who may
release a signal, and when, is the risk gate's business.

The time of a commit, and up to where frames were published, are known only after it: they are
written with the next transaction, by `flush` or by `close`. After a kill the last transaction
has no COMMITTED stamp, and its frames count as not published: `unpublished` gives them once
more.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions, Predictions
from heqis_core.errors import JournalError
from heqis_core.frame import Stage
from heqis_core.io import journal_drop as drop
from heqis_core.io import journal_file as file
from heqis_core.io import journal_format as fmt
from heqis_core.io import journal_holdings as holdings
from heqis_core.io.journal_reader import JournalReader

MAX_PREDICTIONS = 50_000
MAX_EVENTS = 200_000
_TRIM_EVERY = 256
_COMMITTED = int(Stage.COMMITTED)
_NEVER = -(1 << 63)

_INSERT_FRAME = (
    'INSERT INTO frames VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) '
    'ON CONFLICT (stream, event_time_ns, revision) DO NOTHING'
)
_SELECT_KEY = 'SELECT 1 FROM frames WHERE stream = ? AND event_time_ns = ? AND revision = ?'
_INSERT_PREDICTIONS = (
    'INSERT INTO predictions (stream, event_time_ns, revision, epoch, seq, bundle_id, generators, '
    'served, universe, body) VALUES (?,?,?,?,?,?,?,?,?,?)'
)
_INSERT_EVENT = (
    'INSERT INTO events (stamp_ns, level, source, kind, subject, text) VALUES (?,?,?,?,?,?)'
)
_INSERT_COMMIT = 'INSERT OR REPLACE INTO commits VALUES (?,?,?)'
_INSERT_SIGNAL = 'INSERT INTO signal_index VALUES (?,?,?,?,?,?)'


class Journal(JournalReader):
    """One open journal; make it with `Journal.open`.

    Attributes:
        path: the database file.
        read_only: whether this end only reads.
        duplicates: frames that came again since the journal was opened.
    """

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        lock: IO[str] | None,
        max_predictions: int,
        max_events: int,
    ) -> None:
        self.path = path
        self.read_only = lock is None
        self.duplicates = 0
        self._db = db
        self._lock = lock
        self._closed = False
        self._limits = {'predictions': max_predictions, 'events': max_events}
        self._since_trim = 0
        self._universes: dict[tuple[str, ...], int] = {}
        self._latest: tuple[tuple[str, ...] | None, int] = (None, 0)
        self._names: dict[str, tuple[str, ...]] = {}
        self._next_id = int(self._one('SELECT COALESCE(MAX(id), 0) + 1 FROM frames')[0])
        self._unwritten_commit: tuple[int, int, int] | None = None
        self._published = int(self.get_meta('published') or 0)
        self._published_written = self._published
        self._floors: dict[str, int] = json.loads(self.get_meta('floors') or '{}')
        self._held = set() if self.read_only else holdings.load(db)
        self._moved: dict[holdings.Key, int | None] = {}

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        read_only: bool = False,
        check: bool | None = None,
        max_predictions: int = MAX_PREDICTIONS,
        max_events: int = MAX_EVENTS,
    ) -> Journal:
        """Open a journal, or make it if it is not there and this is the writer.

        Args:
            path: the database file; its folder is made if need be.
            read_only: read what another process writes, or has written.
            check: look at every page first (`PRAGMA quick_check`); by default the writer does.
            max_predictions: rows of predictions that are kept, the newest; 0 keeps all.
            max_events: rows of events that are kept, the newest; 0 keeps all.

        Raises JournalError if it is no journal, is damaged (the message says how to repair it), is
        written by another process, or stands on a file system that cannot hold one safely.
        """
        path = Path(path)
        if read_only and not path.is_file():
            raise JournalError(f'no journal at {path}; the process of the risk gate makes it')
        with ExitStack() as undo:
            lock = None if read_only else undo.enter_context(file.lock(path))
            try:
                db = file.connect_reader(path) if read_only else file.connect_writer(path)
                undo.callback(db.close)
                if not read_only if check is None else check:
                    file.check_pages(path, db)
                journal = cls(path, db, lock, max_predictions, max_events)
            except sqlite3.Error as error:
                raise file.failure(path, error) from error
            undo.pop_all()
        return journal

    def __enter__(self) -> Journal:
        """Return the open journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Write what is known only now (see the module) and let another process write."""
        if self._closed:
            return
        self._closed = True
        with self._lock or nullcontext(), closing(self._db):
            if not self.read_only:
                self.flush()

    def commit(
        self,
        decisions: Sequence[Decisions],
        *,
        predictions: Sequence[Predictions] = (),
        events: Sequence[Event] = (),
    ) -> list[bool]:
        """Make frames durable in one transaction and say for each whether it is new.

        A frame whose key is already there changes nothing; if it says something else, the first
        one is kept, the conflict is counted (`counts()['conflicts']`) and an event is written.
        New frames get the COMMITTED stamp, in place. Predictions and events go into the same
        transaction.

        Raises JournalError if nothing could be written: then no frame of this call is in the
        journal, and the call may be repeated.
        """
        if not (decisions or predictions or events):
            return []
        with self._transaction():
            new = self._insert_frames(decisions) if decisions else []
            for item, fresh in zip(decisions, new, strict=True):
                if not fresh:
                    self._compare_with_first(item)
            self._insert_predictions(predictions)
            self._insert_events(events)
        n_new = sum(new)
        self.duplicates += len(new) - n_new
        if n_new:
            now = time.time_ns()
            self._unwritten_commit = (self._next_id, self._next_id + n_new - 1, now)
            self._next_id += n_new
            for item, fresh in zip(decisions, new, strict=True):
                if fresh:
                    item.stamps[_COMMITTED] = now
        return new

    def fresh(self, decisions: Sequence[Decisions]) -> list[bool]:
        """Say of each frame whether it would be new to `commit`."""
        seen: set[tuple[str, int, int]] = set()
        new: list[bool] = []
        for item in decisions:
            key = item.stream, item.event_time_ns, item.revision
            known = key in seen or self._is_forgotten(item) or self._one(_SELECT_KEY, key)
            new.append(not known)
            seen.add(key)
        return new

    def add_predictions(self, predictions: Sequence[Predictions]) -> None:
        """Write predictions, in one transaction; the oldest beyond the limit go."""
        self.commit((), predictions=predictions)

    def add_events(self, events: Sequence[Event]) -> None:
        """Write events, in one transaction; the oldest beyond the limit go."""
        self.commit((), events=events)

    def restore(self, frames: Sequence[Decisions]) -> int:
        """Write frames of another journal, commit times included; return how many are new."""
        with self._transaction():
            new = self._insert_frames(frames) if frames else []
            saved = [item for item, fresh in zip(frames, new, strict=True) if fresh]
            for number, item in enumerate(saved, self._next_id):
                row = (number, number, int(item.stamps[_COMMITTED]))
                self._db.execute(_INSERT_COMMIT, row)
        self._next_id += len(saved)
        return len(saved)

    def set_holdings(self, held: Sequence[tuple[str, str, int]]) -> None:
        """Put what is held, as `holdings` gives it, in the place of what is known: a repair."""
        with self._transaction():
            self._moved = dict.fromkeys(self._held)
            self._moved |= {(stream, symbol): since_ns for stream, symbol, since_ns in held}
            holdings.write(self._db, self._moved)

    @property
    def position(self) -> int:
        """Return the number of the last frame that was committed; it only grows."""
        return self._next_id - 1

    def mark_published(self, position: int | None = None) -> None:
        """Note that frames up to a position (or all) are published; written at the next commit."""
        self._published = self.position if position is None else position

    def flush(self) -> None:
        """Write the time of the last commit and the published mark now, if that is still to do."""
        if self._unwritten_commit is not None or self._published != self._published_written:
            with self._transaction():
                pass

    def set_archived(self, table: str, last: int) -> None:
        """Note that rows of `frames` or `events` up to an id are in the archive, to be dropped."""
        with self._transaction():
            self._put_meta(fmt.ARCHIVED[table], str(last))

    def drop_archived(self, keep: Collection[int] = ()) -> bool:
        """Drop some of the rows that are in the archive, in one short transaction.

        A frame that is not known to have been published stays, and so do those of `keep`: the
        newest of each stream, by which the next start goes on. A key that was dropped never
        counts as new again. Return whether there was anything to drop.
        """
        archived = self.archived()
        upto = min(archived['frames'], self._published_written)
        frames = drop.oldest_frames(self._db, upto, keep)
        events = drop.oldest_events(self._db, archived['events'])
        if not (frames or events):
            return False
        floors = dict(self._floors)
        for _, stream, event_time_ns in frames:
            floors[stream] = max(floors.get(stream, _NEVER), event_time_ns)
        with self._transaction():
            drop.frames(self._db, [number for number, *_ in frames])
            drop.events(self._db, events)
            self._put_meta('floors', json.dumps(floors))
        self._floors = floors
        return True

    def drop_predictions(self, upto: int) -> bool:
        """Drop some of the oldest predictions up to an id; return whether there were any."""
        with self._transaction():
            return drop.predictions(self._db, upto)

    def give_back(self, keep_pages: int) -> bool:
        """Give some of the free pages beyond `keep_pages` back; return whether there were any.

        The file gets smaller with the next checkpoint. One that an older version made keeps its
        size and uses the pages itself.
        """
        try:
            return drop.give_back(self._db, keep_pages)
        except sqlite3.Error as error:
            raise file.failure(self.path, error) from error

    def set_limits(self, *, predictions: int | None = None, events: int | None = None) -> None:
        """Change how many rows of predictions and events are kept: 0 is all, None as before."""
        for table, limit in (('predictions', predictions), ('events', events)):
            if limit is not None:
                self._limits[table] = limit

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small named text, durable on return."""
        with self._transaction():
            self._put_meta(key, value)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self.read_only:
            raise JournalError(
                f'{self.path} was opened to be read; the process of the risk gate writes it'
            )
        known = len(self._universes)
        self._moved = {}
        try:
            self._db.execute('BEGIN IMMEDIATE')
            self._write_trailer()
            yield
            self._db.execute('COMMIT')
        except BaseException as error:
            self._forget_universes(known)
            if self._db.in_transaction:
                self._db.execute('ROLLBACK')
            if isinstance(error, sqlite3.Error):
                raise file.failure(self.path, error) from error
            raise
        self._unwritten_commit = None
        self._published_written = self._published
        for key, since_ns in self._moved.items():
            (self._held.discard if since_ns is None else self._held.add)(key)

    def _write_trailer(self) -> None:
        if self._unwritten_commit is not None:
            self._db.execute(_INSERT_COMMIT, self._unwritten_commit)
        if self._published != self._published_written:
            self._put_meta('published', str(self._published))

    def _insert_frames(self, items: Sequence[Decisions]) -> list[bool]:
        """Insert frames from `_next_id` on and say for each whether it is new."""
        new, rows = self._insert_new(items)
        saved = [item for item, fresh in zip(items, new, strict=True) if fresh]
        frames = dict(enumerate(saved, self._next_id))
        self._moved = holdings.moves(self._held, frames, rows)
        if self._moved:
            holdings.write(self._db, self._moved)
        return new

    def _insert_new(self, items: Sequence[Decisions]) -> tuple[list[bool], list[fmt.IndexRow]]:
        first = self._next_id
        # All at once, which is how they nearly always come; one by one where a key is not new.
        if len(items) > 1 and not any(self._is_forgotten(item) for item in items):
            known = len(self._universes)
            self._db.execute('SAVEPOINT batch')
            rows = self._insert(first, items)
            if rows is None:
                self._db.execute('ROLLBACK TO batch')
                self._forget_universes(known)
            self._db.execute('RELEASE batch')
            if rows is not None:
                return [True] * len(items), rows
        new: list[bool] = []
        index: list[fmt.IndexRow] = []
        for item in items:
            rows = None if self._is_forgotten(item) else self._insert(first + sum(new), [item])
            new.append(rows is not None)
            index += rows or []
        return new, index

    def _insert(self, first_id: int, items: Sequence[Decisions]) -> list[fmt.IndexRow] | None:
        """Insert frames and their index, which is returned; None if not all are new."""
        bodies = [fmt.pack_body(item) for item in items]
        index, *counts = fmt.indexed(first_id, items)
        rows = [
            fmt.frame_row(first_id + i, item, self._universe(item.symbols), *packed)
            for i, (item, *packed) in enumerate(zip(items, bodies, *counts, strict=True))
        ]
        if self._db.executemany(_INSERT_FRAME, rows).rowcount != len(rows):
            return None
        if index:
            self._db.executemany(_INSERT_SIGNAL, index)
        return index

    def _is_forgotten(self, item: Decisions) -> bool:
        """Whether a frame is as old as those that were dropped: it never counts as new again."""
        return bool(self._floors) and item.event_time_ns <= self._floors.get(item.stream, _NEVER)

    def _compare_with_first(self, item: Decisions) -> None:
        where = 'WHERE f.stream = ? AND f.event_time_ns = ? AND f.revision = ?'
        first = next(self._frames(where, (item.stream, item.event_time_ns, item.revision)), None)
        if first is None or fmt.same_proposal(first, item):
            return
        self._put_meta('conflicts', str(int(self.get_meta('conflicts') or 0) + 1))
        text = (
            f'bundle {item.bundle_id}, seq {item.seq} says something else than bundle '
            f'{first.bundle_id}, seq {first.seq}, which came first and is kept; '
            'look for two producers on one stream, or two bundles'
        )
        subject = f'{item.stream} {item.event_time_ns} revision {item.revision}'
        self._insert_events(
            [Event(time.time_ns(), Level.ERROR, 'journal', 'decision_conflict', subject, text)]
        )

    def _insert_predictions(self, predictions: Sequence[Predictions]) -> None:
        for item in predictions:
            row = (
                item.stream,
                item.event_time_ns,
                item.revision,
                fmt.signed(item.epoch),
                fmt.signed(item.seq),
                item.bundle_id,
                fmt.pack_names(item.generators),
                item.served,
                self._universe(item.symbols),
                fmt.pack_predictions(item),
            )
            self._db.execute(_INSERT_PREDICTIONS, row)
        self._trim(len(predictions))

    def _insert_events(self, events: Sequence[Event]) -> None:
        self._db.executemany(
            _INSERT_EVENT,
            [(e.stamp_ns, int(e.level), e.source, e.kind, e.subject, e.text) for e in events],
        )
        self._trim(len(events))

    def _trim(self, added: int) -> None:
        self._since_trim += added
        if added and self._since_trim >= _TRIM_EVERY:
            self._since_trim = 0
            for table, limit in self._limits.items():
                if not limit:
                    continue
                self._db.execute(
                    f'DELETE FROM {table} WHERE id <= (SELECT MAX(id) FROM {table}) - ?', (limit,)
                )

    def _universe(self, symbols: tuple[str, ...]) -> int:
        # A stream keeps one tuple object; hashing the names of a whole market takes longer.
        if symbols is self._latest[0]:
            return self._latest[1]
        found = self._universes.get(symbols)
        if found is None:
            names = (fmt.pack_names(symbols),)
            self._db.execute('INSERT OR IGNORE INTO universes (names) VALUES (?)', names)
            row = self._db.execute('SELECT id FROM universes WHERE names = ?', names).fetchone()
            found = int(row[0])
            self._universes[symbols] = found
        self._latest = symbols, found
        return found

    def _forget_universes(self, known: int) -> None:
        """Forget those after the first `known`: their rows have been rolled back."""
        for key in list(self._universes)[known:]:
            del self._universes[key]
        self._latest = None, 0

    def _put_meta(self, key: str, value: str) -> None:
        self._db.execute('INSERT OR REPLACE INTO meta VALUES (?,?)', (key, value))
