# SPDX-License-Identifier: Apache-2.0
"""How good a forecast is, window by window, beside floors: persistence, majority class, holding.

Figures come from a loss of each window, so that they have bootstrap intervals and two models can
be compared in pairs. Costs, lots and limits belong to the backtest and are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError
from heqis_core.manifest import MetricRow
from heqis_core.strategy import StrategyConfig, decide
from heqis_training.bootstrap import (
    Resampling,
    interval,
    resample_times,
    resampled_means,
    resampled_totals,
)
from heqis_training.dataset import DOWN, UP, classify

NOTE = (
    'Measured on the validation part, which also chose epoch, shrinkage and thresholds: an '
    'optimistic view. Prices count as given: without adjustment a dividend is a fall. Gross '
    'returns know no fees, limits, lots or slippage. No figure here is a statement of profit.'
)

PERSISTENCE, MAJORITY, HOLDING = 'persistence', 'majority class', 'buy and hold'
FLOORS = (PERSISTENCE, MAJORITY, HOLDING)
HINDSIGHT = 'best class in hindsight'
"""The most frequent class of the judged part itself: no model can know it, but accuracies that are
published as those of a majority class are often this one."""

SMALLEST_PROBABILITY = 1e-7
"""A log loss counts no probability as smaller: float32 softmax does give zeros."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Figure(NamedTuple):
    """One figure: its name in files, heading in tables, decimals, and which way is better."""

    name: str
    heading: str
    digits: int
    lower_is_better: bool


FIGURES = (
    Figure('mse_price', 'MSE price²', 2, True),
    Figure('mae_price', 'MAE price', 3, True),
    Figure('mape_pct', 'MAPE %', 3, True),
    Figure('mse_return_pct2', 'MSE return %²', 4, True),
    Figure('skill', 'skill', 3, False),
    Figure('accuracy_pct', 'accuracy %', 2, False),
    Figure('mcc', 'MCC', 3, False),
    Figure('brier', 'Brier', 4, True),
    Figure('log_loss', 'log loss', 4, True),
    Figure('hit_rate_pct', 'hit rate %', 2, False),
    Figure('gross_return_pct', 'gross return %', 1, False),
)
"""Every figure of a forecast of the next close.

`mse_price`, `mae_price`: of the close, in (squared) units of price, of one symbol only, because
prices of different scale cannot be added. `mape_pct`: |forecast - close| / close.
`mse_return_pct2`: of the log return in per cent. `skill`: 1 - MSE / MSE of persistence, both of
log returns.
`accuracy_pct`, `mcc` (Gorodkin's R_K), `brier` (summed over classes, 0 … 2), `log_loss` (natural
logarithm): of the classes. `hit_rate_pct`: forecasts of the right sign, where neither the forecast
nor the return is 0. `gross_return_pct`: mean over symbols of the compounded return of the
strategy's positions, without any cost.
"""


@dataclass(frozen=True)
class Answers:
    """What a generator answers to M windows.

    Attributes:
        log_return: float32 (M,).
        probabilities: float32 (M, 3).
    """

    log_return: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


class Truth(NamedTuple):
    """What came after M windows.

    Attributes:
        t: int64 (M,), row of the window's last bar, the decision's bar.
        s: int64 (M,), symbol.
        close: float64 (M,), of that bar; None where it is not known: then no figure is in prices.
        log_return: float64 (M,), to the next close.
        classes: int64 (M,), of that return.
    """

    t: Integers
    s: Integers
    close: Floats | None
    log_return: Floats
    classes: Integers


@dataclass(frozen=True)
class Judged:
    """The answers of one model, of K seeds, judged window by window.

    Attributes:
        name: of the model.
        seeds: K.
        losses: float64 (K, M) by the name of the figure whose mean it is; figures that the model
            does not have are not in it.
        predicted: int64 (K, M), the class of each window; None for a model without classes.
        gross_return_pct: float64 (K,); None for a model without positions.
    """

    name: str
    seeds: int
    losses: dict[str, Floats]
    predicted: Integers | None = None
    gross_return_pct: Floats | None = None


def make_truth(
    t: Integers, s: Integers, close: Floats | None, log_return: Floats, band: float
) -> Truth:
    """Return the truth of M windows, with classes of this flat band.

    Raises DataError for windows without a label or without a positive close, and for none at all.
    """
    if not len(t):
        raise DataError('no windows to judge; the part is shorter than a window and its label')
    priced = np.ones(len(t), bool) if close is None else np.isfinite(close) & (close > 0)
    for what, good in (
        ('a finite log return', np.isfinite(log_return)),
        ('a positive close', priced),
    ):
        if not good.all():
            first = int(np.argmin(good))
            raise DataError(
                f'{int((~good).sum())} of {len(good)} windows lack {what}, first the one that '
                f'ends in row {t[first]} of symbol {s[first]}; judge labelled windows only'
            )
    return Truth(t, s, close, log_return, classify(log_return, band))


def judge(
    name: str,
    answers: Sequence[Answers],
    truth: Truth,
    strategies: Sequence[StrategyConfig] = (),
) -> Judged:
    """Judge a model.

    Args:
        name: of the model.
        answers: of each seed, to the windows of `truth`.
        truth: what came.
        strategies: thresholds of each seed, from a part that is not judged here; without them
            there is no gross return.

    Raises DataError, with the name and the count, for answers that are not finite or do not fit.
    """
    if not answers or (strategies and len(strategies) != len(answers)):
        raise DataError(
            f'{name}: {len(answers)} sets of answers and {len(strategies)} of thresholds; '
            'expected one of each for every seed'
        )
    for answer in answers:
        _check(name, answer, truth)
    each = [
        return_losses(a.log_return, truth) | class_losses(a.probabilities, truth) for a in answers
    ]
    gross = [
        _gross_return(_positions(answer, truth, strategy), truth)
        for answer, strategy in zip(answers, strategies, strict=False)
    ]
    return Judged(
        name,
        len(answers),
        {key: np.stack([losses[key] for losses in each]) for key in each[0]},
        np.stack([np.argmax(a.probabilities, axis=1) for a in answers]),
        np.array(gross) if gross else None,
    )


def floors(truth: Truth, class_shares: npt.ArrayLike) -> tuple[Judged, ...]:
    """Return the floors that stand in every table, and the best class in hindsight.

    Persistence forecasts no change. The majority class answers the shares of the classes in the
    training part, always. Buy and hold owns every symbol from its first window to its last label.

    Args:
        truth: the judged windows.
        class_shares: (3,), shares of down, flat and up in the training part.
    """
    count = len(truth.t)
    shares = np.asarray(class_shares, np.float64)
    best = int(np.bincount(truth.classes, minlength=3).argmax())
    return (
        _one(PERSISTENCE, return_losses(np.zeros(count), truth)),
        _one(
            MAJORITY,
            class_losses(np.tile(shares, (count, 1)), truth),
            np.full((1, count), int(shares.argmax())),
        ),
        Judged(HOLDING, 1, {}, None, np.array([_gross_return(np.ones(count), truth)])),
        _one(
            HINDSIGHT,
            {'accuracy_pct': 100.0 * (truth.classes == best)},
            np.full((1, count), best),
        ),
    )


def return_losses(log_return: npt.ArrayLike, truth: Truth) -> dict[str, Floats]:
    """Return the loss (M,) of each window for every figure of a forecast log return (M,)."""
    forecast = np.asarray(log_return, np.float64)
    error = forecast - truth.log_return
    told = (forecast != 0) & (truth.log_return != 0)
    losses = {
        'mape_pct': 100 * np.abs(np.expm1(error)),
        'mse_return_pct2': (100 * error) ** 2,
        'hit_rate_pct': np.where(
            told, 100.0 * (np.sign(forecast) == np.sign(truth.log_return)), np.nan
        ),
    }
    if truth.close is not None and (truth.s == truth.s[0]).all():
        apart = truth.close * (np.exp(forecast) - np.exp(truth.log_return))
        losses |= {'mse_price': apart**2, 'mae_price': np.abs(apart)}
    return losses


def class_losses(probabilities: npt.ArrayLike, truth: Truth) -> dict[str, Floats]:
    """Return the loss (M,) of each window for every figure of class probabilities (M, 3)."""
    given = np.asarray(probabilities, np.float64)
    came = np.eye(given.shape[1])[truth.classes]
    likely = np.take_along_axis(given, truth.classes[:, None], axis=1)[:, 0]
    return {
        'accuracy_pct': 100.0 * (np.argmax(given, axis=1) == truth.classes),
        'brier': ((given - came) ** 2).sum(axis=1),
        'log_loss': -np.log(np.maximum(likely, SMALLEST_PROBABILITY)),
    }


def matthews(confusion: Floats) -> Floats:
    """Return Matthews' correlation of confusion matrices (…, C, C), as R_K of Gorodkin (2004).

    It is 0 where the prediction, or the truth, is one class only.
    """
    total = confusion.sum(axis=(-2, -1))
    right = np.trace(confusion, axis1=-2, axis2=-1)
    true, said = confusion.sum(axis=-1), confusion.sum(axis=-2)
    above = right * total - (true * said).sum(axis=-1)
    below = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (said**2).sum(axis=-1))
    scale = np.sqrt(np.maximum(below, 0))
    known: Floats = np.divide(above, scale, out=np.zeros_like(above), where=scale > 0)
    return known


def per_seed(judged: Judged, truth: Truth) -> dict[str, Floats]:
    """Return the figures of each seed, float64 (K,), by the names of `FIGURES` and in that order.

    One that does not apply is left out.
    """
    found: dict[str, Floats] = {
        name: np.nanmean(values, axis=1)
        for name, values in judged.losses.items()
        if np.isfinite(values).any(axis=1).all()
    }
    floor = float(_persistence_mse(truth).mean())
    if 'mse_return_pct2' in found and floor > 0:
        found['skill'] = 1 - found['mse_return_pct2'] / floor
    if judged.predicted is not None:
        cells = (_cells(seed, truth).sum(axis=1) for seed in judged.predicted)
        found['mcc'] = np.array([float(matthews(cell.reshape(3, 3))) for cell in cells])
    if judged.gross_return_pct is not None:
        found['gross_return_pct'] = judged.gross_return_pct
    return {figure.name: found[figure.name] for figure in FIGURES if figure.name in found}


def summarise(
    judged: Judged, truth: Truth, resampling: Resampling
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the figures of a model, averaged over its seeds, and their bootstrap intervals.

    Both by the names of `FIGURES`, in that order, each left out where it does not apply. A gross
    return is one path and has no interval.
    """
    figures = {name: float(values.mean()) for name, values in per_seed(judged, truth).items()}
    draws = {name: resampled_means(resampling, x) for name, x in judged.losses.items()}
    if 'skill' in figures:
        below = resampled_means(resampling, _persistence_mse(truth))
        # A draw of nothing but bars that stood still has no skill.
        draws['skill'] = 1 - draws['mse_return_pct2'] / np.where(below > 0, below, np.nan)
    if judged.predicted is not None:
        draws['mcc'] = np.mean(
            [_resampled_matthews(seed, truth, resampling) for seed in judged.predicted], axis=0
        )
    around = {name: interval(draws[name]) for name in figures if name in draws}
    return figures, {name: found for name, found in around.items() if found is not None}


def thresholds(
    answers: Answers, valid_for_s: float, quantiles: tuple[float, float]
) -> StrategyConfig:
    """Return thresholds at these (low, high) quantiles of the score, so that both sides occur.

    A generator that answers the same to everything gets thresholds on either side of that score:
    no signal.
    """
    score = answers.probabilities[:, UP].astype(np.float64) - answers.probabilities[:, DOWN]
    sell, buy = (float(value) for value in np.quantile(score, quantiles))
    if buy - sell < 1e-6:
        sell, buy = sell - 1e-3, buy + 1e-3
    return StrategyConfig(min(buy, 1.0), max(sell, -1.0), valid_for_s)


def validation_table(
    answers: Mapping[str, Answers],
    served: str,
    truth: Truth,
    class_shares: npt.ArrayLike,
    strategy: StrategyConfig,
    seed: int,
) -> tuple[MetricRow, ...]:
    """Return the validation row of each generator and, below, the floors on the same windows.

    Args:
        answers: of each generator by name, to the windows of `truth`.
        served: the one that the thresholds are of; the others have no gross return.
        truth: what came after the windows of the validation part.
        class_shares: (3,), shares of down, flat and up in the training part.
        strategy: thresholds.
        seed: of the bootstrap.
    """
    resampling = resample_times(truth.t, seed)
    models = [
        judge(name, [one], truth, [strategy] if name == served else ())
        for name, one in answers.items()
    ]
    below = floors(truth, class_shares)[: len(FLOORS)]
    return tuple(_metric_row(row, truth, resampling) for row in (*models, *below))


def _metric_row(judged: Judged, truth: Truth, resampling: Resampling) -> MetricRow:
    figures, intervals = summarise(judged, truth, resampling)
    return MetricRow(
        model=judged.name,
        part='validation',
        samples=len(truth.t),
        figures={name: round(value, 6) for name, value in figures.items()},
        intervals={name: (round(a, 6), round(b, 6)) for name, (a, b) in intervals.items()},
    )


def _one(name: str, losses: dict[str, Floats], predicted: Integers | None = None) -> Judged:
    return Judged(name, 1, {key: values[None] for key, values in losses.items()}, predicted)


def _persistence_mse(truth: Truth) -> Floats:
    return (100 * truth.log_return) ** 2


def _cells(predicted: Integers, truth: Truth) -> Floats:
    """Return float64 (9, M): 1 in the cell of the confusion matrix that a window falls into."""
    return np.eye(9)[:, 3 * truth.classes + predicted]


def _resampled_matthews(predicted: Integers, truth: Truth, resampling: Resampling) -> Floats:
    counts = [resampled_totals(resampling, cell) for cell in _cells(predicted, truth)]
    return matthews(np.stack(counts, axis=1).reshape(-1, 3, 3))


def _check(name: str, answer: Answers, truth: Truth) -> None:
    count = len(truth.t)
    shapes = answer.log_return.shape, answer.probabilities.shape
    if shapes != ((count,), (count, 3)):
        raise DataError(
            f'{name}: answers of shapes {shapes[0]} and {shapes[1]}, expected ({count},) and '
            f'({count}, 3) for {count} windows'
        )
    finite = np.isfinite(answer.log_return) & np.isfinite(answer.probabilities).all(axis=1)
    if not finite.all():
        raise DataError(
            f'{name}: {int((~finite).sum())} of {count} answers are not finite; '
            'a model that diverged has no figures'
        )
    total = answer.probabilities.sum(axis=1, dtype=np.float64)
    if answer.probabilities.min() < 0 or np.abs(total - 1).max() > 1e-3:
        raise DataError(
            f'{name}: probabilities sum to {total.min():.4g} … {total.max():.4g}, smallest '
            f'{answer.probabilities.min():.4g}; expected none below 0 and sums of 1: '
            'are these logits?'
        )


def _positions(answers: Answers, truth: Truth, strategy: StrategyConfig) -> Floats:
    """Return the position after each window: what its signal says, else as before, at first 0."""
    reasons = np.zeros(len(truth.t), np.uint32)
    verdict = decide(
        strategy,
        answers.probabilities.astype(np.float32, copy=False),
        answers.log_return.astype(np.float32, copy=False),
        reasons,
    )
    order = np.lexsort((truth.t, truth.s))
    target, symbol = verdict.target_position[order].astype(np.float64), truth.s[order]
    index = np.arange(len(order))
    first = np.r_[True, symbol[1:] != symbol[:-1]]
    target[first & np.isnan(target)] = 0
    last = np.maximum.accumulate(np.where(np.isnan(target), 0, index))
    position = np.empty(len(order))
    position[order] = target[last]
    return position


def _gross_return(position: Floats, truth: Truth) -> float:
    """Return the mean over symbols of the compounded return, in per cent."""
    growth = np.bincount(truth.s, weights=position * truth.log_return)[np.unique(truth.s)]
    return 100 * float(np.expm1(growth).mean())
