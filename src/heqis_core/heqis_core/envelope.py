# SPDX-License-Identifier: Apache-2.0
"""The outer form of every link message: prologue, checksums, descriptor, placing of tensors.

What the messages mean (frames, decisions, requests) lives in `heqis_core.wire`;
docs/wire-format.md gives every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.errors import WireError
from heqis_core.frame import N_STAGES

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
Array = npt.NDArray[np.generic]
Required = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Tensors that must be there: dtype, and shape after the first axis (None = any length)."""

MAGIC = b'HEQS'
VERSION = 1
ALIGN = 64
"""Bytes: size of the prologue, and alignment of the body and of each tensor."""
MAX_DESCRIPTOR = 1 << 24
MAX_BODY = 1 << 30
MAX_TENSORS = 64
MAX_RANK = 8

_PROLOGUE = struct.Struct('<4sI16sQQqI4xQ')
_HEAD = struct.Struct('<BBHIII')
_CRC = struct.Struct('<I')
_CRC_AT, _CRC_OF, _CRC_END = 4, 8, 16384
_WORD = np.dtype('<u8')
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
    tensors: Sequence[Tensor], symbols: Sequence[str], body_length: int, required: Required
) -> None:
    """Raise WireError unless all tensors lie in the body and the required ones are as expected."""
    n = len(symbols)
    if n == 0 or len(set(symbols)) != n or '' in symbols:
        raise WireError(
            f'symbols: {n} names, some empty or doubled; expected at least one and each once'
        )
    if len(tensors) > MAX_TENSORS:
        raise WireError(f'tensors: {len(tensors)} entries, allowed are {MAX_TENSORS}')
    end = STAMP_BYTES
    for t in tensors:
        dtype, expected = t.dtype, required.get(t.name)
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
        self.buffer[ALIGN : ALIGN + len(descriptor)] = descriptor
        self.view = memoryview(self.buffer).toreadonly()
        self._tensors: list[Array] = []
        self._head = _HEAD.pack(VERSION, kind, 0, len(descriptor), body_length, n_stamps)
        self._stamps: npt.NDArray[np.int64] = np.ndarray(
            (n_stamps,), _STAMP, self.buffer, self.body
        )

    def map(self, tensors: Sequence[Tensor]) -> Draft:
        """Make a writable view of each tensor."""
        self._tensors = [
            np.ndarray(t.shape, t.dtype, self.buffer, self.body + t.offset) for t in tensors
        ]
        return self

    def fill(self, tensors: Mapping[str, Array], stamps: npt.NDArray[np.int64]) -> None:
        """Copy the values in, in the order of `map`."""
        for target, source in zip(self._tensors, tensors.values(), strict=True):
            target[...] = source
        self._stamps[...] = stamps

    def seal(self, epoch: int, seq: int, event_time_ns: int = 0, revision: int = 0) -> memoryview:
        """Write prologue and checksums; return the message, read-only until the next `fill`."""
        tail_sum = _tail_sum(self.view)
        try:
            _PROLOGUE.pack_into(
                self.buffer,
                0,
                MAGIC,
                0,
                self._head,
                epoch,
                seq,
                event_time_ns,
                revision,
                tail_sum,
            )
        except struct.error as exc:
            raise WireError(
                f'{self.kind.name}: epoch {epoch}, seq {seq}, event_time_ns {event_time_ns} or '
                f'revision {revision} is out of range ({exc})'
            ) from exc
        _CRC.pack_into(self.buffer, _CRC_AT, crc32(self.view[_CRC_OF:_CRC_END]))
        return self.view


@dataclass(slots=True)
class Layout:
    """Where all lies in messages that begin with `head` and carry the descriptor `block`."""

    head: bytes = b''
    size: int = 0
    body: int = ALIGN
    n_stamps: int = 0
    block: bytes = b''
    descriptor: bytes = b''
    strings: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    plan: tuple[tuple[str, tuple[int, ...], np.dtype[np.generic], int], ...] = ()

    def place(
        self,
        strings: tuple[str, ...],
        symbols: tuple[str, ...],
        tensors: Sequence[Tensor],
        required: Required,
    ) -> None:
        """Check what the descriptor says and note where the tensors lie. Raises WireError."""
        if self.n_stamps != N_STAGES:
            raise WireError(f'{self.n_stamps} stage stamps, expected {N_STAGES}')
        check_tensors(tensors, symbols, self.size - self.body, required)
        self.strings, self.symbols = strings, symbols
        self.plan = tuple((t.name, t.shape, t.dtype, self.body + t.offset) for t in tensors)

    def read(self, view: memoryview) -> tuple[npt.NDArray[np.int64], dict[str, Array]]:
        """Return a writable copy of the stamps, and read-only views of the tensors."""
        stamps: npt.NDArray[np.int64] = np.ndarray((N_STAGES,), _STAMP, view, self.body)
        return stamps.copy(), {
            name: np.ndarray(shape, dtype, view, at) for name, shape, dtype, at in self.plan
        }


def open_message(
    data: Buffer, kind: MessageType, known: Layout
) -> tuple[memoryview, Layout, int, int, int, int]:
    """Check what holds for any message: size, magic, version, type, lengths and the checksums.

    `known` is the layout of the last message of this type; it is returned itself when head and
    descriptor are the same again, so that a steady stream costs two comparisons and two checksums.

    Returns the message as a read-only view, its layout, epoch, seq, event_time_ns and revision.
    Raises WireError that names what is wrong. Nothing is allocated but a copy of the descriptor.
    """
    view = _as_bytes(data)
    size = len(view)
    if size < ALIGN:
        raise WireError(f'truncated: {size} B, a prologue alone has {ALIGN}')
    magic, crc, head, epoch, seq, event_time_ns, revision, tail_sum = _PROLOGUE.unpack_from(view)
    if magic != MAGIC:
        raise WireError(f'magic {magic!r}, expected {MAGIC!r}: not a HEQIS message')
    if (
        head == known.head
        and size == known.size
        and bytes(view[ALIGN : known.body]) == known.block
    ):
        layout = known
    else:
        layout = _read_head(view, head, kind)
    if crc32(view[_CRC_OF:_CRC_END]) != crc or _tail_sum(view) != tail_sum:
        raise WireError('a checksum does not match: the message was altered')
    return view, layout, epoch, seq, event_time_ns, revision


def _tail_sum(view: memoryview) -> int:
    if len(view) <= _CRC_END:
        return 0
    return int(np.add.reduce(np.frombuffer(view[_CRC_END:], _WORD)))


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
    block = bytes(view[ALIGN:body])
    return Layout(head, len(view), body, n_stamps, block, block[:descriptor_length])


def _as_bytes(data: Buffer) -> memoryview:
    view: memoryview = memoryview(data)  # type: ignore[arg-type,unused-ignore]
    if view.format != 'B' or view.ndim != 1 or not view.c_contiguous:
        try:
            view = view.cast('B')
        except TypeError as exc:
            raise WireError(f'not one contiguous run of bytes: {exc}') from exc
    return view if view.readonly else view.toreadonly()
