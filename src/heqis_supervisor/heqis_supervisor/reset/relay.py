# SPDX-License-Identifier: Apache-2.0
"""A coil of a Modbus relay that resets a board."""

from __future__ import annotations

import threading

from heqis_core.errors import ResetError
from heqis_core.io.modbus_link import Fault, ModbusLink
from heqis_core.io.modbus_map import ModbusMap
from heqis_supervisor.reset.rules import ModbusReset

TRIES = 3


class RelayDriver:
    """Connects only while it works: many relays take one connection at a time."""

    def __init__(self, rule: ModbusReset) -> None:
        """Connect nowhere yet."""
        self._rule = rule
        self._link = ModbusLink(ModbusMap(str(rule), rule.link, rule.timeout_ms / 1000, 0, 0, ()))

    def pulse(self, stop: threading.Event) -> None:
        """Switch the coil for `hold_ms`; raise ResetError."""
        try:
            # A write without an answer may have been done all the same: the coil is put back.
            self._switch(not self._rule.active_low)
            stop.wait(self._rule.hold_ms / 1000)
        finally:
            self.rest()

    def rest(self) -> None:
        """Put the coil into its state of rest; raise ResetError if the relay does not say so."""
        try:
            self._switch(self._rule.active_low)
        finally:
            self._link.close()

    def _switch(self, on: bool) -> None:
        problem = ''
        for _ in range(TRIES):
            if not self._link.connected and not self._link.connect():
                problem = self._link.error
                continue
            try:
                self._link.write_coil(self._rule.unit_id, self._rule.coil, on)
                return
            except Fault as fault:
                problem = str(fault)
        state = 'on' if on else 'off'
        raise ResetError(f'{self._rule}: cannot be switched {state}: {problem}')
