# SPDX-License-Identifier: Apache-2.0
"""A private ROS graph for these tests, and one executor that a test drives by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from heqis_core.testing import free_domain_id

os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'


class Graph:
    """Nodes on one single-threaded executor in the test's own thread."""

    def __init__(self) -> None:
        from rclpy.executors import SingleThreadedExecutor

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


@pytest.fixture
def graph() -> Iterator[Graph]:
    """Yield a graph in an initialised rclpy context."""
    import rclpy

    rclpy.init(args=[])
    graph = Graph()
    yield graph
    for node in reversed(graph.nodes):
        if hasattr(node, 'close'):
            node.close()
        node.destroy_node()
    graph.executor.shutdown()
    rclpy.shutdown()
