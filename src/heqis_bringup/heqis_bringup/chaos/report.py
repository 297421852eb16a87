# SPDX-License-Identifier: Apache-2.0
"""What a campaign found as a table for a terminal, as Markdown for docs, as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from heqis_bringup.chaos.campaign import GraphEnd, Result
from heqis_bringup.chaos.measure import Row, Span

HEAD = (
    *('fault', 'times', 'noticed', 'by', '/diagnostics', 'next frame', 'next signal'),
    *('all well', 'lost', 'twice', 'touched', 'passed'),
)
NARROW = ('fault', 'noticed', '/diagnostics', 'next signal', 'lost', 'passed')
WIDE = 150
"""Columns of a terminal that the whole table needs."""
LEGEND = (
    'Seconds, p50 / p99 (of few injections the p99 is the longest). Noticed and /diagnostics: '
    'from the injection. Next frame, next signal, all well: from the injection, or from the end '
    'of a fault that is held. Lost: frames missing in the journal, signals never published. '
    'Twice: signals published again, with the same key. Touched: processes that should not have '
    'noticed.'
)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as texts, in the order of `HEAD`."""
    return (
        row.fault,
        str(row.times),
        _span(row.detected),
        row.by or '–',
        _span(row.diagnosed),
        _span(row.frame),
        _span(row.signal),
        _span(row.well),
        f'{row.lost_frames} / {row.lost_signals}',
        str(row.again),
        ', '.join(row.touched) or 'nobody',
        'yes' if row.passed else 'NO',
    )


def terminal(result: Result, width: int) -> Table:
    """Return the table for rich; one that is narrow has the columns that matter most."""
    names = HEAD if width >= WIDE else NARROW
    table = Table(box=box.SIMPLE_HEAD, title='faults', caption=LEGEND, pad_edge=False)
    for name in names:
        table.add_column(name, overflow='fold')
    for row in result.rows:
        shown = [text for name, text in zip(HEAD, cells(row), strict=True) if name in names]
        table.add_row(*shown, style='' if row.passed else 'red')
    return table


def remarks(result: Result) -> list[str]:
    """Return one line for each thing that went wrong or was left out, and for each graph."""
    lines = [f'{row.fault}: {text}' for row in result.rows for text in row.problems]
    lines += [f'not run: {name}: {why}' for name, why in result.skipped.items()]
    return lines + [_end(end) for end in result.ends]


def markdown(result: Result, where: str) -> str:
    """Return the table for docs; `where` says on what it was measured."""
    lines = [f'{len(result.rows)} faults, {_minutes(result.seconds)}, on {where}.', '', LEGEND, '']
    lines += _table(HEAD, [cells(row) for row in result.rows])
    lines += ['', *_table(('fault', 'what is done'), [(r.fault, r.text) for r in result.rows])]
    lines += ['', *(f'- {line}' for line in remarks(result))]
    return '\n'.join(lines) + '\n'


def document(result: Result, where: dict[str, Any]) -> dict[str, Any]:
    """Return everything for JSON."""
    return {
        'name': 'faults',
        'machine': where,
        'passed': result.passed,
        'seconds': round(result.seconds, 1),
        'rows': [row.as_dict() for row in result.rows],
        'graphs': [end.__dict__ for end in result.ends],
        'skipped': result.skipped,
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ['---'] * len(head), *rows]
    return [f'| {" | ".join(line)} |' for line in lines]


def _end(end: GraphEnd) -> str:
    words = {True: 'digest as heqis batch', False: 'DIGEST DIFFERS', None: 'not compared'}
    text = f'graph {end.layer}: {end.frames} frames, {end.signals} signals, {words[end.same]}'
    return f'{text} ({end.note})' if end.note else text


def _span(span: Span | None) -> str:
    return '–' if span is None else f'{span[0]:.2f} / {span[1]:.2f}'


def _minutes(seconds: float) -> str:
    return f'{seconds / 60:.0f} minutes' if seconds >= 90 else f'{seconds:.0f} s'
