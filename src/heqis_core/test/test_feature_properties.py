# SPDX-License-Identifier: Apache-2.0
"""What holds for every kind: stream is batch, no future, no poison, no neighbour, warm-up."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import AMOUNT, BAR_FIELDS, CLOSE, HIGH, LOW, OPEN, VOLUME, BarStatus
from heqis_core.errors import ConfigError
from heqis_core.features import cross, kernels
from heqis_core.features.kinds import CROSS_SECTION, KINDS, ROLLING
from heqis_core.features.spec import FeatureItem, FeatureSpec, full_spec, normalised_spec
from heqis_core.features.state import FeatureState

CHANNELS = ('pe', 'turnover_rate')


def every_kind() -> FeatureSpec:
    """Return a spec with every kind, of fields, channels, columns, and across symbols twice."""
    items = [
        FeatureItem('return', {'n': 3}),
        FeatureItem('log_return', {'n': 2}),
        FeatureItem('ma', {'n': 4}, relative=True),
        FeatureItem('sma', {'n': 5, 'm': 2}),
        FeatureItem('ema', {'n': 4}),
        FeatureItem('macd', {'fast': 3, 'slow': 5, 'signal': 3}, relative=True),
        FeatureItem('kdj', {'n': 4}),
        FeatureItem('rsi', {'n': 4}),
        FeatureItem('boll', {'n': 5}, outputs=('up', 'low')),
        FeatureItem('atr', {'n': 3}),
        FeatureItem('cci', {'n': 4}),
        FeatureItem('obv'),
        FeatureItem('volume_ratio', {'n': 3}),
        FeatureItem('turnover', {'n': 2}),
        FeatureItem('value', of='channel:pe'),
        FeatureItem('calendar'),
    ]
    columns = [name for item in items for name, _ in item.columns]
    items += [FeatureItem(kind, {'n': 4}, of=name) for name in columns for kind in ROLLING]
    items += [FeatureItem('ema', {'n': 2}, of='volume'), FeatureItem('macd', of='channel:pe')]
    items += [FeatureItem('rank', {'n': 3}, of=name) for name in BAR_FIELDS]
    crossed = ('return_3', 'obv', 'zscore_4_of_rsi_4', 'amount')
    items += [FeatureItem(kind, of=name) for name in crossed for kind in CROSS_SECTION]
    items += [FeatureItem(kind, {'n': 3}, of='xs_rank_of_return_3') for kind in ROLLING]
    items += [FeatureItem(kind, of='zscore_3_of_xs_rank_of_return_3') for kind in CROSS_SECTION]
    return FeatureSpec(tuple(items))


SPEC = every_kind()
PER_SYMBOL = FeatureSpec(
    tuple(i for i in SPEC.features if i.kind not in CROSS_SECTION and 'xs_' not in i.of)
)


class Market(NamedTuple):
    """T bars of S symbols with holes of every sort."""

    values: np.ndarray
    status: np.ndarray
    times_ns: np.ndarray
    extra: np.ndarray

    def part(self, which: object) -> Market:
        """Return some bars."""
        return Market(*(array[which] for array in self))

    def of(self, which: object) -> Market:
        """Return some symbols."""
        values, status, times_ns, extra = self
        return Market(values[..., which], status[..., which], times_ns, extra[..., which])


def market(n_times: int, n_symbols: int, seed: int, holes: float) -> Market:
    """Return a random market; `holes` is how often a bar, a volume or a channel is missing."""
    rng = np.random.default_rng(seed)
    shape = n_times, n_symbols
    close = rng.uniform(1, 500, n_symbols) * np.exp(np.cumsum(rng.normal(0, 0.02, shape), axis=0))
    close = np.round(close, 2) + 0.01  # ties and flat bars happen
    values = np.empty((n_times, len(BAR_FIELDS), n_symbols))
    values[:, OPEN] = values[:, CLOSE] = close
    values[:, HIGH] = close + np.round(rng.uniform(0, 0.05, shape), 2)
    values[:, LOW] = close - np.round(rng.uniform(0, 0.005, shape), 2)
    values[:, VOLUME] = rng.integers(1, 50, shape) * 100
    values[:, AMOUNT] = rng.integers(1, 5, shape)
    extra = rng.normal(size=(n_times, len(CHANNELS), n_symbols))
    status = np.where(rng.random(shape) < holes, rng.integers(0, 5, shape), 1).astype(np.uint8)
    for field in (OPEN, VOLUME, AMOUNT):
        values[:, field][rng.random(shape) < holes / 2] = np.nan
    extra[rng.random(extra.shape) < holes / 2] = np.nan
    values[np.broadcast_to(status[:, None] != BarStatus.VALID, values.shape)] = np.nan
    times_ns = 1_600_000_000_000_000_000 + np.cumsum(rng.integers(1, 10**15, n_times))
    return Market(values, status, times_ns, extra)


def state(spec: FeatureSpec, n_symbols: int) -> FeatureState:
    return FeatureState(spec, n_symbols, CHANNELS)


def batch(spec: FeatureSpec, bars: Market) -> np.ndarray:
    return state(spec, bars.status.shape[1]).batch(*bars)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two results agree in every bit, NaN standing for NaN."""
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


markets = st.builds(
    market,
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 7, 33, 60]),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.05, 0.4]),
)


def test_every_kind_is_there() -> None:
    assert {item.kind for item in SPEC.features} == set(KINDS)


@settings(deadline=None, max_examples=40)
@given(markets, st.data())
def test_batch_is_the_stream_and_a_restart_changes_no_bit(
    bars: Market, data: st.DataObject
) -> None:
    n_times, n_symbols = bars.status.shape
    whole = batch(SPEC, bars)
    cut = data.draw(st.integers(0, n_times))
    first, second = state(SPEC, n_symbols), state(SPEC, n_symbols)
    head = first.batch(*bars.part(slice(0, cut)))
    second.load({name: array.copy() for name, array in first.save().items()})
    rows = [
        second.step(bars.values[t], bars.status[t], int(bars.times_ns[t]), bars.extra[t])
        for t in range(cut, n_times)
    ]
    assert same(np.concatenate([head, np.array(rows).reshape(-1, *whole.shape[1:])]), whole)


@settings(deadline=None, max_examples=40)
@given(markets, st.data())
def test_nothing_that_comes_later_changes_what_was_given(
    bars: Market, data: st.DataObject
) -> None:
    n_times, n_symbols = bars.status.shape
    t = data.draw(st.integers(0, n_times - 1))
    past = batch(SPEC, bars)[: t + 1]
    other = market(n_times, n_symbols, data.draw(st.integers(0, 99)), 0.1)
    later = Market(*(array.copy() for array in bars))
    for mine, theirs in zip(later, other, strict=True):
        mine[t + 1 :] = theirs[t + 1 :] * 3
    later.status[t + 1 :] = other.status[t + 1 :]
    assert same(batch(SPEC, later)[: t + 1], past)


@settings(deadline=None, max_examples=30)
@given(markets, st.randoms(use_true_random=False))
def test_order_of_symbols_changes_no_bit(bars: Market, random: object) -> None:
    order = list(range(bars.status.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert same(batch(SPEC, bars.of(order)), batch(SPEC, bars)[:, order])


@pytest.mark.parametrize('n_symbols', [3, 31, 256, 257, 700])
def test_symbol_alone_has_the_bits_that_it_has_in_a_market(n_symbols: int) -> None:
    bars = market(40, n_symbols, 1, 0.2)
    whole = batch(PER_SYMBOL, bars)
    for s in {0, n_symbols // 2, n_symbols - 1}:
        assert same(batch(PER_SYMBOL, bars.of([s])), whole[:, [s]])
    assert same(batch(PER_SYMBOL, bars.of(slice(1, None))), whole[:, 1:])


def test_one_symbol_of_the_whole_market_has_its_bits_alone() -> None:
    bars = market(14, 5400, 2, 0.05)
    whole = batch(PER_SYMBOL, bars)
    for s in (0, 2700, 5399):
        assert same(batch(PER_SYMBOL, bars.of([s])), whole[:, [s]])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sets(st.integers(0, 39), min_size=1, max_size=12))
def test_days_without_a_bar_are_as_if_they_had_not_been_there(seed: int, days: set[int]) -> None:
    bars = market(40, 3, seed, 0.1)
    plain = batch(PER_SYMBOL, bars)
    at = np.array(sorted(days))
    holed = Market(*(np.insert(array, at, array[at], axis=0) for array in bars))
    inserted = at + np.arange(len(at))
    holed.status[inserted] = BarStatus.SUSPENDED
    out = batch(PER_SYMBOL, holed)
    assert np.isnan(out[inserted]).all()
    assert same(np.delete(out, inserted, axis=0), plain)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.data())
def test_suspension_of_one_symbol_leaves_the_others_as_they_are(
    seed: int, data: st.DataObject
) -> None:
    bars = market(40, 5, seed, 0.0)
    plain = batch(PER_SYMBOL, bars)
    first = data.draw(st.integers(0, 39))
    bars.status[first : first + data.draw(st.integers(1, 30)), 2] = BarStatus.SUSPENDED
    out = batch(PER_SYMBOL, bars)
    others = [0, 1, 3, 4]
    assert same(out[:, others], plain[:, others])


@pytest.mark.parametrize('what', ['volume', 'pe', 'open'])
def test_hole_in_one_series_stays_in_what_reads_it(what: str) -> None:
    bars = market(60, 2, 4, 0.0)
    plain = batch(PER_SYMBOL, bars)
    if what == 'pe':
        bars.extra[40:43, CHANNELS.index('pe')] = np.nan
    else:
        bars.values[40:43, BAR_FIELDS.index(what)] = np.nan
    out = batch(PER_SYMBOL, bars)
    roots = {'volume': ('volume', 'obv'), 'pe': ('channel_pe',), 'open': ('of_open',)}[what]
    reads = np.array([any(word in name for word in roots) for name in PER_SYMBOL.names])
    assert same(out[:, :, ~reads], plain[:, :, ~reads])
    assert np.isnan(out[40:43][:, :, reads]).all()
    assert np.isfinite(out[43:][:, :, reads]).all()


@pytest.mark.parametrize(
    'spec',
    [SPEC, full_spec(True, CHANNELS), normalised_spec(True, CHANNELS, n=6)],
    ids=['every kind', 'full', 'normalised'],
)
def test_each_column_begins_after_exactly_its_warm_up_and_stays(spec: FeatureSpec) -> None:
    bars = market(spec.warmup_bars + 10, 3, 5, 0.0)
    finite = np.isfinite(batch(spec, bars))
    for f, (name, warm_up) in enumerate(spec.outputs):
        assert not finite[:warm_up, :, f].any(), name
        assert finite[warm_up:, :, f].all(), name


def test_loaded_state_of_another_size_is_refused_even_where_the_planes_fit() -> None:
    with pytest.raises(ConfigError, match='number of symbols'):
        state(SPEC, 3).load(state(SPEC, 4).save())


@pytest.mark.parametrize('module', [kernels, cross])
def test_kernels_call_only_kernels_of_their_own_file(module: ModuleType) -> None:
    # Compiled code is kept by the content of its own file alone (see heqis_core.jit).
    tree = ast.parse(inspect.getsource(module))
    taken = {
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert {source for source, _ in taken} <= {'__future__', 'typing', 'heqis_core.jit'}
    assert {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    } <= {'math', 'numpy', 'numpy.typing'}
