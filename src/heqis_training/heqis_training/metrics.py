# SPDX-License-Identifier: Apache-2.0
"""How good a generator is, beside floors: persistence, majority class, buy and hold.

Figures are of one part of the data, with 95 % intervals from a bootstrap over event times, because
symbols move together. Costs, lots and limits belong to the backtest and are not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heqis_core.manifest import MetricRow
from heqis_core.strategy import StrategyConfig, decide
from heqis_training.dataset import Samples, classify

NOTE = (
    'Measured on the validation part, which also chose the best epoch and the thresholds: an '
    'optimistic view. Gross returns know no fees, limits, lots or slippage. No figure here is a '
    'statement of profit.'
)
DRAWS = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a generator answers to M windows.

    Attributes:
        log_return: float32 (M,).
        probabilities: float32 (M, 3).
    """

    log_return: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


def thresholds(
    answers: Answers, valid_for_s: float, quantiles: tuple[float, float]
) -> StrategyConfig:
    """Return thresholds at these (low, high) quantiles of the score, so that both sides occur.

    A generator that answers the same to everything gets thresholds on either side of that score:
    no signal.
    """
    score = answers.probabilities[:, 2].astype(np.float64) - answers.probabilities[:, 0]
    sell, buy = (float(value) for value in np.quantile(score, quantiles))
    if buy - sell < 1e-6:
        sell, buy = sell - 1e-3, buy + 1e-3
    return StrategyConfig(min(buy, 1.0), max(sell, -1.0), valid_for_s)


def table(
    name: str,
    answers: Answers,
    samples: Samples,
    band: float,
    majority: int,
    strategy: StrategyConfig,
    seed: int,
) -> tuple[MetricRow, ...]:
    """Return the row of a generator and, below it, the floors on the same windows.

    Args:
        name: of the generator.
        answers: to the windows `samples`.
        samples: windows with labels.
        band: flat band of the classes.
        majority: the most frequent class of the training part.
        strategy: thresholds, for the gross return.
        seed: of the bootstrap.
    """
    truth = classify(samples.log_return, band)
    bootstrap = _Bootstrap(samples.t, seed)
    predicted = np.argmax(answers.probabilities, axis=1)
    mape = _mape(answers.log_return.astype(np.float64), samples.log_return)
    floor_mape = _mape(np.zeros(len(samples)), samples.log_return)
    held = np.ones(len(samples))
    return (
        MetricRow(
            model=name,
            part='validation',
            samples=len(samples),
            mape_pct=_percent(mape),
            mape_interval_pct=bootstrap.interval(mape),
            accuracy_pct=_percent(predicted == truth),
            accuracy_interval_pct=bootstrap.interval(predicted == truth),
            gross_return_pct=_gross_return(_positions(answers, samples, strategy), samples),
        ),
        MetricRow(
            model='persistence',
            part='validation',
            samples=len(samples),
            mape_pct=_percent(floor_mape),
            mape_interval_pct=bootstrap.interval(floor_mape),
        ),
        MetricRow(
            model='majority class',
            part='validation',
            samples=len(samples),
            accuracy_pct=_percent(truth == majority),
            accuracy_interval_pct=bootstrap.interval(truth == majority),
        ),
        MetricRow(
            model='buy and hold',
            part='validation',
            samples=len(samples),
            gross_return_pct=_gross_return(held, samples),
        ),
    )


class _Bootstrap:
    """Resample event times, and give the interval of a mean over windows."""

    def __init__(self, t: npt.NDArray[np.int64], seed: int) -> None:
        times, self._group = np.unique(t, return_inverse=True)
        self._count = np.bincount(self._group).astype(np.float64)
        rng = np.random.default_rng(seed)
        self._draws = rng.integers(0, len(times), (DRAWS, len(times)))

    def interval(self, values: npt.NDArray[np.generic]) -> tuple[float, float]:
        total = np.bincount(self._group, weights=values.astype(np.float64))
        means = total[self._draws].sum(axis=1) / self._count[self._draws].sum(axis=1)
        low, high = np.quantile(100 * means, (0.025, 0.975))
        return round(float(low), 4), round(float(high), 4)


def _percent(values: npt.NDArray[np.generic]) -> float:
    return round(100 * float(values.astype(np.float64).mean()), 4)


def _mape(predicted: Floats, actual: Floats) -> Floats:
    """Return |predicted close - close| / close, both from log returns of the same last close."""
    return np.abs(np.expm1(predicted - actual))


def _positions(answers: Answers, samples: Samples, strategy: StrategyConfig) -> Floats:
    """Return the position after each window: what its signal says, else as before, at first 0."""
    reasons = np.zeros(len(samples), np.uint32)
    verdict = decide(strategy, answers.probabilities, answers.log_return, reasons)
    position = np.zeros(len(samples))
    held: dict[int, float] = {}
    for index, (symbol, target) in enumerate(zip(samples.s, verdict.target_position, strict=True)):
        held[int(symbol)] = held.get(int(symbol), 0.0) if np.isnan(target) else float(target)
        position[index] = held[int(symbol)]
    return position


def _gross_return(position: Floats, samples: Samples) -> float:
    """Return the mean over symbols of the compounded return, in per cent."""
    growth = np.bincount(samples.s, weights=position * samples.log_return)[np.unique(samples.s)]
    return round(100 * float(np.expm1(growth).mean()), 4)
