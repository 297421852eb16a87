# SPDX-License-Identifier: Apache-2.0
"""From a feature spec to the rows of codes that the kernels run, in stages.

A stage is what symbols can do on their own, then what takes all of them. An item that reads a
column of the cross-section belongs to the stage after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import ConfigError
from heqis_core.features import cross, kernels
from heqis_core.features.kinds import CHANNEL, CROSS_SECTION, KINDS
from heqis_core.features.spec import FeatureItem, FeatureSpec

_CODES = {
    'return': kernels.RETURN,
    'log_return': kernels.LOG_RETURN,
    'ma': kernels.MEAN,
    'turnover': kernels.MEAN,
    'sma': kernels.SMOOTH,
    'ema': kernels.SMOOTH,
    'macd': kernels.MACD,
    'kdj': kernels.KDJ,
    'rsi': kernels.RSI,
    'boll': kernels.BOLL,
    'atr': kernels.ATR,
    'cci': kernels.CCI,
    'obv': kernels.OBV,
    'volume_ratio': kernels.VOLUME_RATIO,
    'value': kernels.VALUE,
    'calendar': kernels.CALENDAR,
    'zscore': kernels.ZSCORE,
    'minmax': kernels.MINMAX,
    'rank': kernels.RANK,
    'xs_rank': cross.RANK,
    'xs_zscore': cross.ZSCORE,
}
_SCALES = {'free': kernels.AS_IS, 'level': kernels.LEVEL, 'spread': kernels.SPREAD}
_OWN_PLANES = {'sma': 1, 'ema': 1, 'macd': 3, 'kdj': 2, 'rsi': 2, 'atr': 1, 'obv': 1}
_UNWANTED = 8
"""Planes that outputs which nobody wants go to, one for each place among the outputs."""

Ints = npt.NDArray[np.int64]


class Stage(NamedTuple):
    """Rows that run for each block of symbols, then rows that run for all symbols at once."""

    rows: Ints
    weights: npt.NDArray[np.float64]
    cross: Ints


class Program(NamedTuple):
    """A spec as the kernels read it; planes are numbers for each symbol, see `kernels`."""

    stages: tuple[Stage, ...]
    series: Ints
    state_planes: int
    cell_planes: int


def compile_spec(spec: FeatureSpec, channels: Sequence[str]) -> Program:
    """Return the program of a spec; raise ConfigError if a channel that it reads is not there."""
    for name in spec.channels:
        if name not in channels:
            raise ConfigError(
                f'feature spec: reads the channel {name!r}; the bars carry '
                f'{", ".join(channels) or "none"}: add it to the bars, or leave the feature out'
            )
    columns = {name: f for f, name in enumerate(spec.names)}
    names = list(dict.fromkeys(name for item in spec.features for name in item.reads))
    series, planes = _place_series(spec, names, columns, channels)
    stage_of = _stages(spec)
    stages: list[Stage] = []
    pushed: set[str] = set()
    for k in range(max(stage_of) + 1):
        items = [item for item, stage in zip(spec.features, stage_of, strict=True) if stage == k]
        rows, weights = [], []
        for item in items:
            for name in item.reads:
                if name not in pushed:
                    pushed.add(name)
                    rows.append(_push(names.index(name)))
                    weights.append(_weights(item))
            if item.kind not in CROSS_SECTION:
                rows.append(_row(item, planes, names, columns))
                weights.append(_weights(item))
                planes += _OWN_PLANES.get(item.kind, 0)
        crossed = _cross_rows(items, series, names, columns)
        stages.append(
            Stage(
                np.array(rows, np.int64).reshape(-1, kernels.PROGRAM_WIDTH),
                np.array(weights).reshape(-1, 3),
                crossed,
            )
        )
    if len(stages[-1].cross):  # the result is given out by the last stage, when all is there
        stages.append(Stage(stages[-1].rows[:0], stages[-1].weights[:0], stages[-1].cross[:0]))
    cells = len(columns) + kernels.CELLS_HEAD + _UNWANTED + len(names)
    return Program(tuple(stages), series, planes, cells)


def _stages(spec: FeatureSpec) -> list[int]:
    """Return the stage of each item."""
    given: dict[str, int] = {}
    stages = []
    for item in spec.features:
        stage = given.get(item.of, 0)
        stages.append(stage)
        for name, _ in item.columns:
            given[name] = stage + (item.kind in CROSS_SECTION)
    return stages


def _place_series(
    spec: FeatureSpec, names: list[str], columns: dict[str, int], channels: Sequence[str]
) -> tuple[Ints, int]:
    """Return the table of series, and how many planes of the state they take."""
    capacity = dict.fromkeys(names, 0)
    for item in spec.features:
        for name, n in zip(item.reads, _capacities(item), strict=True):
            capacity[name] = max(capacity[name], n)
    series, planes = [], 0
    now = len(columns) + kernels.CELLS_HEAD + _UNWANTED
    for k, name in enumerate(names):
        series.append((*_source(name, columns, channels), planes, capacity[name], now + k))
        planes += kernels.RING + capacity[name]
    return np.array(series, np.int64).reshape(-1, kernels.SERIES_WIDTH), planes


def _source(name: str, columns: dict[str, int], channels: Sequence[str]) -> tuple[int, int]:
    if name == 'typical':
        return kernels.TYPICAL, 0
    if name in BAR_FIELDS:
        return kernels.FIELD, BAR_FIELDS.index(name)
    if name.startswith(CHANNEL):
        return kernels.CHANNEL, list(channels).index(name[len(CHANNEL) :])
    return kernels.COLUMN, columns[name]


def _capacities(item: FeatureItem) -> tuple[int, ...]:
    """Return how many last numbers of each series an item looks at, where more than now."""
    n = int(item.params.get('n', 0))
    if item.kind in ('return', 'log_return', 'volume_ratio'):
        return (n + 1,)
    if item.kind in ('rsi', 'kdj', 'atr', 'obv'):
        return {'rsi': (2,), 'kdj': (0, n, n), 'atr': (2, 0, 0), 'obv': (0, 2)}[item.kind]
    if item.kind in ('ma', 'turnover', 'boll', 'cci', 'zscore', 'minmax', 'rank'):
        return (n,)
    return (0,) * len(item.reads)


def _push(series: int) -> Ints:
    row = np.zeros(kernels.PROGRAM_WIDTH, np.int64)
    row[[kernels.CODE, kernels.FIRST]] = kernels.PUSH, series
    return row


def _row(item: FeatureItem, own: int, names: list[str], columns: dict[str, int]) -> Ints:
    kind, p = KINDS[item.kind], item.params
    row = np.zeros(kernels.PROGRAM_WIDTH, np.int64)
    scale = _SCALES[kind.scale] if item.relative else kernels.AS_IS
    period = p['slow'] if item.kind == 'macd' else p.get('n', 0)
    extra = p.get('signal', 1) - 1 if item.kind == 'macd' else p.get('utc_offset_min', 0)
    row[: kernels.FIRST] = _CODES[item.kind], period, own, scale, extra
    for k, name in enumerate(item.reads):
        row[kernels.FIRST + k] = names.index(name)
    wanted = iter(item.columns)
    for k, suffix in enumerate(kind.outputs):
        unwanted = len(columns) + kernels.CELLS_HEAD + k
        row[kernels.OUT0 + k] = columns[next(wanted).name] if suffix in item.outputs else unwanted
    return row


def _cross_rows(
    items: Sequence[FeatureItem], series: Ints, names: list[str], columns: dict[str, int]
) -> Ints:
    """Return the rows of the cross-section; items of one series share its order."""
    crossed = [item for item in items if item.kind in CROSS_SECTION]
    rows: list[tuple[float, ...]] = []
    for name in dict.fromkeys(item.of for item in crossed):
        plane = series[names.index(name), kernels.NOW]
        rows.append((cross.ORDER, plane, 0, 0, 0))
        for item in crossed:
            if item.of == name:
                p, out = item.params, columns[item.columns[0].name]
                rows.append((_CODES[item.kind], plane, p['min_symbols'], p.get('ddof', 0), out))
    return np.array(rows, np.int64).reshape(-1, cross.CROSS_WIDTH)


def _weights(item: FeatureItem) -> tuple[float, float, float]:
    p = item.params
    if item.kind == 'ema':
        return 2.0 / (p['n'] + 1), 0.0, 0.0
    if item.kind == 'sma':
        return p['m'] / p['n'], 0.0, 0.0
    if item.kind == 'macd':
        return 2.0 / (p['fast'] + 1), 2.0 / (p['slow'] + 1), 2.0 / (p['signal'] + 1)
    if item.kind == 'kdj':
        return 1.0 / p['k'], 1.0 / p['d'], 0.0
    if item.kind in ('rsi', 'atr'):
        return 1.0 / p['n'], 0.0, 0.0
    if item.kind == 'boll':
        return float(p['width']), float(p['n'] - p['ddof']), 0.0
    if item.kind == 'zscore':
        return float(p['n'] - p['ddof']), 0.0, 0.0
    return 0.0, 0.0, 0.0
