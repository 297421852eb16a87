# SPDX-License-Identifier: Apache-2.0
"""The bar history: the last bar blocks of a stream, bounded in bytes, shared between threads.

It holds references, never copies: a block must not change once it is in. The service that reads
it lives in `gateway_node`.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from itertools import islice

from heqis_core.bars import BarBlock

PAGE_BLOCKS = 64
"""Most blocks of a page: what the queue of a `bars` subscription holds too."""

PAGE_BYTES = 1_000_000
"""Most bytes of a page that has more than one block."""


@dataclass(frozen=True, slots=True)
class BarPage:
    """A part of the history, and where the history stood at that moment.

    Attributes:
        oldest_seq: oldest block held (equal to `next_seq` when none is).
        next_seq: first block that does not exist yet.
        blocks: the blocks with their seq, in order, without a hole.
    """

    oldest_seq: int
    next_seq: int
    blocks: list[tuple[int, BarBlock]]


class BarHistory:
    """The newest blocks of a stream that fit into `max_bytes`, without a hole in `seq`.

    Policy when full: drop the oldest, counted in `dropped`; the newest block stays, whatever its
    size.
    """

    def __init__(self, max_bytes: int, first_seq: int = 0) -> None:
        """Make an empty history; `next_seq` says `first_seq` until a block of any seq comes."""
        if max_bytes < 1:
            raise ValueError(f'max_bytes of the bar history is {max_bytes}, expected at least 1')
        self._max_bytes = max_bytes
        self._blocks: deque[BarBlock] = deque()
        self._next = first_seq
        self._bytes = 0
        self._dropped = 0
        self._lock = threading.Lock()

    @property
    def oldest_seq(self) -> int:
        """Return the seq of the oldest block held; equal to `next_seq` when there is none."""
        with self._lock:
            return self._oldest

    @property
    def next_seq(self) -> int:
        """Return the seq that follows the newest block."""
        with self._lock:
            return self._next

    @property
    def dropped(self) -> int:
        """Return the number of blocks that were taken in and are no longer held."""
        with self._lock:
            return self._dropped

    def append(self, seq: int, block: BarBlock) -> None:
        """Add a block; one that does not follow the last one starts the history anew."""
        with self._lock:
            if seq != self._next:
                self._clear()
            self._blocks.append(block)
            self._next = seq + 1
            self._bytes += block.nbytes
            while self._bytes > self._max_bytes and len(self._blocks) > 1:
                self._bytes -= self._blocks.popleft().nbytes
                self._dropped += 1

    def amend(self, seq: int, block: BarBlock) -> bool:
        """Put a corrected block in the place of the one of this seq; return whether it is held."""
        with self._lock:
            place = seq - self._oldest
            if not 0 <= place < len(self._blocks):
                return False
            self._bytes += block.nbytes - self._blocks[place].nbytes
            self._blocks[place] = block
            return True

    def range(self, first_seq: int, last_seq: int) -> list[tuple[int, BarBlock]]:
        """Return, in order, what is held of the blocks `first_seq` to `last_seq`, inclusive."""
        with self._lock:
            return self._get(first_seq, last_seq)

    def page(
        self,
        first_seq: int,
        last_seq: int,
        max_blocks: int = PAGE_BLOCKS,
        max_bytes: int = PAGE_BYTES,
    ) -> BarPage:
        """Return the first blocks of `range(first_seq, last_seq)` that fit, with the position.

        If there is one to return, at least one is: who asks again after the last one gets on.
        """
        with self._lock:
            # From where the history begins, or a page that starts before it would be cut short.
            first_seq = max(first_seq, self._oldest)
            found = self._get(first_seq, min(last_seq, first_seq + max(max_blocks, 1) - 1))
            return BarPage(self._oldest, self._next, found[: _n_that_fit(found, max_bytes)])

    @property
    def _oldest(self) -> int:
        return self._next - len(self._blocks)

    def _get(self, first_seq: int, last_seq: int) -> list[tuple[int, BarBlock]]:
        oldest = self._oldest
        first, stop = max(first_seq, oldest), min(last_seq + 1, self._next)
        if first >= stop:
            return []
        return list(enumerate(islice(self._blocks, first - oldest, stop - oldest), first))

    def _clear(self) -> None:
        self._dropped += len(self._blocks)
        self._blocks.clear()
        self._bytes = 0


def _n_that_fit(blocks: list[tuple[int, BarBlock]], max_bytes: int) -> int:
    total = 0
    for n, (_, block) in enumerate(blocks):
        total += block.nbytes
        if n and total > max_bytes:
            return n
    return len(blocks)
