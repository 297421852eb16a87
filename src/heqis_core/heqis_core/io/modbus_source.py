# SPDX-License-Identifier: Apache-2.0
"""Readings from Modbus devices: asks when a channel is due, checks what comes, notices age.

How the registers are described is `modbus_map`, how they are asked for is `modbus_link`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from heqis_core.io.modbus_link import ILLEGAL_ADDRESS, Fault, FaultKind, ModbusLink, back_off
from heqis_core.io.modbus_map import Channel, Device, Item, ModbusMap, Timestamp
from heqis_core.io.modbus_plan import Request, device_requests, plan_requests
from heqis_core.io.modbus_values import decode_words, is_error_value
from heqis_core.readings import NEVER_NS, Reading, ReadingStatus

COUNTS = (
    *('connects', 'connect_failures', 'lost_connections', 'requests', 'timeouts', 'exceptions'),
    *('bad_replies', 'split_requests', 'overruns', 'readings', 'error_values', 'out_of_range'),
    *('bad_timestamps', 'unchanged', 'went_stale', 'withheld_stale'),
)
"""Names of the counters; docs/modbus.md says what each one means."""
OnError = Callable[[str], None]
_LATEST_NS = 4_102_444_800_000_000_000
"""The year 2100: no timestamp of a device is later, and none overflows int64."""


@dataclass
class _Group:
    """The channels of one device with one period."""

    device: Device
    poll_s: float
    channels: list[Channel]
    requests: list[Request]
    due_s: float = 0.0
    misses: int = 0
    last_stamp_ns: int = 0


@dataclass
class _Life:
    """What is known of the signs of life of one device; times are monotonic."""

    beat: int | float | None = None
    beat_s: float = -math.inf
    """When the heartbeat changed last: a value that was never seen to change may stand still."""
    stamp_ns: int = 0
    stamp_s: float = math.inf
    """When the timestamp changed last; until the first one came, nothing was served."""
    stale: bool = False

    def ended(self, device: Device, now_s: float) -> bool:
        """Return whether a sign of life is older than its device allows."""
        beat, stamp = device.heartbeat, device.timestamp
        return (beat is not None and now_s - self.beat_s > beat.after_s) or (
            stamp is not None and now_s - self.stamp_s > stamp.after_s
        )


class ModbusSource:
    """A `ChannelSource` of all devices on one link; the polling thread does the asking."""

    complete_ns = NEVER_NS
    """A device may always answer later than another."""

    def __init__(self, settings: ModbusMap, on_error: OnError | None = None) -> None:
        """Read what `settings` describe; `on_error` gets each kind of fault once, as one line."""
        self.counts = dict.fromkeys(COUNTS, 0)
        self.last_error = ''
        self._settings = settings
        self._on_error = on_error
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._link = ModbusLink(settings)
        self._groups: list[_Group] = []
        self._lives: dict[str, _Life] = {}

    def open(self) -> None:
        """Plan the requests; the connection is made when the first channel is due."""
        self._closed.clear()
        self._told.clear()
        self._groups = [
            _Group(
                device=device,
                poll_s=poll_s,
                channels=[c for c in device.channels if c.poll_s == poll_s],
                requests=device_requests(device, poll_s),
            )
            for device in self._settings.devices
            for poll_s in sorted({channel.poll_s for channel in device.channels})
        ]
        self._lives = {
            device.name: _Life(stale=device.heartbeat is not None)
            for device in self._settings.devices
        }

    def poll(self, timeout_s: float) -> list[Reading]:
        """Return the readings of the next channels that are due, and what went stale meanwhile.

        A request that is under way is waited for: by up to twice the link's timeout longer.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._closed.is_set():
            readings = self._find_stale(time.monotonic())
            group = min(self._groups, key=lambda group: group.due_s)
            due_s = max(group.due_s, self._link.retry_s if not self._link.connected else 0.0)
            if due_s <= time.monotonic():
                readings += self._ask(group)
            now_s = time.monotonic()
            if readings or now_s >= deadline_s:
                return readings
            due_s = max(min(g.due_s for g in self._groups), now_s)
            if not self._link.connected:
                due_s = max(due_s, self._link.retry_s)
            self._closed.wait(min(due_s, deadline_s, now_s + 0.1) - now_s)
        return []

    def close(self) -> None:
        """Close the connection; waits for a request that is under way."""
        self._closed.set()
        with self._lock:
            self._link.close()

    # --- asking ---

    def _ask(self, group: _Group) -> list[Reading]:
        with self._lock:
            if self._closed.is_set() or not self._connect():
                return []
            self._schedule(group)
            raw: dict[Item, tuple[int | float, int]] = {}
            missed = False
            for request in list(group.requests):
                try:
                    words = self._read(group.device, request)
                except Fault as fault:
                    self._on_fault(group, request, fault)
                    missed |= fault.kind == FaultKind.TIMEOUT
                    # The rest of a silent device would time out too.
                    if missed or not self._link.connected:
                        break
                    continue
                now_ns = time.time_ns()
                for item in request.items:
                    raw[item] = (_value(item, words, item.address - request.address), now_ns)
            self._slow_down(group, missed)
        return self._readings(group, raw)

    def _connect(self) -> bool:
        if self._link.connected:
            return True
        done = self._link.connect()
        self.counts['connects' if done else 'connect_failures'] += 1
        if done:
            self._told.discard('connect')
        else:
            self._tell('connect', f'{self._where()}: {self._link.error}')
        return done

    def _read(self, device: Device, request: Request) -> list[int]:
        self.counts['requests'] += 1
        return self._link.read(device.unit_id, request)

    def _schedule(self, group: _Group) -> None:
        """Set when the group is due next; what was missed meanwhile is counted, not made up."""
        now_s = time.monotonic()
        if not group.due_s:
            group.due_s = now_s
        late = int((now_s - group.due_s) / group.poll_s)
        self.counts['overruns'] += late
        group.due_s += (late + 1) * group.poll_s

    def _slow_down(self, group: _Group, missed: bool) -> None:
        """Ask a device that does not answer less and less often: it holds up the others."""
        if not missed:
            group.misses = 0
            return
        settings = self._settings
        wait_s = back_off(group.misses, settings.backoff_s, settings.backoff_max_s)
        group.misses += 1
        group.due_s = max(group.due_s, time.monotonic() + wait_s)

    def _on_fault(self, group: _Group, request: Request, fault: Fault) -> None:
        self.counts[fault.kind.value] += 1
        names = [f'{c.symbol} {c.name}' for c in group.channels if c.item in request.items]
        of = f' ({", ".join(names)})' if names else ''
        where = f'{self._where()}: device {group.device.name}, unit {group.device.unit_id}'
        advice = ''
        if fault.code == ILLEGAL_ADDRESS and len(request.items) > 1:
            # Perhaps only one of them, or a register between them, is not there.
            at = group.requests.index(request)
            single = [r for item in request.items for r in plan_requests([item], 0)]
            group.requests[at : at + 1] = single
            if group.device.timestamp is not None:
                stamp = group.device.timestamp.item
                group.requests.sort(key=lambda r: stamp in r.items)
            self.counts['split_requests'] += 1
            advice = '; from now on asked for one by one'
        elif fault.kind == FaultKind.EXCEPTION:
            advice = '; compare function and address with the manual of the device'
        key = f'{fault.kind.value} {fault.code} {group.device.name} {request}'
        self._tell(key, f'{where}: {request}{of}: {fault}{advice}')

    # --- judging ---

    def _readings(self, group: _Group, raw: dict[Item, tuple[int | float, int]]) -> list[Reading]:
        device, life = group.device, self._lives[group.device.name]
        stamp_ns = self._stamp_ns(device.timestamp, raw) if device.timestamp is not None else None
        self._note_life(device, life, raw, stamp_ns)
        if device.timestamp is not None:
            if stamp_ns is None:
                return []
            if stamp_ns == group.last_stamp_ns:
                self.counts['unchanged'] += 1
                return []
        found = [channel for channel in group.channels if channel.item in raw]
        if life.stale:
            self.counts['withheld_stale'] += len(found)
            return []
        readings = []
        for channel in found:
            value, at_ns = raw[channel.item]
            checked = self._check(channel, value)
            if checked is not None:
                at_ns = at_ns if stamp_ns is None else stamp_ns
                readings.append(Reading(at_ns, channel.symbol, channel.name, checked))
        group.last_stamp_ns = stamp_ns or 0
        self.counts['readings'] += len(readings)
        return sorted(readings, key=lambda reading: reading.event_time_ns)

    def _note_life(
        self,
        device: Device,
        life: _Life,
        raw: dict[Item, tuple[int | float, int]],
        stamp_ns: int | None,
    ) -> None:
        now_s = time.monotonic()
        if device.heartbeat is not None and device.heartbeat.item in raw:
            beat = raw[device.heartbeat.item][0]
            if life.beat is not None and beat != life.beat:
                life.beat_s = now_s
            life.beat = beat
        if stamp_ns is not None and stamp_ns != life.stamp_ns:
            life.stamp_ns, life.stamp_s = stamp_ns, now_s
        if life.stale and not life.ended(device, now_s):
            life.stale = False
            self._told.discard(f'stale {device.name}')

    def _check(self, channel: Channel, raw: int | float) -> float | None:
        kind = channel.item.kind
        if kind is not None and is_error_value(raw, kind, channel.error_values):
            self.counts['error_values'] += 1
            return None
        value = raw * channel.scale + channel.offset
        if not channel.minimum <= value <= channel.maximum or not math.isfinite(value):
            self.counts['out_of_range'] += 1
            self._tell(
                f'range {channel.symbol} {channel.name}',
                f'{self._where()}: {channel.symbol} {channel.name}: {value:g} {channel.unit}, '
                f'allowed are {channel.minimum:g} to {channel.maximum:g}; not used',
            )
            return None
        return value

    def _stamp_ns(
        self, timestamp: Timestamp, raw: dict[Item, tuple[int | float, int]]
    ) -> int | None:
        if timestamp.item not in raw:
            return None
        value, now_ns = raw[timestamp.item]
        latest_ns = min(_LATEST_NS, now_ns + round(timestamp.max_ahead_s * 1e9))
        if math.isfinite(value) and 0 < value * timestamp.unit_ns <= latest_ns:
            return int(value * timestamp.unit_ns)
        self.counts['bad_timestamps'] += 1
        self._tell(
            'timestamp',
            f'{self._where()}: {timestamp.item.function} {timestamp.item.address}: timestamp '
            f'{value} is not between 1970 and {timestamp.max_ahead_s:g} s after now: check its '
            'type, unit and word order, and the clocks of device and gateway',
        )
        return None

    def _find_stale(self, now_s: float) -> list[Reading]:
        """Return a STALE reading for each channel of a device whose signs of life ended."""
        found: list[Reading] = []
        for device in self._settings.devices:
            life = self._lives[device.name]
            if life.stale or not life.ended(device, now_s):
                continue
            life.stale = True
            self.counts['went_stale'] += len(device.channels)
            self._tell(
                f'stale {device.name}',
                f'{self._where()}: device {device.name}: its heartbeat or timestamp stands '
                'still; its channels are stale until it changes',
            )
            now_ns = time.time_ns()
            found += [
                Reading(now_ns, c.symbol, c.name, math.nan, ReadingStatus.STALE)
                for c in device.channels
            ]
        return found

    def _where(self) -> str:
        return f'{self._settings.path} ({self._settings.link})'

    def _tell(self, key: str, text: str) -> None:
        self.last_error = text
        if key not in self._told:
            self._told.add(key)
            if self._on_error is not None:
                self._on_error(text)


def _value(item: Item, words: list[int], at: int) -> int | float:
    if item.kind is not None:
        part = words[at : at + item.size]
        return decode_words(part, item.kind, item.word_order, item.byte_order)
    # A coil is a word of 0 or 1, and its bit number is 0.
    return words[at] >> item.bit & 1
