# SPDX-License-Identifier: Apache-2.0
"""The scaler: fitting on what is finite, exact round trip, and application row by row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.errors import ConfigError, DataError
from heqis_core.scaler import Scaler

finite = st.floats(-1e300, 1e300)
scales = st.floats(1e-300, 1e300)


def test_fit_takes_mean_and_deviation_of_the_finite_rows_of_each_column() -> None:
    rows = np.array([[1.0, np.nan], [3.0, 10.0], [np.inf, 20.0], [5.0, 30.0]])
    scaler = Scaler.fit(('a', 'b'), rows)
    np.testing.assert_allclose(scaler.mean, [3.0, 20.0])
    np.testing.assert_allclose(scaler.scale, [np.sqrt(8 / 3), np.sqrt(200 / 3)])
    assert scaler.clip == 10.0


def test_scaled_training_rows_have_mean_zero_and_deviation_one() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal([3.0, -200.0, 1e-4], [1.0, 50.0, 1e-6], (5000, 3))
    scaled = Scaler.fit(('a', 'b', 'c'), rows).apply(rows).astype(np.float64)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize('constant', [0.0, 0.1, -1e9, 1e-30])
def test_column_that_does_not_vary_becomes_zero(constant: float) -> None:
    rows = np.full((1001, 1), constant)
    scaler = Scaler.fit(('flat',), rows)
    assert scaler.scale[0] == 1.0
    np.testing.assert_allclose(scaler.apply(rows), 0, atol=1e-6)


def test_one_finite_row_is_enough_and_none_is_refused_by_name() -> None:
    assert Scaler.fit(('a',), np.array([[np.nan], [7.0]])).mean[0] == 7.0
    with pytest.raises(DataError, match="'b' has no finite value in 2 training rows"):
        Scaler.fit(('a', 'b'), np.array([[1.0, np.nan], [2.0, np.inf]]))


@given(
    hnp.arrays(np.float64, (7, 3), elements=st.floats(allow_nan=True)),
    hnp.arrays(np.float64, 3, elements=finite),
    hnp.arrays(np.float64, 3, elements=scales),
    st.permutations(range(7)),
)
@pytest.mark.filterwarnings('ignore:overflow:RuntimeWarning')
def test_rows_do_not_touch_each_other_and_nan_stays_nan(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, order: list[int]
) -> None:
    scaler = Scaler(('a', 'b', 'c'), mean, scale, 3.0)
    scaled = scaler.apply(x)
    assert scaled.dtype == np.float32
    assert scaled.shape == x.shape
    np.testing.assert_array_equal(np.isnan(scaled), np.isnan(x))
    assert np.nanmax(np.abs(scaled), initial=0) <= 3.0
    one_by_one = np.concatenate([scaler.apply(x[k : k + 1]) for k in order])
    np.testing.assert_array_equal(one_by_one, scaled[order])
    np.testing.assert_array_equal(scaler.apply(x[None, ::2])[0], scaled[::2])


def test_values_are_computed_in_float64_and_cast_once() -> None:
    # In float32 the difference would be zero.
    scaler = Scaler(('a',), [1e8], [1.0], 10.0)
    assert scaler.apply(np.array([[1e8 + 0.25]]))[0, 0] == np.float32(0.25)


def test_input_is_left_as_it_was() -> None:
    x = np.array([[5.0, np.nan]])
    Scaler(('a', 'b'), [1, 1], [2, 2]).apply(x)
    np.testing.assert_array_equal(x, [[5.0, np.nan]])


@given(
    hnp.arrays(np.float64, 4, elements=finite),
    hnp.arrays(np.float64, 4, elements=scales),
    st.floats(1e-3, 1e6),
)
def test_json_round_trip_keeps_every_bit(mean: np.ndarray, scale: np.ndarray, clip: float) -> None:
    scaler = Scaler('abcd', mean, scale, clip)
    again = Scaler.from_json(scaler.to_json())
    assert again.mean.tobytes() == scaler.mean.tobytes()
    assert again.scale.tobytes() == scaler.scale.tobytes()
    assert (again, again.id, again.clip, again.names) == (scaler, scaler.id, clip, tuple('abcd'))


def test_id_depends_on_every_field() -> None:
    ids = {
        Scaler(names, mean, scale, clip).id
        for names, mean, scale, clip in (
            ('ab', [0, 0], [1, 1], 10),
            ('ba', [0, 0], [1, 1], 10),
            ('ab', [0, np.nextafter(0, 1)], [1, 1], 10),
            ('ab', [0, 0], [1, np.nextafter(1, 2)], 10),
            ('ab', [0, 0], [1, 1], 9),
        )
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    ('names', 'mean', 'scale', 'clip', 'part'),
    [
        ('ab', [0, np.nan], [1, 1], 10, "mean of 'b' = nan"),
        ('ab', [0, 0], [1, 0], 10, "scale of 'b' = 0"),
        ('ab', [0, 0], [-1, 1], 10, "scale of 'a' = -1"),
        ('ab', [0, 0], [np.inf, 1], 10, "scale of 'a' = inf"),
        ('ab', [0], [1, 1], 10, 'mean has shape (1,)'),
        ('ab', [0, 0], 1.0, 10, 'scale has shape ()'),
        ('ab', [0, 'x'], [1, 1], 10, 'expected 2 numbers'),
        ('aa', [0, 0], [1, 1], 10, 'unique names'),
        ('', [], [], 10, 'unique names'),
        ('a', [0], [1], 0, 'clip = 0'),
        ('a', [0], [1], np.inf, 'clip = inf'),
    ],
)
def test_numbers_that_cannot_scale_are_refused(
    names: str, mean: object, scale: object, clip: float, part: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Scaler(names, mean, scale, clip)  # type: ignore[arg-type]
    assert part in str(error.value)


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'names': 'ab'}, 'names'),
        ({'clip': '10'}, 'clip'),
        ({'extra': 1}, 'extra'),
        ({'mean': None}, 'mean'),
        ({'mean': [1.0]}, 'mean has shape'),
    ],
)
def test_wrong_json_is_refused(change: dict[str, object], part: str) -> None:
    plain = json.loads(Scaler('ab', [0, 0], [1, 1]).to_json())
    with pytest.raises(ConfigError) as error:
        Scaler.from_json(json.dumps(plain | change))
    assert part in str(error.value)


def test_text_that_is_no_scaler_is_refused() -> None:
    for text in ('', '[1]', '{"names": ["a"]}'):
        with pytest.raises(ConfigError, match='scaler'):
            Scaler.from_json(text)


def test_rows_of_another_width_are_refused() -> None:
    scaler = Scaler('ab', [0, 0], [1, 1])
    with pytest.raises(ConfigError, match=r'input \(3, 3\)'):
        scaler.apply(np.zeros((3, 3)))
    with pytest.raises(ConfigError, match=r'rows \(3, 3\)'):
        Scaler.fit('ab', np.zeros((3, 3)))
