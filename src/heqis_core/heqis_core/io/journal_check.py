# SPDX-License-Identifier: Apache-2.0
"""Whether a journal is whole: pages, checksums, each signal exactly once, index against bodies.

Reads block by block, so that the journal may be written meanwhile, and changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from heqis_core.decision import Decisions
from heqis_core.errors import JournalError
from heqis_core.io import journal_format as fmt
from heqis_core.io.journal import Journal

_BLOCK = 64
_MOST = 100
"""Findings that are kept; a damaged file can have one for every row."""


@dataclass
class JournalCheck:
    """What a check has seen.

    Attributes:
        frames, signals, refused, events: how many were read and are well.
        findings: what is wrong, in words; empty if all is well.
        more: findings beyond those that are kept.
    """

    frames: int = 0
    signals: int = 0
    refused: int = 0
    events: int = 0
    findings: list[str] = field(default_factory=list)
    more: int = 0

    def find(self, text: str) -> None:
        """Add a finding."""
        if len(self.findings) < _MOST:
            self.findings.append(text)
        else:
            self.more += 1


def check(journal: Journal) -> JournalCheck:
    """Look at everything and return what was seen; a damaged part ends no check."""
    found = JournalCheck()
    looks = (_check_pages, _check_keys, _check_positions, _check_commits, _check_rows)
    for look in (*looks, _check_events):
        try:
            look(journal, found)
        except (JournalError, sqlite3.Error, ValueError) as error:
            found.find(f'{look.__name__.removeprefix("_check_")} cannot be read: {error}')
    return found


def _check_pages(journal: Journal, found: JournalCheck) -> None:
    for (text,) in journal.rows(f'PRAGMA integrity_check({_MOST})'):
        if text != 'ok':
            found.find('file: ' + ' '.join(str(text).split()).strip('* '))


def _check_keys(journal: Journal, found: JournalCheck) -> None:
    sql = (
        'SELECT stream, event_time_ns, revision, COUNT(*) FROM frames '
        'GROUP BY stream, event_time_ns, revision HAVING COUNT(*) > 1'
    )
    for stream, event_ns, revision, n in journal.rows(sql):
        found.find(f'frame {stream} {event_ns} revision {revision} is there {n} times')


def _check_positions(journal: Journal, found: JournalCheck) -> None:
    # What was archived may be gone; after that there is no hole, whatever was killed when.
    with journal.snapshot():
        first = journal.archived()['frames']
        sql = 'SELECT COUNT(*), COALESCE(MAX(id), ?) FROM frames WHERE id > ?'
        ((n, last),) = journal.rows(sql, (first, first))
    if n != last - first:
        found.find(f'{last - first - n} frames are missing between {first + 1} and {last}')
    sql = 'SELECT COUNT(*) FROM signal_index WHERE frame NOT IN (SELECT id FROM frames)'
    ((n,),) = journal.rows(sql)
    if n:
        found.find(f'{n} rows of the index belong to no frame')
    sql = 'SELECT COUNT(*) FROM frames WHERE universe NOT IN (SELECT id FROM universes)'
    ((n,),) = journal.rows(sql)
    if n:
        found.find(f'{n} frames name symbols that are not there')


def _check_commits(journal: Journal, found: JournalCheck) -> None:
    sql = 'SELECT first_frame, last_frame FROM commits ORDER BY first_frame'
    before = 0
    for first, last in journal.rows(sql):
        if not before < first <= last:
            found.find(f'commit of {first} to {last} follows one that ended at {before}')
        before = last


def _check_rows(journal: Journal, found: JournalCheck) -> None:
    for first, last in _blocks(journal):
        with journal.snapshot():
            counts, index = _told(journal, first, last)
            items = list(_frames(journal, found, first, last))
        for number, item in items:
            name = f'frame {number} ({item.stream} {item.event_time_ns} rev {item.revision})'
            rows, (n_signals,), (n_refused,) = fmt.indexed(number, [item])
            if [_as_stored(row) for row in rows] != index.get(number, []):
                found.find(f'{name}: the index does not say what its decisions say')
            elif counts[number] != (len(item.symbols), n_signals, n_refused):
                found.find(f'{name}: its counts are not those of its decisions')
            elif len(set(item.symbols)) != len(item.symbols):
                found.find(f'{name}: a symbol is there more than once')
            else:
                found.frames += 1
                found.signals += n_signals
                found.refused += n_refused


def _check_events(journal: Journal, found: JournalCheck) -> None:
    found.events = sum(1 for _ in journal.events())


def _blocks(journal: Journal) -> Iterator[tuple[int, int]]:
    last = 0
    while True:
        block = 'SELECT id FROM frames WHERE id > ? ORDER BY id LIMIT ?'
        sql = f'SELECT MIN(id), MAX(id) FROM ({block})'
        ((first, last_of_block),) = journal.rows(sql, (last, _BLOCK))
        if first is None:
            return
        yield first, last_of_block
        last = last_of_block


def _told(
    journal: Journal, first: int, last: int
) -> tuple[dict[int, tuple[int, int, int]], dict[int, list[Any]]]:
    """Return what the columns beside the bodies, and the index, say of some frames."""
    sql = 'SELECT id, n_symbols, n_signals, n_refused FROM frames WHERE id BETWEEN ? AND ?'
    counts = {number: rest for number, *rest in journal.rows(sql, (first, last))}
    index: dict[int, list[Any]] = {}
    sql = 'SELECT * FROM signal_index WHERE frame BETWEEN ? AND ? ORDER BY frame, place'
    for row in journal.rows(sql, (first, last)):
        index.setdefault(row[0], []).append(row)
    return {number: (n, s, r) for number, (n, s, r) in counts.items()}, index


def _frames(
    journal: Journal, found: JournalCheck, first: int, last: int
) -> Iterator[tuple[int, Decisions]]:
    try:
        yield from journal.frames_between(first, last, _BLOCK)
        return
    except (JournalError, ValueError):
        pass
    for number in range(first, last + 1):
        try:
            yield from journal.frames_between(number, number, 1)
        except (JournalError, ValueError) as error:
            found.find(f'frame {number} cannot be read: {error}'.partition('. Stop')[0])


def _as_stored(row: fmt.IndexRow) -> tuple[object, ...]:
    # SQLite keeps NaN as NULL.
    return (*row[:5], None if row[5] != row[5] else row[5])
