# SPDX-License-Identifier: Apache-2.0
"""What the training commands share: where bars come from, and the word that torch is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from heqis_core.bars import BarTable
from heqis_core.errors import ConfigError


def add_bars(parser: argparse.ArgumentParser, simulate: bool = True) -> None:
    """Add the options that say which bars are read."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--data', metavar='PATH', help='CSV or Parquet, a file or a folder')
    if simulate:
        source.add_argument(
            '--simulate', metavar='N', type=int, help='N bars of the seeded market simulator'
        )
        parser.add_argument(
            '--simulator_seed', type=int, metavar='SEED', help='of --simulate; default: --seed'
        )
    parser.add_argument(
        '--symbols',
        nargs='+',
        default=[],
        metavar='NAME',
        help='only these symbols' + ('; with --simulate also their number' * simulate),
    )


def load_bars_of(
    args: argparse.Namespace, console: Console, seed: int, channels: Sequence[str] = ()
) -> BarTable:
    """Return the bars that `args` name, and tell what was rejected; `seed` is for a simulator."""
    from heqis_core.io.files import load_bars
    from heqis_training import tables

    if getattr(args, 'simulate', None) is not None:
        chosen = seed if args.simulator_seed is None else args.simulator_seed
        table = tables.simulate(_simulated_symbols(args.symbols), args.simulate, chosen)
    else:
        table, cleaning = load_bars(Path(args.data), channels=channels)
        if any(cleaning.counts.values()):
            console.print(f'rejected rows: {cleaning.counts}')
        if args.symbols:
            table = table.select(args.symbols)
    console.print(f'{len(table)} event times of {len(table.symbols)} symbols')
    return table


def needs_torch(command: str) -> bool:
    """Return whether torch can be imported; say on stderr what to do if not."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        print(
            f'heqis {command}: {error}; install what training needs with '
            '`pip install -r requirements/training.txt`',
            file=sys.stderr,
        )
        return False
    return True


def _simulated_symbols(given: list[str]) -> int | list[str]:
    if not given:
        return 8
    if len(given) == 1 and given[0].lstrip('-').isdigit():
        if int(given[0]) < 1:
            raise ConfigError(f'--symbols {given[0]}: expected names, or a number of at least 1')
        return int(given[0])
    return given
