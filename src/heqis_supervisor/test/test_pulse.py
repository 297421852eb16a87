# SPDX-License-Identifier: Apache-2.0
"""Signs of life come from work alone: of the loop, which gives them, and of the executor."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from heqis_core.io.notify import Notifier
from heqis_supervisor.pulse import Pulse
from heqis_supervisor.testing_watchdog import PATH, FakeWatchdog
from heqis_supervisor.watchdog_device import WatchdogDevice


class Inbox:
    """A real notification socket, and what came."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind('')
        self.socket.setblocking(False)
        self.address = '@' + self.socket.getsockname()[1:].decode()

    def notifier(self, watchdog_s: float = 0) -> Notifier:
        usec = {'WATCHDOG_USEC': str(int(watchdog_s * 1e6))} if watchdog_s else {}
        return Notifier({'NOTIFY_SOCKET': self.address, **usec})

    def take(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1000).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    box = Inbox()
    yield box
    box.socket.close()


def test_it_speaks_while_loop_and_executor_move_and_only_as_often_as_needed(inbox) -> None:
    pulse = Pulse(inbox.notifier(2.0))
    assert inbox.take() == ['WATCHDOG_USEC=2000000']
    for i in range(100):
        pulse.beat(spin_count=i, now_s=10 + i * 0.05)
    assert inbox.take() == ['WATCHDOG=1'] * 10, 'four times as often as asked for'
    assert pulse.beat(spin_count=99, now_s=20), 'the executor moved since the last time'
    assert not pulse.beat(spin_count=99, now_s=25), 'it has not moved since'
    assert not pulse.beat(spin_count=99, now_s=30)
    assert inbox.take() == ['WATCHDOG=1']
    assert pulse.beat(spin_count=100, now_s=30.01)
    assert inbox.take() == ['WATCHDOG=1']
    pulse.end(fault=False)
    assert inbox.take() == ['WATCHDOG_USEC=0']


def test_nobody_who_asked_is_told_nothing_but_what_people_read(inbox) -> None:
    pulse = Pulse(inbox.notifier())
    assert not pulse.beat(1, 1.0)
    pulse.tell('all nodes are active')
    pulse.tell('all nodes are active')
    pulse.tell('compute is away')
    pulse.end(fault=False)
    assert inbox.take() == ['STATUS=all nodes are active', 'STATUS=compute is away']
    assert not Pulse(Notifier({})).beat(1, 1.0)


def test_the_device_alone_is_patted_by_the_same_rule() -> None:
    fake = FakeWatchdog()
    pulse = Pulse(Notifier({}), WatchdogDevice(PATH, 30, fake.calls()))
    for i in range(200):
        fake.wait(1)
        pulse.beat(i, fake.now_s)
    assert fake.resets == 0
    while not fake.resets:
        fake.wait(1)
        pulse.beat(199, fake.now_s)
    assert fake.now_s == 233, 'the time-out after the last turn of the executor'


def test_after_an_orderly_end_the_board_goes_on_and_after_a_fault_it_is_reset() -> None:
    for fault in (False, True):
        fake = FakeWatchdog()
        pulse = Pulse(Notifier({}), WatchdogDevice(PATH, 30, fake.calls()))
        pulse.beat(1, 0.0)
        pulse.end(fault=fault)
        fake.wait(60)
        assert fake.resets == int(fault)


def test_a_device_that_fails_is_told_and_stops_nothing(inbox) -> None:
    fake = FakeWatchdog()
    pulse = Pulse(inbox.notifier(8.0), WatchdogDevice(PATH, 30, fake.calls()))
    fake.refuses['write'] = errno.EIO
    assert pulse.beat(1, 0.0)
    assert 'Input/output error' in pulse.fault
    fake.refuses.clear()
    assert pulse.beat(2, 5.0)
    assert pulse.fault == ''
    assert inbox.take()[1:] == ['WATCHDOG=1', 'WATCHDOG=1']
