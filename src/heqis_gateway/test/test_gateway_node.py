# SPDX-License-Identifier: Apache-2.0
"""Gateway node: what it refuses and why, warm-up, flow control, what was missed by service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.bars import BAR_FIELDS, BarStatus, BarTable
from heqis_core.bundle import Bundle
from heqis_gateway.gateway_node import GatewayNode
from heqis_gateway.hub import Hub
from heqis_msgs.msg import BarBlock, Committed, FeatureFrame
from heqis_msgs.srv import MissedBars, MissedFrames
from heqis_ros import qos
from heqis_ros.convert import msg_to_block, msg_to_frame
from heqis_ros.testing import Graph, ros_graph

SPLIT = 80


@pytest.fixture
def data(table: BarTable, tmp_path: Path) -> Path:
    """Write the table as one CSV of many symbols."""
    days = np.datetime_as_string(table.event_time_ns.astype('datetime64[ns]'), unit='D')
    lines = [','.join(('date', 'symbol', *BAR_FIELDS))]
    for t, day in enumerate(days):
        for s, name in enumerate(table.symbols):
            if table.status[t, s] == BarStatus.VALID:
                cells = ','.join(repr(float(value)) for value in table.values[t, :, s])
                lines.append(f'{day},{name},{cells}')
    path = tmp_path / 'bars.csv'
    path.write_text('\n'.join(lines) + '\n')
    return path


@contextmanager
def gateway(tmp_path: Path, **params: object) -> Iterator[tuple[Graph, GatewayNode]]:
    base: dict[str, object] = {
        'state_dir': str(tmp_path / 'state'),
        'source': 'file',
        'transport': 'dds',
        'pace_bars_per_s': 0.0,
        'resend_after_ms': 60000,
    }
    with ros_graph({**base, **params}) as graph:
        yield graph, graph.add(GatewayNode(Hub()))


def refusal(tmp_path: Path, **params: object) -> str:
    with gateway(tmp_path, **params) as (_, node):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == 1
        return str(node.status().info)


def test_a_node_without_bundle_or_data_says_what_to_set(bundle: Bundle, tmp_path: Path):
    assert 'heqis train' in refusal(tmp_path)
    assert 'nowhere.csv' in refusal(
        tmp_path, bundle=str(bundle.path), data=str(tmp_path / 'nowhere.csv')
    )


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', 'bars.csv'),
        ('a,b,c\n1,2,3\n', 'column'),
        ('date,open,high,low,close\nx,1,1,1,1\n', 'bars.csv'),
    ],
)
def test_a_file_without_market_data_is_refused_by_name(text, expected, bundle, tmp_path):
    path = tmp_path / 'bars.csv'
    path.write_text(text)
    why = refusal(tmp_path, bundle=str(bundle.path), data=str(path))
    assert 'bars.csv' in why
    assert expected in why


@pytest.mark.parametrize(
    'params', [{'max_in_flight': 0}, {'transport': 'pigeon'}, {'max_in_fligth': 3}]
)
def test_a_parameter_out_of_range_or_unknown_is_named(params, bundle, data, tmp_path):
    why = refusal(tmp_path, bundle=str(bundle.path), data=str(data), **params)
    assert next(iter(params)) in why


class Listener:
    """A consumer on DDS: hears frames and bars, acknowledges, asks for missed frames."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node: Any = graph.add(Node('listener'))
        self.frames: dict[int, Any] = {}
        self.bars: list[int] = []
        self.node.create_subscription(FeatureFrame, 'features', self.hear, qos.FRAMES)
        self.node.create_subscription(BarBlock, 'bars', self.hear_bars, qos.BARS)
        self.committed = self.node.create_publisher(Committed, 'committed', qos.COMMITTED)
        self.client = self.node.create_client(MissedFrames, 'gateway/missed_frames')
        self.acknowledge = True

    def hear(self, msg: FeatureFrame) -> None:
        frame = msg_to_frame(msg)
        self.frames[frame.seq] = frame
        if self.acknowledge:
            self.close([frame.seq])

    def hear_bars(self, msg: BarBlock) -> None:
        self.bars.append(msg.seq)

    def close(self, seqs: list[int]) -> None:
        self.committed.publish(Committed(stream='daily', epoch=1, seq=seqs))

    def missed(self, first: int, last: int) -> MissedFrames.Response:
        request = MissedFrames.Request(epoch=0, first_seq=first, last_seq=last)
        future = self.client.call_async(request)
        self.graph.spin_until(future.done)
        return future.result()


def test_a_finite_source_streams_what_follows_the_training_data_and_ends(
    bundle, data, table, tmp_path
):
    with gateway(tmp_path, bundle=str(bundle.path), data=str(data)) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        listener = Listener(graph)
        graph.spin_until(lambda: listener.committed.get_subscription_count() == 1)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(
            lambda: node.vitals.counters().get('frames_closed') == len(table) - SPLIT, 20
        )
        counters = node.vitals.counters()
    assert sorted(listener.frames) == list(range(SPLIT, len(table)))
    times = [listener.frames[seq].event_time_ns for seq in sorted(listener.frames)]
    assert times == table.event_time_ns[SPLIT:].tolist()
    assert counters['source_done'] == 1
    assert counters['frames_open'] == 0
    assert counters['frames_sent'] == len(table) - SPLIT
    assert counters['bars_in'] == int((table.status == BarStatus.VALID).sum())
    assert counters['bars_warmup'] == int((table.status[:SPLIT] == BarStatus.VALID).sum())
    assert listener.bars


def test_open_frames_bound_the_stream_and_the_service_has_what_was_missed(bundle, data, tmp_path):
    config = {'bundle': str(bundle.path), 'data': str(data), 'max_in_flight': 6}
    with gateway(tmp_path, **config) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        listener = Listener(graph)
        listener.acknowledge = False
        graph.spin_until(lambda: listener.committed.get_subscription_count() == 1)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: node.vitals.counters().get('frames_open') == 6)
        graph.spin_until(listener.client.service_is_ready)
        reply = listener.missed(SPLIT - 3, SPLIT + 1)
        assert [frame.seq for frame in reply.frames] == list(range(SPLIT - 3, SPLIT + 2))
        assert (reply.first_open_seq, reply.next_seq) == (SPLIT, SPLIT + 6)
        assert reply.epoch == node.start_id
        position = listener.missed(1, 0)
        assert not position.frames
        listener.close([SPLIT, SPLIT + 1])
        graph.spin_until(lambda: node.vitals.counters().get('frames_sent') == 8)


def test_data_that_ends_before_the_training_did_says_that_nothing_is_left(
    bundle, table, data, tmp_path
):
    lines = data.read_text().splitlines()
    last = str(np.datetime64(int(table.event_time_ns[SPLIT - 1]), 'ns'))[:10]
    data.write_text('\n'.join([lines[0], *(x for x in lines[1:] if x[:10] <= last)]) + '\n')
    with gateway(tmp_path, bundle=str(bundle.path), data=str(data)) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: 'training' in node.status().info, 20)


class LateReader:
    """A reader of bars that comes late: it subscribes to nothing and asks for what was."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node: Any = graph.add(Node('late_reader'))
        self.client = self.node.create_client(MissedBars, 'gateway/missed_bars')
        graph.spin_until(self.client.service_is_ready)

    def ask(self, first: int, last: int = 2**64 - 1) -> MissedBars.Response:
        future = self.client.call_async(MissedBars.Request(first_seq=first, last_seq=last))
        self.graph.spin_until(future.done)
        return future.result()

    def pages(self, first: int) -> list[list[BarBlock]]:
        found = []
        while blocks := self.ask(first).blocks:
            found.append(blocks)
            first = blocks[-1].seq + 1
        return found


def assert_bars_of(table: BarTable, first: int, messages: list[BarBlock]) -> None:
    assert [msg.seq for msg in messages] == list(range(first, first + len(messages)))
    for msg in messages:
        block = msg_to_block(msg)
        assert block.event_time_ns == table.event_time_ns[msg.seq]
        np.testing.assert_array_equal(block.values, table.values[msg.seq])


def test_bars_without_a_subscriber_are_there_for_a_late_reader_with_those_of_the_warm_up(
    bundle, data, table, tmp_path
):
    with gateway(tmp_path, bundle=str(bundle.path), data=str(data)) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        reader = LateReader(graph)
        before = reader.ask(0)
        assert (before.oldest_seq, before.next_seq, before.blocks) == (0, 0, [])
        assert node.trigger_activate() == Result.SUCCESS
        # Nobody takes frames: the first one after the warm-up waits, and its bars are the last.
        graph.spin_until(lambda: node.vitals.counters().get('send_waits', 0) > 0, 20)
        reply = reader.ask(SPLIT - 2)
        assert_bars_of(table, SPLIT - 2, reply.blocks)
        assert (reply.oldest_seq, reply.next_seq) == (0, SPLIT + 1)
        assert (reply.stream, reply.epoch) == ('daily', node.start_id)
        assert {(msg.stream, msg.epoch) for msg in reply.blocks} == {('daily', node.start_id)}
        assert_bars_of(table, 3, reader.ask(3, 5).blocks)
        position = reader.ask(1, 0)
        assert (position.oldest_seq, position.next_seq) == (0, SPLIT + 1)
        assert not position.blocks
        assert not reader.ask(SPLIT + 1).blocks
        assert node.vitals.counters()['bar_history_dropped'] == 0


def test_a_late_reader_gets_all_bars_page_by_page_and_a_restart_begins_after_the_checkpoint(
    bundle, data, table, tmp_path
):
    config = {'bundle': str(bundle.path), 'data': str(data), 'max_in_flight': 6}
    with gateway(tmp_path, **config) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        reader = LateReader(graph)
        listener = Listener(graph)
        listener.acknowledge = False
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: node.vitals.counters().get('frames_open') == 6)
        pages = reader.pages(0)
        assert [len(page) for page in pages] == [64, SPLIT + 6 - 64]
        assert_bars_of(table, 0, [msg for page in pages for msg in page])

    with gateway(tmp_path, **config) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        reader = LateReader(graph)
        position = reader.ask(1, 0)
        assert (position.oldest_seq, position.next_seq) == (SPLIT + 6, SPLIT + 6)
        listener = Listener(graph)
        graph.spin_until(lambda: listener.committed.get_subscription_count() == 1)
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: node.vitals.counters().get('source_done') == 1, 20)
        pages = reader.pages(0)
        assert [len(page) for page in pages] == [64, len(table) - SPLIT - 6 - 64]
        assert_bars_of(table, SPLIT + 6, [msg for page in pages for msg in page])
