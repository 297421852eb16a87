# SPDX-License-Identifier: Apache-2.0
"""What runs the generators on a board, and the reason of each engine that is passed over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heqis_compute.engines.probe import (
    candidates,
    golden_of,
    tensorrt_obstacle,
)
from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.engines.testing_cuda import FakeGpu
from heqis_compute.engines.testing_tensorrt import board_modules, fake_tensorrt
from heqis_core.bundle import Bundle
from heqis_core.engine_probe import probe
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.testing_bundle import write_test_bundle

FP32 = BuildFlags('fp32', False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.load(write_test_bundle(tmp_path / 'bundles'))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a GPU and a TensorRT 10.3 that can be imported."""
    gpu = FakeGpu()
    trt = fake_tensorrt('10.3', gpu)
    for name, module in board_modules(trt, gpu).items():
        monkeypatch.setitem(sys.modules, name, module)
    return gpu, trt


def test_on_a_machine_without_cuda_the_choice_is_onnx_runtime_with_the_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ('cuda', 'pycuda', 'tensorrt'):
        monkeypatch.setitem(sys.modules, name, None)
    choice = probe(candidates('auto', bundle, FP32, tmp_path / 'cache'))
    assert choice.kind == 'onnxruntime'
    assert choice.make_engine is open_engine
    ((kind, reason),) = choice.passed_over
    assert kind == 'tensorrt'
    assert 'no CUDA device: cuda-bindings: cannot be imported' in reason
    assert tensorrt_obstacle() == reason
    assert not (tmp_path / 'cache').exists()


def test_on_a_board_tensorrt_is_chosen_built_and_gives_the_numbers_of_onnx_runtime(
    board: Any, bundle: Bundle, tmp_path: Path
) -> None:
    choice = probe(candidates('auto', bundle, FP32, tmp_path))
    assert (choice.kind, choice.passed_over) == ('tensorrt', ())
    assert choice.counters['built'] == len(bundle.manifest.generators) == 1
    bundle.verify_golden(OrtEngine)
    path = bundle.generator_path('linear')
    engine, reference = choice.make_engine(path), open_engine(path)
    assert engine.specs() == reference.specs()
    spec = engine.specs()[0][0]
    rows = np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
    expected = reference.infer({spec.name: rows})
    for name, values in engine.infer({spec.name: rows}).items():
        np.testing.assert_array_equal(values, expected[name])
    assert choice.counters['cache_hits'] == 1
    assert tensorrt_obstacle() is None


def test_one_engine_asked_for_by_name_is_the_only_one_tried(
    board: Any, bundle: Bundle, tmp_path: Path
) -> None:
    gpu, trt = board
    assert probe(candidates('onnxruntime', bundle, FP32, tmp_path)).kind == 'onnxruntime'
    assert trt.builds == 0
    gpu.devices = 0
    with pytest.raises(EngineError, match='tensorrt: no CUDA device'):
        probe(candidates('tensorrt', bundle, FP32, tmp_path))


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda gpu, trt: setattr(gpu, 'devices', None), 'error 35'),
        (lambda gpu, trt: setattr(gpu, 'devices', 0), 'finds no device'),
        (lambda gpu, trt: setattr(gpu, 'memory_left', 64), 'out of memory'),
        (lambda gpu, trt: setattr(trt, 'scale', 1.1), 'differs from its golden output'),
        (lambda gpu, trt: setattr(trt, '__version__', '8.4.0'), 'too old'),
        (lambda gpu, trt: sys.modules.update(tensorrt=None), 'tensorrt cannot be imported'),
    ],
)
def test_whatever_is_wrong_with_the_board_is_the_reason_and_frames_are_decided_all_the_same(
    board: Any, bundle: Bundle, tmp_path: Path, spoil: Any, reason: str
) -> None:
    spoil(*board)
    choice = probe(candidates('auto', bundle, FP32, tmp_path))
    assert choice.kind == 'onnxruntime'
    assert reason in choice.passed_over[0].reason
    assert board[0].leaks() == 0


def test_a_bundle_without_the_precision_passes_tensorrt_over_by_file(
    board: Any, bundle: Bundle, tmp_path: Path
) -> None:
    choice = probe(candidates('auto', bundle, BuildFlags('int8', False), tmp_path))
    assert choice.kind == 'onnxruntime'
    assert 'linear.int8.onnx' in choice.passed_over[0].reason


def test_golden_rows_and_outputs_are_found_by_model_file(bundle: Bundle) -> None:
    golden = golden_of(bundle, 1e-4)
    assert set(golden) == {bundle.path / 'linear.onnx', bundle.path / 'encoder.onnx'}
    assert set(golden[bundle.path / 'linear.onnx'].outputs) == {'log_return', 'probabilities'}
