# SPDX-License-Identifier: Apache-2.0
"""Streaming state: the same bits whatever the batch, market size, order or restart."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.bars import BAR_FIELDS, CLOSE, HIGH, LOW, OPEN, VOLUME, BarStatus
from heqis_core.errors import ConfigError
from heqis_core.features import kernels
from heqis_core.features.spec import FeatureItem, FeatureSpec, default_spec
from heqis_core.features.state import FeatureState

SPEC = default_spec()
ALL_KINDS = FeatureSpec((*SPEC.features, FeatureItem('sma', {'n': 5}), FeatureItem('macd')))


def market(
    n_times: int, n_symbols: int, seed: int = 0, idle: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return values (T, 6, S) and status (T, S) of a random market with idle symbols."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_t(4, (n_times, n_symbols)) * 0.015, axis=0)
    close = np.maximum(np.round(rng.uniform(2, 900, n_symbols) * np.exp(walk), 2), 0.01)
    values = np.empty((n_times, len(BAR_FIELDS), n_symbols))
    values[:, CLOSE] = close
    values[:, OPEN] = np.vstack([close[:1], close[:-1]])
    spread = np.round(close * rng.uniform(0, 0.02, close.shape), 2)
    values[:, HIGH] = np.maximum(values[:, OPEN], close) + spread
    values[:, LOW] = np.minimum(values[:, OPEN], close)
    values[:, VOLUME:] = rng.integers(0, 10**7, (n_times, 2, n_symbols))
    status = np.where(rng.random(close.shape) < idle, BarStatus.SUSPENDED, BarStatus.VALID)
    status = status.astype(np.uint8)
    values[np.broadcast_to(status[:, None] != BarStatus.VALID, values.shape)] = np.nan
    return values, status


def stream(state: FeatureState, values: np.ndarray, status: np.ndarray) -> np.ndarray:
    return np.stack([state.step(v, s) for v, s in zip(values, status, strict=True)])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two results agree in every bit, NaN standing for NaN."""
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


# ---------------------------------------------------------------- one definition


@pytest.mark.parametrize('n_symbols', [1, 3, 64, 131])
def test_batch_is_the_step_in_a_loop(n_symbols: int) -> None:
    values, status = market(120, n_symbols)
    streamed = stream(FeatureState(ALL_KINDS, n_symbols), values, status)
    assert same(FeatureState(ALL_KINDS, n_symbols).batch(values, status), streamed)
    in_parts = FeatureState(ALL_KINDS, n_symbols)
    parts = [
        in_parts.batch(values[:50], status[:50]),
        in_parts.step(values[50], status[50])[None],
        in_parts.batch(values[51:51], status[51:51]),
        in_parts.batch(values[51:], status[51:]),
    ]
    assert same(np.concatenate(parts), streamed)
    assert np.isfinite(streamed[60:]).any(axis=2).mean() > 0.8


def test_one_symbol_sixty_four_and_the_whole_market_give_the_same_bits() -> None:
    values, status = market(60, 5400)
    whole = stream(FeatureState(SPEC, 5400), values, status)
    assert same(FeatureState(SPEC, 5400).batch(values, status), whole)
    for first, count in ((0, 64), (5336, 64), (77, 1), (5399, 1)):
        part = slice(first, first + count)
        alone = stream(FeatureState(SPEC, count), values[:, :, part], status[:, part])
        assert same(alone, whole[:, part])


def test_order_of_symbols_does_not_matter() -> None:
    values, status = market(90, 300)
    order = np.random.default_rng(9).permutation(300)
    straight = FeatureState(SPEC, 300).batch(values, status)
    shuffled = FeatureState(SPEC, 300).batch(values[:, :, order], status[:, order])
    assert same(shuffled, straight[:, order])


def test_rows_that_are_yet_to_come_change_nothing_that_was_computed() -> None:
    values, status = market(80, 5)
    past = FeatureState(ALL_KINDS, 5).batch(values, status)[:60]
    values[60:] *= 3.0
    status[60:] = BarStatus.VALID
    assert same(FeatureState(ALL_KINDS, 5).batch(values, status)[:60], past)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 30), st.just(len(BAR_FIELDS)), st.just(2)),
        elements=st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.01, 100),
    )
)
def test_outputs_are_finite_or_nan_whatever_the_numbers(values: np.ndarray) -> None:
    status = np.ones((len(values), 2), np.uint8)
    state = FeatureState(ALL_KINDS, 2)
    assert not np.isinf(state.batch(values, status)).any()
    # ... and nothing of it stays: forty clean bars later every feature is back.
    clean = market(40, 2, idle=0)[0]
    clean[:, VOLUME] += 1
    after = state.batch(clean, np.ones((40, 2), np.uint8))
    assert np.isfinite(after[-1]).all()


def test_close_outside_its_own_tiny_bar_does_not_stay() -> None:
    spec = FeatureSpec((FeatureItem('kdj', {'n': 1}),))
    values = np.zeros((3, len(BAR_FIELDS), 1))
    values[:, HIGH], values[:, CLOSE] = 5e-324, 1e99
    out = FeatureState(spec, 1).batch(values, np.ones((3, 1), np.uint8))
    np.testing.assert_allclose(out[:, 0, 0], 100 - 50 * (2 / 3) ** np.arange(1, 4))


# ---------------------------------------------------------------- warm-up


def test_each_column_begins_after_its_warm_up_and_stays() -> None:
    values, status = market(50, 4, idle=0)
    values[:, VOLUME] += 1
    for spec in (SPEC, ALL_KINDS):
        finite = np.isfinite(FeatureState(spec, 4).batch(values, status))
        for f, (name, warm_up) in enumerate(spec.outputs):
            assert not finite[:warm_up, :, f].any(), name
            assert finite[warm_up:, :, f].all(), name
        assert finite[spec.warmup_bars :].all()
        assert not finite[spec.warmup_bars - 1].all(axis=1).any()


# ---------------------------------------------------------------- missing is not zero


@pytest.mark.parametrize('status_code', [s for s in BarStatus if s != BarStatus.VALID])
@pytest.mark.parametrize('garbage', [np.nan, -1.0, 1e9])
def test_bar_that_is_not_valid_is_as_if_it_had_not_been_there(
    status_code: BarStatus, garbage: float
) -> None:
    values, status = market(100, 3, idle=0)
    plain = FeatureState(ALL_KINDS, 3).batch(values, status)
    holes = np.array([0, 1, 30, 45, 46, 47, 99])
    with_holes = np.insert(values, holes, garbage, axis=0)
    status = np.insert(status, holes, status_code, axis=0)
    out = FeatureState(ALL_KINDS, 3).batch(with_holes, status)
    inserted = holes + np.arange(len(holes))
    assert np.isnan(out[inserted]).all()
    assert same(np.delete(out, inserted, axis=0), plain)


@pytest.mark.parametrize('field', [HIGH, LOW, CLOSE])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_valid_bar_without_a_price_poisons_nothing(field: int, bad: float) -> None:
    values, status = market(100, 2, idle=0)
    plain = FeatureState(ALL_KINDS, 2).batch(values, status)
    broken = np.insert(values, 50, values[50], axis=0)
    broken[50, field, 0] = bad
    status_with = np.insert(status, 50, BarStatus.VALID, axis=0)
    status_with[50, 1] = BarStatus.NO_BAR
    out = FeatureState(ALL_KINDS, 2).batch(broken, status_with)
    assert np.isnan(out[50]).all()
    assert same(np.delete(out, 50, axis=0), plain)


def test_missing_volume_leaves_only_the_volume_features_of_that_bar_empty() -> None:
    values, status = market(80, 1, idle=0)
    values[:, VOLUME] += 1
    complete = FeatureState(SPEC, 1).batch(values, status)[:, 0]
    gaps = [3, 40, 41, 60]
    values[gaps, VOLUME] = np.nan
    out = FeatureState(SPEC, 1).batch(values, status)[:, 0]
    ratio = SPEC.names.index('volume_ratio_5')
    others = [f for f in range(len(SPEC.names)) if f != ratio]
    assert same(out[:, others], complete[:, others])
    assert np.isnan(out[gaps, ratio]).all()
    volumes = values[:, VOLUME, 0]
    for t in range(45, 80):
        if t not in gaps:
            before = [v for v in volumes[:t] if not np.isnan(v)][-5:]
            assert out[t, ratio] == pytest.approx(volumes[t] / np.mean(before))


def test_without_any_volume_the_other_features_are_the_same() -> None:
    values, status = market(60, 2)
    with_volume = FeatureState(SPEC, 2).batch(values, status)
    values[:, VOLUME:] = np.nan
    without = FeatureState(default_spec(False), 2).batch(values, status)
    assert same(without, with_volume[:, :, :-1])


def test_previous_volumes_of_zero_give_no_ratio() -> None:
    values, status = market(20, 1, idle=0)
    values[:, VOLUME] = 0.0
    values[12:, VOLUME] = 100.0
    spec = FeatureSpec((FeatureItem('volume_ratio', {'n': 3}),))
    out = FeatureState(spec, 1).batch(values, status)[:, 0, 0]
    assert np.isnan(out[:13]).all()
    np.testing.assert_allclose(out[13:17], [3.0, 1.5, 1.0, 1.0])


# ---------------------------------------------------------------- restart


@pytest.mark.parametrize('cut', [0, 1, 17, 33, 99])
def test_restored_state_continues_bit_for_bit(cut: int) -> None:
    values, status = market(100, 64)
    undisturbed = FeatureState(ALL_KINDS, 64)
    expected = stream(undisturbed, values, status)
    before = FeatureState(ALL_KINDS, 64)
    before.batch(values[:cut], status[:cut])
    file = io.BytesIO()
    np.savez(file, **before.save())
    file.seek(0)
    after = FeatureState(ALL_KINDS, 64)
    after.batch(values[50:], status[50:])  # whatever it did until then is replaced
    with np.load(file, allow_pickle=False) as saved:
        after.load(dict(saved))
    assert same(stream(after, values[cut:], status[cut:]), expected[cut:])
    assert after.save()['state'].tobytes() == undisturbed.save()['state'].tobytes()


def test_saved_state_is_a_copy() -> None:
    values, status = market(40, 2)
    state = FeatureState(SPEC, 2)
    saved = state.save()
    state.batch(values, status)
    assert not saved['state'].any()
    state.load(saved)
    first = state.batch(values, status)
    assert not saved['state'].any()
    state.reset()
    assert same(state.batch(values, status), first)


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'state': None}, "['state'] not there"),
        ({'version': np.array([99])}, 'layout version is [99]'),
        ({'state': np.zeros((3, 2))}, 'state shape'),
        ({'size': None, 'version': np.array([1])}, 'layout version is [1]; expected [2]'),
        ({'size': None}, 'number of symbols is []; expected [2]'),
        ({'spec_id': None}, "['spec_id'] not there"),
        ({'state': FeatureState(SPEC, 2).save()['state'].astype(np.float32)}, 'state dtype is'),
        ({'spec_id': np.frombuffer(b'0' * 16, np.uint8)}, "spec id is '0000000000000000'"),
    ],
)
def test_saved_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, np.ndarray | None], part: str
) -> None:
    values, status = market(40, 2)
    state = FeatureState(SPEC, 2)
    state.batch(values, status)
    before = state.save()
    broken = {k: v for k, v in (before | change).items() if v is not None}
    with pytest.raises(ConfigError) as error:
        state.load(broken)
    assert part in str(error.value)
    assert state.save()['state'].tobytes() == before['state'].tobytes()


def test_state_of_another_spec_or_market_is_refused() -> None:
    saved = FeatureState(SPEC, 2).save()
    with pytest.raises(ConfigError, match=default_spec(False).id):
        FeatureState(default_spec(False), 2).load(saved)
    with pytest.raises(ConfigError, match=r'number of symbols is \[2\]; expected \[3\]'):
        FeatureState(SPEC, 3).load(saved)
    with pytest.raises(ConfigError, match='n_symbols = 0'):
        FeatureState(SPEC, 0)


# ---------------------------------------------------------------- inputs


def test_views_read_only_arrays_and_other_types_compile_nothing_anew() -> None:
    values, status = market(40, 8)
    expected = FeatureState(SPEC, 8).batch(values, status)
    compiled = len(kernels.advance.signatures)
    fortran = np.asfortranarray(values)
    wide = np.repeat(values, 2, axis=2)[:, :, ::2]
    frozen = values.copy()
    frozen.flags.writeable = False
    frozen_status = status.copy()
    frozen_status.flags.writeable = False
    for view, codes in ((fortran, status), (wide, status), (frozen, frozen_status)):
        kept = view.copy()
        assert same(FeatureState(SPEC, 8).batch(view, codes), expected)
        assert same(stream(FeatureState(SPEC, 8), view, codes), expected)
        assert same(view, kept)
    whole = np.round(values)  # NaN where idle
    for prices in (whole, whole.astype(np.float32)):
        rounded = FeatureState(SPEC, 8).batch(prices, status.astype(np.int64))
        assert same(rounded, FeatureState(SPEC, 8).batch(whole, status))
    assert len(kernels.advance.signatures) == compiled == 1


def test_wrong_shapes_are_refused() -> None:
    values, status = market(4, 3)
    state = FeatureState(SPEC, 3)
    for wrong_values, wrong_status in (
        (values[0, :5], status[0]),
        (values[0], status[0, :2]),
        (values[0, :, :2], status[0, :2]),
        (values, status),
    ):
        with pytest.raises(ValueError, match=r'expected \(6, 3\) and \(3,\)'):
            state.step(wrong_values, wrong_status)
    with pytest.raises(ValueError, match=r'expected \(4, 6, 3\) and \(4, 3\)'):
        state.batch(values, status[:3])
