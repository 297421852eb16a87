# SPDX-License-Identifier: Apache-2.0
"""A benchmark in two processes: the script starts itself again, and gives the other one orders.

The first process is the gateway, the other the compute board. Orders and results go over a control
socket of their own; what is measured goes over the ways of `_ways.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import zmq
from _harness import say
from _ways import WAIT_MS, Way, open_ways, tcp

from heqis_core.testing import free_domain_id

WARM_UP = 30
"""Messages before anything is measured."""

Obey = Callable[[dict[str, Any], dict[str, Any], Any], Any]
"""Carries out one order (settings, ways, order); returns what goes back as JSON."""


@contextlib.contextmanager
def other_process(settings: dict[str, Any]) -> Iterator[zmq.Socket[bytes]]:
    """Start this script again as the compute process; yield the socket that gives it orders.

    `settings` is JSON with at least `ports`, `control` (a port) and `dds`; the script answers
    `--peer SETTINGS` with `answer`.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 6 * WAIT_MS
    control.bind(tcp(settings['control']))
    process = subprocess.Popen([sys.executable, sys.argv[0], '--peer', json.dumps(settings)])
    try:
        yield control
        control.send_json('stop')
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        context.destroy(0)


def answer(settings: dict[str, Any], obey: Obey) -> int:
    """Be the compute process: do what the first one orders, until it says stop or is silent."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control = context.socket(zmq.PAIR)
    control.rcvtimeo = 6 * WAIT_MS
    control.connect(tcp(settings['control']))
    ways = open_ways(settings['ports'], settings['dds'], first=False, keys=settings.get('keys'))
    try:
        control.send_json('ready')
        while (order := control.recv_json()) != 'stop':
            control.send_json(obey(settings, ways, order))
    finally:
        for way in ways.values():
            way.close()
        context.destroy(1000)
    return 0


def ping(settings: dict[str, Any], ways: dict[str, Any], order: Any) -> Any:
    """Carry out the orders of `Peer`: take a size, or answer so many frames."""
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


def prepare_dds() -> bool:
    """Set DDS up for both processes (UDP on loopback, a free domain); return whether it is there.

    Must come before the other process is started.
    """
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
