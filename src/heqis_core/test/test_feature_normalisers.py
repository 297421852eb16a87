# SPDX-License-Identifier: Apache-2.0
"""CCI, OBV, turnover, values, rolling normalisers and calendar against their definitions.

The references are written in another way than the kernels: in exact fractions, or with the
standard library's own calendar.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import AMOUNT, BAR_FIELDS, CLOSE, HIGH, LOW, OPEN, VOLUME, BarStatus
from heqis_core.errors import ConfigError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState

NAN = math.nan


def run(
    item: FeatureItem | FeatureSpec, columns: dict[int, object], extra: object = None
) -> np.ndarray:
    """Return (T, F) of one symbol; prices that are not given are those of the close."""
    spec = item if isinstance(item, FeatureSpec) else FeatureSpec((item,))
    close = np.asarray(columns.get(CLOSE, np.ones(len(next(iter(columns.values()))))), float)
    values = np.repeat(close[:, None, None], len(BAR_FIELDS), axis=1)
    for field, column in columns.items():
        values[:, field, 0] = column
    channels = spec.channels
    more = (
        None if extra is None else np.asarray(extra, float).reshape(len(close), len(channels), 1)
    )
    status = np.ones((len(close), 1), np.uint8)
    return FeatureState(spec, 1, channels).batch(values, status, None, more)[:, 0]


def root(x: Fraction) -> float:
    """Return the square root, also of numbers whose float would lose bits or vanish."""
    scale = 10**40
    return math.isqrt(x.numerator * scale * scale // x.denominator) / scale


def exact_zscore(window: list[float], ddof: int) -> float:
    xs = [Fraction(x) for x in window]
    mean = sum(xs) / len(xs)
    square = sum((x - mean) ** 2 for x in xs) / (len(xs) - ddof)
    return float(xs[-1] - mean) / root(square) if square else 0.0


def exact_cci(window: list[float]) -> float:
    xs = [Fraction(x) for x in window]
    mean = sum(xs) / len(xs)
    deviation = sum(abs(x - mean) for x in xs) / len(xs)
    return float((xs[-1] - mean) / (Fraction('0.015') * deviation)) if deviation else 0.0


def exact_rank(window: list[float]) -> float:
    below = sum(x < window[-1] for x in window)
    equal = sum(x == window[-1] for x in window)
    return (below + (equal + 1) / 2 - 0.5) / len(window)


def exact_minmax(window: list[float]) -> float:
    low, high = (Fraction(f(window)) for f in (min, max))
    return float((Fraction(window[-1]) - low) / (high - low)) if high > low else 0.5


NORMALISERS = (
    (FeatureItem('zscore', {'n': 7}, of='amount'), lambda w: exact_zscore(w, 0)),
    (FeatureItem('zscore', {'n': 5, 'ddof': 1}, of='amount'), lambda w: exact_zscore(w, 1)),
    (FeatureItem('minmax', {'n': 7}, of='amount'), exact_minmax),
    (FeatureItem('rank', {'n': 6}, of='amount'), exact_rank),
    (FeatureItem('rank', {'n': 7}, of='amount'), exact_rank),
)
sizes = st.sampled_from([1e-9, 1e-4, 1.0, 1e5, 1e12])
amounts = st.integers(-300, 300) | st.just(7)


@settings(deadline=None, max_examples=80)
@given(st.lists(amounts, min_size=1, max_size=30), sizes, st.data())
def test_rolling_normalisers_equal_exact_fractions(
    whole: list[int], size: float, data: st.DataObject
) -> None:
    numbers = [x * size for x in whole]
    holes = data.draw(st.sets(st.integers(0, len(numbers) - 1), max_size=4))
    given_amounts = [NAN if t in holes else x for t, x in enumerate(numbers)]
    out = run(FeatureSpec(tuple(item for item, _ in NORMALISERS)), {AMOUNT: given_amounts})
    seen: list[float] = []
    for t, x in enumerate(given_amounts):
        if math.isnan(x):
            assert np.isnan(out[t]).all()
            continue
        seen.append(x)
        for f, (item, reference) in enumerate(NORMALISERS):
            n = int(item.params['n'])
            if len(seen) < n:
                assert math.isnan(out[t, f])
            else:
                expected = reference(seen[-n:])
                assert out[t, f] == pytest.approx(expected, rel=1e-12, abs=1e-12), item


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(100, 140), min_size=3, max_size=40), sizes)
def test_cci_equals_exact_fractions_of_the_typical_price(ticks: list[int], size: float) -> None:
    close = np.array(ticks) * size
    high, low = close + 2 * size, close - size
    out = run(FeatureItem('cci', {'n': 5}), {CLOSE: close, HIGH: high, LOW: low})[:, 0]
    typical = [(h + x + c) / 3.0 for h, x, c in zip(high, low, close, strict=True)]
    assert np.isnan(out[:4]).all()
    for t in range(4, len(ticks)):
        window = typical[t - 4 : t + 1]
        # Where only rounding moved, the exact value of that rounding is what it is.
        expected = exact_cci(window)
        assert out[t] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-12, 1e12))
def test_series_that_stands_still_is_neutral_exactly(price: float) -> None:
    kinds = ('zscore', 'minmax', 'rank')
    items = [FeatureItem(kind, {'n': n}, of='close') for kind in kinds for n in (3, 14, 60)]
    spec = FeatureSpec((*items, FeatureItem('cci', {'n': 14}), FeatureItem('log_return')))
    out = run(spec, {CLOSE: np.full(70, price)})[-1]
    assert out.tolist() == [0.0] * 3 + [0.5] * 6 + [0.0, 0.0]


@pytest.mark.parametrize('level', [1e-6, 10.0, 1e9])
def test_twenty_thousand_bars_leave_no_drift_in_any_window(level: float) -> None:
    rng = np.random.default_rng(3)
    close = level * np.exp(np.cumsum(rng.normal(0, 0.02, 20_000)))
    items = (
        FeatureItem('ma', {'n': 60}),
        FeatureItem('zscore', {'n': 60}, of='close'),
        FeatureItem('boll', {'n': 60}, outputs=('up',)),
        FeatureItem('cci', {'n': 20}),
    )
    out = run(FeatureSpec(items), {CLOSE: close})
    for t in (59, 7_777, 19_999):
        window = close[t - 59 : t + 1].tolist()
        mean = math.fsum(window) / 60
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in window) / 60)
        typical = [(x + x + x) / 3.0 for x in window[-20:]]
        expected = mean, exact_zscore(window, 0), mean + 2 * deviation, exact_cci(typical)
        np.testing.assert_allclose(out[t], expected, rtol=1e-12)


def test_window_forgets_a_number_of_another_size_at_once() -> None:
    rng = np.random.default_rng(4)
    amount = rng.uniform(1, 2, 40)
    amount[10] = 1e90
    items = tuple(FeatureItem(kind, {'n': 8}, of='amount') for kind in ('zscore', 'minmax', 'ma'))
    out = run(FeatureSpec(items), {AMOUNT: amount})
    amount[10] = 1.5
    clean = run(FeatureSpec(items), {AMOUNT: amount})
    assert (out[10:18] != clean[10:18]).any(axis=1).all()
    np.testing.assert_array_equal(out[18:], clean[18:])


def test_number_too_large_to_stay_is_as_none() -> None:
    amount = np.arange(12.0)
    out = run(FeatureItem('rank', {'n': 3}, of='amount'), {AMOUNT: amount})[:, 0]
    amount = np.insert(amount, 6, [1e101, np.inf, -np.inf])
    with_huge = run(FeatureItem('rank', {'n': 3}, of='amount'), {AMOUNT: amount})[:, 0]
    assert np.isnan(with_huge[6:9]).all()
    np.testing.assert_array_equal(np.delete(with_huge, [6, 7, 8]), out)


# ---------------------------------------------------------------- volume, channels, fields


def test_obv_starts_with_the_first_volume_and_skips_bars_without_one() -> None:
    close = [5.0, 6.0, 6.0, 4.0, 7.0, 7.0, 3.0]
    volume = [NAN, 10.0, 3.0, 2.0, NAN, 8.0, 1.0]
    out = run(FeatureItem('obv'), {CLOSE: close, VOLUME: volume})[:, 0]
    # The close of bar 4 counts although its volume is unknown: bar 5 stands still.
    np.testing.assert_array_equal(out, [NAN, 10.0, 10.0, 8.0, NAN, 8.0, 7.0])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**12)), min_size=1, max_size=60))
def test_obv_of_whole_volumes_is_exact(bars: list[tuple[int, int]]) -> None:
    closes, volumes = (list(column) for column in zip(*bars, strict=True))
    expected = [volumes[0]]
    for before, now, volume in zip(closes, closes[1:], volumes[1:], strict=False):
        expected.append(expected[-1] + volume * ((now > before) - (now < before)))
    out = run(FeatureItem('obv'), {CLOSE: closes, VOLUME: volumes})[:, 0]
    assert out.tolist() == [float(x) for x in expected]


def test_turnover_is_the_mean_of_its_channel_and_only_of_days_that_have_it() -> None:
    rate = np.array([1.0, 2.0, NAN, 6.0, 4.0, 8.0])
    out = run(FeatureItem('turnover', {'n': 2}), {CLOSE: np.ones(6)}, rate)[:, 0]
    np.testing.assert_array_equal(out, [NAN, 1.5, NAN, 4.0, 5.0, 6.0])


def test_value_gives_each_field_and_channel_as_it_is() -> None:
    rng = np.random.default_rng(5)
    columns = {f: rng.uniform(1, 9, 20) for f in range(len(BAR_FIELDS))}
    columns[OPEN][3] = NAN
    items = [FeatureItem('value', of=name) for name in (*BAR_FIELDS, 'channel:b', 'channel:a')]
    extra = rng.normal(size=(20, 2))
    out = run(FeatureSpec(tuple(items)), columns, extra)
    np.testing.assert_array_equal(out[:, :6], np.stack(list(columns.values()), axis=1))
    np.testing.assert_array_equal(out[:, 6:], extra)


def test_log_return_is_the_logarithm_and_has_no_value_where_the_sign_changes() -> None:
    close = np.array([2.0, 3.0, -3.0, -6.0, 0.0, 5.0])
    out = run(FeatureItem('log_return'), {CLOSE: close})[:, 0]
    np.testing.assert_allclose(out, [NAN, math.log(1.5), NAN, math.log(2), NAN, NAN], rtol=1e-15)


def test_relative_column_relates_to_the_series_that_it_reads() -> None:
    volume = np.arange(1.0, 30.0)
    plain, relative = (
        run(FeatureItem('ma', {'n': 5}, flag, of='volume'), {VOLUME: volume})[:, 0]
        for flag in (False, True)
    )
    np.testing.assert_array_equal(relative, plain / volume - 1)


def test_channels_are_found_by_name_and_a_missing_one_is_named() -> None:
    spec = FeatureSpec((FeatureItem('value', of='channel:pe'),))
    values, status = np.ones((1, len(BAR_FIELDS), 2)), np.ones((1, 2), np.uint8)
    extra = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    for names, expected in ((('pb', 'pe'), [3.0, 4.0]), (('pe', 'pb'), [1.0, 2.0])):
        out = FeatureState(spec, 2, names).batch(values, status, None, extra)
        assert out[0, :, 0].tolist() == expected
    with pytest.raises(ConfigError, match="channel 'pe'; the bars carry pb, ps"):
        FeatureState(spec, 2, ('pb', 'ps'))
    with pytest.raises(ConfigError, match='the bars carry none'):
        FeatureState(spec, 2)
    state = FeatureState(spec, 2, ('pb', 'pe'))
    with pytest.raises(ValueError, match=r'extra None; expected \(2, 2\)'):
        state.step(values[0], status[0])
    with pytest.raises(ValueError, match=r'extra \(1, 1, 2\); expected \(1, 2, 2\)'):
        state.batch(values, status, None, extra[:, :1])


# ---------------------------------------------------------------- calendar

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 7_258_118_399), st.sampled_from([-720, -300, 0, 480, 840]))
def test_calendar_agrees_with_the_standard_library(seconds: int, offset: int) -> None:
    spec = FeatureSpec((FeatureItem('calendar', {'utc_offset_min': offset}),))
    values, status = np.ones((len(BAR_FIELDS), 1)), np.ones(1, np.uint8)
    out = FeatureState(spec, 1).step(values, status, seconds * 10**9)[0]
    local = EPOCH + timedelta(seconds=seconds, minutes=offset)
    parts = (
        local.weekday() / 7,
        (local.month - 1) / 12,
        (local.day - 1) / 31,
        (local.hour * 60 + local.minute) / 1440,
    )
    waves = (math.sin, math.cos)
    expected = [wave(2 * math.pi * part) for part in parts for wave in waves]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-15)


def test_calendar_is_empty_where_there_is_no_bar_and_asks_for_the_time() -> None:
    state = FeatureState(FeatureSpec((FeatureItem('calendar'),)), 2)
    values = np.ones((len(BAR_FIELDS), 2))
    status = np.array([BarStatus.VALID, BarStatus.SUSPENDED], np.uint8)
    out = state.step(values, status, 10**18)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
    with pytest.raises(ValueError, match='event_time_ns is missing'):
        state.step(values, status)
    with pytest.raises(ValueError, match='event_time_ns is missing'):
        state.batch(values[None], status[None])
    with pytest.raises(ValueError, match=r'event_time_ns \(2,\); expected \(1,\)'):
        state.batch(values[None], status[None], np.array([1, 2]))
