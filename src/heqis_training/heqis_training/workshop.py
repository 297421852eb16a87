# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run share: its files read and checked, its frames, its windows.

Training and export both stand on it: what they see of a run is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import msgspec
import torch
from torch import Tensor

from heqis_core.bars import BarTable
from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_core.features.spec import FeatureSpec
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import factor_names
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_training import splits
from heqis_training.checkpoint import check_about, load_state
from heqis_training.dataset import Samples
from heqis_training.loop import Tree
from heqis_training.run_folder import Run
from heqis_training.settings import TrainingSettings
from heqis_training.splits import Split
from heqis_training.store import FrameStore, StoreKey, frames

_Parsed = TypeVar('_Parsed')
GOLDEN_ROWS = 16


class DataFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run must remember of its bars, which end where training must end.

    Attributes:
        fingerprint: of them.
        symbols: S names.
        bars: VALID ones.
        first_ns, last_ns: event times of the first and the last of these.
        trained_until_ns: event time of the last row that training could touch.
        validation_from, test_from: rows, see `splits.Split`.
    """

    fingerprint: str
    symbols: tuple[str, ...]
    bars: int
    first_ns: int
    last_ns: int
    trained_until_ns: int
    validation_from: int
    test_from: int

    @property
    def split(self) -> Split:
        """Return the split; its test part is not there."""
        return Split(self.validation_from, self.test_from, self.test_from)


@dataclass(frozen=True)
class Workshop:
    """A run with what every stage of it needs.

    Attributes:
        run: held by this process.
        spec: features.
        facts: of the bars.
    """

    run: Run
    spec: FeatureSpec
    facts: DataFacts

    @property
    def settings(self) -> TrainingSettings:
        """Return the settings of the run."""
        return self.run.settings


def open_frames(work: Workshop, known: BarTable | None = None) -> FrameStore:
    """Return the frames of a run: those that are there, else made of its bars `known`.

    Raises DataError if they are needed and no bars are given.
    """
    scaler = read_file(work.run.scaler, Scaler.from_json)
    settings = work.settings.encoder
    data = b'' if settings.kind == 'none' else read_file(work.run.encoder_onnx, bytes)
    made_of = '\n'.join((work.spec.id, scaler.id, hashlib.sha256(data).hexdigest()))
    names = work.spec.names + factor_names(settings.factors if data else 0)
    key = StoreKey(
        work.facts.fingerprint,
        hashlib.sha256(made_of.encode()).hexdigest()[:16],
        names,
        work.settings.horizons,
    )
    folder = work.run.frames
    if known is None:
        try:
            return FrameStore.open(folder, key)
        except DataError as error:
            raise DataError(
                f'{error}; the same heqis train command makes the frames of a run again'
            ) from error
    if FrameStore.is_there(folder, key):
        return FrameStore.open(folder, key)
    if not data:
        pipeline = pipeline_of(work, known, scaler, None)
        return FrameStore.build(known, frames(pipeline, known), key, folder)
    engine = OrtEngine()
    engine.load(work.run.encoder_onnx)
    pipeline = pipeline_of(work, known, scaler, engine)
    try:
        return FrameStore.build(known, frames(pipeline, known), key, folder)
    finally:
        pipeline.close()
        engine.close()


def labelled_parts(work: Workshop, store: FrameStore) -> tuple[Samples, Samples]:
    """Return the windows that train and those that validate the generators."""
    settings = work.settings
    longest = max(settings.window, settings.past)
    samples = store.samples(longest, 2 * longest)
    training, validation, _ = splits.parts(samples, work.facts.split, settings.split.embargo)
    return training, validation


def read_file(path: Path, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    """Return what `parse` makes of a file of a run, or raise DataError that names the file."""
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, EOFError, BadZipFile, HeqisError) as error:
        raise DataError(
            f'{path}: damaged or not there ({error}); bring the file back, or train into another '
            'folder (--run)'
        ) from error


def read_best(run: Run) -> Tree:
    """Return the best states of a finished run, or raise ConfigError or DataError."""
    if not run.finished:
        raise ConfigError(f'{run.path}: training is not over; run `heqis train` to its end first')
    state = load_state(run.best)
    check_about(state, run.about('best'))
    tree: Tree = state.tree
    return tree


def golden_places(count: int) -> Tensor:
    """Return the places of at most `GOLDEN_ROWS` of `count` windows, evenly spread."""
    return torch.linspace(0, count - 1, min(GOLDEN_ROWS, count)).long()


def pipeline_of(
    work: Workshop, known: BarTable, scaler: Scaler, engine: OrtEngine | None
) -> FeaturePipeline:
    """Return the pipeline that makes the frames of a run; without an engine, indicators alone."""
    settings = work.settings.encoder
    window = settings.window if engine else 1
    return FeaturePipeline(
        known.symbols,
        work.spec,
        scaler,
        engine,
        window,
        work.settings.tile_of(len(known.symbols)),
        2 * window,
        known.channels,
    )
