# SPDX-License-Identifier: Apache-2.0
"""How sure a mean over windows is: resample event times, in blocks, all their symbols together.

Symbols move together, so an event time is drawn with all its windows. Errors of neighbouring times
resemble one another (calm and wild spells), so times are drawn in runs: the stationary bootstrap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError

DRAWS = 1000
LEVEL = 0.95
BLOCK = 20
"""Event times of a mean block: a month of trading days. The automatic choice of Politis & White
(2004) for the absolute errors of persistence on four daily test parts lies between 2 and 55."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Resampling(NamedTuple):
    """Draws of T event times, each a row of blocks of consecutive times (round the end).

    Attributes:
        group: int64 (M,), the event time of each window as 0 … T-1, in order.
        start: int64 (draws, K), first time of each block.
        length: int64 (draws, K), times of each block; 0 after the block that makes T times full.
        block: mean length of a block.
    """

    group: Integers
    start: Integers
    length: Integers
    block: float


class Difference(NamedTuple):
    """The mean of a - b over windows: its interval, and the p-value of no difference at all."""

    value: float
    low: float
    high: float
    p_value: float


def block_length(n_times: int) -> float:
    """Return the mean block for T event times: `BLOCK`, and no more than the root of T."""
    return float(min(BLOCK, max(1, round(math.sqrt(n_times)))))


def resample_times(
    t: Integers, seed: int, draws: int = DRAWS, block: float | None = None
) -> Resampling:
    """Draw the event times of windows with replacement, after Politis & Romano (1994).

    Blocks start anywhere and have geometric lengths, so every draw has T times.

    Args:
        t: int64 (M,), event time (or its row) of each window.
        seed: of the draws.
        draws: their number.
        block: mean length of a block in event times; None takes `block_length`, 1 draws single
            times.

    Raises DataError without windows.
    """
    if not len(t):
        raise DataError('no windows to resample; the part that is judged holds none')
    times, group = np.unique(t, return_inverse=True)
    count = len(times)
    mean = block_length(count) if block is None else float(block)
    rng = np.random.default_rng(seed)
    expected = count / mean
    columns = math.ceil(expected + 5 * math.sqrt(expected)) + 1
    length = rng.geometric(1 / mean, (draws, columns))
    while (short := length.sum(axis=1).min()) < count:
        more = math.ceil((count - short) / mean) + 1
        length = np.hstack((length, rng.geometric(1 / mean, (draws, more))))
    until = np.minimum(np.cumsum(length, axis=1), count)
    start = rng.integers(0, count, length.shape)
    return Resampling(group, start, np.diff(until, axis=1, prepend=0), mean)


def over_seeds(values: npt.ArrayLike) -> Floats:
    """Return (M,) means over K seeds of (K, M) or (M,) values; NaN where no seed has a number."""
    stacked = np.atleast_2d(np.asarray(values, np.float64))
    known = np.isfinite(stacked)
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0).sum(axis=0)
    return _ratio(total, count)


def resampled_totals(resampling: Resampling, values: Floats) -> Floats:
    """Return float64 (draws,): the sum of `values` (M,) over the windows of each draw."""
    times = int(resampling.group.max()) + 1
    per_time = np.bincount(resampling.group, weights=values, minlength=times)
    # A block is a difference of two running sums; twice round, because blocks go round the end.
    running = np.concatenate(([0.0], np.cumsum(np.tile(per_time, 2))))
    stop = resampling.start + resampling.length
    totals: Floats = (running[stop] - running[resampling.start]).sum(axis=1)
    return totals


def resampled_means(resampling: Resampling, values: npt.ArrayLike) -> Floats:
    """Return float64 (draws,): the mean over the windows of each draw.

    Args:
        resampling: of the same M windows.
        values: (M,), or (K, M) of K seeds, which are averaged first and so stay together. NaN
            marks a window for which there is no value: it counts in no mean.

    A draw without any value is NaN.
    """
    mean = over_seeds(values)
    known = np.isfinite(mean)
    count = resampled_totals(resampling, known.astype(np.float64))
    total = resampled_totals(resampling, np.where(known, mean, 0))
    return _ratio(total, count)


def interval(draws: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval of a figure's draws; None if no draw has a number."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def paired_difference(
    resampling: Resampling, a: npt.ArrayLike, b: npt.ArrayLike, level: float = LEVEL
) -> Difference:
    """Compare two models on the same windows: the mean of a - b, each averaged over its seeds.

    Args:
        resampling: of the M windows.
        a: loss of each window, (M,) or (seeds, M).
        b: the same of the other model; the number of seeds may differ.
        level: of the interval.

    The interval is symmetric about the difference and ends at the `level` quantile of
    |draw - difference|; the p-value is two-sided from the same distances, so that it is below
    1 - level just where the interval leaves out 0. Raises DataError for different windows.
    """
    first, second = over_seeds(a), over_seeds(b)
    if len(first) != len(second) or len(first) != len(resampling.group):
        raise DataError(
            f'{len(first)} and {len(second)} losses for {len(resampling.group)} windows; '
            'a paired comparison needs the answers of both models to the same windows'
        )
    apart = first - second
    value = float(apart[np.isfinite(apart)].mean()) if np.isfinite(apart).any() else math.nan
    if math.isnan(value):
        raise DataError('no window for which both models have this figure; nothing to compare')
    draws = resampled_means(resampling, apart)
    distance = np.abs(draws[np.isfinite(draws)] - value)
    half = float(np.quantile(distance, level))
    p_value = (1 + int((distance >= abs(value)).sum())) / (len(distance) + 1)
    return Difference(value, value - half, value + half, p_value)


def _ratio(total: Floats, count: npt.NDArray[np.generic]) -> Floats:
    """Return total / count, NaN where nothing was counted."""
    found: Floats = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)  # type: ignore[operator]
    return found
