# SPDX-License-Identifier: Apache-2.0
"""What workstation and board must agree on about a converted encoder: its likeness and its image.

The workstation asks for the cosine of real windows before a file goes into a bundle, the board of
the golden rows before the file runs. An NPU works on one image: the rows of a tile go along its
height.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heqis_core.manifest import Precision

Rows = npt.NDArray[np.float32]

COSINE_MIN: dict[Precision, float] = {'fp16': 0.9999, 'int8': 0.999}
"""Least cosine of all answers of an encoder, taken as one vector."""

TOLERANCE: dict[Precision, float] = {'fp16': 1e-2, 'int8': 5e-2}
"""Largest difference of a golden output of a generator, absolute plus relative."""


def cosine(found: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """Return the cosine of two arrays of one shape as vectors, in float64.

    What is not finite gives 0; two arrays of zeros give 1.
    """
    a = np.asarray(found, np.float64).ravel()
    b = np.asarray(expected, np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    if np.array_equal(a, b):
        return 1.0
    norms = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(a @ b) / norms if norms else 0.0


def to_image(rows: Rows) -> Rows:
    """Return rows (batch, C, 1, T) as one image (1, C, batch, T)."""
    return np.ascontiguousarray(rows.transpose(2, 1, 0, 3))


def from_image(image: Rows) -> Rows:
    """Return the rows (batch, C, 1, T) of an image (1, C, batch, T)."""
    return np.ascontiguousarray(image.transpose(2, 1, 0, 3))
