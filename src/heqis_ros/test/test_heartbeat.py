# SPDX-License-Identifier: Apache-2.0
"""The heartbeat thread inside one process: rate, refusals, cost, and ends of every kind."""

from __future__ import annotations

import threading
import time

import pytest
import rclpy
from rclpy.node import Node

from heqis_core.errors import ConfigError
from heqis_core.testing import wait_until
from heqis_msgs.msg import Heartbeat, NodeStatus
from heqis_ros import heartbeat, qos
from heqis_ros.heartbeat import LAST_BEATS, HeartbeatThread, rate_hz


@pytest.fixture
def heard(graph):
    """Return the list of heartbeats that arrive in the root namespace."""
    beats = []
    node = graph.add(Node('ear'))
    node.create_subscription(Heartbeat, 'heartbeat', beats.append, qos.HEARTBEAT)
    return beats


@pytest.mark.parametrize('text', ['often', '0', '-1', 'nan', '1e9'])
def test_a_rate_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv('HEQIS_HEARTBEAT_HZ', text)
    with pytest.raises(ConfigError, match='HEQIS_HEARTBEAT_HZ is '):
        rate_hz()


def test_the_rate_is_5_hz_by_default(monkeypatch):
    monkeypatch.delenv('HEQIS_HEARTBEAT_HZ', raising=False)
    assert rate_hz() == 5.0
    monkeypatch.setenv('HEQIS_HEARTBEAT_HZ', '2.5')
    assert rate_hz() == 2.5


def test_beats_follow_the_state_of_the_nodes(graph, heard, make_probe):
    probe = make_probe()
    beat = HeartbeatThread('p', [probe], rate=50.0)
    try:
        graph.spin_until(lambda: bool(heard))
        assert heard[-1].nodes[0].state == NodeStatus.UNCONFIGURED
        probe.bring_up()
        graph.spin_until(lambda: heard[-1].nodes[0].state == NodeStatus.ACTIVE)
        assert not heard[-1].hold
        probe.hold = True
        graph.spin_until(lambda: heard[-1].hold)
        assert heard[-1].process == 'p'
    finally:
        beat.stop()
    last = heard[-1].count
    graph.spin_for(0.2)
    assert heard[-1].count <= last + 1 + LAST_BEATS
    assert 'p.heartbeat' not in [thread.name for thread in threading.enumerate()]


def test_it_keeps_its_name_under_a_global_rename(graph, make_probe):
    context = rclpy.Context()
    context.init(['--ros-args', '-r', '__node:=renamed', '-r', '__ns:=/moved'])
    beat = HeartbeatThread('p', [], rate=50.0, context=context)
    try:
        assert beat.topic == '/moved/heartbeat'
        assert beat.node_name == 'p_heartbeat'
    finally:
        beat.stop()
        context.shutdown()


def test_a_bug_in_a_node_does_not_silence_the_process(graph, heard, make_probe, capfd):
    """The count goes on with a gap, and one line says what happened."""
    probe = make_probe()
    beat = HeartbeatThread('p', [probe], rate=50.0)
    try:
        graph.spin_until(lambda: bool(heard))
        probe.vitals.info = 5
        wait_until(lambda: beat.failed >= 3, 5.0)
        probe.vitals.info = 'well again'
        graph.spin_until(lambda: heard[-1].nodes[0].info == 'well again')
    finally:
        beat.stop()
    assert heard[-1].count >= len(heard) + 3
    assert capfd.readouterr().err.count('heartbeat was not sent: TypeError') == 1


def test_it_outlives_a_context_that_ends_first(make_probe):
    context = rclpy.Context()
    context.init([])
    beat = HeartbeatThread('p', [], rate=100.0, context=context)
    context.shutdown()
    wait_until(lambda: beat.failed > 0, 5.0)
    assert beat.is_alive()
    beat.stop()
    assert not beat.is_alive()


def test_a_heartbeat_is_cheap(make_probe):
    """Printed for the record; the bound is ten times what was measured on a slow machine."""
    probe = make_probe()
    for index in range(12):
        probe.count(f'counter_{index}', index)
    for index in range(4):
        probe.stage_us(f'stage_{index}', 100.0)
    beat = HeartbeatThread('p', [probe, probe], rate=0.1)
    try:
        n = 200
        start = time.thread_time()
        for _ in range(n):
            beat._beat()
        cost_us = (time.thread_time() - start) / n * 1e6
    finally:
        beat.stop()
    print(f'one heartbeat of two nodes costs {cost_us:.0f} us of CPU')
    assert cost_us < 5000.0
    assert heartbeat.DEFAULT_RATE_HZ * cost_us < 50_000.0
