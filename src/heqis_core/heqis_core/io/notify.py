# SPDX-License-Identifier: Apache-2.0
"""What a process tells whoever started it, as sd_notify(3) does: systemd, or the runner.

Datagrams of `NAME=value` lines to the socket that the environment names. Nobody there, or a full
socket, is no error: a notification is a hint, and the sender has more important things to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

NOTIFY_SOCKET = 'NOTIFY_SOCKET'
WATCHDOG_USEC = 'WATCHDOG_USEC'
WATCHDOG_PID = 'WATCHDOG_PID'


class Notifier:
    """One end of the notification socket; does nothing where the environment names none.

    Attributes:
        watchdog_s: `alive` must be said at least this often, seconds; 0 = nobody waits for it.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; what cannot be used counts as unset.

        `environ` is the process's own by default.
        """
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get(NOTIFY_SOCKET, ''))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environ) if self._address else 0.0
        if self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    def __bool__(self) -> bool:
        """Whether somebody asked for notifications."""
        return self._socket is not None

    def send(self, *lines: str) -> bool:
        """Send lines of one notification; return whether they were taken. Never blocks."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto('\n'.join(lines).encode(), self._address)
        except OSError:
            return False
        return True

    def ready(self) -> bool:
        """Say that start-up is done."""
        return self.send('READY=1')

    def stopping(self) -> bool:
        """Say that the end has begun."""
        return self.send('STOPPING=1')

    def status(self, text: str) -> bool:
        """Say one line for people."""
        return self.send(f'STATUS={" ".join(text.split())}')

    def alive(self) -> bool:
        """Say that work goes on; call it only where that was seen."""
        return self.send('WATCHDOG=1')

    def watch(self, timeout_s: float) -> bool:
        """Ask to be ended when `alive` is not said for so long; 0 = not to be."""
        return self.send(f'{WATCHDOG_USEC}={round(timeout_s * 1e6)}')

    def close(self) -> None:
        """Free the socket."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None


def _address(text: str) -> str:
    # As systemd: an absolute path, or @ for the abstract namespace. Nothing else is ever given.
    if text.startswith('@') and len(text) > 1:
        return f'\0{text[1:]}'
    return text if text.startswith('/') else ''


def _watchdog_s(environ: Mapping[str, str]) -> float:
    # The time-out is for one process; its children inherit the variables, and are not meant.
    if environ.get(WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get(WATCHDOG_USEC, '')
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
