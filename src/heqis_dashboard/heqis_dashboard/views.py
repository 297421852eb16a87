# SPDX-License-Identifier: Apache-2.0
"""What the tables and the banner of the page say, as plain rows. Pure: state and times in.

Every row is a tuple of texts with the level of each cell where it matters, so that a page can
tell whether anything changed by comparing rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from heqis_core.control import Level, NodeState
from heqis_core.graph_state import GraphState, NodeView
from heqis_dashboard.chart import clock_text, local_time
from heqis_dashboard.marks import Mark

SILENT_S = 1.0
"""A node that was not heard for this long shows as lost: five heartbeats."""
GONE_S = 5.0
"""No node at all for this long: the graph has ended, or cannot be reached."""
_PREFIX = 'heqis/'
_SOURCES = {'simulator': 'SIMULATED market · ', 'file': 'replay of files · '}
"""What the gateway's word on its source begins with, and what a person reads."""
_DAY_NS = 86_400_000_000_000


@dataclass(frozen=True)
class Notice:
    """One line of the banner."""

    level: Level
    text: str


@dataclass(frozen=True)
class Row:
    """One line of a table: its cells, and how bad it is."""

    cells: tuple[str, ...]
    level: Level = Level.INFO


@dataclass(frozen=True)
class Sources:
    """Where the node of this page gets its data, and what is wrong with that.

    Attributes:
        where: namespace and ROS domain.
        journal: why the journal cannot be read; empty if it can or none is given.
        bars: why the gateway's history cannot be asked; empty if it can.
    """

    where: str
    journal: str = ''
    bars: str = ''


def notices(state: GraphState, sources: Sources, now_s: float) -> list[Notice]:
    """Return what a person must know at once, worst first; nothing if all is well.

    One line for each cause: what the supervisor says of a node that is named already is left out.
    """
    nodes = list(state.nodes.values())
    gone = list(_of_the_graph(nodes, sources, now_s))
    found = [*gone, *_of_output(state)]
    if not gone:
        troubled = [node for node in nodes if node.state_name(now_s, SILENT_S) != 'active']
        found += [_of_node(node, now_s) for node in troubled]
        found += _of_diagnostics(state, troubled)
        if sources.bars and 'gateway' not in [node.name for node in troubled]:
            found.append(Notice(Level.WARN, sources.bars))
    if sources.journal:
        found.append(Notice(Level.WARN, sources.journal))
    return sorted(dict.fromkeys(found), key=lambda notice: -notice.level)


def _of_the_graph(nodes: list[NodeView], sources: Sources, now_s: float) -> Iterable[Notice]:
    # The dashboard's own process is heard whatever becomes of the graph.
    others = [node for node in nodes if node.process != 'dashboard']
    if not others:
        text = f'no node is heard in {sources.where}: is the graph running? (heqis up all)'
        yield Notice(Level.WARN, text)
    elif all(node.state == NodeState.FINALIZED for node in others):
        yield Notice(Level.WARN, 'the graph was ended: what is shown is how it was')
    elif (silent_s := min(_silence_s(node, now_s) for node in others)) > GONE_S:
        text = f'the graph is silent for {silent_s:.0f} s: what is shown is old'
        yield Notice(Level.ERROR, text)


def _of_output(state: GraphState) -> Iterable[Notice]:
    if state.total('kill_switch', 'risk_gate'):
        said = _of_kill_switch(state)
        said = f' ({said})' if said else ''
        yield Notice(Level.ERROR, f'the kill switch is engaged: every signal is refused{said}')
    if state.hold or state.total('hold', 'risk_gate'):
        yield Notice(Level.ERROR, 'output is held: the supervisor says so')
    elif state.total('holding', 'compute'):
        yield Notice(Level.ERROR, 'output is held: the compute board hears no supervisor')
    if state.stream_done():
        yield Notice(Level.INFO, 'the source has ended, and every frame is durable')


def kill_switch(state: GraphState, now_s: float) -> Notice:
    """Return whether the kill switch is engaged, by whom, since when and why."""
    gate = state.nodes.get('risk_gate')
    if gate is None or gate.state_name(now_s, SILENT_S) == 'lost':
        return Notice(Level.WARN, 'kill switch: not known, the risk gate is not heard')
    if not gate.counters.get('kill_switch'):
        return Notice(Level.INFO, 'kill switch: not engaged')
    return Notice(Level.ERROR, f'kill switch: {_of_kill_switch(state) or "engaged"}')


def _of_kill_switch(state: GraphState) -> str:
    # What the gate says now; the last event of an earlier gate, or of one that has failed.
    info = state.nodes['risk_gate'].info
    if info.startswith('kill switch engaged'):
        return info.removeprefix('kill switch ')
    told = [event.text for event in list(state.events) if event.kind == 'kill_switch']
    return told[-1] if told else ''


def _of_node(node: NodeView, now_s: float) -> Notice:
    name = node.state_name(now_s, SILENT_S)
    if name == 'lost':
        silent_s = _silence_s(node, now_s)
        return Notice(_level(name), f'{node.name} is lost: not heard for {silent_s:.0f} s')
    says = f': {node.info}' if node.info and name != 'finalized' else ''
    return Notice(_level(name), f'{node.name} is {name}{says}')


def _level(state_name: str) -> Level:
    if state_name in ('lost', 'finalized', 'unknown'):
        return Level.ERROR
    return Level.INFO if state_name == 'active' else Level.WARN


def _of_diagnostics(state: GraphState, named: Sequence[NodeView]) -> Iterable[Notice]:
    known = {('node', node.name) for node in named}
    known |= {('process', f'{node.board}/{node.process}') for node in named}
    for name, (level, message) in list(state.diagnostics.items()):
        kind, _, subject = name.removeprefix(_PREFIX).partition('/')
        part = kind in ('board', 'process', 'node') and (kind, subject) not in known
        if level >= Level.ERROR and part:
            yield Notice(level, f'{kind} {subject}: {message}')


def node_rows(state: GraphState, now_s: float) -> list[Row]:
    """Return board, node, state, age of the heartbeat, restarts, drops, waiting, and what it says.

    Gateway board first, each board headed by a row of its own.
    """
    rows: list[Row] = []
    nodes = sorted(
        list(state.nodes.values()), key=lambda n: (n.board != 'gateway', n.board, n.process)
    )
    for board in dict.fromkeys(node.board for node in nodes):
        here = [node for node in nodes if node.board == board]
        rows.append(_board_row(board, here, state, now_s))
        rows += [_node_row(node, state, now_s) for node in here]
    return rows


def _board_row(board: str, nodes: list[NodeView], state: GraphState, now_s: float) -> Row:
    level, says = state.diagnostics.get(f'{_PREFIX}board/{board}', (Level.INFO, ''))
    silent_s = min(_silence_s(node, now_s) for node in nodes)
    if silent_s > SILENT_S:
        level, says = Level.ERROR, 'no heartbeat of any node'
    processes = {node.process: node.name for node in nodes}
    restarts = sum(state.restarts(name) for name in processes.values())
    drops = sum(node.drops for node in nodes)
    name = 'lost' if silent_s > SILENT_S else level.name.lower() if level else 'ok'
    return Row((board, '', name, _age(silent_s), str(restarts), str(drops), '', says), level)


def _node_row(node: NodeView, state: GraphState, now_s: float) -> Row:
    name = node.state_name(now_s, SILENT_S)
    says = '' if name in ('lost', 'finalized') else node.info  # what it said then is not so now
    cells = (
        *('', node.name, name, _age(_silence_s(node, now_s))),
        *(str(state.restarts(node.name)), str(node.drops), str(node.pending), says),
    )
    return Row(cells, _level(name))


def latency_rows(state: GraphState) -> list[Row]:
    """Return stage, p50 and p99 in milliseconds, over the last frames."""
    return [
        Row(('bar to signal' if name == 'ingest_to_signal' else name, _ms(p50), _ms(p99)))
        for name, (p50, p99) in state.latency_us().items()
    ]


def flow_rows(state: GraphState) -> list[Row]:
    """Return what has passed: a name and a count each."""
    flow = (
        ('bars in', 'bars_in', 'gateway'),
        ('bars rejected', 'bars_rejected', 'gateway'),
        ('frames sent', 'frames_sent', 'gateway'),
        ('sent again', 'frames_resent', 'gateway'),
        ('frames open', 'frames_open', 'gateway'),
        ('frames received', 'frames_received', 'compute'),
        ('gaps', 'gaps', 'compute'),
        ('frames durable', 'frames', 'risk_gate'),
        ('signals released', 'signals', 'risk_gate'),
    )
    return [Row((label, f'{state.total(counter, node):,}')) for label, counter, node in flow]


def event_rows(state: GraphState, zone: tzinfo, n: int) -> list[Row]:
    """Return time, source, kind, what it happened to and a sentence, newest first."""
    return [
        Row(
            (
                local_time(event.stamp_ns, zone).strftime('%Y-%m-%d %H:%M:%S'),
                *(event.source, event.kind, event.subject, event.text),
            ),
            event.level,
        )
        for event in reversed(list(state.events)[-n:])
    ]


def market_text(state: GraphState, last_ns: int, now_ns: int, zone: tzinfo) -> str:
    """Return where the bars come from, the newest of them and how far that is from now."""
    gateway = state.nodes.get('gateway')
    kind = _SOURCES.get(gateway.info.partition(',')[0] if gateway else '', '')
    if not last_ns:
        return f'{kind}no bar yet'
    days = (now_ns - last_ns) / _DAY_NS
    if abs(days) < 1:
        far = 'of today'
    else:
        amount = (
            f'{abs(days):,.0f} days' if abs(days) < 730 else f'{abs(days) / 365.25:,.1f} years'
        )
        far = f'{amount} ago' if days > 0 else f'{amount} ahead of now'
    return f'{kind}newest bar {clock_text(last_ns, zone)} ({zone}), {far}'


def signal_rows(signals: Iterable[Mark], zone: tzinfo) -> list[Row]:
    """Return bar time, symbol, action, score, predicted return, reasons and bundle."""
    return [
        Row(
            (
                clock_text(mark.time_ns, zone),
                mark.symbol,
                mark.kind,
                f'{mark.score:+.3f}',
                f'{mark.predicted_return:+.2%}',
                ', '.join(mark.reasons),
                mark.bundle_id[:8],
            )
        )
        for mark in signals
    ]


def _silence_s(node: NodeView, now_s: float) -> float:
    return max(0.0, now_s - node.heard_s)


def _age(seconds: float) -> str:
    return f'{seconds:.1f} s' if seconds < 100 else f'{seconds / 60:.0f} min'


def _ms(us: float) -> str:
    return f'{us / 1000:,.2f}' if us < 100_000 else f'{us / 1000:,.0f}'
