# SPDX-License-Identifier: Apache-2.0
"""What one conversion came to, and the figures that every conversion states alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.engine import infer_tiled
from heqis_core.io.ort_engine import open_engine
from heqis_core.manifest import Conversion, Precision, Target, converted_file
from heqis_training.convert.gates import Agreement, Gate, agreement, cosines
from heqis_training.convert.study import Study, Verdicts

Floats = npt.NDArray[np.float32]


class Outcome(msgspec.Struct, frozen=True):
    """One model for one target in one precision.

    Attributes:
        model, target, precision: what was converted, and for what.
        tool: what made the file, with its version.
        passed: whether every gate holds; only then the file is in the bundle.
        gates: each condition with what was found.
        figures: every number by name (docs/conversion.md).
        notes: what a reader must know of them.
    """

    model: str
    target: Target
    precision: Precision
    tool: str
    passed: bool
    gates: tuple[Gate, ...]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Return the name of the file in the bundle."""
        return converted_file(self.model, self.target, self.precision)

    def conversion(self) -> Conversion:
        """Return the entry of the manifest."""
        return Conversion(
            model=self.model,
            target=self.target,
            precision=self.precision,
            file=self.file,
            tool=self.tool,
            figures=self.figures,
        )


class Converted(NamedTuple):
    """An outcome and the content of its file."""

    outcome: Outcome
    data: bytes


def converted(
    model: str,
    target: Target,
    precision: Precision,
    tool: str,
    data: bytes,
    gates: Sequence[Gate],
    figures: dict[str, float],
    notes: tuple[str, ...] = (),
) -> Converted:
    """Return a file with its outcome; arguments: see `Outcome`."""
    passed = all(gate.passed for gate in gates)
    # What is not a number has failed its gate; JSON has no word for it.
    stated = {name: float(value) for name, value in figures.items() if np.isfinite(value)}
    return Converted(
        Outcome(model, target, precision, tool, passed, tuple(gates), stated, notes), data
    )


def answers_of(data: bytes, rows: Floats) -> dict[str, Floats]:
    """Return what an ONNX file answers to `rows` (n, ...) on ONNX Runtime, by output name."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        path.write_bytes(data)
        engine = open_engine(path)
        try:
            tile = engine.specs()[0][0].shape[0]
            return cast('dict[str, Floats]', infer_tiled(engine, rows, tile))
        finally:
            engine.close()


def likeness(found: Floats, expected: Floats) -> dict[str, float]:
    """Return how like two arrays of rows are: cosines of groups and rows, largest difference."""
    groups, rows = cosines(found, expected), cosines(found, expected, 1)
    return {
        'cosine_min': float(groups.min()),
        'cosine_median': float(np.median(groups)),
        'row_cosine_min': float(rows.min()),
        'row_cosine_median': float(np.median(rows)),
        'largest_difference': float(np.abs(found.astype(float) - expected).max()),
    }


def compare(
    study: Study, reference: Verdicts, other: Verdicts, margin: float
) -> tuple[Agreement, dict[str, float]]:
    """Return how decisions agree with those in float32, and the same as figures."""
    strategy = study.bundle.manifest.strategy
    thresholds = strategy.sell_threshold, strategy.buy_threshold
    found = agreement(*reference, *other, thresholds, margin)
    return found, {
        'bars': found.bars,
        'bars_beyond_margin': found.far,
        'share_beyond_margin': found.far / max(1, found.bars),
        'margin': margin,
        'agreement_beyond_margin': found.far_agreed,
        'agreement': found.agreed,
        'score_moved_q99': found.score_moved,
    }
