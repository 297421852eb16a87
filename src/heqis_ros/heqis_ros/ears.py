# SPDX-License-Identifier: Apache-2.0
"""Heartbeats for those who want few of them: taken when asked for, sorted before unpacking.

Every listener on `heartbeat` gets the heartbeats of every process. Waking an executor for each
of them costs more than everything else that an idle process does, so these are taken by a thread
or timer of the listener's own (see `inbox`), and only those wanted are deserialized.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from heqis_msgs.msg import Heartbeat
from heqis_ros import qos
from heqis_ros.inbox import Inbox

if TYPE_CHECKING:
    from heqis_ros.node import ManagedNode

Wanted = Callable[[str, str], bool]
"""Says by board and process whether a heartbeat is wanted."""


class Ears:
    """A subscription to `heartbeat` that is asked by one thread, beside the executor."""

    def __init__(self, owner: ManagedNode, wanted: Wanted) -> None:
        """Listen in the namespace of `owner`; `close` it in the owner's cleanup."""
        self._wanted = wanted
        self._inbox = Inbox(owner, f'{owner.get_name()}_ears')
        self._beats = self._inbox.listen(Heartbeat, 'heartbeat', qos.HEARTBEAT)

    def take(self) -> list[Heartbeat]:
        """Return the wanted heartbeats that came since the last call, oldest first."""
        return self._beats.take(lambda data: self._wanted(*heartbeat_source(data)))

    def close(self) -> None:
        """Stop listening."""
        self._inbox.close()


def heartbeat_source(data: bytes) -> tuple[str, str]:
    """Return board and process, the first two fields of a serialized heartbeat.

    Gives empty texts for bytes that are none.
    """
    try:
        order = '<' if data[1] & 1 else '>'
        board, at = _text(data, 4, order)
        process, _ = _text(data, at, order)
    except (IndexError, struct.error, UnicodeDecodeError):
        return '', ''
    return board, process


def _text(data: bytes, at: int, order: str) -> tuple[str, int]:
    # CDR: four bytes of encapsulation, then aligned values; the length counts the NUL.
    at += -at % 4
    (length,) = struct.unpack_from(f'{order}I', data, at)
    end = at + 4 + length
    if not 1 <= length <= 4096 or end > len(data):
        raise IndexError
    return data[at + 4 : end - 1].decode(), end
