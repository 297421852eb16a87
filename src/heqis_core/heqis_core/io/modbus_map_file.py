# SPDX-License-Identifier: Apache-2.0
"""Reads the map of a Modbus source from YAML.

Everything is checked before anything is asked, each problem with file, line, item, field, value
and what was expected. Needs PyYAML.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from heqis_core.errors import ConfigError
from heqis_core.io.modbus_map import (
    ADDRESSES,
    BIT_FUNCTIONS,
    FUNCTIONS,
    MOST_REGISTERS,
    TIME_UNITS_NS,
    Channel,
    Device,
    Heartbeat,
    Item,
    ModbusMap,
    RtuLink,
    TcpLink,
    Timestamp,
)
from heqis_core.io.modbus_values import KINDS, ORDERS, Kind

MAP_VERSION = 1


def load_map(path: str | Path) -> ModbusMap:
    """Read a map; raise ConfigError that lists every problem as `file:line: item: field …`."""
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path}: cannot be read: {error}; give a file like config/modbus.example.yaml'
        ) from None
    return parse_map(text, str(path))


def parse_map(text: str, path: str) -> ModbusMap:
    """Return the map that a YAML text describes; raises as `load_map`."""
    reader = _Reader(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = mark.line + 1 if mark else 1
        reason = ' '.join(str(getattr(error, 'problem', error)).split())
        raise ConfigError(f'{path}:{line}: not YAML: {reason}') from None
    except RecursionError:
        raise ConfigError(f'{path}:1: not a map: nested too deeply') from None
    found = reader.map(root)
    if reader.problems:
        raise ConfigError('\n'.join(text for _, text in sorted(reader.problems)))
    return found


_LINK = ('tcp', 'rtu', 'timeout_ms', 'backoff_ms', 'backoff_max_ms')
_ORDERED = ('word_order', 'byte_order')
_PLACE = ('function', 'address', 'type', 'bit', *_ORDERED)
_DEVICE = ('name', 'unit_id', 'poll_ms', 'max_gap', 'heartbeat', 'timestamp', 'channels')
_CHANNEL = ('symbol', 'channel', 'scale', 'offset', 'unit', 'min', 'max', 'error_values')


class _Reader:
    """Reads one map and collects what is wrong with it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self._loader = yaml.SafeLoader('')

    def map(self, root: yaml.Node | None) -> ModbusMap:
        top = self.fields(root, 'the file', ('version', 'link', 'devices'))
        version = top.get('version')
        if version is None or self.value(version) != MAP_VERSION:
            self.problem(version or root, f'the file: version: expected {MAP_VERSION}')
        node = top.get('link')
        if node is None:
            self.problem(root, 'link: is missing, expected tcp or rtu')
        given = self.fields(node, 'link', _LINK)
        devices = tuple(
            self.device(item, f'device {n}')
            for n, item in enumerate(self.items(top.get('devices'), 'devices', root), 1)
        )
        self.check_names(devices, root)
        return ModbusMap(
            path=self.path,
            link=self.link(given, node),
            timeout_s=self.integer(given, 'link', 'timeout_ms', 1000, 10, 60_000) / 1000,
            backoff_s=self.integer(given, 'link', 'backoff_ms', 250, 10, 60_000) / 1000,
            backoff_max_s=self.integer(given, 'link', 'backoff_max_ms', 10_000, 10, 3_600_000)
            / 1000,
            devices=devices,
        )

    def link(self, given: Mapping[str, yaml.Node], node: yaml.Node | None) -> TcpLink | RtuLink:
        if node is not None and ('tcp' in given) == ('rtu' in given):
            self.problem(node, 'link: expected exactly one of tcp and rtu')
        if 'rtu' not in given:
            at = self.fields(given.get('tcp'), 'link tcp', ('host', 'port'))
            host = self.text(at, 'link tcp', 'host', given.get('tcp'))
            return TcpLink(host, self.integer(at, 'link tcp', 'port', 502, 1, 65535))
        fields = ('port', 'baudrate', 'parity', 'stopbits', 'bytesize')
        at = self.fields(given['rtu'], 'link rtu', fields)
        return RtuLink(
            self.text(at, 'link rtu', 'port', given['rtu']),
            self.integer(at, 'link rtu', 'baudrate', 19200, 300, 4_000_000),
            self.choice(at, 'link rtu', 'parity', 'E', ('N', 'E', 'O')),
            self.integer(at, 'link rtu', 'stopbits', 1, 1, 2),
            # RTU sends bytes: V1.02 of the serial line specification, 2.5.1.
            self.integer(at, 'link rtu', 'bytesize', 8, 8, 8),
        )

    def device(self, node: yaml.Node, where: str) -> Device:
        given = self.fields(node, where, (*_DEVICE, *_ORDERED))
        name = self.text(given, where, 'name', node)
        where = f'device {name}' if name else where
        orders = self.orders(given, where, ('big', 'big'))
        poll_ms = self.integer(given, where, 'poll_ms', 1000, 10, 86_400_000)
        channels = tuple(
            self.channel(item, f'{where}: channel {n}', orders, poll_ms)
            for n, item in enumerate(self.items(given.get('channels'), where, node), 1)
        )
        return Device(
            name=name,
            unit_id=self.integer(given, where, 'unit_id', 1, 0, 255),
            max_gap=self.integer(given, where, 'max_gap', 8, 0, MOST_REGISTERS - 2),
            channels=channels,
            heartbeat=self.heartbeat(given.get('heartbeat'), f'{where}: heartbeat', orders),
            timestamp=self.timestamp(given.get('timestamp'), f'{where}: timestamp', orders),
        )

    def heartbeat(
        self, node: yaml.Node | None, where: str, orders: tuple[str, str]
    ) -> Heartbeat | None:
        if node is None:
            return None
        given = self.fields(node, where, (*_PLACE, 'after_ms'))
        after_ms = self.integer(given, where, 'after_ms', 5000, 10, 86_400_000)
        return Heartbeat(self.place(given, where, node, orders), after_ms / 1000)

    def timestamp(
        self, node: yaml.Node | None, where: str, orders: tuple[str, str]
    ) -> Timestamp | None:
        if node is None:
            return None
        given = self.fields(node, where, (*_PLACE, 'unit', 'max_ahead_ms', 'after_ms'))
        place = self.place(given, where, node, orders)
        if place.kind is None:
            self.problem(node, f'{where}: type: bool, expected a number')
        after_ms = self.integer(given, where, 'after_ms', 0, 0, 86_400_000)
        return Timestamp(
            item=place,
            unit_ns=TIME_UNITS_NS[self.choice(given, where, 'unit', 's', tuple(TIME_UNITS_NS))],
            max_ahead_s=self.integer(given, where, 'max_ahead_ms', 1000, 0, 86_400_000) / 1000,
            after_s=after_ms / 1000 if after_ms else math.inf,
        )

    def channel(
        self, node: yaml.Node, where: str, orders: tuple[str, str], poll_ms: int
    ) -> Channel:
        given = self.fields(node, where, (*_CHANNEL, *_PLACE, 'poll_ms'))
        symbol = self.text(given, where, 'symbol', node)
        name = self.text(given, where, 'channel', node)
        where = f'{where} ({symbol} {name})'
        item = self.place(given, where, node, orders)
        low = self.number(given, where, 'min', -math.inf)
        high = self.number(given, where, 'max', math.inf)
        if low > high:
            self.problem(given['min'], f'{where}: min: {low}, expected at most max ({high})')
        scale = self.number(given, where, 'scale', 1.0)
        if scale == 0:
            self.problem(given['scale'], f'{where}: scale: 0, expected a factor other than 0')
        return Channel(
            symbol=symbol,
            name=name,
            item=item,
            scale=scale,
            offset=self.number(given, where, 'offset', 0.0),
            unit=self.text(given, where, 'unit', None),
            minimum=low,
            maximum=high,
            error_values=self.error_values(given.get('error_values'), where, item),
            poll_s=self.integer(given, where, 'poll_ms', poll_ms, 10, 86_400_000) / 1000,
        )

    def place(
        self, given: Mapping[str, yaml.Node], where: str, node: yaml.Node, orders: tuple[str, str]
    ) -> Item:
        function = self.choice(given, where, 'function', 'holding', FUNCTIONS)
        bits = function in BIT_FUNCTIONS
        types = ('bool',) if bits else ('bool', *KINDS)
        name = self.choice(given, where, 'type', 'bool' if bits else 'uint16', types)
        kind = KINDS.get(name)
        size = 1 if kind is None else kind.words
        if 'address' not in given:
            self.problem(node, f'{where}: address: is missing, expected 0 to {ADDRESSES - size}')
        if kind is None and not bits and 'bit' not in given:
            self.problem(node, f'{where}: bit: is missing, expected 0 to 15 (type: bool)')
        if 'bit' in given and (bits or kind is not None):
            self.problem(given['bit'], f'{where}: bit: only a bool in a register has one')
        word_order, byte_order = self.orders(given, where, orders)
        return Item(
            function=function,
            address=self.integer(given, where, 'address', 0, 0, ADDRESSES - size),
            kind=kind,
            bit=self.integer(given, where, 'bit', 0, 0, 15),
            word_order=word_order,
            byte_order=byte_order,
        )

    def orders(
        self, given: Mapping[str, yaml.Node], where: str, default: tuple[str, str]
    ) -> tuple[str, str]:
        word = self.choice(given, where, 'word_order', default[0], ORDERS)
        return word, self.choice(given, where, 'byte_order', default[1], ORDERS)

    def error_values(
        self, node: yaml.Node | None, where: str, item: Item
    ) -> tuple[int | float, ...]:
        found: list[int | float] = []
        kind = item.kind
        for value_node in self.items(node, where, None):
            value = self.value(value_node)
            if kind is None:
                self.problem(value_node, f'{where}: error_values: a bool has none')
            elif _fits(value, kind):
                found.append(value)
            else:
                self.problem(
                    value_node,
                    f'{where}: error_values: {value!r}, expected '
                    f'{"a number" if kind.is_float else f"an integer of {kind.bits} bits"}',
                )
        return tuple(found)

    def check_names(self, devices: Iterable[Device], root: yaml.Node | None) -> None:
        devices = tuple(devices)
        names = [device.name for device in devices]
        pairs = [(c.symbol, c.name) for device in devices for c in device.channels]
        for name in {name for name in names if names.count(name) > 1}:
            self.problem(root, f'devices: name: {name!r} is given twice, expected one of each')
        for symbol, channel in {pair for pair in pairs if pairs.count(pair) > 1}:
            self.problem(
                root, f'devices: channel {channel!r} of {symbol!r} is given twice, expected once'
            )

    # --- YAML with lines ---

    def fields(
        self, node: yaml.Node | None, where: str, known: Iterable[str]
    ) -> dict[str, yaml.Node]:
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, f'{where}: expected a mapping of names to values')
            return {}
        names, found = list(known), {}
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                self.problem(key, f'{where}: {name} is given twice')
            elif name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f'did you mean {close[0]}?' if close else f'known are: {", ".join(names)}'
                self.problem(key, f'{where}: unknown field {name}; {hint}')
            else:
                found[name] = value
        return found

    def items(
        self, node: yaml.Node | None, where: str, needed_in: yaml.Node | None
    ) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode) and (node.value or needed_in is None):
            return list(node.value)
        if node is not None or needed_in is not None:
            self.problem(node or needed_in, f'{where}: expected a list with at least one item')
        return []

    def value(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return 'a list or mapping'
        try:
            return self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            return node.value

    def integer(
        self, given: Mapping[str, yaml.Node], where: str, name: str, default: int, low: int,
        high: int,
    ) -> int:  # fmt: skip
        if name not in given:
            return default
        value = self.value(given[name])
        if type(value) is int and low <= value <= high:
            return value
        self.problem(given[name], f'{where}: {name}: {value!r}, expected {low} to {high}')
        return default

    def number(
        self, given: Mapping[str, yaml.Node], where: str, name: str, default: float
    ) -> float:
        if name not in given:
            return default
        value = self.value(given[name])
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        self.problem(given[name], f'{where}: {name}: {value!r}, expected a finite number')
        return default

    def text(
        self, given: Mapping[str, yaml.Node], where: str, name: str, needed_in: yaml.Node | None
    ) -> str:
        if name not in given:
            if needed_in is not None:
                self.problem(needed_in, f'{where}: {name}: is missing, expected a text')
            return ''
        value = self.value(given[name])
        if isinstance(value, str) and value.strip():
            return value
        self.problem(given[name], f'{where}: {name}: {value!r}, expected a text (quote numbers)')
        return ''

    def choice(
        self, given: Mapping[str, yaml.Node], where: str, name: str, default: str,
        choices: tuple[str, ...],
    ) -> str:  # fmt: skip
        if name not in given:
            return default
        node = given[name]
        # YAML reads an unquoted N as a truth value: the text counts.
        value = node.value if isinstance(node, yaml.ScalarNode) else self.value(node)
        if value in choices:
            return str(value)
        self.problem(node, f'{where}: {name}: {value!r}, expected one of {", ".join(choices)}')
        return default

    def problem(self, node: yaml.Node | None, text: str) -> None:
        line = node.start_mark.line + 1 if node is not None else 1
        self.problems.append((line, f'{self.path}:{line}: {text}'))


def _fits(value: Any, kind: Kind) -> bool:
    if kind.is_float:
        return type(value) in {int, float} and abs(value) <= sys.float_info.max
    return type(value) is int and -(1 << kind.bits - 1) <= value < 1 << kind.bits
