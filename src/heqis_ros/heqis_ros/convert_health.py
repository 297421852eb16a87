# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and events: the control path's plain data to messages and back."""

from __future__ import annotations

from array import array

from heqis_core.control import Event, Level, NodeBeat, ProcessBeat
from heqis_core.errors import WireError
from heqis_msgs import msg as m


def msg_to_beat(message: m.Heartbeat) -> ProcessBeat:
    """Return a heartbeat as plain data; raises WireError if names and values do not pair up."""
    return ProcessBeat(
        board=message.board,
        process=message.process,
        host=message.host,
        pid=message.pid,
        start_id=message.start_id,
        count=message.count,
        stamp_ns=message.stamp_ns,
        boot_id=message.boot_id,
        hold=message.hold,
        nodes=tuple(_msg_to_node_beat(node) for node in message.nodes),
    )


def _msg_to_node_beat(node: m.NodeStatus) -> NodeBeat:
    return NodeBeat(
        name=node.name,
        state=node.state,
        spin_count=node.spin_count,
        progress=node.progress,
        pending=node.pending,
        counters=_pairs(node, 'counter_names', 'counter_values'),
        stages_us=_pairs(node, 'stage_names', 'stage_last_us'),
        info=node.info,
        degraded=node.degraded,
    )


def _pairs(node: m.NodeStatus, names: str, values: str) -> dict[str, int]:
    keys, numbers = getattr(node, names), getattr(node, values)
    if len(keys) != len(numbers):
        raise WireError(f'NodeStatus {node.name}: {len(keys)} {names} and {len(numbers)} {values}')
    return dict(zip(keys, numbers, strict=True))


def beat_to_msg(beat: ProcessBeat) -> m.Heartbeat:
    """Return a heartbeat message, to be published again on another board."""
    result = m.Heartbeat()
    for field in (
        'board',
        'process',
        'host',
        'pid',
        'start_id',
        'count',
        'stamp_ns',
        'boot_id',
        'hold',
    ):
        setattr(result, field, getattr(beat, field))
    result.nodes = [_node_beat_to_msg(node) for node in beat.nodes]
    return result


def _node_beat_to_msg(node: NodeBeat) -> m.NodeStatus:
    result = m.NodeStatus()
    for field in ('name', 'state', 'spin_count', 'progress', 'pending', 'info', 'degraded'):
        setattr(result, field, getattr(node, field))
    result.counter_names = list(node.counters)
    result.counter_values = array('Q', node.counters.values())
    result.stage_names = list(node.stages_us)
    result.stage_last_us = array('Q', node.stages_us.values())
    return result


def event_to_msg(event: Event) -> m.Event:
    """Return an event as a message."""
    result = m.Event()
    for field in ('stamp_ns', 'source', 'kind', 'subject', 'text'):
        setattr(result, field, getattr(event, field))
    result.level = int(event.level)
    return result


def msg_to_event(message: m.Event) -> Event:
    """Return an event; raises WireError for a level that does not exist."""
    try:
        level = Level(message.level)
    except ValueError as error:
        raise WireError(f'Event.level: {message.level}, expected 0, 1 or 2') from error
    return Event(
        message.stamp_ns, level, message.source, message.kind, message.subject, message.text
    )
