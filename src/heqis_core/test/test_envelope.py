# SPDX-License-Identifier: Apache-2.0
"""The outer form: what a reader refuses, by name, and that no bit gets through altered."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from zlib import crc32

import msgspec
import numpy as np
import pytest

from heqis_core.envelope import ALIGN, Draft, Layout, MessageType, open_message, place
from heqis_core.errors import WireError
from heqis_core.testing_link import make_frame
from heqis_core.wire import Decoder, encode_frame


def reseal(message: bytearray) -> bytes:
    """Write the checksums that belong to the altered message, as a hostile peer could."""
    tail = np.frombuffer(message[16384:], '<u8').sum(dtype=np.uint64)
    struct.pack_into('<Q', message, 56, int(tail))
    struct.pack_into('<I', message, 4, crc32(message[8:16384]))
    return bytes(message)


def with_descriptor(change: Callable[[dict], object]) -> bytes:
    """Return a frame message whose descriptor was changed and whose lengths and checksums fit."""
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


@pytest.mark.parametrize('position', [15_000, 16_383, 16_384, 16_391, 30_000, -1])
def test_bit_flip_in_a_large_message_is_refused(position: int) -> None:
    message = bytearray(encode_frame(make_frame(symbols=300, features=32)))
    assert len(message) > 32_000
    assert reseal(bytearray(message)) == message
    message[position] ^= 16
    with pytest.raises(WireError, match='altered'):
        Decoder().frame(message)


def test_untouched_message_opens_and_gives_its_prologue_back() -> None:
    message = encode_frame(make_frame(seq=11))
    view, layout, epoch, seq, event_time_ns, revision = open_message(
        message, MessageType.FRAME, Layout()
    )
    assert (epoch, seq, revision) == (7, 11, 0)
    assert event_time_ns == make_frame(seq=11).event_time_ns
    assert layout.body % ALIGN == 0
    assert view.readonly
    assert open_message(message, MessageType.FRAME, layout)[1] is layout


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
        (8, '<B', 2, 'version 2, this program reads 1'),
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
def test_prologue_fields_are_checked_by_name(
    offset: int, fmt: str, value: object, expected: str
) -> None:
    message = bytearray(encode_frame(make_frame()))
    struct.pack_into(fmt, message, offset, value)
    reseal(message)
    with pytest.raises(WireError, match=expected):
        Decoder().frame(message)


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
def test_hostile_descriptors_are_refused_by_name(
    change: Callable[[dict], object], expected: str
) -> None:
    with pytest.raises(WireError, match=expected):
        Decoder().frame(with_descriptor(change))


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
