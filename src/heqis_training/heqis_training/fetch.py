# SPDX-License-Identifier: Apache-2.0
"""The `heqis fetch` command: market data from Tushare Pro into a store. Its work: `fetch_run`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

if TYPE_CHECKING:
    from heqis_core.io.tushare_client import TushareClient
    from heqis_training.fetch_run import Outcome, Progress

DEFAULT_OUT = 'output/market'
DEFAULT_ENDPOINTS = (
    'daily', 'suspend_d', 'adj_factor', 'stk_limit', 'daily_basic', 'fund_daily', 'index_daily',
)  # fmt: skip
EXIT_FINDINGS = 1
_LISTED = 10
"""Symbols or names of each kind that the summary lists."""
_LINES = 20
"""Progress lines of a run without a terminal."""
EXAMPLES = """examples:
  export TUSHARE_TOKEN_FILE=~/.tushare                 # a file of mode 0600 that holds the token
  heqis fetch --universe config/universe.example.txt --start 20150101
  heqis fetch --symbols 600519.SH 000001.SZ --start 20200101 --end 20241231 --out prices
  heqis fetch --universe universe.txt --start 20150101 --rate 450   # again: only what is missing
  heqis fetch --universe universe.txt --start 20240101 --refresh    # take over corrections
  heqis train --data output/market

The token comes from TUSHARE_TOKEN or TUSHARE_TOKEN_FILE, never from the command line. What is
fetched is kept whatever happens: run the same command again to go on. Exit status: 0 all fetched,
1 fetched, but something in the universe is unknown or ambiguous, 2 an error.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fetch` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'fetch',
        help='fetch market data from Tushare Pro into a store',
        description='Fetch daily bars, factors, limits and suspensions from Tushare Pro as '
        'Parquet, one folder for each symbol, clean columns beside those of the vendor.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--universe', type=Path, metavar='FILE', help='codes or Chinese names, by sector'
    )
    what.add_argument('--symbols', nargs='+', metavar='NAME', help='codes or names')
    parser.add_argument('--start', required=True, metavar='YYYYMMDD', help='first day')
    parser.add_argument('--end', metavar='YYYYMMDD', help='last day; default: today in Shanghai')
    parser.add_argument(
        '--out', type=Path, default=Path(DEFAULT_OUT), metavar='DIR', help='default %(default)s'
    )
    parser.add_argument(
        '--endpoints',
        nargs='+',
        default=list(DEFAULT_ENDPOINTS),
        metavar='NAME',
        help=f'time series to fetch; default: {" ".join(DEFAULT_ENDPOINTS)}',
    )
    parser.add_argument(
        '--rate', type=int, default=200, metavar='N',
        help='calls a minute of each interface at most; default %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--timeout', type=float, default=30.0, metavar='S', help='of an answer; default 30'
    )
    parser.add_argument(
        '--attempts', type=int, default=6, metavar='N', help='at one answer; default %(default)s'
    )
    parser.add_argument(
        '--refresh', action='store_true', help='ask for days again that are in the store'
    )
    parser.add_argument(
        '--allow_unresolved',
        action='store_true',
        help='exit with 0 even if something in the universe is unknown',
    )
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object as the last line'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Fetch as `args` say and print what came of it; return the exit status.

    Raises HeqisError of the client, the universe or the store.
    """
    from heqis_core.io.tushare_client import TushareClient
    from heqis_core.io.tushare_universe import Entry, read_universe
    from heqis_training.fetch_plan import FetchPlan
    from heqis_training.fetch_run import run_fetch

    console = Console(stderr=args.json, highlight=False)
    entries = (
        read_universe(args.universe)
        if args.universe
        else [Entry(name, '', number) for number, name in enumerate(args.symbols, 1)]
    )
    plan = FetchPlan(
        args.out,
        tuple(entries),
        args.start,
        args.end or f'{datetime.now(ZoneInfo("Asia/Shanghai")):%Y%m%d}',
        frozenset(args.endpoints),
        args.refresh,
    )
    client = TushareClient.from_environment(
        per_minute=args.rate, timeout_s=args.timeout, attempts=args.attempts
    )
    with _reporter(console) as report:
        outcome = run_fetch(client, plan, report)
    _print(console, outcome, client, args.out)
    if args.json:
        print(json.dumps(summary(outcome, client), ensure_ascii=False), flush=True)
    unresolved = outcome.universe.unresolved and not args.allow_unresolved
    return EXIT_FINDINGS if unresolved else 0


def summary(outcome: Outcome, client: TushareClient) -> dict[str, Any]:
    """Return what a run found and did, JSON-able."""
    return {
        'symbols': [one.ts_code for one in outcome.securities],
        'unresolved': [
            {
                'text': one.entry.text,
                'line': one.entry.line,
                'reason': one.reason,
                'hint': one.hint,
            }
            for one in outcome.universe.unresolved
        ],
        'requests': dict(client.counts),
        'rows': dict(outcome.changes),
        'bars': dict(outcome.bars),
        'rejected': dict(outcome.rejected),
        'notes': dict(outcome.notes),
        'corrected': outcome.corrected,
        'holes': outcome.holes,
    }


@contextmanager
def _reporter(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on a terminal, else a line now and then."""
    if not console.is_terminal:
        shown = -1

        def line(progress: Progress) -> None:
            nonlocal shown
            step = progress.done * _LINES // max(progress.total, 1)
            if step != shown:
                shown = step
                console.print(f'{progress.done}/{progress.total} {progress.text}', soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn('{task.description:<24}'), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task('universe', total=None)
        yield lambda progress: bar.update(
            task, total=progress.total, completed=progress.done, description=progress.text
        )


def _print(console: Console, outcome: Outcome, client: TushareClient, out: Path) -> None:
    for one in outcome.universe.resolved:
        if one.note:
            console.print(
                f'line {one.entry.line}: {one.entry.text} → {one.security.ts_code}: {one.note}',
                soft_wrap=True, markup=False,
            )  # fmt: skip
    for lost in outcome.universe.unresolved:
        console.print(
            f'line {lost.entry.line}: {lost.entry.text}: {lost.reason}: {lost.hint}',
            soft_wrap=True, markup=False,
        )  # fmt: skip
    for name, rows in list(outcome.corrected.items())[:_LISTED]:
        console.print(
            f'{name}: the vendor has changed {rows} rows since they were fetched', soft_wrap=True
        )
    for symbol, days in list(outcome.holes.items())[:_LISTED]:
        console.print(
            f'{symbol}: {len(days)} open days without a bar or a suspension, the first {days[0]}',
            soft_wrap=True,
        )
    console.print(_table(outcome, client))
    console.print(f'store: {out}', soft_wrap=True, markup=False)


def _table(outcome: Outcome, client: TushareClient) -> Table:
    table = Table(show_header=False)
    table.add_column('what')
    table.add_column('how many', justify='right')
    for kind in ('stock', 'fund', 'index'):
        n = sum(one.kind == kind for one in outcome.securities)
        if n:
            table.add_row(f'symbols: {kind}', f'{n:,}')
    table.add_row('unresolved names', f'{len(outcome.universe.unresolved):,}')
    for name, count in sorted(client.counts.items()):
        table.add_row(name.replace('_', ': ', 1), f'{count:,}')
    for name in ('added', 'changed', 'removed'):
        table.add_row(f'vendor rows: {name}', f'{outcome.changes[name]:,}')
    for name, count in sorted(outcome.bars.items()):
        table.add_row(f'bars in the store: {name}', f'{count:,}')
    for name, count in sorted(outcome.rejected.items()):
        table.add_row(f'rejected: {name}', f'{count:,}')
    for name, count in sorted(outcome.notes.items()):
        table.add_row(f'noted: {name}', f'{count:,}')
    if outcome.holes:
        table.add_row('days without a row', f'{sum(map(len, outcome.holes.values())):,}')
    return table
