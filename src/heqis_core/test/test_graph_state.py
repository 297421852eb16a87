# SPDX-License-Identifier: Apache-2.0
"""What heartbeats and decisions become: a graph's state, also over restarts, and bounded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.control import Event, Level
from heqis_core.frame import Stage
from heqis_core.graph_state import GraphState
from heqis_core.testing_graph import make_beat, make_stamps

ACTIVE = 3


def test_a_heartbeat_counts_once_however_often_it_is_heard() -> None:
    state = GraphState()
    assert state.beat(make_beat('compute', 1, 5, frames_received=7), 0.0)
    assert not state.beat(make_beat('compute', 1, 5, frames_received=7), 0.1)
    assert not state.beat(make_beat('compute', 1, 4, frames_received=6), 0.2)
    assert state.total('frames_received', 'compute') == 7


def test_counters_go_on_over_a_restart_and_gauges_do_not() -> None:
    state = GraphState()
    state.beat(make_beat('compute', 1, 1, frames_received=10, holding=1), 0.0)
    state.beat(make_beat('compute', 2, 1, frames_received=0, holding=0), 1.0)
    state.beat(make_beat('compute', 2, 2, frames_received=3, holding=1), 1.1)
    assert not state.beat(make_beat('compute', 1, 2, frames_received=99), 1.2)
    assert state.total('frames_received', 'compute') == 13
    assert state.total('holding', 'compute') == 1
    assert state.restarts('compute') == 1


def test_the_gateway_counts_on_from_its_checkpoint_by_itself() -> None:
    state = GraphState()
    state.beat(make_beat('gateway', 1, 1, bars_in=10), 0.0)
    state.beat(make_beat('gateway', 2, 1, bars_in=9), 1.0)
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
            state.beat(make_beat('compute', start_id, count, gaps=value), 0.0)
    assert state.total('gaps') == sum(values[-1] for values in starts)
    assert state.restarts('compute') == len(starts) - 1


def test_agents_of_two_boards_are_two_processes() -> None:
    state = GraphState()
    state.beat(make_beat('agent', 1, 1, 'gateway', 'gateway_agent'), 0.0)
    state.beat(make_beat('agent', 2, 1, 'compute', 'compute_agent'), 0.0)
    assert state.restarts('gateway_agent') == state.restarts('compute_agent') == 0
    assert state.all_active(('gateway_agent', 'compute_agent'), 0.5)


def test_a_silent_node_is_lost_and_not_active() -> None:
    state = GraphState()
    state.beat(make_beat('compute', 1, 1), 10.0)
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
    state.beat(make_beat('gateway', 1, 1, state=node_state, **counters), 0.0)
    assert state.stream_done() is done


def test_latency_is_taken_from_the_last_stage_that_was_reached() -> None:
    state = GraphState()
    start = 10**18
    for extra in range(100):
        state.decided(
            make_stamps(
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
    row = make_stamps((Stage.INGEST, 1), (Stage.COMMITTED, 1_001))
    for index in range(10_000):
        state.decided(row)
        state.happened(Event(0, Level.ERROR, 's', 'k', 'x', str(index)))
        state.signalled(0.0, [('A', 'BUY', 0.5)])
    assert state.latency_us()['ingest_to_signal'] == (1.0, 1.0)
    assert len(state.errors) < 100
    assert len(state.signals) < 100
    assert state.error_count == 10_000
    assert state.errors[-1].endswith('9999')


def test_output_is_held_while_the_supervisor_says_so() -> None:
    state = GraphState()
    assert not state.hold
    for count, hold in enumerate((True, False), 1):
        held = msgspec.structs.replace(make_beat('supervisor', 1, count), hold=hold)
        state.beat(held, 0.0)
        assert state.hold is hold


def test_restarts_are_the_supervisors_count_when_it_has_watched_for_longer() -> None:
    state = GraphState()
    state.beat(make_beat('compute', 1, 1, 'compute'), 0.0)
    state.beat(make_beat('supervisor', 9, 1, **{'restarts.compute/compute': 4}), 0.0)
    assert state.restarts('compute') == 4
    for start_id in range(2, 8):
        state.beat(make_beat('compute', start_id, 1, 'compute'), 0.0)
    assert state.restarts('compute') == 6


def test_the_drops_of_a_node_are_what_its_queues_lost_and_not_what_it_did() -> None:
    state = GraphState()
    state.beat(make_beat('journal', 1, 1, predictions_dropped=2, overflow=3, frames=99), 0.0)
    assert state.nodes['journal'].drops == 5


def test_a_part_has_the_level_and_the_words_of_the_last_report() -> None:
    state = GraphState()
    state.diagnosed('heqis/node/compute', Level.ERROR, 'lost')
    state.diagnosed('heqis/node/compute', Level.INFO, 'active')
    assert state.diagnostics == {'heqis/node/compute': (Level.INFO, 'active')}
