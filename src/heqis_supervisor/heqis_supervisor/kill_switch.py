# SPDX-License-Identifier: Apache-2.0
"""The kill switch: engaged while the service or a file says so; lifting one leaves the other.

No rclpy and no clock here. The file works without ROS: who can log in can stop everything.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

import msgspec

MAX_REASON = 130
"""Longest reason that is kept, in characters: with origin and time it fits into `info`."""
_KEEP_CHANGES = 1000


class Origin(str, Enum):
    """Who can engage the switch; the value is what people read."""

    SERVICE = 'service'
    FILE = 'file'


class Word(msgspec.Struct, frozen=True):
    """The last word of one origin, as the journal keeps it.

    Attributes:
        engaged: nothing may go out.
        reason: why; empty if it is lifted.
        stamp_ns: since when, wall clock, ns UTC.
    """

    engaged: bool = False
    reason: str = ''
    stamp_ns: int = 0


def encode_word(word: Word) -> str:
    """Return the JSON that the journal keeps."""
    return msgspec.json.encode(word).decode()


def decode_word(text: str | None, now_ns: int) -> Word:
    """Return what the journal kept, lifted for nothing; what cannot be read counts as engaged."""
    if text is None:
        return Word()
    try:
        return msgspec.json.decode(text, type=Word)
    except msgspec.DecodeError as error:
        return Word(True, one_reason(f'what the journal kept cannot be read: {error}'), now_ns)


def one_reason(text: str) -> str:
    """Return a reason as one printable line of bounded length; never empty."""
    printable = ''.join(c if c.isprintable() else ' ' for c in text[: 4 * MAX_REASON])
    return ' '.join(printable.split())[:MAX_REASON] or 'no reason given'


def reason_in_file(path: Path) -> str | None:
    """Return the first line of the file, None only if it is certain that there is none.

    A link that leads nowhere, a folder and a pipe of this name count as the file too.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', '') or error
        return one_reason(f'cannot be looked at ({why}): {path}')
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb') as file:
            # A pipe has no first line to wait for.
            line = file.readline(4 * MAX_REASON) if stat.S_ISREG(kind) else b''
    except OSError:
        line = b''
    return one_reason(line.decode(errors='replace'))


class KillSwitch:
    """The words of all origins; any thread may ask and say.

    `changes` are those of the file, oldest first, for whoever tells people; the service's caller
    knows its own.
    """

    def __init__(
        self, file: Path | None, kept: Mapping[Origin, Word], now_ns: Callable[[], int]
    ) -> None:
        """Begin with what was kept; `now_ns` is the wall clock, `file` may be None."""
        self._file = file
        self._now_ns = now_ns
        self._words = {origin: kept.get(origin, Word()) for origin in Origin}
        self._lock = threading.Lock()
        self.changes: deque[Word] = deque(maxlen=_KEEP_CHANGES)

    def look(self) -> bool:
        """Look at the file; return whether the switch is engaged."""
        with self._lock:
            reason = None if self._file is None else reason_in_file(self._file)
            if (word := self._next(Origin.FILE, reason)) is not None:
                self._words[Origin.FILE] = word
                self.changes.append(word)
            return any(word.engaged for word in self._words.values())

    def say(self, origin: Origin, reason: str | None) -> Word:
        """Engage with a reason, or lift with None, for one origin; return its word."""
        with self._lock:
            if (word := self._next(origin, reason)) is not None:
                self._words[origin] = word
            return self._words[origin]

    def word(self, origin: Origin) -> Word:
        """Return the last word of an origin."""
        return self._words[origin]

    def origins(self) -> tuple[Origin, ...]:
        """Return who engages the switch, without another look."""
        return tuple(origin for origin, word in self._words.items() if word.engaged)

    def text(self) -> str:
        """Return who engages the switch, since when and why, in one line."""
        names = {Origin.SERVICE: 'service', Origin.FILE: f'file {self._file}'}
        said = [
            f'by {names[origin]} since {_utc(word.stamp_ns)}: {word.reason}'
            for origin, word in self._words.items()
            if word.engaged
        ]
        return f'engaged {"; ".join(said)}' if said else 'not engaged'

    def _next(self, origin: Origin, reason: str | None) -> Word | None:
        # None for no change: another reason is one, but not another beginning.
        was = self._words[origin]
        if (was.reason if was.engaged else None) == reason:
            return None
        now_ns = self._now_ns()
        if reason is None:
            return Word(False, '', now_ns)
        return Word(True, reason, was.stamp_ns if was.engaged else now_ns)


def _utc(stamp_ns: int) -> str:
    moment = datetime.fromtimestamp(stamp_ns // 1_000_000_000, timezone.utc)
    return moment.strftime('%Y-%m-%d %H:%M:%S UTC')
