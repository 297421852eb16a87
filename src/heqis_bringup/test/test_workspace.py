# SPDX-License-Identifier: Apache-2.0
"""The workspace's own files: manifests, requirements, licences, what is installed, set-up."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from catkin_pkg.package import Package, parse_package

ROOT = Path(__file__).resolve().parents[3]
SRC = ROOT / 'src'
PACKAGES = sorted(manifest.parent.name for manifest in SRC.glob('*/package.xml'))
PYTHON_PACKAGES = sorted(setup.parent.name for setup in SRC.glob('*/setup.py'))
ROLES = sorted(
    file.stem
    for file in (ROOT / 'requirements').glob('*.txt')
    if file.stem not in ('constraints', 'numpy1', 'rknn')  # the toolkit's own environment
)

# Keys that rosdep knows for Humble and Jazzy: look a new one up in rosdistro first.
ROSDEP_KEYS = {
    'ament_cmake',
    'builtin_interfaces',
    'diagnostic_msgs',
    'lifecycle_msgs',
    'rcl_interfaces',
    'rclpy',
    'rosidl_default_generators',
    'rosidl_default_runtime',
    'std_msgs',
    'python3-cryptography',
    'python3-dash-pip',
    'python3-fastapi',
    'python3-hypothesis',
    'python3-matplotlib',
    'python3-msgpack',
    'python3-numba',
    'python3-numpy',
    'python3-onnxruntime-pip',
    'python3-pandas',
    'python3-psutil',
    'python3-pytest',
    'python3-pytest-timeout',
    'python3-requests',
    'python3-rich',
    'python3-sklearn',
    'python3-torch',
    'python3-uvicorn',
    'python3-websockets',
    'python3-yaml',
    'python3-zmq',
}
# Module -> rosdep key. None: rosdep has no key, a requirements file brings it.
KEY_OF_MODULE = {
    'ament_index_python': 'rclpy',
    'cryptography': 'python3-cryptography',
    'dash': 'python3-dash-pip',
    'diagnostic_msgs': 'diagnostic_msgs',
    'fastapi': 'python3-fastapi',
    'lifecycle_msgs': 'lifecycle_msgs',
    'matplotlib': 'python3-matplotlib',
    'filelock': None,
    'msgspec': None,
    'numba': 'python3-numba',
    'numpy': 'python3-numpy',
    'onnx': None,
    'onnxruntime': 'python3-onnxruntime-pip',
    'pandas': 'python3-pandas',
    'plotly': None,
    'psutil': 'python3-psutil',
    'pyarrow': None,
    'pymodbus': None,
    'rcl_interfaces': 'rcl_interfaces',
    'rclpy': 'rclpy',
    'requests': 'python3-requests',
    'rich': 'python3-rich',
    'safetensors': None,
    'sklearn': 'python3-sklearn',
    'starlette': None,
    'std_msgs': 'std_msgs',
    'torch': 'python3-torch',
    'threadpoolctl': None,
    'tushare': None,
    'urllib3': None,
    'uvicorn': 'python3-uvicorn',
    'websockets': 'python3-websockets',
    'yaml': 'python3-yaml',
    'zmq': 'python3-zmq',
}


def manifest(package: str) -> Package:
    return parse_package(str(SRC / package / 'package.xml'))


def pins(role: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{role}.txt').read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


def test_the_workspace_has_the_packages_of_the_design() -> None:
    assert {
        'heqis_bringup', 'heqis_compute', 'heqis_core', 'heqis_dashboard', 'heqis_gateway',
        'heqis_msgs', 'heqis_ros', 'heqis_supervisor', 'heqis_training',
    } <= set(PACKAGES)  # fmt: skip
    assert not (ROOT / 'package.xml').exists(), (
        'colcon would take the whole workspace for one package'
    )


@pytest.mark.parametrize('package', PACKAGES)
def test_manifest_is_valid_format_3(package: str) -> None:
    warnings: list[str] = []
    described = parse_package(str(SRC / package / 'package.xml'), warnings=warnings)
    described.validate(warnings=warnings)
    assert not warnings
    assert described.package_format == 3
    assert described.name == package
    assert described.licenses == ['Apache-2.0']
    assert described.version == manifest('heqis_msgs').version


@pytest.mark.parametrize('package', PACKAGES)
def test_manifest_uses_only_keys_that_exist(package: str) -> None:
    described = manifest(package)
    depends = [
        *described.buildtool_depends,
        *described.build_depends,
        *described.exec_depends,
        *described.test_depends,
    ]
    assert {depend.name for depend in depends} <= ROSDEP_KEYS | set(PACKAGES)


def imports(package: str) -> set[str]:
    found: set[str] = set()
    for file in (SRC / package / package).rglob('*.py'):
        # Tests bring their own tools, and the doctor looks for what may not be there.
        if file.name.startswith('testing') or file.name == 'doctor.py':
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition('.')[0])
    return found - set(sys.stdlib_module_names) - {package}


@pytest.mark.parametrize('package', PYTHON_PACKAGES)
def test_manifest_names_what_the_code_imports(package: str) -> None:
    declared = {depend.name for depend in manifest(package).exec_depends}
    for module in sorted(imports(package)):
        # A guarded import of something that only a board or a plug-in has is not a dependency.
        if module in PACKAGES:
            key: str | None = module
        elif module in KEY_OF_MODULE:
            key = KEY_OF_MODULE[module]
        else:
            continue
        assert key is None or key in declared, (
            f'{package} imports {module}: add <exec_depend>{key}</exec_depend>'
        )


@pytest.mark.parametrize('package', PYTHON_PACKAGES)
def test_python_package_is_typed_and_indexed(package: str) -> None:
    assert (SRC / package / package / 'py.typed').is_file()
    assert (SRC / package / 'resource' / package).is_file()
    assert f'install_scripts=$base/lib/{package}' in (SRC / package / 'setup.cfg').read_text()


@pytest.mark.parametrize('role', ROLES)
def test_requirements_are_pinned_and_agree_with_the_constraints(role: str) -> None:
    constraints = {line.partition(' ;')[0].strip() for line in pins('constraints')}
    for pin in pins(role):
        requirement = pin.partition(' ;')[0].strip()
        name, version = re.fullmatch(
            r'([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([\w.+]+)', requirement
        ).groups()  # type: ignore[union-attr]
        assert f'{name}=={version}' in constraints, f'{role}.txt: {pin}: run scripts/lock.sh'


def test_stand_ins_for_numpy_1_replace_pins_of_the_same_names() -> None:
    names = {pin.partition('==')[0] for pin in pins('constraints')}
    stand_ins = pins('numpy1')
    assert 'numpy==1.26.4' in stand_ins
    assert {pin.partition('==')[0] for pin in stand_ins} <= names


def test_constraints_are_exact() -> None:
    inexact = [
        pin for pin in pins('constraints') if not re.match(r'[a-z0-9._-]+==[\w.+]+( ;|$)', pin)
    ]
    assert not inexact


def test_every_third_party_import_is_in_a_requirements_file() -> None:
    names = {re.split(r'[\[=]', pin)[0] for role in ROLES for pin in pins(role)}
    distribution = {
        'rclpy': 'ros-rclpy',
        'sklearn': 'scikit-learn',
        'yaml': 'pyyaml',
        'zmq': 'pyzmq',
    }
    for module in KEY_OF_MODULE:
        if not module.endswith(('_msgs', '_interfaces', '_python')):
            assert distribution.get(module, module) in names


def source_files() -> list[Path]:
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    suffixes = {'.py', '.sh', '.msg', '.srv', '.yaml', '.toml', '.cfg', '.xml', '.meta'}
    names = {'CMakeLists.txt', 'Makefile', 'run'}
    files = [ROOT / name for name in listed]
    return [
        file
        for file in files
        if file.is_file()
        and (file.suffix in suffixes or file.name in names or 'Dockerfile' in file.name)
    ]


@pytest.mark.skipif(
    not (ROOT / '.git').exists() or shutil.which('git') is None,
    reason='not a git checkout: no list of files',
)
def test_every_source_file_names_its_licence() -> None:
    files = source_files()
    assert len(files) > 50
    without = [
        str(file.relative_to(ROOT))
        for file in files
        if 'SPDX-License-Identifier: Apache-2.0'
        not in '\n'.join(file.read_text(encoding='utf-8').splitlines()[:3])
    ]
    assert not without


@pytest.mark.parametrize('folder', ['config', 'launch'])
def test_launch_and_config_are_installed(folder: str) -> None:
    wanted = sorted(
        file.relative_to(ROOT) for file in (ROOT / folder).rglob('*') if file.is_file()
    )
    assert wanted
    share = Path(get_package_share_directory('heqis_bringup'))
    missing = [str(file) for file in wanted if not (share / file).is_file()]
    assert not missing


@pytest.mark.parametrize(
    ('package', 'executable'),
    [
        ('heqis_bringup', 'heqis'),
        ('heqis_compute', 'compute'),
        ('heqis_dashboard', 'dashboard'),
        ('heqis_gateway', 'gateway'),
        ('heqis_supervisor', 'agent'),
        ('heqis_supervisor', 'journal'),
        ('heqis_supervisor', 'supervisor'),
    ],
)
def test_executable_is_installed_for_launch(package: str, executable: str) -> None:
    file = Path(get_package_prefix(package)) / 'lib' / package / executable
    assert os.access(file, os.X_OK)


@pytest.mark.parametrize('package', PYTHON_PACKAGES)
def test_every_entry_point_can_be_loaded(package: str) -> None:
    for entry in importlib.metadata.distribution(package).entry_points:
        assert callable(entry.load()), entry


def test_the_subcommands_are_registered() -> None:
    names = {entry.name for entry in importlib.metadata.entry_points(group='heqis.commands')}
    assert {
        'batch',
        'bundle',
        'demo',
        'doctor',
        'engines',
        'evaluate',
        'export',
        'keys',
        'train',
        'up',
    } <= names


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine without anything that set-up asks for."""
    tools = tmp_path / 'bin'
    tools.mkdir()
    for tool in (
        'bash',
        'cat',
        'cut',
        'dirname',
        'flock',
        'head',
        'id',
        'sed',
        'sha256sum',
        'sort',
        'uname',
    ):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    workspace = tmp_path / 'workspace'
    workspace.mkdir()
    for name in ('Makefile', 'requirements', 'scripts'):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, workspace / name)
    return {'PATH': str(tools), 'HOME': str(tmp_path), 'WORKSPACE': str(workspace)}


def test_setup_names_everything_that_is_missing_with_its_package(
    bare_machine: dict[str, str],
) -> None:
    workspace = Path(bare_machine['WORKSPACE'])
    run = subprocess.run(
        [workspace / 'scripts' / 'setup.sh'],
        env=bare_machine,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 1
    for package in ('python3.11', 'make', 'cmake', 'g++'):
        assert f'({package})' in run.stderr
    assert not (workspace / '.venv').exists()


def test_setup_refuses_a_python_that_ros_has_no_wheels_for(bare_machine: dict[str, str]) -> None:
    python = Path(bare_machine['PATH']) / 'python3.9'
    python.write_text('#!/bin/bash\nexit 1\n')
    python.chmod(0o755)
    run = subprocess.run(
        [Path(bare_machine['WORKSPACE']) / 'scripts' / 'setup.sh'],
        env={**bare_machine, 'PYTHON': 'python3.9'}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert run.returncode == 1
    assert 'python3.9' in run.stderr
    assert '3.11 or 3.12' in run.stderr


def summary(folder: Path, *options: str) -> tuple[int, list[str]]:
    run = subprocess.run(
        [sys.executable, ROOT / 'scripts' / 'test_summary.py', folder, *options],
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout.splitlines()


def result_file(folder: Path, package: str, cases: str) -> None:
    (folder / package).mkdir()
    (folder / package / 'pytest.xml').write_text(
        f'<testsuites><testsuite>{cases}</testsuite></testsuites>'
    )


PASSED = '<testcase classname="a" name="b"/>'


def test_summary_adds_up_the_packages(tmp_path: Path) -> None:
    result_file(tmp_path, 'one', PASSED * 3)
    result_file(
        tmp_path, 'two', PASSED + '<testcase name="s"><skipped message="no data"/></testcase>'
    )
    status, lines = summary(tmp_path)
    assert (status, lines[-1]) == (0, '4 passed, 0 failed, 1 skipped')
    assert any('no data' in line for line in lines)


@pytest.mark.parametrize('kind', ['failure', 'error'])
def test_summary_fails_with_a_failure_and_shows_it(tmp_path: Path, kind: str) -> None:
    result_file(
        tmp_path,
        'one',
        f'{PASSED}<testcase classname="m" name="t"><{kind}>left != right</{kind}></testcase>',
    )
    status, lines = summary(tmp_path)
    assert (status, lines[-1]) == (1, '1 passed, 1 failed')
    assert 'left != right' in lines


def test_summary_fails_when_nothing_ran(tmp_path: Path) -> None:
    assert summary(tmp_path) == (1, ['', 'No test ran.', '', '0 passed, 0 failed'])


def test_summary_counts_a_torn_result_file_as_a_failure(tmp_path: Path) -> None:
    result_file(tmp_path, 'one', PASSED)
    result_file(tmp_path, 'two', '<testcase')
    assert summary(tmp_path)[1][-1] == '1 passed, 1 failed'


def test_summary_does_not_hide_the_status_of_the_runner(tmp_path: Path) -> None:
    result_file(tmp_path, 'one', PASSED)
    assert summary(tmp_path, '--status', '3')[0] == 3
