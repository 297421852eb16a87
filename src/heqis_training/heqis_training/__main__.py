# SPDX-License-Identifier: Apache-2.0
"""`python -m heqis_training train ...`: the training commands without the `heqis` program."""

from __future__ import annotations

import argparse
import sys

from heqis_training.commands import convert, evaluate, export, train


def main() -> int:
    """Run one training command; return its exit status."""
    parser = argparse.ArgumentParser(prog='python -m heqis_training')
    subparsers = parser.add_subparsers(required=True)
    for command in (train, evaluate, export, convert):
        command.register(subparsers)
    args = parser.parse_args()
    return int(args.func(args))


if __name__ == '__main__':
    sys.exit(main())
