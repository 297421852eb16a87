# SPDX-License-Identifier: Apache-2.0
"""The recipe: from a table of bars to trained networks in a run folder, so that nothing can leak.

Everything after the cut sees only the bars before it, because it gets a copy that ends there. The
features that the generators learn from come out of the pipeline and the exported encoder that the
boards run. What becomes of a finished run is the business of `bundling`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from heqis_core.bars import VOLUME, BarStatus, BarTable
from heqis_core.errors import ConfigError
from heqis_core.features.spec import FeatureSpec, default_spec
from heqis_core.scaler import Scaler
from heqis_training import dataset, splits
from heqis_training.batches import Part, Scale
from heqis_training.checkpoint import (
    check_about,
    check_weights,
    load_latest,
    save_state,
    write_durable,
)
from heqis_training.dataset import Samples
from heqis_training.device import Device, open_device
from heqis_training.export import checked_outputs, export_onnx, golden_file
from heqis_training.loop import Tree, deterministic, run_epochs
from heqis_training.monitor import SILENT, Monitor, Note, monitoring
from heqis_training.multigan import MultiGan
from heqis_training.pretrain import ENCODER, Pretraining
from heqis_training.run_folder import (
    DEFAULT_RUNS,
    ENCODER_ONNX,
    Run,
    finish_run,
    hold_run,
    read_run,
)
from heqis_training.settings import TrainingSettings
from heqis_training.splits import Split
from heqis_training.store import FrameStore, StoreKey, frames
from heqis_training.tensors import WindowTensors
from heqis_training.workshop import (
    DataFacts,
    Workshop,
    golden_places,
    labelled_parts,
    open_frames,
    pipeline_of,
    read_file,
)

Mode = Literal['pretrain', 'train', 'all']
DRAW_EVERY = 10
"""Epochs between two pictures of the curves."""


def run_training(
    table: BarTable,
    path: Path | str,
    settings: TrainingSettings | None = None,
    spec: FeatureSpec | None = None,
    *,
    mode: Mode = 'all',
    device: str = 'auto',
    console: Console | None = None,
) -> Run:
    """Train in the run folder `path`, from where it stands; return the run.

    Args:
        table: bars; those after the first `train_fraction` of the event times are not read.
        path: folder of the run, see `run_folder.hold_run`.
        settings: what is trained and how; None takes the defaults.
        spec: features; None takes the default spec.
        mode: `pretrain` ends with the encoder, `train` wants one that is there, `all` does both.
        device: `auto`, or a name that torch knows.
        console: shows progress; None is silent.

    The same bars, settings, spec and packages give the same weights on the CPU, however often the
    run was interrupted. Raises DataError if there are too few bars or they cannot be learned from,
    ConfigError for settings that cannot be or do not fit the folder.
    """
    settings = settings or TrainingSettings()
    if mode == 'pretrain' and settings.encoder.kind == 'none':
        raise ConfigError(
            'mode pretrain trains the encoder, and encoder.kind is none; use cae or t3vae, or '
            'mode train'
        )
    if mode == 'train' and settings.encoder.kind != 'none':
        _require_encoder(Path(path))
    split, known, spec = _before_test(table, settings, spec)
    bars = (table.status == BarStatus.VALID).sum(axis=0)
    _require_bars(known, split, spec, settings, bars)
    facts = _facts(known, split)
    with open_device(device, settings.precision) as where:
        if where.rank:
            return _join(known, Path(path), facts, spec, mode, where)
        with hold_run(Path(path), settings, spec, facts.fingerprint) as run:
            say = _printer(console)
            say(run.status)
            say(_dates(table, split))
            work = Workshop(run, spec, facts)
            if run.finished:
                open_frames(work, known)  # made again where they have been removed
                where.barrier()
                return run
            with _told(run, console) as monitor:
                _prepare(work, known, bars, mode, where, monitor)
                where.barrier()
                if mode != 'pretrain':
                    _train(work, known, bars, where, monitor, say)
            return run if mode == 'pretrain' else finish_run(run)


def run_name(
    table: BarTable, settings: TrainingSettings | None = None, spec: FeatureSpec | None = None
) -> Path:
    """Return the default folder of a run: the same settings, features and bars share one."""
    settings = settings or TrainingSettings()
    _, known, spec = _before_test(table, settings, spec)
    made_of = '-'.join((settings.id[:8], spec.id[:8], dataset.fingerprint(known)[:8]))
    return Path(DEFAULT_RUNS) / made_of


def scale_of(settings: TrainingSettings, training: Samples) -> Scale:
    """Return spread and flat band of the training windows."""
    band = settings.flat_band or dataset.flat_band(training.log_return[:, 0])
    return Scale.of(training, band)


def has_volume(table: BarTable) -> bool:
    """Return whether every symbol that trades has volumes; without them it would never warm up."""
    valid = table.status == BarStatus.VALID
    traded = valid & (table.values[:, VOLUME, :] > 0)
    return bool((traded.any(axis=0) == valid.any(axis=0)).all())


def _before_test(
    table: BarTable, settings: TrainingSettings, spec: FeatureSpec | None
) -> tuple[Split, BarTable, FeatureSpec]:
    """Return the split, a copy of the bars before the test part, and the features."""
    split = splits.chronological(len(table), settings.split)
    known = dataset.head(table, split.test_from)
    spec = spec or default_spec(has_volume(known.head(split.validation_from)))
    return split, known, spec


# --- stages --------------------------------------------------------------------------------------


def _prepare(
    work: Workshop,
    known: BarTable,
    bars: npt.NDArray[np.int64],
    mode: Mode,
    device: Device,
    monitor: Monitor,
) -> None:
    """Fit the scaler, train the encoder, make the frames: whatever is not there yet."""
    run = work.run
    write_durable(run.facts, msgspec.json.format(msgspec.json.encode(work.facts), indent=2))
    if not run.scaler.exists():
        scaler = dataset.fit_scaler(known, work.spec, work.facts.validation_from, run.path)
        write_durable(run.scaler, scaler.to_json().encode())
    if work.settings.encoder.kind != 'none' and not run.encoder_onnx.exists():
        _pretrain(work, known, bars, device, monitor)
    FrameStore.remove(run.indicators)  # here: a run that was killed may have left them
    if mode != 'pretrain':
        open_frames(work, known)


def _pretrain(
    work: Workshop,
    known: BarTable,
    bars: npt.NDArray[np.int64],
    device: Device,
    monitor: Monitor,
) -> None:
    settings, run = work.settings.encoder, work.run
    scaler = read_file(run.scaler, Scaler.from_json)
    pipeline = pipeline_of(work, known, scaler, None)
    key = StoreKey(work.facts.fingerprint, scaler.id, work.spec.names, work.settings.horizons)
    store = FrameStore.build(known, frames(pipeline, known), key, run.indicators)
    samples = store.samples(settings.window, 2 * settings.window)
    parts = splits.unlabelled_parts(samples, work.facts.split, work.settings.split.embargo)
    _require(work, bars, len(parts[0]), len(parts[1]))
    windows = [(WindowTensors(store, part, device.name), len(part)) for part in parts]
    about = run.about('encoder')
    saved = _saved(run.encoder, about)
    with deterministic(work.settings.seed):
        trainee = Pretraining(settings, len(work.spec.names), windows[0], windows[1], device)
        if saved:
            check_weights(
                run.encoder,
                {ENCODER: trainee.network},
                {ENCODER: saved['trainee']['player']['network']},
            )
        run_epochs(
            ENCODER,
            trainee,
            settings.fit.epochs,
            settings.fit.patience,
            monitor,
            saved=saved,
            save=lambda tree: save_state(run.encoder, tree, about),
        )
        encoder = trainee.finish()
    tile = work.settings.tile_of(len(work.facts.symbols))
    shape = (tile, len(work.spec.names), 1, settings.window)
    data = export_onnx(encoder, shape, 'window', ('factors',))
    host = WindowTensors(store, parts[0])
    rows = host.images(golden_places(len(parts[0])), settings.window).numpy()
    answers = checked_outputs(data, encoder, rows, tile, ('factors',))
    golden = {f'{ENCODER}/input': rows, f'{ENCODER}/factors': answers['factors']}
    write_durable(run.encoder_golden, golden_file(golden))
    write_durable(run.encoder_onnx, data)  # last: with it the pre-training is over


def _train(
    work: Workshop,
    known: BarTable,
    bars: npt.NDArray[np.int64],
    device: Device,
    monitor: Monitor,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train the generators; the first process saves what it learns."""
    settings, run = work.settings, work.run
    started_s = time.monotonic()
    store = open_frames(work, known)
    training, validation = labelled_parts(work, store)
    _require(work, bars, len(training), len(validation))
    scale = scale_of(settings, training)
    say(_windows(training, validation, scale, device))
    parts = [
        Part(store, part, scale, settings.window, settings.past, device.name)
        for part in (training, validation)
    ]
    about = run.about('training')
    saved = _saved(run.checkpoint, about)
    spent_s = saved['spent_s'] if saved else 0.0

    def save(tree: Tree) -> None:
        if not device.rank:
            spent = spent_s + time.monotonic() - started_s
            save_state(run.checkpoint, tree | {'spent_s': spent}, about)

    with deterministic(settings.seed + 1):
        game = MultiGan(settings, store.features.shape[1], parts[0], parts[1], device)
        fit = settings.fit
        if saved:
            players = saved['trainee']['players']
            check_weights(
                run.checkpoint,
                game.networks(),
                {name: player['network'] for name, player in players.items()},
            )
        run_epochs('generators', game, fit.epochs, fit.patience, monitor, saved=saved, save=save)
        networks = game.best_networks()
        if device.rank:
            return
        factors = game.shrink_returns() if settings.shrink else {}
        for name, values in factors.items():
            text = ', '.join(f'{value:.2f}' for value in values)
            monitor.note(Note(0, f'{name}: forecast returns × {text} (validation)'))
        best = {
            'networks': {name: network.state_dict() for name, network in networks.items()},
            'scores': {name: list(score) for name, score in game.candidates().items()},
            'shrinkage': factors,
            'spent_s': spent_s + time.monotonic() - started_s,
        }
        save_state(run.best, best, run.about('best'))


def _join(
    known: BarTable, path: Path, facts: DataFacts, spec: FeatureSpec, mode: Mode, device: Device
) -> Run:
    """Train beside the first process, once it has prepared everything; save nothing."""
    device.barrier()
    run = read_run(path)
    if mode == 'pretrain' or run.finished:
        return run
    bars = (known.status == BarStatus.VALID).sum(axis=0)
    _train(Workshop(run, spec, facts), known, bars, device, SILENT)
    return run


@contextlib.contextmanager
def _told(run: Run, console: Console | None) -> Iterator[Monitor]:
    """Give the monitor of a run, which knows how far its checkpoints are."""
    kept: dict[str, int] = {}
    for path, names in (
        (run.encoder, (ENCODER,)),
        (run.checkpoint, run.settings.network_names),
    ):
        state = load_latest(path)
        if state is not None:
            kept |= dict.fromkeys(names, int(state.tree['progress']['done']))
    console = console or Console(quiet=True)
    with monitoring(run, console, kept, DRAW_EVERY) as monitor:
        yield monitor


def _saved(path: Path, about: Mapping[str, str]) -> Tree | None:
    """Return what a checkpoint of this run holds, None without one."""
    state = load_latest(path)
    if state is None:
        return None
    check_about(state, about)
    tree: Tree = state.tree
    return tree


def _printer(console: Console | None) -> Callable[[str], None]:
    """Return what prints a line for people, or does nothing without a console."""
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, soft_wrap=True)


def _dates(table: BarTable, split: Split) -> str:
    """Return which days train, validate and are left alone."""

    def day(row: int) -> str:
        return str(np.datetime64(int(table.event_time_ns[row]), 'ns').astype('datetime64[D]'))

    told = f'training {day(0)} to {day(split.validation_from - 1)}'
    told += f', validation to {day(split.test_from - 1)}'
    rest = len(table) - split.test_from
    return (
        f'{told}; {rest} event times from {day(split.test_from)} on are not read' if rest else told
    )


def _windows(training: Samples, validation: Samples, scale: Scale, device: Device) -> str:
    """Return how many windows there are, and what the classes look like."""
    classes = dataset.classify(training.log_return[:, 0], scale.band)
    shares = 100 * np.bincount(classes, minlength=3) / len(classes)
    listed = ' / '.join(f'{share:.0f}' for share in shares)
    return (
        f'{len(training):,} windows train, {len(validation):,} validate, on {device.name}; down / '
        f'flat / up {listed} % of those that train, flat up to a log return of {scale.band:.4f}'
    )


def _require_encoder(path: Path) -> None:
    """Raise ConfigError, before anything is written, if a run has no trained encoder yet."""
    if not (path / ENCODER_ONNX).exists():
        raise ConfigError(
            f'{path}: no encoder is trained there yet; use --mode pretrain or all, or an encoder '
            'of kind none'
        )


def _require(
    work: Workshop, bars: npt.NDArray[np.int64], n_training: int, n_validation: int
) -> None:
    settings = work.settings
    needed = dataset.bars_needed(
        _warm_up(work.spec, settings), settings.split, settings.horizons[-1]
    )
    dataset.require_windows(work.facts.symbols, bars, n_training, n_validation, needed)


def _require_bars(
    known: BarTable,
    split: Split,
    spec: FeatureSpec,
    settings: TrainingSettings,
    bars: npt.NDArray[np.int64],
) -> None:
    """Raise DataError if even a series without gaps would give too few windows."""
    warm_up, farthest = _warm_up(spec, settings), settings.horizons[-1]
    valid = known.status == BarStatus.VALID
    left_out = farthest + settings.split.embargo
    counts = [
        int(np.maximum(part.sum(axis=0) - less, 0).sum())
        for part, less in (
            (valid[: split.validation_from], warm_up + left_out),
            (valid[split.validation_from :], left_out),
        )
    ]
    needed = dataset.bars_needed(warm_up, settings.split, farthest)
    dataset.require_windows(known.symbols, bars, counts[0], counts[1], needed)


def _warm_up(spec: FeatureSpec, settings: TrainingSettings) -> int:
    """Return the bars of one symbol before its first window is full."""
    encoder = settings.encoder.window - 1 if settings.encoder.kind != 'none' else 0
    return spec.warmup_bars + encoder + max(settings.window, settings.past) - 1


def _facts(known: BarTable, split: Split) -> DataFacts:
    valid = known.status == BarStatus.VALID
    rows = np.flatnonzero(valid.any(axis=1))
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    return DataFacts(
        fingerprint=dataset.fingerprint(known),
        symbols=known.symbols,
        bars=int(valid.sum()),
        first_ns=int(known.event_time_ns[first]),
        last_ns=int(known.event_time_ns[last]),
        trained_until_ns=int(known.event_time_ns[-1]),
        validation_from=split.validation_from,
        test_from=split.test_from,
    )
