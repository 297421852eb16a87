# SPDX-License-Identifier: Apache-2.0
"""A real supervisor resets a board by a real Modbus relay, and gives up in the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from heqis_core.control import Hello
from heqis_core.io.control_link import AgentLink
from heqis_core.io.testing_modbus import FakeDevice, tcp_devices
from heqis_core.testing import free_port
from heqis_msgs.srv import ClearLatch, ResetBoard

pytestmark = pytest.mark.graph
UP_S = 40.0
HOLD_MS = 1_500
RESETS = """\
version: 1
resets:
- board: compute
  driver: modbus
  host: 127.0.0.1
  port: {port}
  coil: 4
  hold_ms: {hold_ms}
  reset_after_ms: 3000
  boot_ms: 1000
  resets_max: 2
  cooldown_ms: 100
"""


class Agent:
    """The agent of a board on a machine that boots when it is told to; its link is real."""

    def __init__(self) -> None:
        self.boot, self.silent = 1, False
        self._stop = threading.Event()

    def run(self, endpoint: str) -> None:
        link = AgentLink(endpoint)
        while not self._stop.is_set():
            if not self.silent:
                link.send(Hello('compute', self.boot, 'h', f'boot {self.boot}', 1))
            link.poll(100)
        link.close()

    @contextmanager
    def on(self, endpoint: str) -> Iterator[None]:
        thread = threading.Thread(target=self.run, args=(endpoint,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(5)


def pulses(relay: FakeDevice) -> int:
    return sum(on for _, on, _ in relay.writes)


def test_a_board_is_reset_by_its_relay_and_latched_when_that_does_not_help(real_graph) -> None:
    relay, agent, port = FakeDevice(), Agent(), free_port()
    resets = real_graph.folder / 'resets.yaml'
    resets.write_text(RESETS.format(port=port, hold_ms=HOLD_MS))
    real_graph.params['supervisor'] = {
        'resets': resets,
        'state_dir': real_graph.folder / 'state',
    }
    beats: list[tuple[int, int, bool]] = []
    step = lambda: real_graph.values('board/compute').get('step')  # noqa: E731

    def heard() -> bool:
        beat = real_graph.beats.get('gateway/supervisor')
        if beat is not None and (not beats or beat.count != beats[-1][0]):
            beats.append((beat.count, beat.stamp_ns, beat.hold))
        return True

    def until(condition, timeout_s: float, what: str) -> None:
        real_graph.until(lambda: heard() and condition(), timeout_s, what)

    def kinds() -> list[str]:
        return [f'{event.kind} {event.subject}' for event in real_graph.events]

    with tcp_devices(port, relay), agent.on(real_graph.endpoint):
        real_graph.start('supervisor')
        # One that never reported in is not reset: wait until the agent has been heard.
        until(
            lambda: (
                step() == 'NONE'
                and relay.writes
                and real_graph.values('board/compute').get('boot_id') == 'boot 1'
            ),
            UP_S,
            'a watched board, a coil at rest',
        )
        ask = services(real_graph, until)

        dry = ask('reset_board', ResetBoard, board='compute', dry_run=True)
        assert dry.accepted
        assert dry.message.startswith('dry run: board compute would be reset: coil 4 of unit 1')
        assert pulses(relay) == 0

        agent.silent = True
        until(lambda: pulses(relay) == 1, 15, 'the coil is on')
        since = len(beats)
        refused = ask('reset_board', ResetBoard, board='compute', reason='me too')
        assert (refused.accepted, 'is under way: silent for' in refused.message) == (False, True)
        until(lambda: not relay.writes[-1][1], 10, 'the coil is off')
        (_, _, on_s), (_, _, off_s) = relay.writes[-2:]
        assert off_s - on_s >= HOLD_MS / 1000 - 0.05
        sent_ns = [stamp_ns for _, stamp_ns, _ in beats[since:]]
        assert len(sent_ns) > 5, 'its heartbeat goes on during the pulse'
        gap_ns = max(later - earlier for earlier, later in pairwise(sent_ns))
        assert gap_ns < 1e9, 'ten in a second, on a busy machine'
        agent.boot, agent.silent = 2, False
        until(lambda: 'board_reset compute' in kinds(), 10, 'a new boot')
        assert 'board_reset_begun compute' in kinds()

        agent.silent = True
        until(lambda: step() == 'SAFE_LATCH', 20, 'the budget is used up')
        assert pulses(relay) == 2
        assert 'latched board/compute' in kinds()
        assert 'reset_without_effect compute' in kinds()
        until(lambda: beats[-1][2], 5, 'output is held')

        pid = real_graph.running['supervisor'].pid
        os.kill(pid, signal.SIGKILL)
        real_graph.diagnostics.clear()
        until(lambda: step() == 'SAFE_LATCH', UP_S, 'the next supervisor knows')
        assert real_graph.running['supervisor'].pid != pid
        agent.boot, agent.silent = 3, False
        until(lambda: real_graph.values('board/compute')['boot_id'] == 'boot 3', 10, 'it is back')
        assert step() == 'SAFE_LATCH'
        ask = services(real_graph, until)
        wrong = ask('clear_latch', ClearLatch, subject='compute')
        assert wrong.message == 'not latched; latched is: board/compute'
        right = ask('clear_latch', ClearLatch, subject='board/compute', reason='new cable')
        assert list(right.cleared) == ['board/compute']
        until(lambda: step() == 'NONE' and not beats[-1][2], 10, 'cleared')
        assert 'clear_latch board/compute' in kinds()
        spent = ask('reset_board', ResetBoard, board='compute', reason='to be sure')
        assert spent.message == '2 of 2 resets in 3600 s are used up'
        assert pulses(relay) == 2


def services(real_graph, until):
    clients = {}

    def ask(name, kind, **request):
        if name not in clients:
            clients[name] = real_graph.node.create_client(kind, f'/heqis/supervisor/{name}')
        client = clients[name]
        until(client.service_is_ready, 20, name)
        future = client.call_async(kind.Request(**request))
        until(future.done, 10, 'the answer')
        return future.result()

    return ask
