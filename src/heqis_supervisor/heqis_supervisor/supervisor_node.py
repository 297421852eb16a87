# SPDX-License-Identifier: Apache-2.0
"""The supervisor: one loop over the policy, its orders to the agents, diagnostics and events.

It brings itself up. One thread owns the link and the policy's state, and hands the process's own
heartbeat to the agents, who repeat it on every board; the executor only answers services.
Deactivating and activating the node begins anew, and so clears what is latched; only resets are
remembered on the disk, and a thread of their own carries them out.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from heqis_core.control import Event, FromAgent, Level, Overview, Result
from heqis_core.io.control_link import SupervisorLink
from heqis_core.io.notify import Notifier
from heqis_core.io.zmq_security import optional_security
from heqis_msgs.msg import Event as EventMsg
from heqis_msgs.srv import ClearLatch, ResetBoard
from heqis_ros import qos, vitals
from heqis_ros.convert_health import event_to_msg, msg_to_beat
from heqis_ros.ears import Ears
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process
from heqis_supervisor.facts import Asked, Command, Facts, Note, Reset, State
from heqis_supervisor.health import Health, overall, report
from heqis_supervisor.params import SUPERVISOR
from heqis_supervisor.policy import initial, latched, update
from heqis_supervisor.pulse import Pulse
from heqis_supervisor.reset.actuator import Actuator
from heqis_supervisor.reset.drivers import make_driver
from heqis_supervisor.reset.policy import refusal
from heqis_supervisor.reset.rules import load_resets
from heqis_supervisor.rules import load_rules
from heqis_supervisor.watchdog_device import WatchdogDevice

_T = TypeVar('_T')
LOOK_S = 0.1
"""How soon a change of health shows that no event has told of; one that has shows at once."""
_LEVELS = {
    Level.INFO: DiagnosticStatus.OK,
    Level.WARN: DiagnosticStatus.WARN,
    Level.ERROR: DiagnosticStatus.ERROR,
}


class SupervisorNode(ManagedNode):
    """Keeps the graph up."""

    PARAMS = SUPERVISOR
    AUTOSTART = True

    def configure(self, params: Any) -> None:
        """Read the rules, or refuse with file and line, and listen for agents."""
        rules = load_rules(params.graph)
        resets = load_resets(params.resets, rules.boards, self.board)
        self._rules = replace(rules, resets=resets)
        self._reset = self._open_actuator(Path(params.state_dir)) if resets else None
        self._asked: deque[Asked] = deque()
        self._cleared: deque[str] = deque()
        self._state = initial(self._rules, time.monotonic())
        security = optional_security(
            params.secret_key_file, params.peer_key_file, params.allow_folder
        )
        own = (self.board, 'supervisor')
        self._link = SupervisorLink(params.control_endpoint, security=security)
        self.defer(self._link.close)
        self._events = self.publisher(EventMsg, 'events', qos.EVENTS)
        self._diagnostics = self.publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self._ears = Ears(self, lambda board, process: (board, process) == own)
        self.defer(self._ears.close)
        self.service(ResetBoard, '~/reset_board', self._on_reset_board)
        self.service(ClearLatch, '~/clear_latch', self._on_clear_latch)
        self.worker('policy', self._run)
        if self._reset is not None:
            self.worker('reset', self._reset.run)

    def activate(self) -> None:
        """Begin anew, but for resets."""
        self._asked.clear()
        self._cleared.clear()
        known = {} if self._reset is None else self._reset.begin()
        self._state = initial(self._rules, time.monotonic(), known)
        self._be_watched()

    def _be_watched(self) -> None:
        """Let whoever started this process, and the board's watchdog, watch over it."""
        path = self.params.watchdog_device
        device = WatchdogDevice(path, self.params.watchdog_timeout_s) if path else None
        pulse = self._pulse = Pulse(Notifier(), device)
        self.defer(lambda: pulse.end(fault=bool(self._fault)))

    def deactivate(self) -> None:
        """Hold nothing any more."""
        self.hold = False

    def _open_actuator(self, folder: Path) -> Actuator:
        resets = self._rules.resets
        drivers = {board: make_driver(rule) for board, rule in resets.items()}
        actuator = Actuator(folder, vitals.boot_id(), resets, drivers)
        self.defer(actuator.close)
        return actuator

    # --- the policy's thread ---

    def _run(self, stop: threading.Event) -> None:
        state = self._state
        self._told_s = looked_s = float('-inf')
        self._levels: list[Level] = []
        self._unsent: list[int] = []
        self._noted = False
        while not stop.is_set():
            state = self._turn(state, self._gather(stop))
            for beat in self._ears.take():
                if beat.start_id == self.start_id:
                    self._link.broadcast(Overview(msg_to_beat(beat)))
            self._pulse.beat(self.vitals.spin_count)
            if self._noted or state.time_s - looked_s >= LOOK_S:
                looked_s = state.time_s
                self._look(state)

    def _look(self, state: State) -> None:
        parts = report(self._rules, state)
        levels = [part.level for part in parts]
        due = state.time_s - self._told_s >= self.params.diagnostics_ms / 1000
        if due or levels != self._levels:
            self._levels, self._told_s = levels, state.time_s
            self._tell(state, parts)

    def _gather(self, stop: threading.Event) -> tuple[FromAgent, ...]:
        """Collect heartbeats for one period, but wait for nothing once an answer is there."""
        messages: list[FromAgent] = []
        end_s = time.monotonic() + self.params.loop_ms / 1000
        while not stop.is_set():
            left_ms = int((end_s - time.monotonic()) * 1000)
            found = self._link.poll(max(left_ms, 0))
            messages += found
            if left_ms <= 0 or any(isinstance(message, Result) for message in found):
                break
        return tuple(messages)

    def _turn(self, state: State, messages: tuple[FromAgent, ...]) -> State:
        facts = Facts(
            messages,
            unsent=tuple(self._unsent),
            cleared=_drain(self._cleared),
            asked=_drain(self._asked),
            pulsed=() if self._reset is None else self._reset.take(),
        )
        self._unsent.clear()
        state, actions = update(self._rules, time.monotonic(), state, facts)
        self._state = state
        if self._reset is not None:
            self._reset.put(state.resets, tuple(a for a in actions if isinstance(a, Reset)))
        self._noted = any(isinstance(action, Note) for action in actions)
        for action in actions:
            if isinstance(action, Note):
                self._note(action)
            elif isinstance(action, Reset):
                self.count('orders_reset', not action.soft)
            elif not self._command(action):
                self._unsent.append(action.message.id)
        self.hold = state.hold
        self.progress()
        return state

    def _command(self, action: Command) -> bool:
        self.count(f'orders_{type(action.message).__name__.lower()}')
        return self._link.send(action.board, action.message)

    def _note(self, note: Note) -> None:
        line = f'{note.kind} {note.subject}: {note.text}'
        if note.level == Level.ERROR:
            self.get_logger().error(line)
        elif note.level == Level.WARN:
            self.get_logger().warning(line)
        else:
            self.get_logger().info(line)
        event = Event(
            time.time_ns(), note.level, self.get_name(), note.kind, note.subject, note.text
        )
        self.publish(self._events, event_to_msg(event))

    def _tell(self, state: State, parts: list[Health]) -> None:
        level, text = overall(parts)
        self.set_info(text)
        self._pulse.tell(text)
        self.set_counter('hold', int(state.hold))
        for key, mind in state.processes.items():
            self.set_counter(f'restarts.{key}', mind.restarts)
        for name, value in self._link.counters.items():
            self.set_counter(name, value)
        self.tell_fault(self._link.last_error)
        for board, reset in state.resets.items():
            self.set_counter(f'resets.{board}', len(reset.begun_s))
        if self._reset is not None:
            self.tell_fault(self._reset.error, 'reset')
        self.tell_fault(self._pulse.fault, 'watchdog')
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        whole = Health('graph', self.board, level, text, {'hold': str(state.hold).lower()})
        message.status = [_status(part) for part in (whole, *parts)]
        self.publish(self._diagnostics, message)

    # --- the executor's thread ---

    def _on_reset_board(
        self, request: ResetBoard.Request, response: ResetBoard.Response
    ) -> ResetBoard.Response:
        board = request.board
        problem = self._reset_problem(board)
        response.accepted = not problem
        done = '' if problem else f': {self._rules.resets[board]}'
        if request.dry_run:
            response.message = f'dry run: board {board} would be reset'
            response.message += f', but {problem}' if problem else done
            return response
        response.message = problem or f'board {board} is reset{done}'
        reason = request.reason or 'no reason given'
        if problem:
            text = f'asked for ({reason}), refused: {problem}'
            self._note(Note(Level.WARN, 'reset_refused', request.board, text))
        else:
            self._asked.append(Asked(request.board, reason))
        return response

    def _reset_problem(self, board: str) -> str:
        if board not in self._rules.boards:
            known = ', '.join(self._rules.boards)
            return f'board {board!r} is not in the rules; known are: {known}'
        rule = self._rules.resets.get(board)
        if rule is None:
            return 'no driver is configured: nothing was done'
        if any(asked.board == board for asked in list(self._asked)):
            return 'a reset of it was asked for just now'
        return refusal(rule, self._state.resets[board], time.monotonic())

    def _on_clear_latch(
        self, request: ClearLatch.Request, response: ClearLatch.Response
    ) -> ClearLatch.Response:
        now = latched(self._state)
        response.cleared = [name for name in now if request.subject in {name, '*'}]
        listed = ', '.join(now) or 'nothing'
        response.message = 'cleared' if response.cleared else f'not latched; latched is: {listed}'
        for name in response.cleared:
            self._cleared.append(name)
            reason = request.reason or 'no reason given'
            self._note(Note(Level.INFO, 'clear_latch', name, f'a person clears it ({reason})'))
        return response


def _drain(waiting: deque[_T]) -> tuple[_T, ...]:
    """Return what waits; other threads may append meanwhile."""
    return tuple(waiting.popleft() for _ in range(len(waiting)))


def _status(part: Health) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=_LEVELS[part.level],
        name=f'heqis/{part.name}',
        message=part.message,
        hardware_id=part.board,
        values=[KeyValue(key=key, value=value) for key, value in part.values.items()],
    )


def main() -> int:
    """Run the supervisor."""
    return run_process('supervisor', [SupervisorNode])


if __name__ == '__main__':
    sys.exit(main())
