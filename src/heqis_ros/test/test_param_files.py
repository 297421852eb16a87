# SPDX-License-Identifier: Apache-2.0
"""Checking parameter files: every problem with its line, and scalars as rcl itself reads them."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heqis_ros.param_files import check_file, read_value
from heqis_ros.params import Param, ParamTable

GATEWAY = ParamTable(
    'gateway',
    [
        Param('pace_hz', float, 50.0, 'Pace.', unit='Hz', minimum=0.0, maximum=1000.0),
        Param('transport', str, 'zmq', 'Carrier.', choices=('zmq', 'dds')),
        Param('symbols', list[str], [], 'Names.'),
        Param('link.depth', int, 8, 'Depth.', minimum=1, maximum=64),
        Param('strict', bool, True, 'Strictness.'),
    ],
)
BRIDGE = ParamTable('bridge', [Param('port', int, 5555, 'Port.', minimum=1, maximum=65535)])

GOOD = """\
/**/gateway:
  ros__parameters:
    pace_hz: 20
    transport: dds
    symbols: ['000001.SZ', a15:00]
    link: {depth: 0x10}
    strict: yes
    use_sim_time: false
/heqis/bridge:
  ros__parameters:
    port: 5560
/**:
  ros__parameters:
    port: 5561
"""


def problems(tmp_path, text, tables=(GATEWAY, BRIDGE)):
    file = tmp_path / 'params.yaml'
    file.write_text(text)
    return [str(problem).replace(f'{tmp_path}/', '') for problem in check_file(file, tables)]


def test_a_good_file_has_no_problem(tmp_path):
    assert problems(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ('old', 'new', 'expected'),
    [
        ('pace_hz: 20', 'pace_hz: 2000', '3: gateway.pace_hz: is 2000, out of range: 0.0 to 1'),
        ('pace_hz: 20', 'pace_hz: .nan', '3: gateway.pace_hz: is nan, expected a number'),
        ('pace_hz: 20', 'pace: 20', '3: gateway.pace: unknown parameter, did you mean pace_hz?'),
        ('pace_hz: 20', 'pace_hz:', '3: gateway.pace_hz: has no value, expected float'),
        (': dds', ': tcp', "4: gateway.transport: is 'tcp', expected one of zmq, dds"),
        (
            ': dds',
            ': on',
            '4: gateway.transport: is True (bool), expected str (write it in quotes), one of zm',
        ),
        ("'000001.SZ', a15:00", '000001', '5: gateway.symbols: has an element 0 that is 1 (int),'),
        ("'000001.SZ', a15:00", 'a, 1', '5: gateway.symbols: mixes types in a list'),
        ("['000001.SZ', a15:00]", 'a', "5: gateway.symbols: is 'a', expected list of str"),
        ('0x10', '65', '6: gateway.link.depth: is 65, out of range: 1 to 64'),
        ('0x10', '1.5', '6: gateway.link.depth: is 1.5 (float), expected int, 1 to 64'),
        ('strict: yes', 'strict: 1', '7: gateway.strict: is 1 (int), expected bool'),
        ('port: 5560', 'port: 1\n    port: 2', '12: port: is given twice'),
        ('/**/gateway:', 'gateway:', '2: gateway: matches no node in a namespace; write `/**/g'),
        ('/heqis/bridge', '/heqis/brigde', '10: /heqis/brigde: no such node; known are: gateway'),
        ('port: 5561', 'port: 0', '14: bridge.port: is 0, out of range: 1 to 65535'),
        ('port: 5561', 'depth: 0', '14: gateway.depth: unknown parameter'),
        ('port: 5560', '&a port: *a', '11: ROS parameter files have no aliases (*)'),
        ('/heqis/bridge:\n  ros__parameters:\n    port: 5560', 'x: 5', '9: x: expected `ros'),
        ('    port: 5560', '    - 5560', '10: /heqis/bridge: holds no parameters'),
        ('port: 5560', 'port: [', '13: not YAML: '),
        (GOOD, '', '1: holds no node; expected `/**/<node>:`'),
        (GOOD, '- a', '1: holds no node; expected `/**/<node>:`'),
    ],
)  # fmt: skip
def test_each_problem_is_named_with_its_line(tmp_path, old, new, expected):
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new))
    assert found
    assert found[0].startswith(f'params.yaml:{expected}'), found


def test_unreadable_files_are_problems_not_exceptions(tmp_path):
    file = tmp_path / 'x.yaml'
    assert 'cannot be read' in str(check_file(file, [GATEWAY])[0])
    file.write_bytes(b'\xff\xfe\x00')
    assert 'cannot be read' in str(check_file(file, [GATEWAY])[0])
    file.write_bytes(b'a: \x00')
    assert 'not YAML' in str(check_file(file, [GATEWAY])[0])


def rcl_values(tmp_path, scalars):
    """Return what rcl makes of each scalar: one file, one node."""
    import rclpy
    from rclpy.node import Node

    lines = ''.join(f'    p{index}: {text}\n' for index, text in enumerate(scalars))
    file = tmp_path / 'rcl.yaml'
    file.write_text(f'/**:\n  ros__parameters:\n{lines}')
    context = rclpy.Context()
    context.init(['--ros-args', '--params-file', str(file)])
    node = Node('reader', context=context)
    overrides = {name: p.value for name, p in node._parameter_overrides.items()}
    node.destroy_node()
    context.shutdown()
    return [overrides[f'p{index}'] for index in range(len(scalars))]


TRICKY = """
1 010 0x1f 08 09.5 0 00 -0 +1 1_000 99999999999999999999 9223372036854775807 -9223372036854775808
1.5 1. .5 1e3 1E5 1e400 1e-400 0e-400 0x1p3 0x 1e+ e5 .nan .NaN .nAn nan NaN -nan .inf .iNf -.inf
+.inf inf iNf infinity yes No y N on OFF true tRue ~ null 15:00 2024-01-01 "1" '1' a-b "yes" 2e-310
"""
WORDS = TRICKY.split()
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(repr),
    st.from_regex(r'[+-]?[0-9xXeE._aAbBfFpP]{1,6}', fullmatch=True),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('rcl')


@settings(max_examples=10, deadline=None)
@given(st.lists(SCALARS, min_size=60, max_size=60))
@example(WORDS)
def test_scalars_are_read_as_rcl_reads_them(folder, scalars):
    theirs = rcl_values(folder, scalars)
    for text, expected in zip(scalars, theirs, strict=True):
        value = read_value(yaml.compose(f'x: {text}', yaml.SafeLoader).value[0][1])
        both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(value)
        assert type(value) is type(expected), text
        assert both_nan or value == expected, text
