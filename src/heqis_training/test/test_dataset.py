# SPDX-License-Identifier: Apache-2.0
"""Splits, labels and windows: nothing of the future, nothing across the cut, nothing lost."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_training import dataset
from heqis_training.dataset import DOWN, FLAT, UP, Labels, Split

FRACTION = st.floats(0.05, 1.0)


def make_table(valid: npt.NDArray[np.bool_], seed: int = 0) -> BarTable:
    """Return a table with seeded positive prices at `valid`, bool (T, S)."""
    n_rows, n_symbols = valid.shape
    prices = np.exp(np.random.default_rng(seed).normal(0, 1, (n_rows, 6, n_symbols)))
    return BarTable(
        tuple(f'S{index}' for index in range(n_symbols)),
        np.arange(n_rows, dtype=np.int64) * 86_400_000_000_000,
        np.where(valid[:, None, :], prices, np.nan),
        np.where(valid, BarStatus.VALID, BarStatus.NO_BAR).astype(np.uint8),
    )


@st.composite
def masks(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """Draw which bars there are, bool (T, S)."""
    n_rows, n_symbols = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    share, seed = draw(st.floats(0, 1)), draw(st.integers(0, 999))
    return np.random.default_rng(seed).random((n_rows, n_symbols)) < share


@given(n_rows=st.integers(0, 5000), train=FRACTION, validation=st.floats(0.01, 0.99))
@settings(deadline=None)  # the first call compiles
def test_the_split_stays_inside_its_part_and_in_order(
    n_rows: int, train: float, validation: float
) -> None:
    split = dataset.split_rows(n_rows, train, validation)
    assert 0 <= split.validation_from <= split.stop <= n_rows
    assert split.stop <= n_rows * train
    if split.stop:
        assert split.validation_from < split.stop  # there is always something to validate on


def test_the_default_split_is_the_documented_one() -> None:
    assert dataset.split_rows(1000, 0.7, 0.15) == Split(595, 700)


@pytest.mark.parametrize(('train', 'validation'), [(0, 0.1), (1.1, 0.1), (0.5, 0), (0.5, 1)])
def test_a_fraction_out_of_range_is_named(train: float, validation: float) -> None:
    with pytest.raises(ConfigError, match='_fraction is '):
        dataset.split_rows(100, train, validation)


def test_the_head_shares_no_memory_with_the_table() -> None:
    table = make_table(np.ones((10, 2), bool))
    head = dataset.head(table, 4)
    before = head.values.copy()
    table.values[:] = -1
    table.status[:] = 0
    np.testing.assert_array_equal(head.values, before)
    assert len(head) == 4
    assert (head.status == BarStatus.VALID).all()


@given(valid=masks())
@settings(deadline=None)  # the first call compiles
def test_a_label_is_the_return_to_the_next_valid_bar_of_the_same_symbol(
    valid: npt.NDArray[np.bool_],
) -> None:
    table = make_table(valid)
    labels = dataset.next_bar_labels(table)
    for t, s in np.ndindex(valid.shape):
        later = [row for row in range(t + 1, len(valid)) if valid[row, s]]
        if not valid[t, s] or not later:
            assert labels.row[t, s] == -1
            assert np.isnan(labels.log_return[t, s])
        else:
            close = table.values[:, CLOSE, s]
            assert labels.row[t, s] == later[0]
            assert labels.log_return[t, s] == pytest.approx(math.log(close[later[0]] / close[t]))


@given(valid=masks(), train=FRACTION, validation=st.floats(0.05, 0.95), length=st.integers(1, 5))
@settings(deadline=None)  # the first call compiles
def test_training_and_validation_never_touch(
    valid: npt.NDArray[np.bool_], train: float, validation: float, length: int
) -> None:
    split = dataset.split_rows(len(valid), train, validation)
    table = make_table(valid)
    samples = dataset.make_samples(
        table.status, dataset.next_bar_labels(table), length, 2 * length
    )
    training, validating = dataset.split_samples(samples, split)
    assert (training.rows < split.validation_from).all()
    assert (training.label_row < split.validation_from).all()
    assert (training.label_row > training.t).all()
    assert (validating.t >= split.validation_from).all()
    assert (validating.label_row < split.stop).all()
    assert (validating.label_row > validating.t).all()
    for part in (training, validating):
        assert np.isfinite(part.log_return).all()


@given(valid=masks(), train=FRACTION, validation=st.floats(0.05, 0.95))
@settings(deadline=None)  # the first call compiles
def test_only_windows_whose_label_crosses_a_cut_are_left_out(
    valid: npt.NDArray[np.bool_], train: float, validation: float
) -> None:
    split = dataset.split_rows(len(valid), train, validation)
    table = make_table(valid)
    labels = dataset.next_bar_labels(table)
    samples = dataset.make_samples(table.status, labels, 2, 4)
    training, validating = dataset.split_samples(samples, split)
    used = {
        tuple(pair) for part in (training, validating) for pair in np.c_[part.t, part.s].tolist()
    }
    for t, s, label in np.c_[samples.t, samples.s, samples.label_row].tolist():
        crosses = label < 0 or t < split.validation_from <= label or label >= split.stop
        assert ((t, s) in used) == (not crosses)


@given(valid=masks(), validation=st.floats(0.05, 0.95))
@settings(deadline=None)  # the first call compiles
def test_changing_validation_bars_changes_no_training_window(
    valid: npt.NDArray[np.bool_], validation: float
) -> None:
    split = dataset.split_rows(len(valid), 1.0, validation)
    tables = [make_table(valid), make_table(valid)]
    tables[1].values[split.validation_from :] *= 1.7
    tables[1].status[split.validation_from :] ^= 1  # valid and missing bars change places
    first, second = (
        dataset.split_samples(
            dataset.make_samples(table.status, dataset.next_bar_labels(table), 2, 4), split
        )[0]
        for table in tables
    )
    for name in ('t', 's', 'rows', 'label_row', 'log_return'):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@given(valid=masks(), validation=st.floats(0.05, 0.95))
@settings(deadline=None)  # the first call compiles
def test_unsupervised_windows_end_on_their_side_of_the_cut(
    valid: npt.NDArray[np.bool_], validation: float
) -> None:
    split = dataset.split_rows(len(valid), 0.8, validation)
    table = make_table(valid)
    samples = dataset.make_samples(table.status, dataset.next_bar_labels(table), 2, 4)
    training, validating = dataset.split_windows(samples, split)
    assert (training.rows < split.validation_from).all()
    assert ((validating.t >= split.validation_from) & (validating.t < split.stop)).all()
    assert len(training) + len(validating) == int((samples.t < split.stop).sum())


@given(seed=st.integers(0, 99), share=st.floats(0.05, 0.9))
@settings(deadline=None)  # the first call compiles
def test_the_band_holds_its_share_of_the_returns(seed: int, share: float) -> None:
    returns = np.random.default_rng(seed).standard_t(3, 2000) * 0.01
    band = dataset.flat_band(returns, share)
    assert np.mean(dataset.classify(returns, band) == FLAT) == pytest.approx(share, abs=0.002)


def test_a_band_of_mostly_unmoved_prices_is_above_zero_and_below_every_move() -> None:
    returns = np.array([0.0] * 90 + [0.01, -0.02] * 5)
    band = dataset.flat_band(returns)
    assert 0 < band < 0.01
    np.testing.assert_array_equal(np.bincount(dataset.classify(returns, band)), [5, 90, 5])


def test_prices_that_never_move_are_refused() -> None:
    with pytest.raises(DataError, match='all 7 returns of the training part are zero'):
        dataset.flat_band(np.zeros(7))


def test_classes_are_down_flat_up_and_the_band_is_flat() -> None:
    found = dataset.classify(np.array([-0.011, -0.01, 0.0, 0.01, 0.011]), 0.01)
    np.testing.assert_array_equal(found, [DOWN, FLAT, FLAT, FLAT, UP])


def test_the_fingerprint_knows_every_part_of_the_data() -> None:
    table = make_table(np.random.default_rng(1).random((20, 2)) < 0.8)
    prints = {dataset.fingerprint(table)}
    for field, index in (('values', (3, CLOSE, 0)), ('event_time_ns', 4), ('status', (5, 1))):
        other = dataset.head(table, len(table))
        array = getattr(other, field)
        array[index] = 3 if field != 'values' else 0.125
        prints.add(dataset.fingerprint(other))
    prints.add(dataset.fingerprint(dataset.head(table, 19)))
    prints.add(dataset.fingerprint(BarTable(('S0', 'X'), *_arrays(table))))
    assert len(prints) == 6
    assert dataset.fingerprint(dataset.head(table, 20)) in prints


def test_the_fingerprint_does_not_depend_on_the_kind_of_nan() -> None:
    table = make_table(np.array([[True], [False]]))
    other = dataset.head(table, 2)
    other.values[1] = np.frombuffer(np.uint64(0xFFF8000000000123).tobytes(), np.float64)[0]
    assert dataset.fingerprint(table) == dataset.fingerprint(other)


@pytest.mark.parametrize('warm_up', [0, 67, 200])
@pytest.mark.parametrize(('train', 'validation'), [(0.7, 0.15), (0.5, 0.5), (1.0, 0.05)])
def test_the_number_of_bars_said_to_be_needed_is_enough_and_nearly_least(
    warm_up: int, train: float, validation: float
) -> None:
    needed = dataset.bars_needed(warm_up, train, validation)
    assert _has_enough(needed, warm_up, train, validation)
    assert not _has_enough(int(needed * 0.9), warm_up, train, validation)


def test_too_few_windows_name_the_bars_that_there_are_and_that_are_needed() -> None:
    symbols = tuple(f'S{index}' for index in range(7))
    with pytest.raises(DataError) as caught:
        dataset.require_windows(symbols, np.full(7, 3), 0, 0, 224)
    for text in ('S0 3, S1 3', 'and 2 more symbols', 'at least 64', 'at least 16', 'needs 224'):
        assert text in str(caught.value)


@pytest.mark.parametrize(('training', 'validation'), [(63, 16), (64, 15)])
def test_one_window_too_few_on_either_side_is_refused(training: int, validation: int) -> None:
    with pytest.raises(DataError):
        dataset.require_windows(('A',), np.array([9]), training, validation, 9)
    dataset.require_windows(('A',), np.array([9]), 64, 16, 9)


def _arrays(
    table: BarTable,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    return table.event_time_ns, table.values, table.status


def _has_enough(n_rows: int, warm_up: int, train: float, validation: float) -> bool:
    """Return whether one symbol without gaps gives enough windows after `warm_up` bars."""
    split = dataset.split_rows(n_rows, train, validation)
    t = np.arange(warm_up, split.stop)
    label = np.where(t + 1 < split.stop, t + 1, -1)
    zeros = np.zeros(len(t))
    samples = dataset.Samples(t, zeros.astype(np.int64), t[:, None], label, zeros)
    training, validating = dataset.split_samples(samples, split)
    return len(training) >= 64 and len(validating) >= 16


def test_rows_that_are_not_valid_in_the_frames_enter_no_window() -> None:
    table = make_table(np.ones((10, 1), bool))
    status = table.status.copy()
    status[:4] = BarStatus.WARMING
    labels: Labels = dataset.next_bar_labels(table)
    samples = dataset.make_samples(status, labels, 3, 6)
    np.testing.assert_array_equal(samples.t, [6, 7, 8, 9])
    np.testing.assert_array_equal(samples.rows[0], [4, 5, 6])
    np.testing.assert_array_equal(samples.label_row, [7, 8, 9, -1])
