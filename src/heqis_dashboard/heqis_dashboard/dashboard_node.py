# SPDX-License-Identifier: Apache-2.0
"""The dashboard node: listens to the graph, catches up from gateway and journal, serves the page.

It looks on, and works the kill switch for a person where `actions` lets it. Its subscriptions are
best effort, so that no publisher ever waits for it, and what they lose comes from the gateway's
history of bars and from the journal, once a second.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import tzinfo
from typing import Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from diagnostic_msgs.msg import DiagnosticArray

from heqis_core.errors import ConfigError, HeqisError, WireError
from heqis_core.graph_state import GraphState
from heqis_core.hosts import is_loopback
from heqis_dashboard import server
from heqis_dashboard.bell import Bell
from heqis_dashboard.chart import Style
from heqis_dashboard.feed import Feed
from heqis_dashboard.journal_tail import BATCH, JournalTail
from heqis_dashboard.live import PageData
from heqis_dashboard.page import draw, make_app
from heqis_dashboard.params import DASHBOARD
from heqis_dashboard.views import Sources
from heqis_msgs.msg import BarBlock, Decisions, Event, Heartbeat
from heqis_msgs.srv import KillSwitch, MissedBars
from heqis_ros import qos
from heqis_ros.convert import msg_to_block, msg_to_decisions
from heqis_ros.graph_ears import GraphEars
from heqis_ros.inbox import Inbox, Tray
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process

LISTEN_S = 0.04
"""Time between two looks at what came: what makes a page wait, and what bounds the work."""
CATCH_UP_S = 1.0
ANSWER_S = 2.0
SWITCH_S = 5.0
"""The gate answers when its journal has it, or says after 2 s that it has not."""
SWITCH_POLL_S = 0.02
REPORT_S = 0.5
NICE = 10
"""Who looks on must not slow what he looks at: the graph's processes go first."""
_BYTES_PER_MB = 1_000_000


class DashboardNode(ManagedNode):
    """Shows a graph to people."""

    PARAMS = DASHBOARD

    def __init__(self) -> None:
        """Create an unconfigured node, which brings itself up if its parameter says so."""
        super().__init__()
        self.AUTOSTART = bool(self.get_parameter('autostart').value)

    def configure(self, params: Any) -> None:
        """Listen on the port and to the topics; refuse a port that is taken."""
        zone = _zone(params.timezone)
        socket = server.bind(params.host, params.port, params.trusted_network)
        self.defer(socket.close)
        self.address = server.address_of(socket)
        self._feed = Feed(params.history, params.history_mb * _BYTES_PER_MB)
        self._state = GraphState()
        self._bars_problem = ''
        self._journal = JournalTail(params.journal, params.history) if params.journal else None
        bell = Bell()
        self._data = PageData(
            title=self._where(),
            feed=self._feed,
            state=self._state,
            sources=self._sources,
            bell=bell,
            style=Style(params.candles, zone, params.rising),
            most=params.pages,
            on_failure=self._on_page_failure,
            draw=draw,
        )
        acts = {'always': True, 'never': False}.get(params.actions, is_loopback(params.host))
        hosts = server.allowed_hosts(params.host)
        app = make_app(self._data, hosts, self._work_kill_switch if acts else None)
        self._listen_to_topics()
        self._switch_client = self.client(KillSwitch, 'risk_gate/kill_switch')
        self._bars_client = self.client(MissedBars, 'gateway/missed_bars')
        self.timer(REPORT_S, self._report)
        self.worker('ears', lambda stop: self._listen(stop, bell))
        self.worker('history', lambda stop: self._catch_up(stop, bell))
        self.worker('web', lambda stop: server.serve(app.server, socket, bell, params.pages, stop))
        self.get_logger().info(f'the page is at {self.address}')
        self.set_info(self.address)

    def _listen_to_topics(self) -> None:
        inbox = Inbox(self, f'{self.get_name()}_inbox')
        self.defer(inbox.close)
        self._ears = GraphEars(self._state)
        kinds = (
            (Heartbeat, 'heartbeat', qos.HEARTBEAT, self._ears.heartbeat),
            (Event, 'events', qos.EVENTS, self._ears.event),
            (DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS, self._ears.diagnostics),
            (BarBlock, 'bars', qos.BARS, self._on_bars),
            (Decisions, 'decisions', qos.DECISIONS, self._on_decisions),
        )
        self._trays: list[tuple[Tray, Callable[[Any], None]]] = [
            (inbox.listen(kind, topic, qos.best_effort(profile)), take)
            for kind, topic, profile, take in kinds
        ]

    # --- the thread that listens ---

    def _listen(self, stop: threading.Event, bell: Bell) -> None:
        while not stop.wait(LISTEN_S):
            n = 0
            for tray, take in self._trays:
                for message in tray.take():
                    n += 1
                    self._try(take, message)
            if n:
                self.progress(n)
                bell.ring()

    def _try(self, take: Callable[[Any], None], message: Any) -> bool:
        try:
            take(message)
        except WireError as error:
            self.count('bad_messages')
            self.get_logger().warning(f'not shown: {error}', throttle_duration_sec=5.0)
            return False
        return True

    def _on_bars(self, message: BarBlock) -> None:
        self._feed.add_bars(message.stream, message.seq, msg_to_block(message))

    def _on_decisions(self, message: Decisions) -> None:
        if self._feed.add_decisions(msg_to_decisions(message)):
            self._ears.decisions(message)

    # --- the thread that catches up ---

    def _catch_up(self, stop: threading.Event, bell: Bell) -> None:
        try:
            while not stop.is_set():
                change = self._feed.change
                self._read_journal(stop)
                self._ask_for_bars(stop)
                if self._feed.change != change:
                    bell.ring()
                stop.wait(CATCH_UP_S)
        finally:
            if self._journal is not None:
                self._journal.close()

    def _read_journal(self, stop: threading.Event) -> None:
        journal = self._journal
        while journal is not None and not stop.is_set():
            frames, events = journal.look()
            heard = list(self._state.events)
            for event in events:
                if event not in heard:
                    self._state.happened(event)
            self.count('frames_from_journal', sum(map(self._feed.add_decisions, frames)))
            if len(frames) < BATCH:
                return

    def _ask_for_bars(self, stop: threading.Event) -> None:
        if not self._bars_client.service_is_ready():
            self._bars_problem = ''  # the banner says that the gateway is not there
            return
        position = self._ask(stop, 1, 0)
        while position is not None and position.stream and not stop.is_set():
            wanted = self._feed.missing_bars(
                position.stream, position.oldest_seq, position.next_seq
            )
            if wanted is None:
                return
            reply = self._ask(stop, *wanted)
            if reply is None or not reply.blocks:
                return
            for block in reply.blocks:
                if not self._try(self._on_bars, block):
                    self._feed.skip_bars(block.stream, block.seq)
            self.count('bars_from_gateway', len(reply.blocks))
            position.oldest_seq = max(position.oldest_seq, reply.oldest_seq)

    def _ask(
        self, stop: threading.Event, first_seq: int, last_seq: int
    ) -> MissedBars.Response | None:
        done = threading.Event()
        request = MissedBars.Request(first_seq=first_seq, last_seq=last_seq)
        future = self._bars_client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        deadline_s = time.monotonic() + ANSWER_S
        while not done.wait(0.1):
            if stop.is_set() or time.monotonic() > deadline_s:
                self._bars_client.remove_pending_request(future)
                if not stop.is_set():
                    self._bars_problem = (
                        'the gateway does not answer for missed bars: candles may be missing'
                    )
                return None
        self._bars_problem = ''
        return future.result()

    # --- the web server's thread ---

    async def _work_kill_switch(self, engage: bool, reason: str) -> tuple[bool, str]:
        client = self._switch_client
        if not client.service_is_ready():
            raise HeqisError(
                'the risk gate is not there; make the file run/KILL on the gateway board (its '
                'parameter kill_file): it counts as soon as the gate is back'
            )
        future = client.call_async(KillSwitch.Request(engage=engage, reason=reason))
        deadline_s = time.monotonic() + SWITCH_S
        while not future.done():
            if time.monotonic() > deadline_s:
                client.remove_pending_request(future)
                raise HeqisError(
                    f'the risk gate has not answered within {SWITCH_S:g} s, and may still do it; '
                    'see what the page says of it, or make the file run/KILL on the gateway board'
                )
            await asyncio.sleep(SWITCH_POLL_S)
        answer = future.result()
        self.count('kill_switch_calls')
        self.get_logger().warning(f'kill switch, {reason}: {answer.message}')
        return answer.engaged, answer.message

    # --- what is said ---

    def _where(self) -> str:
        return f'{self.get_namespace()} in ROS domain {self.context.get_domain_id()}'

    def _sources(self) -> Sources:
        journal = self._journal.error if self._journal is not None else ''
        return Sources(self._where(), journal, self._bars_problem)

    def _on_page_failure(self, error: BaseException) -> None:
        self.count('page_failures')
        self.get_logger().error(f'a page failed: {type(error).__name__}: {error}')

    def _report(self) -> None:
        for counters in (self._feed.counters, self._data.counters):
            for name, value in counters.items():
                self.set_counter(name, value)
        self.set_counter('bytes_held', self._feed.n_bytes)
        self.set_counter('bad_heartbeats', self._ears.refused)
        self.set_info(f'{self.address}, {self._data.counters["pages"]} open')


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
        raise ConfigError(
            f'parameter timezone is {name!r}, which no time zone is called; expected one like '
            'Asia/Shanghai or UTC'
        ) from None


def main() -> NoReturn:
    """Run the dashboard process, after everything else that wants the processor."""
    os.nice(NICE)
    code = run_process('dashboard', [DashboardNode])
    # All is closed. On a busy board, taking down what Dash has imported would last for seconds at
    # this priority, and launch would kill what is only slow.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    main()
