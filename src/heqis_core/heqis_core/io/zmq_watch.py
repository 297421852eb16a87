# SPDX-License-Identifier: Apache-2.0
"""What becomes of the peers of one ZeroMQ socket: refused, let in, gone. Read from its monitor."""

from __future__ import annotations

import itertools
import sys
import threading
import time

import zmq

_WATCH_IDS = itertools.count()
_SUCCEEDED, _RETRIED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_CONNECT_RETRIED)
_GIVEN_UP_S = 1.0
"""libzmq says that it tries again at once, or not at all; a refused peer tries this often."""
_REFUSED_US: dict[int, str] = {
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
_WE_REFUSED: dict[int, str] = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): 'a peer was refused: its key is not on the allow-list',
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): (
        'a peer was refused: it ended before it was let in, or no authenticator answers for it'
    ),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): (
        'a peer was refused: it uses no CURVE key, another key than ours, or speaks no ZeroMQ'
    ),
}
_ENDED_TEXT = (
    'a connection has ended: the peer closed it, went silent, or sent what no peer of this link '
    'sends'
)


class PeerWatch:
    """What the monitor of one socket says of its peers: refused, and connections that ended.

    Any thread may ask; none waits. `counters`: `handshakes_failed` (of peers that were refused or
    that refused us, each try; with keys also messages that were altered on the way) and
    `disconnects` (of peers that were let in).
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], bind: bool
    ) -> None:
        """Watch `socket`, which must not be bound or connected yet."""
        self.counters = {'handshakes_failed': 0, 'disconnects': 0}
        self.fault = ''
        """Why the latest peer was not reached; empty once one is."""
        self._texts = _WE_REFUSED if bind else _REFUSED_US
        self._failing = False
        self._connects, self._ended_s = not bind, 0.0
        self._news: dict[str, str] = {}
        self._lock = threading.Lock()
        self._socket, self._monitor = socket, context.socket(zmq.PAIR)
        address = f'inproc://heqis-watch-{next(_WATCH_IDS)}'
        socket.monitor(
            address, sum(self._texts) | _SUCCEEDED | _RETRIED | int(zmq.EVENT_DISCONNECTED)
        )
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full one would block the context's I/O thread
        self._monitor.connect(address)

    def look(self) -> None:
        """Take in what the monitor has seen; it has no bound, so that somebody must look."""
        with self._lock:
            while not self._monitor.closed:
                try:
                    event = self._monitor.recv_multipart(zmq.DONTWAIT)[0]
                except zmq.ZMQError:
                    break
                self._take(int.from_bytes(event[:2], sys.byteorder))

    def news(self) -> list[tuple[str, str]]:
        """Look; return kind and text of what has happened since the last call, each kind once."""
        self.look()
        news, self._news = self._news, {}
        return list(news.items())

    def given_up(self) -> bool:
        """Return whether libzmq does not try to connect again, once for each time that it gave up.

        It does so after a refused key, and after bytes that are no ZMTP.
        """
        self.look()
        ended_s = self._ended_s
        if not (self._connects and ended_s) or time.monotonic() - ended_s < _GIVEN_UP_S:
            return False
        self._ended_s = 0.0
        return True

    def close(self) -> None:
        """Stop watching; the caller may use the watched socket now."""
        with self._lock:
            if not self._monitor.closed:
                self._socket.disable_monitor()
                self._monitor.close(0)

    def _take(self, code: int) -> None:
        if code in (_SUCCEEDED, _RETRIED):
            self._ended_s = 0.0
            if code == _SUCCEEDED:
                self.fault = ''
        elif code in self._texts:
            self._failing = True
            self.counters['handshakes_failed'] += 1
            self.fault = self._news['handshake'] = self._texts[code]
        else:
            self._ended_s = time.monotonic()
            if not self._failing:
                self.counters['disconnects'] += 1
                self._news['disconnect'] = _ENDED_TEXT
            self._failing = False
