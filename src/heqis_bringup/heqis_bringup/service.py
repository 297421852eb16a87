# SPDX-License-Identifier: Apache-2.0
"""What systemd hears of `heqis up --runner`: READY, STATUS, signs of life, STOPPING."""

from __future__ import annotations

import time

from heqis_bringup.launch_runner import LaunchRunner
from heqis_core.io.notify import Notifier


class Service:
    """A runner under systemd; says nothing where nobody asked."""

    def __init__(self, runner: LaunchRunner, notifier: Notifier) -> None:
        """Tell of `runner` by `notifier`."""
        self._runner, self._notifier = runner, notifier
        self._ready = False
        self._status = ''
        self._due_s = 0.0
        self._turns = -1

    def stop(self, *, now: bool) -> None:
        """Say that the end has begun, and ask the runner for it; for a signal handler."""
        self._notifier.stopping()
        self._runner.stop(now=now)

    def tell(self) -> None:
        """Say what is new; called by the main thread, about five times a second.

        So a sign of life proves this thread, and the runner's, whose turns are counted.
        """
        if not self._notifier:
            return
        views = self._runner.processes()
        running = sum(view.pid is not None for view in views)
        if not self._ready and all(view.pid or view.last_exit is not None for view in views):
            self._ready = True
            self._notifier.ready()
        parts = [f'{running} of {len(views)} processes run']
        parts += [f'{view.name}: {view.status}' for view in views if view.status]
        if (status := '; '.join(parts)) != self._status:
            self._status = status
            self._notifier.status(status)
        now_s = time.monotonic()
        if (
            self._notifier.watchdog_s
            and now_s >= self._due_s
            and self._runner.turns != self._turns
        ):
            self._due_s = now_s + self._notifier.watchdog_s / 4
            self._turns = self._runner.turns
            self._notifier.alive()
