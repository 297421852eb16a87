# SPDX-License-Identifier: Apache-2.0
"""The frame ring: no hole, a bound, and what was saved comes back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_core.ring import FrameRing
from heqis_core.testing_link import assert_same_frame, make_frame

FRAMES = [make_frame(seq, symbols=2, features=2) for seq in range(40)]


def filled(capacity: int, first: int, count: int) -> FrameRing:
    """Return a ring that took `count` frames from `first` on."""
    ring = FrameRing(capacity)
    for frame in FRAMES[first : first + count]:
        ring.append(frame)
    return ring


@given(
    st.integers(1, 12),
    st.integers(0, 10),
    st.integers(0, 30),
    st.integers(-3, 45),
    st.integers(-3, 45),
)
def test_ring_holds_the_last_frames_and_counts_the_rest(
    capacity: int, start: int, count: int, first: int, last: int
) -> None:
    ring = filled(capacity, start, count)
    held = list(range(start, start + count))[-capacity:]
    wanted = [seq for seq in range(first, last + 1)]
    assert len(ring) == len(held)
    assert ring.next_seq == (start + count if count else 0)
    assert ring.oldest_seq == (held[0] if held else ring.next_seq)
    assert [f.seq for f in ring.range(first, last)] == [seq for seq in wanted if seq in held]
    assert [f.seq for f in ring.tail(first)] == (held[-first:] if first > 0 else [])
    served = sum(seq in held for seq in wanted)
    assert ring.counters == {
        'appended': count,
        'evicted': max(0, count - capacity),
        'served': served,
        'missed': len(wanted) - served,
    }


@pytest.mark.parametrize('seq', [0, 4, 6, 30])
def test_frame_that_leaves_a_hole_or_comes_twice_is_refused(seq: int) -> None:
    ring = filled(8, 0, 5)
    with pytest.raises(ValueError, match=f'frame seq {seq} .* expected 5'):
        ring.append(FRAMES[seq])
    assert (ring.next_seq, len(ring)) == (5, 5)


def test_empty_ring_starts_anywhere_and_says_so() -> None:
    ring = FrameRing(3, first_seq=17)
    assert (ring.oldest_seq, ring.next_seq, ring.tail(5)) == (17, 17, [])
    ring.append(FRAMES[20])
    assert (ring.oldest_seq, ring.next_seq) == (20, 21)


def test_ring_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match='capacity is 0'):
        FrameRing(0)


@pytest.mark.parametrize(('n', 'expected'), [(None, 6), (4, 4), (0, 0), (99, 6)])
def test_saved_tail_comes_back_bit_for_bit(n: int | None, expected: int) -> None:
    saved = filled(6, 3, 10).save(n)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in saved.values())
    ring = filled(6, 0, 2)
    ring.load(saved)
    assert (ring.next_seq, len(ring)) == (13, expected)
    for frame in ring.tail(99):
        assert_same_frame(frame, FRAMES[frame.seq])
    ring.append(FRAMES[13])


def test_smaller_ring_keeps_the_newest_of_what_was_saved() -> None:
    ring = FrameRing(2)
    ring.load(filled(6, 0, 6).save())
    assert [f.seq for f in ring.tail(9)] == [4, 5]


def test_altered_checkpoint_is_refused_and_leaves_the_ring_alone() -> None:
    saved = filled(6, 0, 6).save()
    messages = saved['messages'].copy()
    messages[200] ^= 4
    for change, expected in (
        ({'messages': messages}, 'frame 0'),
        ({'messages': saved['messages'][:-1]}, 'lengths sum'),
        ({'lengths': -saved['lengths']}, 'lengths sum'),
        ({'next_seq': np.array([9])}, 'gap-free up to 8'),
        ({'next_seq': np.array([])}, 'expected next_seq'),
    ):
        ring = filled(6, 20, 3)
        with pytest.raises(DataError, match=expected):
            ring.load({**saved, **change})
        assert [f.seq for f in ring.tail(9)] == [20, 21, 22]
    with pytest.raises(DataError, match='expected next_seq'):
        FrameRing(3).load({'next_seq': np.array([0])})


def test_readers_see_gap_free_frames_while_another_thread_appends() -> None:
    ring, stop, faults = FrameRing(8), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seqs = [f.seq for f in ring.range(ring.oldest_seq, ring.next_seq - 1)] or [0]
            if seqs != list(range(seqs[0], seqs[-1] + 1)):
                faults.append(seqs)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    frame = FRAMES[0]
    for seq in range(3000):
        frame = type(frame)(
            frame.stream, 1, seq, seq, 0, '', frame.symbols, frame.tensors, frame.stamps
        )
        ring.append(frame)
    stop.set()
    for reader in readers:
        reader.join(5)
    assert faults == []
    assert ring.counters['evicted'] == 3000 - 8
