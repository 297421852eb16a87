# SPDX-License-Identifier: Apache-2.0
"""`heqis doctor`: what is here, what each part would use, what is missing and how to get it.

Each probe stands alone and looks without changing anything; one that fails says so and stops no
other. Nothing is imported that could take the process with it: TensorRT is judged by the driver
first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heqis_bringup import probes
from heqis_bringup.ament import find_executable, find_prefix
from heqis_bringup.up import ros2_launch_works
from heqis_core.errors import ConfigError
from heqis_core.io.tushare_client import load_token

OK, USED, NOTE, MISSING, BROKEN = 'ok', 'used', 'note', 'missing', 'broken'
_STYLES = {OK: 'green', USED: 'bold green', NOTE: '', MISSING: 'yellow', BROKEN: 'bold red'}

PORTS = {5555: 'frames', 5556: 'decisions', 5557: 'requests', 5558: 'control', 8050: 'dashboard'}
PROGRAMS = {
    'heqis_gateway': ('gateway',),
    'heqis_supervisor': ('journal', 'supervisor', 'agent'),
    'heqis_compute': ('compute',),
}
_RUNTIME = (
    'numpy',
    'numba',
    'msgspec',
    'pyzmq',
    'onnxruntime',
    'pandas',
    'pyarrow',
    'psutil',
    'cryptography',
)
_DASHBOARD = ('dash', 'plotly', 'fastapi', 'starlette', 'uvicorn', 'websockets')
_SOURCE = 'source install/setup.bash (or . scripts/env.sh)'
_SETUP = 'make setup'


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, details, and how to get what is missing.

    `status` is `ok`, `used` (the choice among several), `note` (for information), `missing`
    (something is not there) or `broken` (the main job does not run like this).
    """

    section: str
    name: str
    status: str
    detail: str = ''
    fix: str = ''


Probe = Callable[[], Iterator[Finding]]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'doctor',
        help='say what is installed, what would be used, what is missing',
        description='Look at this machine. Exit status 1 if the main job cannot run on it.',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print every finding; return 1 if one is `broken`."""
    findings = examine()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        Console(highlight=False).print(as_table(findings))
    return int(any(finding.status == BROKEN for finding in findings))


def examine(chosen: dict[str, Probe] | None = None) -> list[Finding]:
    """Return the findings of every probe; a probe that fails gives one finding that says how."""
    findings: list[Finding] = []
    for section, probe in (PROBES if chosen is None else chosen).items():
        try:
            findings.extend(probe())
        except Exception as error:  # a doctor does not fall ill himself
            text = f'this probe failed: {type(error).__name__}: {error}'
            findings.append(Finding(section, 'probe', NOTE, text))
    return findings


def as_table(findings: list[Finding]) -> Table:
    """Return the findings for the terminal."""
    table = Table('part', 'what', 'status', 'details, and how to get what is missing', box=None)
    section = ''
    for item in findings:
        text = item.detail + (f'\n-> {item.fix}' if item.fix else '')
        head = item.section if item.section != section else ''
        section = item.section
        table.add_row(head, item.name, Text(item.status, _STYLES[item.status]), Text(text))
    return table


def _machine() -> Iterator[Finding]:
    memory_gib = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30
    cores = len(os.sched_getaffinity(0))
    text = f'{platform.machine()}, {cores} cores, {memory_gib:.1f} GiB, Linux {platform.release()}'
    yield Finding('machine', 'computer', OK if cores > 1 else NOTE, text)
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield Finding(
        'machine',
        'python',
        OK if good else BROKEN,
        f'{platform.python_version()} in {sys.prefix}',
        '' if good else 'use Python 3.10 (Humble), 3.11 or 3.12',
    )
    usage = shutil.disk_usage('.')
    free_gib = usage.free / 2**30
    yield Finding(
        'machine',
        'disk',
        OK if free_gib > 2 else MISSING,
        f'{free_gib:.1f} GiB free of {usage.total / 2**30:.0f} GiB in {os.getcwd()}',
        '' if free_gib > 2 else 'free some space: the journal must never meet a full disk',
    )
    synchronised = probes.clock_synchronised()
    fix = 'start systemd-timesyncd or chrony, or leave it to the host of this container'
    if synchronised is None:
        yield Finding(
            'machine', 'clock', NOTE, 'the kernel does not tell whether it is synchronised'
        )
    else:
        text = 'synchronised' if synchronised else 'the kernel says: not synchronised'
        yield Finding(
            'machine', 'clock', OK if synchronised else NOTE, text, '' if synchronised else fix
        )


def _ros() -> Iterator[Finding]:
    spec = util.find_spec('rclpy')
    if spec is None or spec.origin is None:
        fix = f'source the ROS 2 of this machine, or {_SETUP} (brings rclpy from PyPI)'
        yield Finding('ROS 2', 'rclpy', BROKEN, 'not importable', fix)
    else:
        from_wheel = 'site-packages' in spec.origin and not spec.origin.startswith('/opt/ros')
        origin = 'PyPI wheels' if from_wheel else 'an installed ROS 2'
        distro = os.environ.get('ROS_DISTRO', 'no ROS_DISTRO set')
        number = _version('ros-rclpy') or _version('rclpy') or 'unknown version'
        text = f'{number} from {origin} ({distro}), {Path(spec.origin).parent}'
        yield Finding('ROS 2', 'rclpy', OK, text)
        yield _middleware()
    works = ros2_launch_works()
    text = 'ros2 launch' if works else 'the runner of HEQIS: no usable ros2 launch on PATH'
    yield Finding('ROS 2', 'launch', USED, text)
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST (set by the launch files)')
    yield Finding('ROS 2', 'discovery', NOTE, f'domain {domain}, range {reach}')


def _middleware() -> Finding:
    chosen = os.environ.get('RMW_IMPLEMENTATION')
    name = chosen or probes.DEFAULT_MIDDLEWARE
    found = probes.middlewares()
    if name not in found:
        fix = f'unset RMW_IMPLEMENTATION, or install {name}; here are {", ".join(found) or "none"}'
        return Finding('ROS 2', 'middleware', BROKEN, f'{name} is not installed', fix)
    why = 'RMW_IMPLEMENTATION' if chosen else 'default'
    return Finding('ROS 2', 'middleware', OK, f'{name} ({why})')


def _packages() -> Iterator[Finding]:
    for package, programs in PROGRAMS.items():
        try:
            prefix = find_prefix(package)
            for program in programs:
                find_executable(package, program)
        except ConfigError as error:
            yield Finding('HEQIS', package, BROKEN, str(error), f'{_SETUP}, then {_SOURCE}')
        else:
            text = f'{_version(package) or "?"} in {prefix}: {", ".join(programs)}'
            yield Finding('HEQIS', package, OK, text)
    for package in ('heqis_msgs', 'heqis_ros', 'heqis_core', 'heqis_bringup'):
        found = util.find_spec(package) is not None
        yield Finding(
            'HEQIS',
            package,
            OK if found else BROKEN,
            _version(package) or ('importable' if found else 'not importable'),
            '' if found else f'{_SETUP}, then {_SOURCE}',
        )
    trains = util.find_spec('heqis_training') is not None and util.find_spec('torch') is not None
    yield Finding(
        'HEQIS',
        'heqis train',
        OK if trains else NOTE,
        f'torch {_version("torch")}'
        if trains
        else 'not on this machine; only a workstation needs it',
        '' if trains else 'pip install -r requirements/training.txt, colcon build heqis_training',
    )
    for name in _RUNTIME:
        number = _version(name)
        yield Finding(
            'packages',
            name,
            OK if number else BROKEN,
            number or 'not installed',
            '' if number else 'pip install -r requirements/runtime.txt',
        )


def _engines() -> Iterator[Finding]:
    for role, order in probes.ENGINE_ORDER.items():
        chosen = False
        for engine in order:
            reason = engine.passed_over()
            if reason is None and not chosen:
                chosen = True
                yield Finding('engines', f'{role}: {engine.name}', USED, engine.detail())
            elif reason is None:
                yield Finding('engines', f'{role}: {engine.name}', OK, 'works too; comes after')
            else:
                yield Finding(
                    'engines', f'{role}: {engine.name}', NOTE, f'passed over: {reason}', engine.fix
                )
        if not chosen:
            fix = 'pip install -r requirements/runtime.txt'
            yield Finding('engines', role, BROKEN, 'no engine works', fix)


def _dashboard() -> Iterator[Finding]:
    without = 'start without the page: dashboard:=false'
    try:
        path = find_executable('heqis_dashboard', 'dashboard')
    except ConfigError as error:
        fix = f'{_SETUP}, then {_SOURCE}; or {without}'
        yield Finding('dashboard', 'program', NOTE, str(error), fix)
    else:
        yield Finding('dashboard', 'program', OK, str(path))
    for name in _DASHBOARD:
        number = _version(name)
        fix = '' if number else f'pip install -r requirements/dashboard.txt, or {without}'
        yield Finding('dashboard', name, OK if number else NOTE, number or 'not installed', fix)
    browser = probes.chromium()
    text = str(browser) if browser else 'not installed'
    fix = '' if browser else 'install the package chromium'
    use = 'the browser tests of the page'
    yield Finding('dashboard', 'chromium', OK if browser else NOTE, f'{text} ({use})', fix)


def _ports() -> Iterator[Finding]:
    for port, use in PORTS.items():
        holder = probes.port_holder(port)
        if holder is None:
            yield Finding('ports', f'{port} {use}', OK, 'free on 127.0.0.1')
        else:
            argument = (
                f'{use}_port:=PORT' if use == 'dashboard' else f'{use}:=tcp://127.0.0.1:PORT'
            )
            fix = f'end it, or give another port: heqis up all {argument}'
            yield Finding('ports', f'{port} {use}', NOTE, f'taken by {holder}', fix)


def _hardware() -> Iterator[Finding]:
    for name, pattern, use in (
        ('watchdog', 'watchdog*', 'hard reset of a hung gateway board'),
        ('GPIO', 'gpiochip*', 'reset line of the compute board'),
        ('serial', 'tty[USA]*[0-9]', 'Modbus RTU'),
    ):
        devices = sorted(str(path) for path in Path('/dev').glob(pattern))
        shown = ', '.join(devices[:4]) + (' …' if len(devices) > 4 else '')
        denied = [device for device in devices if not os.access(device, os.R_OK | os.W_OK)]
        if denied:
            fix = (
                f'give this user the right to {denied[0]}: a udev rule, or the group of the device'
            )
            yield Finding('hardware', name, NOTE, f'{shown}; no permission', fix)
        elif devices:
            yield Finding('hardware', name, OK, f'{shown} ({use})')
        else:
            yield Finding('hardware', name, NOTE, f'none here; {use} needs it')
    yield _library('hardware', 'gpiod', 'GPIO reset line')


def _sources() -> Iterator[Finding]:
    yield _library('sources', 'tushare', 'heqis fetch, and Tushare as a live source')
    yield _library('sources', 'pymodbus', 'Modbus devices, and the Modbus server')
    yield _library('sources', 'pyserial', 'Modbus over a serial line')
    try:
        load_token(os.environ)
    except ConfigError as error:
        yield Finding('sources', 'Tushare token', NOTE, str(error))
    else:
        yield Finding('sources', 'Tushare token', OK, 'is in the environment, or in its file')


def _library(section: str, name: str, use: str) -> Finding:
    number = _version(name)
    text = f'{number} ({use})' if number else f'not installed; {use} needs it'
    fix = '' if number else f'pip install {name}'
    return Finding(section, name, OK if number else NOTE, text, fix)


PROBES: dict[str, Probe] = {
    'machine': _machine,
    'ROS 2': _ros,
    'HEQIS': _packages,
    'engines': _engines,
    'dashboard': _dashboard,
    'sources': _sources,
    'ports': _ports,
    'hardware': _hardware,
}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''
