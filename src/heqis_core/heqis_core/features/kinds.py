# SPDX-License-Identifier: Apache-2.0
"""The kinds of features: which parameters each takes, what it reads, its columns and its warm-up.

What a kind computes lives in `kernels` and `cross`; `docs/features.md` has the definitions.

Kinds (X the series that `of` names, the close C by default; H high, L low, V volume; every window
counts the bars of one symbol at which the series has a number):

================ ================== =============================================================
kind             parameters         columns
================ ================== =============================================================
``return``       n                  X / X[-n] - 1
``log_return``   n                  ln(X / X[-n])
``ma``           n                  mean of the last n X
``sma``          n, m               Chinese SMA(X, n, m): Y += (X - Y) m / n, from the first X
``ema``          n                  Y += (X - Y) 2 / (n + 1), from the first X
``macd``         fast, slow, signal dif = EMA fast - EMA slow, dea = EMA signal of dif,
                                    bar = 2 (dif - dea)
``kdj``          n, k, d            RSV over n bars (50 where HHV = LLV); k and d smooth it, from
                                    50 at the first whole window; j = 3 k - 2 d
``rsi``          n                  100 G / (G + L), gains and losses smoothed by SMA(x, n, 1)
                                    from the first change; 50 where nothing ever moved
``boll``         n, width, ddof     mid = MA n; up, low = mid +- width * deviation
``atr``          n                  true range smoothed after Wilder, from the mean of the first n
``cci``          n                  (P - MA n of P) / (0.015 * mean absolute deviation), with
                                    P = (H + L + C) / 3; 0 where P stood still
``obv``                             V added on a rise of C and taken off on a fall, from the first
                                    volume, which is its first value
``volume_ratio`` n                  V / mean of the n volumes before it
``turnover``     n                  mean of the last n of the channel turnover_rate
``value``                           X as it is; `of` is required
``calendar``     utc_offset_min     sine and cosine of weekday, month, day of the month and minute
                                    of the day, of the event time in that zone
``zscore``       n, ddof            (X - mean) / deviation of the last n X, 0 where they are equal
``minmax``       n                  (X - min) / (max - min) of the last n X, 0.5 where all equal
``rank``         n                  (rank - 0.5) / n of X among the last n, ties averaged
``xs_rank``      min_symbols        (rank - 0.5) / count of X among the symbols, ties averaged
``xs_zscore``    ddof, min_symbols  (X - mean) / deviation over the symbols, 0 where all are equal
================ ================== =============================================================

`of` is required by the last five and `value`. A column is NaN until its window is whole, and a
recursive one of period n for its first n - 1 numbers (`Output.warm_up` has the count); what the
seed left behind fades on after that.

`relative` makes a column scale-free: levels (ma, sma, ema, boll) become x / X - 1, spreads (macd,
atr) x / X. It is refused where a kind is scale-free already, or has no scale of X.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

MAX_PERIOD = 10_000
"""Longest period in bars: a typing error must not ask for gigabytes of state."""

CHANNEL = 'channel:'
"""What a series that is a channel of the bars begins with."""

Number = int | float
Params = Mapping[str, Number]


class Param(NamedTuple):
    """One parameter of a kind: a period in bars unless `is_float` or `minimum` say otherwise."""

    default: Number
    minimum: Number = 1
    maximum: Number = MAX_PERIOD
    is_float: bool = False
    label: str = ''
    """What stands before the value in column names, where it is not the default; without a label
    the value is always in the name."""


class Kind(NamedTuple):
    """What a kind of feature takes and gives."""

    params: dict[str, Param]
    outputs: tuple[str, ...]
    """Column suffixes; one empty suffix for a kind with one column."""
    scale: str
    """`level` or `spread` of what it reads (both may be relative), or `free`."""
    warm_up: Callable[[Params], tuple[int, ...]]
    """For each output: for how many first numbers of its series it has no value."""
    rule: Callable[[Params], str] = lambda p: ''
    """What the parameters break together, or an empty string."""
    of: str | None = None
    """The series that is read where an item names none, '' if it has to; None: no choice."""
    reads: tuple[str, ...] = ()
    """Series that are read without a choice."""


def _period(default: int, minimum: int = 1) -> dict[str, Param]:
    return {'n': Param(default, minimum)}


def _macd_warm_up(p: Params) -> tuple[int, ...]:
    dif = int(p['slow']) - 1
    return dif, dif + int(p['signal']) - 1, dif + int(p['signal']) - 1


def _whole(p: Params) -> tuple[int, ...]:
    return (int(p['n']) - 1,)


def _after(p: Params) -> tuple[int, ...]:
    return (int(p['n']),)


def _at_once(p: Params) -> tuple[int, ...]:
    return (0,)


_DDOF = Param(0, 0, 1, label='ddof')
_MIN_SYMBOLS = Param(2, 1, label='min')
_CYCLES = ('weekday', 'month', 'day', 'minute')

KINDS: dict[str, Kind] = {
    'return': Kind(_period(1), ('',), 'free', _after, of='close'),
    'log_return': Kind(_period(1), ('',), 'free', _after, of='close'),
    'ma': Kind(_period(20), ('',), 'level', _whole, of='close'),
    'sma': Kind(
        {'n': Param(20), 'm': Param(1)},
        ('',),
        'level',
        _whole,
        lambda p: '' if p['m'] <= p['n'] else 'm must not be above n',
        of='close',
    ),
    'ema': Kind(_period(20), ('',), 'level', _whole, of='close'),
    'macd': Kind(
        {'fast': Param(12), 'slow': Param(26), 'signal': Param(9)},
        ('dif', 'dea', 'bar'),
        'spread',
        _macd_warm_up,
        lambda p: '' if p['fast'] < p['slow'] else 'fast must be below slow',
        of='close',
    ),
    'kdj': Kind(
        {'n': Param(9), 'k': Param(3), 'd': Param(3)},
        ('k', 'd', 'j'),
        'free',
        lambda p: _whole(p) * 3,
        reads=('close', 'high', 'low'),
    ),
    'rsi': Kind(_period(14), ('',), 'free', _after, of='close'),
    'boll': Kind(
        {
            'n': Param(20, 2),
            'width': Param(2.0, 1e-6, 1e6, is_float=True),
            'ddof': _DDOF,
        },
        ('mid', 'up', 'low'),
        'level',
        lambda p: _whole(p) * 3,
        of='close',
    ),
    'atr': Kind(_period(14), ('',), 'spread', _after, reads=('close', 'high', 'low')),
    'cci': Kind(_period(14, 2), ('',), 'free', _whole, reads=('typical',)),
    'obv': Kind({}, ('',), 'free', _at_once, reads=('volume', 'close')),
    'volume_ratio': Kind(_period(5), ('',), 'free', _after, reads=('volume',)),
    'turnover': Kind(_period(5), ('',), 'free', _whole, reads=(CHANNEL + 'turnover_rate',)),
    'value': Kind({}, ('',), 'free', _at_once, of=''),
    'calendar': Kind(
        {'utc_offset_min': Param(480, -720, 840, label='utc')},
        tuple(f'{cycle}_{wave}' for cycle in _CYCLES for wave in ('sin', 'cos')),
        'free',
        lambda p: (0,) * 8,
    ),
    'zscore': Kind({'n': Param(60, 2), 'ddof': _DDOF}, ('',), 'free', _whole, of=''),
    'minmax': Kind(_period(60, 2), ('',), 'free', _whole, of=''),
    'rank': Kind(_period(60, 2), ('',), 'free', _whole, of=''),
    'xs_rank': Kind({'min_symbols': _MIN_SYMBOLS}, ('',), 'free', _at_once, of=''),
    'xs_zscore': Kind(
        {'ddof': _DDOF, 'min_symbols': _MIN_SYMBOLS},
        ('',),
        'free',
        _at_once,
        lambda p: '' if p['min_symbols'] > p['ddof'] else 'min_symbols must be above ddof',
        of='',
    ),
}
"""Every kind of feature by name."""

CROSS_SECTION = ('xs_rank', 'xs_zscore')
"""Kinds that read all symbols of one event time."""
ROLLING = ('zscore', 'minmax', 'rank')
"""Rolling normalisers of a series."""
