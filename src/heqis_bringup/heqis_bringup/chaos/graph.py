# SPDX-License-Identifier: Apache-2.0
"""One running graph under watch: its processes, what is heard of it, its journal."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from heqis_bringup.chaos.layout import SUPERVISOR, WATCHED, Layer, Subject, key_of
from heqis_bringup.chaos.record import Key, Record
from heqis_bringup.course import expected_nodes
from heqis_bringup.demo_setup import choose_domain, enter_domain
from heqis_bringup.launch_runner import LaunchRunner
from heqis_core.control import Level
from heqis_core.decision import Action, Decisions
from heqis_core.errors import HeqisError, JournalError
from heqis_core.io.journal import Journal
from heqis_supervisor.rules import load_rules

START_LIMIT_S = 90.0
STEADY_S = 10.5
"""A process that ends sooner after its start is started again later each time."""
TICK_S = 0.02
FRESH_S = 2.0
"""/diagnostics older than this say nothing."""
FLOW_S = 0.5
"""So long without a frame is an interruption."""


class BenchError(HeqisError):
    """The bench cannot do what it was asked to: the graph did not come up, or not back."""


class Stored(NamedTuple):
    """Frames of the journal after a position: their seq, those with signals, the new position."""

    seqs: tuple[int, ...]
    signals: frozenset[Key]
    position: int
    frames: tuple[Decisions, ...]


class Graph:
    """Both boards, running; a context manager that ends every process of them."""

    def __init__(self, layer: Layer, subject: Subject, folder: Path) -> None:
        """Lay the graph out in `folder`; raises ConfigError where that cannot be done."""
        self.folder, self.record, self.subject = folder, Record(), subject
        self._undo = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            self.layout = layer(subject, folder, undo)
            rules = load_rules(self.layout.rules)
            self.rules = rules.processes
            self.nodes = tuple(
                name
                for name in expected_nodes(self.layout.rules)
                if rules.nodes[name].board in self.layout.heard
            )
            self.domain = choose_domain(None)
            enter_domain(self.domain, self.layout.config)
            environ = dict(os.environ)
            if self.layout.prefix is not None:
                environ['AMENT_PREFIX_PATH'] = (
                    f'{self.layout.prefix}{os.pathsep}{environ["AMENT_PREFIX_PATH"]}'
                )
            self._runner = LaunchRunner(
                self.layout.specs, folder / 'log', console=self._said, environ=environ
            )
            self._undo = undo.pop_all()
        specs = zip(self._runner.processes(), self.layout.specs, strict=True)
        self._names = {view.name: key_of(spec) for view, spec in specs}
        self._began: dict[str, list[float]] = {key: [] for key in self._names.values()}

    def __enter__(self) -> Graph:
        """Start it."""
        with ExitStack() as undo:
            undo.push(self._undo)
            undo.enter_context(self._runner)
            # Imported only now: the processes come up meanwhile.
            from heqis_bringup.monitor_node import Monitor

            undo.callback(Monitor(self.layout.namespace, self.domain, self.record).close)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process, the monitor, and what the layout has opened."""
        self._undo.close()

    # --- its processes ---

    @property
    def keys(self) -> tuple[str, ...]:
        """Return `board/process` of every process."""
        return tuple(self._names.values())

    def pid(self, key: str) -> int:
        """Return the pid of a process; BenchError if it is down."""
        for view in self._runner.processes():
            if self._names[view.name] == key and view.pid is not None:
                return view.pid
        raise BenchError(f'{key} does not run: see {self.folder / "log"}')

    def send(self, key: str, number: int) -> None:
        """Send a signal to a process."""
        os.kill(self.pid(key), number)

    def kill(self, key: str) -> None:
        """End a process with SIGKILL and wait until the runner has noticed."""
        before = self.restarts()[key]
        self.send(key, signal.SIGKILL)
        self.wait(lambda: self.restarts()[key] > before, 5, f'{key} does not end')

    def restarts(self) -> dict[str, int]:
        """Return how often the runner has started each process again."""
        return {self._names[view.name]: view.restarts for view in self._runner.processes()}

    def rest_s(self, targets: Collection[str]) -> float:
        """Return how long to wait until the targets may be ended without being held back.

        The runner waits longer for what ends soon after its start, and the supervisor latches
        what starts too often within a time. A new supervisor is patient with the processes it
        watches by their leases until launch has had the time to start everything.
        """
        now_s = time.monotonic()
        waits = [0.0]
        if not set(WATCHED).isdisjoint(targets):
            grace_s = max(rule.respawn_s for rule in self.rules.values()) + 1
            waits.append(self.record.began_s.get(SUPERVISOR, now_s) + grace_s - now_s)
        for key in targets:
            times, rule = self._began[key], self.rules[key]
            if times:
                waits.append(times[-1] + STEADY_S - now_s)
            if len(times) >= rule.restarts_max - 1:
                waits.append(times[1 - rule.restarts_max] + rule.restarts_window_s + 1 - now_s)
        return max(waits)

    def _said(self, name: str, line: str) -> None:
        """Take a remark of the runner; its own thread."""
        who, _, what = line.partition(': ')
        if name == 'runner' and who in self._names:
            key = self._names[who]
            self.record.note('runner', re.split(r' for | \(| with |, |: ', what)[0], key, what)
            if what.startswith('started'):
                self._began.setdefault(key, []).append(time.monotonic())

    # --- how it is ---

    def up(self) -> bool:
        """Whether every node that can be heard is active."""
        return self.record.state.all_active(self.nodes, time.monotonic())

    def well(self) -> bool:
        """Whether it is up, and /diagnostics have nothing to say."""
        fresh = time.monotonic() - self.record.told_s < FRESH_S
        return fresh and self.record.parts.get('graph') == Level.INFO and self.up()

    def flowing(self) -> bool:
        """Whether frames are released just now."""
        return bool(self.record.released(time.monotonic() - FLOW_S))

    def trouble(self) -> str:
        """Return what is not as it should be, for people."""
        now_s, state = time.monotonic(), self.record.state
        nodes = [
            f'{name} {state.nodes[name].state_name(now_s) if name in state.nodes else "not heard"}'
            for name in self.nodes
            if not state.all_active((name,), now_s)
        ]
        said = [f'{part}: {level.name}' for part, level in self.record.parts.items() if level]
        return '; '.join(nodes + said) or ('' if self.flowing() else 'no frame is released')

    def wait(self, so: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until something is so; BenchError says `what` if it is not in time."""
        end_s = time.monotonic() + limit_s
        while not so():
            if time.monotonic() > end_s:
                raise BenchError(f'{what} within {limit_s:.0f} s: {self.trouble()}')
            time.sleep(TICK_S)

    def wait_up(self) -> None:
        """Wait until it is up and frames flow."""
        self.wait(
            lambda: self.well() and self.flowing(), START_LIMIT_S, 'the graph did not come up'
        )

    # --- what it has written ---

    def stored(self, after: int) -> Stored:
        """Return what the journal holds after a position."""
        path = self.layout.journal
        try:
            with Journal.open(path, read_only=True, check=False) as journal:
                frames, position = journal.newer(after, 1_000_000)
        except JournalError as error:
            raise BenchError(str(error)) from error
        keys = (
            (item.stream, item.event_time_ns, item.revision)
            for item in frames
            if np.any(item.action >= Action.BUY)
        )
        seqs = tuple(item.seq for item in frames)
        return Stored(seqs, frozenset(keys), position, tuple(frames))

    def position(self) -> int:
        """Return the position of the newest frame in the journal."""
        with Journal.open(self.layout.journal, read_only=True, check=False) as journal:
            return journal.last_position()

    def counts(self) -> dict[str, int]:
        """Return how many of each the journal holds."""
        with Journal.open(self.layout.journal, read_only=True, check=False) as journal:
            return journal.counts()
