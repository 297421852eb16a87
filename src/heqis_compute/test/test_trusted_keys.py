# SPDX-License-Identifier: Apache-2.0
"""Compute node with `trusted_keys`: whose bundles it takes; refusals in status and as events."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_compute.compute_node import ComputeNode
from heqis_core.io.signing import read_signature, sign_bundle, write_key_pair
from heqis_core.testing import free_port
from heqis_core.testing_bundle import write_test_bundle
from heqis_msgs.msg import Event
from heqis_msgs.srv import SwapBundle
from heqis_ros import qos
from heqis_ros.testing import Graph, ros_graph


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """Return a folder with the public key `factory` alone; `keys` has the secret one."""
    public, _, _ = write_key_pair(tmp_path / 'keys', 'factory')
    folder = tmp_path / 'trusted'
    folder.mkdir()
    shutil.copy(public, folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path, trusted: Path) -> Path:
    """Return a bundle that `factory` has signed."""
    path = write_test_bundle(tmp_path / 'bundles')
    sign_bundle(path, tmp_path / 'keys' / 'factory.secret.pem')
    return path


@contextmanager
def compute(bundle: Path, trusted: Path) -> Iterator[tuple[Graph, ComputeNode, list[Event]]]:
    """Yield graph, node and the events that somebody hears who was there before."""
    names = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')
    ports = {name: f'tcp://127.0.0.1:{free_port()}' for name in names}
    params = {
        'bundle': str(bundle),
        'trusted_keys': str(trusted),
        'require_supervisor': False,
        'state_dir': str(trusted.parent / 'state'),
        'shadow_ms': 50,
    }
    with ros_graph({**ports, **params}) as graph:
        heard: list[Event] = []
        listener = graph.add(Node('listener'))
        events = listener.create_subscription(Event, 'events', heard.append, qos.EVENTS)
        node = graph.add(ComputeNode())
        graph.spin_until(lambda: events.get_publisher_count() > 0, what='the node is found')
        yield graph, node, heard


def unsigned(bundle: Path, trusted: Path) -> None:
    (bundle / 'signature.json').unlink()


def unknown(bundle: Path, trusted: Path) -> None:
    _, secret, _ = write_key_pair(trusted.parent / 'stranger', 'stranger')
    sign_bundle(bundle, secret)


def revoked(bundle: Path, trusted: Path) -> None:
    signature = read_signature(bundle)
    assert signature is not None
    (trusted / 'revoked.txt').write_text(signature.fingerprint)


def altered(bundle: Path, trusted: Path) -> None:
    path = bundle / 'manifest.json'
    path.write_bytes(path.read_bytes() + b'\n')


def no_keys(bundle: Path, trusted: Path) -> None:
    (trusted / 'factory.pub.pem').unlink()


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (unsigned, 'is not signed'),
        (unknown, "'stranger'"),
        (revoked, 'is revoked by'),
        (altered, 'is no signature by'),
        (no_keys, 'holds no NAME.pub.pem'),
    ],
)
def test_a_bundle_that_no_trusted_key_has_signed_is_refused_in_status_and_event(
    bundle: Path, trusted: Path, spoil: Callable[[Path, Path], None], reason: str
) -> None:
    spoil(bundle, trusted)
    with compute(bundle, trusted) as (graph, node, heard):
        assert node.trigger_configure() == Result.FAILURE
        assert node.state == 1
        assert reason in node.status().info
        graph.spin_until(lambda: len(heard) > 0, what='the event')
        assert (heard[0].level, heard[0].kind) == (Event.ERROR, 'bundle_refused')
        assert (heard[0].subject, heard[0].source) == (str(bundle), '/compute')
        assert reason in heard[0].text


def test_a_signed_bundle_is_served_and_a_swap_asks_for_a_signature_that_is_still_good(
    bundle: Path, trusted: Path, tmp_path: Path
) -> None:
    other = write_test_bundle(tmp_path / 'other', valid_for_s=60.0)
    with compute(bundle, trusted) as (graph, node, heard):
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
        caller = graph.add(Node('caller'))
        client = caller.create_client(SwapBundle, 'compute/swap_bundle')
        graph.spin_until(client.service_is_ready)

        def swap() -> SwapBundle.Response:
            future = client.call_async(SwapBundle.Request(path=str(other)))
            graph.spin_until(future.done)
            return future.result()

        answer = swap()
        assert not answer.accepted
        assert 'is not signed' in answer.message
        assert answer.bundle_id == bundle.name
        graph.spin_until(lambda: any(e.kind == 'bundle_refused' for e in heard), what='the event')
        sign_bundle(other, tmp_path / 'keys' / 'factory.secret.pem')
        assert swap().bundle_id == other.name
        # Revoked while the node runs: refused from the next swap on, without a restart.
        revoked(other, trusted)
        answer = swap()
        assert not answer.accepted
        assert 'is revoked by' in answer.message
        assert answer.bundle_id == other.name
