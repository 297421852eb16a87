# SPDX-License-Identifier: Apache-2.0
"""Read-only Modbus/TCP server against real pymodbus clients and raw sockets."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pymodbus.client import ModbusTcpClient

from heqis_core.errors import ConfigError
from heqis_core.io.modbus_server import ModbusServer, check_address
from heqis_core.testing import free_port, wait_until

SIZE = 200


def words(address: int, count: int) -> list[int] | None:
    """Return registers that hold their own address."""
    return list(range(address, address + count)) if address + count <= SIZE else None


@contextmanager
def serving(unit_id: int = 1, clients: int = 8, read=words) -> Iterator[ModbusServer]:
    server, stop = ModbusServer(read, '127.0.0.1', 0, unit_id, clients), threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: server.port != 0, 10.0)
        yield server
    finally:
        stop.set()
        thread.join(10.0)
        assert not thread.is_alive()


@contextmanager
def client(server: ModbusServer) -> Iterator[ModbusTcpClient]:
    found = ModbusTcpClient('127.0.0.1', port=server.port, timeout=5, retries=0)
    assert found.connect()
    with contextlib.closing(found):
        yield found


def test_holding_and_input_registers_are_the_same_up_to_the_last_one():
    with serving() as server, client(server) as plc:
        assert plc.read_holding_registers(5, count=125).registers == list(range(5, 130))
        assert plc.read_input_registers(SIZE - 1, count=1).registers == [SIZE - 1]
        assert server.counters['requests'] == 2
        assert server.counters['requests_refused'] == 0


def test_whatever_is_no_read_of_registers_that_exist_gets_an_exception_and_changes_nothing():
    with serving() as server, client(server) as plc:
        refused = [
            (plc.write_register(5, 7), 1),
            (plc.write_registers(5, [1, 2]), 1),
            (plc.write_coil(5, True), 1),
            (plc.write_coils(5, [True, False]), 1),
            (plc.mask_write_register(address=5, and_mask=0, or_mask=1), 1),
            (plc.readwrite_registers(read_address=0, read_count=1, address=5, values=[9]), 1),
            (plc.read_coils(0, count=8), 1),
            (plc.read_discrete_inputs(0, count=8), 1),
            (plc.read_holding_registers(SIZE, count=1), 2),
            (plc.read_holding_registers(SIZE - 1, count=2), 2),
            (plc.read_input_registers(65_535, count=1), 2),
            (plc.read_input_registers(0, count=1, device_id=9), 11),
        ]
        for number, (reply, code) in enumerate(refused):
            assert reply.isError(), number
            assert reply.exception_code == code, number
        assert server.counters['requests_refused'] == len(refused)
        assert plc.read_holding_registers(5, count=1).registers == [5]


def test_unit_zero_answers_for_every_unit():
    with serving(unit_id=0) as server, client(server) as plc:
        for unit in (0, 1, 247):
            assert plc.read_input_registers(3, count=1, device_id=unit).registers == [3]


def test_more_clients_than_allowed_are_closed_and_the_first_ones_stay():
    with serving(clients=2) as server:
        with client(server) as first, client(server) as second:
            assert first.read_input_registers(1, count=1).registers == [1]
            assert second.read_input_registers(1, count=1).registers == [1]
            with socket.create_connection(('127.0.0.1', server.port), 10.0) as third:
                assert third.recv(1) == b''
            assert server.counters['connections_refused'] == 1
            assert first.read_input_registers(2, count=1).registers == [2]
        wait_until(lambda: server.counters['clients'] == 0, 10.0)
        with client(server) as fourth:
            assert fourth.read_input_registers(3, count=1).registers == [3]


def test_garbage_neither_ends_the_server_nor_disturbs_another_client():
    chance = random.Random(3)
    with serving(clients=100) as server, client(server) as plc:
        for _ in range(60):
            with socket.create_connection(('127.0.0.1', server.port), 10.0) as hostile:
                head = bytes([0, 1, 0, 0, 0, chance.randrange(256), 1, chance.randrange(256)])
                hostile.sendall(chance.choice([b'', head]) + chance.randbytes(300))
            assert plc.read_input_registers(7, count=2).registers == [7, 8]


def test_a_read_that_fails_is_an_exception_for_the_client_and_the_server_goes_on():
    broken = [True]

    def read(address: int, count: int) -> list[int] | None:
        if broken[0]:
            raise ValueError(address)
        return words(address, count)

    with serving(read=read) as server, client(server) as plc:
        assert plc.read_input_registers(0, count=1).exception_code == 4
        broken[0] = False
        assert plc.read_input_registers(0, count=1).registers == [0]


def test_the_server_stops_with_clients_connected_and_its_port_is_free_again():
    with serving() as server, client(server) as plc:
        port = server.port
        assert plc.read_input_registers(0, count=1).registers == [0]
    check_address('127.0.0.1', port, False)
    assert server.port == 0


def test_an_address_off_loopback_needs_a_trusted_network():
    for host in ('0.0.0.0', '::', '192.0.2.1', 'plc.example'):
        with pytest.raises(ConfigError, match='off loopback'):
            check_address(host, 5020, False)
    check_address('0.0.0.0', free_port(), True)
    check_address('localhost', free_port(), False)


def test_a_port_that_is_taken_or_a_host_that_is_not_here_is_named():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f'127.0.0.1 port {port}: Address already in use'):
            check_address('127.0.0.1', port, False)
        server = ModbusServer(words, '127.0.0.1', port, 1, 1)
        with pytest.raises(ConfigError, match='cannot be listened on'):
            server.run(threading.Event())
    with pytest.raises(ConfigError, match=r'cannot listen on 192\.0\.2\.1'):
        check_address('192.0.2.1', 5020, True)
