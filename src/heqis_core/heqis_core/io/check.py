# SPDX-License-Identifier: Apache-2.0
"""A check of market data files: what was refused, what is suspicious, where, and how much of it.

It reads as `load_bars` does, by the same rules, but goes on where a file is of no use.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from heqis_core.clean import CleaningReport, Fault
from heqis_core.errors import DataError
from heqis_core.event_time import TimeParser
from heqis_core.io.columns import EXTRAS, FileRows, read_file
from heqis_core.io.files import Judged, judge, list_files, make_report
from heqis_core.suspect import examine
from heqis_core.suspicion import Series, Suspicion, kind_of

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DAY_NS = 86_400_000_000_000
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
    return DataCheck(files, symbols, report, suspects)


def read_series(
    path: Path | str, *, tz: str = 'Asia/Shanghai', close_time: str = '15:00'
) -> list[Series]:
    """Return the accepted rows of every symbol with what the files say beside them, by name.

    Arguments and errors are those of `check_files`; DataError also if any file is of no use.
    """
    files, _, rows = _read(path, tz, close_time)
    unusable = next((one.error for one in files if one.error), '')
    if unusable:
        raise DataError(unusable)
    return [
        _series(rows, name, kept, np.zeros(len(kept), np.bool_), since_listing=False)
        for name, _, kept in _by_symbol(rows)
        if len(kept)
    ]


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
        raise DataError(
            f'{path}: no file could be used; the first: {files[0].error}'
            if len(files) > 1
            else files[0].error
        )
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


def find_spellings(symbols: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that mean one symbol: 600519.SH, sh600519, SSE.600519."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in sorted(set(symbols)):
        digits = ''.join(char for char in name if char.isdigit())
        kind = kind_of(name)
        if kind is not None and len(digits) == 6:
            groups[kind.exchange, digits].append(name)
        else:
            groups[name.strip().casefold()].append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


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
        _local_days(judged.event_ns, zone),
        extras,
    )


def _local_days(event_ns: Ints, zone: ZoneInfo) -> Ints:
    """Return int64 (N,): the day in a time zone, counted from 1970-01-01."""
    days, which = np.unique(event_ns // _DAY_NS, return_inverse=True)
    offsets = np.array([_offset_ns(int(day) * 86_400, zone) for day in days], np.int64)
    local: Ints = (event_ns + offsets[which]) // _DAY_NS
    return local


def _offset_ns(utc_s: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(utc_s, timezone.utc).astimezone(zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds()) * 1_000_000_000


def _check_symbols(rows: _Gathered) -> tuple[list[SymbolCheck], list[SuspectRow]]:
    """Return the checks of all symbols, sorted by name, and what is suspicious about them."""
    judged = rows.judged
    checks, suspects = [], list[SuspectRow]()
    days: list[Ints] = []
    begin = int(rows.day[judged.fault == Fault.NONE].min())
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
        dated = own[(faults == Fault.NONE) | (faults > Fault.BAD_DATE)]
        days.append(np.unique(rows.day[dated]))
        if len(kept):
            # Of the rows with an event time, those that follow a refused one.
            lost = ~np.isin(judged.fault[dated], (Fault.NONE, Fault.DUPLICATE))
            refused = np.r_[False, lost][:-1]
            broken = refused[np.searchsorted(judged.event_ns[dated], judged.event_ns[kept])]
            found = _examine(rows, check, kept, broken, begin)
            check.suspicious = dict(Counter(one.reason for one in found))
            suspects += found
        checks.append(check)
    _find_missing(checks, days)
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


def _series(
    rows: _Gathered, name: str, kept: Ints, broken: Bools, *, since_listing: bool
) -> Series:
    values = rows.judged.values[:, kept]
    values[:, rows.judged.paused[kept]] = np.nan
    extras = {extra: column[kept] for extra, column in rows.extras.items()}
    return Series(
        name,
        rows.judged.event_ns[kept],
        rows.day[kept],
        values,
        extras,
        broken,
        since_listing=since_listing,
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
        at = kept[one.row] if one.row != _WHOLE else kept[0]
        listed.append(
            SuspectRow(
                str(rows.loaded[rows.file[at]].path),
                int(rows.line[at]) if one.row != _WHOLE else 0,
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


def _find_missing(checks: list[SymbolCheck], days: list[Ints]) -> None:
    """Find the days that most of the symbols that trade then have, and one lacks."""
    every = np.unique(np.concatenate(days)) if days else np.zeros(0, np.int64)
    has = np.zeros((len(days), len(every)), np.bool_)
    alive = np.zeros_like(has)
    for symbol, own in enumerate(days):
        if len(own):
            at = np.searchsorted(every, own)
            has[symbol, at] = True
            alive[symbol, at[0] : at[-1] + 1] = True
    present, living = has.sum(axis=0), alive.sum(axis=0)
    for symbol, check in enumerate(checks):
        # The symbol itself is no witness of its own gap.
        lacks = alive[symbol] & ~has[symbol] & (2 * present > living - 1)
        check.missing = [_date(day) for day in every[lacks]]


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


def _count_files(
    files: list[FileCheck],
    rows: _Gathered,
    report: CleaningReport,
    suspects: Sequence[SuspectRow],
) -> None:
    rejected, suspicious = (
        defaultdict[str, Counter[str]](Counter),
        defaultdict[str, Counter[str]](Counter),
    )
    for refused in report.rejected:
        rejected[refused.file][refused.reason] += 1
    for suspect in suspects:
        suspicious[suspect.file][suspect.reason] += 1
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
