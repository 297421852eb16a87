# SPDX-License-Identifier: Apache-2.0
"""What conversions are calibrated and judged on: which bars, which windows, no look-ahead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.errors import DataError
from heqis_core.io.ort_engine import open_engine
from heqis_core.source import TableSource
from heqis_core.testing_bundle import ENCODER_WINDOW, FACTORS, SPEC, WINDOW
from heqis_training import tables
from heqis_training.convert.study import (
    CALIBRATION_WINDOWS,
    Collector,
    Study,
    study_bundle,
)
from heqis_training.convert.testing_convert import bundle_with

ROWS, SYMBOLS, KNOWN = 330, 4, 200
MANY = 10_000


@pytest.fixture(scope='module')
def table() -> BarTable:
    """Return a simulated market in which one symbol is suspended around the end of training."""
    made = tables.simulate(SYMBOLS, ROWS, seed=5)
    made.status[KNOWN - 3 : KNOWN + 4, 1] = BarStatus.SUSPENDED
    made.values[KNOWN - 3 : KNOWN + 4, :, 1] = np.nan
    return made


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[KNOWN - 1])
    return Bundle.load(bundle_with(tmp_path_factory.mktemp('bundles'), None, until_ns))


@pytest.fixture(scope='module')
def study(bundle: Bundle, table: BarTable) -> Study:
    return study_bundle(bundle, table, MANY)


def test_decisions_on_the_study_s_frames_are_those_of_the_boards(
    bundle: Bundle, table: BarTable, study: Study
) -> None:
    made = list(decide_all(bundle, TableSource(table), open_engine))
    verdicts = study.decide(study.features)
    assert study.symbols == table.symbols
    assert (study.known, study.judged_from) == (KNOWN, KNOWN)
    np.testing.assert_array_equal(verdicts.action, np.stack([one.action for one in made]))
    np.testing.assert_array_equal(verdicts.score, np.stack([one.score for one in made]))


def test_the_windows_are_what_the_encoder_saw_and_every_judged_frame_hangs_on_them(
    bundle: Bundle, study: Study
) -> None:
    assert bundle.encoder_path is not None
    engine = open_engine(bundle.encoder_path)
    tile = engine.specs()[0][0].shape[0]
    rows = np.zeros((tile, *study.windows.shape[1:]), np.float32)
    rows[:5] = study.windows[-5:]
    (factors,) = engine.infer({'window': rows}).values()
    np.testing.assert_array_equal(factors[:5], study.factors[-5:])
    assert study.windows.shape[1:] == (len(SPEC.names), 1, ENCODER_WINDOW)
    np.testing.assert_array_equal(study.with_factors(study.factors), study.features)
    other = study.with_factors(np.zeros_like(study.factors))
    reached = study.features[study.judged_from - bundle.manifest.window.horizon :]
    finite = np.isfinite(reached[:, :, -FACTORS:])
    assert finite.any()
    changed = other[study.judged_from - bundle.manifest.window.horizon :, :, -FACTORS:]
    assert not changed[finite].any()


def test_later_bars_change_neither_calibration_nor_the_generators_calibration(
    bundle: Bundle, table: BarTable, study: Study
) -> None:
    values = table.values.copy()
    values[KNOWN:, : CLOSE + 1] *= np.linspace(1.1, 3, ROWS - KNOWN)[:, None, None]
    later = BarTable(table.symbols, table.event_time_ns, values, table.status)
    again = study_bundle(bundle, later, MANY)
    np.testing.assert_array_equal(again.calibration, study.calibration)
    for made in (study, again):
        assert made.generator_windows(WINDOW, 0, KNOWN, 50).shape == (50, WINDOW, 5)
    np.testing.assert_array_equal(
        again.generator_windows(WINDOW, 0, KNOWN, 50),
        study.generator_windows(WINDOW, 0, KNOWN, 50),
    )
    assert not np.array_equal(again.windows, study.windows)


def test_calibration_holds_the_extremes_of_every_symbol_and_none_twice(study: Study) -> None:
    table_windows = study.calibration
    assert len(table_windows) <= CALIBRATION_WINDOWS
    assert len(np.unique(table_windows, axis=0)) == len(table_windows)
    indicators = study.features[: study.known, :, : len(SPEC.names)]
    assert np.abs(table_windows).max() == pytest.approx(np.nanmax(np.abs(indicators)))


def test_with_more_bars_than_may_be_measured_a_seeded_choice_of_symbols_is(
    bundle: Bundle, table: BarTable
) -> None:
    few = study_bundle(bundle, table, 2 * (ROWS - KNOWN + bundle.manifest.window.horizon))
    assert len(few.symbols) == 2
    assert few.symbols == study_bundle(bundle, table, len(few.windows) + 20).symbols
    assert set(few.symbols) < set(table.symbols)
    one = study_bundle(bundle, table, 50)
    assert len(one.symbols) == 1
    assert len(one.windows) <= 50
    assert len(one.times) < ROWS


def test_with_too_few_later_bars_training_bars_are_measured_and_it_is_said(
    bundle: Bundle, table: BarTable
) -> None:
    short = study_bundle(bundle, table.head(KNOWN + 20), MANY)
    assert short.judged_from == KNOWN // 2
    note, strange = short.notes
    assert 'none of the symbols of the training (A) is among these bars' in strange
    assert note.startswith('measured on training bars: ')
    assert study_bundle(bundle, table, MANY).notes == (strange,)


def test_without_a_bar_of_the_training_nothing_can_be_calibrated(
    bundle: Bundle, table: BarTable
) -> None:
    later = BarTable(
        table.symbols, table.event_time_ns[KNOWN:], table.values[KNOWN:], table.status[KNOWN:]
    )
    with pytest.raises(DataError, match='conversions are calibrated on them'):
        study_bundle(bundle, later, MANY)


def test_too_few_bars_for_one_encoder_window_are_an_error(tmp_path: Path, table: BarTable) -> None:
    until_ns = int(table.event_time_ns[2])
    bundle = Bundle.load(bundle_with(tmp_path, None, until_ns))
    with pytest.raises(DataError, match='no full window'):
        study_bundle(bundle, table.head(5), MANY)


def test_the_collector_keeps_the_largest_and_a_fair_draw_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(4000, 1, 1, 2)).astype(np.float32)
    factors = rng.normal(size=(4000, 1)).astype(np.float32)
    collector = Collector(400, (1, 1, 2), seed=3)
    for part, answer in zip(np.split(windows, 40), np.split(factors, 40), strict=True):
        collector.offer(part, answer)
    kept = {tuple(window.ravel()) for window in collector.windows()}
    largest = np.abs(windows).max(axis=(1, 2, 3)).argsort()[-100:]
    strongest = np.abs(factors[:, 0]).argsort()[-100:]
    for place in (*largest, *strongest):
        assert tuple(windows[place].ravel()) in kept
    drawn = [at for at in range(4000) if tuple(windows[at].ravel()) in kept]
    middle = [at for at in drawn if at not in {*largest, *strongest}]
    assert 120 < len(middle) <= 200
    assert 1600 < np.mean(middle) < 2400  # early and late alike
