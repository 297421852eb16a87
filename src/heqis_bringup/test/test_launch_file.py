# SPDX-License-Identifier: Apache-2.0
"""The YAML launch subset: same results as launch, all else refused with file, line and name."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from heqis_bringup.launch_file import LaunchPlan, ProcessSpec, load_launch, parse_arguments
from heqis_bringup.launch_runner import ros_arguments
from heqis_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ('gateway', 'compute', 'all', 'replay', 'dashboard')


def no_package(package: str) -> Path:
    raise ConfigError(f'package {package!r} is not there')


def write(folder: Path, text: str, name: str = 'x.launch.yaml') -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding='utf-8')
    return path


def load(
    folder: Path, text: str, given: dict[str, str] | None = None, **environ: str
) -> tuple[ProcessSpec, ...]:
    return plan(folder, text, given, **environ).processes


def plan(
    folder: Path, text: str, given: dict[str, str] | None = None, **environ: str
) -> LaunchPlan:
    path = write(folder, text)
    return load_launch(path, given, find_share=lambda p: Path('/opt/share', p), environ=environ)


def refusal(folder: Path, text: str, given: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_launch(write(folder, text), given, find_share=no_package, environ={})
    return str(caught.value)


def test_a_node_carries_every_attribute_of_the_subset(tmp_path: Path) -> None:
    (tmp_path / 'p.yaml').write_text('{}')
    (node,) = load(
        tmp_path,
        """
        launch:
        - arg: {name: rate, default: '50', description: 'bars/s'}
        - node:
            pkg: some_pkg
            exec: run_it
            name: worker
            namespace: /a/b
            output: screen
            respawn: 'true'
            respawn_delay: 1.5
            ros_args: --log-level $(var level 'my debug')
            param:
            - from: $(dirname)/p.yaml
            - {name: rate, value: $(var rate), type: float}
            - {name: rate_text, value: $(var rate), type: str}
            - {name: rate_yaml, value: $(var rate)}
            - {name: fixed, value: 3}
            remap:
            - {from: chatter, to: /talk}
            env:
            - {name: BOARD, value: $(env WHICH)}
        """,
        WHICH='gateway',
    )
    assert (node.package, node.executable, node.name) == ('some_pkg', 'run_it', 'worker')
    assert node.namespace == '/a/b'
    assert node.params == (
        tmp_path / 'p.yaml',
        ('rate', 50.0),
        ('rate_text', '50'),
        ('rate_yaml', 50),
        ('fixed', 3),
    )
    assert [type(p[1]) for p in node.params[1:]] == [float, str, int, int]
    assert node.remaps == (('chatter', '/talk'),)
    assert node.env == {'BOARD': 'gateway'}
    assert node.ros_args == ('--log-level', 'my debug')
    assert node.respawn
    assert node.respawn_delay_s == 1.5
    assert node.output == 'screen'
    assert node.where.startswith(str(tmp_path / 'x.launch.yaml') + ':5')


NAMESPACES = """
launch:
- arg: {name: ns, default: heqis}
- node: {pkg: p, exec: before}
- group:
  - push_ros_namespace: {namespace: $(var ns)}
  - node: {pkg: p, exec: inside}
  - node: {pkg: p, exec: deeper, namespace: sub}
  - node: {pkg: p, exec: elsewhere, namespace: /other}
  - group:
    - push_ros_namespace: {namespace: inner}
    - node: {pkg: p, exec: innermost}
  - node: {pkg: p, exec: inside_again}
- node: {pkg: p, exec: after}
"""


def test_namespaces_add_up_and_end_with_their_group(tmp_path: Path) -> None:
    found = {node.executable: node.namespace for node in load(tmp_path, NAMESPACES)}
    assert found == {
        'before': None,
        'inside': '/heqis',
        'deeper': '/heqis/sub',
        'elsewhere': '/other',
        'innermost': '/heqis/inner',
        'inside_again': '/heqis',
        'after': None,
    }


@pytest.mark.parametrize('text', ['heqis', '/heqis', '/heqis/', 'a/b'])
def test_a_namespace_is_absolute_and_has_no_slash_at_the_end(tmp_path: Path, text: str) -> None:
    nodes = load(tmp_path, NAMESPACES, {'ns': text})
    assert nodes[1].namespace == '/' + text.strip('/')


@pytest.mark.parametrize('text', ['1st', 'a b', 'a//b', 'a-b', 'ä'])
def test_an_impossible_namespace_is_refused(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, NAMESPACES, {'ns': text})
    assert 'x.launch.yaml:6' in message
    assert text in message


def test_conditions_choose_processes(tmp_path: Path) -> None:
    text = """
    launch:
    - arg: {name: enabled, default: 'true'}
    - node: {pkg: p, exec: with, if: $(var enabled)}
    - node: {pkg: p, exec: without, unless: $(var enabled)}
    - group:
        unless: $(var enabled)
        children:
        - node: {pkg: p, exec: grouped}
    """
    assert [n.executable for n in load(tmp_path, text)] == ['with']
    assert [n.executable for n in load(tmp_path, text, {'enabled': '0'})] == ['without', 'grouped']
    assert "':4" not in refusal(tmp_path, text, {'enabled': 'maybe'})
    assert "x.launch.yaml:4: 'if' is 'maybe'" in refusal(tmp_path, text, {'enabled': 'maybe'})


def test_an_include_passes_arguments_and_its_group_ends_them(tmp_path: Path) -> None:
    (tmp_path / 'sub').mkdir()
    write(
        tmp_path / 'sub',
        """
        launch:
        - arg: {name: port, default: '1'}
        - arg: {name: own, default: $(dirname)}
        - node: {pkg: p, exec: child, param: [{name: port, value: $(var port)}, {name: own, value: $(var own)}]}
        """,  # noqa: E501
        'child.launch.yaml',
    )
    top = """
    launch:
    - arg: {name: port, default: '2'}
    - group:
      - include:
          file: $(dirname)/sub/child.launch.yaml
          arg: [{name: port, value: '3'}]
    - include: {file: $(dirname)/sub/child.launch.yaml}
    """
    result = plan(tmp_path, top)
    ports = [dict(p for p in node.params if isinstance(p, tuple)) for node in result.processes]
    assert ports == [
        {'port': 3, 'own': str(tmp_path / 'sub')},
        {'port': 2, 'own': str(tmp_path / 'sub')},
    ]
    assert [argument.name for argument in result.arguments] == ['port', 'own']
    assert result.values == {'port': '2', 'own': str(tmp_path / 'sub')}


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'launch: [{include: {file: $(dirname)/x.launch.yaml}}]')
    assert 'include itself' in message


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('$(var a)', 'one'),
        ('x-$(var a)-y', 'x-one-y'),
        ('$(var none fallback)', 'fallback'),
        ("$(var none 'two words')", 'two words'),
        ('$(var none $(var a))', 'one'),
        ('$(env HOME_OF)/x', '/home/x'),
        ('$(env NOTHING $(env HOME_OF))', '/home'),
        ('$(find-pkg-share some_pkg)/y', '/opt/share/some_pkg/y'),
        ("$(var none '')", ''),
        ('a $b ) (c', 'a $b ) (c'),
    ],
)
def test_substitutions(tmp_path: Path, text: str, expected: str) -> None:
    document = {
        'launch': [
            {'arg': {'name': 'a', 'default': 'one'}},
            {'node': {'pkg': 'p', 'exec': 'e', 'env': [{'name': 'X', 'value': text}]}},
        ]
    }
    (node,) = load(tmp_path, yaml.safe_dump(document), HOME_OF='/home')
    assert node.env == {'X': expected}


@given(value=st.text(st.characters(codec='utf-8', exclude_characters='\x00')))
def test_a_given_value_is_never_interpreted(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    text = (
        'launch: [{arg: {name: a}}, {node: {pkg: p, exec: e, '
        'param: [{name: x, value: $(var a), type: str}]}}]'
    )
    (node,) = load(tmp_path_factory.mktemp('launch'), text, {'a': value})
    assert node.params == (('x', value),)


REFUSED = {
    'another action': ('launch:\n- let: {name: a, value: b}', 2, "'let'"),
    'a Python-only action': ('launch:\n- executable: {cmd: ls}', 2, "'executable'"),
    'a node attribute outside the subset': (
        'launch:\n- node:\n    pkg: p\n    exec: e\n    launch-prefix: gdb',
        5,
        "'launch-prefix'",
    ),
    'a misspelt attribute': ('launch:\n- node: {pkg: p, exce: e}', 2, "'exce'"),
    'a missing executable': ('launch:\n- node: {pkg: p}', 2, "'exec'"),
    'a key twice': ('launch:\n- node: {pkg: p, exec: e, pkg: q}', 2, 'twice'),
    'an unknown substitution': ('launch:\n- node: {pkg: p, exec: $(eval 1)}', 2, '$(eval 1)'),
    'a variable that nobody declared': (
        'launch:\n- node: {pkg: p, exec: $(var nix)}',
        2,
        '$(var nix)',
    ),
    'a missing environment variable': ('launch:\n- node: {pkg: p, exec: $(env NIX)}', 2, 'NIX'),
    'an open substitution': ("launch:\n- node: {pkg: p, exec: '$(var a'}", 2, 'never closed'),
    'a missing package': (
        'launch:\n- include: {file: $(find-pkg-share nix)/a.yaml}',
        2,
        "'nix' is not there",
    ),
    'a Python launch file': ('launch:\n- include: {file: /a/b.launch.py}', 2, 'b.launch.py'),
    'an unquoted default': ('launch:\n- arg: {name: a, default: 50}', 2, 'quotes'),
    'an unquoted respawn': ('launch:\n- node: {pkg: p, exec: e, respawn: true}', 2, 'quotes'),
    'an integer delay': (
        'launch:\n- node: {pkg: p, exec: e, respawn_delay: 1}',
        2,
        'decimal point',
    ),
    'a negative delay': ('launch:\n- node: {pkg: p, exec: e, respawn_delay: -1.0}', 2, '-1.0'),
    'a value outside the choices': (
        'launch:\n- arg: {name: a, default: x, choice: [{value: y}, {value: z}]}',
        2,
        'y, z',
    ),
    'an argument without value': ('launch:\n- arg: {name: a, description: why}', 2, 'a:=value'),
    'a parameter file that is not there': (
        'launch:\n- node: {pkg: p, exec: e, param: [{from: /nix.yaml}]}',
        2,
        '/nix.yaml',
    ),
    'a mixed list': (
        'launch:\n- node: {pkg: p, exec: e, param: [{name: a, value: [1, x]}]}',
        2,
        'one type',
    ),
    'text for a number': (
        'launch:\n- arg: {name: a, default: x}\n'
        '- node: {pkg: p, exec: e, param: [{name: a, value: $(var a), type: float}]}',
        3,
        "'x'",
    ),
    'a literal of another type': (
        'launch:\n- node: {pkg: p, exec: e, param: [{name: a, value: 1, type: str}]}',
        2,
        'not of the type str',
    ),
    'an unknown output': ('launch:\n- node: {pkg: p, exec: e, output: paper}', 2, 'screen'),
    'two actions in one entry': ('launch:\n- {arg: {name: a}, group: []}', 2, 'one action'),
    'an empty group': ('launch:\n- group: []', 2, 'at least one'),
    'no launch key': ('lunch: []', 1, "'lunch'"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_not_understood_is_refused_with_file_line_and_name(
    tmp_path: Path, case: str
) -> None:
    text, line, name = REFUSED[case]
    message = refusal(tmp_path, text)
    assert f'{tmp_path}/x.launch.yaml:{line}: ' in message
    assert name in message


def test_an_unreadable_file_names_itself(tmp_path: Path) -> None:
    assert 'x.launch.yaml is empty' in refusal(tmp_path, '')
    assert 'not YAML' in refusal(tmp_path, 'launch: [')
    with pytest.raises(ConfigError, match=r'nix\.yaml cannot be read'):
        load_launch(tmp_path / 'nix.yaml', find_share=no_package)


def test_an_argument_that_no_file_declares_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, NAMESPACES, {'nss': 'x'})
    assert "no argument 'nss'; it knows ns" in message


def test_arguments_come_as_name_value_words() -> None:
    assert parse_arguments(['a:=1', 'b:=', 'c:=x:=y']) == {'a': '1', 'b': '', 'c': 'x:=y'}
    for words in (['a=1'], ['1a:=1'], ['a:=1', 'a:=2']):
        with pytest.raises(ConfigError, match=words[-1].split(':')[0]):
            parse_arguments(words)


def shipped(name: str, **given: str) -> LaunchPlan:
    return load_launch(ROOT / 'launch' / f'{name}.launch.yaml', given, find_share=no_package)


@pytest.mark.parametrize('name', SHIPPED)
def test_the_shipped_files_are_of_the_subset(name: str) -> None:
    processes = shipped(name, **({'data': '/x'} if name == 'replay' else {})).processes
    assert processes
    for process in processes:
        assert process.respawn, process.executable
        assert process.namespace == '/heqis'
        boards = ('viewer',) if name == 'dashboard' else ('gateway', 'compute')
        assert process.env['HEQIS_BOARD'] in boards


def test_all_is_both_boards_and_replay_is_all_on_a_file() -> None:
    parts = [p.executable for name in ('gateway', 'compute') for p in shipped(name).processes]
    assert [p.executable for p in shipped('all').processes] == parts
    assert parts == [
        *('gateway', 'journal', 'supervisor', 'agent', 'dashboard'),
        *('compute', 'agent'),
    ]
    gateway = shipped('replay', data='/some/data').processes[0]
    values = dict(p for p in gateway.params if isinstance(p, tuple))
    assert values['source'] == 'file'
    assert values['data'] == '/some/data'


def test_a_replay_without_data_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"'data' \(CSV or Parquet .*data:=value"):
        shipped('replay')


def test_arguments_that_two_files_declare_have_one_default() -> None:
    gateway = {a.name: a for a in shipped('gateway').arguments}
    compute = {a.name: a for a in shipped('compute').arguments}
    both = {*gateway} & {*compute}
    assert {*compute} - both == {'board'}
    for name in both:
        assert compute[name] == gateway[name]


def test_only_processes_with_one_node_are_renamed() -> None:
    # `name` would rename every node of a process, so two of them would share one name.
    names = {p.executable: p.name for p in shipped('gateway').processes}
    assert names == {
        'gateway': None,
        'journal': None,
        'supervisor': None,
        'agent': 'gateway_agent',
        'dashboard': 'dashboard',
    }


@pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None, reason='needs launch_ros of a ROS 2 install'
)
@pytest.mark.parametrize('name', SHIPPED)
def test_launch_ros_builds_the_same_command_lines(name: str, tmp_path: Path) -> None:
    given = {'data': '/some/data', 'pace': '0', 'namespace': 'x/y'}
    if name in ('compute', 'dashboard'):
        given = {'namespace': 'x/y'}
    ours = [
        (effect(ros_arguments(spec, tmp_path / str(index))), dict(spec.env), spec.respawn_delay_s)
        for index, spec in enumerate(shipped(name, **given).processes)
    ]
    assert ours == list(as_launch_ros_would(ROOT / 'launch' / f'{name}.launch.yaml', given))


def as_launch_ros_would(
    path: Path, given: dict[str, str]
) -> Iterator[tuple[tuple[list[str], dict[str, object]], dict[str, str], float]]:
    from launch import LaunchContext
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import AnyLaunchDescriptionSource
    from launch.utilities import perform_substitutions
    from launch_ros.actions import Node

    context = LaunchContext()
    waiting: list[Any] = [
        IncludeLaunchDescription(
            AnyLaunchDescriptionSource(str(path)), launch_arguments=list(given.items())
        )
    ]
    while waiting:
        action = waiting.pop(0)
        if not isinstance(action, Node):
            waiting[:0] = action.visit(context) or ()
            continue
        action._perform_substitutions(context)
        rules = {'ns': f'__ns:={action.expanded_node_namespace}'}
        rules['name'] = f'__node:={action._Node__expanded_node_name}'
        context.extend_locals({'ros_specific_arguments': rules})
        words = [perform_substitutions(context, word) for word in action.cmd[1:]]
        env = {
            perform_substitutions(context, key): perform_substitutions(context, value)
            for key, value in action.additional_env
        }
        yield effect(words), env, action._ExecuteLocal__respawn_delay


def effect(words: list[str]) -> tuple[list[str], dict[str, object]]:
    """Return the rules in order, and the values by node key: ROS lets the last one win."""
    rules, values = [], {}
    for word in words:
        if Path(word).is_file():
            for key, section in yaml.safe_load(Path(word).read_text()).items():
                for parameter, value in section['ros__parameters'].items():
                    values[f'{key} {parameter}'] = value
        elif word not in ('--ros-args', '--params-file'):
            rules.append(word)
    return rules, values


def test_the_environment_of_this_process_answers_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, 'HEQIS_TEST_WORD', 'here')
    path = write(tmp_path, 'launch: [{node: {pkg: p, exec: $(env HEQIS_TEST_WORD)}}]')
    assert load_launch(path, find_share=no_package).processes[0].executable == 'here'
