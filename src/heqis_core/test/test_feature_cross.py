# SPDX-License-Identifier: Apache-2.0
"""Cross-section: rank and z-score over the symbols, exact, in any order, and what reads them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import AMOUNT, BAR_FIELDS, BarStatus
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState

ITEMS = (
    FeatureItem('xs_rank', of='amount'),
    FeatureItem('xs_zscore', of='amount'),
    FeatureItem('xs_zscore', {'ddof': 1, 'min_symbols': 4}, of='amount'),
)
SPEC = FeatureSpec(ITEMS)


def section(numbers: object, status: object = None, spec: FeatureSpec = SPEC) -> np.ndarray:
    """Return (S, F) of one bar with these amounts."""
    amounts = np.asarray(numbers, float)
    values = np.ones((len(BAR_FIELDS), len(amounts)))
    values[AMOUNT] = amounts
    codes = np.ones(len(amounts)) if status is None else np.asarray(status)
    return FeatureState(spec, len(amounts)).step(values, codes.astype(np.uint8))


def exact(numbers: list[float]) -> list[tuple[float, float, float]]:
    xs = [Fraction(x) for x in numbers]
    n = len(xs)
    mean = sum(xs) / n
    rows = []
    for x in xs:
        below, equal = sum(y < x for y in xs), sum(y == x for y in xs)
        scores = []
        for ddof, least in ((0, 2), (1, 4)):
            square = sum((y - mean) ** 2 for y in xs) / (n - ddof) if n > ddof else 0
            score = float(x - mean) / math.sqrt(square) if square else 0.0
            scores.append(score if n >= least else math.nan)
        rank = float((below + Fraction(equal, 2)) / n)
        rows.append((rank if n >= 2 else math.nan, *scores))
    return rows


numbers = st.one_of(
    st.integers(-4, 4).map(float),
    st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    st.sampled_from([-0.0, 0.0, 1e-3, -1e-3]),
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.one_of(numbers, st.just(math.nan)), min_size=1, max_size=120))
def test_rank_and_zscore_equal_exact_fractions_over_who_has_a_number(amounts: list[float]) -> None:
    out = section(amounts)
    there = [k for k, x in enumerate(amounts) if not math.isnan(x)]
    absent = [k for k in range(len(amounts)) if k not in there]
    assert np.isnan(out[absent]).all()
    if there:
        expected = exact([amounts[k] for k in there])
        np.testing.assert_allclose(out[there], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('n', [2, 47, 48, 49, 50, 1000, 5400])
def test_order_of_numbers_of_every_size_and_sign_is_right(n: int) -> None:
    rng = np.random.default_rng(n)
    amounts = rng.choice([-1.0, 1.0], n) * 10.0 ** rng.uniform(-99, 99, n)
    amounts[: n // 3] = rng.integers(-3, 4, n // 3)
    ranks = section(amounts)[:, 0]
    below = np.searchsorted(np.sort(amounts), amounts, 'left')
    upto = np.searchsorted(np.sort(amounts), amounts, 'right')
    np.testing.assert_array_equal(ranks, (below + (upto - below) / 2) / n)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(numbers, st.just(math.nan)), min_size=2, max_size=90), st.randoms())
def test_order_of_symbols_changes_no_bit(amounts: list[float], random: object) -> None:
    order = list(range(len(amounts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight, shuffled = section(amounts), section([amounts[k] for k in order])
    assert shuffled.tobytes() == np.ascontiguousarray(straight[order]).tobytes()


def test_symbols_without_a_valid_bar_do_not_take_part() -> None:
    amounts = [5.0, 1e9, 3.0, -1e9, 4.0]
    status = [1, BarStatus.SUSPENDED, 1, BarStatus.REJECTED, 1]
    out = section(amounts, status)
    np.testing.assert_array_equal(out[[0, 2, 4]], section([5.0, 3.0, 4.0]))
    assert np.isnan(out[[1, 3]]).all()


def test_section_of_equal_numbers_is_neutral_exactly() -> None:
    for n in (2, 7, 300):
        out = section(np.full(n, 0.1))
        assert set(out[:, 0]) == {0.5}
        assert set(out[:, 1]) == {0.0}


def test_too_few_symbols_give_nothing() -> None:
    spec = FeatureSpec((FeatureItem('xs_rank', {'min_symbols': 3}, of='amount'),))
    assert np.isnan(section([1.0, 2.0, math.nan], spec=spec)).all()
    assert np.isfinite(section([1.0, 2.0, 3.0], spec=spec)).all()
    assert np.isnan(section([1.0])).all()


def test_items_read_the_cross_section_and_it_reads_what_they_give() -> None:
    rng = np.random.default_rng(8)
    spec = FeatureSpec(
        (
            FeatureItem('xs_rank', of='amount'),
            FeatureItem('ma', {'n': 3}, of='xs_rank_of_amount'),
            FeatureItem('xs_zscore', of='ma_3_of_xs_rank_of_amount'),
            FeatureItem('minmax', {'n': 2}, of='xs_zscore_of_ma_3_of_xs_rank_of_amount'),
            FeatureItem('return'),
        )
    )
    values = rng.uniform(1, 2, (30, len(BAR_FIELDS), 40))
    out = FeatureState(spec, 40).batch(values, np.ones((30, 40), np.uint8))
    ranks = (np.argsort(np.argsort(values[:, AMOUNT], axis=1), axis=1) + 0.5) / 40
    np.testing.assert_array_equal(out[:, :, 0], ranks)
    means = np.stack([ranks[t - 2 : t + 1].mean(axis=0) for t in range(2, 30)])
    np.testing.assert_allclose(out[2:, :, 1], means, rtol=1e-12)
    scores = (means - means.mean(axis=1, keepdims=True)) / means.std(axis=1, keepdims=True)
    np.testing.assert_allclose(out[2:, :, 2], scores, rtol=1e-9, atol=1e-12)
    rises = scores[1:] > scores[:-1]
    np.testing.assert_array_equal(out[3:, :, 3], rises)
    np.testing.assert_allclose(out[1:, :, 4], values[1:, 3] / values[:-1, 3] - 1, rtol=1e-12)
