# SPDX-License-Identifier: Apache-2.0
"""Modbus devices for tests: real pymodbus servers in a thread, TCP or RTU, and hostile ones.

Nothing outside a test imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from heqis_core.io.modbus_values import KINDS, Kind

SIZE = 512
_START_S = 10.0
_BLOCKS = {1: 'coil', 2: 'discrete', 3: 'holding', 4: 'input', 5: 'coil'}
_WRITE_COIL = 5


def encode_words(
    value: int | float, kind: Kind, word_order: str = 'big', byte_order: str = 'big'
) -> list[int]:
    """Return the registers in which a device of this order keeps a number."""
    data = struct.pack(f'>{kind.code}', value)
    letter = '>' if byte_order == 'big' else '<'
    words = list(struct.unpack(f'{letter}{kind.words}H', data))
    return words if word_order == 'big' else words[::-1]


class FakeDevice:
    """The memory of one unit, and how it misbehaves.

    Attributes:
        memory: values by function, `SIZE` each.
        missing: (function, address) pairs that answer with exception 2.
        failing: exception code of every answer; 0 for none.
        delay_s: wait before an answer.
        requests: (function, address, count) of every read; bits count in 16s.
        writes: (coil, value, monotonic seconds) of every coil that was switched.
    """

    def __init__(self, unit_id: int = 1) -> None:
        self.unit_id = unit_id
        self.memory = {function: [0] * SIZE for function in set(_BLOCKS.values())}
        self.missing: set[tuple[str, int]] = set()
        self.failing = 0
        self.delay_s = 0.0
        self.requests: list[tuple[str, int, int]] = []
        self.writes: list[tuple[int, bool, float]] = []

    def put(self, address: int, kind: str, value: int | float, function: str = 'holding') -> None:
        """Write a number in the standard's order."""
        words = encode_words(value, KINDS[kind])
        self.memory[function][address : address + len(words)] = words

    def sim_device(self) -> SimDevice:
        """Return what a pymodbus server serves."""
        bits = [SimData(0, count=SIZE, values=False, datatype=DataType.BITS) for _ in range(2)]
        words = [SimData(0, count=SIZE, values=0, datatype=DataType.REGISTERS) for _ in range(2)]
        blocks = ([bits[0]], [bits[1]], [words[0]], [words[1]])
        return SimDevice(self.unit_id, simdata=blocks, action=self._act)

    async def _act(
        self,
        code: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: Sequence[int] | Sequence[bool] | None,
    ) -> ExcCodes | None:
        function = _BLOCKS[code]
        if code != _WRITE_COIL:
            self.requests.append((function, address, count))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.failing:
            return ExcCodes(self.failing)
        if any((function, at) in self.missing for at in range(address, address + count)):
            return ExcCodes.ILLEGAL_ADDRESS
        memory = self.memory[function]
        if values is not None:
            memory[address] = int(values[0])
            self.writes.append((address, bool(values[0]), time.monotonic()))
            return None
        if code in {3, 4}:
            registers[address : address + count] = memory[address : address + count]
            return None
        for at in range(address // 16, address // 16 + count):
            bits = memory[16 * at : 16 * at + 16]
            registers[at] = sum(bool(bit) << n for n, bit in enumerate(bits))
        return None


Make = Callable[[], ModbusTcpServer | ModbusSerialServer]


@contextmanager
def _serving(make: Make) -> Iterator[None]:
    ready, loop = threading.Event(), asyncio.new_event_loop()
    servers: list[ModbusTcpServer | ModbusSerialServer] = []

    async def main() -> None:
        servers.append(make())
        await servers[0].serve_forever(background=True)
        ready.set()
        await servers[0].serving
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    if not ready.wait(_START_S):
        raise AssertionError('the Modbus server did not start')
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(servers[0].shutdown(), loop)
        thread.join(_START_S)
        loop.close()


@contextmanager
def tcp_devices(port: int, *devices: FakeDevice) -> Iterator[None]:
    """Serve units on a port of loopback."""
    units = [device.sim_device() for device in devices]
    with _serving(lambda: ModbusTcpServer(units, address=('127.0.0.1', port))):
        yield


@contextmanager
def rtu_devices(port: str, *devices: FakeDevice) -> Iterator[None]:
    """Serve units on a serial line."""
    units = [device.sim_device() for device in devices]
    with _serving(lambda: ModbusSerialServer(units, framer=FramerType.RTU, port=port)):
        yield


@contextmanager
def serial_line() -> Iterator[tuple[str, str]]:
    """Yield the names of the two ends of a serial line made of pseudo-terminals."""
    pairs = [os.openpty() for _ in range(2)]
    for _, end in pairs:
        tty.setraw(end)
    masters, stop = [master for master, _ in pairs], threading.Event()

    def carry() -> None:
        while not stop.is_set():
            for master in select.select(masters, [], [], 0.05)[0]:
                other = masters[1 - masters.index(master)]
                with contextlib.suppress(OSError):
                    os.write(other, os.read(master, 4096))

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    try:
        yield os.ttyname(pairs[0][1]), os.ttyname(pairs[1][1])
    finally:
        stop.set()
        thread.join(_START_S)
        for pair in pairs:
            for descriptor in pair:
                os.close(descriptor)


@contextmanager
def hostile_server(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Yield a port of loopback that answers each request with any bytes; None hangs up."""
    stop = threading.Event()
    with socket.create_server(('127.0.0.1', 0)) as listening:
        listening.settimeout(0.05)

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(0.05)
                        talk(connection)

        def talk(connection: socket.socket) -> None:
            while not stop.is_set():
                try:
                    request = connection.recv(4096)
                except TimeoutError:
                    continue
                reply = answer(request) if request else None
                if reply is None:
                    return
                connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            stop.set()
            thread.join(_START_S)
