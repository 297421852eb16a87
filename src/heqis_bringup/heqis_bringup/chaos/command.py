# SPDX-License-Identifier: Apache-2.0
"""`heqis chaos`: inject faults into a real graph and measure what comes of each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from heqis_bringup.chaos import report as reports
from heqis_bringup.chaos.campaign import Result, rounds, run_campaign
from heqis_bringup.chaos.faults import FAULTS
from heqis_bringup.chaos.layout import Subject
from heqis_bringup.chaos.soak import Soak, run_soak
from heqis_bringup.chaos.trial import Fault
from heqis_bringup.demo_setup import DataChoice, train, training_command
from heqis_bringup.up import stop_signals
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError

TIMES = 10
PACE = 20.0
"""Frames come often enough to see an interruption, and leave the machine idle."""
BEGIN, END = '<!-- begin: heqis chaos -->', '<!-- end: heqis chaos -->'
_EXAMPLES = """examples:
  heqis chaos --list                                  every fault, and what it does
  heqis chaos --times 3 --faults kill-compute,stop-gateway
  heqis chaos --bundle output/bundles/ID --json faults.json --markdown docs/faults.md
  heqis chaos --soak 30 --load                        no fault, full load: any alarm is a false one

Exit status: 0 everything as expected, 1 something was not, 2 it could not be run.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chaos` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'chaos',
        help='inject faults into a real graph and measure detection, recovery and loss',
        description='Start both boards as separate processes, inject each fault some times, and '
        'say how soon it was noticed, when signals went on, what was lost, and who else was '
        'touched.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument('--json', metavar='FILE', type=Path, help='write everything as JSON')
    parser.add_argument('--list', action='store_true', help='list the faults and end')
    parser.add_argument(
        '--soak', metavar='MINUTES', type=float, help='no fault, source flat out: count alarms'
    )
    parser.add_argument('--load', action='store_true', help='with --soak: a busy loop per core')
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the benchmark has too."""
    add = parser.add_argument
    add('--faults', metavar='A,B', help='only these; default: all')
    add(
        '--times',
        metavar='N',
        type=int,
        default=TIMES,
        help='injections of each fault that a time is promised for, the others a third as often; '
        'default %(default)s',
    )
    add('--seed', metavar='N', type=int, default=7, help='of market and order; default 7')
    add('--bundle', metavar='DIR', type=Path, help='run this bundle, do not train one')
    add('--symbols', metavar='N', type=int, default=8, help='simulated; default 8')
    add(
        '--pace',
        metavar='BARS_PER_S',
        type=float,
        default=PACE,
        help='event times a second; default %(default)g',
    )
    add('--config', metavar='DIR', type=Path, help='parameter files; default: those shipped')
    add('--run-dir', metavar='DIR', type=Path, help='journals and logs; default: run/chaos/TIME')
    add(
        '--markdown',
        metavar='FILE',
        type=Path,
        help='write the table there, between the marks if the file has them',
    )


def run(args: argparse.Namespace) -> int:
    """Run as asked; return 0 if everything was as expected, else 1."""
    console = Console(highlight=False)
    if args.list:
        console.print(_listed())
        return 0
    if args.load and args.soak is None:
        raise ConfigError('--load belongs to --soak')
    result: Result | Soak | None
    if args.soak is not None:
        result = soak(args, console)
        console.print(f'soak: {result.line()}', soft_wrap=True, markup=False)
        for line in result.said:
            console.print(f'  {line}', soft_wrap=True, markup=False)
        document = {'name': 'soak', 'machine': machine(), **result.as_dict()}
    else:
        result = campaign(args, console)
        show(result, console)
        document = reports.document(result, machine())
        if args.markdown is not None:
            write_markdown(args.markdown, result)
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    console.print('passed' if result.passed else 'FAILED: see above')
    return 0 if result.passed else 1


def chosen_faults(names: str | None) -> list[Fault]:
    """Return the faults of a comma-separated list, or all; ConfigError for an unknown name."""
    if names is None:
        return list(FAULTS.values())
    words = [word.strip() for word in names.split(',') if word.strip()]
    unknown = [word for word in words if word not in FAULTS]
    if unknown or not words:
        raise ConfigError(
            f'--faults: {", ".join(unknown) or "none named"}; `heqis chaos --list` shows them all'
        )
    return [FAULTS[word] for word in dict.fromkeys(words)]


def campaign(args: argparse.Namespace, console: Console) -> Result:
    """Run the chosen faults, with a progress bar."""
    faults = chosen_faults(args.faults)
    _check(args, 'times', 1)
    total = sum(map(len, rounds(faults, args.times, random.Random(0))))

    def work(subject: Subject, folder: Path, stopped: Callable[[], bool]) -> Result:
        with _progress(console) as progress:
            task = progress.add_task('', total=total)

            def tell(text: str, done: int) -> None:
                progress.update(task, description=text, completed=done)
                if not console.is_terminal:
                    print(f'{done}/{total} {text}', flush=True)

            return run_campaign(faults, args.times, subject, folder, args.seed, tell, stopped)

    result: Result = _prepared(args, work)
    return result


def soak(args: argparse.Namespace, console: Console) -> Soak:
    """Run without a fault, with a progress bar."""
    _check(args, 'soak', 0.01)
    loops = (os.cpu_count() or 1) if args.load else 0

    def work(subject: Subject, folder: Path, stopped: Callable[[], bool]) -> Soak:
        with _progress(console) as progress:
            task = progress.add_task('soak', total=args.soak)

            def tell(share: float) -> None:
                progress.update(task, completed=share * args.soak)

            return run_soak(args.soak, loops, subject, folder, tell, stopped)

    result: Soak = _prepared(args, work)
    return result


def _prepared(
    args: argparse.Namespace, work: Callable[[Subject, Path, Callable[[], bool]], Any]
) -> Any:
    """Make the folder and the bundle, and let Ctrl-C end the work in good order."""
    for name, low in (('pace', 1.0), ('symbols', 2), ('seed', 0)):
        _check(args, name, low)
    folder = args.run_dir or Path('run/chaos') / time.strftime('%Y%m%d-%H%M%S')
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob('*/journal.db')):
        raise ConfigError(f'--run-dir {folder}: an earlier run is in it; name an empty folder')
    with stop_signals(_give_up) as stopped:
        path = args.bundle
        if path is None:
            data = DataChoice(None, args.symbols, args.seed)
            path = train(training_command(data, folder, None), stopped)
        bundle = Bundle.load(path)
        subject = Subject(bundle, args.symbols, args.seed, args.pace, args.config)
        return work(subject, folder.resolve(), stopped)


def _give_up(again: bool) -> None:
    """End after the injection that runs; at once when a second signal comes."""
    if again:
        raise KeyboardInterrupt


def _check(args: argparse.Namespace, name: str, low: float) -> None:
    if not getattr(args, name) >= low:
        raise ConfigError(f'--{name} is {getattr(args, name)}; expected {low} or more')


def show(result: Result, console: Console) -> None:
    """Print the table and what there is to say about it."""
    console.print(reports.terminal(result, console.width))
    for line in reports.remarks(result):
        console.print(line, soft_wrap=True, markup=False)


def write_markdown(path: Path, result: Result) -> None:
    """Write the table into a file: between the marks where it has them, else as the whole file."""
    text = reports.markdown(result, _where())
    whole = path.read_text(encoding='utf-8') if path.exists() else ''
    if BEGIN in whole and END in whole:
        head, tail = whole.partition(BEGIN)[0], whole.rpartition(END)[2]
        text = f'{head}{BEGIN}\n\n{text}\n{END}{tail}'
    path.write_text(text, encoding='utf-8')


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        'cores': os.cpu_count(),
        'load': round(os.getloadavg()[0], 2),
        'system': platform.platform(terse=True),
        'python': platform.python_version(),
    }


def _where() -> str:
    facts = machine()
    return f'{facts["cores"]} cores, {facts["system"]}, Python {facts["python"]}'


def _listed() -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ('fault', 'what is done', 'noticed within'):
        table.add_column(name)
    for fault in FAULTS.values():
        within = '' if fault.within_s is None else f'{fault.within_s:g} s'
        table.add_row(fault.name, fault.text, within)
    return table


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
