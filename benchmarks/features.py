# SPDX-License-Identifier: Apache-2.0
"""Features and windows: one step of a small and of a whole market, a batch, gathering windows.

The floor of a step is its kernel alone, without checks and without a fresh result; the peer is
numpy, vectorised over the symbols, with the whole history at hand and no symbol ever suspended.
The floor of the windows is one copy of the same bytes. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from _harness import Row, main, paired_ratio

from heqis_core.bars import BAR_FIELDS, CLOSE, HIGH, LOW, VOLUME
from heqis_core.features import kernels
from heqis_core.features.spec import default_spec
from heqis_core.features.state import FeatureState
from heqis_core.windows import Windows

Floats = npt.NDArray[np.float64]

MARKET = 5400
WINDOW = 60
AIM_STEP = 1.25
"""Greatest ratio of a market-wide step to its kernel alone."""
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


def step_rows(n_symbols: int, n_times: int) -> list[Row]:
    """Measure single steps of one market size."""
    spec = default_spec()
    values, status = market(n_times, n_symbols), np.ones((n_times, n_symbols), np.uint8)
    ours, alone = FeatureState(spec, n_symbols), FeatureState(spec, n_symbols)
    peer = NumpyFeatures(values)
    out = np.empty((1, n_symbols, len(spec.names)))
    times: dict[str, list[float]] = {'ours': [], 'kernel': [], 'numpy': []}
    for t in range(n_times):
        arguments = (*alone._program[:3], values[t : t + 1], status[t : t + 1], alone._state, out)
        times['ours'].append(seconds(lambda: ours.step(values[t], status[t])))  # noqa: B023
        times['kernel'].append(seconds(lambda: kernels.advance(*arguments)))  # noqa: B023
        times['numpy'].append(seconds(lambda: peer.step(t)))  # noqa: B023
    t = n_times - 1
    check = FeatureState(spec, n_symbols).batch(values, status)[t]
    again = NumpyFeatures(values)
    np.testing.assert_allclose(
        [again.step(k) for k in range(n_times)][t], check, rtol=1e-6, atol=1e-9
    )
    warm = {name: np.array(series[spec.warmup_bars :]) * 1e6 for name, series in times.items()}
    p50 = {name: float(np.median(series)) for name, series in warm.items()}
    ratio = paired_ratio(warm['ours'], warm['kernel'])
    case = f'one step, {n_symbols} symbols, {len(spec.names)} columns'
    row = Row(case, 'p50', 'us', p50['ours'], p50['kernel'], p50['numpy'], ratio)
    p99 = Row(case, 'p99', 'us', float(np.percentile(warm['ours'], 99)))
    return [row.aiming(AIM_STEP) if n_symbols >= MARKET else row, p99]


def batch_row(n_symbols: int, n_times: int, rounds: int) -> Row:
    """Measure a batch against the numpy steps in a loop."""
    spec = default_spec()
    values, status = market(n_times, n_symbols), np.ones((n_times, n_symbols), np.uint8)
    ours, theirs = [], []
    for _ in range(rounds):
        state, peer = FeatureState(spec, n_symbols), NumpyFeatures(values)
        ours.append(seconds(lambda: state.batch(values, status)))  # noqa: B023
        theirs.append(seconds(lambda: [peer.step(t) for t in range(n_times)]))  # noqa: B023
    per = 1e9 / (n_times * n_symbols * len(spec.names))
    return Row(
        f'batch, {n_symbols} symbols x {n_times} bars',
        'time per bar and column',
        'ns',
        float(np.median(ours)) * per,
        peer=float(np.median(theirs)) * per,
        ratio=paired_ratio(ours, theirs),
    ).aiming(0.5)


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
    n = 1 if args.quick else 3
    return [
        *step_rows(3, 400 * n),
        *step_rows(MARKET, 50 + 50 * n),
        batch_row(500, 400 * n, 2 + n),
        *window_rows(20 * n),
    ]


if __name__ == '__main__':
    raise SystemExit(main('features', 'Time of the indicators and of the windows.', measure))
