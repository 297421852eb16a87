# SPDX-License-Identifier: Apache-2.0
"""The outer form: what a reader refuses, by name, and that no bit gets through altered."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.checksum import is_sound, seal
from heqis_core.envelope import ALIGN, NO_LAYOUT, Draft, Message, MessageType, open_message, place
from heqis_core.errors import WireError
from heqis_core.frame import FeatureFrame
from heqis_core.testing_link import assert_same_frame, make_frame
from heqis_core.wire import Decoder, decode_request, encode_frame


def check_of(message: bytes | bytearray) -> int:
    """Return the check as the document says it, with numpy alone."""
    words = np.frombuffer(message, '<u4', len(message) // 4).astype(np.uint64)
    words[14:16] = 0
    return int((words * np.arange(1, len(words) + 1, dtype=np.uint64)).sum())


def reseal(message: bytearray) -> bytes:
    """Write the check that belongs to the altered message, as a hostile peer could."""
    struct.pack_into('<Q', message, 56, check_of(message))
    return bytes(message)


def with_descriptor(change: Callable[[dict], object]) -> bytes:
    """Return a frame message whose descriptor was changed and whose lengths and check fit."""
    message = encode_frame(make_frame())
    length = struct.unpack_from('<I', message, 12)[0]
    body = ALIGN + -(-length // ALIGN) * ALIGN
    descriptor = msgspec.msgpack.decode(message[ALIGN : ALIGN + length])
    replaced = change(descriptor)
    block = replaced if isinstance(replaced, bytes) else msgspec.msgpack.encode(descriptor)
    head = bytearray(message[:ALIGN])
    struct.pack_into('<I', head, 12, len(block))
    return reseal(head + block.ljust(-(-len(block) // ALIGN) * ALIGN, b'\0') + message[body:])


def tensor(index: int, field: int, value: object) -> Callable[[dict], None]:
    """Return a change of one field (name, code, bits, shape, offset) of one tensor's entry."""
    return lambda d: d['tensors'][index].__setitem__(field, value)


LARGE = encode_frame(make_frame(symbols=300, features=32))


def is_refused(message: bytearray) -> bool:
    """Return whether the envelope refuses a message of the large one's form as altered."""
    with pytest.raises(WireError) as caught:
        Decoder().frame(message)
    return 'altered' in str(caught.value)


@given(st.integers(ALIGN, len(LARGE) - 1), st.integers(0, 7))
def test_bit_flip_anywhere_in_a_large_message_is_refused(position: int, bit: int) -> None:
    message = bytearray(LARGE)
    message[position] ^= 1 << bit
    assert is_refused(message)


@given(st.integers(16, len(LARGE) // 4 - 1), st.integers(16, len(LARGE) // 4 - 1))
def test_two_words_that_changed_places_are_refused(a: int, b: int) -> None:
    message = bytearray(LARGE)
    words = np.frombuffer(message, '<u4')
    assume(words[a] != words[b])
    words[[a, b]] = words[[b, a]]
    assert is_refused(message)


@given(st.integers(16, len(LARGE) // 4 - 1), st.integers(0, 2**32 - 1))
def test_word_with_any_other_value_is_refused(at: int, value: int) -> None:
    message = bytearray(LARGE)
    words = np.frombuffer(message, '<u4')
    assume(words[at] != value)
    words[at] = value
    assert is_refused(message)


@given(hnp.arrays(np.uint32, st.integers(16, 400)))
def test_check_is_what_the_document_says(words: npt.NDArray[np.uint32]) -> None:
    seal(words)
    message = words.tobytes()
    assert struct.unpack_from('<Q', message, 56)[0] == check_of(message)
    assert is_sound(words)


def test_check_wraps_around_for_the_largest_words() -> None:
    words = np.full(1 << 18, 0xFFFFFFFF, np.uint32)
    seal(words)
    assert is_sound(words)
    assert struct.unpack_from('<Q', words.tobytes(), 56)[0] == check_of(words.tobytes())


def test_bytes_at_any_address_are_read() -> None:
    memory = memoryview(bytearray(len(LARGE) + 8))
    for start in range(8):
        memory[start : start + len(LARGE)] = LARGE
        assert Decoder().frame(memory[start : start + len(LARGE)]).seq == 0


def test_untouched_message_opens_and_gives_its_prologue_back() -> None:
    message = Message(encode_frame(make_frame(seq=11)))
    layout, epoch, seq, event_time_ns, revision = open_message(
        message, MessageType.FRAME, NO_LAYOUT
    )
    assert (epoch, seq, revision) == (7, 11, 0)
    assert event_time_ns == make_frame(seq=11).event_time_ns
    assert layout.body % ALIGN == 0
    assert message.view.readonly


@pytest.mark.parametrize('size', [0, 1, 63])
def test_message_smaller_than_a_prologue_is_refused_before_anything_is_read(size: int) -> None:
    for decode in (Decoder().frame, Decoder().decisions, Decoder().reply, decode_request):
        with pytest.raises(WireError, match=f'truncated: {size} B'):
            decode(bytes(size))


def test_reseal_of_an_unchanged_message_changes_nothing() -> None:
    message = encode_frame(make_frame())
    assert reseal(bytearray(message)) == message
    assert with_descriptor(lambda d: None) == message


@pytest.mark.parametrize('size', [0, 1, 63, 64, 128, 200, -1])
def test_truncated_message_is_refused(size: int) -> None:
    message = encode_frame(make_frame())
    with pytest.raises(WireError, match='truncated'):
        Decoder().frame(message[:size])


def test_every_single_bit_flip_is_refused() -> None:
    message = encode_frame(make_frame(symbols=1, features=1))
    decoder = Decoder()
    decoder.frame(message)  # the cached descriptor must not hide a flip in it
    for position in range(len(message) * 8):
        flipped = bytearray(message)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(WireError):
            decoder.frame(flipped)
    decoder.frame(message)


@pytest.mark.parametrize(
    ('offset', 'fmt', 'value', 'expected'),
    [
        (0, '<4s', b'HTTP', 'magic'),
        (8, '<B', 1, 'version 1, this program reads 2'),
        (9, '<B', 2, r'message type 2, expected 1 \(FRAME\)'),
        (10, '<H', 1, 'flags 1'),
        (12, '<I', 0xFFFFFFFF, 'impossible lengths'),
        (12, '<I', 1 << 23, 'truncated or overlong'),
        (16, '<I', 0xFFFFFFC0, 'impossible lengths'),
        (16, '<I', 65, 'impossible lengths'),
        (16, '<I', 1 << 29, 'truncated or overlong'),
        (20, '<I', 9, '9 stage stamps, expected 10'),
    ],
)
@pytest.mark.parametrize('seen', [False, True])
def test_prologue_fields_are_checked_by_name(
    offset: int, fmt: str, value: object, expected: str, seen: bool
) -> None:
    message, decoder = bytearray(encode_frame(make_frame())), Decoder()
    if seen:  # then the short way of a steady stream is tried first
        decoder.frame(bytes(message))
    struct.pack_into(fmt, message, offset, value)
    reseal(message)
    with pytest.raises(WireError, match=expected):
        decoder.frame(message)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda d: b'', 'descriptor'),
        (lambda d: b'\xc1', 'descriptor'),
        (lambda d: b'\x91' * 100_000, 'descriptor'),
        (lambda d: b'\x81\xa1a' + b'\x91' * 100_000 + b'\xc0', 'descriptor'),
        (lambda d: b'\x81\xa7symbols\xdd\xff\xff\xff\xff', 'descriptor'),
        (lambda d: b'\x81\xa6stream\xa2\xff\xfe', 'descriptor'),
        (lambda d: d.pop('stream'), 'stream'),
        (lambda d: d.update(extra=1), 'extra'),
        (lambda d: d.update(symbols=[]), 'symbols'),
        (lambda d: d.update(symbols=['a', 'a', 'b']), 'symbols'),
        (lambda d: d.update(symbols=['a', '', 'b']), 'symbols'),
        (lambda d: d.update(symbols=[1, 2, 3]), 'descriptor'),
        (lambda d: d.update(symbols=['a', 'b']), 'first axis'),
        (lambda d: d.update(tensors=[]), 'expected each once and all of'),
        (lambda d: d['tensors'].append(['features', 2, 32, [3, 5], 1 << 40]), 'do not fit'),
        (lambda d: d.update(tensors=d['tensors'][:2]), 'close'),
        (lambda d: d.update(tensors=[['x', 2, 32, [3], 128]] * 65), '65 entries'),
        (tensor(1, 0, 'features'), 'features'),
        (tensor(0, 1, 5), 'dtype code 5'),
        (tensor(0, 2, 24), '24 bits'),
        (tensor(0, 2, 64), "tensor 'features': float64"),
        (tensor(0, 3, []), 'shape'),
        (tensor(0, 3, [3, 0]), 'shape'),
        (tensor(0, 3, [3, -1]), 'shape'),
        (tensor(0, 3, [3, 5, 1]), "tensor 'features'"),
        (tensor(0, 3, [3, 1 << 62]), 'do not fit'),
        (tensor(0, 3, [3, (1 << 64) - 1]), 'do not fit'),
        (tensor(0, 4, 0), 'do not fit'),
        (tensor(0, 4, 129), 'do not fit'),
        (tensor(2, 4, 1 << 63), 'do not fit'),
        (tensor(1, 4, 128), 'do not fit'),
    ],
)
@pytest.mark.parametrize('seen', [False, True])
def test_hostile_descriptors_are_refused_by_name(
    change: Callable[[dict], object], expected: str, seen: bool
) -> None:
    decoder = Decoder()
    if seen:
        decoder.frame(encode_frame(make_frame()))
    with pytest.raises(WireError, match=expected):
        decoder.frame(with_descriptor(change))


def test_refusing_absurd_sizes_allocates_next_to_nothing() -> None:
    hostile = [
        with_descriptor(lambda d: b'\x81\xa7symbols\xdd\xff\xff\xff\xff'),
        with_descriptor(tensor(0, 3, [3, 1 << 62])),
    ]
    tracemalloc.start()
    for message in hostile:
        with pytest.raises(WireError):
            Decoder().frame(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_unknown_dtype_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match="tensor 'when': dtype datetime64"):
        place({'when': np.zeros(3, 'datetime64[ns]')})


def test_message_larger_than_the_format_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match='send less in one message'):
        Draft(MessageType.FRAME, b'', 1 << 31, 0)


def test_bytes_that_are_not_contiguous_are_refused() -> None:
    message = np.frombuffer(encode_frame(make_frame()), np.uint8)
    with pytest.raises(WireError, match='contiguous'):
        Decoder().frame(message[::2])


def memory_of(message: bytes) -> tuple[npt.NDArray[np.uint8], Message]:
    """Return memory that a message was received into, and its `Message`."""
    memory = np.frombuffer(bytearray(message), np.uint8)
    return memory, Message(memory.data, memory)


@pytest.mark.parametrize(
    'take',
    [
        lambda frame: frame,
        lambda frame: frame.tensors,
        lambda frame: frame.tensors['status'],
        lambda frame: frame.tensors['features'][1:, ::2],
        lambda frame: frame.tensors['features'].T[:0],
        lambda frame: memoryview(frame.tensors['close']),
        lambda frame: frame.tensors['features'].view(np.uint32)[0],
    ],
)
def test_memory_is_held_for_as_long_as_anything_made_of_it_is(
    take: Callable[[FeatureFrame], object],
) -> None:
    _, message = memory_of(encode_frame(make_frame()))
    decoder = Decoder()
    assert not message.held()
    for _ in range(3):
        kept = take(decoder.frame(message))
        assert message.held()
        del kept
        assert not message.held()


def test_arrays_over_reused_memory_are_made_once_and_anew_when_the_layout_changes() -> None:
    first, other = make_frame(1), replace(make_frame(2), features_id='f' * 16)
    memory, message = memory_of(encode_frame(first))
    decoder = Decoder()
    made = [decoder.frame(message).tensors['features'] for _ in range(2)]
    assert made[0] is made[1]
    memory[:] = np.frombuffer(encode_frame(other), np.uint8)
    again = decoder.frame(message)
    assert again.features_id == 'f' * 16
    assert again.tensors['features'] is not made[0]
    assert message.held()
    del made, again
    assert not message.held()


def test_frame_s_own_parts_can_be_changed_without_a_trace_in_the_next_frame() -> None:
    _, message = memory_of(encode_frame(make_frame()))
    decoder = Decoder()
    frame = decoder.frame(message)
    frame.tensors['extra'] = frame.tensors.pop('close')
    frame.stamps[0] = 99
    assert_same_frame(decoder.frame(message), make_frame())
