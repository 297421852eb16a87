# SPDX-License-Identifier: Apache-2.0
"""The journal of a process and the one thread that writes it; risk gate and journal node share it.

Decisions, predictions and events wait in bounded queues; the thread judges, commits what is
there in one transaction, and only then lets the gate publish. Policies: decisions that find the
queue full are refused (the gateway sends them again), of predictions and events the oldest go;
all are counted. While the journal cannot be written, decisions wait and nothing is published. No
rclpy here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from heqis_core.control import Event
from heqis_core.decision import REFUSALS, Decisions, Predictions, reason_names
from heqis_core.errors import ConfigError, JournalError
from heqis_core.frame import Stage, stamp
from heqis_core.io.journal import Journal
from heqis_core.io.journal_reader import JournalReader

FLUSH_S = 0.1
"""Idle time after which the last commit's time and the published mark are written."""
RETRY_S = 0.5
"""Wait after the journal refused to be written."""
ASK_S = 0.25
"""Time between two questions whether readers have received everything."""
DROP_S = 0.02
"""Time between two transactions that drop what is in the archive."""
READY_S = 0.02
"""Wait between two looks whether old frames can be published."""
_SIDE_BATCH = 256


class Gate(Protocol):
    """What the thread asks of the risk gate."""

    def judge(self, decisions: Decisions) -> Decisions:
        """Return the decisions of a new frame with what may not go out refused."""

    def settle(self, durable: bool) -> None:
        """Take note whether what was judged since the last call has become durable."""

    def ready(self) -> bool:
        """Whether those that should hear what is published are there."""

    def acknowledged(self) -> bool:
        """Whether every reader has received what was published."""

    def publish_frames(self, decisions: Sequence[Decisions], new: Sequence[bool]) -> bool:
        """Publish frames that are durable; return False if that was not possible."""


@dataclass
class Dropping:
    """What has become too much for the journal and is in the archive.

    Attributes:
        archived: of `frames` and `events`, the last row that has come into the archive.
        keep: positions of frames that stay.
        predictions: the last of the predictions that go.
        free_pages: free pages that the file keeps.
    """

    archived: dict[str, int]
    keep: tuple[int, ...]
    predictions: int
    free_pages: int


@dataclass
class _Setting:
    key: str
    value: str
    done: threading.Event = field(default_factory=threading.Event)
    error: JournalError | None = None


class Store:
    """The journal of one process; nodes `open` and `close` it, the last one ends the thread.

    Attributes:
        counters: frames, duplicates, overflow, predictions_dropped, events_dropped, commit_errors,
            republished, drop_errors, and refused.<reason> of what was refused since the start.
        error: why the journal cannot be written now; empty if it can.
        commit_us: duration of the last commit.
        failure: an exception that ended the thread; a bug.
    """

    def __init__(self) -> None:
        """Make a store that is not open."""
        self._users = 0
        self._path: Path | None = None
        self._journal: Journal | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._stepping = threading.Lock()
        self._stop = threading.Event()
        self._gate: Gate | None = None
        self._batch = 64
        self._room = 4096
        self._decisions: deque[Decisions] = deque()
        self._predictions: deque[Predictions] = deque(maxlen=1024)
        self._events: deque[Event] = deque(maxlen=1024)
        self._settings: deque[_Setting] = deque()
        self._dropping: Dropping | None = None
        self._drop_s = 0.0
        self._behind = self._paused = False
        self._sent: int | None = None
        self._ask_s = 0.0
        self._clear()

    def _clear(self) -> None:
        names = ('frames', 'duplicates', 'overflow', 'predictions_dropped', 'events_dropped')
        refused = (f'refused.{name}' for name in reason_names(int(REFUSALS)))
        # Every key is there from the start: another thread goes through them.
        self.counters = dict.fromkeys(
            (*names, 'commit_errors', 'republished', 'drop_errors', *refused), 0
        )
        self.error = ''
        self.commit_us = 0.0
        self.failure: BaseException | None = None

    # --- from the nodes' threads ---

    def open(
        self,
        path: str | Path,
        *,
        queue: int | None = None,
        max_predictions: int | None = None,
        max_events: int | None = None,
    ) -> None:
        """Open the journal for one more user.

        Args:
            path: file of the journal.
            queue: room for predictions and for events.
            max_predictions, max_events: rows that the journal keeps; 0 is all.

        Raises JournalError, or ConfigError if the store is open with another path.
        """
        path = Path(path).absolute()
        if self._users and path != self._path:
            raise ConfigError(
                f'parameter path is {path}, but this process writes {self._path}; '
                'give risk_gate and journal the same'
            )
        if not self._users:
            self._journal = Journal.open(path)
            self._clear()
            self._path = path
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name='journal.store', daemon=True)
            self._thread.start()
        assert self._journal is not None
        self._journal.set_limits(predictions=max_predictions, events=max_events)
        if queue is not None:
            with self._wake:
                self._predictions = deque(self._predictions, maxlen=queue)
                self._events = deque(self._events, maxlen=queue)
        self._users += 1

    def close(self) -> None:
        """Leave; the last user waits until what is queued is written and the file is free."""
        self._users -= 1
        if self._users:
            return
        self._stop.set()
        with self._wake:
            self._wake.notify()
        assert self._thread is not None
        assert self._journal is not None
        self._thread.join(5.0)
        if self._thread.is_alive():
            raise JournalError(
                f'journal {self._path}: its thread did not end; restart the process'
            )
        self._journal.close()
        self._thread = self._journal = self._dropping = None

    def attach(self, gate: Gate, *, batch: int, queue: int) -> None:
        """Begin to take decisions and to publish through a gate."""
        with self._wake:
            self._gate, self._batch, self._room, self._behind = gate, batch, queue, True
            self._wake.notify()

    def detach(self) -> None:
        """Publish nothing more; decisions that wait are dropped, their frames stay open."""
        with self._stepping, self._wake:
            if self._journal is not None and self._gate is not None:
                self._ask_s = 0.0
                self._note_received(self._journal, self._gate)
            self._gate = None
            self._decisions.clear()

    def put_decisions(self, item: Decisions) -> bool:
        """Queue a frame; return False if there is no room for it."""
        with self._wake:
            if len(self._decisions) >= self._room or self._gate is None:
                self.counters['overflow'] += 1
                return False
            self._decisions.append(item)
            self._wake.notify()
        return True

    def put_predictions(self, item: Predictions) -> None:
        """Queue predictions; the oldest go if there is no room."""
        with self._wake:
            full = len(self._predictions) == self._predictions.maxlen
            self.counters['predictions_dropped'] += full
            self._predictions.append(item)
            self._wake.notify()

    def put_event(self, item: Event) -> None:
        """Queue an event; the oldest go if there is no room."""
        with self._wake:
            self.counters['events_dropped'] += len(self._events) == self._events.maxlen
            self._events.append(item)
            self._wake.notify()

    def set_meta(self, key: str, value: str, timeout_s: float = 2.0) -> None:
        """Write a named text after the frames that are being judged; raise JournalError if not."""
        setting = _Setting(key, value)
        with self._wake:
            self._settings.append(setting)
            self._wake.notify()
        if not setting.done.wait(timeout_s):
            raise JournalError(f'journal {self._path}: {key} was not written in {timeout_s:g} s')
        if setting.error is not None:
            raise setting.error

    def get_meta(self, key: str) -> str | None:
        """Return a named text, while no gate is attached."""
        with self._stepping:
            return None if self._journal is None else self._journal.get_meta(key)

    @contextmanager
    def reading(self) -> Iterator[JournalReader]:
        """Let the caller ask the journal, while no gate is attached."""
        with self._stepping:
            assert self._journal is not None
            yield self._journal

    def drop(self, what: Dropping) -> None:
        """Have what is in the archive dropped, little by little between the commits."""
        with self._wake:
            self._dropping = what
            self._wake.notify()

    def pause(self, paused: bool) -> None:
        """Leave frames that wait unjudged, or go on with them."""
        with self._wake:
            self._paused = paused
            self._wake.notify()

    @property
    def dropping(self) -> bool:
        """Whether something is still to be dropped."""
        return self._dropping is not None

    @property
    def pending(self) -> int:
        """Frames that wait to be judged and made durable."""
        return len(self._decisions)

    def check(self) -> None:
        """Raise what ended the thread, if it has ended."""
        if self.failure is not None:
            raise RuntimeError(f'the journal thread has ended: {self.failure}') from self.failure

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                idle = not self._wait_for_work()
                with self._stepping:
                    done = self._step(idle)
                    waits = self._behind and self._gate is not None
                if not done:
                    self._stop.wait(RETRY_S)
                elif waits:
                    self._stop.wait(READY_S)
            with self._stepping:
                self._gate = None
                self._step(False)
        except BaseException as error:
            self.failure = error

    def _wait_for_work(self) -> bool:
        with self._wake:
            if not self._has_work() and not self._stop.is_set():
                self._wake.wait(DROP_S if self._dropping else FLUSH_S)
            return self._has_work()

    def _has_work(self) -> bool:
        waiting = self._decisions and not self._paused
        gate = self._gate is not None and (waiting or self._behind)
        return bool(gate or self._settings or self._predictions or self._events)

    def _step(self, idle: bool) -> bool:
        """Do what is there to do once; return False if the journal refused it."""
        assert self._journal is not None
        try:
            if self._gate is not None:
                self._note_received(self._journal, self._gate)
            if idle:
                self._journal.flush()
            else:
                self._write_settings(self._journal)
                self._catch_up(self._journal)
                self._commit(self._journal)
            self._drop_some(self._journal)
        except JournalError as error:
            self.error = str(error)
            self.counters['commit_errors'] += 1
            return False
        self.error = ''
        return True

    def _drop_some(self, journal: Journal) -> None:
        what, now_s = self._dropping, time.monotonic()
        if what is None or now_s < self._drop_s:
            return
        self._drop_s = now_s + DROP_S
        try:
            while what.archived:
                journal.set_archived(*what.archived.popitem())
            more = (
                journal.drop_archived(what.keep)
                or journal.drop_predictions(what.predictions)
                or journal.give_back(what.free_pages)
            )
        except JournalError:
            # Commits go on; what is too much is looked at again.
            self.counters['drop_errors'] += 1
            more = False
        if not more:
            self._dropping = None

    def _write_settings(self, journal: Journal) -> None:
        while self._settings:
            setting = self._settings.popleft()
            try:
                journal.set_meta(setting.key, setting.value)
            except JournalError as error:
                setting.error = error
            setting.done.set()

    def _catch_up(self, journal: Journal) -> None:
        # Frames that were committed but perhaps never published, before a kill: once more.
        gate = self._gate
        if gate is None or not self._behind or not gate.ready():
            return
        frames = journal.unpublished()
        if frames:
            if not gate.publish_frames(frames, [True] * len(frames)):
                return
            self.counters['republished'] += len(frames)
            self._sent = journal.position
        self._behind = False

    def _note_received(self, journal: Journal, gate: Gate) -> None:
        # What no reader has acknowledged dies with this process: until then it is not published.
        now_s = time.monotonic()
        if self._sent is None or now_s < self._ask_s:
            return
        self._ask_s = now_s + ASK_S
        if gate.acknowledged():
            journal.mark_published(self._sent)
            self._sent = None

    def _commit(self, journal: Journal) -> None:
        gate = self._gate
        with self._wake:
            n = min(self._batch, len(self._decisions))
            if gate is None or self._behind or self._paused:
                n = 0
            waiting = list(islice(self._decisions, n))
            predictions = list(islice(self._predictions, _SIDE_BATCH))
            events = list(islice(self._events, _SIDE_BATCH))
        judged = [] if gate is None else _judge(gate, waiting, journal.fresh(waiting))
        started = time.perf_counter()
        new: list[bool] = []
        try:
            new = journal.commit(judged, predictions=predictions, events=events)
        finally:
            if gate is not None:
                gate.settle(bool(new))
        with self._wake:
            _drop_first(self._decisions, waiting)
            _drop_first(self._predictions, predictions)
            _drop_first(self._events, events)
        if gate is None or not judged:
            return
        self.commit_us = (time.perf_counter() - started) * 1e6
        self.counters['frames'] += sum(new)
        self.counters['duplicates'] += len(new) - sum(new)
        for item, fresh in zip(judged, new, strict=True):
            if fresh:
                self._count_refusals(item)
        if gate.publish_frames(judged, new):
            self._sent = journal.position
        else:
            self._behind = True

    def _count_refusals(self, item: Decisions) -> None:
        for name, n in item.refusals().items():
            self.counters[f'refused.{name}'] += n


def _judge(gate: Gate, items: Sequence[Decisions], fresh: Sequence[bool]) -> list[Decisions]:
    """Return frames as the gate lets them through; one that is known is not judged again."""
    judged = []
    for item, new in zip(items, fresh, strict=True):
        verdict = gate.judge(item) if new else item
        stamp(verdict.stamps, Stage.GATED)
        judged.append(verdict)
    return judged


def _drop_first(queue: deque[Any], taken: Sequence[object]) -> None:
    """Remove what was written; some of it may have been dropped to make room meanwhile."""
    left = {id(item) for item in taken}
    while queue and id(queue[0]) in left:
        queue.popleft()
