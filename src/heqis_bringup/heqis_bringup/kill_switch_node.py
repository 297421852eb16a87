# SPDX-License-Identifier: Apache-2.0
"""Asks a running risk gate for its kill switch: by its service, or by what its heartbeat says."""

from __future__ import annotations

from heqis_bringup.caller_node import caller, domain
from heqis_core.control import NodeBeat, NodeState
from heqis_core.errors import ConfigError, WireError
from heqis_msgs.msg import Heartbeat
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.convert_health import msg_to_beat

USE_THE_FILE = (
    'what stops everything without it: make the file of its parameter kill_file on the gateway '
    'board (touch run/KILL, in the folder where `heqis up` was started; with state:=DIR, DIR/KILL)'
)


def call_switch(node: str, engage: bool, reason: str, timeout_s: float) -> tuple[bool, str]:
    """Engage or clear the switch; return whether it is engaged now, and the gate's word.

    Raises ConfigError if there is no such gate, or no answer in time.
    """
    request = KillSwitch.Request(engage=engage, reason=reason)
    with caller('kill_switch_caller', timeout_s) as calling:
        found, answer = calling.find_and_call(KillSwitch, f'{node}/kill_switch', request)
    if not found:
        raise ConfigError(_not_there(node))
    if answer is None:
        raise ConfigError(
            f'{node} has not answered within {timeout_s:g} s, and may still do it; {USE_THE_FILE}'
        )
    return answer.engaged, answer.message


def hear_switch(node: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether the switch is engaged, and the gate's word, from its next heartbeat.

    Raises ConfigError if the gate is not heard in time, or does not let anything through anyway.
    """
    heard: list[NodeBeat] = []

    def take(message: Heartbeat) -> None:
        try:
            heard.extend(beat for beat in msg_to_beat(message).nodes if beat.name == node)
        except WireError:
            return  # of another version: the time-out says that the gate is not heard

    with caller('kill_switch_caller', timeout_s) as calling:
        topic = f'{node.rpartition("/")[0]}/heartbeat'
        calling.node.create_subscription(Heartbeat, topic, take, qos.best_effort(qos.HEARTBEAT))
        if not calling.spin_until(lambda: bool(heard)):
            raise ConfigError(_not_there(node))
    beat = heard[-1]
    if beat.state != NodeState.ACTIVE or 'kill_switch' not in beat.counters:
        raise ConfigError(f'{node} is not active ({beat.info}): no signal goes out through it now')
    engaged = beat.counters['kill_switch'] > 0
    return engaged, beat.info.removeprefix('kill switch ') if engaged else 'not engaged'


def _not_there(node: str) -> str:
    return (
        f'there is no risk gate {node} on this machine in ROS domain {domain()}; is it running, '
        'on the gateway board, under another name (--node) or in another ROS_DOMAIN_ID? '
        f'{USE_THE_FILE}'
    )
