# SPDX-License-Identifier: Apache-2.0
"""The helpers of the tests: they wait, they find what is free, and they skip with a reason."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heqis_core.testing import free_domain_id, free_port, shared_data, wait_until


def test_wait_ends_when_the_condition_holds() -> None:
    start_s = time.monotonic()
    wait_until(lambda: time.monotonic() > start_s + 0.03, 5.0)
    assert 0.03 <= time.monotonic() - start_s < 5.0


def test_wait_asks_once_even_without_time() -> None:
    asked = iter([True])
    wait_until(lambda: next(asked), 0.0)
    assert list(asked) == []


def test_wait_fails_with_the_message_when_the_time_is_up() -> None:
    with pytest.raises(AssertionError, match=r'not so within 0\.03 s: the moon is not full'):
        wait_until(lambda: False, 0.03, 'the moon is not full')


def test_ports_are_free_and_never_given_twice() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as server:
            server.bind(('127.0.0.1', port))


def test_a_domain_is_held_until_its_process_ends() -> None:
    # The other process takes every domain that it can get: none of ours may be among them.
    ours = {free_domain_id() for _ in range(3)}
    assert len(ours) == 3
    code = (
        'from heqis_core.testing import free_domain_id\n'
        'try:\n'
        '    while True: print(free_domain_id())\n'
        'except OSError as error: print(error)\n'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    theirs = {int(line) for line in out.stdout.splitlines()[:-1]}
    assert len(theirs) > 10
    assert not ours & theirs
    assert 'every ROS_DOMAIN_ID' in out.stdout.splitlines()[-1]


def test_named_data_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HEQIS_TEST_DATA', str(tmp_path))
    assert shared_data() == tmp_path


def test_missing_data_folder_skips_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HEQIS_TEST_DATA', str(tmp_path / 'nowhere'))
    with pytest.raises(pytest.skip.Exception, match='nowhere is not a folder'):
        shared_data()
