# SPDX-License-Identifier: Apache-2.0
"""The agent of a board: hands heartbeats to the supervisor, and does here what it is told.

It brings itself up. One thread owns the link and kills; transitions are asked of the nodes'
lifecycle services by the executor. Nothing is decided here, and no process is started here.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition as LifecycleTransition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client

from heqis_core.control import (
    GOAL,
    Beats,
    Event,
    FromAgent,
    FromSupervisor,
    Hello,
    Kill,
    KillSilent,
    Level,
    Overview,
    ProcessBeat,
    Reboot,
    Result,
    Transit,
    Transition,
)
from heqis_core.errors import ResetError, WireError
from heqis_core.io.control_link import AgentLink
from heqis_core.io.notify import Notifier
from heqis_core.io.zmq_security import optional_security
from heqis_msgs.msg import Event as EventMsg
from heqis_msgs.msg import Heartbeat
from heqis_ros import qos, vitals
from heqis_ros.convert_health import beat_to_msg, event_to_msg, msg_to_beat
from heqis_ros.ears import Ears
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process
from heqis_supervisor.board import Killed, Watched
from heqis_supervisor.params import AGENT
from heqis_supervisor.pulse import Pulse
from heqis_supervisor.reset.drivers import CommandDriver
from heqis_supervisor.reset.rules import reboot_command
from heqis_supervisor.supervisor_watch import SupervisorWatch

POLL_MS = 50
BUSY_POLL_MS = 10
"""The same while an answer may come from the executor."""
HELLO_S = 1.0
LOOK_S = 0.2
"""How soon an order to reboot is seen."""
TELL_S = 0.5
"""Between two diagnostics of a supervisor that is silent, as it would send them itself."""
SILENT = 'nobody watches the graph; the compute boards hold their output'
HEARD_S = 0.5
"""The supervisor's heartbeat counts as heard on this board for so long."""
_IDS = {
    Transition.CONFIGURE: LifecycleTransition.TRANSITION_CONFIGURE,
    Transition.CLEANUP: LifecycleTransition.TRANSITION_CLEANUP,
    Transition.ACTIVATE: LifecycleTransition.TRANSITION_ACTIVATE,
    Transition.DEACTIVATE: LifecycleTransition.TRANSITION_DEACTIVATE,
}


class _Order:
    """A transition on its way."""

    def __init__(self, order: Transit) -> None:
        self.order = order
        self.deadline_s = time.monotonic() + order.timeout_ms / 1000
        self.future: Any = None


@dataclass
class _Changer:
    """The way to the lifecycle service of one node.

    Attributes:
        client: made for one start of the node's process.
        start_id: which one; 0 if its heartbeat was not heard yet.
        stale: servers of an earlier start: DDS does not forget a killed process for a while.
        servers: those that were there at the last answer.
    """

    client: Client
    start_id: int
    stale: frozenset[bytes] = frozenset()
    servers: frozenset[bytes] = frozenset()


class AgentNode(ManagedNode):
    """The supervisor's hand on one board."""

    PARAMS = AGENT
    AUTOSTART = True

    def __init__(self) -> None:
        """Create the node `<board>_agent`."""
        super().__init__(f'{vitals.board()}_agent')

    def configure(self, params: Any) -> None:
        """Connect to the supervisor; it need not be there yet."""
        security = optional_security(
            params.secret_key_file, params.peer_key_file, params.allow_folder
        )
        self._link = AgentLink(params.control_endpoint, security=security)
        self.defer(self._link.close)
        self._watched = Watched(self.board, vitals.boot_id())
        self._out: deque[FromAgent] = deque(maxlen=1024)
        self._asked: deque[Transit] = deque()
        self._orders: list[_Order] = []
        self._changers: dict[str, _Changer] = {}
        self._heard_s = self._told_s = float('-inf')
        self._repeated: deque[tuple[int, int]] = deque(maxlen=256)
        self._heartbeat = self.publisher(Heartbeat, 'heartbeat', qos.HEARTBEAT)
        self._events = self.publisher(EventMsg, 'events', qos.EVENTS)
        self._diagnostics = self.publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self._supervisor = SupervisorWatch()
        self._ears = Ears(
            self, lambda board, process: board == self.board or process == 'supervisor'
        )
        self.defer(self._ears.close)
        self._order_timer = self.timer(0.05, self._look_after_orders)
        self._new_order = self.create_guard_condition(
            lambda: self._guarded('orders', self._begin_orders)
        )
        self.defer(lambda: self.destroy_guard_condition(self._new_order))
        self._reboots: queue.SimpleQueue[Reboot] = queue.SimpleQueue()
        self._rebooter = None
        if params.reboot_command:
            self._rebooter = CommandDriver(reboot_command(self.board, params.reboot_command))
            self.worker('reboot', self._run_reboots)
        self.worker('link', self._run)
        self.set_info(f'supervisor at {params.control_endpoint}')

    def activate(self) -> None:
        """Let whoever started this process watch over it: nobody else could end it."""
        pulse = self._pulse = Pulse(Notifier())
        self.defer(lambda: pulse.end(fault=bool(self._fault)))

    def deactivate(self) -> None:
        """Forget what was under way."""
        self._orders.clear()
        self._asked.clear()
        for node in list(self._changers):
            self._forget(node)

    # --- the link's thread ---

    def _run(self, stop: threading.Event) -> None:
        hello_s = float('-inf')
        while not stop.is_set():
            self._pulse.beat(self.vitals.spin_count)
            now = time.monotonic()
            if now - hello_s >= HELLO_S:
                hello_s = now
                self._send(
                    Hello(self.board, self.start_id, vitals.HOST, vitals.boot_id(), os.getpid())
                )
                self._report()
            self._hand_on(self._ears.take())
            while self._out:
                self._send(self._out.popleft())
            busy = self._asked or self._orders
            for message in self._link.poll(BUSY_POLL_MS if busy else POLL_MS):
                self._obey(message)
            self._look_for_supervisor()

    def _look_for_supervisor(self) -> None:
        """Say of a supervisor on this board what nobody else can: that it is silent, or back."""
        now_s = time.monotonic()
        changed, watch = self._supervisor.look(now_s), self._supervisor
        if changed:
            kind = 'supervisor_lost' if watch.lost else 'supervisor_back'
            text = SILENT if watch.lost else 'speaks again'
            level = Level.ERROR if watch.lost else Level.INFO
            self.get_logger().warning(f'{kind}: {text}')
            subject = f'{self.board}/supervisor'
            event = Event(time.time_ns(), level, self.get_name(), kind, subject, text)
            self.publish(self._events, event_to_msg(event))
        if watch.lost and (changed or now_s - self._told_s >= TELL_S):
            self._told_s = now_s
            self._tell_silence(watch.silent_s)

    def _tell_silence(self, silent_s: float) -> None:
        """Put the supervisor's place on /diagnostics right; once it is back, it does so itself."""
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [
            DiagnosticStatus(
                level=DiagnosticStatus.ERROR,
                name=name,
                message=f'lost: silent for {silent_s:.1f} s: {SILENT}',
                hardware_id=self.board,
            )
            for name in ('heqis/graph', f'heqis/process/{self.board}/supervisor')
        ]
        self.publish(self._diagnostics, message)

    def _hand_on(self, messages: list[Heartbeat]) -> None:
        beats = []
        for message in messages:
            try:
                beat = msg_to_beat(message)
            except WireError as error:
                self.count('bad_messages')
                self.get_logger().warning(f'heartbeat: {error}', throttle_duration_sec=5.0)
                continue
            direct = (beat.start_id, beat.count) not in self._repeated
            if beat.process == 'supervisor' and direct:
                self._heard_s = time.monotonic()
                if beat.board == self.board:
                    self._supervisor.heard()
            beats.append(self._watched.take(beat))
        if mine := tuple(beat for beat in beats if beat is not None):
            self._send(Beats(self.board, self.start_id, mine))

    def _send(self, message: FromAgent) -> None:
        self._link.send(message)

    def _obey(self, message: FromSupervisor) -> None:
        if isinstance(message, Overview):
            self._repeat(message.beat)
        elif isinstance(message, Kill):
            self.get_logger().warning(f'told to kill {message.process}, pid {message.pid}')
            self._killed(message.id, self._watched.kill(message))
        elif isinstance(message, KillSilent):
            self._killed(message.id, self._watched.kill_silent(message))
        elif isinstance(message, Reboot):
            self._order_reboot(message)
        else:
            self._asked.append(message)
            self._new_order.trigger()
        self.progress()

    def _order_reboot(self, order: Reboot) -> None:
        problem = ''
        if order.boot_id != vitals.boot_id():
            problem = f'board {self.board} has booted anew since the order was given'
        elif self._rebooter is None:
            problem = f'the agent of board {self.board} has no reboot_command'
        if problem:
            self.get_logger().warning(f'told to reboot, refused: {problem}')
            self._send(Result(order.id, self.board, self.start_id, False, problem))
            return
        self.get_logger().warning(f'told to reboot the board: {self.params.reboot_command}')
        self.count('reboots')
        self._reboots.put(order)

    def _killed(self, number: int, killed: Killed) -> None:
        if not killed.gone:
            self.get_logger().warning(killed.text)
        self.count('kills', killed.ok and not killed.gone)
        head = (number, self.board, self.start_id)
        self._send(Result(*head, killed.ok, killed.text, gone=killed.gone))

    def _repeat(self, beat: ProcessBeat) -> None:
        if time.monotonic() - self._heard_s > HEARD_S:
            self._repeated.append((beat.start_id, beat.count))
            self.publish(self._heartbeat, beat_to_msg(beat))
            self.count('supervisor_repeated')

    def _report(self) -> None:
        for name, value in self._link.counters.items():
            self.set_counter(name, value)
        self.tell_fault(self._link.last_error)

    # --- the thread of reboots ---

    def _run_reboots(self, stop: threading.Event) -> None:
        assert self._rebooter is not None
        while not stop.is_set():
            try:
                order = self._reboots.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            ok, text = True, f'ran: {self.params.reboot_command}'
            try:
                self._rebooter.pulse(stop)
            except ResetError as error:
                ok, text = False, str(error)
            self._put(Result(order.id, self.board, self.start_id, ok, text))

    # --- the executor's thread ---

    def _begin_orders(self) -> None:
        while self._asked:
            order = _Order(self._asked.popleft())
            self._supersede(order.order)
            self._orders.append(order)
            self._order_timer.reset()
            self._advance(order)

    def _supersede(self, asked: Transit) -> None:
        """Give up what was asked of the node before.

        Its client goes too, and with it a request that no server took: it would be delivered late.
        """
        for earlier in [order for order in self._orders if order.order.node == asked.node]:
            self._orders.remove(earlier)
            known = self._changers.get(asked.node)
            if known is None or known.start_id != self._watched.start_of(asked.node):
                continue  # that was another process
            self._forget(asked.node)
            self.count('orders_repeated')
            self.get_logger().info(f'{asked.node} is asked for {asked.transition.value} again')

    def _look_after_orders(self) -> None:
        if not self._orders:
            self._order_timer.cancel()
        for order in list(self._orders):
            self._advance(order)

    def _advance(self, order: _Order) -> None:
        asked = order.order
        if order.future is None:
            changer = self._changer(asked.node)
            if self._is_ready(asked.node, changer):
                request = ChangeState.Request()
                request.transition.id = _IDS[asked.transition]
                order.future = changer.client.call_async(request)
                order.future.add_done_callback(lambda _: self._advance(order))
        if order not in self._orders:
            return
        if order.future is not None and order.future.done():
            self._finish(order)
        elif time.monotonic() > order.deadline_s:
            why = 'no answer' if order.future is not None else 'its lifecycle service is not there'
            self._finish(order, f'{why} within {asked.timeout_ms} ms')

    def _finish(self, order: _Order, problem: str = '') -> None:
        self._orders.remove(order)
        asked, state = order.order, GOAL[order.order.transition]
        if not problem:
            try:
                answer = order.future.result()
                problem = '' if answer is not None and answer.success else 'refused'
            except Exception as error:  # whatever the middleware raises belongs to the answer
                problem = f'{type(error).__name__}: {error}'
        elif order.future is not None:
            self._changer(asked.node).client.remove_pending_request(order.future)
        if order.future is not None and order.future.done():
            self._changer(asked.node).servers = self._servers(asked.node)
        head = (asked.id, self.board, self.start_id)
        self._put(Result(*head, False, problem) if problem else Result(*head, True, '', state))

    def _put(self, message: FromAgent) -> None:
        self.vitals.count('queue_dropped', len(self._out) == self._out.maxlen)
        self._out.append(message)

    def _changer(self, node: str) -> _Changer:
        start_id = self._watched.start_of(node)
        known = self._changers.get(node)
        if known is not None and known.start_id in (start_id, 0):
            known.start_id = start_id
            return known
        stale = frozenset() if known is None else known.servers
        self._forget(node)
        client = self.create_client(ChangeState, f'{node}/change_state')
        made = self._changers[node] = _Changer(client, start_id, stale)
        return made

    def _forget(self, node: str) -> None:
        changer = self._changers.pop(node, None)
        if changer is not None:
            self.destroy_client(changer.client)

    def _is_ready(self, node: str, changer: _Changer) -> bool:
        if not changer.client.service_is_ready():
            return False
        return not changer.stale or bool(self._servers(node) - changer.stale)

    def _servers(self, node: str) -> frozenset[bytes]:
        """Return the servers of a node's lifecycle service by their endpoints.

        A killed process keeps its own for as long as its DDS lease lasts.
        """
        found = self.get_subscriptions_info_by_topic(
            f'rq{node}/change_stateRequest', no_mangle=True
        )
        return frozenset(bytes(info.endpoint_gid) for info in found)


def main() -> int:
    """Run the agent of this board."""
    return run_process('agent', [AgentNode])


if __name__ == '__main__':
    sys.exit(main())
