# SPDX-License-Identifier: Apache-2.0
"""Heartbeats are taken when asked for, and only those that are wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rclpy.node import Node
from rclpy.serialization import serialize_message

from heqis_msgs.msg import Heartbeat, NodeStatus
from heqis_ros import qos
from heqis_ros.ears import Ears, heartbeat_source
from heqis_ros.node import ManagedNode
from heqis_ros.params import ParamTable
from heqis_ros.testing import ros_graph

NAMES = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=40)


class Owner(ManagedNode):
    PARAMS = ParamTable('owner', [])


def test_wanted_heartbeats_are_taken_in_order_and_the_executor_sleeps() -> None:
    with ros_graph() as graph:
        owner = graph.add(Owner(namespace='/somewhere'))
        ears = Ears(owner, lambda board, process: (board, process) == ('gateway', 'supervisor'))
        node = graph.add(Node('other', namespace='/somewhere'))
        pub = node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        graph.spin_until(lambda: pub.get_subscription_count() == 1)
        assert ears.take() == []
        for count in range(3):
            pub.publish(Heartbeat(board='gateway', process='supervisor', count=count))
            pub.publish(Heartbeat(board='compute', process='supervisor', count=count))
            pub.publish(Heartbeat(board='gateway', process='journal', count=count))
        found: list[Heartbeat] = []
        graph.spin_until(lambda: len(found) >= 3 or bool(found.extend(ears.take())))
        assert [beat.count for beat in found] == [0, 1, 2]
        assert {beat.process for beat in found} == {'supervisor'}
        ears.close()
        graph.spin_until(lambda: pub.get_subscription_count() == 0)


@given(NAMES, NAMES)
def test_board_and_process_are_what_was_serialized(board: str, process: str) -> None:
    message = Heartbeat(board=board, process=process, host='h', nodes=[NodeStatus(name='n')])
    assert heartbeat_source(serialize_message(message)) == (board, process)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    assert len(heartbeat_source(data)) == 2


def test_big_endian_is_read_too() -> None:
    data = b'\x00\x00\x00\x00' + b'\x00\x00\x00\x03ab\x00\x00' + b'\x00\x00\x00\x02c\x00'
    assert heartbeat_source(data) == ('ab', 'c')
