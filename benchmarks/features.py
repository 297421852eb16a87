# SPDX-License-Identifier: Apache-2.0
"""Features and windows: one step of a small and of a whole market, a batch, gathering windows.

The floor of a step is one pass of numpy that writes as many numbers as the step gives; the peer is
numpy, vectorised over the symbols, with the whole history at hand and no symbol ever suspended.
The peer of a batch is TA-Lib, called for each symbol; what both compute is compared in the run.
The floor of the windows is one copy of the same bytes. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from _harness import Row, main, paired_ratio, say

from heqis_core.bars import BAR_FIELDS, CLOSE, HIGH, LOW, VOLUME, BarStatus
from heqis_core.features.kinds import CROSS_SECTION
from heqis_core.features.spec import (
    FeatureItem,
    FeatureSpec,
    default_spec,
    full_spec,
    normalised_spec,
)
from heqis_core.features.state import FeatureState
from heqis_core.windows import Windows

Floats = npt.NDArray[np.float64]

MARKET = 5400
WINDOW = 60
SUSPENDED = 0.005
"""Part of the symbols without a bar on a day."""
AIM_STEP_US = {('full', MARKET): 5e3, ('normalised', MARKET): 50e3}
"""Most time of a step at p50."""
AIM_BATCH, AIM_BATCH_CROSSED = 1.0, 0.3
"""Least rate of bars and columns, as a ratio to TA-Lib's."""
AIM_GATHER = 2.0
"""Greatest ratio of gathering windows to one copy of the same bytes."""


def market(n_times: int, n_symbols: int) -> Floats:
    """Return values (T, 6, S) of a random market."""
    rng = np.random.default_rng(1)
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, (n_times, n_symbols)), axis=0))
    values = np.repeat(close[:, None], len(BAR_FIELDS), axis=1)
    values[:, HIGH] *= 1 + rng.uniform(0, 0.02, close.shape)
    values[:, LOW] *= 1 - rng.uniform(0, 0.02, close.shape)
    values[:, VOLUME] = rng.integers(1, 10**7, close.shape)
    return values


class NumpyFeatures:
    """The columns of the default spec in plain numpy."""

    def __init__(self, values: Floats) -> None:
        self.high, self.low, self.close, self.volume = (
            np.ascontiguousarray(values[:, field]) for field in (HIGH, LOW, CLOSE, VOLUME)
        )
        s = values.shape[2]
        self.ema = {n: self.close[0].copy() for n in (5, 10, 20, 12, 26)}
        self.gain, self.loss = ({n: np.zeros(s) for n in (6, 12, 24)} for _ in range(2))
        self.dea, self.atr, self.ranges = np.zeros(s), np.zeros(s), np.zeros(s)
        self.k, self.d = np.full(s, 50.0), np.full(s, 50.0)

    def step(self, t: int) -> Floats:
        """Return (S, F) at time t; call it for each t in order."""
        close = self.close[t]
        rows = [close / self.close[max(t - n, 0)] - 1 for n in (1, 5, 10)]
        rows += [
            self.close[max(t - n + 1, 0) : t + 1].mean(axis=0) / close - 1 for n in (5, 10, 20, 30)
        ]
        for n, line in self.ema.items():
            line += (close - line) * (2 / (n + 1))
        rows += [self.ema[n] / close - 1 for n in (5, 10, 20)]
        dif = self.ema[12] - self.ema[26]
        self.dea += (dif - self.dea) * 0.2
        rows += [dif / close, self.dea / close, 2 * (dif - self.dea) / close]
        rows += [*self._kdj(t), *self._rsi(t)]
        last = self.close[max(t - 19, 0) : t + 1]
        mid, band = last.mean(axis=0), 2 * last.std(axis=0)
        rows += [(mid + band) / close - 1, (mid - band) / close - 1]
        rows += [self._atr(t) / close]
        rows += [self.volume[t] / self.volume[max(t - 5, 0) : max(t, 1)].mean(axis=0)]
        return np.stack(rows, axis=1)

    def _kdj(self, t: int) -> tuple[Floats, Floats, Floats]:
        if t >= 8:
            top, bottom = self.high[t - 8 : t + 1].max(axis=0), self.low[t - 8 : t + 1].min(axis=0)
            rsv = 100 * (self.close[t] - bottom) / (top - bottom)
            self.k += (rsv - self.k) / 3
            self.d += (self.k - self.d) / 3
        return self.k, self.d, 3 * self.k - 2 * self.d

    def _rsi(self, t: int) -> list[Floats]:
        change = self.close[t] - self.close[max(t - 1, 0)]
        up, down = np.maximum(change, 0), np.maximum(-change, 0)
        for n in (6, 12, 24) if t else ():
            weight = 1 / n if t > 1 else 1.0
            self.gain[n] += (up - self.gain[n]) * weight
            self.loss[n] += (down - self.loss[n]) * weight
        with np.errstate(invalid='ignore'):
            return [100 * self.gain[n] / (self.gain[n] + self.loss[n]) for n in (6, 12, 24)]

    def _atr(self, t: int) -> Floats:
        if t:
            before = self.close[t - 1]
            ranges = np.maximum(self.high[t] - self.low[t], np.abs(self.high[t] - before))
            ranges = np.maximum(ranges, np.abs(self.low[t] - before))
            self.atr += (ranges - self.atr) * (1 / min(t, 14))
        return self.atr


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def event_times(n_times: int) -> npt.NDArray[np.int64]:
    """Return daily event times."""
    day_ns = 86_400_000_000_000
    return np.arange(n_times) * day_ns + 1_420_095_600_000_000_000


def step_rows(name: str, spec: FeatureSpec, n_symbols: int, n_times: int) -> list[Row]:
    """Measure single steps; the floor is one arithmetic pass over as many numbers as come out.

    Some symbols are suspended each day, as in a market.
    """
    values, status = market(n_times, n_symbols), np.ones((n_times, n_symbols), np.uint8)
    status[np.random.default_rng(3).random(status.shape) < SUSPENDED] = BarStatus.SUSPENDED
    times_ns = event_times(n_times).tolist()
    state = FeatureState(spec, n_symbols)
    given = np.random.default_rng(4).normal(size=(n_symbols, len(spec.names)))
    ours, floor = [], []
    for t in range(n_times):
        ours.append(seconds(lambda: state.step(values[t], status[t], times_ns[t])))  # noqa: B023
        floor.append(seconds(lambda: given * 1.5 + 1.0))
    ours, floor = ours[-(n_times // 2) :], floor[-(n_times // 2) :]
    case = f'step, {name}, {n_symbols} symbols, {len(spec.names)} columns'
    p50 = Row(case, 'p50', 'us', float(np.median(ours)) * 1e6, float(np.median(floor)) * 1e6)
    if (aim := AIM_STEP_US.get((name, n_symbols))) is not None:
        p50 = p50.aiming(aim)
    p99 = Row(case, 'p99', 'us', float(np.percentile(ours, 99)) * 1e6)
    memory = Row(case, 'state of a symbol', 'bytes', state.nbytes / n_symbols)
    return [p50, p99, memory]


def numpy_row(n_symbols: int, n_times: int) -> Row:
    """Measure steps of the default spec against numpy that is vectorised over the symbols."""
    spec = default_spec()
    values, status = market(n_times, n_symbols), np.ones((n_times, n_symbols), np.uint8)
    state, peer = FeatureState(spec, n_symbols), NumpyFeatures(values)
    ours, theirs = [], []
    for t in range(n_times):
        rows: list[Floats] = []
        ours.append(seconds(lambda: rows.append(state.step(values[t], status[t]))))  # noqa: B023
        theirs.append(seconds(lambda: rows.append(peer.step(t))))  # noqa: B023
        if t >= spec.warmup_bars:
            np.testing.assert_allclose(rows[1], rows[0], rtol=1e-6, atol=1e-9)
    ours, theirs = ours[spec.warmup_bars :], theirs[spec.warmup_bars :]
    return Row(
        f'step, default, {n_symbols} symbols, beside numpy',
        'p50',
        'us',
        float(np.median(ours)) * 1e6,
        peer=float(np.median(theirs)) * 1e6,
        ratio=paired_ratio(ours, theirs),
    )


PERIODS = (5, 10, 20, 30, 60)


def comparable_spec() -> FeatureSpec:
    """Return what TA-Lib has with the same definition, or another seed only: 31 columns."""
    items = [FeatureItem('return', {'n': n}) for n in (1, 5, 10, 20, 60)]
    items += [FeatureItem(kind, {'n': n}) for kind in ('ma', 'ema') for n in PERIODS]
    items += [FeatureItem('macd', {'fast': a, 'slow': b}) for a, b in ((12, 26), (10, 20))]
    items += [FeatureItem('rsi', {'n': n}) for n in (6, 12, 14, 24)]
    items += [FeatureItem(kind) for kind in ('boll', 'atr', 'cci', 'obv')]
    return FeatureSpec(tuple(items))


def talib_columns(high: Floats, low: Floats, close: Floats, volume: Floats) -> list[Floats]:
    """Return the same columns of one symbol (T,), in the same order, as a user of TA-Lib would."""
    import talib

    columns = [talib.ROCP(close, n) for n in (1, 5, 10, 20, 60)]
    columns += [talib.SMA(close, n) for n in PERIODS] + [talib.EMA(close, n) for n in PERIODS]
    for fast, slow in ((12, 26), (10, 20)):
        dif, dea, bar = talib.MACD(close, fast, slow, 9)
        columns += [dif, dea, 2 * bar]  # as in China
    columns += [talib.RSI(close, n) for n in (6, 12, 14, 24)]
    up, mid, low_band = talib.BBANDS(close, 20, 2, 2)
    columns += [mid, up, low_band, talib.ATR(high, low, close, 14)]
    return [*columns, talib.CCI(high, low, close, 14), talib.OBV(close, volume)]


def batch_rows(n_symbols: int, n_times: int, rounds: int) -> list[Row]:
    """Measure batches beside TA-Lib: the comparable set, then the same and a cross-section."""
    if importlib.util.find_spec('talib') is None:
        say('TA-Lib is not installed: no row beside it')
        return []
    values, status = market(n_times, n_symbols), np.ones((n_times, n_symbols), np.uint8)
    columns = [
        [np.ascontiguousarray(values[:, field, s]) for field in (HIGH, LOW, CLOSE, VOLUME)]
        for s in range(n_symbols)
    ]
    plain = comparable_spec()
    read = ('return_1', 'return_5', 'return_20', 'rsi_14', 'atr_14')
    crossed = [FeatureItem(kind, of=name) for name in read for kind in CROSS_SECTION]
    specs = {
        'comparable set': (plain, AIM_BATCH),
        'with cross-section': (FeatureSpec((*plain.features, *crossed)), AIM_BATCH_CROSSED),
    }
    rows = []
    for name, (spec, aim) in specs.items():
        ours, theirs = [], []
        for _ in range(rounds + 1):
            state = FeatureState(spec, n_symbols)
            kept: list[object] = []
            ours.append(seconds(lambda: kept.append(state.batch(values, status))))  # noqa: B023
            theirs.append(
                seconds(lambda: kept.append([talib_columns(*one) for one in columns]))  # noqa: B023
            )
        _check_against_talib(kept[0], kept[1], plain)  # type: ignore[arg-type]
        # A rate for each: ours has the columns of the cross-section, theirs has none.
        mine, peer = (n_times * n_symbols * len(s.names) / 1e6 for s in (spec, plain))
        rates = [mine / t for t in ours[1:]], [peer / t for t in theirs[1:]]
        row = Row(
            f'batch, {n_symbols} symbols x {n_times} bars, {name}, {len(spec.names)} columns',
            'rate, at least',
            'M/s',
            float(np.median(rates[0])),
            peer=float(np.median(rates[1])),
            ratio=paired_ratio(*rates),
        )
        rows.append(
            replace(row, aim=aim, reached=bool(row.ratio is not None and row.ratio >= aim))
        )
    return rows


def _check_against_talib(ours: Floats, theirs: list[list[Floats]], plain: FeatureSpec) -> None:
    """See that both have computed the same, once seeds are forgotten."""
    for f, name in enumerate(plain.names):
        np.testing.assert_allclose(
            ours[-1, :, f], [one[f][-1] for one in theirs], rtol=1e-6, atol=1e-7, err_msg=name
        )


def window_rows(rounds: int) -> list[Row]:
    """Measure pushing a frame and gathering every window of a whole market."""
    n_features = len(default_spec().names)
    windows = Windows(MARKET, WINDOW, n_features, 2 * WINDOW)
    rows = np.random.default_rng(2).normal(size=(MARKET, n_features)).astype(np.float32)
    valid = np.ones(MARKET, bool)
    for seq in range(WINDOW):
        windows.push(seq, rows, valid)
    which, out = np.arange(MARKET), windows.gather(np.arange(MARKET))
    copy, target = out.copy(), rows.copy()
    push, push_floor, gather, gather_floor = [], [], [], []
    for seq in range(WINDOW, WINDOW + rounds):
        push.append(seconds(lambda: windows.push(seq, rows, valid)))  # noqa: B023
        push_floor.append(seconds(lambda: np.copyto(target, rows)))
        gather.append(seconds(lambda: windows.gather(which, out)))
        gather_floor.append(seconds(lambda: np.copyto(copy, out)))
    result = []
    for case, ours, floor in (('push', push, push_floor), ('gather', gather, gather_floor)):
        p50, least = float(np.median(ours)) * 1e6, float(np.median(floor)) * 1e6
        name = f'windows, {case}, {MARKET} x {WINDOW} x {n_features} float32'
        row = Row(name, 'p50', 'us', p50, least, None, paired_ratio(ours, floor))
        result.append(row.aiming(AIM_GATHER) if case == 'gather' else row)
    return result


def measure(args: argparse.Namespace) -> list[Row]:
    """Return every figure."""
    n = 1 if args.quick else 4
    specs = {'default': default_spec(), 'full': full_spec(), 'normalised': normalised_spec()}
    rows = []
    for name, spec in specs.items():
        for n_symbols in (3, 300, MARKET):
            say(f'step, {name}, {n_symbols} symbols')
            rows += step_rows(name, spec, n_symbols, 130 + 50 * n)
    rows += [numpy_row(n_symbols, 50 + 50 * n) for n_symbols in (3, MARKET)]
    say('batch')
    rows += batch_rows(500, 600 if args.quick else 2440, 2 + n)
    return [*rows, *window_rows(20 * n)]


if __name__ == '__main__':
    raise SystemExit(main('features', 'Time of the features and of the windows.', measure))
