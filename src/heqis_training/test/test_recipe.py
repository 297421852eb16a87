# SPDX-License-Identifier: Apache-2.0
"""A training run as a whole: no leak, the same id every time, signals on real data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import VOLUME, BarStatus, BarTable
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider, Generator
from heqis_core.decision import Action
from heqis_core.errors import BundleError, ConfigError, DataError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.frame import FeatureFrame
from heqis_core.io.files import load_bars
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.scaler import Scaler
from heqis_core.testing import shared_data
from heqis_training import dataset, tables
from heqis_training.recipe import Outcome, run_training, train_bundle
from heqis_training.settings import TrainingConfig
from heqis_training.train import Epoch, FitSettings

SHORT = TrainingConfig(
    window=8,
    encoder_window=8,
    hidden=8,
    encoder_width=8,
    tile=16,
    encoder_fit=FitSettings(epochs=2),
    generator_fit=FitSettings(epochs=3),
)
ROWS = 300
SPLIT = dataset.split_rows(ROWS, SHORT.train_fraction, SHORT.validation_fraction)


@pytest.fixture(scope='module')
def table() -> BarTable:
    """Return a simulated market that no test may change."""
    return tables.simulate(3, ROWS, seed=5)


@pytest.fixture(scope='module')
def outcome(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Return a short training run on that market."""
    return run_training(table, tmp_path_factory.mktemp('bundles'), SHORT)


def content(path: Path) -> dict[str, bytes]:
    """Return every file of a bundle but the manifest, which holds a clock."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix != '.json'} | {
        name: (path / name).read_bytes() for name in ('features.json', 'scaler.json')
    }


def altered(table: BarTable, start: int, stop: int) -> BarTable:
    """Return a copy whose bars from `start` to before `stop` are others, some of them missing."""
    copy = dataset.head(table, len(table))
    rng = np.random.default_rng(9)
    copy.values[start:stop] *= rng.uniform(0.5, 2.0, copy.values[start:stop].shape)
    missing = rng.random(copy.status[start:stop].shape) < 0.2
    copy.status[start:stop][missing] = BarStatus.SUSPENDED
    copy.values[start:stop].transpose(0, 2, 1)[missing] = np.nan
    return copy


# --- no look-ahead -------------------------------------------------------------------------------


def test_no_bar_after_trained_until_changes_anything(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    other = altered(table, SPLIT.stop, ROWS)
    other.event_time_ns[SPLIT.stop :] += 123
    assert not np.array_equal(other.values, table.values, equal_nan=True)
    again = run_training(other, tmp_path, SHORT)
    assert again.manifest.bundle_id == outcome.manifest.bundle_id
    assert content(again.path) == content(outcome.path)
    assert outcome.manifest.trained_until_ns == table.event_time_ns[SPLIT.stop - 1]


def test_volumes_that_only_the_future_has_do_not_choose_the_spec(
    table: BarTable, tmp_path: Path
) -> None:
    other = dataset.head(table, ROWS)
    other.values[: SPLIT.stop, VOLUME, 0] = np.nan
    assert np.isfinite(other.values[SPLIT.stop :, VOLUME, 0]).any()
    names = run_training(other, tmp_path, SHORT).manifest.features.names
    assert 'volume_ratio_5' not in names


def test_the_last_bar_before_the_cut_does_change_something(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    other = altered(table, SPLIT.stop - 1, SPLIT.stop)
    again = run_training(other, tmp_path, SHORT)
    assert again.manifest.bundle_id != outcome.manifest.bundle_id


def test_validation_bars_change_neither_scaler_nor_band(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    other = altered(table, SPLIT.validation_from, SPLIT.stop)
    again = run_training(other, tmp_path, SHORT)
    assert content(again.path)['scaler.json'] == content(outcome.path)['scaler.json']
    assert again.manifest.flat_band == outcome.manifest.flat_band
    assert again.training_windows == outcome.training_windows
    assert again.manifest.bundle_id != outcome.manifest.bundle_id


def test_the_scaler_is_fitted_on_whole_training_rows_alone(
    table: BarTable, outcome: Outcome
) -> None:
    bundle = Bundle.load(outcome.path)
    raw = FeatureState(bundle.spec, 3).batch(table.values, table.status)[: SPLIT.validation_from]
    whole = np.isfinite(raw).all(axis=2)
    assert bundle.scaler == Scaler.fit(bundle.spec.names, raw[whole])


# --- the same again ------------------------------------------------------------------------------


def test_the_same_data_and_seed_give_the_same_bundle(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    path = train_bundle(table, tmp_path, SHORT)
    assert path == tmp_path / outcome.manifest.bundle_id
    assert content(path) == content(outcome.path)


def test_another_seed_gives_another_bundle(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    other = run_training(table, tmp_path, replace(SHORT, seed=8))
    assert other.manifest.bundle_id != outcome.manifest.bundle_id
    assert content(other.path)['gru.onnx'] != content(outcome.path)['gru.onnx']


# --- what the bundle says ------------------------------------------------------------------------


def test_the_bundle_is_sound_and_says_where_it_comes_from(
    table: BarTable, outcome: Outcome
) -> None:
    bundle = Bundle.load(outcome.path)
    bundle.verify_golden(OrtEngine)
    manifest = bundle.manifest
    assert manifest == outcome.manifest
    assert manifest.window.length == 8
    assert manifest.window.horizon == 16
    data = manifest.provenance.data
    known = dataset.head(table, SPLIT.stop)
    assert data.symbols == table.symbols
    assert data.fingerprint == dataset.fingerprint(known)
    assert data.bars == int((known.status == BarStatus.VALID).sum())
    assert manifest.provenance.seed == SHORT.seed
    assert manifest.provenance.settings == SHORT.settings()
    assert {'torch', 'numpy', 'onnxruntime', 'python'} <= set(manifest.provenance.packages)
    assert [row.model for row in manifest.provenance.metrics] == [
        'gru',
        'persistence',
        'majority class',
        'buy and hold',
    ]
    assert manifest.provenance.metrics[0].samples == outcome.validation_windows


def test_every_epoch_is_reported_in_order(table: BarTable, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    found = run_training(table, tmp_path, SHORT, report=seen.append)
    assert tuple(seen) == found.history
    assert [epoch.model for epoch in seen] == ['encoder'] * 2 + ['gru'] * 3
    assert [epoch.last for epoch in seen] == [False, True, False, False, True]


def test_a_spec_of_ones_own_and_settings_of_ones_own_are_used(
    table: BarTable, tmp_path: Path
) -> None:
    spec = FeatureSpec((FeatureItem('return', {'n': 1}), FeatureItem('rsi', {'n': 6})))
    config = replace(SHORT, flat_band=0.011, factors=2, valid_for_s=60.0)
    manifest = run_training(table, tmp_path, config, spec).manifest
    assert manifest.features.names == ('return_1', 'rsi_6', 'factor_0', 'factor_1')
    assert manifest.flat_band == 0.011
    assert manifest.strategy.valid_for_s == 60


def test_a_symbol_without_volume_leaves_the_volume_feature_out(
    table: BarTable, outcome: Outcome, tmp_path: Path
) -> None:
    other = dataset.head(table, ROWS)
    other.values[:, VOLUME, 1] = np.nan
    manifest = run_training(other, tmp_path, SHORT).manifest
    assert 'volume_ratio_5' in outcome.manifest.features.names
    assert 'volume_ratio_5' not in manifest.features.names
    assert manifest.provenance.data.symbols == table.symbols


# --- what cannot be trained ----------------------------------------------------------------------


@pytest.mark.parametrize('rows', [1, 2, 3, 60])
def test_a_series_that_is_too_short_says_what_there_is_and_what_is_needed(
    tmp_path: Path, rows: int
) -> None:
    table = tables.simulate(['600519.SH'], rows, 1)
    table.status[:] = BarStatus.VALID
    table.values[:] = np.abs(np.nan_to_num(table.values, nan=10.0)) + 1
    with pytest.raises(DataError, match=rf'600519\.SH {rows}\..*alone needs \d+ clean bars'):
        run_training(table, tmp_path, SHORT)
    assert not list(tmp_path.iterdir())


def test_a_short_symbol_beside_long_ones_is_no_obstacle(table: BarTable, tmp_path: Path) -> None:
    other = dataset.head(table, ROWS)
    other.status[3:, 0] = BarStatus.NO_BAR
    other.values[3:, :, 0] = np.nan
    assert Bundle.load(run_training(other, tmp_path, SHORT).path).bundle_id


def test_prices_that_never_move_are_refused(table: BarTable, tmp_path: Path) -> None:
    other = dataset.head(table, ROWS)
    other.values[:, :4] = np.where(np.isnan(other.values[:, :4]), np.nan, 10.0)
    with pytest.raises(DataError, match='returns of the training part are zero'):
        run_training(other, tmp_path, SHORT)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (replace(SHORT, encoder_window=10), 'encoder window is 10, expected a multiple of 4'),
        (replace(SHORT, train_fraction=1.5), 'train_fraction is 1.5'),
    ],
)
def test_settings_that_cannot_be_are_refused(
    table: BarTable, tmp_path: Path, config: TrainingConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(table, tmp_path, config)


def test_a_folder_that_cannot_be_written_is_named(table: BarTable, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(BundleError, match=r'file: cannot be written'):
        run_training(table, tmp_path / 'file', SHORT)


# --- real data -----------------------------------------------------------------------------------


def test_three_real_series_train_in_time_and_give_signals_on_what_follows(tmp_path: Path) -> None:
    folder = shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024'
    table, _ = load_bars(folder)
    started_s = time.process_time()  # of this process: a busy machine is no failure
    outcome = run_training(table, tmp_path)
    assert time.process_time() - started_s < 30
    losses = [epoch.validation_loss for epoch in outcome.history if epoch.model == 'encoder']
    assert losses[-1] < 0.5 * losses[0]
    actions, times = judge(Bundle.load(outcome.path), table)
    later = times > outcome.manifest.trained_until_ns
    assert later.sum() == len(table) - int(len(table) * 0.7)
    for symbol in range(len(table.symbols)):
        counts = np.bincount(actions[later, symbol], minlength=4)
        assert counts[Action.BUY] > 0
        assert counts[Action.SELL] > 0
        assert counts[Action.HOLD] > 0
        assert counts[Action.NONE] == 0  # warm from the part before


def judge(bundle: Bundle, table: BarTable) -> tuple[np.ndarray, np.ndarray]:
    """Stream a table through pipeline and decider; return actions (T, S) and event times (T,)."""
    manifest = bundle.manifest
    encoder, generator = OrtEngine(), OrtEngine()
    assert bundle.encoder_path is not None
    encoder.load(bundle.encoder_path)
    generator.load(bundle.generator_path())
    part = bundle.generator()
    pipeline = bundle.pipeline(table.symbols, encoder)
    decider = Decider(
        table.symbols,
        len(manifest.features.names),
        manifest.window.length,
        manifest.window.horizon,
        (Generator(part.name, generator, part.tile, part.window),),
        manifest.served,
        manifest.strategy,
        bundle.bundle_id,
    )
    actions = []
    for seq in range(len(table)):
        tensors = pipeline.step(seq, table.block(seq))
        frame = FeatureFrame(
            's', 1, seq, int(table.event_time_ns[seq]), 0, 'f' * 16, table.symbols, tensors
        )
        actions.append(decider.decide(frame)[0].action)
    return np.array(actions), table.event_time_ns


def test_features_that_no_bar_has_are_named(tmp_path):
    """One symbol alone has no cross-section, however many bars there are."""
    spec = FeatureSpec((FeatureItem('return'), FeatureItem('xs_rank', of='return_1')))
    with pytest.raises(DataError, match='no bar has a value of xs_rank_of_return_1'):
        run_training(tables.simulate(1, 400, 1), tmp_path, TrainingConfig(), spec)
