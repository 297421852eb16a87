# SPDX-License-Identifier: Apache-2.0
"""The file of a journal: the lock of its one writer, connections, integrity, what errors mean."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import IO

from heqis_core.errors import JournalError
from heqis_core.io import journal_format as fmt
from heqis_core.io import journal_holdings as holdings
from heqis_core.io.file_lock import HeldError, hold_file

_FULL = 2
"""What `PRAGMA synchronous` answers for FULL."""
_WAL_PAGES = 2000
_BUSY_S = 5.0


def lock(path: Path) -> IO[str]:
    """Become the one writer of a journal; raise JournalError that names the process which is."""
    try:
        return hold_file(Path(f'{path}.lock'))
    except HeldError as error:
        raise JournalError(
            f'journal {path} is being written by process {error.owner}; only one may: '
            'end that one, or choose another path'
        ) from None
    except OSError as error:
        why = error.strerror or error
        raise JournalError(
            f'journal {path}: {why}; give it a folder that can be written'
        ) from None


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the file to write, with its schema made if it is new; WAL and FULL are asserted."""
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        empty = db.execute('SELECT COUNT(*) FROM sqlite_master').fetchone()[0] == 0
        old = not empty and _check_kind(path, db) < fmt.SCHEMA_VERSION
        if empty:
            db.execute('PRAGMA auto_vacuum=INCREMENTAL')
        db.execute('PRAGMA synchronous=FULL')
        mode = db.execute('PRAGMA journal_mode=WAL').fetchone()[0]
        level = db.execute('PRAGMA synchronous').fetchone()[0]
        if mode != 'wal' or level != _FULL:
            raise JournalError(
                f'journal {path}: journal_mode is {mode!r} and synchronous {level}, not wal and '
                f'{_FULL} (FULL); put it on a local file system'
            )
        db.execute(f'PRAGMA wal_autocheckpoint={_WAL_PAGES}')
        if empty:
            db.executescript(
                f'BEGIN IMMEDIATE; PRAGMA application_id={fmt.APPLICATION_ID}; '
                f'PRAGMA user_version={fmt.SCHEMA_VERSION}; {fmt.SCHEMA} COMMIT;'
            )
        if old:
            holdings.upgrade(db)
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open the file to read what another process writes, or has written."""
    # After a clean end there is no WAL, and a folder that cannot be written has no place for one:
    # then the file is all there is, and it cannot change either.
    alone = not os.access(path.parent, os.W_OK) and not Path(f'{path}-wal').exists()
    uri = f'{path.resolve().as_uri()}?mode=ro{"&immutable=1" if alone else ""}'
    db = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        _check_kind(path, db)
    except BaseException:
        db.close()
        raise
    return db


def check_pages(path: Path, db: sqlite3.Connection) -> None:
    """Look at every page; raise JournalError that says how to repair if one is damaged."""
    found = db.execute('PRAGMA quick_check(1)').fetchone()[0]
    if found != 'ok':
        raise JournalError(damaged(path, ' '.join(str(found).split()).strip('* ')))


def damaged(path: Path, what: str) -> str:
    """Return what to tell a person whose journal is damaged."""
    return (
        f'journal {path} is damaged: {what}. Stop the graph and keep a copy of {path.name}, '
        f'{path.name}-wal and {path.name}-shm. Then either save what can be read, with: '
        f'python3 -m heqis_core.io.journal_repair {path} (it only reads them), or move all three '
        'files away together: the next start makes a new journal. '
        'Never delete the -wal file alone: it holds the newest decisions'
    )


def failure(path: Path, error: sqlite3.Error) -> JournalError:
    """Return the JournalError that says what an SQLite error means here and what to do."""
    text = str(error)
    if any(word in text for word in ('malformed', 'not a database', 'corrupt')):
        return JournalError(damaged(path, text))
    if 'is full' in text:
        return JournalError(f'journal {path}: {text}; make room, writing is tried again')
    return JournalError(f'journal {path}: {text}; check the file, its folder and its disk')


def _check_kind(path: Path, db: sqlite3.Connection) -> int:
    """Return the version of a journal's schema."""
    if db.execute('PRAGMA application_id').fetchone()[0] != fmt.APPLICATION_ID:
        raise JournalError(f'{path} is a database, but no HEQIS journal; choose another path')
    version = int(db.execute('PRAGMA user_version').fetchone()[0])
    if version not in fmt.READABLE:
        raise JournalError(
            f'journal {path} has schema {version}, this version reads {fmt.SCHEMA_VERSION}; '
            'run the version that wrote it, or choose another path'
        )
    return version
