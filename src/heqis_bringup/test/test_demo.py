# SPDX-License-Identifier: Apache-2.0
"""`heqis demo`: what it refuses, how a run takes its course, and one real graph."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from heqis_bringup.cli import main
from heqis_bringup.course import QUICK_ENDS, START_LIMIT_S, Course, expected_nodes
from heqis_bringup.demo_setup import (
    DataChoice,
    check_data,
    choose_domain,
    free_endpoints,
    page_port,
    train,
    training_command,
)
from heqis_bringup.launch_file import load_launch
from heqis_bringup.launch_runner import ProcessView
from heqis_core.bundle import Bundle
from heqis_core.control import NodeBeat, ProcessBeat
from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_core.graph_state import GraphState
from heqis_core.testing_bundle import write_test_bundle

ROOT = Path(__file__).resolve().parents[3]
RUNNING = [ProcessView('gateway', 1, 0, None, ())]


def hear(state: GraphState, now_s: float, node_state: int = 3, **counters: int) -> GraphState:
    """Let a gateway be heard once more."""
    view = state.nodes.get('gateway')
    count = view.counters.get('heard', 0) + 1 if view else 1
    node = NodeBeat(
        '/heqis/gateway', node_state, counters={**counters, 'heard': count}, info='why'
    )
    state.beat(ProcessBeat('gateway', 'gateway', 'h', 1, 1, count, 0, 'b', nodes=(node,)), now_s)
    return state


def step(course: Course, now_s: float, state: GraphState, **more: object) -> tuple[str, bool]:
    processes = more.get('processes', RUNNING)
    return course.update(now_s, 100.0, state, processes, bool(more.get('stop')))  # type: ignore[arg-type]


def test_a_run_comes_up_streams_and_finishes() -> None:
    course, state = Course(('gateway',), 30.0), GraphState()
    assert step(course, 101.0, state) == ('starting, 0 of 1 nodes active', True)
    hear(state, 102.0, frames_open=3)
    assert step(course, 102.0, state) == ('streaming', True)
    state.signalled(104.5, [('A', 'BUY', 0.1)])
    hear(state, 105.0, source_done=1, frames_open=0)
    assert step(course, 105.0, state) == ('ending (finished)', False)
    assert course.seconds == {'up': 2.0, 'first_signal': 4.5}
    assert (course.reason, course.problems) == ('finished', [])


def test_without_a_duration_only_a_person_ends_a_run_that_is_finished() -> None:
    course, state = Course(('gateway',), None), GraphState()
    step(course, 102.0, hear(state, 102.0))
    assert step(course, 5000.0, hear(state, 5000.0)) == ('streaming', True)
    hear(state, 5001.0, source_done=1, frames_open=0)
    assert step(course, 5001.0, state) == ('finished, Ctrl-C ends it', True)
    hear(state, 9000.0, source_done=1, frames_open=0)
    assert step(course, 9000.0, state, stop=True) == ('ending (finished)', False)
    assert course.problems == []


def test_the_page_has_its_usual_port_or_another_if_that_is_taken() -> None:
    port = page_port()
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', port))
        assert page_port() != port


def test_duration_and_signals_end_a_good_run_well() -> None:
    for stop, now_s, reason in ((False, 130.0, 'duration'), (True, 110.0, 'interrupted')):
        course, state = Course(('gateway',), 30.0), GraphState()
        step(course, 102.0, hear(state, 102.0))
        assert step(course, now_s, state, stop=stop) == (f'ending ({reason})', False)
        assert course.problems == []


def test_a_graph_that_is_not_up_in_time_says_what_it_waits_for() -> None:
    course, state = Course(('gateway', 'compute'), 1000.0), GraphState()
    hear(state, 100.0 + START_LIMIT_S, node_state=1)
    assert step(course, 100.0 + START_LIMIT_S + 0.1, state) == ('ending (failed)', False)
    (problem,) = course.problems
    assert 'gateway unconfigured (why); compute not heard' in problem


def test_a_run_shorter_than_the_start_is_a_problem() -> None:
    course = Course(('gateway',), 5.0)
    assert step(course, 105.0, GraphState()) == ('ending (duration)', False)
    assert 'did not come up within 5 s: gateway not heard' in course.problems[0]


def test_a_process_that_keeps_ending_is_named_with_its_last_words() -> None:
    course, state = Course(('gateway',), 1000.0), GraphState()
    view = ProcessView('journal', None, QUICK_ENDS, 1, ('port 5558 is taken', '  '))
    assert step(course, 103.0, state, processes=[*RUNNING, view])[1] is False
    assert course.problems == [
        f'journal ended {QUICK_ENDS} times; its last words: port 5558 is taken'
    ]


def test_restarts_in_mid_stream_are_no_problem() -> None:
    course, state = Course(('gateway',), 1000.0), GraphState()
    step(course, 102.0, hear(state, 102.0))
    view = ProcessView('compute', 2, QUICK_ENDS + 1, -9, ())
    assert step(course, 103.0, state, processes=[view]) == ('streaming', True)


def test_the_shipped_graph_names_the_nodes_that_launch_starts() -> None:
    nodes = expected_nodes(ROOT / 'config' / 'graph.yaml')
    assert set(nodes) == {
        *('gateway', 'bridge', 'risk_gate', 'journal', 'supervisor', 'gateway_agent'),
        *('compute', 'compute_agent'),
    }
    plan = load_launch(
        ROOT / 'launch' / 'all.launch.yaml', find_share=lambda p: pytest.fail(f'asked for {p}')
    )
    assert len(plan.processes) == 7


def test_an_optional_process_is_waited_for_only_if_it_is_started() -> None:
    graph = ROOT / 'config' / 'graph.yaml'
    always = expected_nodes(graph)
    assert 'dashboard' not in always
    assert set(expected_nodes(graph, ['dashboard'])) == {*always, 'dashboard'}
    assert expected_nodes(graph, ['gateway', 'agent', 'not_in_the_file']) == always


def test_a_graph_with_nothing_to_wait_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'graph.yaml'
    path.write_text('version: 1\nboards: {a: {extra: {optional: true, nodes: {extra: {}}}}}\n')
    with pytest.raises(ConfigError, match=r'graph\.yaml names no node of a process'):
        expected_nodes(path)
    assert expected_nodes(path, ['extra']) == ('extra',)


@pytest.mark.parametrize('text', ['', 'boards: {}', 'boards: {a: 1}', 'x: [', '- 1'])
def test_a_graph_file_that_describes_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'graph.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'graph\.yaml'):
        expected_nodes(path)


def test_the_training_command_names_data_or_simulator(tmp_path: Path) -> None:
    words = training_command(DataChoice(None, 5, 3), tmp_path, None)
    assert words[words.index('train') :] == [
        *('train', '--json', '--run', str(tmp_path / 'training')),
        *('--out', str(tmp_path / 'bundles'), '--seed', '3'),
        *('--simulate', '1500', '--symbols', '5'),
    ]
    words = training_command(DataChoice(Path('d'), 8, 7), tmp_path, 2)
    assert words[-6:] == ['--data', 'd', '--num_epochs', '2', '--encoder_epochs', '2']


def test_training_returns_the_bundle_that_its_last_line_names() -> None:
    script = 'print("noise"); print(\'{"bundle": {"path": "/some/bundle"}}\')'
    assert train([sys.executable, '-c', script], lambda: False) == Path('/some/bundle')


@pytest.mark.parametrize(
    ('script', 'text'),
    [
        ('raise SystemExit(3)', 'exit status 3'),
        ('pass', 'named no bundle'),
        ('print("{}")', 'named no bundle'),
    ],
)
def test_a_training_that_fails_is_an_error(script: str, text: str) -> None:
    with pytest.raises(HeqisError, match=text):
        train([sys.executable, '-c', script], lambda: False)


def test_a_training_ends_when_the_run_is_stopped() -> None:
    began_s = time.monotonic()
    with pytest.raises(HeqisError, match='interrupted during the training'):
        train(
            [sys.executable, '-c', 'import time; time.sleep(60)'],
            lambda: time.monotonic() - began_s > 0.3,
        )
    assert time.monotonic() - began_s < 10


def test_endpoints_are_free_different_and_leave_given_ones_alone() -> None:
    chosen = free_endpoints(('a', 'b', 'c'), {'b': 'tcp://127.0.0.1:1'})
    assert set(chosen) == {'a', 'c'}
    ports = {int(text.rpartition(':')[2]) for text in chosen.values()}
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as server:
            server.bind(('127.0.0.1', port))


def test_the_domain_is_the_given_one_or_a_free_one() -> None:
    assert choose_domain('42') == 42
    domain = choose_domain(None)
    assert 1 <= domain <= 101
    for text in ('233', '-1', 'x'):
        with pytest.raises(ConfigError, match=text):
            choose_domain(text)


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['--data', '/no/such/folder'], '/no/such/folder'),
        (['--data', '/', '--symbols', '3'], '--symbols'),
        (['--pace', '-1'], '--pace is -1.0'),
        (['--pace', 'nan'], '--pace is nan'),
        (['--symbols', '0'], '--symbols is 0'),
        (['--duration', '-3'], '--duration'),
    ],
)
def test_impossible_wishes_are_refused_before_anything_starts(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    needs_installed_commands()
    monkeypatch.chdir(tmp_path)
    assert main(['demo', *words]) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def needs_installed_commands() -> None:
    from heqis_bringup.cli import entry_points

    if not {'demo', 'up'} <= set(entry_points()):
        pytest.skip('the workspace is not built and sourced: no entry points')


def test_data_is_read_once_before_the_graph_starts(tmp_path: Path) -> None:
    path = tmp_path / 'A.csv'
    path.write_text('date,open,high,low,close\n2024-01-02,1,1,1,1\n2024-01-03,1,1,1,1\n')
    data = DataChoice(path, 8, 7)
    day_ns = 86_400_000_000_000
    last_ns = 1_704_265_200_000_000_000  # 2024-01-03 15:00 in Shanghai
    early = Bundle.load(write_test_bundle(tmp_path / 'a', trained_until_ns=last_ns - day_ns))
    check_data(data, early)
    late = Bundle.load(write_test_bundle(tmp_path / 'b', trained_until_ns=last_ns))
    with pytest.raises(DataError, match=r'A\.csv.*2024-01-03T07:00:00 UTC.*trained until'):
        check_data(data, late)
    path.write_text('a,b\n1,2\n')
    with pytest.raises(DataError, match=r'A\.csv'):
        check_data(data, early)
    check_data(DataChoice(None, 8, 7), late)
