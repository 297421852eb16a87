# SPDX-License-Identifier: Apache-2.0
"""Pre-training: either encoder learns to rebuild windows, and gives factors on the right scale."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from heqis_core.bars import BarStatus, BarTable
from heqis_training.dataset import fingerprint
from heqis_training.device import Device
from heqis_training.loop import deterministic, run_epochs
from heqis_training.monitor import SILENT
from heqis_training.pretrain import ENCODER, Pretraining
from heqis_training.settings import EncoderSettings, FitSettings
from heqis_training.store import FrameStore, StoreKey
from heqis_training.tensors import WindowTensors

WINDOW, N_FEATURES = 8, 4
FIT = FitSettings(epochs=8, batch=32, learning_rate=1e-2, plateau_patience=0, plateau_factor=0.5)
CAE = EncoderSettings(kind='cae', window=WINDOW, factors=2, width=8, fit=FIT)
T3VAE = msgspec.structs.replace(CAE, kind='t3vae')
Windows = tuple[WindowTensors, int]


def parts(n_rows: int = 420) -> tuple[Windows, Windows]:
    """Return windows of indicators that follow two slow waves, and some noise."""
    rng = np.random.default_rng(6)
    t = np.arange(n_rows)
    waves = np.stack([np.sin(t / 9), np.cos(t / 23)], axis=1)
    features = 2 * waves @ rng.normal(size=(2, N_FEATURES)) + 0.1 * rng.normal(
        size=(n_rows, N_FEATURES)
    )
    status = np.full((n_rows, 1), BarStatus.VALID, np.uint8)
    prices = np.exp(rng.normal(size=(n_rows, 6, 1)))
    table = BarTable(('A',), t.astype(np.int64), prices, status)
    names = tuple(f'f{k}' for k in range(N_FEATURES))
    rows = features[:, None].astype(np.float32)
    store = FrameStore.build(
        table,
        zip(rows, status, strict=True),
        StoreKey(fingerprint(table), '', names, (1,)),
    )
    samples = store.samples(WINDOW, 2 * WINDOW)
    training, validation = samples.where(samples.t < 300), samples.where(samples.t >= 310)
    return (
        (WindowTensors(store, training), len(training)),
        (WindowTensors(store, validation), len(validation)),
    )


def make(settings: EncoderSettings, device: Device | None = None) -> Pretraining:
    return Pretraining(settings, N_FEATURES, *parts(), device or Device())


def images(part: Windows) -> Tensor:
    return part[0].images(torch.arange(part[1]), WINDOW)


@pytest.mark.parametrize('settings', [CAE, T3VAE], ids=['cae', 't3vae'])
def test_it_learns_to_rebuild_windows_that_it_has_not_seen(settings: EncoderSettings) -> None:
    with deterministic(1):
        trainee = make(settings)
        figures = [trainee.run_epoch(number)[0][ENCODER] for number in range(1, 9)]
        network = trainee.network.eval()
        unseen = images(parts()[1])
        factors = network.encoder(unseen)
        with torch.no_grad():
            rebuilt = network.decoder(factors[:, : settings.factors])
    for name in ('reconstruction_loss', 'validation_reconstruction_loss'):
        assert figures[-1][name] < figures[0][name]
    assert trainee.notes() == []
    assert rebuilt.shape == unseen.shape
    spread = unseen.var().item()
    assert torch.nn.functional.mse_loss(rebuilt, unseen).item() < 0.5 * spread


def test_the_losses_that_are_told_are_means_over_windows() -> None:
    with deterministic(1):
        trainee = make(CAE)
        for number in (1, 2):
            figures = trainee.run_epoch(number)[0][ENCODER]
        with torch.no_grad():
            loss = trainee.network.loss(images(parts()[1])).item()
    assert figures['validation_reconstruction_loss'] == pytest.approx(loss, rel=1e-5)


def test_validating_draws_the_same_in_every_epoch_and_nothing_from_the_training() -> None:
    still = msgspec.structs.replace(
        T3VAE, fit=msgspec.structs.replace(FIT, learning_rate=1e-12, weight_decay=0.0)
    )
    with deterministic(1):
        trainee = make(still)
        found = [
            trainee.run_epoch(number)[0][ENCODER]['validation_reconstruction_loss']
            for number in (1, 2, 3)
        ]
        before = torch.get_rng_state()
        trainee._validate()
        assert torch.equal(torch.get_rng_state(), before)
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@pytest.mark.parametrize('settings', [CAE, T3VAE], ids=['cae', 't3vae'])
def test_the_encoder_of_the_best_epoch_comes_out_with_standardised_factors(
    settings: EncoderSettings,
) -> None:
    with deterministic(1):
        trainee = make(settings)
        run_epochs(ENCODER, trainee, 6, 6, SILENT)
        best = trainee.best
        kept = {k: v.clone() for k, v in best.network.items()}
        encoder = trainee.finish()
    seen = images(parts()[0])
    with torch.no_grad():
        factors = encoder(seen)[..., 0, 0]
    assert factors.shape == (len(seen), settings.factors)
    torch.testing.assert_close(factors.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(factors.std(0, False), torch.ones(2), rtol=0, atol=1e-4)
    assert not encoder.training
    # what lies before the standardised convolution is that of the best epoch
    for name, value in encoder.layers.state_dict().items():
        assert torch.equal(value, kept[f'encoder.layers.{name}'])


def test_an_epoch_draws_at_most_max_windows_and_its_rate_falls_on_a_plateau(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = msgspec.structs.replace(
        CAE, fit=msgspec.structs.replace(FIT, max_windows=40, learning_rate=1e-6)
    )
    sizes: list[int] = []
    with deterministic(1):
        training, validation = parts()
        gather = training[0].images

        def counted(index: Tensor, length: int) -> Tensor:
            sizes.append(len(index))
            return gather(index, length)

        monkeypatch.setattr(training[0], 'images', counted)
        trainee = Pretraining(few, N_FEATURES, training, validation, Device())
        rates = [trainee.run_epoch(number)[0][ENCODER]['learning_rate'] for number in (1, 2, 3)]
    assert sizes == [32, 8] * 3
    assert rates == pytest.approx([1e-6, 5e-7, 2.5e-7])


def test_one_process_of_several_pretrains_without_asking_the_others() -> None:
    found = []
    for device in (Device(), Device(rank=0, world=2)):  # there is no process group to ask
        with deterministic(1):
            trainee = make(CAE, device)
            trainee.run_epoch(1)
            found.append(trainee.network.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
