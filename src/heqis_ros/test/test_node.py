# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a managed node with a real rclpy: freeing, refusals, bugs, stuck workers."""

from __future__ import annotations

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


def test_spin_count_advances_in_every_state(graph, probe):
    """The proof that the executor runs is independent of the gates."""
    graph.spin_until(lambda: probe.status().spin_count >= 2)
    activate(probe)
    seen = probe.status().spin_count
    graph.spin_until(lambda: probe.status().spin_count > seen)
