# SPDX-License-Identifier: Apache-2.0
"""What a process and its nodes say about themselves; publishing it is in `heartbeat`."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from pathlib import Path

from heqis_msgs.msg import NodeStatus

MAX_INFO = 400
"""Longest `info` that a heartbeat carries, in characters."""


def _new_start_id() -> int:
    # Random, not the clock: a board without a battery-backed clock may start twice at the same
    # wall time. 63 bits, because the journal keeps it in a signed column; never 0, which means
    # unknown.
    return (int.from_bytes(os.urandom(8), 'little') >> 1) or 1


START_ID = _new_start_id()
"""Identity of this start of the process, also the epoch of what it produces; 1 to 2**63 - 1."""

HOST = socket.gethostname()
"""Name of the machine."""


def board() -> str:
    """Return the board of this process (environment HEQIS_BOARD), `local` if nobody said."""
    return os.environ.get('HEQIS_BOARD') or 'local'


def boot_id() -> str:
    """Return the identity of this boot of the machine, empty where the kernel does not tell."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
    except OSError:
        return ''


def _uint64(value: int) -> int:
    return max(0, min(value, 2**64 - 1))


class Vitals:
    """Counters of one node, written by any thread and read by the heartbeat thread."""

    def __init__(self) -> None:
        """Start from zero."""
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._stages: dict[str, int] = {}
        self.spin_count = 0
        self.progress = 0
        self.pending = 0
        self.info = ''
        self.degraded = False
        self.failure = ''

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name] = self._counters.get(name, 0) + n

    def set_counter(self, name: str, value: int) -> None:
        """Overwrite a counter."""
        with self._lock:
            self._counters[name] = int(value)

    def add_progress(self, n: int = 1) -> None:
        """Count units of work done."""
        with self._lock:
            self.progress += n

    def set_stage(self, name: str, us: float) -> None:
        """Keep the last duration of a stage, microseconds."""
        with self._lock:
            self._stages[name] = int(us)

    def counters(self) -> dict[str, int]:
        """Return a copy of the counters."""
        with self._lock:
            return dict(self._counters)

    def fill(self, status: NodeStatus) -> None:
        """Write everything but name and state into a message."""
        with self._lock:
            counters, stages, progress = dict(self._counters), dict(self._stages), self.progress
        status.spin_count = self.spin_count
        status.progress = progress
        status.pending = max(0, min(self.pending, 2**32 - 1))
        status.counter_names = list(counters)
        status.counter_values = array('Q', map(_uint64, counters.values()))
        status.stage_names = list(stages)
        status.stage_last_us = array('Q', map(_uint64, stages.values()))
        status.info = (self.failure or self.info)[:MAX_INFO]
        status.degraded = self.degraded
