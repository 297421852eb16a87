# SPDX-License-Identifier: Apache-2.0
"""A process of the graph that the bench can disturb from within: its own main, and some signals.

`python -m heqis_bringup.chaos.saboteur_node MODULE [arguments of the node]` runs `main` of MODULE
with one thing more: a signal has a callback run in the executor that sleeps or never comes back,
or moves the wall clock that Python code reads. Only the bench starts processes this way.
"""

from __future__ import annotations

import functools
import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from heqis_bringup.chaos.disturbance import BACK, DEADLOCK, FORWARD, HOUR_NS, SLOW, SLOW_S
from heqis_ros.node import ManagedNode


def main(words: Sequence[str]) -> int:
    """Run a node's main with the disturbances built in; return its exit status."""
    module: Any = importlib.import_module(words[0])
    sys.argv = [module.__name__, *words[1:]]
    real: Callable[..., int] = module.run_process

    def run(name: str, classes: Sequence[Callable[[], ManagedNode]], argv: Any = None) -> int:
        return real(name, [functools.partial(disturbed, classes[0]), *classes[1:]], argv)

    module.run_process = run
    clock = _Clock()
    for number, hours in ((FORWARD, 1), (BACK, -1)):
        signal.signal(number, functools.partial(clock.move, hours))
    return int(module.main())


def disturbed(make: Callable[[], ManagedNode]) -> ManagedNode:
    """Return the node of `make`, with the callbacks that the signals start in its executor."""
    node = make()
    for number, block in ((SLOW, lambda: time.sleep(SLOW_S)), (DEADLOCK, _never)):
        guard = node.create_guard_condition(block)
        signal.signal(number, functools.partial(_trigger, guard))
    return node


def _trigger(guard: Any, _number: int, _frame: FrameType | None) -> None:
    guard.trigger()


def _never() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


class _Clock:
    """The wall clock as Python code reads it: `time.time` and `time.time_ns`, moved by hours."""

    def __init__(self) -> None:
        real, real_ns = time.time, time.time_ns
        self._hours = 0
        time.time = lambda: real() + self._hours * HOUR_NS / 1e9
        time.time_ns = lambda: real_ns() + self._hours * HOUR_NS

    def move(self, hours: int, _number: int, _frame: FrameType | None) -> None:
        self._hours += hours


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
