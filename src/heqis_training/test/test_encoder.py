# SPDX-License-Identifier: Apache-2.0
"""The factor encoder: shapes, and factors on the scale that the generators expect."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from heqis_core.errors import ConfigError
from heqis_training.export import checked_outputs, export_onnx
from heqis_training.models.encoder import (
    FactorAutoencoder,
    FactorEncoder,
    build_autoencoder,
    standardise,
)
from heqis_training.models.t3vae import WindowVae
from heqis_training.settings import EncoderSettings


@pytest.mark.parametrize('window', [4, 8, 16, 32])
def test_any_multiple_of_four_is_encoded_and_rebuilt(window: int) -> None:
    model = FactorAutoencoder(6, window, 3, 8)
    x = torch.randn(5, 6, 1, window)
    assert model.encoder(x).shape == (5, 3, 1, 1)
    assert model(x).shape == x.shape


@pytest.mark.parametrize('window', [0, 2, 15])
def test_another_window_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=f'encoder window is {window}, expected a multiple of 4'):
        FactorEncoder(6, window, 3, 8)


def test_standardised_factors_have_mean_0_and_deviation_1_in_the_same_graph() -> None:
    torch.manual_seed(0)
    encoder = FactorEncoder(6, 16, 3, 8).eval()
    x = 3 + 2 * torch.randn(500, 6, 1, 16)
    with torch.no_grad():
        before = encoder(x)
        standardise(encoder, before)
        after = encoder(x)
    assert torch.allclose(after.mean(dim=0), torch.zeros(3, 1, 1), atol=1e-4)
    assert torch.allclose(after.std(dim=0, unbiased=False), torch.ones(3, 1, 1), atol=1e-4)
    expected = (before - before.mean(dim=0)) / before.std(dim=0, unbiased=False)
    assert torch.allclose(after, expected, atol=1e-4)


def test_a_factor_that_never_moves_stays_finite() -> None:
    encoder = FactorEncoder(6, 16, 3, 8).eval()
    with torch.no_grad():
        encoder.latent.weight[1] = 0
        factors = encoder(torch.randn(50, 6, 1, 16))
        standardise(encoder, factors)
        assert torch.isfinite(encoder(torch.randn(50, 6, 1, 16))).all()


# --- either kind ---------------------------------------------------------------------------------


def test_settings_choose_the_kind_and_its_sizes() -> None:
    cae = build_autoencoder(EncoderSettings(kind='cae', window=8, factors=2, width=6), 5)
    assert isinstance(cae, FactorAutoencoder)
    assert cae.encoder(torch.randn(3, 5, 1, 8)).shape == (3, 2, 1, 1)
    settings = EncoderSettings(kind='t3vae', window=8, factors=2, width=6, nu=4, sigma=0.5)
    vae = build_autoencoder(settings, 5)
    assert isinstance(vae, WindowVae)
    assert (vae.family.n, vae.family.m, vae.family.sigma) == (40, 2, 0.5)


def test_without_an_encoder_there_is_nothing_to_build() -> None:
    with pytest.raises(ConfigError, match='encoder kind is none'):
        build_autoencoder(EncoderSettings(kind='none'), 5)


def test_the_loss_of_a_cae_is_the_mean_squared_error() -> None:
    torch.manual_seed(0)
    model, window = FactorAutoencoder(5, 8, 2, 6), torch.randn(7, 5, 1, 8)
    wanted = (model(window) - window).square().mean()
    assert torch.allclose(model.loss(window), wanted)


@pytest.mark.parametrize('kind', ['cae', 't3vae'])
def test_the_exported_encoder_holds_only_convolutions_and_relu_on_rank_4(kind: str) -> None:
    torch.manual_seed(0)
    settings = EncoderSettings(kind='cae' if kind == 'cae' else 't3vae')
    encoder = build_autoencoder(settings, 22).encoder.eval()
    data = export_onnx(encoder, (4, 22, 1, 16), 'window', ('factors',))
    graph = onnx.load_from_string(data).graph
    assert [node.op_type for node in graph.node] == ['Conv', 'Relu', 'Conv', 'Relu', 'Conv']
    rows = torch.randn(6, 22, 1, 16).numpy()
    answers = checked_outputs(data, encoder, rows, 4, ('factors',))
    assert np.asarray(answers['factors']).shape == (6, 4, 1, 1)
