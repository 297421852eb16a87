# SPDX-License-Identifier: Apache-2.0
"""Gateway node with `trusted_keys`: whose bundles it takes; refusals in status and as events."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.bundle import Bundle
from heqis_core.io.signing import sign_bundle, write_key_pair
from heqis_gateway.gateway_node import GatewayNode
from heqis_gateway.hub import Hub
from heqis_msgs.msg import Event
from heqis_ros import qos
from heqis_ros.testing import ros_graph


@pytest.mark.parametrize('signer', ['', 'stranger', 'factory'])
def test_only_a_bundle_signed_by_a_trusted_key_is_taken(
    bundle: Bundle, tmp_path: Path, signer: str
) -> None:
    public, _, _ = write_key_pair(tmp_path / 'trusted', 'factory')
    write_key_pair(tmp_path / 'other', 'stranger')
    path = Path(shutil.copytree(bundle.path, tmp_path / 'bundle'))
    if signer:
        folder = public.parent if signer == 'factory' else tmp_path / 'other'
        sign_bundle(path, folder / f'{signer}.secret.pem')
    params: dict[str, object] = {
        'bundle': str(path),
        'trusted_keys': str(public.parent),
        'state_dir': str(tmp_path / 'state'),
        'symbols': 2,
    }
    with ros_graph(params) as graph:
        heard: list[Event] = []
        listener = graph.add(Node('listener'))
        events = listener.create_subscription(Event, 'events', heard.append, qos.EVENTS)
        node = graph.add(GatewayNode(Hub()))
        graph.spin_until(lambda: events.get_publisher_count() > 0, what='the node is found')
        if signer == 'factory':
            assert node.trigger_configure() == Result.SUCCESS
            assert not heard
            return
        reason = "'stranger'" if signer else 'is not signed'
        assert node.trigger_configure() == Result.FAILURE
        assert reason in node.status().info
        graph.spin_until(lambda: len(heard) > 0, what='the event')
        assert (heard[0].kind, heard[0].source) == ('bundle_refused', '/gateway')
        assert reason in heard[0].text
