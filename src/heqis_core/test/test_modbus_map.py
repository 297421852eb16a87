# SPDX-License-Identifier: Apache-2.0
"""The map of a Modbus source: what is read, and that each mistake is named with its line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError
from heqis_core.io.modbus_map import RtuLink, TcpLink
from heqis_core.io.modbus_map_file import load_map, parse_map
from heqis_core.io.modbus_values import KINDS

EXAMPLE = Path(__file__).resolve().parents[3] / 'config' / 'modbus.example.yaml'
HEAD = """version: 1
link: {tcp: {host: 127.0.0.1}}
devices:
- name: meter
  channels:
"""
SECOND = '- name: meter\n  channels:\n'
CHANNEL = '  - {symbol: S, channel: c, address: 1}\n'


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_map(text, 'm.yaml')
    return str(caught.value).splitlines()


def channel_problem(fields: str) -> str:
    found = problems(f'{HEAD}  - {{symbol: S, channel: c, {fields}}}\n')
    assert len(found) == 1, found
    assert found[0].startswith('m.yaml:6: device meter: channel 1')
    return found[0]


def test_the_shipped_example_is_a_map_with_two_devices():
    found = load_map(EXAMPLE)
    assert found.link == TcpLink('127.0.0.1', 502)
    meter, terminal = found.devices
    assert (meter.unit_id, terminal.unit_id) == (1, 2)
    power, energy, temperature, breaker = meter.channels
    assert (power.item.kind, power.unit, power.maximum) == (KINDS['float32'], 'kW', 5000)
    assert (energy.poll_s, power.poll_s) == (60.0, 1.0)
    assert temperature.error_values == (0x7FFF,)
    assert (breaker.item.kind, breaker.item.bit) == (None, 3)
    assert meter.heartbeat is not None
    assert meter.heartbeat.after_s == 5.0
    assert terminal.timestamp is not None
    assert terminal.timestamp.unit_ns == 10**9
    assert terminal.channels[0].item.word_order == 'little'
    assert terminal.channels[1].item.function == 'discrete'


def test_a_serial_link_has_the_defaults_of_the_standard():
    text = HEAD.replace('tcp: {host: 127.0.0.1}', 'rtu: {port: /dev/ttyS1}') + CHANNEL
    assert parse_map(text, 'm').link == RtuLink('/dev/ttyS1', 19200, 'E', 1, 8)
    none = text.replace('/dev/ttyS1}', '/dev/ttyS1, parity: N}')
    assert parse_map(none, 'm').link == RtuLink('/dev/ttyS1', 19200, 'N', 1, 8)


def test_a_channel_needs_no_more_than_symbol_name_and_address():
    (channel,) = parse_map(HEAD + CHANNEL, 'm').devices[0].channels
    assert (channel.scale, channel.offset, channel.minimum) == (1.0, 0.0, -math.inf)
    assert channel.item.kind == KINDS['uint16']


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ('address: 65536', 'address: 65536, expected 0 to 65535'),
        ('address: 65535, type: int32', 'address: 65535, expected 0 to 65534'),
        ('address: -1', 'address: -1, expected 0 to 65535'),
        ('address: 1.5', 'address: 1.5, expected 0 to 65535'),
        ('address: yes', 'address: True, expected 0 to 65535'),
        ('address: [1]', "address: 'a list or mapping', expected 0 to 65535"),
        ('type: int16', 'address: is missing'),
        ('address: 1, type: int24', "type: 'int24', expected one of bool, int16"),
        ('address: 1, function: coil, type: int16', "type: 'int16', expected one of bool"),
        ('address: 1, function: file', "function: 'file', expected one of holding, input"),
        ('address: 1, type: bool', 'bit: is missing, expected 0 to 15'),
        ('address: 1, type: bool, bit: 16', 'bit: 16, expected 0 to 15'),
        ('address: 1, bit: 3', 'bit: only a bool'),
        ('address: 1, word_order: middle', "word_order: 'middle', expected one of big, little"),
        ('address: 1, byte_order: 1', "byte_order: '1', expected one of big, little"),
        ('address: 1, scale: 0', 'scale: 0, expected a factor'),
        ('address: 1, scale: .inf', 'scale: inf, expected a finite number'),
        ('address: 1, offset: ten', "offset: 'ten', expected a finite number"),
        (f'address: 1, offset: {10**400}', 'expected a finite number'),
        ('address: 1, min: 5, max: 4', 'min: 5.0, expected at most max (4.0)'),
        ('address: 1, error_values: 3', 'expected a list'),
        ('address: 1, error_values: [0x10000]', 'error_values: 65536, expected an integer of 16'),
        ('address: 1, error_values: [1.5]', 'error_values: 1.5, expected an integer of 16'),
        ('address: 1, type: float32, error_values: [x]', "error_values: 'x', expected a number"),
        ('address: 1, function: coil, error_values: [1]', 'error_values: a bool has none'),
        ('address: 1, poll_ms: 1', 'poll_ms: 1, expected 10 to 86400000'),
        ('address: 1, adress: 2', 'unknown field adress; did you mean address?'),
        ('address: 1, unit: 5', 'unit: 5, expected a text'),
    ],
)
def test_a_wrong_field_is_named_with_file_line_item_value_and_what_was_expected(fields, expected):
    assert expected in channel_problem(fields)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', ['m.yaml:1: the file: version: expected 1', 'm.yaml:1: link: is missing']),
        ('[1, 2]', ['m.yaml:1: the file: expected a mapping']),
        ('version: 2\n' + HEAD[11:] + CHANNEL, ['m.yaml:1: the file: version: expected 1']),
        (
            HEAD.replace('tcp: {host: 127.0.0.1}', 'timeout_ms: 5') + CHANNEL,
            ['m.yaml:2: link: expected exactly one of tcp and rtu', 'timeout_ms: 5, expected 10'],
        ),
        (
            HEAD.replace('{host: 127.0.0.1}', '{host: 127.0.0.1, port: 0}') + CHANNEL,
            ['m.yaml:2: link tcp: port: 0, expected 1 to 65535'],
        ),
        (HEAD.replace('{host: 127.0.0.1}', '{}') + CHANNEL, ['link tcp: host: is missing']),
        (HEAD, ['m.yaml:5: device meter: expected a list with at least one item']),
        (HEAD + CHANNEL + CHANNEL, ["channel 'c' of 'S' is given twice"]),
        (
            HEAD + CHANNEL + HEAD[HEAD.index('- name') :] + CHANNEL,
            ["name: 'meter' is given twice"],
        ),
        (HEAD + '  - {symbol: 1, channel: c, address: 1}\n', ['symbol: 1, expected a text']),
        (HEAD + CHANNEL + '  heartbeat: {after_ms: 5}\n', ['m.yaml:7: device meter: heartbeat']),
        (
            HEAD + CHANNEL + '  timestamp: {address: 1, function: coil}\n',
            ['m.yaml:7: device meter: timestamp: type: bool, expected a number'],
        ),
        ('a: &x [*x]\n', ['m.yaml:']),
        ('a: [', ['m.yaml:1: not YAML']),
        ('\x00', ['m.yaml:1: not YAML']),
    ],
)
def test_a_map_that_does_not_hold_together_is_refused_with_every_reason(text, expected):
    found = problems(text)
    for part in expected:
        assert any(part in line for line in found), found


def test_a_map_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'nowhere\.yaml: cannot be read'):
        load_map(tmp_path / 'nowhere.yaml')


@given(st.text(max_size=200))
def test_any_text_is_a_map_or_a_named_error(text):
    with pytest.raises(ConfigError, match=r'm\.yaml:'):
        parse_map(text, 'm.yaml')


@given(st.data())
def test_the_example_with_any_line_altered_is_a_map_or_a_named_error(data):
    lines = EXAMPLE.read_text(encoding='utf-8').splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(0, len(lines[at])))
    lines[at] = lines[at][:cut] + data.draw(st.text(max_size=5)) + lines[at][cut + 1 :]
    text = ''
    try:
        parse_map('\n'.join(lines), 'm.yaml')
    except ConfigError as error:
        text = str(error)
    assert all(line.startswith('m.yaml:') for line in text.splitlines())
