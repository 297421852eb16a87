# SPDX-License-Identifier: Apache-2.0
"""The `heqis data` command.

`check` says what is wrong with market data, where, and how much; `adjust` writes adjusted prices.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from heqis_core.adjust import Adjusted, adjust_series, can_adjust, untold_days
from heqis_core.bars import BAR_FIELDS, CLOSE
from heqis_core.clean import RejectedRow
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.check import DataCheck, SuspectRow, SymbolCheck, check_files, read_series
from heqis_core.io.files import check_out, write_rows
from heqis_core.suspect import examine
from heqis_core.suspicion import Series, Suspicion

CLEAN, FINDINGS = 0, 1
"""Exit status of a check; what cannot be used at all is an error, and ends in 2."""

_PIPE_WIDTH = 160
"""Columns where the output is no terminal."""
_ACTIONS_SHOWN = 3
_ERROR_SHOWN = 120
"""Characters in the table; the JSON has all of it."""
_GAPS_SHOWN = 3
_COLUMNS = ('symbol', 'date', *BAR_FIELDS, 'adj_factor')

EXAMPLES = """examples:
  heqis data check prices/                        # every CSV and Parquet file of a folder
  heqis data check 600519.csv --examples 20       # more of the rows behind each count
  heqis data check prices/ --json report.json --quarantine refused.csv
  heqis data check SPY.csv --tz America/New_York --close_time 16:00

A rejected row is no bar for HEQIS; a suspicious one is kept. Exit status: 0 clean, 1 findings
(rejected rows, suspicions, files of no use), 2 nothing there can be used.
docs/cleaning.md explains every name.
"""


ADJUST_EXAMPLES = """examples:
  heqis data adjust prices/ --hfq --out hfq.csv
  heqis data adjust prices/ --qfq 2024-06-28 --out qfq.parquet
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` to the subcommands of `heqis`."""
    parser = subparsers.add_parser('data', help='check market data, or adjust its prices')
    actions = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    _register_adjust(actions)
    check = actions.add_parser(
        'check',
        help='what is wrong with data files, where, and how much of it',
        description='Check CSV or Parquet files of bars: what is rejected, what is suspicious, '
        'suspensions, gaps and corporate actions.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument('path', metavar='PATH', help='CSV or Parquet, a file or a folder')
    _add_time_options(check)
    check.add_argument(
        '--examples',
        type=_count,
        default=3,
        metavar='N',
        help='rows to show of each reason; default %(default)s',
    )
    check.add_argument('--json', type=Path, metavar='FILE', help='write all of it there')
    check.add_argument(
        '--quarantine', type=Path, metavar='FILE', help='write the rejected rows there, as CSV'
    )
    check.set_defaults(func=run_check)


def _register_adjust(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adjust = actions.add_parser(
        'adjust',
        help='write hfq or point-in-time qfq prices of raw bars',
        description='Write adjusted prices of raw bars, by their adj_factor or pre_close columns. '
        'Adjusted prices are for signals; limits, lots, fees and fills need raw ones.',
        epilog=ADJUST_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    adjust.add_argument('path', metavar='PATH', help='CSV or Parquet, a file or a folder')
    way = adjust.add_mutually_exclusive_group(required=True)
    way.add_argument('--hfq', action='store_true', help='raw price × factor of its own day')
    way.add_argument(
        '--qfq',
        type=_day,
        metavar='DAY',
        help='as it stood on that day, such as 2024-06-28: later rows are left out',
    )
    adjust.add_argument(
        '--out', type=Path, required=True, metavar='FILE', help='file to write: .csv or .parquet'
    )
    adjust.add_argument(
        '--force', action='store_true', help='adjust prices although they look adjusted already'
    )
    _add_time_options(adjust)
    adjust.set_defaults(func=run_adjust)


def _add_time_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--tz', default='Asia/Shanghai', help='zone of the times in the files; default %(default)s'
    )
    parser.add_argument(
        '--close_time',
        default='15:00',
        metavar='HH:MM',
        help='local time at which the bar of a whole day closes; default %(default)s',
    )


def _count(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of rows; expected 0 or more")


def _day(text: str) -> int:
    """Return a day counted from 1970-01-01."""
    try:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no day; expected such as 2024-06-28"
        ) from None


def run_adjust(args: argparse.Namespace) -> int:
    """Write adjusted prices, say what became of the rows; return the exit status."""
    path, out = Path(args.path), args.out
    if out.suffix.lower() not in ('.csv', '.parquet'):
        raise ConfigError(f'--out {out}: expected a name that ends in .csv or .parquet')
    check_out(out, path, '--out')
    series, report = read_series(args.path, tz=args.tz, close_time=args.close_time)
    traded = [one for one in series if np.isfinite(one.values[CLOSE]).any()]
    _refuse_unfit(path, traded, args.force)
    as_of = None if args.hfq else args.qfq
    if as_of is not None:
        _check_as_of(path, traded, as_of)
    written = [adjust_series(one, as_of) for one in traded]
    written = [one for one in written if len(one.event_ns)]
    (_write_parquet if out.suffix.lower() == '.parquet' else _write_csv)(out, written)
    rows = sum(len(one.event_ns) for one in written)
    print(f'{out}: {_n(rows, "row")} of {_n(len(written), "symbol")}')
    refused = f' ({_counts(report.counts)})' if report.counts else ''
    print(
        f'{path}: {_n(report.rows, "row")}: {report.valid:,} valid, {report.suspended:,} '
        f'suspended, {len(report.rejected):,} rejected{refused}'
    )
    names = {one.symbol for one in series} | {row.symbol for row in report.rejected} - {''}
    without = sorted(names - {one.symbol for one in written})
    if without:
        print(f'no row of {_first_of(without, _GAPS_SHOWN)}', file=sys.stderr)
    _warn_untold(traded)
    return CLEAN


def _refuse_unfit(path: Path, series: Sequence[Series], force: bool) -> None:
    """Raise DataError for symbols with nothing to adjust by, or whose prices look adjusted."""
    bare = [one.symbol for one in series if not can_adjust(one)]
    if bare:
        raise DataError(
            f'{path}: {_first_of(bare, _GAPS_SHOWN)}: nothing to adjust by: no adj_factor above '
            'zero, and no pre_close of a day, beside the bars; fetch one of them, or keep to raw '
            'prices'
        )
    if force:
        return
    looks = [
        (one.symbol, suspect.note)
        for one in series
        for suspect in examine(one)[0]
        if suspect.suspicion is Suspicion.LOOKS_ADJUSTED
    ]
    if looks:
        names = _first_of(list(dict.fromkeys(symbol for symbol, _ in looks)), _GAPS_SHOWN)
        raise DataError(
            f'{path}: {names}: the prices look adjusted already; of {looks[0][0]}, '
            f'{looks[0][1]}; give raw prices, or --force if they are raw after all'
        )


def _check_as_of(path: Path, series: Sequence[Series], as_of_day: int) -> None:
    """Raise DataError for a day before the data, and say so of one after them."""
    days = np.concatenate([one.day[np.isfinite(one.values[CLOSE])] for one in series])
    first, last = int(days.min()), int(days.max())
    if as_of_day < first:
        raise DataError(
            f'--qfq {_date(as_of_day)}: nothing is known of that day: {path} begins on '
            f'{_date(first)} and ends on {_date(last)}; name a day from {_date(first)} on'
        )
    if as_of_day > last:
        print(
            f'--qfq {_date(as_of_day)}: {path} ends on {_date(last)}: prices are as of its end, '
            'and an ex-date after it is not known',
            file=sys.stderr,
        )


def _date(day: int) -> str:
    return str(np.datetime64(day, 'D'))


def _warn_untold(series: Sequence[Series]) -> None:
    """Say of how many rows nothing tells whether an ex-date lies before them."""
    untold = [f'{one.symbol} {_date(day)}' for one in series for day in untold_days(one)]
    if untold:
        print(
            f'{_n(len(untold), "row")} without a factor, and without a reference price that can '
            f'be held against the row before: {_first_of(untold, _GAPS_SHOWN)}; taken for no '
            'ex-dates',
            file=sys.stderr,
        )


def _write_csv(out: Path, written: Sequence[Adjusted]) -> None:
    write_rows(out, _COLUMNS, (row for one in written for row in _csv_rows(one)))


def _csv_rows(one: Adjusted) -> Iterator[tuple[object, ...]]:
    when = np.datetime_as_string(one.event_ns.astype('datetime64[ns]'), unit='s')
    for moment, numbers in zip(when.tolist(), one.values.T.tolist(), strict=True):
        cells = ['' if number != number else number for number in numbers]
        yield (one.symbol, f'{moment}Z', *cells)


def _write_parquet(out: Path, written: Sequence[Adjusted]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f'--out {out}: Parquet needs the package pyarrow: install it, or name a .csv'
        ) from error
    sizes = [len(one.event_ns) for one in written]
    names = np.repeat(np.array([one.symbol for one in written], object), sizes)
    times = pa.array(np.concatenate([one.event_ns for one in written]))
    numbers = np.concatenate([one.values for one in written], axis=1)
    columns = [pa.array(names, pa.string()), times.cast(pa.timestamp('ns', 'UTC'))]
    columns += [pa.array(column, from_pandas=True) for column in numbers]
    try:
        parquet.write_table(pa.table(columns, names=_COLUMNS), out)
    except OSError as error:
        raise DataError(f'{out}: the file cannot be written: {error}; name another') from error


def run_check(args: argparse.Namespace) -> int:
    """Check, print the report and write what was asked for; return the exit status."""
    for option, file in (('--json', args.json), ('--quarantine', args.quarantine)):
        if file is not None:
            check_out(file, Path(args.path), option)
    found = check_files(args.path, tz=args.tz, close_time=args.close_time)
    if args.quarantine is not None:
        write_rows(args.quarantine, RejectedRow._fields, found.report.rejected)
    if args.json is not None:
        _write_json(args.json, as_document(found))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    _print(console, found, args.examples)
    return CLEAN if found.clean else FINDINGS


def as_document(found: DataCheck) -> dict[str, Any]:
    """Return all of a check, JSON-able."""
    report = found.report
    return {
        'clean': found.clean,
        'rows': report.rows,
        'valid': report.valid,
        'suspended': report.suspended,
        'disguised': report.disguised,
        'rejected': report.counts,
        'suspicious': _total(found.suspects),
        'files': [asdict(one) for one in found.files],
        'symbols': [
            asdict(one) | {'actions': [action._asdict() for action in one.actions]}
            for one in found.symbols
        ],
        'rejected_rows': [
            row._asdict() | {'note': found.conflicts.get((row.file, row.line), '')}
            for row in report.rejected
        ],
        'suspicious_rows': [row._asdict() for row in found.suspects],
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False)
    try:
        path.write_text(text + '\n', encoding='utf-8', errors='backslashreplace')
    except OSError as error:
        raise DataError(f'{path}: the file cannot be written: {error}; name another') from error


def _print(console: Console, found: DataCheck, examples: int) -> None:
    console.print(_symbols_table(found.symbols))
    root = Path(os.path.commonpath([str(Path(one.path).parent) for one in found.files]))
    odd = [one for one in found.files if one.error or one.rejected or one.suspicious]
    if odd:
        table = _table('files with findings', 'file', rows=1, valid=1, rejected=0, suspicious=0)
        for one in odd:
            name = str(Path(one.path).relative_to(root))
            if one.error:
                # The error begins with the path.
                why = one.error.removeprefix(f'{one.path}: ')
                table.add_row(name, '–', '–', textwrap.shorten(why, _ERROR_SHOWN), '')
            else:
                table.add_row(
                    name, f'{one.rows:,}', f'{one.valid:,}',
                    _counts(one.rejected), _counts(one.suspicious),
                )  # fmt: skip
        console.print(table)
    _print_examples(console, 'rejected', found.report.rejected, examples, found.conflicts)
    _print_examples(console, 'suspicious', found.suspects, examples, {})
    report = found.report
    refused, unusable = sum(report.counts.values()), sum(bool(one.error) for one in found.files)
    console.print(
        f'{_n(report.rows, "row")}: {report.valid:,} valid, {report.suspended:,} suspended '
        f'({report.disguised:,} in disguise), {refused:,} rejected; '
        f'{_n(len(found.suspects), "suspicion")}; {_n(len(found.files), "file")}, '
        f'{unusable:,} of no use; ' + ('clean' if found.clean else 'findings'),
        soft_wrap=True,
    )


def _symbols_table(symbols: Sequence[SymbolCheck]) -> Table:
    table = _table(
        'symbols', 'symbol', rows=1, valid=1, suspended=1, rejected=0, suspicious=0,
        first=0, last=0, missing=0, actions=0,
    )  # fmt: skip
    for one in symbols:
        disguised = f' ({one.disguised:,} in disguise)' if one.disguised else ''
        actions = [f'{act.date} {act.kind} {act.step:.4g}' for act in one.actions]
        table.add_row(
            one.symbol, f'{one.rows:,}', f'{one.valid:,}', f'{one.suspended:,}{disguised}',
            _counts(one.rejected), _counts(one.suspicious), one.first, one.last,
            _first_of(one.missing, _GAPS_SHOWN), _first_of(actions, _ACTIONS_SHOWN),
        )  # fmt: skip
    return table


def _table(title: str, name: str, **columns: int) -> Table:
    """Return an empty table: the columns by name, those with 1 hold numbers."""
    table = Table(title=title, title_justify='left')
    table.add_column(name, overflow='fold')
    for heading, is_number in columns.items():
        table.add_column(heading, justify='right' if is_number else 'left', overflow='fold')
    return table


def _first_of(items: Sequence[str], most: int) -> str:
    if not items:
        return ''
    more = f', … ({len(items)})' if len(items) > most else ''
    return ', '.join(items[:most]) + more


def _n(n: int, noun: str) -> str:
    return f'{n:,} {noun}' if n == 1 else f'{n:,} {noun}s'


def _counts(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{reason} {n:,}' for reason, n in sorted(counts.items()))


def _total(rows: Sequence[RejectedRow] | Sequence[SuspectRow]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    return counts


def _print_examples(
    console: Console,
    title: str,
    rows: Sequence[RejectedRow] | Sequence[SuspectRow],
    most: int,
    notes: Mapping[tuple[str, int], str],
) -> None:
    """Print the first rows of each reason as file:line:field:value; `notes` by file and line."""
    for reason, n in sorted(_total(rows).items()):
        console.print(f'{title}: {reason} {n:,}', style='bold', markup=False)
        for row in [one for one in rows if one.reason == reason][:most]:
            place = [row.file, str(row.line) if row.line else '', row.field, row.value]
            note = row.note if isinstance(row, SuspectRow) else notes.get((row.file, row.line), '')
            shown = f'({note})' if note else ''
            parts = ['', row.symbol, ':'.join(part for part in place if part), shown]
            console.print('  '.join(part for part in parts if part), markup=False, soft_wrap=True)
