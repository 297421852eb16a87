# SPDX-License-Identifier: Apache-2.0
"""A graph's state as a live table or as one plain line. Pure: state and times in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heqis_core.graph_state import GraphState

_FLOW = (
    ('bars in', 'bars_in', ('gateway',)),
    ('frames sent', 'frames_sent', ('gateway',)),
    ('sent again', 'frames_resent', ('gateway',)),
    ('frames received', 'frames_received', ('compute',)),
    ('gaps', 'gaps', ('compute',)),
    ('drops', 'drops', ()),
    ('frames durable', 'frames', ('risk_gate',)),
    ('signals', 'signals', ('risk_gate',)),
)
_STYLES = {'active': 'green', 'lost': 'bold red', 'finalized': 'bold red'}


@dataclass(frozen=True)
class Screen:
    """What the table shows beside the state.

    Attributes:
        title: what runs: transport, bundle, source.
        phase: what happens now, for people.
        elapsed_s: seconds since the start.
        restarts: how often each process was started again, by the runner's names.
        pids: process id by the runner's names, None for one that is down.
    """

    title: str
    phase: str
    elapsed_s: float
    restarts: Mapping[str, int] = field(default_factory=dict)
    pids: Mapping[str, int | None] = field(default_factory=dict)


def render(state: GraphState, screen: Screen, now_s: float) -> RenderableType:
    """Return the live table for rich; about 100 columns wide."""
    head = Text(f'HEQIS  {screen.title}  ', style='bold')
    head.append(f'{screen.elapsed_s:.0f} s, {screen.phase}', style='cyan')
    side = Table.grid(padding=(0, 3))
    side.add_row(_flow(state), _latency(state), _news(state))
    return Group(head, side, _nodes(state, screen, now_s))


def plain_line(state: GraphState, screen: Screen, now_s: float) -> str:
    """Return one line for a log or a pipe."""
    parts = [f'{screen.elapsed_s:6.1f} s', screen.phase]
    parts += [f'{label} {state.total(counter, *nodes)}' for label, counter, nodes in _FLOW]
    whole = state.latency_us().get('ingest_to_signal')
    if whole is not None:
        parts.append(f'bar to signal p50/p99 {_ms(whole[0])}/{_ms(whole[1])} ms')
    not_active = [
        f'{view.name} {name}'
        for view in state.nodes.values()
        if (name := view.state_name(now_s)) != 'active'
    ]
    if not_active:
        parts.append('not active: ' + ', '.join(not_active))
    return '  '.join(parts)


def _flow(state: GraphState) -> Table:
    table = _table('flow', 'count')
    table.columns[1].justify = 'right'
    for label, counter, nodes in _FLOW:
        value = state.total(counter, *nodes)
        bad = counter in ('gaps', 'drops') and value > 0
        table.add_row(label, f'{value:,}', style='yellow' if bad else '')
    return table


def _latency(state: GraphState) -> Table:
    table = _table('to stage', 'p50 ms', 'p99 ms')
    for column in table.columns[1:]:
        column.justify = 'right'
    for name, (p50, p99) in state.latency_us().items():
        whole = name == 'ingest_to_signal'
        table.add_row(
            'bar to signal' if whole else name, _ms(p50), _ms(p99), style='bold' if whole else ''
        )
    return table


def _news(state: GraphState) -> Table:
    table = _table('last signals', '', 'score')
    for symbol, action, score in list(state.signals)[-8:]:
        table.add_row(
            Text(symbol), action, f'{score:+.3f}', style='green' if action == 'BUY' else 'red'
        )
    return table


def _nodes(state: GraphState, screen: Screen, now_s: float) -> Table:
    table = _table('board', 'node', 'state', 'pid', 'restarts', 'waiting', 'says')
    for view in sorted(state.nodes.values(), key=lambda v: (v.board != 'gateway', v.process)):
        state_name = view.state_name(now_s)
        process = process_of(view.name, view.process, screen.restarts)
        restarts = screen.restarts.get(process, state.restarts(view.name))
        pid = screen.pids.get(process)
        table.add_row(
            view.board,
            view.name,
            Text(state_name, style=_STYLES.get(state_name, 'yellow')),
            '' if pid is None else str(pid),
            str(restarts) if restarts else '',
            str(view.pending) if view.pending else '',
            Text(view.info, no_wrap=True, overflow='ellipsis'),
        )
    return table


def process_of(node: str, process: str, known: Mapping[str, object]) -> str:
    """Return the runner's name of a node's process: the node's own where launch renamed it."""
    return node if node in known else process


def _table(*headings: str) -> Table:
    return Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)


def _ms(us: float) -> str:
    return f'{us / 1000:.2f}' if us < 100_000 else f'{us / 1000:.0f}'
