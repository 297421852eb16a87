# SPDX-License-Identifier: Apache-2.0
"""The streaming state of a feature spec: S symbols advance by one bar a call, or by many.

The arithmetic lives in `kernels`. This module lays the state out, checks what comes in, saves and
restores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import ConfigError
from heqis_core.features import kernels
from heqis_core.features.spec import KINDS, FeatureItem, FeatureSpec

LAYOUT_VERSION = 1
"""Raised whenever the kernels read the state in another way: an older state is then refused."""

Arrays = dict[str, npt.NDArray[np.generic]]

_CODES = {
    'return': kernels.RETURN,
    'ma': kernels.MEAN,
    'sma': kernels.SMOOTH,
    'ema': kernels.SMOOTH,
    'macd': kernels.MACD,
    'kdj': kernels.KDJ,
    'rsi': kernels.RSI,
    'boll': kernels.BOLL,
    'atr': kernels.ATR,
    'volume_ratio': kernels.VOLUME_RATIO,
}
_SCALES = {'free': kernels.AS_IS, 'level': kernels.LEVEL, 'spread': kernels.SPREAD}
_OWN_VALUES = {'sma': 1, 'ema': 1, 'macd': 3, 'kdj': 2, 'rsi': 2, 'atr': 1}


class FeatureState:
    """Advance the features of S symbols bar by bar.

    A symbol whose status is not VALID does not advance and gets a row of NaN, and so does one
    whose high, low or close is not a number: what follows is as if that bar had not been there. A
    bar without a volume has no volume features, and nothing else is touched by it.

    Args:
        spec: what to compute, F columns.
        n_symbols: S.

    Raises ConfigError if there is no symbol.
    """

    def __init__(self, spec: FeatureSpec, n_symbols: int) -> None:
        if n_symbols < 1:
            raise ConfigError(f'features: n_symbols = {n_symbols}; expected at least 1')
        self.spec = spec
        self._program = _compile(spec)
        self._state = np.zeros((n_symbols, self._program.state_len))
        self._compile_kernels()

    def step(
        self, values: npt.NDArray[np.float64], status: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        """Advance by one bar block; return float64 (S, F), NaN where a feature has no value.

        Args:
            values: float64 (6, S), see `BarBlock.values`.
            status: uint8 (S,), `BarStatus` codes.

        Raises ValueError for other shapes.
        """
        self._check(values.shape, status.shape, ())
        out = np.empty((len(self._state), len(self.spec.names)))
        kernels.step(*self._program[:3], *_plain(values, status), self._state, out, 0, len(status))
        return out

    def batch(
        self, values: npt.NDArray[np.float64], status: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        """Advance by T bar blocks; return float64 (T, S, F), bit for bit what T steps return.

        Args:
            values: float64 (T, 6, S).
            status: uint8 (T, S).

        Raises ValueError for other shapes.
        """
        self._check(values.shape, status.shape, (len(values),))
        out = np.empty((*status.shape, len(self.spec.names)))
        kernels.batch(*self._program[:3], *_plain(values, status), self._state, out)
        return out

    def reset(self) -> None:
        """Forget every bar."""
        self._state.fill(0.0)

    def save(self) -> Arrays:
        """Return the whole state as arrays, so that `load` continues bit for bit."""
        return {
            'version': np.array([LAYOUT_VERSION], np.int64),
            'spec_id': np.frombuffer(self.spec.id.encode(), np.uint8).copy(),
            'state': self._state.copy(),
        }

    def load(self, saved: Arrays) -> None:
        """Continue from `save`.

        Raises ConfigError, and changes nothing, if it belongs to another spec, number of symbols
        or version of the layout.
        """
        if missing := {'version', 'spec_id', 'state'} - set(saved):
            raise ConfigError(f'saved features: {sorted(missing)} not there; start without it')
        spec_id = bytes(saved['spec_id'].astype(np.uint8)).decode(errors='replace')
        version = saved['version'].tolist()
        state = saved['state']
        for name, found, expected in (
            ('layout version', version, [LAYOUT_VERSION]),
            ('feature spec id', spec_id, self.spec.id),
            ('state shape (symbols, numbers)', state.shape, self._state.shape),
            ('state dtype', state.dtype, self._state.dtype),
        ):
            if found != expected:
                raise ConfigError(
                    f'saved features: {name} is {found!r}; expected {expected!r}; '
                    'start without it, or with the spec and symbols that it belongs to'
                )
        self._state[...] = state

    def _check(
        self, values: tuple[int, ...], status: tuple[int, ...], times: tuple[int, ...]
    ) -> None:
        s = len(self._state)
        expected = (*times, len(BAR_FIELDS), s), (*times, s)
        if (values, status) != expected:
            raise ValueError(
                f'values {values} and status {status}; expected {expected[0]} and {expected[1]}'
            )

    def _compile_kernels(self) -> None:
        # Before the first bar is due: a first call without cached code takes seconds.
        values = np.full((1, len(BAR_FIELDS), 1), np.nan)
        status = np.zeros((1, 1), np.uint8)
        out = np.empty((1, 1, len(self.spec.names)))
        kernels.step(*self._program[:3], values[0], status[0], self._state[:1], out[0], 0, 1)
        kernels.batch(*self._program[:3], values, status, self._state[:1], out)


class _Program(NamedTuple):
    """A spec as the kernels read it."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    layout: npt.NDArray[np.int64]
    state_len: int


def _compile(spec: FeatureSpec) -> _Program:
    layout, length = _layout(spec)
    rows = np.full((len(spec.features), kernels.PROGRAM_WIDTH), -1, np.int64)
    weights = np.zeros((len(spec.features), 3))
    column = 0
    for row, weight, item in zip(rows, weights, spec.features, strict=True):
        kind = KINDS[item.kind]
        period = item.params['slow' if item.kind == 'macd' else 'n']
        scale = _SCALES[kind.scale] if item.relative else kernels.AS_IS
        extra = item.params.get('signal', 1) - 1
        row[: kernels.OUT0] = _CODES[item.kind], period, length, scale, extra
        for k, suffix in enumerate(kind.outputs):
            if suffix in item.outputs:
                row[kernels.OUT0 + k] = column
                column += 1
        given = _weights(item)
        weight[: len(given)] = given
        length += _OWN_VALUES.get(item.kind, 0)
    return _Program(rows, weights, layout, length)


def _layout(spec: FeatureSpec) -> tuple[npt.NDArray[np.int64], int]:
    """Place the rings; return the layout and the length of the state so far."""
    # Two closes at least: the change from the last one.
    bars = max([2, *(_closes_needed(item) for item in spec.features)])
    volumes = max(
        [0, *(int(item.params['n']) for item in spec.features if item.kind == 'volume_ratio')]
    )
    layout = np.full(kernels.LAYOUT_WIDTH, -1, np.int64)
    layout[kernels.BAR_CAP] = bars
    layout[kernels.VOLUME_CAP] = volumes
    rings = {kernels.CLOSES: bars}
    if any(item.kind == 'kdj' for item in spec.features):
        rings |= {kernels.HIGHS: bars, kernels.LOWS: bars}
    if volumes:
        rings[kernels.VOLUMES] = volumes
    length = kernels.STATE_HEAD
    for ring, capacity in rings.items():
        layout[ring] = length
        length += 2 * capacity
    return layout, length


def _closes_needed(item: FeatureItem) -> int:
    n = int(item.params.get('n', 0))
    return {'return': n + 1, 'ma': n, 'boll': n, 'kdj': n}.get(item.kind, 0)


def _weights(item: FeatureItem) -> list[float]:
    p = item.params
    if item.kind == 'ema':
        return [2.0 / (p['n'] + 1)]
    if item.kind == 'sma':
        return [p['m'] / p['n']]
    if item.kind == 'macd':
        return [2.0 / (p[name] + 1) for name in ('fast', 'slow', 'signal')]
    if item.kind == 'kdj':
        return [1.0 / p['k'], 1.0 / p['d']]
    if item.kind in ('rsi', 'atr'):
        return [1.0 / p['n']]
    if item.kind == 'boll':
        return [float(p['width']), float(p['n'] - p['ddof'])]
    return []


def _plain(
    values: npt.NDArray[np.float64], status: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    # One memory layout only: any other would compile the kernels anew, in the middle of a stream.
    return (
        np.require(values, np.float64, ['C', 'W', 'A']),
        np.require(status, np.uint8, ['C', 'W', 'A']),
    )
