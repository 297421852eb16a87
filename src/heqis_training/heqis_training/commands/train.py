# SPDX-License-Identifier: Apache-2.0
"""The `heqis train` command. The work is in `recipe`; torch is imported only when it runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from heqis_core.bars import BarTable
from heqis_core.errors import ConfigError, HeqisError
from heqis_core.features.spec import FeatureSpec

if TYPE_CHECKING:
    from heqis_core.manifest import MetricRow
    from heqis_training.recipe import Outcome
    from heqis_training.train import Epoch, Report

DEFAULT_OUT = 'output/bundles'
EXAMPLES = """examples:
  heqis train --data prices/                       # every CSV or Parquet file of a folder
  heqis train --data prices.csv --symbols 600519.SH 000001.SZ
  heqis train --simulate 1000 --symbols 8 --seed 3 # a simulated market of eight symbols
  heqis train --data store/ --spec config/features.example.json
  heqis train --data prices/ --epochs 40 --out output/bundles --json

Only the first part of the event times (--train_fraction) is used, so that the rest can be streamed
through the bundle without a look-ahead. The figures that are printed are no statement of profit.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'train',
        help='train encoder and generator on market data and export a bundle',
        description='Train the factor encoder and the GRU generator, and export them as a bundle.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--data', metavar='PATH', help='CSV or Parquet, a file or a folder')
    source.add_argument(
        '--simulate', metavar='N', type=int, help='N bars of the seeded market simulator'
    )
    parser.add_argument(
        '--symbols',
        nargs='+',
        default=[],
        metavar='NAME',
        help='only these symbols; with --simulate also their number (default 8)',
    )
    parser.add_argument(
        '--spec',
        metavar='FILE',
        help='feature spec as JSON (heqis features --list shows what there is); '
        'default: the 23 columns of the default spec',
    )
    parser.add_argument('--out', metavar='DIR', default=DEFAULT_OUT, help='default %(default)s')
    parser.add_argument('--seed', type=int, default=7, help='default %(default)s')
    parser.add_argument(
        '--simulator_seed', type=int, metavar='SEED', help='of --simulate; default: --seed'
    )
    parser.add_argument(
        '--epochs',
        '--num_epochs',
        type=int,
        metavar='N',
        help='of the generator at most; default 20',
    )
    parser.add_argument(
        '--encoder_epochs', type=int, metavar='N', help='of the encoder at most; default 30'
    )
    parser.add_argument('--window', type=int, default=20, help='bars a generator sees; default 20')
    parser.add_argument(
        '--train_fraction',
        type=float,
        default=0.7,
        metavar='X',
        help='part of the event times, from the first, that training may touch; default 0.7',
    )
    parser.add_argument(
        '--flat_band',
        type=float,
        metavar='X',
        help='log return up to which a bar is flat; default: the band of a third of the bars',
    )
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object as the last line'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` say; print the bundle, or the error to stderr. Return the exit status."""
    console = Console(stderr=args.json, highlight=False)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        print(
            f'heqis train: {error}; install what training needs with '
            '`pip install -r requirements/training.txt`',
            file=sys.stderr,
        )
        return 1
    try:
        outcome, seconds = _train(args, console)
    except HeqisError as error:
        print(f'heqis train: {error}', file=sys.stderr)
        return 1
    manifest = outcome.manifest
    console.print(metrics_table(manifest.provenance.metrics))
    console.print(manifest.provenance.metrics_note)
    console.print(
        f'bundle {manifest.bundle_id} in {outcome.path} ({seconds:.1f} s)', soft_wrap=True
    )
    if args.json:
        print(json.dumps(_summary(outcome, seconds)), flush=True)
    return 0


def metrics_table(rows: tuple[MetricRow, ...]) -> Table:
    """Return the metrics of a bundle as a table for the terminal."""
    table = Table(title=f'{rows[0].part}, {rows[0].samples} windows', title_justify='left')
    for heading in ('model', 'MAPE %', 'accuracy %', 'gross return %'):
        table.add_column(heading, justify='left' if heading == 'model' else 'right')
    for row in rows:
        table.add_row(
            row.model,
            _figure(row.mape_pct, row.mape_interval_pct, 3),
            _figure(row.accuracy_pct, row.accuracy_interval_pct, 1),
            _figure(row.gross_return_pct, None, 1),
        )
    return table


def _train(args: argparse.Namespace, console: Console) -> tuple[Outcome, float]:
    from heqis_training.recipe import run_training
    from heqis_training.settings import TrainingConfig

    started_s = time.monotonic()
    defaults = TrainingConfig()
    config = replace(
        defaults,
        seed=args.seed,
        window=args.window,
        train_fraction=args.train_fraction,
        flat_band=args.flat_band,
        generator_fit=_epochs(defaults.generator_fit, args.epochs),
        encoder_fit=_epochs(defaults.encoder_fit, args.encoder_epochs),
    )
    spec = FeatureSpec.load(args.spec) if args.spec else None
    table = _load(args, console, spec.channels if spec else ())
    with _progress(console) as progress:
        outcome = run_training(table, args.out, config, spec, _reporter(progress))
    return outcome, time.monotonic() - started_s


def _epochs(fit: Any, epochs: int | None) -> Any:
    return fit if epochs is None else replace(fit, epochs=epochs)


def _load(args: argparse.Namespace, console: Console, channels: Sequence[str]) -> BarTable:
    from heqis_core.io.files import load_bars
    from heqis_training import tables

    if args.simulate is not None:
        seed = args.seed if args.simulator_seed is None else args.simulator_seed
        table = tables.simulate(_simulated_symbols(args.symbols), args.simulate, seed)
    else:
        table, cleaning = load_bars(Path(args.data), channels=channels)
        if any(cleaning.counts.values()):
            console.print(f'rejected rows: {cleaning.counts}')
        if args.symbols:
            table = table.select(args.symbols)
    console.print(f'{len(table)} event times of {len(table.symbols)} symbols')
    return table


def _simulated_symbols(given: list[str]) -> int | list[str]:
    if not given:
        return 8
    if len(given) == 1 and given[0].lstrip('-').isdigit():
        if int(given[0]) < 1:
            raise ConfigError(f'--symbols {given[0]}: expected names, or a number of at least 1')
        return int(given[0])
    return given


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn('{task.description:<8}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[figures]}'),
        TimeElapsedColumn(),
        console=console,
    )


def _reporter(progress: Progress) -> Report:
    tasks: dict[str, Any] = {}

    def report(epoch: Epoch) -> None:
        if epoch.model not in tasks:
            tasks[epoch.model] = progress.add_task(epoch.model, total=epoch.epochs, figures='')
        figures = (
            f'loss {epoch.training_loss:.4f}  validation {epoch.validation_loss:.4f}  '
            f'best epoch {epoch.best}'
        )
        total = epoch.number if epoch.last else epoch.epochs
        task = tasks[epoch.model]
        progress.update(task, completed=epoch.number, total=total, figures=figures)

    return report


def _figure(value: float | None, interval: tuple[float, float] | None, digits: int) -> str:
    if value is None:
        return ''
    text = f'{value:.{digits}f}'
    return (
        text
        if interval is None
        else f'{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]'
    )


def _summary(outcome: Outcome, seconds: float) -> dict[str, Any]:
    manifest = outcome.manifest
    return {
        'bundle': {'id': manifest.bundle_id, 'path': str(outcome.path.resolve())},
        'trained_until_ns': manifest.trained_until_ns,
        'symbols': list(manifest.provenance.data.symbols),
        'windows': {
            'training': outcome.training_windows,
            'validation': outcome.validation_windows,
        },
        'strategy': msgspec.to_builtins(manifest.strategy),
        'flat_band': manifest.flat_band,
        'metrics': msgspec.to_builtins(manifest.provenance.metrics),
        'metrics_note': manifest.provenance.metrics_note,
        'seconds': round(seconds, 3),
    }
