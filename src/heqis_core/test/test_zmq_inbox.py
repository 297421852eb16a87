# SPDX-License-Identifier: Apache-2.0
"""The ring of receive buffers: no copy, no array that changes under its holder, losses counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.frame import FeatureFrame
from heqis_core.io.zmq_channel import Channel
from heqis_core.io.zmq_inbox import Inbox
from heqis_core.testing_link import assert_same_frame, make_frame
from heqis_core.wire import Decoder, encode_frame


class Pair:
    """A connected PUSH and PULL, and what a link does with them."""

    def __init__(self) -> None:
        """Connect."""
        self._context: zmq.Context = zmq.Context()
        options: Any = {'name': 'frames', 'hwm': 64, 'max_message': 1 << 20}
        self.pull = Channel(self._context, zmq.PULL, 'tcp://127.0.0.1:*', bind=True, **options)
        self.push = Channel(self._context, zmq.PUSH, self.pull.endpoint, bind=False, **options)
        self.decoder = Decoder()

    def carry(self, inbox: Inbox, frame: FeatureFrame) -> FeatureFrame | None:
        """Send and receive one frame."""
        assert self.push.send(encode_frame(frame), 2000)
        message = inbox.recv(self.pull, 2000)
        return None if message is None else self.decoder.frame(message)

    def close(self) -> None:
        """Close both."""
        self.push.close()
        self.pull.close()
        self._context.term()


@pytest.fixture(scope='module')
def pair() -> Iterator[Pair]:
    """Return a connected pair."""
    made = Pair()
    yield made
    made.close()


def test_frames_nobody_holds_come_into_the_same_aligned_memory_with_the_same_arrays(
    pair: Pair,
) -> None:
    inbox, arrays = Inbox(3, 4096), set()
    for seq in range(6):
        frame = pair.carry(inbox, make_frame(seq))
        assert frame is not None
        assert_same_frame(frame, make_frame(seq))
        for array in frame.tensors.values():
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable
        arrays.add(id(frame.tensors['features']))
        del frame, array
    assert len(arrays) == 1
    assert inbox.counters['received'] == 6
    assert inbox.counters['received_bytes'] == 6 * len(encode_frame(make_frame()))
    assert inbox.counters['truncated'] == inbox.counters['slots_replaced'] == 0


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 5)), max_size=12),
)
def test_whatever_is_held_stays_what_it_was(
    pair: Pair, slots: int, plan: list[tuple[int, bool, int]]
) -> None:
    inbox = Inbox(slots, 4096)
    held: deque[tuple[FeatureFrame, np.ndarray]] = deque()
    for seq, (symbols, view_only, let_go) in enumerate(plan):
        frame = pair.carry(inbox, make_frame(seq, symbols))
        assert frame is not None
        part = frame.tensors['features'][-1:, ::2]
        held.append((make_frame(seq, symbols), part if view_only else frame.tensors['features']))
        del frame, part
        for _ in range(min(let_go, len(held))):
            held.popleft()
        for sent, values in held:
            features = sent.tensors['features']
            expected = features if values.shape == features.shape else features[-1:, ::2]
            np.testing.assert_array_equal(values, expected)


def test_buffers_in_use_are_left_to_their_users_and_replaced(pair: Pair) -> None:
    inbox = Inbox(2, 4096)
    held = [pair.carry(inbox, make_frame(seq)) for seq in range(7)]
    for seq, frame in enumerate(held):
        assert frame is not None
        assert_same_frame(frame, make_frame(seq))
    assert inbox.counters['slots_replaced'] == 5


def test_stream_that_changes_its_form_and_back_is_read_in_every_slot(pair: Pair) -> None:
    inbox = Inbox(2, 4096)
    frames = [make_frame(0), replace(make_frame(1), features_id='f' * 16), make_frame(2)]
    held: deque[FeatureFrame] = deque(maxlen=1)
    for sent in frames * 4:
        got = pair.carry(inbox, sent)
        assert got is not None
        assert_same_frame(got, sent)
        held.append(got)
        del got


def test_message_larger_than_the_buffers_is_counted_and_the_next_one_fits(pair: Pair) -> None:
    inbox, large = Inbox(2, 256), make_frame(1, 20)
    assert pair.carry(inbox, large) is None
    assert inbox.counters['truncated'] == 1
    assert inbox.counters['received'] == 0
    size = len(encode_frame(large))
    assert pair.pull.error == (
        f'frames: a message of {size} B was lost, the receive buffers were smaller'
    )
    got = pair.carry(inbox, large)
    assert got is not None
    assert_same_frame(got, large)
