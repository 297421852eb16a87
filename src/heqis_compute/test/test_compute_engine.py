# SPDX-License-Identifier: Apache-2.0
"""The compute node and its judge on TensorRT: what is said, counted, decided and swapped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_compute.compute_node import ComputeNode
from heqis_compute.engines.probe import candidates
from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.engines.testing_cuda import FakeGpu
from heqis_compute.engines.testing_tensorrt import board_modules, fake_tensorrt
from heqis_compute.judge import Judge
from heqis_core.bundle import Bundle
from heqis_core.decision import Decisions
from heqis_core.engine_probe import probe
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import open_engine
from heqis_core.link import MissedReply
from heqis_core.testing import free_port, simulated_table
from heqis_core.testing_bundle import write_test_bundle
from heqis_msgs.srv import SwapBundle
from heqis_ros.testing import Graph, ros_graph

N = 40


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_test_bundle(tmp_path / 'bundles')


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the TensorRT of a board, which can be imported."""
    gpu = FakeGpu()
    module = fake_tensorrt('10.3', gpu)
    for name, part in board_modules(module, gpu).items():
        monkeypatch.setitem(sys.modules, name, part)
    return module


@contextmanager
def compute(bundle: Path, **params: object) -> Iterator[tuple[Graph, ComputeNode]]:
    names = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')
    ports = {name: f'tcp://127.0.0.1:{free_port()}' for name in names}
    cache = str(bundle.parent.parent / 'engines')
    state = {'state_dir': str(Path(cache) / 'state'), 'shadow_ms': 50}
    values = {'bundle': str(bundle), 'engine_cache': cache, **state, **ports, **params}
    with ros_graph(values) as graph:
        yield graph, graph.add(ComputeNode())


def test_on_a_board_the_node_says_tensorrt_and_counts_its_engines(bundle, trt):
    with compute(bundle) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        assert node.status().info == f'tensorrt, bundle {bundle.name}'
        graph.spin_until(lambda: node.vitals.counters().get('engine_built') == 1)
        assert node.vitals.counters()['engine_graphs_failed'] == 0
    assert list((bundle.parent.parent / 'engines').glob('*.engine'))


def test_without_cuda_the_node_runs_on_onnx_runtime_and_says_why(bundle, monkeypatch):
    for name in ('cuda', 'pycuda'):
        monkeypatch.setitem(sys.modules, name, None)
    with compute(bundle) as (_, node):
        assert node.trigger_configure() == Result.SUCCESS
        info = node.status().info
    assert info.startswith(f'onnxruntime, bundle {bundle.name}; tensorrt passed over: no CUDA')


def test_tensorrt_asked_for_by_name_is_refused_with_the_reason_where_it_cannot_run(bundle, trt):
    trt.__version__ = '8.4.0'
    with compute(bundle, engine='tensorrt') as (_, node):
        assert node.trigger_configure() == Result.FAILURE
        assert 'TensorRT 8.4.0 is too old' in node.status().info


def test_onnx_runtime_asked_for_by_name_leaves_tensorrt_alone(bundle, trt):
    with compute(bundle, engine='onnxruntime') as (_, node):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.status().info == f'onnxruntime, bundle {bundle.name}'
    assert trt.builds == 0


@pytest.mark.parametrize('engine', ['tensorrt', 'auto'])
def test_a_swap_to_a_bundle_that_tensorrt_gets_wrong(bundle, trt, tmp_path, engine):
    other = write_test_bundle(tmp_path / 'other', valid_for_s=60.0)
    with compute(bundle, engine=engine) as (graph, node):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        trt.scale = 1.1
        response = swap(graph, other)
        if engine == 'auto':
            assert response.accepted, response.message
            assert node.status().info.startswith(f'onnxruntime, bundle {other.name}; tensorrt')
            assert 'differs' in node.status().info
        else:
            assert not response.accepted
            assert 'golden' in response.message
            assert node.status().info == f'tensorrt, bundle {bundle.name}'


def swap(graph: Graph, path: Path) -> SwapBundle.Response:
    client = graph.add(Node('caller')).create_client(SwapBundle, 'compute/swap_bundle')
    graph.spin_until(client.service_is_ready)
    future = client.call_async(SwapBundle.Request(path=str(path)))
    graph.spin_until(future.done)
    return future.result()


def decide(path: Path, make_engine: Any) -> list[Decisions]:
    bundle = Bundle.load(path)
    table = simulated_table(3, N, seed=1)
    pipeline = bundle.pipeline(table.symbols, open_engine(bundle.encoder_path))
    features_id = bundle.features_id('onnxruntime')
    frames = [
        FeatureFrame(
            'daily', 1, seq, int(table.event_time_ns[seq]), 0, features_id, table.symbols,
            pipeline.step(seq, table.block(seq)),
        )
        for seq in range(N)
    ]  # fmt: skip
    judge = Judge(bundle, make_engine)
    answers = judge.on_frame(frames[0])
    while (question := judge.intake.wanted()) is not None:
        _, first, last = question
        answers += judge.on_reply(MissedReply(1, 0, N, 0, frames[first : last + 1]))
    for frame in frames[1:]:
        answers += judge.on_frame(frame)
    judge.close()
    return [answer.decisions for answer in answers if answer.predictions is not None]


def test_frames_get_the_same_decisions_on_both_engines(bundle, trt, tmp_path):
    loaded = Bundle.load(bundle)
    order = candidates('tensorrt', loaded, BuildFlags('fp32', False), tmp_path / 'cache')
    on_gpu = decide(bundle, probe(order).make_engine)
    on_cpu = decide(bundle, open_engine)
    assert len(on_gpu) == len(on_cpu) == N
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.score, other.score)
    assert any((decisions.action != 0).any() for decisions in on_gpu)
