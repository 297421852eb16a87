# SPDX-License-Identifier: Apache-2.0
"""The encoder for the NPU of the RK3568: built and simulated by the vendor's toolkit, then judged.

Only the encoder runs on that board; the generators run on the compute board.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_core.conversion import from_image, to_image
from heqis_core.engine import beyond
from heqis_core.errors import BundleError, EngineError
from heqis_core.manifest import EncoderPart, Precision
from heqis_training.convert.derive import rows_in_height
from heqis_training.convert.gates import (
    cosine_gate,
    cosines,
    decision_gate,
    placement_gate,
    size_gate,
)
from heqis_training.convert.outcome import Converted, answers_of, compare, converted, likeness
from heqis_training.convert.rknn_tool import Op, build_rknn
from heqis_training.convert.study import HEADROOM, Study, Verdicts

Floats = npt.NDArray[np.float32]

_SAME = 1e-5
"""Difference, absolute plus relative, up to which rows of two forms count as the same."""


class _Form(NamedTuple):
    """An encoder as the NPU gets it: `batch` rows along the height of one image."""

    onnx: bytes
    batch: int


def convert_encoder(
    study: Study, reference: Verdicts, precision: Precision, python: Path, margin: float
) -> Converted:
    """Build the encoder's `.rknn` file and judge it.

    Args:
        study: of the bundle.
        reference: its decisions in float32.
        precision: `int8` is quantised on the study's calibration windows.
        python: of the environment that has the toolkit.
        margin: see `gates.MARGIN`.

    Raises BundleError for a bundle without an encoder; EngineError if the toolkit fails.
    """
    part = _encoder_part(study)
    data = (study.bundle.path / part.file).read_bytes()
    form = _form_for_npu(
        data, np.resize(study.calibration, (part.tile, *study.calibration.shape[1:]))
    )
    golden = study.bundle.golden()
    golden_rows = cast('Floats', golden['encoder/input'])
    expected = cast('Floats', golden[f'encoder/{part.output}'])
    calibration: list[Floats] = []
    if precision == 'int8':
        calibration = list(_images(study.calibration * np.float32(HEADROOM), form))
    inputs = _images(np.concatenate([golden_rows, study.windows]), form)
    built = build_rknn(python, form.onnx, calibration, inputs)
    factors = np.concatenate([from_image(image) for image in built.outputs])
    n = len(golden_rows)
    found_golden, found = factors[:n], factors[n : n + len(study.windows)]
    decided, about_decisions = compare(
        study, reference, study.decide(study.with_factors(found)), margin
    )
    golden_cosine = cosines(found_golden.reshape(expected.shape), expected, n)
    gates = (
        placement_gate(built.ops),
        cosine_gate('cosine', cosines(found, study.factors), precision),
        cosine_gate('golden', golden_cosine, precision),
        decision_gate(decided, margin),
        size_gate(len(built.data)),
    )
    figures = {
        'batch': form.batch,
        **_about_ops(built.ops),
        'windows': len(study.windows),
        'calibration_windows': len(calibration) * form.batch,
        **likeness(found, study.factors),
        'golden_cosine': float(golden_cosine.min()),
        **about_decisions,
        'bytes': len(built.data),
    }
    return converted(
        'encoder', 'rk3568', precision, built.tool, built.data, gates, figures, _notes(part, form)
    )


def _encoder_part(study: Study) -> EncoderPart:
    """Return the encoder's part of the manifest, or raise BundleError."""
    part = study.bundle.manifest.encoder
    if part is None:
        raise BundleError(
            f'{study.bundle.path}: has no encoder, and nothing else of a bundle runs on an '
            'RK3568; use --target tensorrt, or train with one'
        )
    return part


def _form_for_npu(data: bytes, rows: Floats) -> _Form:
    """Return the form that takes a whole tile at once, or row by row where it would mix them.

    `rows` are one tile of windows that differ.
    """
    (expected,) = answers_of(data, rows).values()
    # A network that mixes rows gives another shape, which is an error, or other numbers.
    with contextlib.suppress(EngineError):
        whole = rows_in_height(data, len(rows))
        (found,) = answers_of(whole, to_image(rows)).values()
        if beyond(from_image(found), expected, _SAME) is None:
            return _Form(whole, len(rows))
    return _Form(rows_in_height(data, 1), 1)


def _images(rows: Floats, form: _Form) -> Floats:
    """Return rows (n, F, 1, T) as images (m, 1, F, batch, T), the last one padded with zeros."""
    count = -(-len(rows) // form.batch)
    padded = np.zeros((count * form.batch, *rows.shape[1:]), np.float32)
    padded[: len(rows)] = rows
    return np.stack([to_image(part) for part in np.split(padded, count)])


def _about_ops(ops: Sequence[Op]) -> dict[str, float]:
    return {
        'operators': len(ops),
        'operators_off_npu': sum(op.unit != 'NPU' for op in ops),
        'cycles': sum(op.cycles for op in ops),
    }


def _notes(part: EncoderPart, form: _Form) -> tuple[str, ...]:
    if form.batch == part.tile:
        return ()
    return (f'mixes the rows of a tile, so the NPU takes {form.batch} at a time',)
