# SPDX-License-Identifier: Apache-2.0
"""The part of the package gpiod 2 that the driver uses, with its signatures, over a fake line.

A test compares the signatures with the real package where that is installed. Nothing outside a
test imports it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from types import ModuleType, SimpleNamespace


class Value(Enum):
    """Logical level."""

    INACTIVE = 0
    ACTIVE = 1


class Direction(Enum):
    """As in gpiod.line."""

    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class Bias(Enum):
    """As in gpiod.line, in part."""

    AS_IS = 1


class Drive(Enum):
    """As in gpiod.line."""

    PUSH_PULL = 1
    OPEN_DRAIN = 2
    OPEN_SOURCE = 3


class Edge(Enum):
    """As in gpiod.line, in part."""

    NONE = 1


class Clock(Enum):
    """As in gpiod.line, in part."""

    MONOTONIC = 1


@dataclass
class LineSettings:
    """All fields of gpiod.LineSettings."""

    direction: Direction = Direction.AS_IS
    edge_detection: Edge = Edge.NONE
    bias: Bias = Bias.AS_IS
    drive: Drive = Drive.PUSH_PULL
    active_low: bool = False
    debounce_period: timedelta = timedelta()
    event_clock: Clock = Clock.MONOTONIC
    output_value: Value = Value.INACTIVE


@dataclass
class FakeChip:
    """What happens to the lines of one chip.

    Attributes:
        lines: those that exist, offsets and names.
        levels: (electrical level, monotonic seconds) of every change.
        held: lines requested now.
        settings, consumer: of the last request.
        broken: no line can be made active.
    """

    path: str = '/dev/gpiochip1'
    lines: tuple[int | str, ...] = (17, 'RESET')
    levels: list[tuple[int, float]] = field(default_factory=list)
    held: set[int | str] = field(default_factory=set)
    settings: LineSettings | None = None
    consumer: str | None = None
    broken: bool = False

    def drive(self, value: Value) -> None:
        """Give the requested line a logical level."""
        assert self.settings is not None
        level = value.value ^ self.settings.active_low
        if not self.levels or self.levels[-1][0] != level:
            self.levels.append((level, time.monotonic()))

    def module(self) -> ModuleType:
        """Return what `import gpiod` gives."""

        def request_lines(
            path: str,
            config: dict[Iterable[int | str] | int | str, LineSettings | None],
            consumer: str | None = None,
            event_buffer_size: int | None = None,
            output_values: dict[int | str, Value] | None = None,
        ) -> LineRequest:
            if path != self.path:
                raise FileNotFoundError(2, 'No such file or directory')
            ((line, settings),) = config.items()
            assert isinstance(line, (int, str))
            assert settings is not None
            if line in self.held:
                raise OSError(16, 'Device or resource busy')
            return LineRequest(self, line, settings, consumer)

        made = ModuleType('gpiod')
        vars(made).update(
            line=SimpleNamespace(Value=Value, Direction=Direction, Drive=Drive),
            LineSettings=LineSettings,
            request_lines=request_lines,
        )
        return made


class LineRequest:
    """One line, requested alone."""

    def __init__(
        self, chip: FakeChip, line: int | str, settings: LineSettings, consumer: str | None
    ) -> None:
        """Take the line, as FakeChip.request_lines does."""
        if line not in chip.lines:
            raise ValueError(f'unknown line name: {line}')
        assert settings.direction == Direction.OUTPUT
        self._chip, self._line = chip, line
        chip.held.add(line)
        chip.settings, chip.consumer = settings, consumer
        chip.drive(settings.output_value)

    def __enter__(self) -> LineRequest:
        """Return the request."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: object,
    ) -> None:
        """Release the line."""
        self.release()

    def release(self) -> None:
        """Release the line; its level stays."""
        self._chip.held.discard(self._line)

    def set_value(self, line: int | str, value: Value) -> None:
        """Give the line a logical level; raise OSError if it is broken."""
        assert line == self._line
        assert line in self._chip.held
        if self._chip.broken and value == Value.ACTIVE:
            raise OSError(5, 'Input/output error')
        self._chip.drive(value)
