# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: options, printed table and JSON form. No measuring lives here.

A benchmark is one file beside this one: it gives `main` its name and a function that measures and
returns rows. `make bench NAME=transport JSON=file.json` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        case: what was measured, under which conditions.
        figure: what the number is: `round trip p50`, `throughput`, ...
        unit: `us`, `MB/s`, ...
        value: ours.
        floor: the same work without us, measured in the same run: nothing of ours can beat it.
        peer: the same work by other software, measured in the same run.
        ratio: value against the floor, else against the peer; paired where that was possible.
        aim: the ratio (or, without one, the value) that we want at most.
        reached: whether it is.
    """

    case: str
    figure: str
    unit: str
    value: float
    floor: float | None = None
    peer: float | None = None
    ratio: float | None = None
    aim: float | None = None
    reached: bool | None = None

    def aiming(self, aim: float) -> Row:
        """Return this row with an aim, and whether it is reached."""
        got = self.value if self.ratio is None else self.ratio
        return Row(**{**asdict(self), 'aim': aim, 'reached': bool(got <= aim)})


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median ratio of interleaved rounds: slow phases of the machine cancel out."""
    return float(np.median(np.asarray(ours) / np.asarray(theirs)))


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, system, Python and packages."""
    names = ('numpy', 'numba', 'msgspec', 'pyzmq', 'onnxruntime', 'torch', 'rclpy')
    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'load': round(os.getloadavg()[0], 2),
        'system': platform.platform(terse=True),
        'python': platform.python_version(),
        'packages': {name: version for name in names if (version := _version(name))},
    }


def main(
    name: str,
    description: str,
    measure: Callable[[argparse.Namespace], list[Row]],
    options: Callable[[argparse.ArgumentParser], None] = lambda _parser: None,
) -> int:
    """Measure, print the table, write the JSON; return the exit status."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there')
    parser.add_argument(
        '--quick', action='store_true', help='fewer rounds: a look, not a figure to quote'
    )
    options(parser)
    args = parser.parse_args()
    rows = measure(args)
    where = machine()
    about = f'{where["processor"]} · {where["cores"]} cores · load {where["load"]}'
    print(f'\n{name} · {about} · Python {where["python"]}')
    print(table(rows))
    if args.json is not None:
        document = {'name': name, 'machine': where, 'rows': [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    return 0


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned text table."""
    head = [field.name for field in fields(Row)]
    lines = [head] + [[_cell(getattr(row, name)) for name in head] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        '  '.join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return '\n'.join([text[0], '─' * len(text[0]), *text[1:]])


def say(text: str) -> None:
    """Print progress where the table does not go."""
    print(text, file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if value is None:
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return f'{value:.2f}' if abs(value) < 100 else f'{value:.0f}'
    return str(value)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ''


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith(('model name', 'Model')):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
