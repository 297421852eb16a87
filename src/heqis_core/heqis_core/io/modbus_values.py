# SPDX-License-Identifier: Apache-2.0
"""From 16-bit Modbus registers to numbers: types, word order, byte order, error values. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = ('big', 'little')


class Kind(NamedTuple):
    """How one type lies in registers: format of `struct` in big-endian order, and its size."""

    code: str
    words: int

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return self.code in 'fd'

    @property
    def bits(self) -> int:
        """Return the size in bits."""
        return 16 * self.words


KINDS = {
    'int16': Kind('h', 1),
    'uint16': Kind('H', 1),
    'int32': Kind('i', 2),
    'uint32': Kind('I', 2),
    'int64': Kind('q', 4),
    'uint64': Kind('Q', 4),
    'float32': Kind('f', 2),
    'float64': Kind('d', 4),
}
"""Types that take whole registers; `bool` is one bit of a register, or a coil."""


def decode_words(
    words: Sequence[int], kind: Kind, word_order: str = 'big', byte_order: str = 'big'
) -> int | float:
    """Return the number that lies in registers.

    `word_order` says whether the first register holds the most or the least significant 16 bits,
    `byte_order` the same of the two bytes within a register (the Modbus standard sends the more
    significant one first; some devices do not).
    """
    ordered = words if word_order == 'big' else words[::-1]
    letter = '>' if byte_order == 'big' else '<'
    data = struct.pack(f'{letter}{kind.words}H', *ordered)
    value: int | float = struct.unpack(f'>{kind.code}', data)[0]
    return value


def is_error_value(value: int | float, kind: Kind, error_values: Sequence[int | float]) -> bool:
    """Return whether a raw value stands for "no value" of its device.

    Integers are compared by their bits, so 0x8000 names the lowest int16 too. NaN and infinity of
    a floating-point type always count.
    """
    if kind.is_float:
        return not math.isfinite(value) or any(
            value == as_kind(item, kind) for item in error_values
        )
    mask = (1 << kind.bits) - 1
    return any((int(value) ^ int(item)) & mask == 0 for item in error_values)


def as_kind(value: int | float, kind: Kind) -> float:
    """Return a number as a floating-point type holds it, infinity where it is too large."""
    try:
        return float(struct.unpack(f'>{kind.code}', struct.pack(f'>{kind.code}', value))[0])
    except OverflowError:
        return math.inf if value > 0 else -math.inf
