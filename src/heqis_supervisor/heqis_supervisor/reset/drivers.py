# SPDX-License-Identifier: Apache-2.0
"""What resets a board: one small protocol, and the drivers that need no hardware library."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from typing import IO, Protocol

from heqis_core.errors import ConfigError, ResetError
from heqis_supervisor.reset.rules import (
    CommandReset,
    DryRun,
    GpioReset,
    ModbusReset,
    ResetRule,
)

LOOK_S = 0.05
"""How soon the end of a command is seen."""
OUTPUT_BYTES = 500
"""So much of the end of a command's output is told."""


class Driver(Protocol):
    """Resets one board. Used by one thread at a time."""

    def pulse(self, stop: threading.Event) -> None:
        """Reset the board, cut short when `stop` is set; raise ResetError.

        Whatever happens, the driver tries to let the board go again before it returns.
        """

    def rest(self) -> None:
        """Let the board go, as often as wanted; raise ResetError if it may still be held."""


def make_driver(rule: ResetRule) -> Driver:
    """Return the driver of a rule; raise ConfigError if this machine cannot run it."""
    if isinstance(rule, GpioReset):
        from heqis_supervisor.reset.gpio import GpioDriver

        return GpioDriver(rule)
    if isinstance(rule, ModbusReset):
        from heqis_supervisor.reset.relay import RelayDriver

        return RelayDriver(rule)
    if isinstance(rule, CommandReset):
        return CommandDriver(rule)
    return DryRunDriver(rule)


class DryRunDriver:
    """Does nothing, on purpose."""

    def __init__(self, rule: DryRun) -> None:
        """Need nothing."""

    def pulse(self, stop: threading.Event) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Do nothing."""


class CommandDriver:
    """Runs a program, without a shell, in a process group of its own."""

    def __init__(self, rule: CommandReset) -> None:
        """Find the program; raise ConfigError if it is not there."""
        self._rule = rule
        if shutil.which(rule.argv[0]) is None:
            raise ConfigError(
                f'{rule}: there is no program {rule.argv[0]} that may be run; give its whole path'
            )

    def pulse(self, stop: threading.Event) -> None:
        """Run it to its end; raise ResetError if it fails, takes too long or is cut short."""
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    self._rule.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise ResetError(f'{self._rule}: {error.strerror or error}') from None
            try:
                problem = self._wait(process, stop)
            finally:
                _end_group(process)
            if problem:
                raise ResetError(f'{self._rule}: {problem}{_tail(output)}')

    def rest(self) -> None:
        """Do nothing: a command is whole, or it has failed."""

    def _wait(self, process: subprocess.Popen[bytes], stop: threading.Event) -> str:
        end_s = time.monotonic() + self._rule.timeout_ms / 1000
        while process.poll() is None:
            if time.monotonic() > end_s:
                return f'not at its end after {self._rule.timeout_ms} ms, killed'
            if stop.wait(LOOK_S):
                return 'killed, because this process is ending'
        code = process.returncode
        return '' if code == 0 else f'ended with {code}'


def _end_group(process: subprocess.Popen[bytes]) -> None:
    # Its children too: one that is left would act on the board at some later time.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - OUTPUT_BYTES))
    text = ' '.join(output.read().decode(errors='replace').split())
    return f'; it said: {text}' if text else ''
