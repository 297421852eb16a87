# SPDX-License-Identifier: Apache-2.0
"""Supervisor, agents and managed processes for real: brought up, and back after each fault."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError
from heqis_msgs.srv import ResetBoard
from heqis_supervisor.rules import load_rules

pytestmark = pytest.mark.graph
ALL = ('supervisor', 'gateway_agent', 'compute_agent', 'store', 'brain')
UP_S = 40.0
"""Start of five Python processes on a busy machine; most of it is not the supervisor's."""
BACK_S = 25.0


def up(real) -> None:
    real.start(*ALL)
    real.until(lambda: real.well() and len(real.beats) == 5, UP_S, 'all nodes active')
    real.until(lambda: real.tell.get_subscription_count() == 3, 10, 'listeners')
    real.first = {name: beat.start_id for name, beat in real.beats.items()}
    real.since_ns = time.time_ns()
    real.events.clear()


def kinds(real) -> list[str]:
    return [f'{event.kind} {event.subject}' for event in real.events]


def untouched(real, *names: str) -> bool:
    return all(real.beats[name].start_id == real.first[name] for name in names)


def counters(real) -> dict[str, int]:
    node = real.beats['gateway/supervisor'].nodes[0]
    return dict(zip(node.counter_names, node.counter_values, strict=True))


def back(real, name: str, restarts: int = 1) -> None:
    """Wait until a process was started again and everything is well."""

    def so() -> bool:
        counted = real.values(f'process/{name}').get('restarts') == str(restarts)
        return counted and real.well() and real.beats[name].start_id != real.first[name]

    real.until(so, BACK_S, f'{name} is back')


def test_a_graph_is_brought_up_in_order_soon_and_reported(real_graph) -> None:
    up(real_graph)
    log = (real_graph.folder / 'supervisor.log').read_text()
    found = re.findall(r'\[(\d+\.\d+)\] \[heqis.supervisor\]: (\w+) (\w+): ', log)
    ups = [subject for _, kind, subject in found if kind == 'node_up']
    assert ups == ['base', 'gate', 'thinker']
    values = real_graph.values('node/thinker')
    assert values['state'] == 'ACTIVE'
    assert values['restarts'] == '0'
    real_graph.until(lambda: counters(real_graph).get('orders_transit') == 6, 5, 'six orders')
    assert counters(real_graph)['restarts.compute/brain'] == 0
    assert not real_graph.beats['gateway/supervisor'].hold


def test_a_killed_process_comes_back_and_only_it_is_touched(real_graph) -> None:
    up(real_graph)
    real_graph.signal('brain', signal.SIGKILL)
    # It may be back before anything else than this shows.
    real_graph.until(
        lambda: 'process_restarted compute/brain' in kinds(real_graph), BACK_S, 'the new start'
    )
    back(real_graph, 'compute/brain')
    assert untouched(real_graph, 'gateway/store', 'gateway/agent', 'compute/agent')
    assert 'node_up base' not in kinds(real_graph)
    assert real_graph.values('node/thinker')['restarts'] == '1'


def test_a_stopped_process_is_killed_within_its_lease(real_graph) -> None:
    up(real_graph)
    pid = real_graph.running['store'].pid
    stopped = time.monotonic()
    real_graph.signal('store', signal.SIGSTOP)
    real_graph.until(lambda: 'killed gateway/store' in kinds(real_graph), 10, 'the kill')
    took = time.monotonic() - stopped
    assert took < 2.5, 'a lease of 1 s, and some time for the message on a busy machine'
    real_graph.until(lambda: real_graph.diagnostics['node/base'].level == b'\x02', 1, 'an error')
    back(real_graph, 'gateway/store')
    assert real_graph.running['store'].pid != pid
    lost = next(event for event in real_graph.events if event.kind == 'process_lost')
    assert 'silent for' in lost.text


def test_a_process_that_stops_before_its_first_heartbeat_is_ended_and_comes_up(
    real_graph,
) -> None:
    # Named as launch names it; `respawn_ms` is what the rules give a process to start.
    script = real_graph.folder / 'brain'
    fake = Path(__file__).with_name('fake_process.py')
    script.write_text(
        f'#!{sys.executable}\nimport runpy, sys\nsys.argv[0] = {str(fake)!r}\n'
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    real_graph.rules.write_text(
        real_graph.rules.read_text().replace('respawn_ms: 15000', 'respawn_ms: 5000')
    )
    real_graph.start(*ALL[:-1])
    real_graph.commands['brain'] = ('compute', [str(script), 'brain', 'thinker'])
    real_graph.start('brain')
    pid = real_graph.running['brain'].pid
    real_graph.signal('brain', signal.SIGSTOP)
    real_graph.until(
        lambda: 'killed compute/brain' in kinds(real_graph), UP_S, 'the end of what is silent'
    )
    killed = next(
        e for e in real_graph.events if (e.kind, e.subject) == ('killed', 'compute/brain')
    )
    assert f'pid {pid} was killed' in killed.text
    real_graph.until(lambda: real_graph.well() and len(real_graph.beats) == 5, UP_S, 'all is well')


def test_a_hung_executor_is_killed_although_its_heartbeat_goes_on(real_graph) -> None:
    up(real_graph)
    real_graph.order('thinker', 'block')
    real_graph.until(lambda: 'process_hung compute/brain' in kinds(real_graph), 10, 'the hang')
    back(real_graph, 'compute/brain')


def test_a_node_that_fails_is_brought_back_without_a_new_process(real_graph) -> None:
    up(real_graph)
    real_graph.order('gate', 'fault')
    real_graph.until(lambda: 'node_failed gate' in kinds(real_graph), 10, 'the failure')
    real_graph.until(lambda: 'node_up gate' in kinds(real_graph), 10, 'the way back')
    real_graph.until(real_graph.well, 10)
    assert untouched(real_graph, 'gateway/store')
    failed = next(event for event in real_graph.events if event.kind == 'node_failed')
    assert 'told to fail' in failed.text


def test_work_that_waits_for_nothing_is_found(real_graph) -> None:
    up(real_graph)
    real_graph.order('thinker', 'work')
    real_graph.until(lambda: 'node_stuck thinker' in kinds(real_graph), 15, 'the standstill')
    back(real_graph, 'compute/brain')


def test_a_node_that_refuses_is_latched_and_its_dependents_name_the_cause(real_graph) -> None:
    real_graph.environment['FAKE_REFUSALS'] = 'gate'
    real_graph.start(*ALL)
    real_graph.until(
        lambda: real_graph.values('node/gate').get('step') == 'SAFE_LATCH', UP_S, 'the latch'
    )
    status = real_graph.diagnostics['node/gate']
    assert status.level == b'\x02'
    assert 'port 5555 is taken' in status.message
    assert 'given up after 4 failures' in status.message
    waiting = real_graph.diagnostics['node/thinker']
    assert waiting.level == b'\x01'
    assert waiting.message == 'waits for gate'
    assert real_graph.values('node/thinker')['root_cause'] == 'gate'
    assert real_graph.values('node/base')['state'] == 'ACTIVE'


def test_a_killed_supervisor_takes_the_world_as_it_finds_it(real_graph) -> None:
    up(real_graph)
    real_graph.signal('supervisor', signal.SIGKILL)
    real_graph.diagnostics.clear()
    real_graph.until(real_graph.well, BACK_S, 'a new supervisor says that all is well')
    real_graph.until(lambda: not untouched(real_graph, 'gateway/supervisor'), 10, 'its heartbeat')
    assert untouched(real_graph, 'gateway/store', 'compute/brain')
    assert not [kind for kind in kinds(real_graph) if kind.startswith(('killed', 'node_up'))]
    real_graph.until(
        lambda: real_graph.values('process/gateway/supervisor')['restarts'] == '1',
        5,
        'the agent of its board counted',
    )


def test_a_killed_agent_comes_back_and_nothing_else_is_touched(real_graph) -> None:
    up(real_graph)
    real_graph.signal('compute_agent', signal.SIGKILL)
    back(real_graph, 'compute/agent')
    log = (real_graph.folder / 'supervisor.log').read_text()
    assert untouched(real_graph, 'compute/brain', 'gateway/store'), log
    real_graph.signal('brain', signal.SIGSTOP)
    real_graph.until(
        lambda: 'killed compute/brain' in kinds(real_graph), 10, 'the new agent obeys'
    )
    back(real_graph, 'compute/brain')


def test_a_reset_is_refused_honestly_while_there_is_no_driver(real_graph) -> None:
    real_graph.start('supervisor', 'gateway_agent')
    client = real_graph.node.create_client(ResetBoard, '/heqis/supervisor/reset_board')
    real_graph.until(client.service_is_ready, UP_S, 'the service')

    def ask(**request):
        future = client.call_async(ResetBoard.Request(**request))
        real_graph.until(future.done, 5, 'the answer')
        return future.result()

    dry = ask(board='compute', dry_run=True)
    assert (dry.accepted, 'would be reset, but no driver is configured' in dry.message) == (
        False,
        True,
    )
    real = ask(board='compute', reason='it hangs')
    assert (real.accepted, 'nothing was done' in real.message) == (False, True)
    other = ask(board='moon')
    assert 'known are: gateway, compute' in other.message
    real_graph.until(lambda: 'reset_refused compute' in kinds(real_graph), 5, 'the event')


def stamp_ns(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def told(real, name: str, from_ns: int, until_ns: int) -> list[tuple[int, bytes]]:
    """Return when and with which level a part was told on /diagnostics, by their stamps."""
    parts = [
        (stamp_ns(message), status.level)
        for message in real.told
        for status in message.status
        if status.name == f'heqis/{name}'
    ]
    return [(at_ns, level) for at_ns, level in parts if from_ns <= at_ns < until_ns]


def when(real, kind: str, subject: str, after_ns: int = 0) -> int:
    """Return the stamp of an event that came, or 0."""
    found = [e.stamp_ns for e in real.events if (e.kind, e.subject) == (kind, subject)]
    return next((at_ns for at_ns in found if at_ns > after_ns), 0)


def test_every_change_is_on_diagnostics_within_a_second_and_nothing_broken_is_ever_ok(
    real_graph,
) -> None:
    up(real_graph)

    def break_and_check(name: str, fault, kind: str, subject: str, back: str) -> None:
        asked_ns = time.time_ns()
        fault()
        real_graph.until(lambda: when(real_graph, kind, subject, asked_ns), 20, kind)
        seen_ns = when(real_graph, kind, subject, asked_ns)
        real_graph.until(lambda: when(real_graph, back, name, seen_ns), UP_S, back)
        back_ns = when(real_graph, back, name, seen_ns)
        # One more message after it, so that nothing that belongs to the time before is missing.
        real_graph.until(lambda: stamp_ns(real_graph.told[-1]) > back_ns + 10**9, 10, 'later ones')
        between = told(real_graph, f'node/{name}', seen_ns, back_ns)
        # What comes next within a second may overtake it.
        first_ns = between[0][0] if between else back_ns
        assert first_ns - seen_ns < 1e9, f'{kind}: not told within a second'
        assert b'\x00' not in {level for _, level in between}, kind
        after = told(real_graph, f'node/{name}', back_ns, back_ns + 10**9)
        good = b'\x00' if back == 'node_up' else b'\x02'
        assert good in {level for _, level in after}, f'{back} within a second'

    def refuse_and_kill() -> None:
        real_graph.environment['FAKE_REFUSALS'] = 'thinker'
        real_graph.signal('brain', signal.SIGKILL)

    brain, thinker = 'compute/brain', 'thinker'
    stop = lambda: real_graph.signal('brain', signal.SIGSTOP)  # noqa: E731
    break_and_check(thinker, stop, 'process_lost', brain, 'node_up')
    block = lambda: real_graph.order(thinker, 'block')  # noqa: E731
    break_and_check(thinker, block, 'process_hung', brain, 'node_up')
    fall = lambda: real_graph.order(thinker, 'fault')  # noqa: E731
    break_and_check(thinker, fall, 'node_failed', thinker, 'node_up')
    break_and_check(thinker, refuse_and_kill, 'node_failed', thinker, 'latched')
    latched_ns = when(real_graph, 'latched', thinker)
    real_graph.until(lambda: stamp_ns(real_graph.told[-1]) > latched_ns + 3 * 10**9, 10, 'more')
    later = told(real_graph, 'node/thinker', latched_ns, 2**63)
    assert {level for _, level in later} == {b'\x02'}, 'and it stays so'


def test_rules_that_cannot_be_used_are_named_and_nothing_starts(real_graph) -> None:
    real_graph.rules.write_text(real_graph.rules.read_text().replace('hang_ms', 'hang_s'))
    with pytest.raises(ConfigError):
        load_rules(real_graph.rules)
    real_graph.start('supervisor')
    log = real_graph.folder / 'supervisor.log'
    real_graph.until(lambda: 'unknown key hang_s' in log.read_text(), UP_S, 'the refusal')
    line = next(line for line in log.read_text().splitlines() if 'unknown key' in line)
    assert f'{real_graph.rules}:5: defaults: unknown key hang_s, did you mean hang_ms?' in line
