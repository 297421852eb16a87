# SPDX-License-Identifier: Apache-2.0
"""`heqis bundle swap` against a real compute node: what is printed, and the exit status."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result

from heqis_bringup import bundle_swap
from heqis_compute.compute_node import ComputeNode
from heqis_compute.testing_swap import write_pair
from heqis_core.errors import ConfigError
from heqis_core.testing import free_port
from heqis_ros.testing import Graph, private_domain, ros_graph


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp('bundles'))


@pytest.fixture
def graph(pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Graph]:
    names = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')
    ports = {name: f'tcp://127.0.0.1:{free_port()}' for name in names}
    params = {'bundle': str(pair[0]), 'state_dir': str(tmp_path), 'shadow_ms': 50}
    with ros_graph({**ports, **params, 'require_supervisor': False}) as graph:
        node = graph.add(ComputeNode())
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        yield graph


def heqis_bundle(*words: str) -> int:
    parser = argparse.ArgumentParser(prog='heqis bundle')
    bundle_swap.register(parser.add_subparsers())
    args = parser.parse_args(['swap', *words])
    return int(args.func(args))


def run(graph: Graph, *words: str) -> int:
    """Run the command in a thread while the node's executor spins."""
    status: list[int] = []
    words = (*words, '--node', '/compute', '--timeout', '20')
    thread = threading.Thread(target=lambda: status.append(heqis_bundle(*words)))
    thread.start()
    graph.spin_until(lambda: not thread.is_alive(), 30, 'the command ends')
    return status[0]


def test_a_swap_and_the_way_back_say_what_is_served(graph, pair, capsys):
    assert run(graph, str(pair[1])) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'served: bundle {pair[1].name}')
    assert f'before it  {pair[0].name}' in out
    assert run(graph, '--roll-back') == 0
    out = capsys.readouterr().out
    assert f'bundle     {pair[0].name}' in out
    assert f'before it  {pair[1].name}' in out


def test_a_refusal_ends_with_1_and_its_reason(graph, pair, tmp_path, capsys):
    assert run(graph, str(tmp_path / 'nowhere')) == 1
    out = capsys.readouterr().out
    assert out.startswith('REFUSED: ')
    assert str(tmp_path / 'nowhere') in out
    assert f'bundle     {pair[0].name}' in out
    assert 'nothing to go back to' in out


def test_a_node_that_is_not_there_is_named_with_what_to_look_for():
    private_domain()
    with pytest.raises(ConfigError, match=r'/lab/compute .*ROS_DOMAIN_ID'):
        heqis_bundle('x', '--node', '/lab/compute', '--timeout', '0.3')


@pytest.mark.parametrize('words', [(), ('x', '--roll-back'), ('x', '--node', 'compute')])
def test_words_that_do_not_go_together_are_refused_before_anything_is_called(words):
    with pytest.raises(ConfigError):
        heqis_bundle(*words)
