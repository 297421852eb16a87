# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of every indicator, once: one symbol, one bar, one row of columns.

A spec is compiled (in `state`) to a program: one row of codes for each indicator. The kernels run
that program for each symbol on its own, so no result depends on how many symbols there are or in
which order they stand; a batch is the same step in a loop, and a step is a batch of one. All they
know about a symbol lies in one row of the state:

    counts of bars and volumes; rings of close, high, low, volume; own values of each indicator

Each ring of capacity N is kept twice in that row (2 N numbers, each value written at k and at
k + N), so the last n values always lie side by side, oldest first. Sums run over them anew for
each bar, in that order: a running sum would depend on how far back the series began.

Division by zero, and prices so small or large that a ratio overflows, give NaN, never infinity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.jit import strict_helper, strict_inline, strict_njit

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
CLOSE_CAP, RANGE_CAP, VOLUME_CAP, CLOSES, HIGHS, LOWS, VOLUMES = range(7)
LAYOUT_WIDTH = 7

# First columns of the state: how many bars and volumes there were, and where in the second copy of
# its ring the newest of each kind stands.
N_BARS, N_VOLUMES, NEWEST_CLOSE, NEWEST_RANGE, NEWEST_VOLUME = range(5)
STATE_HEAD = 5

_VALID = 1  # BarStatus.VALID
_HIGH, _LOW, _CLOSE, _VOLUME = 1, 2, 3, 4  # rows of a bar block
_LARGEST = 1e100  # beyond it a product could overflow and stay in the state for ever
_BLOCK = 256  # symbols that go through an indicator together, while their state is in the cache


class Turn(NamedTuple):
    """What an indicator sees of one bar: everything, and which symbols have it."""

    layout: Ints
    values: Floats
    state: Floats
    out: Floats
    live: Ints


@strict_njit
def advance(
    program: Ints,
    weights: Floats,
    layout: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    state: Floats,
    out: Floats,
) -> None:
    """Advance every symbol by T bars, one after the other.

    values (T, 6, S), status (T, S), state (S, L), out (T, S, F).
    """
    room = np.empty(_BLOCK, np.int64)
    for first in range(0, status.shape[1], _BLOCK):
        last = min(first + _BLOCK, status.shape[1])
        for t in range(len(status)):
            _block(
                program, weights, layout, values[t], status[t], state, out[t], first, last, room
            )


@strict_helper
def _block(
    program: Ints,
    weights: Floats,
    layout: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    state: Floats,
    out: Floats,
    first: int,
    last: int,
    room: Ints,
) -> None:
    live = room[: _take_in(layout, values, status, state, out, first, last, room)]
    turn = Turn(layout, values, state, out, live)
    for i in range(len(program)):
        row, weight = program[i], weights[i]
        code = row[CODE]
        if code == MEAN:
            _ma(row, weight, turn)
        elif code == RETURN:
            _return(row, weight, turn)
        elif code == SMOOTH:
            _smooth(row, weight, turn)
        elif code == MACD:
            _macd(row, weight, turn)
        elif code == KDJ:
            _kdj(row, weight, turn)
        elif code == RSI:
            _rsi(row, weight, turn)
        elif code == BOLL:
            _boll(row, weight, turn)
        elif code == ATR:
            _atr(row, weight, turn)
        elif code == VOLUME_RATIO:
            _volume_ratio(row, weight, turn)


@strict_helper
def _take_in(
    layout: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    state: Floats,
    out: Floats,
    first: int,
    last: int,
    live: Ints,
) -> int:
    """Put the bars into the rings; write the symbols that have one into `live`; count them."""
    n_live = 0
    for s in range(first, last):
        for f in range(out.shape[1]):
            out[s, f] = math.nan
        high, low, close = values[_HIGH, s], values[_LOW, s], values[_CLOSE, s]
        # False for NaN as well: a bar without prices is no bar, whatever its status says.
        usable = abs(high) <= _LARGEST and abs(low) <= _LARGEST and abs(close) <= _LARGEST
        if status[s] != _VALID or not usable:
            continue
        live[n_live] = s
        n_live += 1
        state[s, N_BARS] += 1.0
        newest = _next(state, s, NEWEST_CLOSE, layout[CLOSE_CAP])
        _keep(state, s, layout[CLOSES], newest, layout[CLOSE_CAP], close)
        if layout[RANGE_CAP] > 0:
            newest = _next(state, s, NEWEST_RANGE, layout[RANGE_CAP])
            _keep(state, s, layout[HIGHS], newest, layout[RANGE_CAP], high)
            _keep(state, s, layout[LOWS], newest, layout[RANGE_CAP], low)
        volume = values[_VOLUME, s]
        if layout[VOLUME_CAP] > 0 and abs(volume) <= _LARGEST:
            state[s, N_VOLUMES] += 1.0
            newest = _next(state, s, NEWEST_VOLUME, layout[VOLUME_CAP])
            _keep(state, s, layout[VOLUMES], newest, layout[VOLUME_CAP], volume)
    return n_live


@strict_inline
def _next(state: Floats, s: int, place: int, capacity: int) -> int:
    """Move on to the next place in the second copy of a ring, and return it."""
    newest = int(state[s, place]) + 1
    newest = newest if capacity <= newest < 2 * capacity else capacity
    state[s, place] = newest
    return newest


@strict_inline
def _keep(state: Floats, s: int, ring: int, newest: int, capacity: int, value: float) -> None:
    state[s, ring + newest] = value
    state[s, ring + newest - capacity] = value


@strict_inline
def _put(out: Floats, s: int, column: int, scale: int, close: float, value: float) -> None:
    if column < 0:
        return
    if scale == LEVEL:
        value = value / close - 1.0
    elif scale == SPREAD:
        value = value / close
    if math.isfinite(value):
        out[s, column] = value


@strict_inline
def _mean(state: Floats, s: int, newest: int, n: int) -> float:
    total = 0.0
    # Unsigned, here and in the other windows: numba tests each index that might be negative.
    oldest = np.uint64(newest - n + 1)
    for k in range(np.uint64(n)):
        total += state[s, oldest + k]
    return total / n


@strict_helper
def _ma(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n = row[PERIOD]
    for s in live:
        if state[s, N_BARS] >= n:
            newest = layout[CLOSES] + int(state[s, NEWEST_CLOSE])
            x = _mean(state, s, newest, n)
            _put(out, s, row[OUT0], row[SCALE], values[_CLOSE, s], x)


@strict_helper
def _return(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n = row[PERIOD]
    for s in live:
        if state[s, N_BARS] > n:
            before = state[s, layout[CLOSES] + int(state[s, NEWEST_CLOSE]) - n]
            _put(out, s, row[OUT0], AS_IS, 1.0, values[_CLOSE, s] / before - 1.0)


@strict_helper
def _smooth(row: Ints, weight: Floats, turn: Turn) -> None:
    _, values, state, out, live = turn
    at = row[SLOT]
    for s in live:
        close, bars = values[_CLOSE, s], state[s, N_BARS]
        y = state[s, at] + (close - state[s, at]) * weight[0] if bars > 1 else close
        state[s, at] = y
        if bars >= row[PERIOD]:
            _put(out, s, row[OUT0], row[SCALE], close, y)


@strict_helper
def _macd(row: Ints, weight: Floats, turn: Turn) -> None:
    _, values, state, out, live = turn
    at, scale = row[SLOT], row[SCALE]
    for s in live:
        close, bars = values[_CLOSE, s], state[s, N_BARS]
        if bars == 1:
            state[s, at], state[s, at + 1], state[s, at + 2] = close, close, 0.0
        fast = state[s, at] + (close - state[s, at]) * weight[0]
        slow = state[s, at + 1] + (close - state[s, at + 1]) * weight[1]
        dif = fast - slow
        dea = state[s, at + 2] + (dif - state[s, at + 2]) * weight[2]
        state[s, at], state[s, at + 1], state[s, at + 2] = fast, slow, dea
        if bars >= row[PERIOD]:
            _put(out, s, row[OUT0], scale, close, dif)
        if bars >= row[PERIOD] + row[EXTRA]:
            _put(out, s, row[OUT1], scale, close, dea)
            _put(out, s, row[OUT2], scale, close, 2.0 * (dif - dea))


@strict_helper
def _kdj(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n, at = row[PERIOD], row[SLOT]
    for s in live:
        bars, newest = state[s, N_BARS], int(state[s, NEWEST_RANGE])
        if bars < n:
            continue
        if bars == n:
            state[s, at], state[s, at + 1] = 50.0, 50.0
        top, bottom = values[_HIGH, s], values[_LOW, s]
        oldest_high = np.uint64(layout[HIGHS] + newest - n + 1)
        oldest_low = np.uint64(layout[LOWS] + newest - n + 1)
        for k in range(np.uint64(n)):
            top = max(top, state[s, oldest_high + k])
            bottom = min(bottom, state[s, oldest_low + k])
        part = (values[_CLOSE, s] - bottom) / (top - bottom) if top > bottom else 0.5
        part = min(max(part, 0.0), 1.0)  # a close outside its own bar must not stay in the state
        k_line = state[s, at] + (100.0 * part - state[s, at]) * weight[0]
        d_line = state[s, at + 1] + (k_line - state[s, at + 1]) * weight[1]
        state[s, at], state[s, at + 1] = k_line, d_line
        _put(out, s, row[OUT0], AS_IS, 1.0, k_line)
        _put(out, s, row[OUT1], AS_IS, 1.0, d_line)
        _put(out, s, row[OUT2], AS_IS, 1.0, 3.0 * k_line - 2.0 * d_line)


@strict_helper
def _rsi(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    at = row[SLOT]
    for s in live:
        bars = state[s, N_BARS]
        if bars < 2:
            continue
        change = values[_CLOSE, s] - state[s, layout[CLOSES] + int(state[s, NEWEST_CLOSE]) - 1]
        gain, loss = max(change, 0.0), max(-change, 0.0)
        if bars > 2:
            gain = state[s, at] + (gain - state[s, at]) * weight[0]
            loss = state[s, at + 1] + (loss - state[s, at + 1]) * weight[0]
        state[s, at], state[s, at + 1] = gain, loss
        if bars > row[PERIOD]:
            moved = gain + loss
            _put(out, s, row[OUT0], AS_IS, 1.0, 100.0 * (gain / moved) if moved > 0.0 else 50.0)


@strict_helper
def _boll(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n, scale = row[PERIOD], row[SCALE]
    for s in live:
        if state[s, N_BARS] < n:
            continue
        newest = layout[CLOSES] + int(state[s, NEWEST_CLOSE])
        mid, squares = _mean(state, s, newest, n), 0.0
        oldest = np.uint64(newest - n + 1)
        for k in range(np.uint64(n)):
            squares += (state[s, oldest + k] - mid) * (state[s, oldest + k] - mid)
        band = weight[0] * math.sqrt(squares / weight[1])
        close = values[_CLOSE, s]
        _put(out, s, row[OUT0], scale, close, mid)
        _put(out, s, row[OUT1], scale, close, mid + band)
        _put(out, s, row[OUT2], scale, close, mid - band)


@strict_helper
def _atr(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n, at = row[PERIOD], row[SLOT]
    for s in live:
        bars, high, low = state[s, N_BARS], values[_HIGH, s], values[_LOW, s]
        if bars < 2:
            continue
        before = state[s, layout[CLOSES] + int(state[s, NEWEST_CLOSE]) - 1]
        true_range = max(high - low, abs(high - before), abs(low - before))
        if bars <= n + 1:  # the first n ranges: their sum, then their mean
            y = state[s, at] + true_range
            y = y / n if bars == n + 1 else y
        else:
            y = state[s, at] + (true_range - state[s, at]) * weight[0]
        state[s, at] = y
        if bars > n:
            _put(out, s, row[OUT0], row[SCALE], values[_CLOSE, s], y)


@strict_helper
def _volume_ratio(row: Ints, weight: Floats, turn: Turn) -> None:
    layout, values, state, out, live = turn
    n = row[PERIOD]
    for s in live:
        volume = values[_VOLUME, s]
        if abs(volume) <= _LARGEST and state[s, N_VOLUMES] > n:
            before = layout[VOLUMES] + int(state[s, NEWEST_VOLUME]) - 1
            _put(out, s, row[OUT0], AS_IS, 1.0, volume / _mean(state, s, before, n))
