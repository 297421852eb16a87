# SPDX-License-Identifier: Apache-2.0
"""The outer form of every link message: prologue, check, descriptor, placing of tensors.

What the messages mean (frames, decisions, requests) lives in `heqis_core.wire`;
docs/wire-format.md gives every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from sys import getrefcount
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.checksum import Words, examine, is_sound, seal
from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
Array = npt.NDArray[np.generic]
Required = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Tensors that must be there: dtype, and shape after the first axis (None = any length)."""

MAGIC = b'HEQS'
VERSION = 2
ALIGN = 64
"""Bytes: size of the prologue, and alignment of the body and of each tensor."""
MAX_DESCRIPTOR = 1 << 24
MAX_BODY = 1 << 30
MAX_TENSORS = 64
MAX_RANK = 8

_PROLOGUE = struct.Struct('<4s4x16sQQqI')
_HEAD = struct.Struct('<BBHIII')
_HEAD_AT = 8
_FIELDS = struct.Struct('<QQqI')
_FIELDS_AT = 24
_WORD = np.dtype('<u4')
_STAMP = np.dtype('<i8')
_KINDS = {'i': 0, 'u': 1, 'f': 2, 'b': 6}
_DTYPES: dict[tuple[int, int], np.dtype[np.generic]] = {
    (_KINDS[dtype.kind], dtype.itemsize * 8): dtype
    for dtype in map(
        np.dtype,
        ('<i1', '<i2', '<i4', '<i8', '<u1', '<u2', '<u4', '<u8', '<f2', '<f4', '<f8', '?'),
    )
}


class MessageType(IntEnum):
    """What a message is (uint8 at offset 5)."""

    FRAME = 1
    DECISIONS = 2
    MISSED_REQUEST = 3
    MISSED_REPLY = 4


class Tensor(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One entry of a descriptor's tensor list; `offset` counts from the start of the body."""

    name: str
    code: int
    bits: int
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Return the little-endian dtype; raise WireError if the code is unknown."""
        try:
            return _DTYPES[self.code, self.bits]
        except KeyError:
            raise WireError(
                f'tensor {self.name!r}: dtype code {self.code} with {self.bits} bits is unknown'
            ) from None

    @property
    def nbytes(self) -> int:
        """Return the size of the data; exact for any shape, however absurd."""
        total = self.bits // 8
        for length in self.shape:
            total *= length
        return total


def padded(length: int) -> int:
    """Return `length` rounded up to the alignment."""
    return -(-length // ALIGN) * ALIGN


STAMP_BYTES = padded(N_STAGES * _STAMP.itemsize)


def place(tensors: Mapping[str, Array]) -> tuple[tuple[Tensor, ...], int]:
    """Give each tensor an aligned offset behind the stamps; return entries and body length."""
    entries, offset = [], STAMP_BYTES
    for name, array in tensors.items():
        code = _KINDS.get(array.dtype.kind)
        if code is None or (code, array.dtype.itemsize * 8) not in _DTYPES:
            raise WireError(
                f'tensor {name!r}: dtype {array.dtype} cannot be sent; use an int, uint, float '
                f'or bool'
            )
        entry = Tensor(name, code, array.dtype.itemsize * 8, array.shape, offset)
        entries.append(entry)
        offset += padded(entry.nbytes)
    return tuple(entries), offset


def check_tensors(
    tensors: Sequence[Tensor], symbols: Sequence[str], body_length: int, form: Form
) -> None:
    """Raise WireError unless all tensors lie in the body and those of the form are as expected."""
    required = form.required
    n = len(symbols)
    if n == 0 or len(set(symbols)) != n or '' in symbols:
        raise WireError(
            f'symbols: {n} names, some empty or doubled; expected at least one and each once'
        )
    if len(tensors) > MAX_TENSORS:
        raise WireError(f'tensors: {len(tensors)} entries, allowed are {MAX_TENSORS}')
    end = STAMP_BYTES
    for t in tensors:
        dtype, expected = t.dtype, required.get(t.name) or form.optional.get(t.name)
        if not 1 <= len(t.shape) <= MAX_RANK or t.shape[0] != n or min(t.shape) < 1:
            raise WireError(
                f'tensor {t.name!r}: shape {t.shape}, expected {n} (symbols) as its first axis, '
                f'none empty'
            )
        if expected and (
            dtype != np.dtype(expected[0]) or not _shape_fits(t.shape[1:], expected[1])
        ):
            raise WireError(
                f'tensor {t.name!r}: {dtype} {t.shape}, expected {np.dtype(expected[0])} ({n}, '
                f'*{expected[1]})'
            )
        if t.offset < end or t.offset % ALIGN or t.offset + t.nbytes > body_length:
            raise WireError(
                f'tensor {t.name!r}: {t.nbytes} B at offset {t.offset} do not fit between {end} '
                f'and {body_length}'
            )
        end = t.offset + t.nbytes
    names = [t.name for t in tensors]
    missing = [name for name in required if name not in names]
    if missing or len(set(names)) != len(names):
        raise WireError(f'tensors: {names}, expected each once and all of {list(required)}')


def _shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (None, have) for have, want in zip(shape, expected, strict=True)
    )


class Draft:
    """One preallocated message with views of its parts, for as long as its descriptor holds."""

    def __init__(
        self, kind: MessageType, descriptor: bytes, body_length: int, n_stamps: int
    ) -> None:
        """Lay the message out; raise WireError if it is larger than the format allows."""
        if len(descriptor) > MAX_DESCRIPTOR or body_length > MAX_BODY:
            raise WireError(
                f'{kind.name}: descriptor of {len(descriptor)} B and body of {body_length} B, '
                f'allowed are {MAX_DESCRIPTOR} and {MAX_BODY}; send less in one message'
            )
        body_length = padded(body_length)
        self.kind = kind
        self.body = ALIGN + padded(len(descriptor))
        self.buffer = bytearray(self.body + body_length)
        self.buffer[: len(MAGIC)] = MAGIC
        _HEAD.pack_into(
            self.buffer, _HEAD_AT, VERSION, kind, 0, len(descriptor), body_length, n_stamps
        )
        self.buffer[ALIGN : ALIGN + len(descriptor)] = descriptor
        self.view = memoryview(self.buffer).toreadonly()
        self.stamps: npt.NDArray[np.int64] = np.ndarray(
            (n_stamps,), _STAMP, self.buffer, self.body
        )
        self._words: npt.NDArray[np.uint32] = np.frombuffer(self.buffer, _WORD)

    def array(self, tensor: Tensor) -> Array:
        """Return a writable view of where one tensor lies."""
        return np.ndarray(tensor.shape, tensor.dtype, self.buffer, self.body + tensor.offset)

    def seal(self, epoch: int, seq: int, event_time_ns: int = 0, revision: int = 0) -> memoryview:
        """Write prologue and check; return the message, read-only until it is written again."""
        try:
            _FIELDS.pack_into(self.buffer, _FIELDS_AT, epoch, seq, event_time_ns, revision)
        except struct.error as exc:
            raise WireError(
                f'{self.kind.name}: epoch {epoch}, seq {seq}, event_time_ns {event_time_ns} or '
                f'revision {revision} is out of range ({exc})'
            ) from exc
        seal(self._words)
        return self.view


class Form(NamedTuple):
    """What the messages of one type have: tensors, and which one of them holds codes."""

    required: Required
    codes: str
    highest: int
    optional: Required


class Layout:
    """Where all lies in messages that begin like this one.

    Attributes:
        size: bytes of the message.
        body: where its body begins.
        n_stamps: number of stage stamps.
        descriptor: msgpack.
        beginning: uint32, prologue and descriptor block.
        strings, symbols: what the descriptor says.
        plan: name, shape, dtype and place in the message of each tensor.
        required: names of those that this type must have, in their fixed order.
        codes: place, number and greatest value of the codes.
    """

    __slots__ = (
        'beginning', 'body', 'codes', 'descriptor', 'n_stamps', 'plan', 'required', 'size',
        'strings', 'symbols',
    )  # fmt: skip

    def __init__(
        self, size: int, body: int, n_stamps: int, beginning: bytes, descriptor_length: int
    ) -> None:
        """Take what the prologue says; `place` takes the rest."""
        self.size, self.body, self.n_stamps = size, body, n_stamps
        self.descriptor = beginning[ALIGN : ALIGN + descriptor_length]
        self.beginning: Words = np.frombuffer(beginning, _WORD)
        self.strings: tuple[str, ...] = ()
        self.symbols: tuple[str, ...] = ()
        self.plan: tuple[tuple[str, tuple[int, ...], np.dtype[np.generic], int], ...] = ()
        self.required: tuple[str, ...] = ()
        self.codes = (0, 0, 0)

    def place(
        self,
        strings: tuple[str, ...],
        symbols: tuple[str, ...],
        tensors: Sequence[Tensor],
        form: Form,
    ) -> None:
        """Check what the descriptor says and note where the tensors lie. Raises WireError."""
        if self.n_stamps != N_STAGES:
            raise WireError(f'{self.n_stamps} stage stamps, expected {N_STAGES}')
        check_tensors(tensors, symbols, self.size - self.body, form)
        self.strings, self.symbols, self.required = strings, symbols, tuple(form.required)
        self.plan = tuple((t.name, t.shape, t.dtype, self.body + t.offset) for t in tensors)
        places = {name: at for name, _, _, at in self.plan}
        self.codes = places[form.codes], len(symbols), form.highest


NO_LAYOUT = Layout(-1, ALIGN, 0, b'', 0)
"""That of no message, not even an empty one."""
NO_STAMPS: npt.NDArray[np.int64] = np.zeros(0, np.int64)


class Message:
    """The bytes of one message, and the arrays over them under one layout.

    Memory that messages are received into again and again keeps its `Message`: in a steady stream
    the arrays are made once, and are there before the next message comes.

    Attributes:
        view, size: the bytes, read-only, and their number.
        layout: what `arrange` was given; one of nothing before that.
        tensors: by name, read-only.
        required: those that `layout.required` names.
        stamps: int64 (N_STAGES,); whoever takes them leaves `NO_STAMPS` behind.
    """

    __slots__ = (
        '_arrays', '_idle', '_memory', '_words',
        'layout', 'required', 'size', 'stamps', 'tensors', 'view',
    )  # fmt: skip

    def __init__(self, data: Buffer, memory: npt.NDArray[np.uint8] | None = None) -> None:
        """Take a message; `memory` is the array that owns its bytes, if they are to be reused.

        Raises WireError if the data are not one contiguous run of bytes.
        """
        self._memory, self.stamps = memory, NO_STAMPS
        self.show(_as_bytes(data))

    def get_ready(self) -> None:
        """Make what the next message needs, before it comes."""
        if self.stamps is NO_STAMPS:
            self.stamps = np.empty(N_STAGES, np.int64)

    def show(self, view: memoryview) -> None:
        """Take other bytes, of which nothing is known."""
        self.view, self.size = view, len(view)
        self._words: Words = np.ndarray((self.size // _WORD.itemsize,), _WORD, view)
        self._keep(NO_LAYOUT, {})

    def arrange(self, layout: Layout) -> None:
        """Make the arrays that a layout, which was checked against the size, speaks of."""
        view = self.view
        self._keep(
            layout,
            {name: np.ndarray(shape, dtype, view, at) for name, shape, dtype, at in layout.plan},
        )

    def _keep(self, layout: Layout, tensors: dict[str, Array]) -> None:
        self.layout, self.tensors = layout, tensors
        self.required = tuple(tensors[name] for name in layout.required)
        self._arrays = tuple(tensors.values())
        self._idle = self._references()

    def examine(self, known: Layout) -> tuple[bool, int, int, int, int]:
        """Take the stamps; return whether all is as `known` says, and the prologue's fields.

        These are epoch, seq, event_time_ns and revision. The size must be that of `known`.
        """
        self.get_ready()
        at, n, highest = known.codes
        found: tuple[bool, int, int, int, int] = examine(
            self._words, known.beginning, at, n, highest, self.stamps
        )
        return found

    def is_sound(self) -> bool:
        """Return whether the check fits; the size must be a multiple of the alignment."""
        return is_sound(self._words)

    def held(self) -> bool:
        """Return whether somebody still has one of the arrays, or a view of one."""
        return bool(self._arrays) and self._references() > self._idle

    def _references(self) -> int:
        # Arrays that were handed out are referred to themselves; a view of one, the memory is.
        return sum(map(getrefcount, self._arrays), getrefcount(self._memory))


def open_message(
    message: Message, kind: MessageType, known: Layout
) -> tuple[Layout, int, int, int, int]:
    """Check what holds for any message: size, magic, version, type, lengths and the check.

    `known` is the layout of the last message of this type; it is returned itself when head,
    descriptor and codes are as it says, so that a steady stream costs one call.

    Returns the layout, epoch, seq, event_time_ns and revision.
    Raises WireError that names what is wrong. Nothing is allocated but a copy of the descriptor.
    """
    if message.size == known.size:
        same, epoch, seq, event_time_ns, revision = message.examine(known)
        if same:
            return known, epoch, seq, event_time_ns, revision
    view = message.view
    if message.size < ALIGN:
        raise WireError(f'truncated: {message.size} B, a prologue alone has {ALIGN}')
    magic, head, epoch, seq, event_time_ns, revision = _PROLOGUE.unpack_from(view)
    if magic != MAGIC:
        raise WireError(f'magic {magic!r}, expected {MAGIC!r}: not a HEQIS message')
    layout = _read_head(view, head, kind)
    if not message.is_sound():
        raise WireError('the checksum does not match: the message was altered')
    return layout, epoch, seq, event_time_ns, revision


def _read_head(view: memoryview, head: bytes, kind: MessageType) -> Layout:
    version, code, flags, descriptor_length, body_length, n_stamps = _HEAD.unpack(head)
    if version != VERSION:
        raise WireError(
            f'version {version}, this program reads {VERSION}: run the same release on both boards'
        )
    if code != kind:
        raise WireError(f'message type {code}, expected {kind.value} ({kind.name})')
    if flags:
        raise WireError(f'flags {flags}, expected 0')
    if descriptor_length > MAX_DESCRIPTOR or body_length > MAX_BODY or body_length % ALIGN:
        raise WireError(
            f'descriptor of {descriptor_length} B and body of {body_length} B: impossible lengths'
        )
    body = ALIGN + padded(descriptor_length)
    if body + body_length != len(view):
        raise WireError(
            f'{len(view)} B, but the prologue says {body + body_length}: truncated or overlong'
        )
    return Layout(len(view), body, n_stamps, bytes(view[:body]), descriptor_length)


def _as_bytes(data: Buffer) -> memoryview:
    view: memoryview = memoryview(data)  # type: ignore[arg-type,unused-ignore]
    if view.format != 'B' or view.ndim != 1 or not view.c_contiguous:
        try:
            view = view.cast('B')
        except TypeError as exc:
            raise WireError(f'not one contiguous run of bytes: {exc}') from exc
    return view if view.readonly else view.toreadonly()
