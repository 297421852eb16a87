# SPDX-License-Identifier: Apache-2.0
"""The parameter reference of the docs, and the check of parameter files from the command line.

    python -m heqis_ros.param_docs --write docs/parameters.md
    python -m heqis_ros.param_docs --check config/*.yaml

Tables are found by walking the importable `heqis_*` packages for `params` modules; none of them
imports rclpy.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from heqis_core.errors import ConfigError
from heqis_ros.param_files import check_file
from heqis_ros.params import ParamTable, docs_table

_HEAD = """\
# Parameters

Generated from the tables in each package's `params.py` by `python -m heqis_ros.param_docs
--write`; do not edit. A parameter is set in a file under `/**/<node>: ros__parameters:`, or on a
command line with `-p name:=value`. A value that is unknown, of another type or out of range makes
the node refuse to be configured, and its log says why.
"""


def all_tables() -> list[ParamTable]:
    """Return the tables of every importable `heqis_*` package, sorted by node name.

    Raises ConfigError if one node has two.
    """
    tables: dict[str, ParamTable] = {}
    for package in sorted(
        {module.name for module in pkgutil.iter_modules() if module.name.startswith('heqis_')}
    ):
        if package == 'heqis_ros' or importlib.util.find_spec(f'{package}.params') is None:
            continue
        for value in vars(importlib.import_module(f'{package}.params')).values():
            if not isinstance(value, ParamTable):
                continue
            if tables.setdefault(value.node, value) is not value:
                raise ConfigError(f'{package}.params: node {value.node} has a second table')
    return [tables[node] for node in sorted(tables)]


def document() -> str:
    """Return the whole page of the docs."""
    return _HEAD + '\n' + docs_table(all_tables())


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the docs, or check parameter files; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog='python -m heqis_ros.param_docs', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--write', type=Path, metavar='FILE', help='write the page')
    parser.add_argument(
        '--compare', type=Path, metavar='FILE', help='fail if the page is not up to date'
    )
    parser.add_argument(
        '--check', type=Path, nargs='+', default=[], metavar='YAML', help='check parameter files'
    )
    args = parser.parse_args(argv)
    if not (args.write or args.compare or args.check):
        print(document(), end='')
    if args.write:
        args.write.write_text(document(), encoding='utf-8')
    problems = [str(problem) for path in args.check for problem in check_file(path, all_tables())]
    if args.compare and args.compare.read_text(encoding='utf-8') != document():
        problems.append(f'{args.compare}: not up to date; run with --write {args.compare}')
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
