# SPDX-License-Identifier: Apache-2.0
"""The rules that a row of market data must meet, defined once, for files and live blocks alike.

Pure functions on columns and blocks, and the report that counts what was refused. Order in time
is for `heqis_core.align` to judge; reading text and dates is `heqis_core.event_time` and
`heqis_core.io`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import AMOUNT, BAR_FIELDS, CLOSE, HIGH, LOW, OPEN, VOLUME, BarBlock, BarStatus

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PRICES = (OPEN, HIGH, LOW, CLOSE)
_HALF_DAY_NS = 12 * 3600 * 1_000_000_000

_NO_LIMIT = 99_999.99

_COMMA_NUMBER = re.compile(r'[+-]?\d+(?:,\d+)+(?:\.\d*)?|[+-]?\d+(?:\.\d+)+,\d+')
_UNIT_NUMBER = re.compile(
    r'[¥￥$€£]\s*[+-]?[\d.,]+|[+-]?[\d.,]+\s*(?:[万亿元股手%％¥￥$€£KkMmB]|千元|万元|亿元|万股|万手)'
)
_SPREADSHEET_ERROR = re.compile(r'#+|#(?:REF|VALUE|NAME|NUM|NULL|DIV/0)[!?]', re.IGNORECASE)


class Fault(IntEnum):
    """Why a row is refused.

    The lower-case name is what reports and files show, the order is the precedence.
    """

    NONE = 0
    WRONG_CELL_COUNT = 1
    """The line has more or fewer cells than the header."""
    DAMAGED_LINE = 2
    """Bytes that are no text: NUL, another control character, or neither UTF-8 nor GB18030."""
    TRUNCATED_LINE = 3
    """The last line of a file breaks off: too few cells, and no end of line."""
    REPEATED_HEADER = 4
    """The header once more, as when files are joined."""
    MISSING_SYMBOL = 5
    MISSING_DATE = 6
    UNKNOWN_DATE_FORMAT = 7
    SPREADSHEET_DATE = 8
    """A spreadsheet's serial day such as 45293: from 1900 or from 1904, it does not say."""
    AMBIGUOUS_DATE = 9
    """Day and month, or the century, could be read in two ways; or the clock went back over it."""
    BAD_DATE = 10
    """The form is known, but there is no such day or time, or it is not within 1970 to 2199."""
    NOT_A_NUMBER = 11
    """Text or an infinity in a number's place."""
    COMMA_IN_NUMBER = 12
    """1,234 or 10,5: a thousands separator or a decimal comma, it does not say."""
    FULL_WIDTH_DIGITS = 13
    """Digits that are not 0 to 9 of ASCII, such as １０.５."""
    UNIT_IN_NUMBER = 14
    """A number with a unit or a sign of currency, such as 1.2亿, 10.5元 or 3%."""
    SPREADSHEET_ERROR = 15
    """#REF!, #DIV/0!, #VALUE!, ####: a spreadsheet had no number to write."""
    MISSING_PRICE = 16
    NOT_POSITIVE = 17
    """A price of zero or less."""
    HIGH_BELOW_LOW = 18
    OUTSIDE_RANGE = 19
    """Open or close is not within low and high."""
    MISSING_VOLUME = 20
    """The symbol's other rows have a volume."""
    NEGATIVE_VOLUME = 21
    NEGATIVE_AMOUNT = 22
    DUPLICATE = 23
    """The same row once more; the first one stays."""
    CONFLICTING_DUPLICATE = 24
    """Rows of one symbol and event time that differ: nothing says which is right, none stays."""

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
        suspended: rows that say, or show, that trading was suspended.
        disguised: those of them that do not say so: no volume, and the last close once more.
        unread: cells of further columns that are no number, by column; their rows stay.
    """

    counts: dict[str, int] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    rows: int = 0
    valid: int = 0
    suspended: int = 0
    disguised: int = 0
    unread: dict[str, int] = field(default_factory=dict)

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


def text_fault(text: str) -> Fault:
    """Return which kind of text stands where a number should, `NOT_A_NUMBER` if none is known."""
    cell = text.strip()
    if not cell.isascii() and any(char.isdecimal() and not char.isascii() for char in cell):
        return Fault.FULL_WIDTH_DIGITS
    if _COMMA_NUMBER.fullmatch(cell):
        return Fault.COMMA_IN_NUMBER
    if _UNIT_NUMBER.fullmatch(cell):
        return Fault.UNIT_IN_NUMBER
    if _SPREADSHEET_ERROR.fullmatch(cell):
        return Fault.SPREADSHEET_ERROR
    return Fault.NOT_A_NUMBER


def no_limit(up: Floats, down: Floats) -> Bools:
    """Return bool (N,): rows without a price limit, whose limit prices are no prices.

    Tushare's `stk_limit` has 99999.99 and 0, 100000, or 999999.999 and 0.01 there; an empty cell
    is none either.

    Args:
        up: float64 (N,), highest price of the day as the vendor says it.
        down: float64 (N,), lowest price.
    """
    return ~((up > 0) & (up < _NO_LIMIT) & (down > 0))


def find_disguised(
    event_ns: Ints, symbol: Ints, values: Floats, fault: Bytes, paused: Bools
) -> Bools:
    """Return bool (N,): rows that are suspensions without saying so.

    Such a row has a volume of zero, a close that repeats the symbol's last one,
    and an open, high and low that are the same or, as some vendors write it, all zero or empty.
    It stands alone in its half day: a minute without a trade is no suspension. The first row of a
    symbol is never one.

    Args:
        event_ns: int64 (N,).
        symbol: int64 (N,), a code for each symbol.
        values: float64 (6, N), rows in `BAR_FIELDS` order.
        fault: uint8 (N,), `Fault` codes.
        paused: bool (N,), rows that say that they are suspensions.
    """
    found = np.zeros(len(symbol), np.bool_)
    opened, high, low, close = values[list(_PRICES)]
    valid = (fault == Fault.NONE) & ~paused
    flat = valid & (opened == close) & (high == close) & (low == close)
    unset = ~((opened != 0) & ~np.isnan(opened) | (high != 0) & ~np.isnan(high))
    unset &= ~((low != 0) & ~np.isnan(low)) & ~paused
    unset &= (fault == Fault.MISSING_PRICE) | (fault == Fault.NOT_POSITIVE)
    candidate = (values[VOLUME] == 0) & (flat | unset)
    if not candidate.any():
        return found
    # By close too, so that rows of one time come in one order, however they stood.
    order = np.lexsort((close, event_ns, symbol))
    order = order[(candidate | valid | paused)[order]]
    when, which, places = event_ns[order], symbol[order], np.arange(len(order))
    step, other = np.diff(when), which[1:] != which[:-1]
    near = (step > 0) & (step < _HALF_DAY_NS) & ~other
    alone = ~(np.r_[near, False] | np.r_[False, near])
    begins = np.maximum.accumulate(np.where(np.r_[True, (step > 0) | other], places, 0))
    before = np.r_[-1, np.maximum.accumulate(np.where(valid[order], places, -1))[:-1]][begins]
    known = (before >= 0) & (which[before] == which)
    found[order] = candidate[order] & alone & known & (close[order] == close[order[before]])
    return found


class RejectedBar(NamedTuple):
    """One refused bar of a live block."""

    symbol: str
    event_time_ns: int
    reason: str
    field: str
    value: float


def clean_block(
    block: BarBlock, *, needs_volume: Bools | None = None
) -> tuple[BarBlock, list[RejectedBar]]:
    """Judge a live bar block by the rules of `clean_rows`.

    Args:
        block: its VALID bars are judged.
        needs_volume: bool (S,), symbols for which an empty volume is a fault.

    Returns:
        The block as it came, or with REJECTED and NaN where a bar breaks a rule; and those bars.
        What they say of time (order, repeats) is for `heqis_core.align` to judge.
    """
    verdict = clean_rows(block.values, needs_volume=needs_volume)
    refused = (block.status == BarStatus.VALID) & ~verdict.valid
    if not refused.any():
        return block, []
    rejected = [
        RejectedBar(
            block.symbols[index],
            block.event_time_ns,
            Fault(int(verdict.fault[index])).label,
            BAR_FIELDS[verdict.field[index]],
            float(block.values[verdict.field[index], index]),
        )
        for index in np.flatnonzero(refused).tolist()
    ]
    values, status = block.values.copy(), block.status.copy()
    values[:, refused] = np.nan
    status[refused] = BarStatus.REJECTED
    return replace(block, values=values, status=status), rejected
