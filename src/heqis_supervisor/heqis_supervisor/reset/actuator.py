# SPDX-License-Identifier: Apache-2.0
"""Carries resets out: one thread that makes each durable first and then lets its driver act.

Nobody else in this machine's state folder may: a file lock sees to that.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from heqis_core.errors import ConfigError, ResetError
from heqis_core.io.file_lock import HeldError, hold_file
from heqis_supervisor.facts import Pulsed, Reset, ResetMind
from heqis_supervisor.reset.drivers import Driver
from heqis_supervisor.reset.ledger import Ledger
from heqis_supervisor.reset.rules import ResetRule

RETRY_S = 2.0
"""Time between two tries to write the record, or to let a board go."""
LOOK_S = 0.2

Orders = tuple[Mapping[str, ResetMind], tuple[Reset, ...]]


class Actuator:
    """Owns the drivers and the record. `put` and `take` belong to the policy's thread."""

    def __init__(
        self,
        folder: Path,
        boot_id: str,
        rules: Mapping[str, ResetRule],
        drivers: Mapping[str, Driver],
    ) -> None:
        """Become the one who resets; raise ConfigError if another process is, naming it."""
        self.error = ''
        """What cannot be done now and is tried again; empty if nothing."""
        self._rules, self._drivers = rules, drivers
        self._ledger = Ledger(folder, boot_id)
        try:
            self._lock = hold_file(folder / 'resets.lock')
        except HeldError as error:
            raise ConfigError(
                f'{folder}: process {error.owner} resets boards from here; only one may: end it'
            ) from None
        except OSError as error:
            raise ConfigError(
                f'{folder}: {error.strerror or error}; give state_dir a folder that can be written'
            ) from None
        self._put: object = None
        self._forget()

    def close(self) -> None:
        """Let another process reset; `run` must have ended."""
        self._lock.close()

    def begin(self) -> dict[str, ResetMind]:
        """Return what is remembered, and forget orders of before; `run` must not be running."""
        self._forget()
        return self._ledger.read(self._rules)

    def put(self, minds: Mapping[str, ResetMind], orders: tuple[Reset, ...]) -> None:
        """Hand what is known over, and what is to be done; what did not change is not written."""
        lasting = {
            board: (m.boot_id, m.begun_s, m.escalated, m.latched, m.running)
            for board, m in minds.items()
        }
        if orders or lasting != self._put:
            self._put = lasting
            self._orders.put((minds, orders))

    def take(self) -> tuple[Pulsed, ...]:
        """Return what became of orders since the last call."""
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        return tuple(found)

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop: the body of the thread."""
        # A process that was killed in the middle of a reset may have left the board held.
        held = set(self._drivers)
        unwritten: Mapping[str, ResetMind] | None = None
        retry_s = 0.0
        while not stop.is_set():
            if (held or unwritten is not None) and time.monotonic() >= retry_s:
                unwritten, problem = self._write(unwritten)
                self.error = '; '.join(filter(None, (problem, self._let_go(held))))
                retry_s = time.monotonic() + RETRY_S
            try:
                minds, orders = self._orders.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            unwritten, self.error = self._write(minds)
            retry_s = 0.0 if held else time.monotonic() + RETRY_S
            for order in orders:
                self._answers.put(self._carry_out(order, self.error, held, stop))
        self._write(unwritten)

    def _forget(self) -> None:
        self._orders: queue.SimpleQueue[Orders] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Pulsed] = queue.SimpleQueue()
        self._put = None

    def _write(
        self, minds: Mapping[str, ResetMind] | None
    ) -> tuple[Mapping[str, ResetMind] | None, str]:
        if minds is None:
            return None, ''
        try:
            self._ledger.write(minds)
        except OSError as error:
            return minds, f'{self._ledger.path} cannot be written: {error.strerror or error}'
        return None, ''

    def _carry_out(
        self, order: Reset, problem: str, held: set[str], stop: threading.Event
    ) -> Pulsed:
        if problem:
            return Pulsed(order.id, False, f'{problem}: nothing was done')
        if order.soft:
            return Pulsed(order.id, True, 'is on the record')
        board, rule = order.board, self._rules[order.board]
        held.add(board)
        try:
            self._drivers[board].pulse(stop)
        except ResetError as error:
            return Pulsed(order.id, False, str(error))
        held.discard(board)
        return Pulsed(order.id, True, str(rule))

    def _let_go(self, held: set[str]) -> str:
        problems = []
        for board in sorted(held):
            try:
                self._drivers[board].rest()
                held.discard(board)
            except ResetError as error:
                problems.append(f'board {board} may be held in reset: {error}')
        return '; '.join(problems)
