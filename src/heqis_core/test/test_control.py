# SPDX-License-Identifier: Apache-2.0
"""What supervisor and agents say comes back equal, and nothing else is understood."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core import control
from heqis_core.control import (
    Beats,
    Hello,
    Kill,
    KillSilent,
    NodeBeat,
    NodeState,
    Overview,
    ProcessBeat,
    Reboot,
    Result,
    Transit,
    Transition,
)
from heqis_core.errors import WireError

BEAT = ProcessBeat(
    board='compute',
    process='compute',
    host='orin',
    pid=41,
    start_id=(1 << 63) - 1,
    count=9,
    stamp_ns=1_700_000_000_000_000_000,
    boot_id='b',
    nodes=(NodeBeat('/heqis/compute', 3, 5, 6, 7, {'frames': 8}, {'infer': 9}, 'ort'),),
    proc_start=77,
    restarts=2,
)
FROM_AGENT = [
    Hello('compute', 1, 'orin', 'b', 40),
    Beats('compute', 1, (BEAT,)),
    Result(3, 'compute', 1, False, 'no such node', NodeState.INACTIVE),
]
FROM_SUPERVISOR = [
    Transit(3, '/heqis/compute', Transition.CONFIGURE, 60_000),
    Kill(4, 'compute', 41, 5, 'b', 77),
    KillSilent(5, 'compute', 15_000),
    Reboot(6, 'boot 1'),
    Overview(BEAT),
]


@pytest.mark.parametrize('message', FROM_AGENT)
def test_what_an_agent_says_comes_back_equal(message: control.FromAgent) -> None:
    assert control.decode_from_agent(control.encode(message)) == message


@pytest.mark.parametrize('message', FROM_SUPERVISOR)
def test_what_the_supervisor_says_comes_back_equal(message: control.FromSupervisor) -> None:
    assert control.decode_from_supervisor(control.encode(message)) == message


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_in_another_way(data: bytes) -> None:
    for decode in (control.decode_from_agent, control.decode_from_supervisor):
        for text in (data, bytes([control.CONTROL_VERSION]) + data):
            with contextlib.suppress(WireError):
                assert control.encode(decode(text))


def test_an_agent_cannot_give_commands_and_another_version_is_refused() -> None:
    command = control.encode(FROM_SUPERVISOR[1])
    with pytest.raises(WireError):
        control.decode_from_agent(command)
    with pytest.raises(WireError, match='version 9, this is 1; run the same version'):
        control.decode_from_supervisor(b'\x09' + command[1:])


def test_a_message_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match='more than'):
        control.encode(Result(1, 'b', 1, False, 'x' * control.MAX_MESSAGE_BYTES))
