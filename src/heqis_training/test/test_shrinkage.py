# SPDX-License-Identifier: Apache-2.0
"""Shrinkage: belief in a forecast that holds, none in noise, symbols of a time count once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_training.shrinkage import shrinkage


def column(values: np.ndarray) -> np.ndarray:
    return values[:, None]


def test_a_forecast_that_comes_true_is_kept() -> None:
    x = np.random.default_rng(0).normal(size=500)
    assert shrinkage(column(x), column(x), np.arange(500)) == [1.0]


def test_one_that_promises_too_much_is_scaled_to_what_came() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20000)
    y = 0.3 * x + rng.normal(size=20000)
    (factor,) = shrinkage(column(x), column(y), np.arange(20000))
    assert factor == pytest.approx(0.3, abs=0.03)


def test_noise_is_mostly_set_to_persistence_and_never_turned_round() -> None:
    rng = np.random.default_rng(2)
    found = [
        shrinkage(column(rng.normal(size=300)), column(rng.normal(size=300)), np.arange(300))[0]
        for _ in range(200)
    ]
    assert np.mean([factor == 0 for factor in found]) > 0.93
    assert min(found) == 0
    assert max(found) < 0.2


def test_the_opposite_of_what_came_is_persistence_and_so_is_no_forecast() -> None:
    x = np.random.default_rng(3).normal(size=50)
    assert shrinkage(column(x), column(-x), np.arange(50)) == [0.0]
    assert shrinkage(column(0 * x), column(x), np.arange(50)) == [0.0]


def test_copies_of_a_symbol_make_no_forecast_more_certain() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=400)
    y = 0.3 * x + rng.normal(size=400)
    t = np.arange(400)
    alone = shrinkage(column(x), column(y), t)
    copied = shrinkage(column(np.repeat(x, 9)), column(np.repeat(y, 9)), np.repeat(t, 9))
    assert 0 < copied[0] == pytest.approx(alone[0])
    assert shrinkage(column(np.repeat(x, 9)), column(np.repeat(y, 9)), np.arange(3600)) > copied


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3))
def test_every_horizon_gets_a_factor_between_0_and_1(seed: int, count: int, horizons: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, count, horizons)) * rng.uniform(0, 3)
    found = shrinkage(x, y, rng.integers(0, 5, count))
    assert len(found) == horizons
    assert all(0 <= factor <= 1 for factor in found)
