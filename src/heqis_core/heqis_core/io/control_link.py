# SPDX-License-Identifier: Apache-2.0
"""The link between the supervisor and the agents: ROUTER at the supervisor, DEALER at each agent.

Nothing here waits longer than it is told, and nothing is kept for a peer that is not there: a
command or a heartbeat is only worth something now. Queues hold at most `HWM` messages a peer; what
does not fit is dropped and counted. A connection that died without a word (half-open) is noticed
by ZeroMQ's own heartbeats within 1.6 s and made again. What is said: `heqis_core.control`.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import zmq

from heqis_core import control
from heqis_core.control import FromAgent, FromSupervisor
from heqis_core.errors import LinkError, WireError
from heqis_core.io.zmq_channel import Channel
from heqis_core.io.zmq_security import AllowList, LinkSecurity, check_endpoints

HWM = 256
_BURST = 256
"""Most messages that one `poll` takes."""


class _Peer(NamedTuple):
    identity: bytes
    agent_id: int
    heard_s: float


class _End:
    """Socket, allow-list and counters of one end."""

    def __init__(
        self, kind: int, endpoint: str, bind: bool, security: LinkSecurity | None
    ) -> None:
        check_endpoints([endpoint], security)
        self.counters = {'sent': 0, 'received': 0, 'dropped': 0, 'bad': 0, 'refused': 0}
        self.last_error = ''
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._allow = AllowList(self._context, security.allowed) if security else None
        try:
            self._channel = Channel(
                self._context,
                kind,
                endpoint,
                name='control',
                bind=bind,
                hwm=HWM,
                security=security,
                max_message=control.MAX_MESSAGE_BYTES,
            )
        except LinkError:
            self._free()
            raise

    @property
    def endpoint(self) -> str:
        """Return the endpoint, with the real port where `tcp://127.0.0.1:*` was given."""
        return self._channel.endpoint

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns empty-handed."""
        self._channel.close()
        self._free()

    def _free(self) -> None:
        if self._allow is not None:
            self._allow.close()
            self._allow = None
        self._context.term()

    def _send(self, parts: list[bytes]) -> bool:
        sent = self._channel.send_parts(parts, 0)
        self.counters['sent' if sent else 'dropped'] += 1
        return sent

    def _receive(self, timeout_ms: int) -> list[list[bytes]]:
        found = []
        parts = self._channel.recv_parts(timeout_ms)
        while parts is not None:
            found.append(parts)
            parts = self._channel.recv_parts(0) if len(found) < _BURST else None
        self.counters['received'] += len(found)
        self._look()
        return found

    def _look(self) -> None:
        """Take in who was refused and which connections have ended."""
        for _, text in self._channel.peer_news():
            self.last_error = f'control: {text}'
        if self._allow is not None:
            for text in self._allow.news():
                self.last_error = f'control: {text}'
            self.counters['refused'] = self._allow.refused
        self.counters.update(self._channel.peers.counters)

    def _bad(self, error: WireError) -> None:
        self.counters['bad'] += 1
        self.last_error = str(error)


class SupervisorLink(_End):
    """The supervisor's end; it binds. Agents are known by their board once they said something.

    `counters`: sent, received, dropped (no such peer, or its queue is full), bad (not understood)
    and `takeovers` (another start of an agent spoke for a board that was known).
    """

    def __init__(
        self, endpoint: str, *, security: LinkSecurity | None = None, silent_s: float = 3.0
    ) -> None:
        """Bind, or raise LinkError; a board silent for `silent_s` is not known any more."""
        super().__init__(zmq.ROUTER, endpoint, True, security)
        self.counters['takeovers'] = 0
        self._silent_s = silent_s
        self._peers: dict[str, _Peer] = {}

    def poll(self, timeout_ms: int) -> list[FromAgent]:
        """Wait for the first message and return it with all that are there then."""
        messages: list[FromAgent] = []
        for identity, *rest in self._receive(timeout_ms):
            try:
                message = control.decode_from_agent(rest[0] if len(rest) == 1 else b'')
            except WireError as error:
                self._bad(error)
                continue
            self._note(identity, message)
            messages.append(message)
        return messages

    def boards(self) -> dict[str, int]:
        """Return the identity of the agent of each board that was heard of lately."""
        oldest = time.monotonic() - self._silent_s
        self._peers = {b: peer for b, peer in self._peers.items() if peer.heard_s >= oldest}
        return {board: peer.agent_id for board, peer in self._peers.items()}

    def send(self, board: str, message: FromSupervisor) -> bool:
        """Send to the agent of one board; return False if none is there to take it."""
        peer = self._peers.get(board)
        if peer is None:
            self.counters['dropped'] += 1
            return False
        return self._send([peer.identity, control.encode(message)])

    def broadcast(self, message: FromSupervisor) -> int:
        """Send to every agent; return how many took it."""
        data = control.encode(message)
        return sum(self._send([self._peers[board].identity, data]) for board in self.boards())

    def _note(self, identity: bytes, message: FromAgent) -> None:
        known = self._peers.get(message.board)
        if known is not None and known.agent_id != message.agent_id:
            self.counters['takeovers'] += 1
        self._peers[message.board] = _Peer(identity, message.agent_id, time.monotonic())


class AgentLink(_End):
    """An agent's end; it connects, and again whenever the connection is lost.

    `counters`: sent, received, dropped (no supervisor is there to take it), bad (not understood).
    """

    def __init__(self, endpoint: str, *, security: LinkSecurity | None = None) -> None:
        """Begin to connect; raise LinkError if the endpoint cannot be used."""
        super().__init__(zmq.DEALER, endpoint, False, security)

    def poll(self, timeout_ms: int) -> list[FromSupervisor]:
        """Wait for the first message and return it with all that are there then."""
        messages: list[FromSupervisor] = []
        for parts in self._receive(timeout_ms):
            try:
                data = parts[0] if len(parts) == 1 else b''
                messages.append(control.decode_from_supervisor(data))
            except WireError as error:
                self._bad(error)
        return messages

    def send(self, message: FromAgent) -> bool:
        """Send to the supervisor; return False if none is there to take it."""
        sent = self._send([control.encode(message)])
        if not sent:
            self.last_error = self._channel.peer_fault() or f'no supervisor at {self.endpoint}'
        return sent
