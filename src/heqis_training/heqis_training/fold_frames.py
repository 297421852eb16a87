# SPDX-License-Identifier: Apache-2.0
"""The frames of one fold: scaler and encoder learn from its training part, frames cover all bars.

They come out of the pipeline that the boards run.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from heqis_core.bars import BarTable
from heqis_core.bundle import NO_ENGINE, features_id
from heqis_core.features.spec import FeatureSpec
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.manifest import factor_names
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_training import dataset
from heqis_training.recipe import run_training
from heqis_training.settings import TrainingSettings
from heqis_training.splits import Split
from heqis_training.store import FrameStore, StoreKey, frames


def build_frames(
    table: BarTable, spec: FeatureSpec, settings: TrainingSettings, fold: Split, folder: Path
) -> StoreKey:
    """Write the frames of all bars into `folder` and return the key that opens them.

    Args:
        table: bars; scaler and encoder see a copy that ends before the test part of the fold.
        spec: features.
        settings: encoder, split, horizons, seed.
        fold: see `splits`.
        folder: made here; an encoder's run folder is left beside the frames.

    Raises DataError for bars that cannot be learned from.
    """
    known = _between(table, fold.start, fold.test_from)
    part = settings.encoder
    with contextlib.ExitStack() as stack:
        engine, digest, window = None, None, 1
        if part.kind == 'none':
            scaler = dataset.fit_scaler(known, spec, fold.validation_from - fold.start)
        else:
            whole = msgspec.structs.replace(settings.split, train_fraction=1.0)
            encoded = msgspec.structs.replace(settings, split=whole)
            run = run_training(
                known, folder / 'encoder', encoded, spec, mode='pretrain', device='cpu'
            )
            scaler = Scaler.from_json(run.scaler.read_bytes())
            engine = stack.enter_context(_opened(run.encoder_onnx))
            digest = hashlib.sha256(run.encoder_onnx.read_bytes()).hexdigest()
            window = part.window
        pipeline = FeaturePipeline(
            table.symbols,
            spec,
            scaler,
            engine,
            window,
            settings.tile_of(len(table.symbols)),
            2 * window,
            table.channels,
            threads=1,  # folds run side by side
        )
        key = StoreKey(
            dataset.fingerprint(table),
            features_id(spec, scaler, digest, engine.kind if engine else NO_ENGINE),
            spec.names + factor_names(part.factors if engine else 0),
            settings.horizons,
        )
        FrameStore.build(table, frames(pipeline, table), key, folder)
    return key


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[OrtEngine]:
    engine = open_engine(path)
    try:
        yield engine
    finally:
        engine.close()


def _between(table: BarTable, start: int, stop: int) -> BarTable:
    """Return a copy of the event times from `start` to before `stop`."""
    known = dataset.head(table, stop)
    extra = None if known.extra is None else known.extra[start:]
    return BarTable(
        known.symbols,
        known.event_time_ns[start:],
        known.values[start:],
        known.status[start:],
        known.channels,
        extra,
    )
