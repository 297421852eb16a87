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

from heqis_core.bars import BarStatus
from heqis_core.decision import Action, Decisions
from heqis_core.envelope import (
    MAX_BODY,
    Array,
    Buffer,
    Draft,
    Layout,
    MessageType,
    Required,
    Tensor,
    check_tensors,
    open_message,
    padded,
    place,
)
from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES, FeatureFrame
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
_STATUS_CODES, _ACTION_CODES = bytes(BarStatus), bytes(Action)
_NOTHING = Layout()
_encode = msgspec.msgpack.Encoder().encode
_DESCRIPTORS: dict[MessageType, Any] = {
    MessageType.FRAME: _FrameDescriptor,
    MessageType.DECISIONS: _DecisionsDescriptor,
}
_DECODERS = {kind: msgspec.msgpack.Decoder(form) for kind, form in _DESCRIPTORS.items()}
_REQUIRED = {MessageType.FRAME: _FRAME_TENSORS, MessageType.DECISIONS: _DECISION_TENSORS}


class _Cached:
    """A draft, and what has to be the same for it to serve again."""

    def __init__(
        self,
        kind: MessageType,
        symbols: tuple[str, ...],
        strings: tuple[str, ...],
        tensors: Mapping[str, Array],
    ) -> None:
        placed, length = place(tensors)
        check_tensors(placed, symbols, length, _REQUIRED[kind])
        descriptor = _encode(_DESCRIPTORS[kind](*strings, symbols, placed))
        self.draft = Draft(kind, descriptor, length, N_STAGES).map(placed)
        self.symbols, self.strings, self.tensors = symbols, strings, _form(tensors)

    def fits(
        self, symbols: tuple[str, ...], strings: tuple[str, ...], tensors: Mapping[str, Array]
    ) -> bool:
        # In a steady stream the symbols are the same object, so that one pointer is compared.
        return (
            self.symbols == symbols and self.strings == strings and self.tensors == _form(tensors)
        )


class Encoder:
    """Encodes frames and decisions, each into a buffer of its own; used by one thread at a time.

    A returned memoryview is read-only and good until the next call of the same method.
    """

    def __init__(self) -> None:
        """Start with nothing cached."""
        self._frame: _Cached | None = None
        self._decisions: _Cached | None = None

    def frame(self, frame: FeatureFrame) -> memoryview:
        """Encode a frame; raise WireError that names the tensor or field that does not fit."""
        symbols, tensors, strings = frame.symbols, frame.tensors, (frame.stream, frame.features_id)
        cached = self._frame
        if cached is None or not cached.fits(symbols, strings, tensors):
            cached = self._frame = _Cached(MessageType.FRAME, symbols, strings, tensors)
        cached.draft.fill(tensors, frame.stamps)
        return cached.draft.seal(frame.epoch, frame.seq, frame.event_time_ns, frame.revision)

    def decisions(self, decisions: Decisions) -> memoryview:
        """Encode decisions; raise WireError that names the column or field that does not fit."""
        symbols = decisions.symbols
        strings = decisions.stream, decisions.bundle_id, decisions.generator
        tensors: dict[str, Array] = {name: getattr(decisions, name) for name in _DECISION_TENSORS}
        cached = self._decisions
        if cached is None or not cached.fits(symbols, strings, tensors):
            cached = self._decisions = _Cached(MessageType.DECISIONS, symbols, strings, tensors)
        cached.draft.fill(tensors, decisions.stamps)
        return cached.draft.seal(
            decisions.epoch, decisions.seq, decisions.event_time_ns, decisions.revision
        )


class Decoder:
    """Decodes messages into views of the given buffer; used by one thread at a time.

    The arrays are read-only and keep the buffer alive; stamps are a writable copy. Every method
    raises WireError that names what is wrong, and nothing else, whatever the bytes are.
    """

    def __init__(self) -> None:
        """Start with nothing cached."""
        self._frame = self._decisions = _NOTHING

    def frame(self, data: Buffer) -> FeatureFrame:
        """Decode a FRAME message."""
        view, layout, epoch, seq, event_time_ns, revision = open_message(
            data, MessageType.FRAME, self._frame
        )
        if layout is not self._frame:
            self._frame = _parse(layout, MessageType.FRAME)
        stamps, tensors = layout.read(view)
        _check_codes('status', tensors['status'], _STATUS_CODES)
        stream, features_id = layout.strings
        return FeatureFrame(
            stream,
            epoch,
            seq,
            event_time_ns,
            revision,
            features_id,
            layout.symbols,
            tensors,
            stamps,
        )

    def decisions(self, data: Buffer) -> Decisions:
        """Decode a DECISIONS message."""
        view, layout, epoch, seq, event_time_ns, revision = open_message(
            data, MessageType.DECISIONS, self._decisions
        )
        if layout is not self._decisions:
            self._decisions = _parse(layout, MessageType.DECISIONS)
        stamps, tensors = layout.read(view)
        _check_codes('action', tensors['action'], _ACTION_CODES)
        columns: dict[str, Any] = {name: tensors[name] for name in _DECISION_TENSORS}
        stream, bundle_id, generator = layout.strings
        return Decisions(
            stream, epoch, seq, event_time_ns, revision, bundle_id, generator, layout.symbols,
            **columns, stamps=stamps,
        )  # fmt: skip

    def reply(self, data: Buffer) -> tuple[MissedReply, int]:
        """Decode a MISSED_REPLY message; return the reply and the id of its request."""
        view, layout, epoch, request_id, _, _ = open_message(
            data, MessageType.MISSED_REPLY, _NOTHING
        )
        body = view[layout.body :]
        oldest, next_seq, first_open, n = _unpack(_REPLY, body)
        lengths = _unpack(struct.Struct(f'<{n}Q'), body[_REPLY.size :]) if n <= len(body) else ()
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
        return MissedReply(epoch, oldest, next_seq, first_open, frames), request_id


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
    view, layout, epoch, request_id, _, _ = open_message(
        data, MessageType.MISSED_REQUEST, _NOTHING
    )
    first, last = _unpack(_REQUEST, view[layout.body :])
    return MissedRequest(epoch, first, last), request_id


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


def _form(tensors: Mapping[str, Array]) -> list[object]:
    return [(name, array.dtype, array.shape) for name, array in tensors.items()]


def _pack(kind: MessageType, epoch: int, request_id: int, parts: list[bytes]) -> bytes:
    draft = Draft(kind, b'', sum(map(len, parts)), 0)
    start = draft.body
    for part in parts:
        draft.buffer[start : start + len(part)] = part
        start += len(part)
    return bytes(draft.seal(epoch, request_id))


def _unpack(form: struct.Struct, data: memoryview) -> tuple[int, ...]:
    if len(data) < form.size:
        raise WireError(f'body of {len(data)} B, expected at least {form.size}')
    return form.unpack_from(data)


def _parse(layout: Layout, kind: MessageType) -> Layout:
    try:
        descriptor: _Descriptor = _DECODERS[kind].decode(layout.descriptor)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise WireError(f'{kind.name} descriptor: {exc}') from exc
    layout.place(descriptor.strings, descriptor.symbols, descriptor.tensors, _REQUIRED[kind])
    return layout


def _check_codes(name: str, codes: Array, known: bytes) -> None:
    unknown = codes.tobytes().translate(None, known)
    if unknown:
        raise WireError(f'{name}: code {unknown[0]} is unknown, the highest is {known[-1]}')
