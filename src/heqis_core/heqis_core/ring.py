# SPDX-License-Identifier: Apache-2.0
"""The frame ring: the last frames of one stream, bounded and shared between threads.

It holds references, never copies: a frame must not change once it is in (its stage stamps may).
Sockets and services that read it live elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from heqis_core import wire
from heqis_core.errors import DataError, WireError
from heqis_core.frame import FeatureFrame


class FrameRing:
    """The last `capacity` frames of a stream, without a hole in `seq`.

    Policy when full: drop the oldest, counted in `counters['evicted']`. Frames that were asked for
    and are gone or not there yet are counted in `counters['missed']`.
    """

    def __init__(self, capacity: int, first_seq: int = 0) -> None:
        """Make an empty ring; `next_seq` says `first_seq` until a frame of any seq comes."""
        if capacity < 1:
            raise ValueError(f'ring capacity is {capacity}, expected at least 1')
        self._slots: list[FeatureFrame | None] = [None] * capacity
        self._next = first_seq
        self._count = 0
        self._lock = threading.Lock()
        self._counters = {'appended': 0, 'evicted': 0, 'served': 0, 'missed': 0}

    def __len__(self) -> int:
        """Return the number of frames held."""
        return self._count

    @property
    def capacity(self) -> int:
        """Return the bound."""
        return len(self._slots)

    @property
    def next_seq(self) -> int:
        """Return the seq that the next frame must have."""
        return self._next

    @property
    def oldest_seq(self) -> int:
        """Return the seq of the oldest frame held; equal to `next_seq` when the ring is empty."""
        with self._lock:
            return self._next - self._count

    @property
    def counters(self) -> dict[str, int]:
        """Return a snapshot of appended, evicted, served and missed."""
        with self._lock:
            return dict(self._counters)

    def append(self, frame: FeatureFrame) -> None:
        """Add the next frame; raise ValueError if its seq does not follow the last one's."""
        with self._lock:
            if self._count and frame.seq != self._next:
                raise ValueError(
                    f'frame seq {frame.seq} of stream {frame.stream!r} after {self._next - 1}, '
                    f'expected '
                    f'{self._next}: a ring has no hole; start a new ring for a new sequence'
                )
            self._put(frame)
            self._counters['appended'] += 1

    def range(self, first_seq: int, last_seq: int) -> list[FeatureFrame]:
        """Return, in order, what is held of the frames `first_seq` to `last_seq`, inclusive."""
        with self._lock:
            found = self._get(
                max(first_seq, self._next - self._count), min(last_seq + 1, self._next)
            )
            self._counters['served'] += len(found)
            self._counters['missed'] += max(0, last_seq - first_seq + 1) - len(found)
        return found

    def tail(self, n: int) -> list[FeatureFrame]:
        """Return the last `n` frames, or all if there are fewer, in order."""
        with self._lock:
            return self._get(self._next - min(max(n, 0), self._count), self._next)

    def save(self, n: int | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """Return the last `n` frames (all by default) as plain arrays for a checkpoint.

        Keys: `next_seq` int64 (1,); `lengths` int64 (N,); `messages` uint8 (sum of lengths,), the
        frames as wire messages one after another, each with its own checksum.
        """
        with self._lock:
            first = self._next - (self._count if n is None else min(max(n, 0), self._count))
            frames, next_seq = self._get(first, self._next), self._next
        encoder = wire.Encoder()
        messages = [bytes(encoder.frame(frame)) for frame in frames]
        return {
            'next_seq': np.array([next_seq], np.int64),
            'lengths': np.array([len(message) for message in messages], np.int64),
            'messages': np.frombuffer(b''.join(messages), np.uint8),
        }

    def load(self, saved: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Replace the content with what `save` returned, keeping the newest frames that fit.

        Raises DataError, naming the part, if the arrays are not a ring's or were altered; the ring
        is unchanged then.
        """
        try:
            next_seq = int(saved['next_seq'][0])
            lengths = [int(length) for length in saved['lengths']]
            messages = np.ascontiguousarray(saved['messages'], np.uint8)
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise DataError(
                f'saved frame ring: {exc!r}; expected next_seq, lengths and messages'
            ) from exc
        frames = _decode_all(messages, lengths)
        if [frame.seq for frame in frames] != list(range(next_seq - len(frames), next_seq)):
            raise DataError(
                f'saved frame ring: the seqs are not gap-free up to {next_seq - 1}; delete the '
                f'checkpoint'
            )
        with self._lock:
            self._slots = [None] * len(self._slots)
            self._next, self._count = next_seq, 0
            for frame in frames[-len(self._slots) :]:
                self._put(frame)

    def _put(self, frame: FeatureFrame) -> None:
        capacity = len(self._slots)
        if self._count == capacity:
            self._counters['evicted'] += 1
        else:
            self._count += 1
        self._slots[frame.seq % capacity] = frame
        self._next = frame.seq + 1

    def _get(self, first: int, stop: int) -> list[FeatureFrame]:
        capacity = len(self._slots)
        found = (self._slots[seq % capacity] for seq in range(first, stop))
        return [frame for frame in found if frame is not None]


def _decode_all(messages: npt.NDArray[np.uint8], lengths: list[int]) -> list[FeatureFrame]:
    if min(lengths, default=0) < 0 or sum(lengths) != len(messages):
        raise DataError(
            f'saved frame ring: messages hold {len(messages)} bytes, lengths sum to '
            f'{sum(lengths)}; delete the checkpoint'
        )
    decoder, frames, start = wire.Decoder(), [], 0
    for index, length in enumerate(lengths):
        try:
            frames.append(decoder.frame(messages[start : start + length]))
        except WireError as exc:
            raise DataError(
                f'saved frame ring: frame {index}: {exc}; delete the checkpoint'
            ) from exc
        start += length
    return frames
