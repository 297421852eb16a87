# SPDX-License-Identifier: Apache-2.0
"""One Modbus connection as a client: requests, what can go wrong with them, and reconnecting.

pymodbus does the framing. Whatever the far end sends, the outcome is registers or a `Fault`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from enum import Enum

from pymodbus import FramerType
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ConnectionException
from pymodbus.pdu import ModbusPDU

from heqis_core.io.modbus_map import BIT_FUNCTIONS, ModbusMap, RtuLink
from heqis_core.io.modbus_plan import Request

ILLEGAL_ADDRESS = 2
EXCEPTIONS = {
    1: 'illegal function',
    ILLEGAL_ADDRESS: 'illegal data address',
    3: 'illegal data value',
    4: 'device failure',
    5: 'acknowledge',
    6: 'device busy',
    8: 'memory parity error',
    10: 'gateway path unavailable',
    11: 'gateway target did not respond',
}
"""MODBUS Application Protocol Specification V1.1b3, section 7."""
_CODES = {'coil': 1, 'discrete': 2, 'holding': 3, 'input': 4}
_WRITE_COIL = 5
_MISSES = 3
"""Timeouts in a row until a TCP connection counts as lost: its other end may have vanished."""
_HEADER_BYTES = 7
"""Transaction (2), protocol (2, always 0), length (2), unit: Messaging on TCP/IP V1.0b, 3.1.3."""

# Every fault is told here, by name and once; without a handler pymodbus would write to stderr.
logging.getLogger('pymodbus').addHandler(logging.NullHandler())


class FaultKind(Enum):
    """How a request failed; the value is the name of the counter."""

    EXCEPTION = 'exceptions'
    TIMEOUT = 'timeouts'
    BAD_REPLY = 'bad_replies'
    LOST = 'lost_connections'


class Fault(Exception):  # noqa: N818 - an outcome of a request, told and counted by the source
    """A request that brought no registers; `code` is the exception code of the device, or 0."""

    def __init__(self, kind: FaultKind, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code


class ModbusLink:
    """A connection that is made when it is needed; used by one thread at a time."""

    def __init__(self, settings: ModbusMap) -> None:
        """Connect nowhere yet."""
        self.retry_s = 0.0
        """Monotonic time before which no connection is tried."""
        self.error = ''
        """Why there is no connection; empty while there is one."""
        self._settings = settings
        self._rtu = isinstance(settings.link, RtuLink)
        self._failures = 0
        self._misses = 0
        self._sent = self._heard = b''
        self._client = self._new_client()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this end knows."""
        return bool(self._client.connected)

    def connect(self) -> bool:
        """Make the connection; if that fails, `retry_s` and `error` say when next and why."""
        reason = 'is it on, and is the address right?'
        try:
            done = bool(self._client.connect())
        except Exception as error:  # what a name service or a driver may raise is not documented
            done, reason = False, str(error)
        self.error = '' if done else f'no connection: {reason}'
        if done:
            self._misses = 0
        else:
            self._back_off()
        return done

    def read(self, unit_id: int, request: Request) -> list[int]:
        """Return `request.count` registers, or bits as 0 and 1; raise Fault."""
        ask = {
            'coil': self._client.read_coils,
            'discrete': self._client.read_discrete_inputs,
            'holding': self._client.read_holding_registers,
            'input': self._client.read_input_registers,
        }[request.function]
        reply = self._ask(lambda: ask(request.address, count=request.count, device_id=unit_id))
        return self._values(reply, request)

    def write_coil(self, unit_id: int, address: int, on: bool) -> None:
        """Switch one coil; raise Fault, after which the device may have switched it or not."""
        reply = self._ask(lambda: self._client.write_coil(address, on, device_id=unit_id))
        self._check_code(reply, _WRITE_COIL)
        if list(reply.bits[:1]) != [on] or reply.address != address:
            raise self._garbage(f'reply names coil {reply.address} as {reply.bits[:1]}')
        self._failures = 0

    def close(self) -> None:
        """Close the connection; the next `connect` makes a new one."""
        self._client.close()

    def _ask(self, ask: Callable[[], ModbusPDU]) -> ModbusPDU:
        try:
            reply = ask()
        except (ConnectionException, OSError) as error:
            raise self._lost(f'connection lost: {error}') from None
        except Exception as error:  # garbage makes the library raise far more than it documents
            raise self._no_reply(error) from None
        self._misses = 0
        return reply

    def _check_code(self, reply: ModbusPDU, code: int) -> None:
        if reply.isError() and reply.function_code == code | 0x80:
            number = int(reply.exception_code)
            name = EXCEPTIONS.get(number, 'unknown')
            raise Fault(FaultKind.EXCEPTION, f'exception {number} ({name})', number)
        if reply.function_code != code:
            raise self._garbage(f'reply of function {reply.function_code}, expected {code}')

    def _values(self, reply: ModbusPDU, request: Request) -> list[int]:
        code = _CODES[request.function]
        self._check_code(reply, code)
        values = reply.bits if request.function in BIT_FUNCTIONS else reply.registers
        # Bits come in whole bytes.
        wanted = -(-request.count // 8) * 8 if request.function in BIT_FUNCTIONS else request.count
        if len(values) != wanted:
            raise self._garbage(
                f'reply of function {code} with {len(values)} values, expected {wanted}'
            )
        self._failures = 0
        return [int(value) for value in values[: request.count]]

    def _no_reply(self, error: Exception) -> Fault:
        if self._heard and not self._heard_late_reply():
            return self._garbage(f'{len(self._heard)} bytes that are no reply to it: {error}')
        self._misses += 1
        timeout = f'no reply within {self._settings.timeout_s:g} s'
        if self._misses >= _MISSES and not self._rtu:
            return self._lost(f'{timeout}, {self._misses} times in a row')
        return Fault(FaultKind.TIMEOUT, timeout)

    def _heard_late_reply(self) -> bool:
        """Return whether all that came is a frame of an earlier request, on TCP."""
        heard = self._heard
        return (
            not self._rtu
            and len(heard) >= _HEADER_BYTES
            and heard[2:4] == b'\0\0'
            and heard[:2] != self._sent[:2]
        )

    def _garbage(self, text: str) -> Fault:
        # Nobody knows where the next reply begins in a stream that is out of step.
        if not self._rtu:
            self._back_off()
        return Fault(FaultKind.BAD_REPLY, text)

    def _lost(self, text: str) -> Fault:
        self._back_off()
        return Fault(FaultKind.LOST, text)

    def _back_off(self) -> None:
        self.close()
        self.retry_s = time.monotonic() + back_off(
            self._failures, self._settings.backoff_s, self._settings.backoff_max_s
        )
        self._failures += 1

    def _trace(self, sending: bool, data: bytes) -> bytes:
        if sending:
            self._sent, self._heard = data, b''
        else:
            self._heard = data
        return data

    def _new_client(self) -> ModbusTcpClient | ModbusSerialClient:
        link, timeout_s = self._settings.link, self._settings.timeout_s
        if isinstance(link, RtuLink):
            return ModbusSerialClient(
                link.port,
                framer=FramerType.RTU,
                baudrate=link.baudrate,
                bytesize=link.bytesize,
                parity=link.parity,
                stopbits=link.stopbits,
                timeout=timeout_s,
                retries=0,
                trace_packet=self._trace,
            )
        return ModbusTcpClient(
            link.host, port=link.port, timeout=timeout_s, retries=0, trace_packet=self._trace
        )


def back_off(failures: int, first_s: float, most_s: float) -> float:
    """Return the wait after failure number `failures` (from 0): doubled, with jitter.

    The jitter takes up to half away, so that many clients of one device do not come back at once.
    """
    full = min(most_s, first_s * 2 ** min(failures, 30))
    return float(full * random.uniform(0.5, 1.0))
