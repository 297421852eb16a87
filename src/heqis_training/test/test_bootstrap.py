# SPDX-License-Identifier: Apache-2.0
"""Intervals by resampling event times: what must hold for any data, and how often they cover."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_training.bootstrap import (
    block_length,
    interval,
    over_seeds,
    paired_difference,
    resample_times,
    resampled_means,
    resampled_totals,
)

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
seeds = st.integers(0, 10**6)


def windows(seed: int, n_times: int, n_symbols: int) -> tuple[Integers, Floats]:
    """Return times, of which some lack some symbols, and a loss of each window."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.choice(np.repeat(10 * np.arange(n_times), n_symbols), 3 * n_times))
    return t, rng.normal(size=len(t))


def persistent(rng: np.random.Generator, count: int, rho: float) -> Floats:
    """Return an autoregressive series of order 1 with mean 0."""
    noise = rng.normal(size=count)
    values = np.empty(count)
    values[0] = noise[0] / np.sqrt(1 - rho**2)
    for k in range(1, count):
        values[k] = rho * values[k - 1] + noise[k]
    return values


@given(seed=seeds, n_times=st.integers(1, 90), block=st.floats(1, 30))
def test_every_draw_has_as_many_times_as_there_are(seed: int, n_times: int, block: float) -> None:
    drawn = resample_times(np.arange(n_times), seed, draws=30, block=block)
    assert (drawn.length.sum(axis=1) == n_times).all()
    assert drawn.length.min() >= 0
    assert ((drawn.start >= 0) & (drawn.start < n_times)).all()
    ones = resampled_totals(drawn, np.ones(n_times))
    assert (ones == n_times).all()


@given(seed=seeds, block=st.floats(1, 12))
def test_totals_are_those_of_the_blocks_written_out(seed: int, block: float) -> None:
    t, values = windows(seed, 15, 3)
    drawn = resample_times(t, seed, draws=5, block=block)
    times = np.unique(t)
    for total, starts, lengths in zip(
        resampled_totals(drawn, values), drawn.start, drawn.length, strict=True
    ):
        chosen = np.concatenate(
            [(s + np.arange(n)) % len(times) for s, n in zip(starts, lengths, strict=True)]
        )
        assert total == pytest.approx(sum(values[t == times[k]].sum() for k in chosen), abs=1e-9)


@given(seed=seeds, block=st.integers(1, 30))
def test_blocks_are_as_long_as_stated_on_average(seed: int, block: int) -> None:
    drawn = resample_times(np.arange(3000), seed, draws=20, block=block)
    inner = [row[: np.count_nonzero(row) - 1] for row in drawn.length]  # the last one is cut
    assert np.concatenate(inner).mean() == pytest.approx(block, rel=0.2)


def test_the_stated_block_is_a_month_and_no_more_than_the_root_of_the_times() -> None:
    assert [block_length(n) for n in (1, 2, 100, 400, 1450, 10**6)] == [1, 1, 10, 20, 20, 20]
    assert resample_times(np.arange(100), 0).block == 10


@given(seed=seeds)
def test_the_order_of_symbols_within_a_time_changes_nothing(seed: int) -> None:
    t, values = windows(seed, 20, 4)
    shuffled = np.random.default_rng(seed).permutation(len(t))
    order = shuffled[np.argsort(t[shuffled], kind='stable')]
    one = resampled_means(resample_times(t, 3, draws=50), values)
    other = resampled_means(resample_times(t[order], 3, draws=50), values[order])
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@given(seed=seeds, n_seeds=st.integers(1, 4))
def test_a_model_differs_from_itself_by_exactly_nothing(seed: int, n_seeds: int) -> None:
    t, values = windows(seed, 20, 4)
    stacked = np.stack([values + k for k in range(n_seeds)])
    assert paired_difference(resample_times(t, seed, draws=50), stacked, stacked) == (0, 0, 0, 1)


@given(seed=seeds)
def test_two_models_compared_the_other_way_round_change_sign_alone(seed: int) -> None:
    t, a = windows(seed, 30, 3)
    _, b = windows(seed + 1, 30, 3)
    drawn = resample_times(t, seed, draws=99)
    there, back = paired_difference(drawn, a, b), paired_difference(drawn, b, a)
    assert back == pytest.approx((-there.value, -there.high, -there.low, there.p_value))
    assert there.low <= there.value <= there.high
    assert there.value == pytest.approx((a - b).mean())


@given(seed=seeds, shift=st.floats(-1, 1))
def test_the_p_value_and_the_interval_say_the_same(seed: int, shift: float) -> None:
    t, values = windows(seed, 60, 3)
    found = paired_difference(resample_times(t, seed, draws=199), values + shift, 0 * values)
    if abs(found.p_value - 0.05) > 0.01:  # the quantile lies between two draws
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_a_small_steady_advantage_shows_in_pairs_though_single_intervals_overlap() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(500)
    losses = rng.exponential(1.0, 500)
    better = losses - 0.02 + rng.normal(0, 0.05, 500)
    drawn = resample_times(t, 1)
    single = [interval(resampled_means(drawn, values)) for values in (better, losses)]
    assert single[0] is not None
    assert single[1] is not None
    assert single[0][1] > single[1][0]
    found = paired_difference(drawn, better, losses)
    assert found.high < 0
    assert found.p_value < 0.01


def test_intervals_cover_the_mean_of_persistent_losses_where_single_times_do_not() -> None:
    rng = np.random.default_rng(4)
    covered = {1.0: 0, 20.0: 0}
    for trial in range(200):
        values = persistent(rng, 600, 0.7)
        for block in covered:
            drawn = resample_times(np.arange(600), trial, draws=200, block=block)
            found = interval(resampled_means(drawn, values))
            assert found is not None
            covered[block] += found[0] <= 0 <= found[1]
    assert 170 <= covered[20.0] <= 199
    assert covered[1.0] < 150


def test_a_test_of_equal_models_is_rarely_decided() -> None:
    rng = np.random.default_rng(5)
    t = np.repeat(np.arange(300), 3)
    decided = 0
    for trial in range(200):
        apart = np.repeat(persistent(rng, 300, 0.3), 3) + rng.normal(size=900)
        found = paired_difference(resample_times(t, trial, draws=200), apart, 0 * apart)
        decided += found.p_value < 0.05
    assert 1 <= decided <= 30  # 10 of 200 if it were exact


@given(seed=seeds)
def test_windows_without_a_value_count_in_no_mean(seed: int) -> None:
    t, values = windows(seed, 30, 3)
    known = np.random.default_rng(seed).random(len(t)) < 0.7
    blank = np.where(known, values, np.nan)
    drawn = resample_times(t, seed, draws=40)
    np.testing.assert_allclose(
        resampled_means(drawn, blank),
        resampled_totals(drawn, np.where(known, values, 0))
        / resampled_totals(drawn, known.astype(float)),
    )
    np.testing.assert_array_equal(over_seeds([blank, blank]), blank)
    assert interval(resampled_means(drawn, np.full(len(t), np.nan))) is None


def test_what_cannot_be_compared_is_refused() -> None:
    drawn = resample_times(np.arange(10), 0, draws=10)
    with pytest.raises(DataError, match='10 and 9 losses for 10 windows'):
        paired_difference(drawn, np.ones(10), np.ones(9))
    with pytest.raises(DataError, match='no window for which both'):
        paired_difference(drawn, np.ones(10), np.full(10, np.nan))
    with pytest.raises(DataError, match='no windows to resample'):
        resample_times(np.arange(0), 0)
