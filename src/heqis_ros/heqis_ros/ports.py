# SPDX-License-Identifier: Apache-2.0
"""Ports that belong to a phase of a node's life and are gated by its state.

rclpy gates publishers alone. Here a subscription's, a timer's or a worker's code runs only while
the node is ACTIVE, and whatever is created is freed when the phase that created it is undone. When
the phases begin and end, and what a failure means, is decided in `node`.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.client import Client
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from heqis_core.errors import HeqisError
from heqis_ros.vitals import Vitals
from heqis_ros.worker import Target, Workers

RCLError = rclpy_implementation.RCLError


def one_line(error: BaseException | str) -> str:
    """Return the text of an error without line breaks, its class if it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return '; '.join(line for line in lines if line) or type(error).__name__


class GatedNode(LifecycleNode):
    """Creates, gates and frees ports, and takes note of what fails in them."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        """Create a node without ports; keyword arguments are those of rclpy's Node."""
        super().__init__(name, **kwargs)
        self.vitals = Vitals()
        self._active = False
        self._configured_stack: ExitStack | None = None
        self._active_stack: ExitStack | None = None
        self._gated_timers: list[Timer] = []
        self._fault = ''
        self._workers = Workers(self.get_fully_qualified_name(), self._on_worker_failure)
        # The way from a failing worker's thread to the executor, the only thread that may change
        # the state.
        self._fault_guard = self.create_guard_condition(self._leave_after_fault)

    @property
    def active(self) -> bool:
        """Whether the gates are open."""
        return self._active

    def publisher(self, msg_type: Any, topic: str, qos: QoSProfile) -> Publisher:
        """Create a publisher that is silent unless the node is ACTIVE."""
        self._phase()
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
        """Create a subscription whose callback runs only while ACTIVE.

        What comes at other times is dropped and counted as `discarded_inactive`.
        """

        def gated(msg: Any) -> None:
            if self._active:
                self._guarded(f'subscription {topic}', callback, msg)
            else:
                self.vitals.count('discarded_inactive')

        self._phase()
        sub = self.create_subscription(msg_type, topic, gated, qos, raw=raw)
        self.defer(lambda: self.destroy_subscription(sub))
        return sub

    def timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """Create a timer that runs only while ACTIVE, first one period after the activation."""

        def gated() -> None:
            if self._active:
                self._guarded('timer', callback)

        def free() -> None:
            self._gated_timers.remove(timer)
            self.destroy_timer(timer)

        self._phase()
        timer = self.create_timer(period_s, gated)
        self._gated_timers.append(timer)
        self.defer(free)
        if not self._active:
            timer.cancel()
        return timer

    def service(self, srv_type: Any, name: str, callback: Callable[[Any, Any], Any]) -> Service:
        """Create a service that answers from configure to cleanup, whether `active` or not.

        A HeqisError goes to the caller in `response.message` where the type has one. Any other
        exception is a fault of the node, and the caller gets the response as it is then.
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

        self._phase()
        service = self.create_service(srv_type, name, safe)
        self.defer(lambda: self.destroy_service(service))
        return service

    def client(self, srv_type: Any, name: str) -> Client:
        """Create a service client; use `call_async`, a blocking call would wait for itself."""
        self._phase()
        client = self.create_client(srv_type, name)
        self.defer(lambda: self.destroy_client(client))
        return client

    def worker(self, name: str, target: Target) -> None:
        """Let `target(stop_event)` run in a thread of its own while ACTIVE.

        It must look at the event at least every 0.2 s and return when it is set. It is joined
        before `deactivate` is called; all workers of a node share 2 s for that.
        """
        self._phase()
        self._workers.add(name, target)
        self.defer(lambda: self._workers.remove(name))
        if self._active:
            self._workers.start_one(name)

    def defer(self, callback: Callable[[], Any]) -> None:
        """Call `callback` when what is being set up now is undone, last deferred first."""
        self._phase().callback(self._quietly, callback)

    def publish(self, pub: Publisher, msg: Any) -> bool:
        """Publish from any thread; return False, and count it, if inactive or if DDS refuses."""
        if not pub.is_activated:
            self.vitals.count('publish_inactive')
            return False
        try:
            pub.publish(msg)
        except (RCLError, InvalidHandle) as error:
            self.vitals.count('publish_failed')
            self.get_logger().warning(
                f'{type(msg).__name__} was not published: {one_line(error)}',
                throttle_duration_sec=5.0,
            )
            return False
        return True

    def _phase(self) -> ExitStack:
        stack = self._active_stack or self._configured_stack
        if stack is None:
            raise RuntimeError('ports, workers and defer() belong into configure() or activate()')
        return stack

    def _quietly(self, callback: Callable[[], Any]) -> None:
        # Undoing goes on whatever one step says; a step that fails marks the node as faulty.
        try:
            callback()
        except Exception as error:
            self._log_failure('undoing', error)
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
        self._log_failure(where, error)
        self._fault = self.vitals.failure
        # The guard is gone when the node is being destroyed: nobody is left to change its state.
        with contextlib.suppress(RCLError, InvalidHandle):
            self._fault_guard.trigger()

    def _log_failure(self, where: str, error: BaseException) -> None:
        self.vitals.failure = f'{where} failed: {type(error).__name__}: {one_line(error)}'
        self.vitals.count('failures')
        bug = not isinstance(error, HeqisError)
        trace = '\n' + ''.join(traceback.format_exception(error)) if bug else ''
        self.get_logger().error(self.vitals.failure + trace)

    def _leave_after_fault(self) -> None:
        raise NotImplementedError
