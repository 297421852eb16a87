# SPDX-License-Identifier: Apache-2.0
"""The systemd units: as systemd reads them, as the docs name them, and as the code needs them."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from heqis_bringup.child_watch import WATCHDOG_S
from heqis_bringup.launch_file import load_launch, parse_arguments
from heqis_bringup.launch_runner import SIGKILL_AFTER_S

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / 'systemd'
BOARDS = ('gateway', 'compute')
OPERATIONS = (ROOT / 'docs' / 'operations.md').read_text(encoding='utf-8')

# systemd.unit(5), .service(5), .exec(5), .kill(5), .resource-control(5) of version 249, Ubuntu
# 22.04's: what is newer would be ignored there with a warning, and protect nothing.
KNOWN = {
    'Unit': {'Description', 'Documentation', 'Wants', 'After', 'StartLimitIntervalSec'},
    'Install': {'WantedBy'},
    'Service': {
        'Type',
        'NotifyAccess',
        'User',
        'Group',
        'SupplementaryGroups',
        'WorkingDirectory',
        'Environment',
        'EnvironmentFile',
        'ExecStart',
        'ReadWritePaths',
        'CacheDirectory',
        'LogsDirectory',
        'UMask',
        'TimeoutStartSec',
        'TimeoutStopSec',
        'WatchdogSec',
        'Restart',
        'RestartSec',
        'KillMode',
        'OOMPolicy',
        'MemoryMax',
        'TasksMax',
        'LimitNOFILE',
        'LimitCORE',
        'NoNewPrivileges',
        'CapabilityBoundingSet',
        'AmbientCapabilities',
        'ProtectSystem',
        'ProtectHome',
        'PrivateTmp',
        'ProtectClock',
        'ProtectControlGroups',
        'ProtectHostname',
        'ProtectKernelLogs',
        'ProtectKernelModules',
        'ProtectKernelTunables',
        'LockPersonality',
        'RestrictNamespaces',
        'RestrictRealtime',
        'RestrictSUIDSGID',
        'RemoveIPC',
        'RestrictAddressFamilies',
        'SystemCallArchitectures',
        'SystemCallFilter',
        'SystemCallErrorNumber',
        'DevicePolicy',
        'DeviceAllow',
    },
}  # fmt: skip
ONCE = {'DeviceAllow', 'Environment'}
HARDENED = {
    'NoNewPrivileges': 'yes',
    'CapabilityBoundingSet': '',
    'ProtectSystem': 'strict',
    'ProtectHome': 'yes',
    'PrivateTmp': 'yes',
    'RestrictNamespaces': 'yes',
    'RestrictSUIDSGID': 'yes',
    'ProtectKernelModules': 'yes',
    'LimitCORE': '0',
    'User': 'heqis',
}


def directives(board: str) -> list[tuple[str, str, str]]:
    """Return (section, name, value) of a unit; fails at a line that is none of these."""
    section, found = '', []
    for number, line in enumerate(
        (FOLDER / f'heqis-{board}.service').read_text(encoding='utf-8').splitlines(), 1
    ):
        if not line or line.startswith('#'):
            continue
        if match := re.fullmatch(r'\[(\w+)\]', line):
            section = match[1]
            continue
        name, sign, value = line.partition('=')
        assert sign and re.fullmatch(r'[A-Za-z]+', name), f'heqis-{board}.service:{number}: {line}'  # noqa: PT018
        assert not line.endswith('\\'), 'one line each'
        found.append((section, name, value))
    return found


def service(board: str) -> dict[str, str]:
    return {name: value for section, name, value in directives(board) if section == 'Service'}


def environment(board: str) -> dict[str, str]:
    values = [v for _, name, v in directives(board) if name == 'Environment']
    return dict(word.split('=', 1) for value in values for word in shlex.split(value))


@pytest.mark.parametrize('board', BOARDS)
def test_every_directive_is_known_to_the_oldest_systemd_and_stands_once(board: str) -> None:
    seen = set()
    for section, name, _ in directives(board):
        assert name in KNOWN[section], f'{section}: {name}'
        assert name in ONCE or (section, name) not in seen, name
        seen.add((section, name))


@pytest.mark.parametrize('board', BOARDS)
def test_a_unit_is_hardened_and_made_for_the_night(board: str) -> None:
    found = service(board)
    assert HARDENED.items() <= found.items()
    assert 'MemoryDenyWriteExecute' not in found, 'numba could not compile'
    assert (found['Type'], found['NotifyAccess']) == ('notify', 'main')
    assert (found['Restart'], found['OOMPolicy']) == ('always', 'continue')
    assert float(found['TimeoutStopSec']) > SIGKILL_AFTER_S + 5, 'the runner ends them first'
    assert float(found['WatchdogSec']) > 2 * WATCHDOG_S, 'the runner acts first'
    assert ('Unit', 'StartLimitIntervalSec', '0') in directives(board)


@pytest.mark.parametrize('board', BOARDS)
def test_a_unit_starts_what_heqis_up_understands(board: str) -> None:
    script, *words = shlex.split(service(board)['ExecStart'])
    assert script.startswith('/opt/heqis/')
    found = ROOT / script.removeprefix('/opt/heqis/')
    assert found.stat().st_mode & 0o111, f'{found} cannot be run'
    assert words == ['heqis', 'up', '--runner', board, '$HEQIS_ARGS']
    arguments = environment(board)['HEQIS_ARGS'].replace('/opt/heqis', str(ROOT))
    given = parse_arguments(arguments.split())
    plan = load_launch(
        ROOT / 'launch' / f'{board}.launch.yaml', given, find_share=lambda name: Path(name)
    )
    # A relative folder is below the working one, and nothing else there can be written.
    assert plan.values['state'] == 'run'
    assert service(board)['WorkingDirectory'] == '/opt/heqis'
    assert service(board)['ReadWritePaths'] == '/opt/heqis/run'


@pytest.mark.parametrize('board', BOARDS)
def test_the_docs_name_the_paths_of_the_units(board: str) -> None:
    paths = {
        f'heqis-{board}.service',
        '60-heqis.rules',
        service(board)['EnvironmentFile'].lstrip('-'),
        *parse_arguments(environment(board)['HEQIS_ARGS'].split()).values(),
        service(board)['ReadWritePaths'],
    }
    assert not [path for path in paths if path not in OPERATIONS]


@pytest.mark.parametrize('board', BOARDS)
def test_systemd_takes_the_unit(board: str, tmp_path: Path) -> None:
    if shutil.which('systemd-analyze') is None:
        pytest.skip('systemd-analyze is not installed (package systemd)')
    text = (FOLDER / f'heqis-{board}.service').read_text(encoding='utf-8')
    unit = tmp_path / f'heqis-{board}.service'
    unit.write_text(text.replace('/opt/heqis', str(ROOT)), encoding='utf-8')
    run = subprocess.run(
        ['systemd-analyze', 'verify', unit], capture_output=True, text=True, timeout=60
    )
    said = [line for line in (run.stdout + run.stderr).splitlines() if 'heqis' in line]
    assert (run.returncode, said) == (0, []), run.stdout + run.stderr


@pytest.mark.parametrize('board', BOARDS)
def test_systemd_finds_little_exposed(board: str) -> None:
    command = ['systemd-analyze', 'security', '--offline=yes', '--threshold=40']
    if shutil.which('systemd-analyze') is None:
        pytest.skip('systemd-analyze is not installed (package systemd)')
    run = subprocess.run(
        [*command, FOLDER / f'heqis-{board}.service'], capture_output=True, text=True, timeout=60
    )
    if 'unrecognized option' in run.stderr:
        pytest.skip('this systemd cannot judge a file: 250 or newer can')
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_rules_of_udev_are_assignments_after_matches() -> None:
    lines = (FOLDER / '60-heqis.rules').read_text(encoding='utf-8').splitlines()
    rules = [line for line in lines if line and not line.startswith('#')]
    assert rules
    for rule in rules:
        assert re.fullmatch(r'(\w+=="[\w*]+", )+GROUP="heqis", MODE="0660"', rule), rule


def test_units_and_rules_are_installed_with_the_package() -> None:
    tree = ast.parse((ROOT / 'src/heqis_bringup/setup.py').read_text(encoding='utf-8'))
    folders = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == 'files_of'
        and isinstance(node.args[0], ast.Constant)
    ]
    assert 'systemd' in folders


def test_the_command_takes_the_place_of_the_script() -> None:
    if not (ROOT / '.venv' / 'heqis-base').is_file():
        pytest.skip('there is no environment here: make setup')
    script = ROOT / 'scripts' / 'service.sh'
    with subprocess.Popen(
        [script, 'bash', '-c', 'echo $$ $VIRTUAL_ENV'], stdout=subprocess.PIPE, text=True
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    pid, environment_folder = out.split()
    assert int(pid) == process.pid, 'systemd hears and ends the runner itself'
    assert environment_folder.endswith('/.venv')
