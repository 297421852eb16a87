# SPDX-License-Identifier: Apache-2.0
"""A GPIO line that resets a board, by the Python package of libgpiod 2 (`gpiod`)."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from heqis_core.errors import ConfigError, ResetError
from heqis_supervisor.reset.rules import GpioReset

CONSUMER = 'heqis-reset'


class GpioDriver:
    """Holds the line only while it works, so that its pull decides at every other time."""

    def __init__(self, rule: GpioReset) -> None:
        """Import the package; raise ConfigError if it or its second generation is not there."""
        self._rule = rule
        try:
            self._gpiod: Any = importlib.import_module('gpiod')
        except ImportError as error:
            raise ConfigError(
                f'{rule}: {error}; install gpiod of requirements/board-rk3568.txt'
            ) from None
        if not hasattr(self._gpiod, 'request_lines'):
            raise ConfigError(
                f'{rule}: the package gpiod here is not that of libgpiod 2; install gpiod of '
                'requirements/board-rk3568.txt'
            )

    def pulse(self, stop: threading.Event) -> None:
        """Make the line active for `hold_ms`; raise ResetError."""
        value = self._gpiod.line.Value
        try:
            with self._request() as request:
                try:
                    request.set_value(self._rule.line, value.ACTIVE)
                    stop.wait(self._rule.hold_ms / 1000)
                finally:
                    request.set_value(self._rule.line, value.INACTIVE)
        except (OSError, ValueError) as error:
            raise ResetError(f'{self._rule}: {error}') from None

    def rest(self) -> None:
        """Make the line inactive; raise ResetError."""
        try:
            self._request().release()
        except (OSError, ValueError) as error:
            raise ResetError(f'{self._rule}: {error}') from None

    def _request(self) -> Any:
        """Return the line as an inactive output."""
        line = self._gpiod.line
        settings = self._gpiod.LineSettings(
            direction=line.Direction.OUTPUT,
            drive=line.Drive[self._rule.drive.upper()],
            active_low=self._rule.active_low,
            output_value=line.Value.INACTIVE,
        )
        return self._gpiod.request_lines(
            self._rule.chip, config={self._rule.line: settings}, consumer=CONSUMER
        )
