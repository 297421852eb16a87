# SPDX-License-Identifier: Apache-2.0
"""A graph's state as a live table, and the report of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from heqis_bringup.report import JournalFigures, RunFacts, build_report, summary, write_report
from heqis_bringup.table import Screen, plain_line, render
from heqis_core.control import Event, Level
from heqis_core.frame import Stage
from heqis_core.graph_state import GraphState
from heqis_core.testing_graph import make_beat, make_stamps

ACTIVE = 3
REPORT_KEYS = {
    *('bars_in', 'frames_sent', 'frames_received', 'gaps', 'drops', 'signals', 'symbols'),
    *('transport', 'engine', 'bundle', 'decisions', 'latency_us', 'nodes', 'errors'),
    'signals_digest',
}


def full_state() -> GraphState:
    state = GraphState()
    state.beat(make_beat('gateway', 1, 1, bars_in=120, frames_sent=30, bars_warmup=90), 0.0)
    state.beat(make_beat('compute', 2, 1, 'compute', frames_received=31, gaps=1, drops=0), 0.0)
    state.beat(make_beat('journal', 3, 1, node='risk_gate', frames=30, signals=12), 0.0)
    state.decided(make_stamps((Stage.INGEST, 10**18), (Stage.COMMITTED, 10**18 + 2_500_000)))
    state.signalled(1.5, [('600519.SH', 'BUY', 0.41), ('[bold]', 'SELL', -0.3)])
    return state


def test_the_table_shows_flow_latency_signals_and_nodes() -> None:
    out = io.StringIO()
    screen = Screen('prices, zmq', 'streaming', 12.0, {'compute': 2}, {'compute': 4711})
    Console(file=out, width=140).print(render(full_state(), screen, 0.5))
    text = out.getvalue()
    assert '[bold]' in text
    for part in ('prices, zmq', '12 s, streaming', 'frames sent', '600519.SH', '+0.410', '4711'):
        assert part in text
    assert '2.50' in text
    (row,) = [line for line in text.splitlines() if '4711' in line]
    assert ' 2 ' in row


def test_the_table_of_nothing_is_a_table() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(render(GraphState(), Screen('x', 'starting', 0.0), 0.0))
    assert 'starting' in out.getvalue()


def test_the_plain_line_says_what_is_not_active() -> None:
    line = plain_line(full_state(), Screen('x', 'streaming', 12.34), 0.5)
    assert line.startswith('  12.3 s  streaming  bars in 120  frames sent 30')
    assert 'bar to signal p50/p99 2.50/2.50 ms' in line
    assert 'not active' not in line
    assert 'not active: gateway lost' in plain_line(full_state(), Screen('x', 'y', 1.0), 9.0)


def facts(**more: object) -> RunFacts:
    values: dict[str, object] = {
        'transport': 'zmq',
        'engine': 'onnxruntime',
        'bundle_id': 'b' * 16,
        'bundle_path': '/b',
        'symbols': ('600519.SH',),
        'reason': 'finished',
        'problems': [],
        'incidents': [],
        'seconds': {'run': 12.5, 'first_signal': 3.25},
        'restarts': {'gateway': 0, 'compute': 1, 'journal': 0},
        'journal_path': '/j',
    }
    return RunFacts(**{**values, **more})  # type: ignore[arg-type]


JOURNAL = JournalFigures(
    {'frames': 30, 'decisions': 91, 'signals': 13, 'refused': 2},
    {'sent': {'p50': 1.0, 'p99': 2.0}, 'ingest_to_signal': {'p50': 100.0, 'p99': 900.0}},
    'd' * 64,
    {'600519.SH': 13},
)


def test_the_report_has_every_key_and_takes_decisions_from_the_journal() -> None:
    report = build_report(full_state(), JOURNAL, facts(), {'gateway': 'active'})
    assert set(report) >= REPORT_KEYS
    assert (report['bars_in'], report['frames_sent'], report['frames_received']) == (120, 30, 30)
    assert (report['decisions'], report['signals'], report['gaps']) == (91, 13, 1)
    assert report['bundle'] == {'id': 'b' * 16, 'path': '/b'}
    assert {name: (node['state'], node['restarts']) for name, node in report['nodes'].items()} == {
        'gateway': ('active', 0),
        'compute': ('unknown', 1),
        'risk_gate': ('unknown', 0),
    }
    assert report['nodes']['risk_gate']['counters'] == {'frames': 30, 'signals': 12}
    assert report['latency_us']['ingest_to_signal'] == {'p50': 100.0, 'p99': 900.0}
    assert report['errors'] == []
    assert report['finished'] is True


def test_errors_are_what_is_wrong_at_the_end_and_incidents_what_was_on_the_way() -> None:
    state = full_state()
    state.happened(Event(0, Level.ERROR, '/heqis/supervisor', 'node_lost', 'compute', 'no beat'))
    state.happened(Event(0, Level.WARN, '/heqis/supervisor', 'late', 'compute', 'slow'))
    known = facts(problems=['port taken'], incidents=list(state.errors), reason='failed')
    report = build_report(state, JOURNAL, known, {})
    assert report['errors'] == ['port taken']
    assert report['incidents'] == ['/heqis/supervisor node_lost compute: no beat']
    assert report['finished'] is False
    text = summary(report)
    assert text.index('incident: /heqis') < text.index('error: port taken')


def test_a_frame_that_arrives_twice_is_received_once() -> None:
    state = full_state()
    state.beat(make_beat('compute', 2, 2, 'compute', frames_received=33, frames_duplicate=3), 0.0)
    report = build_report(state, JOURNAL, facts(), {})
    assert (report['frames_received'], report['frames_arrived']) == (30, 33)


def test_after_a_restart_no_more_is_received_than_was_sent() -> None:
    state = full_state()
    state.beat(make_beat('compute', 9, 1, 'compute', frames_received=40), 0.0)
    report = build_report(state, JOURNAL, facts(), {})
    assert (report['frames_received'], report['frames_arrived']) == (30, 71)


def test_the_summary_of_a_run_without_any_frame_is_a_summary() -> None:
    report = build_report(GraphState(), JournalFigures(), facts(seconds={}), {})
    text = summary(report)
    assert 'decisions 0, signals 0' in text
    assert 'bar to signal' not in text


def test_the_summary_of_a_whole_market_names_ten_symbols_and_counts_the_rest() -> None:
    figures = JournalFigures(signals_by_symbol={f'{n:06d}.SZ': n for n in range(1, 5401)})
    line = next(
        line
        for line in summary(build_report(full_state(), figures, facts(), {})).splitlines()
        if line.startswith('decisions')
    )
    assert '(000001.SZ 1, 000002.SZ 2, ' in line
    assert line.endswith('000010.SZ 10, 5,390 more)')


def test_the_report_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    report = build_report(full_state(), JOURNAL, facts(), {})
    path = tmp_path / 'new' / 'report.json'
    write_report(path, {'old': True})
    write_report(path, report)
    assert json.loads(path.read_text(encoding='utf-8')) == report
    assert [item.name for item in path.parent.iterdir()] == ['report.json']
