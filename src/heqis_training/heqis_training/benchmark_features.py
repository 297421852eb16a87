# SPDX-License-Identifier: Apache-2.0
"""The reference protocol of daily forecasts: its 18 features, and which rows it judges.

Open, high, low, close, MA 5/15/30, DIF/DEA/MACD, ATR 14, BOLL 20 (mid, up, low), RSI 14, K, D, J;
the bars that follow are split 70/30 in time, and windows of 15 bars forecast the next close.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from heqis_core.errors import ConfigError, DataError
from heqis_core.features.spec import FeatureItem, FeatureSpec

FIRST_ROW = 31
"""Bars that the protocol leaves out for its indicators to fill; the last bar is left out too."""
TRAIN_FRACTION = 0.7
WINDOW = 15

_PRICES = ('open', 'high', 'low', 'close')


class ReferenceRows(NamedTuple):
    """Rows of the bars of one asset in the reference protocol.

    A test window lies wholly in the test part: its first bar is `test_from`, and the first close
    that is forecast comes after its last bar, `decide_from`. The last close that is forecast is
    that of row `stop - 1`.

    Attributes:
        first: first row that may train.
        test_from: first row of the test part.
        decide_from: row of the last bar of the first test window.
        stop: rows from here on are not used; also not as labels.
    """

    first: int
    test_from: int
    decide_from: int
    stop: int


def reference_rows(n_rows: int, window: int = WINDOW) -> ReferenceRows:
    """Return the rows of an asset with `n_rows` bars, or raise DataError for too few of them.

    Rows 31 … n_rows - 2 are used. Bars from the first 70 % of them on (rounded down) are the test
    part. On these rows persistence and buy and hold have the figures that are published beside the
    protocol; majority accuracies there are those of the best class in hindsight (with a flat band
    of 0, so that an unchanged close is neither up nor down).
    """
    used = n_rows - 1 - FIRST_ROW
    test_from = FIRST_ROW + int(TRAIN_FRACTION * max(used, 0))
    rows = ReferenceRows(FIRST_ROW, test_from, test_from + window - 1, n_rows - 1)
    if rows.decide_from + 1 >= rows.stop:
        raise DataError(
            f'{n_rows} bars leave no test window of {window} bars and its label behind the first '
            f'{test_from}; the reference protocol needs a longer series'
        )
    return rows


def benchmark_spec(form: Literal['levels', 'relative']) -> FeatureSpec:
    """Return the 18 features of the protocol.

    `levels` gives them as they are, prices as prices: a network that was fitted on one level of
    the market is asked about another. `relative` gives the same 18 without a trend: each price as
    its change since the bar before, MA and BOLL as x / close - 1, DIF, DEA, MACD and ATR as
    x / close; RSI, K, D and J are scale-free anyway. What a spec cannot say, and `relative`
    therefore lacks, is open, high and low beside the close of the same bar.

    DEA and MACD have no value for the first 33 bars of a symbol, so the first frame is that of row
    33, two rows after the protocol's first; test windows are the same. Raises ConfigError for
    another form.
    """
    if form not in {'levels', 'relative'}:
        raise ConfigError(f'benchmark features: form is {form!r}, expected levels or relative')
    relative = form == 'relative'
    prices = (
        [FeatureItem('return', {'n': 1}, of=name) for name in _PRICES]
        if relative
        else [FeatureItem('value', of=name) for name in _PRICES]
    )
    return FeatureSpec(
        (
            *prices,
            *(FeatureItem('ma', {'n': n}, relative) for n in (5, 15, 30)),
            FeatureItem('macd', relative=relative),
            FeatureItem('atr', {'n': 14}, relative),
            FeatureItem('boll', {'n': 20}, relative),
            FeatureItem('rsi', {'n': 14}),
            FeatureItem('kdj'),
        )
    )
