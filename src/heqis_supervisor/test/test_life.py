# SPDX-License-Identifier: Apache-2.0
"""A real supervisor and a real agent prove that they live, to a real socket, while they do."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rclpy.lifecycle import TransitionCallbackReturn

from heqis_core.testing import free_port
from heqis_ros.testing import ros_graph
from heqis_supervisor import supervisor_node
from heqis_supervisor.agent_node import AgentNode
from heqis_supervisor.supervisor_node import SupervisorNode
from heqis_supervisor.testing_watchdog import PATH, FakeWatchdog
from heqis_supervisor.watchdog_device import WatchdogDevice

WATCHDOG_S = 2.0
RULES = """\
version: 1
heartbeat_ms: 100
boards:
  gateway:
    agent: {nodes: {gateway_agent: {managed: false}}}
"""
SUCCESS = TransitionCallbackReturn.SUCCESS


class Life:
    """A node that hangs from this socket, and what it said."""

    def __init__(self, graph, receiver: socket.socket) -> None:
        self.graph, self.receiver = graph, receiver
        self.said: list[str] = []

    def start(self, node_class: type):
        node = self.graph.add(node_class())
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        return node

    def pats(self) -> int:
        while True:
            try:
                self.said.append(self.receiver.recv(1000).decode())
            except BlockingIOError:
                return self.said.count('WATCHDOG=1')

    def patted(self, n: int) -> None:
        goal = self.pats() + n
        self.graph.spin_until(lambda: self.pats() >= goal, 10, f'{n} signs of life')


@pytest.fixture
def life(tmp_path: Path, request, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    rules = tmp_path / 'graph.yaml'
    rules.write_text(RULES)
    given = {
        'control_endpoint': f'tcp://127.0.0.1:{free_port()}',
        'graph': str(rules),
        'watchdog_device': PATH,
        'watchdog_timeout_s': 8,
    }
    known = getattr(request, 'param', tuple(given))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind('')
        receiver.setblocking(False)
        monkeypatch.setenv('NOTIFY_SOCKET', '@' + receiver.getsockname()[1:].decode())
        monkeypatch.setenv('WATCHDOG_USEC', str(int(WATCHDOG_S * 1e6)))
        monkeypatch.setenv('WATCHDOG_PID', str(os.getpid()))
        monkeypatch.setenv('HEQIS_BOARD', 'gateway')
        with ros_graph({name: given[name] for name in known}) as graph:
            yield Life(graph, receiver)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWatchdog:
    fake = FakeWatchdog()
    monkeypatch.setattr(
        supervisor_node, 'WatchdogDevice', lambda path, s: WatchdogDevice(path, s, fake.calls())
    )
    return fake


def test_a_supervisor_whose_executor_stands_still_says_nothing_more(life, fake) -> None:
    node = life.start(SupervisorNode)
    life.patted(3)
    turns = node.vitals.progress
    before = life.pats()
    time.sleep(WATCHDOG_S)  # nobody spins its executor
    assert node.vitals.progress > turns + 5, 'its loop goes on'
    assert life.pats() - before <= 1, 'what the executor did before'
    life.patted(2)
    assert node.trigger_deactivate() == SUCCESS
    life.pats()
    assert life.said[0] == 'WATCHDOG_USEC=2000000'
    assert life.said[-1] == 'WATCHDOG_USEC=0'
    assert any(text.startswith('STATUS=') for text in life.said)
    fake.wait(100)
    assert fake.resets == 0, 'an orderly end'


def test_a_supervisor_whose_loop_stands_still_says_nothing_more(
    life, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    turn = SupervisorNode._turn
    life.start(SupervisorNode)
    life.patted(2)

    def hang(self, state, messages):
        go_on.wait(10)
        return turn(self, state, messages)

    monkeypatch.setattr(SupervisorNode, '_turn', hang)
    life.graph.spin_for(0.2)  # the turn that had begun ends
    before = life.pats()
    life.graph.spin_for(WATCHDOG_S)
    assert life.pats() == before
    fake.wait(9)
    assert fake.resets == 1, 'and the board does not wait for it either'
    go_on.set()


def test_a_fault_leaves_the_hardware_armed_until_it_is_active_again(
    life, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = life.start(SupervisorNode)
    life.patted(1)

    def fail(self, state, messages):
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(SupervisorNode, '_turn', fail)
        life.graph.spin_until(lambda: not fake.held, 10, 'it leaves ACTIVE')
    assert fake.armed
    fake.wait(5)
    life.graph.spin_until(lambda: node.params is None, 5, 'it is unconfigured')
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    life.patted(1)
    fake.wait(5)
    assert (fake.held, fake.resets) == (True, 0)


def test_a_watchdog_that_cannot_be_had_is_a_refusal_with_the_reason(life, fake) -> None:
    fake.refuses['open'] = errno.EBUSY
    node = life.graph.add(SupervisorNode())
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert f'activate refused: watchdog_device {PATH}: Device or resource busy' in (
        node.vitals.failure
    )


@pytest.mark.parametrize('life', [('control_endpoint',)], indirect=True)
def test_an_agent_hangs_from_the_same_thread(life) -> None:
    life.start(AgentNode)
    life.patted(3)
    before = life.pats()
    time.sleep(WATCHDOG_S)
    assert life.pats() - before <= 1
    life.patted(1)
