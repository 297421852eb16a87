# SPDX-License-Identifier: Apache-2.0
"""The file of resets: for each board the line, coil or command that resets it, and when.

Everything is checked before anything starts, with file, line and field. Needs PyYAML, not rclpy.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Union

import msgspec

from heqis_core.errors import ConfigError
from heqis_core.io.modbus_map import ADDRESSES, RtuLink, TcpLink
from heqis_core.io.yaml_struct import line_of, load_struct

HoldMs = Annotated[int, msgspec.Meta(ge=1, le=30_000)]


class _When(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a board is reset, and how often.

    Attributes:
        board: which.
        reset_after_ms: silence of its agent until it is reset; 0 = only on a person's word.
        boot_ms: time from the reset until its agent must report in with a new boot identity.
        resets_max, window_ms: most resets within the window.
        cooldown_ms: least time between two resets.
        soft_reboot: whether its own agent is asked to reboot it when kills bring no process back.
    """

    board: str
    reset_after_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] = 60_000
    boot_ms: Annotated[int, msgspec.Meta(ge=1_000, le=3_600_000)] = 180_000
    resets_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    window_ms: Annotated[int, msgspec.Meta(ge=1_000, le=604_800_000)] = 3_600_000
    cooldown_ms: Annotated[int, msgspec.Meta(ge=0, le=604_800_000)] = 60_000
    soft_reboot: bool = False

    def __post_init__(self) -> None:
        """Check what concerns more than one field."""
        if 0 < self.reset_after_ms < 3_000:
            raise ValueError(
                f'reset_after_ms: {self.reset_after_ms}, expected 0 or at least 3000: '
                'an agent counts as silent after 1500'
            )
        if self.cooldown_ms > self.window_ms:
            raise ValueError(
                f'cooldown_ms: {self.cooldown_ms} is longer than window_ms ({self.window_ms})'
            )

    @property
    def act_s(self) -> float:
        """Return the longest time that the driver may take, seconds."""
        return 1.0

    @property
    def real(self) -> bool:
        """Return whether a reset does anything."""
        return True


class GpioReset(_When, frozen=True, kw_only=True, tag='gpio', tag_field='driver'):
    """A GPIO line that is active for a while, by libgpiod.

    Attributes:
        chip: character device, such as /dev/gpiochip1.
        line: offset on the chip, or name.
        hold_ms: how long it is active.
        active_low: whether active is the low level.
        drive: as in libgpiod.
    """

    chip: Annotated[str, msgspec.Meta(min_length=1)]
    line: Union[Annotated[int, msgspec.Meta(ge=0, le=65_535)], str]  # noqa: UP007 -- Python 3.10
    hold_ms: HoldMs = 500
    active_low: bool = False
    drive: Literal['push_pull', 'open_drain', 'open_source'] = 'push_pull'

    @property
    def act_s(self) -> float:
        """Return the longest time that the driver may take, seconds."""
        return self.hold_ms / 1000 + 5

    def __str__(self) -> str:
        """Return what is done, for people."""
        level = 'low' if self.active_low else 'high'
        return f'GPIO line {self.line} of {self.chip} {level} for {self.hold_ms} ms'


class ModbusReset(_When, frozen=True, kw_only=True, tag='modbus', tag_field='driver'):
    """A coil of a Modbus relay that is switched for a while.

    Attributes:
        host, port: of a relay on TCP.
        serial, baudrate, parity, stopbits: of one on a serial line.
        unit_id, coil: which coil, counted from 0 as in the request.
        hold_ms: how long it is switched.
        active_low: whether it is on at rest and off for the reset.
        timeout_ms: longest wait for a connection or an answer.
    """

    host: str = ''
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 502
    serial: str = ''
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 19_200
    parity: Literal['N', 'E', 'O'] = 'E'
    stopbits: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    unit_id: Annotated[int, msgspec.Meta(ge=1, le=247)] = 1
    coil: Annotated[int, msgspec.Meta(ge=0, lt=ADDRESSES)]
    hold_ms: HoldMs = 500
    active_low: bool = False
    timeout_ms: Annotated[int, msgspec.Meta(ge=10, le=600)] = 500

    def __post_init__(self) -> None:
        """Check what concerns more than one field."""
        _When.__post_init__(self)
        if bool(self.host) == bool(self.serial):
            raise ValueError('expected exactly one of host and serial')

    @property
    def act_s(self) -> float:
        """Return the longest time that the driver may take, seconds."""
        return self.hold_ms / 1000 + 20 * self.timeout_ms / 1000 + 5

    @property
    def link(self) -> TcpLink | RtuLink:
        """Return how the relay is reached."""
        if self.host:
            return TcpLink(self.host, self.port)
        return RtuLink(self.serial, self.baudrate, self.parity, self.stopbits, 8)

    def __str__(self) -> str:
        """Return what is done, for people."""
        state = 'off' if self.active_low else 'on'
        where = f'unit {self.unit_id} at {self.link}'
        return f'coil {self.coil} of {where} {state} for {self.hold_ms} ms'


class CommandReset(_When, frozen=True, kw_only=True, tag='command', tag_field='driver'):
    """A program that resets the board and ends with 0; no shell reads its arguments.

    Attributes:
        argv: program and arguments.
        timeout_ms: longest time that it may take; then it and its children are killed.
    """

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=10, le=600_000)] = 10_000

    @property
    def act_s(self) -> float:
        """Return the longest time that the driver may take, seconds."""
        return self.timeout_ms / 1000 + 5

    def __str__(self) -> str:
        """Return what is done, for people."""
        return f'command {shlex.join(self.argv)}'


class DryRun(_When, frozen=True, kw_only=True, tag='dry_run', tag_field='driver'):
    """Nothing is done, everything else is as with a driver that works."""

    @property
    def real(self) -> bool:
        """Return whether a reset does anything."""
        return False

    def __str__(self) -> str:
        """Return what is done, for people."""
        return 'dry run, nothing is switched'


ResetRule = Union[GpioReset, ModbusReset, CommandReset, DryRun]  # noqa: UP007 -- Python 3.10


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    resets: tuple[ResetRule, ...]


def reboot_command(board: str, line: str) -> CommandReset:
    """Return the command by which an agent reboots its board; raise ConfigError."""
    try:
        argv = tuple(shlex.split(line))
    except ValueError as error:
        raise ConfigError(f'reboot_command: {line!r}: {error}') from None
    if not argv:
        raise ConfigError(f'reboot_command: {line!r} names no program')
    return CommandReset(board=board, argv=argv)


def load_resets(
    path: Path | str, boards: Sequence[str], own_board: str
) -> Mapping[str, ResetRule]:
    """Return how each board is reset; an empty path means that none is.

    Raises ConfigError as `file:line: field: what is wrong`.
    """
    if not str(path):
        return {}
    found: dict[str, ResetRule] = {}
    for index, rule in enumerate(load_struct(path, _File).resets):
        where = f'{path}:{line_of(path, f".resets[{index}]")}: resets: {rule.board}'
        if rule.board not in boards:
            known = ', '.join(boards)
            raise ConfigError(f'{where} is not in the rules of the graph; known are: {known}')
        if rule.board == own_board:
            raise ConfigError(
                f'{where} is the board of the supervisor itself, which would not live to see '
                'the effect; its watchdog resets it'
            )
        if rule.board in found:
            raise ConfigError(f'{where} is named twice; a board has one driver')
        found[rule.board] = rule
    return found
