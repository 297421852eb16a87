# SPDX-License-Identifier: Apache-2.0
"""What a bar is, and the bar block: one event time of S symbols, columnar, each with a status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError

BAR_FIELDS = ('open', 'high', 'low', 'close', 'volume', 'amount')
"""Rows of `BarBlock.values`: prices and amount in CNY (or their currency), volume in shares."""

_OBJECTS_BYTES = 400
"""A block's dataclass, its two arrays and its numbers (measured, CPython 3.11)."""

OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(len(BAR_FIELDS))


class BarStatus(IntEnum):
    """Why a symbol has, or has not, a usable row at an event time (uint8 on the wire)."""

    NO_BAR = 0
    """Nothing arrived for this symbol."""
    VALID = 1
    """A clean row."""
    SUSPENDED = 2
    """The source says that trading was suspended."""
    REJECTED = 3
    """A row arrived and cleaning refused it."""
    WARMING = 4
    """A clean row, but some feature has not seen enough bars yet (frames only)."""


@dataclass(frozen=True, slots=True)
class BarBlock:
    """One event time of S symbols.

    Attributes:
        event_time_ns: close of the bar, int64 ns UTC.
        symbols: S names, the same tuple object for every block of a stream.
        values: float64 (6, S), rows in `BAR_FIELDS` order; NaN where `status` is not VALID, and
            volume or amount NaN where the source has none.
        status: uint8 (S,), `BarStatus` codes.
        revision: 0 for the first version of this event time, +1 for each amendment.
        ingest_ns: wall clock when the source handed the block over, ns UTC; 0 if unknown.
        channels: C names of what else is known of each symbol, joined as of this event time
            (`heqis_core.align`), the same tuple object for every block of a stream.
        extra: float64 (C, S), NaN where a channel says nothing; None where C is 0.
    """

    event_time_ns: int
    symbols: tuple[str, ...]
    values: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    revision: int = 0
    ingest_ns: int = 0
    channels: tuple[str, ...] = ()
    extra: npt.NDArray[np.float64] | None = None

    @property
    def nbytes(self) -> int:
        """Return about how much memory it holds: its arrays, and the Python objects around."""
        extra = 0 if self.extra is None else self.extra.nbytes
        return self.values.nbytes + self.status.nbytes + extra + _OBJECTS_BYTES


@dataclass(frozen=True, slots=True)
class BarTable:
    """Every clean bar of a finite data set, aligned on the sorted union of its event times.

    Attributes:
        symbols: S names.
        event_time_ns: int64 (T,), strictly increasing.
        values: float64 (T, 6, S), see `BarBlock.values`.
        status: uint8 (T, S), see `BarBlock.status`.
        channels: C names, see `BarBlock.channels`.
        extra: float64 (T, C, S), see `BarBlock.extra`; None where C is 0.
    """

    symbols: tuple[str, ...]
    event_time_ns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    channels: tuple[str, ...] = ()
    extra: npt.NDArray[np.float64] | None = None

    @classmethod
    def from_blocks(cls, blocks: Sequence[BarBlock]) -> BarTable:
        """Return the table of consecutive blocks of one stream; ValueError if there is none."""
        if not blocks:
            raise ValueError('a bar table needs at least one block')
        extra = [block.extra for block in blocks if block.extra is not None]
        return cls(
            blocks[0].symbols,
            np.array([block.event_time_ns for block in blocks], np.int64),
            np.stack([block.values for block in blocks]),
            np.stack([block.status for block in blocks]),
            blocks[0].channels,
            np.stack(extra) if extra else None,
        )

    def select(self, symbols: Iterable[str]) -> BarTable:
        """Return the table of these symbols, sorted; event times that only others have stay.

        Raises DataError that names the symbols that are not there.
        """
        names = tuple(sorted(set(symbols)))
        unknown = [name for name in names if name not in self.symbols]
        if unknown:
            known = ', '.join(self.symbols[:8]) + (', …' if len(self.symbols) > 8 else '')
            raise DataError(f'no bars of {", ".join(unknown)}; the data has {known}')
        which = [self.symbols.index(name) for name in names]
        return BarTable(
            names,
            self.event_time_ns,
            np.ascontiguousarray(self.values[:, :, which]),
            np.ascontiguousarray(self.status[:, which]),
            self.channels,
            None if self.extra is None else np.ascontiguousarray(self.extra[:, :, which]),
        )

    def head(self, n: int) -> BarTable:
        """Return the first `n` event times, as views."""
        extra = None if self.extra is None else self.extra[:n]
        times, values, status = self.event_time_ns[:n], self.values[:n], self.status[:n]
        return BarTable(self.symbols, times, values, status, self.channels, extra)

    def __len__(self) -> int:
        """Return the number of event times T."""
        return len(self.event_time_ns)

    def block(self, index: int, ingest_ns: int = 0) -> BarBlock:
        """Return event time `index` as a block of views."""
        return BarBlock(
            int(self.event_time_ns[index]),
            self.symbols,
            self.values[index],
            self.status[index],
            0,
            ingest_ns,
            self.channels,
            None if self.extra is None else self.extra[index],
        )

    @property
    def has_volume(self) -> bool:
        """Whether any valid bar carries a volume."""
        return bool(np.isfinite(self.values[:, VOLUME, :]).any())
