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

from heqis_core.adjust import factor_of, hfq, qfq
from heqis_core.bars import BAR_FIELDS, CLOSE
from heqis_core.clean import RejectedRow
from heqis_core.errors import DataError
from heqis_core.io.check import DataCheck, SuspectRow, SymbolCheck, check_files, read_series
from heqis_core.io.files import write_rows
from heqis_core.market.ticks import TICK
from heqis_core.suspicion import Series, kind_of

CLEAN, FINDINGS = 0, 1
"""Exit status of a check; what cannot be used at all is an error, and ends in 2."""

_PIPE_WIDTH = 160
"""Columns where the output is no terminal."""
_ACTIONS_SHOWN = 3
_ERROR_SHOWN = 120
"""Characters in the table; the JSON has all of it."""
_GAPS_SHOWN = 3

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
  heqis data adjust prices/ --qfq 2024-06-28 --out qfq.csv
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
        type=int,
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
    adjust.add_argument('--out', type=Path, required=True, metavar='FILE', help='CSV file')
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


def _day(text: str) -> int:
    """Return a day counted from 1970-01-01."""
    try:
        return (date.fromisoformat(text) - date(1970, 1, 1)).days
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no day; expected such as 2024-06-28"
        ) from None


def run_adjust(args: argparse.Namespace) -> int:
    """Write adjusted prices; return the exit status."""
    rows: list[tuple[object, ...]] = []
    series = read_series(args.path, tz=args.tz, close_time=args.close_time)
    for one in series:
        if not {'adj_factor', 'pre_close'} & set(one.extras):
            raise DataError(
                f'{args.path}: {one.symbol}: neither adj_factor nor pre_close beside the bars; '
                'fetch one of them, or keep to raw prices'
            )
        rows += _adjusted(one, None if args.hfq else args.qfq)
    write_rows(args.out, ('symbol', 'date', *BAR_FIELDS, 'adj_factor'), rows)
    print(f'{args.out}: {len(rows):,} rows of {len(series):,} symbols')
    return CLEAN


def _adjusted(series: Series, as_of_day: int | None) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a symbol: hfq, or qfq as of a day; suspensions are left out."""
    kind = kind_of(series.symbol)
    factor = factor_of(
        series.values[CLOSE],
        pre_close=series.extra('pre_close'),
        adj_factor=series.extra('adj_factor'),
        tick=kind.tick if kind and kind.tick else TICK,
    )
    end = len(factor)
    if as_of_day is not None:
        end = int(np.searchsorted(series.day, as_of_day, side='right'))
        if not end:
            return
    prices = series.values[: CLOSE + 1]
    prices = hfq(prices, factor) if as_of_day is None else qfq(prices, factor, end - 1)
    when = np.datetime_as_string(series.event_ns.astype('datetime64[ns]'), unit='s')
    for row in np.flatnonzero(np.isfinite(prices[CLOSE])).tolist():
        extra = ['' if np.isnan(one) else one for one in series.values[CLOSE + 1 :, row].tolist()]
        yield (series.symbol, f'{when[row]}Z', *prices[:, row].tolist(), *extra, factor[row])


def run_check(args: argparse.Namespace) -> int:
    """Check, print the report and write what was asked for; return the exit status."""
    found = check_files(args.path, tz=args.tz, close_time=args.close_time)
    if args.quarantine is not None:
        write_rows(args.quarantine, RejectedRow._fields, found.report.rejected)
    if args.json is not None:
        _write_json(args.json, as_document(found))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    _print(console, found, max(args.examples, 0))
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
        'rejected_rows': [row._asdict() for row in report.rejected],
        'suspicious_rows': [row._asdict() for row in found.suspects],
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    _print_examples(console, 'rejected', found.report.rejected, examples)
    _print_examples(console, 'suspicious', found.suspects, examples)
    report = found.report
    refused, unusable = sum(report.counts.values()), sum(bool(one.error) for one in found.files)
    console.print(
        f'{report.rows:,} rows: {report.valid:,} valid, {report.suspended:,} suspended '
        f'({report.disguised:,} in disguise), {refused:,} rejected; '
        f'{len(found.suspects):,} suspicions; {len(found.files):,} files, {unusable:,} of no use; '
        + ('clean' if found.clean else 'findings'),
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
) -> None:
    """Print the first rows of each reason as file:line:field:value."""
    for reason, n in sorted(_total(rows).items()):
        console.print(f'{title}: {reason} {n:,}', style='bold', markup=False)
        for row in [one for one in rows if one.reason == reason][:most]:
            place = [row.file, str(row.line) if row.line else '', row.field, row.value]
            note = f'({row.note})' if isinstance(row, SuspectRow) and row.note else ''
            parts = ['', row.symbol, ':'.join(part for part in place if part), note]
            console.print('  '.join(part for part in parts if part), markup=False, soft_wrap=True)
