# SPDX-License-Identifier: Apache-2.0
"""Derived ONNX files, against the float32 file they come from."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from heqis_core.conversion import from_image, to_image
from heqis_core.errors import EngineError
from heqis_training.convert.derive import op_counts, rows_in_height, to_fp16, to_int8
from heqis_training.convert.gates import golden_distance
from heqis_training.convert.outcome import answers_of
from heqis_training.convert.testing_convert import CONVOLUTION, encoder_of
from heqis_training.export import export_onnx
from heqis_training.models.build import build_generator
from heqis_training.models.encoder import FactorEncoder
from heqis_training.models.served import ServedGenerator, output_names
from heqis_training.settings import (
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    TransformerSettings,
)

TILE, FEATURES, WINDOW = 8, 5, 8
GENERATORS: tuple[GeneratorSettings, ...] = (
    GruSettings(window=WINDOW, hidden=12),
    LstmSettings(window=WINDOW, hidden=12),
    TransformerSettings(window=WINDOW, width=16, heads=2, feedforward=24),
)
NAMES = output_names(1)


@pytest.fixture(scope='module')
def encoder() -> bytes:
    torch.manual_seed(3)
    network = FactorEncoder(FEATURES, WINDOW, 3, 8)
    return export_onnx(network, (TILE, FEATURES, 1, WINDOW), 'window', ('factors',))


@pytest.fixture(scope='module', params=GENERATORS, ids=lambda part: part.__struct_config__.tag)
def generator(request: pytest.FixtureRequest) -> bytes:
    torch.manual_seed(3)
    network = build_generator(request.param, FEATURES, 1)
    torch.nn.init.normal_(network.return_head.weight)  # zero where it is new
    served = ServedGenerator(network, [0.02])
    return export_onnx(served, (TILE, WINDOW, FEATURES), 'window', NAMES)


def rows_of(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(3 * TILE, *shape)).astype(np.float32)


def distance(data: bytes, other: bytes, rows: npt.NDArray[np.float32]) -> float:
    expected, found = answers_of(data, rows), answers_of(other, rows)
    assert expected.keys() == found.keys()
    return max(golden_distance(found[name], expected[name]) for name in expected)


def test_fp16_models_compute_in_fp16_and_answer_nearly_the_same(generator: bytes) -> None:
    made = to_fp16(generator)
    model = onnx.load_from_string(made)
    weights = {one.data_type for one in model.graph.initializer if len(one.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert 0 < distance(generator, made, rows_of(WINDOW, FEATURES)) < 1e-2
    assert to_fp16(generator) == made


def test_int8_models_have_explicit_pairs_and_recurrent_layers_stay(generator: bytes) -> None:
    rows = rows_of(WINDOW, FEATURES)
    made = to_int8(generator, np.split(rows, 3))
    before, after = op_counts(generator), op_counts(made)
    assert after['QuantizeLinear'] == after['DequantizeLinear'] > 0
    assert after - before == Counter(
        QuantizeLinear=after['QuantizeLinear'], DequantizeLinear=after['DequantizeLinear']
    )
    assert 0 < distance(generator, made, rows) < 5e-2
    assert to_int8(generator, np.split(rows, 3)) == made


def test_int8_scales_are_symmetric_and_those_of_weights_are_per_channel(encoder: bytes) -> None:
    rows = rows_of(FEATURES, 1, WINDOW)
    model = onnx.load_from_string(to_int8(encoder, np.split(rows, 3)))
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    kinds = Counter()
    for node in model.graph.node:
        if node.op_type == 'QuantizeLinear':
            _, scale, zero = node.input
            assert not constants[zero].any()
            kinds['per channel' if constants[scale].size > 1 else 'per tensor'] += 1
    assert kinds == {'per channel': 3, 'per tensor': 6}
    assert all(name not in constants for name in ('layers.0.bias_quantized',))
    assert 0 < distance(encoder, to_int8(encoder, np.split(rows, 3)), rows) < 5e-2


@pytest.mark.parametrize('batch', [1, 3, TILE])
def test_rows_along_the_height_are_computed_as_rows_of_a_batch(encoder: bytes, batch: int) -> None:
    rows = rows_of(FEATURES, 1, WINDOW)[:TILE]
    (expected,) = answers_of(encoder, rows).values()
    (image,) = answers_of(rows_in_height(encoder, batch), to_image(rows[:batch])).values()
    assert image.shape == (1, 3, batch, 1)
    np.testing.assert_allclose(from_image(image), expected[:batch], rtol=1e-5, atol=1e-6)
    assert op_counts(rows_in_height(encoder, batch)) == op_counts(encoder)


def test_an_encoder_of_another_rank_and_one_that_pools_over_the_height_are_refused() -> None:
    flat = encoder_of([CONVOLUTION, ('Reshape', ['', 'flat'], {})], (8, 2))
    with pytest.raises(EngineError, match='leave the NPU at the border'):
        rows_in_height(flat, 8)
    pooled = encoder_of(
        [('Conv', ['', 'weight', 'bias'], {'pads': [0, 1, 0, 2]}), ('GlobalAveragePool', [''], {})]
    )
    with pytest.raises(EngineError, match='cannot take 8 rows at once'):
        rows_in_height(pooled, 8)
    assert onnx.load(io.BytesIO(rows_in_height(pooled, 1)))
