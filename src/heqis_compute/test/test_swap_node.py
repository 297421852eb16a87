# SPDX-License-Identifier: Apache-2.0
"""Compute node and swaps: under load, refused, in progress, stopped, rolled back, after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_compute.compute_node import ComputeNode
from heqis_compute.testing_swap import Frames, PacedGateway, Verdict, write_pair
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.io.signing import read_signature, sign_bundle, write_key_pair
from heqis_core.testing import free_port
from heqis_core.testing_bundle import write_test_bundle
from heqis_msgs.msg import Event
from heqis_msgs.srv import SwapBundle
from heqis_ros import qos
from heqis_ros.testing import Graph, ros_graph

RATE_HZ = 1000.0
SWAPS = 10


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp('bundles'))


@pytest.fixture(scope='module')
def frames(pair: tuple[Path, Path]) -> Frames:
    return Frames(pair[0])


class Board:
    """An ACTIVE compute node, who calls it, and the events that are heard."""

    def __init__(self, graph: Graph, params: dict[str, Any]) -> None:
        self.graph = graph
        self.endpoints = [str(params[name]) for name in params if name.endswith('_endpoint')]
        self.events: list[Event] = []
        caller = graph.add(Node('caller'))
        heard = caller.create_subscription(Event, 'events', self.events.append, qos.EVENTS)
        self.client = caller.create_client(SwapBundle, 'compute/swap_bundle')
        self.node = graph.add(ComputeNode())
        graph.spin_until(lambda: heard.get_publisher_count() > 1, what='the node is found')
        assert self.node.trigger_configure() == Result.SUCCESS, self.node.status().info
        assert self.node.trigger_activate() == Result.SUCCESS
        graph.spin_until(self.client.service_is_ready)

    def call(self, path: Path | str = '', roll_back: bool = False) -> Any:
        return self.client.call_async(SwapBundle.Request(path=str(path), roll_back=roll_back))

    def swap(self, path: Path | str = '', roll_back: bool = False) -> SwapBundle.Response:
        future = self.call(path, roll_back)
        self.graph.spin_until(future.done, 20)
        return future.result()

    def finish(self, gateway: PacedGateway) -> None:
        """Let some frames follow, then end the stream."""
        sent = len(gateway.sent_s)
        self.graph.spin_until(lambda: len(gateway.sent_s) > sent + 20, what='frames go on')
        gateway.finish()

    def event(self, kind: str) -> Event:
        self.graph.spin_until(lambda: any(e.kind == kind for e in self.events), what=kind)
        return next(e for e in self.events if e.kind == kind)


@contextmanager
def board(bundle: Path, folder: Path, **more: object) -> Iterator[Board]:
    names = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')
    params = {
        **{name: f'tcp://127.0.0.1:{free_port()}' for name in names},
        'bundle': str(bundle),
        'state_dir': str(folder / 'state'),
        'require_supervisor': False,
        'shadow_ms': 100,
        **more,
    }
    with ros_graph(params) as graph:
        yield Board(graph, params)


def test_swaps_under_load_lose_double_and_falsify_nothing(pair, frames, tmp_path, capsys):
    with (
        board(pair[0], tmp_path, shadow_ms=2000) as here,
        closing(PacedGateway(frames, here.endpoints, RATE_HZ)) as gateway,
    ):
        here.graph.spin_until(lambda: len(gateway.got) > 50, what='the stream flows')
        for i in range(SWAPS):
            answer = here.swap(pair[(i + 1) % 2])
            assert answer.accepted, answer.message
            assert answer.bundle_id == pair[(i + 1) % 2].name
            assert answer.previous_id == pair[i % 2].name
            assert answer.shadow_frames == 17
        rolled = here.swap(roll_back=True)
        assert rolled.accepted, rolled.message
        assert rolled.bundle_id == pair[1].name
        here.finish(gateway)
        seconds = gateway.sent_s[-1] - gateway.sent_s[0]
        with capsys.disabled():
            print(f' {len(gateway.sent_s) / seconds:.0f} frames/s', end='')
        assert gateway.verdict(*pair) == Verdict(0, 0, 0, changes=SWAPS + 1)
        assert here.node.vitals.counters()['swaps'] == SWAPS + 1


@pytest.mark.parametrize('spoil', ['corrupt', 'features', 'golden', 'nowhere'])
def test_a_bundle_that_is_not_sound_is_refused_with_an_event_and_the_old_one_goes_on(
    spoil, pair, frames, tmp_path
):
    if spoil == 'golden':
        path = golden_of_another(pair, tmp_path)
    else:
        path = write_test_bundle(tmp_path / 'b', seed=1 if spoil == 'features' else 0)
    if spoil == 'corrupt':
        (path / 'linear.onnx').write_bytes(b'\0' * (path / 'linear.onnx').stat().st_size)
    elif spoil == 'nowhere':
        shutil.rmtree(path)
    why = {'corrupt': 'sha256', 'features': 'features', 'golden': 'golden', 'nowhere': str(path)}
    with (
        board(pair[0], tmp_path) as here,
        closing(PacedGateway(frames, here.endpoints, 200.0)) as gateway,
    ):
        here.graph.spin_until(lambda: len(gateway.got) > 20)
        answer = here.swap(path)
        assert not answer.accepted
        assert why[spoil] in answer.message
        assert (answer.bundle_id, answer.previous_id) == (pair[0].name, '')
        event = here.event('bundle_refused')
        assert (event.level, event.subject) == (Event.ERROR, str(path))
        assert why[spoil] in event.text
        gateway.finish()
        assert gateway.verdict(pair[0]) == Verdict(0, 0, 0, changes=0)
        assert [e.kind for e in here.events] == ['bundle_refused']


def golden_of_another(pair: tuple[Path, Path], folder: Path) -> Path:
    """Return a bundle with right hashes, whose golden outputs are those of another generator."""
    names = Bundle.load(pair[0]).manifest.files
    files = {name: (pair[0] / name).read_bytes() for name in names}
    files['golden.npz'] = (pair[1] / 'golden.npz').read_bytes()
    return write_bundle(folder, Bundle.load(pair[0]).manifest, files)


def test_while_one_is_in_progress_another_is_refused_and_the_node_answers(pair, frames, tmp_path):
    with (
        board(pair[0], tmp_path, shadow_ms=20000, shadow_frames=256) as here,
        closing(PacedGateway(frames, here.endpoints, 200.0)) as gateway,
    ):
        here.graph.spin_until(lambda: len(gateway.got) > 20)
        first = here.call(pair[1])
        here.graph.spin_until(lambda: here.node.vitals.counters().get('swapping') == 1)
        spins = here.node.vitals.spin_count
        second = here.swap(pair[1])
        assert not second.accepted
        assert 'in progress' in second.message
        here.graph.spin_until(lambda: here.node.vitals.spin_count > spins + 1, what='it spins')
        here.graph.spin_until(first.done, 20)
        assert first.result().accepted, first.result().message
        here.finish(gateway)
        assert gateway.verdict(*pair) == Verdict(0, 0, 0, changes=1)


def test_a_deactivation_ends_a_swap_with_an_answer_and_the_next_activation_serves_the_old_one(
    pair, frames, tmp_path
):
    with board(pair[0], tmp_path, shadow_ms=60000) as here:
        with closing(PacedGateway(frames, here.endpoints, 100.0)) as gateway:
            here.graph.spin_until(lambda: len(gateway.got) > 20)
            gateway.finish()
        waiting = here.call(pair[1])
        here.graph.spin_until(lambda: here.node.vitals.counters().get('swapping') == 1)
        assert here.node.trigger_deactivate() == Result.SUCCESS
        here.graph.spin_until(waiting.done)
        assert not waiting.result().accepted
        assert 'deactivated' in waiting.result().message
        assert 'not active' in here.swap(pair[1]).message
        assert here.node.trigger_activate() == Result.SUCCESS
        assert here.swap('nowhere').bundle_id == pair[0].name


@pytest.mark.parametrize(('path', 'roll_back'), [('', False), ('x', True)])
def test_a_call_that_asks_for_nothing_or_for_two_things_is_refused(
    path, roll_back, pair, tmp_path
):
    with board(pair[0], tmp_path) as here:
        answer = here.swap(path, roll_back)
        assert not answer.accepted
        assert 'either' in answer.message


def test_a_roll_back_to_a_bundle_whose_key_was_revoked_is_refused(tmp_path):
    public, secret, _ = write_key_pair(tmp_path / 'keys', 'factory')
    pair = write_pair(tmp_path / 'bundles')
    trusted = tmp_path / 'trusted'
    trusted.mkdir()
    shutil.copy(public, trusted)
    sign_bundle(pair[0], secret)
    other_public, other_secret, _ = write_key_pair(tmp_path / 'keys', 'other')
    shutil.copy(other_public, trusted)
    sign_bundle(pair[1], other_secret)
    with board(pair[0], tmp_path, trusted_keys=str(trusted)) as here:
        assert here.swap(pair[1]).accepted
        signature = read_signature(pair[0])
        assert signature is not None
        (trusted / 'revoked.txt').write_text(signature.fingerprint)
        answer = here.swap(roll_back=True)
        assert not answer.accepted
        assert 'is revoked by' in answer.message
        assert answer.bundle_id == pair[1].name
        assert here.event('bundle_refused').subject == 'roll-back'


def test_a_process_that_starts_again_serves_what_was_swapped_in_and_can_go_back(pair, tmp_path):
    with board(pair[0], tmp_path) as here:
        assert here.swap(pair[1]).accepted
    with board(pair[0], tmp_path) as here:
        assert f'bundle {pair[1].name}' in here.node.status().info
        answer = here.swap(roll_back=True)
        assert answer.accepted, answer.message
        assert (answer.bundle_id, answer.previous_id) == (pair[0].name, pair[1].name)
    with board(pair[0], tmp_path) as here:
        assert f'bundle {pair[0].name}' in here.node.status().info


def test_what_was_swapped_in_counts_only_for_the_bundle_it_was_swapped_from(pair, tmp_path):
    third = write_test_bundle(tmp_path, valid_for_s=60.0)
    with board(pair[0], tmp_path) as here:
        assert here.swap(pair[1]).accepted
    for configured in (third, pair[0]):
        with board(configured, tmp_path) as here:
            assert f'bundle {configured.name}' in here.node.status().info
            assert 'nothing has been swapped' in here.swap(roll_back=True).message


@pytest.mark.parametrize('spoil', ['bundle', 'file'])
def test_what_cannot_be_verified_any_more_falls_back_to_the_configured_one_and_says_so(
    spoil, pair, tmp_path
):
    other = write_test_bundle(tmp_path / 'b', valid_for_s=60.0)
    with board(pair[0], tmp_path) as here:
        assert here.swap(other).accepted
    if spoil == 'bundle':
        (other / 'linear.onnx').unlink()
    else:
        (tmp_path / 'state' / 'served.json').write_text('{')
    with board(pair[0], tmp_path) as here:
        assert f'bundle {pair[0].name}' in here.node.status().info
        event = here.event('bundle_fallback')
        assert ('linear.onnx' if spoil == 'bundle' else 'served.json') in event.text
    with board(pair[0], tmp_path) as here:
        assert f'bundle {pair[0].name}' in here.node.status().info
        assert not here.events
