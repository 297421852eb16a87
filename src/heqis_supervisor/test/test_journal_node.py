# SPDX-License-Identifier: Apache-2.0
"""What goes past on `predictions` and `events` is stored, and what cannot be is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.decision import Predictions
from heqis_core.io.journal import Journal
from heqis_msgs import msg as m
from heqis_ros import qos
from heqis_ros.convert import predictions_to_msg
from heqis_ros.testing import ros_graph
from heqis_supervisor.journal_node import JournalNode
from heqis_supervisor.risk_gate_node import RiskGateNode
from heqis_supervisor.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'journal.sqlite'


@pytest.fixture
def graph(path: Path):
    with ros_graph({'path': str(path)}) as graph:
        yield graph


def predictions(seq: int) -> m.Predictions:
    values = np.full((1, 2), seq, np.float32), np.zeros((1, 2, 3), np.float32)
    return predictions_to_msg(
        Predictions('s', 1, seq, seq, 0, 'b', ('g',), 'g', ('x', 'y'), *values)
    )


def test_predictions_and_events_are_stored(graph, path) -> None:
    node = graph.add(JournalNode(Store()))
    assert node.trigger_configure() == Result.SUCCESS
    assert node.trigger_activate() == Result.SUCCESS
    other = graph.add(Node('other'))
    out = other.create_publisher(m.Predictions, 'predictions', qos.PREDICTIONS)
    events = other.create_publisher(m.Event, 'events', qos.EVENTS)
    graph.spin_until(lambda: out.get_subscription_count() == events.get_subscription_count() == 1)
    for seq in range(3):
        out.publish(predictions(seq))
        events.publish(m.Event(stamp_ns=seq, level=1, source='a', kind='k', subject='s', text='t'))
    events.publish(m.Event(level=9))
    broken = predictions(4)
    broken.symbols = ['x']
    out.publish(broken)
    graph.spin_until(lambda: node.vitals.progress == 6)
    graph.spin_until(lambda: node.vitals.counters().get('bad_messages') == 2)
    assert node.trigger_deactivate() == Result.SUCCESS
    assert node.trigger_cleanup() == Result.SUCCESS
    with Journal.open(path, read_only=True) as journal:
        assert [event.stamp_ns for event in journal.events()] == [0, 1, 2]
        assert [float(p.log_return[0, 0]) for p in journal.predictions()] == [0.0, 1.0, 2.0]


def test_both_nodes_of_the_process_share_one_journal(graph, path) -> None:
    store = Store()
    nodes = [graph.add(JournalNode(store)), graph.add(RiskGateNode(store))]
    for node in nodes:
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
    for node in nodes:
        assert node.trigger_deactivate() == Result.SUCCESS
        assert node.trigger_cleanup() == Result.SUCCESS
    Journal.open(path).close()


def test_a_damaged_journal_is_refused_and_the_node_says_how_to_repair_it(graph, path) -> None:
    path.write_bytes(b'no database at all, but long enough to be looked at' * 100)
    node = graph.add(JournalNode(Store()))
    assert node.trigger_configure() == Result.FAILURE
    assert 'journal_repair' in node.vitals.failure
