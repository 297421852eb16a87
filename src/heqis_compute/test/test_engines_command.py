# SPDX-License-Identifier: Apache-2.0
"""`heqis engines`: what it prints, and that the node finds what it built."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from heqis_compute.engines.command import register
from heqis_compute.engines.testing_cuda import FakeGpu
from heqis_compute.engines.testing_tensorrt import board_modules, fake_tensorrt
from heqis_core.errors import EngineError
from heqis_core.testing_bundle import write_test_bundle


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    """Give the logger its level back after the command has set it."""
    caplog.set_level(logging.NOTSET, 'heqis_compute.engines')


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(['engines', *words])
    return int(args.func(args))


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    bundle = write_test_bundle(tmp_path / 'bundles')
    return ('--bundle', str(bundle), '--cache', str(tmp_path / 'engines'))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    gpu = FakeGpu()
    module = fake_tensorrt('8.6', gpu)
    for name, part in board_modules(module, gpu).items():
        monkeypatch.setitem(sys.modules, name, part)
    return module


def test_the_first_run_builds_and_names_trtexec_and_the_second_finds_it(
    arguments: tuple[str, ...],
    trt: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(*arguments, '--json') == 0
    first = json.loads(capsys.readouterr().out)
    assert (first['engine'], first['counters']['built']) == ('tensorrt', 1)
    assert 'trtexec --onnx=' in caplog.text
    assert run(*arguments, '--json') == 0
    second = json.loads(capsys.readouterr().out)
    assert (second['counters']['built'], second['counters']['cache_hits']) == (0, 1)
    assert trt.builds == 1


def test_without_cuda_it_says_what_runs_and_why(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ('cuda', 'pycuda'):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert 'its generators run on onnxruntime' in out
    assert 'tensorrt is passed over: no CUDA device' in out
    with pytest.raises(EngineError, match='no engine works: tensorrt: no CUDA device'):
        run(*arguments, '--engine', 'tensorrt')
