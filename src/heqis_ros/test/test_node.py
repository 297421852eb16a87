# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a managed node with a real rclpy: freeing, refusals, bugs, stuck workers."""

from __future__ import annotations

import threading

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node
from rclpy.parameter import Parameter

from heqis_core.errors import DataError
from heqis_core.testing import wait_until
from heqis_msgs.msg import NodeStatus


@pytest.mark.parametrize('way', ['cleanup', 'shutdown', 'error'])
def test_everything_is_freed(probe, way):
    """What was there before configure is left, and what was deferred has run."""
    before = probe.entities()
    probe.bring_up()
    assert probe.entities()['publishers'] == before['publishers'] + 1
    if way == 'cleanup':
        assert probe.trigger_deactivate() == Result.SUCCESS
        assert probe.trigger_cleanup() == Result.SUCCESS
    elif way == 'shutdown':
        assert probe.trigger_shutdown() == Result.SUCCESS
    else:
        probe.fail['deactivate'] = RuntimeError('bug')
        assert probe.trigger_deactivate() == Result.ERROR
    assert probe.entities() == before
    assert probe.freed == ['activated', 'configured']
    assert probe.calls[-2:] == ['deactivate', 'cleanup']
    assert probe.state == (NodeStatus.FINALIZED if way == 'shutdown' else NodeStatus.UNCONFIGURED)


@pytest.mark.parametrize('step', ['configure', 'activate'])
def test_a_refusal_leaves_nothing_behind_and_can_be_tried_again(probe, step, capfd):
    """A HeqisError is one log line, FAILURE, the state before, and the next attempt works."""
    before = probe.entities()
    if step == 'activate':
        probe.trigger_configure()
        before = probe.entities()
    probe.fail[step] = DataError('data.csv:7: price is abc')
    assert getattr(probe, f'trigger_{step}')() == Result.FAILURE
    assert probe.state == (NodeStatus.UNCONFIGURED if step == 'configure' else NodeStatus.INACTIVE)
    assert probe.entities() == before
    assert probe.status().info == f'{step} refused: data.csv:7: price is abc'
    log = capfd.readouterr().err
    assert log.count('data.csv:7: price is abc') == 1
    assert 'Traceback' not in log
    probe.fail.clear()
    if step == 'configure':
        probe.trigger_configure()
    assert probe.trigger_activate() == Result.SUCCESS
    assert probe.status().info == ''


@pytest.mark.parametrize('step', ['configure', 'activate'])
def test_a_bug_frees_everything_and_is_logged_once(probe, step, capfd):
    """An unexpected exception ends in unconfigured with one traceback."""
    before = probe.entities()
    if step == 'activate':
        probe.trigger_configure()
    probe.fail[step] = ZeroDivisionError('boom')
    assert getattr(probe, f'trigger_{step}')() == Result.ERROR
    assert probe.state == NodeStatus.UNCONFIGURED
    assert probe.entities() == before
    assert capfd.readouterr().err.count('Traceback') == 1
    probe.fail.clear()
    probe.bring_up()


def test_a_worker_that_does_not_end_blocks_what_would_crash_it(probe, monkeypatch):
    """Nothing is undone under a running thread; when it has ended, everything goes on."""
    monkeypatch.setattr('heqis_ros.worker.JOIN_S', 0.1)
    release, started = threading.Event(), threading.Event()

    def deaf(stop):
        started.set()
        release.wait(20.0)

    before = probe.entities()
    probe.trigger_configure()
    probe.worker('loop', deaf)
    probe.trigger_activate()
    assert started.wait(5.0)
    assert probe.trigger_deactivate() == Result.SUCCESS
    assert probe.status().info == 'worker loop did not end in time'
    assert probe.vitals.counters()['workers_stuck'] == 1
    assert not probe.pub.is_activated
    assert probe.trigger_activate() == Result.FAILURE
    assert probe.trigger_cleanup() == Result.FAILURE
    assert 'worker loop still runs' in probe.status().info
    assert probe.state == NodeStatus.INACTIVE
    assert probe.calls == ['configure', 'activate']
    assert probe.freed == []
    release.set()
    wait_until(lambda: not probe.worker_alive(), 5.0)
    assert probe.trigger_cleanup() == Result.SUCCESS
    assert probe.calls[2:] == ['deactivate', 'cleanup']
    assert probe.entities() == before
    probe.bring_up()


def test_a_worker_that_fails_at_once_is_not_forgotten(graph, probe):
    """Even before activate has returned: the reason stays and the node comes down."""
    probe.trigger_configure()
    probe.worker('loop', lambda stop: 1 / 0)
    probe.trigger_activate()
    graph.spin_until(lambda: probe.state == NodeStatus.UNCONFIGURED)
    assert probe.status().info == 'worker loop failed: ZeroDivisionError: division by zero'


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'rate_hz': 1000.0}, ('probe', 'rate_hz', '1000.0', '1.0 to 100.0')),
        ({'mode': 3}, ('probe', 'mode', '3', 'plain, fancy')),
        ({'rat_hz': 2.0}, ('probe', 'rat_hz', '2.0', 'did you mean rate_hz?')),
    ],
)
def test_a_wrong_parameter_refuses_configure(make_probe, given, words):
    """The node comes up, says what is wrong, and stays unconfigured."""
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = make_probe(parameter_overrides=overrides)
    for _ in range(2):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == NodeStatus.UNCONFIGURED
    assert node.calls == []
    for word in words:
        assert word in node.status().info


def test_transitions_over_the_service_and_one_that_does_not_exist(graph, probe):
    """A request that the state does not allow is refused and harms nothing."""
    client = graph.add(Node('caller')).create_client(ChangeState, 'probe/change_state')
    graph.spin_until(client.service_is_ready)

    def ask(transition):
        request = ChangeState.Request()
        request.transition.id = transition
        future = client.call_async(request)
        graph.spin_until(future.done, what='an answer')
        return future.result().success

    assert not ask(Transition.TRANSITION_ACTIVATE)
    assert probe.state == NodeStatus.UNCONFIGURED
    assert ask(Transition.TRANSITION_CONFIGURE)
    assert ask(Transition.TRANSITION_ACTIVATE)
    assert not ask(Transition.TRANSITION_CONFIGURE)
    assert probe.state == NodeStatus.ACTIVE
    assert ask(Transition.TRANSITION_DEACTIVATE)
    assert ask(Transition.TRANSITION_CLEANUP)
    assert probe.state == NodeStatus.UNCONFIGURED


def test_spin_count_advances_in_every_state(graph, probe):
    """The proof that the executor runs is independent of the gates."""
    graph.spin_until(lambda: probe.status().spin_count >= 2)
    probe.bring_up()
    seen = probe.status().spin_count
    graph.spin_until(lambda: probe.status().spin_count > seen)


def test_a_fault_is_logged_once_and_what_changes_all_the_time_now_and_then(
    probe, monkeypatch, capfd
):
    """Told ten times a second, a link that fails must neither be silent nor fill the log."""
    now_s = [100.0]
    monkeypatch.setattr('heqis_ros.node.time.monotonic', lambda: now_s[0])
    for number in range(300):
        probe.tell_fault('no peer')
        probe.tell_fault(f'a stranger at port {number // 10}', 'keys')
        now_s[0] += 0.1
    probe.tell_fault('')
    now_s[0] += 20
    probe.tell_fault('no peer')
    log = capfd.readouterr().err
    assert log.count('no peer') == 2
    assert 5 <= log.count('a stranger at port') <= 6
    assert 'a stranger at port 0' in log
