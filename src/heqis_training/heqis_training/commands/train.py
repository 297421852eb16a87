# SPDX-License-Identifier: Apache-2.0
"""`heqis train`: from bars to a run folder and a bundle. The work is in `recipe` and `bundling`.

torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from heqis_core.errors import ConfigError, HeqisError
from heqis_core.features.spec import FeatureSpec
from heqis_training.commands.common import add_bars, load_bars_of, needs_torch
from heqis_training.interrupt import raise_if_interrupted, remembered

if TYPE_CHECKING:
    from heqis_core.bundle import Bundle
    from heqis_core.manifest import MetricRow
    from heqis_training.run_folder import Run
    from heqis_training.settings import TrainingSettings

DEFAULT_OUT = 'output/bundles'
SHOWN = {
    'mape_pct': ('MAPE %', 3),
    'skill': ('skill', 3),
    'accuracy_pct': ('accuracy %', 1),
    'mcc': ('MCC', 3),
    'gross_return_pct': ('gross\nreturn %', 1),
}
"""Figures of the table on the terminal; the manifest holds every one."""
EXAMPLES = """examples:
  heqis train --data prices/                        # every CSV or Parquet file of a folder
  heqis train --data prices.csv --symbols 600519.SH 000001.SZ
  heqis train --simulate 1000 --symbols 8 --seed 3  # a simulated market of eight symbols
  heqis train --data store/ --spec features.json --config config/training.example.yaml
  heqis train --data store/ --mode pretrain --run output/runs/mine     # the encoder alone, then
  heqis train --data store/ --mode train --run output/runs/mine --num_epochs 100
  torchrun --nproc_per_node 4 -m -- heqis_training train --data store/ --run output/runs/mine

The same command again goes on where a run was interrupted. Only the first part of the event times
(train_fraction) is used, so that the rest can test the bundle (heqis evaluate) or be streamed
through it. The figures that are printed are no statement of profit.
"""


OPTIONS = {
    'seed': '--seed',
    'flat_band': '--flat_band',
    'split.train_fraction': '--train_fraction',
    'fit.epochs': '--num_epochs',
    'encoder.fit.epochs': '--encoder_epochs',
    'generators': '--window',
}
"""Settings that the command line may change, and by which option."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'train',
        help='train encoder and generators on market data and export a bundle',
        description='Pre-train the factor encoder, train the generators of Multi-GAN, and export '
        'them as a bundle.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_bars(parser)
    parser.add_argument(
        '--mode',
        choices=('pretrain', 'train', 'all'),
        default='all',
        help='the encoder alone, the generators on an encoder that is there, or both (default)',
    )
    parser.add_argument(
        '--config', metavar='FILE', help='settings as YAML; the options below come on top'
    )
    parser.add_argument(
        '--spec',
        metavar='FILE',
        help='feature spec as JSON (heqis features --list shows what there is); '
        'default: the 23 columns of the default spec',
    )
    parser.add_argument(
        '--run',
        metavar='DIR',
        help='run folder: checkpoints, curves, logs; default: output/runs/ and a name made of '
        'settings and data',
    )
    parser.add_argument(
        '--out', metavar='DIR', default=DEFAULT_OUT, help='of the bundle; default %(default)s'
    )
    parser.add_argument('--seed', type=int, help='default 7')
    parser.add_argument(
        '--num_epochs', '--epochs', type=int, metavar='N', help='of the generators; default 20'
    )
    parser.add_argument(
        '--encoder_epochs', type=int, metavar='N', help='of the encoder at most; default 30'
    )
    parser.add_argument(
        '--window', type=int, metavar='W', help='bars that every generator sees; default 20'
    )
    parser.add_argument(
        '--train_fraction',
        type=float,
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
        '--device',
        default='auto',
        metavar='NAME',
        help='auto (a GPU where there is one; default), cpu, cuda or cuda:N',
    )
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object as the last line'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` say; print the bundle, or the error to stderr. Return the exit status."""
    started_s = time.monotonic()
    try:
        if not needs_torch('train'):
            return 1
        from heqis_training.device import is_first

        first = is_first()
        console = Console(stderr=args.json, highlight=False, quiet=not first)
        with remembered():
            trained, bundle = _train(args, console)
    except HeqisError as error:
        print(f'heqis train: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('heqis train: interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    seconds = time.monotonic() - started_s
    if bundle is None:
        console.print(f'encoder in {trained.path} ({seconds:.1f} s)', soft_wrap=True)
    else:
        manifest = bundle.manifest
        console.print(metrics_table(manifest.provenance.metrics))
        console.print(manifest.provenance.metrics_note)
        console.print(f'served: {manifest.served}, by {manifest.provenance.selection.rule}')
        console.print(
            f'bundle {manifest.bundle_id} in {bundle.path} ({seconds:.1f} s)', soft_wrap=True
        )
    if args.json and first:
        print(json.dumps(_summary(trained, bundle, seconds)), flush=True)
    return 0


def metrics_table(rows: tuple[MetricRow, ...]) -> Table:
    """Return the metrics of a bundle as a table for a terminal of 80 columns."""
    title = f'{rows[0].part}, {rows[0].samples} windows'
    table = Table(title=title, title_justify='left', box=SIMPLE_HEAD, padding=0)
    table.add_column('model', overflow='fold', min_width=8)
    for heading, _ in SHOWN.values():
        table.add_column(heading, justify='right', overflow='fold')
    for row in rows:
        cells = (_figure(row, name, digits) for name, (_, digits) in SHOWN.items())
        table.add_row(row.model, *cells)
    return table


def _train(args: argparse.Namespace, console: Console) -> tuple[Run, Bundle | None]:
    from heqis_training.bundling import write_run_bundle
    from heqis_training.device import is_first
    from heqis_training.recipe import run_name, run_training

    settings = _settings(args)
    spec = FeatureSpec.load(args.spec) if args.spec else None
    table = load_bars_of(args, console, settings.seed, spec.channels if spec else ())
    path = Path(args.run) if args.run else run_name(table, settings, spec)
    trained = run_training(
        table, path, settings, spec, mode=args.mode, device=args.device, console=console
    )
    raise_if_interrupted()
    if args.mode == 'pretrain' or not is_first():
        return trained, None
    return trained, write_run_bundle(trained, args.out)


def _settings(args: argparse.Namespace) -> TrainingSettings:
    """Return the settings of the file, with what was said on the command line on top."""
    from heqis_training.settings import load_settings

    told: dict[str, Any] = {
        'seed': args.seed,
        'flat_band': args.flat_band,
        'split': {'train_fraction': args.train_fraction},
        'fit': {'epochs': args.num_epochs},
        'encoder': {'fit': {'epochs': args.encoder_epochs}},
    }
    settings = load_settings(args.config)
    plain = msgspec.to_builtins(settings)
    _overlay(plain, told)
    if args.window is not None:
        for generator in plain['generators']:
            generator['window'] = args.window
    try:
        return msgspec.convert(plain, type(settings))
    except msgspec.ValidationError as error:
        problem, _, path = str(error).rstrip('`').partition(' - at `$.')
        option = next((name for part, name in OPTIONS.items() if path.startswith(part)), path)
        raise ConfigError(f'{option}: {problem}') from error


def _overlay(plain: dict[str, Any], told: dict[str, Any]) -> None:
    for name, value in told.items():
        if isinstance(value, dict):
            _overlay(plain[name], value)
        elif value is not None:
            plain[name] = value


def _figure(row: MetricRow, name: str, digits: int) -> str:
    if name not in row.figures:
        return ''
    text = f'{row.figures[name]:.{digits}f}'
    if name not in row.intervals:
        return text
    low, high = row.intervals[name]
    return f'{text}\n{low:.{digits}f}..{high:.{digits}f}'


def _summary(trained: Run, bundle: Bundle | None, seconds: float) -> dict[str, Any]:
    summary: dict[str, Any] = {'run': str(trained.path.resolve()), 'seconds': round(seconds, 3)}
    if bundle is None:
        return summary
    manifest = bundle.manifest
    return summary | {
        'bundle': {'id': manifest.bundle_id, 'path': str(bundle.path.resolve())},
        'trained_until_ns': manifest.trained_until_ns,
        'symbols': list(manifest.provenance.data.symbols),
        'served': manifest.served,
        'selection': msgspec.to_builtins(manifest.provenance.selection),
        'strategy': msgspec.to_builtins(manifest.strategy),
        'flat_band': manifest.flat_band,
        'metrics': msgspec.to_builtins(manifest.provenance.metrics),
        'metrics_note': manifest.provenance.metrics_note,
    }
