# SPDX-License-Identifier: Apache-2.0
"""`heqis up --runner` as a service: what systemd hears, and what the runner hears of its own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heqis_bringup import up
from heqis_bringup.child_watch import ENVIRONMENT, ChildWatch
from heqis_bringup.cli import entry_points
from heqis_bringup.launch_file import ProcessSpec
from heqis_bringup.launch_runner import LaunchRunner
from heqis_bringup.service import Service
from heqis_core.io.notify import Notifier
from heqis_core.testing import wait_until
from heqis_core.testing_bundle import write_test_bundle

SPEAKS = """
import faulthandler, os, signal, socket, sys, time
faulthandler.enable()
# Bash starts the runner in the background, and children inherit what it ignores.
signal.signal(signal.SIGINT, signal.SIG_DFL)
talk = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    talk.sendto(text.encode(), '\\0' + os.environ['NOTIFY_SOCKET'][1:])
def live(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        say('WATCHDOG=1')
        time.sleep(0.1)
"""
WELL = "say('READY=1'); say('STATUS=all is well'); say('WATCHDOG_USEC=800000'); live(100)"
HANGS = "say('READY=1'); say('WATCHDOG_USEC=400000'); live(0.5); time.sleep(100)"


class Systemd:
    """The notification socket of systemd, and what came."""

    def __init__(self, receiver: socket.socket) -> None:
        self.receiver = receiver
        self.said: list[str] = []

    def environ(self, watchdog_s: float = 0.0) -> dict[str, str]:
        usec = {'WATCHDOG_USEC': str(int(watchdog_s * 1e6))} if watchdog_s else {}
        return {'NOTIFY_SOCKET': '@' + self.receiver.getsockname()[1:].decode(), **usec}

    def hear(self) -> list[str]:
        while True:
            try:
                self.said += self.receiver.recv(1000).decode().splitlines()
            except BlockingIOError:
                return self.said

    def heard(self, text: str, n: int = 1) -> None:
        wait_until(lambda: self.hear().count(text) >= n, 20, f'{text} in {self.said}')


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind('')
        receiver.setblocking(False)
        yield Systemd(receiver)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return a function that makes the programs of a package, and the environment to run them."""

    def make(package: str, **programs: str) -> dict[str, str]:
        prefix = tmp_path / 'prefix'
        index = prefix / 'share/ament_index/resource_index/packages'
        index.mkdir(parents=True, exist_ok=True)
        (index / package).touch()
        folder = prefix / 'lib' / package
        folder.mkdir(parents=True)
        for name, body in programs.items():
            path = folder / name
            path.write_text(f'#!{sys.executable} -S\n{SPEAKS}\n{textwrap.dedent(body)}\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        before = os.environ.get('AMENT_PREFIX_PATH', '')
        return {**os.environ, 'AMENT_PREFIX_PATH': f'{prefix}{os.pathsep}{before}'}

    return make


@contextmanager
def running(
    environ: dict[str, str], folder: Path, *names: str, package: str = 'heqis_x', **limits: float
) -> Iterator[tuple[LaunchRunner, list[str]]]:
    lines: list[str] = []
    specs = [ProcessSpec(package, name, respawn=True, respawn_delay_s=0.1) for name in names]
    runner = LaunchRunner(
        specs,
        folder / 'log',
        console=lambda who, line: lines.append(f'{who}: {line}'),
        environ=environ,
        watch=ChildWatch(**limits),
    )
    with runner:
        yield runner, lines


def test_a_silent_process_is_ended_and_started_again_and_the_others_stay(
    machine, tmp_path: Path
) -> None:
    environ = machine('heqis_x', well=WELL, hangs=HANGS)
    with running(environ, tmp_path, 'well', 'hangs') as (runner, lines):
        wait_until(lambda: runner.processes()[1].restarts >= 1, 20, 'a new start')
        well, hangs = runner.processes()
        assert (well.restarts, well.status) == (0, 'all is well')
        assert hangs.last_exit == -signal.SIGABRT
    text = '\n'.join(lines)
    assert 'runner: hangs: no sign of life for 0.' in text
    assert 'sending SIGABRT' in text
    assert 'hangs: Fatal Python error: Aborted' in text, 'it says where its threads were'
    assert 'runner: well: no sign' not in text


def test_a_stopped_process_is_ended_although_it_cannot_act(machine, tmp_path: Path) -> None:
    with running(machine('heqis_x', well=WELL), tmp_path, 'well') as (runner, lines):
        wait_until(lambda: bool(runner.processes()[0].status), 20, 'it speaks')
        pid = runner.processes()[0].pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: runner.processes()[0].last_exit is not None, 20, 'its end')
        assert runner.processes()[0].last_exit == -signal.SIGKILL
        wait_until(lambda: runner.processes()[0].status == 'all is well', 20, 'the next start')
    assert any('well: still there, sending SIGKILL' in line for line in lines)


def test_a_process_that_stops_before_it_is_ready_is_ended_too(machine, tmp_path: Path) -> None:
    once = """
    path = os.environ['FLAG']
    if not os.path.exists(path):
        open(path, 'w').close()
        os.kill(os.getpid(), signal.SIGSTOP)
    say('READY=1')
    time.sleep(100)
    """
    environ = {**machine('heqis_x', once=once), 'FLAG': str(tmp_path / 'flag')}
    with running(environ, tmp_path, 'once', start_s=1.5) as (runner, lines):
        wait_until(lambda: runner.processes()[0].restarts == 1, 20, 'a new start')
        time.sleep(2.0)
        assert runner.processes()[0].restarts == 1, 'ready, and not asked for signs of life'
    assert any('once: not ready since its start for 1.' in line for line in lines)


def test_a_foreign_program_may_be_silent(machine, tmp_path: Path) -> None:
    environ = machine('other', quiet='time.sleep(100)')
    limits = {'start_s': 0.2, 'watchdog_s': 0.2}
    with running(environ, tmp_path, 'quiet', package='other', **limits) as (runner, _):
        time.sleep(1.0)
        view = runner.processes()[0]
        assert view.pid
        assert view.restarts == 0


def test_only_a_child_is_heard_and_time_without_the_runner_is_nobodys_silence() -> None:
    watch = ChildWatch(watchdog_s=2.0)
    notifier = Notifier(watch.environ())
    assert notifier.watchdog_s == 2.0
    me = os.getpid()
    watch.started(me + 1, 0.0, speaks=False)
    notifier.watch(1.0)
    assert watch.look(0.1) == []
    assert [watch.look(0.1 + i / 2) for i in range(1, 9)] == [[]] * 8, 'the message was not its'
    watch.started(me, 5.0, speaks=False)
    for line in ('WATCHDOG_USEC=x', 'nonsense', '=', 'WATCHDOG_USEC=2000000'):
        notifier.send(line)
    assert watch.look(5.0) == []
    assert watch.look(105.0) == [], 'the runner was away'
    assert watch.look(105.9) == []
    assert [each.number for each in watch.look(106.8)] == []
    (first,) = watch.look(107.7)
    assert (first.pid, first.number) == (me, signal.SIGABRT)
    assert watch.look(107.9) == []
    (second,) = watch.look(108.5)
    assert second.number == signal.SIGKILL
    assert watch.look(109.0) == []
    watch.started(me, 110.0, speaks=False)
    notifier.send('WATCHDOG_USEC=1000000')
    notifier.watch(0.0)
    assert watch.look(110.0) == []
    assert [watch.look(110.0 + i / 2) for i in range(9)] == [[]] * 9, 'it asked not to be watched'
    notifier.close()
    watch.close()


def test_systemd_hears_how_a_board_is_until_it_ends(machine, systemd, tmp_path: Path) -> None:
    if 'up' not in entry_points():
        pytest.skip('the workspace is not built and sourced: no entry points')
    environ = machine('heqis_supervisor', agent=WELL)
    environ = {**machine('heqis_compute', compute=WELL), **systemd.environ(watchdog_s=1.0)}
    bundle = write_test_bundle(tmp_path / 'bundles')
    command = [sys.executable, '-m', 'heqis_bringup.cli', 'up', '--runner', 'compute']
    with (tmp_path / 'out').open('w') as out:
        process = subprocess.Popen(
            [*command, f'bundle:={bundle}'], env=environ, cwd=tmp_path, stdout=out, stderr=out
        )
    try:
        systemd.heard('READY=1')
        systemd.heard('WATCHDOG=1', 5)
        ways = 'compute: all is well; compute_agent: all is well'
        systemd.heard(f'STATUS=2 of 2 processes run; {ways}')
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / 'out').read_text()
    finally:
        process.kill()
        process.wait()
    systemd.heard('STOPPING=1')
    assert systemd.said.count('READY=1') == 1
    assert not [text for text in systemd.said if 'USEC' in text], 'what children say stays inside'


def test_a_runner_whose_thread_stands_still_gives_no_sign_of_life(
    machine, systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    environ = machine('heqis_x', well=WELL)
    with running(environ, tmp_path, 'well', watchdog_s=30) as (runner, _):
        service = Service(runner, Notifier(systemd.environ(watchdog_s=0.4)))

        def tell() -> int:
            service.tell()
            return systemd.hear().count('WATCHDOG=1')

        wait_until(lambda: tell() >= 3, 20, 'signs of life')
        monkeypatch.setattr(runner, '_forward', lambda _: go_on.wait(20))
        time.sleep(0.3)
        before = tell()
        end_s = time.monotonic() + 1.0
        while time.monotonic() < end_s:
            assert tell() <= before + 1
            time.sleep(0.05)
        go_on.set()


def test_ros2_launch_is_left_alone_by_systemd(systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in systemd.environ(watchdog_s=1.0).items():
        monkeypatch.setenv(name, value)
    up.leave_to_ros2(Notifier())
    assert systemd.hear() == ['READY=1', 'STATUS=ros2 launch', 'WATCHDOG_USEC=0']
    assert not [name for name in ENVIRONMENT if name in os.environ]
