# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of every indicator, once: one symbol, one bar, one row of columns.

A spec is compiled (in `state`) to a program: one row of codes for each indicator. The kernels run
that program for each symbol on its own, so no result depends on how many symbols there are or in
which order they stand, and a batch is the same step in a loop. All they know about a symbol lies
in one row of the state:

    bars, bar slot, volumes, volume slot; rings of close, high, low, volume; values of indicators

Each ring of capacity N is kept twice in that row (2 N numbers, each value written at slot and at
slot + N), so the last n values always lie side by side, oldest first. Sums run over them anew for
each bar, in that order: a running sum would depend on how far back the series began.

Division by zero, and prices so small or large that a ratio overflows, give NaN, never infinity.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from heqis_core.jit import strict_inline, strict_njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Codes of indicators. EMA and SMA differ in their weight only.
RETURN, MEAN, SMOOTH, MACD, KDJ, RSI, BOLL, ATR, VOLUME_RATIO = range(9)

# Columns of a program row: code, period, where its own values start in the state, scale, further
# period, and the columns of the result that its outputs go to (-1: not wanted).
CODE, PERIOD, SLOT, SCALE, EXTRA, OUT0, OUT1, OUT2 = range(8)
PROGRAM_WIDTH = 8

# Values of SCALE.
AS_IS, LEVEL, SPREAD = range(3)

# Columns of the layout: capacities, and where each ring starts in the state.
BAR_CAP, VOLUME_CAP, CLOSES, HIGHS, LOWS, VOLUMES = range(6)
LAYOUT_WIDTH = 6

# First columns of the state.
N_BARS, BAR_SLOT, N_VOLUMES, VOLUME_SLOT = range(4)
STATE_HEAD = 4

_VALID = 1  # BarStatus.VALID
_HIGH, _LOW, _CLOSE, _VOLUME = 1, 2, 3, 4  # rows of a bar block
_LARGEST = 1e100  # beyond it a product could overflow and stay in the state for ever
_BLOCK = 64  # symbols that a batch carries through time together: their state stays in the cache


@strict_inline
def _mean(state: Floats, s: int, newest: int, n: int) -> float:
    total = 0.0
    for k in range(newest - n + 1, newest + 1):
        total += state[s, k]
    return total / n


@strict_inline
def _deviation(state: Floats, s: int, newest: int, n: int, mean: float, degrees: float) -> float:
    total = 0.0
    for k in range(newest - n + 1, newest + 1):
        total += (state[s, k] - mean) * (state[s, k] - mean)
    return math.sqrt(total / degrees)


@strict_inline
def _stochastic(state: Floats, s: int, highs: int, lows: int, n: int, close: float) -> float:
    top, bottom = state[s, highs], state[s, lows]
    for k in range(1, n):
        top = max(top, state[s, highs - k])
        bottom = min(bottom, state[s, lows - k])
    return 100.0 * ((close - bottom) / (top - bottom)) if top > bottom else 50.0


@strict_njit
def step(
    program: Ints,
    weights: Floats,
    layout: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    state: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Advance the symbols first..last-1 by one bar.

    values (6, S), status (S,), state (S, L), out (S, F).
    """
    for s in range(first, last):
        for f in range(out.shape[1]):
            out[s, f] = math.nan
        high, low, close = values[_HIGH, s], values[_LOW, s], values[_CLOSE, s]
        volume = values[_VOLUME, s]
        # False for NaN as well: a bar without prices is no bar, whatever its status says.
        usable = abs(high) <= _LARGEST and abs(low) <= _LARGEST and abs(close) <= _LARGEST
        if status[s] != _VALID or not usable:
            continue
        bars = int(state[s, N_BARS]) + 1
        capacity = layout[BAR_CAP]
        slot = int(state[s, BAR_SLOT])
        newest = slot + capacity  # of the second copy: what is older lies just below
        last_close = state[s, layout[CLOSES] + (slot - 1 if slot > 0 else capacity - 1)]
        state[s, layout[CLOSES] + slot] = close
        state[s, layout[CLOSES] + newest] = close
        if layout[HIGHS] >= 0:
            state[s, layout[HIGHS] + slot] = high
            state[s, layout[HIGHS] + newest] = high
            state[s, layout[LOWS] + slot] = low
            state[s, layout[LOWS] + newest] = low
        closes = layout[CLOSES] + newest
        volumes = int(state[s, N_VOLUMES])
        volume_slot = int(state[s, VOLUME_SLOT])
        has_volume = layout[VOLUMES] >= 0 and abs(volume) <= _LARGEST

        for i in range(len(program)):
            code, n, at = program[i, CODE], program[i, PERIOD], program[i, SLOT]
            w0, w1, w2 = weights[i, 0], weights[i, 1], weights[i, 2]
            x0, x1, x2 = math.nan, math.nan, math.nan
            if code == MEAN:
                if bars >= n:
                    x0 = _mean(state, s, closes, n)
            elif code == RETURN:
                if bars > n:
                    x0 = close / state[s, closes - n] - 1.0
            elif code == SMOOTH:
                state[s, at] = state[s, at] + (close - state[s, at]) * w0 if bars > 1 else close
                if bars >= n:
                    x0 = state[s, at]
            elif code == MACD:
                if bars > 1:
                    state[s, at] += (close - state[s, at]) * w0
                    state[s, at + 1] += (close - state[s, at + 1]) * w1
                    dif = state[s, at] - state[s, at + 1]
                    state[s, at + 2] += (dif - state[s, at + 2]) * w2
                else:
                    state[s, at] = close
                    state[s, at + 1] = close
                    dif = 0.0
                    state[s, at + 2] = dif
                if bars >= n:
                    x0 = dif
                if bars >= n + program[i, EXTRA]:
                    x1 = state[s, at + 2]
                    x2 = 2.0 * (dif - x1)
            elif code == KDJ:
                if bars >= n:
                    if bars == n:
                        state[s, at] = 50.0
                        state[s, at + 1] = 50.0
                    rsv = _stochastic(
                        state, s, layout[HIGHS] + newest, layout[LOWS] + newest, n, close
                    )
                    state[s, at] += (rsv - state[s, at]) * w0
                    state[s, at + 1] += (state[s, at] - state[s, at + 1]) * w1
                    x0, x1 = state[s, at], state[s, at + 1]
                    x2 = 3.0 * x0 - 2.0 * x1
            elif code == RSI:
                if bars > 1:
                    change = close - last_close
                    gain, loss = max(change, 0.0), max(-change, 0.0)
                    if bars == 2:
                        state[s, at] = gain
                        state[s, at + 1] = loss
                    else:
                        state[s, at] += (gain - state[s, at]) * w0
                        state[s, at + 1] += (loss - state[s, at + 1]) * w0
                    if bars > n:
                        moved = state[s, at] + state[s, at + 1]
                        x0 = 100.0 * (state[s, at] / moved) if moved > 0.0 else 50.0
            elif code == BOLL:
                if bars >= n:
                    x0 = _mean(state, s, closes, n)
                    band = w0 * _deviation(state, s, closes, n, x0, w1)
                    x1, x2 = x0 + band, x0 - band
            elif code == ATR:
                if bars > 1:
                    true_range = max(high - low, abs(high - last_close), abs(low - last_close))
                    if bars <= n + 1:  # the first n ranges: their sum, then their mean
                        state[s, at] += true_range
                        if bars == n + 1:
                            state[s, at] /= n
                    else:
                        state[s, at] += (true_range - state[s, at]) * w0
                    if bars > n:
                        x0 = state[s, at]
            elif code == VOLUME_RATIO and has_volume and volumes >= n:
                before = volume_slot - 1 if volume_slot > 0 else layout[VOLUME_CAP] - 1
                x0 = volume / _mean(state, s, layout[VOLUMES] + before + layout[VOLUME_CAP], n)

            if program[i, SCALE] == LEVEL:
                x0, x1, x2 = x0 / close - 1.0, x1 / close - 1.0, x2 / close - 1.0
            elif program[i, SCALE] == SPREAD:
                x0, x1, x2 = x0 / close, x1 / close, x2 / close
            if program[i, OUT0] >= 0 and math.isfinite(x0):
                out[s, program[i, OUT0]] = x0
            if program[i, OUT1] >= 0 and math.isfinite(x1):
                out[s, program[i, OUT1]] = x1
            if program[i, OUT2] >= 0 and math.isfinite(x2):
                out[s, program[i, OUT2]] = x2

        state[s, N_BARS] = bars
        state[s, BAR_SLOT] = slot + 1 if slot + 1 < capacity else 0
        if has_volume:
            state[s, layout[VOLUMES] + volume_slot] = volume
            state[s, layout[VOLUMES] + volume_slot + layout[VOLUME_CAP]] = volume
            state[s, N_VOLUMES] = volumes + 1
            state[s, VOLUME_SLOT] = volume_slot + 1 if volume_slot + 1 < layout[VOLUME_CAP] else 0


@strict_njit
def batch(
    program: Ints,
    weights: Floats,
    layout: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    state: Floats,
    out: Floats,
) -> None:
    """Advance every symbol by T bars.

    values (T, 6, S), status (T, S), state (S, L), out (T, S, F).
    """
    n_times, n_symbols = status.shape
    for first in range(0, n_symbols, _BLOCK):
        last = min(first + _BLOCK, n_symbols)
        for t in range(n_times):
            step(program, weights, layout, values[t], status[t], state, out[t], first, last)
