# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy on loopback that harms what ZeroMQ peers say to each other.

It reads just enough ZMTP 3 (https://rfc.zeromq.org/spec/23) to act on whole messages; greeting and
commands (handshake, heartbeats) pass as they are. Tests
and `heqis chaos` put it between the boards; no part of a graph imports it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum

_GREETING = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_VERSION_AT = 8
"""Where a HEQIS message has the version of its format."""
_TICK_S = 0.02


class Fault(Enum):
    """What can happen to one message."""

    DROP = 'drop'
    DOUBLE = 'double'
    REORDER = 'reorder'
    """Goes out after the next message; the last one of a connection is lost."""
    TRUNCATE = 'truncate'
    FLIP = 'flip'
    """One bit of the payload."""
    VERSION = 'version'
    """Another version of the message format."""
    GARBLE = 'garble'
    """The frame header says an impossible length: the receiver ends the connection."""
    CUT = 'cut'
    """The connection is reset within the message."""


MILD = (Fault.DROP, Fault.DOUBLE, Fault.REORDER, Fault.TRUNCATE, Fault.FLIP, Fault.VERSION)
"""What leaves the connection standing."""

Plan = Callable[[int], 'Fault | None']
"""Gets the number of a message of its direction, and says what happens to it."""


def seeded(seed: int, rate: float, faults: Sequence[Fault] = tuple(Fault)) -> Plan:
    """Return a plan that harms each message with probability `rate`; one seed, one plan."""

    def plan(index: int) -> Fault | None:
        draw = random.Random(f'{seed} {index}')
        return draw.choice(list(faults)) if draw.random() < rate else None

    return plan


class FaultProxy:
    """Forwards every connection to `target` and back.

    Faults hit what flows towards the target (`forth`) and what comes back (`back`); both plans may
    be changed while it runs, None harms nothing. `counts` says what was done.
    """

    def __init__(
        self, target: str, forth: Plan | None = None, back: Plan | None = None, seed: int = 0
    ) -> None:
        """Listen on a free port; `target` is tcp://HOST:PORT, and need not be there yet."""
        host, _, port = target.removeprefix('tcp://').rpartition(':')
        self._target = host, int(port)
        self.forth, self.back = forth, back
        self.counts: Counter[Fault] = Counter()
        self._numbers = {True: itertools.count(), False: itertools.count()}
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._flowing, self._closing = threading.Event(), threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(('127.0.0.1', 0))
        self._listener.settimeout(_TICK_S)
        self.endpoint = f'tcp://127.0.0.1:{self._listener.getsockname()[1]}'
        self._start(self._accept)

    def freeze(self) -> None:
        """Forward nothing more, in both directions, and close nothing: a half-open connection."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward again what has waited."""
        self._flowing.set()

    def reset(self) -> None:
        """End every connection with a TCP reset."""
        with self._lock:
            for end in self._open:
                _end_hard(end)

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closing.set()
        self._flowing.set()
        self.reset()
        for thread in list(self._threads):
            thread.join(10)
        self._listener.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(_TICK_S)
            with self._lock:
                self._open |= {client, server}
            self._start(self._pump, client, server, True)
            self._start(self._pump, server, client, False)

    def _pump(self, source: socket.socket, sink: socket.socket, forth: bool) -> None:
        """Carry one direction of one connection until an end of it is gone."""
        held: bytes | None = None
        with contextlib.suppress(OSError, EOFError):
            for _ in range(_GREETING):  # byte by byte: each peer waits for parts of the other's
                self._write(sink, self._read(source, 1))
            while True:
                message = self._message(source)
                if message[0] & _COMMAND:
                    self._write(sink, message)
                    continue
                fault = self._fault(forth)
                if fault is Fault.REORDER and held is None:
                    held = message
                    continue
                for part in self._harmed(message, fault):
                    self._write(sink, part)
                if fault is Fault.CUT:
                    _end_hard(source)
                    _end_hard(sink)
                if held is not None:
                    self._write(sink, held)
                    held = None
        with self._lock:
            for end in (source, sink):
                end.close()
                self._open.discard(end)

    def _fault(self, forth: bool) -> Fault | None:
        with self._lock:
            plan = self.forth if forth else self.back
            fault = plan(next(self._numbers[forth])) if plan is not None else None
            if fault is not None:
                self.counts[fault] += 1
        return fault

    def _harmed(self, message: bytes, fault: Fault | None) -> list[bytes]:
        head, payload = _split(message)
        flags = head[0] & ~_LONG
        if fault is Fault.DROP:
            return []
        if fault is Fault.DOUBLE:
            return [message, message]
        if fault is Fault.TRUNCATE:
            return [_frame(flags, payload[: self._draw.randrange(max(1, len(payload)))])]
        if fault is Fault.FLIP and payload:
            harmed = bytearray(payload)
            harmed[self._draw.randrange(len(harmed))] ^= 1 << self._draw.randrange(8)
            return [_frame(flags, bytes(harmed))]
        if fault is Fault.VERSION and len(payload) > _VERSION_AT:
            harmed = bytearray(payload)
            harmed[_VERSION_AT] += 64
            return [_frame(flags, bytes(harmed))]
        if fault is Fault.GARBLE:
            return [struct.pack('>BQ', flags | _LONG, 1 << 62), payload]
        if fault is Fault.CUT:
            return [message[: len(message) // 2]]
        return [message]

    def _message(self, source: socket.socket) -> bytes:
        """Return the next frame; the links send one-part messages, so it is a whole message."""
        flags = self._read(source, 1)
        length = self._read(source, 8 if flags[0] & _LONG else 1)
        return flags + length + self._read(source, int.from_bytes(length, 'big'))

    def _read(self, source: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait()
            try:
                got = source.recv(min(size - len(data), 1 << 20))
            except TimeoutError:
                continue
            if not got:
                raise EOFError
            data += got
        return bytes(data)

    def _write(self, sink: socket.socket, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait()
            with contextlib.suppress(TimeoutError):
                left = left[sink.send(left) :]

    def _wait(self) -> None:
        self._flowing.wait()
        if self._closing.is_set():
            raise EOFError


def _split(message: bytes) -> tuple[bytes, bytes]:
    size = 9 if message[0] & _LONG else 2
    return message[:size], message[size:]


def _frame(flags: int, payload: bytes) -> bytes:
    if len(payload) > 255:
        return struct.pack('>BQ', flags | _LONG, len(payload)) + payload
    return struct.pack('>BB', flags, len(payload)) + payload


def _end_hard(end: socket.socket) -> None:
    """End a connection; whoever reads it closes it next, with a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        end.shutdown(socket.SHUT_RD)
