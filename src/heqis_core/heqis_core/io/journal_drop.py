# SPDX-License-Identifier: Apache-2.0
"""How a journal gets rid of its oldest rows, little by little. `Journal` says when, and of which.

Each step is small: a commit that comes meanwhile waits for one of them at most.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

MOST_DECISIONS = 10_000
MOST_FRAMES = 64
MOST_EVENTS = 500
MOST_PREDICTIONS = 16
MOST_PAGES = 128
_INCREMENTAL = 2
"""What `PRAGMA auto_vacuum` answers for INCREMENTAL."""


def oldest_frames(
    db: sqlite3.Connection, upto: int, keep: Collection[int]
) -> list[tuple[int, str, int]]:
    """Return id, stream and event time of the oldest frames up to an id, those of one step.

    One frame at least, then no more than `MOST_DECISIONS` and `MOST_FRAMES`.
    """
    sql = (
        'SELECT id, stream, event_time_ns, n_symbols FROM frames WHERE id <= ? '
        f'AND id NOT IN ({",".join("?" * len(keep))}) ORDER BY id LIMIT ?'
    )
    found: list[tuple[int, str, int]] = []
    left = MOST_DECISIONS
    for number, stream, event_time_ns, n_symbols in db.execute(sql, (upto, *keep, MOST_FRAMES)):
        left -= n_symbols
        if found and left < 0:
            break
        found.append((int(number), str(stream), int(event_time_ns)))
    return found


def frames(db: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Delete frames with their index, and the commit times that belong to no frame any more."""
    if not numbers:
        return
    rows = [(number,) for number in numbers]
    db.executemany('DELETE FROM signal_index WHERE frame = ?', rows)
    db.executemany('DELETE FROM frames WHERE id = ?', rows)
    db.execute(
        'DELETE FROM commits WHERE first_frame <= ? AND NOT EXISTS '
        '(SELECT 1 FROM frames WHERE id BETWEEN first_frame AND last_frame)',
        rows[-1],
    )


def oldest_events(db: sqlite3.Connection, upto: int) -> list[int]:
    """Return the ids of the oldest events up to an id, those of one step."""
    sql = 'SELECT id FROM events WHERE id <= ? ORDER BY id LIMIT ?'
    return [int(row[0]) for row in db.execute(sql, (upto, MOST_EVENTS))]


def events(db: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Delete events."""
    db.executemany('DELETE FROM events WHERE id = ?', [(number,) for number in numbers])


def predictions(db: sqlite3.Connection, upto: int) -> bool:
    """Delete the oldest predictions up to an id, those of one step; return whether any were."""
    sql = (
        'DELETE FROM predictions WHERE id IN '
        '(SELECT id FROM predictions WHERE id <= ? ORDER BY id LIMIT ?)'
    )
    return db.execute(sql, (upto, MOST_PREDICTIONS)).rowcount > 0


def give_back(db: sqlite3.Connection, keep_pages: int) -> bool:
    """Give free pages beyond `keep_pages` to the file system, those of one step."""
    free = int(db.execute('PRAGMA freelist_count').fetchone()[0]) - keep_pages
    if free <= 0 or db.execute('PRAGMA auto_vacuum').fetchone()[0] != _INCREMENTAL:
        return False
    # One step frees one page, and `execute` takes one step only where there are no columns.
    db.executescript(f'PRAGMA incremental_vacuum({min(free, MOST_PAGES)})')
    return True
