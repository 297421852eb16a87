# SPDX-License-Identifier: Apache-2.0
"""Bridge node: frames out, decisions in and onto the topic, requests answered, ports refused.

The same with several boards: what is split and put together is in test_boards*.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import yaml
import zmq
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.decision import Reason
from heqis_core.frame import FeatureFrame
from heqis_core.io.zmq_link import ComputeLink
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_link import make_decisions, make_frame
from heqis_gateway.bridge_node import BridgeNode
from heqis_gateway.hub import Hub
from heqis_msgs.msg import Decisions, Event
from heqis_ros import qos
from heqis_ros.testing import Graph, ros_graph

NAMES = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')


BOARDS = ('jetson-1', 'jetson-2')
AWAY = int(Reason.BOARD_AWAY)


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


def boards_file(folder: Path) -> tuple[Path, dict[str, list[str]]]:
    endpoints = {name: [f'tcp://127.0.0.1:{free_port()}' for _ in NAMES] for name in BOARDS}
    fields = ('frames', 'decisions', 'requests')
    entries = [
        {'name': name, **dict(zip(fields, where, strict=True))}
        for name, where in endpoints.items()
    ]
    path = folder / 'boards.yaml'
    path.write_text(yaml.safe_dump({'boards': entries}), encoding='utf-8')
    return path, endpoints


def answer(board: ComputeLink, frame: FeatureFrame) -> None:
    decisions = make_decisions(frame.seq, len(frame.symbols))
    decisions.symbols, decisions.revision = frame.symbols, frame.revision
    assert board.send_decisions(decisions, 2000)


def test_two_boards_get_their_rows_and_their_decisions_are_one_message(tmp_path):
    """Then one of them says nothing for the lease: told in counters, events and info."""
    path, endpoints = boards_file(tmp_path)
    hub = Hub()
    with (
        ros_graph({'boards': str(path), 'board_lease_ms': 300}) as graph,
        ExitStack() as stack,
    ):
        node = graph.add(BridgeNode(hub))
        up(node)
        assert node.status().info == 'frames to boards jetson-1, jetson-2'
        heard: list[Decisions] = []
        events: list[Event] = []
        gate = graph.add(Node('gate'))
        gate.create_subscription(Decisions, 'decisions/proposed', heard.append, qos.DECISIONS)
        gate.create_subscription(Event, 'events', events.append, qos.EVENTS)
        boards = [stack.enter_context(closing(ComputeLink(*endpoints[name]))) for name in BOARDS]
        frame = make_frame(seq=0, symbols=9)
        wait_until(lambda: bool(hub.send and hub.send(frame)), 5)
        parts = [board.recv(2000) for board in boards]
        rows = [part.symbols for part in parts if part is not None]
        assert sorted([*rows[0], *rows[1]]) == sorted(frame.symbols)
        for board, part in zip(boards, parts, strict=True):
            assert part is not None
            answer(board, part)
        graph.spin_until(lambda: len(heard) == 1)
        assert tuple(heard[0].symbols) == frame.symbols

        hub.missed = lambda _request: MissedReply(7, 0, 1, 0, [frame])
        reply = boards[1].request(7, 0, 0, 2000)
        assert reply is not None
        assert [item.symbols for item in reply.frames] == [rows[1]]

        assert hub.send is not None
        assert hub.send(make_frame(seq=1, symbols=9))
        part = boards[0].recv(2000)
        assert part is not None
        answer(boards[0], part)
        graph.spin_until(lambda: len(heard) == 2)
        none = [s for s, r in zip(heard[1].symbols, heard[1].reasons, strict=True) if r == AWAY]
        assert sorted(none) == sorted(rows[1])
        graph.spin_until(lambda: bool(events))
        assert (events[0].kind, events[0].subject) == ('board_away', 'jetson-2')
        assert 'away: jetson-2' in node.status().info
        counters = node.vitals.counters()
        assert counters['board.jetson-2.away'] == counters['board.jetson-2.absences'] == 1
        assert counters['board.jetson-1.merged'] == 2
        assert counters['link_sent'] == 4

        unanswered = boards[1].recv(2000)
        assert unanswered is not None
        assert unanswered.seq == 1
        assert hub.send(make_frame(seq=2, symbols=9))
        for board in boards:
            part = board.recv(2000)
            assert part is not None
            answer(board, part)
        graph.spin_until(lambda: events[-1].kind == 'board_back')
        graph.spin_until(lambda: node.status().info == 'frames to boards jetson-1, jetson-2')


def test_a_key_for_one_board_beside_a_boards_file_is_refused(tmp_path):
    path, _ = boards_file(tmp_path)
    with ros_graph({'boards': str(path), 'peer_key_file': 'jetson.key'}) as graph:
        node = graph.add(BridgeNode(Hub()))
        assert node.trigger_configure() == Result.FAILURE
        assert 'peer_key_file' in node.status().info
        assert str(path) in node.status().info
