# SPDX-License-Identifier: Apache-2.0
"""Notifications arrive at a real socket of either kind, and nobody there is no error."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from heqis_core.io.notify import Notifier


@pytest.fixture(params=['path', 'abstract'])
def listener(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.settimeout(5)
        if request.param == 'path':
            # pytest's folders may be longer than a socket's address.
            os.chdir(tmp_path)
            found.bind('n')
            link = Path('/tmp') / f'heqis-notify-{os.getpid()}'
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / 'n')
            try:
                yield found, str(link)
            finally:
                link.unlink()
        else:
            found.bind('')
            yield found, '@' + found.getsockname()[1:].decode()


@pytest.fixture(autouse=True)
def stay(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def test_every_notification_arrives_as_systemd_reads_it(listener) -> None:
    receiver, address = listener
    notifier = Notifier({'NOTIFY_SOCKET': address, 'WATCHDOG_USEC': '2500000'})
    assert notifier
    assert notifier.watchdog_s == 2.5
    sent = [
        (notifier.ready, 'READY=1'),
        (notifier.alive, 'WATCHDOG=1'),
        (notifier.stopping, 'STOPPING=1'),
        (lambda: notifier.status('all\nwell, 没问题'), 'STATUS=all well, 没问题'),
        (lambda: notifier.watch(1.5), 'WATCHDOG_USEC=1500000'),
        (lambda: notifier.send('READY=1', 'STATUS=x'), 'READY=1\nSTATUS=x'),
    ]
    for say, text in sent:
        assert say()
        assert receiver.recv(1000).decode() == text
    notifier.close()
    assert not notifier
    assert not notifier.ready()


def test_nobody_there_and_a_full_socket_are_no_error(listener) -> None:
    receiver, address = listener
    notifier = Notifier({'NOTIFY_SOCKET': address})
    assert any(not notifier.alive() for _ in range(10_000)), 'the socket is full: it never blocks'
    receiver.close()
    assert not notifier.alive()
    notifier.close()


@pytest.mark.parametrize('address', ['', '@', 'relative', 'vsock:2:1'])
def test_an_address_that_systemd_would_not_give_counts_as_none(address: str) -> None:
    notifier = Notifier({'NOTIFY_SOCKET': address, 'WATCHDOG_USEC': '1000000'})
    assert not notifier
    assert notifier.watchdog_s == 0
    assert not notifier.ready()


@pytest.mark.parametrize(
    ('usec', 'pid', 'seconds'),
    [
        ('3000000', 'own', 3.0),
        ('3000000', '', 3.0),
        ('3000000', '1', 0),
        ('', '', 0),
        ('x', '', 0),
    ],
)
def test_the_watchdogs_time_is_for_the_process_that_is_named(
    usec: str, pid: str, seconds: float
) -> None:
    environ = {'NOTIFY_SOCKET': '@x', 'WATCHDOG_USEC': usec}
    if pid:
        environ['WATCHDOG_PID'] = str(os.getpid()) if pid == 'own' else pid
    notifier = Notifier(environ)
    assert notifier.watchdog_s == seconds
    notifier.close()
