# SPDX-License-Identifier: Apache-2.0
"""Generators of every kind: shapes, where they start, what reaches them, that they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.build import Generator, build_generator
from heqis_training.settings import (
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    TransformerSettings,
)

WINDOW, FEATURES = 8, 4

KINDS: dict[str, GeneratorSettings] = {
    'gru': GruSettings(window=WINDOW, hidden=16),
    'lstm': LstmSettings(window=WINDOW, hidden=16),
    'both directions': LstmSettings(window=WINDOW, hidden=8, bidirectional=True),
    'transformer': TransformerSettings(window=WINDOW, width=16),
    'causal': TransformerSettings(window=WINDOW, width=16, attention='causal'),
}
every_kind = pytest.mark.parametrize('kind', list(KINDS))


def make(kind: str, n_horizons: int = 1, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return build_generator(KINDS[kind], FEATURES, n_horizons)


def toy(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return windows, the scaled mean of their second feature, and the class of its sign."""
    window = torch.randn(n, WINDOW, FEATURES, generator=torch.Generator().manual_seed(seed))
    mean = window[:, :, 1].mean(dim=1) * WINDOW**0.5
    return window, mean, 2 * (mean > 0).long()


def train(model: Generator, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for step in range(steps):
        window, mean, classes = toy(64, step)
        forecast = model(window)
        loss = nn.functional.mse_loss(forecast.log_returns[:, 0], mean)
        loss = loss + nn.functional.cross_entropy(forecast.logits, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@every_kind
@pytest.mark.parametrize('n_horizons', [1, 3])
def test_an_untrained_network_forecasts_persistence_for_every_horizon(
    kind: str, n_horizons: int
) -> None:
    forecast = make(kind, n_horizons)(toy(7, 0)[0])
    assert torch.equal(forecast.log_returns, torch.zeros(7, n_horizons))
    assert forecast.logits.shape == (7, 3)
    assert forecast.logits.std() > 0


@every_kind
def test_each_kind_learns_the_sign_and_size_of_a_mean_on_windows_it_has_not_seen(
    kind: str,
) -> None:
    model = make(kind)
    train(model, 200)
    model.eval()
    window, mean, classes = toy(1000, 10_000)
    with torch.no_grad():
        forecast = model(window)
    accuracy = (forecast.logits.argmax(dim=1) == classes).float().mean()
    assert accuracy > 0.85  # by chance: 0.5
    assert nn.functional.mse_loss(forecast.log_returns[:, 0], mean) < 0.4 * mean.var()


@every_kind
def test_every_row_and_feature_of_the_window_reaches_the_forecast(kind: str) -> None:
    window = toy(5, 0)[0].requires_grad_()
    make(kind)(window).logits[:, 0].sum().backward()
    assert (window.grad.abs() > 1e-9).all()


@every_kind
def test_the_same_seed_gives_the_same_weights_and_the_same_training_bit_for_bit(
    kind: str,
) -> None:
    models = [make(kind), make(kind), make(kind, seed=1)]
    assert not torch.equal(models[0].class_head.weight, models[2].class_head.weight)
    for trained in (False, True):
        first, second = (model.state_dict() for model in models[:2])
        assert all(torch.equal(first[name], second[name]) for name in first)
        for model in models[:2] if not trained else ():
            torch.manual_seed(5)
            train(model, 3)


@every_kind
def test_dropout_acts_while_training_alone(kind: str) -> None:
    model, window = make(kind), toy(64, 0)[0]
    assert not torch.equal(model(window).logits, model(window).logits)
    model.eval()
    assert torch.equal(model(window).logits, model(window).logits)


@pytest.mark.parametrize(
    'settings',
    [GruSettings(window=1), LstmSettings(window=1), TransformerSettings(window=1)],
    ids=['gru', 'lstm', 'transformer'],
)
def test_a_window_of_one_row_is_refused_when_the_network_is_built(
    settings: GeneratorSettings,
) -> None:
    with pytest.raises(ConfigError, match=r': window is 1, expected at least 2 rows'):
        build_generator(settings, FEATURES, 1)


@every_kind
@pytest.mark.parametrize(
    'shape',
    [(3, 1, FEATURES), (3, WINDOW + 1, FEATURES), (3, WINDOW, FEATURES - 1), (WINDOW, FEATURES)],
)
def test_one_row_or_another_shape_is_refused_by_name_at_the_call(
    kind: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match=r'(gru|lstm|transformer): windows are .* \(N, 8, 4\)'):
        make(kind)(torch.zeros(shape))
