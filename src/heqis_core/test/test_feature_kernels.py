# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the indicators against plain-Python definitions.

The reference computes each value from the whole history, in the order of operations that the
definitions give. It must agree bit for bit: a fused multiply-add, a reordered sum or a drifting
running sum would show.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.features.spec import KINDS, FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState

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
