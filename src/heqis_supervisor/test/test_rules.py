# SPDX-License-Identifier: Apache-2.0
"""A rule file is checked whole before anything starts, each problem with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from heqis_core.errors import ConfigError
from heqis_supervisor.rules import NODE_SETTINGS, PROCESS_SETTINGS, load_rules, settings_table

GOOD = """\
version: 1
heartbeat_ms: 100
defaults:
  lease_ms: 900
  attempts: 3
boards:
  gateway:
    journal:
      lease_ms: 1200
      nodes:
        journal: {}
        risk_gate: {depends_on: [journal], attempts: 5, on_stuck: warn}
  compute:
    compute:
      nodes:
        compute: {depends_on: [risk_gate]}
"""


def load(tmp_path: Path, text: str):
    path = tmp_path / 'graph.yaml'
    path.write_text(text)
    return load_rules(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(str(tmp_path), '').splitlines()


def test_settings_come_from_the_part_then_the_defaults_then_the_program(tmp_path: Path) -> None:
    rules = load(tmp_path, GOOD)
    journal, compute = rules.processes['gateway/journal'], rules.processes['compute/compute']
    assert (journal.lease_s, compute.lease_s) == (1.2, 0.9)
    assert journal.hang_s == PROCESS_SETTINGS['hang_ms'].default / 1000
    assert [rules.nodes[n].attempts for n in ('journal', 'risk_gate')] == [3, 5]
    assert rules.nodes['risk_gate'].on_stuck == 'warn'
    assert rules.heartbeat_s == 0.1
    assert rules.boards == ('gateway', 'compute')


def test_nodes_are_in_the_order_of_their_dependencies(tmp_path: Path) -> None:
    rules = load(tmp_path, GOOD.replace('journal: {}', 'journal: {}\n        alone: {}'))
    names = list(rules.nodes)
    assert names.index('journal') < names.index('risk_gate') < names.index('compute')
    assert [rules.nodes[n].depth for n in ('alone', 'journal', 'risk_gate', 'compute')] == [
        0,
        0,
        1,
        2,
    ]
    assert rules.dependents('journal') == ('risk_gate', 'compute')


def test_the_shipped_file_is_good_and_shows_the_programs_defaults(shipped_rules) -> None:
    assert set(shipped_rules.processes) == {
        'gateway/gateway',
        'gateway/journal',
        'gateway/dashboard',
        'gateway/modbus',
        'gateway/supervisor',
        'gateway/agent',
        'compute/compute',
        'compute/agent',
    }
    managed = {rule.name for rule in shipped_rules.nodes.values() if rule.managed}
    optional_nodes = {'dashboard', 'modbus'}
    assert managed == {'gateway', 'bridge', 'journal', 'risk_gate', 'compute'} | optional_nodes
    optional = [key for key, rule in shipped_rules.processes.items() if rule.optional]
    assert optional == ['gateway/dashboard', 'gateway/modbus']
    for rule in (*shipped_rules.processes.values(), *shipped_rules.nodes.values()):
        for name, setting in {**PROCESS_SETTINGS, **NODE_SETTINGS}.items():
            value = getattr(rule, f'{name[:-3]}_s' if name.endswith('_ms') else name, None)
            patient = rule.name in optional_nodes and name in ('lease_ms', 'hang_ms')
            if name.endswith('_ms') and value is not None and not patient:
                assert value * 1000 == setting.default, f'{rule.name}: {name}'
    assert shipped_rules.processes['gateway/dashboard'].lease_s == 5


@pytest.mark.parametrize(
    ('old', 'new', 'line', 'text'),
    [
        (
            'lease_ms: 900',
            'leese_ms: 900',
            4,
            'defaults: unknown key leese_ms, did you mean lease_ms?',
        ),
        ('lease_ms: 900', 'lease_ms: fast', 4, "lease_ms: 'fast', expected int"),
        ('lease_ms: 900', 'lease_ms: 0', 4, 'lease_ms: 0, expected 1 to 600000'),
        (
            'lease_ms: 1200',
            'lease_ms: 250',
            9,
            'lease_ms 250 is shorter than three heartbeats of 100 ms',
        ),
        ('lease_ms: 1200', 'busy_lease_ms: 400', 9, 'busy_lease_ms is shorter than lease_ms'),
        ('lease_ms: 1200', 'hang_ms: 300', 9, 'hang_ms must be at least 600'),
        ('attempts: 5', 'tries: 5', 12, 'node risk_gate: unknown key tries'),
        (
            'on_stuck: warn',
            'on_stuck: ignore',
            12,
            "on_stuck: 'ignore', expected one of restart_process, warn",
        ),
        (
            '[journal]',
            '[jurnal]',
            12,
            'node risk_gate: depends on unknown jurnal, did you mean journal?',
        ),
        ('[journal]', 'journal', 12, 'depends_on: expected a list of nodes'),
        (
            'journal: {}',
            'journal: {depends_on: [compute]}',
            11,
            'dependencies in a circle: journal -> compute -> risk_gate -> journal',
        ),
        (
            'journal: {}',
            'journal: {depends_on: [journal]}',
            11,
            'dependencies in a circle: journal -> journal',
        ),
        (
            'compute: {depends',
            'journal: {depends',
            16,
            'node journal: is in gateway/journal already',
        ),
        ('version: 1', 'version: 2', 1, 'version: expected 1'),
        ('version: 1', '# nothing', 1, 'version: expected 1'),
        ('version: 1', 'version: 1\nversion: 1', 2, 'version is given twice'),
        (
            GOOD[GOOD.index('nodes:') : GOOD.index('  compute:')],
            'nodes: [journal]\n',
            10,
            'nodes of gateway/journal: expected a mapping',
        ),
        ('boards:', 'bords:', 6, 'the file: unknown key bords, did you mean boards?'),
        (
            '  compute:\n    compute:',
            '  the board:\n    compute:',
            13,
            "boards: 'the board' is no name",
        ),
        ('[risk_gate]}', '[risk_gate}', 16, 'not YAML'),
        ('lease_ms: 1200', 'optional: 1', 9, 'optional: 1, expected bool'),
        ('attempts: 5', 'optional: true', 12, 'node risk_gate: unknown key optional'),
        (
            'lease_ms: 1200',
            'optional: true',
            16,
            'node compute: depends on risk_gate, but process gateway/journal is optional',
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, text: str
) -> None:
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(f'/graph.yaml:{line}: ' in one and text in one for one in found), found


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('attempts: 3', 'optional: true'),
        ('    compute:\n      nodes', '    compute:\n      optional: true\n      nodes'),
    ],
)
def test_an_optional_process_may_depend_on_any_that_is_there_whenever_it_is(
    tmp_path: Path, old: str, new: str
) -> None:
    rules = load(tmp_path, GOOD.replace(old, new, 1))
    assert rules.processes['compute/compute'].optional
    assert rules.dependents('journal') == ('risk_gate', 'compute')


def test_a_process_is_missed_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert not any(rule.optional for rule in load(tmp_path, GOOD).processes.values())


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('attempts: 3', 'tries: 3').replace('[risk_gate]', '[riskgate]')
    found = problems(tmp_path, text)
    assert [one.split(': ')[0] for one in found] == ['/graph.yaml:5', '/graph.yaml:16']


@pytest.mark.parametrize('text', ['', '[]', '- a', 'version: 1', 'version: 1\nboards: {}'])
def test_a_file_without_a_graph_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='cannot be read'):
        load_rules(tmp_path / 'none.yaml')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_rules(tmp_path / 'binary.yaml')


def test_the_docs_show_every_setting_with_its_default() -> None:
    table = list(settings_table())
    assert all(f'`{name}`' in '\n'.join(table) for name in (*PROCESS_SETTINGS, *NODE_SETTINGS))
    for folder in Path(__file__).resolve().parents:
        docs = folder / 'docs' / 'supervision.md'
        if docs.is_file():
            lines = docs.read_text(encoding='utf-8').splitlines()
            missing = [line for line in table if line not in lines]
            assert not missing, 'put these lines into docs/supervision.md'
            return
    pytest.skip('docs/supervision.md is not here: run from the source tree')
