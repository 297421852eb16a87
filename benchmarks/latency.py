# SPDX-License-Identifier: Apache-2.0
"""Latency between two processes: bypass, DDS and bare pyzmq, and from bar-in to signal-out.

A frame goes there and the decisions of its symbols come back, over the bypass, over DDS, and as
bare bytes of the same number over pyzmq. Ping-pong answers at once; paced sends one every 5 ms.
Rounds of the three are interleaved, so that a slow phase of the machine meets all of them, and the
ratios of medians are medians over rounds. One-way times (of the frame) compare the wall clocks of
two processes on one machine, which are one clock.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from _harness import Row, main, paired_ratio, say
from _path import SYMBOLS as PATH_SYMBOLS
from _path import WARM_UP as WARM_UP_BARS
from _path import compute_loop, gateway_loop, write_models
from _ways import N_PORTS, WAIT_MS, Way, make_frame, open_ways, tcp

from heqis_core import wire
from heqis_core.testing import free_domain_id, free_port

SYMBOLS = {'1 KB': 4, '16 KB': 108, '64 KB': 440}
"""Size of the frame on the wire, and how many symbols make it."""
PACE_S = 0.005
WARM_UP = 30
AIM = 1.15
"""Greatest ratio of the bypass to bare pyzmq, ping-pong, p50 of the round trip."""
US = 1e-3


@dataclass(frozen=True)
class Plan:
    """Rounds, messages a round, and bars."""

    rounds: int
    ping_pong: int
    paced: int
    bars: int


PLAN = Plan(rounds=15, ping_pong=80, paced=20, bars=400)
QUICK = Plan(rounds=4, ping_pong=50, paced=10, bars=60)

# ---- the other process --------------------------------------------------------------------------


def answer(settings: dict[str, Any]) -> int:
    """Be the compute process: do what the first one orders, until it says stop or is silent."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 6 * WAIT_MS
    control.connect(tcp(settings['control']))
    ways = open_ways(settings['ports'], settings['dds'], first=False)
    try:
        control.send_json('ready')
        while (order := control.recv_json()) != 'stop':
            control.send_json(obey(settings, ways, order))
    finally:
        for way in ways.values():
            way.close()
        context.destroy(1000)
    return 0


def obey(settings: dict[str, Any], ways: dict[str, Any], order: Any) -> Any:
    """Carry out one order: take a size, answer so many frames, or judge so many bars."""
    if 'bars' in order:
        bypass, bare = ways['bypass'], ways['bare']
        return compute_loop(settings, bypass, bare, order['symbols'], order['bars'])
    way: Way = ways[order['way']]
    if 'symbols' in order:
        way.use(order['symbols'])
        return None
    times = []
    for _ in range(order['count']):
        times.append(way.recv())
        way.send()
    return times


@dataclass
class Peer:
    """The other process, seen from the first."""

    settings: dict[str, Any]
    control: zmq.Socket[bytes]
    ways: dict[str, Any]

    def use(self, n_symbols: int) -> None:
        """Let both ends send messages of so many symbols, and warm each way up."""
        for name, way in self.ways.items():
            self.control.send_json({'way': name, 'symbols': n_symbols})
            way.use(n_symbols)
            self.control.recv_json()
            self.run(name, WARM_UP, 0.0)

    def run(self, name: str, count: int, pace_s: float) -> tuple[list[int], list[int]]:
        """Return round-trip times, and one-way times of the frames, of `count` frames in ns."""
        way: Way = self.ways[name]
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

    def bar_to_signal(self, n_symbols: int, count: int) -> list[Row]:
        """Measure the path from bar to signal for so many symbols."""
        self.control.send_json({'bars': WARM_UP_BARS + count, 'symbols': n_symbols})
        bypass, bare = self.ways['bypass'], self.ways['bare']
        measured = gateway_loop(
            self.settings, bypass, bare, n_symbols, count, self.control.recv_json
        )
        return measured.rows(n_symbols)


@contextlib.contextmanager
def other_process(settings: dict[str, Any]) -> Iterator[zmq.Socket[bytes]]:
    """Start this script again as the compute process; yield the socket that gives it orders."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 6 * WAIT_MS
    control.bind(tcp(settings['control']))
    process = subprocess.Popen([sys.executable, __file__, '--peer', json.dumps(settings)])
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


FIGURES: dict[str, Callable[[Samples], list[list[float]]]] = {
    'round trip': lambda samples: samples.trips,
    'one way': lambda samples: samples.one_way,
}


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
        for figure in FIGURES:
            for percent in (50, 99):
                row = _row(samples, name, case, figure, percent)
                gated = (name, figure, percent) == ('bypass', 'round trip', 50) and not pace_s
                rows.append(row.aiming(AIM) if gated else row)
    return rows


def _row(samples: dict[str, Samples], name: str, case: str, figure: str, percent: int) -> Row:
    pick = FIGURES[figure]

    def overall(way: str) -> float:
        return float(np.percentile(np.concatenate(pick(samples[way])), percent))

    def by_round(way: str) -> list[float]:
        return [float(np.median(values)) for values in pick(samples[way])]

    if percent == 50:
        ratio = paired_ratio(by_round(name), by_round('bare'))
    else:
        ratio = overall(name) / overall('bare')
    peer = overall('dds') if name == 'bypass' and 'dds' in samples else None
    case = f'{name}, {case}'
    return Row(case, f'{figure} p{percent}', 'us', overall(name), overall('bare'), peer, ratio)


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure everything; about a minute, a quarter of that with --quick."""
    with tempfile.TemporaryDirectory() as models:
        write_models(Path(models))
        settings = {
            'ports': [free_port() for _ in range(N_PORTS)],
            'control': free_port(),
            'dds': not args.no_dds and _prepare_dds(),
            'models': models,
        }
        with other_process(settings) as control:
            ways = open_ways(settings['ports'], settings['dds'], first=True)
            try:
                control.recv_json()
                return _measure_all(Peer(settings, control, ways), QUICK if args.quick else PLAN)
            finally:
                for way in ways.values():
                    way.close()


def _measure_all(peer: Peer, plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for size, n_symbols in SYMBOLS.items():
        peer.use(n_symbols)
        say(f'{size}: {len(wire.encode_frame(make_frame(n_symbols)))} B on the wire')
        rows += transport_rows(peer, plan, f'ping-pong {size}', 0.0)
        rows += transport_rows(peer, plan, f'200 Hz {size}', PACE_S)
    for n_symbols in PATH_SYMBOLS:
        say(f'bar to signal, {n_symbols} symbols')
        rows += peer.bar_to_signal(n_symbols, plan.bars)
    return rows


def _prepare_dds() -> bool:
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
    missing = [
        name
        for name in ('rclpy', 'heqis_msgs', 'heqis_ros')
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        say(f'DDS is not measured: {", ".join(missing)} cannot be imported; run make setup')
    return not missing


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--no-dds', action='store_true', help='leave DDS out')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peer']:
        sys.exit(answer(json.loads(sys.argv[2])))
    sys.exit(main('latency', (__doc__ or '').splitlines()[0], measure, _options))
