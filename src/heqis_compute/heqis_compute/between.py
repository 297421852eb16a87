# SPDX-License-Identifier: Apache-2.0
"""What other threads want done between two frames is done by the thread that judges them.

So one thread alone touches the judge, no frame waits for a lock, and under load nobody starves.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from heqis_core.errors import HeqisError

T = TypeVar('T')
DEACTIVATED = 'the node is being deactivated'
LOOK_S = 0.1
"""How often a thread that waits looks whether it should stop."""


class StoppedError(HeqisError):
    """The node is being deactivated: what has begun is given up."""


class BetweenFrames:
    """Calls on their way to the thread that judges."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def ask(self, call: Callable[[], T], stop: threading.Event) -> T:
        """Let the judge's thread run `call`; return what it returns, raise what it raises.

        Raises StoppedError if `stop` is set before the call has begun; then it is never made.
        """
        future: Future[T] = Future()
        self._calls.put((call, future))
        while not wait([future], LOOK_S).done:
            if stop.is_set() and future.cancel():
                raise StoppedError(DEACTIVATED)
        return future.result()

    def run(self) -> None:
        """Make the calls that wait; for the judge's thread."""
        while not self._calls.empty():
            call, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
