# SPDX-License-Identifier: Apache-2.0
"""Writes the table and the state diagram of the ladder into a page of the docs, from `ladder.py`.

python -m heqis_supervisor.ladder_docs --write docs/supervision.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from heqis_supervisor.ladder import Case, Step

BEGIN = '<!-- ladder: written by `make docs` from heqis_supervisor/ladder.py; do not edit -->'
END = '<!-- end of ladder -->'
_COLUMNS = ('Case', 'Step', 'When', 'What is done', 'Well again when', 'Otherwise')


def table() -> str:
    """Return every case as a row of a Markdown table."""
    lines = [f'| {" | ".join(_COLUMNS)} |', '|---' * len(_COLUMNS) + '|']
    lines += [f'| {" | ".join(_cells(case))} |' for case in Case]
    return '\n'.join(lines) + '\n'


def _cells(case: Case) -> tuple[str, ...]:
    row = case.value
    after = '; '.join(f'{why}: {_name(Case[name])}' for name, why in row.otherwise.items())
    return (_name(case), row.step.name, row.when, row.action, row.check, after)


def _name(case: Case) -> str:
    return f'`{case.name.lower()}`'


def diagram() -> str:
    """Return the cases and how one leads to another as a Mermaid state diagram."""
    lines = ['```mermaid', 'stateDiagram-v2']
    for part in dict.fromkeys(case.value.part for case in Case):
        cases = [case for case in Case if case.value.part == part]
        lines.append(f'  state "{part}" as {part}_cases {{')
        lines += [f'    {line}' for case in cases for line in _states(case)]
        lines += [f'    {line}' for line in _ways(cases)]
        lines.append('  }')
    return '\n'.join([*lines, '```']) + '\n'


def _states(case: Case) -> Iterator[str]:
    short = case.name.partition('_')[2].lower()
    yield f'state "{case.step.name} ({short})" as {case.name.lower()}'


def _ways(cases: Sequence[Case]) -> Iterator[str]:
    well = next(case for case in cases if case.step == Step.NONE).name.lower()
    later = {other for case in cases for other in case.value.otherwise}
    for case in cases:
        name = case.name.lower()
        if case.step != Step.NONE and case.name not in later:
            yield f'[*] --> {name}'
        if case.step != Step.NONE:
            yield f'{name} --> {well} : {_label(case.value.check)}'
        for other, why in case.value.otherwise.items():
            yield f'{name} --> {other.lower()} : {_label(why)}'


def _label(text: str) -> str:
    return text.replace('`', '').replace(':', ',').replace(';', ',')


def fill(page: str) -> str:
    """Return a page with what stands between the two marks made anew; raise ValueError."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f'the page has no lines {BEGIN} and {END}')
    return f'{before}{BEGIN}\n\n{table()}\n{diagram()}\n{END}{after}'


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare a page; return 1 if it is not what the code says."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--write', type=Path, metavar='FILE')
    what.add_argument('--compare', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    path: Path = args.write or args.compare
    page = path.read_text(encoding='utf-8')
    filled = fill(page)
    if args.write:
        path.write_text(filled, encoding='utf-8')
    elif filled != page:
        print(f'{path}: its ladder is not what the code says: run make docs', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
