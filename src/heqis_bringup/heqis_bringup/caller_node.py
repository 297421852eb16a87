# SPDX-License-Identifier: Apache-2.0
"""A plain rclpy node that lives for one question of a command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

SPIN_S = 0.1
FIND_S = 20.0
"""Within it a node that runs is found, also one whose process has just been killed."""


class Caller:
    """One node on an executor that its owner spins."""

    def __init__(self, node: Node, executor: SingleThreadedExecutor, timeout_s: float) -> None:
        """Answer questions until `timeout_s` from now."""
        self.node = node
        self._executor = executor
        self._deadline_s = time.monotonic() + timeout_s

    def spin_until(self, condition: Callable[[], bool], within_s: float = float('inf')) -> bool:
        """Spin until a condition holds; return False if it does not in time."""
        deadline_s = min(self._deadline_s, time.monotonic() + within_s)
        while not condition():
            if time.monotonic() > deadline_s:
                return False
            self._executor.spin_once(timeout_sec=SPIN_S)
        return True

    def find_and_call(self, srv_type: Any, service: str, request: Any) -> tuple[bool, Any]:
        """Return whether the service was found, and its answer or None if none came in time."""
        client = self.node.create_client(srv_type, service)
        if not self.spin_until(client.service_is_ready, FIND_S):
            return False, None
        future = client.call_async(request)
        return True, future.result() if self.spin_until(future.done) else None


@contextmanager
def caller(name: str, timeout_s: float) -> Iterator[Caller]:
    """Yield a caller in an rclpy context of its own."""
    context = rclpy.Context()
    # The words of `heqis` are none of rcl's, and Ctrl-C must end the waiting.
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(
        name, context=context, start_parameter_services=False, enable_rosout=False
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield Caller(node, executor, timeout_s)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def domain() -> str:
    """Return the ROS domain that a caller is in, for messages."""
    return os.environ.get('ROS_DOMAIN_ID', '0')
