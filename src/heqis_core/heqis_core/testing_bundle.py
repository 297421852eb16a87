# SPDX-License-Identifier: Apache-2.0
"""A small, sound bundle without training: seeded linear models, for tests of what runs bundles.

Its models are real ONNX files that go through every check; what they answer means nothing. Needs onnx.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.features.spec import FeatureSpec, default_spec
from heqis_core.features.state import FeatureState
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import (
    CLASSES,
    SCHEMA_VERSION,
    DataPart,
    EncoderPart,
    FeaturesPart,
    GeneratorPart,
    Manifest,
    Provenance,
    WindowPart,
    factor_names,
)
from heqis_core.scaler import Scaler
from heqis_core.strategy import StrategyConfig

TILE = 8
FACTORS = 2
ENCODER_WINDOW = 4


def tiny_bundle(
    parent: Path, table: BarTable, *, split: int, seed: int = 0, window: int = 5
) -> Bundle:
    """Write a bundle under `parent` and return it.

    Args:
        parent: folder that gets the bundle's folder.
        table: its first `split` event times fit the scaler.
        split: index of the first event time after `trained_until_ns`.
        seed: of the weights.
        window: rows W of the generator; the horizon is 2 W.
    """
    spec = default_spec(table.has_volume)
    scaler = _fit(spec, table, split)
    width = len(spec.names)
    rng = np.random.default_rng(seed)
    files = {
        'feature_spec.json': spec.to_json().encode(),
        'scaler.json': scaler.to_json().encode(),
        'encoder.onnx': _encoder(rng, width),
        'generators/linear.onnx': _generator(rng, window, width + FACTORS),
    }
    files['golden.npz'] = _golden(parent, files, rng, width, window)
    trained_until_ns = int(table.event_time_ns[split - 1])
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id='',
        created_at='2024-01-01T00:00:00+00:00',
        features=FeaturesPart(
            spec_file='feature_spec.json',
            spec_id=spec.id,
            names=(*spec.names, *factor_names(FACTORS)),
        ),
        scaler_file='scaler.json',
        encoder=EncoderPart(
            file='encoder.onnx',
            window=ENCODER_WINDOW,
            horizon=2 * ENCODER_WINDOW,
            tile=TILE,
            factors=FACTORS,
            input='x',
            output='factors',
        ),
        window=WindowPart(length=window, horizon=2 * window),
        generators=(
            GeneratorPart(
                name='linear', file='generators/linear.onnx', tile=TILE, window=window
            ),
        ),
        served='linear',
        classes=CLASSES,
        flat_band=0.001,
        strategy=StrategyConfig(buy_threshold=0.05, sell_threshold=-0.05),
        trained_until_ns=trained_until_ns,
        provenance=Provenance(
            data=DataPart(
                fingerprint='0' * 64,
                symbols=table.symbols,
                bars=split,
                first_ns=int(table.event_time_ns[0]),
                last_ns=trained_until_ns,
            ),
            seed=seed,
            settings={},
            packages={},
            metrics=(),
            metrics_note='seeded weights, not trained',
            training_s=0.0,
        ),
        golden_file='golden.npz',
        files={},
    )
    return Bundle.load(write_bundle(parent, manifest, files))


def _fit(spec: FeatureSpec, table: BarTable, split: int) -> Scaler:
    state = FeatureState(spec, len(table.symbols))
    rows = state.batch(table.values[:split], table.status[:split]).reshape(-1, len(spec.names))
    return Scaler.fit(spec.names, rows[np.isfinite(rows).all(axis=1)])


def _encoder(rng: np.random.Generator, width: int) -> bytes:
    weight = rng.normal(size=(FACTORS, width, 1, ENCODER_WINDOW)).astype(np.float32) / width
    return _model(
        [
            helper.make_node('Conv', ['x', 'w'], ['y']),
            helper.make_node('Flatten', ['y'], ['factors']),
        ],
        [TILE, width, 1, ENCODER_WINDOW],
        {'factors': [TILE, FACTORS]},
        {'w': weight},
    )


def _generator(rng: np.random.Generator, window: int, width: int) -> bytes:
    n = window * width
    weights = {
        'w_return': (rng.normal(size=(n, 1)) / n).astype(np.float32),
        'w_class': (rng.normal(size=(n, len(CLASSES))) / np.sqrt(n)).astype(np.float32),
        'last': np.array([1], np.int64),
    }
    return _model(
        [
            helper.make_node('Flatten', ['x'], ['flat']),
            helper.make_node('MatMul', ['flat', 'w_return'], ['r']),
            helper.make_node('Squeeze', ['r', 'last'], ['log_return']),
            helper.make_node('MatMul', ['flat', 'w_class'], ['logits']),
            helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1),
        ],
        [TILE, window, width],
        {'log_return': [TILE], 'probabilities': [TILE, len(CLASSES)]},
        weights,
    )


def _model(
    nodes: list[onnx.NodeProto],
    input_shape: list[int],
    outputs: dict[str, list[int]],
    weights: dict[str, npt.NDArray[np.generic]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        'tiny',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _golden(
    parent: Path, files: dict[str, bytes], rng: np.random.Generator, width: int, window: int
) -> bytes:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    shapes = {
        'encoder': ('encoder.onnx', (TILE, width, 1, ENCODER_WINDOW)),
        'linear': ('generators/linear.onnx', (TILE, window, width + FACTORS)),
    }
    parent.mkdir(parents=True, exist_ok=True)
    for name, (file, shape) in shapes.items():
        path = parent / f'{name}.golden.onnx'
        path.write_bytes(files[file])
        engine = OrtEngine()
        engine.load(path)
        rows = rng.normal(size=shape).astype(np.float32)
        arrays[f'{name}/input'] = rows
        for output, values in engine.infer({'x': rows}).items():
            arrays[f'{name}/{output}'] = values
        engine.close()
        path.unlink()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
