# SPDX-License-Identifier: Apache-2.0
"""How much of a forecast to believe: a factor between 0 and 1 from the validation part.

Next-bar returns are hardly predictable, and a network that is fitted to them promises too much. A
forecast that validation does not support becomes persistence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ERRORS = 2.0
"""Standard errors that a slope must exceed before anything of a forecast is believed."""


def shrinkage(
    forecasts: npt.NDArray[np.floating],
    targets: npt.NDArray[np.floating],
    t: npt.NDArray[np.int64],
) -> list[float]:
    """Return a factor in [0, 1] for each horizon, to multiply its forecasts with.

    The factor is the slope b of targets on forecasts through the origin, shrunk by what is known
    of it: b (1 − (2 se / b)²), and 0 where that is negative (a positive-part estimator in the
    manner of James and Stein, 1961, for one coefficient). The error se sums up the windows of one
    event time first, because symbols move together. Two standard errors, not one, are asked for
    because the same windows have chosen the epoch: they flatter the forecasts that they judge.

    Args:
        forecasts: float (M, H).
        targets: float (M, H), what came, in the same units.
        t: int64 (M,), event time of each window.
    """
    _, group = np.unique(t, return_inverse=True)
    return [
        _factor(np.asarray(x, np.float64), np.asarray(y, np.float64), group)
        for x, y in zip(forecasts.T, targets.T, strict=True)
    ]


def _factor(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], group: npt.NDArray[np.int64]
) -> float:
    power = float(x @ x)
    if power <= 0:
        return 0.0
    slope = float(x @ y) / power
    if slope <= 0:
        return 0.0
    scores = np.bincount(group, weights=x * (y - slope * x))
    error = float(scores @ scores) / power**2
    return float(np.clip(slope * (1 - ERRORS**2 * error / slope**2), 0.0, 1.0))
