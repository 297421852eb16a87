# SPDX-License-Identifier: Apache-2.0
"""Splits: nothing of a later part trains an earlier one, and no labelled window is lost unseen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError
from heqis_training.dataset import (
    MIN_TRAINING_WINDOWS,
    MIN_VALIDATION_WINDOWS,
    Samples,
    bars_needed,
)
from heqis_training.settings import SplitSettings
from heqis_training.splits import Split, chronological, parts, unlabelled_parts, walk_forward

LENGTH = 3


class Case(NamedTuple):
    """Windows of symbols with holes, with the first row of each, and how to split them."""

    samples: Samples
    first: npt.NDArray[np.int64]
    n_rows: int
    settings: SplitSettings


@st.composite
def cases(draw: st.DrawFn, most: float = 1) -> Case:
    n_rows, n_symbols = draw(st.integers(1, 80)), draw(st.integers(1, 3))
    ahead, seed = draw(st.integers(1, 6)), draw(st.integers(0, 999))
    valid = np.random.default_rng(seed).random((n_rows, n_symbols)) < draw(st.floats(0.2, 1))
    found = []
    for symbol in range(n_symbols):
        rows = np.flatnonzero(valid[:, symbol])
        for k in range(LENGTH - 1, len(rows)):
            label = rows[k + ahead] if k + ahead < len(rows) else -1
            found.append((rows[k], symbol, rows[k - LENGTH + 1], label))
    t, s, first, label = np.array(sorted(found), np.int64).reshape(-1, 4).T
    returns = np.where(label >= 0, 0.01, np.nan)[:, None]
    settings = SplitSettings(
        train_fraction=draw(st.floats(0.1, most)),
        validation_fraction=draw(st.floats(0.05, 0.95)),
        embargo=draw(st.integers(0, 8)),
    )
    return Case(Samples(np.arange(len(t)), t, s, label, returns, LENGTH), first, n_rows, settings)


def first_row(case: Case, part: Samples) -> npt.NDArray[np.int64]:
    """Return the first row of each window of a part; `end` numbers the windows of a case."""
    return case.first[part.end]


def test_the_default_split_is_the_documented_one() -> None:
    assert chronological(1000, SplitSettings()) == Split(595, 700, 1000)


@given(n_rows=st.integers(0, 5000), train=st.floats(0.01, 1), validation=st.floats(0.01, 0.99))
def test_the_parts_are_in_order_and_the_first_two_stay_inside_the_fraction(
    n_rows: int, train: float, validation: float
) -> None:
    settings = SplitSettings(train_fraction=train, validation_fraction=validation)
    split = chronological(n_rows, settings)
    assert 0 <= split.validation_from <= split.test_from <= split.stop == n_rows
    assert split.test_from <= n_rows * train
    if split.test_from:
        assert split.validation_from < split.test_from  # there is always something to validate on


@given(case=cases())
def test_no_training_window_and_no_label_of_it_comes_near_the_validation_part(case: Case) -> None:
    split, embargo = chronological(case.n_rows, case.settings), case.settings.embargo
    training, validation, test = parts(case.samples, split, embargo)
    for part, stop in ((training, split.validation_from), (validation, split.test_from)):
        assert (part.t < stop - embargo).all()
        assert (part.label_row < stop - embargo).all()
        assert (part.label_row > part.t).all()
    assert (first_row(case, training) < split.validation_from).all()
    assert (validation.t >= split.validation_from).all()
    assert (test.t >= split.test_from).all()


@given(case=cases())
def test_only_what_reaches_over_a_cut_or_into_its_embargo_is_left_out(case: Case) -> None:
    split, embargo = chronological(case.n_rows, case.settings), case.settings.embargo
    used = [part.end.tolist() for part in parts(case.samples, split, embargo)]
    together = [number for part in used for number in part]
    assert len(set(together)) == len(together)
    for number, t, label in zip(
        case.samples.end.tolist(),
        case.samples.t.tolist(),
        case.samples.label_row.tolist(),
        strict=True,
    ):
        cuts = (split.validation_from, split.test_from)
        crosses = any(t < cut and label >= cut - embargo for cut in cuts)
        assert (number in together) == (label >= 0 and not crosses)


@given(case=cases())
def test_the_newest_windows_have_no_label_and_are_in_no_part(case: Case) -> None:
    split = chronological(case.n_rows, case.settings)
    for part in parts(case.samples, split):
        assert part.labelled.all()


@given(case=cases(most=0.9), folds=st.integers(1, 5), rolling=st.booleans())
def test_walk_forward_tests_each_window_of_the_tail_once_and_trains_on_none_of_them(
    case: Case, folds: int, rolling: bool
) -> None:
    first = int(case.n_rows * case.settings.train_fraction)
    if not first or folds > case.n_rows - first:
        return
    splits = walk_forward(case.n_rows, folds, case.settings, rolling)
    tested: list[int] = []
    for split in splits:
        training, validation, test = parts(case.samples, split, case.settings.embargo)
        for part in (training, validation):
            assert (part.label_row < split.test_from).all()
            assert (part.t >= split.start).all()
        assert not set(test.end) & {*training.end, *validation.end}
        tested += test.end.tolist()
    tail = case.samples.where(case.samples.labelled & (case.samples.t >= first))
    assert sorted(tested) == sorted(tail.end.tolist())
    assert [split.test_from for split in splits][1:] == [split.stop for split in splits][:-1]
    assert (splits[0].test_from, splits[-1].stop) == (first, case.n_rows)


def test_a_rolling_walk_keeps_the_length_that_it_learns_from_and_an_expanding_one_the_start() -> (
    None
):
    settings = SplitSettings(train_fraction=0.5, validation_fraction=0.2)
    assert walk_forward(100, 2, settings) == (Split(40, 50, 75), Split(60, 75, 100))
    assert walk_forward(100, 2, settings, rolling=True) == (
        Split(40, 50, 75, 0),
        Split(65, 75, 100, 25),
    )


@pytest.mark.parametrize(
    ('n_rows', 'folds', 'train', 'said'),
    [
        (100, 0, 0.7, '0 folds over the 30 event times'),
        (100, 31, 0.7, '31 folds over the 30 event times'),
        (100, 1, 1.0, '1 folds over the 0 event times'),
        (3, 1, 0.1, 'nothing to learn from'),
    ],
)
def test_a_walk_that_cannot_be_is_refused_with_the_numbers(
    n_rows: int, folds: int, train: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        walk_forward(n_rows, folds, SplitSettings(train_fraction=train))


@given(case=cases())
def test_windows_without_labels_end_on_their_side_of_the_cut(case: Case) -> None:
    split, embargo = chronological(case.n_rows, case.settings), case.settings.embargo
    training, validation = unlabelled_parts(case.samples, split, embargo)
    assert (training.t < split.validation_from - embargo).all()
    assert (validation.t >= split.validation_from).all()
    assert (validation.t < split.test_from - embargo).all()
    known = case.samples.t < split.test_from
    left_out = (case.samples.t >= split.test_from - embargo) | (
        (case.samples.t < split.validation_from)
        & (case.samples.t >= split.validation_from - embargo)
    )
    assert len(training) + len(validation) == int((known & ~left_out).sum())


@pytest.mark.parametrize('warm_up', [0, 67, 200])
@pytest.mark.parametrize(('ahead', 'embargo'), [(1, 0), (5, 10)])
@pytest.mark.parametrize(('train', 'validation'), [(0.7, 0.15), (0.5, 0.5), (1.0, 0.05)])
def test_the_number_of_bars_said_to_be_needed_is_enough_and_nearly_least(
    warm_up: int, ahead: int, embargo: int, train: float, validation: float
) -> None:
    settings = SplitSettings(train_fraction=train, validation_fraction=validation, embargo=embargo)
    needed = bars_needed(warm_up, settings, ahead)
    assert has_enough(needed, warm_up, ahead, settings)
    assert not has_enough(int(needed * 0.9), warm_up, ahead, settings)


def has_enough(n_rows: int, warm_up: int, ahead: int, settings: SplitSettings) -> bool:
    """Return whether one symbol without gaps gives enough windows after `warm_up` bars."""
    t = np.arange(warm_up, n_rows)
    label = np.where(t + ahead < n_rows, t + ahead, -1)
    samples = Samples(t, t, np.zeros_like(t), label, np.zeros((len(t), 1)))
    split = chronological(n_rows, settings)
    training, validation, _ = parts(samples, split, settings.embargo)
    return len(training) >= MIN_TRAINING_WINDOWS and len(validation) >= MIN_VALIDATION_WINDOWS
