# SPDX-License-Identifier: Apache-2.0
"""The bundle of a run: what is in it, that it answers as its networks do, and decides."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from heqis_core.bars import BarStatus, BarTable
from heqis_core.batch import answer_all, decide_all
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.decider import mean_of
from heqis_core.decision import Action, Decisions, Predictions
from heqis_core.engine import Engine, infer_tiled
from heqis_core.errors import ConfigError, HeqisError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.io.files import load_bars
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.source import TableSource
from heqis_core.testing import shared_data
from heqis_training import dataset, splits, tables
from heqis_training.bundling import write_loose_files, write_run_bundle
from heqis_training.checkpoint import load_state
from heqis_training.models.build import build_generator
from heqis_training.models.served import ServedGenerator
from heqis_training.recipe import run_training
from heqis_training.run_folder import Run, read_run
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    TransformerSettings,
)
from heqis_training.tensors import WindowTensors
from heqis_training.workshop import DataFacts, Workshop, labelled_parts, open_frames

pytestmark = pytest.mark.usefixtures('no_pictures')

replace = msgspec.structs.replace
CAE = TrainingSettings(
    encoder=EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=2)),
    generators=(
        GruSettings(window=6, hidden=8),
        LstmSettings(name='second', window=5, hidden=8),
        TransformerSettings(window=4, width=8, heads=2, layers=1, feedforward=16),
    ),
    discriminators=(DiscriminatorSettings(window=3, hidden=8),),
    adversarial=AdversarialSettings(identity_epochs=1),
    fit=FitSettings(epochs=2, batch=64),
    tile=16,
    shrink=False,
)
T3VAE = replace(CAE, encoder=replace(CAE.encoder, kind='t3vae', factors=3), horizons=(1, 3))
NONE = replace(
    CAE, encoder=EncoderSettings(kind='none'), generators=CAE.generators[:1], discriminators=()
)
ROWS = 300
NAMES = ('gru', 'second', 'transformer')


@pytest.fixture(scope='module')
def table() -> BarTable:
    """Return a simulated market that no test may change."""
    return tables.simulate(3, ROWS, seed=5)


@pytest.fixture(scope='module')
def runs(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Return a finished run with each kind of encoder."""
    folder = tmp_path_factory.mktemp('runs')
    every = {'cae': CAE, 't3vae': T3VAE, 'none': NONE}
    return {kind: run_training(table, folder / kind, s) for kind, s in every.items()}


@pytest.fixture(scope='module')
def bundles(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Return the bundle of each of them."""
    folder = tmp_path_factory.mktemp('bundles')
    return {kind: write_run_bundle(run, folder) for kind, run in runs.items()}


def make_engine(path: Path) -> Engine:
    engine = OrtEngine()
    engine.load(path)
    return engine


def answered(bundle: Bundle, table: BarTable) -> list[tuple[Decisions, Predictions]]:
    return list(answer_all(bundle, TableSource(table), make_engine))


def workshop(run: Run) -> Workshop:
    facts = msgspec.json.decode(run.facts.read_bytes(), type=DataFacts)
    return Workshop(run, FeatureSpec.from_json(run.spec.read_bytes()), facts)


# --- what is in it -------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['cae', 't3vae', 'none'])
def test_a_bundle_holds_everything_a_board_needs_and_passes_its_own_checks(
    bundles: dict[str, Bundle], kind: str
) -> None:
    bundle = Bundle.load(bundles[kind].path)
    bundle.verify_golden(OrtEngine)
    manifest = bundle.manifest
    generators = NAMES if kind != 'none' else NAMES[:1]
    models = [f'{name}.onnx' for name in generators]
    shared = ['features.json', 'golden.npz', 'scaler.json']
    encoder = ['encoder.onnx'] if kind != 'none' else []
    assert sorted(manifest.files) == sorted(models + shared + encoder)
    assert tuple(part.name for part in manifest.generators) == generators
    assert [part.window for part in manifest.generators] == [6, 5, 4][: len(generators)]
    assert (manifest.window.length, manifest.window.horizon) == (6, 12)
    assert manifest.classes == ('down', 'flat', 'up')
    assert (manifest.encoder is None) == (kind == 'none')
    factors = {'cae': 2, 't3vae': 3, 'none': 0}[kind]
    names = manifest.features.names
    assert sum(name.startswith('factor_') for name in names) == factors
    assert names[: len(bundle.spec.names)] == bundle.spec.names
    with np.load(bundle.path / manifest.golden_file, allow_pickle=False) as golden:
        for name in manifest.model_files():
            assert len(golden[f'{name}/input']) == 16
        outputs = {name.partition('/')[2] for name in golden.files if name.startswith('gru')}
    several = {'log_returns'} if kind == 't3vae' else set()
    assert outputs == {'input', 'log_return', 'logits', 'probabilities'} | several


def test_the_manifest_says_where_the_bundle_comes_from(
    table: BarTable, runs: dict[str, Run], bundles: dict[str, Bundle]
) -> None:
    manifest = bundles['cae'].manifest
    split = splits.chronological(ROWS, CAE.split)
    known = dataset.head(table, split.test_from)
    data = manifest.provenance.data
    assert data.symbols == table.symbols
    assert data.fingerprint == dataset.fingerprint(known)
    assert data.bars == int((known.status == BarStatus.VALID).sum())
    assert data.last_ns <= manifest.trained_until_ns == known.event_time_ns[-1]
    assert manifest.provenance.seed == CAE.seed
    assert manifest.provenance.settings == CAE.flat()
    assert manifest.provenance.packages == runs['cae'].info.packages
    assert {'torch', 'numpy', 'onnxruntime', 'python'} <= set(manifest.provenance.packages)
    assert manifest.provenance.training_s > 0
    training, validation = labelled_parts(
        workshop(runs['cae']), open_frames(workshop(runs['cae']))
    )
    share = (np.abs(training.log_return[:, 0]) <= manifest.flat_band).mean()
    assert share == pytest.approx(1 / 3, abs=0.01)
    models = [row.model for row in manifest.provenance.metrics]
    assert models == [*NAMES, 'ensemble', 'persistence', 'majority class', 'buy and hold']
    assert {row.samples for row in manifest.provenance.metrics} == {len(validation)}


@pytest.mark.parametrize('kind', ['cae', 't3vae', 'none'])
def test_the_served_one_has_the_lowest_score_and_the_rule_says_of_what(
    bundles: dict[str, Bundle], kind: str
) -> None:
    manifest = bundles[kind].manifest
    selection = manifest.provenance.selection
    candidates = (*NAMES, 'ensemble') if kind != 'none' else NAMES[:1]
    assert tuple(selection.scores) == candidates == manifest.candidates()
    assert selection.scores[manifest.served] == min(selection.scores.values())
    assert 'validation loss' in selection.rule
    assert 'the lowest is served' in selection.rule
    assert manifest.ensemble is None or manifest.ensemble.members == NAMES


def test_a_score_is_what_the_exported_file_gets_on_the_validation_windows(
    runs: dict[str, Run], bundles: dict[str, Bundle]
) -> None:
    bundle = bundles['cae']
    manifest = bundle.manifest
    store = open_frames(workshop(runs['cae']))
    training, validation = labelled_parts(workshop(runs['cae']), store)
    spread = training.log_return[:, 0].std()
    windows = WindowTensors(store, validation)
    for part in manifest.generators:
        rows = windows.rows(torch.arange(len(validation)), part.window).numpy()
        found = infer_tiled(make_engine(bundle.generator_path(part.name)), rows, part.tile)
        error = (found['log_return'] - validation.log_return[:, 0]) / spread
        classes = dataset.classify(validation.log_return[:, 0], manifest.flat_band)
        chosen = found['probabilities'][np.arange(len(classes)), classes]
        score = float((error**2).mean() - np.log(chosen).mean())
        expected = manifest.provenance.selection.scores[part.name]
        assert score == pytest.approx(expected, rel=1e-4)


def test_an_ensemble_that_is_not_wanted_is_no_candidate(table: BarTable, tmp_path: Path) -> None:
    alone = replace(CAE, ensemble=False, encoder=EncoderSettings(kind='none'), discriminators=())
    run = run_training(table, tmp_path / 'run', alone)
    manifest = write_run_bundle(run, tmp_path / 'out').manifest
    assert manifest.ensemble is None
    assert manifest.candidates() == NAMES


def test_shrunken_returns_are_those_of_the_best_network_times_a_factor(
    table: BarTable, tmp_path: Path, runs: dict[str, Run]
) -> None:
    run = run_training(table, tmp_path / 'run', replace(NONE, shrink=True))
    best, plain = load_state(run.best).tree, load_state(runs['none'].best).tree
    (factor,) = best['shrinkage']['gru']
    assert plain['shrinkage'] == {}
    assert 0 <= factor <= 1
    for name, weight in plain['networks']['gru'].items():
        expected = weight * factor if name.startswith('return_head') else weight
        torch.testing.assert_close(best['networks']['gru'][name], expected)
    rule = write_run_bundle(run, tmp_path / 'out').manifest.provenance.selection.rule
    assert 'with shrunken returns' in rule


# --- it answers as its networks do ---------------------------------------------------------------


@pytest.mark.parametrize('kind', ['cae', 't3vae', 'none'])
def test_the_onnx_files_answer_what_the_best_networks_answer(
    runs: dict[str, Run], bundles: dict[str, Bundle], kind: str
) -> None:
    run, bundle = runs[kind], bundles[kind]
    store = open_frames(workshop(run))
    training, validation = labelled_parts(workshop(run), store)
    spread = [float(value) for value in training.log_return.std(axis=0)]
    best = load_state(run.best).tree['networks']
    parts = dict(zip(run.settings.generator_names, run.settings.generators, strict=True))
    for name, part in parts.items():
        network = build_generator(part, store.features.shape[1], len(run.settings.horizons))
        network.load_state_dict(best[name])
        rows = WindowTensors(store, validation).rows(torch.arange(40), part.window)
        with torch.no_grad():
            expected = ServedGenerator(network, spread).eval()(rows)
        found = infer_tiled(make_engine(bundle.generator_path(name)), rows.numpy(), 16)
        assert len(found) == len(expected)
        for values, answer in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(values, answer.numpy(), atol=1e-5)


def test_two_horizons_give_log_returns_whose_first_one_is_served(
    bundles: dict[str, Bundle],
) -> None:
    bundle = bundles['t3vae']
    with np.load(bundle.path / 'golden.npz', allow_pickle=False) as golden:
        for name in NAMES:
            returns = golden[f'{name}/log_returns']
            assert returns.shape == (16, 2)
            np.testing.assert_array_equal(returns[:, 0], golden[f'{name}/log_return'])
            assert not np.array_equal(returns[:, 0], returns[:, 1])


@pytest.mark.parametrize('kind', ['cae', 't3vae'])
def test_the_ensemble_that_the_decider_serves_is_the_mean_of_its_members(
    bundles: dict[str, Bundle], table: BarTable, tmp_path: Path, kind: str
) -> None:
    made = bundles[kind]
    files = {name: (made.path / name).read_bytes() for name in made.manifest.files}
    manifest = replace(made.manifest, served='ensemble')
    bundle = Bundle.load(write_bundle(tmp_path, manifest, files))
    judged = 0
    for decisions, predictions in answered(bundle, table):
        assert predictions.generators == (*NAMES, 'ensemble')
        members = predictions.probabilities[:3]
        np.testing.assert_array_equal(predictions.probabilities[3], mean_of(members))
        np.testing.assert_array_equal(
            predictions.log_return[3], mean_of(predictions.log_return[:3])
        )
        np.testing.assert_array_equal(decisions.probabilities, predictions.probabilities[3])
        np.testing.assert_array_equal(decisions.predicted_return, predictions.log_return[3])
        judged += int((decisions.action != Action.NONE).sum())
    assert judged > 100


@pytest.mark.parametrize('kind', ['cae', 't3vae', 'none'])
def test_a_window_that_ends_at_the_newest_bar_gets_a_prediction(
    bundles: dict[str, Bundle], table: BarTable, kind: str
) -> None:
    decisions, predictions = answered(bundles[kind], table)[-1]
    assert decisions.event_time_ns == table.event_time_ns[-1]
    fresh = table.status[-1] == BarStatus.VALID
    assert fresh.any()
    assert (decisions.action[fresh] != Action.NONE).all()
    assert np.isfinite(predictions.probabilities[:, fresh]).all()


def test_the_bars_after_training_are_judged_one_by_one_and_no_others(
    bundles: dict[str, Bundle], table: BarTable
) -> None:
    bundle = bundles['cae']
    times = [one.event_time_ns for one, _ in answered(bundle, table)]
    later = table.event_time_ns > bundle.manifest.trained_until_ns
    assert times == table.event_time_ns[later].tolist()
    assert len(times) == ROWS - math.floor(ROWS * CAE.split.train_fraction)


# --- from a run to files -------------------------------------------------------------------------


def test_exporting_twice_gives_the_same_bundle(
    runs: dict[str, Run], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    made = bundles['cae']
    again = write_run_bundle(runs['cae'], tmp_path)
    assert again.bundle_id == made.bundle_id
    assert [path.name for path in tmp_path.iterdir()] == [made.bundle_id]
    for name in made.manifest.files:
        assert (again.path / name).read_bytes() == (made.path / name).read_bytes()
    written = {path: path.stat().st_mtime_ns for path in again.path.iterdir()}
    assert write_run_bundle(runs['cae'], tmp_path).path == again.path
    assert {path: path.stat().st_mtime_ns for path in again.path.iterdir()} == written


def test_loose_files_are_those_of_the_bundle(
    runs: dict[str, Run], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    made = bundles['cae'].path
    encoder = write_loose_files(runs['cae'], 'encoder', tmp_path / 'deep' / 'encoder')
    assert {path.name for path in encoder} == {'encoder.onnx', 'features.json', 'scaler.json'}
    generators = write_loose_files(runs['cae'], 'generators', tmp_path / 'generators')
    models = {f'{name}.onnx' for name in NAMES}
    assert {path.name for path in generators} == models | {'features.json', 'scaler.json'}
    for path in (*encoder, *generators):
        assert path.read_bytes() == (made / path.name).read_bytes()
        assert [one.name for one in path.parent.iterdir() if one.suffix == '.partial'] == []


@pytest.mark.parametrize('target', ['encoder', 'generators'])
def test_loose_files_that_cannot_be_written_are_an_error(
    runs: dict[str, Run], tmp_path: Path, target: Any
) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(HeqisError, match=r'file: cannot be written .*; choose another folder'):
        write_loose_files(runs['cae'], target, tmp_path / 'file')


def test_a_run_without_encoder_has_none_to_export(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(HeqisError, match='was trained without an encoder; nothing to export'):
        write_loose_files(runs['none'], 'encoder', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'name',
    [
        'spec.json',
        'scaler.json',
        'data.json',
        'encoder.onnx',
        'encoder.golden.npz',
        'best.safetensors',
        'frames/store.json',
        'frames/features.npy',
        'settings.yaml',
        'run.json',
    ],
)
@pytest.mark.parametrize('how', ['cut', 'gone'])
def test_a_damaged_run_is_named_by_its_file_and_leaves_no_half_bundle(
    runs: dict[str, Run], tmp_path: Path, name: str, how: str
) -> None:
    path = tmp_path / 'run'
    shutil.copytree(runs['cae'].path, path, ignore=shutil.ignore_patterns('tensorboard'))
    file = path / name
    data = file.read_bytes()
    file.unlink()
    if how == 'cut':
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(HeqisError) as caught:
        write_run_bundle(read_run(path), tmp_path / 'out')
    # the id of the frames is of the encoder's bytes: other bytes, other frames
    named = 'features_id' if (name, how) == ('encoder.onnx', 'cut') else file.name
    assert named in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_a_run_that_is_not_over_is_refused(table: BarTable, tmp_path: Path) -> None:
    run = run_training(table, tmp_path / 'run', CAE, mode='pretrain')
    with pytest.raises(ConfigError, match=r'training is not over; run `heqis train` to its end'):
        write_run_bundle(run, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# --- real data -----------------------------------------------------------------------------------


def test_three_real_series_give_buys_and_sells_on_what_follows(tmp_path: Path) -> None:
    table, _ = load_bars(shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024')
    settings = TrainingSettings(
        encoder=EncoderSettings(fit=FitSettings(epochs=5)), fit=FitSettings(epochs=4)
    )
    run = run_training(table, tmp_path / 'run', settings)
    bundle = write_run_bundle(run, tmp_path / 'out')
    rows = run.history.read_text().splitlines()
    losses = [float(row.split(',')[5]) for row in rows if row.startswith('encoder,')]
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0]
    decided = list(decide_all(bundle, TableSource(table), make_engine))
    assert len(decided) == len(table) - math.floor(0.7 * len(table))
    actions = np.stack([one.action for one in decided])
    for symbol in range(len(table.symbols)):
        counts = np.bincount(actions[:, symbol], minlength=4)
        assert counts[Action.BUY] > 0
        assert counts[Action.SELL] > 0
        assert counts[Action.NONE] == 0  # warm from the part before


def test_a_spec_of_ones_own_and_thresholds_of_ones_own_reach_the_bundle(
    table: BarTable, tmp_path: Path
) -> None:
    spec = FeatureSpec((FeatureItem('return', {'n': 1}), FeatureItem('rsi', {'n': 6})))
    settings = replace(CAE, flat_band=0.011, valid_for_s=60.0)
    run = run_training(table, tmp_path / 'run', settings, spec)
    manifest = write_run_bundle(run, tmp_path / 'out').manifest
    assert manifest.features.names == ('return_1', 'rsi_6', 'factor_0', 'factor_1')
    assert manifest.flat_band == 0.011
    assert manifest.strategy.valid_for_s == 60
