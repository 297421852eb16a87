# SPDX-License-Identifier: Apache-2.0
"""The scaler: fitted once on training rows, owned by the bundle, the pipeline's last step.

It maps each feature on its own and holds no state: rolling normalisations belong in the spec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, DataError

_CONSTANT = 1e-12
"""A deviation below this part of the mean is rounding noise of a constant column."""


class Scaler:
    """Map feature f to (x - mean[f]) / scale[f], clipped to +-clip, as float32.

    Args:
        names: F feature names, unique.
        mean: F finite numbers.
        scale: F finite numbers above zero.
        clip: bound of the scaled values, above zero.

    Raises ConfigError that names the feature and the value.
    """

    def __init__(
        self,
        names: Sequence[str],
        mean: npt.ArrayLike,
        scale: npt.ArrayLike,
        clip: float = 10.0,
    ) -> None:
        self.names = tuple(names)
        self.mean = _column('mean', mean, self.names)
        self.scale = _column('scale', scale, self.names)
        self.clip = float(clip)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f'scaler: names = {list(self.names)}; expected unique names')
        if (low := np.flatnonzero(self.scale <= 0)).size:
            raise ConfigError(
                f'scaler: scale of {self.names[low[0]]!r} = {self.scale[low[0]]}; expected > 0'
            )
        if not (np.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f'scaler: clip = {clip}; expected a finite number > 0')

    @classmethod
    def fit(cls, names: Sequence[str], rows: npt.ArrayLike, clip: float = 10.0) -> Scaler:
        """Fit mean and standard deviation (ddof 0) of each column on its finite rows.

        Args:
            names: F feature names.
            rows: float64 (N, F), the training part only; NaN and infinity are left out.
            clip: bound of the scaled values.

        A column that does not vary gets scale 1. Raises DataError for a column without a finite
        value and ConfigError for a wrong shape.
        """
        table = np.asarray(rows, np.float64)
        if table.ndim != 2 or table.shape[1] != len(names):
            raise ConfigError(f'scaler: rows {table.shape}; expected (N, {len(names)})')
        mean = np.empty(len(names))
        scale = np.empty(len(names))
        for f, name in enumerate(names):
            column = np.ascontiguousarray(table[:, f])
            column = column[np.isfinite(column)]
            if not column.size:
                raise DataError(
                    f'scaler: feature {name!r} has no finite value in {len(table)} training rows; '
                    'give more rows, or leave the feature out of the spec'
                )
            mean[f] = column.mean()
            deviation = float(column.std())
            scale[f] = deviation if deviation > _CONSTANT * abs(mean[f]) else 1.0
        return cls(names, mean, scale, clip)

    @property
    def id(self) -> str:
        """Return the first 16 hex digits of the sha256 of the canonical JSON."""
        canonical = json.dumps(self._plain(), sort_keys=True, separators=(',', ':'))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def apply(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Return float32 (..., F) of float64 (..., F), element by element; NaN stays NaN."""
        values = np.asarray(x, np.float64)
        if values.shape[-1:] != self.mean.shape:
            raise ConfigError(f'scaler: input {values.shape}; expected (..., {len(self.names)})')
        scaled = values - self.mean
        scaled /= self.scale
        np.clip(scaled, -self.clip, self.clip, out=scaled)
        return scaled.astype(np.float32)

    def to_json(self) -> str:
        """Return JSON that `from_json` reads back to the same floats, bit for bit."""
        return json.dumps(self._plain(), indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> Scaler:
        """Read a scaler; raise ConfigError that names the field and what is allowed."""
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise ConfigError(f'scaler: not JSON: {error}') from error
        fields = {'names', 'mean', 'scale', 'clip'}
        if not isinstance(plain, dict) or set(plain) != fields:
            found = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
            raise ConfigError(f'scaler: found {found}; expected an object of {sorted(fields)}')
        names, clip = plain['names'], plain['clip']
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f'scaler: names = {names!r}; expected a list of strings')
        if isinstance(clip, bool) or not isinstance(clip, int | float):
            raise ConfigError(f'scaler: clip = {clip!r}; expected a number')
        return cls(names, plain['mean'], plain['scale'], clip)

    def __eq__(self, other: object) -> bool:
        """Return whether the other scaler maps every input to the same bits."""
        return isinstance(other, Scaler) and self._plain() == other._plain()

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash(self.id)

    def _plain(self) -> dict[str, object]:
        return {
            'names': list(self.names),
            'mean': self.mean.tolist(),
            'scale': self.scale.tolist(),
            'clip': self.clip,
        }


def _column(field: str, values: npt.ArrayLike, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    try:
        column = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'scaler: {field} = {values!r}; expected {len(names)} numbers'
        ) from error
    if column.shape != (len(names),):
        raise ConfigError(f'scaler: {field} has shape {column.shape}; expected ({len(names)},)')
    if (bad := np.flatnonzero(~np.isfinite(column))).size:
        raise ConfigError(
            f'scaler: {field} of {names[bad[0]]!r} = {column[bad[0]]}; expected a finite number'
        )
    column.flags.writeable = False
    return column
