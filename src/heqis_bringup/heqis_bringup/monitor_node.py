# SPDX-License-Identifier: Apache-2.0
"""The ear of `heqis demo`: a plain rclpy node that keeps a `GraphState` up to date from topics."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from heqis_bringup.graph_state import GraphState
from heqis_core.control import Event, Level, NodeBeat, ProcessBeat
from heqis_core.decision import Action
from heqis_msgs.msg import Decisions, Heartbeat, Signals
from heqis_msgs.msg import Event as EventMsg
from heqis_ros import qos

# Latencies are a sample: under load rather none than all of them, the journal has every frame.
_SAMPLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


class Monitor:
    """Listens in one namespace and one domain, in a thread and an rclpy context of its own."""

    def __init__(self, namespace: str, domain_id: int) -> None:
        """Start to listen."""
        self.state = GraphState()
        self.diagnostics: dict[str, tuple[int, str]] = {}
        self._context = rclpy.Context()
        rclpy.init(
            context=self._context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self._node = rclpy.create_node(
            'demo_monitor',
            namespace=namespace,
            context=self._context,
            start_parameter_services=False,
            enable_rosout=False,
        )
        for kind, topic, profile, callback in (
            (Heartbeat, 'heartbeat', qos.HEARTBEAT, self._on_heartbeat),
            (Decisions, 'decisions', _SAMPLE, self._on_decisions),
            (Signals, 'signals', qos.SIGNALS, self._on_signals),
            (EventMsg, 'events', qos.EVENTS, self._on_event),
            (DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS, self._on_diagnostics),
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

    def _on_heartbeat(self, msg: Any) -> None:
        nodes = tuple(
            NodeBeat(
                name=node.name,
                state=node.state,
                progress=node.progress,
                pending=node.pending,
                counters=dict(zip(node.counter_names, node.counter_values, strict=True)),
                stages_us=dict(zip(node.stage_names, node.stage_last_us, strict=True)),
                info=node.info,
            )
            for node in msg.nodes
        )
        beat = ProcessBeat(
            board=msg.board,
            process=msg.process,
            host=msg.host,
            pid=msg.pid,
            start_id=msg.start_id,
            count=msg.count,
            stamp_ns=msg.stamp_ns,
            boot_id=msg.boot_id,
            hold=msg.hold,
            nodes=nodes,
        )
        self.state.beat(beat, time.monotonic())

    def _on_decisions(self, msg: Any) -> None:
        self.state.decided(np.asarray(msg.stamps, np.int64))

    def _on_signals(self, msg: Any) -> None:
        signals = [(s.symbol, Action(s.action).name, s.score) for s in msg.signals]
        self.state.signalled(time.monotonic(), signals)

    def _on_event(self, msg: Any) -> None:
        level = Level(min(msg.level, Level.ERROR))
        self.state.happened(
            Event(msg.stamp_ns, level, msg.source, msg.kind, msg.subject, msg.text)
        )

    def _on_diagnostics(self, msg: Any) -> None:
        for status in msg.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            self.diagnostics[status.name] = (level, status.message)
