# SPDX-License-Identifier: Apache-2.0
"""The hardware watchdog: armed, patted, disarmed, and left armed by what ends without a word."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError
from heqis_supervisor.testing_watchdog import PATH, SETTIMEOUT, FakeWatchdog
from heqis_supervisor.watchdog_device import WDIOC_SETTIMEOUT, WatchdogDevice


def test_the_number_is_that_of_the_kernels_header() -> None:
    assert WDIOC_SETTIMEOUT == SETTIMEOUT
    header = Path('/usr/include/linux/watchdog.h')
    if not header.is_file():
        pytest.skip('the kernel headers are not installed')
    text = header.read_text()
    assert re.search(r'WDIOC_SETTIMEOUT\s+_IOWR\(WATCHDOG_IOCTL_BASE, 6, int\)', text)
    assert re.search(r"WATCHDOG_IOCTL_BASE\s+'W'", text)


def test_a_board_lives_while_it_is_patted_and_is_reset_when_it_is_not() -> None:
    fake = FakeWatchdog()
    device = WatchdogDevice(PATH, 30, fake.calls())
    assert device.timeout_s == 32, 'what the driver made of it'
    for _ in range(20):
        fake.wait(20)
        device.pat()
    assert fake.resets == 0
    fake.wait(33)
    assert fake.resets == 1


def test_disarmed_the_board_goes_on_and_abandoned_it_does_not() -> None:
    fake = FakeWatchdog()
    WatchdogDevice(PATH, 30, fake.calls()).disarm()
    assert not fake.held
    fake.wait(1000)
    assert fake.resets == 0
    device = WatchdogDevice(PATH, 30, fake.calls())
    device.pat()
    device.abandon()
    fake.wait(20)
    again = WatchdogDevice(PATH, 30, fake.calls())  # the next start comes in time
    fake.wait(20)
    assert fake.resets == 0
    again.abandon()
    fake.wait(33)
    assert fake.resets == 1


@pytest.mark.parametrize(
    ('call', 'number', 'text'),
    [
        ('open', errno.ENOENT, 'is the driver of the watchdog loaded'),
        ('open', errno.EACCES, 'udev rule'),
        ('open', errno.EBUSY, 'RuntimeWatchdogSec'),
        ('open', errno.EIO, 'Input/output error$'),
        ('ioctl', errno.EOPNOTSUPP, 'fixed time-out'),
    ],
)
def test_what_is_in_the_way_is_said_and_nothing_is_left_armed(
    call: str, number: int, text: str
) -> None:
    fake = FakeWatchdog(refuses={call: number})
    with pytest.raises(ConfigError, match=f'watchdog_device {PATH}: .*{text}'):
        WatchdogDevice(PATH, 30, fake.calls())
    assert not fake.armed
    assert not fake.held


def test_a_time_that_the_driver_does_not_have_and_a_device_that_is_taken() -> None:
    fake = FakeWatchdog()
    with pytest.raises(ConfigError, match='change watchdog_timeout_s'):
        WatchdogDevice(PATH, 3600, fake.calls())
    held = WatchdogDevice(PATH, 30, fake.calls())
    with pytest.raises(ConfigError, match='only one program may hold it'):
        WatchdogDevice(PATH, 30, fake.calls())
    held.disarm()


def test_a_real_device_that_is_no_watchdog_and_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'watchdog_device /dev/null: .*; this is no watchdog'):
        WatchdogDevice('/dev/null', 30)
    with pytest.raises(ConfigError, match='No such file'):
        WatchdogDevice(str(tmp_path / 'watchdog'), 30)
