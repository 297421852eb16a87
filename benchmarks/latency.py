# SPDX-License-Identifier: Apache-2.0
"""Latency between two processes: the bypass, DDS and bare pyzmq with the same bytes, and bar-in to signal-out.

Ping-pong answers at once; paced sends one frame every 5 ms. Rounds of the three are interleaved, so
that a slow phase of the machine meets all of them. One-way times compare the wall clocks of two
processes on one machine, which are the same clock. Encoding and decoding count for the bypass and
for DDS, as a node has to do both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zmq
from _harness import Row, main, paired_ratio, say

from heqis_core import wire
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.testing import free_domain_id, free_port

SYMBOLS = {'1 KB': 4, '16 KB': 108, '64 KB': 440}
FEATURES = 32
PACE_S = 0.005
WAIT_MS = 10_000
WARM_UP = 30
AIM = 1.15
"""Greatest ratio of the bypass to bare pyzmq, ping-pong, p50 of the round trip."""

US = 1e-3
_TIME = struct.Struct('<q')


@dataclass(frozen=True)
class Plan:
    """Rounds and messages a round."""

    rounds: int
    ping_pong: int
    paced: int


PLAN = Plan(rounds=15, ping_pong=80, paced=20)
QUICK = Plan(rounds=4, ping_pong=50, paced=10)


def make_frame(symbols: int) -> FeatureFrame:
    """Return a frame of random numbers."""
    rng = np.random.default_rng(symbols)
    return FeatureFrame(
        'bench',
        1,
        0,
        time.time_ns(),
        0,
        '0' * 16,
        tuple(f'{600000 + i}.SH' for i in range(symbols)),
        {
            'features': rng.standard_normal((symbols, FEATURES)).astype(np.float32),
            'status': np.ones(symbols, np.uint8),
            'close': rng.uniform(1, 100, symbols),
        },
    )


class Transport(Protocol):
    """One end of a way there and back."""

    def use(self, frame: FeatureFrame) -> None:
        """Send this frame from now on."""

    def send(self) -> None:
        """Send the frame."""

    def recv(self) -> int:
        """Receive one; return its one-way time in ns."""

    def close(self) -> None:
        """Free everything."""


class Bypass:
    """HEQIS's link, one pair for each direction."""

    def __init__(self, there: list[int], back: list[int], first: bool) -> None:
        out, back_in = (there, back) if first else (back, there)
        self._out = GatewayLink(*map(_tcp, out))
        self._in = ComputeLink(*map(_tcp, back_in))

    def use(self, frame: FeatureFrame) -> None:
        self._frame = frame

    def send(self) -> None:
        if not self._out.send(self._frame, WAIT_MS):
            raise TimeoutError(self._out.last_error)

    def recv(self) -> int:
        frame = self._in.recv(WAIT_MS)
        if frame is None:
            raise TimeoutError(f'no frame came over the bypass: {self._in.last_error}')
        return int(frame.stamps[Stage.RECEIVED] - frame.stamps[Stage.SENT])

    def close(self) -> None:
        self._out.close()
        self._in.close()


class Bare:
    """PUSH and PULL of pyzmq with as many bytes, the time of sending in the first eight."""

    def __init__(self, there: int, back: int, first: bool) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._in = self._context.socket(zmq.PULL)
        self._in.rcvtimeo = WAIT_MS
        self._in.bind(_tcp(back if first else there))
        self._out.connect(_tcp(there if first else back))

    def use(self, frame: FeatureFrame) -> None:
        self._data = bytearray(wire.encode_frame(frame))

    def send(self) -> None:
        _TIME.pack_into(self._data, 0, time.time_ns())
        self._out.send(self._data)

    def recv(self) -> int:
        data = self._in.recv()
        return time.time_ns() - int(_TIME.unpack_from(data)[0])

    def close(self) -> None:
        self._context.destroy(0)


class Dds:
    """The FeatureFrame topic: rclpy, Fast DDS over UDP on loopback, the QoS of the frames."""

    def __init__(self, first: bool) -> None:
        import rclpy
        from heqis_msgs.msg import FeatureFrame as FrameMsg
        from heqis_ros import qos
        from heqis_ros.convert import frame_to_msg, msg_to_frame
        from rclpy.executors import SingleThreadedExecutor

        self._rclpy, self._to_msg, self._to_frame = rclpy, frame_to_msg, msg_to_frame
        rclpy.init(args=[])
        self._node = rclpy.create_node('ping' if first else 'pong')
        out, back = ('there', 'back') if first else ('back', 'there')
        self._publisher = self._node.create_publisher(FrameMsg, out, qos.FRAMES)
        self._node.create_subscription(FrameMsg, back, self._on_frame, qos.FRAMES)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._times: list[int] = []

    def use(self, frame: FeatureFrame) -> None:
        self._frame = frame
        deadline_s = time.monotonic() + WAIT_MS / 1000
        while self._publisher.get_subscription_count() == 0:
            self._executor.spin_once(0.01)
            if time.monotonic() > deadline_s:
                raise TimeoutError('DDS: the other process was not discovered')

    def send(self) -> None:
        stamp(self._frame.stamps, Stage.SENT)
        self._publisher.publish(self._to_msg(self._frame))

    def recv(self) -> int:
        deadline_s = time.monotonic() + WAIT_MS / 1000
        while not self._times:
            self._executor.spin_once(0.1)
            if time.monotonic() > deadline_s:
                raise TimeoutError('no frame came over DDS')
        return self._times.pop()

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.shutdown()

    def _on_frame(self, message: Any) -> None:
        frame = self._to_frame(message)
        stamp(frame.stamps, Stage.RECEIVED)
        self._times.append(int(frame.stamps[Stage.RECEIVED] - frame.stamps[Stage.SENT]))


def _tcp(port: int) -> str:
    return f'tcp://127.0.0.1:{port}'


def open_transports(ports: list[int], with_dds: bool, first: bool) -> dict[str, Transport]:
    """Open one end of each way."""
    ways: dict[str, Transport] = {
        'bypass': Bypass(ports[:3], ports[3:6], first),
        'bare': Bare(ports[6], ports[7], first),
    }
    if with_dds:
        ways['dds'] = Dds(first)
    return ways


# ---- the other process ------------------------------------------------------------------------


def answer(settings: dict[str, Any]) -> int:
    """Echo as the first process says, until it says stop or is silent for too long."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 6 * WAIT_MS
    control.connect(_tcp(settings['ports'][8]))
    ways = open_transports(settings['ports'], settings['dds'], first=False)
    try:
        control.send_json('ready')
        while (order := control.recv_json()) != 'stop':
            control.send_json(obey(ways, order))
    finally:
        for way in ways.values():
            way.close()
        context.destroy(1000)
    return 0


def obey(ways: dict[str, Transport], order: Any) -> Any:
    """Carry out one order: take a frame size, or echo so many messages and return one-way times."""
    way = ways[order['way']]
    if 'symbols' in order:
        way.use(make_frame(order['symbols']))
        return None
    times = []
    for _ in range(order['count']):
        times.append(way.recv())
        way.send()
    return times


@dataclass
class Peer:
    """The other process, seen from the first."""

    control: zmq.Socket[bytes]
    ways: dict[str, Transport]

    def use(self, symbols: int) -> None:
        """Let both ends send frames of so many symbols, and warm each way up."""
        for name, way in self.ways.items():
            self.control.send_json({'way': name, 'symbols': symbols})
            way.use(make_frame(symbols))
            self.control.recv_json()
            self.run(name, WARM_UP, 0.0)

    def run(self, name: str, count: int, pace_s: float) -> tuple[list[int], list[int]]:
        """Return round-trip and one-way times of `count` messages in ns."""
        way = self.ways[name]
        self.control.send_json({'way': name, 'count': count})
        trips = []
        next_s = time.monotonic()
        for _ in range(count):
            if pace_s:
                next_s = max(next_s + pace_s, time.monotonic())
                time.sleep(max(0.0, next_s - time.monotonic()))
            start = time.perf_counter_ns()
            way.send()
            way.recv()
            trips.append(time.perf_counter_ns() - start)
        one_way: Any = self.control.recv_json()
        return trips, one_way


@contextlib.contextmanager
def other_process(script: Path, settings: dict[str, Any]) -> Iterator[zmq.Socket[bytes]]:
    """Start this script again as the other process; yield the socket that gives it orders."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 3 * WAIT_MS
    control.bind(_tcp(settings['ports'][8]))
    process = subprocess.Popen([sys.executable, str(script), '--peer', json.dumps(settings)])
    try:
        yield control
        control.send_json('stop')
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        context.destroy(0)


# ---- figures ------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Times of one way under one condition, round by round, in us."""

    trips: list[list[float]] = field(default_factory=list)
    one_way: list[list[float]] = field(default_factory=list)

    def add(self, trips: list[int], one_way: list[int]) -> None:
        """Add one round."""
        self.trips.append([value * US for value in trips])
        self.one_way.append([value * US for value in one_way])


def transport_rows(peer: Peer, plan: Plan, case: str, pace_s: float) -> list[Row]:
    """Measure all ways under one condition, interleaved."""
    samples = {name: Samples() for name in peer.ways}
    names = list(peer.ways)
    count = plan.paced if pace_s else plan.ping_pong
    for turn in range(plan.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].add(*peer.run(name, count, pace_s))
    rows = []
    for name in [way for way in names if way != 'bare']:
        for what, pick in (('round trip', _trips), ('one way', _one_way)):
            for percent in (50, 99):
                row = _row(samples, name, case, f'{what} p{percent}', pick, percent)
                gated = name == 'bypass' and not pace_s and (what, percent) == ('round trip', 50)
                rows.append(row.aiming(AIM) if gated else row)
    return rows


def _trips(samples: Samples) -> list[list[float]]:
    return samples.trips


def _one_way(samples: Samples) -> list[list[float]]:
    return samples.one_way


def _row(
    samples: dict[str, Samples],
    name: str,
    case: str,
    figure: str,
    pick: Callable[[Samples], list[list[float]]],
    percent: int,
) -> Row:
    def overall(way: str) -> float:
        return float(np.percentile(np.concatenate(pick(samples[way])), percent))

    def by_round(way: str) -> list[float]:
        return [float(np.percentile(values, percent)) for values in pick(samples[way])]

    ratio = (
        paired_ratio(by_round(name), by_round('bare'))
        if percent == 50
        else overall(name) / overall('bare')
    )
    peer = overall('dds') if name == 'bypass' and 'dds' in samples else None
    return Row(f'{name}, {case}', figure, 'us', overall(name), overall('bare'), peer, ratio)


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure everything; about a minute, a quarter of that with --quick."""
    plan = QUICK if args.quick else PLAN
    with_dds = _prepare_dds() if not args.no_dds else False
    settings = {'ports': [free_port() for _ in range(9)], 'dds': with_dds}
    rows: list[Row] = []
    with other_process(Path(__file__), settings) as control:
        ways = open_transports(settings['ports'], with_dds, first=True)
        try:
            control.recv_json()
            peer = Peer(control, ways)
            for size, symbols in SYMBOLS.items():
                peer.use(symbols)
                say(f'{size}: {len(wire.encode_frame(make_frame(symbols)))} B on the wire')
                rows += transport_rows(peer, plan, f'ping-pong {size}', 0.0)
                rows += transport_rows(peer, plan, f'200 Hz {size}', PACE_S)
        finally:
            for way in ways.values():
                way.close()
    return rows


def _prepare_dds() -> bool:
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
    try:
        import heqis_msgs.msg
        import heqis_ros.convert  # noqa: F401
        import rclpy  # noqa: F401
    except ImportError as exc:
        say(f'DDS is not measured: {exc}')
        return False
    return True


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--no-dds', action='store_true', help='leave DDS out')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peer']:
        sys.exit(answer(json.loads(sys.argv[2])))
    sys.exit(main('latency', (__doc__ or '').splitlines()[0], measure, _options))
