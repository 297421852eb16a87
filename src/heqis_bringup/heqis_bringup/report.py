# SPDX-License-Identifier: Apache-2.0
"""The summary of a run: from the graph's last state and its journal to JSON and to text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heqis_bringup.table import process_of
from heqis_core.graph_state import GraphState

_NAMED_SYMBOLS = 10
"""In the summary; the report has all of them."""


@dataclass(frozen=True)
class JournalFigures:
    """What the journal holds after a run, as `heqis_core.io.journal` gives it."""

    counts: Mapping[str, int] = field(default_factory=dict)
    latency_us: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signals_digest: str = ''
    signals_by_symbol: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """What only the one who ran the graph knows.

    Attributes:
        transport, engine: of the compute board.
        bundle_id, bundle_path: what was run.
        symbols: of the stream.
        reason: why the run ended: finished, duration, interrupted, failed.
        problems: what is wrong at the end, one line each; none after a good run.
        incidents: errors that the graph told of before its end, and may have got over.
        seconds: set_up (training), up (every node active), first_signal, run, stop; absent if
            never reached.
        restarts: of each process, by the runner's names.
        journal_path: where the journal is.
        page: address of the page while the graph ran; empty if there was none.
    """

    transport: str
    engine: str
    bundle_id: str
    bundle_path: str
    symbols: Sequence[str]
    reason: str
    problems: Sequence[str]
    incidents: Sequence[str]
    seconds: Mapping[str, float]
    restarts: Mapping[str, int]
    journal_path: str
    page: str = ''


def build_report(
    state: GraphState, journal: JournalFigures, facts: RunFacts, final_states: Mapping[str, str]
) -> dict[str, Any]:
    """Return the report; `final_states` are the states when the end was decided.

    Counts of decisions and signals are the journal's, what flowed before it is the heartbeats'
    word.
    """
    nodes = {
        view.name: {
            'state': final_states.get(view.name, 'unknown'),
            'restarts': facts.restarts.get(
                process_of(view.name, view.process, facts.restarts), state.restarts(view.name)
            ),
            'counters': dict(sorted(view.counters.items())),
        }
        for view in state.nodes.values()
    }
    return {
        'finished': facts.reason == 'finished',
        'reason': facts.reason,
        'transport': facts.transport,
        'engine': facts.engine,
        'bundle': {'id': facts.bundle_id, 'path': facts.bundle_path},
        'symbols': list(facts.symbols),
        'bars_in': state.total('bars_in', 'gateway'),
        'bars_warmup': state.total('bars_warmup', 'gateway'),
        'bars_rejected': state.total('bars_rejected', 'gateway'),
        'frames_sent': state.total('frames_sent', 'gateway'),
        'resent': state.total('frames_resent', 'gateway'),
        'frames_received': _distinct_frames(state, journal),
        'frames_arrived': state.total('frames_received', 'compute'),
        'frames_recovered': state.total('frames_recovered', 'compute'),
        'duplicates': state.total('frames_duplicate'),
        'gaps': state.total('gaps', 'compute'),
        'drops': state.total('drops'),
        'frames_decided': journal.counts.get('frames', 0),
        'decisions': journal.counts.get('decisions', 0),
        'signals': journal.counts.get('signals', 0),
        'refused': journal.counts.get('refused', 0),
        'signals_by_symbol': dict(journal.signals_by_symbol),
        'signals_digest': journal.signals_digest,
        'latency_us': {name: dict(row) for name, row in journal.latency_us.items()},
        'nodes': nodes,
        'errors': list(facts.problems),
        'incidents': list(facts.incidents),
        'seconds': {name: round(value, 3) for name, value in facts.seconds.items()},
        'journal': facts.journal_path,
        'page': facts.page,
    }


def _distinct_frames(state: GraphState, journal: JournalFigures) -> int:
    # After a restart frames arrive again, and nobody knows what the start before had seen. What
    # was sent bounds the number from above, what is durable from below.
    arrived = state.total('frames_received', 'compute') - state.total(
        'frames_duplicate', 'compute'
    )
    sent = state.total('frames_sent', 'gateway')
    return max(journal.counts.get('frames', 0), min(arrived, sent))


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.write_text(json.dumps(report, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    partial.replace(path)


def _counted(by_symbol: Mapping[str, int]) -> str:
    named = [f'{symbol} {n}' for symbol, n in by_symbol.items()]
    rest = named[_NAMED_SYMBOLS:]
    return ', '.join([*named[:_NAMED_SYMBOLS], *([f'{len(rest):,} more'] if rest else [])])


def summary(report: Mapping[str, Any]) -> str:
    """Return the report for people, a dozen lines."""
    latency = report['latency_us'].get('ingest_to_signal')
    seconds = report['seconds']
    by_symbol = report['signals_by_symbol']
    lines = [
        f'ended: {report["reason"]}, after {seconds.get("run", 0.0):.1f} s',
        f'bundle {report["bundle"]["id"]} on {report["engine"]}, transport {report["transport"]}',
        f'bars in {report["bars_in"]:,} ({report["bars_warmup"]:,} to warm up, '
        f'{report["bars_rejected"]:,} rejected)',
        f'frames sent {report["frames_sent"]:,}, received {report["frames_received"]:,}, '
        f'sent again {report["resent"]:,}, gaps {report["gaps"]:,}, drops {report["drops"]:,}',
        f'decisions {report["decisions"]:,}, signals {report["signals"]:,}'
        + (f' ({_counted(by_symbol)})' if by_symbol else ''),
    ]
    if latency:
        lines.append(f'bar to signal p50 {latency["p50"]:,.0f} us, p99 {latency["p99"]:,.0f} us')
    if 'first_signal' in seconds:
        lines.append(f'first signal {seconds["first_signal"]:.1f} s after the start of the graph')
    restarted = {name: n['restarts'] for name, n in report['nodes'].items() if n['restarts']}
    if restarted:
        lines.append('restarts: ' + ', '.join(f'{name} {n}' for name, n in restarted.items()))
    lines += [f'signals digest {report["signals_digest"]}', f'journal {report["journal"]}']
    lines += [f'incident: {text}' for text in report['incidents']]
    lines += [f'error: {text}' for text in report['errors']]
    return '\n'.join(lines)
