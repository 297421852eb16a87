# SPDX-License-Identifier: Apache-2.0
"""The messages: what goes in comes out bit for bit, and anything else is a WireError."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core import wire
from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES, FeatureFrame
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.testing_link import (
    assert_same_decisions,
    assert_same_frame,
    make_decisions,
    make_frame,
)

U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=12)
EXTRA_DTYPES = st.sampled_from(
    ['<i1', '<i2', '<i4', '<i8', '<u2', '<u4', '<u8', '<f2', '<f4', '<f8', '?', '>f4']
)


@st.composite
def frames(draw: st.DrawFn) -> FeatureFrame:
    """Any frame that the format allows, NaN, infinity and non-ASCII names included."""
    symbols = tuple(
        draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6, unique=True))
    )
    n = len(symbols)
    tensors = {
        'features': draw(hnp.arrays(np.float32, (n, draw(st.integers(1, 9))))),
        'status': draw(hnp.arrays(np.uint8, n, elements=st.integers(0, 4))),
        'close': draw(hnp.arrays(np.float64, n)),
    }
    for name in draw(st.lists(TEXT.filter(lambda t: t not in tensors), max_size=3, unique=True)):
        shape = (n, *draw(st.lists(st.integers(1, 3), max_size=3)))
        tensors[name] = draw(hnp.arrays(draw(EXTRA_DTYPES), shape))
    return FeatureFrame(
        stream=draw(TEXT),
        epoch=draw(U64),
        seq=draw(U64),
        event_time_ns=draw(I64),
        revision=draw(st.integers(0, 2**32 - 1)),
        features_id=draw(TEXT),
        symbols=symbols,
        tensors=tensors,
        stamps=draw(hnp.arrays(np.int64, N_STAGES)),
    )


def refused_or_decoded(decoder: wire.Decoder, data: bytes) -> None:
    """Whatever the bytes are: a decoder answers or raises WireError, nothing else."""
    for decode in (decoder.frame, decoder.decisions, decoder.reply, wire.decode_request):
        with contextlib.suppress(WireError):
            decode(data)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), min_size=1, max_size=3))
def test_any_frames_come_back_bit_for_bit_through_one_encoder_and_decoder(
    sent: list[FeatureFrame],
) -> None:
    encoder, decoder = wire.Encoder(), wire.Decoder()
    for frame in sent * 2:
        message = bytes(encoder.frame(frame))
        got = decoder.frame(message)
        native = {
            k: v.astype(v.dtype.newbyteorder('<'), copy=False) for k, v in frame.tensors.items()
        }
        assert_same_frame(replace(frame, tensors=native), got)
        assert bytes(wire.encode_frame(got)) == message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_never_crash_a_decoder(data: bytes, with_prologue: bool) -> None:
    head = wire.encode_frame(make_frame(symbols=1, features=1))[:16] if with_prologue else b''
    refused_or_decoded(wire.Decoder(), head + data)


SAMPLES = [
    wire.encode_frame(make_frame()),
    wire.encode_decisions(make_decisions()),
    wire.encode_request(MissedRequest(7, 3, 9), 5),
    wire.encode_reply(MissedReply(7, 0, 4, 2, [make_frame(2), make_frame(3)]), 5),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    st.integers(0, 10**6),
)
def test_mutations_of_good_messages_never_crash_a_decoder(
    message: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    decoder = wire.Decoder()
    for good in SAMPLES:  # with its caches filled
        refused_or_decoded(decoder, good)
    altered = bytearray(message)
    for position, value in changes:
        altered[position % len(altered)] = value
    refused_or_decoded(decoder, bytes(altered[: cut % len(altered)]))
    refused_or_decoded(decoder, bytes(altered))


def test_tensors_are_aligned_read_only_views_and_stamps_a_writable_copy() -> None:
    raw = np.zeros(1 << 14, np.uint8)
    start = -raw.ctypes.data % 64
    message = wire.encode_frame(make_frame())
    raw[start : start + len(message)] = np.frombuffer(message, np.uint8)
    frame = wire.decode_frame(raw[start : start + len(message)])
    for array in frame.tensors.values():
        assert array.ctypes.data % 64 == 0
        assert np.shares_memory(array, raw)
        with pytest.raises(ValueError, match='read-only'):
            array[...] = 0
    frame.stamps[0] = 5
    assert not np.shares_memory(frame.stamps, raw)


def test_descriptor_is_decoded_once_for_a_steady_stream_and_anew_when_it_changes() -> None:
    decoder, encoder = wire.Decoder(), wire.Encoder()
    first, second = (decoder.frame(bytes(encoder.frame(make_frame(seq)))) for seq in (0, 1))
    assert first.symbols is second.symbols
    renamed = replace(make_frame(2), symbols=('x', 'y', 'z'), features_id='another')
    third = decoder.frame(bytes(encoder.frame(renamed)))
    assert (third.symbols, third.features_id) == (('x', 'y', 'z'), 'another')
    wider = make_frame(3, features=9)
    assert_same_frame(wider, decoder.frame(bytes(encoder.frame(wider))))


def test_encoded_message_does_not_change_with_the_frame_before_it() -> None:
    encoder = wire.Encoder()
    for seq in range(3):
        encoder.frame(make_frame(seq + 10))
        assert bytes(encoder.frame(make_frame(seq))) == wire.encode_frame(make_frame(seq))


def test_non_contiguous_tensors_are_sent_as_their_values() -> None:
    frame = make_frame(symbols=4, features=6)
    strided = {
        **frame.tensors,
        'features': frame.tensors['features'][:, ::2],
        'close': frame.tensors['close'][::-1],
    }
    got = wire.decode_frame(wire.encode_frame(replace(frame, tensors=strided)))
    np.testing.assert_array_equal(got.tensors['features'], strided['features'])
    np.testing.assert_array_equal(got.tensors['close'], strided['close'])


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'seq': -1}, 'seq -1'),
        ({'seq': 2**64}, 'out of range'),
        ({'epoch': -5}, 'epoch -5'),
        ({'event_time_ns': 2**63}, 'out of range'),
        ({'revision': 2**32}, 'revision 4294967296'),
        ({'symbols': ('a', 'b')}, 'first axis'),
        ({'symbols': ('a', 'b', 'a')}, 'doubled'),
        ({'tensors': {}}, 'features'),
    ],
)
def test_frame_that_does_not_fit_is_refused_by_the_sender(change: dict, expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        wire.encode_frame(replace(make_frame(), **change))


def test_wrong_dtype_is_refused_by_the_sender_and_a_good_frame_still_goes() -> None:
    frame, encoder = make_frame(), wire.Encoder()
    bad = {**frame.tensors, 'features': frame.tensors['features'].astype(np.float64)}
    with pytest.raises(WireError, match="tensor 'features': float64"):
        encoder.frame(replace(frame, tensors=bad))
    assert_same_frame(frame, wire.decode_frame(encoder.frame(frame)))


@pytest.mark.parametrize('symbols', [1, 3, 4, 5, 300])
@pytest.mark.parametrize('seen', [False, True])
def test_unknown_status_and_action_codes_are_refused_wherever_they_are(
    symbols: int, seen: bool
) -> None:
    decoder = wire.Decoder()
    for at in {0, symbols // 2, symbols - 1}:
        frame, decisions = make_frame(0, symbols), make_decisions(0, symbols)
        if seen:
            decoder.frame(wire.encode_frame(frame))
            decoder.decisions(wire.encode_decisions(decisions))
        frame.tensors['status'][at] = 5
        with pytest.raises(WireError, match='status: code 5 is unknown, the highest is 4'):
            decoder.frame(wire.encode_frame(frame))
        decisions.action[at] = 255
        with pytest.raises(WireError, match='action: code 255 is unknown, the highest is 3'):
            decoder.decisions(wire.encode_decisions(decisions))


@pytest.mark.parametrize('symbols', [1, 3, 700])
def test_decisions_come_back_bit_for_bit(symbols: int) -> None:
    encoder, decoder = wire.Encoder(), wire.Decoder()
    for seq in range(3):
        decisions = make_decisions(seq, symbols)
        assert_same_decisions(decisions, decoder.decisions(bytes(encoder.decisions(decisions))))


def test_one_kind_is_not_read_as_another() -> None:
    with pytest.raises(WireError, match=r'message type 1, expected 2 \(DECISIONS\)'):
        wire.decode_decisions(wire.encode_frame(make_frame()))


@given(U64, I64, I64, U64)
def test_request_comes_back(epoch: int, first: int, last: int, request_id: int) -> None:
    request = MissedRequest(epoch, first, last)
    assert wire.decode_request(wire.encode_request(request, request_id)) == (request, request_id)


@pytest.mark.parametrize('count', [0, 1, 7, 9])
def test_reply_comes_back_with_its_frames(count: int) -> None:
    frames_sent = [make_frame(seq, symbols=2 + seq % 2) for seq in range(count)]
    reply = MissedReply(8, 0, 20, 13, frames_sent)
    got, request_id = wire.Decoder().reply(wire.encode_reply(reply, 99))
    assert (got.epoch, got.oldest_seq, got.next_seq, got.first_open_seq, request_id) == (
        8,
        0,
        20,
        13,
        99,
    )
    assert len(got.frames) == count
    for sent, received in zip(frames_sent, got.frames, strict=True):
        assert_same_frame(sent, received)


def test_reply_leaves_out_what_does_not_fit_but_never_all() -> None:
    frames_sent = [make_frame(seq) for seq in range(9)]
    size = len(wire.encode_frame(frames_sent[0]))
    for limit, expected in ((1, 1), (3 * size, 3), (3 * size + 1, 3), (100 * size, 9)):
        data = wire.encode_reply(MissedReply(1, 0, 9, 0, frames_sent), 1, limit)
        assert [f.seq for f in wire.Decoder().reply(data)[0].frames] == list(range(expected))
