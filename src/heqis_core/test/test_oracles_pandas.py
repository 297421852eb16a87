# SPDX-License-Identifier: Apache-2.0
"""Every kind against a few lines of pandas that share nothing with the kernels, on real bars.

The bars are those of a stock with hundreds of suspended days: pandas sees the days of trading
alone, our state sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heqis_core.bars import BAR_FIELDS, CLOSE, BarStatus, BarTable
from heqis_core.features.kinds import KINDS
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data, simulated_table

Bars = Any  # a DataFrame, one column for each of BAR_FIELDS
Series = Any
Params = Any

CLOSE_TO = 1e-9


def ewm(x: Series, weight: float) -> Series:
    return x.ewm(alpha=weight, adjust=False).mean()


def true_range(bars: Bars) -> Series:
    before = bars.close.shift()
    each = [bars.high - bars.low, (bars.high - before).abs(), (bars.low - before).abs()]
    return pd.concat(each, axis=1).max(axis=1, skipna=False)


def macd(bars: Bars, p: Params) -> list[Series]:
    dif = ewm(bars.close, 2 / (p['fast'] + 1)) - ewm(bars.close, 2 / (p['slow'] + 1))
    dea = ewm(dif, 2 / (p['signal'] + 1))
    return [dif, dea, 2 * (dif - dea)]


def kdj(bars: Bars, p: Params) -> list[Series]:
    top, bottom = bars.high.rolling(p['n']).max(), bars.low.rolling(p['n']).min()
    rsv = 100 * (bars.close - bottom) / (top - bottom)
    seeded = rsv.copy()
    seeded.iloc[p['n'] - 2] = 50.0
    k = ewm(seeded.iloc[p['n'] - 2 :], 1 / p['k'])
    d = ewm(k, 1 / p['d'])  # k begins with 50 too
    return [column.iloc[1:].reindex(bars.index) for column in (k, d, 3 * k - 2 * d)]


def rsi(bars: Bars, p: Params) -> list[Series]:
    change = bars.close.diff().iloc[1:]
    gain, loss = (ewm(part.clip(lower=0), 1 / p['n']) for part in (change, -change))
    return [(100 * gain / (gain + loss)).reindex(bars.index)]


def boll(bars: Bars, p: Params) -> list[Series]:
    window = bars.close.rolling(int(p['n']))
    band = p['width'] * window.std(ddof=int(p['ddof']))
    return [window.mean(), window.mean() + band, window.mean() - band]


def atr(bars: Bars, p: Params) -> list[Series]:
    ranges = true_range(bars)
    seeded = ranges.copy()
    seeded.iloc[p['n']] = ranges.iloc[1 : p['n'] + 1].mean()
    return [ewm(seeded.iloc[p['n'] :], 1 / p['n']).reindex(bars.index)]


def cci(bars: Bars, p: Params) -> list[Series]:
    price = (bars.high + bars.low + bars.close) / 3
    window = price.rolling(p['n'])
    deviation = window.apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
    return [(price - window.mean()) / (0.015 * deviation)]


def obv(bars: Bars, p: Params) -> list[Series]:
    signed = np.sign(bars.close.diff()) * bars.volume
    signed.iloc[0] = bars.volume.iloc[0]
    return [signed.cumsum()]


def zscore(bars: Bars, p: Params) -> list[Series]:
    window = bars.close.rolling(p['n'])
    return [(bars.close - window.mean()) / window.std(ddof=p['ddof'])]


def minmax(bars: Bars, p: Params) -> list[Series]:
    window = bars.close.rolling(p['n'])
    return [(bars.close - window.min()) / (window.max() - window.min())]


def rank(bars: Bars, p: Params) -> list[Series]:
    return [(bars.close.rolling(p['n']).rank(method='average') - 0.5) / p['n']]


Naive = Callable[[Bars, Params], list[Series]]
NAIVE: dict[str, Naive] = {
    'return': lambda bars, p: [bars.close.pct_change(p['n'])],
    'log_return': lambda bars, p: [np.log(bars.close).diff(p['n'])],
    'ma': lambda bars, p: [bars.close.rolling(p['n']).mean()],
    'sma': lambda bars, p: [ewm(bars.close, p['m'] / p['n'])],
    'ema': lambda bars, p: [ewm(bars.close, 2 / (p['n'] + 1))],
    'macd': macd,
    'kdj': kdj,
    'rsi': rsi,
    'boll': boll,
    'atr': atr,
    'cci': cci,
    'obv': obv,
    'volume_ratio': lambda bars, p: [bars.volume / bars.volume.shift().rolling(p['n']).mean()],
    'zscore': zscore,
    'minmax': minmax,
    'rank': rank,
}


PARAMS: dict[str, list[dict[str, float]]] = {
    # other than the defaults
    'return': [{'n': 20}],
    'ma': [{'n': 60}],
    'sma': [{'n': 20, 'm': 3}],
    'ema': [{'n': 5}],
    'macd': [{'fast': 10, 'slow': 20, 'signal': 9}],
    'kdj': [{'n': 14, 'k': 3, 'd': 3}],
    'boll': [{'n': 10, 'width': 1.5, 'ddof': 1}],
    'zscore': [{'n': 60, 'ddof': 1}],
}
OTHERWISE = {'calendar', 'turnover', 'value', 'xs_rank', 'xs_zscore'}
"""Kinds that need more than one stock's bars, each with a test of its own below."""


@pytest.fixture(scope='module')
def stock() -> BarTable:
    folder = shared_data() / 'ashare_daily' / 'joinquant_qfq_limits_2005_2023'
    table, _ = load_bars(folder / '000004.XSHE.csv')
    assert (table.status == BarStatus.SUSPENDED).sum() > 100
    return table


def test_every_kind_has_a_line_of_pandas() -> None:
    assert set(KINDS) == NAIVE.keys() | OTHERWISE


@pytest.mark.parametrize('kind', NAIVE)
def test_pandas_on_the_days_of_trading_gives_the_same(stock: BarTable, kind: str) -> None:
    valid = stock.status[:, 0] == BarStatus.VALID
    bars = pd.DataFrame(stock.values[valid, :, 0], columns=BAR_FIELDS)
    for params in [{}, *PARAMS.get(kind, [])]:
        item = FeatureItem(
            kind, params, of='close' if kind in ('zscore', 'minmax', 'rank') else ''
        )
        spec = FeatureSpec((item,))
        mine = FeatureState(spec, 1).batch(stock.values, stock.status)[:, 0]
        assert np.isnan(mine[~valid]).all()
        theirs = NAIVE[kind](bars, dict(item.params))
        for column, output, expected in zip(mine[valid].T, spec.outputs, theirs, strict=True):
            assert np.isnan(column[: output.warm_up]).all(), output.name
            column, other = column[output.warm_up :], expected.to_numpy()[output.warm_up :]
            assert np.isfinite(column).all(), output.name
            scale = np.abs(other).max()
            odd = ~np.isfinite(other)  # 0 / 0 of a window where nothing moved
            assert odd.sum() <= 10, output.name
            assert (np.abs(column - other)[~odd] <= CLOSE_TO * scale).all(), output.name


def test_turnover_is_the_mean_of_a_channel_and_value_the_channel_itself() -> None:
    table = simulated_table(1, 60, 3)
    rate = np.random.default_rng(3).uniform(0.1, 9, (60, 2, 1))
    rate[::7] = np.nan
    channels = ('other', 'turnover_rate')
    spec = FeatureSpec(
        (FeatureItem('turnover', {'n': 5}), FeatureItem('value', of='channel:other'))
    )
    assert spec.channels == ('other', 'turnover_rate') or set(spec.channels) == set(channels)
    state = FeatureState(spec, 1, channels)
    mine = state.batch(table.values, table.status, table.event_time_ns, rate)[:, 0]
    valid = table.status[:, 0] == BarStatus.VALID
    rates = pd.DataFrame(np.where(valid[:, None], rate[:, :, 0], np.nan), columns=channels)
    mean = rates.turnover_rate.dropna().rolling(5).mean().reindex(rates.index)
    np.testing.assert_allclose(mine[:, 0], mean, rtol=CLOSE_TO)
    np.testing.assert_array_equal(mine[:, 1], rates.other)


def test_the_cross_section_is_a_row_of_a_data_frame() -> None:
    table = simulated_table(40, 80, 5)
    spec = FeatureSpec(
        (FeatureItem('xs_rank', of='close'), FeatureItem('xs_zscore', {'ddof': 1}, of='close'))
    )
    closes = pd.DataFrame(table.values[:, CLOSE]).where(table.status == BarStatus.VALID).round(0)
    assert closes.isna().any().any(), 'a market without suspensions shows less'
    rounded = table.values.copy()
    rounded[:, CLOSE] = closes
    rounded[:, 1:3] = closes.to_numpy()[:, None]
    mine = FeatureState(spec, 40).batch(rounded, table.status)
    count = closes.notna().sum(axis=1)
    ranks = (closes.rank(axis=1, method='average') - 0.5).div(count, axis=0)
    assert closes.apply(lambda row: row.dropna().duplicated().any(), axis=1).all(), 'no ties'
    np.testing.assert_allclose(mine[:, :, 0], ranks, rtol=CLOSE_TO)
    scores = closes.sub(closes.mean(axis=1), axis=0).div(closes.std(axis=1, ddof=1), axis=0)
    np.testing.assert_allclose(mine[:, :, 1], scores, rtol=CLOSE_TO, atol=CLOSE_TO)


def test_the_calendar_is_that_of_the_zone() -> None:
    times = pd.date_range('2023-12-28 15:00', periods=400, freq='31h7min', tz='Asia/Shanghai')
    spec = FeatureSpec((FeatureItem('calendar'),))
    n = len(times)
    mine = FeatureState(spec, 1).batch(
        np.full((n, len(BAR_FIELDS), 1), 10.0),
        np.full((n, 1), BarStatus.VALID, np.uint8),
        times.as_unit('ns').asi8,
    )[:, 0]
    turns = [
        times.day_of_week / 7,
        (times.month - 1) / 12,
        (times.day - 1) / 31,
        (times.hour * 60 + times.minute) / 1440,
    ]
    for k, turn in enumerate(turns):
        angle = 2 * np.pi * turn.to_numpy()
        np.testing.assert_allclose(mine[:, 2 * k], np.sin(angle), atol=1e-12)
        np.testing.assert_allclose(mine[:, 2 * k + 1], np.cos(angle), atol=1e-12)
