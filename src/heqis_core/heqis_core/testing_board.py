# SPDX-License-Identifier: Apache-2.0
"""A compute board for tests of the gateway's side: a thread, or a process that can be killed.

    python -m heqis_core.testing_board BUNDLE FRAMES DECISIONS REQUESTS

It is the core of a compute node without its package, which a gateway's tests may not import. The
process ends by itself when the one that started it has ended. Nothing outside a test imports this.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from heqis_core.bundle import Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions
from heqis_core.intake import Delivery, Intake
from heqis_core.io.ort_engine import open_engine
from heqis_core.io.zmq_link import ComputeLink

POLL_MS = 20
SEND_MS = 2000
REQUEST_MS = 500


class PlayingBoard:
    """Decides what comes in order, asks for what is missing, answers again what comes again."""

    def __init__(self, bundle: Bundle, endpoints: Sequence[str]) -> None:
        """Open a link with the three endpoints, in the order of `ComputeLink`."""
        self.bundle = bundle
        self.link = ComputeLink(*endpoints)
        self.intake = Intake(bundle.manifest.window.horizon)
        self.awake = threading.Event()
        """Cleared: the board hangs, as one that was stopped in mid-work."""
        self.awake.set()
        self.decided: list[int] = []
        self.warmed = 0
        self._decider: Decider | None = None
        self._said: deque[Decisions] = deque(maxlen=512)

    def step(self) -> None:
        """Wait for a frame for a short while, and do what it asks for."""
        frame = self.link.recv(POLL_MS)
        self.awake.wait()
        if frame is not None:
            deliveries, repeat = self.intake.offer(frame)
            self._work(deliveries)
            for said in self._said:
                if said.seq == repeat:
                    self.link.send_decisions(said, SEND_MS)
        if (question := self.intake.wanted()) is not None:
            reply = self.link.request(*question, timeout_ms=REQUEST_MS)
            if reply is not None:
                self._work(self.intake.answer(reply))

    def _work(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            frame = delivery.frame
            if self._decider is None:
                self._decider = Decider.of(self.bundle, frame.symbols, open_engine)
            if delivery.restart:
                self._decider.restart()
            if delivery.after_hole:
                self._decider.hole(frame.seq)
            if not delivery.decide:
                self._decider.warm(frame)
                self.warmed += 1
                continue
            decisions, _ = self._decider.decide(frame)
            self.decided.append(frame.seq)
            self._said.append(decisions)
            self.link.send_decisions(decisions, SEND_MS)


@contextmanager
def playing(bundle: Bundle, endpoints: Sequence[str]) -> Iterator[PlayingBoard]:
    """Run a board in a thread."""
    board, stop = PlayingBoard(bundle, endpoints), threading.Event()

    def run() -> None:
        while not stop.is_set():
            board.step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        board.awake.set()
        thread.join(10)
        board.link.close()
        assert not thread.is_alive()


def main() -> None:
    """Run a board until it is killed, or its parent has ended."""
    parent = os.getppid()
    board = PlayingBoard(Bundle.load(Path(sys.argv[1])), sys.argv[2:])
    print('listens', flush=True)
    while os.getppid() == parent:
        board.step()


if __name__ == '__main__':
    main()
