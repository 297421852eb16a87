# SPDX-License-Identifier: Apache-2.0
"""The journal, read as it grows: the newest frames first, then what is committed since."""

from __future__ import annotations

from pathlib import Path

from heqis_core.control import Event
from heqis_core.decision import Decisions
from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal

BATCH = 500
"""Most frames that one look reads: the rest comes with the next."""
EVENTS = 50


class JournalTail:
    """One reader of one journal, used by one thread.

    A journal that is not there, or cannot be read, is tried again with every look; one that was
    replaced is read anew, its newest frames first.

    Attributes:
        error: why it cannot be read now; empty if it can.
    """

    def __init__(self, path: Path | str, frames: int) -> None:
        """Read `path`, at first its newest `frames` frames."""
        self.path = Path(path)
        self.error = ''
        self._frames = frames
        self._journal: Journal | None = None
        self._file = 0
        self._position = 0
        self._events_told = False

    def look(self) -> tuple[list[Decisions], list[Event]]:
        """Return frames that are new, oldest first, and at first the last events."""
        try:
            journal = self._open()
            frames, self._position = journal.newer(self._position, BATCH)
            events = [] if self._events_told else journal.last_events(EVENTS)
        except (JournalError, OSError) as error:
            self.close()
            self.error = str(error)
            return [], []
        self._events_told = True
        self.error = ''
        return frames, events

    def close(self) -> None:
        """Close the file; the next look opens it again where this one was."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _open(self) -> Journal:
        file = self.path.stat().st_ino if self.path.is_file() else 0
        if self._journal is not None and file == self._file:
            return self._journal
        self.close()
        if not file:
            self._file = 0
        self._journal = journal = Journal.open(self.path, read_only=True)
        last = journal.last_position()
        # The number of a file is given again: one that ends before our place is another, too.
        if file != self._file or last < self._position:
            self._file, self._position = file, max(0, last - self._frames)
        return journal
