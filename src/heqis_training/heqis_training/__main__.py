# SPDX-License-Identifier: Apache-2.0
"""`python -m heqis_training train ...`: the training commands without the `heqis` program."""

from __future__ import annotations

import argparse
import sys

from heqis_training import cli


def main() -> int:
    """Run one training command; return its exit status."""
    parser = argparse.ArgumentParser(prog='python -m heqis_training')
    cli.register(parser.add_subparsers(required=True))
    args = parser.parse_args()
    return int(args.func(args))


if __name__ == '__main__':
    sys.exit(main())
