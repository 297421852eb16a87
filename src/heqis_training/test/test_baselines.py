# SPDX-License-Identifier: Apache-2.0
"""The fitted baselines: they find what is there, choose on validation, and refuse the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from heqis_core.errors import DataError
from heqis_training import baselines
from heqis_training.baselines import Baseline, Labelled, boosting, linear
from heqis_training.bootstrap import resample_times
from heqis_training.metrics import judge, make_truth, summarise

BAND = 0.005
Fit = Callable[[Labelled, Labelled], Baseline]


def boosted(training: Labelled, validation: Labelled) -> Baseline:
    return boosting(training, validation, seed=3)


both = pytest.mark.parametrize('fit', [linear, boosted], ids=['linear', 'boosting'])


def make_windows(seed: int, count: int = 400, signal: float = 0.02) -> Labelled:
    """Return windows whose last rows tell the return but for noise; nothing where signal is 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6, 3)).astype(np.float32)
    log_return = signal * (x[:, -1, 0] - x[:, -1, 2]) + rng.normal(0, 0.01, count)
    classes = np.where(log_return > BAND, 2, np.where(log_return < -BAND, 0, 1))
    return Labelled(x, log_return, classes)


@cache
def fitted(fit: Fit) -> Baseline:
    """Return the baseline of windows with a signal; tests that change nothing share it."""
    return fit(make_windows(0), make_windows(1, 200))


def figures(baseline: Baseline, windows: Labelled) -> dict[str, float]:
    t = np.arange(len(windows.x))
    truth = make_truth(t, np.zeros(len(t), np.int64), None, windows.log_return, BAND)
    judged = judge(baseline.name, [baseline.answer(windows.x)], truth)
    return summarise(judged, truth, resample_times(t, 0, draws=20))[0]


@both
def test_a_signal_in_the_last_row_is_found(fit: Fit) -> None:
    found = figures(fitted(fit), make_windows(2))
    assert found['skill'] > 0.6
    assert found['hit_rate_pct'] > 80
    assert found['accuracy_pct'] > 60
    assert found['mcc'] > 0.4


@both
def test_pure_noise_gives_hardly_more_than_the_training_mean(fit: Fit) -> None:
    baseline = fit(make_windows(0, signal=0), make_windows(1, 300, signal=0))
    found = figures(baseline, make_windows(2, signal=0))
    assert abs(found['skill']) < 0.03
    assert found['log_loss'] < np.log(3) + 0.03


def test_validation_that_contradicts_training_leaves_the_mean_and_the_shares() -> None:
    training, against = make_windows(0), make_windows(1, 300, signal=-0.02)
    for fit in (linear, boosted):
        baseline = fit(training, against)
        answers = baseline.answer(make_windows(2).x)
        assert set(baseline.chosen) == {'validation_mse', 'validation_log_loss'}
        np.testing.assert_allclose(answers.log_return, training.log_return.mean(), rtol=1e-5)
        shares = np.bincount(training.classes, minlength=3) / len(training.classes)
        np.testing.assert_allclose(answers.probabilities, np.tile(shares, (400, 1)), rtol=1e-5)


@both
def test_the_same_windows_give_the_same_model_and_validation_is_not_fitted(fit: Fit) -> None:
    training, validation = make_windows(0), make_windows(1, 200)
    one, other = fitted(fit), fit(training, validation)
    x = make_windows(2).x
    np.testing.assert_array_equal(one.answer(x).log_return, other.answer(x).log_return)
    np.testing.assert_array_equal(one.answer(x).probabilities, other.answer(x).probabilities)
    assert one.chosen == other.chosen
    if fit is linear:
        shuffled = validation._replace(
            **{k: v[::-1].copy() for k, v in validation._asdict().items()}
        )
        again = fit(training, shuffled)
        np.testing.assert_array_equal(one.answer(x).log_return, again.answer(x).log_return)
        doubled = validation._replace(
            **{k: np.concatenate([v, v]) for k, v in validation._asdict().items()}
        )
        again = fit(training, doubled)
        np.testing.assert_array_equal(one.answer(x).probabilities, again.answer(x).probabilities)


@both
def test_answers_are_float32_probabilities_that_do_not_depend_on_their_neighbours(
    fit: Fit,
) -> None:
    baseline = fitted(fit)
    x = make_windows(2).x
    answers = baseline.answer(x)
    assert answers.log_return.dtype == answers.probabilities.dtype == np.float32
    assert answers.log_return.shape == (400,)
    assert answers.probabilities.shape == (400, 3)
    np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1, atol=1e-5)
    alone = baseline.answer(x[7:8])
    np.testing.assert_allclose(alone.log_return, answers.log_return[7:8], rtol=1e-4, atol=1e-7)
    none = baseline.answer(x[:0])
    assert (none.log_return.shape, none.probabilities.shape) == ((0,), (0, 3))


@both
def test_a_class_that_training_lacks_gets_no_probability(fit: Fit) -> None:
    training, validation = make_windows(0), make_windows(1, 200)
    moved = training.classes != 1
    up_or_down = Labelled(training.x[moved], training.log_return[moved], training.classes[moved])
    assert (validation.classes == 1).any()
    answers = fit(up_or_down, validation).answer(make_windows(2).x)
    assert (answers.probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1, atol=1e-5)
    only_up = up_or_down._replace(classes=np.full(len(up_or_down.x), 2))
    answers = fit(only_up, validation).answer(make_windows(2).x)
    assert (answers.probabilities == [0, 0, 1]).all()


@both
def test_a_column_that_stands_still_is_no_trouble(fit: Fit) -> None:
    training, validation = make_windows(0), make_windows(1, 200)
    for windows in (training, validation):
        windows.x[:, :, 1] = 1e6
    test = make_windows(2)
    test.x[:, :, 1] = 1e6
    assert figures(fit(training, validation), test)['skill'] > 0.6


def test_boosting_sees_a_short_window_and_no_row_between_its_lags() -> None:
    short = [make_windows(k, n) for k, n in ((0, 400), (1, 200), (2, 100))]
    cut = [windows._replace(x=windows.x[:, -2:]) for windows in short]
    long_one, short_one = fitted(boosted), boosted(cut[0], cut[1])
    assert figures(short_one, cut[2])['skill'] > 0.6
    other = short[2].x.copy()
    other[:, [1, 2]] += 9  # lags 4 and 3 of six rows
    np.testing.assert_array_equal(
        long_one.answer(other).log_return, long_one.answer(short[2].x).log_return
    )
    assert baselines.LAGS == (0, 1, 2, 5, 10)


@both
def test_what_cannot_be_fitted_is_refused_with_its_count(fit: Fit) -> None:
    training, validation = make_windows(0, 100), make_windows(1, 50)
    holed = training.x.copy()
    holed[[3, 5], 2, 1] = np.nan
    with pytest.raises(DataError, match=r'training part: 2 of 100 windows hold a value'):
        fit(training._replace(x=holed), validation)
    with pytest.raises(DataError, match=r'validation part: 0 windows, 0 returns and 0 classes'):
        fit(training, validation._replace(**{k: v[:0] for k, v in validation._asdict().items()}))
    with pytest.raises(DataError, match=r'training windows are \(6, 3\), validation .*\(5, 3\)'):
        fit(training, validation._replace(x=validation.x[:, 1:]))
    with pytest.raises(DataError, match='all 100 returns of the training part are equal'):
        fit(training._replace(log_return=np.zeros(100)), validation)


@both
def test_windows_that_the_model_was_not_fitted_for_are_refused(fit: Fit) -> None:
    x = make_windows(2).x
    with pytest.raises(DataError, match=r'windows of shape \(6, 2\), .* shape \(6, 3\)'):
        fitted(fit).answer(x[:, :, :2])
    x[4, 0, 0] = np.inf
    with pytest.raises(DataError, match='1 values not finite'):
        fitted(fit).answer(x)
