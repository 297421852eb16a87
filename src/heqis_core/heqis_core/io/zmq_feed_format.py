# SPDX-License-Identifier: Apache-2.0
"""The messages of a feed: one MessagePack map each, checked field by field.

docs/feed.md gives the format for whoever writes a producer.
"""

from __future__ import annotations

from typing import Union

import msgspec

from heqis_core.errors import WireError

FEED_VERSION = 1


class BarRow(msgspec.Struct, forbid_unknown_fields=True):
    """One bar of one symbol; what is missing is NaN."""

    event_time_ns: int
    symbol: str
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    amount: float | None = None
    suspended: bool = False


class ReadingRow(msgspec.Struct, forbid_unknown_fields=True):
    """One value of one channel."""

    event_time_ns: int
    symbol: str
    channel: str
    value: float


class TickRow(msgspec.Struct, forbid_unknown_fields=True):
    """One trade: readings of the channels `tick_price` and `tick_volume`."""

    event_time_ns: int
    symbol: str
    price: float
    volume: float | None = None


class _Head(msgspec.Struct):
    version: int
    producer: str
    epoch: int
    seq: int


class Bars(_Head, forbid_unknown_fields=True, tag='bars', tag_field='kind'):
    """A message of bars; `complete`: no more rows of its event times will come."""

    rows: list[BarRow]
    complete: bool = False


class Readings(_Head, forbid_unknown_fields=True, tag='readings', tag_field='kind'):
    """A message of readings."""

    rows: list[ReadingRow]


class Ticks(_Head, forbid_unknown_fields=True, tag='ticks', tag_field='kind'):
    """A message of ticks."""

    rows: list[TickRow]


Message = Union[Bars, Readings, Ticks]  # noqa: UP007 -- a value, and Python 3.10 reads it too
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class _Version(msgspec.Struct):
    version: int


_VERSION = msgspec.msgpack.Decoder(_Version)


class FeedMessageError(WireError):
    """Bytes that are no message of a feed; `counter` is the kind of fault."""

    def __init__(self, counter: str, text: str) -> None:
        super().__init__(text)
        self.counter = counter


def decode(data: bytes) -> Message:
    """Return the message in some bytes; raise FeedMessageError that names what is wrong."""
    try:
        message = _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        version = _version(data)
        if version is not None and version != FEED_VERSION:
            raise _bad_version(version) from None
        kind = 'bad_fields' if isinstance(error, msgspec.ValidationError) else 'bad_msgpack'
        raise FeedMessageError(kind, f'not a message of a feed: {error}') from None
    if message.version != FEED_VERSION:
        raise _bad_version(message.version)
    return message


def _bad_version(version: int) -> FeedMessageError:
    return FeedMessageError('bad_version', f'version {version}, this program reads {FEED_VERSION}')


def _version(data: bytes) -> int | None:
    try:
        return _VERSION.decode(data).version
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
