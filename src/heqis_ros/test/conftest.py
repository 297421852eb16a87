# SPDX-License-Identifier: Apache-2.0
"""A private ROS graph, an executor that a test drives by hand, and a node to probe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from heqis_core.testing import free_domain_id

os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_msgs.msg import Event, NodeStatus
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.node import ManagedNode
from heqis_ros.params import Param, ParamTable

TABLE = ParamTable(
    'probe',
    [
        Param('rate_hz', float, 50.0, 'Rate of the timer.', unit='Hz', minimum=1.0, maximum=100.0),
        Param('mode', str, 'plain', 'What it does.', choices=('plain', 'fancy')),
    ],
)


class Probe(ManagedNode):
    """One of everything, and a switch for each way to fail."""

    PARAMS = TABLE

    def __init__(self, **kwargs):
        """Start with nothing broken."""
        super().__init__(**kwargs)
        self.calls = []
        self.fail: dict[str, BaseException] = {}
        self.received = []
        self.ticks = 0
        self.loops = 0
        self.freed = []

    def bring_up(self):
        """Configure and activate, and fail if that fails."""
        assert self.trigger_configure() == Result.SUCCESS
        assert self.trigger_activate() == Result.SUCCESS
        assert self.state == NodeStatus.ACTIVE

    def entities(self):
        """Return how many of each kind of entity there are."""
        kinds = 'publishers subscriptions timers services clients guards waitables'
        counts = {kind: len(list(getattr(self, kind))) for kind in kinds.split()}
        counts['managed'] = len(self._managed_entities)
        prefix = self.get_fully_qualified_name()
        counts['threads'] = sum(t.name.startswith(prefix) for t in threading.enumerate())
        return counts

    def _maybe_fail(self, where):
        self.calls.append(where)
        if where in self.fail:
            raise self.fail[where]

    def configure(self, params):
        self.pub = self.publisher(Event, 'out', qos.EVENTS)
        self.subscription(Event, 'in', qos.EVENTS, self.receive)
        self.timer(1.0 / params.rate_hz, self.tick)
        self.service(KillSwitch, '~/kill', self.answer)
        self.client(KillSwitch, 'elsewhere')
        self.worker('loop', self.work)
        self.defer(lambda: self.freed.append('configured'))
        self._maybe_fail('configure')

    def activate(self):
        self.defer(lambda: self.freed.append('activated'))
        self._maybe_fail('activate')

    def deactivate(self):
        self._maybe_fail('deactivate')

    def cleanup(self):
        self._maybe_fail('cleanup')

    def receive(self, msg):
        if 'receive' in self.fail:
            raise self.fail['receive']
        self.received.append(msg.text)

    def tick(self):
        self.ticks += 1
        if 'tick' in self.fail:
            raise self.fail['tick']

    def answer(self, request, response):
        self._maybe_fail('answer')
        response.engaged = request.engage
        return response

    def work(self, stop):
        while not stop.wait(0.005):
            self.loops += 1
            if 'work' in self.fail:
                raise self.fail['work']


class Graph:
    """Nodes on one single-threaded executor in the test's own thread."""

    def __init__(self) -> None:
        self.executor = SingleThreadedExecutor()
        self.nodes: list = []

    def add(self, node):
        """Add a node, destroyed at the end of the test; return it."""
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin_until(
        self, condition: Callable[[], bool], timeout_s: float = 10.0, what: str = ''
    ) -> None:
        """Spin until the condition holds; fail after the deadline."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f'not within {timeout_s} s: {what or condition}'
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, duration_s: float) -> None:
        """Spin for a while: only to show that something does not happen."""
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def sender(self, topic: str) -> Callable[[str], None]:
        """Return a function that sends a text to the one subscription of a topic of events."""
        pub = self.add(Node('sender')).create_publisher(Event, topic, qos.EVENTS)
        self.spin_until(lambda: pub.get_subscription_count() == 1, what='discovery')
        return lambda text: pub.publish(Event(text=text))


@pytest.fixture
def graph() -> Iterator[Graph]:
    """Yield a graph in an initialised rclpy context."""
    rclpy.init(args=[])
    graph = Graph()
    yield graph
    for node in reversed(graph.nodes):
        if hasattr(node, 'close'):
            node.close()
        node.destroy_node()
    graph.executor.shutdown()
    rclpy.shutdown()


@pytest.fixture
def make_probe(graph) -> Callable[..., Probe]:
    """Return a function that makes a probe on the executor."""
    return lambda **kwargs: graph.add(Probe(**kwargs))


@pytest.fixture
def probe(make_probe) -> Probe:
    """Return an unconfigured probe on the executor."""
    return make_probe()
