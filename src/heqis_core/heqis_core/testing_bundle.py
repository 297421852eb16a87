# SPDX-License-Identifier: Apache-2.0
"""A tiny bundle with seeded random weights, for tests that need one at once and without torch.

It is whole and passes every check, but its models have learned nothing. Nothing outside a test
imports this.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from heqis_core.bundle import write_bundle
from heqis_core.engine import Arrays, infer_tiled
from heqis_core.features.spec import FeatureItem, FeatureSpec
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
    SelectionPart,
    WindowPart,
    factor_names,
)
from heqis_core.scaler import Scaler
from heqis_core.strategy import StrategyConfig

WINDOW, ENCODER_WINDOW, FACTORS, TILE = 6, 4, 2, 8
SPEC = FeatureSpec(
    (
        FeatureItem('return', {'n': 1}),
        FeatureItem('ma', {'n': 3}, relative=True),
        FeatureItem('rsi', {'n': 4}),
    )
)


def write_test_bundle(
    parent: Path, seed: int = 0, trained_until_ns: int = 0, valid_for_s: float = 345600.0
) -> Path:
    """Write `<parent>/<bundle id>` and return it.

    Generator `linear` sees 6 rows within 12 frames, the encoder 4 rows within 8 frames and gives 2
    factors, the spec has 3 columns and 4 bars of warm-up; tiles have 8 rows.

    Args:
        parent: folder for the bundle.
        seed: of the weights; another seed gives another bundle id.
        trained_until_ns: event time after which the bundle may decide.
        valid_for_s: how long a decision is fresh.
    """
    manifest, files = bundle_parts(seed, trained_until_ns, valid_for_s)
    return write_bundle(parent, manifest, files)


def bundle_parts(
    seed: int = 0, trained_until_ns: int = 0, valid_for_s: float = 345600.0
) -> tuple[Manifest, dict[str, bytes]]:
    """Return manifest and files of that bundle, for tests that alter them before writing."""
    rng = np.random.default_rng(seed)
    n_columns = len(SPEC.names) + FACTORS
    models = {'encoder': _encoder(rng), 'linear': _generator(rng, n_columns)}
    scaler = Scaler(SPEC.names, [0.0, 0.0, 50.0], [0.02, 0.02, 20.0])
    files = {
        'features.json': SPEC.to_json().encode(),
        'scaler.json': scaler.to_json().encode(),
        'golden.npz': _golden(rng, models),
        **{f'{name}.onnx': data for name, data in models.items()},
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id='',
        created_at='2000-01-01T00:00:00+00:00',
        features=FeaturesPart(
            spec_file='features.json',
            spec_id=SPEC.id,
            names=SPEC.names + factor_names(FACTORS),
        ),
        scaler_file='scaler.json',
        encoder=EncoderPart(
            file='encoder.onnx',
            window=ENCODER_WINDOW,
            horizon=2 * ENCODER_WINDOW,
            tile=TILE,
            factors=FACTORS,
            input='window',
            output='factors',
        ),
        window=WindowPart(length=WINDOW, horizon=2 * WINDOW),
        generators=(GeneratorPart(name='linear', file='linear.onnx', tile=TILE, window=WINDOW),),
        ensemble=None,
        served='linear',
        classes=CLASSES,
        flat_band=0.005,
        strategy=StrategyConfig(0.1, -0.1, valid_for_s),
        trained_until_ns=trained_until_ns,
        provenance=Provenance(
            data=DataPart(
                fingerprint='0' * 64,
                symbols=('A',),
                bars=1,
                first_ns=trained_until_ns,
                last_ns=trained_until_ns,
            ),
            seed=seed,
            settings={},
            packages={},
            selection=SelectionPart(rule='none: random weights', scores={'linear': 0.0}),
            metrics=(),
            metrics_note='Random weights, for tests.',
            training_s=0.0,
        ),
        golden_file='golden.npz',
        files={},
        conversions=(),
        converted_from=None,
    )
    return manifest, files


def _encoder(rng: np.random.Generator) -> bytes:
    """Return factors = conv(window) over all rows at once, rank 4 throughout."""
    from onnx import helper

    width = len(SPEC.names)
    weights = {'weight': (FACTORS, width, 1, ENCODER_WINDOW), 'bias': (FACTORS,)}
    nodes = [helper.make_node('Conv', ['window', 'weight', 'bias'], ['factors'])]
    outputs = {'factors': (TILE, FACTORS, 1, 1)}
    return _model(rng, nodes, (TILE, width, 1, ENCODER_WINDOW), outputs, weights)


def _generator(rng: np.random.Generator, n_columns: int) -> bytes:
    """Return one linear layer over the flattened window for the return, one for the classes."""
    from onnx import helper

    flat = WINDOW * n_columns
    weights = {'w_return': (flat, 1), 'w_class': (flat, len(CLASSES))}
    nodes = [
        helper.make_node('Flatten', ['window'], ['flat']),
        helper.make_node('MatMul', ['flat', 'w_return'], ['return_column']),
        helper.make_node('ReduceSum', ['return_column', 'last_axis'], ['log_return'], keepdims=0),
        helper.make_node('MatMul', ['flat', 'w_class'], ['logits']),
        helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1),
    ]
    outputs = {'log_return': (TILE,), 'probabilities': (TILE, len(CLASSES))}
    return _model(rng, nodes, (TILE, WINDOW, n_columns), outputs, weights)


def _model(
    rng: np.random.Generator,
    nodes: list[Any],
    shape: tuple[int, ...],
    outputs: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, tuple[int, ...]],
) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(rng.normal(0, 0.1, size).astype(np.float32), name)
        for name, size in weights.items()
    ]
    constants.append(numpy_helper.from_array(np.array([1]), 'last_axis'))
    graph = helper.make_graph(
        nodes,
        'test',
        [helper.make_tensor_value_info('window', TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
            for name, size in outputs.items()
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    return cast('bytes', model.SerializeToString(deterministic=True))


def _golden(rng: np.random.Generator, models: dict[str, bytes]) -> bytes:
    arrays: Arrays = {}
    with TemporaryDirectory() as folder:
        for name, data in models.items():
            path = Path(folder) / 'model.onnx'
            path.write_bytes(data)
            engine = OrtEngine()
            engine.load(path)
            shape = (3, *engine.specs()[0][0].shape[1:])
            rows: npt.NDArray[np.float32] = rng.normal(size=shape).astype(np.float32)
            arrays[f'{name}/input'] = rows
            for output, values in infer_tiled(engine, rows, TILE).items():
                arrays[f'{name}/{output}'] = values
            engine.close()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(sorted(arrays.items())))
    return buffer.getvalue()
