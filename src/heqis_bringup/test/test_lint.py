# SPDX-License-Identifier: Apache-2.0
"""The gates of `make lint`, each as a test: scripts/lint.sh defines them, once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LINT = ROOT / 'scripts' / 'lint.sh'
SKIPPED = 77


def gates() -> list[str]:
    listed = subprocess.run([LINT, '--list'], capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.mark.timeout(600)
@pytest.mark.parametrize('gate', gates())
def test_gate(gate: str) -> None:
    run = subprocess.run([LINT, gate], capture_output=True, text=True, cwd=ROOT)
    output = run.stdout + run.stderr
    if run.returncode == SKIPPED:
        pytest.skip(output.strip())
    assert run.returncode == 0, output
