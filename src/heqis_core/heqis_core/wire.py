# SPDX-License-Identifier: Apache-2.0
"""The messages of the link: frames, decisions, and the question for missed frames with its answer.

docs/wire-format.md gives every byte. Encoding writes tensors straight into one preallocated
buffer, decoding returns read-only views. The descriptor (names, symbols, dtypes, shapes, offsets)
changes only with the feature spec, so both sides build it once. The outer form is in
`heqis_core.envelope`; what carries the bytes is `heqis_core.io.zmq_link`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from heqis_core.bars import BarStatus
from heqis_core.decision import Action, Decisions
from heqis_core.envelope import (
    MAX_BODY,
    Array,
    Block,
    Buffer,
    Draft,
    MessageType,
    Opened,
    Required,
    Tensor,
    check_tensors,
    open_message,
    padded,
    place,
)
from heqis_core.errors import WireError
from heqis_core.frame import FeatureFrame
from heqis_core.link import MissedReply, MissedRequest

_REQUEST = struct.Struct('<qq')
_REPLY = struct.Struct('<QQQQ')
_FRAME_TENSORS: Required = {
    'features': ('<f4', (None,)),
    'status': ('<u1', ()),
    'close': ('<f8', ()),
}
_DECISION_TENSORS: Required = {
    'action': ('<u1', ()),
    'reasons': ('<u4', ()),
    'score': ('<f4', ()),
    'target_position': ('<f4', ()),
    'probabilities': ('<f4', (3,)),
    'predicted_return': ('<f4', ()),
    'valid_until_ns': ('<i8', ()),
}


class _FrameDescriptor(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    stream: str
    features_id: str
    symbols: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def strings(self) -> tuple[str, ...]:
        return self.stream, self.features_id


class _DecisionsDescriptor(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    stream: str
    bundle_id: str
    generator: str
    symbols: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def strings(self) -> tuple[str, ...]:
        return self.stream, self.bundle_id, self.generator


_Descriptor = _FrameDescriptor | _DecisionsDescriptor
_NOTHING = Block()
_encode = msgspec.msgpack.Encoder().encode
_DECODERS: dict[MessageType, Any] = {
    MessageType.FRAME: msgspec.msgpack.Decoder(_FrameDescriptor),
    MessageType.DECISIONS: msgspec.msgpack.Decoder(_DecisionsDescriptor),
}
_REQUIRED = {MessageType.FRAME: _FRAME_TENSORS, MessageType.DECISIONS: _DECISION_TENSORS}


class Encoder:
    """Encodes frames and decisions, each into a buffer of its own; used by one thread at a time.

    A returned memoryview is read-only and good until the next call of the same method.
    """

    def __init__(self) -> None:
        """Start with nothing cached."""
        self._frame: tuple[tuple[object, ...], Draft] | None = None
        self._decisions: tuple[tuple[object, ...], Draft] | None = None

    def frame(self, frame: FeatureFrame) -> memoryview:
        """Encode a frame; raise WireError that names the tensor or field that does not fit."""
        tensors = frame.tensors
        key = (frame.symbols, frame.stream, frame.features_id, *_layout(tensors))
        if self._frame is None or self._frame[0] != key:
            placed, length = place(tensors)
            descriptor = _FrameDescriptor(frame.stream, frame.features_id, frame.symbols, placed)
            self._frame = key, _draft(MessageType.FRAME, descriptor, length)
        draft = self._frame[1]
        draft.fill(tensors, frame.stamps)
        return draft.seal(frame.epoch, frame.seq, frame.event_time_ns, frame.revision)

    def decisions(self, decisions: Decisions) -> memoryview:
        """Encode decisions; raise WireError that names the column or field that does not fit."""
        tensors: dict[str, Array] = {name: getattr(decisions, name) for name in _DECISION_TENSORS}
        strings = decisions.stream, decisions.bundle_id, decisions.generator
        key = (decisions.symbols, *strings, *_layout(tensors))
        if self._decisions is None or self._decisions[0] != key:
            placed, length = place(tensors)
            descriptor = _DecisionsDescriptor(*strings, decisions.symbols, placed)
            self._decisions = key, _draft(MessageType.DECISIONS, descriptor, length)
        draft = self._decisions[1]
        draft.fill(tensors, decisions.stamps)
        return draft.seal(
            decisions.epoch, decisions.seq, decisions.event_time_ns, decisions.revision
        )


class Decoder:
    """Decodes messages into views of the given buffer; used by one thread at a time.

    The arrays are read-only and keep the buffer alive; stamps are a writable copy. Every method
    raises WireError that names what is wrong, and nothing else, whatever the bytes are.
    """

    def __init__(self) -> None:
        """Start with nothing cached."""
        self._known = {MessageType.FRAME: _NOTHING, MessageType.DECISIONS: _NOTHING}

    def frame(self, data: Buffer) -> FeatureFrame:
        """Decode a FRAME message."""
        message = self._open(data, MessageType.FRAME)
        stamps, tensors = message.tensors()
        _check_codes('status', tensors['status'], len(BarStatus))
        stream, features_id = message.block.strings
        return FeatureFrame(
            stream, message.epoch, message.seq, message.event_time_ns, message.revision,
            features_id, message.block.symbols, tensors, stamps,
        )  # fmt: skip

    def decisions(self, data: Buffer) -> Decisions:
        """Decode a DECISIONS message."""
        message = self._open(data, MessageType.DECISIONS)
        stamps, tensors = message.tensors()
        _check_codes('action', tensors['action'], len(Action))
        columns: dict[str, Any] = {name: tensors[name] for name in _DECISION_TENSORS}
        stream, bundle_id, generator = message.block.strings
        return Decisions(
            stream, message.epoch, message.seq, message.event_time_ns, message.revision, bundle_id,
            generator, message.block.symbols, **columns, stamps=stamps,
        )  # fmt: skip

    def reply(self, data: Buffer) -> tuple[MissedReply, int]:
        """Decode a MISSED_REPLY message; return the reply and the id of its request."""
        message = open_message(data, MessageType.MISSED_REPLY, _NOTHING)
        oldest, next_seq, first_open, n = _REPLY.unpack_from(message.content(_REPLY.size))
        body = message.content(_REPLY.size + 8 * n)
        lengths = struct.unpack_from(f'<{n}Q', body, _REPLY.size)
        start, frames = padded(_REPLY.size + 8 * n), []
        if start + sum(lengths) != len(body):
            raise WireError(
                f'MISSED_REPLY: {n} frames of {sum(lengths)} B in a body of {len(body)} B'
            )
        for index, length in enumerate(lengths):
            try:
                frames.append(self.frame(body[start : start + length]))
            except WireError as exc:
                raise WireError(f'MISSED_REPLY: frame {index} of {n}: {exc}') from exc
            start += length
        return MissedReply(message.epoch, oldest, next_seq, first_open, frames), message.seq

    def _open(self, data: Buffer, kind: MessageType) -> Opened:
        known = self._known[kind]
        message = open_message(data, kind, known)
        if message.block is not known:
            _parse(message, kind)
            self._known[kind] = message.block
        return message


def encode_frame(frame: FeatureFrame) -> bytes:
    """Encode one frame on its own; an `Encoder` is faster for many. Raises WireError."""
    return bytes(Encoder().frame(frame))


def decode_frame(data: Buffer) -> FeatureFrame:
    """Decode one frame on its own; a `Decoder` is faster for many. Raises WireError."""
    return Decoder().frame(data)


def encode_decisions(decisions: Decisions) -> bytes:
    """Encode decisions on their own; an `Encoder` is faster for many. Raises WireError."""
    return bytes(Encoder().decisions(decisions))


def decode_decisions(data: Buffer) -> Decisions:
    """Decode decisions on their own; a `Decoder` is faster for many. Raises WireError."""
    return Decoder().decisions(data)


def encode_request(request: MissedRequest, request_id: int) -> bytes:
    """Encode a request; its reply carries the same `request_id` (uint64). Raises WireError."""
    try:
        body = _REQUEST.pack(request.first_seq, request.last_seq)
    except struct.error as exc:
        raise WireError(
            f'MISSED_REQUEST: seq {request.first_seq} or {request.last_seq} is out of range'
        ) from exc
    return _pack(MessageType.MISSED_REQUEST, request.epoch, request_id, [body])


def decode_request(data: Buffer) -> tuple[MissedRequest, int]:
    """Decode a request for missed frames and its id. Raises WireError."""
    message = open_message(data, MessageType.MISSED_REQUEST, _NOTHING)
    first, last = _REQUEST.unpack_from(message.content(_REQUEST.size))
    return MissedRequest(message.epoch, first, last), message.seq


def encode_reply(reply: MissedReply, request_id: int, max_bytes: int = MAX_BODY // 2) -> bytes:
    """Encode a reply with as many of its frames, in order, as fit into `max_bytes` (at least one).

    Raises WireError that names the frame or field that does not fit the format.
    """
    encoder, total = Encoder(), 0
    frames: list[bytes] = []
    for frame in reply.frames:
        encoded = bytes(encoder.frame(frame))
        total += len(encoded)
        if frames and total > max_bytes:
            break
        frames.append(encoded)
    lengths = [len(encoded) for encoded in frames]
    try:
        head = _REPLY.pack(reply.oldest_seq, reply.next_seq, reply.first_open_seq, len(frames))
    except struct.error as exc:
        raise WireError(
            f'MISSED_REPLY: oldest, next or first open seq is out of range: {exc}'
        ) from exc
    head += struct.pack(f'<{len(lengths)}Q', *lengths)
    return _pack(
        MessageType.MISSED_REPLY,
        reply.epoch,
        request_id,
        [head.ljust(padded(len(head)), b'\0'), *frames],
    )


def _layout(tensors: Mapping[str, Array]) -> list[object]:
    return [part for name, array in tensors.items() for part in (name, array.dtype, array.shape)]


def _draft(kind: MessageType, descriptor: _Descriptor, body_length: int) -> Draft:
    check_tensors(descriptor.tensors, descriptor.symbols, body_length, _REQUIRED[kind])
    return Draft(kind, _encode(descriptor), body_length).map(descriptor.tensors)


def _pack(kind: MessageType, epoch: int, request_id: int, parts: list[bytes]) -> bytes:
    draft = Draft(kind, b'', sum(map(len, parts)))
    start = draft.body
    for part in parts:
        draft.buffer[start : start + len(part)] = part
        start += len(part)
    return bytes(draft.seal(epoch, request_id))


def _parse(message: Opened, kind: MessageType) -> None:
    try:
        descriptor: _Descriptor = _DECODERS[kind].decode(message.descriptor())
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise WireError(f'{kind.name} descriptor: {exc}') from exc
    block = message.block
    check_tensors(descriptor.tensors, descriptor.symbols, block.body_length, _REQUIRED[kind])
    block.strings = descriptor.strings
    block.symbols = descriptor.symbols
    block.plan = tuple((t.name, t.shape, t.dtype, t.offset) for t in descriptor.tensors)


def _check_codes(name: str, codes: Array, limit: int) -> None:
    if int(np.maximum.reduce(codes)) >= limit:
        raise WireError(f'{name}: code {int(codes.max())} is unknown, the highest is {limit - 1}')
