# SPDX-License-Identifier: Apache-2.0
"""The Modbus node: a PLC reads the latest decisions and the graph's health as registers.

It only looks on. Its subscriptions are best effort, so that no publisher ever waits for it; what
they lose shows as age until the next frame. The registers are in `modbus_registers`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, NoReturn

from heqis_core.errors import ConfigError, WireError
from heqis_core.graph_state import GraphState
from heqis_core.io.modbus_server import ModbusServer, check_address
from heqis_gateway.modbus_registers import Health, RegisterImage
from heqis_gateway.params import MODBUS
from heqis_msgs.msg import Decisions, Heartbeat
from heqis_ros import qos
from heqis_ros.convert import msg_to_decisions
from heqis_ros.graph_ears import GraphEars
from heqis_ros.inbox import Inbox
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process

LISTEN_S = 0.04
"""Time between two looks at what came."""
HEALTH_S = 0.1
"""Shortest period of the heartbeat counter while the graph is alive."""
REPORT_S = 0.5


class ModbusNode(ManagedNode):
    """Shows a graph to PLCs."""

    PARAMS = MODBUS

    def configure(self, params: Any) -> None:
        """Listen to the topics; refuse an address that may not be listened on."""
        check_address(params.host, params.port, params.trusted_network)
        if not params.required_nodes:
            raise ConfigError(
                'parameter required_nodes is empty: a dead graph would look alive; expected at '
                'least one node, like gateway'
            )
        self.image = RegisterImage(
            params.max_symbols,
            params.symbols.split(),
            stream=params.stream,
            stale_after_s=params.stale_after_ms / 1000,
            event_clock=params.clock == 'event',
        )
        self._state = GraphState()
        self._ears = GraphEars(self._state)
        inbox = Inbox(self, f'{self.get_name()}_inbox')
        self.defer(inbox.close)
        best_effort = qos.best_effort
        self._beats = inbox.listen(Heartbeat, 'heartbeat', best_effort(qos.HEARTBEAT))
        self._decisions = inbox.listen(Decisions, 'decisions', best_effort(qos.DECISIONS))
        self.server = ModbusServer(
            self._read, params.host, params.port, params.unit_id, params.max_clients
        )
        self.timer(REPORT_S, self._report)
        self.worker('ears', self._listen)
        self.worker('server', self.server.run)

    def activate(self) -> None:
        """Refuse a port that another program took meanwhile."""
        check_address(self.params.host, self.params.port, self.params.trusted_network)

    def _read(self, address: int, count: int) -> list[int] | None:
        return self.image.read(address, count, time.monotonic(), time.time_ns())

    # --- the thread that listens ---

    def _listen(self, stop: threading.Event) -> None:
        health_s = 0.0
        while not stop.wait(LISTEN_S):
            for beat in self._beats.take():
                self._ears.heartbeat(beat)
            for message in self._decisions.take():
                self._take(message)
            now_s = time.monotonic()
            if now_s - health_s >= HEALTH_S:
                health_s = now_s
                self.image.set_health(self._health(now_s), now_s)

    def _take(self, message: Decisions) -> None:
        try:
            decisions = msg_to_decisions(message)
        except WireError as error:
            self.count('bad_messages')
            self.get_logger().warning(f'not shown: {error}', throttle_duration_sec=5.0)
            return
        if self.image.take(decisions, time.monotonic()):
            self.progress()

    def _health(self, now_s: float) -> Health:
        required = self.params.required_nodes
        return Health(
            required=len(required),
            active=sum(self._state.all_active((name,), now_s) for name in required),
            held=self._state.hold,
            kill_switch=self._state.total('kill_switch', 'risk_gate') > 0,
        )

    # --- what is said ---

    def _report(self) -> None:
        for counters in (self.image.counters, self.server.counters):
            for name, value in counters.items():
                self.set_counter(name, value)
        self.set_counter('bad_heartbeats', self._ears.refused)
        clients = self.server.counters['clients']
        where = f'Modbus/TCP on {self.params.host} port {self.server.port}'
        self.set_info(f'{where}, {clients} connected' if self.server.port else 'not listening')


def main() -> NoReturn:
    """Run the Modbus process."""
    raise SystemExit(run_process('modbus', [ModbusNode]))


if __name__ == '__main__':
    main()
