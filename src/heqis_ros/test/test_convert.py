# SPDX-License-Identifier: Apache-2.0
"""Core objects through messages and CDR bytes and back: no bit lost, no list made."""

from __future__ import annotations

import dataclasses
import time
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message

from heqis_core.bars import BAR_FIELDS, BarBlock
from heqis_core.decision import Action, Decisions, Predictions, Reason
from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES, FeatureFrame
from heqis_core.link import MissedReply, MissedRequest
from heqis_msgs import msg as m
from heqis_msgs.srv import MissedFrames
from heqis_ros import convert

UINT64 = st.integers(0, 2**64 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT32 = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=8)


def bits(draw, shape, dtype):
    """Return an array of random bits: every float pattern, payload NaNs included."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


def head(draw):
    return {
        'stream': draw(TEXT),
        'epoch': draw(UINT64),
        'seq': draw(UINT64),
        'event_time_ns': draw(INT64),
        'revision': draw(UINT32),
    }


def names(draw, most=5):
    return tuple(draw(st.lists(TEXT, max_size=most)))


@st.composite
def frames(draw):
    symbols = names(draw)
    n = len(symbols)
    width = draw(st.integers(0, 3))
    return FeatureFrame(
        **head(draw),
        features_id=draw(TEXT),
        symbols=symbols,
        tensors={
            'features': bits(draw, (n, width), np.float32),
            'status': bits(draw, (n,), np.uint8),
            'close': bits(draw, (n,), np.float64),
            'more': bits(draw, (n, 1, 2), draw(st.sampled_from(['i1', 'i2', 'u2', 'i8', 'f2']))),
        },
        stamps=bits(draw, (N_STAGES,), np.int64),
    )


@st.composite
def decisions(draw):
    symbols = names(draw)
    n = len(symbols)
    return Decisions(
        **head(draw),
        bundle_id=draw(TEXT),
        generator=draw(TEXT),
        symbols=symbols,
        action=bits(draw, (n,), np.uint8),
        reasons=bits(draw, (n,), np.uint32),
        score=bits(draw, (n,), np.float32),
        target_position=bits(draw, (n,), np.float32),
        probabilities=bits(draw, (n, 3), np.float32),
        predicted_return=bits(draw, (n,), np.float32),
        valid_until_ns=bits(draw, (n,), np.int64),
        stamps=bits(draw, (N_STAGES,), np.int64),
    )


@st.composite
def blocks(draw):
    symbols = names(draw)
    return BarBlock(
        event_time_ns=draw(INT64),
        symbols=symbols,
        values=bits(draw, (len(BAR_FIELDS), len(symbols)), np.float64),
        status=bits(draw, (len(symbols),), np.uint8),
        revision=draw(UINT32),
        ingest_ns=draw(INT64),
    )


@st.composite
def predictions(draw):
    symbols, generators = names(draw), names(draw, 2)
    shape = (len(generators), len(symbols))
    return Predictions(
        **head(draw),
        bundle_id=draw(TEXT),
        generators=generators,
        served=draw(TEXT),
        symbols=symbols,
        log_return=bits(draw, shape, np.float32),
        probabilities=bits(draw, (*shape, 3), np.float32),
    )


def same(one, other):
    """Fail unless every field is equal, arrays in dtype, shape and bits."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b)
        for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
            if isinstance(x, np.ndarray):
                assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field
            else:
                assert x == y, field


def over_dds(message):
    return deserialize_message(serialize_message(message), type(message))


@settings(deadline=None)
@given(frames())
def test_frames_come_back_bit_for_bit(frame):
    same(frame, convert.msg_to_frame(convert.frame_to_msg(frame)))
    same(frame, convert.msg_to_frame(over_dds(convert.frame_to_msg(frame))))


@settings(deadline=None)
@given(decisions())
def test_decisions_come_back_bit_for_bit(given_decisions):
    message = convert.decisions_to_msg(given_decisions)
    same(given_decisions, convert.msg_to_decisions(message))
    same(given_decisions, convert.msg_to_decisions(over_dds(message)))


@settings(deadline=None)
@given(blocks(), TEXT, UINT64, UINT64)
def test_bar_blocks_come_back_bit_for_bit(block, stream, epoch, seq):
    message = over_dds(convert.block_to_msg(block, stream, epoch, seq))
    assert (message.stream, message.epoch, message.seq) == (stream, epoch, seq)
    same(block, convert.msg_to_block(message))


@settings(deadline=None)
@given(predictions())
def test_predictions_come_back_bit_for_bit(given_predictions):
    message = over_dds(convert.predictions_to_msg(given_predictions))
    same(given_predictions, convert.msg_to_predictions(message))


@given(TEXT, UINT64, st.lists(UINT64, max_size=5))
def test_committed_comes_back(stream, epoch, seq):
    message = over_dds(convert.committed_to_msg(stream, epoch, seq))
    back_stream, back_epoch, back_seq = convert.msg_to_committed(message)
    assert (back_stream, back_epoch, back_seq.tolist()) == (stream, epoch, seq)
    assert back_seq.dtype == np.uint64


@settings(deadline=None, max_examples=20)
@given(UINT64, UINT64, UINT64, st.lists(frames(), max_size=2))
def test_missed_frames_go_both_ways(epoch, first, last, found):
    asked = MissedRequest(epoch, first, last)
    request = over_dds(convert.request_to_srv(asked, MissedFrames.Request()))
    assert convert.srv_to_request(request) == asked
    reply = MissedReply(epoch, first, last, first, found)
    back = convert.srv_to_reply(over_dds(convert.reply_to_srv(reply, MissedFrames.Response())))
    assert (back.epoch, back.oldest_seq, back.next_seq, back.first_open_seq) == (
        (epoch, first, last, first)
    )
    for one, other in zip(found, back.frames, strict=True):
        same(one, other)


@given(decisions())
def test_signals_are_the_buys_and_sells_in_order(given_decisions):
    message = over_dds(convert.signals_from(given_decisions))
    expected = [s for s, action in enumerate(given_decisions.action) if action >= Action.BUY]
    assert [signal.symbol for signal in message.signals] == [
        given_decisions.symbols[s] for s in expected
    ]
    for s, signal in zip(expected, message.signals, strict=True):
        assert signal.action == given_decisions.action[s]
        assert signal.reasons == given_decisions.reasons[s]
        assert signal.valid_until_ns == given_decisions.valid_until_ns[s]
        np.testing.assert_array_equal(np.float32(signal.score), given_decisions.score[s])
        np.testing.assert_array_equal(signal.probabilities, given_decisions.probabilities[s])
    assert (message.seq, message.epoch) == (given_decisions.seq, given_decisions.epoch)


def test_codes_of_core_and_messages_are_the_same():
    assert {a.name: a.value for a in Action} == {
        name: getattr(m.Decisions, name) for name in ('NONE', 'HOLD', 'BUY', 'SELL')
    }
    assert {r.name: int(r) for r in Reason} == {
        name: getattr(m.Decisions, f'REASON_{name}') for name in Reason.__members__
    }
    assert m.FeatureFrame.get_fields_and_field_types()['stamps'] == f'int64[{N_STAGES}]'


def small_frame(n=3):
    return FeatureFrame(
        'daily', 1, 2, 3, 0, 'ab', tuple(f's{i}' for i in range(n)),
        {'features': np.ones((n, 2), np.float32), 'status': np.ones(n, np.uint8)},
    )  # fmt: skip


def test_payloads_are_buffers_and_views():
    """No list on the way out, no copy on the way in."""
    message = convert.frame_to_msg(small_frame())
    assert all(type(tensor.data) is array for tensor in message.tensors)
    frame = convert.msg_to_frame(message)
    message.tensors[0].data[3] = 0x40
    assert frame.tensors['features'][0, 0] == 4.0


def test_symbols_of_a_stream_are_one_object():
    one = convert.msg_to_frame(convert.frame_to_msg(small_frame()))
    two = convert.msg_to_frame(over_dds(convert.frame_to_msg(small_frame())))
    assert one.symbols is two.symbols
    other = convert.msg_to_frame(convert.frame_to_msg(small_frame(2)))
    assert other.symbols == ('s0', 's1')


def test_strided_and_big_endian_arrays_are_written_as_little_endian_rows():
    values = np.arange(12, dtype='>f4').reshape(3, 4).T[::2]
    back = convert.msg_to_tensor(convert.tensor_to_msg('x', values))
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.dtype('<f4')


@pytest.mark.parametrize('dtype', ['c8', 'U3', 'datetime64[ns]', 'longdouble'])
def test_a_dtype_without_a_code_is_refused(dtype):
    with pytest.raises(WireError, match='tensor x: dtype'):
        convert.tensor_to_msg('x', np.zeros(2, dtype))


def broken(change):
    message = convert.frame_to_msg(small_frame())
    change(message)
    return message


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda msg: msg.tensors[0].data.pop(), 'Tensor features: 23 bytes do not make'),
        (lambda msg: setattr(msg.tensors[0], 'dtype_bits', 24), 'no dtype 2 of 24 bits'),
        (lambda msg: setattr(msg.tensors[0], 'dtype_code', 9), 'no dtype 9 of 32 bits'),
        (lambda msg: setattr(msg.tensors[0], 'shape', array('Q', [2**63, 2])), 'do not make'),
        (lambda msg: setattr(msg.tensors[0], 'shape', array('Q', [2, 3])), 'expected 3 rows'),
        (lambda msg: setattr(msg.tensors[0], 'shape', array('Q', [])), 'do not make'),
        (lambda msg: setattr(msg.tensors[1], 'name', 'features'), 'features is there twice'),
        (lambda msg: msg.symbols.append('x'), 'expected 4 rows'),
    ],
)
def test_a_frame_that_does_not_fit_together_is_refused(change, words):
    with pytest.raises(WireError, match=words):
        convert.msg_to_frame(broken(change))


def test_other_messages_that_do_not_fit_together_are_refused():
    n = 2
    whole = Decisions(
        's', 1, 2, 3, 0, 'b', 'g', ('a', 'b'), np.zeros(n, np.uint8), np.zeros(n, np.uint32),
        np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros((n, 3), np.float32),
        np.zeros(n, np.float32), np.zeros(n, np.int64),
    )  # fmt: skip
    message = convert.decisions_to_msg(whole)
    message.probabilities = array('f', [0.0] * 5)
    with pytest.raises(WireError, match=r'Decisions.probabilities: 5 elements do not'):
        convert.msg_to_decisions(message)
    block = BarBlock(1, ('a', 'b'), np.zeros((6, 2)), np.zeros(2, np.uint8))
    message = convert.block_to_msg(block, 's', 1, 2)
    message.values = convert.tensor_to_msg('values', np.zeros((6, 2), np.float32))
    with pytest.raises(WireError, match=r'BarBlock.values: float32 \(6, 2\), expected float64'):
        convert.msg_to_block(message)


def test_a_whole_market_is_converted_fast():
    """Printed for the record: against one copy of the same bytes, as a floor."""
    n = 5400
    frame = FeatureFrame(
        'daily', 1, 2, 3, 0, 'ab', tuple(f'{i:06d}.SZ' for i in range(n)),
        {
            'features': np.ones((n, 24), np.float32),
            'status': np.ones(n, np.uint8),
            'close': np.ones(n, np.float64),
        },
    )  # fmt: skip
    message = convert.frame_to_msg(frame)

    def best_us(call):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times) * 1e6

    floor = best_us(lambda: [values.copy() for values in frame.tensors.values()])
    there = best_us(lambda: convert.frame_to_msg(frame))
    back = best_us(lambda: convert.msg_to_frame(message))
    tensor, raw = m.Tensor(), frame.tensors['close'].view(np.uint8)
    setter = best_us(lambda: setattr(tensor, 'data', raw))
    buffer = best_us(lambda: setattr(tensor, 'data', convert.buffer_of(raw, 'u1')))
    print(
        f'5400 symbols: copy {floor:.0f} us, to message {there:.0f} us, back {back:.0f} us;'
        f' 43 kB into a field: as numpy {setter:.0f} us, as a buffer {buffer:.0f} us'
    )
    assert convert.msg_to_frame(message).symbols == frame.symbols
