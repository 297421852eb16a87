# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the indicators against plain-Python definitions and other people's numbers.

The reference computes each value from the whole history, in the order of operations that the
definitions give. It must agree bit for bit: a fused multiply-add, a reordered sum or a drifting
running sum would show.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.features.spec import KINDS, FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.testing import shared_data

NAN = math.nan

# ---------------------------------------------------------------- reference


def total(xs: list[float]) -> float:
    result = 0.0
    for x in xs:  # sum() compensates from Python 3.12 on
        result += x
    return result


def mean(xs: list[float]) -> float:
    return total(xs) / len(xs)


def smooth(xs: list[float], weight: float, seed: float | None = None) -> list[float]:
    ys = [xs[0] if seed is None else seed + (xs[0] - seed) * weight]
    for x in xs[1:]:
        ys.append(ys[-1] + (x - ys[-1]) * weight)
    return ys


class History:
    """Every VALID bar of one symbol; the methods give the outputs of a kind at the last one."""

    def __init__(self) -> None:
        self.high: list[float] = []
        self.low: list[float] = []
        self.close: list[float] = []
        self.volume: list[float] = []

    def add(self, high: float, low: float, close: float, volume: float) -> None:
        self.high.append(high)
        self.low.append(low)
        self.close.append(close)
        self.volume.append(volume)

    def ma(self, n: int) -> list[float]:
        return [mean(self.close[-n:]) if len(self.close) >= n else NAN]

    def sma(self, n: int, m: int) -> list[float]:
        return [smooth(self.close, m / n)[-1] if len(self.close) >= n else NAN]

    def ema(self, n: int) -> list[float]:
        return [smooth(self.close, 2 / (n + 1))[-1] if len(self.close) >= n else NAN]

    def returns(self, n: int) -> list[float]:
        return [self.close[-1] / self.close[-1 - n] - 1 if len(self.close) > n else NAN]

    def macd(self, fast: int, slow: int, signal: int) -> list[float]:
        a, b = (smooth(self.close, 2 / (n + 1)) for n in (fast, slow))
        dif = [x - y for x, y in zip(a, b, strict=True)]
        dea = smooth(dif, 2 / (signal + 1))
        bar = 2 * (dif[-1] - dea[-1])
        bars = len(dif)
        return [
            dif[-1] if bars >= slow else NAN,
            *((dea[-1], bar) if bars >= slow + signal - 1 else (NAN, NAN)),
        ]

    def kdj(self, n: int, k: int, d: int) -> list[float]:
        rsv = []
        for end in range(n, len(self.close) + 1):
            top, bottom = max(self.high[end - n : end]), min(self.low[end - n : end])
            part = (self.close[end - 1] - bottom) / (top - bottom) if top > bottom else 0.5
            rsv.append(100 * part)
        if not rsv:
            return [NAN] * 3
        k_line = smooth(rsv, 1 / k, 50.0)
        d_line = smooth(k_line, 1 / d, 50.0)
        return [k_line[-1], d_line[-1], 3 * k_line[-1] - 2 * d_line[-1]]

    def rsi(self, n: int) -> list[float]:
        changes = [b - a for a, b in zip(self.close, self.close[1:], strict=False)]
        if len(changes) < n:
            return [NAN]
        gain = smooth([max(x, 0.0) for x in changes], 1 / n)[-1]
        loss = smooth([max(-x, 0.0) for x in changes], 1 / n)[-1]
        return [100 * (gain / (gain + loss)) if gain + loss else 50.0]

    def boll(self, n: int, width: float, ddof: int) -> list[float]:
        if len(self.close) < n:
            return [NAN] * 3
        last = self.close[-n:]
        mid = mean(last)
        squares = [(x - mid) * (x - mid) for x in last]
        band = width * math.sqrt(total(squares) / (n - ddof))
        return [mid, mid + band, mid - band]

    def atr(self, n: int) -> list[float]:
        ranges = [
            max(high - low, abs(high - before), abs(low - before))
            for high, low, before in zip(self.high[1:], self.low[1:], self.close, strict=False)
        ]
        if len(ranges) < n:
            return [NAN]
        return [smooth([mean(ranges[:n]), *ranges[n:]], 1 / n)[-1]]

    def volume_ratio(self, n: int) -> list[float]:
        before = [v for v in self.volume[:-1] if not math.isnan(v)][-n:]
        if len(before) < n or mean(before) == 0:
            return [NAN]
        return [self.volume[-1] / mean(before)]

    def row(self, spec: FeatureSpec) -> list[float]:
        row: list[float] = []
        for item in spec.features:
            function = self.returns if item.kind == 'return' else getattr(self, item.kind)
            values = function(**item.params)
            if item.relative:
                level = KINDS[item.kind].scale == 'level'
                values = [v / self.close[-1] - 1 if level else v / self.close[-1] for v in values]
            outputs = KINDS[item.kind].outputs
            row += [v for v, o in zip(values, outputs, strict=True) if o in item.outputs]
        return row


SPEC = FeatureSpec(
    (
        *(FeatureItem('return', {'n': n}) for n in (1, 4)),
        *(FeatureItem('ma', {'n': n}) for n in (1, 2, 7)),
        FeatureItem('ma', {'n': 5}, relative=True),
        FeatureItem('sma', {'n': 5, 'm': 2}),
        FeatureItem('ema', {'n': 1}),
        FeatureItem('ema', {'n': 6}, relative=True),
        FeatureItem('macd', {'fast': 2, 'slow': 5, 'signal': 3}),
        FeatureItem('macd', {'fast': 3, 'slow': 6, 'signal': 1}, True, ('bar',)),
        FeatureItem('kdj', {'n': 4}),
        FeatureItem('kdj', {'n': 1, 'k': 1, 'd': 2}, outputs=('d', 'j')),
        *(FeatureItem('rsi', {'n': n}) for n in (1, 6)),
        FeatureItem('boll', {'n': 5}),
        FeatureItem('boll', {'n': 4, 'width': 1.5, 'ddof': 1}, True, ('low',)),
        FeatureItem('atr', {'n': 3}),
        FeatureItem('atr', {'n': 1}, relative=True),
        *(FeatureItem('volume_ratio', {'n': n}) for n in (1, 3)),
    )
)

ticks = st.integers(1, 3000).map(lambda t: t / 100)
bars = st.tuples(
    st.tuples(ticks, ticks, ticks).map(sorted),
    st.one_of(st.just(NAN), st.just(0.0), st.integers(1, 10**7).map(float)),
    st.sampled_from([BarStatus.VALID] * 5 + [BarStatus.SUSPENDED]),
)


@settings(deadline=None)
@given(st.lists(bars, min_size=1, max_size=40))
def test_every_kind_equals_its_definition_bit_for_bit(
    series: list[tuple[list[float], float, BarStatus]],
) -> None:
    state, history = FeatureState(SPEC, 1), History()
    for (low, close, high), volume, status in series:
        values = np.array([[close], [high], [low], [close], [volume], [NAN]])
        row = state.step(values, np.array([status], np.uint8))[0]
        if status != BarStatus.VALID:
            assert np.isnan(row).all()
            continue
        history.add(high, low, close, volume)
        expected = history.row(SPEC)
        assert np.array_equal(row, expected, equal_nan=True), dict(
            zip(SPEC.names, zip(row, expected, strict=True), strict=True)
        )


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e5), st.integers(30, 60))
def test_price_that_never_moves_is_neutral_everywhere(price: float, n: int) -> None:
    spec = FeatureSpec((FeatureItem('macd'), FeatureItem('kdj'), FeatureItem('rsi', {'n': 6})))
    values = np.full((n, len(BAR_FIELDS), 1), price)
    out = FeatureState(spec, 1).batch(values, np.ones((n, 1), np.uint8))[-1, 0]
    macd_is_zero_and_kdj_and_rsi_stand_at_fifty = [0.0] * 3 + [50.0] * 4
    expected = macd_is_zero_and_kdj_and_rsi_stand_at_fifty
    if n < 34:
        expected = [0.0, NAN, NAN] + [50.0] * 4
    np.testing.assert_array_equal(out, expected)


def test_rsi_of_a_price_that_only_rises_is_exactly_hundred_and_only_falls_zero() -> None:
    spec = FeatureSpec((FeatureItem('rsi', {'n': 6}),))
    rising = np.cumprod(np.full(50, 1.013)).reshape(-1, 1, 1) * np.ones((1, len(BAR_FIELDS), 1))
    status = np.ones((50, 1), np.uint8)
    assert set(FeatureState(spec, 1).batch(rising, status)[6:, 0, 0]) == {100.0}
    assert set(FeatureState(spec, 1).batch(rising[::-1], status)[6:, 0, 0]) == {0.0}


def test_window_features_depend_on_their_last_bars_alone() -> None:
    rng = np.random.default_rng(1)
    spec = FeatureSpec(
        (FeatureItem('ma', {'n': 20}), FeatureItem('boll'), FeatureItem('return', {'n': 20}))
    )
    # Prices of another size long ago would leave their rounding behind in a running sum.
    long_ago = rng.uniform(1e6, 1e7, 500)
    recent = rng.uniform(1, 2, 21)
    results = []
    for closes in (recent, np.concatenate([long_ago, recent])):
        values = np.repeat(closes[:, None, None], len(BAR_FIELDS), axis=1)
        state = FeatureState(spec, 1)
        results.append(state.batch(values, np.ones((len(closes), 1), np.uint8))[-1])
    np.testing.assert_array_equal(results[0], results[1])
    assert np.isfinite(results[0]).all()


# ---------------------------------------------------------------- other people's numbers


def run(spec: FeatureSpec, prices: dict[str, list[float]]) -> np.ndarray:
    n = len(prices['close'])
    values = np.full((n, len(BAR_FIELDS), 1), NAN)
    for field, column in prices.items():
        values[:, BAR_FIELDS.index(field), 0] = column
    return FeatureState(spec, 1).batch(values, np.ones((n, 1), np.uint8))[:, 0]


@pytest.mark.parametrize('symbol', ['600519.SH', '600036.SH', '002594.SZ'])
def test_tushare_factors_on_real_prices_agree_to_their_last_printed_digit(symbol: str) -> None:
    path = shared_data() / 'ashare_daily' / 'tushare_factor_2023_2025' / f'{symbol}_techin.csv'
    with path.open(encoding='utf-8') as file:
        rows = sorted(csv.DictReader(file), key=lambda r: r['indiv_techin_trade_date'])
    columns = {name: [float(r[f'indiv_techin_{name}'] or NAN) for r in rows] for name in FACTORS}
    prices = {
        field: [float(r[f'indiv_techin_{field}_qfq']) for r in rows]
        for field in ('open', 'high', 'low', 'close')
    }
    items = [FeatureItem('macd'), FeatureItem('kdj'), FeatureItem('boll')]
    items += [FeatureItem('rsi', {'n': n}) for n in (6, 12, 24)]
    spec = FeatureSpec(tuple(items))
    ours = run(spec, prices)
    assert spec.names == tuple(FACTORS.values())
    for k, (name, theirs) in enumerate(columns.items()):
        # Their series begin earlier: a recursive one forgets its seed first.
        since = SEED_FORGOTTEN.get(name.split('_')[0], 20)
        error = np.abs(ours[since:, k] - theirs[since:])
        assert np.isfinite(error).all(), name
        # Printed to 0.001, from prices that are themselves rounded to 0.001 after adjustment.
        assert np.median(error) < 0.0003, name
        assert error.max() < 0.0012, (name, error.max())


FACTORS = {
    'macd_dif': 'macd_12_26_9_dif',
    'macd_dea': 'macd_12_26_9_dea',
    'macd': 'macd_12_26_9_bar',
    'kdj_k': 'kdj_9_3_3_k',
    'kdj_d': 'kdj_9_3_3_d',
    'kdj_j': 'kdj_9_3_3_j',
    'boll_mid': 'boll_20_2_mid',
    'boll_upper': 'boll_20_2_up',
    'boll_lower': 'boll_20_2_low',
    'rsi_6': 'rsi_6',
    'rsi_12': 'rsi_12',
    'rsi_24': 'rsi_24',
}
SEED_FORGOTTEN = {'macd': 180, 'kdj': 50, 'rsi': 300}


class TaLib:
    """TA-Lib's own regression cases: 252 bars, and expected values at single indices."""

    def __init__(self, folder: Path) -> None:
        with (folder / 'bars252.csv').open() as file:
            rows = list(csv.DictReader(file))
        fields = ('open', 'high', 'low', 'close', 'volume')
        self.prices = {field: [float(r[field]) for r in rows] for field in fields}
        self.tests = json.loads((folder / 'expected.json').read_text())['tests']

    def cases(self, group: str, **where: object) -> list[dict[str, float]]:
        """Return the cases of a group over all bars that match `where` and expect a value."""
        found = [
            row
            for row in self.tests[group]['rows']
            if all(row[key] == value for key, value in where.items())
            and (row['startIdx'], row['endIdx'], row['expectedRetCode']) == (0, 251, 'TA_SUCCESS')
        ]
        assert found, (group, where)
        return found

    def ours(self, item: FeatureItem) -> np.ndarray:
        return run(FeatureSpec((item,)), self.prices)


@pytest.fixture(scope='module')
def talib() -> TaLib:
    return TaLib(shared_data() / 'oracles' / 'talib_regtest_BSD')


DEFAULT = 'TA_COMPATIBILITY_DEFAULT'
METASTOCK = 'TA_COMPATIBILITY_METASTOCK'
PRINTED = 0.01  # two decimals, some of them cut off instead of rounded


def test_talib_moving_averages(talib: TaLib) -> None:
    # TA-Lib's Metastock mode seeds an EMA with the first close, as we do.
    for kind, ma_type, mode in (('ma', 'SMA', DEFAULT), ('ema', 'EMA', METASTOCK)):
        for case in talib.cases('ma', optInMAType_1=f'TA_MAType_{ma_type}', compatibility=mode):
            column = talib.ours(FeatureItem(kind, {'n': case['optInTimePeriod']}))[:, 0]
            index = case['expectedBegIdx'] + case['oneOfTheExpectedOutRealIndex']
            assert column[index] == pytest.approx(case['oneOfTheExpectedOutReal'], abs=PRINTED)
            if case['unstablePeriod'] == 0:
                assert np.isnan(column[: case['expectedBegIdx']]).all()
                assert np.isfinite(column[case['expectedBegIdx'] :]).all()


def test_talib_bollinger_bands_have_population_deviation(talib: TaLib) -> None:
    for case in talib.cases('bbands', optInMethod_3='TA_MAType_SMA'):
        assert case['optInNbDevUp'] == case['optInNbDevDn']
        item = FeatureItem('boll', {'n': case['optInTimePeriod'], 'width': case['optInNbDevUp']})
        mid_up_low = talib.ours(item)
        for column, output in ((0, 1), (1, 0), (2, 2)):
            index = case['expectedBegIdx'] + case[f'oneOfTheExpectedOutRealIndex{output}']
            expected = case[f'oneOfTheExpectedOutReal{output}']
            assert mid_up_low[index, column] == pytest.approx(expected, abs=1e-4)


def test_talib_average_true_range_is_wilder(talib: TaLib) -> None:
    for case in talib.cases('trange', doAverage=1, unstablePeriod=0):
        column = talib.ours(FeatureItem('atr', {'n': case['optInTimePeriod']}))[:, 0]
        index = case['expectedBegIdx'] + case['oneOfTheExpectedOutRealIndex']
        assert column[index] == pytest.approx(case['oneOfTheExpectedOutReal'], abs=PRINTED)
    for case in talib.cases('per_hlc', theFunction='TA_NATR_TEST'):
        item = FeatureItem('atr', {'n': case['optInTimePeriod1']}, relative=True)
        index = case['expectedBegIdx'] + case['oneOfTheExpectedOutRealIndex0']
        percent = 100 * talib.ours(item)[index, 0]
        assert percent == pytest.approx(case['oneOfTheExpectedOutReal0'], abs=1e-4)


def test_talib_rate_of_change(talib: TaLib) -> None:
    for case in talib.cases('mom', theFunction='TA_ROC_TEST'):
        column = talib.ours(FeatureItem('return', {'n': case['optInTimePeriod']}))[:, 0]
        index = case['expectedBegIdx'] + case['oneOfTheExpectedOutRealIndex0']
        assert 100 * column[index] == pytest.approx(case['oneOfTheExpectedOutReal0'], abs=PRINTED)


def test_talib_rsi_meets_ours_once_the_seed_is_forgotten(talib: TaLib) -> None:
    column = talib.ours(FeatureItem('rsi', {'n': 14}))[:, 0]
    cases = talib.cases('rsi', optInTimePeriod=14, unstablePeriod=0, compatibility=DEFAULT)
    ends = [c for c in cases if c['oneOfTheExpectedOutRealIndex0'] == c['expectedNbElement'] - 1]
    for case in ends:
        assert column[-1] == pytest.approx(case['oneOfTheExpectedOutReal0'], abs=PRINTED)
    assert ends
