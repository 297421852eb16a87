# SPDX-License-Identifier: Apache-2.0
"""What tests of nodes share: a private ROS graph in the test's own process, driven by hand."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from heqis_core.testing import free_domain_id


class Graph:
    """Nodes on one single-threaded executor in the caller's thread."""

    def __init__(self) -> None:
        self.executor = SingleThreadedExecutor()
        self.nodes: list[Any] = []

    def add(self, node: Any) -> Any:
        """Add a node, destroyed at the end of the test; return it."""
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin_until(
        self, condition: Callable[[], bool], timeout_s: float = 10.0, what: str = ''
    ) -> None:
        """Spin until the condition holds; raise AssertionError after the deadline."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f'not within {timeout_s} s: {what or condition}'
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, duration_s: float) -> None:
        """Spin for a while: only to show that something does not happen."""
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)


def dds_profile() -> Path | None:
    """Return config/fastdds.xml of the source tree, None for an installed package."""
    found = (folder / 'config' / 'fastdds.xml' for folder in Path(__file__).resolve().parents)
    return next((path for path in found if path.is_file()), None)


@cache
def private_domain() -> None:
    """Give this process, and those that it starts, a ROS graph of its own on loopback."""
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
    if profile := dds_profile():
        os.environ['FASTRTPS_DEFAULT_PROFILES_FILE'] = str(profile)
    os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'


@contextmanager
def ros_graph(parameter_overrides: dict[str, object] | None = None) -> Iterator[Graph]:
    """Initialise rclpy in a private domain, yield a graph, and take all down again.

    `parameter_overrides` are parameters of every node that is made inside, by name.
    """
    private_domain()
    # The DDS participant of an earlier test lives until the last of its nodes is collected. Half
    # gone, its services are found, but not whole: one of the same name then counts as not there.
    gc.collect()
    words = [f'{name}:={_literal(value)}' for name, value in (parameter_overrides or {}).items()]
    arguments = ['--ros-args', *(part for word in words for part in ('-p', word))]
    rclpy.init(args=arguments if words else [])
    graph = Graph()
    try:
        yield graph
    finally:
        for node in reversed(graph.nodes):
            if hasattr(node, 'close'):
                node.close()
            node.destroy_node()
        graph.executor.shutdown()
        rclpy.shutdown()


def _literal(value: object) -> str:
    # YAML reads an unquoted text as it likes: 15:00 is a number to it.
    return f"'{value}'" if isinstance(value, str) else str(value).lower()
