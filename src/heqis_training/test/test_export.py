# SPDX-License-Identifier: Apache-2.0
"""The ONNX files: the numbers of the network, the same bytes every time, ops that boards run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from heqis_core.errors import EngineError
from heqis_training.export import checked_outputs, export_onnx, golden_file
from heqis_training.models.build import build_generator
from heqis_training.models.encoder import FactorEncoder
from heqis_training.models.served import ServedGenerator, output_names
from heqis_training.settings import GruSettings

TILE, WINDOW, WIDTH = 8, 10, 7
OUTPUTS = output_names(1)


def make_gru() -> ServedGenerator:
    torch.manual_seed(3)
    network = build_generator(GruSettings(window=WINDOW, hidden=16), WIDTH, 1)
    torch.nn.init.normal_(network.return_head.weight)  # an untrained one forecasts nothing
    return ServedGenerator(network, [0.02]).eval()


def make_encoder() -> FactorEncoder:
    torch.manual_seed(3)
    return FactorEncoder(WIDTH, 16, 4, 12).eval()


def export_gru() -> bytes:
    return export_onnx(make_gru(), (TILE, WINDOW, WIDTH), 'window', OUTPUTS)


def export_encoder() -> bytes:
    return export_onnx(make_encoder(), (TILE, WIDTH, 1, 16), 'window', ('factors',))


def shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize('rows', [1, TILE, 3 * TILE + 1])
def test_the_gru_file_answers_like_the_network_on_padded_tiles(rows: int) -> None:
    x = np.random.default_rng(0).normal(0, 3, (rows, WINDOW, WIDTH)).astype(np.float32)
    found = checked_outputs(export_gru(), make_gru(), x, TILE, OUTPUTS)
    with torch.no_grad():
        expected = make_gru()(torch.from_numpy(x))
    for name, values in zip(OUTPUTS, expected, strict=True):
        np.testing.assert_allclose(found[name], values.numpy(), atol=1e-5)
    np.testing.assert_allclose(found['probabilities'].sum(axis=1), 1, atol=1e-6)


def test_the_encoder_file_answers_like_the_network() -> None:
    x = np.random.default_rng(0).normal(0, 3, (21, WIDTH, 1, 16)).astype(np.float32)
    found = checked_outputs(export_encoder(), make_encoder(), x, TILE, ('factors',))
    with torch.no_grad():
        expected = make_encoder()(torch.from_numpy(x)).numpy()
    assert found['factors'].shape == (21, 4, 1, 1)
    np.testing.assert_allclose(found['factors'], expected, atol=1e-5)


def test_a_file_that_differs_from_the_network_is_refused_by_output() -> None:
    x = np.random.default_rng(0).normal(size=(4, WINDOW, WIDTH)).astype(np.float32)
    other = make_gru()
    with torch.no_grad():
        other.generator.class_head.bias[0] += 1e-3
    with pytest.raises(EngineError, match=r"output 'logits' of the ONNX .* by 0\.001"):
        checked_outputs(export_gru(), other, x, TILE, OUTPUTS)


def test_an_untrained_seeming_network_is_exported_without_dropout() -> None:
    model = make_gru().train()
    assert export_onnx(model, (TILE, WINDOW, WIDTH), 'window', OUTPUTS) == export_gru()


@pytest.mark.parametrize('export', [export_gru, export_encoder])
def test_the_same_network_gives_the_same_bytes_without_paths(export: Callable[[], bytes]) -> None:
    data = export()
    assert data == export()
    folder = Path(__file__).resolve().parents[1].name.encode()
    assert folder not in data
    assert b'.py' not in data
    assert b'/tmp' not in data


@pytest.mark.parametrize('export', [export_gru, export_encoder])
def test_every_shape_is_static_and_the_opset_is_17(
    export: Callable[[], bytes],
) -> None:
    model = onnx.load_from_string(export())
    assert [entry.version for entry in model.opset_import] == [17]
    found = shapes(model.graph)
    outputs = {name for node in model.graph.node for name in node.output if name}
    used = {name for node in model.graph.node for name in node.input}
    assert (outputs & used) <= set(found)
    assert all(size > 0 for sizes in found.values() for size in sizes)


def test_the_encoder_has_only_what_the_npu_runs_and_is_rank_4_throughout() -> None:
    graph = onnx.load_from_string(export_encoder()).graph
    assert {node.op_type for node in graph.node} <= {'Conv', 'Relu'}
    assert [len(shape) for shape in shapes(graph).values()] == [4] * len(shapes(graph))
    for node in graph.node:
        kernel = [list(a.ints) for a in node.attribute if a.name == 'kernel_shape']
        assert all(sizes[0] == 1 for sizes in kernel)


def test_the_generator_starts_from_zero_without_shape_arithmetic() -> None:
    nodes = onnx.load_from_string(export_gru()).graph.node
    (gru,) = (node for node in nodes if node.op_type == 'GRU')
    assert len([name for name in gru.input if name]) == 4  # window, two weights, bias
    assert not {node.op_type for node in nodes} & {'Shape', 'Expand', 'Concat', 'Unsqueeze'}


def test_a_network_with_a_learned_first_state_is_refused() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(WIDTH, 4, batch_first=True)
            self.start = nn.Parameter(torch.ones(1, TILE, 4))

        def forward(self, window: Tensor) -> Tensor:
            return self.gru(window, self.start[:, : window.shape[0]])[1][0]

    model = Learned().eval()
    data = export_onnx(model, (TILE, WINDOW, WIDTH), 'window', ('state',))
    x = np.zeros((TILE, WINDOW, WIDTH), np.float32)
    with pytest.raises(EngineError, match="output 'state' of the ONNX file differs"):
        checked_outputs(data, model, x, TILE, ('state',))


def test_golden_bytes_depend_on_the_arrays_alone() -> None:
    arrays = {'b': np.arange(3), 'a': np.ones((2, 2), np.float32)}
    data = golden_file(arrays)
    assert data == golden_file(dict(reversed(arrays.items())))
    assert data != golden_file(arrays | {'b': np.arange(4)})
