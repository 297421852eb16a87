# SPDX-License-Identifier: Apache-2.0
"""When a converted model still is the model: cosine with the float32 one on ONNX Runtime.

The workstation asks it of real windows before a file goes into a bundle, and the board asks it of
the golden rows before the file runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heqis_core.manifest import Precision

COSINE_MIN: dict[Precision, float] = {'fp16': 0.9999, 'int8': 0.999}
"""Least cosine of all answers of an encoder, taken as one vector."""


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
