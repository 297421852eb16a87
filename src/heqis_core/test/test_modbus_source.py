# SPDX-License-Identifier: Apache-2.0
"""Modbus source against real pymodbus servers, TCP and RTU, and against hostile ones."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from heqis_core.io.modbus_link import back_off
from heqis_core.io.modbus_map_file import parse_map
from heqis_core.io.modbus_source import ModbusSource
from heqis_core.io.modbus_values import KINDS, ORDERS
from heqis_core.io.testing_modbus import (
    FakeDevice,
    encode_words,
    hostile_server,
    rtu_devices,
    serial_line,
    tcp_devices,
)
from heqis_core.readings import Reading, ReadingStatus
from heqis_core.testing import free_port, wait_until

TEMPERATURE = '{symbol: S, channel: temperature, address: 10, type: int16, scale: 0.1, offset: -5}'


class Listener:
    """A source that was opened, what it said, and every reading so far."""

    def __init__(self, source: ModbusSource, errors: list[str]) -> None:
        self.source, self.errors = source, errors
        self.readings: list[Reading] = []

    @property
    def counts(self) -> dict[str, int]:
        return {name: n for name, n in self.source.counts.items() if n}

    def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Poll until the condition holds."""

        def polled() -> bool:
            self.readings += self.source.poll(0.05)
            return condition()

        wait_until(polled, timeout_s, f'{self.counts} {self.errors}')

    def next(self, n: int = 1) -> list[Reading]:
        """Return the next readings, at least `n`."""
        at = len(self.readings)
        self.until(lambda: len(self.readings) >= at + n)
        return self.readings[at:]

    def values(self) -> dict[str, float]:
        """Return the last value of each channel."""
        return {reading.channel: reading.value for reading in self.readings}


def map_text(link: str, channels: list[str], device: str = '', settings: str = '') -> str:
    lines = [f'  - {channel}' for channel in channels]
    return '\n'.join(
        [
            'version: 1',
            f'link: {{{link}, timeout_ms: 300, backoff_ms: 20, backoff_max_ms: 50{settings}}}',
            'devices:',
            '- name: meter',
            '  poll_ms: 20',
            device,
            '  channels:',
            *lines,
        ]
    )


@contextmanager
def opened(text: str) -> Iterator[Listener]:
    errors: list[str] = []
    source = ModbusSource(parse_map(text, 'm.yaml'), errors.append)
    source.open()
    try:
        yield Listener(source, errors)
    finally:
        source.close()


@contextmanager
def on_tcp(
    channels: list[str], device: str = '', *more: FakeDevice
) -> Iterator[tuple[Listener, FakeDevice]]:
    fake, port = FakeDevice(), free_port()
    with tcp_devices(port, fake, *more):
        link = f'tcp: {{host: 127.0.0.1, port: {port}}}'
        with opened(map_text(link, channels, device)) as listener:
            yield listener, fake


@contextmanager
def on_rtu(channels: list[str], *more: FakeDevice) -> Iterator[tuple[Listener, FakeDevice]]:
    fake = FakeDevice()
    with (
        serial_line() as (far, near),
        rtu_devices(far, fake, *more),
        opened(map_text(f'rtu: {{port: {near}, parity: N}}', channels)) as listener,
    ):
        yield listener, fake


# --- values ---


def test_every_type_in_every_order_comes_over_the_wire():
    channels, expected, at = [], {}, 0
    cells: list[tuple[int, list[int]]] = []
    for name, kind in KINDS.items():
        for word_order in ORDERS:
            for byte_order in ORDERS:
                value = -1234.5 if kind.is_float else 77 if name.startswith('u') else -77
                channel = f'{name}_{word_order}_{byte_order}'
                channels.append(
                    f'{{symbol: S, channel: {channel}, address: {at}, type: {name}, '
                    f'word_order: {word_order}, byte_order: {byte_order}}}'
                )
                expected[channel] = float(value)
                cells.append((at, encode_words(value, kind, word_order, byte_order)))
                at += kind.words
    with on_tcp(channels) as (listener, fake):
        for address, words in cells:
            fake.memory['holding'][address : address + len(words)] = words
        listener.until(lambda: listener.values() == expected)
        assert {reading.symbol for reading in listener.readings} == {'S'}
        assert max(count for _, _, count in fake.requests) <= 125


@pytest.mark.parametrize('serve', [on_tcp, on_rtu])
def test_coils_inputs_bits_and_scaled_numbers_come_over_tcp_and_over_a_serial_line(serve):
    channels = [
        TEMPERATURE,
        '{symbol: S, channel: coil, function: coil, address: 37}',
        '{symbol: S, channel: discrete, function: discrete, address: 3}',
        '{symbol: T, channel: bit, function: input, address: 8, type: bool, bit: 15}',
    ]
    with serve(channels) as (listener, fake):
        fake.put(10, 'int16', -200)
        fake.memory['coil'][37] = 1
        fake.put(8, 'uint16', 0x8000, 'input')
        before_ns = time.time_ns()
        readings = listener.next(4)
        assert listener.values() == {'temperature': -25.0, 'coil': 1, 'discrete': 0, 'bit': 1}
        times = [reading.event_time_ns for reading in readings]
        assert times == sorted(times)
        assert before_ns <= times[0] <= times[-1] <= time.time_ns()
        fake.memory['coil'][37], fake.memory['discrete'][3] = 0, 1
        listener.until(lambda: listener.values()['discrete'] == 1)
        assert all(reading.status == ReadingStatus.OK for reading in listener.readings)
        assert set(listener.counts) <= {'connects', 'requests', 'readings', 'overruns'}


def test_several_units_of_a_serial_line_are_asked_in_turn():
    other = FakeDevice(7)
    other.put(4, 'float64', 2.25)
    text = '\n- name: other\n  unit_id: 7\n  poll_ms: 20\n  channels:\n  - '
    channels = [f'{TEMPERATURE}{text}{{symbol: T, channel: level, address: 4, type: float64}}']
    with on_rtu(channels, other) as (listener, _):
        listener.until(lambda: set(listener.values()) == {'temperature', 'level'})
        assert listener.values()['level'] == 2.25


def test_neighbours_come_with_one_request_and_other_periods_with_their_own():
    channels = [
        '{symbol: S, channel: a, address: 1}',
        '{symbol: S, channel: b, address: 5}',
        '{symbol: S, channel: far, address: 100}',
        '{symbol: S, channel: slow, address: 6, poll_ms: 60000}',
    ]
    with on_tcp(channels) as (listener, fake):
        listener.until(lambda: fake.requests.count(('holding', 1, 5)) >= 3)
        assert fake.requests.count(('holding', 6, 1)) == 1
        assert set(fake.requests) == {
            ('holding', 1, 5),
            ('holding', 100, 1),
            ('holding', 6, 1),
        }


def test_error_values_and_values_out_of_range_are_counted_and_give_no_reading():
    channels = [
        '{symbol: S, channel: open_sensor, address: 0, type: int16, error_values: [0x7FFF]}',
        '{symbol: S, channel: nan, address: 1, type: float32}',
        '{symbol: S, channel: hot, address: 3, min: 0, max: 100, unit: °C}',
        '{symbol: S, channel: good, address: 4}',
    ]
    with on_tcp(channels) as (listener, fake):
        fake.put(0, 'uint16', 0x7FFF)
        fake.put(1, 'float32', math.nan)
        fake.put(3, 'uint16', 101)
        listener.next(3)
        assert set(listener.values()) == {'good'}
        assert listener.counts['error_values'] == 2 * listener.counts['out_of_range'] >= 6
        assert listener.errors == [
            f'm.yaml ({listener.source._settings.link}): S hot: 101 °C, allowed are 0 to 100; '
            'not used'
        ]
        fake.put(0, 'int16', -3)
        fake.put(3, 'uint16', 100)
        listener.until(lambda: set(listener.values()) == {'good', 'open_sensor', 'hot'})


# --- age ---


def test_a_heartbeat_must_change_before_and_while_channels_are_served():
    device = '  heartbeat: {address: 0, after_ms: 150}'
    with on_tcp([TEMPERATURE], device) as (listener, fake):
        listener.until(lambda: listener.counts.get('withheld_stale', 0) >= 3)
        assert listener.readings == []
        fake.memory['holding'][0] += 1
        listener.next(2)
        listener.until(lambda: listener.readings[-1].status == ReadingStatus.STALE)
        assert math.isnan(listener.readings[-1].value)
        assert listener.counts['went_stale'] == 1
        assert 'heartbeat or timestamp stands still' in listener.errors[-1]
        n = len(listener.readings)
        withheld = listener.counts['withheld_stale']
        listener.until(lambda: listener.counts['withheld_stale'] >= withheld + 3)
        assert len(listener.readings) == n
        fake.memory['holding'][0] += 1
        assert listener.next()[0].status == ReadingStatus.OK


def test_a_timestamp_register_is_the_event_time_and_gives_each_value_once():
    device = '  timestamp: {address: 0, type: uint64, unit: ms, after_ms: 200}'
    first_ms = time.time_ns() // 1_000_000 - 5_000
    with on_tcp([TEMPERATURE.replace('10,', '40,')], device) as (listener, fake):
        fake.put(0, 'uint64', first_ms)
        (reading,) = listener.next()
        assert reading.event_time_ns == first_ms * 1_000_000
        listener.until(lambda: listener.counts.get('unchanged', 0) >= 3)
        listener.until(lambda: len(listener.readings) == 2)
        assert listener.readings[1].status == ReadingStatus.STALE
        fake.put(0, 'uint64', first_ms + 1)
        assert listener.next()[0].event_time_ns == (first_ms + 1) * 1_000_000
        requests = [request for request in fake.requests if request[0] == 'holding']
        assert set(requests) == {('holding', 0, 4), ('holding', 40, 1)}
        # What reads the timestamp comes last: no value is newer than its event time.
        assert requests[:2] == [('holding', 40, 1), ('holding', 0, 4)]


@pytest.mark.parametrize('ahead_ms', [60_000, 10**15, -(10**13)])
def test_a_timestamp_from_the_future_or_none_gives_no_reading(ahead_ms):
    device = '  timestamp: {address: 0, type: int64, unit: ms}'
    with on_tcp([TEMPERATURE], device) as (listener, fake):
        fake.put(0, 'int64', time.time_ns() // 1_000_000 + ahead_ms)
        listener.until(lambda: listener.counts.get('bad_timestamps', 0) >= 2)
        assert listener.readings == []
        assert len(listener.errors) == 1
        assert 'is not between 1970 and 1 s after now' in listener.errors[0]


# --- what goes wrong ---


def test_an_exception_response_is_named_with_device_address_and_channel():
    with on_tcp([TEMPERATURE]) as (listener, fake):
        fake.failing = 4
        listener.until(lambda: listener.counts.get('exceptions', 0) >= 2)
        (error,) = listener.errors
        for part in (
            'm.yaml',
            'device meter, unit 1',
            'holding 10 (S temperature)',
            'exception 4',
        ):
            assert part in error
        fake.failing = 0
        listener.next()


def test_one_illegal_address_does_not_take_its_neighbours_with_it():
    channels = [
        '{symbol: S, channel: a, address: 1}',
        '{symbol: S, channel: gone, address: 2}',
        '{symbol: S, channel: b, address: 5}',
    ]
    with on_tcp(channels) as (listener, fake):
        fake.missing = {('holding', 2), ('holding', 4)}
        listener.until(lambda: set(listener.values()) == {'a', 'b'})
        assert listener.counts['split_requests'] == 1
        listener.until(lambda: len(listener.errors) == 2)
        assert 'from now on asked for one by one' in listener.errors[0]
        assert 'holding 2 (S gone): exception 2 (illegal data address)' in listener.errors[1]


def test_a_server_that_goes_and_comes_back_is_found_again():
    fake, port = FakeDevice(), free_port()
    link = f'tcp: {{host: 127.0.0.1, port: {port}}}'
    with opened(map_text(link, [TEMPERATURE])) as listener:
        listener.until(lambda: listener.counts.get('connect_failures', 0) >= 2)
        for n in (1, 2):
            with tcp_devices(port, fake):
                listener.next(2)
                assert listener.counts['connects'] == n
            failures = listener.counts['connect_failures']
            listener.until(lambda f=failures: listener.counts['connect_failures'] > f)
            assert listener.counts['lost_connections'] == n
        assert sum('no connection' in error for error in listener.errors) == 3


def test_a_slow_server_times_out_is_named_and_heals():
    with on_tcp([TEMPERATURE]) as (listener, fake):
        listener.next()
        fake.delay_s = 0.6
        listener.until(lambda: listener.counts.get('timeouts', 0) >= 2)
        assert 'holding 10 (S temperature): no reply within 0.3 s' in listener.errors[0]
        fake.delay_s = 0.0
        fake.put(10, 'int16', 40)
        listener.until(lambda: listener.values()['temperature'] == -1.0)


def test_replies_that_always_come_too_late_are_timeouts_and_three_of_them_a_lost_connection():
    wait_s, stop = [0.12], threading.Event()

    def answer(request: bytes) -> bytes:
        stop.wait(wait_s[0])
        return mbap(request, b'\x03\x02\x00\x64')

    with hostile_server(answer) as port:
        link = f'tcp: {{host: 127.0.0.1, port: {port}}}'
        text = map_text(link, [TEMPERATURE]).replace('timeout_ms: 300', 'timeout_ms: 80')
        with opened(text) as listener:
            listener.until(lambda: listener.counts.get('lost_connections', 0) >= 1)
            assert listener.counts['timeouts'] == 2
            assert 'bad_replies' not in listener.counts
            assert listener.readings == []
            wait_s[0] = 0.0
            listener.next()
            assert listener.counts['connects'] >= 2


def test_a_silent_unit_of_a_serial_line_leaves_the_others_their_turns():
    silent = FakeDevice(9)
    silent.delay_s = 60.0
    text = '\n- name: other\n  unit_id: 9\n  poll_ms: 20\n  channels:\n  - '
    channels = [f'{TEMPERATURE}{text}{{symbol: T, channel: level, address: 4}}']
    with on_rtu(channels, silent) as (listener, _):
        listener.until(lambda: listener.counts.get('timeouts', 0) >= 2)
        listener.next(3)
        assert set(listener.values()) == {'temperature'}
        assert len(listener.errors) == 1
        assert 'device other, unit 9: holding 4 (T level): no reply' in listener.errors[0]


def mbap(request: bytes, pdu: bytes, tid: int | None = None) -> bytes:
    """Return a response frame; the transaction is that of the request if none is given."""
    head = request[:2] if tid is None else tid.to_bytes(2, 'big')
    return head + b'\0\0' + (len(pdu) + 1).to_bytes(2, 'big') + request[6:7] + pdu


HOSTILE: dict[str, Callable[[bytes], bytes | None]] = {
    'hangs_up': lambda _: None,
    'torn_frame': lambda request: mbap(request, b'\x03\x02\x00\x07')[:-1],
    'half_a_header': lambda request: request[:3],
    'text': lambda _: b'HTTP/1.1 400 Bad Request\r\n\r\n',
    'zero_length': lambda request: request[:2] + b'\0\0\0\0\x01',
    'longest_length': lambda request: request[:2] + b'\0\0\xff\xff\x01\x03',
    'too_few_registers': lambda request: mbap(request, b'\x03\x00'),
    'too_many_registers': lambda request: mbap(request, b'\x03\x04\0\x01\0\x02'),
    'byte_count_lies': lambda request: mbap(request, b'\x03\xff\x00\x07'),
    'odd_byte_count': lambda request: mbap(request, b'\x03\x01\x07'),
    'other_function': lambda request: mbap(request, b'\x04\x02\x00\x07'),
    'coils_instead': lambda request: mbap(request, b'\x01\x01\x01'),
    'other_exception': lambda request: mbap(request, b'\x84\x02'),
    'empty_exception': lambda request: mbap(request, b'\x83'),
    'unknown_function': lambda request: mbap(request, b'\x6f\x00'),
    'diagnostics': lambda request: mbap(request, b'\x08'),
    'device_information': lambda request: mbap(request, b'\x2b\x0e\x01'),
    'other_transaction': lambda request: mbap(request, b'\x03\x02\x00\x07', 0xABCD),
    'zeros': lambda _: bytes(300),
    'ones': lambda _: b'\xff' * 300,
}


@pytest.mark.parametrize('name', HOSTILE)
def test_whatever_a_server_sends_nothing_crashes_and_nothing_is_read_from_it(name):
    with hostile_server(HOSTILE[name]) as port:
        link = f'tcp: {{host: 127.0.0.1, port: {port}}}'
        text = map_text(link, [TEMPERATURE]).replace('timeout_ms: 300', 'timeout_ms: 50')
        with opened(text) as listener:
            failed = ('bad_replies', 'lost_connections', 'timeouts')
            listener.until(lambda: sum(listener.counts.get(kind, 0) for kind in failed) >= 2)
            assert listener.readings == []
            assert listener.errors


def test_random_bytes_never_crash_and_a_true_reply_afterwards_is_read():
    chance = random.Random(5)
    garbage = [True]

    def answer(request: bytes) -> bytes:
        if garbage[0]:
            head = request[:2] + b'\0\0' if chance.random() < 0.5 else b''
            return head + chance.randbytes(chance.randrange(1, 300))
        return mbap(request, b'\x03\x02\x00\x64')

    with hostile_server(answer) as port:
        link = f'tcp: {{host: 127.0.0.1, port: {port}}}'
        text = map_text(link, [TEMPERATURE]).replace('timeout_ms: 300', 'timeout_ms: 30')
        with opened(text) as listener:
            listener.until(lambda: listener.counts.get('requests', 0) >= 20)
            garbage[0] = False
            listener.until(lambda: listener.values().get('temperature') == 5.0)


def test_garbage_on_a_serial_line_is_counted_and_passed_over():
    stop = threading.Event()

    def babble(name: str) -> None:
        with open(name, 'r+b', buffering=0) as line:
            while not stop.wait(0.01):
                line.write(b'\x01\x03\x02\xff')

    def failed() -> bool:
        return sum(listener.counts.get(name, 0) for name in ('bad_replies', 'timeouts')) >= 2

    with (
        serial_line() as (far, near),
        opened(map_text(f'rtu: {{port: {near}, parity: N}}', [TEMPERATURE])) as listener,
    ):
        thread = threading.Thread(target=babble, args=(far,))
        thread.start()
        try:
            listener.until(failed)
        finally:
            stop.set()
            thread.join()
        assert listener.readings == []
        with rtu_devices(far, FakeDevice()):
            listener.next(2)


def test_a_serial_port_that_is_not_there_is_told_once_and_tried_again(tmp_path):
    text = map_text(f'rtu: {{port: {tmp_path}/ttyNone}}', [TEMPERATURE])
    with opened(text) as listener:
        listener.until(lambda: listener.counts.get('connect_failures', 0) >= 3)
        assert len(listener.errors) == 1
        assert 'ttyNone' in listener.errors[0]


# --- opening and closing ---


def test_close_from_another_thread_wakes_a_poll_and_open_starts_anew():
    slow = TEMPERATURE.replace('}', ', poll_ms: 60000}')
    with on_tcp([slow]) as (listener, _):
        listener.next()
        done: list[list[Reading]] = []
        thread = threading.Thread(target=lambda: done.append(listener.source.poll(60.0)))
        thread.start()
        listener.source.close()
        thread.join(10.0)
        assert done == [[]]
        assert listener.source.poll(0.0) == []
        listener.source.open()
        listener.next()


def test_the_wait_after_failures_doubles_up_to_its_limit_with_jitter():
    for failures, full in ((0, 0.1), (1, 0.2), (3, 0.8), (10, 2.0), (10_000, 2.0)):
        waits = [back_off(failures, 0.1, 2.0) for _ in range(200)]
        assert full / 2 <= min(waits) < max(waits) <= full
