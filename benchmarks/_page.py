# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the page runs: a graph that only speaks, the page, a bare reader.

The graph is one rclpy node that publishes heartbeats, bars and decisions as gateway, compute and
risk gate do. The bare reader takes the same messages with the same rclpy and throws them away:
what the page's node costs above it is its own. Nothing is measured here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rclpy

from heqis_core.bars import BarBlock
from heqis_core.control import NodeBeat, ProcessBeat
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import Stage, new_stamps
from heqis_core.simulator import MarketSimulator
from heqis_msgs import msg as m
from heqis_ros import qos
from heqis_ros.convert import block_to_msg, decisions_to_msg
from heqis_ros.convert_health import beat_to_msg

STREAM = 'bench'
NAMESPACE = '/bench'
PROCESSES = ('gateway', 'journal', 'supervisor', 'agent', 'compute', 'dashboard')
BEAT_S = 0.1


class Speaker:
    """A graph as its topics show it: heartbeats ten times a second, frames at some rate."""

    def __init__(self, symbols: int) -> None:
        """Publish in `NAMESPACE` of this process's ROS domain."""
        self._node = rclpy.create_node('speaker', namespace=NAMESPACE)
        self._beats = self._node.create_publisher(m.Heartbeat, 'heartbeat', qos.HEARTBEAT)
        self._bars = self._node.create_publisher(m.BarBlock, 'bars', qos.BARS)
        self._decisions = self._node.create_publisher(m.Decisions, 'decisions', qos.DECISIONS)
        self._market = MarketSimulator(symbols, 7)
        self.symbols = self._market.symbols
        self._seq = 0
        self._count = 0
        self.released_ms: dict[int, float] = {}
        """When the decisions of a bar went out, wall clock, by event time."""

    def readers(self) -> int:
        """Return how many listen to decisions."""
        return int(self._decisions.get_subscription_count())

    def speak(self, duration_s: float, frames_per_s: float) -> None:
        """Publish for a while; the thread sleeps in between."""
        end_s = time.monotonic() + duration_s
        next_beat_s = next_frame_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s:
            if now_s >= next_beat_s:
                next_beat_s += BEAT_S
                self._beat()
            if frames_per_s and now_s >= next_frame_s:
                next_frame_s += 1 / frames_per_s
                self.frame()
            due_s = min(next_beat_s, next_frame_s if frames_per_s else end_s, end_s)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def frame(self) -> None:
        """Publish the next bars and, as after the risk gate, their decisions."""
        block = self._market.next_block()
        self._bars.publish(block_to_msg(block, STREAM, 1, self._seq))
        decisions = decide(block, self._seq)
        decisions.stamps[Stage.COMMITTED] = time.time_ns()
        self.released_ms[block.event_time_ns] = time.time_ns() / 1e6
        self._decisions.publish(decisions_to_msg(decisions))
        self._seq += 1

    def _beat(self) -> None:
        self._count += 1
        for pid, process in enumerate(PROCESSES, 1000):
            counters = {'frames_sent': self._seq, 'signals': self._seq, 'drops': 0}
            node = NodeBeat(f'{NAMESPACE}/{process}', 3, counters=counters, info='as ever')
            beat = ProcessBeat(
                board='compute' if process == 'compute' else 'gateway',
                process=process,
                host='bench',
                pid=pid,
                start_id=pid,
                count=self._count,
                stamp_ns=time.time_ns(),
                boot_id='b',
                nodes=(node,),
            )
            self._beats.publish(beat_to_msg(beat))

    def close(self) -> None:
        """Fall silent."""
        self._node.destroy_node()


def decide(block: BarBlock, seq: int) -> Decisions:
    """Return decisions of a bar block: a BUY or a SELL for every third symbol, by turns."""
    n = len(block.symbols)
    action = np.full(n, Action.HOLD, np.uint8)
    action[seq % 3 :: 3] = (Action.BUY, Action.SELL)[seq % 2]
    return Decisions(
        STREAM,
        1,
        seq,
        block.event_time_ns,
        0,
        '0123456789abcdef',
        'gru',
        block.symbols,
        action,
        np.full(n, Reason.UP, np.uint32),
        np.full(n, 0.1, np.float32),
        np.ones(n, np.float32),
        np.full((n, 3), 1 / 3, np.float32),
        np.zeros(n, np.float32),
        np.full(n, block.event_time_ns, np.int64),
        new_stamps(),
    )


@contextmanager
def process_of(command: list[str], log: Path) -> Iterator[psutil.Process]:
    """Run a process of the graph, ended afterwards."""
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)


def page_command(port: int, **parameters: Any) -> list[str]:
    """Return the command of the page's process, as launch has it."""
    given = {'port': port, 'autostart': True, **parameters}
    words = [part for name, value in given.items() for part in ('-p', f'{name}:={_text(value)}')]
    module = 'heqis_dashboard.dashboard_node'
    return [sys.executable, '-m', module, '--ros-args', '-r', f'__ns:={NAMESPACE}', *words]


def bare_reader_command() -> list[str]:
    """Return the command of a process that takes the same messages and throws them away."""
    return [sys.executable, os.path.abspath(__file__)]


def cpu_percent(process: psutil.Process, duration_s: float, speak: Any) -> float:
    """Return what part of one core a process takes while `speak(duration)` runs, percent."""
    before, started_s = process.cpu_times(), time.monotonic()
    speak(duration_s)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    return 100 * used_s / (time.monotonic() - started_s)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read() -> None:
    """Be the bare reader."""
    rclpy.init()
    node = rclpy.create_node('bare_reader', namespace=NAMESPACE)
    for kind, topic, profile in (
        (m.Heartbeat, 'heartbeat', qos.HEARTBEAT),
        (m.BarBlock, 'bars', qos.BARS),
        (m.Decisions, 'decisions', qos.DECISIONS),
    ):
        node.create_subscription(kind, topic, lambda _: None, qos.best_effort(profile))
    rclpy.spin(node)


if __name__ == '__main__':
    _read()
