# SPDX-License-Identifier: Apache-2.0
"""The indicators against StockCharts' worksheets, to their last printed digit.

Their definitions are ours, except for how three recursions begin: an RSI from zero averages, an
ATR whose first range is that of the first bar alone, and a MACD signal from a number of its own.
The first two seeds can be given to ours by one bar more in front.
"""

from __future__ import annotations

import csv

import numpy as np
import numpy.typing as npt
import pytest

from heqis_core.bars import BAR_FIELDS
from heqis_core.features.spec import FeatureItem
from heqis_core.testing import features_of, shared_data

Floats = npt.NDArray[np.float64]
Sheet = dict[str, Floats]


def item(kind: str, of: str = '', **params: float) -> FeatureItem:
    return FeatureItem(kind, params, of=of)


def read(name: str) -> Sheet:
    """Return the numeric columns of a worksheet by lower-case name; an empty cell is NaN."""
    path = shared_data() / 'oracles' / 'bukosabino_ta' / f'cs-{name}.csv'
    with path.open(newline='') as file:
        header, *rows = csv.reader(file)
    return {
        column.lower(): np.array([float(row[k] or 'nan') for row in rows])
        for k, column in enumerate(header)
        if column and 'date' not in column.lower()
    }


def ours(sheet: Sheet, *items: FeatureItem) -> list[Floats]:
    """Return the F columns; a worksheet without high and low has its close for both."""
    prices = dict.fromkeys(BAR_FIELDS[:4], sheet['close'])
    return list(features_of({**prices, **sheet}, *items).T)


def led(sheet: Sheet) -> Sheet:
    """Return the worksheet with its first close, as a bar without a range, once more in front."""
    first = {name: sheet['close'][0] for name in ('high', 'low', 'close')}
    return {
        name: np.concatenate([[first.get(name, np.nan)], column]) for name, column in sheet.items()
    }


def assert_printed(mine: Floats, theirs: Floats, digits: int, rows: int) -> None:
    """Assert that all `rows` printed values are met to their last of `digits` decimals."""
    both = np.isfinite(theirs) & np.isfinite(mine)
    assert both.sum() == rows
    assert np.abs(mine - theirs)[both].max() <= 0.51 * 10**-digits


def name_of(of: FeatureItem) -> str:
    """Return the name of an item's first column."""
    return of.columns[0].name


def test_ema_of_closes_and_volumes_begins_with_the_first_of_them() -> None:
    macd, ppo, stc, channel = read('macd'), read('ppo'), read('stc'), read('kc')
    for sheet, n, name, digits, rows in (
        (macd, 12, 'short_ema', 8, 113),
        (macd, 26, 'long_ema', 8, 99),
        (ppo, 12, '12 day ema', 8, 29),
        (ppo, 26, '26 day ema', 8, 15),
        (stc, 23, 'short_ema', 8, 98),
        (stc, 50, 'long_ema', 8, 71),
        (channel, 20, 'middle_band', 12, 11),
    ):
        assert_printed(ours(sheet, item('ema', n=n))[0], sheet[name], digits, rows)
    pvo = read('pvo')
    pvo['close'] = np.ones(len(pvo['volume']))
    for n, name, rows in ((12, '12 day ema', 29), (26, '26 day ema', 15)):
        assert_printed(ours(pvo, item('ema', of='volume', n=n))[0], pvo[name], 4, rows)


def test_macd_is_theirs_and_its_signal_and_bar_are_once_the_seed_has_faded() -> None:
    sheet = read('macd')
    dif, dea, bar = ours(sheet, item('macd'))
    assert_printed(dif, sheet['macd_line'], 9, 99)
    # Their signal begins with -0.129 at the third row, ours with 0 at the first.
    apart = (dea - sheet['macd_signal'])[33:]
    assert 1.3e-4 < apart[0] < 1.4e-4
    np.testing.assert_allclose(apart, apart[0] * 0.8 ** np.arange(91), rtol=0, atol=1e-9)
    assert_printed(dea[80:], sheet['macd_signal'][80:], 8, 44)
    assert_printed(bar[80:] / 2, sheet['macd_diff'][80:], 8, 44)  # ours is twice theirs


def test_rsi_and_stochastic_rsi_are_theirs_from_zero_averages() -> None:
    sheet, stochastic = read('rsi'), read('stochrsi')
    rsi = item('rsi', n=14)
    assert_printed(ours(led(sheet), rsi)[0][1:], sheet['rsi'], 6, 19)
    # Where their averages begin with zeros, ours begin with the first change.
    apart = (ours(sheet, rsi)[0] - sheet['rsi'])[14:]
    assert -22 < apart[0] < -21
    mine, place = ours(led(stochastic), rsi, item('minmax', of=name_of(rsi), n=14))
    assert_printed(mine[1:], stochastic['rsi'], 6, 19)
    assert_printed(place[1:], stochastic['stochrsi(14)'], 7, 6)


@pytest.mark.parametrize(('name', 'n', 'digits'), [('atr', 14, 9), ('atr2', 10, 12)])
def test_atr_is_theirs_when_the_first_bars_own_range_counts(
    name: str, n: int, digits: int
) -> None:
    sheet = read(name)
    sheet['atr'][: n - 1] = np.nan  # zeros there say that there is none yet
    assert_printed(ours(led(sheet), item('atr', n=n))[0][1:], sheet['atr'], digits, 31 - n)
    # A first bar has no close before it: TA-Lib leaves its range out, and so do we.
    without = (ours(sheet, item('atr', n=n))[0] - sheet['atr'])[n:]
    assert 0.02 < np.abs(without[0]) < 0.04
    np.testing.assert_allclose(without, without[0] * (1 - 1 / n) ** np.arange(30 - n), atol=1e-8)


def test_bands_are_theirs_with_the_population_deviation_only() -> None:
    sheet = read('bbands')
    mid, up, low = ours(sheet, item('boll', n=20))
    assert_printed(mid, sheet['middleband'], 6, 23)
    assert_printed(up, sheet['highband'], 6, 23)
    assert_printed(low, sheet['lowband'], 6, 23)
    sample = ours(sheet, item('boll', n=20, ddof=1))[1]
    assert np.nanmin(np.abs(sample - sheet['highband'])) > 0.05


def test_cci_is_theirs() -> None:
    sheet = read('cci')
    assert_printed(ours(sheet, item('cci', n=20))[0], sheet['cci'], 4, 11)


def test_obv_is_theirs_from_the_first_volume_on() -> None:
    sheet = read('obv')
    obv = ours(sheet, item('obv'))[0]
    assert np.isnan(sheet['volume'][0])
    np.testing.assert_array_equal(obv, sheet['obv'])


def test_stochastic_and_williams_r_are_our_rsv() -> None:
    rsv = item('kdj', n=14, k=1, d=1)
    for name, theirs, down, rows in (('soo', 'so', 0, 17), ('percentr', 'williams_%r', 100, 17)):
        sheet = read(name)
        empty = np.isnan(sheet['close'])  # closes play no part before the window is whole
        sheet['close'][empty] = (sheet['high'] + sheet['low'])[empty] / 2
        mine = ours(sheet, rsv, item('ma', of=name_of(rsv), n=3))
        assert_printed(mine[0] - down, sheet[theirs], 6, rows)
        if name == 'soo':
            assert_printed(mine[3], sheet['so_sig'], 5, 14)


def test_rate_of_change_is_theirs() -> None:
    sheet = read('roc')
    assert_printed(100 * ours(sheet, item('return', n=12))[0], sheet['roc'], 8, 8)
