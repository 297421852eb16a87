# SPDX-License-Identifier: Apache-2.0
"""The gate as a node: durable before published, refusals, the kill switch, a kill -9."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result
from rclpy.node import Node

from heqis_core.decision import Action, Reason, reason_names
from heqis_core.frame import Stage
from heqis_core.io.journal import Journal
from heqis_msgs.msg import Committed, Decisions, Event, Heartbeat, Signals
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.convert import decisions_to_msg
from heqis_ros.testing import ros_graph
from heqis_supervisor import risk_gate_node
from heqis_supervisor.bounds import Bounds, load_risk_rules
from heqis_supervisor.journal_node import JournalNode
from heqis_supervisor.risk_gate_node import RiskGateNode
from heqis_supervisor.store import Store


class Around:
    """Everyone that a risk gate deals with."""

    def __init__(self, graph, path: Path) -> None:
        self.graph, self.path = graph, path
        node = graph.add(Node('around'))
        self.signals: list[Signals] = []
        self.decisions: list[Decisions] = []
        self.committed: list[int] = []
        self.events: list[Event] = []
        self.not_durable: list[int] = []
        self.propose = node.create_publisher(Decisions, 'decisions/proposed', qos.DECISIONS)
        self.beat = node.create_publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        node.create_subscription(Signals, 'signals', self._signalled, qos.SIGNALS)
        node.create_subscription(Decisions, 'decisions', self.decisions.append, qos.DECISIONS)
        node.create_subscription(Committed, 'committed', self._closed, qos.COMMITTED)
        node.create_subscription(Event, 'events', self.events.append, qos.EVENTS)
        self.kill = node.create_client(KillSwitch, 'risk_gate/kill_switch')

    def _signalled(self, message: Signals) -> None:
        self.signals.append(message)
        with Journal.open(self.path, read_only=True) as journal:
            if message.seq not in {frame.seq for frame in journal.frames()}:
                self.not_durable.append(message.seq)

    def _closed(self, message: Committed) -> None:
        self.committed += message.seq

    def met(self) -> bool:
        topics = ('signals', 'decisions', 'committed')
        return self.propose.get_subscription_count() == 1 and all(
            self.graph.nodes[0].count_publishers(topic) == 1 for topic in topics
        )

    def send(self, item) -> None:
        self.propose.publish(decisions_to_msg(item))

    def call_kill_switch(self, engage: bool, reason: str = '') -> KillSwitch.Response:
        self.graph.spin_until(self.kill.service_is_ready)
        future = self.kill.call_async(KillSwitch.Request(engage=engage, reason=reason))
        self.graph.spin_until(future.done)
        return future.result()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'journal.sqlite'


@pytest.fixture
def kill_file(path: Path) -> Path:
    file = path.parent / 'stop' / 'KILL'
    file.parent.mkdir()
    return file


@pytest.fixture
def around(path: Path, kill_file: Path):
    params = {'path': str(path), 'kill_file': str(kill_file), 'require_supervisor': False}
    with ros_graph(params) as graph:
        yield Around(graph, path)


def bring_up(around: Around) -> RiskGateNode:
    gate = around.graph.add(RiskGateNode(Store()))
    assert gate.trigger_configure() == Result.SUCCESS
    assert gate.trigger_activate() == Result.SUCCESS
    around.graph.spin_until(around.met, what='everyone has met')
    return gate


def counters(gate) -> dict[str, int]:
    return gate.vitals.counters()


def test_signals_go_out_after_the_commit_with_their_stamps(around, frame) -> None:
    gate = bring_up(around)
    for seq in range(5):
        around.send(frame(seq, 1000 + seq, 10**18))
    around.graph.spin_until(lambda: len(around.committed) == 5)
    around.graph.spin_until(lambda: len(around.signals) == len(around.decisions) == 5)
    assert around.committed == [0, 1, 2, 3, 4]
    assert around.not_durable == []
    message = around.signals[3]
    assert [(s.symbol, s.action) for s in message.signals] == [('c', 2), ('d', 3)]
    assert 0 < message.stamps[Stage.GATED] <= message.stamps[Stage.COMMITTED]
    assert list(around.decisions[3].action) == [0, 1, 2, 3]
    around.graph.spin_until(lambda: counters(gate).get('frames') == 5)
    assert counters(gate)['signals'] == 10


def test_a_frame_that_comes_again_is_committed_again_but_no_signal(around, frame) -> None:
    bring_up(around)
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [1])
    around.send(frame(1, 1000, 10**18))
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: around.committed == [1, 1, 2] and len(around.signals) == 2)
    assert [message.seq for message in around.signals] == [1, 2]


def test_a_frame_without_signals_is_a_decision_but_no_signal(around, frame) -> None:
    bring_up(around)
    quiet = frame(1, 1000, 10**18)
    quiet.action[:] = Action.HOLD
    around.send(quiet)
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: around.committed == [1, 2] and len(around.signals) == 1)
    assert [message.seq for message in around.signals] == [2]


def test_stale_signals_are_refused_by_event_time_and_journalled(around, frame, path) -> None:
    bring_up(around)
    around.send(frame(1, 5000, 10_000))
    around.send(frame(2, 5001, 5000))
    around.graph.spin_until(lambda: around.committed == [1, 2])
    with Journal.open(path, read_only=True) as journal:
        first, second = journal.frames()
        counts = journal.counts()
    assert first.is_signal().sum() == 2, 'wall time does not matter in a replay'
    assert second.is_signal().sum() == 0
    assert second.reasons[2] & Reason.STALE
    assert (counts['signals'], counts['refused']) == (2, 2)


def test_without_a_supervisor_decisions_wait_and_are_let_out_when_it_is_back(path, frame) -> None:
    params = {'path': str(path), 'supervisor_lease_ms': 500, 'kill_file': ''}
    with ros_graph(params) as graph:
        around = Around(graph, path)
        speaks = [True]
        timer = graph.nodes[0].create_timer(
            0.05, lambda: speaks[0] and around.beat.publish(Heartbeat(process='supervisor'))
        )
        gate = bring_up(around)
        graph.spin_until(lambda: around.beat.get_subscription_count() == 1)
        around.send(frame(1, 1000, 10**18))
        graph.spin_until(lambda: around.committed == [1], what='judged')
        speaks[0] = False
        waits = lambda: counters(gate).get('waiting_for_supervisor')  # noqa: E731
        graph.spin_until(waits, what='the silence is noticed')
        for seq in (2, 3):
            around.send(frame(seq, 1000 + seq, 10**18))
        graph.spin_until(lambda: gate.vitals.pending == 2, what='two wait')
        graph.spin_for(0.5)
        assert around.committed == [1], 'neither let out nor refused'
        assert len(around.signals) == 1
        assert gate.vitals.info == 'decisions wait: the supervisor is silent'
        with Journal.open(path, read_only=True) as journal:
            assert journal.counts()['frames'] == 1
        speaks[0] = True
        graph.spin_until(lambda: around.committed == [1, 2, 3], what='judged when it is back')
        graph.spin_until(lambda: len(around.signals) == 3)
        assert not waits()
        timer.cancel()


def test_a_gate_that_was_activated_waits_for_no_heartbeat_for_one_lease(path, frame) -> None:
    params = {'path': str(path), 'supervisor_lease_ms': 60_000, 'kill_file': ''}
    with ros_graph(params) as graph:
        around = Around(graph, path)
        bring_up(around)
        around.send(frame(1, 1000, 10**18))
        graph.spin_until(lambda: around.committed == [1], what='judged in its grace')


def test_the_kill_switch_refuses_survives_a_restart_and_is_an_event(around, frame, path) -> None:
    gate = bring_up(around)
    answer = around.call_kill_switch(True, 'smoke')
    assert answer.engaged
    assert re.fullmatch(
        r'engaged by service since [\d-]+ [\d:]+ UTC: smoke; every signal is refused',
        answer.message,
    )
    around.graph.spin_until(lambda: bool(around.events))
    event = around.events[0]
    assert (event.kind, event.text) == ('kill_switch', 'engaged by service: smoke')
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [1])
    assert gate.trigger_deactivate() == Result.SUCCESS
    assert gate.trigger_cleanup() == Result.SUCCESS
    assert gate.trigger_configure() == Result.SUCCESS
    assert gate.trigger_activate() == Result.SUCCESS
    around.graph.spin_until(around.met)
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: around.committed == [1, 2])
    answer = around.call_kill_switch(False)
    assert (answer.engaged, answer.message) == (False, 'not engaged; signals go out again')
    around.send(frame(3, 1002, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 1)
    assert around.signals[0].seq == 3
    with Journal.open(path, read_only=True) as journal:
        refused = [
            bool((f.reasons & np.uint32(Reason.KILL_SWITCH)).any()) for f in journal.frames()
        ]
    assert refused == [True, True, False]


def restart(gate: RiskGateNode) -> None:
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert getattr(gate, f'trigger_{transition}')() == Result.SUCCESS


def switch_texts(path: Path) -> list[str]:
    with Journal.open(path, read_only=True) as journal:
        return [event.text for event in journal.events() if event.kind == 'kill_switch']


def test_a_file_refuses_the_very_next_frame_and_its_removal_lifts_it(
    around, frame, path, kill_file, monkeypatch
) -> None:
    # The report comes too late: what judges a frame looks by itself.
    monkeypatch.setattr(risk_gate_node, 'REPORT_S', 60.0)
    bring_up(around)
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 1)
    kill_file.touch()
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: around.committed == [1, 2])
    kill_file.unlink()
    around.send(frame(3, 1002, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 2)
    assert [message.seq for message in around.signals] == [1, 3]
    with Journal.open(path, read_only=True) as journal:
        second = list(journal.frames())[1]
    assert second.reasons[2] & Reason.KILL_SWITCH


def test_each_change_of_the_file_is_an_event_with_its_reason_that_outlives_a_restart(
    around, path, kill_file
) -> None:
    journal_node = around.graph.add(JournalNode(store := Store()))
    gate = around.graph.add(RiskGateNode(store))
    for node in (journal_node, gate):
        node.accept_siblings((journal_node, gate))
        assert node.trigger_configure() == Result.SUCCESS
        assert node.trigger_activate() == Result.SUCCESS
    around.graph.spin_until(lambda: journal_node.count_publishers('events') == 1)
    kill_file.write_text('a \x1b[31mred\nsecond line')
    told = ['engaged by file: a [31mred']
    around.graph.spin_until(lambda: switch_texts(path) == told)
    around.graph.spin_until(lambda: counters(gate)['kill_switch'] == 2)
    assert f'kill switch engaged by file {kill_file} since ' in gate.status().info
    restart(gate)
    kill_file.write_text('another')
    told.append('engaged by file: another')
    around.graph.spin_until(lambda: switch_texts(path) == told)
    for transition in ('deactivate', 'cleanup'):
        assert getattr(gate, f'trigger_{transition}')() == Result.SUCCESS
    kill_file.unlink()  # while nobody looks
    for transition in ('configure', 'activate'):
        assert getattr(gate, f'trigger_{transition}')() == Result.SUCCESS
    told.append('cleared by file')
    around.graph.spin_until(lambda: switch_texts(path) == told)
    around.graph.spin_until(lambda: counters(gate)['kill_switch'] == 0)
    assert gate.status().info == 'event clock'


def test_the_switch_is_engaged_while_the_service_or_the_file_says_so(
    around, frame, kill_file
) -> None:
    gate = bring_up(around)
    kill_file.write_text('by hand')
    assert around.call_kill_switch(True, 'smoke').engaged
    around.graph.spin_until(lambda: counters(gate).get('kill_switch') == 3)
    answer = around.call_kill_switch(False)
    assert answer.engaged
    assert answer.message.startswith(f'engaged by file {kill_file} since ')
    around.graph.spin_until(lambda: len(around.events) == 3)
    assert around.events[-1].text.endswith('; still engaged by file')
    around.call_kill_switch(True, 'again')
    kill_file.unlink()
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [1])
    assert around.signals == []
    assert around.call_kill_switch(False).engaged is False
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 1)


def test_a_file_that_cannot_be_looked_at_counts_as_there(around, frame, kill_file) -> None:
    folder = kill_file.parent
    folder.rmdir()
    folder.symlink_to(folder)
    gate = bring_up(around)
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [1])
    assert around.signals == []
    assert 'cannot be looked at (Too many levels of symbolic links)' in gate.status().info
    folder.unlink()
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 1)


def test_what_is_durable_but_not_published_stays_in_once_the_switch_is_engaged(
    around, frame, path, kill_file
) -> None:
    """As after a kill between commit and publication; a person stops everything meanwhile."""
    with Journal.open(path) as journal:
        journal.commit([frame(seq, 1000 + seq, 10**18) for seq in range(1, 12)])
    kill_file.touch()
    gate = bring_up(around)
    around.graph.spin_until(lambda: len(around.committed) == 11)
    around.graph.spin_until(lambda: len(around.decisions) == 11)
    assert around.signals == []
    for message in around.decisions:
        assert list(message.action) == [0, 1, 0, 0]
        assert message.reasons[3] & Reason.KILL_SWITCH
    assert counters(gate)['signals_withheld'] == 22
    around.graph.spin_until(lambda: any('withheld' in event.text for event in around.events))
    text = next(event.text for event in around.events if 'withheld' in event.text)
    assert text.startswith('withheld 22 signals that were durable before: s seq 1, s seq 2')
    assert text.endswith('s seq 8 and 3 more frames')


def test_a_journal_that_cannot_be_written_neither_lifts_the_switch_nor_will_later(
    around, path, monkeypatch
) -> None:
    gate = bring_up(around)
    around.call_kill_switch(True, 'smoke')
    held = threading.Event()
    write = Journal.set_meta

    def stuck(journal: Journal, key: str, value: str) -> None:
        held.wait(20)
        write(journal, key, value)

    monkeypatch.setattr(Journal, 'set_meta', stuck)
    answer = around.call_kill_switch(False, 'go on')
    assert answer.engaged
    assert answer.message.startswith('not cleared: ')
    assert 'engaged by service since' in answer.message
    held.set()
    assert gate.trigger_deactivate() == Result.SUCCESS
    assert gate.trigger_cleanup() == Result.SUCCESS
    with Journal.open(path, read_only=True) as journal:
        assert '"engaged":true' in journal.get_meta('kill_switch')


def test_the_supervisors_hold_stops_signals(around, frame) -> None:
    gate = bring_up(around)
    around.graph.spin_until(lambda: around.beat.get_subscription_count() == 1)

    def held(process: str, hold: bool, wanted: int) -> None:
        def so() -> bool:
            around.beat.publish(Heartbeat(board='gateway', process=process, hold=hold))
            return counters(gate).get('hold') == wanted

        around.graph.spin_until(so)

    held('supervisor', True, 1)
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [1])
    held('other', False, 1)
    held('supervisor', False, 0)
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: len(around.signals) == 1)
    assert around.signals[0].seq == 2


def test_a_message_that_does_not_fit_together_is_counted(around, frame) -> None:
    gate = bring_up(around)
    broken = decisions_to_msg(frame(1))
    broken.score = broken.score[:2]
    around.propose.publish(broken)
    around.send(frame(2, 1000, 10**18))
    around.graph.spin_until(lambda: around.committed == [2])
    assert counters(gate)['bad_messages'] == 1


def test_while_inactive_nothing_is_taken_or_published(around, frame) -> None:
    gate = bring_up(around)
    assert gate.trigger_deactivate() == Result.SUCCESS
    around.send(frame(1, 1000, 10**18))
    around.graph.spin_until(lambda: counters(gate).get('discarded_inactive', 0) == 1)
    assert gate.trigger_activate() == Result.SUCCESS
    around.send(frame(2, 1001, 10**18))
    around.graph.spin_until(lambda: around.committed == [2])


def test_a_journal_that_is_taken_is_refused_with_the_reason(around, path) -> None:
    with Journal.open(path):
        gate = around.graph.add(RiskGateNode(Store()))
        assert gate.trigger_configure() == Result.FAILURE
        assert 'is being written by process' in gate.vitals.failure
    assert gate.trigger_configure() == Result.SUCCESS


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / 'risk.yaml'
    path.write_text('max_positions: 2\nblocked: [a, nobody]\n')
    return path


def bought(frame, seq: int, actions: str):
    """Return a frame whose symbols a, b, c, d are B, S or -, with scores that rise."""
    item = frame(seq, 1000 + seq, 10**18)
    item.action[:] = [{'B': Action.BUY, 'S': Action.SELL, '-': Action.HOLD}[c] for c in actions]
    item.reasons[:] = 0
    return item


def test_the_risk_rules_refuse_are_counted_and_hold_across_a_restart(frame, path, rules) -> None:
    params = {'path': str(path), 'rules': str(rules), 'kill_file': ''}
    with ros_graph({**params, 'require_supervisor': False}) as graph:
        around = Around(graph, path)
        gate = bring_up(around)
        around.send(bought(frame, 1, 'BBBB'))
        around.graph.spin_until(lambda: around.committed == [1] and len(around.signals) == 1)
        assert [each.symbol for each in around.signals[0].signals] == ['c', 'd']
        around.graph.spin_until(lambda: counters(gate).get('refused.max_positions') == 1)
        assert counters(gate)['refused.blocked'] == 1
        assert counters(gate)['positions'] == 2
        assert counters(gate)['rules_unknown'] == 1
        restart(gate)
        around.graph.spin_until(around.met)
        around.send(bought(frame, 1, 'BBBB'))
        around.send(bought(frame, 2, '-B-S'))
        around.send(bought(frame, 3, '-B-B'))
        around.graph.spin_until(lambda: around.committed == [1, 1, 2, 3])
    with Journal.open(path, read_only=True) as journal:
        frames = list(journal.frames())
        assert [row.symbol for row in journal.holdings()] == ['b', 'c']
    names = [[reason_names(bits) for bits in item.reasons.tolist()] for item in frames]
    assert names[0] == [('blocked',), ('max_positions',), (), ()]
    assert frames[1].action.tolist() == [Action.HOLD, Action.BUY, Action.HOLD, Action.SELL]
    assert names[2][3] == ('max_positions',)


def test_rules_that_do_not_fit_keep_the_gate_from_starting(path, rules) -> None:
    rules.write_text('max_positions: 2\nblocked: 600519.SH\n')
    with ros_graph({'path': str(path), 'rules': str(rules), 'kill_file': ''}) as graph:
        gate = graph.add(RiskGateNode(Store()))
        assert gate.trigger_configure() == Result.FAILURE
        assert f'{rules}:2: blocked: Expected `array | null`' in gate.vitals.failure
        rules.write_text('max_positions: 2\n')
        assert gate.trigger_configure() == Result.SUCCESS


def log(path: Path) -> str:
    return (path.parent / 'journal.log').read_text()


@pytest.mark.graph
def test_killed_in_the_middle_no_frame_is_lost_or_doubled(around, frame, path, start) -> None:
    """The observer is the gateway: it sends open frames until it hears that they are durable."""
    process = start('journal')
    total, window = 400, 32
    open_frames = {seq: frame(seq, 1000 + seq, 10**18) for seq in range(total)}
    kills = 0

    def pump() -> bool:
        nonlocal process, kills
        for seq in around.committed:
            open_frames.pop(seq, None)
        done = total - len(open_frames)
        if kills < 3 and done > (kills + 1) * total / 5:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = start('journal')
        for item in list(open_frames.values())[:window]:
            around.send(item)
        around.graph.spin_for(0.02)
        return not open_frames

    try:
        around.graph.spin_until(pump, 60, 'every frame is durable')
    except AssertionError:
        pytest.fail(f'{len(open_frames)} frames open, kills {kills}; ' + log(path))
    assert kills == 3

    def unheard() -> set[int]:
        return set(range(total)) - {message.seq for message in around.signals}

    try:
        around.graph.spin_until(lambda: not unheard(), 10)
    except AssertionError:
        pytest.fail(f'signals that nobody heard: {sorted(unheard())}; ' + log(path))
    process.terminate()
    assert process.wait(5) == 0
    with Journal.open(path, read_only=True) as journal:
        assert [each.seq for each in journal.frames()] == list(range(total))
        assert journal.counts()['conflicts'] == 0
    assert around.not_durable == []


@pytest.mark.graph
def test_killed_in_the_middle_the_bounds_hold_as_if_nothing_had_happened(
    around, frame, path, start, rules
) -> None:
    """Expected are the verdicts of one run over the proposals, in the order of their commit."""
    rng = np.random.default_rng(11)
    total, window, kills = 200, 16, 0
    proposals = {
        seq: bought(frame, seq, ''.join(rng.choice(list('BBS-'), 4))) for seq in range(total)
    }
    process = start('journal', '-p', f'risk_gate:rules:={rules}')
    still_open = dict(proposals)

    def pump() -> bool:
        nonlocal process, kills
        for seq in around.committed:
            still_open.pop(seq, None)
        if kills < 2 and total - len(still_open) > (kills + 1) * total / 4:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = start('journal', '-p', f'risk_gate:rules:={rules}')
        for item in list(still_open.values())[:window]:
            around.send(item)
        around.graph.spin_for(0.02)
        return not still_open

    try:
        around.graph.spin_until(pump, 60, 'every frame is durable')
    except AssertionError:
        pytest.fail(f'{len(still_open)} frames open, kills {kills}; ' + log(path))
    process.terminate()
    assert process.wait(5) == 0
    assert kills == 2
    with Journal.open(path, read_only=True) as journal:
        found, _ = journal.newer(0, 10**6)
    assert sorted(item.seq for item in found) == list(range(total))
    bounds = Bounds(load_risk_rules(rules))
    for item in found:
        expected = bounds.judge(proposals[item.seq])
        bounds.settle(durable=True)
        assert item.action.tolist() == expected.action.tolist(), item.seq
        assert item.reasons.tolist() == expected.reasons.tolist(), item.seq
        assert bounds.positions <= 2
    assert sum(item.refusals().get('max_positions', 0) for item in found) > 20
