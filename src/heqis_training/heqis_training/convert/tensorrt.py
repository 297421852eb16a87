# SPDX-License-Identifier: Apache-2.0
"""What TensorRT builds its engines from: float16 and Q/DQ int8 ONNX files, judged on ONNX Runtime.

The engines themselves are built on the compute board, which asks the golden outputs of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.manifest import Precision
from heqis_training.convert.derive import (
    QUANTISED_OPS,
    RECURRENT_OPS,
    op_counts,
    to_fp16,
    to_int8,
)
from heqis_training.convert.gates import Gate, decision_gate, golden_distance, golden_gate
from heqis_training.convert.outcome import Converted, answers_of, compare, converted, likeness
from heqis_training.convert.study import GENERATOR_WINDOWS, HEADROOM, Study, Verdicts

Floats = npt.NDArray[np.float32]

STATED = ('cosine_min', 'largest_difference')
"""Figures of each output; decisions say the rest."""
TOOL = f'onnxruntime {onnxruntime.__version__}'


class _Model(NamedTuple):
    """One generator of a bundle, and what it is calibrated and measured on."""

    name: str
    tile: int
    data: bytes
    calibration: Floats
    measured: Floats


def convert_models(
    study: Study, reference: Verdicts, precision: Precision, margin: float
) -> list[Converted]:
    """Derive the files of every generator in that precision and judge them.

    The decisions are those with all generators in that precision at once, as the compute board
    runs them. Arguments: see `rk3568.convert_encoder`.
    """
    models = _models(study)
    derived = {model.name: _derive(model, precision) for model in models}
    found, about_decisions = compare(study, reference, _decide(study, derived), margin)
    gate = decision_gate(found, margin)
    return [
        _judge(study, model, precision, derived[model.name], gate, about_decisions)
        for model in models
    ]


def _models(study: Study) -> list[_Model]:
    return [
        _Model(
            part.name,
            part.tile,
            study.bundle.generator_path(part.name).read_bytes(),
            study.generator_windows(part.window, 0, study.known, GENERATOR_WINDOWS),
            study.generator_windows(
                part.window, study.judged_from, len(study.times), GENERATOR_WINDOWS
            ),
        )
        for part in study.bundle.manifest.generators
    ]


def _derive(model: _Model, precision: Precision) -> bytes:
    if precision == 'fp16':
        return to_fp16(model.data)
    rows = model.calibration * np.float32(HEADROOM)
    whole = np.resize(rows, (-(-len(rows) // model.tile) * model.tile, *rows.shape[1:]))
    return to_int8(model.data, np.split(whole, len(whole) // model.tile))


def _decide(study: Study, derived: Mapping[str, bytes]) -> Verdicts:
    """Let the decider judge with these generators in the place of the bundle's."""
    paths = {study.bundle.generator_path(name): name for name in derived}
    with TemporaryDirectory() as folder:

        def make_engine(path: Path) -> OrtEngine:
            file = Path(folder) / f'{paths[path]}.onnx'
            file.write_bytes(derived[paths[path]])
            return open_engine(file)

        return study.decide(study.features, make_engine)


def _judge(
    study: Study,
    model: _Model,
    precision: Precision,
    data: bytes,
    decisions: Gate,
    about_decisions: Mapping[str, float],
) -> Converted:
    prefix = f'{model.name}/'
    golden = {
        name.removeprefix(prefix): cast('Floats', values)
        for name, values in study.bundle.golden().items()
        if name.startswith(prefix)
    }
    rows = golden.pop('input')
    distances = [
        golden_distance(values, golden[name]) for name, values in answers_of(data, rows).items()
    ]
    expected, found = answers_of(model.data, model.measured), answers_of(data, model.measured)
    figures: dict[str, float] = {'windows': len(model.measured), 'golden_distance': max(distances)}
    for name, values in found.items():
        about = likeness(values, expected[name])
        figures |= {f'{name}_{figure}': about[figure] for figure in STATED}
    gates = (golden_gate(max(distances), precision), decisions)
    notes: tuple[str, ...] = ()
    if precision == 'int8':
        counts = op_counts(data)
        figures['calibration_windows'] = len(model.calibration)
        figures['int8_layers'] = sum(counts[name] for name in QUANTISED_OPS)
        figures['float_layers'] = sum(counts[name] for name in RECURRENT_OPS)
        kept = [f'{counts[name]} {name}' for name in RECURRENT_OPS if counts[name]]
        if kept:
            notes = (f'{", ".join(kept)} stays in float32: Q/DQ has no form for it',)
    figures |= about_decisions
    return converted(model.name, 'tensorrt', precision, TOOL, data, gates, figures, notes)
