# SPDX-License-Identifier: Apache-2.0
"""Multi-GAN over epochs: it learns, and every special step changes what it claims to change.

Returns follow the first feature of the row before. In a `reversed` validation part they go against
it, so that whatever learns from the training part gets worse there.
"""

from __future__ import annotations

import itertools
import math
from functools import partialmethod
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import DataError
from heqis_core.manifest import ENSEMBLE
from heqis_training.batches import Batch, Part, Scale
from heqis_training.dataset import fingerprint, flat_band
from heqis_training.device import Device
from heqis_training.loop import deterministic, run_epochs
from heqis_training.models.build import build_generator
from heqis_training.monitor import SILENT
from heqis_training.multigan import MultiGan, Scores
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    TransformerSettings,
)
from heqis_training.shrinkage import shrinkage
from heqis_training.store import FrameStore, StoreKey

N_FEATURES = 3
FIT = FitSettings(epochs=4, batch=64, learning_rate=5e-3, plateau_patience=50)
QUIET = AdversarialSettings(identity_epochs=1, distil_every=0, cross_every=0)
SETTINGS = TrainingSettings(
    generators=(
        GruSettings(window=3, hidden=8),
        LstmSettings(window=4, hidden=8),
        TransformerSettings(window=5, width=8, heads=2, layers=1, feedforward=8),
    ),
    discriminators=tuple(DiscriminatorSettings(window=w, hidden=6) for w in (2, 4, 6)),
    adversarial=QUIET,
    fit=FIT,
)
ALONE = msgspec.structs.replace(SETTINGS, generators=SETTINGS.generators[:1], discriminators=())
ALONE_TRANSFORMER = msgspec.structs.replace(
    ALONE, generators=(msgspec.structs.replace(SETTINGS.generators[2], dropout=0.0),)
)


def parts(
    settings: TrainingSettings, n_rows: int = 500, reverse: bool = False
) -> tuple[Part, Part]:
    """Return windows that train, and half as many that validate."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((n_rows, 1, N_FEATURES), np.float32)
    cut = 2 * n_rows // 3
    sign = np.where(reverse & (np.arange(n_rows) >= cut), -1, 1)
    move = np.tanh(features[:-1, 0, 0]) * sign[:-1] + 0.3 * rng.normal(size=n_rows - 1)
    close = np.exp(0.02 * np.concatenate([[0], np.cumsum(move)]))[:, None]
    status = np.full((n_rows, 1), BarStatus.VALID, np.uint8)
    table = BarTable(
        ('A',), np.arange(n_rows, dtype=np.int64), np.repeat(close[:, None], 6, axis=1), status
    )
    key = StoreKey(fingerprint(table), '', ('a', 'b', 'c'), settings.horizons)
    store = FrameStore.build(table, zip(features, status, strict=True), key)
    longest = max(settings.window, settings.past)
    samples = store.samples(longest, 2 * longest)
    samples = samples.where(samples.labelled)
    training = samples.where(samples.label_row < cut)
    validation = samples.where(samples.t >= cut)
    scale = Scale.of(training, flat_band(training.log_return[:, 0]))
    made = [
        Part(store, part, scale, settings.window, settings.past) for part in (training, validation)
    ]
    return made[0], made[1]


def make(settings: TrainingSettings = SETTINGS, reverse: bool = False, **rules: Any) -> MultiGan:
    """Return a game; call it in `deterministic`."""
    adversarial = msgspec.structs.replace(settings.adversarial, **rules)
    settings = msgspec.structs.replace(settings, adversarial=adversarial)
    device = Device(precision=settings.precision)
    return MultiGan(settings, N_FEATURES, *parts(settings, reverse=reverse), device=device)


Figures = dict[str, dict[str, float]]


def play(
    epochs: int, settings: TrainingSettings = SETTINGS, reverse: bool = False, **rules: Any
) -> tuple[MultiGan, list[Figures]]:
    with deterministic(1):
        game = make(settings, reverse, **rules)
        return game, [game.run_epoch(number)[0] for number in range(1, epochs + 1)]


def equal(one: object, other: object) -> bool:
    """Return whether two trees of tensors and plain values are the same bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def changed(game: MultiGan, other: MultiGan) -> set[str]:
    """Return the players whose weights, optimiser or schedule differ."""
    one, two = game.state()['players'], other.state()['players']
    return {name for name in one if not equal(one[name], two[name])}


def whole(part: Part) -> Batch:
    return part.batch(torch.arange(len(part)))


# --- learning ------------------------------------------------------------------------------------


def happened(game: MultiGan) -> list[str]:
    """Return the notes of the last epochs but for the one that says that weights changed."""
    return [note for note in game.notes() if not note.startswith('pair weights are')]


def test_every_generator_learns_a_rule_that_the_market_follows() -> None:
    game, figures = play(12)
    for name in game.settings.generator_names:
        assert figures[-1][name]['validation_mse'] < 0.6  # persistence has 1
        assert figures[-1][name]['validation_accuracy'] > 0.55  # a third is chance
        assert figures[-1][name]['training_adversarial'] > 0
    for player in game.discriminators:
        assert figures[-1][player.name]['discriminator_loss'] > 0


def test_the_figures_of_an_epoch_are_those_of_the_networks() -> None:
    game, figures = play(2, regression=2.0, classification=0.5)
    assert set(figures[-1]) == set(game.settings.network_names)
    batch = whole(game._validation)
    for place, name in enumerate(game.settings.generator_names):
        with torch.no_grad():
            forecast = game.forecast(place, batch)
        found = figures[-1][name]
        mse = functional.mse_loss(forecast.log_returns, batch.targets).item()
        entropy = functional.cross_entropy(forecast.logits, batch.classes).item()
        hits = (forecast.logits.argmax(1) == batch.classes).float().mean().item()
        assert found['validation_mse'] == pytest.approx(mse, rel=1e-5)
        assert found['validation_cross_entropy'] == pytest.approx(entropy, rel=1e-5)
        assert found['validation_accuracy'] == pytest.approx(hits)
        assert found['validation_loss'] == pytest.approx(2 * mse + 0.5 * entropy, rel=1e-5)


def test_generators_that_only_play_fool_discriminators_that_stand_still() -> None:
    settings = msgspec.structs.replace(SETTINGS, discriminator_learning_rate=1e-12)
    game, figures = play(
        5, settings, regression=0.0, classification=0.0, identity_epochs=0, weights='uniform'
    )
    for name in game.settings.generator_names:  # -log of how likely a fake is held for real
        losses = [one[name]['training_adversarial'] for one in figures]
        assert losses == sorted(losses, reverse=True)
    against = [player.name for player in game.discriminators]
    judged = [sum(one[name]['discriminator_loss'] for name in against) for one in figures]
    assert judged == sorted(judged)


def test_the_same_seed_plays_the_same_game_also_with_drawn_classes() -> None:
    for how in ('straight_through', 'gumbel'):
        game, _ = play(2, class_gradient=how)
        other, _ = play(2, class_gradient=how)
        assert not changed(game, other)
    straight, _ = play(2)
    assert changed(game, straight) == set(SETTINGS.network_names)


def test_one_generator_without_discriminators_is_a_plain_regression_bit_for_bit() -> None:
    game, figures = play(3, ALONE)
    training, _ = parts(ALONE)
    with deterministic(1):
        network = build_generator(ALONE.generators[0], N_FEATURES, 1)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=5e-3, weight_decay=FIT.weight_decay, fused=True
        )
        for _ in range(3):
            network.train()
            for batch in training.shuffled(FIT):
                forecast = network(batch.rows)
                loss = functional.mse_loss(forecast.log_returns, batch.targets)
                loss = loss + functional.cross_entropy(forecast.logits, batch.classes)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), FIT.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
    assert equal(game.generators[0].network.state_dict(), network.state_dict())
    assert figures[-1]['gru']['training_adversarial'] == 0


# --- which epoch is the best ---------------------------------------------------------------------


def test_a_better_class_head_alone_makes_a_best_epoch() -> None:
    game, figures = play(3, ALONE, regression=0.0)
    found = [one['gru'] for one in figures]
    assert len({one['validation_mse'] for one in found}) == 1  # persistence throughout
    assert found[-1]['validation_cross_entropy'] < found[0]['validation_cross_entropy']
    assert [one['best_epoch'] for one in found] == [1, 2, 3]
    assert game.best[0].loss == found[-1]['validation_cross_entropy']


def test_each_generator_comes_back_in_the_state_of_its_own_best_epoch() -> None:
    with deterministic(1):
        game = make(reverse=True)
        seen: list[list[dict[str, Tensor]]] = []
        losses = []
        for number in range(1, 5):
            figures, _ = game.run_epoch(number)
            losses.append([figures[n]['validation_loss'] for n in SETTINGS.generator_names])
            seen.append([p.state()['network'] for p in game.generators])
        found = game.best_networks()
    best = np.array(losses).argmin(axis=0)
    for place, name in enumerate(SETTINGS.generator_names):
        assert game.best[place].epoch == best[place] + 1
        assert equal(dict(found[name].state_dict()), dict(seen[best[place]][place]))
        assert not found[name].training


def test_training_stops_once_no_generator_gets_better() -> None:
    with deterministic(1):
        game = make(reverse=True)
        progress = run_epochs('generators', game, 40, 3, SILENT)
    assert progress.done == max(best.epoch for best in game.best) + 3 < 40


def test_learning_rates_fall_when_validation_does_not_improve() -> None:
    settings = msgspec.structs.replace(
        SETTINGS,
        fit=msgspec.structs.replace(FIT, plateau_patience=0, plateau_factor=0.5),
        discriminator_learning_rate=1e-3,
    )
    game, figures = play(6, settings, reverse=True)
    for name in (p.name for p in game.generators):
        rate, best = 5e-3, math.inf
        for one in figures:
            loss = one[name]['validation_loss']
            rate, best = (rate if loss < best * (1 - 1e-4) else rate / 2), min(best, loss)
            assert one[name]['learning_rate'] == pytest.approx(rate)
        assert rate < 5e-3
    for player in game.discriminators:
        first, last = (figures[k][player.name] for k in (0, -1))
        assert last['learning_rate'] <= first['learning_rate'] == 1e-3


def test_a_generator_that_diverges_is_named_before_it_spoils_the_others() -> None:
    settings = msgspec.structs.replace(
        SETTINGS, fit=msgspec.structs.replace(FIT, learning_rate=1e30)
    )
    with (
        deterministic(1),
        pytest.raises(DataError, match=r'gru: epoch 1 has no finite validation loss \('),
    ):
        make(settings).run_epoch(1)


# --- distillation --------------------------------------------------------------------------------


def divergence(game: MultiGan, teacher: int, student: int) -> float:
    """Return how far the classes of one generator are from those of another."""
    batch = whole(game._training)
    with torch.no_grad():
        p, q = (game.forecast(k, batch).logits.log_softmax(1) for k in (teacher, student))
    return float(functional.kl_div(q, p, reduction='batchmean', log_target=True))


def order(game: MultiGan, figures: Figures) -> list[int]:
    """Return the generators from best to worst."""
    names = game.settings.generator_names
    return sorted(range(len(names)), key=lambda k: figures[names[k]]['validation_mse'])


def test_distillation_brings_the_worst_towards_the_best_and_changes_nobody_else() -> None:
    without, figures = play(2)
    game, taught = play(2, distil_every=2, distil_alpha=0.9)
    best, *_, worst = order(without, figures[-1])
    names = game.settings.generator_names
    assert changed(game, without) == {names[worst]}
    for player in (*game.generators, *without.generators):
        player.network.eval()
    assert divergence(game, best, worst) < divergence(without, best, worst)
    (note,) = happened(game)
    assert note.startswith(f'distilled {names[best]} -> {names[worst]}: validation ')
    assert note.endswith(', kept')
    assert happened(game) == []
    found = taught[-1][names[worst]]
    assert found['validation_loss'] < figures[-1][names[worst]]['validation_loss']
    assert game.best[worst].loss == found['validation_loss']
    assert equal(game.best[worst].network, dict(game.generators[worst].network.state_dict()))


def test_distillation_that_makes_validation_worse_is_undone_bit_for_bit() -> None:
    without, figures = play(2, reverse=True)
    game, taught = play(2, reverse=True, distil_every=2)
    (note,) = happened(game)
    assert note.endswith(', undone')
    assert not changed(game, without)
    assert equal(game.state(), without.state())
    assert taught == figures


def test_distillation_is_due_every_so_often_and_needs_two_generators() -> None:
    game, _ = play(4, distil_every=2)
    assert len(happened(game)) == 2
    alone, _ = play(2, ALONE, distil_every=1)
    assert happened(alone) == []


# --- cross fine-tuning ---------------------------------------------------------------------------


def test_cross_fine_tuning_changes_the_best_pair_alone_when_it_helps() -> None:
    without, figures = play(2)
    game, tuned = play(2, cross_every=2, cross_epochs=2)
    place = order(without, figures[-1])[0]
    name = game.settings.generator_names[place]
    losses = {p.name: figures[-1][p.name]['discriminator_loss'] for p in game.discriminators}
    strongest = min(losses, key=lambda one: losses[one])
    assert changed(game, without) == {name, strongest}
    (note,) = happened(game)
    assert note.startswith(f'fine-tuned against {strongest}: {name}: validation ')
    assert note.endswith(', kept')
    found = tuned[-1][name]['validation_loss']
    assert found < figures[-1][name]['validation_loss']
    assert (game.best[place].loss, game.best[place].epoch) == (found, 2)


def test_cross_fine_tuning_that_makes_validation_worse_restores_both_players() -> None:
    without, figures = play(2, reverse=True)
    game, tuned = play(2, reverse=True, cross_every=2, cross_epochs=2)
    (note,) = happened(game)
    assert note.endswith(', undone')
    assert equal(game.state(), without.state())
    assert tuned == figures


def test_without_discriminators_there_is_no_cross_fine_tuning() -> None:
    game, _ = play(2, ALONE, cross_every=1)
    assert happened(game) == []


# --- what comes out ------------------------------------------------------------------------------


def test_the_ensembles_scores_are_those_of_the_mean_of_all() -> None:
    game, _ = play(2)
    with torch.no_grad():
        game.best_networks()
        batch = whole(game._validation)
        each = [game.forecast(k, batch) for k in range(3)]
    returns = sum(one.log_returns.double() for one in each) / 3
    p = sum(one.logits.double().softmax(1) for one in each) / 3
    found = game.candidates()
    assert list(found) == ['gru', 'lstm', 'transformer', ENSEMBLE]
    mse = (returns - batch.targets).square().mean().item()
    entropy = -p.log().gather(1, batch.classes[:, None]).mean().item()
    hits = (p.argmax(1) == batch.classes).double().mean().item()
    expected = Scores(mse + entropy, mse, entropy, hits)
    assert found[ENSEMBLE] == pytest.approx(expected, rel=1e-5)
    assert found['gru'].loss == pytest.approx(game.best[0].loss, rel=1e-6)


def test_an_ensemble_needs_two_generators_and_the_wish() -> None:
    alone, _ = play(1, ALONE)
    assert list(alone.candidates()) == ['gru']
    unwanted, _ = play(1, msgspec.structs.replace(SETTINGS, ensemble=False))
    assert ENSEMBLE not in unwanted.candidates()


def test_shrinking_folds_a_factor_of_each_horizon_into_the_return_head_alone() -> None:
    settings = msgspec.structs.replace(SETTINGS, horizons=(1, 3))
    with deterministic(1):
        game = make(settings)
        game.run_epoch(1)
        batch = whole(game._validation)
        with torch.no_grad():
            for network in game.best_networks().values():  # that promise too much
                network.return_head.weight.mul_(torch.tensor([[99.0], [999.0]]))
            before = [game.forecast(k, batch) for k in range(3)]
            factors = game.shrink_returns()
            after = [game.forecast(k, batch) for k in range(3)]
    assert list(factors) == ['gru', 'lstm', 'transformer']
    for name, one, other in zip(factors, before, after, strict=True):
        assert one.log_returns.shape == (len(batch.t), 2)
        expected = shrinkage(one.log_returns.numpy(), batch.targets.numpy(), batch.t.numpy())
        assert factors[name] == pytest.approx(expected, rel=1e-5)
        scaled = one.log_returns * torch.tensor(factors[name])
        torch.testing.assert_close(other.log_returns, scaled, rtol=1e-4, atol=1e-6)
        assert torch.equal(one.logits, other.logits)
    assert all(1 > near > far for near, far in factors.values())


# --- other ways to compute -----------------------------------------------------------------------


def test_bfloat16_trains_float32_weights_to_nearly_the_same_losses() -> None:
    rules = msgspec.structs.replace(QUIET, cross_every=2, cross_epochs=1, distil_every=2)
    settings = msgspec.structs.replace(SETTINGS, adversarial=rules)
    game, figures = play(2, settings)
    half, found = play(2, msgspec.structs.replace(settings, precision='bfloat16'))
    for network in half.networks().values():
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert changed(half, game) == set(SETTINGS.network_names)
    keys = ('training_mse', 'training_cross_entropy')
    for name, key in itertools.product(SETTINGS.generator_names, keys):
        assert found[0][name][key] == pytest.approx(figures[0][name][key], rel=0.03)
    assert half.shrink_returns().keys() == game.shrink_returns().keys()


def test_compiled_generators_learn_what_plain_ones_do_and_keep_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The default backend calls a C++ compiler for a minute; this one is given the same graphs.
    eager = partialmethod(nn.Module.compile, backend='eager')
    monkeypatch.setattr(nn.Module, 'compile', eager)
    plain, figures = play(1, ALONE_TRANSFORMER)
    compiled, found = play(1, msgspec.structs.replace(ALONE_TRANSFORMER, compile=True))
    one, other = (game.generators[0].network for game in (plain, compiled))
    assert one._compiled_call_impl is None
    assert other._compiled_call_impl is not None
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in found[0]['transformer'].items():
        assert value == pytest.approx(figures[0]['transformer'][name], rel=1e-4)


def test_a_note_says_from_which_epoch_on_losses_compare_no_more() -> None:
    told = []
    with deterministic(1):
        game = make(SETTINGS, identity_epochs=2, distil_every=0, cross_every=0)
        for number in range(1, 5):
            game.run_epoch(number)
            told.append(game.notes())
    (note,) = told[2]
    assert note.startswith('pair weights are dynamic from here on')
    assert told[0] == told[1] == told[3] == []
