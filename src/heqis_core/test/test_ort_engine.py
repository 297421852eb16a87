# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime engine: what it loads, what it refuses, and that a row keeps its bits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from heqis_core.engine import TensorSpec, infer_tiled
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine

TILE, WIDTH, OUT = 8, 37, 5


def write_linear(path: Path, shape: Sequence[int | str] = (TILE, WIDTH)) -> Path:
    """Write a model `y = tanh(x @ weight)` with seeded weights."""
    weight = np.random.default_rng(3).normal(size=(WIDTH, OUT)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node('MatMul', ['x', 'weight'], ['z']),
            helper.make_node('Tanh', ['z'], ['y']),
        ],
        'linear',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [shape[0], OUT])],
        [onnx.numpy_helper.from_array(weight, 'weight')],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.fixture
def engine(tmp_path: Path) -> OrtEngine:
    """Return an engine with the linear model loaded."""
    engine = OrtEngine()
    engine.load(write_linear(tmp_path / 'linear.onnx'))
    return engine


def test_specs_name_shape_and_dtype(engine: OrtEngine) -> None:
    assert engine.specs() == (
        (TensorSpec('x', np.dtype(np.float32), (TILE, WIDTH)),),
        (TensorSpec('y', np.dtype(np.float32), (TILE, OUT)),),
    )


def test_a_tile_gives_the_result_of_the_model(engine: OrtEngine) -> None:
    x = np.random.default_rng(0).normal(size=(TILE, WIDTH)).astype(np.float32)
    weight = np.random.default_rng(3).normal(size=(WIDTH, OUT)).astype(np.float32)
    np.testing.assert_allclose(engine.infer({'x': x})['y'], np.tanh(x @ weight), atol=1e-5)


def test_a_row_keeps_its_bits_at_every_place_of_every_tile(engine: OrtEngine) -> None:
    row = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
    alone = infer_tiled(engine, row, TILE)['y']
    others = np.random.default_rng(2).normal(size=(3 * TILE + 1, WIDTH)).astype(np.float32)
    for place in range(len(others)):
        rows = others.copy()
        rows[place] = row
        assert np.array_equal(infer_tiled(engine, rows, TILE)['y'][place], alone[0])


def test_threads_share_one_engine(engine: OrtEngine) -> None:
    x = np.random.default_rng(4).normal(size=(TILE, WIDTH)).astype(np.float32)
    expected = engine.infer({'x': x})['y']
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: engine.infer({'x': x})['y'], range(64)))
    assert all(np.array_equal(result, expected) for result in results)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(EngineError, match=r'nowhere\.onnx: no such model file'):
        OrtEngine().load(Path('nowhere.onnx'))


@pytest.mark.parametrize('keep', [0, 10, 0.5, 0.95])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: float) -> None:
    path = write_linear(tmp_path / 'linear.onnx')
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(EngineError, match=r'linear\.onnx: '):
        OrtEngine().load(path)


def test_a_dynamic_shape_is_refused(tmp_path: Path) -> None:
    path = write_linear(tmp_path / 'dynamic.onnx', ('batch', WIDTH))
    with pytest.raises(EngineError, match=r"dynamic\.onnx: input 'x'.*'batch'.*expected a static"):
        OrtEngine().load(path)


def test_a_failed_load_keeps_the_loaded_model(engine: OrtEngine, tmp_path: Path) -> None:
    before = engine.specs()
    with pytest.raises(EngineError):
        engine.load(tmp_path / 'nowhere.onnx')
    assert engine.specs() == before


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ({}, "input 'x' is missing; got no input"),
        ({'z': np.zeros((TILE, WIDTH), np.float32)}, r"input 'x' is missing; got \['z'\]"),
        ({'x': np.zeros((TILE - 1, WIDTH), np.float32)}, r"'x' has float32 \(7, 37\), expected"),
        ({'x': np.zeros((TILE, WIDTH), np.float64)}, r"'x' has float64 .* expected float32"),
        (
            {'x': np.zeros((TILE, WIDTH), np.float32), 'z': np.zeros(1, np.float32)},
            r"unknown input \['z'\], the model has \['x'\]",
        ),
    ],
)
def test_wrong_input_is_named(
    engine: OrtEngine, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine.infer(inputs)


def test_nothing_runs_before_load_or_after_close(engine: OrtEngine) -> None:
    engine.close()
    engine.close()
    for idle in (engine, OrtEngine()):
        with pytest.raises(EngineError, match='no model is loaded'):
            idle.specs()
        with pytest.raises(EngineError, match='no model is loaded'):
            idle.infer({'x': np.zeros((TILE, WIDTH), np.float32)})
