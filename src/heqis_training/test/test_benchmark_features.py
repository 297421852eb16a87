# SPDX-License-Identifier: Apache-2.0
"""The reference protocol: its 18 features, its rows, and the published floors on them."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.state import FeatureState
from heqis_core.io.files import load_bars
from heqis_core.testing import features_of, shared_data
from heqis_training.benchmark_features import benchmark_spec, reference_rows
from heqis_training.bootstrap import resample_times
from heqis_training.metrics import Truth, floors, make_truth, summarise

FORMS: tuple[Literal['levels', 'relative'], ...] = ('levels', 'relative')
ASSETS = ('csi300', 'sse50', 'sp500', 'corn_dce')


@cache
def bars(asset: str) -> BarTable:
    """Return the bars of a benchmark asset, or skip."""
    table, report = load_bars(shared_data() / 'benchmark_daily' / f'{asset}.csv')
    assert report.valid == len(table)
    return table


def judged_truth(asset: str) -> tuple[Truth, np.ndarray]:
    """Return the protocol's test windows with a flat band of 0, and the training class shares."""
    close = bars(asset).values[:, CLOSE, 0]
    log_return = np.diff(np.log(close))
    rows = reference_rows(len(close))
    t = np.arange(rows.decide_from, rows.stop - 1)
    truth = make_truth(t, np.zeros(len(t), np.int64), close[t], log_return[t], 0.0)
    before = log_return[rows.first : rows.test_from - 1]
    shares = np.array([(before < 0).mean(), (before == 0).mean(), (before > 0).mean()])
    return truth, shares


@pytest.mark.parametrize(
    ('asset', 'windows', 'mape', 'hindsight', 'held', 'majority'),
    [
        ('csi300', 1117, 0.834, 51.66, -18.0, 48.34),
        ('sse50', 1274, 0.852, 51.33, -10.8, 48.67),
        ('sp500', 1276, 0.891, 53.53, 68.4, 53.53),
        ('corn_dce', 1450, 0.572, 48.90, 19.9, 48.55),
    ],
)
def test_the_floors_on_the_protocols_rows_are_the_published_ones(
    asset: str, windows: int, mape: float, hindsight: float, held: float, majority: float
) -> None:
    truth, shares = judged_truth(asset)
    assert len(truth.t) == windows
    resampling = resample_times(truth.t, 0, draws=50)
    rows = {row.name: summarise(row, truth, resampling)[0] for row in floors(truth, shares)}
    assert rows['persistence']['mape_pct'] == pytest.approx(mape, abs=0.0005)
    assert rows['buy and hold']['gross_return_pct'] == pytest.approx(held, abs=0.05)
    # Published as "majority class": the most frequent class of the test part itself.
    assert rows['best class in hindsight']['accuracy_pct'] == pytest.approx(hindsight, abs=0.005)
    # What training data alone can tell: worse than a coin in both Chinese indices.
    assert rows['majority class']['accuracy_pct'] == pytest.approx(majority, abs=0.005)


@pytest.mark.parametrize('form', FORMS)
def test_there_are_18_features_and_the_first_frame_is_row_33(
    form: Literal['levels', 'relative'],
) -> None:
    spec = benchmark_spec(form)
    assert len(spec.names) == 18
    assert spec.warmup_bars == 33
    assert not spec.needs_volume
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, 80)))
    prices = {'open': 0.999 * close, 'high': 1.01 * close, 'low': 0.99 * close, 'close': close}
    finite = np.isfinite(features_of(prices, *spec.features)).all(axis=1)
    assert (finite == (np.arange(80) >= 33)).all()


def test_levels_are_the_bars_prices_and_the_usual_indicators() -> None:
    table = bars('csi300')
    spec = benchmark_spec('levels')
    values = FeatureState(spec, 1).batch(table.values, table.status)[:, 0]
    columns = dict(zip(spec.names, values.T, strict=True))
    close = table.values[:, CLOSE, 0]
    np.testing.assert_array_equal(values[:, :4], table.values[:, : CLOSE + 1, 0])
    np.testing.assert_allclose(columns['ma_30'][40], close[11:41].mean())
    middle, spread = close[21:41].mean(), close[21:41].std()
    np.testing.assert_allclose(columns['boll_20_2_up'][40], middle + 2 * spread)
    for name in ('kdj_9_3_3_j', 'rsi_14', 'atr_14', 'macd_12_26_9_bar'):
        assert name in columns


def test_relative_features_do_not_change_with_the_scale_of_prices_and_levels_do() -> None:
    table = bars('sp500')
    for form in FORMS:
        spec = benchmark_spec(form)
        plain = FeatureState(spec, 1).batch(table.values, table.status)
        scaled = FeatureState(spec, 1).batch(1024 * table.values, table.status)
        assert np.array_equal(plain, scaled, equal_nan=True) == (form == 'relative')


def test_relative_features_keep_their_range_in_the_test_part_and_levels_leave_it() -> None:
    table = bars('sp500')
    rows = reference_rows(len(table))
    outside = {}
    for form in FORMS:
        values = FeatureState(benchmark_spec(form), 1).batch(table.values, table.status)[:, 0]
        before, test = values[33 : rows.test_from], values[rows.test_from : rows.stop]
        outside[form] = ((test < before.min(axis=0)) | (test > before.max(axis=0))).mean()
    assert outside['levels'] > 0.2
    assert outside['relative'] < 0.01


def test_the_rows_are_those_of_the_protocol() -> None:
    table = bars('csi300')
    assert (table.status == BarStatus.VALID).all()
    rows = reference_rows(3805)
    assert rows == (31, 31 + 2641, 31 + 2641 + 14, 3804)
    shorter = reference_rows(3805, window=1)
    assert shorter.decide_from == shorter.test_from == rows.test_from


def test_too_short_a_series_and_an_unknown_form_are_refused() -> None:
    for n_rows in (0, 31, 60, 82):
        with pytest.raises(DataError, match=f'{n_rows} bars leave no test window of 15'):
            reference_rows(n_rows)
    assert reference_rows(85) == (31, 68, 82, 84)  # one window, that forecasts row 83
    with pytest.raises(ConfigError, match="form is 'ratios', expected levels or relative"):
        benchmark_spec('ratios')  # type: ignore[arg-type]
