# SPDX-License-Identifier: Apache-2.0
"""The check of a link message: a sum of its 32-bit words, each times its position.

It finds every flipped bit, every altered word and two that changed places, at the speed of memory.
Against people the link has CURVE. docs/wire-format.md says which bytes it takes in.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from heqis_core.jit import strict_helper, strict_njit

Words = npt.NDArray[np.uint32]

CHECK_AT = 56
"""Byte of the message where the check stands: its words are left out of the sum."""
_AT = CHECK_AT // 4
_FIELDS_AT = 24 // 4
"""Word where the fields begin that each message has of its own."""


@strict_helper
def _sum(words: Words) -> np.uint64:
    total = np.uint64(0)
    for n in range(_AT):
        total += np.uint64(n + 1) * np.uint64(words[n])
    rest = words[_AT + 2 :]
    for n in range(len(rest)):  # from 0: only so is it known that no index is negative
        total += np.uint64(n + _AT + 3) * np.uint64(rest[n])
    return total


@strict_helper
def _wide(words: Words, at: int) -> np.uint64:
    return np.uint64(words[at]) | np.uint64(words[at + 1]) << np.uint64(32)


@strict_njit
def seal(words: Words) -> None:
    """Write the check into a message, uint32 (N,), N at least 16."""
    total = _sum(words)
    words[_AT] = np.uint32(total & np.uint64(0xFFFFFFFF))
    words[_AT + 1] = np.uint32(total >> np.uint64(32))


@strict_njit
def is_sound(words: Words) -> bool:
    """Return whether a message, uint32 (N,), N at least 16, is what its check says."""
    return bool(_wide(words, _AT) == _sum(words))


@strict_njit
def examine(
    words: Words,
    known: Words,
    codes_at: int,
    n_codes: int,
    highest: int,
    stamps: npt.NDArray[np.int64],
) -> Any:
    """Return whether a message is sound and begins as `known`, and four fields of its prologue.

    These are epoch, seq, event_time_ns and revision. Both are uint32, `known` the shorter one:
    prologue and descriptor block of the last message. From byte `codes_at` on, a multiple of 4,
    `n_codes` bytes must not be above `highest`. The stamps, which follow the block, are copied
    out. The message must have the size of that last one: no bound is checked here.
    """
    # One call for all this: the caches are cold when a message comes, so that every further
    # library that has a part in reading it costs more than what it does.
    same = words[0] == known[0]
    for n in range(2, _FIELDS_AT):
        same &= words[n] == known[n]
    block, known_block = words[_AT + 2 : len(known)], known[_AT + 2 :]
    for n in range(len(known_block)):
        same &= block[n] == known_block[n]
    for n in range(n_codes):
        word = words[(codes_at + n) >> 2]
        same &= ((word >> np.uint32(8 * (n & 3))) & np.uint32(255)) <= np.uint32(highest)
    for n in range(len(stamps)):
        stamps[n] = np.int64(_wide(words, len(known) + 2 * n))
    return (
        same and _wide(words, _AT) == _sum(words),
        _wide(words, _FIELDS_AT),
        _wide(words, _FIELDS_AT + 2),
        np.int64(_wide(words, _FIELDS_AT + 4)),
        words[_FIELDS_AT + 6],
    )


@cache
def compile_now() -> None:
    """Compile all, or load what was kept, so that no message has to wait for it."""
    words = np.zeros(_AT + 2, np.uint32)
    seal(words)
    words.flags.writeable = False
    is_sound(words)
    examine(words, words, 0, 0, 0, np.zeros(0, np.int64))
