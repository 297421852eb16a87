# SPDX-License-Identifier: Apache-2.0
"""The heartbeat of a process: one small message from a thread and a node of their own.

The thread never waits for the executor, so a blocked callback shows as a `spin_count` that stands
still in heartbeats that go on coming. What the nodes say is collected in `vitals`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.parameter import Parameter

from heqis_core.errors import ConfigError
from heqis_msgs.msg import Heartbeat
from heqis_ros import qos, vitals

if TYPE_CHECKING:
    from rclpy.context import Context

    from heqis_ros.node import ManagedNode

RATE_ENV = 'HEQIS_HEARTBEAT_HZ'
DEFAULT_RATE_HZ = 5.0
LAST_BEATS = 3
LAST_PERIOD_S = 0.02
_RCL_ERRORS = (rclpy_implementation.RCLError, InvalidHandle)


def rate_hz() -> float:
    """Return the rate from the environment, 0.1 to 1000 Hz; raises ConfigError."""
    text = os.environ.get(RATE_ENV) or str(DEFAULT_RATE_HZ)
    try:
        rate = float(text)
    except ValueError:
        rate = float('nan')
    if not 0.1 <= rate <= 1000.0:
        raise ConfigError(
            f'environment {RATE_ENV} is {text!r}, expected a number from 0.1 to 1000'
        )
    return rate


class HeartbeatThread:
    """Publishes the state of some nodes on `heartbeat` until it is stopped."""

    def __init__(
        self,
        process: str,
        nodes: Sequence[ManagedNode],
        *,
        rate: float | None = None,
        context: Context | None = None,
    ) -> None:
        """Create the node `<process>_heartbeat` beside the first node, and start."""
        self.process = process
        self._nodes = tuple(nodes)
        self._period_s = 1.0 / (rate or rate_hz())
        self._stop = threading.Event()
        # Its own name even under a global `__node` remap (launch's `name`), which would rename it
        # too.
        self._node = rclpy.create_node(
            f'{process}_heartbeat',
            context=context,
            cli_args=['--ros-args', '-r', f'__node:={process}_heartbeat'],
            namespace=nodes[0].get_namespace() if nodes else '',
            start_parameter_services=False,
            enable_rosout=False,
            parameter_overrides=[Parameter('start_type_description_service', value=False)],
        )
        self._publisher = self._node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        self._message = Heartbeat(
            board=vitals.board(),
            process=process,
            host=vitals.HOST,
            pid=os.getpid(),
            start_id=vitals.START_ID,
            boot_id=vitals.boot_id(),
        )
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name=f'{process}.heartbeat', daemon=True)
        self._thread.start()

    @property
    def topic(self) -> str:
        """Return the full name of the topic."""
        return str(self._publisher.topic_name)

    @property
    def node_name(self) -> str:
        """Return the name of the thread's own node."""
        return str(self._node.get_name())

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._beat()
            due += self._period_s
            now = time.monotonic()
            if due < now:  # after a suspend or a long stall: no burst to catch up
                due = now
            self._stop.wait(due - now)
        # Nothing comes after it that would make up for a loss: it says why the others end.
        for _ in range(LAST_BEATS):
            self._beat()
            time.sleep(LAST_PERIOD_S)

    def _beat(self) -> None:
        message = self._message
        message.count += 1
        message.stamp_ns = time.time_ns()
        try:
            message.hold = any(node.hold for node in self._nodes)
            message.nodes = [node.status() for node in self._nodes]
            self._publisher.publish(message)
        except _RCL_ERRORS:
            # The context ends, or DDS is out of resources: the next beat tries again, and the
            # gap in `count` shows.
            self.failed += 1
        except Exception as error:  # a bug must not look like a dead process
            self.failed += 1
            self._node.get_logger().error(
                f'heartbeat was not sent: {type(error).__name__}: {error}', once=True
            )

    def stop(self, timeout_s: float = 1.0) -> None:
        """Send the last heartbeats, end the thread and free its node."""
        self._stop.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._node.destroy_node()
