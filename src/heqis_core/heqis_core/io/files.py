# SPDX-License-Identifier: Apache-2.0
"""Market data files as one aligned table of clean bars, and what became of every other row.

The rules are `heqis_core.clean`, the dates `heqis_core.event_time`, the meaning of columns
`heqis_core.io.columns`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, VOLUME, BarStatus, BarTable
from heqis_core.clean import (
    CleaningReport,
    Fault,
    RejectedRow,
    clean_rows,
    find_disguised,
    find_duplicates,
    text_fault,
)
from heqis_core.errors import ConfigError, DataError
from heqis_core.event_time import TimeParser
from heqis_core.io.cells import SUFFIXES
from heqis_core.io.columns import EXTRAS, PARTITION, FileRows, read_file

_MAX_TABLE_BYTES = 8 << 30
"""A table beyond this means that the files do not share their event times."""
_ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.7z', '.rar')


@dataclass(slots=True)
class Judged:
    """All rows of all files, one file after the other, with what the rules say of them.

    Attributes:
        event_ns: int64 (N,), 0 where the row has no event time.
        symbol: int64 (N,), codes, -1 where the row has none.
        values: float64 (6, N), see `FileRows`; NaN in suspensions that say so.
        paused: bool (N,), suspensions.
        disguised: bool (N,), those of them that do not say so.
        fault: uint8 (N,), `Fault` codes.
        field: uint8 (N,), index into `BAR_FIELDS` of the cell that decided.
        texts: by (row, field) what is no number.
    """

    event_ns: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    paused: npt.NDArray[np.bool_]
    disguised: npt.NDArray[np.bool_]
    fault: npt.NDArray[np.uint8]
    field: npt.NDArray[np.uint8]
    texts: dict[tuple[int, int], str]


def load_bars(
    path: Path | str,
    *,
    tz: str = 'Asia/Shanghai',
    close_time: str = '15:00',
    min_rows: int = 1,
    quarantine: Path | None = None,
    channels: Sequence[str] = (),
    optional_channels: Sequence[str] = (),
) -> tuple[BarTable, CleaningReport]:
    """Load CSV or Parquet, a file or all of a folder, into one table aligned on event times.

    Layout, separator and encoding (UTF-8, else GBK) are told from each file. The symbol is the
    symbol column, or the name of the file without its suffix. Rows may stand in any order. A
    refused row is counted, and its symbol is REJECTED at its event time unless a clean row stands
    there too; a row that says `paused` is SUSPENDED, and so is one of a whole day without volume
    that repeats the last close.

    Args:
        path: file, or folder of which what ends in .csv, .csv.gz or .parquet is read, and what
            lies in its folders `symbol=…`.
        tz: IANA zone of the times in the files.
        close_time: local time at which the bar of a date without a time of day closes.
        min_rows: valid rows that each symbol must have; 0 lets symbols through that have none.
        quarantine: CSV file to write refused rows to (file, line, symbol, reason, field, value),
            even if loading fails then.
        channels: further columns of numbers to take along, such as `turnover_rate`. A file that
            lacks one says nothing of it; a cell that is no number counts as empty, and in the
            report's `unread`.
        optional_channels: the same, if any file has them; they follow the others.

    Returns:
        The table (prices as in the file, volume in shares, amount in CNY) and the report.

    Raises:
        DataError: nothing there, no bars in a file, nothing but refused rows in a file, or too few
            for a symbol.
        ConfigError: there is no such zone or time of day.
    """
    if not str(path).strip():
        raise DataError('path: empty; expected a CSV or Parquet file, or a folder of them')
    parser = TimeParser(tz, close_time)
    names: dict[str, int] = {}
    wanted = [*channels, *(name for name in optional_channels if name not in channels)]
    extras = {name: EXTRAS.get(name, (name,)) for name in wanted}
    files = list_files(Path(path))
    loaded = [read_file(file, parser, names, extras=extras) for file in files]
    judged = judge(loaded, parser, len(names))
    report = make_report(loaded, judged, parser, list(names))
    if quarantine is not None:
        write_rows(Path(quarantine), RejectedRow._fields, report.rejected)
    _refuse_hopeless(loaded, judged, report)
    there = {name for rows in loaded for name in rows.extras}
    taken = [name for name in wanted if name in channels or name in there]
    table = _align(judged, list(names), _channels(loaded, taken, Path(path)))
    for rows in loaded:
        for name, n in rows.unread.items():
            report.unread[name] = report.unread.get(name, 0) + n
    _check_min_rows(table, report, min_rows, Path(path))
    return table, report


def list_files(path: Path) -> list[Path]:
    """Return the data files at a path, sorted; raise DataError where there is none."""
    known = ', '.join(SUFFIXES)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(
                f'{path}: unknown kind of file; expected a name that ends in {known}'
                + _hint([path])
            )
        return [path]
    if not path.is_dir():
        raise DataError(f'{path}: no such file or folder; check the path')
    try:
        entries = sorted(path.iterdir())
        for folder in [one for one in entries if one.name.startswith(PARTITION) and one.is_dir()]:
            entries += sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f'{path}: the folder cannot be read: {error}; check its rights') from error
    shown = [entry for entry in entries if not entry.name.startswith('.')]
    files = [one for one in shown if one.name.lower().endswith(SUFFIXES) and one.is_file()]
    if not files:
        raise DataError(
            f'{path}: no data in this folder: none of its {len(entries)} entries ends in {known}'
            + _hint(shown)
        )
    return files


def _hint(entries: Sequence[Path]) -> str:
    """Return what to do about entries of which data are often expected, and never read."""
    packed = [one.name for one in entries if one.name.lower().endswith(_ARCHIVES)]
    below = [one.name for one in entries if one.is_dir()]
    hint = f'; archives are not read: unpack {packed[0]}' if packed else ''
    if below:
        hint += (
            f'; folders below it are not searched, but for {PARTITION}…: name one of them, '
            f'such as {below[0]}'
        )
    return hint


def check_out(out: Path, data: Path, option: str) -> None:
    """Raise ConfigError if a file to write has no folder, or would be read as data next time.

    Args:
        out: the file that will be written.
        data: file or folder of data, as in `list_files`.
        option: what the user has named it by, such as `--out`.
    """
    place, read = out.resolve(), data.resolve()
    folder = place.parent
    if folder.name.startswith(PARTITION) and folder.parent == read:
        folder = read
    if place == read or (folder == read and place.name.lower().endswith(SUFFIXES)):
        raise ConfigError(
            f'{option} {out}: it would stand among the bars of {data}, and be read as bars next '
            'time; name a file in another folder'
        )
    if not place.parent.is_dir():
        raise ConfigError(f'{option} {out}: no folder {out.parent}; create it, or name another')


def judge(loaded: Sequence[FileRows], parser: TimeParser, n_symbols: int) -> Judged:
    """Run every rule over the rows of all files."""
    event_ns, fault = parser.event_times([rows.moment for rows in loaded])
    symbol = np.concatenate([rows.symbol for rows in loaded])
    values = np.concatenate([rows.values for rows in loaded], axis=1)
    paused = np.concatenate([rows.paused for rows in loaded])
    texts: dict[tuple[int, int], str] = {}
    start = 0
    for rows in loaded:
        texts.update({(start + row, field): text for (row, field), text in rows.texts.items()})
        start += len(rows.lines)
    fault[symbol < 0] = Fault.MISSING_SYMBOL
    values[:, paused] = np.nan
    # A symbol whose volume is given somewhere needs it everywhere; an index has none at all.
    with_volume = np.zeros(n_symbols + 1, np.bool_)
    with_volume[symbol[np.isfinite(values[VOLUME])]] = True
    text_mask = None
    if texts:
        text_mask = np.zeros(values.shape, np.bool_)
        at = np.array(list(texts), np.int64)
        text_mask[at[:, 1], at[:, 0]] = True
    verdict = clean_rows(values, text=text_mask, needs_volume=with_volume[symbol])
    fresh = (fault == Fault.NONE) & ~paused
    fault[fresh] = verdict.fault[fresh]
    for row in np.flatnonzero(fault == Fault.NOT_A_NUMBER).tolist():
        fault[row] = text_fault(texts.get((row, int(verdict.field[row])), ''))
    disguised = find_disguised(event_ns, symbol, values, fault, paused)
    fault[disguised], paused = Fault.NONE, paused | disguised
    whole = np.flatnonzero(fault == Fault.NONE)
    fault[whole] = find_duplicates(
        _keys(event_ns[whole], symbol[whole], n_symbols), values[:, whole]
    )
    return Judged(event_ns, symbol, values, paused, disguised, fault, verdict.field, texts)


def _keys(
    event_ns: npt.NDArray[np.int64], symbol: npt.NDArray[np.int64], n_symbols: int
) -> npt.NDArray[np.int64]:
    """Return one number for each pair of event time and symbol."""
    when: npt.NDArray[np.int64] = np.unique(event_ns, return_inverse=True)[1].astype(np.int64)
    return when * n_symbols + symbol


def make_report(
    loaded: Sequence[FileRows], judged: Judged, parser: TimeParser, names: Sequence[str]
) -> CleaningReport:
    """Return what came of every row; `names` are the symbols by code."""
    report = CleaningReport()
    start = 0
    for rows in loaded:
        label = str(rows.path)
        refused = [
            RejectedRow(label, line, '', fault.label, '', text)
            for line, text, fault in rows.refused
        ]
        for row in np.flatnonzero(judged.fault[start : start + len(rows.lines)]).tolist():
            refused.append(_rejected(rows, row, judged, start + row, parser, names))
        report.reject(sorted(refused, key=lambda one: one.line))
        report.rows += len(rows.lines) + len(rows.refused)
        start += len(rows.lines)
    clean = judged.fault == Fault.NONE
    report.suspended = int((clean & judged.paused).sum())
    report.disguised = int((clean & judged.disguised).sum())
    report.valid = int(clean.sum()) - report.suspended
    return report


def _rejected(
    rows: FileRows, row: int, judged: Judged, at: int, parser: TimeParser, names: Sequence[str]
) -> RejectedRow:
    fault = Fault(int(judged.fault[at]))
    code = int(rows.symbol[row])
    field, value = 'date', parser.text(int(rows.moment[row]))
    if fault == Fault.MISSING_SYMBOL:
        field, value = 'symbol', ''
    elif Fault.NOT_A_NUMBER <= fault <= Fault.NEGATIVE_AMOUNT:
        index = int(judged.field[at])
        number = float(judged.values[index, at]) / rows.scale[index]
        field, value = (
            BAR_FIELDS[index],
            judged.texts.get((at, index), '' if np.isnan(number) else repr(number)),
        )
    symbol = names[code] if code >= 0 else ''
    return RejectedRow(str(rows.path), int(rows.lines[row]), symbol, fault.label, field, value)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, and the folders above it; raise DataError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', encoding='utf-8', errors='backslashreplace', newline='') as file:
            writer = csv.writer(file, lineterminator='\n')
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f'{path}: the file cannot be written: {error}; name another') from error


def _refuse_hopeless(loaded: Sequence[FileRows], judged: Judged, report: CleaningReport) -> None:
    """Raise DataError for a file without one usable row: another format, not some bad rows."""
    start = 0
    for rows in loaded:
        fault = judged.fault[start : start + len(rows.lines)]
        start += len(rows.lines)
        # The rows of a copy are duplicates: useless, but not wrong.
        if ((fault == Fault.NONE) | (fault == Fault.DUPLICATE)).any():
            continue
        refused = [row for row in report.rejected if row.file == str(rows.path)]
        raise DataError(
            f'{rows.path}: nothing but rejected rows ({_reasons(refused)}); '
            f'the first: {_first(refused)}; correct the file, or leave it out'
        )


def _reasons(rejected: Sequence[RejectedRow]) -> str:
    counts = Counter(row.reason for row in rejected)
    return ', '.join(f'{reason}: {n}' for reason, n in counts.most_common())


def _first(rejected: Sequence[RejectedRow]) -> str:
    row = rejected[0]
    return f"line {row.line}, {row.field or 'line'} '{row.value}': {row.reason}"


def _channels(
    loaded: Sequence[FileRows], channels: Sequence[str], path: Path
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each channel of all rows, NaN where a file lacks it; DataError if every file does."""
    found = {}
    for name in channels:
        if not any(name in rows.extras for rows in loaded):
            raise DataError(
                f"{path}: no column '{name}', which the features read; fetch data that has it, "
                'or use features without it'
            )
        empty = [np.full(len(rows.lines), np.nan) for rows in loaded]
        parts = [rows.extras.get(name, none) for rows, none in zip(loaded, empty, strict=True)]
        found[name] = np.concatenate(parts)
        unread = sum(rows.unread.get(name, 0) for rows in loaded)
        if unread and not np.isfinite(found[name]).any():
            raise DataError(
                f"{path}: the column '{name}' holds no number in any of its {unread} cells; "
                'a channel is a column of numbers'
            )
    return found


def _align(
    judged: Judged, names: list[str], channels: dict[str, npt.NDArray[np.float64]]
) -> BarTable:
    """Place the rows on the sorted event times × sorted symbols.

    VALID wins over SUSPENDED over REJECTED.
    """
    unreadable = (judged.fault != Fault.NONE) & (judged.fault <= Fault.BAD_DATE)
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    times, when = np.unique(judged.event_ns[~unreadable], return_inverse=True)
    shape = (len(times), len(BAR_FIELDS), len(names))
    if np.prod(shape, dtype=np.int64) * 8 > _MAX_TABLE_BYTES:
        raise DataError(
            f'{shape[0]} event times of {shape[2]} symbols are more than '
            f'{_MAX_TABLE_BYTES >> 30} GiB: load symbols that share their event times, '
            'or fewer of them'
        )
    at, which = np.zeros(len(unreadable), np.int64), place[judged.symbol]
    at[~unreadable] = when
    values = np.full(shape, np.nan)
    status = np.full((shape[0], shape[2]), BarStatus.NO_BAR, np.uint8)
    clean = judged.fault == Fault.NONE
    valid = clean & ~judged.paused
    for rows, code in (
        (~clean & ~unreadable, BarStatus.REJECTED),
        (clean & judged.paused, BarStatus.SUSPENDED),
        (valid, BarStatus.VALID),
    ):
        status[at[rows], which[rows]] = code
    values[at[valid], :, which[valid]] = judged.values[:, valid].T
    extra = None
    if channels:
        extra = np.full((shape[0], len(channels), shape[2]), np.nan)
        for row, column in enumerate(channels.values()):
            extra[at[valid], row, which[valid]] = column[valid]
    symbols = tuple(names[index] for index in order)
    return BarTable(symbols, times, values, status, tuple(channels), extra)


def _check_min_rows(table: BarTable, report: CleaningReport, min_rows: int, path: Path) -> None:
    valid = (table.status == BarStatus.VALID).sum(axis=0)
    short = [
        (symbol, int(n)) for symbol, n in zip(table.symbols, valid, strict=True) if n < min_rows
    ]
    if not short:
        return
    listed = ', '.join(f'{symbol} has {n}' for symbol, n in short[:5])
    more = f' and {len(short) - 5} more symbols are short too' if len(short) > 5 else ''
    own = [row for row in report.rejected if row.symbol == short[0][0]]
    why = (
        f' (of {short[0][0]} were rejected: {_reasons(own)}; '
        f'the first in {own[0].file}, {_first(own)})'
        if own
        else ''
    )
    raise DataError(
        f'{path}: too few valid rows: {listed}{more}, the minimum is {min_rows}{why}; '
        'fetch more rows, leave these symbols out, or ask for fewer rows'
    )
