# SPDX-License-Identifier: Apache-2.0
"""The quarantine of live sources: a CSV file that keeps what was refused, bounded in size."""

from __future__ import annotations

import csv
import logging
import threading
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)


class QuarantineRow(NamedTuple):
    """One refused bar or reading."""

    source: str
    symbol: str
    event_time_ns: int
    reason: str
    field: str
    value: float


class Quarantine:
    """Append refused rows to a file, from any thread.

    When it is full it becomes FILE.1, and a new one begins.

    Args:
        path: the CSV file; its folder is made.
        max_bytes: size at which a new file begins; the last full one is kept.
    """

    def __init__(self, path: Path | str, max_bytes: int = 16 << 20) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
        self.kept = 0
        self._lock = threading.Lock()
        self.failed = 0
        """Rows that could not be written (they are counted by reason all the same)."""

    def keep(self, row: QuarantineRow) -> None:
        """Write one row; a file that cannot be written is said once and counted, not raised."""
        with self._lock:
            self._keep(row)

    def _keep(self, row: QuarantineRow) -> None:
        try:
            self._append(row)
        except OSError as error:
            if not self.failed:
                _log.warning(
                    '%s: refused rows cannot be kept (%s); free space, or name another file',
                    self._path,
                    error,
                )
            self.failed += 1
        else:
            self.kept += 1

    def _append(self, row: QuarantineRow) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size >= self._max_bytes:
            self._path.replace(self._path.with_name(self._path.name + '.1'))
        new = not self._path.exists()
        with self._path.open('a', encoding='utf-8', newline='') as file:
            writer = csv.writer(file, lineterminator='\n')
            if new:
                writer.writerow(QuarantineRow._fields)
            writer.writerow(row)
