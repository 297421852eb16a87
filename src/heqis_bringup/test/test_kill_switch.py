# SPDX-License-Identifier: Apache-2.0
"""`heqis kill-switch` against a real risk gate: what is printed, and the exit status."""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result

from heqis_bringup import kill_switch
from heqis_core.errors import ConfigError
from heqis_core.io.journal import Journal
from heqis_ros.heartbeat import HeartbeatThread
from heqis_ros.testing import Graph, private_domain, ros_graph
from heqis_supervisor.risk_gate_node import RiskGateNode
from heqis_supervisor.store import Store


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    files = {'path': str(tmp_path / 'journal.db'), 'kill_file': str(tmp_path / 'KILL')}
    params = {**files, 'require_supervisor': False}
    with ros_graph(params) as graph:
        gate = graph.add(RiskGateNode(Store()))
        heartbeat = HeartbeatThread('journal', [gate])
        try:
            assert gate.trigger_configure() == Result.SUCCESS
            assert gate.trigger_activate() == Result.SUCCESS
            yield graph
        finally:
            heartbeat.stop()


def heqis(*words: str) -> int:
    parser = argparse.ArgumentParser(prog='heqis')
    kill_switch.register(parser.add_subparsers())
    args = parser.parse_args(['kill-switch', *words])
    return int(args.func(args))


def run(graph: Graph, *words: str) -> int:
    """Run the command in a thread while the gate's executor spins."""
    ended: list[int | ConfigError] = []

    def command() -> None:
        try:
            ended.append(heqis(*words, '--node', '/risk_gate', '--timeout', '10'))
        except ConfigError as error:
            ended.append(error)

    thread = threading.Thread(target=command)
    thread.start()
    graph.spin_until(lambda: not thread.is_alive(), 30, 'the command ends')
    if isinstance(ended[0], ConfigError):
        raise ended[0]
    return ended[0]


def shown(graph: Graph, capsys: pytest.CaptureFixture[str], engaged: bool) -> str:
    """Return what `show` prints once a heartbeat says so."""
    said: list[str] = []

    def so() -> bool:
        capsys.readouterr()
        assert run(graph, 'show', '--json') == 0
        found = json.loads(capsys.readouterr().out)
        assert found['node'] == '/risk_gate'
        said.append(found['says'])
        return found['engaged'] is engaged

    graph.spin_until(so, 20)
    return said[-1]


def test_on_and_off_say_the_state_and_show_says_who_and_why(graph, tmp_path, capsys):
    assert run(graph, 'on', '--reason', 'smoke') == 0
    out = capsys.readouterr().out
    assert out.startswith('/risk_gate: engaged by service since ')
    assert f'@{socket.gethostname()}: smoke; every signal is refused\n' in out
    assert ': smoke' in shown(graph, capsys, engaged=True)
    assert run(graph, 'off') == 0
    assert capsys.readouterr().out == '/risk_gate: not engaged; signals go out again\n'
    assert shown(graph, capsys, engaged=False) == 'not engaged'
    with Journal.open(tmp_path / 'journal.db', read_only=True) as journal:
        assert '"engaged":false' in str(journal.get_meta('kill_switch'))


def test_off_is_not_done_while_the_file_is_there_and_names_it(graph, tmp_path, capsys):
    (tmp_path / 'KILL').write_text('by hand')
    assert run(graph, 'on') == 0
    assert run(graph, 'off', '--json') == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['engaged'] is True
    assert found['done'] is False
    assert found['says'].startswith(f'engaged by file {tmp_path}/KILL since ')
    assert 'by service' not in found['says']
    (tmp_path / 'KILL').unlink()
    assert run(graph, 'off') == 0


def test_a_gate_that_is_not_active_is_an_error_that_says_so(graph):
    assert graph.nodes[0].trigger_deactivate() == Result.SUCCESS
    with pytest.raises(ConfigError, match=r'/risk_gate is not active .*no signal goes out'):
        run(graph, 'show')
    assert run(graph, 'on') == 0, 'it can be stopped before it goes on'


def test_a_gate_that_does_not_answer_is_an_error_and_the_file_is_named(graph):
    # Its executor stands still: nobody spins it here.
    with pytest.raises(ConfigError, match=r'not answered within 1 s.*touch run/KILL'):
        heqis('on', '--node', '/risk_gate', '--timeout', '1')


@pytest.mark.parametrize('action', ['on', 'off', 'show'])
def test_a_gate_that_is_not_there_is_an_error_and_the_file_is_named(action):
    private_domain()
    with pytest.raises(ConfigError, match=r'/lab/risk_gate .*ROS_DOMAIN_ID.*touch run/KILL'):
        heqis(action, '--node', '/lab/risk_gate', '--timeout', '0.3')


@pytest.mark.parametrize('words', [('on', '--node', 'gate'), ('show', '--reason', 'x')])
def test_words_that_do_not_go_together_are_refused_before_anything_is_called(words):
    with pytest.raises(ConfigError):
        heqis(*words)
