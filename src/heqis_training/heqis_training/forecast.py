# SPDX-License-Identifier: Apache-2.0
"""Honest forecasts: Multi-GAN and what it must beat, trained alike and judged on the same windows.

Every network goes through the same trainer: a generator alone learns from labels (ERM), one with a
discriminator is a plain GAN. The test part is read once, after everything has been chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from heqis_core.bars import BarTable
from heqis_core.decider import mean_of
from heqis_core.features.spec import FeatureSpec
from heqis_core.manifest import ENSEMBLE
from heqis_core.pipeline import FeaturePipeline
from heqis_training import baselines, dataset, metrics, splits
from heqis_training.baselines import Labelled
from heqis_training.batches import Part, Scale
from heqis_training.dataset import Samples, classify
from heqis_training.forecast_table import ForecastRow, compare
from heqis_training.loop import deterministic, run_epochs
from heqis_training.metrics import Answers, Judged, Truth
from heqis_training.monitor import SILENT
from heqis_training.multigan import MultiGan
from heqis_training.settings import DiscriminatorSettings, TrainingSettings
from heqis_training.splits import Split
from heqis_training.store import FrameStore, StoreKey, frames
from heqis_training.tensors import WindowTensors

MULTI_GAN = 'Multi-GAN'
BASELINES = ('linear', 'boosting')


@dataclass(frozen=True)
class Contest:
    """One asset, or one pool of symbols, that models compete on.

    Attributes:
        asset: its name.
        table: bars.
        spec: features.
        settings: of Multi-GAN; the other networks are parts of it.
        folds: splits, each tested after what it learned from.
        decide_from: row before which no test window ends; 0 for all of the test part.
    """

    asset: str
    table: BarTable
    spec: FeatureSpec
    settings: TrainingSettings
    folds: tuple[Split, ...]
    decide_from: int = 0


class _Parts(NamedTuple):
    """The windows of one fold."""

    store: FrameStore
    training: Samples
    validation: Samples
    test: Samples
    scale: Scale


class _Answered(NamedTuple):
    """What one model says to one fold: to the validation windows, then to those of the test."""

    validation: Answers
    test: Answers


def networks_of(settings: TrainingSettings) -> dict[str, TrainingSettings]:
    """Return the settings of every network that competes, by its name in the table.

    Besides Multi-GAN itself: each generator alone (ERM), each with one discriminator of its own
    window (GAN), and all generators without discriminators (ERM ensemble), which tells apart what
    several networks give and what the game gives.
    """
    found = {MULTI_GAN: settings}
    for name, part in zip(settings.generator_names, settings.generators, strict=True):
        alone = msgspec.structs.replace(settings, generators=(part,), discriminators=())
        like = settings.discriminators[0] if settings.discriminators else DiscriminatorSettings()
        opponent = msgspec.structs.replace(like, window=part.window)
        found[f'{name} ERM'] = alone
        found[f'{name} GAN'] = msgspec.structs.replace(alone, discriminators=(opponent,))
    if len(settings.generators) > 1:
        found['ensemble ERM'] = msgspec.structs.replace(settings, discriminators=())
    return found


def compete(
    contests: Sequence[Contest],
    seeds: int,
    jobs: int = 1,
    told: Callable[[str, int], None] = lambda what, of: None,
) -> tuple[ForecastRow, ...]:
    """Train every model of every contest with `seeds` seeds and return the rows of the table.

    Args:
        contests: assets, each of which gets rows of its own.
        seeds: trainings of each network; linear models and boosting have none.
        jobs: processes that train at once.
        told: called with the contest and seed that is done, and the number of them all.
    """
    work = [(contest, seed) for contest in contests for seed in range(seeds)]
    found: dict[tuple[str, int], dict[str, list[_Answered]]] = {}
    if jobs == 1:
        for contest, seed in work:
            found[contest.asset, seed] = _train_all(contest, seed)
            told(f'{contest.asset}, seed {seed}', len(work))
    else:
        with ProcessPoolExecutor(min(jobs, len(work)), get_context('spawn')) as pool:
            pending = {pool.submit(_train_all, *one): one for one in work}
            for done in as_completed(pending):
                contest, seed = pending[done]
                found[contest.asset, seed] = done.result()
                told(f'{contest.asset}, seed {seed}', len(work))
    rows: list[ForecastRow] = []
    for contest in contests:
        answers = [found[contest.asset, seed] for seed in range(seeds)]
        rows += _rows_of(contest, answers)
    return tuple(rows)


def _rows_of(
    contest: Contest, answers: Sequence[Mapping[str, list[_Answered]]]
) -> tuple[ForecastRow, ...]:
    """Judge the answers of all seeds on the test windows of all folds."""
    folds = [_parts(contest, fold) for fold in contest.folds]
    truth = _joined([_truth(part) for part in folds])
    settings = contest.settings
    judged: list[Judged] = []
    for name in answers[0]:
        each = [one[name] for one in answers if name in one]
        strategies = [
            metrics.thresholds(seed[0].validation, settings.valid_for_s, settings.signal_quantiles)
            for seed in each
        ]
        # thresholds belong to one fold: over several there is no single strategy to follow
        judged.append(
            metrics.judge(
                name,
                [_concatenated([fold.test for fold in seed]) for seed in each],
                truth,
                strategies if len(folds) == 1 else (),
            )
        )
    first = folds[0]
    classes = classify(first.training.log_return[:, 0], first.scale.band)
    shares = np.bincount(classes, minlength=3) / len(classes)
    return compare(contest.asset, judged, truth, shares, MULTI_GAN, settings.seed)


def _train_all(contest: Contest, seed: int) -> dict[str, list[_Answered]]:
    """Train every model of a contest with one seed, fold after fold."""
    found: dict[str, list[_Answered]] = {}
    for fold in contest.folds:
        parts = _parts(contest, fold)
        for name, settings in networks_of(contest.settings).items():
            seeded = msgspec.structs.replace(settings, seed=contest.settings.seed + seed)
            found.setdefault(name, []).append(_network(seeded, parts))
        if not seed:
            for name, answered in _baselines(contest.settings, parts):
                found.setdefault(name, []).append(answered)
    return found


def _parts(contest: Contest, fold: Split) -> _Parts:
    """Make features and windows of one fold; the scaler sees its training part alone."""
    settings, spec = contest.settings, contest.spec
    table = dataset.head(contest.table, fold.stop)
    scaler = dataset.fit_scaler(table, spec, fold.validation_from)
    pipeline = FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1, table.channels)
    key = StoreKey(dataset.fingerprint(table), scaler.id, spec.names, settings.horizons)
    store = FrameStore.build(table, frames(pipeline, table), key)
    longest = max(settings.window, settings.past)
    samples = store.samples(longest, 2 * longest)
    training, validation, test = splits.parts(samples, fold, settings.split.embargo)
    test = test.where(test.t >= contest.decide_from)
    bars = (contest.table.status == 1).sum(axis=0)
    needed = dataset.bars_needed(
        spec.warmup_bars + longest - 1, settings.split, settings.horizons[-1]
    )
    dataset.require_windows(table.symbols, bars, len(training), len(validation), needed)
    band = settings.flat_band or dataset.flat_band(training.log_return[:, 0])
    return _Parts(store, training, validation, test, Scale.of(training, band))


def _network(settings: TrainingSettings, parts: _Parts) -> _Answered:
    """Train the networks of `settings` and return what the one that validation chose answers."""
    store = parts.store
    training, validation, test = (
        Part(store, samples, parts.scale, settings.window, settings.past)
        for samples in (parts.training, parts.validation, parts.test)
    )
    with deterministic(settings.seed):
        game = MultiGan(settings, store.features.shape[1], training, validation)
        fit = settings.fit
        run_epochs('generators', game, fit.epochs, fit.patience, SILENT)
        game.best_networks()
        scores = game.candidates()
        served = min(scores, key=lambda name: scores[name].loss)
        return _Answered(
            *(_answers(game, served, part, parts.scale) for part in (validation, test))
        )


def _answers(game: MultiGan, served: str, part: Part, scale: Scale) -> Answers:
    names = [player.name for player in game.generators]
    wanted = names if served == ENSEMBLE else [served]
    each: dict[str, list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]] = {}
    with torch.no_grad():
        for batch in part.in_order(len(part)):
            for name in wanted:
                forecast = game.forecast(names.index(name), batch)
                log_return = forecast.log_returns[:, 0] * scale.spread[0]
                probabilities = torch.softmax(forecast.logits, dim=1)
                each.setdefault(name, []).append((log_return.numpy(), probabilities.numpy()))
    returns, shares = (
        np.stack([np.concatenate([part[k] for part in each[name]]) for name in wanted])
        for k in (0, 1)
    )
    return Answers(mean_of(returns), mean_of(shares))


def _baselines(settings: TrainingSettings, parts: _Parts) -> Iterator[tuple[str, _Answered]]:
    training, validation, test = (
        _labelled(settings, parts, samples)
        for samples in (parts.training, parts.validation, parts.test)
    )
    for fitted in (
        baselines.linear(training, validation),
        baselines.boosting(training, validation, settings.seed),
    ):
        yield fitted.name, _Answered(fitted.answer(validation.x), fitted.answer(test.x))


def _labelled(settings: TrainingSettings, parts: _Parts, samples: Samples) -> Labelled:
    windows = WindowTensors(parts.store, samples)
    rows = windows.rows(torch.arange(len(samples)), settings.window).numpy()
    log_return = samples.log_return[:, 0]
    return Labelled(rows, log_return, classify(log_return, parts.scale.band))


def _truth(parts: _Parts) -> Truth:
    test = parts.test
    return metrics.make_truth(
        test.t, test.s, parts.store.close[test.end], test.log_return[:, 0], parts.scale.band
    )


def _joined(truths: Sequence[Truth]) -> Truth:
    columns = (np.concatenate([truth[k] for truth in truths]) for k in range(len(Truth._fields)))
    return Truth(*columns)


def _concatenated(answers: Sequence[Answers]) -> Answers:
    return Answers(
        np.concatenate([one.log_return for one in answers]),
        np.concatenate([one.probabilities for one in answers]),
    )
