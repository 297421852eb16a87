# SPDX-License-Identifier: Apache-2.0
"""From a canonical float32 ONNX file to the ONNX files that other engines start from.

float16 and explicit Q/DQ int8 for TensorRT, and the form of an encoder that an NPU runs whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from heqis_core.errors import EngineError

Floats = npt.NDArray[np.float32]

QUANTISED_OPS = ('Conv', 'Gemm', 'MatMul')
"""What is worth int8: nearly all multiplications. Norms and additions lose digits, and gain
nothing."""
RECURRENT_OPS = ('GRU', 'LSTM', 'RNN')
"""What Q/DQ has no form for; such a layer stays in float32."""


def to_fp16(data: bytes) -> bytes:
    """Return the model with float16 weights and operators; inputs and outputs stay float32."""
    with _quiet():
        model = OnnxModel(
            convert_float_to_float16(onnx.load_from_string(data), keep_io_types=True)
        )
    model.topological_sort()
    return _checked(model.model)


def to_int8(data: bytes, tiles: Sequence[Floats]) -> bytes:
    """Return the model with explicit Q/DQ pairs: symmetric, weights per channel, biases float32.

    Args:
        data: float32 model with one input.
        tiles: arrays of the shape of its input, whose ranges become the scales.
    """
    name = onnx.load_from_string(data).graph.input[0].name
    with TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / 'model.onnx', Path(folder) / 'int8.onnx'
        source.write_bytes(data)
        quantize_static(
            source,
            target,
            _Tiles(name, tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED_OPS),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                'ActivationSymmetric': True,
                'WeightSymmetric': True,
                'QuantizeBias': False,
                'AddQDQPairToWeight': True,
            },
        )
        return _checked(onnx.load(target))


def op_counts(data: bytes) -> Counter[str]:
    """Return how many operators of each type a model has."""
    return Counter(node.op_type for node in onnx.load_from_string(data).graph.node)


def rows_in_height(data: bytes, batch: int) -> bytes:
    """Return an encoder of rows (tile, F, 1, T) as one of images (1, F, batch, T).

    Its factors (tile, K, 1, 1) become an image (1, K, batch, 1).
    An NPU works on one image: a batch of several is cut up by a Transpose on the processor, or run
    row by row. Networks that convolve along time alone keep rows apart along the height as well
    as along the batch. Whether this one does is for the caller to measure.

    Raises EngineError for another rank, and where shapes inside are fixed to the tile.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    shapes = [_dims(value) for value in (*graph.input, *graph.output)]
    if len(shapes) != 2 or any(len(shape) != 4 or shape[2] != 1 for shape in shapes):
        raise EngineError(
            f'the encoder has inputs and outputs {shapes}; expected one (tile, F, 1, T) and one '
            '(tile, K, 1, 1): other ranks leave the NPU at the border of the graph'
        )
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_value, dims[2].dim_value = 1, batch
    try:
        return _checked(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
    ) as error:
        raise EngineError(
            f'the encoder cannot take {batch} rows at once: {error}; its shapes are fixed to the '
            'tile inside the graph'
        ) from error


class _Tiles(CalibrationDataReader):
    """What the quantiser reads its ranges from."""

    def __init__(self, name: str, tiles: Sequence[Floats]) -> None:
        self._feeds = iter([{name: tile} for tile in tiles])

    def get_next(self) -> dict[str, Floats] | None:
        """Return the next input, None after the last one."""
        return next(self._feeds, None)


def _checked(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice, which is for models of another kind, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
