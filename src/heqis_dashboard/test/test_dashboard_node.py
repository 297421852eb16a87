# SPDX-License-Identifier: Apache-2.0
"""Dashboard node: what it hears and catches up, what it refuses, and that it only looks on."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.duration import Duration
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy

from heqis_core.control import Event as CoreEvent
from heqis_core.control import Level, NodeState
from heqis_core.decision import Action
from heqis_core.decision import Decisions as CoreDecisions
from heqis_core.frame import Stage, new_stamps
from heqis_core.io.journal import Journal
from heqis_core.testing import free_port, simulated_table, wait_until
from heqis_core.testing_graph import make_beat
from heqis_dashboard import dashboard_node, journal_tail
from heqis_dashboard.dashboard_node import DashboardNode
from heqis_dashboard.testing_client import DashClient
from heqis_msgs.msg import BarBlock, Decisions, Event, Heartbeat, NodeStatus
from heqis_msgs.srv import KillSwitch, MissedBars
from heqis_ros import qos
from heqis_ros.convert import block_to_msg, decisions_to_msg
from heqis_ros.convert_health import beat_to_msg, event_to_msg
from heqis_ros.testing import Graph, ros_graph

HOST = '127.0.0.1'
BARS = simulated_table(2, 40, 3)
SYMBOLS = BARS.symbols
PAGE = 8
"""Blocks of one reply of the service; the gateway's own pages are longer."""


def bar(seq: int, stream: str = 'daily') -> BarBlock:
    return block_to_msg(BARS.block(seq), stream, 1, seq)


def garbled_bar(seq: int) -> BarBlock:
    """Return a block whose tensor does not have the shape that its symbols need."""
    message = bar(seq)
    message.values.shape = [3, 4]
    return message


def decisions(seq: int, action: Action = Action.BUY, stream: str = 'daily') -> CoreDecisions:
    n = len(SYMBOLS)
    stamps = new_stamps()
    stamps[Stage.INGEST], stamps[Stage.COMMITTED] = 1_000, 5_000_000
    return CoreDecisions(
        stream=stream,
        epoch=1,
        seq=seq,
        event_time_ns=int(BARS.event_time_ns[seq]),
        revision=0,
        bundle_id='bundle',
        generator='gru',
        symbols=SYMBOLS,
        action=np.full(n, action, np.uint8),
        reasons=np.zeros(n, np.uint32),
        score=np.full(n, 0.5, np.float32),
        target_position=np.ones(n, np.float32),
        probabilities=np.full((n, 3), 0.25, np.float32),
        predicted_return=np.zeros(n, np.float32),
        valid_until_ns=np.ones(n, np.int64),
        stamps=stamps,
    )


class OtherNodes:
    """What the rest of a graph publishes, and the gateway's service."""

    def __init__(self, graph: Graph, namespace: str = '', stream: str = 'daily') -> None:
        self.graph, self.stream = graph, stream
        self.node: Any = graph.add(Node('gateway', namespace=namespace))
        self.bars = self.node.create_publisher(BarBlock, 'bars', qos.BARS)
        self.decisions = self.node.create_publisher(Decisions, 'decisions', qos.DECISIONS)
        self.beats = self.node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        self.events = self.node.create_publisher(Event, 'events', qos.EVENTS)
        self.diagnostics = self.node.create_publisher(
            DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS
        )
        self.history: dict[int, BarBlock] = {}
        self.requests: list[tuple[int, int]] = []
        self.node.create_service(MissedBars, '~/missed_bars', self.answer)

    def answer(
        self, request: MissedBars.Request, response: MissedBars.Response
    ) -> MissedBars.Response:
        self.requests.append((request.first_seq, request.last_seq))
        response.stream, response.epoch = self.stream, 1
        response.next_seq = max(self.history, default=-1) + 1
        response.oldest_seq = min(self.history, default=response.next_seq)
        asked = range(request.first_seq, request.last_seq + 1)
        response.blocks = [self.history[seq] for seq in asked if seq in self.history][:PAGE]
        return response

    def connect(self) -> None:
        """Wait until every topic has its reader."""
        pubs = (self.bars, self.decisions, self.beats, self.events, self.diagnostics)
        self.graph.spin_until(lambda: all(pub.get_subscription_count() for pub in pubs))

    def publish(self, pub: Any, message: Any, until: Callable[[], bool]) -> None:
        """Publish a message until it has arrived: readers are best effort."""
        self.graph.spin_until(lambda: until() or bool(pub.publish(message)))


@contextmanager
def dashboard(**params: object) -> Iterator[tuple[Graph, DashboardNode]]:
    with ros_graph({'port': 0, **params}) as graph:
        yield graph, graph.add(DashboardNode())


def bring_up(node: DashboardNode) -> None:
    assert node.trigger_configure() == Result.SUCCESS
    assert node.trigger_activate() == Result.SUCCESS


def refusal(**params: object) -> str:
    """Return why the node does not configure; it stays unconfigured."""
    with dashboard(**params) as (_, node):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == NodeStatus.UNCONFIGURED
        return str(node.status().info)


def seqs(node: DashboardNode) -> list[int]:
    """Return which of `BARS` a page of the first symbol would show."""
    changes = node._feed.changes('daily', SYMBOLS[0], -1, 1000)
    return [int(np.flatnonzero(BARS.event_time_ns == c.time_ns)[0]) for c in changes.candles]


def marked(node: DashboardNode) -> list[int]:
    """Return which of `BARS` have a mark."""
    changes = node._feed.changes('daily', SYMBOLS[0], -1, 1000)
    return [int(np.flatnonzero(BARS.event_time_ns == m.time_ns)[0]) for m, _ in changes.marks]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the node catch up often."""
    monkeypatch.setattr(dashboard_node, 'CATCH_UP_S', 0.1)
    monkeypatch.setattr(dashboard_node, 'REPORT_S', 0.1)


# --- what it hears ---


def test_what_the_graph_says_arrives_in_state_and_feed():
    with dashboard() as (graph, node):
        bring_up(node)
        others = OtherNodes(graph)
        others.connect()
        state, feed = node._state, node._feed
        beat = beat_to_msg(make_beat('gateway', 1, 1, bars_in=7))
        others.publish(others.beats, beat, lambda: 'gateway' in state.nodes)
        assert state.nodes['gateway'].state == NodeState.ACTIVE
        assert state.nodes['gateway'].counters == {'bars_in': 7}
        for seq in range(3):
            others.publish(
                others.bars, bar(seq), lambda seq=seq: seqs(node) == list(range(seq + 1))
            )
        for seq, action in enumerate((Action.BUY, Action.SELL)):
            message = decisions_to_msg(decisions(seq, action))
            others.publish(others.decisions, message, lambda seq=seq: len(marked(node)) == seq + 1)
        assert [(mark.kind, mark.symbol) for mark in feed.signals(2)] == [
            ('SELL', SYMBOLS[1]),
            ('SELL', SYMBOLS[0]),
        ]
        assert 'ingest_to_signal' in state.latency_us()
        assert state._n_frames == 2  # a frame that comes twice counts once
        event = CoreEvent(5, Level.WARN, 'supervisor', 'node_up', 'gateway', 'text')
        others.publish(others.events, event_to_msg(event), lambda: event in state.events)
        status = DiagnosticStatus(name='heqis/node/x', level=DiagnosticStatus.ERROR, message='no')
        others.publish(
            others.diagnostics, DiagnosticArray(status=[status]), lambda: bool(state.diagnostics)
        )
        assert state.diagnostics == {'heqis/node/x': (Level.ERROR, 'no')}
        graph.spin_until(lambda: node.vitals.counters().get('bars') == 3)
        assert node.vitals.progress >= 7
        assert 'bad_messages' not in node.vitals.counters()
        assert node.state == NodeStatus.ACTIVE


def test_what_does_not_fit_together_is_counted_and_what_comes_after_it_arrives():
    with dashboard() as (graph, node):
        bring_up(node)
        others = OtherNodes(graph)
        others.connect()
        counters = node.vitals.counters
        others.publish(others.bars, garbled_bar(0), lambda: counters().get('bad_messages', 0) >= 1)
        broken = decisions_to_msg(decisions(0))
        broken.score = [1.0]
        n = counters()['bad_messages']
        others.publish(others.decisions, broken, lambda: counters()['bad_messages'] > n)
        beat = beat_to_msg(make_beat('gateway', 1, 1))
        beat.nodes[0].counter_names = ['one']
        others.publish(others.beats, beat, lambda: counters().get('bad_heartbeats', 0) >= 1)
        others.publish(others.bars, bar(1), lambda: seqs(node) == [1])
        assert node._state.nodes == {}
        assert node.state == NodeStatus.ACTIVE
        assert node.vitals.failure == ''


# --- what it catches up ---


def test_a_late_dashboard_gets_earlier_bars_over_several_pages_and_decisions_of_the_journal(
    tmp_path,
):
    path = tmp_path / 'journal.sqlite'
    with Journal.open(path) as journal:
        journal.commit([decisions(seq) for seq in range(30)])
        journal.add_events([CoreEvent(5, Level.WARN, 'supervisor', 'kind', 'subject', 'text')])
    with dashboard(journal=str(path)) as (graph, node):
        others = OtherNodes(graph)
        others.history = {seq: bar(seq) for seq in range(5, 35)}
        bring_up(node)
        graph.spin_until(lambda: seqs(node) == list(range(5, 35)))
        graph.spin_until(lambda: marked(node) == list(range(5, 30)))
        assert [event.kind for event in node._state.events] == ['kind']
        # One question for the position, then a page each.
        pages = [request for request in others.requests if request != (1, 0)]
        assert pages == [(5, 34), (13, 34), (21, 34), (29, 34)]
        counters = node.vitals.counters()
        assert counters['bars_from_gateway'] == 30
        assert counters['frames_from_journal'] == 30
        n = len(others.requests)
        graph.spin_until(lambda: len(others.requests) >= n + 3)
        assert set(others.requests[n:]) == {(1, 0)}
        assert node.vitals.counters()['bars_from_gateway'] == 30


def test_the_first_look_has_all_pages_and_batches_without_a_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard_node, 'CATCH_UP_S', 60.0)
    for module in (dashboard_node, journal_tail):
        monkeypatch.setattr(module, 'BATCH', 10)
    path = tmp_path / 'journal.sqlite'
    with Journal.open(path) as journal:
        for seq in range(35):
            journal.commit([decisions(seq)])
    with dashboard(journal=str(path)) as (graph, node):
        others = OtherNodes(graph)
        others.history = {seq: bar(seq) for seq in range(35)}
        assert node.trigger_configure() == Result.SUCCESS
        graph.spin_until(node._bars_client.service_is_ready)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: marked(node) == seqs(node) == list(range(35)))


def test_more_than_is_kept_is_not_asked_for():
    with dashboard(history=10) as (graph, node):
        others = OtherNodes(graph)
        others.history = {seq: bar(seq) for seq in range(35)}
        bring_up(node)
        graph.spin_until(lambda: seqs(node) == list(range(25, 35)))
        assert min(first for first, last in others.requests if (first, last) != (1, 0)) == 25


def test_what_the_topics_lost_is_caught_up_from_gateway_and_journal(tmp_path):
    path = tmp_path / 'journal.sqlite'
    with Journal.open(path) as journal, dashboard(journal=str(path)) as (graph, node):
        bring_up(node)
        others = OtherNodes(graph)
        others.connect()
        for seq in (0, 3, 4):
            others.publish(others.bars, bar(seq), lambda seq=seq: seq in seqs(node))
        message = decisions_to_msg(decisions(3))
        others.publish(others.decisions, message, lambda: marked(node) == [3])
        others.history = {seq: bar(seq) for seq in range(6)}
        journal.commit([decisions(seq) for seq in (1, 3, 5)])
        graph.spin_until(lambda: seqs(node) == list(range(6)))
        graph.spin_until(lambda: marked(node) == [1, 3, 5])
        asked = [request for request in others.requests if request != (1, 0)]
        assert asked == [(5, 5), (1, 2)]
        assert node._feed.counters['frames'] == 3
        assert node.vitals.counters()['frames_from_journal'] == 2


def test_a_journal_that_is_not_there_shows_until_it_is_and_no_event_comes_twice(tmp_path):
    path = tmp_path / 'journal.sqlite'
    event = CoreEvent(7, Level.ERROR, 'supervisor', 'node_lost', 'compute', 'heard of it')
    with dashboard(journal=str(path)) as (graph, node):
        bring_up(node)
        graph.spin_until(lambda: str(path) in node._sources().journal)
        others = OtherNodes(graph)
        others.connect()
        others.publish(others.events, event_to_msg(event), lambda: event in node._state.events)
        before = node._state.error_count
        earlier = CoreEvent(3, Level.WARN, 'supervisor', 'node_up', 'compute', 'before')
        with Journal.open(path) as journal:
            journal.commit([decisions(0)], events=[earlier, event])
        graph.spin_until(lambda: node._feed.counters['frames'] == 1)
        graph.spin_until(lambda: earlier in node._state.events)
        assert node._sources().journal == ''
        assert list(node._state.events).count(event) == before
        assert node.state == NodeStatus.ACTIVE


def test_without_a_journal_nothing_is_said_about_it():
    with dashboard() as (graph, node):
        others = OtherNodes(graph)
        bring_up(node)
        graph.spin_until(lambda: len(others.requests) > 2)
        assert node._sources().journal == ''
        assert node._sources().bars == ''


def test_a_gateway_that_does_not_answer_is_said_and_asked_again(monkeypatch):
    monkeypatch.setattr(dashboard_node, 'ANSWER_S', 0.2)
    with dashboard() as (graph, node):
        others = OtherNodes(graph)
        others.history = {0: bar(0)}
        graph.executor.remove_node(others.node)
        bring_up(node)
        graph.spin_until(lambda: 'does not answer' in node._sources().bars)
        assert node.state == NodeStatus.ACTIVE
        graph.executor.add_node(others.node)
        graph.spin_until(lambda: node._sources().bars == '')
        graph.spin_until(lambda: seqs(node) == [0])


def test_a_garbled_bar_from_the_gateway_is_counted_and_the_others_are_had():
    with dashboard() as (graph, node):
        others = OtherNodes(graph)
        others.history = {
            seq: garbled_bar(seq) if seq in (3, 11) else bar(seq) for seq in range(20)
        }
        bring_up(node)
        wanted = [seq for seq in range(20) if seq not in (3, 11)]
        graph.spin_until(lambda: seqs(node) == wanted)
        graph.spin_until(lambda: node.vitals.counters().get('bad_messages', 0) >= 2)
        # Asked for again with each look, not without end.
        rounds, n = others.requests.count((1, 0)), len(others.requests)
        graph.spin_until(lambda: others.requests.count((1, 0)) >= rounds + 3)
        assert len(others.requests) - n <= 4 * 3
        assert node.state == NodeStatus.ACTIVE


def test_bars_that_have_no_place_are_not_asked_for_without_end():
    with dashboard() as (graph, node):
        others = OtherNodes(graph, stream='one too many')
        bring_up(node)
        for i in range(16):
            node._feed.add_bars(f'stream {i}', 0, BARS.block(0))
        others.history = {seq: bar(seq, 'one too many') for seq in range(20)}
        graph.spin_until(lambda: others.requests.count((1, 0)) >= 3)
        rounds, n = others.requests.count((1, 0)), len(others.requests)
        graph.spin_until(lambda: others.requests.count((1, 0)) >= rounds + 3)
        assert len(others.requests) - n <= 4 * 3
        assert node.state == NodeStatus.ACTIVE


# --- what it refuses ---


@pytest.mark.parametrize(
    'name', ['Nowhere/Town', '', 'Asia', '../UTC', '/etc/localtime', 'x' * 300]
)
def test_a_time_zone_that_is_none_is_refused_with_the_parameter(name):
    why = refusal(timezone=name)
    assert f'parameter timezone is {name!r}'[:150] in why
    assert 'Asia/Shanghai' in why or len(name) > 100  # the heartbeat has room for one line


@pytest.mark.parametrize('host', ['0.0.0.0', '192.0.2.1', 'page.example'])
def test_a_host_off_loopback_is_refused_with_the_parameter(host):
    why = refusal(host=host)
    assert f'parameter host is {host!r}' in why
    assert 'trusted_network' in why


def test_a_port_that_is_taken_is_refused_with_the_parameter():
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        why = refusal(port=port)
    assert f'port {port}' in why
    assert 'parameters host and port' in why


@pytest.mark.parametrize(
    'params', [{'port': 65536}, {'rising': 'blue'}, {'pages': 0}, {'candels': 100}]
)
def test_a_parameter_out_of_range_or_unknown_is_named(params):
    assert next(iter(params)) in refusal(**params)


@pytest.mark.parametrize(('value', 'starts'), [(True, True), (False, False), (17, False)])
def test_autostart_is_what_its_parameter_says_and_a_wrong_one_is_refused(value, starts):
    with dashboard(autostart=value) as (_, node):
        assert node.AUTOSTART is starts
        assert node.trigger_configure() == (
            Result.SUCCESS if isinstance(value, bool) else Result.FAILURE
        )
    with dashboard() as (_, node):
        assert node.AUTOSTART is False


# --- how it lives ---


def opened_page(node: DashboardNode) -> DashClient:
    """Open a page, wait for what it shows first and close it."""

    async def visit() -> DashClient:
        client = DashClient(node.address)
        await client.connect()
        task = asyncio.create_task(client.run())
        await client.until(lambda: client.pushes, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return client

    return asyncio.run(visit())


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def test_it_goes_through_its_states_again_and_again_and_cleanup_frees_the_port():
    port = free_port()
    with dashboard(port=port) as (_, node):
        for _ in range(2):
            assert node.trigger_configure() == Result.SUCCESS
            assert not can_bind(port)
            for _ in range(2):
                assert node.trigger_activate() == Result.SUCCESS
                assert node.address == f'http://{HOST}:{port}'
                node._feed.add_bars('daily', 0, BARS.block(0))
                page = opened_page(node)
                assert page.props['symbol', 'value'] == f'{SYMBOLS[0]}@daily'
                wait_until(lambda: node._data.counters['pages'] == 0, 10)
                assert node.trigger_deactivate() == Result.SUCCESS
                assert not can_bind(port)
            assert node.trigger_cleanup() == Result.SUCCESS
            assert node.state == NodeStatus.UNCONFIGURED
            assert can_bind(port)
        assert node.vitals.failure == ''


def test_what_was_known_is_kept_while_inactive_and_forgotten_after_cleanup():
    with dashboard() as (graph, node):
        others = OtherNodes(graph)
        others.history = {seq: bar(seq) for seq in range(4)}
        bring_up(node)
        graph.spin_until(lambda: seqs(node) == [0, 1, 2, 3])
        assert node.trigger_deactivate() == Result.SUCCESS
        others.history[4] = bar(4)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: seqs(node) == [0, 1, 2, 3, 4])
        assert node.trigger_deactivate() == Result.SUCCESS
        assert node.trigger_cleanup() == Result.SUCCESS
        graph.spin_until(lambda: others.bars.get_subscription_count() == 0)
        others.history = {}
        bring_up(node)
        assert seqs(node) == []


def test_the_heartbeat_says_where_the_page_is_and_how_many_are_open():
    with dashboard() as (graph, node):
        bring_up(node)
        assert node.address in node.status().info

        async def visit() -> None:
            client = DashClient(node.address)
            await client.connect()
            task = asyncio.create_task(client.run())
            await client.until(lambda: client.pushes, 10)
            graph.spin_until(lambda: node.status().info == f'{node.address}, 1 open')
            assert node.vitals.counters()['pages'] == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(visit())
        graph.spin_until(lambda: node.status().info == f'{node.address}, 0 open')
        assert node.vitals.counters()['pushes'] >= 1


def test_a_page_that_fails_is_counted_and_the_node_stays(monkeypatch):
    with dashboard() as (graph, node):
        bring_up(node)
        draw = node._data.draw
        monkeypatch.setattr(
            node._data, 'draw', lambda name, rows: draw(name, rows) if name == 'banner' else 1 / 0
        )

        async def visit() -> DashClient:
            client = DashClient(node.address)
            await client.connect()
            task = asyncio.create_task(client.run())
            await client.until(lambda: client.result, 10)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return client

        asyncio.run(visit())
        graph.spin_until(lambda: node.vitals.counters().get('page_failures') == 1)
        assert node.state == NodeStatus.ACTIVE


def test_a_web_server_that_does_not_start_is_a_fault_of_the_node(monkeypatch):
    async def dies(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError('no room')

    monkeypatch.setattr(dashboard_node, 'make_app', lambda *_: SimpleNamespace(server=dies))
    with dashboard() as (graph, node):
        bring_up(node)
        graph.spin_until(lambda: node.state == NodeStatus.UNCONFIGURED)
        assert 'web server ended by itself' in node.status().info


# --- the kill switch ---


def press(node: DashboardNode, engage: bool, reason: str) -> tuple[int, Any]:
    """Send what the page's button sends; return status and answer."""
    connection = http.client.HTTPConnection(node.address.removeprefix('http://'), timeout=20)
    headers = {
        'Origin': node.address,
        'Content-Type': 'application/json',
        'X-HEQIS-Action': 'kill-switch',
    }
    body = json.dumps({'engage': engage, 'reason': reason})
    connection.request('POST', '/kill-switch', body, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


class RiskGate:
    """A risk gate's service; it holds back its clearing while `stuck`."""

    def __init__(self, graph: Graph) -> None:
        self.asked: list[tuple[bool, str]] = []
        self.stuck = False
        self.node = graph.add(Node('risk_gate'))
        self.node.create_service(KillSwitch, '~/kill_switch', self.answer)

    def answer(
        self, request: KillSwitch.Request, response: KillSwitch.Response
    ) -> KillSwitch.Response:
        self.asked.append((request.engage, request.reason))
        response.engaged = request.engage or self.stuck
        response.message = 'as it says'
        return response


def pressed(graph: Graph, node: DashboardNode, engage: bool, reason: str = '') -> Any:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(press(node, engage, reason)))
    thread.start()
    graph.spin_until(lambda: not thread.is_alive(), 20)
    return done[0]


def test_the_button_reaches_the_risk_gate_and_brings_its_word_back():
    with dashboard() as (graph, node):
        gate = RiskGate(graph)
        bring_up(node)
        graph.spin_until(node._switch_client.service_is_ready)
        answer = pressed(graph, node, True, 'smoke')
        assert answer == (200, {'done': True, 'engaged': True, 'says': 'as it says'})
        gate.stuck = True
        assert pressed(graph, node, False)[1]['done'] is False
        gate.stuck = False
        assert pressed(graph, node, False)[1] == {
            'done': True,
            'engaged': False,
            'says': 'as it says',
        }
        assert gate.asked == [
            (True, 'the page, 127.0.0.1: smoke'),
            *[(False, 'the page, 127.0.0.1: no reason given')] * 2,
        ]
        assert node.vitals.counters()['kill_switch_calls'] == 3


def test_a_gate_that_is_not_there_or_does_not_answer_is_said_with_the_other_way(monkeypatch):
    monkeypatch.setattr(dashboard_node, 'SWITCH_S', 0.3)
    with dashboard() as (graph, node):
        bring_up(node)
        status, answer = pressed(graph, node, True)
        assert status == 503
        assert 'is not there; make the file run/KILL' in answer['says']
        gate = RiskGate(graph)
        graph.spin_until(node._switch_client.service_is_ready)
        graph.executor.remove_node(gate.node)
        status, answer = pressed(graph, node, True)
        assert status == 503
        assert 'has not answered within 0.3 s, and may still do it' in answer['says']
        assert node._switch_client._pending_requests == {}
        assert node.state == NodeStatus.ACTIVE


@pytest.mark.parametrize(
    ('params', 'acts'),
    [
        ({}, True),
        ({'actions': 'never'}, False),
        ({'host': '0.0.0.0', 'trusted_network': True}, False),
        ({'host': '0.0.0.0', 'trusted_network': True, 'actions': 'always'}, True),
    ],
)
def test_the_page_acts_on_loopback_and_elsewhere_only_where_a_parameter_says_so(params, acts):
    with dashboard(**params) as (graph, node):
        RiskGate(graph)
        bring_up(node)
        graph.spin_until(node._switch_client.service_is_ready)
        status, _ = pressed(graph, node, True)
        assert status == (200 if acts else 405)
        assert ('kill-on' in {name for name, _ in opened_page(node).props}) is acts


# --- that it is no burden ---


def test_it_only_looks_on_so_that_no_writer_waits_for_it():
    with dashboard() as (graph, node):
        # Configured, not active: it takes nothing.
        assert node.trigger_configure() == Result.SUCCESS
        others = OtherNodes(graph)
        others.connect()
        for topic in ('/bars', '/decisions', '/events', '/heartbeat', '/diagnostics'):
            readers = others.node.get_subscriptions_info_by_topic(topic)
            assert [reader.node_name for reader in readers] == ['dashboard_inbox']
            (reader,) = readers
            assert reader.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert others.bars.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        for _ in range(10):
            for seq in range(40):
                others.bars.publish(bar(seq))
        assert others.bars.wait_for_all_acked(Duration(nanoseconds=1))
        names = dict(
            others.node.get_publisher_names_and_types_by_node('dashboard', '/')
            + others.node.get_publisher_names_and_types_by_node('dashboard_inbox', '/')
        )
        topics = set(names) - {'/parameter_events', '/rosout'}
        assert topics == {'/dashboard/transition_event'}


# --- whole processes ---


class Running:
    """A dashboard process of its own namespace that brings itself up."""

    def __init__(self, graph: Graph, folder: Path, namespace: str) -> None:
        self.graph = graph
        self.beats: list[Heartbeat] = []
        ear = graph.add(Node(f'ear_{namespace}', namespace=f'/{namespace}'))
        ear.create_subscription(Heartbeat, 'heartbeat', self.beats.append, qos.HEARTBEAT)
        self.log = folder / f'{namespace}.log'
        arguments = ['-r', f'__ns:=/{namespace}', '-p', 'autostart:=true', '-p', 'port:=0']
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'heqis_dashboard.dashboard_node', '--ros-args', *arguments],
                stdout=log,
                stderr=log,
                env=os.environ,
            )

    def address(self) -> str:
        """Wait until it is active; return where its page is."""

        def node() -> NodeStatus:
            return self.beats[-1].nodes[0] if self.beats else NodeStatus()

        self.graph.spin_until(
            lambda: node().state == NodeStatus.ACTIVE and 'http' in node().info, 30
        )
        return str(node().info).partition(',')[0]

    def end(self) -> int:
        """Tell it to end; return its exit code: 0 only if it took less than 1.8 s.

        What it takes beyond that is Python's own end, at the low priority that it gives itself.
        """
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Graph, str], Running]]:
    """Return a function that starts a process, ended after the test whatever happens."""
    running: list[Running] = []

    def run(graph: Graph, namespace: str) -> Running:
        running.append(Running(graph, tmp_path, namespace))
        return running[-1]

    yield run
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


@pytest.mark.graph
def test_two_dashboards_in_two_namespaces_do_not_mix_and_end_in_time_with_open_pages(run):
    with ros_graph() as graph:
        processes = {name: run(graph, name) for name in ('one', 'two')}
        pages = {name: process.address() for name, process in processes.items()}
        assert len(set(pages.values())) == 2
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        for process in processes.values():
            niceness = os.getpriority(os.PRIO_PROCESS, process.process.pid)
            assert niceness == min(19, mine + dashboard_node.NICE)
        for seq, name in enumerate(processes):
            others = OtherNodes(graph, f'/{name}', f'stream_{name}')
            others.history = {seq: bar(seq, f'stream_{name}')}
            graph.spin_until(lambda others=others: others.requests.count((1, 0)) >= 2, 20)

        async def visit() -> dict[str, int]:
            clients = {name: DashClient(url) for name, url in pages.items()}
            tasks = []
            for seq, (name, client) in enumerate(clients.items()):
                await client.connect()
                tasks.append(asyncio.create_task(client.run()))
                await client.until(
                    lambda client=client: client.figure['data'] and client.figure['data'][0]['x'],
                    20,
                )
                options = {option['value'] for option in client.props['symbol', 'options']}
                assert options == {f'{symbol}@stream_{name}' for symbol in SYMBOLS}
                assert client.figure['data'][0]['close'] == [BARS.values[seq, 3, 0]]
            ends = {
                name: await asyncio.to_thread(process.end) for name, process in processes.items()
            }
            await asyncio.wait_for(asyncio.gather(*tasks), 10)
            return ends

        for name, code in asyncio.run(visit()).items():
            log = processes[name].log.read_text()
            assert code == 0, log
            assert 'Traceback' not in log
            assert 'rror' not in log, log
