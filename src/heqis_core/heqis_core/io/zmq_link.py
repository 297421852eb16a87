# SPDX-License-Identifier: Apache-2.0
"""The ZeroMQ link: frames one way, decisions back, and requests for missed frames.

    gateway                                   compute
    frames     PUSH   connects  ───────────▶  PULL   binds
    decisions  PULL   binds     ◀───────────  PUSH   connects
    requests   ROUTER binds     ◀──────────▶  DEALER connects

Threads: each socket has a lock, so every method may be called from any thread, and two methods
that use different sockets never wait for one another (`send`, `recv_decisions` and `serve`;
`recv`, `send_decisions` and `request`). `close` may come from any thread and makes a waiting call
return within a tenth of a second. Losses: each queue holds at most `hwm` messages (`ROOM` times
that where a socket binds and receives) and its policy is to block until the timeout; nothing is
dropped by a standing connection. What a broken connection takes with it shows as `missing` on the
other side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import zmq

from heqis_core import wire
from heqis_core.decision import Decisions
from heqis_core.envelope import MAX_BODY
from heqis_core.errors import LinkError, WireError
from heqis_core.frame import FeatureFrame, Stage
from heqis_core.io.zmq_channel import Channel
from heqis_core.io.zmq_inbox import Inbox
from heqis_core.io.zmq_security import AllowList, LinkSecurity, check_endpoints
from heqis_core.link import MissedReply, MissedRequest

OnError = Callable[[str], None]
ROOM = 8
"""How many times `hwm` a socket that binds takes in. libzmq 4.3.5 ends the process when a queue
that was full is read again after its connection has ended, if the peer had asked whether we live:
so the queue must not fill before a peer gives up a connection on which nobody answers."""
_SENT, _RECEIVED = int(Stage.SENT), int(Stage.RECEIVED)
_REQUEST_BYTES = 4096
_REPLY_BYTES = 1 << 26
_REPLY_TIMEOUT_MS = 1000


class _End:
    """What both ends share: context, channels, allow-list, counters and the last error."""

    def __init__(
        self, endpoints: dict[str, str], security: LinkSecurity | None, on_error: OnError | None
    ) -> None:
        check_endpoints(endpoints.values(), security)
        self._security = security
        self._on_error = on_error
        self._told: set[str] = set()
        self._last_error = ''
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._channels: list[Channel] = []
        self._counts: list[dict[str, int]] = []
        self._allow = AllowList(self._context, security.allowed) if security is not None else None
        self._close_lock = threading.Lock()

    @property
    def counters(self) -> dict[str, int]:
        """Return a snapshot of the counters; docs/wire-format.md says what each one means."""
        self._look()
        total: dict[str, int] = {'refused': self._allow.refused if self._allow is not None else 0}
        for counts in self._counts:
            for name, value in counts.items():
                total[name] = total.get(name, 0) + value
        return total

    @property
    def last_error(self) -> str:
        """Return the most recent fault as one line; empty if there was none."""
        self._look()
        return self._last_error

    @property
    def endpoints(self) -> dict[str, str]:
        """Return the endpoints by name, with the real port where `tcp://127.0.0.1:*` was given."""
        return {channel.name: channel.endpoint for channel in self._channels}

    @property
    def closed(self) -> bool:
        """Return whether `close` was called."""
        return self._context.closed

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns empty-handed."""
        with self._close_lock:
            for channel in self._channels:
                channel.close()
            if self._allow is not None:
                self._allow.close()
                self._allow = None
            self._context.term()

    def _open(
        self, kind: int, name: str, endpoint: str, bind: bool, hwm: int, max_message: int
    ) -> Channel:
        try:
            channel = Channel(
                self._context, kind, endpoint,
                name=name, bind=bind, hwm=hwm, security=self._security, max_message=max_message,
                room=ROOM if bind else 1,
            )  # fmt: skip
        except LinkError:
            self.close()
            raise
        self._channels.append(channel)
        self._counts.append(channel.peers.counters)
        return channel

    def _count(self, *names: str) -> dict[str, int]:
        counts = dict.fromkeys(names, 0)
        self._counts.append(counts)
        return counts

    def _nothing(self, channel: Channel) -> None:
        """Say why a receive came back empty-handed, if there was a fault."""
        self._look()
        if channel.error:
            self._fault('receive', channel.error)
            channel.error = ''

    def _bad(self, channel: Channel, counts: dict[str, int], exc: WireError) -> None:
        counts['bad'] += 1
        self._fault(f'bad {channel.name}', f'{channel.name}: malformed message: {exc}')

    def _send(
        self, channel: Channel, counts: dict[str, int], message: memoryview, timeout_ms: int
    ) -> bool:
        if channel.send(message, timeout_ms):
            counts['sent'] += 1
            counts['sent_bytes'] += len(message)
            return True
        counts['send_timeouts'] += 1
        self._unsent(channel)
        return False

    def _unsent(self, channel: Channel) -> None:
        self._look()
        reason = channel.peer_fault()
        if reason:
            self._last_error = f'{channel.name}: {channel.endpoint}: {reason}'
        else:
            self._last_error = (
                f'{channel.name}: no peer at {channel.endpoint} took a message in time'
            )

    def _look(self) -> None:
        """Say what monitors and allow-list have seen since the last look."""
        for channel in self._channels:
            for kind, text in channel.peer_news():
                where = f'{channel.name}: {channel.endpoint}'
                self._fault(f'{kind} {channel.name}', f'{where}: {text}')
        allow = self._allow
        for text in allow.news() if allow is not None else ():
            self._fault('allow-list', text)

    def _fault(self, kind: str, text: str) -> None:
        self._last_error = text
        if kind not in self._told:
            self._told.add(kind)
            if self._on_error is not None:
                self._on_error(text)


class GatewayLink(_End):
    """The gateway's end: sends frames, receives decisions, answers for missed frames."""

    def __init__(
        self,
        frames: str = 'tcp://127.0.0.1:5555',
        decisions: str = 'tcp://127.0.0.1:5556',
        requests: str = 'tcp://127.0.0.1:5557',
        *,
        security: LinkSecurity | None = None,
        hwm: int = 64,
        slots: int = 32,
        slot_bytes: int = 1 << 20,
        on_error: OnError | None = None,
    ) -> None:
        """Connect to `frames` and bind `decisions` and `requests`.

        `on_error` gets each kind of fault once, as one line. Raises LinkError that names the
        endpoint or key file.
        """
        super().__init__(
            {'frames': frames, 'decisions': decisions, 'requests': requests}, security, on_error
        )
        self._frames = self._open(zmq.PUSH, 'frames', frames, False, hwm, _REQUEST_BYTES)
        self._decisions = self._open(zmq.PULL, 'decisions', decisions, True, hwm, MAX_BODY)
        self._requests = self._open(zmq.ROUTER, 'requests', requests, True, hwm, _REQUEST_BYTES)
        self._inbox = Inbox(slots, slot_bytes)
        self._encoder, self._decoder = wire.Encoder(), wire.Decoder()
        self._out = self._count('sent', 'sent_bytes', 'send_timeouts')
        self._in = self._count('bad')
        self._served = self._count('requests', 'replies_lost', 'bad')
        self._counts.append(self._inbox.counters)

    def send(self, frame: FeatureFrame, timeout_ms: int) -> bool:
        """Stamp SENT and hand one frame over; return False, counted, if no peer took it in time.

        Raises WireError that names the tensor or field if the frame does not fit the wire format.
        """
        with self._frames.lock:
            frame.stamps[_SENT] = time.time_ns()
            message = self._encoder.frame(frame)
            return self._send(self._frames, self._out, message, timeout_ms)

    def recv_decisions(self, timeout_ms: int) -> Decisions | None:
        """Return the next decisions, or None if none came in time or they were malformed."""
        with self._decisions.lock:
            message = self._inbox.recv(self._decisions, timeout_ms)
            if message is None:
                self._nothing(self._decisions)
                return None
            try:
                return self._decoder.decisions(message)
            except WireError as exc:
                self._bad(self._decisions, self._in, exc)
                return None

    def serve(
        self, handler: Callable[[MissedRequest], MissedReply], timeout_ms: int = 100
    ) -> bool:
        """Answer at most one request for missed frames; return whether one was answered.

        A reply carries as many of its frames as fit into 64 MiB; the other end asks again for the
        rest. What `handler` raises comes out of this call.
        """
        with self._requests.lock:
            parts = self._requests.recv_parts(timeout_ms)
            if parts is None:
                return False
            try:
                if len(parts) not in (2, 3):  # a REQ socket puts an empty part before its message
                    raise WireError(f'{len(parts)} parts, expected an identity and one message')
                request, request_id = wire.decode_request(parts[-1])
            except WireError as exc:
                self._bad(self._requests, self._served, exc)
                return False
            self._served['requests'] += 1
            reply = wire.encode_reply(handler(request), request_id, _REPLY_BYTES)
            if not self._requests.send_parts([*parts[:-1], reply], _REPLY_TIMEOUT_MS):
                self._served['replies_lost'] += 1
                return False
            return True


class ComputeLink(_End):
    """The compute board's end: receives frames, sends decisions, asks for missed frames."""

    def __init__(
        self,
        frames: str = 'tcp://127.0.0.1:5555',
        decisions: str = 'tcp://127.0.0.1:5556',
        requests: str = 'tcp://127.0.0.1:5557',
        *,
        security: LinkSecurity | None = None,
        hwm: int = 64,
        slots: int = 64,
        slot_bytes: int = 1 << 21,
        on_error: OnError | None = None,
    ) -> None:
        """Bind `frames` and connect to `decisions` and `requests`.

        `on_error` gets each kind of fault once, as one line. Raises LinkError that names the
        endpoint or key file.
        """
        super().__init__(
            {'frames': frames, 'decisions': decisions, 'requests': requests}, security, on_error
        )
        self._frames = self._open(zmq.PULL, 'frames', frames, True, hwm, MAX_BODY)
        self._decisions = self._open(zmq.PUSH, 'decisions', decisions, False, hwm, _REQUEST_BYTES)
        self._requests = self._open(zmq.DEALER, 'requests', requests, False, hwm, MAX_BODY)
        self._inbox = Inbox(slots, slot_bytes)
        self._encoder, self._decoder, self._reply_decoder = (
            wire.Encoder(),
            wire.Decoder(),
            wire.Decoder(),
        )
        self._expected: int | None = None
        self._request_id = 0
        self._out = self._count('sent', 'sent_bytes', 'send_timeouts')
        self._in = self._count('bad', 'missing', 'repeated')
        self._asked = self._count('requests', 'request_timeouts', 'late_replies', 'bad')
        self._counts.append(self._inbox.counters)

    def recv(self, timeout_ms: int) -> FeatureFrame | None:
        """Return the next frame, or None if none came in time or it was malformed.

        RECEIVED is stamped. Its tensors are read-only views, good for as long as they are held.
        """
        with self._frames.lock:
            message = self._inbox.recv(self._frames, timeout_ms)
            if message is None:
                self._nothing(self._frames)
                return None
            try:
                frame = self._decoder.frame(message)
            except WireError as exc:
                self._bad(self._frames, self._in, exc)
                return None
            frame.stamps[_RECEIVED] = time.time_ns()
            if frame.seq == self._expected:
                self._expected = frame.seq + 1
            else:
                self._follow(frame.seq)
            return frame

    def send_decisions(self, decisions: Decisions, timeout_ms: int) -> bool:
        """Hand decisions over; return False, counted, if no peer took them in time.

        Raises WireError that names the column or field if they do not fit the wire format.
        """
        with self._decisions.lock:
            message = self._encoder.decisions(decisions)
            return self._send(self._decisions, self._out, message, timeout_ms)

    def request(
        self, epoch: int, first_seq: int, last_seq: int, timeout_ms: int
    ) -> MissedReply | None:
        """Ask for frames again, both ends inclusive.

        `last_seq < first_seq` asks for the position alone. An answer too large for one message is
        put together from several. Returns None, counted, if no whole answer came in time.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        frames: list[FeatureFrame] = []
        producer, first = epoch, first_seq
        with self._requests.lock:
            while True:
                reply = self._ask(MissedRequest(epoch, first, last_seq), deadline)
                if reply is None:
                    self._asked['request_timeouts'] += 1
                    self._unsent(self._requests)
                    return None
                if (
                    frames and reply.epoch != producer
                ):  # restarted in between: its frames may be others
                    frames, producer, first = [], reply.epoch, first_seq
                    continue
                producer = reply.epoch
                if (
                    frames and reply.frames and reply.frames[0].seq != first
                ):  # the ring has moved on
                    frames = []
                frames.extend(reply.frames)
                if not reply.frames or frames[-1].seq >= min(last_seq, reply.next_seq - 1):
                    return replace(reply, frames=frames)
                first = frames[-1].seq + 1

    def _ask(self, request: MissedRequest, deadline: float) -> MissedReply | None:
        self._request_id += 1
        self._asked['requests'] += 1
        if not self._requests.send(
            wire.encode_request(request, self._request_id), _left_ms(deadline)
        ):
            return None
        while (parts := self._requests.recv_parts(_left_ms(deadline))) is not None:
            try:
                reply, request_id = self._reply_decoder.reply(parts[-1])
            except WireError as exc:
                self._bad(self._requests, self._asked, exc)
                continue
            if request_id == self._request_id:
                return reply
            self._asked['late_replies'] += 1
        return None

    def _follow(self, seq: int) -> None:
        expected = self._expected
        if expected is not None and seq < expected:
            self._in['repeated'] += 1
            return
        if expected is not None:
            self._in['missing'] += seq - expected
        self._expected = seq + 1


def _left_ms(deadline: float) -> int:
    return max(0, int((deadline - time.monotonic()) * 1000))
