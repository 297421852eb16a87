# SPDX-License-Identifier: Apache-2.0
"""Which registers one Modbus request reads: neighbours together, within the limits. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heqis_core.io.modbus_map import BIT_FUNCTIONS, MOST_BITS, MOST_REGISTERS, Device, Item


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `count` registers or bits from `address`, and what lies in them."""

    function: str
    address: int
    count: int
    items: tuple[Item, ...]

    def __str__(self) -> str:
        """Return what it reads, for people."""
        last = self.address + self.count - 1
        return f'{self.function} {self.address}' + (f' to {last}' if self.count > 1 else '')


def plan_requests(items: Iterable[Item], max_gap: int) -> list[Request]:
    """Return few requests that read all items, each item whole in one of them.

    Two neighbours share a request if at most `max_gap` unused registers lie between them and the
    request stays within the protocol's limit.
    """
    found: list[Request] = []
    order = sorted(set(items), key=lambda item: (item.function, item.address, item.size))
    for item in order:
        last = found[-1] if found else None
        if last is not None and last.function == item.function:
            limit = MOST_BITS if item.function in BIT_FUNCTIONS else MOST_REGISTERS
            end = max(last.address + last.count, item.address + item.size)
            gap = item.address - (last.address + last.count)
            if gap <= max_gap and end - last.address <= limit:
                found[-1] = Request(
                    last.function, last.address, end - last.address, (*last.items, item)
                )
                continue
        found.append(Request(item.function, item.address, item.size, (item,)))
    return found


def device_requests(device: Device, poll_s: float) -> list[Request]:
    """Return the requests that read a device's channels of one period, and its signs of life.

    What reads the timestamp comes last: then no value is newer than its timestamp.
    """
    items = [channel.item for channel in device.channels if channel.poll_s == poll_s]
    if device.heartbeat is not None:
        items.append(device.heartbeat.item)
    if device.timestamp is None:
        return plan_requests(items, device.max_gap)
    items.append(device.timestamp.item)
    stamp = device.timestamp.item
    return sorted(plan_requests(items, device.max_gap), key=lambda r: stamp in r.items)
