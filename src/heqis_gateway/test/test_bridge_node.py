# SPDX-License-Identifier: Apache-2.0
"""Bridge node: frames out, decisions in and onto the topic, requests answered, ports refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import zmq
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.io.zmq_link import ComputeLink
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_link import make_decisions, make_frame
from heqis_gateway.bridge_node import BridgeNode
from heqis_gateway.hub import Hub
from heqis_msgs.msg import Decisions
from heqis_ros import qos
from heqis_ros.testing import Graph, ros_graph

NAMES = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')


@contextmanager
def bridge() -> Iterator[tuple[Graph, BridgeNode, Hub, list[str]]]:
    endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in NAMES]
    hub = Hub()
    with ros_graph(dict(zip(NAMES, endpoints, strict=True))) as graph:
        yield graph, graph.add(BridgeNode(hub)), hub, endpoints


def up(node: BridgeNode) -> None:
    assert node.trigger_configure() == Result.SUCCESS
    assert node.trigger_activate() == Result.SUCCESS


def test_a_frame_waits_for_its_peer_and_then_arrives_whole():
    with bridge() as (_, node, hub, endpoints):
        up(node)
        assert hub.send is not None
        frame = make_frame(seq=3)
        assert not hub.send(frame)
        with closing(ComputeLink(*endpoints)) as compute:
            wait_until(lambda: bool(hub.send and hub.send(frame)), 5)
            got = compute.recv(2000)
        assert got is not None
        assert got.seq == 3
        assert node.vitals.counters().get('failures', 0) == 0


def test_decisions_wait_in_the_socket_until_someone_listens_to_the_topic():
    with bridge() as (graph, node, _, endpoints):
        up(node)
        heard: list[int] = []
        with closing(ComputeLink(*endpoints)) as compute:
            for seq in range(5):
                wait_until(lambda seq=seq: compute.send_decisions(make_decisions(seq=seq), 200), 5)
            graph.spin_for(0.3)
            assert node.vitals.counters().get('decisions_received', 0) == 0
            gate = graph.add(Node('gate'))
            gate.create_subscription(
                Decisions, 'decisions/proposed', lambda msg: heard.append(msg.seq), qos.DECISIONS
            )
            graph.spin_until(lambda: len(heard) == 5)
        assert heard == list(range(5))


def test_requests_are_answered_by_the_gateway_node_and_wait_while_it_is_away():
    with bridge() as (graph, node, hub, endpoints):
        up(node)
        asked: list[MissedRequest] = []

        def missed(request: MissedRequest) -> MissedReply:
            asked.append(request)
            return MissedReply(7, 0, 10, 4, [make_frame(seq=2), make_frame(seq=3)])

        with closing(ComputeLink(*endpoints)) as compute:
            assert compute.request(7, 2, 3, 300) is None
            hub.missed = missed
            wait_until(lambda: compute.request(7, 2, 3, 1000) is not None, 5)
            reply = compute.request(7, 2, 3, 1000)
        assert reply is not None
        assert [frame.seq for frame in reply.frames] == [2, 3]
        assert (reply.epoch, reply.first_open_seq, reply.next_seq) == (7, 4, 10)
        assert asked[-1].last_seq == 3
        graph.spin_for(0.2)
        assert node.vitals.counters()['requests_served'] >= 2


def test_a_port_that_is_taken_is_named_and_nothing_stays_behind():
    with bridge() as (_, node, hub, endpoints), zmq.Context() as context:
        with context.socket(zmq.PULL) as taken:
            taken.bind(endpoints[1])
            assert node.trigger_configure() == Result.FAILURE
            assert endpoints[1] in node.status().info
            assert hub.send is None
        wait_until(lambda: node.trigger_configure() == Result.SUCCESS, 5)
