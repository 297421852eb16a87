# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of every feature of one symbol, once: one bar of a block of symbols at a time.

A spec is compiled (in `program`) to rows of codes. The kernels run those rows for one block of
symbols after the other. Everything about a block is a plane: one number for each of its symbols,
side by side. So each loop below goes over the symbols of a block, does the same for all of them,
and is what a processor can do for several at once; no number of one symbol ever meets one of
another, so no result depends on how many symbols there are or in which order they stand.

    state: what stays from bar to bar; of each series its count, how many bars it has missed
           since its last number, and a ring of its last numbers; then own planes of each item
    cells: what is there during one bar; the columns of the result, work planes, and of each
           series its number now

A series is NaN now where it has no number, and then nothing of it moves. All rings of a block turn
with the bars, whether a symbol has one or not; the ring of a symbol that comes back is turned on
by the bars that it has missed, so its last n numbers always lie in the same planes as everybody's.
Sums run over a window anew for each bar, oldest first: a running sum would depend on how far back
the series began.

Division by zero, and numbers so small or large that a ratio overflows, give NaN, never infinity.

It is one file because compiled code is kept by the content of its own file (`heqis_core.jit`).
Loops write to one or two planes each: with more, LLVM would not take several symbols at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.jit import strict_helper, strict_inline, strict_njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Codes of rows. EMA and SMA differ in their weight only; MA and turnover in their series.
(PUSH, RETURN, LOG_RETURN, MEAN, SMOOTH, MACD, KDJ, RSI, BOLL, ATR, CCI, OBV, VOLUME_RATIO) = (
    range(13)
)
VALUE, CALENDAR, ZSCORE, MINMAX, RANK = range(13, 18)

# Columns of a program row: code, period, first own plane of the state, scale, further period, the
# series that it reads, and the planes of the cells that its outputs go to.
CODE, PERIOD, SLOT, SCALE, EXTRA, FIRST, SECOND, THIRD, OUT0 = range(9)
PROGRAM_WIDTH = OUT0 + 8

# Values of SCALE.
AS_IS, LEVEL, SPREAD = range(3)

# Columns of a series: where its numbers come from, its first plane of the state, capacity of its
# ring, plane of the cells with its number now.
SOURCE, WHICH, BASE, CAPACITY, NOW = range(5)
SERIES_WIDTH = 5
# Values of SOURCE; WHICH is a field, a channel, or a plane of the cells.
FIELD, CHANNEL, COLUMN, TYPICAL = range(4)
# Planes of a series in the state, from its BASE on.
COUNT, MISSED, RING = range(3)

# Planes of the cells behind the columns: whether a symbol has a bar (0, else NaN), work planes.
LIVE, WORK0, WORK1, WORK2 = range(4)
CELLS_HEAD = 4

_VALID = 1  # BarStatus.VALID
_HIGH, _LOW, _CLOSE = 1, 2, 3  # rows of a bar block
_LARGEST = 1e100  # beyond it a product could overflow and stay in the state for ever
_MINUTE_NS, _DAY_MIN = 60_000_000_000, 1440


class Bar(NamedTuple):
    """What a row sees of one bar of one block; behind its last symbol there is NaN up to width."""

    row: Ints
    series: Ints
    state: Floats
    cells: Floats
    before: int
    """Bars that the rings have turned by before this one."""
    width: int


@strict_njit
def advance(
    program: Ints,
    weights: Floats,
    series: Ints,
    values: Floats,
    status: npt.NDArray[np.uint8],
    extra: Floats,
    times_ns: Ints,
    before: int,
    state: Floats,
    cells: Floats,
    out: Floats,
) -> None:
    """Run a program for T bars, one block of symbols after the other.

    values (T, 6, S), status (T, S), extra (T, C, S), times_ns (T,), state (blocks, planes, B),
    cells (blocks, planes, B); the first F planes of the cells go to out (T, S, F), unless its T is
    0.
    """
    n_symbols, block = status.shape[1], state.shape[2]
    for b in range(len(state)):
        first = b * block
        last = min(first + block, n_symbols)
        for t in range(len(status)):
            _live(values[t], status[t], first, last, cells[b, out.shape[2] + LIVE])
            for i in range(len(program)):
                bar = Bar(program[i], series, state[b], cells[b], before + t, block)
                code = program[i, CODE]
                if code == PUSH:
                    _push(bar, values[t], extra[t], first, last, out.shape[2])
                elif code == CALENDAR:
                    _calendar(bar, times_ns[t], out.shape[2])
                else:
                    _item(code, bar, weights[i], out.shape[2])
            if len(out):
                _emit(cells[b], out[t], first, last - first)


@strict_inline
def _item(code: int, bar: Bar, weight: Floats, head: int) -> None:
    if code == MEAN:
        _mean(bar, head)
    elif code in (RETURN, LOG_RETURN):
        _return(bar, code == LOG_RETURN)
    elif code == SMOOTH:
        _smooth(bar, weight)
    elif code == MACD:
        _macd(bar, weight, head)
    elif code == KDJ:
        _kdj(bar, weight, head)
    elif code == RSI:
        _rsi(bar, weight)
    elif code == BOLL:
        _boll(bar, weight, head)
    elif code == ATR:
        _atr(bar, weight, head)
    elif code == CCI:
        _cci(bar, head)
    elif code == OBV:
        _obv(bar)
    elif code == VOLUME_RATIO:
        _volume_ratio(bar)
    elif code == VALUE:
        _value(bar)
    elif code == ZSCORE:
        _zscore(bar, weight, head)
    elif code == MINMAX:
        _minmax(bar, head)
    elif code == RANK:
        _rank(bar)


# ---------------------------------------------------------------- in and out


@strict_helper
def _live(
    values: Floats, status: npt.NDArray[np.uint8], first: int, last: int, live: Floats
) -> None:
    high, low = values[_HIGH, first:], values[_LOW, first:]
    close, codes = values[_CLOSE, first:], status[first:]
    for s in range(len(live)):
        live[s] = math.nan
    for s in range(last - first):
        # False for NaN as well: a bar without prices is no bar, whatever its status says.
        usable = abs(high[s]) <= _LARGEST and abs(low[s]) <= _LARGEST and abs(close[s]) <= _LARGEST
        live[s] = 0.0 if codes[s] == _VALID and usable else math.nan


@strict_helper
def _emit(cells: Floats, out: Floats, first: int, width: int) -> None:
    """Give the columns out, four at a time: whole lines of memory instead of single numbers."""
    n = out.shape[1]
    f = 0
    while f + 4 <= n:
        w, x, y, z = cells[f], cells[f + 1], cells[f + 2], cells[f + 3]
        for s in range(width):
            row = out[first + s, f:]
            row[0], row[1], row[2], row[3] = w[s], x[s], y[s], z[s]
        f += 4
    while f < n:
        x = cells[f]
        for s in range(width):
            out[first + s, f] = x[s]
        f += 1


@strict_helper
def _push(bar: Bar, values: Floats, extra: Floats, first: int, last: int, head: int) -> None:
    """Take in what a series is now."""
    state, cells, width = bar.state, bar.cells, bar.width
    about = bar.series[bar.row[FIRST]]
    source, which, base, capacity = about[SOURCE], about[WHICH], about[BASE], about[CAPACITY]
    now, live = cells[about[NOW]], cells[head + LIVE]
    if source == FIELD:
        _clean(now, live, values[which, first:last])
    elif source == CHANNEL:
        _clean(now, live, extra[which, first:last])
    elif source == COLUMN:
        _clean(now, live, cells[which])
    else:
        high, low, close = values[_HIGH, first:], values[_LOW, first:], values[_CLOSE, first:]
        price = cells[head + WORK0]
        for s in range(last - first):
            price[s] = (high[s] + low[s] + close[s]) / 3.0
        _clean(now, live, price)
    count, missed = state[base + COUNT], state[base + MISSED]
    if capacity > 0:
        resumed = 0
        for s in range(width):
            resumed += 1 if now[s] == now[s] and missed[s] > 0.0 else 0
        if resumed > 0:
            _turn_on(state, cells, about, width)
        newest = state[base + RING + bar.before % capacity]
        for s in range(width):
            newest[s] = now[s] if now[s] == now[s] else newest[s]
        for s in range(width):
            missed[s] = missed[s] + 1.0 if now[s] != now[s] and count[s] > 0.0 else 0.0
    for s in range(width):
        count[s] += 1.0 if now[s] == now[s] else 0.0


@strict_helper
def _clean(now: Floats, live: Floats, source: Floats) -> None:
    for s in range(len(source)):
        x = source[s]
        now[s] = x if live[s] == 0.0 and abs(x) <= _LARGEST else math.nan
    for s in range(len(source), len(now)):
        now[s] = math.nan


@strict_helper
def _turn_on(state: Floats, cells: Floats, about: Ints, width: int) -> None:
    """Turn the rings of the symbols that come back on by the bars that they have missed."""
    base, capacity = about[BASE], about[CAPACITY]
    now, missed = cells[about[NOW]], state[base + MISSED]
    room = np.empty(capacity)
    for s in range(width):
        if now[s] == now[s] and missed[s] > 0.0:
            by = int(missed[s]) % capacity
            for k in range(capacity):
                room[k] = state[base + RING + k, s]
            for k in range(capacity):
                at = k + by
                state[base + RING + (at if at < capacity else at - capacity), s] = room[k]


@strict_inline
def _past(bar: Bar, which: int, ago: int) -> int:
    """Return the plane of the state with what a series was `ago` bars before."""
    k = bar.row[which]
    return bar.series[k, BASE] + RING + (bar.before - ago) % bar.series[k, CAPACITY]  # type: ignore[no-any-return]


@strict_inline
def _now(bar: Bar, which: int) -> int:
    return bar.series[bar.row[which], NOW]  # type: ignore[no-any-return]


@strict_inline
def _count(bar: Bar, which: int) -> int:
    return bar.series[bar.row[which], BASE] + COUNT  # type: ignore[no-any-return]


@strict_inline
def _shown(y: float, x: float, count: float, need: int) -> float:
    """Return y, or NaN where its series x has no number now, or less than `need` so far."""
    return y if abs(y) < math.inf and count >= need and x == x else math.nan


@strict_helper
def _put(bar: Bar, output: int, need: int, of: Floats) -> None:
    """Give a column out of another plane, scaled."""
    x, column = bar.cells[_now(bar, FIRST)], bar.cells[bar.row[OUT0 + output]]
    count, scale = bar.state[_count(bar, FIRST)], bar.row[SCALE]
    if scale == LEVEL:
        for s in range(bar.width):
            column[s] = _shown(of[s] / x[s] - 1.0, x[s], count[s], need)
    elif scale == SPREAD:
        for s in range(bar.width):
            column[s] = _shown(of[s] / x[s], x[s], count[s], need)
    else:
        for s in range(bar.width):
            column[s] = _shown(of[s], x[s], count[s], need)


# ---------------------------------------------------------------- windows


@strict_helper
def _window(bar: Bar, which: int, newest_ago: int, n: int) -> tuple[int, int, int, int]:
    """Return the window of `n` numbers as two runs of planes of the state, oldest first.

    Each run is its first plane and the one behind its last.
    """
    about = bar.series[bar.row[which]]
    base, capacity = about[BASE] + RING, about[CAPACITY]
    oldest = (bar.before - newest_ago - n + 1) % capacity
    behind = oldest + n
    if behind <= capacity:
        return base + oldest, base + behind, base, base
    return base + oldest, base + capacity, base, base + behind - capacity


@strict_helper
def _sum(total: Floats, state: Floats, window: tuple[int, int, int, int], width: int) -> None:
    for s in range(width):
        total[s] = 0.0
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k + 8 <= last:
            w, x, y, z = state[k], state[k + 1], state[k + 2], state[k + 3]
            p, q, r, u = state[k + 4], state[k + 5], state[k + 6], state[k + 7]
            for s in range(width):
                half = total[s] + w[s] + x[s] + y[s] + z[s]
                total[s] = half + p[s] + q[s] + r[s] + u[s]
            k += 8
        while k + 3 <= last:
            x, y, z = state[k], state[k + 1], state[k + 2]
            for s in range(width):
                total[s] = total[s] + x[s] + y[s] + z[s]
            k += 3
        while k < last:
            x = state[k]
            for s in range(width):
                total[s] += x[s]
            k += 1


@strict_helper
def _squares(
    total: Floats, mid: Floats, state: Floats, window: tuple[int, int, int, int], width: int
) -> None:
    """Sum (x - mid)^2 over a window."""
    for s in range(width):
        total[s] = 0.0
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k + 4 <= last:
            w, x, y, z = state[k], state[k + 1], state[k + 2], state[k + 3]
            for s in range(width):
                m = mid[s]
                half = total[s] + (w[s] - m) * (w[s] - m) + (x[s] - m) * (x[s] - m)
                total[s] = half + (y[s] - m) * (y[s] - m) + (z[s] - m) * (z[s] - m)
            k += 4
        while k < last:
            x = state[k]
            for s in range(width):
                total[s] += (x[s] - mid[s]) * (x[s] - mid[s])
            k += 1


@strict_helper
def _spread(bar: Bar, n: int, power: int, mean: Floats, total: Floats) -> None:
    """Give the mean of x - now over a window, and the sum of |x - now - mean| ^ power.

    From now instead of from zero: both are exactly 0 where the window is constant.
    """
    now, state, width = bar.cells[_now(bar, FIRST)], bar.state, bar.width
    window = _window(bar, FIRST, 0, n)
    for s in range(width):
        mean[s] = 0.0
        total[s] = 0.0
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k + 4 <= last:
            w, x, y, z = state[k], state[k + 1], state[k + 2], state[k + 3]
            for s in range(width):
                o = now[s]
                mean[s] = mean[s] + (w[s] - o) + (x[s] - o) + (y[s] - o) + (z[s] - o)
            k += 4
        while k < last:
            x = state[k]
            for s in range(width):
                mean[s] += x[s] - now[s]
            k += 1
    for s in range(width):
        mean[s] /= n
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        if power == 1:
            for k in range(first, last):
                x = state[k]
                for s in range(width):
                    total[s] += abs(x[s] - now[s] - mean[s])
        else:
            k = first
            while k + 2 <= last:
                x, y = state[k], state[k + 1]
                for s in range(width):
                    e, g = x[s] - now[s] - mean[s], y[s] - now[s] - mean[s]
                    total[s] = total[s] + e * e + g * g
                k += 2
            if k < last:
                x = state[k]
                for s in range(width):
                    e = x[s] - now[s] - mean[s]
                    total[s] += e * e


@strict_helper
def _highest(top: Floats, state: Floats, window: tuple[int, int, int, int], width: int) -> None:
    """Raise `top` to the highest of a window."""
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k + 3 <= last:
            x, y, z = state[k], state[k + 1], state[k + 2]
            for s in range(width):
                m = x[s] if x[s] > top[s] else top[s]
                m = y[s] if y[s] > m else m
                top[s] = z[s] if z[s] > m else m
            k += 3
        while k < last:
            x = state[k]
            for s in range(width):
                top[s] = x[s] if x[s] > top[s] else top[s]
            k += 1


@strict_helper
def _lowest(bottom: Floats, state: Floats, window: tuple[int, int, int, int], width: int) -> None:
    """Lower `bottom` to the lowest of a window."""
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k + 3 <= last:
            x, y, z = state[k], state[k + 1], state[k + 2]
            for s in range(width):
                m = x[s] if x[s] < bottom[s] else bottom[s]
                m = y[s] if y[s] < m else m
                bottom[s] = z[s] if z[s] < m else m
            k += 3
        while k < last:
            x = state[k]
            for s in range(width):
                bottom[s] = x[s] if x[s] < bottom[s] else bottom[s]
            k += 1


@strict_helper
def _mean(bar: Bar, head: int) -> None:
    n, mean = bar.row[PERIOD], bar.cells[head + WORK0]
    _sum(mean, bar.state, _window(bar, FIRST, 0, n), bar.width)
    for s in range(bar.width):
        mean[s] /= n
    _put(bar, 0, n, mean)


@strict_helper
def _return(bar: Bar, log: bool) -> None:
    n, column, x = bar.row[PERIOD], bar.cells[bar.row[OUT0]], bar.cells[_now(bar, FIRST)]
    before, count = bar.state[_past(bar, FIRST, n)], bar.state[_count(bar, FIRST)]
    if log:
        for s in range(bar.width):
            ratio = x[s] / before[s] if count[s] > n else math.nan
            y = math.log(ratio) if 0.0 < ratio < math.inf else math.nan
            column[s] = _shown(y, x[s], count[s], n + 1)
    else:
        for s in range(bar.width):
            column[s] = _shown(x[s] / before[s] - 1.0, x[s], count[s], n + 1)


@strict_helper
def _boll(bar: Bar, weight: Floats, head: int) -> None:
    n, state, width = bar.row[PERIOD], bar.state, bar.width
    mid, band, edge = bar.cells[head + WORK0], bar.cells[head + WORK1], bar.cells[head + WORK2]
    window = _window(bar, FIRST, 0, n)
    _sum(mid, state, window, width)
    for s in range(width):
        mid[s] /= n
    _squares(band, mid, state, window, width)
    wide, divisor = weight[0], weight[1]
    for s in range(width):
        band[s] = wide * math.sqrt(band[s] / divisor)
    _put(bar, 0, n, mid)
    for s in range(width):
        edge[s] = mid[s] + band[s]
    _put(bar, 1, n, edge)
    for s in range(width):
        edge[s] = mid[s] - band[s]
    _put(bar, 2, n, edge)


@strict_helper
def _cci(bar: Bar, head: int) -> None:
    n, column = bar.row[PERIOD], bar.cells[bar.row[OUT0]]
    x, count = bar.cells[_now(bar, FIRST)], bar.state[_count(bar, FIRST)]
    mean, total = bar.cells[head + WORK0], bar.cells[head + WORK1]
    _spread(bar, n, 1, mean, total)
    for s in range(bar.width):
        y = -mean[s] / (0.015 * (total[s] / n))
        column[s] = _shown(y if total[s] > 0.0 else 0.0, x[s], count[s], n)


@strict_helper
def _zscore(bar: Bar, weight: Floats, head: int) -> None:
    n, column, divisor = bar.row[PERIOD], bar.cells[bar.row[OUT0]], weight[0]
    x, count = bar.cells[_now(bar, FIRST)], bar.state[_count(bar, FIRST)]
    mean, total = bar.cells[head + WORK0], bar.cells[head + WORK1]
    _spread(bar, n, 2, mean, total)
    for s in range(bar.width):
        y = -mean[s] / math.sqrt(total[s] / divisor)
        column[s] = _shown(y if total[s] > 0.0 else 0.0, x[s], count[s], n)


@strict_helper
def _minmax(bar: Bar, head: int) -> None:
    n, width, column = bar.row[PERIOD], bar.width, bar.cells[bar.row[OUT0]]
    x, count = bar.cells[_now(bar, FIRST)], bar.state[_count(bar, FIRST)]
    top, bottom = bar.cells[head + WORK0], bar.cells[head + WORK1]
    window = _window(bar, FIRST, 0, n)
    for s in range(width):
        top[s] = x[s]
        bottom[s] = x[s]
    _highest(top, bar.state, window, width)
    _lowest(bottom, bar.state, window, width)
    for s in range(width):
        y = (x[s] - bottom[s]) / (top[s] - bottom[s]) if top[s] > bottom[s] else 0.5
        column[s] = _shown(y, x[s], count[s], n)


@strict_helper
def _rank(bar: Bar) -> None:
    n, width, now = bar.row[PERIOD], bar.width, bar.cells[_now(bar, FIRST)]
    column, state, count = bar.cells[bar.row[OUT0]], bar.state, bar.state[_count(bar, FIRST)]
    window = _window(bar, FIRST, 0, n)
    for s in range(width):
        column[s] = 0.0
    for run in range(2):
        first, last = (window[0], window[1]) if run == 0 else (window[2], window[3])
        k = first
        while k < last:
            # Below counts 1, equal 0.5: itself, and ties averaged. All of that is exact, in any
            # order; an odd number of planes takes the last one twice, the second time for nothing.
            x, y = state[k], state[min(k + 1, last - 1)]
            more = 0.5 if k + 1 < last else 0.0
            for s in range(width):
                one = (0.5 if x[s] < now[s] else 0.0) + (0.5 if x[s] <= now[s] else 0.0)
                two = (more if y[s] < now[s] else 0.0) + (more if y[s] <= now[s] else 0.0)
                column[s] += one + two
            k += 2
    for s in range(width):
        column[s] = _shown(column[s] / n, now[s], count[s], n)


@strict_helper
def _volume_ratio(bar: Bar) -> None:
    n, column, volume = bar.row[PERIOD], bar.cells[bar.row[OUT0]], bar.cells[_now(bar, FIRST)]
    _sum(column, bar.state, _window(bar, FIRST, 1, n), bar.width)
    count = bar.state[_count(bar, FIRST)]
    for s in range(bar.width):
        column[s] = _shown(volume[s] / (column[s] / n), volume[s], count[s], n + 1)


# ---------------------------------------------------------------- recursive


@strict_helper
def _follow(y: Floats, x: Floats, count: Floats, weight: float, width: int) -> None:
    """Let y follow x, from its first number on."""
    for s in range(width):
        z = y[s] + (x[s] - y[s]) * weight if count[s] > 1.0 else x[s]
        y[s] = z if x[s] == x[s] else y[s]


@strict_helper
def _smooth(bar: Bar, weight: Floats) -> None:
    y = bar.state[bar.row[SLOT]]
    _follow(y, bar.cells[_now(bar, FIRST)], bar.state[_count(bar, FIRST)], weight[0], bar.width)
    _put(bar, 0, bar.row[PERIOD], y)


@strict_helper
def _macd(bar: Bar, weight: Floats, head: int) -> None:
    x, count, width, at = (
        bar.cells[_now(bar, FIRST)],
        bar.state[_count(bar, FIRST)],
        bar.width,
        bar.row[SLOT],
    )
    fast, slow, signal = bar.state[at], bar.state[at + 1], bar.state[at + 2]
    dif, both = bar.cells[head + WORK0], bar.cells[head + WORK1]
    _follow(fast, x, count, weight[0], width)
    _follow(slow, x, count, weight[1], width)
    for s in range(width):
        dif[s] = fast[s] - slow[s] if x[s] == x[s] else math.nan
    _follow(signal, dif, count, weight[2], width)
    for s in range(width):
        both[s] = 2.0 * (dif[s] - signal[s])
    _put(bar, 0, bar.row[PERIOD], dif)
    _put(bar, 1, bar.row[PERIOD] + bar.row[EXTRA], signal)
    _put(bar, 2, bar.row[PERIOD] + bar.row[EXTRA], both)


@strict_helper
def _kdj(bar: Bar, weight: Floats, head: int) -> None:
    n, at, width, state = bar.row[PERIOD], bar.row[SLOT], bar.width, bar.state
    close, high, low = (
        bar.cells[_now(bar, FIRST)],
        bar.cells[_now(bar, SECOND)],
        bar.cells[_now(bar, THIRD)],
    )
    rsv, bottom, count = (
        bar.cells[head + WORK0],
        bar.cells[head + WORK1],
        bar.state[_count(bar, FIRST)],
    )
    for s in range(width):
        rsv[s] = high[s]
        bottom[s] = low[s]
    _highest(rsv, state, _window(bar, SECOND, 0, n), width)
    _lowest(bottom, state, _window(bar, THIRD, 0, n), width)
    for s in range(width):
        top, c = rsv[s], close[s]
        part = (c - bottom[s]) / (top - bottom[s]) if top > bottom[s] else 0.5
        part = part if part > 0.0 else 0.0  # a close outside its own bar must not stay
        part = part if part < 1.0 else 1.0
        rsv[s] = 100.0 * part if c == c and count[s] >= n else math.nan
    line = rsv
    for i in range(2):
        y, w = state[at + i], weight[i]
        for s in range(width):
            before = 50.0 if count[s] == n else y[s]
            z = before + (line[s] - before) * w
            y[s] = z if line[s] == line[s] else y[s]
        column = bar.cells[bar.row[OUT0 + i]]
        for s in range(width):
            column[s] = y[s] if line[s] == line[s] else math.nan
        line = column
    k_line, d_line, j_line = state[at], state[at + 1], bar.cells[bar.row[OUT0 + 2]]
    for s in range(width):
        y = 3.0 * k_line[s] - 2.0 * d_line[s]
        j_line[s] = y if line[s] == line[s] else math.nan


@strict_helper
def _rsi(bar: Bar, weight: Floats) -> None:
    x, before, count, width = (
        bar.cells[_now(bar, FIRST)],
        bar.state[_past(bar, FIRST, 1)],
        bar.state[_count(bar, FIRST)],
        bar.width,
    )
    gain, loss = bar.state[bar.row[SLOT]], bar.state[bar.row[SLOT] + 1]
    column, w = bar.cells[bar.row[OUT0]], weight[0]
    for s in range(width):
        up = x[s] - before[s]
        up = up if up > 0.0 else 0.0
        z = gain[s] + (up - gain[s]) * w if count[s] > 2.0 else up
        gain[s] = z if x[s] == x[s] and count[s] > 1.0 else gain[s]
    for s in range(width):
        down = before[s] - x[s]
        down = down if down > 0.0 else 0.0
        z = loss[s] + (down - loss[s]) * w if count[s] > 2.0 else down
        loss[s] = z if x[s] == x[s] and count[s] > 1.0 else loss[s]
    for s in range(width):
        moved = gain[s] + loss[s]
        y = 100.0 * (gain[s] / moved) if moved > 0.0 else 50.0
        column[s] = _shown(y, x[s], count[s], bar.row[PERIOD] + 1)


@strict_helper
def _atr(bar: Bar, weight: Floats, head: int) -> None:
    n, width, y, w = bar.row[PERIOD], bar.width, bar.state[bar.row[SLOT]], weight[0]
    before, high, low = (
        bar.state[_past(bar, FIRST, 1)],
        bar.cells[_now(bar, SECOND)],
        bar.cells[_now(bar, THIRD)],
    )
    count, wide = bar.state[_count(bar, FIRST)], bar.cells[head + WORK0]
    for s in range(width):  # NaN where there is no bar: no comparison replaces it
        most = high[s] - low[s]
        up, down = abs(high[s] - before[s]), abs(low[s] - before[s])
        most = up if up > most else most
        wide[s] = down if down > most else most
    for s in range(width):
        total = y[s] + wide[s]  # the first n ranges: their sum, then their mean
        total = total / n if count[s] == n + 1 else total
        z = total if count[s] <= n + 1 else y[s] + (wide[s] - y[s]) * w
        y[s] = z if wide[s] == wide[s] and count[s] > 1.0 else y[s]
    _put(bar, 0, n + 1, y)


@strict_helper
def _obv(bar: Bar) -> None:
    volume, count, y = (
        bar.cells[_now(bar, FIRST)],
        bar.state[_count(bar, FIRST)],
        bar.state[bar.row[SLOT]],
    )
    close, before, width = (
        bar.cells[_now(bar, SECOND)],
        bar.state[_past(bar, SECOND, 1)],
        bar.width,
    )
    for s in range(width):
        v = volume[s]
        change = v if close[s] > before[s] else (-v if close[s] < before[s] else 0.0)
        z = y[s] + change if count[s] > 1.0 else v
        # A sum beyond all numbers would stay infinite: it begins anew.
        y[s] = (z if abs(z) < math.inf else v) if v == v else y[s]
    _put(bar, 0, 1, y)


# ---------------------------------------------------------------- without memory


@strict_helper
def _value(bar: Bar) -> None:
    x, column = bar.cells[_now(bar, FIRST)], bar.cells[bar.row[OUT0]]
    for s in range(bar.width):
        column[s] = x[s]


@strict_helper
def _calendar(bar: Bar, time_ns: int, head: int) -> None:
    live = bar.cells[head + LIVE]
    minutes = time_ns // _MINUTE_NS + bar.row[EXTRA]
    days, minute = minutes // _DAY_MIN, minutes % _DAY_MIN
    # The civil date, from days since 1970-01-01 (a Thursday): years begin on 1 March, so that the
    # leap day ends one, and 400 of them always have 146,097 days.
    since = days + 719_468
    of_era = since % 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5
    parts = ((days + 3) % 7 / 7.0, (month + 2) % 12 / 12.0, day / 31.0, minute / 1440.0)
    for k in range(4):
        angle = 2.0 * math.pi * parts[k]
        for j in range(2):
            wave = math.sin(angle) if j == 0 else math.cos(angle)
            column = bar.cells[bar.row[OUT0 + 2 * k + j]]
            for s in range(bar.width):
                column[s] = wave + live[s]
