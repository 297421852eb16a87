# SPDX-License-Identifier: Apache-2.0
"""The demo's ear: what nodes publish arrives in the graph's state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip('heqis_msgs.msg', reason='the workspace is not built and sourced')
rclpy = pytest.importorskip('rclpy', reason='no ROS 2 here')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402

from heqis_bringup.monitor_node import Monitor  # noqa: E402
from heqis_core.frame import N_STAGES, Stage  # noqa: E402
from heqis_core.testing import free_domain_id, wait_until  # noqa: E402
from heqis_msgs.msg import Decisions, Event, Heartbeat, NodeStatus, Signal, Signals  # noqa: E402
from heqis_ros import qos  # noqa: E402


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Yield a monitor of `/x`, and publishers in `/x` and in `/other`, once all have met."""
    monkeypatch.setitem(os.environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setitem(os.environ, 'FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    domain = free_domain_id()
    monitor = Monitor('/x', domain)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('speaker', namespace='/x', context=context)
    kinds = {
        'heartbeat': (Heartbeat, 'heartbeat', qos.HEARTBEAT),
        'elsewhere': (Heartbeat, '/other/heartbeat', qos.HEARTBEAT),
        'decisions': (Decisions, 'decisions', qos.DECISIONS),
        'signals': (Signals, 'signals', qos.SIGNALS),
        'events': (Event, 'events', qos.EVENTS),
        'diagnostics': (DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS),
    }
    pubs = {name: node.create_publisher(*kind) for name, kind in kinds.items()}
    try:
        wait_until(
            lambda: all(p.get_subscription_count() for n, p in pubs.items() if n != 'elsewhere'),
            20,
            'discovery',
        )
        yield SimpleNamespace(monitor=monitor, state=monitor.state, **pubs)
    finally:
        node.destroy_node()
        context.try_shutdown()
        monitor.close()


def heartbeat(count: int) -> Heartbeat:
    status = NodeStatus(name='/x/gateway', state=NodeStatus.ACTIVE, info='file', pending=2)
    status.counter_names, status.counter_values = ['bars_in'], [10 * count]
    status.stage_names, status.stage_last_us = ['features'], [7]
    return Heartbeat(
        board='gateway', process='gateway', pid=9, start_id=2**62, count=count, nodes=[status]
    )


def test_what_is_published_arrives_in_the_state(graph: SimpleNamespace) -> None:
    stamps = [0] * N_STAGES
    stamps[Stage.INGEST], stamps[Stage.COMMITTED] = 10**18, 10**18 + 3_000
    status = DiagnosticStatus(name='heqis: compute', level=DiagnosticStatus.WARN, message='slow')
    for count in (1, 2):
        graph.heartbeat.publish(heartbeat(count))
    graph.elsewhere.publish(heartbeat(99))
    graph.decisions.publish(Decisions(stamps=stamps))
    graph.signals.publish(Signals(signals=[Signal(symbol='A', action=Signal.SELL, score=-0.5)]))
    graph.events.publish(Event(level=Event.ERROR, source='s', kind='k', subject='u', text='t'))
    graph.diagnostics.publish(DiagnosticArray(status=[status]))

    state = graph.state
    wait_until(lambda: state.total('bars_in', 'gateway') == 20, 10, 'the second heartbeat')
    wait_until(lambda: bool(state.latency_us()), 10, 'the stamps')
    wait_until(lambda: bool(state.signals and state.errors), 10, 'signal and event')
    wait_until(lambda: bool(state.diagnostics), 10, 'diagnostics')
    view = state.nodes['gateway']
    assert (view.info, view.pending, dict(view.stages_us)) == ('file', 2, {'features': 7})
    assert state.latency_us()['ingest_to_signal'] == (3.0, 3.0)
    assert list(state.signals) == [('A', 'SELL', -0.5)]
    assert list(state.errors) == ['s k u: t']
    assert state.diagnostics == {'heqis: compute': (1, 'slow')}


def test_a_closed_monitor_keeps_its_state_and_hears_no_more(graph: SimpleNamespace) -> None:
    graph.heartbeat.publish(heartbeat(1))
    wait_until(lambda: graph.state.total('bars_in') == 10, 10, 'the heartbeat')
    graph.monitor.close()
    wait_until(lambda: graph.heartbeat.get_subscription_count() == 0, 20, 'the farewell')
    assert graph.state.total('bars_in') == 10
