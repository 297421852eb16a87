# SPDX-License-Identifier: Apache-2.0
"""The managed node with a real rclpy: gates, freeing, refusals, bugs, faults in callbacks and workers."""

from __future__ import annotations

import threading

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node
from rclpy.parameter import Parameter

from heqis_core.errors import DataError, HeqisError
from heqis_core.testing import wait_until
from heqis_msgs.msg import Event, NodeStatus
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.node import ManagedNode
from heqis_ros.params import Param, ParamTable

UNCONFIGURED, INACTIVE, ACTIVE = (
    NodeStatus.UNCONFIGURED,
    NodeStatus.INACTIVE,
    NodeStatus.ACTIVE,
)
TABLE = ParamTable(
    'probe',
    [
        Param('rate_hz', float, 50.0, 'Rate of the timer.', unit='Hz', minimum=1.0, maximum=100.0),
        Param('mode', str, 'plain', 'What it does.', choices=('plain', 'fancy')),
    ],
)


class Probe(ManagedNode):
    """One of everything, and a switch for each way to fail."""

    PARAMS = TABLE

    def __init__(self, **kwargs):
        """Start with nothing broken."""
        super().__init__(**kwargs)
        self.calls = []
        self.fail: dict[str, BaseException] = {}
        self.received = []
        self.ticks = 0
        self.loops = 0
        self.freed = []

    def _maybe_fail(self, where):
        self.calls.append(where)
        if where in self.fail:
            raise self.fail[where]

    def configure(self, params):
        self.pub = self.publisher(Event, 'out', qos.EVENTS)
        self.subscription(Event, 'in', qos.EVENTS, self.receive)
        self.timer(1.0 / params.rate_hz, self.tick)
        self.service(KillSwitch, '~/kill', self.answer)
        self.client(KillSwitch, 'elsewhere')
        self.worker('loop', self.work)
        self.defer(lambda: self.freed.append('configured'))
        self._maybe_fail('configure')

    def activate(self):
        self.defer(lambda: self.freed.append('activated'))
        self._maybe_fail('activate')

    def deactivate(self):
        self._maybe_fail('deactivate')

    def cleanup(self):
        self._maybe_fail('cleanup')

    def receive(self, msg):
        if 'receive' in self.fail:
            raise self.fail['receive']
        self.received.append(msg.text)

    def tick(self):
        self.ticks += 1
        if 'tick' in self.fail:
            raise self.fail['tick']

    def answer(self, request, response):
        self._maybe_fail('answer')
        response.engaged = request.engage
        return response

    def work(self, stop):
        while not stop.wait(0.005):
            self.loops += 1
            if 'work' in self.fail:
                raise self.fail['work']


def entities(node):
    """Return how many of each kind of entity a node has."""
    kinds = ('publishers', 'subscriptions', 'timers', 'services', 'clients', 'guards', 'waitables')
    counts = {kind: len(list(getattr(node, kind))) for kind in kinds}
    counts['managed'] = len(node._managed_entities)
    counts['threads'] = sum(t.name.startswith('/probe') for t in threading.enumerate())
    return counts


@pytest.fixture
def probe(graph):
    """Return an unconfigured probe on the executor."""
    return graph.add(Probe())


def activate(node):
    """Configure and activate, and fail if that fails."""
    assert node.trigger_configure() == Result.SUCCESS
    assert node.trigger_activate() == Result.SUCCESS
    assert node.state == ACTIVE


def sender(graph, probe):
    """Return a function that publishes on the probe's input, once both have found each other."""
    other = graph.add(Node('sender'))
    pub = other.create_publisher(Event, 'in', qos.EVENTS)
    graph.spin_until(lambda: pub.get_subscription_count() == 1, what='discovery')
    return lambda text: pub.publish(Event(text=text))


def test_subscription_is_gated_by_the_state(graph, probe):
    """A message before activation or after deactivation is counted, never handled."""
    probe.trigger_configure()
    send = sender(graph, probe)
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
    before = entities(probe)['threads']
    probe.trigger_configure()
    assert entities(probe)['threads'] == before == 0
    for _ in range(2):
        loops = probe.loops
        probe.trigger_activate()
        wait_until(lambda loops=loops: probe.loops > loops + 2, 5.0)
        assert entities(probe)['threads'] == 1
        probe.trigger_deactivate()
        assert entities(probe)['threads'] == 0


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
    activate(probe)
    pub = probe.pub
    probe.destroy_publisher(pub)
    assert not probe.publish(pub, Event(text='x'))
    assert probe.vitals.counters()['publish_failed'] == 1
    assert probe.state == ACTIVE


@pytest.mark.parametrize('way', ['cleanup', 'shutdown', 'error'])
def test_everything_is_freed(probe, way):
    """Cleanup, shutdown and error leave what there was before configure, and run what was deferred."""
    before = entities(probe)
    activate(probe)
    assert entities(probe)['publishers'] == before['publishers'] + 1
    if way == 'cleanup':
        assert probe.trigger_deactivate() == Result.SUCCESS
        assert probe.trigger_cleanup() == Result.SUCCESS
    elif way == 'shutdown':
        assert probe.trigger_shutdown() == Result.SUCCESS
    else:
        probe.fail['deactivate'] = RuntimeError('bug')
        assert probe.trigger_deactivate() == Result.ERROR
    assert entities(probe) == before
    assert probe.freed == ['activated', 'configured']
    assert probe.calls[-2:] == ['deactivate', 'cleanup']
    assert probe.state == (NodeStatus.FINALIZED if way == 'shutdown' else UNCONFIGURED)


@pytest.mark.parametrize('step', ['configure', 'activate'])
def test_a_refusal_leaves_nothing_behind_and_can_be_tried_again(probe, step, capfd):
    """A HeqisError is one log line, FAILURE, the state before, and the next attempt works."""
    before = entities(probe)
    if step == 'activate':
        probe.trigger_configure()
        before = entities(probe)
    probe.fail[step] = DataError('data.csv:7: price is abc')
    assert getattr(probe, f'trigger_{step}')() == Result.FAILURE
    assert probe.state == (UNCONFIGURED if step == 'configure' else INACTIVE)
    assert entities(probe) == before
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
    before = entities(probe)
    if step == 'activate':
        probe.trigger_configure()
    probe.fail[step] = ZeroDivisionError('boom')
    assert getattr(probe, f'trigger_{step}')() == Result.ERROR
    assert probe.state == UNCONFIGURED
    assert entities(probe) == before
    assert capfd.readouterr().err.count('Traceback') == 1
    probe.fail.clear()
    activate(probe)


@pytest.mark.parametrize('where', ['tick', 'receive', 'work'])
@pytest.mark.parametrize('kind', [KeyError, HeqisError])
def test_a_fault_in_a_callback_or_worker_brings_the_node_down_visibly(
    graph, probe, where, kind, capfd
):
    """The node is unconfigured, says why, has freed all, and comes up again when told to."""
    before = entities(probe)
    activate(probe)
    send = sender(graph, probe)
    probe.fail[where] = kind('lost it')
    send('x')
    graph.spin_until(lambda: probe.state == UNCONFIGURED, what=f'{where} noticed')
    assert entities(probe) == before
    assert 'lost it' in probe.status().info
    assert probe.vitals.counters()['failures'] == 1
    assert capfd.readouterr().err.count('Traceback') == (0 if kind is HeqisError else 1)
    probe.fail.clear()
    activate(probe)


def test_a_worker_that_does_not_end_is_reported_and_blocks_what_would_crash(probe, monkeypatch):
    """Deactivate goes on without it; activate and cleanup are refused until it ends."""
    monkeypatch.setattr('heqis_ros.worker.JOIN_S', 0.1)
    release = threading.Event()
    started = threading.Event()

    def deaf(stop):
        started.set()
        release.wait(20.0)

    probe.trigger_configure()
    probe._workers.add('loop', deaf)
    probe.trigger_activate()
    assert started.wait(5.0)
    assert probe.trigger_deactivate() == Result.SUCCESS
    assert 'loop' in probe.status().info
    assert probe.vitals.counters()['workers_stuck'] == 1
    assert probe.trigger_activate() == Result.FAILURE
    assert probe.trigger_cleanup() == Result.FAILURE
    assert probe.state == INACTIVE
    release.set()
    wait_until(lambda: not probe.worker_alive(), 5.0)
    assert probe.trigger_cleanup() == Result.SUCCESS
    activate(probe)


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
    assert probe.state == INACTIVE
    probe.fail['answer'] = RuntimeError('bug')
    assert not ask().engaged
    graph.spin_until(lambda: probe.state == UNCONFIGURED)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'rate_hz': 1000.0}, ('probe', 'rate_hz', '1000.0', '1.0 to 100.0')),
        ({'mode': 3}, ('probe', 'mode', '3', 'plain, fancy')),
        ({'rat_hz': 2.0}, ('probe', 'rat_hz', '2.0', 'did you mean rate_hz?')),
    ],
)
def test_a_wrong_parameter_refuses_configure(graph, given, words):
    """The node comes up, says what is wrong, and stays unconfigured."""
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = graph.add(Probe(parameter_overrides=overrides))
    for _ in range(2):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == UNCONFIGURED
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
    assert probe.state == UNCONFIGURED
    assert ask(Transition.TRANSITION_CONFIGURE)
    assert ask(Transition.TRANSITION_ACTIVATE)
    assert not ask(Transition.TRANSITION_CONFIGURE)
    assert probe.state == ACTIVE
    assert ask(Transition.TRANSITION_DEACTIVATE)
    assert ask(Transition.TRANSITION_CLEANUP)
    assert probe.state == UNCONFIGURED


def test_ports_outside_their_phase_are_refused(probe):
    """What nobody would free cannot be made."""
    with pytest.raises(RuntimeError, match='configure'):
        probe.publisher(Event, 'x', qos.EVENTS)


def test_ports_made_in_activate_live_until_deactivate(graph, probe):
    """A second activation does not pile them up."""
    probe.activate = lambda: probe.timer(0.01, lambda: probe.count('extra'))
    probe.trigger_configure()
    timers = entities(probe)['timers']
    for round_ in (1, 2):
        probe.trigger_activate()
        assert entities(probe)['timers'] == timers + 1
        graph.spin_until(lambda n=round_: probe.vitals.counters().get('extra', 0) >= n)
        probe.trigger_deactivate()
        assert entities(probe)['timers'] == timers


def test_spin_count_advances_in_every_state(graph, probe):
    """The proof that the executor runs is independent of the gates."""
    graph.spin_until(lambda: probe.status().spin_count >= 2)
    activate(probe)
    seen = probe.status().spin_count
    graph.spin_until(lambda: probe.status().spin_count > seen)


def test_relative_names_follow_namespace_and_remap(graph):
    """The whole node moves with its namespace."""
    node = graph.add(Probe(namespace='/other', cli_args=['--ros-args', '-r', 'out:=renamed']))
    node.trigger_configure()
    assert node.status().name == '/other/probe'
    assert node.pub.topic_name == '/other/renamed'
