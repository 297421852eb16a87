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
        # Compiles before the first bar is due: without kept code that takes seconds.
        self.batch(np.empty((0, len(BAR_FIELDS), n_symbols)), np.empty((0, n_symbols), np.uint8))

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
        rows: npt.NDArray[np.float64] = self._advance(values[None], status[None])[0]
        return rows

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
        return self._advance(values, status)

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

    def _advance(
        self, values: npt.NDArray[np.float64], status: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        out = np.empty((*status.shape, len(self.spec.names)))
        kernels.advance(
            *self._program[:3],
            # One memory layout only: any other would compile anew, in the middle of a stream.
            np.require(values, np.float64, ['C', 'W', 'A']),
            np.require(status, np.uint8, ['C', 'W', 'A']),
            self._state,
            out,
        )
        return out


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
    closes = max(2, _longest(spec, ('ma', 'boll')), 1 + _longest(spec, ('return',)))
    ranges = _longest(spec, ('kdj',))
    volumes = _longest(spec, ('volume_ratio',))
    volumes += volumes > 0  # the newest, and those before it
    layout = np.zeros(kernels.LAYOUT_WIDTH, np.int64)
    layout[[kernels.CLOSE_CAP, kernels.RANGE_CAP, kernels.VOLUME_CAP]] = closes, ranges, volumes
    length = kernels.STATE_HEAD
    for ring, capacity in (
        (kernels.CLOSES, closes),
        (kernels.HIGHS, ranges),
        (kernels.LOWS, ranges),
        (kernels.VOLUMES, volumes),
    ):
        layout[ring] = length
        length += 2 * capacity
    return layout, length


def _longest(spec: FeatureSpec, kinds: tuple[str, ...]) -> int:
    return max((int(item.params['n']) for item in spec.features if item.kind in kinds), default=0)


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
