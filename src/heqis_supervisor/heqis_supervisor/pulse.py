# SPDX-License-Identifier: Apache-2.0
"""The proof of life of a supervisor or agent, for systemd or the runner and for /dev/watchdog.

The loop that does the work calls `beat` at every turn, so nothing is said when it stands still;
and nothing is said unless the executor has moved since the last time. No thread says it for them.
"""

from __future__ import annotations

import time

from heqis_core.io.notify import Notifier
from heqis_supervisor.watchdog_device import WatchdogDevice

LONGEST_S = 1.0
"""Between two signs of life, however long the time-outs are."""


class Pulse:
    """Says `alive` while the caller's loop and its executor both move."""

    def __init__(self, notifier: Notifier, device: WatchdogDevice | None = None) -> None:
        """Ask to be watched from the first beat on; `device` is an armed one."""
        limits = [notifier.watchdog_s, 0.0 if device is None else device.timeout_s]
        shortest = min((limit for limit in limits if limit > 0), default=0.0)
        self._period_s = min(shortest / 4, LONGEST_S)
        self._wanted = shortest > 0
        self._notifier, self._device = notifier, device
        self._due_s = 0.0
        self._spin_count = -1
        self._status = ''
        self.fault = ''
        """Why the device was not patted the last time; empty if it was."""
        if notifier.watchdog_s:
            notifier.watch(notifier.watchdog_s)

    def beat(self, spin_count: int, now_s: float | None = None) -> bool:
        """Say that the loop has turned; return whether that was told.

        `spin_count` is the executor's own count; `now_s` is monotonic, by default now.
        """
        now_s = time.monotonic() if now_s is None else now_s
        if not self._wanted or now_s < self._due_s or spin_count == self._spin_count:
            return False
        self._due_s, self._spin_count = now_s + self._period_s, spin_count
        self._notifier.alive()
        if self._device is not None:
            try:
                self._device.pat()
                self.fault = ''
            except OSError as error:
                self.fault = f'the watchdog device was not patted: {error}'
        return True

    def tell(self, status: str) -> None:
        """Say one line for people, where it is another one than before."""
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    def end(self, *, fault: bool) -> None:
        """Be watched no more: work has ended. After a fault the device stays armed."""
        if self._notifier.watchdog_s:
            self._notifier.watch(0.0)
        self._notifier.close()
        if self._device is None:
            return
        if fault:
            self._device.abandon()
        else:
            self._device.disarm()
