# SPDX-License-Identifier: Apache-2.0
"""The board's hardware watchdog, /dev/watchdog: unless it is patted in time, the board resets.

The interface is linux/watchdog.h (Documentation/watchdog/watchdog-api.rst of the kernel): opening
arms it, writing pats it, and `V` as the last byte before the close disarms it. A close without it,
like that of a killed process, leaves it armed: whoever comes next has the time-out to open it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from heqis_core.errors import ConfigError

WDIOC_SETTIMEOUT = 0xC0045706
"""_IOWR('W', 6, int): seconds in, the seconds that the driver made of them out."""
_WHY = {
    errno.ENOENT: 'is the driver of the watchdog loaded?',
    errno.EACCES: 'give the user of the supervisor the right to it, by a udev rule',
    errno.EBUSY: 'only one program may hold it: systemd (RuntimeWatchdogSec=) or another one does',
    errno.ENOTTY: 'this is no watchdog',
    errno.EINVAL: 'the driver refuses this time-out; change watchdog_timeout_s',
    errno.EOPNOTSUPP: 'the driver has a fixed time-out, which cannot be told; use another device',
}


class Calls(NamedTuple):
    """The calls of the system that reach the device; a test puts a simulated device here."""

    open: Callable[[str, int], int] = os.open
    write: Callable[[int, bytes], int] = os.write
    ioctl: Callable[[int, int, bytes], bytes] = fcntl.ioctl
    close: Callable[[int], None] = os.close


class WatchdogDevice:
    """An armed watchdog.

    Attributes:
        timeout_s: the board resets after so long without `pat`, as the driver says.
    """

    def __init__(self, path: str, timeout_s: int, calls: Calls | None = None) -> None:
        """Open and so arm the device; ConfigError says what is in the way, and leaves none armed.

        `timeout_s` is what is asked of the driver, seconds.
        """
        self._path = path
        self._calls = calls or Calls()
        try:
            self._fd = self._calls.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(_problem(path, error)) from error
        try:
            answer = self._calls.ioctl(self._fd, WDIOC_SETTIMEOUT, struct.pack('i', timeout_s))
        except OSError as error:
            self.disarm()
            raise ConfigError(_problem(path, error)) from error
        self.timeout_s = float(struct.unpack('i', answer)[0])

    def pat(self) -> None:
        """Begin the time-out anew; raises OSError where the driver fails."""
        self._calls.write(self._fd, b'\0')

    def disarm(self) -> None:
        """Close it for good: the board goes on without (unless the kernel was built to refuse)."""
        try:
            self._calls.write(self._fd, b'V')
        except OSError:
            pass  # what does not take a byte cannot be disarmed, but must be closed
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close it and leave it armed: the board resets unless somebody opens it again in time."""
        self._calls.close(self._fd)


def _problem(path: str, error: OSError) -> str:
    hint = _WHY.get(error.errno or 0, '')
    return f'watchdog_device {path}: {error.strerror}' + (f'; {hint}' if hint else '')
