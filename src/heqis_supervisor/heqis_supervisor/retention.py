# SPDX-License-Identifier: Apache-2.0
"""Holds the journal to a size: what is oldest goes into Parquet files, and only then out of it.

A thread of its own reads and writes the archive; the journal's one thread drops what is in it,
little by little between its commits (`store.py`). No rclpy here.
"""

from __future__ import annotations

import math
import secrets
import threading
from pathlib import Path

from heqis_core.errors import DataError
from heqis_core.io.journal import Journal
from heqis_supervisor.store import Dropping, Store

LOOK_S = 10.0
"""Time between two looks at the size."""
MOST_ROWS = 2_000_000
"""About the most decisions of one file of the archive."""
_DOWN_TO = 0.9
"""Once it is too large, it goes down to this share: few large steps, not many small ones."""
_EVENTS_OVER = 0.1
_FREE_SHARE = 0.05
"""Share of the size that stays in the file as free pages, for the frames that come next."""
_MB = 1_000_000


class Retention:
    """Archives and has dropped what is beyond `keep_mb` and `keep_events`, from `start` on.

    Attributes:
        archived: frames that were written into the archive since the start.
        error: why the last look could not do its work; empty if it could.
    """

    def __init__(
        self, store: Store, path: Path, *, folder: Path, keep_mb: int, keep_events: int
    ) -> None:
        """Make one over the open store of a journal.

        Args:
            store: who drops.
            path: the journal.
            folder: where the archive is, or will be.
            keep_mb: what the journal may hold, MB (10^6 bytes).
            keep_events: events that it keeps, the newest.
        """
        self.archived = 0
        self.error = ''
        self._store = store
        self._path = path
        self._folder = folder
        self._keep = keep_mb * _MB
        self._keep_events = keep_events
        self._first = True
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name='journal.retention', daemon=True)

    def start(self) -> None:
        """Begin to look at the size every `LOOK_S`."""
        self._thread.start()

    def close(self) -> None:
        """End; a file that is being written is finished first."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            self.look()
            self._end.wait(LOOK_S)

    def look(self) -> None:
        """Archive what is too much and order it to be dropped, unless that still goes on."""
        if self._store.dropping:
            return
        try:
            self._look()
            self.error = ''
        except Exception as error:
            # Whatever it is: what is not in the archive is not dropped, and commits go on.
            self.error = f'not archived: {error}'

    def _look(self) -> None:
        with Journal.open(self._path, read_only=True) as journal:
            marks = journal.archived()
            used = journal.used_bytes()
            share = 1 - _DOWN_TO * self._keep / used if used > self._keep else 0.0
            name = journal.get_meta('name') or self._name()
            archived: dict[str, int] = {}
            if share:
                archived |= self._archive_frames(journal, name, marks['frames'], share)
            archived |= self._archive_events(journal, name, marks['events'])
            first, last = journal.predictions_between()
            # At the start, what was archived before a kill may still have to go.
            if self._first or archived or share or journal.free_pages() > self._free_pages():
                keep = journal.newest_positions()
                predictions = first - 1 + int(share * (last - first + 1))
                self._store.drop(Dropping(archived, keep, predictions, self._free_pages()))
        self._first = False

    def _free_pages(self) -> int:
        return int(_FREE_SHARE * self._keep) // 4096

    def _name(self) -> str:
        """Give the journal a name: positions begin anew in one that takes its place."""
        name = secrets.token_hex(4)
        self._store.set_meta('name', name)
        return name

    def _archive_frames(
        self, journal: Journal, name: str, mark: int, share: float
    ) -> dict[str, int]:
        # The newest stays, and what no reader has acknowledged.
        most = min(journal.published(), journal.last_position() - 1)
        upto = min(most, mark + math.ceil(share * (journal.last_position() - mark)))
        if upto <= mark:
            return {}
        from heqis_core.io.journal_archive import write_decisions  # pyarrow: only when needed

        # Named by its first row: after a kill it is written once more, in its own place.
        out = self._place(f'decisions-{name}-{mark + 1:012d}.parquet')
        _, reached = write_decisions(journal, out, first=mark + 1, last=upto, most_rows=MOST_ROWS)
        self.archived += reached - mark
        return {'frames': reached}

    def _archive_events(self, journal: Journal, name: str, mark: int) -> dict[str, int]:
        last = journal.last_event()
        if last - mark <= self._keep_events * (1 + _EVENTS_OVER):
            return {}
        from heqis_core.io.journal_archive import write_events

        out = self._place(f'events-{name}-{mark + 1:012d}.parquet')
        _, reached = write_events(journal, out, first=mark + 1, last=last - self._keep_events)
        return {'events': reached}

    def _place(self, name: str) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f'archive {self._folder}: {error.strerror}; give it a folder that can be written'
            ) from error
        return self._folder / name
