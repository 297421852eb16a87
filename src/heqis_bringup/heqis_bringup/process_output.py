# SPDX-License-Identifier: Apache-2.0
"""Bytes of a pipe to lines, and lines to a log file of bounded size; no processes here."""

from __future__ import annotations

from pathlib import Path
from typing import IO

_LONGEST_LINE = 64 * 1024
_LOG_BYTES = 16 * 1024 * 1024


class LineBuffer:
    """Cuts a byte stream into lines of text; an endless line is cut at 64 KiB."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._rest = b''

    def add(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes; no data means the end and flushes the rest."""
        *lines, self._rest = (self._rest + data).split(b'\n')
        if self._rest and (not data or len(self._rest) >= _LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b''
        return [line.decode('utf-8', 'replace').rstrip('\r') for line in lines]


class LogFile:
    """A log file with one predecessor, so that a run of weeks cannot fill the disk."""

    def __init__(self, path: Path, limit_bytes: int = _LOG_BYTES) -> None:
        """Open `path` to append; past `limit_bytes` it becomes `<name>.log.1` and starts anew."""
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: IO[str] = path.open('a', encoding='utf-8')

    def write(self, line: str) -> None:
        """Append a line; a full disk loses it, for it must not stop what is being watched."""
        try:
            if self._file.tell() > self._limit_bytes:
                self._file.close()
                self._path.replace(self._path.with_suffix('.log.1'))
                self._file = self._path.open('a', encoding='utf-8')
            self._file.write(line + '\n')
            self._file.flush()
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()
