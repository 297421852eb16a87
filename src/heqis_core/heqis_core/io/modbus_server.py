# SPDX-License-Identifier: Apache-2.0
"""Serves registers that can only be read over Modbus/TCP: one event loop in the caller's thread.

Holding and input registers are the same. Everything else is refused: a write or another function
with exception 1, an address that is not there with 2, another unit with 11.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import cast

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from heqis_core.errors import ConfigError
from heqis_core.hosts import is_loopback

Read = Callable[[int, int], 'list[int] | None']
"""Returns `count` registers from `address`, None if one of them does not exist."""

_READ_HOLDING, _READ_INPUT = 3, 4
_POLL_S = 0.05
_ADDRESSES = 65_535
_KEEPALIVE = (
    (socket.SOL_SOCKET, 'SO_KEEPALIVE', 1),
    (socket.IPPROTO_TCP, 'TCP_KEEPIDLE', 10),
    (socket.IPPROTO_TCP, 'TCP_KEEPINTVL', 5),
    (socket.IPPROTO_TCP, 'TCP_KEEPCNT', 3),
)
"""A client that vanished without a word frees its connection after some 25 s."""

# Refusals are counted; without a handler pymodbus would write each of them to stderr.
logging.getLogger('pymodbus').addHandler(logging.NullHandler())


def check_address(host: str, port: int, trusted_network: bool) -> None:
    """Raise ConfigError if the server may not listen there, or cannot."""
    if not (trusted_network or is_loopback(host)):
        raise ConfigError(
            f'parameter host is {host!r}, off loopback: Modbus has no password and is not '
            'encrypted; use a tunnel (ssh -L), or set trusted_network'
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f'the Modbus server cannot listen on {host} port {port}: '
            f'{getattr(error, "strerror", "") or error}; choose another with the parameters '
            'host and port (a port below 1024 needs a privilege)'
        ) from None


class ModbusServer:
    """One server; `counters` may be read by any thread."""

    def __init__(self, read: Read, host: str, port: int, unit_id: int, most_clients: int) -> None:
        """Serve what `read` gives as unit `unit_id` (0: whatever unit is asked for)."""
        self.port = 0
        """The TCP port while it listens, else 0."""
        self.counters = dict.fromkeys(
            ('requests', 'requests_refused', 'connections', 'connections_refused', 'clients'), 0
        )
        self._read = read
        self._address = (host, port)
        self._unit_id = unit_id
        self._most_clients = most_clients

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; raise ConfigError if the port cannot be had."""
        asyncio.run(self._serve(stop))

    async def _serve(self, stop: threading.Event) -> None:
        server = ModbusTcpServer(
            self._devices(),
            address=self._address,
            trace_pdu=self._trace,
            trace_connect=self._on_connect,
        )
        try:
            await server.serve_forever(background=True)
        except RuntimeError as error:
            host, port = self._address
            raise ConfigError(f'{host} port {port} cannot be listened on: {error}') from None
        try:
            listener = cast(asyncio.Server, server.transport)
            self.port = int(listener.sockets[0].getsockname()[1])
            seen: set[str] = set()
            while not stop.is_set():
                seen = self._look_after(server, seen)
                await asyncio.sleep(_POLL_S)
        finally:
            self.port = self.counters['clients'] = 0
            await server.shutdown()

    def _look_after(self, server: ModbusTcpServer, seen: set[str]) -> set[str]:
        """Turn away clients that are too many; notice those that vanish."""
        clients = dict(server.active_connections)
        for name in list(clients)[self._most_clients :]:
            self.counters['connections_refused'] += 1
            clients.pop(name).close()
        for name in clients.keys() - seen:
            if clients[name].transport is None:
                continue
            connection = clients[name].transport.get_extra_info('socket')
            for level, option, value in _KEEPALIVE:
                connection.setsockopt(level, getattr(socket, option), value)
        self.counters['clients'] = len(clients)
        return set(clients)

    def _devices(self) -> list[SimDevice]:
        def device(unit_id: int, action: object) -> SimDevice:
            block = SimData(0, count=_ADDRESSES, values=0, datatype=DataType.REGISTERS)
            return SimDevice(unit_id, simdata=[block], action=action)  # type: ignore[arg-type]

        ours = device(self._unit_id, self._answer)
        # Unit 0 answers for every unit that is not named.
        return [ours] if self._unit_id == 0 else [ours, device(0, self._no_such_unit)]

    async def _answer(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: Sequence[int] | Sequence[bool] | None,
    ) -> ExcCodes | None:
        if function not in {_READ_HOLDING, _READ_INPUT} or values is not None:
            return ExcCodes.ILLEGAL_FUNCTION
        words = self._read(address, count)
        if words is None:
            return ExcCodes.ILLEGAL_ADDRESS
        # No await between this and the reply: what is sent is of one moment.
        registers[address - start : address - start + count] = words
        return None

    async def _no_such_unit(self, *_: object) -> ExcCodes:
        return ExcCodes.GATEWAY_NO_RESPONSE

    def _trace(self, sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        if sending:
            self.counters['requests'] += 1
            self.counters['requests_refused'] += pdu.isError()
        return pdu

    def _on_connect(self, connected: bool) -> None:
        self.counters['connections'] += connected
