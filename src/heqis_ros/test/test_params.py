# SPDX-License-Identifier: Apache-2.0
"""Parameter tables: values, refusals, what rclpy is told, and the docs table."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter

from heqis_core.errors import ConfigError
from heqis_ros.params import Param, ParamTable, docs_table

TABLE = ParamTable(
    'probe_node',
    [
        Param('rate_hz', float, 5.0, 'Rate.', unit='Hz', minimum=0.1, maximum=100.0),
        Param('depth', int, 8, 'Depth | of the queue.', minimum=1, read_only=False),
        Param('mode', str, 'plain', 'Mode.', choices=('plain', 'fancy'), read_only=False),
        Param('link.port', int, 5555, 'Port.', minimum=1, maximum=65535),
        Param('names', list[str], [], 'Names.'),
        Param('levels', list[float], [1.0, 2.0], 'Levels.', minimum=0.0),
        Param('on', bool, False, 'Switch.'),
    ],
)


def node_with(graph, **given):
    overrides = [
        Parameter(name.replace('__', '.'), value=value)
        if value != []
        else Parameter(name, Parameter.Type.NOT_SET)
        for name, value in given.items()
    ]
    return graph.add(Node('probe_node', parameter_overrides=overrides))


def test_defaults_make_a_frozen_dataclass():
    values = TABLE.parse({})
    assert type(values).__name__ == 'ProbeNodeParams'
    assert dataclasses.asdict(values) == {
        'rate_hz': 5.0,
        'depth': 8,
        'mode': 'plain',
        'link_port': 5555,
        'names': (),
        'levels': (1.0, 2.0),
        'on': False,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        values.depth = 9


def test_parse_coerces_what_ros_files_cannot_say():
    values = TABLE.parse({'rate_hz': 7, 'levels': [3], 'link.port': 1})
    assert (values.rate_hz, values.levels, values.link_port) == (7.0, (3.0,), 1)
    assert isinstance(values.rate_hz, float)
    assert isinstance(values.levels[0], float)


def test_parse_names_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        TABLE.parse({'rate_hz': 0.0, 'mode': 'odd', 'lnik.port': 3, 'on': 1})
    for words in (
        'probe_node: parameter rate_hz is 0.0, out of range: 0.1 to 100.0',
        "parameter mode is 'odd', expected one of plain, fancy",
        'parameter lnik.port (given 3) is unknown, did you mean link.port?',
        'parameter on is 1 (int), expected bool',
    ):
        assert words in str(caught.value)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.none()))
def test_a_float_in_range_is_all_that_is_accepted(value):
    good = type(value) in (int, float) and 0.1 <= value <= 100.0
    assert (TABLE.get('rate_hz').problem(value) is None) == good


@pytest.mark.parametrize(
    ('param', 'words'),
    [
        (lambda: Param('a b', int, 1, ''), 'not a name'),
        (lambda: Param('a', dict, {}, ''), 'expected bool, int, float, str, list'),
        (lambda: Param('a', int, 0, '', minimum=1), 'default is 0, out of range: >= 1'),
        (lambda: Param('a', int, 1.5, ''), 'default is 1.5'),
        (lambda: Param('a', int, 2**63, ''), 'more than 64 bits'),
        (lambda: Param('a', str, 'x', '', choices=('y',)), 'expected one of y'),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(param, words):
    with pytest.raises(ConfigError, match=words):
        param()


def test_a_name_given_twice_is_refused():
    with pytest.raises(ConfigError, match='twice'):
        ParamTable('x', [Param('a.b', int, 1, ''), Param('a_b', int, 1, '')])


def test_a_node_declares_descriptors_and_takes_overrides(graph):
    node = node_with(graph, rate_hz=7, link__port=6000, names=['x', 'y'], levels=[])
    assert TABLE.declare(node) == {}
    values = TABLE.values(node)
    assert (values.rate_hz, values.link_port, values.names) == (7.0, 6000, ('x', 'y'))
    assert values.levels == ()
    rate, depth, names = map(node.describe_parameter, ('rate_hz', 'depth', 'names'))
    assert rate.type == ParameterType.PARAMETER_DOUBLE
    assert (rate.description, rate.read_only) == ('Rate. [Hz]', True)
    low_high = rate.floating_point_range[0]
    assert (low_high.from_value, low_high.to_value) == (0.1, 100.0)
    assert depth.integer_range[0].to_value == 2**63 - 1
    assert names.type == ParameterType.PARAMETER_STRING_ARRAY


def test_empty_lists_keep_their_type(graph):
    node = node_with(graph)
    TABLE.declare(node)
    assert TABLE.values(node) == TABLE.parse({})
    assert node.describe_parameter('names').type == ParameterType.PARAMETER_STRING_ARRAY


def test_wrong_overrides_are_reported_and_replaced_by_the_default(graph):
    node = node_with(graph, rate_hz=1000.0, unknown=1, use_sim_time=False)
    problems = TABLE.declare(node)
    assert set(problems) == {'rate_hz', 'unknown'}
    assert TABLE.values(node).rate_hz == 5.0


def test_a_change_at_run_time_obeys_the_table(graph):
    node = node_with(graph)
    TABLE.declare(node)

    def change(name, value):
        return node.set_parameters([Parameter(name, value=value)])[0]

    assert change('depth', 9).successful
    assert TABLE.values(node).depth == 9
    assert not change('depth', 0).successful
    refused = change('mode', 'odd')
    assert not refused.successful
    assert 'expected one of plain, fancy' in refused.reason
    assert not change('rate_hz', 6.0).successful
    assert TABLE.values(node).depth == 9


def test_another_node_can_have_the_same_parameters():
    other = TABLE.named('gateway_agent')
    assert other.node == 'gateway_agent'
    assert other.params == TABLE.params
    assert 'gateway_agent: parameter x' in other.problems({'x': 1})['x']


def test_docs_table_shows_everything_once():
    text = docs_table([TABLE, ParamTable('alpha', [])])
    assert text.index('## `alpha`') < text.index('## `probe_node`')
    assert '| `rate_hz` | float | `5.0` | Hz | 0.1 to 100.0 | Rate. |' in text
    assert '| `names` | list of str | `[]` |  |  | Names. |' in text
    assert 'Depth \\| of the queue. A change counts from the next configure. |' in text
    assert '| `on` | bool | `false` |' in text
    assert '| `mode` | str | `"plain"` |  | one of plain, fancy |' in text
