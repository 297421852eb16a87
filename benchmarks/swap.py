# SPDX-License-Identifier: Apache-2.0
"""Bundle swaps while frames flow: a compute process under load, two bundles swapped to and fro.

The compute node is a process of its own, and is called as `heqis bundle swap` does; this process
is the gateway. Each answer is compared with what a plain decider of the bundle that it names says
to that frame. A frame's time is from before it is sent until its decisions are back; quiet frames,
the floor, are those of the pauses between the swaps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _harness import Row, main, paired_ratio, say
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node

from heqis_compute.testing_swap import Frames, PacedGateway, write_pair
from heqis_core.testing import free_port
from heqis_msgs.srv import SwapBundle
from heqis_ros.testing import Graph, ros_graph

SWAPS, QUICK_SWAPS = 50, 10
RATE_HZ = 1000.0
PAUSE_S = 0.2
SETTLE_S = 1.0
WAIT_S = 60.0
MS, US = 1e3, 1e6
ENDPOINTS = ('frames_endpoint', 'decisions_endpoint', 'requests_endpoint')


class Span(NamedTuple):
    """The time from the call of one swap to its answer."""

    start_s: float
    stop_s: float


@contextmanager
def compute_process(bundle: Path, folder: Path) -> Iterator[list[str]]:
    """Run a compute node, unconfigured; yield its endpoints."""
    endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in ENDPOINTS]
    params: dict[str, Any] = {
        **dict(zip(ENDPOINTS, endpoints, strict=True)),
        'bundle': bundle,
        'state_dir': folder / 'state',
        'engine': 'onnxruntime',
        'require_supervisor': 'false',
    }
    words = [word for name, value in params.items() for word in ('-p', f'{name}:={value}')]
    process = subprocess.Popen(
        [sys.executable, '-m', 'heqis_compute.compute_node', '--ros-args', *words],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield endpoints
    finally:
        process.terminate()
        process.wait(WAIT_S)


class Caller:
    """Calls the services of the compute node."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        node = graph.add(Node('caller'))
        self._change = node.create_client(ChangeState, 'compute/change_state')
        self._swap = node.create_client(SwapBundle, 'compute/swap_bundle')

    def activate(self) -> None:
        """Configure and activate the node."""
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request()
            request.transition.id = transition
            if not self._call(self._change, request).success:
                raise RuntimeError(f'transition {transition} of the compute node was refused')

    def swap(self, path: Path) -> tuple[Span, SwapBundle.Response]:
        """Swap; return how long it took, and the answer."""
        start_s = time.monotonic()
        answer = self._call(self._swap, SwapBundle.Request(path=str(path)))
        return Span(start_s, time.monotonic()), answer

    def pause(self) -> None:
        """Let frames flow without a swap."""
        self._graph.spin_for(PAUSE_S)

    def _call(self, client: Any, request: Any) -> Any:
        self._graph.spin_until(client.service_is_ready, WAIT_S, 'the service is there')
        future = client.call_async(request)
        self._graph.spin_until(future.done, WAIT_S, 'the answer')
        return future.result()


def measure(args: argparse.Namespace) -> list[Row]:
    """Swap to and fro under load."""
    n = QUICK_SWAPS if args.quick else SWAPS
    with tempfile.TemporaryDirectory() as name, ros_graph() as graph:
        pair = write_pair(Path(name))
        frames = Frames(pair[0])
        with compute_process(pair[0], Path(name)) as endpoints:
            caller = Caller(graph)
            caller.activate()
            with closing(PacedGateway(frames, endpoints, args.rate)) as gateway:
                graph.spin_until(lambda: len(gateway.got) > 0, WAIT_S, 'the first answer')
                graph.spin_for(SETTLE_S)
                spans, agreements = [], []
                for i in range(n):
                    span, answer = caller.swap(pair[(i + 1) % 2])
                    if not answer.accepted:
                        raise RuntimeError(f'swap {i} was refused: {answer.message}')
                    spans.append(span)
                    agreements.append(answer.agreement)
                    caller.pause()
                gateway.finish()
        say(f'{len(gateway.sent_s)} frames; agreement in the shadow {np.mean(agreements):.1%}')
        return rows(args.rate, gateway, spans, pair)


def rows(
    rate_hz: float, gateway: PacedGateway, spans: list[Span], pair: tuple[Path, Path]
) -> list[Row]:
    """Return the figures of a finished run."""
    verdict = gateway.verdict(*pair)
    sent_s = np.array(gateway.sent_s)
    case = f'{rate_hz:.0f} frames/s asked for, {len(spans)} swaps'
    rate = (len(sent_s) - 1) / (sent_s[-1] - sent_s[0])
    took_ms = [MS * (span.stop_s - span.start_s) for span in spans]
    return [
        Row(case, 'rate', 'frames/s', float(rate), floor=rate_hz),
        Row(case, 'lost', 'frames', verdict.lost).aiming(0),
        Row(case, 'doubled', 'answers', verdict.doubled).aiming(0),
        Row(case, 'not what the named bundle says', 'answers', verdict.wrong).aiming(0),
        Row(case, 'changes of the bundle', '', verdict.changes, floor=len(spans)),
        Row(case, 'call to answer p50', 'ms', float(np.median(took_ms))),
        Row(case, 'call to answer p99', 'ms', float(np.percentile(took_ms, 99))),
        *_frame_rows(case, gateway, spans),
    ]


def _frame_rows(case: str, gateway: PacedGateway, spans: list[Span]) -> list[Row]:
    """Compare frames of the swaps, and the first one after each, with those of the pauses."""
    order = {d.seq: (at_s, d.bundle_id) for at_s, d in gateway.got}
    sent_s = np.array([gateway.sent_s[seq] for seq in sorted(order)])
    trip_us = US * (np.array([order[seq][0] for seq in sorted(order)]) - sent_s)
    ids = [order[seq][1] for seq in sorted(order)]
    first = [i for i in range(1, len(ids)) if ids[i] != ids[i - 1]]
    inside = [(sent_s > span.start_s) & (sent_s < span.stop_s) for span in spans]
    before = [(sent_s < span.start_s) & (sent_s > span.start_s - PAUSE_S) for span in spans]
    in_swap, quiet = np.logical_or.reduce(inside), np.logical_or.reduce(before)
    ratio = paired_ratio(
        [float(np.median(trip_us[mask])) for mask in inside],
        [float(np.median(trip_us[mask])) for mask in before],
    )
    result = []
    for percent in (50, 99):
        value, floor = (float(np.percentile(trip_us[m], percent)) for m in (in_swap, quiet))
        shown = ratio if percent == 50 else value / floor
        name = f'frame during a swap p{percent}'
        result.append(Row(case, name, 'us', value, floor, ratio=shown))
    longer = trip_us[first] - np.median(trip_us[quiet])
    for percent in (50, 99):
        value = float(np.percentile(longer, percent))
        result.append(Row(case, f'take-over: frame takes longer by p{percent}', 'us', value))
    return result


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rate', type=float, default=RATE_HZ, help='frames/s; %(default)g')


if __name__ == '__main__':
    sys.exit(main('swap', (__doc__ or '').splitlines()[0], measure, _options))
