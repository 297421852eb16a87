# SPDX-License-Identifier: Apache-2.0
"""Threads that belong to the ACTIVE state of a node: started, stopped, joined, never silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Target = Callable[[threading.Event], None]
"""A worker's function: loops until the event is set, blocking at most about 0.2 s at a time."""

JOIN_S = 2.0
"""How long all workers of a node together may take to end."""


class Workers:
    """The workers of one node."""

    def __init__(self, prefix: str, on_failure: Callable[[str, BaseException], None]) -> None:
        """Remember whom to tell, from the failing thread, when a worker ends with an exception."""
        self._prefix = prefix
        self._on_failure = on_failure
        self._targets: dict[str, Target] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._stop = threading.Event()

    def add(self, name: str, target: Target) -> None:
        """Register a worker; it starts with the next `start`."""
        self._targets[name] = target

    def remove(self, name: str) -> None:
        """Forget a worker; a running thread is not touched."""
        self._targets.pop(name, None)

    def start(self) -> None:
        """Start every registered worker; none of the last time may be alive."""
        self._stop = threading.Event()
        for name in self._targets:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        """Start one registered worker beside those that run."""
        # A daemon, so that a worker that never ends cannot keep the process from ending.
        thread = threading.Thread(
            target=self._run,
            args=(name, self._targets[name], self._stop),
            name=f'{self._prefix}.{name}',
            daemon=True,
        )
        self._threads[name] = thread
        thread.start()

    def _run(self, name: str, target: Target, stop: threading.Event) -> None:
        try:
            target(stop)
        except BaseException as error:  # nothing that a worker raises may vanish, SystemExit too
            self._on_failure(name, error)

    def request_stop(self) -> None:
        """Set the event of the running workers and return at once."""
        self._stop.set()

    def stop(self) -> list[str]:
        """Stop and join; return the names of those that outlive the `JOIN_S` they share."""
        self._stop.set()
        deadline = time.monotonic() + JOIN_S
        for thread in self._threads.values():
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return self.alive()

    def alive(self) -> list[str]:
        """Return the names of the workers that run."""
        self._threads = {
            name: thread for name, thread in self._threads.items() if thread.is_alive()
        }
        return list(self._threads)
