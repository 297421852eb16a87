# SPDX-License-Identifier: Apache-2.0
"""The look into serialized heartbeats agrees with the middleware, and survives any bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import serialize_message

from heqis_msgs.msg import Heartbeat, NodeStatus
from heqis_supervisor.cdr import heartbeat_source

NAMES = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=40)


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
