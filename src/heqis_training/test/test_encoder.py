# SPDX-License-Identifier: Apache-2.0
"""The factor encoder: shapes, and factors on the scale that the generators expect."""

from __future__ import annotations

import pytest
import torch

from heqis_core.errors import ConfigError
from heqis_training.models.encoder import FactorAutoencoder, FactorEncoder, standardise


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
