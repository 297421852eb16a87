# SPDX-License-Identifier: Apache-2.0
"""A crashed, hung or latched node is never OK, and a consequence names its root cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from heqis_core.control import Level, NodeState, Transition
from heqis_supervisor.health import overall, report, root_causes
from heqis_supervisor.rules import load_rules

EXTRAS = """\
version: 1
boards:
  gateway:
    agent: {nodes: {gateway_agent: {managed: false}}}
    plots: {optional: true, nodes: {plots: {}}}
    notes: {optional: true, nodes: {notes: {depends_on: [plots]}}}
  desk:
    agent: {optional: true, nodes: {desk_agent: {managed: false}}}
    screen: {optional: true, nodes: {screen: {depends_on: [plots]}}}
"""


def parts(world) -> dict[str, object]:
    return {part.name: part for part in report(world.rules, world.state)}


def up(world) -> None:
    world.run_until(world.all_active, 5)
    world.run(1)


def test_every_board_process_and_node_has_a_part(world) -> None:
    up(world)
    found = parts(world)
    assert set(found) == {
        *(f'board/{board}' for board in world.rules.boards),
        *(f'process/{key}' for key in world.rules.processes),
        *(f'node/{name}' for name in world.rules.nodes),
    }
    assert all(part.level == Level.INFO for part in found.values())
    assert found['node/compute'].values['state'] == 'ACTIVE'
    assert found['node/compute'].board == 'compute'


def test_what_a_node_counts_is_in_its_diagnostics(world) -> None:
    world.node('gateway').counters['source.desk.late'] = 3
    up(world)
    assert parts(world)['node/gateway'].values['counter.source.desk.late'] == '3'
    assert not any('late' in name for name in parts(world)['node/compute'].values)


@pytest.mark.parametrize('fault', ['die', 'stop', 'hang', 'fall', 'finalize', 'stuck', 'cut'])
def test_a_fault_is_never_ok_and_shows_in_time(world, fault: str) -> None:
    up(world)
    process, node = world.processes['compute/compute'], world.node('compute')
    world.no_respawn.add(process.key)
    if fault == 'die':
        world.die(process.key)
    elif fault == 'stop':
        process.stopped = True
    elif fault == 'hang':
        process.hung = True
    elif fault == 'fall':
        node.state = NodeState.UNCONFIGURED
        world.refuse['compute', Transition.CONFIGURE] = 100
    elif fault == 'finalize':
        node.state = NodeState.FINALIZED
    elif fault == 'stuck':
        node.pending = 1
    else:
        world.cut.add('compute')
    took = world.run_until(lambda: parts(world)['node/compute'].level == Level.ERROR, 30)
    limits = {'hang': 3.5, 'stuck': 18.5, 'cut': 1.7, 'finalize': 3.5}
    assert took < limits.get(fault, 1.0)
    for _ in range(100):
        world.tick()
        assert parts(world)['node/compute'].level != Level.INFO


def test_an_active_node_that_does_not_work_as_it_should_is_a_warning_with_its_own_words(
    world,
) -> None:
    up(world)
    gate = world.node('risk_gate')
    gate.degraded, gate.info = True, 'disk is full'
    took = world.run_until(lambda: parts(world)['node/risk_gate'].level == Level.WARN, 5)
    assert took < 1.0
    assert parts(world)['node/risk_gate'].message == 'disk is full'
    gate.degraded, gate.info = False, ''
    world.run_until(lambda: parts(world)['node/risk_gate'].level == Level.INFO, 5)


def test_whoever_waits_names_the_root_and_not_the_middle(world) -> None:
    world.refuse['bridge', Transition.CONFIGURE] = 100
    world.run(5)
    found = parts(world)
    assert root_causes('gateway', world.rules, world.state) == ('bridge',)
    for name in ('compute', 'gateway'):
        assert found[f'node/{name}'].level == Level.WARN
        assert found[f'node/{name}'].values['root_cause'] == 'bridge'
    level, text = overall(list(found.values()))
    assert level == Level.ERROR
    assert text.startswith('bridge: configure: refused')


def test_an_active_node_whose_dependency_failed_stays_ok_and_says_so(world) -> None:
    up(world)
    world.no_respawn.add('compute/compute')
    world.die('compute/compute')
    world.run(3)
    part = parts(world)['node/gateway']
    assert part.level == Level.INFO
    assert part.message == 'active, but compute is not well'
    level, text = overall(list(parts(world).values()))
    assert level == Level.ERROR
    assert 'gateway' not in text


def test_restarts_are_shown(world) -> None:
    up(world)
    world.die('compute/compute')
    world.run_until(lambda: world.processes['compute/compute'].alive, 5)
    world.run_until(world.all_active, 5)
    assert parts(world)['node/compute'].values['restarts'] == '1'
    assert parts(world)['process/compute/compute'].values['restarts'] == '1'
    assert parts(world)['node/gateway'].values['restarts'] == '0'


@pytest.fixture
def extras(tmp_path: Path):
    path = tmp_path / 'graph.yaml'
    path.write_text(EXTRAS)
    return load_rules(path)


def test_what_is_optional_and_was_never_started_is_ok_and_says_so(make_world, extras) -> None:
    world = make_world(
        rules=extras,
        left_out={key for key, rule in extras.processes.items() if rule.optional},
        cut={'desk'},
    )
    world.run(60)
    found = parts(world)
    names = ('process/gateway/plots', 'node/plots', 'node/notes', 'board/desk', 'node/screen')
    for name in names:
        assert (found[name].level, found[name].message) == (Level.INFO, 'not started (optional)')
        assert 'root_cause' not in found[name].values
    assert found['node/plots'].values['state'] == 'UNKNOWN', 'and not as if it were active'
    assert overall(list(found.values())) == (Level.INFO, 'all nodes are active')


def test_a_board_of_optional_processes_that_was_heard_is_missed_like_any_other(
    make_world, extras
) -> None:
    world = make_world(rules=extras)
    up(world)
    world.cut.add('desk')
    world.run_until(lambda: parts(world)['board/desk'].level == Level.ERROR, 1.7)


def test_whoever_waits_for_an_optional_process_that_is_not_there_is_named(
    make_world, extras
) -> None:
    world = make_world(rules=extras, left_out={'gateway/plots'})
    world.run(60)
    part = parts(world)['node/notes']
    assert (part.level, part.values['root_cause']) == (Level.WARN, 'plots')
    level, text = overall(list(parts(world).values()))
    assert level == Level.WARN
    assert text == 'notes: waits for plots; screen: waits for plots'
