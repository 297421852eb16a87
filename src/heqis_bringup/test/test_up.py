# SPDX-License-Identifier: Apache-2.0
"""`heqis up`: what it refuses and lists, and which of ros2 launch and the runner it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heqis_bringup import up
from heqis_bringup.ament import find_share
from heqis_bringup.cli import entry_points, main
from heqis_bringup.launch_file import load_launch
from heqis_core.errors import ConfigError
from heqis_core.testing import wait_until
from heqis_core.testing_bundle import write_test_bundle

PROGRAMS = {
    'heqis_gateway': ('gateway',),
    'heqis_supervisor': ('journal', 'supervisor', 'agent'),
    'heqis_compute': ('compute',),
    'heqis_dashboard': ('dashboard',),
}


@pytest.fixture(autouse=True)
def needs_installed_commands() -> None:
    if 'up' not in entry_points():
        pytest.skip('the workspace is not built and sourced: no entry points')


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine whose nodes are little programs, without `ros2`."""
    prefix = tmp_path / 'prefix'
    index = prefix / 'share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    for package, names in PROGRAMS.items():
        (index / package).touch()
        folder = prefix / 'lib' / package
        folder.mkdir(parents=True)
        for name in names:
            script(folder / name, 'echo "$0 $*"; exec sleep 60')
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    ament = f'{prefix}{os.pathsep}{os.environ["AMENT_PREFIX_PATH"]}'
    return {**os.environ, 'AMENT_PREFIX_PATH': ament, 'PATH': f'{bin_folder}:/usr/bin:/bin'}


def script(path: Path, body: str) -> None:
    path.write_text(f'#!/bin/sh\n{body}\n', encoding='utf-8')
    path.chmod(0o755)


def bundle(folder: Path) -> Path:
    return write_test_bundle(folder / 'bundles')


def heqis_up(
    machine: dict[str, str], folder: Path, target: str, *words: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, '-m', 'heqis_bringup.cli', 'up', target),
            *(() if target == 'dashboard' else (f'bundle:={bundle(folder)}',)),
            *words,
        ],
        env=machine,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_ros2_launch_that_works_takes_over(machine: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / 'bin/ros2', '[ "$2" = --help ] && exit 0; echo "ros2 got: $*"; exit 5')
    with heqis_up(machine, tmp_path, 'gateway', 'pace:=0') as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    first, second = out.splitlines()
    assert first == 'heqis up: gateway by ros2 launch'
    words = second.split()
    assert words[2] == 'launch'
    assert words[3].endswith('/launch/gateway.launch.yaml')
    given = [f'bundle:={bundle(tmp_path)}', 'pace:=0']
    assert words[4:] == [*given, 'sigterm_timeout:=2', 'sigkill_timeout:=1.5']


@pytest.mark.parametrize('broken', [True, False])
def test_without_a_working_ros2_launch_the_runner_starts_the_processes_and_ends_them(
    machine: dict[str, str], tmp_path: Path, broken: bool
) -> None:
    if broken:
        script(tmp_path / 'bin/ros2', 'exit 1')
    with heqis_up(machine, tmp_path, 'compute', 'namespace:=lab') as process:
        assert process.stdout is not None
        lines: list[str] = []
        while sum('__ns:=/lab' in line for line in lines) < 2:
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert 'compute by the runner of HEQIS (no usable ros2 launch on this machine)' in lines[0]
    names = {line.split('] ')[0] for line in lines[1:] if '__ns' in line}
    assert names == {'[compute', '[compute_agent'}
    assert rest.count('ended (signal 2)') == 2
    assert '__ns:=/lab' in (tmp_path / 'run/log/compute/compute.log').read_text()


def test_the_runner_can_be_forced(machine: dict[str, str], tmp_path: Path) -> None:
    script(tmp_path / 'bin/ros2', 'exit 0')
    with heqis_up(machine, tmp_path, 'compute', '--runner') as process:
        assert process.stdout is not None
        assert 'by the runner of HEQIS (as asked)' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_page_alone_needs_no_bundle_and_keeps_its_logs_by_its_namespace(
    machine: dict[str, str], tmp_path: Path
) -> None:
    with heqis_up(machine, tmp_path, 'dashboard', 'namespace:=lab', '--runner') as process:
        assert process.stdout is not None
        while '__ns:=/lab' not in (line := process.stdout.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert '__node:=viewer' in (tmp_path / 'run/lab/log/dashboard/viewer.log').read_text()


def test_a_page_that_is_not_installed_is_refused_with_the_way_to_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, without, alone = (
        load_launch(up.launch_path(target), given, find_share=find_share)
        for target, given in (
            ('gateway', {}),
            ('gateway', {'dashboard': 'false'}),
            ('dashboard', {}),
        )
    )
    for plan in (board, without, alone):
        up.check_dashboard(plan)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    lacks = r"\.launch\.yaml:\d+: package 'heqis_dashboard' is in none of"
    with pytest.raises(ConfigError, match=f'gateway{lacks}.*: dashboard:=false$'):
        up.check_dashboard(board)
    up.check_dashboard(without)
    with pytest.raises(ConfigError, match=f'dashboard{lacks}.*again$'):
        up.check_dashboard(alone)


def test_a_page_whose_requirements_are_not_installed_is_refused_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = load_launch(up.launch_path('gateway'), find_share=find_share)
    monkeypatch.setattr(up, '_PAGE_NEEDS', ('json', 'heqis_no_such'))
    with pytest.raises(ConfigError, match=r'needs heqis_no_such; pip.*: dashboard:=false$'):
        up.check_dashboard(plan)


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['gatway'], 'gatway'),
        (['all', 'pase:=1'], "declares no argument 'pase'"),
        (['all', 'pace=1'], 'name:=value'),
        (['replay'], 'data:=value'),
        (['all', 'transport:=udp'], 'zmq, dds'),
    ],
)
def test_up_refuses_what_the_launch_file_does_not_know(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['up', *words]) == 2
    assert text in capsys.readouterr().err


def test_a_bundle_that_no_node_would_take_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['up', 'compute']) == 2
    assert 'bundle:=DIR' in capsys.readouterr().err
    assert main(['up', 'compute', f'bundle:={tmp_path}']) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_sources_file_that_no_gateway_would_take_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['up', 'gateway', f'bundle:={bundle(tmp_path)}', 'source:=several']
    assert main(words) == 2
    assert 'give sources:=FILE' in capsys.readouterr().err
    file = tmp_path / 'sources.yaml'
    file.write_text('sources:\n- {name: a, kind: flie}\n')
    assert main([*words, f'sources:={file}']) == 2
    said = capsys.readouterr().err
    assert f'{file}:2: sources[0].kind: Invalid value' in said
    assert 'expected one of' in said


def test_a_second_graph_in_the_same_folder_is_refused_and_another_folder_is_free(
    tmp_path: Path,
) -> None:
    with up.only_one(tmp_path / 'a'):
        with pytest.raises(ConfigError, match='state:='), up.only_one(tmp_path / 'a'):
            pass
        with up.only_one(tmp_path / 'b'):
            pass
    with up.only_one(tmp_path / 'a'):
        pass


@pytest.mark.parametrize('target', up.TARGETS)
def test_up_lists_the_launch_arguments(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['up', target, '--show-args']) == 0
    out = capsys.readouterr().out
    assert '  namespace ' in out
    assert ('(zmq | dds); default ' in out) == (target != 'dashboard')
    assert ('  dashboard_port ' in out) == (target != 'compute')


def test_a_stop_signal_is_seen_and_the_second_one_is_urgent() -> None:
    seen: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with up.stop_signals(seen.append) as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: len(seen) == 2, 5, 'both signals')
        assert stopped()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (['data:=bars'], 'data:=bars is not read with source:=simulator; give source:=file'),
        (['sources:=s.yaml'], 'sources:=s.yaml is not read with source:=simulator; give source:='),
    ],
)
def test_data_that_would_not_be_read_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(['up', 'gateway', f'bundle:={bundle(tmp_path)}', *words]) == 2
    assert expected in capsys.readouterr().err
