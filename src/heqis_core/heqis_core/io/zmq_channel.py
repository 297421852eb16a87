# SPDX-License-Identifier: Apache-2.0
"""One ZeroMQ socket made safe to live with: bounded, closed by default, usable by any thread.

A ZeroMQ socket may be used by one thread at a time: each channel has a lock for that, and waits in
short slices, so that `close` from another thread takes effect at once.
What goes through a channel is `heqis_core.wire`'s affair.
"""

from __future__ import annotations

import errno
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from heqis_core.envelope import ALIGN, MAX_BODY
from heqis_core.errors import LinkError
from heqis_core.io.zmq_security import LinkSecurity, secure_client, secure_server

_SLICE_MS = 100
"""The longest that one call into libzmq waits before it looks whether the channel was closed."""
_OLDEST_PYZMQ = (26, 4)
_MONITOR_IDS = itertools.count()
_HANDSHAKE_FAILURES: dict[int, str] = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): (
        'the peer refused our key: add our public key to its allow-list'
    ),
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): (
        'the handshake failed: only one side uses CURVE keys, or the peer has another key pair'
    ),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): (
        'the handshake failed: only one side uses CURVE keys, or this is no HEQIS port'
    ),
}

Socket = zmq.Socket[bytes]
_SEND, _RECV = int(zmq.SNDTIMEO), int(zmq.RCVTIMEO)
_NOTHING = object()


class Channel:
    """One socket that binds or connects to one endpoint.

    No method raises once the channel stands: a send or receive that fails, or a closed channel,
    answers False or None. Policy when the bound `hwm` is reached: the sender waits until its
    timeout. Each call holds `lock`; a caller with buffers of its own to guard holds it for longer.
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        kind: int,
        endpoint: str,
        *,
        name: str,
        bind: bool,
        hwm: int,
        security: LinkSecurity | None = None,
        max_message: int = MAX_BODY,
    ) -> None:
        """Open the socket; raise LinkError that names the endpoint and what to do."""
        if zmq.pyzmq_version_info() < _OLDEST_PYZMQ:
            raise LinkError(
                f'{name}: pyzmq {zmq.pyzmq_version()} cannot receive into a buffer, 26.4 and '
                'later can: run pip install -r requirements/runtime.txt'
            )
        self.name = name
        self.error = ''
        """The latest fault of this channel; its reader clears it."""
        self.lock = threading.RLock()
        self.closed = False
        self._wait_ms = {_SEND: -1, _RECV: -1}
        self._socket = context.socket(kind)
        self._monitor: Socket | None = None
        self._peer_fault = ''
        try:
            self._configure(endpoint, hwm, max_message)
            if security is not None:
                (secure_server if bind else secure_client)(self._socket, security)
            if bind:
                self._socket.bind(endpoint)
            else:
                self._watch(context)
                self._socket.connect(endpoint)
        except zmq.ZMQError as exc:
            self.close()
            raise LinkError(_open_error(name, endpoint, exc)) from exc
        except LinkError:
            self.close()
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, data: bytes | memoryview, timeout_ms: int) -> bool:
        """Send one part; return False if no peer took it in time."""
        return self._call(self._socket.send, data, _SEND, timeout_ms) is not _NOTHING

    def send_parts(self, parts: Sequence[bytes], timeout_ms: int) -> bool:
        """Send one message of several parts; return False if no peer took it in time."""
        return self._call(self._socket.send_multipart, parts, _SEND, timeout_ms) is not _NOTHING

    def recv_into(self, buffer: memoryview, timeout_ms: int) -> int | None:
        """Receive one part; return its full size, more than the buffer's if it was truncated."""
        size = self._call(self._socket.recv_into, buffer, _RECV, timeout_ms)
        return None if size is _NOTHING else int(size)

    def recv_parts(self, timeout_ms: int) -> list[bytes] | None:
        """Receive one message of any number of parts."""
        parts = self._call(self._socket.recv_multipart, 0, _RECV, timeout_ms)
        return None if parts is _NOTHING else list(parts)

    def peer_fault(self) -> str:
        """Return why a channel that connects reached no peer; empty if nothing is known."""
        with self.lock:
            while self._monitor is not None:
                try:
                    event = self._monitor.recv_multipart(zmq.DONTWAIT)[0]
                except zmq.ZMQError:
                    break
                code = int.from_bytes(event[:2], sys.byteorder)
                self._peer_fault = _HANDSHAKE_FAILURES.get(code, '')
        return self._peer_fault

    def close(self) -> None:
        """Close the socket; a call that waits in another thread returns within 0.1 s."""
        self.closed = True
        with self.lock:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
                self._monitor = None
            self._socket.close(0)

    def _configure(self, endpoint: str, hwm: int, max_message: int) -> None:
        options = {
            zmq.SNDHWM: hwm,
            zmq.RCVHWM: hwm,
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue for a peer that is there, never for one that may come
            zmq.MAXMSGSIZE: max_message,
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 1000,
            zmq.HANDSHAKE_IVL: 5000,
            zmq.HEARTBEAT_IVL: 1000,  # without these a half-open TCP peer stays deaf
            zmq.HEARTBEAT_TIMEOUT: 3000,
            zmq.HEARTBEAT_TTL: 3000,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: 10,
            zmq.TCP_KEEPALIVE_INTVL: 5,
            zmq.TCP_KEEPALIVE_CNT: 3,
            zmq.IPV6: int('[' in endpoint),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        if self._socket.type == zmq.ROUTER:
            # A reply to a peer that has gone is an error that we count, not a silent loss.
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def _watch(self, context: zmq.Context[Socket]) -> None:
        address = f'inproc://heqis-monitor-{next(_MONITOR_IDS)}'
        events = sum(_HANDSHAKE_FAILURES, int(zmq.EVENT_HANDSHAKE_SUCCEEDED))
        self._socket.monitor(address, events)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full one would block the context's I/O thread
        self._monitor.connect(address)

    def _call(
        self, call: Callable[[Any], Any], argument: Any, option: int, timeout_ms: int
    ) -> Any:
        left = timeout_ms
        with self.lock:
            while not self.closed:
                wait = left if left < _SLICE_MS else _SLICE_MS
                if wait != self._wait_ms[option]:
                    self._socket.setsockopt(option, wait)
                    self._wait_ms[option] = wait
                try:
                    return call(argument)
                except zmq.Again:
                    left -= wait
                    if left <= 0:
                        break
                except zmq.ZMQError as exc:
                    self.error = f'{self.name}: {exc}'
                    break
        return _NOTHING


class Inbox:
    """A ring of preallocated, aligned buffers to receive into.

    A buffer is used again only when no array refers to it any more; one that is still in use is
    left to its users and replaced. `counters`: `truncated` (message larger than a buffer: it is
    lost, the buffers grow) and `slots_replaced`.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """Make `slots` buffers of `slot_bytes`; memory is used only as far as messages reach."""
        self.counters = {'truncated': 0, 'slots_replaced': 0}
        self._bytes = slot_bytes
        self._slots = [_slot(slot_bytes) for _ in range(slots)]
        self._at = 0
        self._idle = self._references()

    def recv(self, channel: Channel, timeout_ms: int) -> memoryview | None:
        """Return the next message as a read-only view, or None if none came whole and in time.

        The caller holds the channel's lock until it has made its arrays.
        """
        if self._references() > self._idle:
            # Only then take another: a buffer that is used again at once is still in the cache.
            self._at = (self._at + 1) % len(self._slots)
            if self._references() > self._idle:
                self._slots[self._at] = _slot(self._bytes)
                self.counters['slots_replaced'] += 1
        _, buffer, readable = self._slots[self._at]
        size = channel.recv_into(buffer, timeout_ms)
        if size is None:
            return None
        if size > self._bytes:
            self.counters['truncated'] += 1
            self._bytes = 1 << size.bit_length()
            self._slots = [_slot(self._bytes) for _ in self._slots]
            channel.error = (
                f'{channel.name}: a message of {size} B was lost, the receive buffers were smaller'
            )
            return None
        return readable[:size]

    def _references(self) -> int:
        return sys.getrefcount(self._slots[self._at][0])


def _slot(size: int) -> tuple[np.ndarray[Any, Any], memoryview, memoryview]:
    raw = np.empty(size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    buffer = raw.data[start : start + size]
    return raw, buffer, buffer.toreadonly()


def _open_error(name: str, endpoint: str, exc: zmq.ZMQError) -> str:
    if exc.errno == zmq.EADDRINUSE:
        return (
            f'{name}: {endpoint} is in use by another program (perhaps another HEQIS graph): '
            f'stop it, or choose '
            'other ports for this graph'
        )
    if exc.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return f'{name}: {endpoint} is not an address of this machine; try tcp://127.0.0.1:PORT'
    if exc.errno == errno.EACCES:
        return f'{name}: no permission to open {endpoint}; choose a port above 1023'
    return f'{name}: {endpoint} cannot be opened: {exc}; expected tcp://HOST:PORT'
