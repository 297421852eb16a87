# SPDX-License-Identifier: Apache-2.0
"""Sum up the result files of a test run: every failure, then one closing line.

Exits 0 only when something ran, nothing failed and the runner itself ended well.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Totals:
    """Counts of test cases, and the text of each failure."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)


def add_case(totals: Totals, case: ElementTree.Element) -> None:
    """Count one test case; an error in set-up or tear-down counts as a failure."""
    name = f'{case.get("classname", "")}.{case.get("name", "")}'.strip('.')
    bad = [child for child in case if child.tag in ('failure', 'error')]
    skipped = case.find('skipped')
    if bad:
        totals.failed += 1
        for child in bad:
            totals.failures.append(f'{name}\n{child.text or child.get("message", "")}')
    elif skipped is not None:
        totals.skipped += 1
        totals.skips.append(f'{name}: {skipped.get("message", "")}')
    else:
        totals.passed += 1


def read_results(folder: Path) -> Totals:
    """Read every result file below a build folder; one that cannot be read counts as a failure."""
    totals = Totals()
    files = sorted(folder.glob('*/pytest.xml')) + sorted(folder.glob('*/test_results/**/*.xml'))
    for file in files:
        try:
            cases = list(ElementTree.parse(file).iter('testcase'))
        except ElementTree.ParseError as error:
            totals.failed += 1
            totals.failures.append(f'{file}: not a result file: {error}')
            continue
        for case in cases:
            add_case(totals, case)
    return totals


def main(argv: list[str] | None = None) -> int:
    """Print the failures, the reasons of skips and the closing line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='build folder of the workspace')
    parser.add_argument('--status', type=int, default=0, help='exit status of the test runner')
    args = parser.parse_args(argv)
    totals = read_results(args.folder)
    for text in totals.failures:
        print(f'\nFAILED {text}')
    if totals.skips:
        print('\nSkipped:')
        print(*(f'  {text}' for text in totals.skips), sep='\n')
    if totals.passed + totals.failed == 0:
        print('\nNo test ran.')
    print()
    skipped = f', {totals.skipped} skipped' if totals.skipped else ''
    print(f'{totals.passed} passed, {totals.failed} failed{skipped}', flush=True)
    if totals.failed or totals.passed == 0:
        return 1
    return args.status


if __name__ == '__main__':
    sys.exit(main())
