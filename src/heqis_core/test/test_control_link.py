# SPDX-License-Identifier: Apache-2.0
"""Supervisor and agents find each other again after any loss, and nothing foreign gets through."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from heqis_core import control
from heqis_core.control import (
    Beats,
    Hello,
    Kill,
    NodeBeat,
    NodeState,
    Overview,
    ProcessBeat,
    Result,
    Transit,
    Transition,
)
from heqis_core.errors import LinkError
from heqis_core.io.control_link import HWM, AgentLink, SupervisorLink
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.testing import free_port, wait_until

BEAT = ProcessBeat(
    board='compute',
    process='compute',
    host='orin',
    pid=41,
    start_id=(1 << 63) - 1,
    count=9,
    stamp_ns=1_700_000_000_000_000_000,
    boot_id='b',
    nodes=(NodeBeat('/heqis/compute', 3, 5, 6, 7, {'frames': 8}, {'infer': 9}, 'ort'),),
    proc_start=77,
    restarts=2,
)
HELLO = Hello('compute', 1, 'orin', 'b', 40)
RESULT = Result(3, 'compute', 1, False, 'no such node', NodeState.INACTIVE)
ORDER = Transit(3, '/heqis/compute', Transition.CONFIGURE, 60_000)
KILL = Kill(4, 'compute', 41, 5, 'b', 77)
OVERVIEW = Overview(BEAT)


@pytest.fixture
def endpoint() -> str:
    return f'tcp://127.0.0.1:{free_port()}'


@pytest.fixture
def supervisor(endpoint: str) -> Iterator[SupervisorLink]:
    link = SupervisorLink(endpoint)
    yield link
    link.close()


@pytest.fixture
def agent(endpoint: str) -> Iterator[AgentLink]:
    link = AgentLink(endpoint)
    yield link
    link.close()


def meet(
    supervisor: SupervisorLink, agent: AgentLink, board: str = 'compute', agent_id: int = 1
) -> None:
    """Say hello until the supervisor knows this start of the agent."""

    def known() -> bool:
        agent.send(Hello(board, agent_id, 'h', 'b', 1))
        supervisor.poll(20)
        return supervisor.boards().get(board) == agent_id

    wait_until(known, 10, 'the agent is known')
    supervisor.poll(0)


def receive(link: AgentLink) -> control.FromSupervisor:
    found: list[control.FromSupervisor] = []
    wait_until(lambda: bool(found or found.extend(link.poll(20)) or found), 5, 'a message')
    return found[0]


# --- the link ---


def test_commands_go_to_the_agent_of_the_board_and_results_come_back(
    endpoint: str, supervisor: SupervisorLink, agent: AgentLink
) -> None:
    other = AgentLink(endpoint)
    try:
        meet(supervisor, agent, 'compute', 1)
        meet(supervisor, other, 'gateway', 2)
        assert supervisor.boards() == {'compute': 1, 'gateway': 2}
        assert supervisor.send('compute', ORDER)
        assert receive(agent) == ORDER
        assert agent.send(RESULT)
        assert supervisor.poll(1000) == [RESULT]
        assert supervisor.broadcast(OVERVIEW) == 2
        assert receive(agent) == receive(other) == OVERVIEW
        assert other.poll(0) == []
    finally:
        other.close()


def test_without_a_peer_nothing_waits_and_everything_is_counted(
    endpoint: str, supervisor: SupervisorLink
) -> None:
    assert not supervisor.send('compute', ORDER)
    assert supervisor.broadcast(OVERVIEW) == 0
    assert supervisor.counters['dropped'] == 1
    lonely = AgentLink(f'tcp://127.0.0.1:{free_port()}')
    assert not lonely.send(HELLO)
    assert lonely.counters['dropped'] == 1
    assert 'no supervisor at tcp://127.0.0.1' in lonely.last_error
    lonely.close()


def test_a_restarted_supervisor_is_found_again(endpoint: str, agent: AgentLink) -> None:
    first = SupervisorLink(endpoint)
    meet(first, agent)
    first.close()
    second = SupervisorLink(endpoint)
    try:
        meet(second, agent)
        assert second.send('compute', ORDER)
        assert receive(agent) == ORDER
    finally:
        second.close()


def test_a_restarted_agent_takes_its_board_over(
    endpoint: str, supervisor: SupervisorLink, agent: AgentLink
) -> None:
    meet(supervisor, agent, agent_id=1)
    again = AgentLink(endpoint)
    try:
        meet(supervisor, again, agent_id=2)
        assert supervisor.counters['takeovers'] == 1
        assert supervisor.send('compute', ORDER)
        assert receive(again) == ORDER
        assert agent.poll(0) == []
    finally:
        again.close()


def test_a_silent_board_is_not_known_any_more(endpoint: str) -> None:
    supervisor, agent = SupervisorLink(endpoint, silent_s=0.2), AgentLink(endpoint)
    try:
        meet(supervisor, agent)
        wait_until(lambda: supervisor.boards() == {}, 2, 'forgotten')
        assert not supervisor.send('compute', ORDER)
        meet(supervisor, agent)
    finally:
        agent.close()
        supervisor.close()


def test_garbage_is_counted_and_does_no_harm(
    endpoint: str, supervisor: SupervisorLink, agent: AgentLink
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.connect(endpoint)
    for parts in (
        [b''],
        [b'junk'],
        [b'\x01\xc1'],
        [b'a', b'b', b'c'],
        [control.encode(KILL)],
    ):
        stranger.send_multipart(parts)
    wait_until(
        lambda: supervisor.poll(20) == [] and supervisor.counters['bad'] == 5, 5, 'five bad'
    )
    assert 'control message' in supervisor.last_error
    meet(supervisor, agent)
    stranger.close()
    context.term()


def test_a_flood_is_bounded(endpoint: str, supervisor: SupervisorLink, agent: AgentLink) -> None:
    meet(supervisor, agent)
    wide = Beats('compute', 1, (BEAT,) * 200)
    n = 40 * HWM
    dropped = agent.counters['dropped']
    sent = sum(agent.send(wide) for _ in range(n))
    assert sent < n
    assert agent.counters['dropped'] - dropped == n - sent
    found = 0
    while messages := supervisor.poll(200):
        found += len(messages)
    assert found <= sent


def test_a_half_open_connection_is_noticed_and_made_again(endpoint: str) -> None:
    """A connection whose bytes vanish in both directions stands for a peer that lost its power."""
    supervisor = SupervisorLink(endpoint)
    with Swallowing(endpoint) as proxy:
        agent = AgentLink(proxy.endpoint)
        try:
            meet(supervisor, agent)
            proxy.swallow()
            meet(supervisor, agent, agent_id=7)
            assert proxy.connections == 2
            assert supervisor.send('compute', ORDER)
            assert receive(agent) == ORDER
        finally:
            agent.close()
            supervisor.close()


class Swallowing:
    """A TCP proxy whose standing connections can be made to lose every byte."""

    def __init__(self, target: str) -> None:
        self._target = int(target.rpartition(':')[2])
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.endpoint = f'tcp://127.0.0.1:{self._listener.getsockname()[1]}'
        self.connections = 0
        self._lost = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Swallowing:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)

    def swallow(self) -> None:
        """Pass nothing of the connections there are; later ones work."""
        self._lost = self.connections

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(('127.0.0.1', self._target))
            except OSError:
                return
            self.connections += 1
            self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass, args=(self.connections, *pair))
                self._threads.append(thread)
                thread.start()

    def _pass(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if number > self._lost:
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


# --- closed by default ---


def test_a_port_that_is_taken_is_named(endpoint: str, supervisor: SupervisorLink) -> None:
    with pytest.raises(LinkError, match=f'{endpoint} is in use'):
        SupervisorLink(endpoint)


def test_off_loopback_only_with_keys() -> None:
    for make in (SupervisorLink, AgentLink):
        with pytest.raises(LinkError, match='can be reached from other machines'):
            make('tcp://0.0.0.0:5558')


def test_with_keys_only_boards_of_the_allow_list_get_in(endpoint: str, tmp_path: Path) -> None:
    ours, _ = write_keys(tmp_path, 'gateway')
    theirs, _ = write_keys(tmp_path, 'compute')
    write_keys(tmp_path / 'elsewhere', 'stranger')
    server = LinkSecurity.load(tmp_path / 'gateway.key_secret', peer_key_file=theirs)
    friend = LinkSecurity.load(tmp_path / 'compute.key_secret', peer_key_file=ours)
    foe = LinkSecurity.load(tmp_path / 'elsewhere' / 'stranger.key_secret', peer_key_file=ours)
    supervisor = SupervisorLink(endpoint, security=server)
    good, bad = AgentLink(endpoint, security=friend), AgentLink(endpoint, security=foe)
    try:
        meet(supervisor, good)
        wait_until(lambda: not bad.send(HELLO) and 'allow-list' in bad.last_error, 5)
        assert supervisor.boards() == {'compute': 1}
    finally:
        for link in (good, bad, supervisor):
            link.close()
