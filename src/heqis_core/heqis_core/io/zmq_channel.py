# SPDX-License-Identifier: Apache-2.0
"""One ZeroMQ socket made safe to live with: bounded, closed by default, usable by any thread.

A ZeroMQ socket may be used by one thread at a time: each channel has a lock for that, and waits in
short slices, so that `close` from another thread takes effect at once.
What goes through a channel is `heqis_core.wire`'s affair.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from heqis_core.errors import LinkError
from heqis_core.io.zmq_security import LinkSecurity, secure_client, secure_server
from heqis_core.io.zmq_watch import PeerWatch

_SLICE_MS = 100
"""The longest that one call into libzmq waits before it looks whether the channel was closed."""
HEARTBEAT_MS, SILENT_MS = 400, 1200
"""Who connects asks every HEARTBEAT_MS; each takes the other for dead after SILENT_MS."""
_OLDEST_PYZMQ = (26, 4)

Socket = zmq.Socket[bytes]
_SEND, _RECV = int(zmq.SNDTIMEO), int(zmq.RCVTIMEO)
_NOBLOCK = int(zmq.NOBLOCK)
_NOTHING = object()


class Channel:
    """One socket that binds or connects to one endpoint.

    No method raises once the channel stands: a send or receive that fails, or a closed channel,
    answers False or None. Policy when the bound `hwm` is reached: the sender waits until its
    timeout. Each call takes `lock`, but not `send` and `recv_into`: their callers have buffers of
    their own to guard, and hold it already.
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
        max_message: int,
        room: int = 1,
        security: LinkSecurity | None = None,
    ) -> None:
        """Open the socket; raise LinkError that names the endpoint and what to do.

        It holds `hwm` messages on their way out, and `room` times as many that have come in.
        """
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
        # Looked up once; without the wrapper of `zmq.Socket.send`, whose further arguments are for
        # kinds of sockets that no channel has.
        self._send = super(zmq.Socket, self._socket).send
        self._recv_into = self._socket.recv_into
        self.peers = PeerWatch(context, self._socket, bind)
        try:
            self._configure(endpoint, hwm, max_message)
            self._socket.setsockopt(zmq.RCVHWM, hwm * room)
            if security is not None:
                (secure_server if bind else secure_client)(self._socket, security)
            if bind:
                # The peer asks, and says for how long it may be silent. libzmq 4.3.5 ends the
                # process if it has to ask over a connection that has ended meanwhile, while
                # messages from it wait because the queue is full.
                self._socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
                self._socket.bind(endpoint)
            else:
                self._socket.connect(endpoint)
        except zmq.ZMQError as exc:
            self.close()
            raise LinkError(_open_error(name, endpoint, exc)) from exc
        except LinkError:
            self.close()
            raise
        self._given = endpoint
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, data: bytes | memoryview, timeout_ms: int) -> bool:
        """Send one part; return False if no peer took it in time. The caller holds `lock`."""
        try:
            self._send(data, _NOBLOCK)
        except zmq.ZMQError:  # full, nobody there, or closed
            return self._call(self._send, data, _SEND, timeout_ms) is not _NOTHING
        return True

    def send_parts(self, parts: Sequence[bytes], timeout_ms: int) -> bool:
        """Send one message of several parts; return False if no peer took it in time."""
        return self._call(self._socket.send_multipart, parts, _SEND, timeout_ms) is not _NOTHING

    def recv_into(self, buffer: memoryview, timeout_ms: int) -> int | None:
        """Receive one part; return its full size, more than the buffer's if it was truncated.

        The caller holds `lock`.
        """
        if timeout_ms >= _SLICE_MS == self._wait_ms[_RECV]:
            try:
                return self._recv_into(buffer)
            except zmq.ZMQError:  # nothing came, or closed
                timeout_ms -= _SLICE_MS
        size = self._call(self._recv_into, buffer, _RECV, timeout_ms)
        return None if size is _NOTHING else int(size)

    def recv_parts(self, timeout_ms: int) -> list[bytes] | None:
        """Receive one message of any number of parts."""
        parts = self._call(self._socket.recv_multipart, 0, _RECV, timeout_ms)
        return None if parts is _NOTHING else list(parts)

    def peer_fault(self) -> str:
        """Return why the latest peer was not reached; empty if nothing is known."""
        self._mend()
        return self.peers.fault

    def peer_news(self) -> list[tuple[str, str]]:
        """Return kind and text of what has become of peers since the last call."""
        self._mend()
        return self.peers.news()

    def close(self) -> None:
        """Close the socket; a call that waits in another thread returns within 0.1 s."""
        self.closed = True
        with self.lock:
            self.peers.close()
            self._socket.close(0)

    def _configure(self, endpoint: str, hwm: int, max_message: int) -> None:
        options = {
            zmq.SNDHWM: hwm,
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,  # queue for a peer that is there, never for one that may come
            zmq.MAXMSGSIZE: max_message,
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 1000,
            zmq.HANDSHAKE_IVL: 5000,
            # Without these a half-open TCP peer stays deaf. It is noticed after their sum at most;
            # so is a receiver that reads nothing for as long while its queue is full.
            zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: SILENT_MS,
            zmq.HEARTBEAT_TTL: SILENT_MS,
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

    def _mend(self) -> None:
        """Connect again where libzmq has given up; not while the socket is in use."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if not self.closed and self.peers.given_up():
                with contextlib.suppress(zmq.ZMQError):
                    self._socket.disconnect(self.endpoint)
                self._socket.connect(self._given)
        finally:
            self.lock.release()

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
