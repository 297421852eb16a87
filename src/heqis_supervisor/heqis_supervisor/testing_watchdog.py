# SPDX-License-Identifier: Apache-2.0
"""A hardware watchdog in software: /dev/watchdog as the kernel's watchdog core behaves.

No machine that runs these tests has one. The calls have the signatures of os and fcntl, the
numbers and the rules are those of linux/watchdog.h and drivers/watchdog/watchdog_dev.c.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

from heqis_supervisor.watchdog_device import Calls

PATH = '/dev/watchdog'
FD = 77
SETTIMEOUT = (3 << 30) | (4 << 16) | (ord('W') << 8) | 6
"""_IOWR('W', 6, int): direction, size, type, number."""


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number), PATH)


@dataclass
class FakeWatchdog:
    """A watchdog with a clock of its own.

    Attributes:
        resets: how often the board was reset.
        refuses: error number of every open, every ioctl or every write.
    """

    step_s: int = 8
    max_s: int = 60
    now_s: float = 0.0
    armed: bool = False
    held: bool = False
    resets: int = 0
    refuses: dict[str, int] = field(default_factory=dict)
    _magic: bool = False
    _timeout_s: int = 60
    _patted_s: float = 0.0

    def calls(self) -> Calls:
        """Return its calls, in place of the system's."""
        return Calls(self.open, self.write, self.ioctl, self.close)

    def wait(self, seconds: float) -> None:
        """Let time pass: the board resets if the time-out is over."""
        self.now_s += seconds
        if self.armed and self.now_s - self._patted_s > self._timeout_s:
            self.armed, self.held, self.resets = False, False, self.resets + 1

    def open(self, path: str, flags: int) -> int:
        """Arm it."""
        assert path == PATH
        assert flags & os.O_ACCMODE == os.O_WRONLY
        assert flags & os.O_CLOEXEC, 'a child would keep it'
        if self.held or 'open' in self.refuses:
            raise _fail(self.refuses.get('open', errno.EBUSY))
        self.armed = self.held = True
        self._magic, self._patted_s = False, self.now_s
        return FD

    def write(self, fd: int, data: bytes) -> int:
        """Pat it; `V` prepares the end."""
        assert fd == FD
        assert self.held
        if 'write' in self.refuses:
            raise _fail(self.refuses['write'])
        self._magic = b'V' in data
        self._patted_s = self.now_s
        return len(data)

    def ioctl(self, fd: int, request: int, arg: bytes) -> bytes:
        """Set the time-out, rounded up to a step."""
        assert fd == FD
        assert request == SETTIMEOUT
        if 'ioctl' in self.refuses:
            raise _fail(self.refuses['ioctl'])
        (seconds,) = struct.unpack('i', arg)
        if not 0 < seconds <= self.max_s:
            raise _fail(errno.EINVAL)
        self._timeout_s = -(-seconds // self.step_s) * self.step_s
        self._patted_s = self.now_s
        return struct.pack('i', self._timeout_s)

    def close(self, fd: int) -> None:
        """Let go of it; it stays armed unless `V` came last."""
        assert fd == FD
        assert self.held
        self.held = False
        self.armed = self.armed and not self._magic
