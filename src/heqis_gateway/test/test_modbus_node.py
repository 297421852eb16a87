# SPDX-License-Identifier: Apache-2.0
"""Modbus node: real topics in, a real Modbus client reads what came, and it only looks on."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from pymodbus.client import ModbusTcpClient
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy

from heqis_core.control import ProcessBeat
from heqis_core.decision import Action
from heqis_core.decision import Decisions as CoreDecisions
from heqis_core.testing import wait_until
from heqis_core.testing_graph import make_beat
from heqis_gateway.modbus_node import ModbusNode
from heqis_gateway.modbus_registers import HEADER_WORDS, RECORD_WORDS, RECORDS_AT, Flag, Status
from heqis_msgs.msg import Decisions, Heartbeat, NodeStatus
from heqis_ros import qos
from heqis_ros.convert import decisions_to_msg
from heqis_ros.convert_health import beat_to_msg
from heqis_ros.testing import Graph, ros_graph

SYMBOLS = ('000001', '600519')
BAR_NS = 1_700_000_000_000_000_000
REQUIRED = ('supervisor', 'gateway', 'compute', 'risk_gate')


def decisions(seq: int, action: Action) -> CoreDecisions:
    n = len(SYMBOLS)
    return CoreDecisions(
        stream='daily',
        epoch=1,
        seq=seq,
        event_time_ns=BAR_NS + seq,
        revision=0,
        bundle_id='bundle',
        generator='gru',
        symbols=SYMBOLS,
        action=np.full(n, action, np.uint8),
        reasons=np.zeros(n, np.uint32),
        score=np.full(n, 0.5, np.float32),
        target_position=np.full(n, 1.0 if action == Action.BUY else math.nan, np.float32),
        probabilities=np.full((n, 3), 0.25, np.float32),
        predicted_return=np.zeros(n, np.float32),
        valid_until_ns=np.full(n, BAR_NS + 1000, np.int64),
    )


class OtherNodes:
    """What the rest of a graph publishes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        node: Any = graph.add(Node('others'))
        self.decisions = node.create_publisher(Decisions, 'decisions', qos.DECISIONS)
        self.beats = node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        self.hold = self.kill_switch = False
        self.alive = True
        self._count = 0
        node.create_timer(0.05, self._beat)

    def _beat(self) -> None:
        self._count += 1
        for name in REQUIRED if self.alive else ():
            switch = {'kill_switch': int(self.kill_switch)} if name == 'risk_gate' else {}
            beat: ProcessBeat = make_beat(name, 1, self._count, **switch)
            message = beat_to_msg(beat)
            message.hold = self.hold and name == 'supervisor'
            self.beats.publish(message)

    def publish(self, item: CoreDecisions) -> None:
        self.decisions.publish(decisions_to_msg(item))


class Plc:
    """A client that reads what a PLC would."""

    def __init__(self, node: ModbusNode) -> None:
        self.client = ModbusTcpClient('127.0.0.1', port=node.server.port, timeout=5, retries=0)

    def record(self, row: int) -> list[int]:
        at = RECORDS_AT + RECORD_WORDS * row
        reply = self.client.read_holding_registers(at, count=RECORD_WORDS)
        assert not reply.isError(), reply
        return list(reply.registers)

    def header(self) -> list[int]:
        return list(self.client.read_input_registers(0, count=HEADER_WORDS).registers)


@contextmanager
def modbus(**params: object) -> Iterator[tuple[Graph, ModbusNode]]:
    with ros_graph({'port': 0, **params}) as graph:
        yield graph, graph.add(ModbusNode())


@contextmanager
def running(**params: object) -> Iterator[tuple[Graph, ModbusNode, OtherNodes, Plc]]:
    with modbus(**params) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        others = OtherNodes(graph)
        graph.spin_until(lambda: node.server.port != 0)
        graph.spin_until(lambda: bool(others.decisions.get_subscription_count()))
        plc = Plc(node)
        with contextlib.closing(plc.client):
            yield graph, node, others, plc


def refusal(**params: object) -> str:
    """Return why the node does not configure."""
    with modbus(**params) as (_, node):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == NodeStatus.UNCONFIGURED
        return str(node.status().info)


def seq_of(record: list[int]) -> int:
    return int(struct.unpack('>I', struct.pack('>2H', *record[28:30]))[0])


def test_a_plc_reads_decisions_hold_kill_switch_and_the_death_of_the_graph():
    with running(symbols='600519') as (graph, node, others, plc):
        assert plc.header()[3] & Status.NO_DECISION
        graph.spin_until(lambda: bool(plc.header()[3] & Status.ALIVE))
        graph.spin_until(
            lambda: others.publish(decisions(1, Action.BUY)) or plc.record(0)[0] == Action.BUY
        )
        first, second = plc.record(0), plc.record(1)
        assert first[1] == second[1] == Flag.CURRENT
        assert (seq_of(first), first[3], plc.header()[5]) == (1, 10_000, 2)
        before = plc.header()[4]
        graph.spin_until(lambda: (plc.header()[4] - before) % 65_536 >= 3)

        others.hold = True
        graph.spin_until(lambda: plc.record(0)[1] == Flag.HELD)
        assert plc.record(0)[0] == Action.NONE
        others.hold, others.kill_switch = False, True
        graph.spin_until(lambda: plc.record(0)[1] == Flag.KILL_SWITCH)
        others.kill_switch = False
        graph.spin_until(lambda: plc.record(0)[0] == Action.BUY)

        others.publish(decisions(2, Action.HOLD))
        graph.spin_until(lambda: seq_of(plc.record(0)) == 2)
        assert plc.record(0)[:4] == [Action.HOLD, Flag.CURRENT, Action.BUY, 10_000]

        others.alive = False
        graph.spin_until(lambda: plc.record(0)[1] == Flag.GRAPH_DEAD)
        graph.spin_until(lambda: plc.header()[13] == 0)
        stands_at = plc.header()[4]
        graph.spin_for(0.4)
        assert plc.header()[4] == stands_at
        graph.spin_until(lambda: node.vitals.counters().get('frames') == 2)
        assert 'connected' in node.status().info
        assert node.vitals.counters().get('bad_messages', 0) == 0


def test_a_record_grows_stale_when_nothing_new_comes():
    with running(stale_after_ms=300) as (graph, _, others, plc):
        graph.spin_until(
            lambda: others.publish(decisions(1, Action.BUY)) or seq_of(plc.record(0)) == 1
        )
        graph.spin_until(lambda: plc.record(0)[1] == Flag.STALE)
        assert plc.record(0)[0] == Action.NONE
        assert plc.record(0)[30] == Action.BUY
        assert plc.header()[3] == Status.ALIVE | Status.STALE


def test_what_does_not_fit_together_is_counted_and_what_comes_after_it_is_shown():
    with running() as (graph, node, others, plc):
        broken = decisions_to_msg(decisions(1, Action.SELL))
        broken.score = [1.0]
        counters = node.vitals.counters
        graph.spin_until(
            lambda: bool(others.decisions.publish(broken)) or counters().get('bad_messages', 0) > 0
        )
        graph.spin_until(
            lambda: others.publish(decisions(1, Action.BUY)) or seq_of(plc.record(0)) == 1
        )
        assert plc.record(0)[30] == Action.BUY


def test_writes_are_refused():
    with running() as (_, _, _, plc):
        for reply in (plc.client.write_register(RECORDS_AT, 2), plc.client.write_coil(0, True)):
            assert reply.exception_code == 1
        assert plc.record(0)[0] == Action.NONE


def test_no_publisher_waits_for_it():
    with running() as (_, _, others, _):
        node = others.graph.nodes[-1]
        for topic in ('/decisions', '/heartbeat'):
            (info,) = node.get_subscriptions_info_by_topic(topic)
            assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_deactivate_closes_the_port_and_activate_opens_it_again():
    with running() as (graph, node, _, plc):
        port = node.server.port
        assert plc.record(0)[0] == Action.NONE
        assert node.trigger_deactivate() == Result.SUCCESS
        with pytest.raises(OSError, match='refused'):
            socket.create_connection(('127.0.0.1', port), 5.0)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: node.server.port != 0)
        again = Plc(node)
        with contextlib.closing(again.client):
            assert again.header()[2] == 1
        assert node.trigger_deactivate() == Result.SUCCESS
        assert node.trigger_cleanup() == Result.SUCCESS
        assert not node.worker_alive()


def test_an_address_off_loopback_a_taken_port_and_no_required_node_are_refused():
    assert 'off loopback: Modbus has no password' in refusal(host='0.0.0.0')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert f'cannot listen on 127.0.0.1 port {port}' in refusal(port=port)
    assert 'required_nodes is empty' in refusal(required_nodes=[])
    assert 'max_symbols' in refusal(max_symbols=1501)
    assert 'symbols: 2 names' in refusal(symbols='a a')


def test_a_trusted_network_may_reach_it():
    with running(host='0.0.0.0', trusted_network=True) as (graph, node, _, plc):
        assert plc.header()[2] == 1
        graph.spin_until(lambda: 'Modbus/TCP on 0.0.0.0' in node.status().info)


def test_a_port_that_is_taken_between_configure_and_activate_refuses_the_activation():
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    with modbus(port=port) as (_, node):
        assert node.trigger_configure() == Result.SUCCESS
        with socket.create_server(('127.0.0.1', port)):
            assert node.trigger_activate() == Result.FAILURE
            assert f'port {port}' in node.status().info
        assert node.trigger_activate() == Result.SUCCESS
        wait_until(lambda: node.server.port == port, 10.0)
