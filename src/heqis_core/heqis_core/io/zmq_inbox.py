# SPDX-License-Identifier: Apache-2.0
"""Where the messages of a link land: a ring of preallocated buffers, reused when nobody looks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heqis_core.envelope import ALIGN, Message
from heqis_core.io.zmq_channel import Channel

_COUNTS = 'received', 'received_bytes', 'truncated', 'slots_replaced'


class _Slot(NamedTuple):
    buffer: memoryview
    message: Message


class Inbox:
    """A ring of preallocated, aligned buffers to receive into.

    A buffer is used again only when no array refers to it any more; one that is still in use is
    left to its users and replaced. `counters`: `received`, `received_bytes`, `truncated` (message
    larger than a buffer: it is lost, the buffers grow) and `slots_replaced`.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """Make `slots` buffers of `slot_bytes`; memory is used only as far as messages reach."""
        self.counters = dict.fromkeys(_COUNTS, 0)
        self._bytes = slot_bytes
        self._slots = [_slot(slot_bytes) for _ in range(slots)]
        self._at = 0

    def recv(self, channel: Channel, timeout_ms: int) -> Message | None:
        """Return the next message, or None if none came whole and in time.

        The caller holds the channel's lock until it has made its arrays. The message is good until
        the next call, its arrays for as long as they are held.
        """
        buffer, message = self._slots[self._at]
        if message.held():
            # Only then take another: a buffer that is used again at once is still in the cache.
            buffer, message = self._next()
        message.get_ready()
        size = channel.recv_into(buffer, timeout_ms)
        if size is None:
            return None
        if size != message.size:
            if size > self._bytes:
                self._grow(size, channel)
                return None
            message.show(buffer[:size].toreadonly())
        self.counters['received'] += 1
        self.counters['received_bytes'] += size
        return message

    def _next(self) -> _Slot:
        self._at = (self._at + 1) % len(self._slots)
        if self._slots[self._at].message.held():
            self._slots[self._at] = _slot(self._bytes)
            self.counters['slots_replaced'] += 1
        return self._slots[self._at]

    def _grow(self, size: int, channel: Channel) -> None:
        self.counters['truncated'] += 1
        self._bytes = 1 << size.bit_length()
        self._slots = [_slot(self._bytes) for _ in self._slots]
        channel.error = (
            f'{channel.name}: a message of {size} B was lost, the receive buffers were smaller'
        )


def _slot(size: int) -> _Slot:
    memory = np.empty(size + ALIGN, np.uint8)
    start = -memory.ctypes.data % ALIGN
    buffer = memory.data[start : start + size]
    return _Slot(buffer, Message(buffer[:0], memory))
