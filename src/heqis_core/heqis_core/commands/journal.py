# SPDX-License-Identifier: Apache-2.0
"""`heqis journal`: show what a journal holds, export it to Parquet, check that it is whole.

All of them only read; the graph may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from heqis_core.control import Event
from heqis_core.decision import Action, reason_names
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.journal import Journal
from heqis_core.io.journal_check import JournalCheck, check
from heqis_core.io.journal_file import damaged
from heqis_core.io.journal_reader import FrameRow, HoldingRow, SignalRow

WELL, FINDINGS = 0, 1
"""Exit status of a check; a journal that cannot be opened is an error, and ends in 2."""

RESET = 'reset'
"""How the kinds of all events about resets begin."""

_WHAT = ('signals', 'frames', 'holdings', 'events', 'resets')
_TABLES = ('decisions', 'signals', 'events')
_PIPE_WIDTH = 160
_UNIX = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EXAMPLES = """examples:
  heqis journal show run/journal.sqlite                          # the last 20 signals
  heqis journal show run/journal.sqlite --symbol 600519.SH --since 2024-06-28
  heqis journal show run/journal.sqlite holdings                 # bought and not sold
  heqis journal show run/journal.sqlite events --last 100 --json
  heqis journal export run/journal.sqlite --out journal/         # Parquet
  heqis journal check run/journal.sqlite                         # 0 well, 1 findings

docs/supervision.md says what is in a journal.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `journal` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'journal',
        help='show, export and check the journal of signals and events',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    show = _add(actions, 'show', 'the newest signals, frames, events, and more', run_show)
    show.add_argument(
        'what', nargs='?', choices=_WHAT, default='signals', help='default %(default)s'
    )
    show.add_argument('--last', type=_count, default=20, metavar='N', help='default %(default)s')
    show.add_argument('--symbol', metavar='NAME', help='signals or holdings of this symbol alone')
    _add_since(show)
    show.add_argument('--json', action='store_true', help='one JSON object a line')
    export = _add(actions, 'export', 'decisions, signals and events as Parquet', run_export)
    export.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder; made if need be'
    )
    export.add_argument(
        '--only', choices=_TABLES, action='append', metavar='TABLE', help=', '.join(_TABLES)
    )
    _add_since(export)
    checked = _add(actions, 'check', 'pages, checksums, index; each signal once', run_check)
    checked.add_argument('--json', action='store_true', help='the findings as JSON')


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
    parser.add_argument('path', type=Path, metavar='PATH', help='the journal: an SQLite file')
    parser.set_defaults(func=run)
    return parser


def _add_since(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--since', metavar='TIME', help='from this time on, such as 2024-06-28 or 2024-06-28T14:30'
    )
    parser.add_argument(
        '--tz', default='Asia/Shanghai', help='zone of all times; default %(default)s'
    )


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of rows; expected 1 or more")


def run_show(args: argparse.Namespace) -> int:
    """Print the newest rows, oldest first; return the exit status."""
    zone = _zone(args.tz)
    since_ns = _since_ns(args.since, zone)
    if args.symbol is not None and args.what not in ('signals', 'holdings'):
        raise ConfigError(f'--symbol: {args.what} have no symbol; leave it out, or show signals')
    with Journal.open(args.path, read_only=True) as journal:
        if args.what == 'signals':
            signals = journal.last_signals(args.last, symbol=args.symbol, since_ns=since_ns)
            rows = [_signal(row, zone) for row in signals]
        elif args.what == 'holdings':
            held = journal.last_holdings(args.last, symbol=args.symbol, since_ns=since_ns)
            rows = [_holding(row, zone) for row in held]
        elif args.what == 'frames':
            found = journal.last_frames(args.last, since_ns=since_ns)
            rows = [_frame(row, zone) for row in found]
        else:
            kind = RESET if args.what == 'resets' else ''
            events = journal.last_events(args.last, kind=kind, since_ns=since_ns)
            rows = [_event(row, zone) for row in events]
    if args.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    elif rows:
        _console().print(_table(f'{args.path}: {args.what}', rows))
    else:
        print(f'{args.path}: no {args.what}{" since then" if args.since else ""}')
    return WELL


def run_export(args: argparse.Namespace) -> int:
    """Write the tables, say how many rows each has; return the exit status."""
    try:
        from heqis_core.io.journal_archive import write_decisions, write_events
    except ImportError as error:
        raise DataError('Parquet needs the package pyarrow: install it') from error
    since_ns = _since_ns(args.since, _zone(args.tz))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'--out {args.out}: {error.strerror}; name another folder') from error
    with Journal.open(args.path, read_only=True) as journal:
        for table in [name for name in _TABLES if not args.only or name in args.only]:
            out = args.out / f'{table}.parquet'
            if table == 'events':
                rows, _ = write_events(journal, out, since_ns=since_ns)
            else:
                only = table == 'signals'
                rows, _ = write_decisions(journal, out, signals_only=only, since_ns=since_ns)
            print(f'{out}: {rows:,} {table}')
    return WELL


def run_check(args: argparse.Namespace) -> int:
    """Check, say what was found and how to repair it; return the exit status."""
    with Journal.open(args.path, read_only=True) as journal:
        found = check(journal)
    if args.json:
        print(json.dumps({'well': not found.findings, **asdict(found)}, ensure_ascii=False))
    else:
        _print_check(args.path, found)
    return FINDINGS if found.findings else WELL


def _print_check(path: Path, found: JournalCheck) -> None:
    for text in found.findings:
        print(text)
    if found.more:
        print(f'and {found.more:,} more')
    print(
        f'{path}: {found.frames:,} frames with {found.signals:,} signals and {found.refused:,} '
        f'refusals, {found.events:,} events are well; '
        + (f'{len(found.findings) + found.more:,} findings' if found.findings else 'no findings')
    )
    if found.findings:
        print(damaged(path, 'see above'))


def _signal(row: SignalRow, zone: tzinfo) -> dict[str, Any]:
    return {
        'event_time': _time(row.event_time_ns, zone),
        'symbol': row.symbol,
        'action': Action(row.action).name,
        'score': row.score,
        'reasons': ','.join(reason_names(row.reasons)),
        **_identity(row, zone),
    }


def _holding(row: HoldingRow, zone: tzinfo) -> dict[str, Any]:
    return {'since': _time(row.since_ns, zone), 'symbol': row.symbol, 'stream': row.stream}


def _frame(row: FrameRow, zone: tzinfo) -> dict[str, Any]:
    return {
        'event_time': _time(row.event_time_ns, zone),
        'symbols': row.n_symbols,
        'signals': row.n_signals,
        'refused': row.n_refused,
        **_identity(row, zone),
    }


def _identity(row: SignalRow | FrameRow, zone: tzinfo) -> dict[str, Any]:
    return {
        'stream': row.stream,
        'revision': row.revision,
        'bundle': row.bundle_id,
        'generator': row.generator,
        'committed': _time(row.committed_ns, zone) if row.committed_ns else None,
    }


def _event(event: Event, zone: tzinfo) -> dict[str, Any]:
    names = ('source', 'kind', 'subject', 'text')
    head = {'stamp': _time(event.stamp_ns, zone), 'level': event.level.name}
    return head | {name: getattr(event, name) for name in names}


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify='left')
    for name, value in rows[0].items():
        number = isinstance(value, (int, float))
        table.add_column(name, justify='right' if number else 'left', overflow='fold')
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if value is None:
        return '–'
    # What a node wrote is text, never markup.
    return f'{value:.4f}' if isinstance(value, float) else escape(str(value))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--tz: no time zone '{name}'; expected an IANA name such as Asia/Shanghai"
        ) from error


def _since_ns(text: str | None, zone: tzinfo) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since: '{text}' is no time; expected such as 2024-06-28 or 2024-06-28T14:30"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return (moment - _UNIX) // timedelta(microseconds=1) * 1000


def _time(ns: int, zone: tzinfo) -> str:
    moment = _UNIX + timedelta(microseconds=ns // 1000)
    return moment.astimezone(zone).isoformat(sep=' ', timespec='milliseconds')
