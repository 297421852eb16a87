# SPDX-License-Identifier: Apache-2.0
"""One source of a group: its thread, its bounded queue, its way back after a failure. No ROS."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from heqis_core.align import Feed
from heqis_core.bars import BarBlock
from heqis_core.readings import NEVER_NS, ChannelSource, Reading
from heqis_core.source import Cursor, EndOfStream, Source

_POLL_S = 0.1
_QUEUE = 64
"""Items read ahead of the alignment; a source with more waits (policy: block)."""
BACK_OFF_S = 0.25
BACK_OFF_MAX_S = 30.0
CLOSE_S = 5.0
STABLE_S = 10.0
"""Time without a failure after which the next one waits for the shortest time again."""


@dataclass(frozen=True, slots=True)
class JoinedBars:
    """A source of bars and how the group treats it.

    Attributes:
        feed: what the alignment knows of it.
        source: the source.
        wait_s: how long a block waits for it before it goes out without; None waits for ever,
            which a source that can be replayed deserves.
        live: whether its event times are of now: then none may lie ahead of the clock, and its
            bars are judged when they come.
        counters: what the source counts beside its refused bars, as messages that were lost.
    """

    feed: Feed
    source: Source
    wait_s: float | None = None
    live: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JoinedReadings:
    """A source of readings and how the group treats it: see `JoinedBars`."""

    feed: Feed
    source: ChannelSource
    wait_s: float | None = 0.0
    live: bool = True


Joined = JoinedBars | JoinedReadings


class Item(NamedTuple):
    """What a source gave."""

    given: BarBlock | list[Reading]
    cursor: Cursor | None
    """Where a source of bars goes on after it."""
    complete_ns: int = NEVER_NS
    """Up to which event time a source of readings has said everything."""


@dataclass(slots=True)
class Condition:
    """How a source is."""

    restarts: int = 0
    """Times it was opened again after a failure."""
    problem: str = ''
    """Why it gives nothing now; empty while it runs."""
    ended: bool = False


@dataclass(slots=True)
class Member:
    """A source in its own thread.

    Args:
        joined: the source.
        arrived: set whenever there is something new to take.
        log: told once of each new problem, and of its end.
    """

    joined: Joined
    arrived: threading.Event
    log: Callable[[str], None]
    condition: Condition = field(default_factory=Condition)
    _items: queue.Queue[Item] = field(default_factory=lambda: queue.Queue(_QUEUE))
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _cursor: Cursor | None = None

    @property
    def name(self) -> str:
        """Return the name of the source."""
        return self.joined.feed.name

    @property
    def ended(self) -> bool:
        """Return whether the source has ended and everything was taken."""
        return self.condition.ended and self._items.empty()

    def start(self, cursor: Cursor | None) -> None:
        """Read on from `cursor` in a thread of its own."""
        self._cursor = cursor
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=f'source {self.name}', daemon=True)
        self._thread.start()

    def take(self) -> Item | None:
        """Return the next item, None if there is none now."""
        try:
            return self._items.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop the thread, wherever it waits, and close the source."""
        self._stop.set()
        self.joined.source.close()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self.log(f'source {self.name}: does not end; its thread is left behind')
            self._thread = None

    # --- the source's thread ---

    def _run(self) -> None:
        wait_s = BACK_OFF_S
        while not self._stop.is_set():
            opened_s = time.monotonic()
            try:
                self._read()
                return
            except EndOfStream:
                self.condition.ended = True
                self.arrived.set()
                return
            except Exception as error:  # a source that dies must not take the others with it
                self._fail(error)
            if time.monotonic() - opened_s > STABLE_S:
                wait_s = BACK_OFF_S
            # Jitter: what failed together does not come back together.
            if self._stop.wait(wait_s * random.uniform(0.75, 1.25)):
                return
            wait_s = min(2 * wait_s, BACK_OFF_MAX_S)
            self.condition.restarts += 1

    def _read(self) -> None:
        self._open()
        while not self._stop.is_set():
            item = self._poll()
            if self.condition.problem:
                self.log(f'source {self.name}: runs again')
                self.condition.problem = ''
            if item is not None and self._put(item):
                self._cursor = item.cursor

    def _open(self) -> None:
        if isinstance(self.joined, JoinedBars):
            self.joined.source.open(self._cursor)
        else:
            self.joined.source.open()

    def _poll(self) -> Item | None:
        if isinstance(self.joined, JoinedBars):
            block = self.joined.source.poll(_POLL_S)
            return None if block is None else Item(block, self.joined.source.cursor())
        readings = self.joined.source.poll(_POLL_S)
        return Item(readings, None, self.joined.source.complete_ns) if readings else None

    def _put(self, item: Item) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            self.arrived.set()
            return True
        return False

    def _fail(self, error: Exception) -> None:
        text = f'{type(error).__name__}: {" ".join(str(error).split())}'
        if text != self.condition.problem:
            self.log(f'source {self.name}: {text}; it is tried again')
        self.condition.problem = text
        self.joined.source.close()
        self.arrived.set()
