# SPDX-License-Identifier: Apache-2.0
"""A producer of made-up bars for a gateway's feed (docs/feed.md), which the bench can disturb."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import zmq

from heqis_core.errors import ConfigError

BLOCKS = 5_000_000
"""Event times that fit between the end of the training data and now."""
LONGEST_STEP_NS = 60_000_000_000
_MOVE, _MOST = 0.015, 0.08
"""Standard deviation of a bar's log return, as of a daily one, and the most it moves."""
_WAIT_MS = 100


class BarFeed:
    """Sends blocks of all symbols to an endpoint, from a thread of its own.

    Attributes:
        symbols: whose bars they are.
        pace: blocks a second; 0 = as fast as they are taken.
        poison: values for the close of the first symbols, such as NaN; empty for sound bars.
        sent: blocks that were handed to the socket.
        step_ns, event_ns: between two event times, and the last one.
        poisoned: event times whose first symbols were poisoned, first and last.
    """

    def __init__(
        self, endpoint: str, symbols: Sequence[str], after_ns: int, pace: float, seed: int
    ) -> None:
        """Connect and begin; event times come after `after_ns`.

        Raises ConfigError if there is too little room between that time and now.
        """
        self.step_ns = min(LONGEST_STEP_NS, (time.time_ns() - after_ns) // BLOCKS)
        if self.step_ns < 1_000_000:
            raise ConfigError(
                'the training data of the bundle end too late: live bars must lie between their '
                'end and now; take a bundle with older data'
            )
        self.pace, self.sent = pace, 0
        self.poison: tuple[float, ...] = ()
        self.poisoned = (0, 0)
        self.symbols = tuple(symbols)
        self.event_ns = after_ns
        self._draw = np.random.default_rng(seed)
        self._home = self._close = 20.0 + 5.0 * self._draw.random(len(symbols))
        self._flowing, self._closing = threading.Event(), threading.Event()
        self._flowing.set()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 100)
        self._socket.connect(endpoint)
        self._epoch = time.time_ns()
        self._thread = threading.Thread(target=self._run, name='bar_feed', daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Send nothing more."""
        self._flowing.clear()

    def resume(self) -> None:
        """Go on where it stopped."""
        self._flowing.set()

    def close(self) -> None:
        """End the thread and the socket."""
        self._closing.set()
        self._flowing.set()
        self._thread.join(5.0)
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._closing.is_set():
            if not self._flowing.wait(0.1):
                continue
            message = self._block()
            while not self._closing.is_set():
                if self._socket.poll(_WAIT_MS, zmq.POLLOUT):
                    self._socket.send(message)
                    self.sent += 1
                    break
            if self.pace:
                due_s = max(due_s + 1 / self.pace, time.monotonic() - 1.0)
                self._closing.wait(max(0.0, due_s - time.monotonic()))

    def _block(self) -> bytes:
        self.event_ns += self.step_ns
        before = self._close
        # Pulled to where they began: prices without end must stay prices.
        moves = _MOVE * self._draw.standard_normal(len(before)) - 0.02 * np.log(
            before / self._home
        )
        self._close = before * np.exp(np.clip(moves, -_MOST, _MOST))
        closes = self._close.tolist()
        if self.poison:
            closes[: len(self.poison)] = self.poison
            self.poisoned = (self.poisoned[0] or self.event_ns, self.event_ns)
        rows: list[dict[str, Any]] = [
            {
                'event_time_ns': self.event_ns,
                'symbol': symbol,
                'open': first,
                'high': max(first, last) * 1.0001,
                'low': min(first, last) * 0.9999,
                'close': close,
                'volume': 1200.0,
                'amount': 1200.0 * first,
            }
            for symbol, first, last, close in zip(
                self.symbols, before.tolist(), self._close.tolist(), closes, strict=True
            )
        ]
        return msgspec.msgpack.encode(
            {
                'kind': 'bars',
                'version': 1,
                'producer': 'chaos',
                'epoch': self._epoch,
                'seq': self.sent,
                'rows': rows,
                'complete': True,
            }
        )
