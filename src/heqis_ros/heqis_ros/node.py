# SPDX-License-Identifier: Apache-2.0
"""The managed node that every HEQIS node derives from: its lifecycle and what the heartbeat says.

A node of HEQIS is a thin shell: `configure` builds pure objects and ports, callbacks hand plain
values over. Ports and gates are in `ports`, threads in `worker`, the heartbeat in `heartbeat`.

Rules for a subclass:

* Override `configure(params)`, `activate()`, `deactivate()`, `cleanup()`, never `on_*`.
* What is made in `configure` lives until cleanup, what is made in `activate` or later until
  deactivate.
* `deactivate` and `cleanup` are also called when `activate` or `configure` failed half-way, so
  they must accept what is not there yet; `defer(callback)` is the easier way.
* A HeqisError from `configure` or `activate` refuses the transition (FAILURE) with one log line.
* Any other exception there, and any exception in a callback, a worker or while undoing, frees
  everything: the node is unconfigured, a bug's traceback is logged once, `info` says why.

A worker that does not end in time leaves the node inactive and is named in log and `info`. Until
it ends, activate and cleanup are refused: closing a socket or an engine under a running thread
would crash the process. Only its restart helps then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from heqis_core.errors import ConfigError, HeqisError
from heqis_msgs.msg import NodeStatus
from heqis_ros import vitals
from heqis_ros.params import ParamTable
from heqis_ros.ports import GatedNode, RCLError, one_line

FAULT_BURST, FAULT_PERIOD_S = 3, 10.0
"""Faults of one thing that `tell_fault` logs at once, and the time until one more may be."""

SPIN_PERIOD_S = 0.2
"""Period of the timer that advances `spin_count` while the node's executor runs."""

_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_ERROR = TransitionCallbackReturn.ERROR


class ManagedNode(GatedNode):
    """A lifecycle node that frees what it creates and says how it is."""

    PARAMS: ParamTable
    """The node's parameters; `PARAMS.node` is its name."""

    AUTOSTART = False
    """Whether `run_process` brings the node to ACTIVE by itself (supervisor and agents)."""

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        """Create an unconfigured node; keyword arguments are those of rclpy's Node."""
        super().__init__(name or self.PARAMS.node, **kwargs)
        self.board = vitals.board()
        self.start_id = vitals.START_ID
        self.hold = False
        """Set by the supervisor: this process's heartbeat tells everyone to hold their output."""
        self.params: Any = None
        """Values of the parameters while configured, else None."""
        self.param_problems = self.PARAMS.declare(self)
        """What was given to the node and cannot be used, by name: configure refuses."""
        self._faults: dict[str, tuple[str, float, float]] = {}
        self._full_name = self.get_fully_qualified_name()
        # Outside the gates and as old as the node: the proof that its executor runs.
        self._spin_timer = self.create_timer(SPIN_PERIOD_S, self._spun)
        self._guard_change_state()

    # ---- hooks ---------------------------------------------------------------------------------

    def configure(self, params: Any) -> None:
        """Create ports and resources from the parameter values; raise HeqisError to refuse."""

    def activate(self) -> None:
        """Start working, before timers and workers start; raise HeqisError to refuse."""

    def deactivate(self) -> None:
        """Stop working; the gates are closed and the workers have ended."""

    def cleanup(self) -> None:
        """Free what `configure` made by other means than helpers; ports are freed after it."""

    # ---- what the heartbeat says ---------------------------------------------------------------

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter of the heartbeat; any thread."""
        self.vitals.count(name, n)

    def set_counter(self, name: str, value: int) -> None:
        """Overwrite a counter of the heartbeat; any thread."""
        self.vitals.set_counter(name, value)

    def progress(self, n: int = 1) -> None:
        """Count units of work done; any thread."""
        self.vitals.add_progress(n)

    def set_pending(self, n: int) -> None:
        """Say how many units of work wait now; any thread."""
        self.vitals.pending = int(n)

    def stage_us(self, name: str, us: float) -> None:
        """Say how long a stage took last, microseconds; any thread."""
        self.vitals.set_stage(name, us)

    def set_info(self, text: str, *, degraded: bool = False) -> None:
        """Say one short line for people; a failure hides it until the node is ACTIVE again.

        `degraded`: the node works, but not as it should, and the line says why; WARN on
        /diagnostics.
        """
        self.vitals.info = str(text)
        self.vitals.degraded = degraded

    def tell_fault(self, text: str, about: str = '') -> None:
        """Log the state of something, told again and again: a fault, or empty for none.

        A fault is logged once, another one when it comes; after `FAULT_BURST` of them one in
        `FAULT_PERIOD_S`: the address of a stranger changes all the time. `about` tells several
        things apart.
        """
        now_s = time.monotonic()
        said, left, at_s = self._faults.get(about, ('', float(FAULT_BURST), now_s))
        left = min(FAULT_BURST, left + (now_s - at_s) / FAULT_PERIOD_S)
        if text == said or (text and left < 1):
            return
        self._faults[about] = (text, left - bool(text), now_s)
        if text:
            self.get_logger().warning(text)

    @property
    def state(self) -> int:
        """Return the lifecycle state as in NodeStatus: 1 to 4, or 10 during any transition."""
        try:
            code = int(self._state_machine.current_state[0])
        except (RCLError, InvalidHandle):
            return int(NodeStatus.FINALIZED)
        return min(code, int(NodeStatus.TRANSITIONING))

    def status(self) -> NodeStatus:
        """Return the node's part of a heartbeat; any thread."""
        status = NodeStatus(name=self._full_name, state=self.state)
        self.vitals.fill(status)
        return status

    # ---- transitions ---------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Create everything, or nothing."""

        def body() -> None:
            if self.param_problems:
                raise ConfigError('; '.join(self.param_problems.values()))
            self._fault = ''
            self._configured_stack = ExitStack()
            self.params = self.PARAMS.values(self)
            self.configure(self.params)

        return self._attempt('configure', body, self._undo_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the gates once the subclass is ready, or stay inactive."""

        def body() -> None:
            self._active_stack = ExitStack()
            self.activate()
            super(ManagedNode, self).on_activate(state)
            self._active = True
            for timer in self._gated_timers:
                timer.reset()
            self.vitals.failure = ''
            self._workers.start()

        if self._blocked('activate'):
            return _FAILURE
        self._undo_activate()
        return self._attempt('activate', body, self._undo_activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Close the gates, join the workers, then let the subclass stop."""
        self._undo_activate()
        return _ERROR if self._fault else _SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything; refused while a worker still uses it."""
        return _SUCCESS if self._undo_configure() else _FAILURE

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything, from any state."""
        self._undo_activate()
        self._undo_configure()
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and be unconfigured, or finalized if a worker makes that impossible."""
        self._undo_activate()
        return _SUCCESS if self._undo_configure() else _FAILURE

    # ---- for the process -----------------------------------------------------------------------

    def accept_siblings(self, siblings: Iterable[ManagedNode]) -> None:
        """Let parameters pass that are unknown here but belong to another node of the process.

        What a launch file or `-p name:=value` gives to a process reaches every node in it.
        """
        tables = [node.PARAMS for node in siblings]
        self.param_problems = {
            name: line
            for name, line in self.param_problems.items()
            if self.PARAMS.get(name) or not any(table.get(name) for table in tables)
        }

    def stop_soon(self) -> None:
        """Ask the workers to end and return at once: the first step of a process that ends."""
        self._workers.request_stop()

    def worker_alive(self) -> bool:
        """Whether a worker thread runs."""
        return bool(self._workers.alive())

    def close(self) -> None:
        """Bring the node to FINALIZED; call it in the executor's thread or when that has ended."""
        triggers: dict[int, tuple[Callable[[], object], ...]] = {
            NodeStatus.ACTIVE: (self.trigger_deactivate, self.trigger_shutdown),
            NodeStatus.INACTIVE: (self.trigger_shutdown,),
            NodeStatus.UNCONFIGURED: (self.trigger_shutdown,),
        }
        for trigger in triggers.get(self.state, ()):
            try:
                trigger()
            except RCLError as error:
                self.get_logger().warning(f'shutdown: {one_line(error)}')

    # ---- inside --------------------------------------------------------------------------------

    def _attempt(
        self, what: str, body: Callable[[], None], undo: Callable[[], object]
    ) -> TransitionCallbackReturn:
        try:
            body()
        except HeqisError as error:
            self.vitals.failure = f'{what} refused: {one_line(error)}'
            self.get_logger().error(self.vitals.failure)
            undo()
            return _FAILURE
        except Exception as error:
            self._log_failure(what, error)
            return _ERROR
        self.get_logger().info(f'{what} done')
        return _SUCCESS

    def _undo_activate(self) -> None:
        self._active = False
        if self._active_stack is None:
            return
        for timer in self._gated_timers:
            timer.cancel()
        if stuck := self._workers.stop():
            # The rest of the undoing waits until the worker has ended, see _blocked.
            super().on_deactivate(None)
            self.vitals.count('workers_stuck', len(stuck))
            self.vitals.failure = f'worker {", ".join(stuck)} did not end in time'
            self.get_logger().error(f'{self.vitals.failure}; restart the process if it stays')
            return
        self._quietly(self.deactivate)
        super().on_deactivate(None)
        self._active_stack.close()
        self._active_stack = None

    def _undo_configure(self) -> bool:
        if self._configured_stack is None:
            return True
        if self._blocked('cleanup'):
            return False
        self._undo_activate()
        self._quietly(self.cleanup)
        self._configured_stack.close()
        self._configured_stack = None
        self.params = None
        return True

    def _blocked(self, what: str) -> bool:
        alive = self._workers.alive()
        if alive:
            self.vitals.failure = (
                f'{what} refused: worker {", ".join(alive)} still runs; restart the process'
            )
            self.get_logger().error(self.vitals.failure)
        return bool(alive)

    def _leave_after_fault(self) -> None:
        if not self._fault:
            return
        if self.state == NodeStatus.ACTIVE:
            self.trigger_deactivate()
        elif self.state == NodeStatus.INACTIVE:
            self.trigger_cleanup()

    def _spun(self) -> None:
        self.vitals.spin_count += 1

    def _guard_change_state(self) -> None:
        # rclpy lets a request for a transition that the state does not have escape as an RCLError,
        # out of spin(): any client could end the process. Refuse it instead.
        service = getattr(self, '_service_change_state', None)
        if service is None:
            return
        change = service.callback

        def safe(request: Any, response: Any) -> Any:
            try:
                return change(request, response)
            except RCLError as error:
                asked = request.transition.label or request.transition.id
                self.get_logger().warning(f'transition {asked} refused: {one_line(error)}')
                response.success = False
                return response

        service.callback = safe
