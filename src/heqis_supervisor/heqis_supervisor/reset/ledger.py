# SPDX-License-Identifier: Apache-2.0
"""The durable record of resets: what counts against the budget, is under way, is latched.

No wall clock, since it may step: ages are kept, and grow by the machine's own uptime. Time in
which the machine was off, or nobody wrote, is not counted: a budget may last too long, never too
short.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from heqis_core.durable import replace_forced
from heqis_core.errors import ConfigError
from heqis_supervisor.facts import ResetMind, Resetting
from heqis_supervisor.reset.rules import ResetRule

LEDGER_VERSION = 1
FILE = 'resets.json'


class Uptime(NamedTuple):
    """One moment of this machine: identity of its boot (may be empty) and seconds since then."""

    boot_id: str
    up_s: float


def read_uptime(boot_id: str) -> Uptime:
    """Return this moment; suspended time counts."""
    return Uptime(boot_id, time.clock_gettime(time.CLOCK_BOOTTIME))


class _Running(msgspec.Struct, frozen=True):
    reason: str
    boot_before: str
    soft: bool = False


class _Board(msgspec.Struct, frozen=True):
    boot_id: str
    ages_s: tuple[float, ...]
    latched: str
    running: _Running | None
    escalated: bool = False


class _File(msgspec.Struct, frozen=True):
    version: int
    boot_id: str
    up_s: float
    boards: dict[str, _Board]


def encode(minds: Mapping[str, ResetMind], time_s: float, here: Uptime) -> bytes:
    """Return the record of now; `time_s` is the policy's clock."""
    boards = {board: _to_record(mind, time_s) for board, mind in minds.items()}
    return msgspec.json.format(msgspec.json.encode(_File(LEDGER_VERSION, *here, boards)), indent=1)


def decode(
    data: bytes, rules: Mapping[str, ResetRule], time_s: float, here: Uptime
) -> dict[str, ResetMind]:
    """Return what is remembered; raise msgspec.DecodeError or ValueError if it is no record.

    A reset that was under way gets its whole time to boot again: nobody looked meanwhile.
    """
    file = msgspec.json.decode(data, type=_File)
    if file.version != LEDGER_VERSION:
        raise ValueError(f'version {file.version}, this is {LEDGER_VERSION}')
    same = bool(here.boot_id) and file.boot_id == here.boot_id
    passed_s = max(0.0, here.up_s - file.up_s if same else here.up_s)
    found = {}
    for board, record in file.boards.items():
        if board not in rules:
            continue
        running = None
        if record.running is not None:
            deadline_s = time_s + rules[board].boot_ms / 1000
            was = record.running
            running = Resetting(0, was.reason, was.boot_before, deadline_s, True, was.soft)
        begun_s = tuple(time_s - max(0.0, age_s) - passed_s for age_s in record.ages_s)
        found[board] = ResetMind(
            record.boot_id,
            begun_s=begun_s,
            running=running,
            escalated=record.escalated,
            latched=record.latched,
        )
    return found


def _to_record(mind: ResetMind, time_s: float) -> _Board:
    running = mind.running
    kept = None if running is None else _to_running(running)
    ages_s = tuple(time_s - begun_s for begun_s in mind.begun_s)
    return _Board(mind.boot_id, ages_s, mind.latched, kept, mind.escalated)


def _to_running(running: Resetting) -> _Running:
    return _Running(running.reason, running.boot_before, running.soft)


class Ledger:
    """The file of the record; used by one thread at a time."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Write nothing yet; `boot_id` is that of this machine."""
        self.path = folder / FILE
        self._boot_id = boot_id

    def read(self, rules: Mapping[str, ResetRule]) -> dict[str, ResetMind]:
        """Return what is remembered; raise ConfigError if the file cannot be read.

        A damaged file is put aside and latches every board: nobody knows what was used up.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(
                f'{self.path}: {error.strerror or error}; the record of resets must be readable'
            ) from None
        try:
            return decode(data, rules, time.monotonic(), read_uptime(self._boot_id))
        except (msgspec.DecodeError, ValueError) as error:
            text = f'the record of resets is damaged ({error}); see {self._put_aside()}'
            return {board: ResetMind(latched=text) for board in rules}

    def _put_aside(self) -> Path:
        aside = self.path.with_suffix('.damaged')
        try:
            os.replace(self.path, aside)
        except OSError:
            return self.path
        return aside

    def write(self, minds: Mapping[str, ResetMind]) -> None:
        """Make the record durable; raise OSError."""
        data = encode(minds, time.monotonic(), read_uptime(self._boot_id))
        replace_forced(self.path, data)
