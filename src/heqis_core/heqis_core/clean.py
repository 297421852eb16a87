# SPDX-License-Identifier: Apache-2.0
"""The rules that a row of market data must meet, defined once, for files and live blocks alike.

Pure functions on columns, the report that counts what was refused, and the one rule that needs
memory (order in time, `BlockCleaner`). Reading text and dates is `heqis_core.event_time` and
`heqis_core.io`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import AMOUNT, CLOSE, HIGH, LOW, OPEN, VOLUME, BarBlock, BarStatus
from heqis_core.errors import ConfigError

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PRICES = (OPEN, HIGH, LOW, CLOSE)


class Fault(IntEnum):
    """Why a row is refused.

    The lower-case name is what reports and files show, the order is the precedence.
    """

    NONE = 0
    WRONG_CELL_COUNT = 1
    """The line has more or fewer cells than the header."""
    MISSING_SYMBOL = 2
    MISSING_DATE = 3
    UNKNOWN_DATE_FORMAT = 4
    AMBIGUOUS_DATE = 5
    """Day and month, or the century, could be read in two ways; or the clock went back over it."""
    BAD_DATE = 6
    """The form is known, but there is no such day or time, or it is not within 1970 to 2199."""
    NOT_A_NUMBER = 7
    """Text or an infinity in a number's place."""
    MISSING_PRICE = 8
    NOT_POSITIVE = 9
    """A price of zero or less."""
    HIGH_BELOW_LOW = 10
    OUTSIDE_RANGE = 11
    """Open or close is not within low and high."""
    MISSING_VOLUME = 12
    """The symbol's other rows have a volume."""
    NEGATIVE_VOLUME = 13
    NEGATIVE_AMOUNT = 14
    DUPLICATE = 15
    """The same row once more; the first one stays."""
    CONFLICTING_DUPLICATE = 16
    """Rows of one symbol and event time that differ: nothing says which is right, none stays."""
    OUT_OF_ORDER = 17
    """Older than what this symbol has already shown (live blocks only)."""

    @property
    def label(self) -> str:
        """The name in lower case."""
        return self.name.lower()


class RejectedRow(NamedTuple):
    """One refused row: where it stands, why, and the cell that decided."""

    file: str
    line: int
    """Line of a text file, from 1 with the header; row of a Parquet file, from 1."""
    symbol: str
    """Empty where the row does not say."""
    reason: str
    field: str
    value: str


@dataclass(slots=True)
class CleaningReport:
    """What came of the rows: `rows` = `valid` + `suspended` + the sum of `counts`.

    Attributes:
        counts: refused rows by reason.
        rejected: every refused row, by file and line.
        rows: rows read.
        valid: rows that became bars.
        suspended: rows that say that trading was suspended.
    """

    counts: dict[str, int] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    rows: int = 0
    valid: int = 0
    suspended: int = 0

    def reject(self, rows: Sequence[RejectedRow]) -> None:
        """Add refused rows to the list and to the counts."""
        self.rejected.extend(rows)
        for reason, n in Counter(row.reason for row in rows).items():
            self.counts[reason] = self.counts.get(reason, 0) + n


class Verdict(NamedTuple):
    """What the rules say of N rows."""

    valid: Bools
    """bool (N,)."""
    fault: Bytes
    """uint8 (N,), `Fault` codes; the first rule that is broken."""
    field: Bytes
    """uint8 (N,), index into `BAR_FIELDS` of the cell that decided; of no meaning where valid."""


def clean_rows(
    values: Floats, *, text: Bools | None = None, needs_volume: Bools | None = None
) -> Verdict:
    """Judge N rows by what they hold, each on its own.

    Args:
        values: float64 (6, N), rows in `BAR_FIELDS` order, NaN where a cell is empty.
        text: bool (6, N), where a cell holds something that is not a number (its value is NaN).
        needs_volume: bool (N,), rows for which an empty volume is a fault.
    """
    n = values.shape[1]
    fault, column = np.zeros(n, np.uint8), np.zeros(n, np.uint8)

    def refuse(where: Bools, reason: Fault, index: int) -> None:
        hit = where & (fault == Fault.NONE)
        fault[hit] = reason
        column[hit] = index

    for index in range(len(values)):
        unusable = np.isinf(values[index])
        refuse(unusable if text is None else unusable | text[index], Fault.NOT_A_NUMBER, index)
    for index in _PRICES:
        refuse(np.isnan(values[index]), Fault.MISSING_PRICE, index)
    for index in _PRICES:
        refuse(values[index] <= 0, Fault.NOT_POSITIVE, index)
    high, low = values[HIGH], values[LOW]
    refuse(high < low, Fault.HIGH_BELOW_LOW, HIGH)
    for index in (OPEN, CLOSE):
        refuse((values[index] > high) | (values[index] < low), Fault.OUTSIDE_RANGE, index)
    if needs_volume is not None:
        refuse(needs_volume & np.isnan(values[VOLUME]), Fault.MISSING_VOLUME, VOLUME)
    refuse(values[VOLUME] < 0, Fault.NEGATIVE_VOLUME, VOLUME)
    refuse(values[AMOUNT] < 0, Fault.NEGATIVE_AMOUNT, AMOUNT)
    return Verdict(fault == Fault.NONE, fault, column)


def find_duplicates(key: Ints, values: Floats) -> Bytes:
    """Return uint8 (N,) `Fault` codes: DUPLICATE, CONFLICTING_DUPLICATE or NONE.

    Args:
        key: int64 (N,), equal for rows of one symbol and one event time.
        values: float64 (6, N); NaN equals NaN.
    """
    fault = np.zeros(len(key), np.uint8)
    order = np.argsort(key, kind='stable')
    ordered = key[order]
    starts = (
        np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        if len(key)
        else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.r_[starts, len(key)])
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        rows = order[start : start + size]
        if all(
            np.array_equal(values[:, rows[0]], values[:, row], equal_nan=True) for row in rows[1:]
        ):
            fault[rows[1:]] = Fault.DUPLICATE
        else:
            fault[rows] = Fault.CONFLICTING_DUPLICATE
    return fault


class BlockCleaner:
    """Judge live bar blocks: the rules of `clean_rows`, and order in time for each symbol."""

    def __init__(self, n_symbols: int, *, needs_volume: bool = False) -> None:
        """Start with no history for `n_symbols` symbols."""
        self._last_ns = np.full(n_symbols, np.iinfo(np.int64).min, np.int64)
        self._needs_volume = np.full(n_symbols, needs_volume)
        self.counts: dict[str, int] = {}

    def clean(self, block: BarBlock) -> BarBlock:
        """Return the block with REJECTED and NaN where a VALID bar breaks a rule.

        A clean block comes back as is. A bar at a time that its symbol has shown already is
        refused (duplicate), and so is an older one (out_of_order). Refused bars are counted by
        reason in `counts` and do not move the symbol's clock.
        """
        arrived = block.status == BarStatus.VALID
        fault = clean_rows(block.values, needs_volume=self._needs_volume).fault
        same = self._last_ns == block.event_time_ns
        older = self._last_ns > block.event_time_ns
        fault[(fault == Fault.NONE) & same] = Fault.DUPLICATE
        fault[(fault == Fault.NONE) & older] = Fault.OUT_OF_ORDER
        refused = arrived & (fault != Fault.NONE)
        self._last_ns[arrived & ~refused] = block.event_time_ns
        if not refused.any():
            return block
        for code in fault[refused].tolist():
            label = Fault(code).label
            self.counts[label] = self.counts.get(label, 0) + 1
        values, status = block.values.copy(), block.status.copy()
        values[:, refused] = np.nan
        status[refused] = BarStatus.REJECTED
        return replace(block, values=values, status=status)

    def save(self) -> dict[str, Any]:
        """Return the state, JSON-able."""
        return {'last_ns': self._last_ns.tolist(), 'counts': dict(self.counts)}

    def load(self, state: dict[str, Any]) -> None:
        """Take a saved state; raise ConfigError if it is of another number of symbols."""
        last_ns = np.array(state['last_ns'], np.int64)
        if last_ns.shape != self._last_ns.shape:
            raise ConfigError(
                f'cleaner state is of {last_ns.size} symbols, this stream has '
                f'{self._last_ns.size}: remove the checkpoint, '
                'or run with the symbols it was written for'
            )
        self._last_ns = last_ns
        self.counts = dict(state['counts'])
