# SPDX-License-Identifier: Apache-2.0
"""The socket of a feed: bounded, closed by default, and what is known of those who send."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import zmq

from heqis_core.errors import ConfigError
from heqis_core.io.zmq_channel import Channel
from heqis_core.io.zmq_feed_format import (
    BarRow,
    FeedMessageError,
    Message,
    ReadingRow,
    TickRow,
    decode,
)
from heqis_core.io.zmq_security import AllowList, LinkSecurity, check_endpoints

MOST_BYTES = 1 << 24
"""Of one message; libzmq ends the connection of whoever sends more."""
_MOST_PRODUCERS = 256
_KINDS = {'sub': zmq.SUB, 'pull': zmq.PULL}
_COUNTS = (
    *('messages', 'bad_msgpack', 'bad_fields', 'bad_version', 'bad_parts', 'other_kind'),
    *('lost_messages', 'repeated_messages', 'producer_restarts', 'rows'),
    *('refused', 'handshakes_failed', 'disconnects'),
)
_REFUSED = ('unknown_symbols', 'bad_times')
OnError = Callable[[str], None]
OnRefused = Callable[[str, int, str, str, float], None]
"""Gets symbol, event time, reason, field and value of a row that is not used."""
_Row = TypeVar('_Row', BarRow, ReadingRow, TickRow)


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """Where a feed comes from.

    Attributes:
        endpoint: `tcp://HOST:PORT`; off loopback only with `security`.
        pattern: `pull` (of producers that PUSH: they wait when the queue is full) or `sub` (of
            producers that PUB: they drop, and the gap is counted).
        bind: whether this end binds; else it connects.
        hwm: messages that the queue holds.
        symbols: S names of the bars; of readings, those that are let through (empty: all).
        close_after_s: wait for the missing symbols of an event time, from its first row on.
        max_ahead_s: how far an event time may be ahead of this machine's clock.
        security: CURVE keys.
    """

    endpoint: str
    pattern: str = 'pull'
    bind: bool = True
    hwm: int = 1000
    symbols: tuple[str, ...] = ()
    close_after_s: float = 1.0
    max_ahead_s: float = 60.0
    security: LinkSecurity | None = None


class _Subscriber(Channel):
    def _configure(self, endpoint: str, hwm: int, max_message: int) -> None:
        super()._configure(endpoint, hwm, max_message)
        if self._socket.type == zmq.SUB:
            self._socket.setsockopt(zmq.SUBSCRIBE, b'')


class FeedSocket:
    """The socket of a feed, and what is known of those who send."""

    def __init__(
        self, config: FeedConfig, on_error: OnError | None, on_refused: OnRefused | None
    ) -> None:
        check_endpoints([config.endpoint], config.security)
        if config.pattern not in _KINDS:
            raise ConfigError(f'pattern: {config.pattern!r}; expected {" or ".join(_KINDS)}')
        if len(set(config.symbols)) != len(config.symbols):
            raise ConfigError('symbols: a name is given twice; expected each once')
        self.config = config
        self.counters = dict.fromkeys(_COUNTS, 0)
        self.refused = dict.fromkeys(_REFUSED, 0)
        """Rows that were not used, by reason."""
        self.last_error = ''
        self.closed = threading.Event()
        self._on_error = on_error
        self._on_refused = on_refused
        self._symbols = frozenset(config.symbols)
        self._told: set[str] = set()
        self._producers: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._allow: AllowList | None = None
        self._channel: Channel | None = None

    @property
    def endpoint(self) -> str:
        """Return the endpoint, with the real port where `tcp://127.0.0.1:*` was given."""
        return self._channel.endpoint if self._channel is not None else self.config.endpoint

    def open(self) -> None:
        """Bind or connect; raise LinkError that names the endpoint."""
        self.close()
        self.closed.clear()
        config = self.config
        self._context = zmq.Context()
        try:
            if config.security is not None and config.bind:
                self._allow = AllowList(self._context, config.security.allowed)
            self._channel = _Subscriber(
                self._context,
                _KINDS[config.pattern],
                config.endpoint,
                name='feed',
                bind=config.bind,
                hwm=config.hwm,
                security=config.security,
                max_message=MOST_BYTES,
            )
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns within 0.1 s."""
        self.closed.set()
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._allow is not None:
                self._allow.close()
            if self._context is not None:
                self._context.term()
            self._channel = self._allow = self._context = None

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, None for one that is none, or came before, or too late."""
        channel = self._channel
        if channel is None:
            return None
        parts = channel.recv_parts(max(0, math.ceil(timeout_s * 1000)))
        self._look(channel)
        if parts is None:
            return None
        self.counters['messages'] += 1
        try:
            if len(parts) != 1:
                raise FeedMessageError('bad_parts', f'{len(parts)} parts, expected one')
            message = decode(parts[0])
        except FeedMessageError as error:
            self.counters[error.counter] += 1
            self.tell(error.counter, str(error))
            return None
        return message if self._is_new(message) else None

    def _look(self, channel: Channel) -> None:
        """Take in who was refused and which connections have ended."""
        for kind, text in channel.peer_news():
            self.tell(kind, text)
        self.counters.update(channel.peers.counters)
        allow = self._allow
        if allow is not None:
            for text in allow.news():
                self.tell('refused', text)
            self.counters['refused'] = allow.refused

    def rows(self, found: Sequence[_Row]) -> list[_Row]:
        """Return the rows that have a known symbol and a possible time."""
        symbols = self._symbols
        latest_ns = time.time_ns() + round(self.config.max_ahead_s * 1e9)
        good: list[_Row] = []
        self.counters['rows'] += len(found)
        for row in found:
            if symbols and row.symbol not in symbols:
                self.refuse(row, 'unknown_symbols', 'is not one of those configured')
            elif not 0 < row.event_time_ns <= latest_ns:
                self.refuse(
                    row,
                    'bad_times',
                    f'is not between 1970 and {self.config.max_ahead_s:g} s after now (ns UTC)',
                )
            else:
                good.append(row)
        return good

    def refuse(self, row: BarRow | ReadingRow | TickRow, reason: str, why: str) -> None:
        """Count a row that is not used, say so if it is the first of its kind, and keep it."""
        self.refused[reason] += 1
        when_ns, symbol = row.event_time_ns, row.symbol[:32]
        self.tell(reason, f'{symbol!r} at event_time_ns {when_ns}: {why}')
        if self._on_refused is not None:
            if isinstance(row, BarRow):
                field, value = 'close', row.close
            elif isinstance(row, ReadingRow):
                field, value = row.channel[:32], row.value
            else:
                field, value = 'price', row.price
            number = math.nan if value is None else value
            self._on_refused(symbol, when_ns, reason, field, number)

    def tell(self, kind: str, reason: str) -> None:
        """Keep a fault, and say it if it is the first of its kind."""
        self.last_error = f'feed {self.endpoint}: {reason}'
        if kind not in self._told:
            self._told.add(kind)
            if self._on_error is not None:
                self._on_error(self.last_error)

    def _is_new(self, message: Message) -> bool:
        """Count what is missing before a message; False if it came before."""
        known = self._producers.pop(message.producer, None)
        if known is not None and known[0] == message.epoch and message.seq <= known[1]:
            self._producers[message.producer] = known
            self.counters['repeated_messages'] += 1
            return False
        if known is not None:
            restarted = known[0] != message.epoch
            self.counters['producer_restarts'] += restarted
            expected = 0 if restarted else known[1] + 1
            if message.seq > expected:
                self.counters['lost_messages'] += message.seq - expected
                producer = message.producer[:32]
                self.tell('lost', f'{producer!r}: seq {message.seq} came, {expected} was next')
        # The least recently heard goes first.
        self._producers[message.producer] = message.epoch, message.seq
        if len(self._producers) > _MOST_PRODUCERS:
            del self._producers[next(iter(self._producers))]
        return True
