# SPDX-License-Identifier: Apache-2.0
"""The variational autoencoders: the loss, what it does to a network, and what is exported."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from heqis_core.bars import BarStatus
from heqis_core.features.spec import default_spec
from heqis_core.features.state import FeatureState
from heqis_core.io.files import load_bars
from heqis_core.scaler import Scaler
from heqis_core.testing import shared_data
from heqis_training.models.encoder import Autoencoder, build_autoencoder, standardise
from heqis_training.models.t3vae import LOG_VARIANCE_BOUND, VectorVae, WindowVae, bounded
from heqis_training.settings import EncoderSettings
from heqis_training.t3 import T3, Gaussian

SMALL = EncoderSettings(kind='t3vae', window=8, factors=3, width=8)


def window_vae(settings: EncoderSettings = SMALL, n_features: int = 5) -> WindowVae:
    model = build_autoencoder(settings, n_features)
    assert isinstance(model, WindowVae)
    return model


# --- vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize('beta', [1.0, 0.1])
@pytest.mark.parametrize('family', [T3(4, 2, 1, 0.5), Gaussian(2, 1, 0.5)])
def test_the_loss_of_vectors_is_the_sum_that_the_paper_writes(
    family: T3 | Gaussian, beta: float
) -> None:
    torch.manual_seed(0)
    model, x = VectorVae(family, hidden=8, beta=beta), torch.randn(16, 2)
    torch.manual_seed(1)
    found = model.loss(x)
    torch.manual_seed(1)
    hidden = model.layers(x)
    mu, head = model.latent(hidden), model.log_variance(hidden)
    log_variance = bounded(head, family)
    rebuilt = model.decoder(family.sample_posterior(mu, log_variance))
    total = 0.0
    for row in range(16):
        error = ((x[row] - rebuilt[row]) ** 2).sum().item() / 0.25
        part = slice(row, row + 1)
        regulariser = family.regulariser(mu[part], log_variance[part]).item()
        total += (error + beta * regulariser) / 2
    assert float(found.detach()) == pytest.approx(total / 16, rel=1e-5)


def test_the_loss_is_the_reference_loss_plus_a_constant() -> None:
    torch.manual_seed(0)
    family = T3(4, 2, 2, 0.5)
    mu, log_variance = torch.randn(9, 2).double(), torch.randn(9, 2).double()
    power = -family.gamma / (2 * (1 + family.gamma))
    reference = (
        mu.square().sum(-1)
        + 4 / (4 + 2 - 2) * log_variance.exp().sum(-1)
        - 4 * math.exp(family.log_c1 - family.log_c2) * torch.exp(power * log_variance.sum(-1))
    )
    constant = family.regulariser(mu, log_variance) - reference
    assert torch.allclose(constant, torch.full_like(constant, family.offset), rtol=1e-12)


@pytest.mark.parametrize('family', [T3(18, 1, 1, 0.1), Gaussian(1, 1, 0.1)])
def test_a_trained_vector_vae_generates_what_it_saw(family: T3 | Gaussian) -> None:
    torch.manual_seed(0)
    x = torch.where(torch.rand(4096, 1) < 0.6, -2.0, 2.0) + 0.5 * torch.randn(4096, 1)
    model = VectorVae(family)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1500):
        optimizer.zero_grad()
        model.loss(x[step % 16 * 256 :][:256]).backward()
        optimizer.step()
    made = model.generate(model.family.sample_generation(4096))
    assert made.shape == (4096, 1)
    assert not made.requires_grad
    assert float(made.mean()) == pytest.approx(float(x.mean()), abs=0.15)
    assert float(made.std()) == pytest.approx(float(x.std()), rel=0.1)
    assert float((made.abs() < 0.5).float().mean()) < 0.08  # two humps, not one


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize('window', [4, 16, 60])
def test_the_encoder_of_a_t3_vae_has_the_graph_of_the_cae(window: int) -> None:
    settings = EncoderSettings(kind='t3vae', window=window, factors=3, width=8)
    model = window_vae(settings, 6)
    cae = build_autoencoder(EncoderSettings(kind='cae', window=window, factors=3, width=8), 6)
    assert str(model.encoder) == str(cae.encoder)
    assert model.encoder(torch.randn(5, 6, 1, window)).shape == (5, 3, 1, 1)
    assert model.family == T3(10.0, 6 * window, 3, 1.0)


@pytest.mark.parametrize('sigma', [0.3, 1.0])
def test_the_loss_of_windows_is_the_gamma_loss_in_units_of_the_squared_error(
    sigma: float,
) -> None:
    torch.manual_seed(0)
    model = window_vae(EncoderSettings(kind='t3vae', window=8, factors=3, width=8, sigma=sigma))
    window = torch.randn(7, 5, 1, 8)
    torch.manual_seed(1)
    found = model.loss(window)
    torch.manual_seed(1)
    hidden = model.encoder.layers(window)
    mu = model.encoder(window)[:, :, 0, 0]
    log_variance = bounded(model.log_variance(hidden)[:, :, 0, 0], model.family)
    z = model.family.sample_posterior(mu, log_variance)
    error = (model.decoder(z.reshape(7, 3, 1, 1)) - window).square().sum((1, 2, 3))
    gamma_loss = 0.5 * (error / sigma**2 + model.family.regulariser(mu, log_variance)).mean()
    assert torch.allclose(found, 2 * sigma**2 / 40 * gamma_loss, rtol=1e-5)


def test_a_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    model = window_vae()
    model.loss(torch.randn(64, 5, 1, 8)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert (weight.grad != 0).any(), name


@pytest.mark.parametrize('size', [0.0, 1e3, 1e6])
@pytest.mark.parametrize('nu', [2.001, 10.0, 1e7])
def test_windows_of_any_size_give_a_finite_loss_and_gradient(nu: float, size: float) -> None:
    torch.manual_seed(0)
    model = window_vae(EncoderSettings(kind='t3vae', window=16, factors=4, nu=nu), 22)
    loss = model.loss(size * torch.randn(8, 22, 1, 16))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(
        weight.grad is not None and torch.isfinite(weight.grad).all()
        for weight in model.parameters()
    )


def test_log_variances_stay_bounded_and_keep_a_gradient_that_leads_back() -> None:
    family = T3(10, 352, 4)
    head = torch.tensor([-80.0, 0.0, 0.1, 80.0], requires_grad=True)
    found = bounded(head, family)
    away = found.detach() - family.log_variance_at_rest
    assert float(away.abs().max()) <= LOG_VARIANCE_BOUND + 1e-4
    assert float(away[1]) == 0
    assert float(away[2]) == pytest.approx(0.1, rel=1e-3)
    found.sum().backward()
    assert (head.grad > 0).all()


# --- real data -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def windows() -> tuple[Tensor, Tensor]:
    """Return scaled windows (N, F, 1, 16) of three A-share series: training, then later."""
    table, _ = load_bars(shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024')
    spec = default_spec(has_volume=True)
    raw = FeatureState(spec, len(table.symbols)).batch(table.values, table.status)
    whole = (table.status == BarStatus.VALID) & np.isfinite(raw).all(axis=2)
    cut = int(0.7 * len(table))
    scaler = Scaler.fit(spec.names, raw[:cut][whole[:cut]])
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for symbol in range(len(table.symbols)):
        for part, chosen in zip(parts, (slice(cut), slice(cut, None)), strict=True):
            rows = scaler.apply(raw[chosen, symbol][whole[chosen, symbol]])
            part.append(sliding_window_view(rows, 16, axis=0))  # (N, F, T)
    training, later = (torch.from_numpy(np.concatenate(part))[:, :, None] for part in parts)
    return training.contiguous(), later.contiguous()


def trained(settings: EncoderSettings, data: Tensor) -> tuple[Autoencoder, list[float]]:
    """Return an autoencoder after some steps as `FitSettings` has them, and its losses."""
    model = build_autoencoder(settings, data.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    losses = []
    for _ in range(10):
        for index in torch.randperm(len(data)).split(128):
            optimizer.zero_grad()
            loss = model.loss(data[index])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return model.eval(), losses


@pytest.mark.parametrize('nu', [2.5, 10.0, 1e6])
def test_a_t3_vae_trains_on_real_bars_and_its_factors_tell_of_later_windows(
    windows: tuple[Tensor, Tensor], nu: float
) -> None:
    torch.manual_seed(0)
    training, later = windows
    model, losses = trained(EncoderSettings(kind='t3vae', nu=nu), training)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    with torch.no_grad():
        mu = model.encoder(later)
        rebuilt = model.decoder(mu)
        assert (mu.std(dim=0) > 0.1).any()  # not collapsed onto the prior
        error = torch.nn.functional.mse_loss(rebuilt, later)
        blind = torch.nn.functional.mse_loss(training.mean(0).expand_as(later), later)
    assert float(error) < 0.75 * float(blind)


@pytest.mark.parametrize('kind', ['cae', 't3vae'])
def test_standardised_factors_of_either_kind_have_mean_0_and_deviation_1(
    windows: tuple[Tensor, Tensor], kind: str
) -> None:
    torch.manual_seed(0)
    training, _ = windows
    model = build_autoencoder(
        EncoderSettings(kind='cae' if kind == 'cae' else 't3vae'), training.shape[1]
    )
    with torch.no_grad():
        standardise(model.encoder, model.encoder(training))
        factors = model.encoder(training)[:, :, 0, 0]
    assert torch.allclose(factors.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(factors.std(0, unbiased=False), torch.ones(4), atol=1e-3)


def test_factors_of_a_t3_vae_repeat_one_another_less_than_those_of_a_cae(
    windows: tuple[Tensor, Tensor],
) -> None:
    training, later = windows
    errors, repeated = [], []
    for settings in (EncoderSettings(kind='cae'), EncoderSettings(kind='t3vae')):
        torch.manual_seed(0)
        model, _ = trained(settings, training)
        with torch.no_grad():
            factors = model.encoder(later)
            errors.append(float(torch.nn.functional.mse_loss(model.decoder(factors), later)))
        correlation = torch.corrcoef(factors[:, :, 0, 0].T) - torch.eye(4)
        repeated.append(float(correlation.abs().max()))
    assert errors[1] < 1.15 * errors[0]
    assert repeated[1] < 0.6 * repeated[0]
