# SPDX-License-Identifier: Apache-2.0
"""`heqis export`: a finished run as a bundle, or its models as loose ONNX files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from heqis_core.errors import HeqisError
from heqis_training.commands.common import needs_torch
from heqis_training.commands.train import DEFAULT_OUT

LOOSE_OUT = 'output/onnx'
EXAMPLES = """examples:
  heqis export --run output/runs/mine                          # the bundle that boards run
  heqis export --run output/runs/mine --target generators --out onnx/
  heqis export --run output/runs/mine --target encoder --out onnx/   # for a converter
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'export',
        help='write the bundle of a training run, or its models as ONNX files',
        description='Export a finished run. A bundle holds every generator, the encoder, golden '
        'inputs and outputs, scaler, class map, feature spec, the fingerprint of the data, and '
        'which generator is served and why.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--run', metavar='DIR', required=True, help='run folder of heqis train')
    parser.add_argument(
        '--target',
        choices=('all', 'encoder', 'generators'),
        default='all',
        help='the bundle (default), or one kind of model with scaler and spec',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help=f'default {DEFAULT_OUT}; of loose files {LOOSE_OUT}/ and the name of the run',
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Export as `args` say; print what was written. Return the exit status."""
    if not needs_torch('export'):
        return 1
    from heqis_training.bundling import write_loose_files, write_run_bundle
    from heqis_training.run_folder import read_run

    console = Console(highlight=False)
    try:
        trained = read_run(Path(args.run))
        if args.target == 'all':
            bundle = write_run_bundle(trained, args.out or DEFAULT_OUT)
            console.print(f'bundle {bundle.bundle_id} in {bundle.path}', soft_wrap=True)
        else:
            out = args.out or Path(LOOSE_OUT) / trained.path.resolve().name
            for path in write_loose_files(trained, args.target, out):
                console.print(str(path), soft_wrap=True)
    except HeqisError as error:
        print(f'heqis export: {error}', file=sys.stderr)
        return 1
    return 0
