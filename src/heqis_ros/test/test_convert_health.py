# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and events through messages and CDR bytes and back."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message

from heqis_core.control import Event, Level, NodeBeat, NodeState, ProcessBeat
from heqis_core.errors import WireError
from heqis_msgs import msg as m
from heqis_ros import convert_health

UINT64 = st.integers(0, 2**64 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT32 = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=8)
COUNTS = st.dictionaries(TEXT, UINT64, max_size=4)
NODES = st.builds(
    NodeBeat,
    name=TEXT,
    state=st.sampled_from([1, 2, 3, 4, 10]),
    spin_count=UINT64,
    progress=UINT64,
    pending=UINT32,
    counters=COUNTS,
    stages_us=COUNTS,
    info=TEXT,
)
BEATS = st.builds(
    ProcessBeat,
    board=TEXT,
    process=TEXT,
    host=TEXT,
    pid=UINT32,
    start_id=UINT64,
    count=UINT64,
    stamp_ns=INT64,
    boot_id=TEXT,
    hold=st.booleans(),
    nodes=st.lists(NODES, max_size=3).map(tuple),
)
EVENTS = st.builds(
    Event,
    stamp_ns=INT64,
    level=st.sampled_from(Level),
    source=TEXT,
    kind=TEXT,
    subject=TEXT,
    text=TEXT,
)


def over_dds(message):
    return deserialize_message(serialize_message(message), type(message))


@given(BEATS)
def test_heartbeats_come_back(beat):
    assert convert_health.msg_to_beat(over_dds(convert_health.beat_to_msg(beat))) == beat


@given(EVENTS)
def test_events_come_back(event):
    assert convert_health.msg_to_event(over_dds(convert_health.event_to_msg(event))) == event


def test_what_does_not_pair_up_is_refused():
    node = m.NodeStatus(name='/heqis/x', counter_names=['a', 'b'], counter_values=array('Q', [1]))
    with pytest.raises(WireError, match='/heqis/x: 2 counter_names and 1 counter_values'):
        convert_health.msg_to_beat(m.Heartbeat(nodes=[node]))
    with pytest.raises(WireError, match=r'Event.level: 9, expected 0, 1 or 2'):
        convert_health.msg_to_event(m.Event(level=9))


def test_codes_of_core_and_messages_are_the_same():
    names = ('UNCONFIGURED', 'INACTIVE', 'ACTIVE', 'FINALIZED', 'TRANSITIONING')
    assert {name: int(NodeState[name]) for name in names} == {
        name: getattr(m.NodeStatus, name) for name in names
    }
    assert {level.name: int(level) for level in Level} == {
        name: getattr(m.Event, name) for name in ('INFO', 'WARN', 'ERROR')
    }
