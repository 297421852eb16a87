# SPDX-License-Identifier: Apache-2.0
"""The ear of `heqis demo` and `heqis chaos`: a plain rclpy node that hears a graph's topics."""

from __future__ import annotations

import threading
from contextlib import suppress

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from heqis_core.graph_state import GraphState
from heqis_msgs.msg import Decisions, Event, Heartbeat, Signals
from heqis_ros import qos
from heqis_ros.graph_ears import GraphEars

# Latencies are a sample: under load rather none than all of them, the journal has every frame.
_SAMPLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


class Monitor:
    """Listens in one namespace and one domain, in a thread and an rclpy context of its own."""

    def __init__(self, namespace: str, domain_id: int, hear: GraphEars | None = None) -> None:
        """Start to listen; what is heard goes to `hear`, from this thread."""
        hear = hear or GraphEars(GraphState())
        self.state = hear.state
        self._context = rclpy.Context()
        rclpy.init(
            args=[],  # the words of `heqis` are none of rcl's
            context=self._context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self._node = rclpy.create_node(
            'heqis_monitor',
            namespace=namespace,
            context=self._context,
            start_parameter_services=False,
            enable_rosout=False,
        )
        for kind, topic, profile, callback in (
            (Heartbeat, 'heartbeat', qos.HEARTBEAT, hear.heartbeat),
            (Decisions, 'decisions', _SAMPLE, hear.decisions),
            (Signals, 'signals', qos.SIGNALS, hear.signals),
            (Event, 'events', qos.EVENTS, hear.event),
            (DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS, hear.diagnostics),
        ):
            self._node.create_subscription(kind, topic, callback, profile)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='monitor', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the state stays."""
        with suppress(Exception):
            self._context.try_shutdown()
        self._executor.wake()
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self._node.destroy_node()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            while self._context.ok():
                self._executor.spin_once(timeout_sec=0.2)
