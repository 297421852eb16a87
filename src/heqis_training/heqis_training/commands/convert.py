# SPDX-License-Identifier: Apache-2.0
"""`heqis convert`: bundles with the files that the NPU and TensorRT run, each held to its gates.

The work is in `heqis_training.convert`; what it imports is loaded when the command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_training.commands.common import add_bars, load_bars_of
from heqis_training.commands.evaluate import Told, progress

if TYPE_CHECKING:
    from heqis_core.bars import BarTable
    from heqis_core.bundle import Bundle
    from heqis_training.convert.bundles import Order, Report
    from heqis_training.convert.outcome import Outcome

WINDOWS = 8192
EXAMPLES = """examples:
  make rknn                                          # once: the NPU's toolkit, in .venv-rknn
  heqis convert --bundle output/bundles/ID --data prices/ --target rk3568
  heqis convert --bundle output/bundles/* --data prices/ --target all --out converted/
  heqis convert --bundle output/bundles/ID --data prices/ --target tensorrt --precision fp16 \\
      --report report.json

Give the bars that the bundle was trained on and those after them: the first calibrate int8, the
second judge it. A file that breaks a gate is left out of the new bundle, and the exit status is 1.
On the compute board, heqis engines builds TensorRT's engines from the new bundle and prints the
command of trtexec for each.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `convert` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'convert',
        help="write bundles with the files that the boards' accelerators run",
        description='Convert the models of bundles for the NPU of the RK3568 (the encoder, '
        "simulated with the vendor's toolkit) and for TensorRT (all models), hold each file to "
        'its gates, and write a new bundle with those that pass.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--bundle', metavar='DIR', type=Path, nargs='+', required=True, help='one or several')
    add_bars(parser)
    add('--target', choices=('rk3568', 'tensorrt', 'all'), required=True)
    add('--precision', choices=('fp16', 'int8', 'all'), default='all', help='default %(default)s')
    add('--out', metavar='DIR', type=Path, help='of the new bundles; default: beside the old ones')
    add('--report', metavar='FILE', type=Path, help='also write everything as JSON')
    add(
        '--margin',
        type=float,
        metavar='X',
        help='decisions whose score is farther than this from a threshold must stay what they '
        'are; default .005',
    )
    add(
        '--windows',
        type=int,
        default=WINDOWS,
        metavar='N',
        help='encoder windows that are measured at most, about; with more, a seeded choice of '
        'symbols is measured; default %(default)s',
    )
    add(
        '--rknn_python',
        metavar='FILE',
        type=Path,
        help='Python with the RKNN toolkit; default: that of .venv-rknn, which make rknn makes',
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Convert as `args` say; print a table for each bundle. Return the exit status."""
    from heqis_training.convert.bundles import reports_json

    console = Console(highlight=False)
    try:
        order = _order(args)
        reports = list(_convert_all(args, order, console))
        if args.report is not None:
            try:
                args.report.write_bytes(reports_json(reports, order))
            except OSError as error:
                raise DataError(
                    f'{args.report}: cannot be written ({error.strerror}); choose another'
                ) from error
    except HeqisError as error:
        print(f'heqis convert: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('heqis convert: interrupted; bundles that were told are whole', file=sys.stderr)
        return 130
    return 0 if all(report.passed for report in reports) else 1


def _order(args: argparse.Namespace) -> Order:
    from heqis_training.convert.bundles import Order
    from heqis_training.convert.gates import MARGIN
    from heqis_training.convert.rknn_tool import check_python, default_python

    margin = MARGIN if args.margin is None else args.margin
    if not 0 <= margin < 1:
        raise ConfigError(f'--margin {margin:g}: expected a distance of scores, 0 to below 1')
    if args.windows < 1:
        raise ConfigError(f'--windows {args.windows}: expected at least 1')
    python = args.rknn_python or default_python()
    if args.target != 'tensorrt':
        check_python(python)  # before anything that takes time
    return Order(
        ('rk3568', 'tensorrt') if args.target == 'all' else (args.target,),
        ('fp16', 'int8') if args.precision == 'all' else (args.precision,),
        python,
        margin,
        args.windows,
        args.out,
    )


def _convert_all(args: argparse.Namespace, order: Order, console: Console) -> Iterator[Report]:
    """Convert bundle after bundle; one that fails is reported and the next one has its turn."""
    from heqis_core.bundle import Bundle
    from heqis_training.convert.bundles import Report, convert_bundle

    bars = _Bars(args, console)
    for path in dict.fromkeys(args.bundle):
        bundle_id = ''
        try:
            bundle = Bundle.load(path)
            bundle_id = bundle.bundle_id
            table = bars.of(bundle)
            with progress(console, 'steps') as told:
                report = convert_bundle(bundle, table, order, _named(told, bundle_id))
        except HeqisError as error:
            report = Report(bundle_id, str(path), error=str(error))
        _show(console, report)
        yield report


class _Bars:
    """The bars of the command line, read once for all bundles that read the same channels."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self._args, self._console = args, console
        self._tables: dict[tuple[object, ...], BarTable] = {}

    def of(self, bundle: Bundle) -> BarTable:
        """Return the bars with what the features of this bundle read."""
        seed, channels = bundle.manifest.provenance.seed, bundle.spec.channels
        simulated = getattr(self._args, 'simulate', None) is not None
        key = (*channels, seed if simulated else None)
        if key not in self._tables:
            self._tables[key] = load_bars_of(self._args, self._console, seed, channels)
        return self._tables[key]


def _named(told: Told, bundle_id: str) -> Told:
    return lambda text, done, total: told(f'{bundle_id}: {text}', done, total)


def _show(console: Console, report: Report) -> None:
    if report.error:
        print(f'heqis convert: {report.path}: {report.error}', file=sys.stderr)
        return
    console.print(_table(report))
    notes = {note: None for outcome in report.outcomes for note in _notes_of(outcome)}
    for note in (*notes, *report.notes):
        console.print(note, soft_wrap=True, markup=False)
    written = (
        f'written: {report.written}' if report.written else 'nothing passed: no bundle is written'
    )
    console.print(written, soft_wrap=True, markup=False)


def _notes_of(outcome: Outcome) -> Iterator[str]:
    about = f'{outcome.model}, {outcome.target} {outcome.precision}'
    for note in outcome.notes:
        yield f'{about}: {note}'
    for gate in outcome.gates:
        if not gate.passed:
            yield f'{about} is left out: {gate.name} {gate.found}, expected {gate.expected}'


def _table(report: Report) -> Table:
    table = Table(
        title=f'bundle {report.bundle}',
        title_justify='left',
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ('model', 'for', 'precision', 'gate', 'found', ''):
        table.add_column(heading, overflow='fold')
    for outcome in report.outcomes:
        about = [outcome.model, outcome.target, outcome.precision]
        for gate in outcome.gates:
            found = gate.found.partition('\n')[0]  # the rest, a log, stands below the table
            table.add_row(*about, gate.name, found, 'ok' if gate.passed else 'BROKEN')
            about = ['', '', '']
    return table
