# SPDX-License-Identifier: Apache-2.0
"""A fresh virtual environment with heqis_core and heqis_training alone trains a bundle: no ROS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from heqis_core.bundle import Bundle
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.io.ort_engine import OrtEngine

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ('heqis_core', 'heqis_training')
NO_INDEX = (
    'Failed to establish a new connection', 'Temporary failure in name resolution',
    'Name or service not known', 'getaddrinfo failed', 'Network is unreachable', 'ConnectTimeout',
    'ProxyError', 'Connection refused', 'Connection reset',
)  # fmt: skip
"""What pip says where no package index can be reached."""
FOREIGN = ('AMENT_', 'CMAKE_', 'COLCON_', 'LD_LIBRARY_PATH', 'PYTHON', 'ROS_', '_ROS', 'VIRTUAL_')
"""Beginnings of what an environment with ROS sets; nothing of it may shine through."""
ENOUGH_BYTES = 16e9
"""Even for a build of torch that brings CUDA."""
CONFIG = """
encoder: {window: 4, factors: 2, width: 4, fit: {epochs: 1}}
generators: [{type: gru, window: 6, hidden: 8}, {type: lstm, window: 5, hidden: 8}]
discriminators: [{window: 3, hidden: 8}]
fit: {epochs: 1}
tile: 16
"""
PROGRAM = """
import importlib.metadata, importlib.util, runpy, sys
others = ['core', 'training', 'msgs', 'ros', 'gateway', 'supervisor', 'compute', 'dashboard']
names = ['rclpy', 'heqis_bringup', *(f'heqis_{name}' for name in others)]
found = [name for name in names if importlib.util.find_spec(name)]
assert found == ['heqis_core', 'heqis_training'], found
runpy.run_module('heqis_training', run_name='__main__', alter_sys=True)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is removed at once: it gets 30 000 files of more than a gigabyte.

    Where there is memory in plenty it lies there: a disk may take minutes to remove as many files.
    """
    memory, parent = Path('/dev/shm'), tmp_path
    if (
        memory.is_dir()
        and shutil.disk_usage(memory).free > ENOUGH_BYTES
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    ):
        parent = memory
    with tempfile.TemporaryDirectory(prefix='heqis-test-', dir=parent) as made:
        yield Path(made)


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    return kept | {'OMP_NUM_THREADS': '1'}


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        env=clean_environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def install(folder: Path) -> Path:
    """Install the two packages and what they ask for; return the Python that has them."""
    sources = []
    for name in PACKAGES:  # copies: building leaves folders behind
        leave = shutil.ignore_patterns('build', '*.egg-info', '__pycache__', 'test', '.*')
        sources.append(shutil.copytree(ROOT / 'src' / name, folder / 'src' / name, ignore=leave))
    made = call(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv')
    assert made.returncode == 0, made.stderr
    python = folder / 'venv' / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    # byte code is left to those modules that are imported: there are many others
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--no-compile', '--quiet')
    done = call(*pip, '--constraint', ROOT / 'requirements' / 'constraints.txt', *sources)
    said = done.stdout + done.stderr
    if done.returncode and any(words in said for words in NO_INDEX):
        pytest.skip(f'no package index can be reached: {said.strip().splitlines()[-1]}')
    assert done.returncode == 0, said
    return python


def test_the_two_packages_alone_train_a_bundle_without_ros(folder: Path) -> None:
    python = install(folder)
    (folder / 'config.yaml').write_text(CONFIG)
    spec = FeatureSpec((FeatureItem('return'), FeatureItem('rsi', {'n': 6})))
    (folder / 'spec.json').write_text(spec.to_json())
    words = ['train', '--simulate', '300', '--symbols', '3', '--device', 'cpu', '--json']
    for option, name in (
        ('--config', 'config.yaml'), ('--spec', 'spec.json'), ('--run', 'run'), ('--out', 'out')
    ):  # fmt: skip
        words += [option, str(folder / name)]
    done = call(python, '-I', '-c', PROGRAM, *words)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load(json.loads(done.stdout.splitlines()[-1])['bundle']['path'])
    bundle.verify_golden(OrtEngine)
    assert bundle.manifest.candidates() == ('gru', 'lstm', 'ensemble')
    assert (folder / 'run' / 'curves.png').exists()
    assert 'Traceback' not in done.stderr
