# SPDX-License-Identifier: Apache-2.0
"""`heqis keys`: make the CURVE key pair of a board; its use is in `io.zmq_security`."""

from __future__ import annotations

import argparse
from pathlib import Path

from heqis_core.io.zmq_security import write_keys

_EXAMPLES = """examples:
  heqis keys gateway --dir keys        writes keys/gateway.key and keys/gateway.key_secret
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'keys',
        help='make the key pair of a board',
        description='Write a new CURVE key pair; existing files are never replaced.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', help='name of the board')
    parser.add_argument('--dir', type=Path, default=Path('keys'), help='default %(default)s')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write both files and say what to do with them; return 0."""
    public, secret = write_keys(args.dir, args.name)
    print(f'{public}: copy it to the other board')
    print(f'{secret}: stays on this board, readable by its owner alone')
    return 0
