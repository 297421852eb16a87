# SPDX-License-Identifier: Apache-2.0
"""What a network has to beat besides the floors: linear models and gradient boosting.

Both are fitted on training windows, choose their strength on validation windows alone, and answer
what a generator answers. One thread, so that the same windows give the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import (  # type: ignore[import-untyped,unused-ignore]
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.linear_model import (  # type: ignore[import-untyped,unused-ignore]
    LogisticRegression,
    Ridge,
)
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

from heqis_core.errors import DataError
from heqis_training.metrics import SMALLEST_PROBABILITY, Answers

Floats = npt.NDArray[np.float64]
Columns = npt.NDArray[np.float32]

PENALTIES = tuple(10.0**k for k in range(3, -4, -1))
"""Penalties per window of the linear models on standardised columns, the strongest first: that one
leaves hardly more than the mean."""
LAGS = (0, 1, 2, 5, 10)
LEAVES = (4, 16)
MAX_TREES, PATIENCE, LEARNING_RATE, MIN_LEAF = 400, 20, 0.03, 20


class Labelled(NamedTuple):
    """Labelled windows, N of them, in order of time.

    Attributes:
        x: float32 (N, W, F), scaled features.
        log_return: float64 (N,), what is forecast.
        classes: int64 (N,), its class: 0 down, 1 flat, 2 up.
    """

    x: npt.NDArray[np.float32]
    log_return: Floats
    classes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        name: of the model.
        chosen: what validation chose, and its loss there.
        answer: float32 (N, W, F) windows in, answers out; raises DataError for windows of another
            shape than those it was fitted on, or with values that are not finite.
    """

    name: str
    chosen: dict[str, float]
    answer: Callable[[npt.NDArray[np.float32]], Answers]


Fitted = list[tuple[dict[str, float], Any]]
"""Candidates: what each was fitted with, and the scikit-learn model, the simplest first."""


def linear(training: Labelled, validation: Labelled) -> Baseline:
    """Fit ridge regression to the return and logistic regression to the class.

    They see every number of the window, standardised over the training windows. Each takes the
    penalty with the smallest validation loss (squared error, log loss), the stronger of two that
    are equal. Raises DataError for windows that cannot be fitted.
    """
    _check(training, validation)
    columns = _standardiser(training.x)
    with threadpool_limits(1):
        x, count = columns(training.x), len(training.x)
        returns: Fitted = [
            ({'penalty': p}, Ridge(alpha=p * count, solver='cholesky').fit(x, _units(training)))
            for p in PENALTIES
        ]
        classes: Fitted = [
            (
                {'penalty': p},
                LogisticRegression(C=1 / (p * count), max_iter=1000).fit(x, training.classes),
            )
            for p in (PENALTIES if len(np.unique(training.classes)) > 1 else ())
        ]
        return _choose('linear', training, validation, columns, returns, classes)


def boosting(training: Labelled, validation: Labelled, seed: int) -> Baseline:
    """Fit histogram gradient boosting to the return and to the class.

    It sees the window's last row and those 1, 2, 5 and 10 rows before it, as far as the window
    reaches: indicators sum up the rows in between, and hundreds of nearly equal columns would only
    give trees more chances to fit noise. Validation chooses the leaves of a tree and the number of
    trees, which may be none. Raises DataError for windows that cannot be fitted.

    Args:
        training: windows to fit.
        validation: windows to choose on.
        seed: of the sample that bins more than 200 000 windows; fewer are binned whole.
    """
    _check(training, validation)
    lags = [lag for lag in LAGS if lag < training.x.shape[1]]

    def columns(x: npt.NDArray[np.float32]) -> Columns:
        return np.concatenate([x[:, x.shape[1] - 1 - lag] for lag in lags], axis=1)

    with threadpool_limits(1):
        x, held = columns(training.x), columns(validation.x)
        returns = _grow(
            HistGradientBoostingRegressor,
            seed,
            (x, _units(training)),
            (held, validation.log_return / _spread(training)),
        )
        known = np.isin(validation.classes, training.classes)
        classes = (
            _grow(
                HistGradientBoostingClassifier,
                seed,
                (x, training.classes),
                (held[known], validation.classes[known]),
            )
            if len(np.unique(training.classes)) > 1 and known.any()
            else []
        )
        return _choose('boosting', training, validation, columns, returns, classes)


def _grow(kind: Any, seed: int, training: tuple[Any, Any], validation: tuple[Any, Any]) -> Fitted:
    """Return a model of each size of tree, with as many trees as validation likes best."""
    found: Fitted = []
    for leaves in LEAVES:
        settings = {
            'learning_rate': LEARNING_RATE,
            'max_leaf_nodes': leaves,
            'min_samples_leaf': MIN_LEAF,
            'random_state': seed,
        }
        tried = kind(
            max_iter=MAX_TREES, early_stopping=True, n_iter_no_change=PATIENCE, tol=0, **settings
        ).fit(*training, X_val=validation[0], y_val=validation[1])
        trees = int(np.argmax(tried.validation_score_))  # the first score is that of no tree
        if trees:
            model = kind(max_iter=trees, early_stopping=False, **settings).fit(*training)
            found.append(({'leaves': leaves, 'trees': trees}, model))
    return found


def _choose(
    name: str,
    training: Labelled,
    validation: Labelled,
    columns: Callable[[npt.NDArray[np.float32]], Columns],
    returns: Fitted,
    classes: Fitted,
) -> Baseline:
    """Take the return and the class model with the smallest validation loss.

    One that has learned nothing, the training mean or the training shares, stands first: a fitted
    one has to be better than that.
    """
    shape = training.x.shape[1:]
    mean, spread = float(training.log_return.mean()), _spread(training)
    shares = np.bincount(training.classes, minlength=3) / len(training.classes)
    held = columns(validation.x)

    def log_return(model: Any, x: Columns) -> Floats:
        return np.full(len(x), mean) if model is None else spread * model.predict(x)

    def probabilities(model: Any, x: Columns) -> Floats:
        placed = np.zeros((len(x), 3))  # a class that training lacks has no column of its own
        if model is None:
            placed[:] = shares
        else:
            placed[:, model.classes_] = model.predict_proba(x)
        return placed

    def error(model: Any) -> float:
        return float(np.mean((log_return(model, held) - validation.log_return) ** 2))

    def log_loss(model: Any) -> float:
        given = probabilities(model, held)[np.arange(len(held)), validation.classes]
        return float(-np.log(np.maximum(given, SMALLEST_PROBABILITY)).mean())

    # min takes the first of equals, the simplest.
    return_loss, return_settings, for_return = min(
        ((error(model), chosen, model) for chosen, model in [({}, None), *returns]),
        key=lambda candidate: candidate[0],
    )
    class_loss, class_settings, for_class = min(
        ((log_loss(model), chosen, model) for chosen, model in [({}, None), *classes]),
        key=lambda candidate: candidate[0],
    )

    def answer(windows: npt.NDArray[np.float32]) -> Answers:
        if windows.shape[1:] != shape or not np.isfinite(windows).all():
            raise DataError(
                f'{name}: windows of shape {windows.shape[1:]}, '
                f'{int((~np.isfinite(windows)).sum())} values not finite; expected finite windows '
                f'of shape {shape} (rows, features)'
            )
        if not len(windows):
            return Answers(np.zeros(0, np.float32), np.zeros((0, 3), np.float32))
        with threadpool_limits(1):
            x = columns(windows)
            return Answers(
                log_return(for_return, x).astype(np.float32),
                probabilities(for_class, x).astype(np.float32),
            )

    chosen = {f'return_{key}': float(value) for key, value in return_settings.items()}
    chosen |= {f'class_{key}': float(value) for key, value in class_settings.items()}
    return Baseline(
        name, chosen | {'validation_mse': return_loss, 'validation_log_loss': class_loss}, answer
    )


def _standardiser(x: npt.NDArray[np.float32]) -> Callable[[npt.NDArray[np.float32]], Columns]:
    flat = x.reshape(len(x), -1)
    mean, spread = flat.mean(axis=0, dtype=np.float64), flat.std(axis=0, dtype=np.float64)
    spread[spread <= 1e-9 * np.abs(mean)] = 1  # a column that stands still says nothing

    def standardise(windows: npt.NDArray[np.float32]) -> Columns:
        scaled: Columns = (windows.reshape(len(windows), -1) - mean) / spread
        return scaled.astype(np.float32)

    return standardise


def _spread(training: Labelled) -> float:
    return float(training.log_return.std())


def _units(training: Labelled) -> Floats:
    """Return the returns in units of their spread, so that penalties mean the same anywhere."""
    return training.log_return / _spread(training)


def _check(training: Labelled, validation: Labelled) -> None:
    for part, windows in (('training', training), ('validation', validation)):
        count = len(windows.x)
        if not count or len(windows.log_return) != count or len(windows.classes) != count:
            raise DataError(
                f'{part} part: {count} windows, {len(windows.log_return)} returns and '
                f'{len(windows.classes)} classes; expected as many of each, at least one'
            )
        broken = ~np.isfinite(windows.x).all(axis=(1, 2)) | ~np.isfinite(windows.log_return)
        if broken.any():
            raise DataError(
                f'{part} part: {int(broken.sum())} of {count} windows hold a value that is not '
                'finite; give labelled windows of VALID frames only'
            )
    if training.x.shape[1:] != validation.x.shape[1:]:
        raise DataError(
            f'training windows are {training.x.shape[1:]}, validation windows '
            f'{validation.x.shape[1:]} (rows, features); expected the same'
        )
    if _spread(training) < 1e-12:
        raise DataError(
            f'all {len(training.x)} returns of the training part are equal; check the close column'
        )
