# SPDX-License-Identifier: Apache-2.0
"""The `heqis` command: subcommands are entry points, a HeqisError becomes one line.

Each package registers what it offers in the group `heqis.commands` (`name = module:register`,
where `register(subparsers)` adds a parser that sets `func(args) -> int`). Only the command that is
asked for is imported, so that a board without torch has no `heqis train` but can still say where
to get it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

from heqis_core.errors import HeqisError

GROUP = 'heqis.commands'
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

OFFERED_BY = {
    'up': ('heqis_bringup', 'start the nodes of a board, or of both'),
    'demo': ('heqis_bringup', 'train, start both boards and watch them work'),
    'chaos': ('heqis_bringup', 'inject faults into a real graph and measure what comes of each'),
    'doctor': ('heqis_bringup', 'say what is installed, what would be used, what is missing'),
    'keys': ('heqis_bringup', 'make the CURVE key pair of a board'),
    'kill-switch': ('heqis_bringup', 'stop every signal at once, or let them go out again'),
    'batch': ('heqis_bringup', 'the decisions of a bundle on a data set, without any graph'),
    'bundle': ('heqis_core', 'sign, verify, show, compare, pack and swap bundles'),
    'journal': ('heqis_core', 'show, export and check the journal of signals and events'),
    'data': ('heqis_core', 'check market data: what is wrong, where, and how much of it'),
    'engines': ('heqis_compute', 'choose and build the engines of a bundle on this board'),
    'features': ('heqis_core', 'named feature columns of bars, in batch or as a stream'),
    'fetch': ('heqis_training', 'fetch market data from Tushare Pro into a store (workstation)'),
    'train': ('heqis_training', 'train models and export them as a bundle (workstation)'),
    'evaluate': ('heqis_training', 'forecasts on the test part, beside floors (workstation)'),
    'convert': ('heqis_training', 'models for the NPU and TensorRT, behind gates (workstation)'),
    'export': ('heqis_training', 'the bundle of a training run, or ONNX files (workstation)'),
}
_HOW_TO_GET = {
    'heqis_training': 'on a workstation: pip install -r requirements/training.txt, then '
    'colcon build --packages-up-to heqis_training',
}
_EXAMPLES = """examples:
  heqis doctor                                   what works on this machine
  heqis train --data prices/                     a bundle from CSV or Parquet files
  heqis demo --data prices/ --duration 30        the whole graph, live in the terminal
  heqis up gateway bundle:=output/bundles/ID     the gateway board
  heqis up compute bundle:=output/bundles/ID     the compute board
  heqis up all --show-args                       every launch argument
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 2 for a named error, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    wanted = next((word for word in words if not word.startswith('-')), None)
    name = f'heqis {wanted}' if wanted else 'heqis'
    try:
        parser = build_parser(wanted)
        args = parser.parse_args(words)
        if not hasattr(args, 'func'):
            parser.print_help()
            return EXIT_ERROR
        return int(args.func(args))
    except HeqisError as error:
        print(f'{name}: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f'{name}: interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; without this, Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def build_parser(wanted: str | None) -> argparse.ArgumentParser:
    """Return the parser with the subcommand `wanted` in full, the others by name and help alone.

    Raises HeqisError if `wanted` is a command whose package, or something it needs, is not
    installed.
    """
    parser = argparse.ArgumentParser(
        prog='heqis',
        description='Market data in, trading signals out, on two small boards.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'heqis {version()}')
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND', dest='command')
    installed = entry_points()
    for name in sorted({*installed, *OFFERED_BY}):
        if name == wanted:
            _register(name, installed, subparsers)
        else:
            package, text = OFFERED_BY.get(name, ('', ''))
            missing = '' if name in installed else f' (not installed here: {package})'
            subparsers.add_parser(name, help=text + missing, add_help=False)
    return parser


def entry_points() -> Mapping[str, metadata.EntryPoint]:
    """Return the installed subcommands by name."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version('heqis_bringup')
    except metadata.PackageNotFoundError:
        return 'of a source folder that is not installed'


def _register(
    name: str,
    installed: Mapping[str, metadata.EntryPoint],
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    package = OFFERED_BY.get(name, (name, ''))[0]
    how = _HOW_TO_GET.get(package, f'colcon build --packages-up-to {package}')
    if name not in installed:
        raise HeqisError(f'this command comes with {package}, which is not installed here; {how}')
    try:
        register = installed[name].load()
    except ImportError as error:
        missing = error.name or str(error)
        raise HeqisError(
            f'this command of {package} needs {missing}, which is missing; {how}'
        ) from error
    register(subparsers)


if __name__ == '__main__':
    sys.exit(main())
