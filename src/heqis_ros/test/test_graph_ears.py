# SPDX-License-Identifier: Apache-2.0
"""Each topic of the graph ends in the state, and what does not fit together is left out."""

from __future__ import annotations

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from heqis_core.control import Level, NodeState
from heqis_core.decision import Action
from heqis_core.frame import Stage
from heqis_core.graph_state import GraphState
from heqis_core.testing_graph import make_beat, make_stamps
from heqis_msgs.msg import Decisions, Event, Heartbeat, Signal, Signals
from heqis_ros.convert_health import beat_to_msg
from heqis_ros.graph_ears import GraphEars


@pytest.fixture
def ears() -> GraphEars:
    return GraphEars(GraphState())


def beat(count: int, **counters: int) -> Heartbeat:
    return beat_to_msg(make_beat('gateway', 1, count, **counters))


def test_a_heartbeat_is_a_node_heard_now(ears):
    before_s = time.monotonic()
    ears.heartbeat(beat(1, bars_in=7))
    node = ears.state.nodes['gateway']
    assert (node.state, node.counters, node.info) == (
        NodeState.ACTIVE,
        {'bars_in': 7},
        'gateway 1',
    )
    assert before_s <= node.heard_s <= time.monotonic()
    assert ears.refused == 0


@pytest.mark.parametrize('names', [('counter_names', []), ('stage_names', ['a', 'b'])])
def test_a_heartbeat_whose_counters_do_not_pair_up_is_counted_and_left_out(names, ears):
    ears.heartbeat(beat(1, bars_in=7))
    broken = beat(2, bars_in=8)
    setattr(broken.nodes[0], *names)
    ears.heartbeat(broken)
    assert ears.refused == 1
    assert ears.state.nodes['gateway'].counters == {'bars_in': 7}
    assert ears.state.nodes['gateway'].info == 'gateway 1'
    ears.heartbeat(beat(3, bars_in=9))
    assert ears.state.nodes['gateway'].counters == {'bars_in': 9}
    assert ears.refused == 1


def test_one_broken_node_of_a_process_leaves_out_the_whole_heartbeat(ears):
    message = beat(1)
    message.nodes.append(beat_to_msg(make_beat('gateway', 1, 1, node='bridge', drops=1)).nodes[0])
    message.nodes[1].counter_names = ['one', 'two']
    ears.heartbeat(message)
    assert ears.refused == 1
    assert ears.state.nodes == {}


def test_a_lifecycle_state_that_does_not_exist_is_unknown_not_an_end(ears):
    message = beat(1)
    message.nodes[0].state = 77
    ears.heartbeat(message)
    assert ears.state.nodes['gateway'].state == NodeState.UNKNOWN
    assert ears.refused == 0


def test_decisions_are_the_latency_of_each_stage(ears):
    stamps = make_stamps((Stage.INGEST, 1_000), (Stage.COMMITTED, 3_001_000))
    ears.decisions(Decisions(stamps=stamps))
    ears.decisions(Decisions(stamps=make_stamps((Stage.INGEST, 5_000))))
    assert ears.state.latency_us() == {
        'committed': (3000.0, 3000.0),
        'ingest_to_signal': (3000.0, 3000.0),
    }


def test_signals_are_kept_with_their_names(ears):
    signal = Signal(symbol='600519.SH', action=int(Action.BUY), score=0.5)
    signal.probabilities = np.zeros(3, np.float32)
    ears.signals(Signals(signals=[signal]))
    ears.signals(Signals())
    assert list(ears.state.signals) == [('600519.SH', 'BUY', 0.5)]
    assert ears.state.symbols == {'600519.SH'}


def test_an_event_is_known_and_one_of_a_level_that_does_not_exist_is_left_out(ears):
    fields = {'source': 'supervisor', 'kind': 'node_lost', 'subject': 'compute', 'text': 'gone'}
    ears.event(Event(stamp_ns=5, level=2, **fields))
    ears.event(Event(level=9, **fields))
    (event,) = ears.state.events
    assert (event.stamp_ns, event.level, event.subject) == (5, Level.ERROR, 'compute')
    assert ears.state.error_count == 1
    assert ears.refused == 1


def test_diagnostics_keep_the_last_word_on_each_part_and_stale_is_an_error(ears):
    def status(name: str, level: bytes, text: str) -> DiagnosticStatus:
        return DiagnosticStatus(name=name, level=level, message=text)

    ears.diagnostics(
        DiagnosticArray(
            status=[
                status('heqis/board/gateway', DiagnosticStatus.OK, 'fine'),
                status('heqis/board/compute', DiagnosticStatus.STALE, 'silent'),
                status('heqis/node/gateway', DiagnosticStatus.ERROR, 'lost'),
                status('somebody else', b'\xff', 'odd'),
            ]
        )
    )
    ears.diagnostics(
        DiagnosticArray(status=[status('heqis/node/gateway', DiagnosticStatus.WARN, 'back')])
    )
    assert ears.state.diagnostics == {
        'heqis/board/gateway': (Level.INFO, 'fine'),
        'heqis/board/compute': (Level.ERROR, 'silent'),
        'heqis/node/gateway': (Level.WARN, 'back'),
        'somebody else': (Level.ERROR, 'odd'),
    }
