# SPDX-License-Identifier: Apache-2.0
"""The arithmetic across symbols: rank and z-score of one series over all symbols of a bar.

Numbers are put in order once for each series, and all sums run in that order: so the order in
which the symbols stand changes no bit, and the symbols that have no number do not take part.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from heqis_core.jit import strict_helper, strict_njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Columns of a row, and its codes. The plane is that of the series now; ORDER has it sorted for the
# rows behind it.
CODE, PLANE, MIN_SYMBOLS, DDOF, OUT = range(5)
CROSS_WIDTH = 5
ORDER, RANK, ZSCORE = range(3)

_FEW = 48  # numbers up to which insertion is quicker than eight passes over 256 digits


@strict_njit
def cross_section(program: Ints, cells: Floats, n_symbols: int) -> None:
    """Run the rows on cells (blocks, planes, B) of S symbols."""
    width = cells.shape[2]
    which, values = np.empty(n_symbols, np.int64), np.empty(n_symbols)
    n = 0
    for row in program:
        if row[CODE] == ORDER:
            n = _order(cells, row[PLANE], n_symbols, which, values)
            continue
        out = row[OUT]
        for b in range(len(cells)):
            for s in range(width):
                cells[b, out, s] = math.nan
        if n < row[MIN_SYMBOLS]:
            continue
        if row[CODE] == RANK:
            _rank(cells, out, n, which, values)
        else:
            _zscore(cells, out, n, which, values, row[DDOF])


@strict_helper
def _order(cells: Floats, plane: int, n_symbols: int, which: Ints, values: Floats) -> int:
    """Give the symbols that have a number, and their numbers, in ascending order; return n."""
    width, n = cells.shape[2], 0
    for s in range(n_symbols):
        x = cells[s // width, plane, s % width]
        if x == x:
            which[n] = s
            values[n] = x + 0.0  # no negative zero
            n += 1
    if n <= _FEW:
        for i in range(1, n):
            x, s, k = values[i], which[i], i
            while k > 0 and values[k - 1] > x:
                values[k], which[k] = values[k - 1], which[k - 1]
                k -= 1
            values[k], which[k] = x, s
    else:
        _radix(n, which, values)
    return n


@strict_helper
def _radix(n: int, which: Ints, values: Floats) -> None:
    """Sort by the eight bytes of the numbers, lowest first."""
    keys, other_keys = np.empty(n, np.uint64), np.empty(n, np.uint64)
    other_which = np.empty(n, np.int64)
    bits = values.view(np.uint64)
    sign, everything = np.uint64(1) << np.uint64(63), ~np.uint64(0)
    counts = np.zeros((8, 256), np.int64)
    for i in range(n):
        # As unsigned integers in the order of the numbers: all bits of a negative turn over.
        key = bits[i] ^ (everything if bits[i] & sign else sign)
        keys[i] = key
        for digit in range(8):
            counts[digit, (key >> np.uint64(8 * digit)) & np.uint64(255)] += 1
    a, b, v, w = keys, other_keys, which, other_which
    for digit in range(8):
        shift, place = np.uint64(8 * digit), counts[digit]
        if place[(a[0] >> shift) & np.uint64(255)] == n:
            continue
        start = 0
        for k in range(256):
            place[k], start = start, start + place[k]
        for i in range(n):
            d = (a[i] >> shift) & np.uint64(255)
            at = place[d]
            place[d] = at + 1
            b[at], w[at] = a[i], v[i]
        a, b, v, w = b, a, w, v
    for i in range(n):
        bits[i] = a[i] ^ (sign if a[i] & sign else everything)
    for i in range(n):
        other_which[i] = v[i]
    for i in range(n):
        which[i] = other_which[i]


@strict_helper
def _rank(cells: Floats, out: int, n: int, which: Ints, values: Floats) -> None:
    width, first = cells.shape[2], 0
    while first < n:
        last = first + 1
        while last < n and values[last] == values[first]:
            last += 1
        rank = (first + 0.5 * (last - first)) / n
        for k in range(first, last):
            cells[which[k] // width, out, which[k] % width] = rank
        first = last


@strict_helper
def _zscore(cells: Floats, out: int, n: int, which: Ints, values: Floats, ddof: int) -> None:
    # From the median instead of from zero: nothing cancels where all lie close together.
    width, middle, total, squares = cells.shape[2], values[n // 2], 0.0, 0.0
    for k in range(n):
        total += values[k] - middle
    mean = total / n
    for k in range(n):
        x = values[k] - middle - mean
        squares += x * x
    deviation = math.sqrt(squares / (n - ddof))
    for k in range(n):
        z = (values[k] - middle - mean) / deviation if deviation > 0.0 else 0.0
        cells[which[k] // width, out, which[k] % width] = z
