# SPDX-License-Identifier: Apache-2.0
"""A reset is durable before its driver acts, one process acts, and what is held is let go."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError, ResetError
from heqis_core.testing import wait_until
from heqis_supervisor.facts import Pulsed, Reset, ResetMind, Resetting
from heqis_supervisor.reset import actuator as module
from heqis_supervisor.reset import ledger as ledger_module
from heqis_supervisor.reset.actuator import Actuator
from heqis_supervisor.reset.ledger import FILE, Ledger
from heqis_supervisor.reset.rules import DryRun

RULES = {'compute': DryRun(board='compute')}


class Driver:
    """Notes what it did, and what the record said then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.fail_pulse = self.fail_rest = ''
        self.record: list[ResetMind] = []

    def pulse(self, stop: threading.Event) -> None:
        self.done.append('pulse')
        self.record.append(Ledger(self.folder, 'machine').read(RULES)['compute'])
        if self.fail_pulse:
            raise ResetError(self.fail_pulse)

    def rest(self) -> None:
        self.done.append('rest')
        if self.fail_rest:
            raise ResetError(self.fail_rest)


class Running:
    def __init__(self, folder: Path, driver: Driver) -> None:
        self.driver, self.stop = driver, threading.Event()
        self.actuator = Actuator(folder, 'machine', RULES, {'compute': driver})
        self.thread = threading.Thread(target=self.actuator.run, args=(self.stop,))
        self.answers: list[Pulsed] = []

    def end(self) -> None:
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(5)
        self.actuator.close()

    def answer(self) -> Pulsed:
        def got() -> bool:
            self.answers += self.actuator.take()
            return bool(self.answers)

        wait_until(got, 5, 'the answer')
        return self.answers.pop()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(module, 'RETRY_S', 0.05)
    made = Running(tmp_path, Driver(tmp_path))
    yield made
    made.end()


def resetting() -> dict[str, ResetMind]:
    now = time.monotonic()
    running = Resetting(5, 'it hangs', 'boot 1', now + 60)
    return {'compute': ResetMind('boot 1', now, (now - 10, now), running)}


def test_a_reset_is_on_the_disk_before_the_driver_acts(running) -> None:
    running.thread.start()
    running.actuator.put(resetting(), (Reset('compute', 5),))
    assert running.answer() == Pulsed(5, True, 'dry run, nothing is switched')
    assert running.driver.done[-1] == 'pulse'
    (seen,) = running.driver.record
    assert (seen.boot_id, seen.running.reason) == ('boot 1', 'it hangs')
    assert len(seen.begun_s) == 2
    assert 10 <= time.monotonic() - seen.begun_s[0] < 15


def test_a_record_that_cannot_be_written_means_no_reset(running, monkeypatch) -> None:
    full = [True]
    write = ledger_module.replace_forced

    def fails(path: Path, *parts: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, *parts)

    monkeypatch.setattr(ledger_module, 'replace_forced', fails)
    running.thread.start()
    running.actuator.put(resetting(), (Reset('compute', 5),))
    answer = running.answer()
    assert not answer.ok
    assert 'No space left on device: nothing was done' in answer.text
    assert 'pulse' not in running.driver.done
    assert 'No space left' in running.actuator.error
    full[0] = False
    wait_until(lambda: running.actuator.error == '', 5, 'written when there is room')
    assert 'compute' in Ledger(running.driver.folder, 'machine').read(RULES)
    assert 'pulse' not in running.driver.done


def test_what_may_be_held_is_let_go_until_that_works(running) -> None:
    driver = running.driver
    driver.fail_rest = 'no answer'
    running.thread.start()
    wait_until(lambda: driver.done.count('rest') > 2, 5, 'tried at start, again and again')
    assert running.actuator.error == 'board compute may be held in reset: no answer'
    driver.fail_rest = ''
    wait_until(lambda: running.actuator.error == '', 5, 'let go')
    driver.done.clear()
    driver.fail_pulse = 'it broke'
    running.actuator.put(resetting(), (Reset('compute', 5),))
    assert running.answer() == Pulsed(5, False, 'it broke')
    wait_until(lambda: driver.done == ['pulse', 'rest'], 5, 'let go once more')


def test_only_what_changed_is_written(running) -> None:
    running.thread.start()
    file = running.driver.folder / FILE
    minds = resetting()
    running.actuator.put(minds, ())
    wait_until(file.exists, 5, 'the record')
    first = file.stat().st_ino
    running.actuator.put({'compute': ResetMind(**{**vars(minds['compute']), 'heard_s': 9.0})}, ())
    running.actuator.put({'compute': ResetMind('boot 2')}, ())
    wait_until(lambda: file.stat().st_ino != first, 5, 'the next record')
    running.end()
    assert b'boot 2' in file.read_bytes()


def test_two_never_act_even_as_two_processes(running, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'process \d+ resets boards from here; only one may'):
        Running(tmp_path, Driver(tmp_path))
    program = (
        'import pathlib, sys\n'
        'from heqis_supervisor.reset.actuator import Actuator\n'
        'held = Actuator(pathlib.Path(sys.argv[1]), "", {}, {})\n'
        'print("mine", flush=True)\n'
        'sys.stdin.read()\n'
    )
    command = [sys.executable, '-c', program, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert 'resets boards from here' in refused.stderr
    running.end()
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, **pipes) as other:
        try:
            assert other.stdout.readline() == 'mine\n'
            with pytest.raises(ConfigError, match=f'process {other.pid} resets'):
                Running(tmp_path, Driver(tmp_path))
        finally:
            other.kill()
    Running(tmp_path, Driver(tmp_path)).end()


def test_a_damaged_record_is_put_aside_and_latches(running) -> None:
    file = running.driver.folder / FILE
    for damage in (
        b'{"version": 1',
        b'\xff',
        b'{"version": 9, "boot_id": "", "up_s": 0, "boards": {}}',
    ):
        file.write_bytes(damage)
        known = running.actuator.begin()
        assert 'is damaged' in known['compute'].latched
        assert file.with_suffix('.damaged').read_bytes() == damage
        assert not file.exists()
    assert running.actuator.begin() == {}


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='give state_dir a folder'):
        Actuator(tmp_path / 'file', '', RULES, {})
