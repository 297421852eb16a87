# SPDX-License-Identifier: Apache-2.0
"""A file system that is really full: signals are held, not lost, and flow when there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HELPER = Path(__file__).with_name('full_disk.py')
MOUNT = 'mount -t tmpfs -o size=4m none "$1"'


def unshare(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script in mounts of its own; they end with it."""
    head = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-ec', script, 'sh']
    return subprocess.run(
        [*head, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_full_file_system_holds_signals_and_they_flow_when_there_is_room(tmp_path: Path) -> None:
    if unshare(MOUNT, tmp_path).returncode:
        pytest.skip('this machine lets nobody mount a file system of its own')
    done = unshare(f'{MOUNT}; exec "$2" "$3" "$1"', tmp_path, sys.executable, HELPER)
    assert done.returncode == 0, done.stderr
    assert 'held, then all' in done.stdout
