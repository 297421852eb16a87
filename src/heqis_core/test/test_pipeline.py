# SPDX-License-Identifier: Apache-2.0
"""Pipeline: a stream equals a table, a restart changes no bit, and one bad day poisons nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarStatus, BarTable
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError, DataError, EngineError, HeqisError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.frame import Stage, new_stamps
from heqis_core.io.ort_engine import open_engine
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import ENCODER_WINDOW, FACTORS, write_test_bundle

N = 160


@pytest.fixture(scope='module')
def table() -> BarTable:
    return simulated_table(6, N, seed=5)


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[100 - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))


def make(bundle: Bundle, symbols: tuple[str, ...]) -> FeaturePipeline:
    assert bundle.encoder_path is not None
    return bundle.pipeline(symbols, open_engine(bundle.encoder_path))


def columns(table: BarTable, which: list[int]) -> BarTable:
    return BarTable(
        tuple(table.symbols[i] for i in which),
        table.event_time_ns,
        np.ascontiguousarray(table.values[:, :, which]),
        np.ascontiguousarray(table.status[:, which]),
    )


def test_columns_are_the_indicators_then_the_factors(bundle, table):
    pipeline = make(bundle, table.symbols)
    assert pipeline.feature_names == bundle.manifest.features.names
    assert pipeline.feature_names[-FACTORS:] == ('factor_0', 'factor_1')


def test_valid_rows_are_finite_and_all_others_say_why(bundle, table):
    features, status = make(bundle, table.symbols).run(table)
    valid = status == BarStatus.VALID
    assert np.isfinite(features[valid]).all()
    assert features.dtype == np.float32
    same = (table.status != BarStatus.VALID) == ~(valid | (status == BarStatus.WARMING))
    assert same.all()
    assert valid[-20:].any(axis=0).all()
    first = valid.argmax(axis=0)
    assert (first >= bundle.spec.warmup_bars + ENCODER_WINDOW - 2).all()


def test_one_symbol_alone_has_the_bits_it_has_among_others(bundle, table):
    features, status = make(bundle, table.symbols).run(table)
    for i in range(len(table.symbols)):
        alone, alone_status = make(bundle, (table.symbols[i],)).run(columns(table, [i]))
        assert alone[:, 0].tobytes() == np.ascontiguousarray(features[:, i]).tobytes()
        np.testing.assert_array_equal(alone_status[:, 0], status[:, i])


def test_the_number_of_threads_changes_no_bit(bundle, monkeypatch):
    monkeypatch.setattr('heqis_core.engine._WORTH_NS', 0)  # even little work is shared out
    table = simulated_table(37, 60, seed=8)
    encoder = open_engine(bundle.encoder_path)
    tile = encoder.specs()[0][0].shape[0]
    assert tile < len(table.symbols)
    shape = (encoder, ENCODER_WINDOW, tile, 2 * ENCODER_WINDOW)
    made = []
    for threads in (1, 3):
        pipeline = FeaturePipeline(
            table.symbols, bundle.spec, bundle.scaler, *shape, threads=threads
        )
        made.append(pipeline.run(table))
        pipeline.close()
    assert np.isfinite(made[0][0][-1]).any()
    assert made[0][0].tobytes() == made[1][0].tobytes()
    np.testing.assert_array_equal(made[0][1], made[1][1])


def test_an_encoder_of_another_window_is_refused(bundle, table):
    encoder = open_engine(bundle.encoder_path)
    tile = encoder.specs()[0][0].shape[0]
    shape = (encoder, ENCODER_WINDOW + 1, tile, 2 * ENCODER_WINDOW)
    with pytest.raises(EngineError, match='not one float32 input'):
        FeaturePipeline(table.symbols, bundle.spec, bundle.scaler, *shape)


@pytest.mark.parametrize('cut', [0, 1, 60, 120])
def test_a_restart_from_the_saved_state_changes_no_bit(cut, bundle, table):
    expected, _ = make(bundle, table.symbols).run(table)
    first, second = make(bundle, table.symbols), make(bundle, table.symbols)
    for seq in range(cut):
        first.step(seq, table.block(seq))
    second.load({name: array.copy() for name, array in first.save().items()})
    for seq in range(cut, N):
        features = second.step(seq, table.block(seq))['features']
        assert features.tobytes() == expected[seq].tobytes()


def test_state_of_other_symbols_is_refused(bundle, table):
    saved = make(bundle, table.symbols).save()
    with pytest.raises(HeqisError):
        make(bundle, table.symbols[:2]).load(saved)


def test_a_rejected_day_costs_that_day_alone(bundle, table):
    _, quiet = make(bundle, table.symbols).run(table)
    day = int(np.flatnonzero((quiet[120:150] == BarStatus.VALID).all(axis=1))[0]) + 120
    values, status = table.values.copy(), table.status.copy()
    values[day, :, 0], status[day, 0] = np.nan, BarStatus.REJECTED
    hit = BarTable(table.symbols, table.event_time_ns, values, status)
    _, after = make(bundle, table.symbols).run(hit)
    assert after[day, 0] == BarStatus.REJECTED
    np.testing.assert_array_equal(np.delete(after, day, 0), np.delete(quiet, day, 0))


def test_stages_are_stamped_in_order(bundle, table):
    stamps = new_stamps()
    make(bundle, table.symbols).step(0, table.block(0), stamps)
    assert 0 < stamps[Stage.CLEANED] <= stamps[Stage.FEATURES] <= stamps[Stage.ENCODED]


def test_channels_and_event_time_reach_the_features_and_other_channels_are_refused(table):
    spec = FeatureSpec((FeatureItem('value', of='channel:pe'), FeatureItem('calendar')))
    n, f = len(table.symbols), len(spec.names)
    scaler = Scaler(spec.names, np.zeros(f), np.ones(f))
    extra = np.random.default_rng(0).normal(size=(len(table), 2, n))
    with_pe = replace(table, channels=('pb', 'pe'), extra=extra)
    pipeline = FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1, with_pe.channels)
    features, _ = pipeline.run(with_pe)
    raw = FeatureState(spec, n, with_pe.channels).batch(
        table.values, table.status, table.event_time_ns, extra
    )
    np.testing.assert_array_equal(features, scaler.apply(raw))
    valid = table.status == BarStatus.VALID
    np.testing.assert_array_equal(features[:, :, 0][valid], extra[:, 1][valid].astype(np.float32))
    with pytest.raises(DataError, match=r"channels \['pe', 'pb'\]; expected \['pb', 'pe'\]"):
        pipeline.step(0, replace(with_pe, channels=('pe', 'pb')).block(0))
    with pytest.raises(ConfigError, match="channel 'pe'; the bars carry none"):
        FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1)


def test_a_bundle_with_an_encoder_needs_one(bundle: Bundle, table: BarTable, tmp_path: Path):
    with pytest.raises(HeqisError, match='encoder'):
        bundle.pipeline(table.symbols, None)
