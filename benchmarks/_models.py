# SPDX-License-Identifier: Apache-2.0
"""Untrained models with the default shapes of `heqis train`, for measuring time alone.

The weights are random: what they answer means nothing, how long they take does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TILE = 64
WINDOW, ENCODER_WINDOW = 20, 16
FACTORS = 4
_WIDTH, _HIDDEN = 16, 32


def write_encoder(path: Path, n_indicators: int) -> None:
    """Write a factor encoder: (tile, F, 1, T) to (tile, K, 1, 1)."""
    weights = {
        'w1': (_WIDTH, n_indicators, 1, 3),
        'w2': (_WIDTH, _WIDTH, 1, 3),
        'w3': (FACTORS, _WIDTH, 1, ENCODER_WINDOW // 4),
    }
    halve = {'strides': [1, 2], 'pads': [0, 1, 0, 1]}
    nodes = [
        helper.make_node('Conv', ['window', 'w1'], ['c1'], **halve),
        helper.make_node('Relu', ['c1'], ['r1']),
        helper.make_node('Conv', ['r1', 'w2'], ['c2'], **halve),
        helper.make_node('Relu', ['c2'], ['r2']),
        helper.make_node('Conv', ['r2', 'w3'], ['factors']),
    ]
    shape = (TILE, n_indicators, 1, ENCODER_WINDOW)
    _write(path, nodes, shape, {'factors': (TILE, FACTORS, 1, 1)}, weights)


def write_generator(path: Path, n_features: int) -> None:
    """Write a GRU generator: (tile, W, F) to log_return (tile,) and probabilities (tile, 3)."""
    weights = {
        'w': (1, 3 * _HIDDEN, n_features),
        'r': (1, 3 * _HIDDEN, _HIDDEN),
        'b': (1, 6 * _HIDDEN),
        'w_return': (_HIDDEN, 1),
        'w_class': (_HIDDEN, 3),
    }
    gru = helper.make_node(
        'GRU', ['rows', 'w', 'r', 'b'], ['', 'last'], hidden_size=_HIDDEN, linear_before_reset=1
    )
    nodes = [
        helper.make_node('Transpose', ['window'], ['rows'], perm=[1, 0, 2]),
        gru,
        helper.make_node('Squeeze', ['last', 'first_axis'], ['state']),
        helper.make_node('MatMul', ['state', 'w_return'], ['column']),
        helper.make_node('Squeeze', ['column', 'last_axis'], ['log_return']),
        helper.make_node('MatMul', ['state', 'w_class'], ['logits']),
        helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1),
    ]
    outputs = {'log_return': (TILE,), 'probabilities': (TILE, 3)}
    _write(path, nodes, (TILE, WINDOW, n_features), outputs, weights)


def _write(
    path: Path,
    nodes: list[Any],
    shape: tuple[int, ...],
    outputs: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, tuple[int, ...]],
) -> None:
    rng = np.random.default_rng(len(weights))
    constants = [
        numpy_helper.from_array(rng.normal(0, 0.1, size).astype(np.float32), name)
        for name, size in weights.items()
    ]
    constants += [
        numpy_helper.from_array(np.array([axis]), name)
        for name, axis in (('first_axis', 0), ('last_axis', 1))
    ]
    graph = helper.make_graph(
        nodes,
        'benchmark',
        [helper.make_tensor_value_info('window', TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
            for name, size in outputs.items()
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
