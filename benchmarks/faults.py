# SPDX-License-Identifier: Apache-2.0
"""How soon each fault is noticed, and when signals go on: `heqis chaos` as a benchmark.

`make bench NAME=faults ARGS="--markdown docs/faults.md"` writes the table of the docs as
well. There is no peer and no floor: what a time is held to is its aim.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from _harness import Row, main
from rich.console import Console

from heqis_bringup.chaos import command
from heqis_bringup.chaos.measure import Row as Fault

FIGURES = ('detected', 'diagnosed', 'frame', 'signal', 'well')
_AIMED = ('detected', 'diagnosed')


def figures(fault: Fault) -> list[Row]:
    rows = []
    for name in FIGURES:
        span = getattr(fault, name)
        if span is None:
            continue
        rows.append(Row(fault.fault, f'{name} p50', 's', span[0]))
        p99 = Row(fault.fault, f'{name} p99', 's', span[1])
        within_s = fault.within_s if name in _AIMED else None
        rows.append(p99 if within_s is None else p99.aiming(within_s))
    lost = Row(fault.fault, 'lost', 'frames and signals', fault.lost_frames + fault.lost_signals)
    # What a repair could not save is counted as lost, and expected.
    return [*rows, replace(lost, aim=0.0, reached=fault.passed)]


def measure(args: argparse.Namespace) -> list[Row]:
    console = Console(stderr=True, highlight=False)
    if args.quick:
        args.times = 1
    result = command.campaign(args, console)
    command.show(result, console)
    if args.markdown is not None:
        command.write_markdown(args.markdown, result)
    return [row for fault in result.rows for row in figures(fault)]


if __name__ == '__main__':
    raise SystemExit(main('faults', __doc__ or '', measure, command.add_options))
