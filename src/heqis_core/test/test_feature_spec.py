# SPDX-License-Identifier: Apache-2.0
"""The feature spec: names, ids, warm-up, round trip, and errors that name the item."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError
from heqis_core.features.spec import KINDS, FeatureItem, FeatureSpec, default_spec


def test_default_spec_is_scale_free_and_warms_within_forty_bars() -> None:
    spec = default_spec()
    assert len(spec.names) == 23
    assert spec.names[3:7] == ('ma_5_rel', 'ma_10_rel', 'ma_20_rel', 'ma_30_rel')
    assert spec.warmup_bars == 33
    for item in spec.features:
        assert item.relative or KINDS[item.kind].scale == 'free'


def test_default_spec_without_volume_needs_none() -> None:
    with_volume, without = default_spec(True), default_spec(False)
    assert with_volume.names == (*without.names, 'volume_ratio_5')
    assert (with_volume.needs_volume, without.needs_volume) == (True, False)
    assert with_volume.id != without.id


@pytest.mark.parametrize(
    ('item', 'names'),
    [
        (FeatureItem('return'), ['return_1']),
        (FeatureItem('ma', {'n': 20}, relative=True), ['ma_20_rel']),
        (FeatureItem('sma', {'n': 6, 'm': 2}), ['sma_6_2']),
        (
            FeatureItem('macd'),
            ['macd_12_26_9_dif', 'macd_12_26_9_dea', 'macd_12_26_9_bar'],
        ),
        (FeatureItem('kdj', outputs=('j', 'k')), ['kdj_9_3_3_k', 'kdj_9_3_3_j']),
        (FeatureItem('boll', {'width': 2}, outputs=('up',)), ['boll_20_2_up']),
        (
            FeatureItem('boll', {'width': 2.5, 'ddof': 1}, relative=True, outputs=('up',)),
            ['boll_20_2.5_ddof1_up_rel'],
        ),
    ],
)
def test_column_names_say_kind_parameters_output_and_scale(
    item: FeatureItem, names: list[str]
) -> None:
    assert [column.name for column in item.columns] == names


def test_id_is_the_same_in_another_process_and_needs_no_compiler() -> None:
    code = (
        'import sys; from heqis_core.features.spec import default_spec;'
        'print(default_spec().id); assert "numba" not in sys.modules'
    )
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == default_spec().id
    assert len(default_spec().id) == 16
    assert int(default_spec().id, 16) >= 0


def test_id_covers_order_parameters_and_outputs_and_not_how_it_was_written() -> None:
    a, b = FeatureItem('ma', {'n': 5}), FeatureItem('ema', {'n': 5})
    ids = {
        FeatureSpec(features).id
        for features in (
            (a, b),
            (b, a),
            (a,),
            (FeatureItem('ma', {'n': 6}), b),
            (FeatureItem('ma', {'n': 5}, relative=True), b),
            (FeatureItem('boll', outputs=('up',)),),
            (FeatureItem('boll', outputs=('low',)),),
        )
    }
    assert len(ids) == 7
    spelled_out = FeatureItem(
        'boll', {'ddof': 0, 'width': 2, 'n': 20}, False, ('low', 'mid', 'up')
    )
    assert FeatureSpec((spelled_out,)).id == FeatureSpec((FeatureItem('boll'),)).id
    assert spelled_out == FeatureItem('boll')


@st.composite
def items(draw: st.DrawFn) -> FeatureItem:
    kind = draw(st.sampled_from(sorted(KINDS)))
    params = {
        name: draw(
            st.floats(0.1, 9.0) if p.is_float else st.integers(int(p.minimum), min(60, p.maximum))
        )
        for name, p in KINDS[kind].params.items()
    }
    if kind == 'macd':
        params['slow'] = params['fast'] + params['slow']
    if kind == 'sma':
        params['m'] = min(params['m'], params['n'])
    relative = KINDS[kind].scale != 'free' and draw(st.booleans())
    outputs = draw(st.sets(st.sampled_from(KINDS[kind].outputs), min_size=1))
    return FeatureItem(kind, params, relative, tuple(outputs) if len(outputs) > 1 else ())


@given(st.lists(items(), min_size=1, max_size=6, unique_by=lambda i: i.columns[0].name))
def test_json_round_trip_keeps_spec_and_id(features: list[FeatureItem]) -> None:
    names = [column.name for item in features for column in item.columns]
    if len(set(names)) < len(names):
        with pytest.raises(ConfigError, match='already'):
            FeatureSpec(tuple(features))
        return
    spec = FeatureSpec(tuple(features))
    again = FeatureSpec.from_json(spec.to_json())
    assert (again, again.id, again.names) == (spec, spec.id, spec.names)
    assert FeatureSpec.from_json(spec.to_json().encode()) == spec


@pytest.mark.parametrize(
    ('kind', 'params', 'extra', 'parts'),
    [
        ('moving_average', {}, {}, ["'moving_average'", 'unknown kind', 'ma', 'volume_ratio']),
        ('ma', {'length': 5}, {}, ["'ma'", "'length'", 'expected n']),
        ('ma', {'n': 0}, {}, ["'ma'", 'n = 0', 'from 1']),
        ('ma', {'n': -3}, {}, ['n = -3']),
        ('ma', {'n': 5.0}, {}, ['n = 5.0', 'whole number']),
        ('ma', {'n': True}, {}, ['n = True', 'whole number']),
        ('ma', {'n': '5'}, {}, ["n = '5'"]),
        ('ma', {'n': 10**9}, {}, ['to 10000']),
        ('boll', {'n': 1}, {}, ['n = 1', 'from 2']),
        ('boll', {'ddof': 2}, {}, ['ddof = 2']),
        ('boll', {'width': 0.0}, {}, ['width = 0.0']),
        ('boll', {'width': float('nan')}, {}, ['width = nan']),
        ('macd', {'fast': 26, 'slow': 12}, {}, ["'macd'", 'fast must be below slow']),
        ('sma', {'n': 3, 'm': 4}, {}, ['m must not be above n']),
        ('rsi', {}, {'relative': True}, ["'rsi'", 'relative = true', 'ma', 'atr']),
        ('ma', {}, {'relative': 1}, ['relative = 1']),
        ('kdj', {}, {'outputs': ('k', 'x')}, ["'kdj'", "'x'", 'k, d, j']),
        ('kdj', {}, {'outputs': ('k', 'k')}, ['at most once']),
        ('ma', {}, {'outputs': ('up',)}, ['one column']),
        ('ma', [5], {}, ['params = [5]', 'object']),
    ],
)
def test_wrong_item_is_refused_by_name(
    kind: str, params: object, extra: dict[str, object], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        FeatureItem(kind, params, **extra)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)


def test_two_columns_of_one_name_are_refused() -> None:
    a = FeatureItem('kdj', outputs=('k',))
    with pytest.raises(ConfigError, match=r'features\[2\].*kdj_9_3_3_k.*features\[0\]'):
        FeatureSpec((a, FeatureItem('ma'), FeatureItem('kdj', outputs=('k', 'd'))))
    with pytest.raises(ConfigError, match='no features'):
        FeatureSpec(())


@pytest.mark.parametrize(
    ('text', 'part'),
    [
        ('{"features": [', 'not JSON'),
        ('[]', 'expected {"features"'),
        ('{"features": {}}', 'expected {"features"'),
        ('{"features": [{"kind": "ma"}], "feature": 1}', "unknown field 'feature'"),
        ('{"features": [{"kind": "ma"}, {"params": {}}]}', 'features[1]: expected an object'),
        ('{"features": [{"kind": "ma", "n": 5}]}', "features[0]: unknown field 'n'"),
        ('{"features": [{"kind": "ma"}, {"kind": "mo"}]}', "features[1]: feature 'mo'"),
        ('{"features": [{"kind": "ma", "params": {"n": 0}}]}', "features[0]: feature 'ma': n = 0"),
        ('{"features": [{"kind": "ma", "outputs": "up"}]}', "outputs = 'up'; expected a list"),
        ('{"features": []}', 'no features'),
    ],
)
def test_wrong_json_is_refused_with_the_place(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        FeatureSpec.from_json(text)
    assert part in str(error.value)


def test_json_may_leave_defaults_out() -> None:
    short = FeatureSpec.from_json('{"features": [{"kind": "boll", "relative": true}]}')
    full = json.loads(short.to_json())['features'][0]
    assert full['params'] == {'n': 20, 'width': 2.0, 'ddof': 0}
    assert full['outputs'] == ['mid', 'up', 'low']
