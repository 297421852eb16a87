# SPDX-License-Identifier: Apache-2.0
"""Labels, classes, fingerprint and scaler: nothing of the future, each part of the data known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import CLOSE, VOLUME, BarStatus, BarTable
from heqis_core.errors import DataError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.scaler import Scaler
from heqis_core.testing import simulated_table
from heqis_training import dataset
from heqis_training.dataset import DOWN, FLAT, UP, Samples, fit_scaler

SPEC = FeatureSpec(
    (
        FeatureItem('return', {'n': 1}),
        FeatureItem('ma', {'n': 5}, relative=True),
        FeatureItem('rsi', {'n': 6}),
    )
)
ROWS, VALIDATION_FROM = 150, 90


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


def test_the_head_shares_no_memory_with_the_table() -> None:
    table = make_table(np.ones((10, 2), bool))
    head = dataset.head(table, 4)
    before = head.values.copy()
    table.values[:] = -1
    table.status[:] = 0
    np.testing.assert_array_equal(head.values, before)
    assert len(head) == 4
    assert (head.status == BarStatus.VALID).all()


@given(valid=masks(), horizons=st.sets(st.integers(1, 9), min_size=1, max_size=3))
@settings(deadline=None)  # the first call compiles
def test_a_label_is_the_return_to_the_valid_bar_so_many_bars_ahead_of_the_same_symbol(
    valid: npt.NDArray[np.bool_], horizons: set[int]
) -> None:
    table, ahead = make_table(valid), sorted(horizons)
    for s in range(valid.shape[1]):
        found = dataset.labels(table, s, ahead)
        rows = np.flatnonzero(valid[:, s]).tolist()
        close = table.values[:, CLOSE, s]
        assert found.t.tolist() == rows
        assert found.close.tolist() == close[rows].tolist()
        for k, t in enumerate(rows):
            before = math.log(close[t] / close[rows[k - 1]]) if k else 0
            assert found.past_return[k] == pytest.approx(before)
            for column, h in enumerate(ahead):
                label = found.future_return[k, column]
                if k + h < len(rows):
                    assert label == pytest.approx(math.log(close[rows[k + h]] / close[t]))
                else:
                    assert math.isnan(label)
            farthest = k + ahead[-1]
            assert found.row[k] == (rows[farthest] if farthest < len(rows) else -1)


@given(valid=masks(), cut=st.integers(0, 60))
@settings(deadline=None)  # the first call compiles
def test_changing_later_bars_changes_no_label_whose_farthest_bar_lies_before(
    valid: npt.NDArray[np.bool_], cut: int
) -> None:
    first, second = make_table(valid), make_table(valid)
    second.values[cut:] *= 1.7
    second.status[cut:] ^= 1  # valid and missing bars change places
    for s in range(valid.shape[1]):
        mine, other = (dataset.labels(table, s, (1, 3)) for table in (first, second))
        known = np.flatnonzero((mine.row >= 0) & (mine.row < cut))
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a[known], b[known])


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


def test_the_fingerprint_of_a_table_is_the_same_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = make_table(np.random.default_rng(1).random((20, 2)) < 0.8)
    whole = dataset.fingerprint(table)
    monkeypatch.setattr(dataset, 'CHUNK_BYTES', 300)
    assert dataset.fingerprint(table) == whole


def test_the_fingerprint_does_not_depend_on_the_kind_of_nan() -> None:
    table = make_table(np.array([[True], [False]]))
    other = dataset.head(table, 2)
    other.values[1] = np.frombuffer(np.uint64(0xFFF8000000000123).tobytes(), np.float64)[0]
    assert dataset.fingerprint(table) == dataset.fingerprint(other)


def test_a_window_has_a_label_only_if_each_horizon_has_a_number() -> None:
    rows = np.arange(4)
    returns = np.array([[0.1, 0.2], [0.1, np.nan], [np.inf, 0.2], [0.1, 0.2]])
    samples = Samples(rows, rows, rows * 0, np.array([3, 3, 3, -1]), returns)
    assert samples.labelled.tolist() == [True, False, False, False]


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


@pytest.mark.parametrize('chunk', [1, 2**14, 2**25])
def test_the_scaler_of_pieces_is_the_scaler_of_the_whole_training_part(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, 'CHUNK_BYTES', chunk)
    table = simulated_table(7, ROWS, seed=3)
    raw = FeatureState(SPEC, 7).batch(table.values, table.status)[:VALIDATION_FROM]
    rows = raw[(table.status[:VALIDATION_FROM] == BarStatus.VALID) & np.isfinite(raw).all(axis=2)]
    assert fit_scaler(table, SPEC, VALIDATION_FROM) == Scaler.fit(SPEC.names, rows)


def test_the_scaler_sees_no_bar_of_the_validation_part() -> None:
    first, second = simulated_table(7, ROWS, seed=3), simulated_table(7, ROWS, seed=3)
    second.values[VALIDATION_FROM:] = np.nan
    second.status[VALIDATION_FROM:] = 77
    assert fit_scaler(first, SPEC, VALIDATION_FROM) == fit_scaler(second, SPEC, VALIDATION_FROM)
    second.values[VALIDATION_FROM - 1] *= 1.1
    assert fit_scaler(first, SPEC, VALIDATION_FROM) != fit_scaler(second, SPEC, VALIDATION_FROM)


def test_a_feature_that_no_bar_has_is_named() -> None:
    table = simulated_table(3, ROWS, seed=3)
    table.values[:, VOLUME] = np.nan
    spec = FeatureSpec((*SPEC.features, FeatureItem('volume_ratio', {'n': 5})))
    with pytest.raises(DataError, match='no bar of the training part has a value of volume_ratio'):
        fit_scaler(table, spec, VALIDATION_FROM)


def test_a_constant_series_gives_a_scaler_that_leaves_its_columns_alone() -> None:
    table = simulated_table(1, ROWS, seed=3)
    table.values[:, :4] = 10.0
    scaler = fit_scaler(table, FeatureSpec(SPEC.features[:2]), VALIDATION_FROM)
    assert scaler.scale.tolist() == [1, 1]


def test_a_training_part_without_one_whole_row_says_how_many_bars_it_needs() -> None:
    table = simulated_table(3, ROWS, seed=3)
    with pytest.raises(DataError, match=f'need {SPEC.warmup_bars} clean bars .* longest .* has 3'):
        fit_scaler(table, SPEC, 3)


def test_a_folder_that_is_not_there_is_named_with_the_room_that_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'cannot keep 0 MB .* in .*nowhere'):
        fit_scaler(simulated_table(3, ROWS, seed=3), SPEC, 90, tmp_path / 'nowhere')
