# SPDX-License-Identifier: Apache-2.0
"""Compute node: which bundles it refuses and why, holding without a supervisor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_compute.compute_node import ComputeNode
from heqis_core.bundle import Bundle
from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import open_engine
from heqis_core.io.zmq_link import GatewayLink
from heqis_core.link import MissedReply
from heqis_core.manifest import FileEntry, Manifest
from heqis_core.testing import free_port, simulated_table, wait_until
from heqis_core.testing_bundle import write_test_bundle
from heqis_msgs.msg import Heartbeat
from heqis_ros import qos
from heqis_ros.testing import Graph, ros_graph

N = 40


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_test_bundle(tmp_path / 'bundles')


def endpoints() -> dict[str, str]:
    names = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')
    return {name: f'tcp://127.0.0.1:{free_port()}' for name in names}


@contextmanager
def compute(**params: object) -> Iterator[tuple[Graph, ComputeNode]]:
    with ros_graph(params) as graph:
        yield graph, graph.add(ComputeNode())


def refusal(bundle: Path | str, **params: object) -> str:
    """Return why the node does not configure with a bundle; it stays unconfigured."""
    with compute(bundle=str(bundle), **{**endpoints(), **params}) as (_, node):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == 1
        return str(node.status().info)


def alter(bundle: Path, **changes: Any) -> None:
    """Change fields of the manifest and give it the id that fits."""
    path = bundle / 'manifest.json'
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, **changes)
    manifest = msgspec.structs.replace(manifest, bundle_id=manifest.content_id())
    path.write_bytes(msgspec.json.encode(manifest))


def test_no_bundle_is_refused_with_what_to_do():
    assert 'heqis train' in refusal('')


def test_a_missing_bundle_is_refused_by_path(tmp_path):
    assert str(tmp_path / 'nowhere') in refusal(tmp_path / 'nowhere')


def test_an_altered_model_file_is_refused_by_name_and_hash(bundle):
    model = bundle / 'linear.onnx'
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    why = refusal(bundle)
    assert 'linear.onnx' in why
    assert 'sha256' in why


def test_a_truncated_file_is_refused_by_name_and_size(bundle):
    model = bundle / 'encoder.onnx'
    model.write_bytes(model.read_bytes()[:-10])
    why = refusal(bundle)
    assert 'encoder.onnx' in why
    assert 'bytes' in why


def test_a_manifest_with_another_feature_spec_is_refused_by_field(bundle):
    features = Bundle.load(bundle).manifest.features
    alter(bundle, features=msgspec.structs.replace(features, spec_id='0' * 16))
    assert 'spec' in refusal(bundle)


def test_a_bundle_whose_golden_output_differs_is_refused_by_model_and_output(tmp_path):
    bundle = write_test_bundle(tmp_path / 'bundles')
    golden = bundle / 'golden.npz'
    with np.load(golden) as arrays:
        changed = dict(arrays)
    changed['linear/log_return'] = changed['linear/log_return'] + np.float32(0.5)
    files = Bundle.load(bundle).manifest.files
    np.savez(golden, **changed)
    # Hashes that fit: only running the model can tell.
    data = golden.read_bytes()
    entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    alter(bundle, files={**files, 'golden.npz': entry})
    why = refusal(bundle)
    assert 'golden' in why
    assert 'linear' in why
    assert 'log_return' in why


def test_a_port_that_is_taken_is_named_and_a_later_try_works(bundle):
    ports = endpoints()
    with zmq.Context() as context, context.socket(zmq.PULL) as taken:
        taken.bind(ports['frames_endpoint'])
        with compute(bundle=str(bundle), **ports) as (_, node):
            assert node.trigger_configure() == Result.FAILURE
            assert ports['frames_endpoint'] in node.status().info
            taken.unbind(ports['frames_endpoint'])
            wait_until(lambda: node.trigger_configure() == Result.SUCCESS, 5)


def test_an_open_endpoint_without_keys_is_refused(bundle):
    assert 'key' in refusal(bundle, frames_endpoint='tcp://0.0.0.0:0').lower()


class Gateway:
    """The other end of the link, with frames in its ring."""

    def __init__(self, bundle: Path, ports: dict[str, str]) -> None:
        table = simulated_table(3, N, seed=1)
        loaded = Bundle.load(bundle)
        assert loaded.encoder_path is not None
        pipeline = loaded.pipeline(table.symbols, open_engine(loaded.encoder_path))
        features_id = loaded.features_id('onnxruntime')
        self.frames = [
            FeatureFrame(
                'daily', 1, seq, int(table.event_time_ns[seq]), 0, features_id, table.symbols,
                pipeline.step(seq, table.block(seq)),
            )
            for seq in range(N)
        ]  # fmt: skip
        self.link = GatewayLink(*ports.values())
        self.got: dict[int, Decisions] = {}

    def close(self) -> None:
        self.link.close()

    def step(self, graph: Graph) -> None:
        graph.executor.spin_once(timeout_sec=0.0)
        self.link.serve(
            lambda r: MissedReply(1, 0, N, 0, self.frames[r.first_seq : r.last_seq + 1]), 5
        )
        decisions = self.link.recv_decisions(5)
        if decisions is not None:
            self.got[decisions.seq] = decisions

    def send(self, graph: Graph, seqs: range) -> None:
        for seq in seqs:
            wait_until(lambda seq=seq: self.link.send(self.frames[seq], 50), 5)
            self.step(graph)

    def receive(self, graph: Graph, n: int) -> None:
        def enough() -> bool:
            self.step(graph)
            return len(self.got) >= n

        wait_until(enough, 10, f'{n} answers')


def test_frames_are_answered_only_while_a_supervisor_is_heard(bundle):
    ports = endpoints()
    with (
        compute(bundle=str(bundle), supervisor_lease_ms=300, **ports) as (graph, node),
        closing(Gateway(bundle, ports)) as gateway,
    ):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        beat = graph.add(Node('supervisor'))
        pub = beat.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        graph.spin_until(lambda: pub.get_subscription_count() > 0)
        graph.spin_until(
            lambda: node.vitals.counters().get('holding') == 1, what='holding at first'
        )
        hold = {'now': False}
        timer = beat.create_timer(
            0.05, lambda: pub.publish(Heartbeat(process='supervisor', hold=hold['now']))
        )
        graph.spin_until(
            lambda: node.vitals.counters().get('holding') == 0, what='a supervisor is heard'
        )
        gateway.send(graph, range(20))
        gateway.receive(graph, 20)
        hold['now'] = True
        graph.spin_until(
            lambda: node.vitals.counters().get('holding') == 1, what='held by the supervisor'
        )
        hold['now'] = False
        graph.spin_until(lambda: node.vitals.counters().get('holding') == 0)
        beat.destroy_timer(timer)
        graph.spin_until(
            lambda: node.vitals.counters().get('holding') == 1, what='the supervisor is silent'
        )
        gateway.send(graph, range(20, 30))
        for _ in range(10):
            gateway.step(graph)
        assert len(gateway.got) == 20, 'no decision while nobody watches'
        beat.create_timer(0.05, lambda: pub.publish(Heartbeat(process='supervisor')))
        gateway.receive(graph, 30)


def test_while_output_is_held_frames_that_come_again_and_again_fill_no_queue(bundle):
    """A queue that is full when its connection ends can end the process (libzmq 4.3.5)."""
    ports = endpoints()
    with (
        compute(bundle=str(bundle), supervisor_lease_ms=60_000, **ports) as (graph, node),
        closing(Gateway(bundle, ports)) as gateway,
    ):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        graph.spin_until(lambda: node.vitals.counters().get('holding') == 1)
        for _ in range(16):
            gateway.send(graph, range(20))
        graph.spin_until(
            lambda: node.vitals.counters().get('link_received') == 320, what='the socket is empty'
        )
        assert node.vitals.counters()['holding'] == 1
        assert not gateway.got
        beat = graph.add(Node('supervisor'))
        pub = beat.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        beat.create_timer(0.05, lambda: pub.publish(Heartbeat(process='supervisor')))
        graph.spin_until(lambda: node.vitals.counters().get('holding') == 0)
        gateway.receive(graph, 20)
        assert sorted(gateway.got) == list(range(20))
        assert node.vitals.counters().get('held_dropped', 0) == 0
