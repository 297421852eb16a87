# SPDX-License-Identifier: Apache-2.0
"""Core objects to messages and back; payloads move as buffers, never as Python lists.

To a message: one copy of the bytes into an `array.array`, the only type that rclpy's setters take
as it is. Back: numpy views of the message's buffers, which keep the message's memory alive. A
message whose parts do not fit together raises WireError that names the message and the field. Byte
order is little-endian, as in `Tensor.msg`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, BarBlock
from heqis_core.decision import Decisions, Predictions
from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES, FeatureFrame
from heqis_core.link import MissedReply, MissedRequest
from heqis_msgs import msg as m

Array = npt.NDArray[Any]

_KINDS = {
    'i': m.Tensor.KIND_INT,
    'u': m.Tensor.KIND_UINT,
    'f': m.Tensor.KIND_FLOAT,
    'b': m.Tensor.KIND_BOOL,
}
_DTYPES = {
    (code, bits): np.dtype(f'<{letter}{bits // 8}')
    for letter, code in _KINDS.items()
    for bits in ((8,) if letter == 'b' else (16, 32, 64) if letter == 'f' else (8, 16, 32, 64))
}
_TYPECODES = {'u1': 'B', 'u4': 'I', 'u8': 'Q', 'i8': 'q', 'f4': 'f'}

_symbols: dict[str, tuple[str, ...]] = {}


def buffer_of(values: Array, kind: str) -> array[Any]:
    """Return the elements in C order as an `array.array`; kind is u1, u4, u8, i8 or f4."""
    result = array(_TYPECODES[kind])
    result.frombytes(
        np.ascontiguousarray(values, dtype=f'<{kind}').reshape(-1).view(np.uint8).data
    )
    return result


# ---- tensors ------------------------------------------------------------------------------------


def tensor_to_msg(name: str, values: Array) -> m.Tensor:
    """Copy an array into a Tensor; raises WireError for a dtype that has no code there."""
    dtype = values.dtype.newbyteorder('<')
    code = _KINDS.get(dtype.kind)
    if code is None or (code, dtype.itemsize * 8) not in _DTYPES:
        raise WireError(
            f'tensor {name}: dtype {values.dtype} cannot be sent; use bool, int, uint or float'
        )
    result = m.Tensor()
    result.name = name
    result.dtype_code = code
    result.dtype_bits = dtype.itemsize * 8
    result.shape = array('Q', values.shape)
    data = array('B')
    data.frombytes(np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data)
    result.data = data
    return result


def msg_to_tensor(tensor: m.Tensor) -> Array:
    """Return a view of a Tensor's bytes; raises WireError if dtype, shape and length disagree."""
    dtype = _DTYPES.get((tensor.dtype_code, tensor.dtype_bits))
    if dtype is None:
        raise WireError(
            f'Tensor {tensor.name}: no dtype {tensor.dtype_code} of {tensor.dtype_bits} bits'
        )
    shape = tuple(tensor.shape)
    if math.prod(shape) * dtype.itemsize != len(tensor.data):
        raise WireError(
            f'Tensor {tensor.name}: {len(tensor.data)} bytes do not make {shape} of {dtype}'
        )
    if not len(tensor.data):  # frombuffer refuses an empty buffer
        return np.empty(shape, dtype)
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def _typed(kind: str, tensor: m.Tensor, dtype: type, shape: tuple[int, ...]) -> Array:
    values = msg_to_tensor(tensor)
    if values.dtype != dtype or values.shape != shape:
        raise WireError(
            f'{kind}.{tensor.name}: {values.dtype} {values.shape},'
            f' expected {np.dtype(dtype)} {shape}'
        )
    return values


def _column(message: Any, field: str, dtype: type, shape: tuple[int, ...]) -> Array:
    buffer = getattr(message, field)
    if len(buffer) != math.prod(shape):
        kind = type(message).__name__
        raise WireError(f'{kind}.{field}: {len(buffer)} elements do not make {shape}')
    return np.frombuffer(buffer, dtype).reshape(shape) if len(buffer) else np.empty(shape, dtype)


def _intern(stream: str, names: Sequence[str]) -> tuple[str, ...]:
    # The same tuple object for every message of a stream: later comparisons are one pointer, and
    # 5400 names of the last message can be freed.
    symbols = tuple(names)
    known = _symbols.get(stream)
    if known == symbols:
        return known
    if len(_symbols) >= 64:
        _symbols.clear()
    _symbols[stream] = symbols
    return symbols


def _head(target: Any, source: Any) -> None:
    target.stream = source.stream
    target.epoch = source.epoch
    target.seq = source.seq
    target.event_time_ns = source.event_time_ns
    target.revision = source.revision


def _stamps(values: Array) -> Array:
    return np.array(values, np.int64).reshape(N_STAGES)


# ---- bar blocks and frames ----------------------------------------------------------------------


def block_to_msg(block: BarBlock, stream: str, epoch: int, seq: int) -> m.BarBlock:
    """Copy a bar block into a message, with the position that the producer gives it."""
    result = m.BarBlock()
    result.stream, result.epoch, result.seq = stream, epoch, seq
    result.event_time_ns = block.event_time_ns
    result.revision = block.revision
    result.symbols = list(block.symbols)
    result.values = tensor_to_msg('values', block.values)
    result.status = tensor_to_msg('status', block.status)
    result.ingest_ns = block.ingest_ns
    if block.extra is not None:
        result.channels = list(block.channels)
        result.extra = tensor_to_msg('extra', block.extra)
    return result


def msg_to_block(message: m.BarBlock) -> BarBlock:
    """Return a bar block of views; stream, epoch and seq stay in the message. Raises WireError."""
    symbols = _intern(message.stream, message.symbols)
    channels = _intern(f'{message.stream} channels', message.channels)
    shape = len(channels), len(symbols)
    return BarBlock(
        event_time_ns=message.event_time_ns,
        symbols=symbols,
        values=_typed('BarBlock', message.values, np.float64, (len(BAR_FIELDS), len(symbols))),
        status=_typed('BarBlock', message.status, np.uint8, (len(symbols),)),
        revision=message.revision,
        ingest_ns=message.ingest_ns,
        channels=channels,
        extra=_typed('BarBlock', message.extra, np.float64, shape) if channels else None,
    )


def frame_to_msg(frame: FeatureFrame) -> m.FeatureFrame:
    """Copy a feature frame into a message; raises WireError for a tensor that cannot be sent."""
    result = m.FeatureFrame()
    _head(result, frame)
    result.features_id = frame.features_id
    result.symbols = list(frame.symbols)
    result.tensors = [tensor_to_msg(name, values) for name, values in frame.tensors.items()]
    result.stamps = _stamps(frame.stamps)
    return result


def msg_to_frame(message: m.FeatureFrame) -> FeatureFrame:
    """Return a feature frame of views and a copy of the stamps; raises WireError."""
    symbols = _intern(message.stream, message.symbols)
    tensors: dict[str, Array] = {}
    for tensor in message.tensors:
        values = msg_to_tensor(tensor)
        if values.shape[:1] != (len(symbols),):
            raise WireError(
                f'FeatureFrame.{tensor.name}: shape {values.shape}, expected {len(symbols)} rows'
            )
        if tensor.name in tensors:
            raise WireError(f'FeatureFrame: tensor {tensor.name} is there twice')
        tensors[tensor.name] = values
    return FeatureFrame(
        stream=message.stream,
        epoch=message.epoch,
        seq=message.seq,
        event_time_ns=message.event_time_ns,
        revision=message.revision,
        features_id=message.features_id,
        symbols=symbols,
        tensors=tensors,
        stamps=_stamps(message.stamps),
    )


def srv_to_request(request: Any) -> MissedRequest:
    """Return the request of the `missed_frames` service."""
    return MissedRequest(request.epoch, request.first_seq, request.last_seq)


def request_to_srv(asked: MissedRequest, request: Any) -> Any:
    """Fill a MissedFrames.Request and return it."""
    request.epoch, request.first_seq, request.last_seq = (
        asked.epoch,
        asked.first_seq,
        asked.last_seq,
    )
    return request


def reply_to_srv(reply: MissedReply, response: Any) -> Any:
    """Fill a MissedFrames.Response and return it."""
    response.epoch = reply.epoch
    response.oldest_seq = reply.oldest_seq
    response.next_seq = reply.next_seq
    response.first_open_seq = reply.first_open_seq
    response.frames = [frame_to_msg(frame) for frame in reply.frames]
    return response


def srv_to_reply(response: Any) -> MissedReply:
    """Return the reply in a MissedFrames.Response; raises WireError."""
    return MissedReply(
        response.epoch,
        response.oldest_seq,
        response.next_seq,
        response.first_open_seq,
        [msg_to_frame(frame) for frame in response.frames],
    )


# ---- predictions, decisions, signals ------------------------------------------------------------


def predictions_to_msg(predictions: Predictions) -> m.Predictions:
    """Copy predictions into a message."""
    result = m.Predictions()
    _head(result, predictions)
    result.bundle_id = predictions.bundle_id
    result.generators = list(predictions.generators)
    result.served = predictions.served
    result.symbols = list(predictions.symbols)
    result.log_return = tensor_to_msg('log_return', predictions.log_return)
    result.probabilities = tensor_to_msg('probabilities', predictions.probabilities)
    return result


def msg_to_predictions(message: m.Predictions) -> Predictions:
    """Return predictions of views; raises WireError."""
    symbols = _intern(message.stream, message.symbols)
    shape = (len(message.generators), len(symbols))
    return Predictions(
        stream=message.stream,
        epoch=message.epoch,
        seq=message.seq,
        event_time_ns=message.event_time_ns,
        revision=message.revision,
        bundle_id=message.bundle_id,
        generators=tuple(message.generators),
        served=message.served,
        symbols=symbols,
        log_return=_typed('Predictions', message.log_return, np.float32, shape),
        probabilities=_typed('Predictions', message.probabilities, np.float32, (*shape, 3)),
    )


def decisions_to_msg(decisions: Decisions) -> m.Decisions:
    """Copy the decisions of one frame into a message."""
    result = m.Decisions()
    _head(result, decisions)
    result.bundle_id = decisions.bundle_id
    result.generator = decisions.generator
    result.symbols = list(decisions.symbols)
    result.action = buffer_of(decisions.action, 'u1')
    result.reasons = buffer_of(decisions.reasons, 'u4')
    result.score = buffer_of(decisions.score, 'f4')
    result.target_position = buffer_of(decisions.target_position, 'f4')
    result.probabilities = buffer_of(decisions.probabilities, 'f4')
    result.predicted_return = buffer_of(decisions.predicted_return, 'f4')
    result.valid_until_ns = buffer_of(decisions.valid_until_ns, 'i8')
    result.stamps = _stamps(decisions.stamps)
    return result


def msg_to_decisions(message: m.Decisions) -> Decisions:
    """Return the decisions of one frame as views and a copy of the stamps; raises WireError."""
    symbols = _intern(message.stream, message.symbols)
    n = (len(symbols),)
    return Decisions(
        stream=message.stream,
        epoch=message.epoch,
        seq=message.seq,
        event_time_ns=message.event_time_ns,
        revision=message.revision,
        bundle_id=message.bundle_id,
        generator=message.generator,
        symbols=symbols,
        action=_column(message, 'action', np.uint8, n),
        reasons=_column(message, 'reasons', np.uint32, n),
        score=_column(message, 'score', np.float32, n),
        target_position=_column(message, 'target_position', np.float32, n),
        probabilities=_column(message, 'probabilities', np.float32, (*n, 3)),
        predicted_return=_column(message, 'predicted_return', np.float32, n),
        valid_until_ns=_column(message, 'valid_until_ns', np.int64, n),
        stamps=_stamps(message.stamps),
    )


def signals_from(decisions: Decisions) -> m.Signals:
    """Return the BUY and SELL decisions of one frame as a message; there may be none."""
    result = m.Signals()
    _head(result, decisions)
    result.bundle_id = decisions.bundle_id
    result.generator = decisions.generator
    result.signals = [_signal(decisions, int(s)) for s in np.flatnonzero(decisions.is_signal())]
    result.stamps = _stamps(decisions.stamps)
    return result


def _signal(decisions: Decisions, s: int) -> m.Signal:
    signal = m.Signal()
    signal.symbol = decisions.symbols[s]
    signal.action = int(decisions.action[s])
    signal.score = float(decisions.score[s])
    signal.target_position = float(decisions.target_position[s])
    signal.predicted_return = float(decisions.predicted_return[s])
    signal.probabilities = np.array(decisions.probabilities[s], np.float32)
    signal.reasons = int(decisions.reasons[s])
    signal.valid_until_ns = int(decisions.valid_until_ns[s])
    return signal


def committed_to_msg(stream: str, epoch: int, seq: Sequence[int] | Array) -> m.Committed:
    """Return the message that closes frames."""
    result = m.Committed()
    result.stream, result.epoch = stream, epoch
    result.seq = buffer_of(np.asarray(seq, np.uint64), 'u8')
    return result


def msg_to_committed(message: m.Committed) -> tuple[str, int, npt.NDArray[np.uint64]]:
    """Return stream, epoch and the closed frames' seq."""
    return message.stream, message.epoch, _column(message, 'seq', np.uint64, (len(message.seq),))
