# SPDX-License-Identifier: Apache-2.0
"""The runner's word on real processes: start, forward, respawn, escalate, leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml

from heqis_bringup.launch_file import ProcessSpec
from heqis_bringup.launch_runner import SIGKILL_AFTER_S, LaunchRunner, ros_arguments
from heqis_core.errors import ConfigError
from heqis_core.testing import wait_until

PACKAGE = 'some_pkg'


class Workshop:
    """An ament prefix of little programs, and runners over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / 'prefix'
        self.environ = {**os.environ, 'AMENT_PREFIX_PATH': str(self.prefix)}
        self.lines: list[tuple[str, str]] = []
        index = self.prefix / 'share/ament_index/resource_index/packages'
        index.mkdir(parents=True)
        (index / PACKAGE).touch()
        (self.prefix / 'lib' / PACKAGE).mkdir(parents=True)

    def program(self, name: str, body: str) -> None:
        path = self.prefix / 'lib' / PACKAGE / name
        path.write_text(f'#!{sys.executable} -S\n{textwrap.dedent(body)}', encoding='utf-8')
        path.chmod(0o755)

    def runner(self, *specs: ProcessSpec) -> LaunchRunner:
        return LaunchRunner(
            specs,
            self.folder / 'log',
            console=lambda name, line: self.lines.append((name, line)),
            environ=self.environ,
        )

    def said(self, name: str) -> list[str]:
        return [line for who, line in list(self.lines) if who == name]

    def log(self, name: str) -> str:
        path = self.folder / 'log' / f'{name}.log'
        return path.read_text(encoding='utf-8') if path.exists() else ''


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def spec(executable: str, **more: object) -> ProcessSpec:
    return ProcessSpec(package=PACKAGE, executable=executable, where='f.yaml:1', **more)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pid_of(runner: LaunchRunner, index: int = 0) -> int:
    found: list[int] = []

    def started() -> bool:
        pid = runner.processes()[index].pid
        found[:] = [pid] if pid else []
        return bool(pid)

    wait_until(started, 10, 'the process starts')
    return found[0]


STAY = """
import signal, time
print('ready', flush=True)
signal.pause()
"""
DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
while True:
    time.sleep(60)
"""


def test_a_process_gets_the_arguments_environment_and_files_of_its_entry(
    workshop: Workshop,
) -> None:
    workshop.program(
        'show', 'import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ["X"]]))'
    )
    (workshop.folder / 'own.yaml').write_text('{}')
    entry = spec(
        'show',
        name='me',
        namespace='/a',
        params=(('one', 1), workshop.folder / 'own.yaml', ('two', 'zwei'), ('three', 3.0)),
        remaps=(('x', '/y'),),
        env={'X': 'there'},
        output='screen',
    )
    with workshop.runner(entry) as runner:
        assert runner.join(20)
    arguments, variable = json.loads(workshop.said('me')[0])
    log = workshop.folder / 'log'
    assert variable == 'there'
    assert arguments == [
        *('--ros-args', '-r', '__node:=me', '-r', '__ns:=/a'),
        *('--params-file', str(log / 'me.0.yaml')),
        *('--params-file', str(workshop.folder / 'own.yaml')),
        *('--params-file', str(log / 'me.1.yaml')),
        *('-r', 'x:=/y'),
    ]
    first, second = (yaml.safe_load((log / f'me.{n}.yaml').read_text()) for n in (0, 1))
    assert first == {'/a/me': {'ros__parameters': {'one': 1}}}
    assert second == {'/a/me': {'ros__parameters': {'two': 'zwei', 'three': 3.0}}}


def test_values_for_a_process_with_several_nodes_reach_all_of_them(tmp_path: Path) -> None:
    words = ros_arguments(spec('x', namespace='/a', params=(('one', 1),)), tmp_path / 'x')
    assert words == ['--ros-args', '-r', '__ns:=/a', '--params-file', str(tmp_path / 'x.0.yaml')]
    assert list(yaml.safe_load((tmp_path / 'x.0.yaml').read_text())) == ['/**']


def test_output_goes_to_files_and_what_is_wanted_to_the_console(workshop: Workshop) -> None:
    body = """
    import os, sys
    os.write(1, b'out 1\\nout')
    os.write(1, b' 2\\n' + b'\\xff broken\\n' + b'no end')
    os.write(2, b'error\\n')
    """
    workshop.program('loud', body)
    workshop.program('quiet', body)
    with workshop.runner(spec('loud', output='screen'), spec('quiet')) as runner:
        assert runner.join(20)
    everything = ['out 1', 'out 2', '\ufffd broken', 'no end', 'error']
    assert sorted(workshop.said('loud')) == sorted(everything)
    assert workshop.said('quiet') == ['error']
    assert sorted(workshop.log('quiet').splitlines()) == sorted(everything)
    assert sorted(runner.processes()[1].tail) == sorted(everything)


def test_an_ended_process_is_started_again_and_counted(workshop: Workshop) -> None:
    workshop.program('stay', STAY)
    with workshop.runner(spec('stay', respawn=True, respawn_delay_s=0.1)) as runner:
        first = pid_of(runner)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: runner.processes()[0].pid not in (None, first), 10, 'a new start')
        view = runner.processes()[0]
        assert (view.restarts, view.last_exit) == (1, -signal.SIGKILL)
        assert not gone(view.pid or 0)
    assert any('signal 9' in line for line in workshop.said('runner'))


def test_a_process_that_ends_at_once_is_started_again_ever_more_slowly(workshop: Workshop) -> None:
    workshop.program(
        'fail', 'import time; print(time.monotonic(), flush=True); raise SystemExit(3)'
    )
    with workshop.runner(spec('fail', respawn=True, respawn_delay_s=0.1, output='both')) as runner:
        wait_until(lambda: len(workshop.said('fail')) >= 4, 20, 'four starts')
    times = [float(line) for line in workshop.said('fail')]
    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=False):
        assert wait >= least
    assert runner.processes()[0].last_exit == 3


def test_without_respawn_the_runner_ends_with_its_last_process(workshop: Workshop) -> None:
    workshop.program('once', 'raise SystemExit(4)')
    runner = workshop.runner(spec('once'))
    runner.start()
    assert runner.join(20)
    view = runner.processes()[0]
    assert (view.pid, view.restarts, view.last_exit) == (None, 0, 4)


def test_a_polite_process_ends_on_the_first_signal(workshop: Workshop) -> None:
    body = """
    import signal, sys
    def leave(number, _):
        print('leaving on', signal.Signals(number).name, flush=True)
        sys.exit(0)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    print('ready', flush=True)
    while True:
        signal.pause()
    """
    workshop.program('polite', body)
    runner = workshop.runner(spec('polite', output='screen', respawn=True))
    runner.start()
    wait_until(lambda: workshop.said('polite') == ['ready'], 10, 'readiness')
    runner.stop()
    assert runner.join(2)
    assert workshop.said('polite') == ['ready', 'leaving on SIGINT']
    assert runner.processes()[0].last_exit == 0


def test_a_deaf_process_is_killed_within_five_seconds(workshop: Workshop) -> None:
    workshop.program('deaf', DEAF)
    runner = workshop.runner(spec('deaf', output='screen', respawn=True))
    runner.start()
    wait_until(lambda: workshop.said('deaf') == ['ready'], 10, 'readiness')
    pid = pid_of(runner)
    began = time.monotonic()
    runner.stop()
    assert runner.join(5)
    assert SIGKILL_AFTER_S <= time.monotonic() - began < 5
    assert gone(pid)
    assert [line.split()[-1] for line in workshop.said('runner') if 'sending' in line] == [
        'SIGTERM',
        'SIGKILL',
    ]


def test_a_second_wish_to_stop_kills_at_once(workshop: Workshop) -> None:
    workshop.program('deaf', DEAF)
    runner = workshop.runner(spec('deaf', output='screen'))
    runner.start()
    wait_until(lambda: workshop.said('deaf') == ['ready'], 10, 'readiness')
    runner.stop()
    runner.stop(now=True)
    assert runner.join(1)


def test_what_a_process_started_itself_ends_with_it(workshop: Workshop) -> None:
    body = """
    import os, signal
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            signal.pause()
    print(child, flush=True)
    signal.pause()
    """
    workshop.program('parent', body)
    runner = workshop.runner(spec('parent', output='screen'))
    runner.start()
    wait_until(lambda: bool(workshop.said('parent')), 10, 'readiness')
    grandchild = int(workshop.said('parent')[0])
    assert not gone(grandchild)
    runner.stop()
    assert runner.join(5)
    wait_until(lambda: gone(grandchild), 2, 'the grandchild ends')


def test_nothing_outlives_a_killed_runner(workshop: Workshop) -> None:
    workshop.program('deaf', DEAF)
    script = """
    import sys
    from pathlib import Path
    from heqis_bringup.launch_file import ProcessSpec
    from heqis_bringup.launch_runner import LaunchRunner
    spec = ProcessSpec('some_pkg', 'deaf', output='screen', respawn=True)
    say = lambda *line: print(*line, flush=True)
    runner = LaunchRunner([spec, spec], Path(sys.argv[1]), console=say)
    runner.start()
    runner.join()
    """
    command = [sys.executable, '-c', textwrap.dedent(script), str(workshop.folder / 'log')]
    pids: list[int] = []
    with subprocess.Popen(
        command, env=workshop.environ, stdout=subprocess.PIPE, text=True
    ) as outer:
        try:
            assert outer.stdout is not None
            ready = 0
            while ready < 2:
                line = outer.stdout.readline()
                assert line, 'the runner ended early'
                ready += 'ready' in line
                if 'started with pid' in line:
                    pids.append(int(line.split()[-1]))
        finally:
            outer.kill()
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: gone(pid), 5, f'process {pid} ends with its runner')


def test_missing_programs_are_named_before_anything_starts(workshop: Workshop) -> None:
    workshop.program('stay', STAY)
    with pytest.raises(ConfigError, match=r"f\.yaml:1: .*no executable 'nix'.*has stay"):
        workshop.runner(spec('stay'), spec('nix'))
    with pytest.raises(ConfigError, match=r"'other_pkg' is in none of the 1 prefixes"):
        workshop.runner(ProcessSpec('other_pkg', 'x'))
    workshop.environ['AMENT_PREFIX_PATH'] = ''
    with pytest.raises(ConfigError, match=r'source install/setup\.bash'):
        workshop.runner(spec('stay'))
    assert not workshop.lines


def test_a_program_that_cannot_run_is_an_end_like_any_other(workshop: Workshop) -> None:
    workshop.program('odd', '')
    path = workshop.prefix / 'lib' / PACKAGE / 'odd'
    path.write_text('#!/no/such/interpreter\n')
    runner = workshop.runner(spec('odd'))
    runner.start()
    assert runner.join(10)
    assert runner.processes()[0].last_exit == 127
    assert any('could not be started' in line for line in workshop.said('runner'))


def test_two_processes_of_one_program_have_names_and_logs_of_their_own(workshop: Workshop) -> None:
    workshop.program('once', 'print("x")')
    with workshop.runner(spec('once'), spec('once'), spec('once', name='third')) as runner:
        assert runner.join(10)
    assert [view.name for view in runner.processes()] == ['once', 'once-2', 'third']
    assert all(workshop.log(name) == 'x\n' for name in ('once', 'once-2', 'third'))


def test_a_console_that_fails_does_not_end_the_processes(workshop: Workshop) -> None:
    workshop.program('loud', 'import signal; print("ready", flush=True); signal.pause()')
    asked = threading.Event()

    def broken(_name: str, line: str) -> None:
        if line == 'ready':
            asked.set()
        raise BrokenPipeError

    runner = LaunchRunner(
        [spec('loud', output='screen')],
        workshop.folder / 'log',
        console=broken,
        environ=workshop.environ,
    )
    with runner:
        assert asked.wait(10)
        assert runner.processes()[0].pid
