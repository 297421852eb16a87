# SPDX-License-Identifier: Apache-2.0
"""What systemd does for a service, the runner does for each process: it waits for signs of life.

Each process gets NOTIFY_SOCKET and WATCHDOG_USEC, as sd_notify(3) has them. One that asked to be
watched (supervisor and agents, whom nobody else could end) and is silent for too long is ended:
SIGABRT, at which it prints where its threads are, then SIGKILL. Respawn does the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from heqis_core.io.notify import NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC

WATCHDOG_S = 5.0
"""Longest time between two signs of life of a process that gives them."""
START_S = 120.0
"""Time for a process of HEQIS to say that it has started: its imports on a busy board."""
ABORT_S = 0.5
"""From SIGABRT to SIGKILL."""
AWAY_S = 1.0
"""After a longer pause of the runner itself nobody was silent."""
ENVIRONMENT = (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID)

_CREDENTIALS = struct.Struct('3i')  # struct ucred: pid, uid, gid
_LARGEST_BYTES = 4096
_MOST_AT_ONCE = 1000


class Overdue(NamedTuple):
    """A process that is to be sent a signal, and why."""

    pid: int
    number: signal.Signals
    why: str


@dataclass
class _Child:
    heard_s: float
    limit_s: float
    """Longest silence; 0 = any."""
    ready: bool = False
    status: str = ''
    aborted_s: float | None = None
    killed: bool = False


class ChildWatch:
    """The notification socket of the processes of one runner; for one thread."""

    def __init__(self, watchdog_s: float = WATCHDOG_S, start_s: float = START_S) -> None:
        """Open the socket, at an address that nobody else can have."""
        self._watchdog_s, self._start_s = watchdog_s, start_s
        self._children: dict[int, _Child] = {}
        self._looked_s: float | None = None
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_UNIX, kind)
        # The kernel says who sends; anybody on the machine could send to an abstract address.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind('')

    def environ(self) -> dict[str, str]:
        """Return what the processes need to find the socket."""
        name = self._socket.getsockname()
        return {
            NOTIFY_SOCKET: f'@{os.fsdecode(name[1:])}',
            WATCHDOG_USEC: str(round(self._watchdog_s * 1e6)),
        }

    def started(self, pid: int, now_s: float, *, speaks: bool) -> None:
        """Take a new process in; `speaks`: it must say within the time for it that it is ready."""
        self._children[pid] = _Child(now_s, self._start_s if speaks else 0.0)

    def ended(self, pid: int) -> None:
        """Forget a process."""
        self._children.pop(pid, None)

    def statuses(self) -> dict[int, str]:
        """Return what processes say of themselves, by pid."""
        return {pid: child.status for pid, child in self._children.items() if child.status}

    def look(self, now_s: float) -> list[Overdue]:
        """Hear everyone, and return who is to be ended and by what signal; each once."""
        away_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        for child in self._children.values():
            child.heard_s += away_s if away_s > AWAY_S else 0.0
        for pid, lines in self._messages():
            child_or_none = self._children.get(pid)
            if child_or_none is not None:
                self._hear(child_or_none, lines, now_s)
        found = (_judge(pid, child, now_s) for pid, child in self._children.items())
        return [each for each in found if each is not None]

    def close(self) -> None:
        """Free the socket."""
        self._socket.close()

    def _messages(self) -> Iterator[tuple[int, list[str]]]:
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        for _ in range(_MOST_AT_ONCE):
            try:
                data, extra, _, _ = self._socket.recvmsg(_LARGEST_BYTES, space)
            except BlockingIOError:
                return
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid = _CREDENTIALS.unpack(content)[0]
                    yield pid, data.decode(errors='replace').splitlines()

    def _hear(self, child: _Child, lines: list[str], now_s: float) -> None:
        for line in lines:
            name, _, value = line.partition('=')
            if name == 'STATUS':
                child.status = value
            elif line == 'WATCHDOG=1':
                child.heard_s = now_s
            elif line == 'READY=1' and not child.ready:
                child.ready, child.heard_s, child.limit_s = True, now_s, 0.0
            elif name == WATCHDOG_USEC:
                with contextlib.suppress(ValueError):
                    child.ready, child.heard_s, child.limit_s = True, now_s, int(value) / 1e6


def _judge(pid: int, child: _Child, now_s: float) -> Overdue | None:
    if child.aborted_s is not None:
        if child.killed or now_s - child.aborted_s < ABORT_S:
            return None
        child.killed = True
        return Overdue(pid, signal.SIGKILL, 'still there')
    silent_s = now_s - child.heard_s
    if not child.limit_s or silent_s <= child.limit_s:
        return None
    child.aborted_s = now_s
    what = 'no sign of life' if child.ready else 'not ready since its start'
    return Overdue(pid, signal.SIGABRT, f'{what} for {silent_s:.1f} s')
