# SPDX-License-Identifier: Apache-2.0
"""Whole processes: heartbeats seen from outside, signals, hung callbacks, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rclpy.node import Node

from heqis_msgs.msg import Event, Heartbeat, NodeStatus
from heqis_ros import qos

pytestmark = pytest.mark.graph
SCRIPT = Path(__file__).parent / 'process_under_test.py'


class Running:
    """A started process, its error output, and the heartbeats heard from it."""

    def __init__(self, log: Path, kind: str, *arguments: str, **environment: str) -> None:
        """Start it."""
        self.log = log
        with log.open('w') as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), kind, *arguments],
                stdout=stream,
                stderr=stream,
                env={**os.environ, **environment},
            )

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal it; return its exit code and the seconds that it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(10.0), time.monotonic() - start


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a process and kills it at the end whatever happens."""
    running = []

    def start(kind, *arguments, **environment):
        running.append(Running(tmp_path / f'{len(running)}.log', kind, *arguments, **environment))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


class Ear:
    """Hears heartbeats of one namespace and can talk to the probe."""

    def __init__(self, graph, namespace='/heqis', topic='heartbeat') -> None:
        """Join the graph."""
        self.graph = graph
        self.beats: list[Heartbeat] = []
        node = graph.add(Node('ear', namespace=namespace))
        node.create_subscription(Heartbeat, topic, self.beats.append, qos.HEARTBEAT)
        self.pub = node.create_publisher(Event, 'in', qos.EVENTS)

    def wait(self, condition, what=''):
        """Spin until a heartbeat, the last one or a later one, satisfies the condition."""
        first = max(0, len(self.beats) - 1)

        def found():
            return next((beat for beat in self.beats[first:] if condition(beat)), None)

        self.graph.spin_until(lambda: found() is not None, 20.0, what or 'heartbeat')
        return found()

    def wait_active(self):
        """Wait until the first node is ACTIVE; return the heartbeat."""
        return self.wait(lambda beat: beat.nodes[0].state == NodeStatus.ACTIVE, 'active')

    def tell(self, text):
        """Send a command to the probe once it listens."""
        self.graph.spin_until(lambda: self.pub.get_subscription_count() > 0)
        self.pub.publish(Event(text=text))


NS = ('--ros-args', '-r', '__ns:=/heqis')


def test_heartbeats_are_seen_from_another_process(graph, start):
    """Identity, gap-free count, states, counters and info arrive at the rate asked for."""
    ear = Ear(graph)
    process = start('pair', *NS, '-p', 'level:=3', HEQIS_BOARD='gateway', HEQIS_HEARTBEAT_HZ='20')
    first = ear.wait_active()
    assert (first.board, first.process, first.pid) == ('gateway', 'pair', process.process.pid)
    assert first.start_id > 0
    assert first.boot_id == Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    assert [node.name for node in first.nodes] == ['/heqis/probe', '/heqis/second']
    assert first.nodes[0].info == 'level 3'
    assert (first.nodes[1].state, first.nodes[1].info) == (NodeStatus.UNCONFIGURED, '')
    last = ear.wait(lambda beat: beat.count >= first.count + 20)
    counts = [beat.count for beat in ear.beats]
    assert counts == list(range(counts[0], counts[0] + len(counts)))
    assert {beat.start_id for beat in ear.beats} == {first.start_id}
    assert last.nodes[0].spin_count > first.nodes[0].spin_count
    assert last.nodes[0].progress > first.nodes[0].progress
    assert last.nodes[0].counter_names[0] == 'loops'
    rate = (last.count - first.count) / ((last.stamp_ns - first.stamp_ns) / 1e9)
    assert 5.0 < rate < 21.0
    assert not last.hold
    ear.tell('hold')
    ear.wait(lambda beat: beat.hold, 'hold')


def test_a_blocked_executor_shows_and_the_process_still_ends(graph, start):
    """Heartbeats go on, spin_count stands still, and SIGTERM ends it with a clear line."""
    ear = Ear(graph)
    process = start('probe', *NS)
    ear.wait_active()
    ear.tell('block')

    def still(beat):
        earlier = [each for each in ear.beats if each.count <= beat.count - 10]
        return earlier and earlier[-1].nodes[0].spin_count == beat.nodes[0].spin_count

    stalled = ear.wait(still, 'a spin_count that stands still for ten heartbeats')
    assert stalled.nodes[0].state == NodeStatus.ACTIVE
    later = ear.wait(lambda beat: beat.count >= stalled.count + 10)
    assert later.nodes[0].spin_count == stalled.nodes[0].spin_count
    code, seconds = process.end()
    assert code == 1
    assert seconds < 3.0
    assert 'probe: did not end within' in process.text()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_active_process_quickly_and_cleanly(graph, start, number):
    """Exit code 0 within 2 s, no traceback, and a last heartbeat that says FINALIZED."""
    ear = Ear(graph)
    process = start('pair', *NS)
    ear.wait_active()
    start_s = time.monotonic()
    process.process.send_signal(number)
    ear.wait(lambda beat: all(node.state == NodeStatus.FINALIZED for node in beat.nodes))
    assert process.process.wait(10.0) == 0, process.text()
    # Code 0 says that it took less than 1.8 s once it saw the signal.
    assert time.monotonic() - start_s < 3.0
    assert 'Traceback' not in process.text()


def test_a_deaf_worker_cannot_keep_the_process(graph, start):
    """The exit says so in its code and in one line."""
    ear = Ear(graph)
    process = start('probe', *NS)
    ear.wait_active()
    ear.tell('deafen')
    ear.wait(lambda beat: beat.nodes[0].info == 'deaf')
    code, seconds = process.end()
    assert code == 1
    assert seconds < 3.0
    assert 'did not end' in process.text()


def test_a_signal_during_start_up_ends_it(start):
    """No window in which a signal is lost or leaves a traceback."""
    process = start('probe', *NS)
    code, seconds = process.end()
    assert seconds < 5.0
    assert code in (0, -signal.SIGTERM)
    assert 'Traceback' not in process.text()


def test_a_fault_is_seen_and_the_node_brings_itself_up_again(graph, start):
    """The supervisor and the agents recover by themselves; the heartbeat says why."""
    ear = Ear(graph)
    start('probe', *NS)
    ear.wait_active()
    ear.tell('fault')
    fallen = ear.wait(lambda beat: 'port 5555 is gone' in beat.nodes[0].info)
    assert fallen.nodes[0].state != NodeStatus.ACTIVE
    assert ear.wait_active().nodes[0].info == 'level 1'


def test_namespace_remap_and_parameter_file(graph, start, tmp_path):
    """A file keyed by `/**/probe`, another namespace and a remapped heartbeat work together."""
    file = tmp_path / 'params.yaml'
    file.write_text('/**/probe:\n  ros__parameters:\n    level: 7\n')
    ear = Ear(graph, '/elsewhere', 'pulse')
    start(
        'probe',
        '--ros-args', '-r', '__ns:=/elsewhere', '-r', 'heartbeat:=pulse', '-r', '__node:=renamed',
        '-r', '__node:=probe', '--params-file', str(file),
    )  # fmt: skip
    beat = ear.wait_active()
    assert beat.nodes[0].name == '/elsewhere/renamed'


def test_a_wrong_parameter_keeps_the_node_unconfigured_and_says_so(graph, start):
    """No exit (launch would loop): FAILURE once, with the reason in log and heartbeat."""
    ear = Ear(graph)
    process = start('probe', *NS, '-p', 'level:=12', '-p', 'levle:=1')
    beat = ear.wait(lambda beat: 'levle' in beat.nodes[0].info)
    assert beat.nodes[0].state == NodeStatus.UNCONFIGURED
    assert 'parameter level is 12, out of range: 0 to 9' in beat.nodes[0].info
    ear.wait(lambda later: later.count > beat.count + 15)
    assert process.text().count('out of range') == 1


@pytest.mark.parametrize(
    ('kind', 'arguments', 'environment', 'words'),
    [
        ('pair', (*NS, '-r', '__node:=x'), {}, '__node:=x would give 2 nodes one name'),
        ('probe', ('extra', *NS), {}, 'unknown arguments extra'),
        ('probe', (*NS, '--params-file', '/nonexistent.yaml'), {}, '/nonexistent.yaml'),
        ('probe', NS, {'HEQIS_HEARTBEAT_HZ': 'often'}, 'HEQIS_HEARTBEAT_HZ'),
        ('broken', NS, {}, 'no such device'),
    ],
)
def test_what_cannot_start_says_why_in_one_line(start, kind, arguments, environment, words):
    """Exit code 2 and one line, no traceback."""
    process = start(kind, *arguments, **environment)
    assert process.process.wait(10.0) == 2
    lines = [line for line in process.text().splitlines() if words in line]
    assert len(lines) == 1, process.text()
    assert lines[0].startswith(f'{kind}: cannot start: ')
    assert 'Traceback' not in process.text()


def test_a_failure_that_no_gate_catches_ends_the_process_with_one_last_line(start):
    """Exit code 1: launch starts it again."""
    process = start('buggy', *NS)
    assert process.process.wait(10.0) == 1
    lines = process.text().splitlines()
    assert lines[-1] == "buggy: failed: KeyError: 'lost'"
    assert process.text().count('Traceback') == 1


def test_a_hung_process_can_be_asked_where_it_is(graph, start):
    """SIGUSR1 prints the stacks and changes nothing else."""
    ear = Ear(graph)
    process = start('probe', *NS)
    ear.wait_active()
    process.process.send_signal(signal.SIGUSR1)
    graph.spin_until(lambda: '_spin' in process.text(), what='stacks')
    assert process.process.poll() is None
    assert process.end()[0] == 0
