# SPDX-License-Identifier: Apache-2.0
"""The managed node that every HEQIS node derives from: lifecycle, gating, failure, and what the heartbeat says.

A node of HEQIS is a thin shell: `configure` builds pure objects and ports, callbacks hand plain values over.
This module knows nothing of markets. Threads are in `worker`, the heartbeat in `heartbeat`.

Rules for a subclass:
* Override `configure(params)`, `activate()`, `deactivate()`, `cleanup()`, not `on_*`.
* What is made in `configure` lives until cleanup, what is made in `activate` (or later) until deactivate.
* `deactivate` and `cleanup` are also called when `activate` or `configure` failed half-way, so they must
  accept what is not there yet; `defer(callback)` is the easier way.
* A HeqisError from a hook refuses the transition (FAILURE) with one log line. Any other exception is a bug: its
  traceback is logged once and everything is freed (unconfigured). So it is after an exception in a callback or a
  worker, of any kind: the supervisor sees the state and `info`, and decides.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from heqis_core.errors import ConfigError, HeqisError
from heqis_msgs.msg import NodeStatus
from rclpy.client import Client
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from heqis_ros import vitals
from heqis_ros.params import ParamTable
from heqis_ros.vitals import Vitals
from heqis_ros.worker import Target, Workers

RCLError = rclpy_implementation.RCLError
SPIN_PERIOD_S = 0.2
"""Period of the timer that advances `spin_count` while the node's executor runs."""

_SUCCESS, _FAILURE, _ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)
_TRANSITIONING = 10


class ManagedNode(LifecycleNode):
    """A lifecycle node that gates subscriptions, timers and workers by its state as well as publishers."""

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
        self.params: Any = None
        self.vitals = Vitals()
        self._full_name = self.get_fully_qualified_name()
        self._active = False
        self._configured_stack: ExitStack | None = None
        self._active_stack: ExitStack | None = None
        self._gated_timers: list[Timer] = []
        self._fault: str = ''
        self._workers = Workers(self._full_name, self._on_worker_failure)
        self.param_problems = self.PARAMS.declare(self)
        # Both live as long as the node and outside the gates: the proof that the executor runs, and the way
        # from a failing worker's thread to the executor, the only thread that may change the state.
        self._spin_timer = self.create_timer(SPIN_PERIOD_S, self._spun)
        self._fault_guard = self.create_guard_condition(self._leave_after_fault)
        self._guard_change_state()

    # ---- hooks -------------------------------------------------------------------------------------------

    def configure(self, params: Any) -> None:
        """Create ports and resources from the parameter values; raise HeqisError to refuse."""

    def activate(self) -> None:
        """Start working; timers and workers start right after it; raise HeqisError to refuse."""

    def deactivate(self) -> None:
        """Stop working; gates are closed and workers have ended."""

    def cleanup(self) -> None:
        """Free what `configure` made and no helper made; ports are freed right after it."""

    # ---- ports -------------------------------------------------------------------------------------------

    def publisher(self, msg_type: Any, topic: str, qos: QoSProfile) -> Publisher:
        """Create a publisher that is silent unless the node is ACTIVE."""
        pub = self.create_lifecycle_publisher(msg_type, topic, qos)
        self.defer(lambda: self.destroy_lifecycle_publisher(pub))
        if self._active:
            pub.on_activate(None)
        return pub

    def subscription(
        self,
        msg_type: Any,
        topic: str,
        qos: QoSProfile,
        callback: Callable[[Any], None],
        *,
        raw: bool = False,
    ) -> Subscription:
        """Create a subscription whose callback runs only while ACTIVE; what comes earlier is counted and dropped."""

        def gated(msg: Any) -> None:
            if self._active:
                self._guarded(topic, callback, msg)
            else:
                self.vitals.count('discarded_inactive')

        sub = self.create_subscription(msg_type, topic, gated, qos, raw=raw)
        self.defer(lambda: self.destroy_subscription(sub))
        return sub

    def timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Create a timer that runs only while ACTIVE; its first call comes one period after the activation."""

        def gated() -> None:
            if self._active:
                self._guarded('timer', callback)

        timer = self.create_timer(period_s, gated)
        self._gated_timers.append(timer)
        if not self._active:
            timer.cancel()

        def free() -> None:
            self._gated_timers.remove(timer)
            self.destroy_timer(timer)

        self.defer(free)
        return timer

    def service(self, srv_type: Any, name: str, callback: Callable[[Any, Any], Any]) -> Service:
        """Create a service that answers from configure to cleanup; ask `self.active` where that matters.

        A HeqisError goes to the caller in `response.message` where the type has one; any other exception is a
        fault of the node, and the caller gets the response as it is then.
        """

        def safe(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except HeqisError as error:
                self.get_logger().warning(f'{name} refused: {one_line(error)}')
                if hasattr(response, 'message'):
                    response.message = one_line(error)
            except Exception as error:
                self._report_fault(f'service {name}', error)
            return response

        service = self.create_service(srv_type, name, safe)
        self.defer(lambda: self.destroy_service(service))
        return service

    def client(self, srv_type: Any, name: str) -> Client:
        """Create a service client; call it with `call_async` only, a blocking call would wait for itself."""
        client = self.create_client(srv_type, name)
        self.defer(lambda: self.destroy_client(client))
        return client

    def worker(self, name: str, target: Target) -> None:
        """Register `target(stop_event)` to run in a thread of its own while ACTIVE.

        It must look at the event at least every 0.2 s and return when it is set; it is joined before
        `deactivate` is called, and all workers of a node share 2 s for that.
        """
        self._workers.add(name, target)
        self.defer(lambda: self._workers.remove(name))
        if self._active:
            self._workers.start_one(name)

    def defer(self, callback: Callable[[], Any]) -> None:
        """Call `callback` when what is being set up now is undone, last deferred first."""
        stack = self._active_stack or self._configured_stack
        if stack is None:
            raise RuntimeError(
                'ports, workers and deferred calls belong into configure() or activate()'
            )
        stack.callback(self._quietly, callback)

    def publish(self, pub: Publisher, msg: Any) -> bool:
        """Publish from any thread; return False, and count it, if the node is not ACTIVE or DDS refuses."""
        if not pub.is_activated:
            self.vitals.count('publish_inactive')
            return False
        try:
            pub.publish(msg)
        except (RCLError, InvalidHandle) as error:
            self.vitals.count('publish_failed')
            self.get_logger().warning(
                f'{type(msg).__name__} was not published: {one_line(error)}', throttle_duration_sec=5.0
            )
            return False
        return True

    # ---- what the heartbeat says -------------------------------------------------------------------------

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
        self.vitals.pending = n

    def stage_us(self, name: str, us: float) -> None:
        """Say how long a stage took last, microseconds; any thread."""
        self.vitals.set_stage(name, us)

    def set_info(self, text: str) -> None:
        """Say one short line for people: engine, source. A failure hides it until the node is ACTIVE again."""
        self.vitals.info = text

    @property
    def active(self) -> bool:
        """Whether the gates are open."""
        return self._active

    @property
    def state(self) -> int:
        """Return the lifecycle state as in NodeStatus: 1 to 4, or 10 during any transition."""
        try:
            code = int(self._state_machine.current_state[0])
        except (RCLError, InvalidHandle):
            return NodeStatus.FINALIZED
        return min(code, _TRANSITIONING)

    def status(self) -> NodeStatus:
        """Return the node's part of a heartbeat."""
        status = NodeStatus(name=self._full_name, state=self.state)
        self.vitals.fill(status)
        return status

    # ---- transitions -------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Create everything, or nothing."""

        def body() -> None:
            if self.param_problems:
                raise ConfigError('; '.join(self.param_problems))
            self._fault = ''
            self._configured_stack = ExitStack()
            self.params = self.PARAMS.values(self)
            self.configure(self.params)

        return self._attempt('configure', body, self._undo_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the gates after the subclass is ready, or stay inactive."""

        def body() -> None:
            if alive := self._workers.alive():
                raise HeqisError(
                    f'worker {", ".join(alive)} of the last activation still runs; restart the process'
                )
            self._active_stack = ExitStack()
            self.activate()
            super(ManagedNode, self).on_activate(state)
            self._active = True
            for timer in self._gated_timers:
                timer.reset()
            self.vitals.failure = ''
            self._workers.start()

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
        """Free everything: unconfigured again; finalized if a worker that never ended makes that impossible."""
        self._undo_activate()
        return _SUCCESS if self._undo_configure() else _FAILURE

    def stop_soon(self) -> None:
        """Ask the workers to end, and return at once; the first step of a process that ends."""
        self._workers.request_stop()

    def worker_alive(self) -> bool:
        """Whether a worker thread runs."""
        return bool(self._workers.alive())

    def close(self) -> None:
        """Bring the node to FINALIZED from any state; call it from the executor's thread or after it has ended."""
        for trigger in {
            NodeStatus.ACTIVE: (self.trigger_deactivate, self.trigger_shutdown),
            NodeStatus.INACTIVE: (self.trigger_shutdown,),
            NodeStatus.UNCONFIGURED: (self.trigger_shutdown,),
        }.get(self.state, ()):
            try:
                trigger()
            except RCLError as error:
                self.get_logger().warning(f'shutdown: {one_line(error)}')

    # ---- inside ------------------------------------------------------------------------------------------

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
            self._log_bug(what, error)
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
            self.vitals.count('workers_stuck', len(stuck))
            self.vitals.failure = (
                f'worker {", ".join(stuck)} did not end in time; restart the process if it stays'
            )
            self.get_logger().error(self.vitals.failure)
        self._quietly(self.deactivate)
        super().on_deactivate(None)
        self._active_stack.close()
        self._active_stack = None

    def _undo_configure(self) -> bool:
        if self._configured_stack is None:
            return True
        if alive := self._workers.alive():
            # Closing a socket or an engine under a running thread would crash the process.
            self.get_logger().error(
                f'worker {", ".join(alive)} still runs, nothing is freed; restart the process'
            )
            return False
        self._quietly(self.cleanup)
        self._configured_stack.close()
        self._configured_stack = None
        self.params = None
        return True

    def _quietly(self, callback: Callable[[], Any]) -> None:
        # Undoing goes on whatever one step says; a step that fails marks the node as faulty.
        try:
            callback()
        except Exception as error:
            self._log_bug('undoing', error)
            self._fault = self.vitals.failure

    def _guarded(self, where: str, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception as error:
            self._report_fault(where, error)

    def _on_worker_failure(self, name: str, error: BaseException) -> None:
        self._report_fault(f'worker {name}', error)

    def _report_fault(self, where: str, error: BaseException) -> None:
        self._active = False
        self._log_bug(where, error)
        self._fault = self.vitals.failure
        try:
            self._fault_guard.trigger()
        except (RCLError, InvalidHandle):
            pass  # the node is being destroyed: nobody is left to change its state

    def _log_bug(self, where: str, error: BaseException) -> None:
        self.vitals.failure = f'{where} failed: {type(error).__name__}: {one_line(error)}'
        self.vitals.count('failures')
        trace = (
            ''
            if isinstance(error, HeqisError)
            else '\n' + ''.join(traceback.format_exception(error))
        )
        self.get_logger().error(self.vitals.failure + trace)

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
        # rclpy lets a request for a transition that the state does not have escape as an RCLError, out of
        # spin(): any client could end the process. Refuse it instead.
        service = getattr(self, '_service_change_state', None)
        if service is None:
            return
        change = service.callback

        def safe(request: Any, response: Any) -> Any:
            try:
                return change(request, response)
            except RCLError as error:
                self.get_logger().warning(
                    f'transition {request.transition.label or request.transition.id} refused in this state:'
                    f' {one_line(error)}'
                )
                response.success = False
                return response

        service.callback = safe


def one_line(error: BaseException | str) -> str:
    """Return the text of an error without line breaks."""
    return (
        '; '.join(line.strip() for line in str(error).splitlines() if line.strip())
        or type(error).__name__
    )
