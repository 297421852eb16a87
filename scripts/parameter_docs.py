# SPDX-License-Identifier: Apache-2.0
"""Write docs/parameters.md from the parameter tables of the nodes, or check that it is up to date.

Every package keeps its tables in `<package>/params.py`; nothing about a parameter is written twice.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from heqis_ros.params import ParamTable, docs_table

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / 'docs' / 'parameters.md'
HEAD = """\
# Parameters of the nodes

Written by `make docs` from the tables in the code; do not edit. The shipped values are in `config/`, and a
file with an unknown name or a value out of range is refused with its line.
"""


def tables() -> list[ParamTable]:
    """Return the parameter tables of all packages of the workspace."""
    found: list[ParamTable] = []
    for manifest in sorted(ROOT.glob('src/*/package.xml')):
        package = manifest.parent.name
        if package == 'heqis_ros' or not (manifest.parent / package / 'params.py').is_file():
            continue
        module = importlib.import_module(f'{package}.params')
        found += [value for value in vars(module).values() if isinstance(value, ParamTable)]
    return found


def text() -> str:
    """Return what the page must say."""
    return f'{HEAD}\n{docs_table(tables())}'


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with --check compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='fail when the page is out of date')
    args = parser.parse_args(argv)
    wanted = text()
    present = TARGET.read_text() if TARGET.is_file() else ''
    if wanted == present:
        return 0
    if args.check:
        print(f'{TARGET.relative_to(ROOT)} is out of date: run make docs', file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(wanted)
    print(f'{TARGET.relative_to(ROOT)} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
