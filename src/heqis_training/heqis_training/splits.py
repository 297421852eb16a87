# SPDX-License-Identifier: Apache-2.0
"""Which event times train, validate and test: one chronological split, or a walk forward.

Between the parts, windows whose label reaches over a cut are purged, and an embargo leaves out
further event times before it (López de Prado, Advances in Financial Machine Learning, 2018, 7.4).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from heqis_core.errors import ConfigError
from heqis_training.dataset import Samples
from heqis_training.settings import SplitSettings


@dataclass(frozen=True)
class Split:
    """Rows of a bar table: training, validation and test, one after the other.

    Attributes:
        validation_from: rows from `start` to before this one train.
        test_from: rows from `validation_from` to before this one validate.
        stop: rows from `test_from` to before this one test.
        start: first row that trains; later than 0 where a walk forward rolls.
    """

    validation_from: int
    test_from: int
    stop: int
    start: int = 0


def chronological(n_rows: int, settings: SplitSettings) -> Split:
    """Split T event times: what follows `train_fraction` of them tests."""
    test_from = math.floor(n_rows * settings.train_fraction)
    return Split(_validation_from(0, test_from, settings), test_from, n_rows)


def walk_forward(
    n_rows: int, folds: int, settings: SplitSettings, rolling: bool = False
) -> tuple[Split, ...]:
    """Split T event times `folds` times; their test parts tile what follows `train_fraction`.

    Args:
        n_rows: event times T.
        folds: parts of equal size, or one event time apart, each tested after what lies before it.
        settings: of each fold; `train_fraction` is that of the first one.
        rolling: each fold learns from as many event times as the first one, the latest before its
            test part; else from all of them.

    Raises ConfigError if a fold has nothing to test or to learn from.
    """
    first = math.floor(n_rows * settings.train_fraction)
    if not 1 <= folds <= n_rows - first:
        raise ConfigError(
            f'walk forward: {folds} folds over the {n_rows - first} event times that follow '
            f'train_fraction = {settings.train_fraction} of {n_rows}; expected at least one fold, '
            'and at least one event time for each'
        )
    if not first:
        raise ConfigError(
            f'walk forward: train_fraction = {settings.train_fraction} of {n_rows} event times '
            'leaves nothing to learn from before the first fold'
        )
    cuts = [first + (n_rows - first) * k // folds for k in range(folds + 1)]
    splits = []
    for test_from, stop in itertools.pairwise(cuts):
        start = test_from - first if rolling else 0
        splits.append(Split(_validation_from(start, test_from, settings), test_from, stop, start))
    return tuple(splits)


def parts(samples: Samples, split: Split, embargo: int = 0) -> tuple[Samples, Samples, Samples]:
    """Return the labelled windows that train, validate and test.

    A training window and its farthest label lie wholly before the validation part, and by
    `embargo` event times more; a validation window likewise before the test part. A part is told
    by the window's last bar: its older rows may lie before the part, as they do when the model is
    used. A label of the last test windows may lie after `stop`: it judges, and teaches nothing.
    """
    t, label, labelled = samples.t, samples.label_row, samples.labelled
    training = (t >= split.start) & (label < split.validation_from - embargo)
    validation = (t >= split.validation_from) & (label < split.test_from - embargo)
    test = (t >= split.test_from) & (t < split.stop)
    return (
        samples.where(labelled & training),
        samples.where(labelled & validation),
        samples.where(labelled & test),
    )


def unlabelled_parts(samples: Samples, split: Split, embargo: int = 0) -> tuple[Samples, Samples]:
    """Return the windows that train and validate without labels, as an encoder does."""
    t = samples.t
    return (
        samples.where((t >= split.start) & (t < split.validation_from - embargo)),
        samples.where((t >= split.validation_from) & (t < split.test_from - embargo)),
    )


def _validation_from(start: int, test_from: int, settings: SplitSettings) -> int:
    return test_from - math.ceil((test_from - start) * settings.validation_fraction)
