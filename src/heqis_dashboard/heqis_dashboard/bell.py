# SPDX-License-Identifier: Apache-2.0
"""A bell between threads: one rings it, coroutines of one event loop wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Bell:
    """Wakes every waiting coroutine; a ring that nobody waits for is gone."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Serve the running event loop meanwhile."""
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop = None

    def ring(self) -> None:
        """Wake those that wait; any thread."""
        loop = self._loop
        if loop is not None:
            # The loop may have ended just now: then nobody waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._wake)

    async def wait(self, timeout_s: float) -> None:
        """Return at the next ring, or after a time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
