# SPDX-License-Identifier: Apache-2.0
"""Honest forecasts: Multi-GAN and what it must beat, trained alike and judged on the same windows.

Every network goes through the same trainer: a generator alone learns from labels (ERM), one with a
discriminator is a plain GAN. The test part is read once, after everything has been chosen.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.spec import FeatureSpec, default_spec
from heqis_core.strategy import StrategyConfig
from heqis_training import dataset, metrics, splits
from heqis_training.benchmark_features import benchmark_spec, reference_rows
from heqis_training.contestants import (
    BASELINES,
    MULTI_GAN,
    NOT_SHRUNK,
    Answered,
    Windows,
    answer,
    networks_of,
)
from heqis_training.fold_frames import build_frames
from heqis_training.forecast_table import ForecastRow, ForecastTable, compare
from heqis_training.metrics import Answers, Truth
from heqis_training.recipe import has_volume, scale_of
from heqis_training.settings import TrainingSettings
from heqis_training.splits import Split
from heqis_training.store import FrameStore, StoreKey

Form = Literal['levels', 'relative']
REFERENCE_BAND = 1e-9
"""Flat band of the reference protocol, which has none: only an unchanged close is flat."""


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


class Choice(msgspec.Struct, frozen=True):
    """What training and validation chose for one model; nothing in it comes from the test part.

    Attributes:
        asset, model, seed: whose choice it is; the seed counts from 0.
        fold: of the walk forward, from 0.
        chosen: by name, see `contestants`.
    """

    asset: str
    model: str
    fold: int
    seed: int
    chosen: dict[str, float | str]


class Outcome(NamedTuple):
    """The forecast table, and every choice that was made on the way to it."""

    table: ForecastTable
    choices: tuple[Choice, ...]


class _Fold(NamedTuple):
    """A fold whose frames lie in a folder: small enough to travel to every process."""

    asset: str
    settings: TrainingSettings
    split: Split
    decide_from: int
    folder: Path
    key: StoreKey


class _Ready(NamedTuple):
    """A contest whose frames are made, with what its models will be judged by."""

    asset: str
    folds: tuple[_Fold, ...]
    truth: Truth
    shares: npt.NDArray[np.float64]
    seed: int


class _Job(NamedTuple):
    """One model to train on one fold."""

    fold: _Fold
    number: int
    model: str
    seed: int
    ablation: bool

    @property
    def text(self) -> str:
        return f'{self.fold.asset}, {self.model}, seed {self.seed}'


def plain_contest(
    asset: str,
    table: BarTable,
    settings: TrainingSettings,
    spec: FeatureSpec | None = None,
    folds: int = 1,
    rolling: bool = False,
) -> Contest:
    """Return a contest on `folds` parts of what follows the first `train_fraction` of the bars.

    `spec` None takes the default features; `rolling`: see `splits.walk_forward`, which also raises
    ConfigError.
    """
    parts = splits.walk_forward(len(table), folds, settings.split, rolling)
    spec = spec or default_spec(has_volume(table.head(parts[0].test_from)))
    return Contest(asset, table, spec, settings, parts)


def reference_contest(
    asset: str, table: BarTable, settings: TrainingSettings, form: Form = 'relative'
) -> Contest:
    """Return the contest of the reference protocol on one asset, see `benchmark_features`.

    Its rows, features and flat band are those of the protocol, whatever the settings say; the part
    that validates is at the end of its training rows. Raises DataError for too few bars.
    """
    with _named(asset):
        rows = reference_rows(len(table))
    known = math.ceil((rows.test_from - rows.first) * settings.split.validation_fraction)
    return Contest(
        asset,
        dataset.head(table, rows.stop),
        benchmark_spec(form),
        msgspec.structs.replace(settings, flat_band=REFERENCE_BAND),
        (Split(rows.test_from - known, rows.test_from, rows.stop),),
        rows.decide_from,
    )


def own_bars(table: BarTable) -> Iterator[tuple[str, BarTable]]:
    """Yield each symbol with the event times that it has bars of, as if it were alone."""
    for symbol in table.symbols:
        alone = table.select([symbol])
        there = alone.status[:, 0] != BarStatus.NO_BAR
        yield (
            symbol,
            BarTable(
                alone.symbols,
                alone.event_time_ns[there],
                alone.values[there],
                alone.status[there],
                alone.channels,
                None if alone.extra is None else alone.extra[there],
            ),
        )


def compete(
    contests: Sequence[Contest],
    seeds: int,
    jobs: int = 1,
    ablation: bool = False,
    told: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Outcome:
    """Train every model of every contest with `seeds` seeds and judge them on its test part.

    Frames are made once, in a temporary folder, and mapped into memory by every process. An
    encoder is trained once for each fold, with the first seed, so that all models see its factors.

    Args:
        contests: assets, each of which gets rows of its own.
        seeds: trainings of each network; linear models and boosting have one.
        jobs: processes that train at once; the table does not depend on it.
        ablation: also judge each network without shrinkage, from the same training.
        told: called with the model that is done, how many are, and of how many.

    Raises DataError with the asset for bars that cannot be learned from, ConfigError for numbers
    that cannot be.
    """
    for name, number in (('seeds', seeds), ('jobs', jobs), ('assets', len(contests))):
        if number < 1:
            raise ConfigError(f'{name}: {number}; expected at least 1')
    if ablation and not all(contest.settings.shrink for contest in contests):
        raise ConfigError('ablation: the settings have shrink: false; set it to true to compare')
    with tempfile.TemporaryDirectory(prefix='heqis-', ignore_cleanup_errors=True) as folder:
        ready = [
            _prepare(contest, Path(folder) / str(number))
            for number, contest in enumerate(contests)
        ]
        work = [job for one in ready for job in _jobs(one, seeds, ablation)]
        answered: dict[_Job, list[Answered]] = {}
        for job, found in _done(work, jobs):
            answered[job] = found
            told(job.text, len(answered), len(work))
    in_order = [(job, answered[job]) for job in work]
    rows = [row for one in ready for row in _rows(one, in_order)]
    table = ForecastTable(rows=tuple(rows), reference=MULTI_GAN, marked_on='mape_pct')
    choices = tuple(
        Choice(job.fold.asset, one.model, job.number, job.seed, one.chosen)
        for job, found in in_order
        for one in found
    )
    return Outcome(table, choices)


def _prepare(contest: Contest, folder: Path) -> _Ready:
    """Make the frames of every fold, and refuse a contest that cannot be trained or judged."""
    settings, folds, truths, shares = contest.settings, [], [], []
    with _named(contest.asset):
        for number, split in enumerate(contest.folds):
            place = folder / str(number)
            key = build_frames(contest.table, contest.spec, settings, split, place)
            fold = _Fold(contest.asset, settings, split, contest.decide_from, place, key)
            windows = _open(fold)
            _require(contest, windows)
            band = windows.scale.band
            test = windows.test
            truths.append(
                metrics.make_truth(
                    test.t, test.s, windows.store.close[test.end], test.log_return[:, 0], band
                )
            )
            classes = dataset.classify(windows.training.log_return[:, 0], band)
            shares.append(np.bincount(classes, minlength=3) / len(classes))
            folds.append(fold)
    return _Ready(contest.asset, tuple(folds), _joined(truths), shares[0], settings.seed)


def _open(fold: _Fold) -> Windows:
    """Find the windows of a fold in its frames."""
    settings = fold.settings
    store = FrameStore.open(fold.folder, fold.key)
    longest = max(settings.window, settings.past)
    samples = store.samples(longest, 2 * longest)
    training, validation, test = splits.parts(samples, fold.split, settings.split.embargo)
    test = test.where(test.t >= fold.decide_from)
    return Windows(store, training, validation, test, scale_of(settings, training))


def _require(contest: Contest, windows: Windows) -> None:
    settings = contest.settings
    longest = max(settings.window, settings.past)
    encoder = settings.encoder.window if settings.encoder.kind != 'none' else 1
    warm_up = contest.spec.warmup_bars + encoder + longest - 2
    dataset.require_windows(
        contest.table.symbols,
        (contest.table.status == BarStatus.VALID).sum(axis=0),
        len(windows.training),
        len(windows.validation),
        dataset.bars_needed(warm_up, settings.split, settings.horizons[-1]),
    )


def _jobs(ready: _Ready, seeds: int, ablation: bool) -> Iterator[_Job]:
    """Yield every training of a contest; fitted baselines have no seed."""
    for number, fold in enumerate(ready.folds):
        for seed in range(seeds):
            models = (*networks_of(fold.settings), *(() if seed else BASELINES))
            for model in models:
                yield _Job(fold, number, model, seed, ablation)


def _done(work: Sequence[_Job], jobs: int) -> Iterator[tuple[_Job, list[Answered]]]:
    """Yield every job with its answers, as they are done."""
    if jobs == 1:
        for job in work:
            yield job, _run(job)
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(min(jobs, len(work)), get_context('spawn'))
    try:
        pending = {pool.submit(_run, job): job for job in work}
        for done in as_completed(pending):
            yield pending[done], done.result()
    except BaseException as error:
        # what has been handed to a process would otherwise be trained to its end
        for process in set(active_children()) - others:
            process.terminate()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise DataError(
            'a training process ended by itself, mostly for want of memory; use fewer --jobs'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _run(job: _Job) -> list[Answered]:
    """Train one model and let it answer the test windows."""
    with _named(job.text):
        settings, seed = job.fold.settings, job.fold.settings.seed + job.seed
        return answer(job.model, settings, seed, _open(job.fold), job.ablation)


def _rows(
    ready: _Ready, answered: Sequence[tuple[_Job, list[Answered]]]
) -> tuple[ForecastRow, ...]:
    """Judge the answers of all seeds on the test windows of all folds."""
    found: dict[str, dict[int, list[Answered]]] = {}
    for job, several in answered:
        if job.fold.asset == ready.asset:
            for one in several:
                found.setdefault(one.model, {}).setdefault(job.seed, []).append(one)
    judged = []
    for model in sorted(found, key=lambda name: name.endswith(NOT_SHRUNK)):
        each = list(found[model].values())
        # thresholds belong to one fold: over several there is no single strategy to follow
        strategies: list[StrategyConfig] = (
            [folds[0].strategy for folds in each] if len(ready.folds) == 1 else []
        )
        answers = [_concatenated([fold.test for fold in folds]) for folds in each]
        judged.append(metrics.judge(model, answers, ready.truth, strategies))
    return compare(ready.asset, judged, ready.truth, ready.shares, MULTI_GAN, ready.seed)


def _joined(truths: Sequence[Truth]) -> Truth:
    columns = (np.concatenate([truth[k] for truth in truths]) for k in range(len(Truth._fields)))
    return Truth(*columns)


def _concatenated(answers: Sequence[Answers]) -> Answers:
    return Answers(
        np.concatenate([one.log_return for one in answers]),
        np.concatenate([one.probabilities for one in answers]),
    )


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Let an error about data say whose they are."""
    try:
        yield
    except DataError as error:
        raise DataError(f'{what}: {error}') from error
