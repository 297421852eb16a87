# SPDX-License-Identifier: Apache-2.0
"""A short run of scripts/fuzz_wire.py, and that it would find what it looks for."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from heqis_core import wire
from heqis_core.testing_link import make_frame

SCRIPT = Path(__file__).resolve().parents[3] / 'scripts' / 'fuzz_wire.py'
CASES = 20_000


@pytest.fixture(scope='module')
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location('fuzz_wire', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_run_finds_nothing_and_reaches_behind_the_checksums(tmp_path):
    """It runs as a process of its own, because it bounds its memory."""
    done = subprocess.run(
        [sys.executable, SCRIPT, '--cases', str(CASES), '--seed', '3', '--keep', tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{CASES:,} cases' in done.stdout
    for kind in ('frame', 'decisions', 'reply', 'request'):
        for result in ('read', 'refused'):
            count = re.search(rf"'{kind} {result}': (\d+)", done.stdout)
            assert count is not None
            assert int(count.group(1)) > CASES // 100, f'{kind} {result}'
    assert list(tmp_path.iterdir()) == []


def test_one_seed_gives_the_same_cases_again(fuzz):
    assert [fuzz.case(5, i) for i in range(300)] == [fuzz.case(5, i) for i in range(300)]
    assert fuzz.case(5, 0) != fuzz.case(6, 0)


def test_a_resealed_message_has_right_checksums(fuzz):
    message = bytearray(wire.encode_frame(make_frame(0, 300, 40)))
    close = wire.decode_frame(bytes(message)).tensors['close']
    message[-200] ^= 1
    with pytest.raises(wire.WireError, match='checksum'):
        wire.decode_frame(bytes(message))
    changed = wire.decode_frame(fuzz.reseal(message)).tensors['close']
    assert changed.tobytes() != close.tobytes()


@pytest.mark.parametrize(
    ('defect', 'expected'),
    [
        (lambda frame: {}['x'], 'KeyError'),
        (lambda frame: frame.tensors.update(close=frame.tensors['close'].copy()), 'writeable'),
        (
            lambda frame: frame.tensors.update(
                close=np.frombuffer(bytes(8 * len(frame.symbols)), '<f8')
            ),
            'start <= address',
        ),
        (lambda frame: bytearray(1 << 23), ' B for '),
    ],
    ids=['another error', 'a writable array', 'memory of another', 'a large allocation'],
)
def test_a_decoder_with_a_defect_is_found_and_its_message_kept(
    fuzz, monkeypatch, tmp_path, capsys, defect, expected
):
    right = fuzz._READ['frame']

    def wrong(data: bytes) -> object:
        frame = right(data)
        defect(frame)
        return frame

    monkeypatch.setitem(fuzz._READ, 'frame', wrong)
    assert fuzz.run(1, 1, 3000, tmp_path) > 0
    assert expected in capsys.readouterr().out
    assert list(tmp_path.glob('wire-1-*-frame.bin'))
