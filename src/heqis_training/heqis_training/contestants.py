# SPDX-License-Identifier: Apache-2.0
"""The models of a forecast table: which networks compete, and how each is trained and answers.

All of them get the same windows, epochs, choice of the best state and shrinkage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from heqis_core.decider import mean_of
from heqis_core.manifest import ENSEMBLE
from heqis_core.strategy import StrategyConfig
from heqis_training import metrics
from heqis_training.batches import Part, Scale, spread
from heqis_training.dataset import Samples, classify
from heqis_training.device import Device
from heqis_training.loop import deterministic, run_epochs
from heqis_training.metrics import Answers
from heqis_training.monitor import SILENT
from heqis_training.multigan import MultiGan
from heqis_training.settings import DiscriminatorSettings, TrainingSettings
from heqis_training.store import FrameStore
from heqis_training.tensors import WindowTensors

if TYPE_CHECKING:
    from heqis_training.baselines import Baseline, Labelled

MULTI_GAN = 'Multi-GAN'
BASELINES = ('linear', 'boosting')
NOT_SHRUNK = ', not shrunk'
"""End of the name of a network's row without shrinkage."""

BASELINE_WINDOWS = 100_000
"""Training windows that a baseline is fitted on at most, evenly spread: it needs all at once."""


class Windows(NamedTuple):
    """The windows of one fold."""

    store: FrameStore
    training: Samples
    validation: Samples
    test: Samples
    scale: Scale


class Answered(NamedTuple):
    """What one model says to the test windows of one fold.

    Attributes:
        model: its name in the table.
        test: the answers.
        strategy: thresholds, from its answers to the validation windows.
        chosen: what training and validation chose, by name: of a network, which generator (or
            `ensemble`) is `served`, its `validation_loss`, the shrinkage of each generator, and
            `weights`, 16 hex digits of all generators; of a baseline, its strength.
    """

    model: str
    test: Answers
    strategy: StrategyConfig
    chosen: dict[str, float | str]


def networks_of(settings: TrainingSettings) -> dict[str, TrainingSettings]:
    """Return the settings of every network that competes, by its name in the table.

    Besides Multi-GAN itself: each generator alone (ERM), each with one discriminator of its own
    window (GAN), and all generators without discriminators (ERM ensemble), which tells apart what
    several networks give and what the game gives. The one pair of a GAN weighs 1 throughout.
    """
    found = {MULTI_GAN: settings}
    replace = msgspec.structs.replace
    rules = settings.adversarial
    for name, part in zip(settings.generator_names, settings.generators, strict=True):
        alone = replace(settings, generators=(part,), discriminators=())
        like = settings.discriminators[0] if settings.discriminators else DiscriminatorSettings()
        found[f'{name} ERM'] = alone
        found[f'{name} GAN'] = replace(
            alone,
            discriminators=(replace(like, window=part.window),),
            adversarial=replace(rules, weights='uniform'),
        )
    if len(settings.generators) > 1:
        found['ensemble ERM'] = replace(
            settings, discriminators=(), adversarial=replace(rules, distil_every=0)
        )
    return found


def answer(
    model: str, settings: TrainingSettings, seed: int, windows: Windows, ablation: bool
) -> list[Answered]:
    """Train a model of the contest of `settings` and return its answers.

    Args:
        model: one of `networks_of` or `BASELINES`.
        settings: of the contest.
        seed: of this training.
        windows: the test part among them is only answered.
        ablation: of a network that is shrunk, return the answers before shrinkage, too.
    """
    if model in BASELINES:
        return [_baseline(model, settings, seed, windows)]
    return _network(
        model, msgspec.structs.replace(networks_of(settings)[model], seed=seed), windows, ablation
    )


def _network(
    model: str, settings: TrainingSettings, windows: Windows, ablation: bool
) -> list[Answered]:
    """Train, take the best states, and let the one that validation chose answer."""
    store, scale = windows.store, windows.scale
    training, validation, test = (
        Part(store, samples, scale, settings.window, settings.past)
        for samples in (windows.training, windows.validation, windows.test)
    )
    with deterministic(settings.seed):
        device = Device(precision=settings.precision)
        game = MultiGan(settings, store.features.shape[1], training, validation, device)
        run_epochs('generators', game, settings.fit.epochs, settings.fit.patience, SILENT)
        best = game.best_networks()

        def answered(name: str, factors: dict[str, list[float]]) -> Answered:
            scores = game.candidates()
            served = min(scores, key=lambda candidate: scores[candidate].loss)
            known, asked = (_answers(game, served, part, scale) for part in (validation, test))
            chosen: dict[str, float | str] = {
                'served': served,
                'validation_loss': scores[served].loss,
                'weights': _digest(best.values()),
            }
            chosen |= {f'shrinkage_{one}': values[0] for one, values in factors.items()}
            return _made(name, known, asked, settings, chosen)

        if not settings.shrink:
            return [answered(model, {})]
        plain = [answered(model + NOT_SHRUNK, {})] if ablation else []
        return [answered(model, game.shrink_returns()), *plain]


def _answers(game: MultiGan, served: str, part: Part, scale: Scale) -> Answers:
    """Return what the served generator, or the mean of all, says to every window."""
    names = [player.name for player in game.generators]
    places = range(len(names)) if served == ENSEMBLE else [names.index(served)]
    returns, shares = [], []
    with torch.no_grad():
        for batch in part.in_order(len(part)):
            forecasts = [game.forecast(place, batch) for place in places]
            returns.append(
                mean_of(
                    np.stack([(f.log_returns[:, 0] * scale.spread[0]).numpy() for f in forecasts])
                )
            )
            shares.append(
                mean_of(np.stack([torch.softmax(f.logits, dim=1).numpy() for f in forecasts]))
            )
    return Answers(np.concatenate(returns), np.concatenate(shares))


def _baseline(model: str, settings: TrainingSettings, seed: int, windows: Windows) -> Answered:
    from heqis_training import baselines  # scikit-learn takes seconds, for each process

    training, validation = (
        _labelled(settings, windows, part) for part in (windows.training, windows.validation)
    )
    if model == 'linear':
        fitted = baselines.linear(training, validation)
    else:
        fitted = baselines.boosting(training, validation, seed)
    known, asked = (
        _ask(fitted, _rows_of(settings, windows, part), len(part))
        for part in (windows.validation, windows.test)
    )
    chosen: dict[str, float | str] = {**fitted.chosen}
    return _made(model, known, asked, settings, chosen)


def _labelled(settings: TrainingSettings, windows: Windows, samples: Samples) -> Labelled:
    from heqis_training.baselines import Labelled

    count = len(samples)
    index = torch.cat(list(spread(count, BASELINE_WINDOWS)))
    log_return = samples.log_return[index.numpy(), 0]
    rows = _rows_of(settings, windows, samples)(index)
    return Labelled(rows, log_return, classify(log_return, windows.scale.band))


def _rows_of(
    settings: TrainingSettings, windows: Windows, samples: Samples
) -> Callable[[torch.Tensor], npt.NDArray[np.float32]]:
    """Return what gathers windows by their places, as long as the longest generator sees."""
    tensors = WindowTensors(windows.store, samples)
    return lambda index: tensors.rows(index, settings.window).numpy()


def _ask(
    fitted: Baseline, rows: Callable[[torch.Tensor], npt.NDArray[np.float32]], count: int
) -> Answers:
    parts = [fitted.answer(rows(index)) for index in spread(count, count)]
    return Answers(
        np.concatenate([part.log_return for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
    )


def _made(
    name: str,
    known: Answers,
    asked: Answers,
    settings: TrainingSettings,
    chosen: dict[str, float | str],
) -> Answered:
    strategy = metrics.thresholds(known, settings.valid_for_s, settings.signal_quantiles)
    chosen |= {
        'buy_threshold': strategy.buy_threshold,
        'sell_threshold': strategy.sell_threshold,
    }
    return Answered(name, asked, strategy, chosen)


def _digest(networks: Iterable[nn.Module]) -> str:
    digest = hashlib.sha256()
    for network in networks:
        for value in network.state_dict().values():
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]
