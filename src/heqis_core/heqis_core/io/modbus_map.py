# SPDX-License-Identifier: Apache-2.0
"""What a Modbus source reads: one link, its devices and their typed channels, as plain data.

Reading a map from YAML is `modbus_map_file`; docs/modbus.md says what each field means.
"""

from __future__ import annotations

from dataclasses import dataclass

from heqis_core.io.modbus_values import Kind

FUNCTIONS = ('holding', 'input', 'coil', 'discrete')
BIT_FUNCTIONS = ('coil', 'discrete')
MOST_REGISTERS = 125
"""Registers of one response: MODBUS Application Protocol Specification V1.1b3, 6.3 and 6.4."""
MOST_BITS = 2000
"""Coils or discrete inputs of one response: the same, 6.1 and 6.2."""
TIME_UNITS_NS = {'s': 1_000_000_000, 'ms': 1_000_000, 'us': 1_000, 'ns': 1}
ADDRESSES = 65536


@dataclass(frozen=True, slots=True)
class TcpLink:
    """A device or gateway that speaks Modbus/TCP."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `tcp HOST:PORT`."""
        return f'tcp {self.host}:{self.port}'


@dataclass(frozen=True, slots=True)
class RtuLink:
    """A serial line that speaks Modbus RTU."""

    port: str
    baudrate: int
    parity: str
    stopbits: int
    bytesize: int

    def __str__(self) -> str:
        """Return `rtu PORT`."""
        return f'rtu {self.port}'


@dataclass(frozen=True, slots=True)
class Item:
    """Where a value lies and how it is read.

    Attributes:
        function: one of `FUNCTIONS`.
        address: of the first register or bit, from 0 as in the request.
        kind: how the registers are read; None for a bit.
        bit: which bit of the register, 0 the least significant; of no meaning for numbers.
        word_order, byte_order: one of `ORDERS`.
    """

    function: str
    address: int
    kind: Kind | None
    bit: int = 0
    word_order: str = 'big'
    byte_order: str = 'big'

    @property
    def size(self) -> int:
        """Return how many registers or bits it takes."""
        return 1 if self.kind is None else self.kind.words


@dataclass(frozen=True, slots=True)
class Channel:
    """One typed channel.

    Attributes:
        symbol, name: what its readings belong to, and their name there.
        item: where it lies.
        scale, offset: reading = raw × scale + offset.
        unit: of the reading, for people.
        minimum, maximum: inclusive bounds of the reading; outside them there is none.
        error_values: raw values by which the device says that it has no value.
        poll_s: seconds between two requests.
    """

    symbol: str
    name: str
    item: Item
    scale: float
    offset: float
    unit: str
    minimum: float
    maximum: float
    error_values: tuple[int | float, ...]
    poll_s: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A value that a living device changes at least every `after_s` seconds."""

    item: Item
    after_s: float


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Where a device keeps the Unix time of its values.

    Attributes:
        item: where it lies.
        unit_ns: nanoseconds of one step.
        max_ahead_s: how far it may be ahead of this machine's clock.
        after_s: longest time without a change; infinity: any.
    """

    item: Item
    unit_ns: int
    max_ahead_s: float
    after_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """One unit on the link."""

    name: str
    unit_id: int
    max_gap: int
    channels: tuple[Channel, ...]
    heartbeat: Heartbeat | None
    timestamp: Timestamp | None


@dataclass(frozen=True, slots=True)
class ModbusMap:
    """A whole map.

    Attributes:
        path: the file, for messages.
        link: how the devices are reached.
        timeout_s: longest wait for a connection or a response.
        backoff_s, backoff_max_s: wait after a lost connection, doubled each time.
        devices: the units on the link.
    """

    path: str
    link: TcpLink | RtuLink
    timeout_s: float
    backoff_s: float
    backoff_max_s: float
    devices: tuple[Device, ...]
