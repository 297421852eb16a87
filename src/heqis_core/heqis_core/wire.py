# SPDX-License-Identifier: Apache-2.0
"""The messages of the link: frames, decisions, and the question for missed frames with its answer.

docs/wire-format.md gives every byte. Encoding writes tensors straight into one preallocated
buffer, decoding returns read-only views. The descriptor (names, symbols, dtypes, shapes, offsets)
changes only with the feature spec, so both sides build it once. The outer form is in
`heqis_core.envelope`; what carries the bytes is `heqis_core.io.zmq_link`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from heqis_core.bars import BarStatus
from heqis_core.checksum import compile_now
from heqis_core.decision import Action, Decisions
from heqis_core.envelope import (
    MAX_BODY,
    NO_LAYOUT,
    NO_STAMPS,
    Array,
    Buffer,
    Draft,
    Form,
    Layout,
    Message,
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
_OPTIONAL_TENSORS: Required = {'market': ('<u1', ())}
_DECISION_TENSORS: Required = {
    'action': ('<u1', ()),
    'reasons': ('<u4', ()),
    'score': ('<f4', ()),
    'target_position': ('<f4', ()),
    'probabilities': ('<f4', (3,)),
    'predicted_return': ('<f4', ()),
    'valid_until_ns': ('<i8', ()),
}
_DECISION_NAMES = tuple(_DECISION_TENSORS)


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
_encode = msgspec.msgpack.Encoder().encode
_DESCRIPTORS: dict[MessageType, Any] = {
    MessageType.FRAME: _FrameDescriptor,
    MessageType.DECISIONS: _DecisionsDescriptor,
}
_DECODERS = {kind: msgspec.msgpack.Decoder(form) for kind, form in _DESCRIPTORS.items()}
_FORMS = {
    MessageType.FRAME: Form(_FRAME_TENSORS, 'status', int(max(BarStatus)), _OPTIONAL_TENSORS),
    MessageType.DECISIONS: Form(_DECISION_TENSORS, 'action', int(max(Action)), {}),
}


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
        check_tensors(placed, symbols, length, _FORMS[kind])
        descriptor = _encode(_DESCRIPTORS[kind](*strings, symbols, placed))
        self.draft = draft = Draft(kind, descriptor, length, N_STAGES)
        self._symbols, self._strings, self._names = symbols, strings, tuple(tensors)
        self._columns = [
            (array.dtype, array.shape, draft.array(tensor))
            for array, tensor in zip(tensors.values(), placed, strict=True)
        ]
        self.fill(symbols, strings, self._names, tensors.values())

    def fill(
        self,
        symbols: tuple[str, ...],
        strings: tuple[str, ...],
        names: tuple[str, ...],
        arrays: Iterable[Array],
    ) -> bool:
        """Copy the values in; return False if they have another form than the draft."""
        # In a steady stream the symbols are the same object, so that one pointer is compared.
        if self._symbols != symbols or self._strings != strings or self._names != names:
            return False
        for (dtype, shape, target), source in zip(self._columns, arrays, strict=True):
            if source.dtype != dtype or source.shape != shape:
                return False
            target[...] = source
        return True


class Encoder:
    """Encodes frames and decisions, each into a buffer of its own; used by one thread at a time.

    A returned memoryview is read-only and good until the next call of the same method.
    """

    def __init__(self) -> None:
        """Start with nothing cached, and everything compiled."""
        compile_now()
        self._frame: _Cached | None = None
        self._decisions: _Cached | None = None

    def frame(self, frame: FeatureFrame) -> memoryview:
        """Encode a frame; raise WireError that names the tensor or field that does not fit."""
        symbols, tensors, strings = frame.symbols, frame.tensors, (frame.stream, frame.features_id)
        cached = self._frame
        if cached is None or not cached.fill(symbols, strings, tuple(tensors), tensors.values()):
            cached = self._frame = _Cached(MessageType.FRAME, symbols, strings, tensors)
        draft = cached.draft
        draft.stamps[...] = frame.stamps
        return draft.seal(frame.epoch, frame.seq, frame.event_time_ns, frame.revision)

    def decisions(self, decisions: Decisions) -> memoryview:
        """Encode decisions; raise WireError that names the column or field that does not fit."""
        symbols = decisions.symbols
        strings = decisions.stream, decisions.bundle_id, decisions.generator
        columns = (
            decisions.action,
            decisions.reasons,
            decisions.score,
            decisions.target_position,
            decisions.probabilities,
            decisions.predicted_return,
            decisions.valid_until_ns,
        )
        cached = self._decisions
        if cached is None or not cached.fill(symbols, strings, _DECISION_NAMES, columns):
            tensors: dict[str, Array] = dict(zip(_DECISION_NAMES, columns, strict=True))
            cached = self._decisions = _Cached(MessageType.DECISIONS, symbols, strings, tensors)
        draft = cached.draft
        draft.stamps[...] = decisions.stamps
        return draft.seal(
            decisions.epoch, decisions.seq, decisions.event_time_ns, decisions.revision
        )


class Decoder:
    """Decodes messages into views of the given buffer; used by one thread at a time.

    The arrays are read-only and keep the buffer alive; stamps are a writable copy. Every method
    raises WireError that names what is wrong, and nothing else, whatever the bytes are.
    """

    def __init__(self) -> None:
        """Start with nothing cached, and everything compiled."""
        compile_now()
        self._frame = self._decisions = NO_LAYOUT

    def frame(self, data: Buffer | Message) -> FeatureFrame:
        """Decode a FRAME message."""
        message = data if isinstance(data, Message) else Message(data)
        layout, epoch, seq, event_time_ns, revision = open_message(
            message, MessageType.FRAME, self._frame
        )
        if layout is not message.layout:
            self._frame = _arrange(message, layout, MessageType.FRAME, self._frame)
        stamps, message.stamps = message.stamps, NO_STAMPS
        stream, features_id = layout.strings
        return FeatureFrame(
            stream, epoch, seq, event_time_ns, revision, features_id, layout.symbols,
            message.tensors.copy(), stamps,
        )  # fmt: skip

    def decisions(self, data: Buffer | Message) -> Decisions:
        """Decode a DECISIONS message."""
        message = data if isinstance(data, Message) else Message(data)
        layout, epoch, seq, event_time_ns, revision = open_message(
            message, MessageType.DECISIONS, self._decisions
        )
        if layout is not message.layout:
            self._decisions = _arrange(message, layout, MessageType.DECISIONS, self._decisions)
        columns: tuple[Any, ...] = message.required
        action, reasons, score, target, probabilities, predicted, valid_until_ns = columns
        stamps, message.stamps = message.stamps, NO_STAMPS
        stream, bundle_id, generator = layout.strings
        return Decisions(
            stream, epoch, seq, event_time_ns, revision, bundle_id, generator, layout.symbols,
            action, reasons, score, target, probabilities, predicted, valid_until_ns,
            stamps,
        )  # fmt: skip

    def reply(self, data: Buffer) -> tuple[MissedReply, int]:
        """Decode a MISSED_REPLY message; return the reply and the id of its request."""
        message = Message(data)
        layout, epoch, request_id, _, _ = open_message(
            message, MessageType.MISSED_REPLY, NO_LAYOUT
        )
        body = message.view[layout.body :]
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
    message = Message(data)
    layout, epoch, request_id, _, _ = open_message(message, MessageType.MISSED_REQUEST, NO_LAYOUT)
    first, last = _unpack(_REQUEST, message.view[layout.body :])
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


def _arrange(message: Message, layout: Layout, kind: MessageType, known: Layout) -> Layout:
    """Make the arrays, and before that parse the descriptor unless it is known."""
    if layout is known:
        message.arrange(layout)
        return layout
    form = _FORMS[kind]
    try:
        descriptor: _Descriptor = _DECODERS[kind].decode(layout.descriptor)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise WireError(f'{kind.name} descriptor: {exc}') from exc
    layout.place(descriptor.strings, descriptor.symbols, descriptor.tensors, form)
    message.arrange(layout)
    sound, *_ = message.examine(layout)
    if not sound:
        highest = message.tensors[form.codes].max()
        raise WireError(f'{form.codes}: code {highest} is unknown, the highest is {form.highest}')
    return layout
