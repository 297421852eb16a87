# SPDX-License-Identifier: Apache-2.0
"""What a converted model must reach before it goes into a bundle, and the comparison itself.

Each gate is a pure function of numbers; what is converted, and on which bars, is said elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.conversion import COSINE_MIN, TOLERANCE, cosine
from heqis_core.decision import Action
from heqis_core.manifest import Precision
from heqis_training.convert.rknn_tool import Op

Floats = npt.NDArray[np.float32]

COSINE_ROWS = 64
"""Rows that make one vector: of fewer, one whose factors are near 0 would decide."""
AGREEMENT = 0.995
"""Share of the decisions farther than the margin from a threshold that must stay what they are."""
MARGIN = 0.005
"""Distance of a score, P(up) − P(down), from the nearer threshold below which a decision may turn.

The thresholds are quantiles of some hundred validation scores, whose standard error is about as
large (docs/conversion.md): what turns within it was a toss.
"""
MIN_BARS = 200
"""Decisions beyond the margin below which no share is stated: at 200, one that turns is .5 %."""
MAX_BYTES = 8 << 20
"""Of an encoder for the NPU, which reads its weights from memory for every tile: about 1 ms."""


class Gate(msgspec.Struct, frozen=True):
    """One condition: whether it holds, what was found, what was expected."""

    name: str
    passed: bool
    found: str
    expected: str


class Agreement(NamedTuple):
    """How the decisions with a converted model compare with those in float32.

    Attributes:
        bars: decisions that float32 takes, BUY, SELL or HOLD.
        far: those farther than the margin from both thresholds.
        far_agreed: share of `far` that is the same.
        agreed: share of `bars` that is the same.
        score_moved: the .99 quantile of how far a score moves.
    """

    bars: int
    far: int
    far_agreed: float
    agreed: float
    score_moved: float


def cosines(found: Floats, expected: Floats, rows: int = COSINE_ROWS) -> npt.NDArray[np.float64]:
    """Return the cosine of each so many rows (n, ...) as one vector; of all rows if fewer.

    The last ones are left out where they do not make a full group.
    """
    n = len(expected)
    ends = range(rows, n + 1, rows) if n >= rows else (n,)
    starts = [max(0, end - rows) for end in ends]
    return np.array([cosine(found[a:b], expected[a:b]) for a, b in zip(starts, ends, strict=True)])


def golden_distance(found: Floats, expected: Floats) -> float:
    """Return the smallest tolerance, absolute plus relative, within which all of `found` lies."""
    difference = np.abs(found.astype(float) - expected)
    return float((difference / (1 + np.abs(expected.astype(float)))).max())


def agreement(
    action: npt.NDArray[np.uint8],
    score: Floats,
    other_action: npt.NDArray[np.uint8],
    other_score: Floats,
    thresholds: tuple[float, float],
    margin: float,
) -> Agreement:
    """Compare decisions; arrays of one shape, `action` and `score` being those in float32.

    A bar that float32 decides and the other does not counts as turned.
    """
    judged = action != Action.NONE
    same = (action == other_action)[judged]
    at = score[judged].astype(float)
    distance = np.min([np.abs(at - threshold) for threshold in thresholds], axis=0)
    far = distance > margin
    moved = np.abs(other_score[judged].astype(float) - at)
    return Agreement(
        int(judged.sum()),
        int(far.sum()),
        float(same[far].mean()) if far.any() else 0.0,
        float(same.mean()) if judged.any() else 0.0,
        float(np.nanquantile(moved, 0.99)) if np.isfinite(moved).any() else 0.0,
    )


def placement_gate(ops: Sequence[Op]) -> Gate:
    """Hold that every operator runs on the NPU."""
    astray = [f'{op.kind} on {op.unit} ({op.name})' for op in ops if op.unit != 'NPU']
    found = ', '.join(astray) or f'all {len(ops)} on the NPU'
    return Gate('placement', not astray, found, 'every operator on the NPU')


def cosine_gate(name: str, found: npt.NDArray[np.float64], precision: Precision) -> Gate:
    """Hold the lowest of some cosines against that of the precision."""
    lowest, least = float(found.min()), COSINE_MIN[precision]
    return Gate(name, lowest >= least, f'{lowest:.6f}', f'at least {least}')


def golden_gate(distance: float, precision: Precision) -> Gate:
    """Hold the golden outputs against what the compute board will ask of its engine."""
    most = TOLERANCE[precision]
    return Gate('golden', distance <= most, f'{distance:.2g}', f'at most {most:g}')


def decision_gate(found: Agreement, margin: float) -> Gate:
    """Hold the decisions beyond the margin; too few of them prove nothing."""
    expected = f'at least {AGREEMENT:.1%} of the decisions beyond {margin:g}'
    if found.far < MIN_BARS:
        told = f'{found.far} decisions beyond {margin:g} of {found.bars}: too few to tell'
        return Gate('decisions', False, told, f'{MIN_BARS} of them; give more bars')
    told = f'{found.far_agreed:.2%} of {found.far}, which are {found.far / found.bars:.1%} of all'
    return Gate('decisions', found.far_agreed >= AGREEMENT, told, expected)


def size_gate(size: int, most: int = MAX_BYTES) -> Gate:
    """Hold the size of a file in bytes."""
    return Gate('size', size <= most, f'{size} bytes', f'at most {most}')
