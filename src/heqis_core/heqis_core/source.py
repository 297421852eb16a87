# SPDX-License-Identifier: Apache-2.0
"""Where bars come from: the source protocol, and the sources that need nothing but memory.

A source hands over one bar block at a time, and its cursor says where to go on after a restart. Reading files
is `heqis_core.io.files`; the rules of cleaning are `heqis_core.clean`; neither threads nor ROS live here.
"""

from __future__ import annotations

from typing import Any, Protocol

from heqis_core.bars import BarBlock

Cursor = dict[str, Any]
"""JSON-able position of a source: strings, numbers, lists and dicts, integers within 64 bits."""


class EndOfStream(Exception):  # noqa: N818 - an outcome, not an error
    """A finite source has handed over its last bar."""


class Source(Protocol):
    """One source of bar blocks; used from one thread, except `close`, which any thread may call."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """S names, the same tuple object for every block."""

    @property
    def finite(self) -> bool:
        """Whether the source ends by itself."""

    @property
    def total(self) -> int | None:
        """Number of blocks from the first to the last; None where nobody knows."""

    @property
    def counts(self) -> dict[str, int]:
        """Rejected rows by reason."""

    def open(self, cursor: Cursor | None) -> None:
        """Start at the first block, or go on with the block after `cursor`; raise DataError if that cannot be."""

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block, or None if nothing came in time; raise EndOfStream after the last one."""

    def cursor(self) -> Cursor:
        """Return the position after the last block that `poll` returned."""

    def close(self) -> None:
        """Give everything back, and wake a waiting `poll`."""
