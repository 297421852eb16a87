# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a journal. Nothing is written here; `journal.py` opens and writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core import digest
from heqis_core.control import Event, Level
from heqis_core.decision import Action, Decisions, Predictions
from heqis_core.errors import JournalError
from heqis_core.frame import N_STAGES, Stage
from heqis_core.io import journal_file as file
from heqis_core.io import journal_format as fmt

_SELECT_FRAME = """
SELECT f.id, f.stream, f.epoch, f.seq, f.event_time_ns, f.revision, f.bundle_id, f.generator,
       u.names, f.crc, f.stamps, f.body, c.committed_ns
FROM frames f JOIN universes u ON u.id = f.universe
LEFT JOIN commits c ON c.last_frame >= f.id
     AND c.first_frame = (SELECT MAX(first_frame) FROM commits WHERE first_frame <= f.id)
"""
_SELECT_STAMPS = """
SELECT f.stamps, f.n_signals, COALESCE(c.committed_ns, 0) FROM frames f
LEFT JOIN commits c ON c.last_frame >= f.id
     AND c.first_frame = (SELECT MAX(first_frame) FROM commits WHERE first_frame <= f.id)
"""
_SELECT_PREDICTIONS = """
SELECT p.stream, p.epoch, p.seq, p.event_time_ns, p.revision, p.bundle_id, p.generators, p.served,
       u.names, p.body
FROM predictions p JOIN universes u ON u.id = p.universe ORDER BY p.id
"""
_SELECT_SIGNALS = """
SELECT f.id, f.stream, f.event_time_ns, f.revision, i.symbol, i.action, i.reasons, i.score,
       f.bundle_id, f.generator, COALESCE(c.committed_ns, 0)
FROM signal_index i JOIN frames f ON f.id = i.frame
LEFT JOIN commits c ON c.last_frame >= f.id
     AND c.first_frame = (SELECT MAX(first_frame) FROM commits WHERE first_frame <= f.id)
WHERE i.action >= ? AND i.symbol = COALESCE(?, i.symbol) AND f.event_time_ns >= ?
ORDER BY i.frame DESC, i.place DESC LIMIT ?
"""
_SELECT_FRAMES = """
SELECT f.id, f.stream, f.event_time_ns, f.revision, f.n_symbols, f.n_signals, f.n_refused,
       f.bundle_id, f.generator, COALESCE(c.committed_ns, 0)
FROM frames f
LEFT JOIN commits c ON c.last_frame >= f.id
     AND c.first_frame = (SELECT MAX(first_frame) FROM commits WHERE first_frame <= f.id)
WHERE f.event_time_ns >= ? ORDER BY f.id DESC LIMIT ?
"""
_TABLES = ('predictions', 'events')
_NEVER = -(1 << 63)


class SignalRow(NamedTuple):
    """One released signal, as the index has it.

    `committed_ns` is 0 where a kill lost it, `score` None where the model gave no number.
    """

    position: int
    stream: str
    event_time_ns: int
    revision: int
    symbol: str
    action: int
    reasons: int
    score: float | None
    bundle_id: str
    generator: str
    committed_ns: int


class FrameRow(NamedTuple):
    """What one frame is; `committed_ns` as in `SignalRow`."""

    position: int
    stream: str
    event_time_ns: int
    revision: int
    n_symbols: int
    n_signals: int
    n_refused: int
    bundle_id: str
    generator: str
    committed_ns: int


class HoldingRow(NamedTuple):
    """A symbol that the released signals of a stream bought and did not sell since."""

    stream: str
    symbol: str
    since_ns: int


class JournalReader:
    """The questions; `Journal` adds opening and writing."""

    path: Path
    _db: sqlite3.Connection
    _names: dict[str, tuple[str, ...]]
    _published: int

    def get_meta(self, key: str) -> str | None:
        """Return the text kept under a name, or None."""
        row = self._one('SELECT value FROM meta WHERE key = ?', (key,))
        return None if row is None else str(row[0])

    def meta(self) -> dict[str, str]:
        """Return every named text but those that the journal keeps for itself."""
        rows = self.rows('SELECT key, value FROM meta')
        return {str(key): str(value) for key, value in rows if key not in fmt.OWN_META}

    def frames(self) -> Iterator[Decisions]:
        """Yield every frame in order of (stream, event time, revision)."""
        yield from self._frames('ORDER BY f.stream, f.event_time_ns, f.revision')

    def unpublished(self) -> list[Decisions]:
        """Return, in order of their commit, the frames not known to have been published."""
        return list(self._frames('WHERE f.id > ? ORDER BY f.id', (self._published,)))

    def newest(self) -> dict[str, Decisions]:
        """Return the frame with the newest event time of each stream."""
        where = 'WHERE f.stream = ? ORDER BY f.event_time_ns DESC, f.revision DESC LIMIT 1'
        streams = [row[0] for row in self.rows('SELECT DISTINCT stream FROM frames')]
        return {stream: next(self._frames(where, (stream,))) for stream in streams}

    def newer(self, position: int, limit: int) -> tuple[list[Decisions], int]:
        """Return at most `limit` frames committed after a position, oldest commit first.

        The second value is the position after them. Position 0 stands before every frame.
        """
        found = list(self._numbered('WHERE f.id > ? ORDER BY f.id LIMIT ?', (position, limit)))
        return [item for _, item in found], found[-1][0] if found else position

    def frames_between(self, first: int, last: int, limit: int) -> list[tuple[int, Decisions]]:
        """Return the first `limit` frames of a range of positions, each with its own."""
        where = 'WHERE f.id BETWEEN ? AND ? ORDER BY f.id LIMIT ?'
        return list(self._numbered(where, (first, last, limit)))

    def last_signals(
        self, n: int, *, symbol: str | None = None, since_ns: int | None = None
    ) -> list[SignalRow]:
        """Return the newest `n` signals by commit, oldest first, of a symbol or of all.

        `since_ns` leaves out those of an earlier event time.
        """
        args = (int(Action.BUY), symbol, _NEVER if since_ns is None else since_ns, n)
        return [SignalRow(*row) for row in self.rows(_SELECT_SIGNALS, args)][::-1]

    def last_frames(self, n: int, *, since_ns: int | None = None) -> list[FrameRow]:
        """Return what the newest `n` frames by commit are, without their decisions."""
        args = (_NEVER if since_ns is None else since_ns, n)
        return [FrameRow(*row) for row in self.rows(_SELECT_FRAMES, args)][::-1]

    def last_position(self) -> int:
        """Return the position after the newest frame that is committed."""
        return int(self._one('SELECT COALESCE(MAX(id), 0) FROM frames')[0])

    def holdings(self) -> list[HoldingRow]:
        """Return what is held, by stream and symbol.

        Raises JournalError if an older version wrote the journal last: that kept none.
        """
        return list(self._holdings('ORDER BY stream, symbol'))

    def last_holdings(
        self, n: int, *, symbol: str | None = None, since_ns: int | None = None
    ) -> list[HoldingRow]:
        """Return the newest `n` of `holdings`, oldest first, of a symbol or of all.

        `since_ns` leaves out those that are held for longer.
        """
        where = (
            'WHERE symbol = COALESCE(?, symbol) AND since_ns >= ? '
            'ORDER BY since_ns DESC, stream DESC, symbol DESC LIMIT ?'
        )
        since_ns = _NEVER if since_ns is None else since_ns
        return list(self._holdings(where, (symbol, since_ns, n)))[::-1]

    def _holdings(self, where: str, args: Sequence[object] = ()) -> Iterator[HoldingRow]:
        if self._one('PRAGMA user_version')[0] < fmt.SCHEMA_VERSION:
            raise JournalError(
                f'journal {self.path} says nothing of holdings, an older version wrote it: '
                'the next start of the risk gate adds them'
            )
        for row in self.rows(f'SELECT stream, symbol, since_ns FROM holdings {where}', args):
            yield HoldingRow(*row)

    def last_committed(self) -> dict[str, int]:
        """Return the event time of the frame of each stream that was committed last."""
        sql = 'SELECT event_time_ns FROM frames WHERE stream = ? ORDER BY id DESC LIMIT 1'
        streams = [row[0] for row in self.rows('SELECT DISTINCT stream FROM frames')]
        return {str(stream): int(self._one(sql, (stream,))[0]) for stream in streams}

    def released_since(self, stream: str, event_time_ns: int) -> list[tuple[int, int]]:
        """Return event time and number of signals of each frame of a stream from a time on."""
        sql = (
            'SELECT event_time_ns, n_signals FROM frames '
            'WHERE stream = ? AND event_time_ns >= ? AND n_signals > 0'
        )
        return [(int(at), int(n)) for at, n in self.rows(sql, (stream, event_time_ns))]

    def newest_positions(self) -> tuple[int, ...]:
        """Return the position of the frame of each stream that `newest` gives."""
        sql = (
            'SELECT (SELECT id FROM frames WHERE stream = s.stream '
            'ORDER BY event_time_ns DESC, revision DESC LIMIT 1) '
            'FROM (SELECT DISTINCT stream FROM frames) s'
        )
        return tuple(int(row[0]) for row in self.rows(sql))

    def published(self) -> int:
        """Return the position up to which frames are known to have reached every reader."""
        return int(self.get_meta('published') or 0)

    def archived(self) -> dict[str, int]:
        """Return the last row of `frames` and of `events` that is in the archive, or 0."""
        return {name: int(self.get_meta(key) or 0) for name, key in fmt.ARCHIVED.items()}

    def last_event(self) -> int:
        """Return the id of the newest event, or 0."""
        return int(self._one('SELECT COALESCE(MAX(id), 0) FROM events')[0])

    def predictions_between(self) -> tuple[int, int]:
        """Return the ids of the oldest and the newest predictions; 1 and 0 if there are none."""
        sql = 'SELECT COALESCE(MIN(id), 1), COALESCE(MAX(id), 0) FROM predictions'
        first, last = self._one(sql)
        return int(first), int(last)

    def used_bytes(self) -> int:
        """Return how much of the file is in use."""
        pages, size = (self._one(f'PRAGMA {name}')[0] for name in ('page_count', 'page_size'))
        return int(size) * (int(pages) - self.free_pages())

    def free_pages(self) -> int:
        """Return how many pages of the file are free."""
        return int(self._one('PRAGMA freelist_count')[0])

    def decisions(self) -> Iterator[digest.DecisionRow]:
        """Yield each decision in key order: stream, symbol, event time, revision."""
        with self.snapshot():
            yield from digest.rows(self.frames)

    def signals_digest(self) -> str:
        """Return the sha256 over every decision in key order; `heqis_core.digest` defines it."""
        with self.snapshot():
            return digest.signals_digest(self.frames)

    def last_event_time_ns(self, stream: str | None = None) -> int | None:
        """Return the newest event time of one stream, or of all; None if there is no frame."""
        sql = 'SELECT MAX(event_time_ns) FROM frames WHERE stream = COALESCE(?, stream)'
        value = self._one(sql, (stream,))[0]
        return None if value is None else int(value)

    def counts(self) -> dict[str, int]:
        """Return how many of each the journal holds.

        Keys: frames, decisions, signals, refused, predictions, predictions_trimmed, events,
        events_trimmed, conflicts.
        """
        names = ('frames', 'decisions', 'signals', 'refused')
        sql = 'SELECT COUNT(*), TOTAL(n_symbols), TOTAL(n_signals), TOTAL(n_refused) FROM frames'
        result = {name: int(n) for name, n in zip(names, self._one(sql), strict=True)}
        for table in _TABLES:
            rows, first = self._one(f'SELECT COUNT(*), COALESCE(MIN(id), 1) FROM {table}')
            result[table], result[f'{table}_trimmed'] = int(rows), int(first) - 1
        result['conflicts'] = int(self.get_meta('conflicts') or 0)
        return result

    def signals_by_symbol(self) -> dict[str, int]:
        """Return the number of released signals of each symbol that has any."""
        sql = 'SELECT symbol, COUNT(*) FROM signal_index WHERE action >= ? GROUP BY symbol'
        return {str(symbol): int(n) for symbol, n in sorted(self.rows(sql, (int(Action.BUY),)))}

    def latency_us(self) -> dict[str, dict[str, float]]:
        """Return `p50`, `p99` (microseconds, exact: nearest rank) and `count` of each stage.

        A stage's duration is its stamp minus the last earlier stamp of that frame; a frame that
        did not reach the stage does not count. `ingest_to_signal` is COMMITTED minus INGEST of
        the frames that hold at least one signal. The stamps of a key are those of its first
        delivery; a frame whose commit time was lost to a kill is left out where that is needed.
        """
        stamps, has_signal = self._stamps()
        result: dict[str, dict[str, float]] = {}
        reached = stamps[:, Stage.INGEST].copy()
        for stage in list(Stage)[1:]:
            column = stamps[:, stage]
            both = (column > 0) & (reached > 0)
            _add_percentiles(result, stage.name.lower(), (column - reached)[both])
            reached = np.where(column > 0, column, reached)
        whole = stamps[:, Stage.COMMITTED] - stamps[:, Stage.INGEST]
        known = (stamps[:, Stage.COMMITTED] > 0) & (stamps[:, Stage.INGEST] > 0)
        _add_percentiles(result, 'ingest_to_signal', whole[known & has_signal])
        return result

    def events(self) -> Iterator[Event]:
        """Yield the events that are kept, oldest first."""
        yield from self._events('ORDER BY id')

    def last_events(self, n: int, *, kind: str = '', since_ns: int | None = None) -> list[Event]:
        """Return the newest `n` events, oldest first.

        `kind` is how their kind begins; `since_ns` leaves out those of an earlier stamp.
        """
        where = 'WHERE substr(kind, 1, ?) = ? AND stamp_ns >= ? ORDER BY id DESC LIMIT ?'
        since_ns = _NEVER if since_ns is None else since_ns
        return list(self._events(where, (len(kind), kind, since_ns, n)))[::-1]

    def events_after(
        self, number: int, limit: int, last: int | None = None
    ) -> list[tuple[int, Event]]:
        """Return the first `limit` events after an id, and up to one, each with its own."""
        where = 'WHERE id > ? AND id <= COALESCE(?, id) ORDER BY id LIMIT ?'
        return list(self._numbered_events(where, (number, last, limit)))

    def _events(self, where: str, args: Sequence[object] = ()) -> Iterator[Event]:
        for _, event in self._numbered_events(where, args):
            yield event

    def _numbered_events(
        self, where: str, args: Sequence[object] = ()
    ) -> Iterator[tuple[int, Event]]:
        sql = f'SELECT id, stamp_ns, level, source, kind, subject, text FROM events {where}'
        for number, stamp_ns, level, *texts in self.rows(sql, args):
            yield int(number), Event(int(stamp_ns), Level(level), *texts)

    def predictions(self) -> Iterator[Predictions]:
        """Yield the predictions that are kept, oldest first."""
        for row in self.rows(_SELECT_PREDICTIONS):
            stream, epoch, seq, event_ns, revision, bundle, generators, served, names, body = row
            models, symbols = fmt.unpack_names(generators), self._symbols(names)
            values = fmt.unpack_predictions(body, len(models), len(symbols))
            head = (stream, fmt.unsigned(epoch), fmt.unsigned(seq), event_ns, revision, bundle)
            yield Predictions(*head, models, served, symbols, *values)

    def _symbols(self, names: str) -> tuple[str, ...]:
        symbols = self._names.get(names)
        if symbols is None:
            symbols = self._names[names] = fmt.unpack_names(names)
        return symbols

    def _frames(self, where: str, args: Sequence[object] = ()) -> Iterator[Decisions]:
        for _, item in self._numbered(where, args):
            yield item

    def _numbered(
        self, where: str, args: Sequence[object] = ()
    ) -> Iterator[tuple[int, Decisions]]:
        for number, *row in self.rows(_SELECT_FRAME + where, args):
            yield int(number), self.frame_of(row)

    def frame_of(self, row: Sequence[Any]) -> Decisions:
        """Return the frame of a row of `_SELECT_FRAME` without its id; JournalError if damaged."""
        stream, epoch, seq, event_ns, revision, bundle, generator, names, *rest = row
        crc, stamps, body, committed_ns = rest
        symbols = self._symbols(names)
        head = (stream, fmt.unsigned(epoch), fmt.unsigned(seq), event_ns, revision, bundle)
        times = np.frombuffer(stamps, '<i8').copy()
        columns: Any = (*fmt.unpack_body(body, len(symbols)), times)
        item = Decisions(*head, generator, symbols, *columns)
        if fmt.row_crc(item, stamps, body) != crc:
            text = f'frame {stream} {event_ns} revision {revision} fails its checksum'
            raise JournalError(file.damaged(self.path, text))
        times[Stage.COMMITTED] = committed_ns or 0
        return item

    def _stamps(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        rows = list(self.rows(_SELECT_STAMPS))
        stamps = np.frombuffer(b''.join(row[0] for row in rows), '<i8').copy()
        stamps = stamps.reshape(-1, N_STAGES)
        stamps[:, Stage.COMMITTED] = [row[2] for row in rows]
        return stamps, np.array([row[1] > 0 for row in rows], np.bool_)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let several questions see the same rows, whatever is written meanwhile."""
        self._db.execute('BEGIN')
        try:
            yield
        finally:
            self._db.execute('ROLLBACK')

    def rows(self, sql: str, args: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query; an error of SQLite becomes a JournalError."""
        try:
            yield from self._db.execute(sql, args)
        except sqlite3.Error as error:
            raise file.failure(self.path, error) from error

    def _one(self, sql: str, args: Sequence[object] = ()) -> Any:
        return next(self.rows(sql, args), None)


def _add_percentiles(
    result: dict[str, dict[str, float]], name: str, ns: npt.NDArray[np.int64]
) -> None:
    if len(ns):
        p50, p99 = np.percentile(ns, (50, 99), method='inverted_cdf') / 1000
        result[name] = {'p50': float(p50), 'p99': float(p99), 'count': len(ns)}
