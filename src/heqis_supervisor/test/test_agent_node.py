# SPDX-License-Identifier: Apache-2.0
"""The agent hands heartbeats on, does what it is told, and says what became of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node

from heqis_core.control import (
    Beats,
    Hello,
    Kill,
    NodeState,
    Overview,
    ProcessBeat,
    Reboot,
    Result,
    Transit,
    Transition,
)
from heqis_core.errors import LinkError
from heqis_core.io.control_link import SupervisorLink
from heqis_core.testing import free_port
from heqis_msgs.msg import Event as EventMsg
from heqis_msgs.msg import Heartbeat
from heqis_ros import qos, vitals
from heqis_ros.node import ManagedNode
from heqis_ros.params import ParamTable
from heqis_ros.testing import ros_graph
from heqis_supervisor.agent_node import AgentNode
from heqis_supervisor.board import start_ticks
from heqis_supervisor.params import AGENT


class Managed(ManagedNode):
    PARAMS = ParamTable('managed', AGENT.params)
    refuse = False

    def configure(self, params):
        if self.refuse:
            raise LinkError('no')


class Bench:
    """An agent, a node for it to drive, and the supervisor's end of the link."""

    def __init__(self, graph, endpoint: str) -> None:
        self.graph = graph
        self.link = SupervisorLink(endpoint)
        self.heard: list = []
        self.agent = graph.add(AgentNode())
        self.managed = graph.add(Managed())
        node = graph.add(Node('somebody'))
        self.beats: list[Heartbeat] = []
        self.beat = node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        node.create_subscription(Heartbeat, 'heartbeat', self.beats.append, qos.HEARTBEAT)
        assert self.agent.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert self.agent.trigger_activate() == TransitionCallbackReturn.SUCCESS
        self.until(lambda: self.link.boards(), 'the agent reports in')
        self.until(lambda: self.beat.get_subscription_count() == 2, 'heartbeats can be heard')

    def until(self, condition, what: str = '') -> None:
        def so():
            self.heard += self.link.poll(0)
            return condition()

        self.graph.spin_until(so, 15, what)

    def result(self, number: int) -> Result:
        def found():
            return [m for m in self.heard if isinstance(m, Result) and m.id == number]

        self.until(found, f'the result of order {number}')
        return found()[0]

    def order(
        self, number: int, transition: Transition, node='/managed', timeout_ms=5000
    ) -> Result:
        self.until(
            lambda: self.link.send('compute', Transit(number, node, transition, timeout_ms))
        )
        return self.result(number)


@pytest.fixture
def start_fake() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a process with one managed node."""
    running: list[subprocess.Popen] = []

    def start(process: str, node: str) -> subprocess.Popen:
        script = Path(__file__).with_name('fake_process.py')
        running.append(subprocess.Popen([sys.executable, str(script), process, node]))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def bench(monkeypatch, request):
    monkeypatch.setenv('HEQIS_BOARD', 'compute')
    endpoint = f'tcp://127.0.0.1:{free_port()}'
    params = {'control_endpoint': endpoint, **getattr(request, 'param', {})}
    with ros_graph(params) as graph:
        bench = Bench(graph, endpoint)
        yield bench
        bench.link.close()


def test_it_says_hello_with_its_board_and_is_named_after_it(bench) -> None:
    hello = next(message for message in bench.heard if isinstance(message, Hello))
    assert (hello.board, hello.pid, hello.agent_id) == (
        'compute',
        os.getpid(),
        bench.agent.start_id,
    )
    assert bench.agent.get_name() == 'compute_agent'


def test_transitions_are_made_and_answered(bench) -> None:
    for number, (transition, state) in enumerate(
        [
            (Transition.CONFIGURE, NodeState.INACTIVE),
            (Transition.ACTIVATE, NodeState.ACTIVE),
            (Transition.DEACTIVATE, NodeState.INACTIVE),
            (Transition.CLEANUP, NodeState.UNCONFIGURED),
        ]
    ):
        assert bench.order(number, transition) == Result(
            number, 'compute', bench.agent.start_id, True, '', state
        )
        assert bench.managed.state == state


def test_a_refusal_an_impossible_transition_and_a_missing_node_are_told_apart(bench) -> None:
    impossible = bench.order(1, Transition.ACTIVATE)
    assert (impossible.ok, impossible.text) == (False, 'refused')
    bench.managed.refuse = True
    assert bench.order(2, Transition.CONFIGURE).ok is False
    assert bench.managed.state == NodeState.UNCONFIGURED
    missing = bench.order(3, Transition.CONFIGURE, '/nobody', 200)
    assert (missing.ok, 'lifecycle service is not there' in missing.text) == (False, True)


def test_an_order_that_is_given_again_takes_the_place_of_the_first(bench) -> None:
    bench.until(
        lambda: bench.link.send('compute', Transit(1, '/late', Transition.CONFIGURE, 20_000))
    )
    bench.until(lambda: bench.agent._orders, 'the first is under way')
    bench.link.send('compute', Transit(2, '/late', Transition.CONFIGURE, 20_000))
    bench.until(lambda: bench.agent.vitals.counters().get('orders_repeated') == 1, 'the second')
    late = bench.graph.add(Managed('late'))
    assert bench.result(2).ok
    assert late.state == NodeState.INACTIVE
    bench.graph.spin_for(0.5)
    assert [m.id for m in bench.heard if isinstance(m, Result)] == [2]


def test_the_server_of_a_killed_process_is_not_taken_for_that_of_its_next_start(
    bench, start_fake
) -> None:
    starts, servers = set(), set()
    for number in range(1, 4):
        process = start_fake('brain', 'thinker')
        bench.until(
            lambda seen=frozenset(starts): (
                bench.agent._watched.start_of('/thinker') not in seen | {0}
            ),
            'its heartbeat',
        )
        starts.add(bench.agent._watched.start_of('/thinker'))
        answer = bench.order(number, Transition.CONFIGURE, '/thinker', 15_000)
        assert (answer.ok, answer.state) == (True, NodeState.INACTIVE)
        found = bench.agent._changers['/thinker'].servers
        assert len(found - servers) == 1, 'one that was not there before'
        servers |= found
        process.kill()
        process.wait()
    assert len(starts) == 3
    assert 'orders_repeated' not in bench.agent.vitals.counters()


def test_heartbeats_of_its_board_are_handed_on_once_and_completed(bench) -> None:
    ours = Heartbeat(board='compute', process='brain', pid=os.getpid(), start_id=7, boot_id='x')
    theirs = Heartbeat(board='gateway', process='journal', pid=1, start_id=8)
    for count in (1, 2, 2, 1, 3):
        ours.count = theirs.count = count
        bench.beat.publish(ours)
        bench.beat.publish(theirs)
        bench.graph.spin_for(0.05)
    found: list[ProcessBeat] = []
    bench.until(
        lambda: any(b.count == 3 for m in bench.heard if isinstance(m, Beats) for b in m.beats)
    )
    found = [b for m in bench.heard if isinstance(m, Beats) for b in m.beats]
    assert [(b.process, b.count) for b in found] == [('brain', 1), ('brain', 2), ('brain', 3)]
    assert found[0].proc_start == 0, 'a process of another boot'


def test_the_supervisors_heartbeat_is_repeated_only_where_it_is_not_heard(bench) -> None:
    own = ProcessBeat('gateway', 'supervisor', 'h', 1, 77, 1, 0, 'b', hold=True)
    bench.until(lambda: bench.link.broadcast(Overview(own)) == 1)
    bench.until(lambda: any(beat.start_id == 77 for beat in bench.beats), 'repeated')
    repeated = next(beat for beat in bench.beats if beat.start_id == 77)
    assert (repeated.board, repeated.process, repeated.hold) == ('gateway', 'supervisor', True)
    direct = Heartbeat(board='gateway', process='supervisor', start_id=77, count=10)
    bench.beat.publish(direct)
    heard = bench.agent._heard_s
    bench.until(lambda: bench.agent._heard_s > heard)
    bench.until(lambda: any(beat.count == 10 for beat in bench.beats))
    bench.beats.clear()
    bench.link.broadcast(Overview(ProcessBeat('gateway', 'supervisor', 'h', 1, 77, 11, 0, 'b')))
    bench.graph.spin_for(0.2)
    assert [beat.count for beat in bench.beats] == [], 'it was heard a moment ago'
    assert bench.agent.vitals.counters()['supervisor_repeated'] == 1


def test_a_kill_that_is_not_for_this_machine_is_refused(bench) -> None:
    kill = Kill(9, 'brain', os.getpid(), 7, 'another boot', start_ticks(os.getpid()))
    bench.until(lambda: bench.link.send('compute', kill))
    result = bench.result(9)
    assert (result.ok, 'does not run on this machine' in result.text) == (False, True)


def test_it_comes_back_to_a_new_supervisor(bench) -> None:
    endpoint = bench.link.endpoint
    bench.link.close()
    bench.link = SupervisorLink(endpoint)
    bench.until(lambda: bench.link.boards() == {'compute': bench.agent.start_id})
    assert bench.order(1, Transition.CONFIGURE).ok


def reboot(bench, number: int, boot_id: str | None = None) -> Result:
    bench.until(
        lambda: bench.link.send('compute', Reboot(number, boot_id or vitals.boot_id())), 'sent'
    )
    return bench.result(number)


def test_an_order_to_reboot_is_refused_where_no_command_is_named(bench) -> None:
    answer = reboot(bench, 1)
    assert (answer.ok, answer.text) == (False, 'the agent of board compute has no reboot_command')


@pytest.mark.parametrize('bench', [{'reboot_command': 'mkdir "a board"'}], indirect=True)
def test_the_command_is_run_once_for_this_boot_and_what_it_said_comes_back(
    bench, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    late = reboot(bench, 1, 'a boot before')
    assert (late.ok, 'has booted anew since' in late.text) == (False, True)
    assert not Path('a board').exists()
    done = reboot(bench, 2)
    assert (done.ok, done.text) == (True, 'ran: mkdir "a board"')
    assert Path('a board').is_dir()
    again = reboot(bench, 3)
    assert not again.ok
    assert 'ended with 1; it said: mkdir: cannot create directory' in again.text
    assert bench.agent.vitals.counters()['reboots'] == 2


@pytest.mark.parametrize(
    ('line', 'text'),
    [
        ('"open', 'No closing quotation'),
        ('   ', 'names no program'),
        ('/no/such/program now', 'there is no program /no/such/program'),
    ],
)
def test_a_command_that_cannot_be_run_is_named_before_anything_starts(
    monkeypatch, line, text
) -> None:
    monkeypatch.setenv('HEQIS_BOARD', 'compute')
    params = {'control_endpoint': f'tcp://127.0.0.1:{free_port()}', 'reboot_command': line}
    with ros_graph(params) as graph:
        agent = graph.add(AgentNode())
        assert agent.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert text in agent.vitals.failure


def test_a_silent_supervisor_of_its_board_is_told_as_an_event_and_on_diagnostics(bench) -> None:
    """The supervisor cannot say that itself; one of another board is not this agent's affair."""
    node = bench.graph.add(Node('listener'))
    events: list[EventMsg] = []
    told: list[DiagnosticArray] = []
    node.create_subscription(EventMsg, 'events', events.append, qos.EVENTS)
    node.create_subscription(DiagnosticArray, '/diagnostics', told.append, qos.DIAGNOSTICS)
    bench.until(lambda: bench.agent._events.get_subscription_count() == 1)
    bench.until(lambda: bench.agent._diagnostics.get_subscription_count() == 1)
    bench.beat.publish(Heartbeat(board='gateway', process='supervisor', start_id=70, count=1))
    bench.graph.spin_for(1.2)
    assert (events, told) == ([], [])
    own = Heartbeat(board='compute', process='supervisor', start_id=77, count=1)
    bench.beat.publish(own)
    bench.until(lambda: len(events) == 1 and len(told) >= 2, 'it is missed')
    assert (events[0].kind, events[0].subject) == ('supervisor_lost', 'compute/supervisor')
    said = {status.name: status.level for message in told for status in message.status}
    assert said == dict.fromkeys(('heqis/graph', 'heqis/process/compute/supervisor'), b'\x02')
    own.count = 2
    bench.beat.publish(own)
    bench.until(lambda: any(event.kind == 'supervisor_back' for event in events))
