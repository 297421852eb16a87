# SPDX-License-Identifier: Apache-2.0
"""A private ROS graph, an executor that a test drives by hand, and a node to probe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_msgs.msg import Event, NodeStatus
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.node import ManagedNode
from heqis_ros.params import Param, ParamTable
from heqis_ros.testing import Graph, private_domain, ros_graph

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


private_domain()


@pytest.fixture
def graph() -> Iterator[Graph]:
    """Yield a graph in an initialised rclpy context."""
    with ros_graph() as graph:
        yield graph


@pytest.fixture
def sender(graph) -> Callable[[str], Callable[[str], None]]:
    """Return a function that connects to the one reader of a topic and returns a sender."""

    def connect(topic: str) -> Callable[[str], None]:
        pub = graph.add(Node('sender')).create_publisher(Event, topic, qos.EVENTS)
        graph.spin_until(lambda: pub.get_subscription_count() == 1, what='discovery')
        return lambda text: pub.publish(Event(text=text))

    return connect


@pytest.fixture
def make_probe(graph) -> Callable[..., Probe]:
    """Return a function that makes a probe on the executor."""
    return lambda **kwargs: graph.add(Probe(**kwargs))


@pytest.fixture
def probe(make_probe) -> Probe:
    """Return an unconfigured probe on the executor."""
    return make_probe()
