# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that no library can swallow: it is raised at once, and once more at the next safe place.

A library that is just being imported may take KeyboardInterrupt for a failed import (`except:`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

_came = Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Remember Ctrl-C for `raise_if_interrupted`, within the block; use it in the main thread."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        _came.set()
        raise KeyboardInterrupt

    _came.clear()
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        _came.clear()


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came within `remembered` and something swallowed it."""
    if _came.is_set():
        raise KeyboardInterrupt
