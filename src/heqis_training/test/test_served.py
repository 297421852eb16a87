# SPDX-License-Identifier: Apache-2.0
"""What is exported: units, names, and files that answer like the network, for each kind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from heqis_core.errors import ConfigError
from heqis_training.export import checked_outputs, export_onnx
from heqis_training.models.build import build_generator
from heqis_training.models.served import ServedGenerator, output_names
from heqis_training.settings import (
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    TransformerSettings,
)

TILE, WINDOW, FEATURES = 8, 10, 7

KINDS: dict[str, GeneratorSettings] = {
    'gru': GruSettings(window=WINDOW),
    'gru, 2 layers': GruSettings(window=WINDOW, layers=2),
    'lstm': LstmSettings(window=WINDOW),
    'lstm, 2 layers, both directions': LstmSettings(window=WINDOW, layers=2, bidirectional=True),
    'transformer': TransformerSettings(window=WINDOW),
    'transformer, causal': TransformerSettings(window=WINDOW, attention='causal'),
    'transformer, no positions, 1 layer': TransformerSettings(
        window=WINDOW, position='none', layers=1
    ),
}


def make(kind: str, n_horizons: int = 1, return_scale: float = 0.02) -> ServedGenerator:
    torch.manual_seed(3)
    generator = build_generator(KINDS[kind], FEATURES, n_horizons)
    for weight in generator.parameters():  # as after training: no zeros, no equal tensors
        torch.nn.init.normal_(weight, std=0.3)
    served = ServedGenerator(generator, [return_scale] * n_horizons)
    served.eval()
    return served


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (n, WINDOW, FEATURES)).astype(np.float32)


def export(model: ServedGenerator, n_horizons: int) -> bytes:
    return export_onnx(model, (TILE, WINDOW, FEATURES), 'window', output_names(n_horizons))


@pytest.mark.parametrize('kind', list(KINDS))
@pytest.mark.parametrize('n_horizons', [1, 3])
def test_the_file_answers_like_the_network_with_static_shapes(kind: str, n_horizons: int) -> None:
    model = make(kind, n_horizons)
    data = export(model, n_horizons)
    x = rows(2 * TILE + 3)
    found = checked_outputs(data, model, x, TILE, output_names(n_horizons))
    with torch.no_grad():
        expected = model(torch.from_numpy(x))
    assert set(found) == set(output_names(n_horizons))
    for name, values in zip(output_names(n_horizons), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found[name]), values, rtol=1e-5, atol=1e-5)
    assert len(np.unique(found['log_return'])) > TILE  # it is not the constant it starts as
    graph = onnx.load_from_string(data).graph
    assert not {node.op_type for node in graph.node} & {'Shape', 'Expand', 'Cos', 'Sin', 'If'}
    for value in (*graph.input, *graph.value_info, *graph.output):
        assert all(size.dim_value > 0 for size in value.type.tensor_type.shape.dim), value.name


@pytest.mark.parametrize('kind', ['gru', 'lstm', 'transformer'])
def test_the_same_network_gives_the_same_file(kind: str) -> None:
    assert export(make(kind), 1) == export(make(kind), 1)


def test_probabilities_add_up_and_order_as_the_logits_do() -> None:
    with torch.no_grad():
        _, logits, probabilities = make('transformer')(torch.from_numpy(rows(20)))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(20))
    assert torch.equal(probabilities.argsort(dim=1), logits.argsort(dim=1))


def test_returns_are_in_units_of_the_scale_and_classes_are_not() -> None:
    x = torch.from_numpy(rows(6))
    with torch.no_grad():
        small, large = make('gru', 3, 0.02)(x), make('gru', 3, 0.04)(x)
        units = make('gru', 3).generator(x)
    torch.testing.assert_close(large[0], 2 * small[0])
    torch.testing.assert_close(large[3], 2 * small[3])
    torch.testing.assert_close(small[3], 0.02 * units.log_returns)
    assert torch.equal(small[1], units.logits)
    assert torch.equal(small[1], large[1])
    assert torch.equal(small[2], torch.softmax(units.logits, dim=1))


def test_the_log_return_is_that_of_the_first_horizon() -> None:
    with torch.no_grad():
        answers = dict(
            zip(output_names(3), make('lstm', 3)(torch.from_numpy(rows(6))), strict=True)
        )
    assert answers['log_returns'].shape == (6, 3)
    assert torch.equal(answers['log_return'], answers['log_returns'][:, 0])


def test_log_returns_are_named_only_with_more_than_one_horizon() -> None:
    assert output_names(1) == ('log_return', 'logits', 'probabilities')
    assert output_names(2) == ('log_return', 'logits', 'probabilities', 'log_returns')
    assert len(make('gru', 1)(torch.from_numpy(rows(2)))) == 3


def test_the_weights_are_shared_with_the_trained_network() -> None:
    served = make('gru')
    x = torch.from_numpy(rows(2))
    with torch.no_grad():
        before = served(x)[1]
        served.generator.class_head.bias.add_(1)
        torch.testing.assert_close(served(x)[1], before + 1)


@pytest.mark.parametrize('scale', [0.0, -0.01, float('nan'), float('inf')])
def test_a_scale_that_is_no_number_above_0_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=f'spread is {scale}, expected numbers above 0'):
        make('gru', return_scale=scale)
