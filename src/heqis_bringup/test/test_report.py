# SPDX-License-Identifier: Apache-2.0
"""What heartbeats become: state over restarts, latencies, the live table, the report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from heqis_bringup.graph_state import GraphState
from heqis_bringup.report import JournalFigures, RunFacts, build_report, summary, write_report
from heqis_bringup.table import Screen, plain_line, render
from heqis_core.control import Event, Level, NodeBeat, ProcessBeat
from heqis_core.frame import N_STAGES, Stage

ACTIVE = 3
REPORT_KEYS = {
    *('bars_in', 'frames_sent', 'frames_received', 'gaps', 'drops', 'signals', 'symbols'),
    *('transport', 'engine', 'bundle', 'decisions', 'latency_us', 'nodes', 'errors'),
    'signals_digest',
}


def beat(
    process: str,
    start_id: int,
    count: int,
    board: str = 'gateway',
    node: str | None = None,
    state: int = ACTIVE,
    **counters: int,
) -> ProcessBeat:
    name = f'/heqis/{node or process}'
    return ProcessBeat(
        board=board,
        process=process,
        host='h',
        pid=1000 + start_id,
        start_id=start_id,
        count=count,
        stamp_ns=0,
        boot_id='b',
        nodes=(NodeBeat(name, state, counters=counters, info=f'{process} {count}'),),
    )


def test_a_heartbeat_counts_once_however_often_it_is_heard() -> None:
    state = GraphState()
    assert state.beat(beat('compute', 1, 5, frames_received=7), 0.0)
    assert not state.beat(beat('compute', 1, 5, frames_received=7), 0.1)
    assert not state.beat(beat('compute', 1, 4, frames_received=6), 0.2)
    assert state.total('frames_received', 'compute') == 7


def test_counters_go_on_over_a_restart_and_gauges_do_not() -> None:
    state = GraphState()
    state.beat(beat('compute', 1, 1, frames_received=10, holding=1), 0.0)
    state.beat(beat('compute', 2, 1, frames_received=0, holding=0), 1.0)
    state.beat(beat('compute', 2, 2, frames_received=3, holding=1), 1.1)
    assert not state.beat(beat('compute', 1, 2, frames_received=99), 1.2)
    assert state.total('frames_received', 'compute') == 13
    assert state.total('holding', 'compute') == 1
    assert state.restarts('compute') == 1


def test_the_gateway_counts_on_from_its_checkpoint_by_itself() -> None:
    state = GraphState()
    state.beat(beat('gateway', 1, 1, bars_in=10), 0.0)
    state.beat(beat('gateway', 2, 1, bars_in=9), 1.0)
    assert state.total('bars_in', 'gateway') == 9
    assert state.restarts('gateway') == 1


@given(
    starts=st.lists(
        st.lists(st.integers(0, 1000), min_size=1, max_size=4).map(sorted), min_size=1, max_size=4
    )
)
def test_the_total_is_the_sum_of_what_each_start_reached(starts: list[list[int]]) -> None:
    state = GraphState()
    for start_id, values in enumerate(starts, 1):
        for count, value in enumerate(values, 1):
            state.beat(beat('compute', start_id, count, gaps=value), 0.0)
    assert state.total('gaps') == sum(values[-1] for values in starts)
    assert state.restarts('compute') == len(starts) - 1


def test_agents_of_two_boards_are_two_processes() -> None:
    state = GraphState()
    state.beat(beat('agent', 1, 1, 'gateway', 'gateway_agent'), 0.0)
    state.beat(beat('agent', 2, 1, 'compute', 'compute_agent'), 0.0)
    assert state.restarts('gateway_agent') == state.restarts('compute_agent') == 0
    assert state.all_active(('gateway_agent', 'compute_agent'), 0.5)


def test_a_silent_node_is_lost_and_not_active() -> None:
    state = GraphState()
    state.beat(beat('compute', 1, 1), 10.0)
    assert state.nodes['compute'].state_name(11.0) == 'active'
    assert state.nodes['compute'].state_name(12.5) == 'lost'
    assert state.all_active(('compute',), 11.0)
    assert not state.all_active(('compute',), 12.5)
    assert not state.all_active(('compute', 'gateway'), 11.0)


@pytest.mark.parametrize(
    ('counters', 'node_state', 'done'),
    [
        ({'source_done': 1, 'frames_open': 0}, ACTIVE, True),
        ({'source_done': 1, 'frames_open': 2}, ACTIVE, False),
        ({'source_done': 0, 'frames_open': 0}, ACTIVE, False),
        ({'source_done': 1, 'frames_open': 0}, 1, False),
        ({}, ACTIVE, False),
    ],
)
def test_a_stream_is_done_when_its_source_ended_and_every_frame_is_durable(
    counters: dict[str, int], node_state: int, done: bool
) -> None:
    state = GraphState()
    assert not state.stream_done()
    state.beat(beat('gateway', 1, 1, state=node_state, **counters), 0.0)
    assert state.stream_done() is done


def stamps(*reached: tuple[Stage, int]) -> np.ndarray:
    row = np.zeros(N_STAGES, np.int64)
    for stage, ns in reached:
        row[stage] = ns
    return row


def test_latency_is_taken_from_the_last_stage_that_was_reached() -> None:
    state = GraphState()
    start = 10**18
    for extra in range(100):
        state.decided(
            stamps(
                (Stage.INGEST, start),
                (Stage.FEATURES, start + 2_000),
                (Stage.SENT, start + 5_000),
                (Stage.COMMITTED, start + 6_000 + extra * 1_000),
            )
        )
    latency = state.latency_us()
    assert set(latency) == {'features', 'sent', 'committed', 'ingest_to_signal'}
    assert latency['features'] == (2.0, 2.0)
    assert latency['sent'] == (3.0, 3.0)
    assert latency['ingest_to_signal'] == (6.0 + 49, 6.0 + 98)


def test_state_stays_bounded() -> None:
    state = GraphState()
    row = stamps((Stage.INGEST, 1), (Stage.COMMITTED, 1_001))
    for index in range(10_000):
        state.decided(row)
        state.happened(Event(0, Level.ERROR, 's', 'k', 'x', str(index)))
        state.signalled(0.0, [('A', 'BUY', 0.5)])
    assert state.latency_us()['ingest_to_signal'] == (1.0, 1.0)
    assert len(state.errors) < 100
    assert len(state.signals) < 100
    assert state.error_count == 10_000
    assert state.errors[-1].endswith('9999')


def full_state() -> GraphState:
    state = GraphState()
    state.beat(beat('gateway', 1, 1, bars_in=120, frames_sent=30, bars_warmup=90), 0.0)
    state.beat(beat('compute', 2, 1, 'compute', frames_received=31, gaps=1, drops=0), 0.0)
    state.beat(beat('journal', 3, 1, node='risk_gate', frames=30, signals=12), 0.0)
    state.decided(stamps((Stage.INGEST, 10**18), (Stage.COMMITTED, 10**18 + 2_500_000)))
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
    state.beat(beat('compute', 2, 2, 'compute', frames_received=33, frames_duplicate=3), 0.0)
    report = build_report(state, JOURNAL, facts(), {})
    assert (report['frames_received'], report['frames_arrived']) == (30, 33)


def test_after_a_restart_no_more_is_received_than_was_sent() -> None:
    state = full_state()
    state.beat(beat('compute', 9, 1, 'compute', frames_received=40), 0.0)
    report = build_report(state, JOURNAL, facts(), {})
    assert (report['frames_received'], report['frames_arrived']) == (30, 71)


def test_the_summary_of_a_run_without_any_frame_is_a_summary() -> None:
    report = build_report(GraphState(), JournalFigures(), facts(seconds={}), {})
    text = summary(report)
    assert 'decisions 0, signals 0' in text
    assert 'bar to signal' not in text


def test_the_report_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    report = build_report(full_state(), JOURNAL, facts(), {})
    path = tmp_path / 'new' / 'report.json'
    write_report(path, {'old': True})
    write_report(path, report)
    assert json.loads(path.read_text(encoding='utf-8')) == report
    assert [item.name for item in path.parent.iterdir()] == ['report.json']
