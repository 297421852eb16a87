# SPDX-License-Identifier: Apache-2.0
"""The bridge node: the gateway board's end of the link, and what comes back over it."""

from __future__ import annotations

import threading
from typing import Any

from heqis_core.frame import FeatureFrame
from heqis_core.io.zmq_link import GatewayLink
from heqis_core.io.zmq_security import optional_security
from heqis_gateway.hub import Hub
from heqis_gateway.params import BRIDGE
from heqis_msgs.msg import Decisions
from heqis_ros import qos
from heqis_ros.convert import decisions_to_msg
from heqis_ros.node import ManagedNode

SEND_TIMEOUT_MS = 50
POLL_MS = 100
NOBODY_THERE_S = 0.01
COUNTERS_PERIOD_S = 0.1


class BridgeNode(ManagedNode):
    """Carries frames out, decisions in, and answers requests for missed frames."""

    PARAMS = BRIDGE

    def __init__(self, hub: Hub) -> None:
        """Share `hub` with the gateway node of this process."""
        super().__init__()
        self._hub = hub
        self._link: GatewayLink | None = None

    def configure(self, params: Any) -> None:
        """Bind and connect the sockets; refused if a port is taken or an endpoint needs keys."""
        self._link = GatewayLink(
            params.frames_endpoint,
            params.decisions_endpoint,
            params.requests_endpoint,
            security=optional_security(
                params.secret_key_file, params.peer_key_file, params.allow_folder
            ),
        )
        self.defer(self._link.close)
        self._proposed = self.publisher(Decisions, 'decisions/proposed', qos.DECISIONS)
        self.set_info(f'frames to {params.frames_endpoint}')
        self._told = ''
        self.timer(COUNTERS_PERIOD_S, self._report)
        self.worker('decisions', self._receive)
        self.worker('requests', self._serve)

    def activate(self) -> None:
        """Open the way for frames."""
        self._hub.send = self._send

    def deactivate(self) -> None:
        """Close it; frames wait at the gateway node."""
        self._hub.send = None

    def _send(self, frame: FeatureFrame) -> bool:
        assert self._link is not None
        return self._link.send(frame, SEND_TIMEOUT_MS)

    def _receive(self, stop: threading.Event) -> None:
        assert self._link is not None
        while not stop.is_set():
            if not self._proposed.get_subscription_count():
                # DDS would drop them at once; in the socket they wait for the risk gate.
                stop.wait(NOBODY_THERE_S)
                continue
            decisions = self._link.recv_decisions(POLL_MS)
            if decisions is not None:
                self.publish(self._proposed, decisions_to_msg(decisions))
                self.count('decisions_received')
                self.progress()

    def _serve(self, stop: threading.Event) -> None:
        assert self._link is not None
        while not stop.is_set():
            missed = self._hub.missed
            if missed is None:
                # Without the gateway node there is no answer; the asker asks again after its
                # time-out.
                stop.wait(POLL_MS / 1e3)
            elif self._link.serve(missed, POLL_MS):
                self.count('requests_served')

    def _report(self) -> None:
        assert self._link is not None
        for name, value in self._link.counters.items():
            self.set_counter(f'link_{name}', value)
        if self._link.last_error != self._told:
            self._told = self._link.last_error
            self.get_logger().warning(self._told)
