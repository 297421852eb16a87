# SPDX-License-Identifier: Apache-2.0
"""Drivers: a relay on real Modbus servers, a GPIO line with the library's API, real commands."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError, ResetError
from heqis_core.io.testing_modbus import FakeDevice, rtu_devices, serial_line, tcp_devices
from heqis_core.testing import free_port, wait_until
from heqis_supervisor.reset import testing_gpiod as fake_gpiod
from heqis_supervisor.reset.drivers import make_driver
from heqis_supervisor.reset.relay import TRIES
from heqis_supervisor.reset.rules import CommandReset, DryRun, GpioReset, ModbusReset

HOLD_MS = 120


def never() -> threading.Event:
    return threading.Event()


# --- GPIO line ---


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> fake_gpiod.FakeChip:
    made = fake_gpiod.FakeChip()
    monkeypatch.setitem(sys.modules, 'gpiod', made.module())
    return made


def gpio(**changes) -> GpioReset:
    return GpioReset(
        **{'board': 'compute', 'chip': '/dev/gpiochip1', 'line': 17, 'hold_ms': HOLD_MS, **changes}
    )


@pytest.mark.parametrize(('active_low', 'levels'), [(False, [0, 1, 0]), (True, [1, 0, 1])])
@pytest.mark.parametrize('line', [17, 'RESET'])
def test_a_line_is_active_for_its_time_and_then_let_go(chip, active_low, levels, line) -> None:
    make_driver(gpio(active_low=active_low, line=line, drive='open_drain')).pulse(never())
    assert [level for level, _ in chip.levels] == levels
    (_, began_s), (_, ended_s) = chip.levels[1:]
    assert HOLD_MS <= (ended_s - began_s) * 1000 < HOLD_MS + 500
    assert chip.held == set()
    assert chip.settings.drive == fake_gpiod.Drive.OPEN_DRAIN
    assert chip.consumer == 'heqis-reset'


def test_rest_makes_a_line_inactive(chip) -> None:
    make_driver(gpio(active_low=True)).rest()
    assert [level for level, _ in chip.levels] == [1]
    assert chip.held == set()


def test_a_pulse_is_cut_short_when_the_supervisor_ends(chip) -> None:
    stop = threading.Event()
    stop.set()
    make_driver(gpio(hold_ms=30_000)).pulse(stop)
    assert [level for level, _ in chip.levels] == [0, 1, 0]


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'chip': '/dev/gpiochip9'}, 'No such file'),
        ({'line': 3}, 'unknown line'),
        ({'line': 'RESET'}, 'busy'),
    ],
)
def test_a_line_that_cannot_be_had_is_an_error_with_its_name(chip, changes, text) -> None:
    chip.held.add('RESET')
    driver = make_driver(gpio(**changes))
    for act in (lambda: driver.pulse(never()), driver.rest):
        with pytest.raises(ResetError, match=text) as caught:
            act()
        assert str(caught.value).startswith('GPIO line ')


def test_a_line_that_fails_in_the_middle_is_made_inactive(chip) -> None:
    chip.broken = True
    with pytest.raises(ResetError, match='Input/output'):
        make_driver(gpio()).pulse(never())
    assert [level for level, _ in chip.levels] == [0]
    assert chip.held == set()


def test_a_machine_without_the_library_is_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, 'gpiod', None)
    with pytest.raises(ConfigError, match='board-rk3568'):
        make_driver(gpio())
    monkeypatch.setitem(sys.modules, 'gpiod', fake_gpiod.ModuleType('gpiod'))
    with pytest.raises(ConfigError, match='not that of libgpiod 2'):
        make_driver(gpio())


def test_the_fake_has_the_signatures_of_the_library() -> None:
    real = pytest.importorskip('gpiod', reason='gpiod is not installed')
    fake = fake_gpiod.FakeChip().module()

    def shape(function) -> list[tuple[str, object, object]]:
        found = inspect.signature(function).parameters.values()
        return [(one.name, one.kind, one.default) for one in found]

    assert shape(fake.request_lines) == shape(real.request_lines)
    for name in ('set_value', 'release', '__enter__', '__exit__'):
        ours, theirs = (getattr(kind, name) for kind in (fake_gpiod.LineRequest, real.LineRequest))
        assert shape(ours) == shape(theirs), name
    ours, theirs = (fields(kind) for kind in (fake.LineSettings, real.LineSettings))
    assert [one.name for one in ours] == [one.name for one in theirs]
    for name in ('Value', 'Direction', 'Drive'):
        ours, theirs = getattr(fake.line, name), getattr(real.line, name)
        assert [one.name for one in ours] == [one.name for one in theirs]


def test_the_real_library_refuses_what_is_no_chip() -> None:
    pytest.importorskip('gpiod', reason='gpiod is not installed')
    with pytest.raises(ResetError, match='GPIO line 17 of /dev/null'):
        make_driver(gpio(chip='/dev/null')).pulse(never())


# --- Modbus relay ---


def relay(port: int, **changes) -> ModbusReset:
    given = {
        'board': 'compute',
        'host': '127.0.0.1',
        'port': port,
        'coil': 7,
        'hold_ms': HOLD_MS,
        'timeout_ms': 200,
    }
    return ModbusReset(**{**given, **changes})


@pytest.mark.parametrize('active_low', [False, True])
def test_a_coil_is_switched_for_its_time_and_put_back(active_low) -> None:
    device, port = FakeDevice(3), free_port()
    with tcp_devices(port, device):
        driver = make_driver(relay(port, unit_id=3, active_low=active_low))
        driver.rest()
        driver.pulse(never())
    assert [(coil, on) for coil, on, _ in device.writes] == [
        (7, active_low),
        (7, not active_low),
        (7, active_low),
    ]
    (_, _, began_s), (_, _, ended_s) = device.writes[1:]
    assert HOLD_MS <= (ended_s - began_s) * 1000 + 20 < HOLD_MS + 500


def test_a_relay_on_a_serial_line() -> None:
    device = FakeDevice()
    with serial_line() as (theirs, ours), rtu_devices(theirs, device):
        make_driver(
            ModbusReset(board='compute', serial=ours, parity='N', coil=0, hold_ms=20)
        ).pulse(never())
    assert [on for _, on, _ in device.writes] == [True, False]


def test_a_relay_that_refuses_is_an_error_that_says_so() -> None:
    device, port = FakeDevice(), free_port()
    device.failing = 4
    with tcp_devices(port, device), pytest.raises(ResetError, match='exception 4') as caught:
        make_driver(relay(port)).pulse(never())
    assert 'cannot be switched off' in str(caught.value), 'what stays is told last'


def test_a_relay_that_is_not_there_is_an_error_in_time() -> None:
    began_s = time.monotonic()
    with pytest.raises(ResetError, match='coil 7 of unit 1 at tcp 127'):
        make_driver(relay(free_port())).pulse(never())
    assert time.monotonic() - began_s < 2 * TRIES * 0.2 + 2


def test_a_coil_whose_answer_got_lost_is_put_back() -> None:
    device, port = FakeDevice(), free_port()
    with tcp_devices(port, device):
        driver = make_driver(relay(port, timeout_ms=100))
        device.delay_s = 0.25
        with pytest.raises(ResetError, match='no reply within'):
            driver.pulse(never())
        wait_until(lambda: len(device.writes) > 1, 5, 'what was asked for is done, late')
        device.delay_s = 0.0
        driver.rest()
        wait_until(lambda: not device.writes[-1][1], 5, 'at rest')
    assert device.writes[0][1], 'no answer came, but the coil was switched'


def test_a_relay_that_vanishes_during_the_pulse_may_still_be_held() -> None:
    device, port = FakeDevice(), free_port()
    problems: list[Exception] = []

    def pulse() -> None:
        try:
            make_driver(relay(port, hold_ms=500)).pulse(never())
        except ResetError as error:
            problems.append(error)

    with tcp_devices(port, device):
        worker = threading.Thread(target=pulse)
        worker.start()
        wait_until(lambda: bool(device.writes), 5, 'the coil is on')
    worker.join()
    assert 'cannot be switched off' in str(problems[0])


# --- command ---


def command(*code: str, **changes) -> CommandReset:
    return CommandReset(board='compute', argv=(sys.executable, '-c', '\n'.join(code)), **changes)


def test_a_command_gets_its_arguments_as_they_are(tmp_path: Path) -> None:
    told = tmp_path / 'told'
    how = CommandReset(
        board='compute',
        argv=(
            sys.executable,
            '-c',
            f'import sys; open({str(told)!r}, "w").write(sys.argv[1])',
            '$(id); *',
        ),
    )
    make_driver(how).pulse(never())
    assert told.read_text() == '$(id); *'


def test_a_command_that_fails_is_quoted() -> None:
    how = command('import sys', 'print("x" * 100_000)', 'sys.exit("no such outlet")')
    with pytest.raises(ResetError, match=r'ended with 1; it said: x+ no such outlet$'):
        make_driver(how).pulse(never())


@pytest.mark.parametrize(('timeout_ms', 'why'), [(1_000, 'not at its end'), (60_000, 'is ending')])
def test_a_command_and_its_children_end_with_its_time(tmp_path, timeout_ms, why) -> None:
    told = tmp_path / 'child'
    how = command(
        'import subprocess, sys, time',
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])',
        f'open({str(told)!r}, "w").write(str(child.pid) + ".")',
        'time.sleep(100)',
        timeout_ms=timeout_ms,
    )
    stop = threading.Event()
    if timeout_ms > 1_000:
        seen = threading.Thread(
            target=lambda: (wait_until(told.exists, 10, 'its child'), stop.set())
        )
        seen.start()
    with pytest.raises(ResetError, match=why):
        make_driver(how).pulse(stop)
    if told.exists():
        pid = int(told.read_text().rstrip('.') or 0)
        wait_until(lambda: not pid or gone(pid), 5, 'the child is gone')


def gone(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except OSError:
        return True


def test_a_program_that_is_not_there_is_told_before_it_is_needed() -> None:
    with pytest.raises(ConfigError, match='no program /no/such'):
        make_driver(CommandReset(board='compute', argv=('/no/such', 'x')))


def test_a_dry_run_does_nothing() -> None:
    driver = make_driver(DryRun(board='compute'))
    before = time.monotonic()
    driver.rest()
    driver.pulse(never())
    assert time.monotonic() - before < 1
