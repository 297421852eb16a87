# SPDX-License-Identifier: Apache-2.0
"""A training run as a whole: nothing leaks, the same again is the same, bad input has a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from heqis_core.bars import CLOSE, VOLUME, BarStatus, BarTable
from heqis_core.bundle import Bundle
from heqis_core.errors import BundleError, ConfigError, DataError, HeqisError
from heqis_core.features.spec import FeatureItem, FeatureSpec, default_spec
from heqis_core.features.state import FeatureState
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_training import dataset, splits, tables
from heqis_training.bundling import write_run_bundle
from heqis_training.checkpoint import load_state, previous_of, save_state
from heqis_training.recipe import Mode, run_name, run_training
from heqis_training.run_folder import Run, hold_run
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    SplitSettings,
    TrainingSettings,
    TransformerSettings,
)
from heqis_training.store import Frame, frames
from heqis_training.workshop import DataFacts, Workshop, labelled_parts, open_frames

SHORT = TrainingSettings(
    encoder=EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=2)),
    generators=(
        GruSettings(window=6, hidden=8),
        LstmSettings(window=5, hidden=8),
        TransformerSettings(window=4, width=8, heads=2, layers=1, feedforward=16),
    ),
    discriminators=(DiscriminatorSettings(window=3, hidden=8), DiscriminatorSettings(window=5)),
    adversarial=AdversarialSettings(identity_epochs=1, distil_every=2, cross_every=2),
    fit=FitSettings(epochs=3, batch=64),
    tile=16,
)
"""Every stage in a second: distillation, cross fine-tuning, both kinds of weights."""
ROWS = 300
SPLIT = splits.chronological(ROWS, SHORT.split)
pytestmark = pytest.mark.usefixtures('no_pictures')

replace = msgspec.structs.replace
ONE_EPOCH = replace(
    SHORT,
    encoder=replace(SHORT.encoder, fit=FitSettings(epochs=1)),
    fit=replace(SHORT.fit, epochs=1),
)
PLAIN = replace(
    SHORT,
    encoder=EncoderSettings(kind='none'),
    generators=(GruSettings(window=6, hidden=8),),
    discriminators=(),
)
"""One generator and nothing else, where a test needs no more."""


@pytest.fixture(scope='module')
def table() -> BarTable:
    """Return a simulated market that no test may change."""
    return tables.simulate(3, ROWS, seed=5)


class Trained:
    """A finished run and its bundle."""

    def __init__(
        self,
        table: BarTable,
        folder: Path,
        settings: TrainingSettings = SHORT,
        spec: FeatureSpec | None = None,
    ) -> None:
        self.run = run_training(table, folder / 'run', settings, spec)
        self.bundle = write_run_bundle(self.run, folder / 'out')
        self.manifest = self.bundle.manifest
        self.id = self.bundle.bundle_id

    @property
    def files(self) -> dict[str, bytes]:
        """Return every file of the bundle but the manifest, which holds a clock."""
        path = self.bundle.path
        return {name: (path / name).read_bytes() for name in self.manifest.files}


@pytest.fixture(scope='module')
def trained(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a short training on that market."""
    return Trained(table, tmp_path_factory.mktemp('trained'))


def weights_of(run: Run) -> dict[str, Tensor]:
    """Return every weight of the last epoch and of the best ones, by network and name."""
    encoder = load_state(run.encoder).tree['trainee']['player']['network']
    players = load_state(run.checkpoint).tree['trainee']['players']
    networks = {'encoder': encoder}
    networks |= {f'last {name}': player['network'] for name, player in players.items()}
    networks |= {f'best {k}': v for k, v in load_state(run.best).tree['networks'].items()}
    return {f'{name} {key}': v for name, net in networks.items() for key, v in net.items()}


def assert_same_weights(one: Run, other: Run) -> None:
    expected, found = weights_of(one), weights_of(other)
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


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


def test_other_bars_in_the_test_part_change_no_byte(
    table: BarTable, trained: Trained, tmp_path: Path
) -> None:
    other = altered(table, SPLIT.test_from, ROWS)
    other.event_time_ns[SPLIT.test_from :] += 123
    assert not np.array_equal(other.values, table.values, equal_nan=True)
    again = Trained(other, tmp_path)
    assert again.id == trained.id
    assert again.files == trained.files
    assert again.run.history.read_bytes() == trained.run.history.read_bytes()
    assert again.run.info.data == trained.run.info.data
    assert_same_weights(again.run, trained.run)
    assert trained.manifest.trained_until_ns == table.event_time_ns[SPLIT.test_from - 1]


def test_stages_after_the_cut_get_a_copy_that_ends_there(
    table: BarTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BarTable] = []

    def watched(pipeline: FeaturePipeline, bars: BarTable) -> Iterator[Frame]:
        seen.append(bars)
        return frames(pipeline, bars)

    def fit(bars: BarTable, *rest: Any) -> Scaler:
        seen.append(bars)
        return dataset.fit_scaler(bars, *rest)

    monkeypatch.setattr('heqis_training.recipe.frames', watched)
    monkeypatch.setattr('heqis_training.workshop.frames', watched)
    monkeypatch.setattr('heqis_training.recipe.dataset', Spy(fit_scaler=fit))
    run_training(table, tmp_path, ONE_EPOCH)
    assert len(seen) == 3, 'the scaler, the indicators, the frames'
    for bars in seen:
        assert len(bars) == SPLIT.test_from
        for name in ('values', 'status', 'event_time_ns'):
            mine, given = getattr(bars, name), getattr(table, name)
            assert not np.shares_memory(mine, given), name
            assert mine.base is None or len(mine.base) == SPLIT.test_from


class Spy:
    """The module `dataset` with some of its functions watched."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(dataset, name)


def test_the_last_bar_before_the_test_part_does_change_something(
    table: BarTable, trained: Trained, tmp_path: Path
) -> None:
    other = altered(table, SPLIT.test_from - 1, SPLIT.test_from)
    assert Trained(other, tmp_path).id != trained.id


def test_other_validation_bars_leave_all_that_is_learned_before_the_first_choice(
    table: BarTable, tmp_path: Path
) -> None:
    """Scaler, flat band, what encoder and generators learn from, and the weights of epoch 1.

    Validation is there to choose: from epoch 2 on the schedules, pair weights and what is undone,
    then best epochs, shrinkage, thresholds, the served generator and every figure may change.
    """
    one = Trained(table, tmp_path / 'one', ONE_EPOCH)
    other = Trained(
        altered(table, SPLIT.validation_from, SPLIT.test_from), tmp_path / 'other', ONE_EPOCH
    )
    for name in ('scaler.json', 'features.json', 'encoder.onnx'):
        assert other.files[name] == one.files[name], name
    assert other.manifest.flat_band == one.manifest.flat_band
    for before, after in zip(training_rows(one.run), training_rows(other.run), strict=True):
        np.testing.assert_array_equal(before, after)
    expected, found = weights_of(one.run), weights_of(other.run)
    learned = [name for name in expected if not name.startswith('best')]
    assert {name.split()[0] for name in learned} == {'encoder', 'last'}
    assert [name for name in learned if not torch.equal(expected[name], found[name])] == []
    assert other.manifest.provenance.selection.scores != one.manifest.provenance.selection.scores
    assert other.id != one.id


def training_rows(run: Run) -> tuple[np.ndarray, ...]:
    """Return packed frames before the validation part, and the labels of training windows."""
    work = workshop(run)
    store = open_frames(work)
    before = store.t < work.facts.validation_from
    training, _ = labelled_parts(work, store)
    return store.features[before], training.t, training.s, training.log_return


def workshop(run: Run) -> Workshop:
    facts = msgspec.json.decode(run.facts.read_bytes(), type=DataFacts)
    return Workshop(run, FeatureSpec.from_json(run.spec.read_bytes()), facts)


@pytest.mark.parametrize('start', [SPLIT.test_from, SPLIT.validation_from])
def test_volumes_that_only_later_parts_have_do_not_choose_the_spec(
    table: BarTable, tmp_path: Path, start: int
) -> None:
    other = dataset.head(table, ROWS)
    other.values[:start, VOLUME, 0] = np.nan
    assert np.isfinite(other.values[start:, VOLUME, 0]).any()
    names = run_training(other, tmp_path, PLAIN).info.features
    assert names == default_spec(False).names
    assert names != default_spec(True).names


def test_labels_keep_their_distance_to_the_next_part_in_a_real_run(
    table: BarTable, tmp_path: Path
) -> None:
    embargo, horizons = 4, (1, 3)
    settings = replace(PLAIN, horizons=horizons, split=SplitSettings(embargo=embargo))
    run = run_training(table, tmp_path, settings)
    work = workshop(run)
    store = open_frames(work)
    training, validation = labelled_parts(work, store)
    last = {'training': SPLIT.validation_from - embargo, 'validation': SPLIT.test_from - embargo}
    for part, stop in zip((training, validation), last.values(), strict=True):
        for t, s, label in zip(part.t, part.s, part.log_return, strict=True):
            bars = np.flatnonzero(table.status[:, s] == BarStatus.VALID)
            place = int(np.searchsorted(bars, t))
            ahead = bars[[place + h for h in horizons]]
            assert ahead[-1] < stop
            close = table.values[[t, *ahead], CLOSE, s]
            np.testing.assert_allclose(label, np.log(close[1:] / close[0]), atol=1e-12)
        assert part.label_row.max() == stop - 1, 'no more is left out than must be'
    assert validation.t.min() == SPLIT.validation_from


def test_the_scaler_is_fitted_on_whole_training_rows_alone(
    table: BarTable, trained: Trained
) -> None:
    bundle = trained.bundle
    raw = FeatureState(bundle.spec, 3).batch(table.values, table.status)[: SPLIT.validation_from]
    whole = np.isfinite(raw).all(axis=2)
    assert bundle.scaler == Scaler.fit(bundle.spec.names, raw[whole])


# --- the same again ------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bundle_and_another_seed_another(
    table: BarTable, trained: Trained, tmp_path: Path
) -> None:
    again = Trained(table, tmp_path / 'again')
    assert again.id == trained.id
    assert again.files == trained.files
    other = Trained(table, tmp_path / 'other', replace(SHORT, seed=8))
    assert other.id != trained.id
    for name in ('encoder.onnx', 'gru.onnx', 'lstm.onnx', 'transformer.onnx'):
        assert other.files[name] != trained.files[name], name


def test_pretrain_then_train_equals_all(table: BarTable, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no encoder is trained there yet; use --mode pretrain'):
        run_training(table, tmp_path / 'run', SHORT, mode='train')
    assert not (tmp_path / 'run').exists()
    first = run_training(table, tmp_path / 'run', SHORT, mode='pretrain')
    assert not first.finished
    assert not first.checkpoint.exists()
    assert not first.indicators.exists()
    again = run_training(table, tmp_path / 'run', SHORT, mode='pretrain')
    assert again.encoder_onnx.read_bytes() == trained.run.encoder_onnx.read_bytes()
    with pytest.raises(ConfigError, match='training is not over'):
        write_run_bundle(again, tmp_path / 'out')
    run = run_training(table, tmp_path / 'run', SHORT, mode='train')
    assert write_run_bundle(run, tmp_path / 'out').bundle_id == trained.id
    assert run.history.read_bytes() == trained.run.history.read_bytes()
    assert_same_weights(run, trained.run)


@pytest.mark.parametrize('mode', ['pretrain', 'train', 'all'])
def test_a_finished_run_trains_nothing_and_makes_lost_frames_again(
    table: BarTable, tmp_path: Path, mode: Mode
) -> None:
    run = run_training(table, tmp_path / 'run', ONE_EPOCH)
    bundle = write_run_bundle(run, tmp_path / 'out')
    written = {path: path.read_bytes() for path in (run.checkpoint, run.best, run.history)}
    for file in run.frames.iterdir():
        file.unlink()
    with pytest.raises(
        DataError, match=r'store\.json: no frame store: .*; the same heqis train command makes'
    ):
        write_run_bundle(run, tmp_path / 'none')
    again = run_training(table, tmp_path / 'run', ONE_EPOCH, mode=mode)
    assert again.finished
    assert {path: path.read_bytes() for path in written} == written
    assert write_run_bundle(again, tmp_path / 'none').bundle_id == bundle.bundle_id


def test_the_default_folder_of_a_run_is_named_after_settings_features_and_bars(
    table: BarTable,
) -> None:
    name = run_name(table, SHORT)
    assert name.parent == Path('output/runs')
    assert run_name(altered(table, SPLIT.test_from, ROWS), SHORT) == name
    longer = replace(SHORT, fit=replace(SHORT.fit, epochs=9))
    assert run_name(table, longer) == name, 'a run may go on for longer'
    others = {
        run_name(table, replace(SHORT, seed=8)),
        run_name(table, SHORT, FeatureSpec((FeatureItem('return'),))),
        run_name(altered(table, 0, 9), SHORT),
    }
    assert len({name, *others}) == 4


# --- what cannot be trained ----------------------------------------------------------------------


def refused(
    error: type[HeqisError],
    message: str,
    table: BarTable,
    folder: Path,
    settings: TrainingSettings = PLAIN,
    spec: FeatureSpec | None = None,
    **more: Any,
) -> None:
    """Hold that training ends with that error."""
    with pytest.raises(error, match=message):
        run_training(table, folder / 'run', settings, spec, **more)


@pytest.mark.parametrize('rows', [1, 2, 3, 60])
@pytest.mark.parametrize('kind', ['none', 'cae'])
def test_a_series_that_is_too_short_says_what_there_is_and_what_is_needed(
    tmp_path: Path, rows: int, kind: Any
) -> None:
    table = tables.simulate(['600519.SH'], rows, 1)
    table.status[:] = BarStatus.VALID
    table.values[:] = np.abs(np.nan_to_num(table.values, nan=10.0)) + 1
    settings = replace(PLAIN, encoder=replace(SHORT.encoder, kind=kind))
    spec = FeatureSpec((FeatureItem('return'),))
    match = rf'600519\.SH {rows}\..*alone needs \d+ clean bars'
    refused(DataError, match, table, tmp_path, settings, spec)
    refused(DataError, match, table, tmp_path, settings)
    assert not list(tmp_path.iterdir())


def test_gaps_that_leave_too_few_windows_are_counted(tmp_path: Path) -> None:
    table = tables.simulate(['600519.SH'], 1000, 1)
    table.status[:] = BarStatus.VALID
    table.values[:] = np.abs(np.nan_to_num(table.values, nan=10.0)) + 1
    scattered = np.arange(1000) % 5 > 0
    table.status[scattered] = BarStatus.NO_BAR
    table.values[scattered] = np.nan
    spec = FeatureSpec((FeatureItem('return'),))
    match = r'600519\.SH 200\. .* gives 0 training windows \(at least 64'
    refused(DataError, match, table, tmp_path, spec=spec)


def test_as_many_bars_as_the_message_asks_for_are_enough(tmp_path: Path) -> None:
    spec = FeatureSpec((FeatureItem('return'),))
    needed = dataset.bars_needed(spec.warmup_bars + PLAIN.window - 1, PLAIN.split)
    table = tables.simulate(['600519.SH'], needed, 1)
    table.status[:] = BarStatus.VALID
    table.values[:] = np.abs(np.nan_to_num(table.values, nan=10.0)) + 1
    assert run_training(table, tmp_path / 'run', PLAIN, spec).finished
    shorter = dataset.head(table, needed - 12)
    refused(DataError, f'needs {needed} clean', shorter, tmp_path / 'short', PLAIN, spec)


@pytest.mark.parametrize('status', [BarStatus.SUSPENDED, BarStatus.NO_BAR])
def test_a_symbol_that_never_trades_is_no_obstacle_beside_others_and_named_alone(
    table: BarTable, tmp_path: Path, status: BarStatus
) -> None:
    other = dataset.head(table, ROWS)
    other.status[:, 0] = status
    other.values[:, :, 0] = np.nan
    settings = replace(PLAIN, fit=replace(PLAIN.fit, epochs=1))
    found = Trained(other, tmp_path / 'beside', settings)
    assert Bundle.load(found.bundle.path).manifest.provenance.data.symbols == table.symbols
    assert set(np.unique(open_frames(workshop(found.run)).s)) == {1, 2}
    alone = other.select(table.symbols[:1])
    refused(DataError, 'clean bars: 000001.SZ 0', alone, tmp_path / 'alone')


def test_a_symbol_without_volume_leaves_the_volume_feature_out(
    table: BarTable, trained: Trained, tmp_path: Path
) -> None:
    other = dataset.head(table, ROWS)
    other.values[:, VOLUME, 1] = np.nan
    names = run_training(other, tmp_path, PLAIN).info.features
    assert 'volume_ratio_5' in trained.manifest.features.names
    assert 'volume_ratio_5' not in names


def test_prices_that_never_move_are_refused(table: BarTable, tmp_path: Path) -> None:
    other = dataset.head(table, ROWS)
    other.values[:, :4] = np.where(np.isnan(other.values[:, :4]), np.nan, 10.0)
    refused(DataError, 'returns of the training part are zero; check', other, tmp_path)


def test_a_feature_that_no_bar_has_is_named(tmp_path: Path) -> None:
    """One symbol alone has no cross-section, however many bars there are."""
    spec = FeatureSpec((FeatureItem('return'), FeatureItem('xs_rank', of='return_1')))
    alone = tables.simulate(1, ROWS, 1)
    match = 'no bar of the training part has a value of xs_rank_of_return_1'
    refused(DataError, match, alone, tmp_path, spec=spec)


def test_a_column_that_is_empty_is_named_by_the_features_that_need_it(
    table: BarTable, tmp_path: Path
) -> None:
    other = dataset.head(table, ROWS)
    other.values[:, VOLUME] = np.nan
    match = r'has a value of volume_ratio_5: .* leave these features out'
    refused(DataError, match, other, tmp_path, spec=default_spec(True))


def test_a_channel_that_is_not_there_is_named(table: BarTable, tmp_path: Path) -> None:
    spec = FeatureSpec((FeatureItem('return'), FeatureItem('return', of='channel:pe_ttm')))
    refused(ConfigError, 'pe_ttm', table, tmp_path, spec=spec)


def test_windows_without_a_finite_label_are_left_out(table: BarTable, tmp_path: Path) -> None:
    other = dataset.head(table, ROWS)
    other.values[100:130, CLOSE, 1] = np.nan  # what cleaning would have refused
    run = run_training(other, tmp_path, PLAIN)
    work = workshop(run)
    for part in labelled_parts(work, open_frames(work)):
        assert np.isfinite(part.log_return).all()
        assert not np.isin(part.t[part.s == 1], np.arange(99, 130)).any()
    assert all(torch.isfinite(value).all() for value in load_best(run))


def load_best(run: Run) -> list[Tensor]:
    networks = load_state(run.best).tree['networks']
    return [value for network in networks.values() for value in network.values()]


def test_a_learning_rate_that_ruins_a_network_is_an_error_that_names_it(
    table: BarTable, tmp_path: Path
) -> None:
    settings = replace(PLAIN, fit=replace(PLAIN.fit, learning_rate=1e38))
    refused(DataError, 'gru: epoch 1 has no finite validation', table, tmp_path, settings)
    encoder = replace(SHORT.encoder, fit=FitSettings(epochs=2, learning_rate=1e38))
    settings = replace(PLAIN, encoder=encoder)
    match = 'encoder: no epoch of 2 had a finite validation loss; lower the learning rate'
    refused(DataError, match, table, tmp_path / 'encoder', settings)


def test_a_window_of_one_row_is_refused(table: BarTable, tmp_path: Path) -> None:
    settings = replace(PLAIN, generators=(GruSettings(window=1),))
    refused(ConfigError, 'gru: window is 1, expected at least 2', table, tmp_path, settings)


@pytest.mark.parametrize('device', ['cuda', 'cuda:3', 'nonsense', 'meta'])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    table: BarTable, tmp_path: Path, device: str
) -> None:
    if device.startswith('cuda') and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    told = rf'device .?{device}\b.*(; use `cpu`|expected auto)'
    refused(ConfigError, told, table, tmp_path, device=device)
    assert not list(tmp_path.iterdir())


def test_pretraining_without_an_encoder_is_refused(table: BarTable, tmp_path: Path) -> None:
    refused(ConfigError, 'encoder.kind is none', table, tmp_path, mode='pretrain')
    assert not list(tmp_path.iterdir())


# --- a run folder that does not fit --------------------------------------------------------------


def test_other_settings_features_or_bars_are_refused_in_the_same_folder(
    table: BarTable, tmp_path: Path
) -> None:
    run = run_training(table, tmp_path / 'run', PLAIN)
    written = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    wider = replace(PLAIN, generators=(GruSettings(window=6, hidden=9),))
    refused(ConfigError, r'generators\.0\.hidden was 8, now 9', table, tmp_path, wider)
    spec = FeatureSpec((FeatureItem('return'),))
    refused(ConfigError, f'feature spec was {run.info.spec}', table, tmp_path, spec=spec)
    other = altered(table, 0, 9)
    refused(ConfigError, 'the bars are others', other, tmp_path)
    fewer = replace(PLAIN, fit=replace(PLAIN.fit, epochs=2))
    refused(ConfigError, '3 epochs are done .* fit.epochs is 2', table, tmp_path, fewer)
    hasty = replace(PLAIN, fit=replace(PLAIN.fit, patience=1))
    refused(ConfigError, 'fit.patience 5; .* fit.patience 1', table, tmp_path, hasty)
    assert {file: file.read_bytes() for file in written} == written


def test_a_run_folder_in_use_is_refused(table: BarTable, tmp_path: Path) -> None:
    data = dataset.fingerprint(dataset.head(table, SPLIT.test_from))
    with hold_run(tmp_path / 'run', PLAIN, default_spec(True), data):
        refused(ConfigError, r'process \d+ on .* is training there', table, tmp_path)


@pytest.mark.parametrize('which', ['encoder', 'checkpoint'])
def test_a_checkpoint_of_another_architecture_is_refused_and_stays(
    table: BarTable, tmp_path: Path, which: str
) -> None:
    settings = replace(SHORT, encoder=replace(SHORT.encoder, fit=FitSettings(epochs=1)))
    run = run_training(table, tmp_path / 'run', settings)
    path: Path = getattr(run, which)
    state = load_state(path)
    trainee = state.tree['trainee']
    player = trainee['player'] if which == 'encoder' else trainee['players']['lstm']
    name, value = list(player['network'].items())[-1]
    player['network'][name] = torch.zeros(len(value) + 1)
    save_state(path, state.tree, state.about)
    written = path.read_bytes()
    run.encoder_onnx.unlink()
    longer = replace(settings, fit=replace(settings.fit, epochs=4))
    network = 'encoder' if which == 'encoder' else 'lstm'
    match = (
        f'checkpoint of another architecture: {network}: {name} is float32 '
        rf'\({len(value) + 1},\), now float32 \({len(value)},\)'
    )
    refused(ConfigError, match, table, tmp_path, longer)
    assert path.read_bytes() == written


def test_a_damaged_checkpoint_goes_on_from_the_one_before_to_the_same_end(
    table: BarTable, trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = replace(SHORT, fit=replace(SHORT.fit, epochs=2))
    run = run_training(table, tmp_path / 'run', two)
    data = bytearray(run.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint.write_bytes(data)
    again = run_training(table, tmp_path / 'run', SHORT)
    assert 'checkpoint is damaged' in caplog.text
    assert write_run_bundle(again, tmp_path / 'out').bundle_id == trained.id
    assert_same_weights(again, trained.run)


def test_two_damaged_checkpoints_are_an_error_that_says_what_to_do(
    table: BarTable, tmp_path: Path
) -> None:
    run = run_training(table, tmp_path / 'run', PLAIN)
    for path in (run.checkpoint, previous_of(run.checkpoint)):
        path.write_bytes(path.read_bytes()[:-1])
    longer = replace(PLAIN, fit=replace(PLAIN.fit, epochs=4))
    refused(DataError, 'is cut: .* remove both to start anew', table, tmp_path, longer)


@pytest.mark.parametrize('name', ['scaler.json', 'encoder.onnx'])
def test_a_damaged_file_of_the_run_is_named(table: BarTable, tmp_path: Path, name: str) -> None:
    run_training(table, tmp_path / 'run', SHORT, mode='pretrain')
    (tmp_path / 'run' / name).write_bytes(b'{}')
    refused(HeqisError, rf'{name}\W', table, tmp_path, SHORT)


def test_a_bundle_folder_that_cannot_be_written_is_named_and_the_run_is_kept(
    table: BarTable, tmp_path: Path
) -> None:
    run = run_training(table, tmp_path / 'run', PLAIN)
    (tmp_path / 'file').write_text('')
    with pytest.raises(BundleError, match=r'file: cannot be written: .*; choose another folder'):
        write_run_bundle(run, tmp_path / 'file')
    assert write_run_bundle(run, tmp_path / 'out').bundle_id
