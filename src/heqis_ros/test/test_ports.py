# SPDX-License-Identifier: Apache-2.0
"""Ports of a managed node with a real rclpy: gates, faults, freeing, names."""

from __future__ import annotations

import pytest
from rclpy.node import Node

from heqis_core.errors import HeqisError
from heqis_core.testing import wait_until
from heqis_msgs.msg import Event, NodeStatus
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos


def test_subscription_is_gated_by_the_state(graph, sender, probe):
    """A message before activation or after deactivation is counted, never handled."""
    probe.trigger_configure()
    send = sender('in')
    send('early')
    graph.spin_until(lambda: probe.vitals.counters().get('discarded_inactive') == 1)
    probe.trigger_activate()
    send('now')
    graph.spin_until(lambda: probe.received == ['now'])
    probe.trigger_deactivate()
    send('late')
    graph.spin_until(lambda: probe.vitals.counters().get('discarded_inactive') == 2)
    probe.trigger_activate()
    send('again')
    graph.spin_until(lambda: probe.received == ['now', 'again'])


def test_timers_run_only_while_active(graph, probe):
    """No tick in inactive, ticks in active, none after, ticks again after a second activation."""
    probe.trigger_configure()
    graph.spin_for(0.1)
    assert probe.ticks == 0
    probe.trigger_activate()
    graph.spin_until(lambda: probe.ticks >= 3)
    probe.trigger_deactivate()
    seen = probe.ticks
    graph.spin_for(0.1)
    assert probe.ticks == seen
    probe.trigger_activate()
    graph.spin_until(lambda: probe.ticks >= seen + 2)


def test_workers_run_only_while_active(probe):
    """The thread exists exactly between activate and deactivate, also the second time."""
    before = probe.entities()['threads']
    probe.trigger_configure()
    assert probe.entities()['threads'] == before == 0
    for _ in range(2):
        loops = probe.loops
        probe.trigger_activate()
        wait_until(lambda loops=loops: probe.loops > loops + 2, 5.0)
        assert probe.entities()['threads'] == 1
        probe.trigger_deactivate()
        assert probe.entities()['threads'] == 0


def test_publishers_are_silent_and_counted_while_inactive(graph, probe):
    """`publish` says whether the message went out."""
    other = graph.add(Node('listener'))
    heard = []
    other.create_subscription(Event, 'out', lambda msg: heard.append(msg.text), qos.EVENTS)
    probe.trigger_configure()
    graph.spin_until(lambda: probe.pub.get_subscription_count() == 1)
    assert not probe.publish(probe.pub, Event(text='early'))
    probe.trigger_activate()
    assert probe.publish(probe.pub, Event(text='now'))
    graph.spin_until(lambda: heard == ['now'])
    assert probe.vitals.counters()['publish_inactive'] == 1


def test_publish_from_a_worker_while_dds_ends_is_counted_not_raised(probe):
    """A destroyed publisher costs a counter, not a thread."""
    probe.bring_up()
    pub = probe.pub
    probe.destroy_publisher(pub)
    assert not probe.publish(pub, Event(text='x'))
    assert probe.vitals.counters()['publish_failed'] == 1
    assert probe.state == NodeStatus.ACTIVE


@pytest.mark.parametrize('where', ['tick', 'receive', 'work'])
@pytest.mark.parametrize('kind', [KeyError, HeqisError])
def test_a_fault_in_a_callback_or_worker_brings_the_node_down_visibly(
    graph, sender, probe, where, kind, capfd
):
    """The node is unconfigured, says why, has freed all, and comes up again when told to."""
    before = probe.entities()
    probe.bring_up()
    send = sender('in')
    probe.fail[where] = kind('lost it')
    send('x')
    graph.spin_until(lambda: probe.state == NodeStatus.UNCONFIGURED, what=f'{where} noticed')
    assert probe.entities() == before
    assert 'lost it' in probe.status().info
    assert probe.vitals.counters()['failures'] == 1
    assert capfd.readouterr().err.count('Traceback') == (0 if kind is HeqisError else 1)
    probe.fail.clear()
    probe.bring_up()


def test_service_answers_refuses_and_survives_a_bug(graph, probe):
    """A HeqisError reaches the caller as a message; a bug answers too, and faults the node."""
    client = graph.add(Node('caller')).create_client(KillSwitch, 'probe/kill')

    def ask():
        future = client.call_async(KillSwitch.Request(engage=True))
        graph.spin_until(future.done, what='an answer')
        return future.result()

    probe.trigger_configure()
    graph.spin_until(client.service_is_ready)
    assert ask().engaged
    probe.fail['answer'] = HeqisError('not now')
    assert ask().message == 'not now'
    assert probe.state == NodeStatus.INACTIVE
    probe.fail['answer'] = RuntimeError('bug')
    assert not ask().engaged
    graph.spin_until(lambda: probe.state == NodeStatus.UNCONFIGURED)


def test_ports_outside_their_phase_are_refused(probe):
    """What nobody would free cannot be made."""
    with pytest.raises(RuntimeError, match='configure'):
        probe.publisher(Event, 'x', qos.EVENTS)


def test_ports_made_in_activate_live_until_deactivate(graph, probe):
    """A second activation does not pile them up."""
    probe.activate = lambda: probe.timer(0.01, lambda: probe.count('extra'))
    probe.trigger_configure()
    timers = probe.entities()['timers']
    for round_ in (1, 2):
        probe.trigger_activate()
        assert probe.entities()['timers'] == timers + 1
        graph.spin_until(lambda n=round_: probe.vitals.counters().get('extra', 0) >= n)
        probe.trigger_deactivate()
        assert probe.entities()['timers'] == timers


def test_relative_names_follow_namespace_and_remap(make_probe):
    """The whole node moves with its namespace."""
    node = make_probe(namespace='/other', cli_args=['--ros-args', '-r', 'out:=renamed'])
    node.trigger_configure()
    assert node.status().name == '/other/probe'
    assert node.pub.topic_name == '/other/renamed'
