# SPDX-License-Identifier: Apache-2.0
"""The indicators against TA-Lib: the rows of its own regression test, and the installed library.

A row of the regression test (252 bars) holds outputs of one function to two to seven digits, so it
is met within one unit of its last digit; the library itself is met to 1e-9. Where TA-Lib seeds a
recursion in another way, the bars before its seed are replaced by bars that bring our state to
that seed: from there on both must be the same, so the seed is all that differs.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.features.spec import FeatureItem
from heqis_core.io.files import load_bars
from heqis_core.testing import features_of, shared_data

Floats = npt.NDArray[np.float64]
Bars = dict[str, Floats]
Row = dict[str, Any]

METASTOCK = 'TA_COMPATIBILITY_METASTOCK'


def item(kind: str, of: str = '', **params: float) -> FeatureItem:
    return FeatureItem(kind, params, of=of)


def ours(bars: Bars, *items: FeatureItem) -> list[Floats]:
    """Return the F columns of one symbol."""
    return list(features_of(bars, *items).T)


def one(bars: Bars, kind: str, **params: float) -> Floats:
    """Return the first column of one item."""
    return ours(bars, FeatureItem(kind, params))[0]


# ---------------------------------------------------------------- TA-Lib's seeds


def seeded_ema(bars: Bars, n: int) -> Bars:
    """Let an EMA stand at the mean of the first n closes when it has seen n."""
    close = bars['close'].copy()
    close[:n] = close[:n].mean()
    return {**bars, 'close': close}


def seeded_rsi(bars: Bars, n: int) -> Bars:
    """Let the average gain and loss be the means of the first n changes when it has seen n.

    One rise, n - 2 closes without a change, one fall.
    """
    close = bars['close'].copy()
    changes = np.diff(close[: n + 1])
    gain, loss = np.maximum(changes, 0).mean(), np.maximum(-changes, 0).mean()
    close[:n] = close[n] + n * loss
    close[0] -= gain / (1 - 1 / n) ** (n - 1)
    return {**bars, 'close': close}


def smoothed(series: Floats, weight: float, seed: float) -> Floats:
    """Return Y += (X - Y) * weight, from `seed` on."""
    out = []
    for x in series:
        seed += (x - seed) * weight
        out.append(seed)
    return np.array(out)


def seeded_macd(bars: Bars, fast: int, slow: int, signal: int) -> Bars:
    """Let the EMAs be plain means when the slow one is whole, and DEA one `signal` bars later.

    Three closes before the seed, x x … x y z, give the three numbers of the state; it is linear
    in them, so they solve a system of three equations.
    """
    close = bars['close']
    weights = [2 / (n + 1) for n in (fast, slow, signal)]
    fast_seed, slow_seed = close[slow - fast : slow].mean(), close[:slow].mean()
    after = close[slow:]
    dif = smoothed(after, weights[0], fast_seed) - smoothed(after, weights[1], slow_seed)
    dif = np.concatenate([[fast_seed - slow_seed], dif])[:signal]
    # DEA is the mean of the first `signal` DIFs: go back to where the slow EMA is whole.
    kept = (1 - weights[2]) ** (signal - 1)
    dea_seed = (dif.mean() - smoothed(dif[1:], weights[2], 0.0)[-1]) / kept

    def state(xyz: Floats) -> Floats:
        x, y, z = xyz
        closes = np.array([x, y, z])
        lines = [smoothed(closes, weight, x) for weight in weights[:2]]
        dea = smoothed(lines[0] - lines[1], weights[2], 0.0)
        return np.array([lines[0][-1], lines[1][-1], dea[-1]])

    system = np.stack([state(unit) for unit in np.eye(3)], axis=1)
    xyz = np.linalg.solve(system, np.array([fast_seed, slow_seed, dea_seed]))
    replaced = close.copy()
    replaced[: slow - 2] = xyz[0]
    replaced[slow - 2 : slow] = xyz[1:]
    return {**bars, 'close': replaced}


# ---------------------------------------------------------------- the rows of its regression test


def ma_row(bars: Bars, row: Row) -> list[Floats]:
    n = row['optInTimePeriod']
    if row['optInMAType_1'] == 'TA_MAType_SMA':
        return [one(bars, 'ma', n=n)]
    return [one(bars if row['compatibility'] == METASTOCK else seeded_ema(bars, n), 'ema', n=n)]


def bbands_row(bars: Bars, row: Row) -> list[Floats]:
    n = row['optInTimePeriod']
    mid, up, _ = ours(bars, item('boll', n=n, width=1))
    deviation = up - mid  # about the plain mean, whatever the middle line is
    if row['optInMethod_3'] == 'TA_MAType_EMA':
        seeded = bars if row['compatibility'] == METASTOCK else seeded_ema(bars, n)
        mid = one(seeded, 'ema', n=n)
    widths = float(row['optInNbDevUp']), float(row['optInNbDevDn'])
    return [mid + widths[0] * deviation, mid, mid - widths[1] * deviation]


def macd_row(bars: Bars, row: Row) -> list[Floats]:
    if row['compatibility'] != METASTOCK:
        dif, dea, bar = ours(seeded_macd(bars, 12, 26, 9), item('macd'))
        return [dif, dea, bar / 2]
    # Weights of 0.15 and 0.075 instead of 2 / 13 and 2 / 27; its signal begins with its first DIF.
    assert row['testId'] == 'TA_MACDFIX_TEST'
    # The first bar repeated leaves the seed where it is, and the warm-up behind.
    led = {name: np.concatenate([np.full(40, column[0]), column]) for name, column in bars.items()}
    dif = (one(led, 'sma', n=20, m=3) - one(led, 'sma', n=40, m=3))[40:]
    signal = np.full(len(dif), np.nan)
    signal[25:] = one({**{name: bars[name][25:] for name in bars}, 'close': dif[25:]}, 'ema', n=9)
    return [dif, signal, dif - signal]


def stoch_row(bars: Bars, row: Row) -> list[Floats]:
    n, first, second = (row[f'optInPeriod_{k}'] for k in range(3))
    if row['testId'] == 'TEST_STOCH':
        rsv = item('kdj', n=n, k=1, d=1)
        k_line = item('ma', n=first, of=rsv.columns[0].name)
        return ours(bars, rsv, k_line, item('ma', n=second, of=k_line.columns[0].name))[-2:]
    rsi = item('rsi', n=n)
    place = item('minmax', n=first, of=rsi.columns[0].name)
    mean = item('ma', n=second, of=place.columns[0].name)
    return [100 * column for column in ours(seeded_rsi(bars, n), rsi, place, mean)[-2:]]


def rsi_row(bars: Bars, row: Row) -> list[Floats]:
    n = row['optInTimePeriod']
    column = one(seeded_rsi(bars, n), 'rsi', n=n)
    if row['compatibility'] == METASTOCK:
        # One bar sooner: of the n - 1 changes that there are, as an RSI of n - 1 begins.
        column[n - 1] = one(seeded_rsi(bars, n - 1), 'rsi', n=n - 1)[n - 1]
    return [column if row['theFunction'] == 'TA_RSI_TEST' else 2 * column - 100]


def stddev_row(bars: Bars, row: Row) -> list[Floats]:
    width = float(row['optInNbDeviation_1'])
    mid, up, _ = ours(bars, item('boll', n=row['optInTimePeriod'], width=width))
    return [up - mid]


def trange_row(bars: Bars, row: Row) -> list[Floats]:
    return [one(bars, 'atr', n=row['optInTimePeriod'] if row['doAverage'] else 1)]


def hlc_row(bars: Bars, row: Row) -> list[Floats]:
    n = row['optInTimePeriod1']
    if row['theFunction'] == 'TA_NATR_TEST':
        return [100 * ours(bars, FeatureItem('atr', {'n': n}, relative=True))[0]]
    if row['theFunction'] == 'TA_WILLR_TEST':
        return [one(bars, 'kdj', n=n, k=1, d=1) - 100]
    return [one(bars, 'cci', n=n)]


def change_row(bars: Bars, row: Row) -> list[Floats]:
    change = one(bars, 'return', n=row['optInTimePeriod'])
    by_name = {'ROC': 100 * change, 'ROCR': 1 + change, 'ROCR100': 100 * (1 + change)}
    return [by_name[row['theFunction'].split('_')[1]]]


def po_row(bars: Bars, row: Row) -> list[Floats]:
    kind = {'TA_MAType_SMA': 'ma', 'TA_MAType_EMA': 'ema'}[row['optInMethod_2']]
    assert kind == 'ma' or row['compatibility'] == METASTOCK
    short, long = sorted((row['optInFastPeriod'], row['optInSlowPeriod']))
    fast, slow = one(bars, kind, n=short), one(bars, kind, n=long)
    return [100 * (fast - slow) / slow if row['doPercentage'] else fast - slow]


Handler = Callable[[Bars, Row], list[Floats]]
HANDLERS: dict[str, tuple[Handler, str, tuple[str, ...]]] = {
    # group: how it comes from our columns, which field tells the function, which ones we have
    'ma': (ma_row, 'optInMAType_1', ('TA_MAType_SMA', 'TA_MAType_EMA')),
    'bbands': (bbands_row, 'optInMethod_3', ('TA_MAType_SMA', 'TA_MAType_EMA')),
    'macd': (macd_row, 'testId', ('TA_MACD_TEST', 'TA_MACDEXT_TEST', 'TA_MACDFIX_TEST')),
    'stoch': (stoch_row, 'testId', ('TEST_STOCH', 'TEST_STOCHRSI')),
    'rsi': (rsi_row, 'theFunction', ('TA_RSI_TEST', 'TA_CMO_TEST')),
    'stddev': (stddev_row, '', ('',)),
    'trange': (trange_row, '', ('',)),
    'per_hlc': (hlc_row, 'theFunction', ('TA_NATR_TEST', 'TA_WILLR_TEST', 'TA_CCI_TEST')),
    'mom': (change_row, 'theFunction', ('TA_ROC_TEST', 'TA_ROCR_TEST', 'TA_ROCR100_TEST')),
    'po': (po_row, '', ('',)),
}


def printed(row: Row) -> Iterator[tuple[int, int, Decimal]]:
    """Yield output, bar and value of what a row expects; nothing where it expects no output."""
    if row['expectedRetCode'] != 'TA_SUCCESS':
        return
    for name, value in row.items():
        _, found, output = name.partition('oneOfTheExpectedOutReal')
        if found and not output.startswith('Index'):
            index = row[f'oneOfTheExpectedOutRealIndex{output}']
            if index < row['expectedNbElement']:
                # Differences were not rounded again: 0.7333000000000001.
                value = round(Decimal(value), 9).normalize()
                yield int(output or 0), row['expectedBegIdx'] + index, value


@pytest.fixture(scope='module')
def regression() -> tuple[Bars, dict[str, list[Row]]]:
    folder = shared_data() / 'oracles' / 'talib_regtest_BSD'
    with (folder / 'bars252.csv').open() as file:
        rows = list(csv.DictReader(file))
    bars = {name: np.array([float(row.get(name, 'nan')) for row in rows]) for name in BAR_FIELDS}
    text = (folder / 'expected.json').read_text()
    tests = json.loads(text, parse_float=Decimal)['tests']
    return bars, {group: tests[group]['rows'] for group in tests}


def test_every_row_of_a_function_that_we_have_is_met_within_its_last_digit(
    regression: tuple[Bars, dict[str, list[Row]]],
) -> None:
    bars, tests = regression
    met: Counter[str] = Counter()
    coarse = set()
    for group, (handler, field, functions) in HANDLERS.items():
        for row in tests[group]:
            if (row[field] if field else '') not in functions:
                continue
            for output, bar, expected in printed(row):
                mine = handler(bars, row)[output][bar]
                apart = abs(mine - float(expected))
                assert apart <= 0.01, (group, row, output, mine)  # what TA-Lib's own test allows
                # Zeros at the end are not printed: never finer than the row, never above 0.01.
                if apart > 10.0 ** int(expected.as_tuple().exponent):
                    coarse.add((group, str(expected)))
                met[group] += 1
    # Rows that TA-Lib 0.8.1 misses as we do: its values are 0.87684, -0.47645, 1.07153, -0.02814
    # and 24.01218.
    assert coarse == {
        ('macd', '0.8764'),
        ('macd', '-0.4769'),
        ('stddev', '1.075'),
        ('po', '-0.02813'),
        ('stoch', '24.0128'),
    }
    assert met == {
        'bbands': 57, 'ma': 45, 'macd': 18, 'mom': 39, 'per_hlc': 41, 'po': 42, 'rsi': 37,
        'stddev': 6, 'stoch': 22, 'trange': 17,
    }  # fmt: skip


# ---------------------------------------------------------------- the library itself

SERIES = (
    'ashare_daily/tushare_raw_2020_2024/600519.SH.csv',
    'ashare_daily/wondertrader/SSE.600000Q_d.csv',
    'benchmark_daily/csi300.csv',
    'ashare_minute/SSE.600009Q_m1.csv',
)
CLOSE_TO = 1e-9


@pytest.fixture(scope='module')
def talib() -> ModuleType:
    module = pytest.importorskip('talib', reason='no TA-Lib: requirements/development.txt has it')
    assert isinstance(module, ModuleType)
    return module


@pytest.fixture(scope='module', params=SERIES)
def bars(request: pytest.FixtureRequest) -> Bars:
    table, _ = load_bars(shared_data() / request.param)
    valid = table.status[:, 0] == BarStatus.VALID
    return {
        name: np.ascontiguousarray(table.values[valid, k, 0]) for k, name in enumerate(BAR_FIELDS)
    }


def assert_same(mine: Floats, theirs: Floats, scale: Floats | float, *, masked: int = 0) -> None:
    """Assert equality to 1e-9 of `scale` wherever TA-Lib has a value, and NaN where it has none.

    TA-Lib hides the first `masked` values that we give.
    """
    given = np.isfinite(theirs)
    first = int(np.flatnonzero(given)[0])
    assert given[first:].all()
    assert np.isnan(mine[: first - masked]).all()
    assert np.isfinite(mine[first - masked :]).all()
    assert (
        np.abs(mine - theirs)[first:] <= CLOSE_TO * np.broadcast_to(scale, len(mine))[first:]
    ).all()


def test_windows_and_wilders_range_are_talibs(talib: ModuleType, bars: Bars) -> None:
    high, low, close = bars['high'], bars['low'], bars['close']
    for n in (5, 10, 20, 30, 60):
        assert_same(one(bars, 'ma', n=n), talib.SMA(close, n), close)
        assert_same(100 * one(bars, 'return', n=n), talib.ROC(close, n), 100.0)
    for ddof_free_n in (5, 20):
        mid, up, low_band = ours(bars, item('boll', n=ddof_free_n))
        theirs = talib.BBANDS(close, ddof_free_n, 2, 2)
        for mine, band in zip((up, mid, low_band), theirs, strict=True):
            assert_same(mine, band, close)
    for n in (5, 14):
        mine = one(bars, 'atr', n=n)
        assert_same(mine, talib.ATR(high, low, close, n), mine)
    for n in (14, 20):
        assert_same(one(bars, 'cci', n=n), talib.CCI(high, low, close, n), 100.0)


def test_obv_is_talibs(talib: ModuleType, bars: Bars) -> None:
    if not np.isfinite(bars['volume']).all():
        assert np.isnan(one(bars, 'obv')).all()
        return
    total = np.cumsum(bars['volume'])
    assert_same(one(bars, 'obv'), talib.OBV(bars['close'], bars['volume']), total)


def test_ema_differs_from_talibs_by_its_seed_alone(talib: ModuleType, bars: Bars) -> None:
    close = bars['close']
    for n in (5, 10, 20, 30, 60):
        theirs = talib.EMA(close, n)
        assert_same(one(seeded_ema(bars, n), 'ema', n=n), theirs, close)
        # Ours begins with the first close, and what that means fades as the recursion says.
        apart = (one(bars, 'ema', n=n) - theirs)[n - 1 :]
        faded = apart[0] * (1 - 2 / (n + 1)) ** np.arange(len(apart))
        assert (np.abs(apart - faded) <= CLOSE_TO * close[n - 1 :]).all()
        assert np.abs(apart[0] / close[n - 1]) < 0.018
        assert (np.abs(apart) <= CLOSE_TO * close[n - 1 :])[9 * n :].all()


@pytest.mark.parametrize('periods', [(12, 26, 9), (10, 20, 9)])
def test_macd_differs_from_talibs_by_its_seeds_and_twice_the_bar(
    talib: ModuleType, bars: Bars, periods: tuple[int, int, int]
) -> None:
    fast, slow, signal = periods
    close = bars['close']
    macd = item('macd', fast=fast, slow=slow, signal=signal)
    dif, dea, bar = ours(seeded_macd(bars, *periods), macd)
    theirs = talib.MACD(close, *periods)
    assert_same(dif, theirs[0], close, masked=signal - 1)
    assert_same(dea, theirs[1], close)
    assert_same(bar / 2, theirs[2], close)
    for mine, line in zip(ours(bars, macd), theirs, strict=True):
        mine = mine / 2 if line is theirs[2] else mine
        apart = np.abs(mine - line)[slow + signal - 2 :] / close[slow + signal - 2 :]
        assert 1e-6 < np.nanmax(apart) < 0.023
        assert (apart[9 * slow :] <= CLOSE_TO).all()


def test_rsi_differs_from_talibs_by_its_seed_alone(talib: ModuleType, bars: Bars) -> None:
    for n in (6, 12, 14, 24):
        theirs = talib.RSI(bars['close'], n)
        assert_same(one(seeded_rsi(bars, n), 'rsi', n=n), theirs, 100.0)
        apart = np.abs(one(bars, 'rsi', n=n) - theirs)[n:]
        # Up to 28 points at first: one change seeds ours, n changes theirs.
        assert 0.5 < apart[0] < 28.5
        assert (apart[13 * n :] <= 1.5e-3).all()
        assert (apart[22 * n :] <= 100 * CLOSE_TO).all()


def test_kdj_differs_from_talibs_stoch_by_its_seed_alone(talib: ModuleType, bars: Bars) -> None:
    high, low, close = bars['high'], bars['low'], bars['close']
    fast, _ = talib.STOCHF(high, low, close, 9, 1)
    assert_same(one(bars, 'kdj', n=9, k=1, d=1), fast, 100.0)
    # Averages of weight 1 / 3 are EMAs of 5. Their seeds are means of five, ours are 50.
    exponential = 1
    theirs = talib.STOCH(high, low, close, 9, 5, exponential, 5, exponential)
    k, d, j = (column[16:] for column in ours(bars, item('kdj')))
    k_line, d_line = (column[16:] for column in theirs)
    bar = np.arange(len(k))
    left = (2 / 3) ** bar
    k_apart, d_apart = k[0] - k_line[0], d[0] - d_line[0]
    assert 0.5 < np.abs([k_apart, d_apart]).max() < 7.5
    np.testing.assert_allclose(k - k_line, k_apart * left, atol=100 * CLOSE_TO)
    np.testing.assert_allclose(
        d - d_line, (d_apart + k_apart * bar / 3) * left, atol=100 * CLOSE_TO
    )
    np.testing.assert_allclose(j, 3 * k - 2 * d, atol=100 * CLOSE_TO)
    assert np.abs(d - d_line)[60:].max() <= 100 * CLOSE_TO


def test_a_range_of_zero_is_the_middle_for_us_and_the_bottom_for_talib(talib: ModuleType) -> None:
    flat = {name: np.full(30, 10.0) for name in BAR_FIELDS}
    arrays = flat['high'], flat['low'], flat['close']
    assert set(one(flat, 'kdj', n=9, k=1, d=1)[8:]) == {50.0}
    assert set(talib.STOCHF(*arrays, 9, 1)[0][8:]) == {0.0}
    assert set(one(flat, 'rsi', n=6)[6:]) == {50.0}
    assert set(talib.RSI(flat['close'], 6)[6:]) == {0.0}
    assert set(talib.CCI(*arrays, 14)[13:]) == set(one(flat, 'cci', n=14)[13:]) == {0.0}
    assert set(ours(flat, item('minmax', of='close', n=5))[0][4:]) == {0.5}
    assert set(ours(flat, item('zscore', of='close', n=5))[0][4:]) == {0.0}


def test_one_nan_blinds_talib_for_ever_and_us_for_one_bar(talib: ModuleType) -> None:
    close = 10 + np.sin(np.arange(300.0))
    close[100] = np.nan
    bars = {name: close for name in BAR_FIELDS}
    assert np.isnan(talib.EMA(close, 10)[100:]).all()
    assert set(talib.RSI(close, 10)[101:]) == {0.0}  # nor does it say so
    for kind in ('ema', 'rsi'):
        assert np.flatnonzero(np.isnan(one(bars, kind, n=10)[20:])).tolist() == [80]
