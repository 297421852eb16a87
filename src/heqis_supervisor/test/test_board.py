# SPDX-License-Identifier: Apache-2.0
"""Exactly the process that is meant is ended: not its successor, not one of another machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from heqis_core.control import Kill, KillSilent, NodeBeat, ProcessBeat
from heqis_core.testing import wait_until
from heqis_supervisor.board import Watched, age_s, launched, start_ticks

BOOT = 'this-boot'


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def watched() -> Watched:
    return Watched('compute', BOOT)


def beat(pid: int, count: int = 1, start_id: int = 5, **changes) -> ProcessBeat:
    made = ProcessBeat('compute', 'brain', 'h', pid, start_id, count, 0, BOOT)
    return structs.replace(made, **changes)


def order(seen: ProcessBeat, **changes) -> Kill:
    made = Kill(1, seen.process, seen.pid, seen.start_id, seen.boot_id, seen.proc_start)
    return structs.replace(made, **changes)


def test_heartbeats_get_what_the_kernel_says_and_a_count_of_restarts(watched, child) -> None:
    first = watched.take(beat(child.pid))
    assert first.proc_start == start_ticks(child.pid) > 0
    assert first.restarts == 0
    assert watched.take(beat(child.pid, count=1)) is None, 'a duplicate'
    assert watched.take(beat(child.pid, count=0)) is None, 'a late one'
    assert watched.take(beat(child.pid, count=2)).proc_start == first.proc_start
    again = watched.take(beat(os.getpid(), start_id=6))
    assert (again.restarts, again.proc_start) == (1, start_ticks(os.getpid()))
    assert watched.take(beat(os.getpid(), count=2, start_id=6)).restarts == 1


def test_the_start_of_a_node_is_that_of_its_process(watched) -> None:
    assert watched.start_of('/thinker') == 0
    for start_id in (5, 6):
        watched.take(beat(1, start_id=start_id, nodes=(NodeBeat('/thinker', 1),)))
        assert watched.start_of('/thinker') == start_id


def test_heartbeats_of_other_boards_are_not_ours(watched) -> None:
    assert watched.take(beat(1, board='gateway')) is None


def test_the_meant_process_is_killed_even_when_it_is_stopped(watched, child) -> None:
    seen = watched.take(beat(child.pid))
    child.send_signal(signal.SIGSTOP)
    killed = watched.kill(order(seen))
    assert killed == (True, f'pid {child.pid} was killed', False)
    assert child.wait(5) == -signal.SIGKILL


def test_an_agent_that_never_saw_the_process_kills_it_by_what_the_supervisor_kept(child) -> None:
    seen = Watched('compute', BOOT).take(beat(child.pid))
    assert Watched('compute', BOOT).kill(order(seen)).ok
    assert child.wait(5) == -signal.SIGKILL


def test_another_process_with_the_same_pid_is_left_alone(watched, child) -> None:
    seen = watched.take(beat(child.pid))
    killed = watched.kill(order(seen, proc_start=seen.proc_start - 1))
    assert killed == (True, f'pid {child.pid} had ended already', True)
    assert child.poll() is None


def test_a_process_of_another_boot_or_never_seen_is_left_alone(watched, child) -> None:
    seen = watched.take(beat(child.pid))
    elsewhere = watched.kill(order(seen, boot_id='another'))
    unknown = watched.kill(order(seen, proc_start=0))
    assert (elsewhere.ok, unknown.ok) == (False, False)
    assert 'does not run on this machine' in elsewhere.text
    assert 'never seen' in unknown.text
    assert child.poll() is None


def test_a_process_that_has_ended_is_gone(watched, child) -> None:
    seen = watched.take(beat(child.pid))
    child.kill()
    child.wait()
    assert watched.kill(order(seen)).gone


@pytest.fixture
def start_named(tmp_path: Path, monkeypatch) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a script of a name, as launch does on a board."""
    running: list[subprocess.Popen] = []

    def start(name: str, board: str = 'compute') -> subprocess.Popen:
        script = tmp_path / name
        script.write_text(f'#!{sys.executable} -S\nimport time\ntime.sleep(60)\n')
        script.chmod(0o755)
        environ = {**os.environ, 'HEQIS_BOARD': board}
        running.append(subprocess.Popen([str(script), '--ros-args'], env=environ))
        return running[-1]

    # The launch whose processes are meant is the agent's parent: here, the test itself.
    monkeypatch.setattr(os, 'getppid', os.getpid)
    yield start
    for process in running:
        process.kill()
        process.wait()


def test_what_launch_runs_under_a_name_is_found_and_nothing_else(start_named) -> None:
    one, other = start_named('brain'), start_named('brain')
    start_named('brainstem')
    start_named('brain', board='compute2')
    assert sorted(launched('brain', 'compute')) == sorted([one.pid, other.pid])
    assert list(launched('brain', 'gateway')) == []
    assert 0 <= age_s(start_ticks(one.pid)) < 60


def test_only_what_is_old_enough_and_silent_is_ended(watched, start_named) -> None:
    stopped, speaks = start_named('brain'), start_named('brain')
    stopped.send_signal(signal.SIGSTOP)
    young = watched.kill_silent(KillSilent(1, 'brain', 60_000))
    assert young == (True, 'no process brain runs here that was silent for 60 s', True)
    wait_until(lambda: age_s(start_ticks(speaks.pid)) > 0.5, 5)
    watched.take(beat(speaks.pid))
    killed = watched.kill_silent(KillSilent(2, 'brain', 400))
    assert killed == (True, f'pid {stopped.pid} was killed', False)
    assert stopped.wait(5) == -signal.SIGKILL
    assert speaks.poll() is None
    nobody = watched.kill_silent(KillSilent(3, 'heart', 0))
    assert (nobody.ok, nobody.gone) == (True, True)


def test_what_spoke_long_ago_is_ended_too(watched, start_named) -> None:
    process = start_named('brain')
    watched.take(beat(process.pid))
    order = KillSilent(1, 'brain', 300)
    assert watched.kill_silent(order).gone
    wait_until(lambda: not watched.kill_silent(order).gone, 5, 'it is silent for long enough')
    assert process.wait(5) == -signal.SIGKILL


def test_start_ticks_of_nobody_and_of_odd_names() -> None:
    assert start_ticks(2**22 + 1) == 0
    rename = 'ctypes.CDLL(None).prctl(15, b") 1 (x) ", 0, 0, 0)'
    script = f'import ctypes; {rename}; print(flush=True); input()'
    odd = subprocess.Popen(
        [sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        odd.stdout.readline()
        assert 0 < start_ticks(odd.pid) >= start_ticks(os.getpid())
    finally:
        odd.communicate(b'\n')
