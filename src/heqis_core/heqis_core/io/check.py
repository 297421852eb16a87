# SPDX-License-Identifier: Apache-2.0
"""A check of market data files: what was refused, what is suspicious, where, and how much of it.

It reads as `load_bars` does, by the same rules, but goes on where a file is of no use.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from heqis_core.clean import CleaningReport, Fault, RejectedRow
from heqis_core.errors import DataError
from heqis_core.event_time import TimeParser
from heqis_core.io.columns import EXTRAS, FileRows, read_file
from heqis_core.io.files import Judged, judge, list_files, make_report
from heqis_core.suspect import examine
from heqis_core.suspicion import (
    Series,
    Suspicion,
    find_missing,
    find_spellings,
    first_other,
    local_days,
    rows_beside,
)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WHOLE = -1
"""Row of a suspicion that is one of the symbol as a whole."""
_REMARKS = {
    Suspicion.UNFINISHED.value: 'no end of line at the end: the last row may be cut',
    Suspicion.MIXED_ENDS.value: 'its lines end in more than one way',
}


class SuspectRow(NamedTuple):
    """One suspicion: the bar is kept."""

    file: str
    line: int
    """As in `RejectedRow`; 0 for a symbol or a file as a whole."""
    symbol: str
    reason: str
    field: str
    value: str
    note: str


class Action(NamedTuple):
    """One ex-date that was found."""

    date: str
    step: float
    kind: str


@dataclass(slots=True)
class SymbolCheck:
    """One symbol: `rows` = `valid` + `suspended` + the sum of `rejected`.

    Attributes:
        disguised: suspensions that do not say so, part of `suspended`.
        rejected, suspicious: how many, by reason.
        first, last: local days of the first and the last accepted row; empty where there is none.
        missing: days between them that most of the other symbols have and this one lacks.
        actions: the ex-dates.
    """

    symbol: str
    rows: int = 0
    valid: int = 0
    suspended: int = 0
    disguised: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    suspicious: dict[str, int] = field(default_factory=dict)
    first: str = ''
    last: str = ''
    missing: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)


@dataclass(slots=True)
class FileCheck:
    """One file; `error` says why it could not be used, and is empty where it could."""

    path: str
    rows: int = 0
    valid: int = 0
    suspended: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    suspicious: dict[str, int] = field(default_factory=dict)
    error: str = ''


@dataclass(slots=True)
class DataCheck:
    """All of it. Rows whose symbol is not known count in files and `report` alone."""

    files: list[FileCheck]
    symbols: list[SymbolCheck]
    report: CleaningReport
    suspects: list[SuspectRow]
    conflicts: dict[tuple[str, int], str]
    """By file and line of a conflicting duplicate, what it differs from and in which fields."""

    @property
    def clean(self) -> bool:
        """Whether nothing was refused, nothing is suspicious and every file was of use."""
        return not (self.report.rejected or self.suspects or any(one.error for one in self.files))


def check_files(
    path: Path | str, *, tz: str = 'Asia/Shanghai', close_time: str = '15:00'
) -> DataCheck:
    """Check a CSV or Parquet file, or all of a folder.

    `path`, `tz` and `close_time` are those of `load_bars`. Raise DataError if nothing there holds
    a single bar, ConfigError for a zone or time of day that does not exist.
    """
    files, report, rows = _read(path, tz, close_time)
    symbols, suspects = _check_symbols(rows)
    suspects += _of_the_set(rows)
    _count_files(files, rows, report, suspects)
    return DataCheck(files, symbols, report, suspects, _conflicts(rows))


def read_series(
    path: Path | str, *, tz: str = 'Asia/Shanghai', close_time: str = '15:00'
) -> tuple[list[Series], CleaningReport]:
    """Return the accepted rows of every symbol with what the files say beside them, by name.

    And what became of all rows. Arguments and errors are those of `check_files`; DataError also
    if any file is of no use.
    """
    files, report, rows = _read(path, tz, close_time)
    unusable = next((one.error for one in files if one.error), '')
    if unusable:
        raise DataError(unusable)
    beside = _beside_lost(rows)
    return [
        _series(rows, name, kept, _broken(rows, own, kept, beside), since_listing=False)
        for name, own, kept in _by_symbol(rows)
        if len(kept)
    ], report


def _read(
    path: Path | str, tz: str, close_time: str
) -> tuple[list[FileCheck], CleaningReport, _Gathered]:
    if not str(path).strip():
        raise DataError('path: empty; expected a CSV or Parquet file, or a folder of them')
    parser, names = TimeParser(tz, close_time), dict[str, int]()
    loaded: list[FileRows] = []
    files: list[FileCheck] = []
    for file in list_files(Path(path)):
        files.append(FileCheck(str(file)))
        try:
            loaded.append(read_file(file, parser, names, extras=EXTRAS))
        except DataError as error:
            files[-1].error = str(error)
    if not loaded:
        several = f'{path}: no file could be used; the first: ' if len(files) > 1 else ''
        raise DataError(several + files[0].error)
    judged = judge(loaded, parser, len(names))
    report = make_report(loaded, judged, parser, list(names))
    if not report.valid:
        first = report.rejected[0] if report.rejected else None
        why = f'; the first: line {first.line}: {first.reason}' if first else ''
        raise DataError(
            f'{path}: not one valid bar in {report.rows} rows{why}; correct the files, '
            'or point at those with the bars'
        )
    return files, report, _gather(loaded, judged, list(names), ZoneInfo(tz))


@dataclass(slots=True)
class _Gathered:
    """All rows of all files that could be used."""

    loaded: list[FileRows]
    judged: Judged
    names: list[str]
    file: Ints
    """int64 (N,), index into `loaded`."""
    line: Ints
    day: Ints
    """int64 (N,), local day counted from 1970-01-01."""
    extras: dict[str, Floats]
    """float64 (N,), NaN for the rows of files that have no such column."""


def _gather(loaded: list[FileRows], judged: Judged, names: list[str], zone: ZoneInfo) -> _Gathered:
    sizes = [len(rows.lines) for rows in loaded]
    extras = {
        name: np.concatenate(
            [rows.extras.get(name, np.full(len(rows.lines), np.nan)) for rows in loaded]
        )
        for name in EXTRAS
        if any(name in rows.extras for rows in loaded)
    }
    return _Gathered(
        loaded,
        judged,
        names,
        np.repeat(np.arange(len(loaded)), sizes),
        np.concatenate([rows.lines for rows in loaded]),
        local_days(judged.event_ns, zone),
        extras,
    )


def _check_symbols(rows: _Gathered) -> tuple[list[SymbolCheck], list[SuspectRow]]:
    """Return the checks of all symbols, sorted by name, and what is suspicious about them."""
    judged = rows.judged
    checks, suspects = [], list[SuspectRow]()
    days: list[Ints] = []
    begin = int(rows.day[judged.fault == Fault.NONE].min())
    beside = _beside_lost(rows)
    for name, own, kept in _by_symbol(rows):
        check = SymbolCheck(name, len(own))
        check.suspended = int(judged.paused[kept].sum())
        check.disguised = int(judged.disguised[kept].sum())
        check.valid = len(kept) - check.suspended
        faults = judged.fault[own]
        check.rejected = {
            Fault(code).label: n
            for code, n in Counter(faults[faults != Fault.NONE].tolist()).items()
        }
        days.append(np.unique(rows.day[own[_is_dated(faults)]]))
        if len(kept):
            found = _examine(rows, check, kept, _broken(rows, own, kept, beside), begin)
            check.suspicious = dict(Counter(one.reason for one in found))
            suspects += found
        checks.append(check)
    for check, lacking in zip(checks, find_missing(days), strict=True):
        check.missing = [_date(day) for day in lacking]
    return checks, suspects


def _by_symbol(rows: _Gathered) -> Iterator[tuple[str, Ints, Ints]]:
    """Yield each symbol by name, its rows in time order, and those of them that are accepted."""
    judged, codes = rows.judged, np.arange(len(rows.names))
    order = np.lexsort((judged.event_ns, judged.symbol))
    ordered = judged.symbol[order]
    starts = np.searchsorted(ordered, codes, side='left')
    ends = np.searchsorted(ordered, codes, side='right')
    for code in sorted(codes.tolist(), key=rows.names.__getitem__):
        own = order[starts[code] : ends[code]]
        yield rows.names[code], own, own[judged.fault[own] == Fault.NONE]


def _is_dated(faults: npt.NDArray[np.uint8]) -> Bools:
    dated: Bools = (faults == Fault.NONE) | (faults > Fault.BAD_DATE)
    return dated


def _broken(rows: _Gathered, own: Ints, kept: Ints, beside: Bools) -> Bools:
    """Return bool (len(kept),): rows of a symbol that follow a refused one."""
    judged = rows.judged
    dated = own[_is_dated(judged.fault[own])]
    lost = ~np.isin(judged.fault[dated], (Fault.NONE, Fault.DUPLICATE))
    refused = np.r_[False, lost][:-1] | beside[dated]
    found: Bools = refused[np.searchsorted(judged.event_ns[dated], judged.event_ns[kept])]
    return found


def _beside_lost(rows: _Gathered) -> Bools:
    """Return bool (N,): rows that `rows_beside` finds in the files."""
    judged, found = rows.judged, np.zeros(len(rows.line), np.bool_)
    dated = _is_dated(judged.fault)
    start = 0
    for one in rows.loaded:
        own = np.arange(start, start + len(one.lines))
        start += len(own)
        lost = [line for line, _, fault in one.refused if fault != Fault.REPEATED_HEADER]
        lost += one.lines[~dated[own]].tolist()
        if lost:
            own = own[dated[own]]
            beside = rows_beside(lost, rows.line[own], judged.symbol[own], judged.event_ns[own])
            found[own[beside]] = True
    return found


def _conflicts(rows: _Gathered) -> dict[tuple[str, int], str]:
    """Return `DataCheck.conflicts`."""
    judged = rows.judged
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in np.flatnonzero(judged.fault == Fault.CONFLICTING_DUPLICATE).tolist():
        groups[int(judged.symbol[row]), int(judged.event_ns[row])].append(row)
    found = {}
    for alike in groups.values():
        for row in alike:
            other, fields = first_other(judged.values[:, alike], judged.values[:, row])
            file, line = _place(rows, alike[other])
            found[_place(rows, row)] = f'differs from {file}:{line} in {", ".join(fields)}'
    return found


def _place(rows: _Gathered, row: int) -> tuple[str, int]:
    """Return the file and the line of a row."""
    return str(rows.loaded[rows.file[row]].path), int(rows.line[row])


def _series(
    rows: _Gathered, name: str, kept: Ints, broken: Bools, *, since_listing: bool
) -> Series:
    values = rows.judged.values[:, kept]
    values[:, rows.judged.paused[kept]] = np.nan
    extras = {extra: column[kept] for extra, column in rows.extras.items()}
    return Series(
        name, rows.judged.event_ns[kept], rows.day[kept], values, extras, broken, since_listing
    )


def _examine(
    rows: _Gathered, check: SymbolCheck, kept: Ints, broken: Bools, begin: int
) -> list[SuspectRow]:
    """Return what is suspicious about the accepted rows of a symbol; add what else they show."""
    day = rows.day[kept]
    found, ex_dates = examine(
        _series(rows, check.symbol, kept, broken, since_listing=bool(day[0] > begin))
    )
    check.first, check.last = _date(day[0]), _date(day[-1])
    check.actions = [Action(_date(day[one.row]), one.step, one.kind) for one in ex_dates]
    listed = []
    for one in found:
        file, line = _place(rows, kept[max(one.row, 0)])
        listed.append(
            SuspectRow(
                file,
                line if one.row != _WHOLE else 0,
                check.symbol,
                one.suspicion.value,
                one.field,
                f'{one.value:.10g}',
                one.note,
            )
        )
    return listed


def _date(day: int) -> str:
    return str(np.datetime64(int(day), 'D'))


def _of_the_set(rows: _Gathered) -> list[SuspectRow]:
    """Return what is suspicious about files and names as a whole."""
    found = [
        SuspectRow(str(one.path), 0, '', remark, '', '', _REMARKS[remark])
        for one in rows.loaded
        for remark in one.remarks
    ]
    for names in find_spellings(rows.names):
        note = f'{", ".join(names)} mean one symbol; its rows are not joined'
        found += [
            SuspectRow('', 0, name, Suspicion.SPELLINGS.value, 'symbol', name, note)
            for name in names
        ]
    return found


def _by_file(rows: Sequence[RejectedRow] | Sequence[SuspectRow]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.file][row.reason] += 1
    return counts


def _count_files(
    files: list[FileCheck],
    rows: _Gathered,
    report: CleaningReport,
    suspects: Sequence[SuspectRow],
) -> None:
    rejected, suspicious = _by_file(report.rejected), _by_file(suspects)
    n = len(rows.loaded)
    kept = rows.judged.fault == Fault.NONE
    accepted = np.bincount(rows.file[kept], minlength=n)
    suspended = np.bincount(rows.file[kept & rows.judged.paused], minlength=n)
    place = {str(one.path): index for index, one in enumerate(rows.loaded)}
    for check in files:
        index = place.get(check.path)
        if index is not None:
            one = rows.loaded[index]
            check.rows = len(one.lines) + len(one.refused)
            check.suspended = int(suspended[index])
            check.valid = int(accepted[index]) - check.suspended
            check.rejected = dict(rejected[check.path])
            check.suspicious = dict(suspicious[check.path])
