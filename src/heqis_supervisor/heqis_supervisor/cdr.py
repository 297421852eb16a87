# SPDX-License-Identifier: Apache-2.0
"""A look into serialized heartbeats, so that those of others need not be deserialized.

Every process of a board hears every heartbeat; most listeners want a few of them only.
"""

from __future__ import annotations

import struct


def heartbeat_source(data: bytes) -> tuple[str, str]:
    """Return board and process, the first two fields of a serialized heqis_msgs/Heartbeat.

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
