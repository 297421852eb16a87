# SPDX-License-Identifier: Apache-2.0
"""Windows against a model made of lists, through gaps, holes, restarts and restores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heqis_core.errors import ConfigError
from heqis_core.windows import Windows, window_index

S, F = 3, 2
masks = st.lists(st.booleans(), min_size=S, max_size=S).map(np.array)


class Frame(NamedTuple):
    seq: int
    rows: np.ndarray
    valid: np.ndarray


def naive_window(
    frames: list[Frame], symbol: int, now: int, length: int, horizon: int, hole: int
) -> np.ndarray | None:
    """Return the window by its definition, None where it is not ready."""
    last = [f for f in frames if f.valid[symbol]][-length:]
    if len(last) < length or any(f.seq <= now - horizon or f.seq < hole for f in last):
        return None
    return np.stack([f.rows[symbol] for f in last])


class WindowsAgainstLists(RuleBasedStateMachine):
    @initialize(length=st.integers(1, 4), slack=st.integers(0, 5), first=st.integers(0, 2**40))
    def start(self, length: int, slack: int, first: int) -> None:
        self.length, self.horizon = length, length + slack
        self.windows = self.fresh()
        self.frames: list[Frame] = []
        self.next, self.hole = first, first

    def fresh(self) -> Windows:
        return Windows(S, self.length, F, self.horizon)

    @rule(valid=masks)
    def push(self, valid: np.ndarray) -> None:
        rows = (self.next + np.arange(S * F).reshape(S, F) / 8).astype(np.float32)
        rows[~valid] = np.nan
        self.frames.append(Frame(self.next, rows, valid))
        self.windows.push(self.next, rows, valid)
        self.next += 1

    @rule(lost=st.integers(0, 7))
    def lose_frames(self, lost: int) -> None:
        self.next += lost
        self.hole = max(self.hole, self.next)
        self.windows.hole(self.next)

    @rule(back=st.integers(0, 7))
    def earlier_hole_changes_nothing(self, back: int) -> None:
        self.windows.hole(self.hole - back)

    @rule()
    def save_and_load(self) -> None:
        saved = self.windows.save()
        self.windows = self.fresh()
        self.windows.load(saved)

    @rule(first=st.integers(0, 2**40))
    def reset(self, first: int) -> None:
        self.windows.reset()
        self.frames = []
        self.next = self.hole = first

    @rule()
    def refuse_what_is_not_next(self) -> None:
        if self.windows.last_seq is None:
            return
        rows, valid = np.zeros((S, F), np.float32), np.ones(S, bool)
        for seq in (self.windows.last_seq, self.windows.last_seq - 1, self.next + 1):
            with pytest.raises(ValueError, match='after'):
                self.windows.push(seq, rows, valid)

    @rule()
    def restart_with_the_last_frames(self) -> None:
        windows = self.fresh()
        windows.hole(self.hole)
        for frame in self.frames[-self.horizon :]:
            if frame.seq >= self.hole:
                windows.push(*frame)
        self.check(windows)
        self.windows = windows

    @invariant()
    def answers_like_the_lists(self) -> None:
        self.check(self.windows)

    def check(self, windows: Windows) -> None:
        now = self.next - 1
        expected = [
            naive_window(self.frames, s, now, self.length, self.horizon, self.hole)
            for s in range(S)
        ]
        ready = windows.ready(now)
        assert ready.tolist() == [window is not None for window in expected]
        which = np.flatnonzero(ready)[::-1]
        out = np.full((len(which), self.length, F), np.nan, np.float32)
        assert windows.gather(which, out) is out
        np.testing.assert_array_equal(windows.gather(which), out)
        for window, s in zip(out, which, strict=True):
            np.testing.assert_array_equal(window, expected[s])
        for rows in range(1, self.length):
            newest = np.full((len(which), rows, F), np.nan, np.float32)
            np.testing.assert_array_equal(windows.gather(which, newest), out[:, -rows:])
        columns = np.full((len(which), F, 1, self.length), np.nan, np.float32)
        assert windows.gather_columns(which, columns) is columns
        np.testing.assert_array_equal(columns[:, :, 0, :], out.transpose(0, 2, 1))


TestWindowsAgainstLists = WindowsAgainstLists.TestCase
TestWindowsAgainstLists.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(deadline=None)
@given(
    # Without a fill most arrays would be nearly all True or all False.
    hnp.arrays(bool, st.tuples(st.integers(0, 25), st.integers(1, 4)), fill=st.nothing()),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_window_index_is_what_streaming_gives(valid: np.ndarray, length: int, slack: int) -> None:
    n_times, n_symbols = valid.shape
    windows = Windows(n_symbols, length, 1, length + slack)
    expected = []
    for t in range(n_times):
        windows.push(t, np.full((n_symbols, 1), t, np.float32), valid[t])
        which = np.flatnonzero(windows.ready(t) & valid[t])
        for s, window in zip(which, windows.gather(which), strict=True):
            expected.append((t, s, window[:, 0].astype(np.int64).tolist()))
    t, s, rows = window_index(valid, length, length + slack)
    assert [t.dtype, s.dtype, rows.dtype] == [np.int64] * 3
    assert rows.shape == (len(t), length)
    assert list(zip(t.tolist(), s.tolist(), rows.tolist(), strict=True)) == expected


def test_no_window_reaches_over_more_frames_than_the_horizon() -> None:
    # Valid at 0, 1, 4: within (4 - 5, 4] but not within (5 - 5, 5].
    windows = Windows(1, 3, 1, 5)
    for seq, valid in enumerate([True, True, False, False, True]):
        windows.push(seq, np.zeros((1, 1), np.float32), np.array([valid]))
    assert windows.ready(4).tolist() == [True]
    assert windows.ready(5).tolist() == [False]


def test_whole_market_restarts_bit_identical() -> None:
    rng = np.random.default_rng(3)
    n, length, horizon = 5400, 20, 40
    everything, restarted = (Windows(n, length, 24, horizon) for _ in range(2))
    for seq in range(90):
        rows = rng.normal(size=(n, 24)).astype(np.float32)
        valid = rng.random(n) < 0.7
        everything.push(seq, rows, valid)
        if seq >= 90 - horizon:
            restarted.push(seq, rows, valid)
    ready = everything.ready(89)
    assert 0 < ready.sum() < n
    np.testing.assert_array_equal(restarted.ready(89), ready)
    which = np.flatnonzero(ready)
    a, b = everything.gather(which), restarted.gather(which)
    assert a.tobytes() == b.tobytes()


def test_gather_of_a_symbol_without_rows_is_refused_by_number() -> None:
    windows = Windows(2, 2, 1, 4)
    for seq in range(2):
        windows.push(seq, np.zeros((2, 1), np.float32), np.array([True, seq == 0]))
    assert windows.gather(np.array([0])).shape == (1, 2, 1)
    assert windows.gather(np.array([], np.int64)).shape == (0, 2, 1)
    for bad in (1, 2, -1):
        with pytest.raises(ValueError, match=f'symbol {bad} of 2'):
            windows.gather(np.array([0, bad]))
        with pytest.raises(ValueError, match=f'symbol {bad} of 2'):
            windows.gather_columns(np.array([0, bad]), np.empty((2, 1, 1, 2), np.float32))
    with pytest.raises(ValueError, match='which is bool'):
        windows.gather(windows.ready(1))


@pytest.mark.parametrize(
    'out',
    [
        np.empty((2, 2, 1), np.float32),
        np.empty((1, 3, 1), np.float32),
        np.empty((1, 2), np.float32),
        np.empty((1, 2, 1), np.float64),
        np.empty((1, 2, 2), np.float32)[:, :, :1],
    ],
)
def test_gather_into_a_buffer_that_does_not_fit_is_refused(out: np.ndarray) -> None:
    windows = Windows(1, 2, 1, 4)
    for seq in range(2):
        windows.push(seq, np.zeros((1, 1), np.float32), np.ones(1, bool))
    with pytest.raises(ValueError, match='out is'):
        windows.gather(np.array([0]), out)
    with pytest.raises(ValueError, match='out is'):
        windows.gather_columns(np.array([0]), out)


def test_rows_may_be_views_and_read_only_and_are_copied() -> None:
    windows = Windows(2, 1, 2, 1)
    wide = np.arange(8, dtype=np.float32).reshape(2, 4)
    wide.flags.writeable = False
    valid = np.frombuffer(b'\x01\x01', bool)
    windows.push(7, wide[:, 1:3], valid)
    gathered = windows.gather(np.array([0, 1]))
    np.testing.assert_array_equal(gathered[:, 0], [[1, 2], [5, 6]])
    gathered[:] = 0
    np.testing.assert_array_equal(windows.gather(np.array([1]))[0, 0], [5, 6])


def test_wrong_shapes_and_questions_about_the_past_are_refused() -> None:
    windows = Windows(2, 1, 2, 1)
    with pytest.raises(ValueError, match=r'rows \(2, 3\)'):
        windows.push(0, np.zeros((2, 3), np.float32), np.ones(2, bool))
    with pytest.raises(ValueError, match=r'valid \(3,\)'):
        windows.push(0, np.zeros((2, 2), np.float32), np.ones(3, bool))
    windows.push(5, np.zeros((2, 2), np.float32), np.ones(2, bool))
    with pytest.raises(ValueError, match='before the last push 5'):
        windows.ready(4)


@pytest.mark.parametrize(
    ('sizes', 'part'),
    [
        ((0, 1, 1, 1), 'n_symbols = 0'),
        ((1, 0, 1, 1), 'length = 0'),
        ((1, 1, 0, 1), 'n_features = 0'),
        ((1, 3, 1, 2), 'horizon = 2'),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, int, int, int], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        Windows(*sizes)
    assert part in str(error.value)


def test_saved_windows_of_other_sizes_are_refused_and_change_nothing() -> None:
    windows = Windows(2, 2, 2, 4)
    for seq in range(2):
        windows.push(seq, np.full((2, 2), seq, np.float32), np.ones(2, bool))
    saved = windows.save()
    for other, part in (
        (Windows(3, 2, 2, 4), 'rows'),
        (Windows(2, 3, 2, 4), 'rows'),
        (Windows(2, 2, 2, 5), 'horizon 4'),
    ):
        with pytest.raises(ConfigError, match=part):
            other.load(saved)
    before = {name: value.copy() for name, value in saved.items()}
    for name, value, part in (
        ('seqs', None, 'seqs is nothing'),
        ('oldest', np.array([0, 2]), 'oldest outside'),
        ('rows', saved['rows'].astype(np.float64), 'rows is float64'),
        ('marks', np.zeros(2, np.int64), 'marks'),
    ):
        broken = {k: v for k, v in saved.items() if k != name}
        if value is not None:
            broken[name] = value
        with pytest.raises(ConfigError, match=part):
            windows.load(broken)
    for name, value in windows.save().items():
        np.testing.assert_array_equal(value, before[name])
