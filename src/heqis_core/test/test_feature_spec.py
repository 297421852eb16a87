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
from heqis_core.features.kinds import KINDS, ROLLING
from heqis_core.features.spec import (
    FeatureItem,
    FeatureSpec,
    default_spec,
    full_spec,
    normalised_spec,
)


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
        (FeatureItem('ma', {'n': 5}, relative=True, of='volume'), ['ma_5_of_volume_rel']),
        (FeatureItem('ma', {'n': 5}, of='close'), ['ma_5']),
        (FeatureItem('value', of='channel:pe'), ['value_of_channel_pe']),
        (FeatureItem('zscore', {'ddof': 1}, of='rsi_6'), ['zscore_60_ddof1_of_rsi_6']),
        (FeatureItem('xs_rank', of='rsi_6'), ['xs_rank_of_rsi_6']),
        (FeatureItem('xs_rank', {'min_symbols': 30}, of='rsi_6'), ['xs_rank_min30_of_rsi_6']),
        (
            FeatureItem('calendar', {'utc_offset_min': -300}, outputs=('minute_sin',)),
            ['calendar_utc-300_minute_sin'],
        ),
        (FeatureItem('obv'), ['obv']),
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
    if kind == 'xs_zscore':
        params['min_symbols'] += 1
    of = draw(st.sampled_from(('close', 'volume', 'channel:pe')))
    return FeatureItem(
        kind,
        params,
        relative,
        tuple(outputs) if len(outputs) > 1 else (),
        '' if KINDS[kind].of is None else of,
    )


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
        ('kdj', {}, {'of': 'close'}, ["of = 'close'", 'no choice', 'ma, sma']),
        ('zscore', {}, {}, ['of is missing', 'close', 'channel:NAME', 'earlier item']),
        ('value', {}, {'of': 'channel:'}, ["expected a name after 'channel:'"]),
        ('value', {}, {'of': 7}, ['of = 7']),
        ('zscore', {'n': 1}, {'of': 'close'}, ['n = 1', 'from 2']),
        ('zscore', {'n': 10_001}, {'of': 'close'}, ['to 10000']),
        ('calendar', {'utc_offset_min': 841}, {}, ['utc_offset_min = 841', 'to 840']),
        ('xs_zscore', {'min_symbols': 1, 'ddof': 1}, {'of': 'close'}, ['must be above ddof']),
        ('zscore', {}, {'of': 'close', 'relative': True}, ['no scale']),
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
        ('{"features": [{"kind": "rank", "of": 3}]}', "features[0]: feature 'rank': of = 3"),
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


# ---------------------------------------------------------------- series and sets


def test_series_that_is_not_there_is_refused_with_those_that_are() -> None:
    items = (FeatureItem('ma'), FeatureItem('zscore', of='ma_21'))
    with pytest.raises(
        ConfigError, match=r"features\[1\].*'ma_21'.*open, .*channel:NAME.*: ma_20"
    ):
        FeatureSpec(items)
    unwanted = (FeatureItem('kdj', outputs=('k',)), FeatureItem('rank', of='kdj_9_3_3_j'))
    with pytest.raises(ConfigError, match='no such series'):
        FeatureSpec(unwanted)


def test_series_that_comes_later_is_refused_so_that_no_cycle_can_be_written() -> None:
    later = (FeatureItem('zscore', of='ma_20'), FeatureItem('ma'))
    with pytest.raises(ConfigError, match=r"'ma_20' is a column of features\[1\].*put that one"):
        FeatureSpec(later)
    assert FeatureSpec(later[::-1]).names == ('ma_20', 'zscore_60_of_ma_20')


def test_warm_up_adds_up_along_the_series_that_items_read() -> None:
    spec = FeatureSpec(
        (
            FeatureItem('rsi', {'n': 6}),
            FeatureItem('zscore', {'n': 10}, of='rsi_6'),
            FeatureItem('xs_rank', of='zscore_10_of_rsi_6'),
            FeatureItem('ema', {'n': 4}, of='xs_rank_of_zscore_10_of_rsi_6'),
        )
    )
    assert [column.warm_up for column in spec.outputs] == [6, 15, 15, 18]
    assert spec.warmup_bars == 18


def test_spec_says_which_channels_volume_and_event_time_it_needs() -> None:
    spec = FeatureSpec(
        (
            FeatureItem('value', of='channel:pe'),
            FeatureItem('turnover'),
            FeatureItem('ma', of='channel:pe'),
        )
    )
    assert spec.channels == ('pe', 'turnover_rate')
    assert (spec.needs_volume, spec.needs_event_time) == (False, False)
    assert FeatureSpec((FeatureItem('ma', of='volume'),)).needs_volume
    assert FeatureSpec((FeatureItem('obv'),)).needs_volume
    assert FeatureSpec((FeatureItem('calendar'),)).needs_event_time


def test_ids_of_specs_from_before_series_could_be_chosen_stay() -> None:
    assert default_spec().id == '479c647bf8eab6f4'
    assert 'of' not in json.loads(default_spec().to_json())['features'][0]
    a, b = (FeatureSpec((FeatureItem('ma', of=of),)) for of in ('', 'volume'))
    assert a.id != b.id
    assert FeatureSpec((FeatureItem('ma', of='close'),)).id == a.id


def test_full_spec_has_what_is_usual_and_leaves_out_what_the_bars_lack() -> None:
    spec = full_spec(True, ('pe', 'turnover_rate'))
    kinds = {item.kind for item in spec.features}
    assert kinds == set(KINDS) - set(ROLLING) - {'value'}
    for name in ('return_60', 'ma_60_rel', 'macd_10_20_9_bar_rel', 'kdj_14_3_3_j', 'rsi_14'):
        assert name in spec.names
    assert (spec.needs_volume, spec.channels) == (True, ('turnover_rate',))
    bare = full_spec(False)
    assert (bare.needs_volume, bare.channels) == (False, ())
    assert set(bare.names) < set(spec.names)


def test_normalised_spec_has_each_rolling_normaliser_of_each_full_column() -> None:
    full = full_spec()
    spec = normalised_spec()
    assert spec.names[: len(full.names)] == full.names
    expected = [f'{kind}_60_of_{name}' for name in full.names for kind in ROLLING]
    assert list(spec.names[len(full.names) :]) == expected
    assert spec.warmup_bars == full.warmup_bars + 59
