# SPDX-License-Identifier: Apache-2.0
"""The compute node: frames from the link or topic to the judge, decisions back the same way.

Threads: the executor's; `judge`, the only one that touches the Judge; `swap`, which prepares
another bundle while frames flow.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.task import Future

from heqis_compute.between import DEACTIVATED, BetweenFrames, StoppedError
from heqis_compute.dds_link import DdsLink
from heqis_compute.engines.probe import candidates
from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.judge import Answer, Judge
from heqis_compute.params import COMPUTE
from heqis_compute.served_state import Place, check_place, forget_state, read_state
from heqis_compute.swap import Outcome, Swap
from heqis_core.bundle import Bundle, manifest_check
from heqis_core.engine_probe import Choice, PassedOver, probe
from heqis_core.errors import ConfigError, HeqisError
from heqis_core.io.zmq_link import ComputeLink
from heqis_core.io.zmq_security import optional_security
from heqis_core.link import ComputeEnd, MissedRequest
from heqis_msgs.msg import Decisions, Event, FeatureFrame, Predictions
from heqis_msgs.srv import MissedFrames, SwapBundle
from heqis_ros import qos
from heqis_ros.bundles import BundleDoor
from heqis_ros.convert import predictions_to_msg, request_to_srv
from heqis_ros.ears import Ears
from heqis_ros.node import ManagedNode
from heqis_ros.ports import RCLError, one_line
from heqis_ros.process import run_process

POLL_MS = 50
SEND_TIMEOUT_MS = 200
HOLD_POLL_MS = 20
KEPT_FRAMES = 128
"""Frames that are kept while output is held; more than a gateway has open by far."""
COUNTERS_PERIOD_S = 0.1
LISTEN_PERIOD_S = 0.05
SWAP_POLL_S = 0.1


class _ToldError(HeqisError):
    """A refusal that has gone out as an event already."""


class _Job(NamedTuple):
    """A call of the swap service on its way to the swap's thread; `done` gets its answer."""

    request: SwapBundle.Request
    done: Future


class ComputeNode(ManagedNode):
    """Turns each feature frame into one decision per symbol."""

    PARAMS = COMPUTE

    def __init__(self) -> None:
        """Create an unconfigured node."""
        super().__init__()
        self._judge: Judge | None = None
        self._swap: Swap | None = None
        self._swapping = False
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._door = BundleDoor(self)
        # As old as the node, without a gate: a bundle may be refused before the node is ACTIVE.
        self._events = self.create_publisher(Event, 'events', qos.EVENTS)

    def configure(self, params: Any) -> None:
        """Verify the bundle and open this end of the link, or refuse with the reason."""
        if not params.bundle:
            raise ConfigError(
                'parameter bundle is empty: name the folder that `heqis train` printed'
            )
        self._passed_over: tuple[PassedOver, ...] = ()
        bundle, choice, previous = self._open_served(params)
        self._judge = Judge(bundle, choice.make_engine, choice)
        self.defer(self._judge.close)
        self._between = BetweenFrames()
        self._swap = Swap(
            self._judge,
            self._between,
            self._open,
            lambda path: Bundle.load(path, manifest_check(params.trusted_keys)),
            lambda bundle: self._choose(bundle, params),
            Path(params.state_dir),
            Path(params.bundle),
            previous,
            params.shadow_frames,
            params.shadow_ms / 1e3,
        )
        self._predictions = self.publisher(Predictions, 'predictions', qos.PREDICTIONS)
        self._link = self._open_link(params)
        self.defer(self._link.close)
        self._supervisor_heard_s = 0.0
        self._held_by_supervisor = False
        self._ears = Ears(self, lambda _, process: process == 'supervisor')
        self.defer(self._ears.close)
        self.timer(LISTEN_PERIOD_S, self._listen)
        self._offer_swaps()
        self.timer(COUNTERS_PERIOD_S, self._report)
        self.worker('judge', self._run)
        self.worker('swap', self._run_swaps)
        self._show_served()

    def deactivate(self) -> None:
        """Answer whoever still waits for a swap."""
        while not self._jobs.empty():
            self._answer(self._jobs.get(), StoppedError(DEACTIVATED))

    def _open_served(self, params: Any) -> tuple[Bundle, Choice, Place | None]:
        """Return the bundle to serve, its engine, and the bundle before it.

        That is the configured bundle, unless another one was swapped in before this process was
        started again. One that is no longer sound is told and forgotten.
        """
        folder = Path(params.state_dir)
        try:
            state = read_state(folder, Path(params.bundle))
            if state is not None:
                bundle = self._door.open(state.served.path, params.trusted_keys)
                check_place(bundle, state.served)
                return bundle, self._choose(bundle, params), state.previous
        except HeqisError as error:
            text = f'the configured bundle is served, not the one swapped in: {one_line(error)}'
            self.get_logger().error(text)
            self._tell_event(Event.ERROR, 'bundle_fallback', params.bundle, text)
        # Else a later start would serve again what was swapped in.
        forget_state(folder)
        bundle = self._door.open(params.bundle, params.trusted_keys)
        return bundle, self._choose(bundle, params), None

    def _choose(self, bundle: Bundle, params: Any) -> Choice:
        """Return the engine for a verified bundle; on a new board TensorRT builds for minutes."""
        flags = BuildFlags(params.engine_precision, params.engine_dla)
        order = candidates(params.engine, bundle, flags, Path(params.engine_cache))
        choice = probe(order)
        if choice.passed_over != self._passed_over:
            self._passed_over = choice.passed_over
            for kind, reason in choice.passed_over:
                self.get_logger().info(f'engine {kind} is passed over: {reason}')
        return choice

    def _show_served(self) -> None:
        assert self._judge is not None
        choice = self._judge.served.choice
        assert choice is not None
        reasons = choice.text().removeprefix(choice.kind)
        self.set_info(f'{choice.kind}, bundle {self._judge.bundle.bundle_id}{reasons}')

    def _open_link(self, params: Any) -> ComputeEnd:
        if params.transport == 'zmq':
            return ComputeLink(
                params.frames_endpoint,
                params.decisions_endpoint,
                params.requests_endpoint,
                security=optional_security(
                    params.secret_key_file, params.peer_key_file, params.allow_folder
                ),
            )
        proposed = self.publisher(Decisions, 'decisions/proposed', qos.DECISIONS)
        client = self.client(MissedFrames, 'gateway/missed_frames')

        def ask(request: MissedRequest) -> Any | None:
            if not client.service_is_ready():
                return None
            return client.call_async(request_to_srv(request, MissedFrames.Request()))

        link = DdsLink(lambda msg: self.publish(proposed, msg), ask)
        self.subscription(FeatureFrame, 'features', qos.FRAMES, link.on_message)
        return link

    def _run(self, stop: threading.Event) -> None:
        kept: dict[tuple[int, int], FeatureFrame] = {}
        while not stop.is_set():
            self._between.run()
            if self._held():
                self.set_counter('holding', 1)
                self._keep(kept)
                continue
            self.set_counter('holding', 0)
            frame = kept.pop(next(iter(kept))) if kept else self._link.recv(POLL_MS)
            if frame is not None:
                self._work(lambda judge, frame=frame: judge.on_frame(frame))
            self._ask_for_missing(stop)

    def _keep(self, kept: dict[tuple[int, int], FeatureFrame]) -> None:
        """Take the next frame and put it by: nothing is judged, nothing goes out.

        The gateway keeps frames open, and sends them again and again, until their decisions are
        durable. They must not fill the queue of the socket: libzmq 4.3.5 ends the process if it
        takes up such a queue again after the connection behind it has ended.
        """
        frame = self._link.recv(HOLD_POLL_MS)
        if frame is None:
            return
        if len(kept) < KEPT_FRAMES:
            kept.setdefault((frame.epoch, frame.seq), frame)
        elif (frame.epoch, frame.seq) not in kept:
            self.count('held_dropped')  # it comes again

    def _ask_for_missing(self, stop: threading.Event) -> None:
        asked = None
        while not stop.is_set() and self._judge is not None:
            question = self._judge.intake.wanted()
            if question is None or question == asked:
                return
            asked = question
            reply = self._link.request(*question, timeout_ms=self.params.request_timeout_ms)
            if reply is None:
                return
            self._work(lambda judge, reply=reply: judge.on_reply(reply))

    def _work(self, step: Any) -> None:
        # Pending only while we compute: waiting for the gateway is not a stall of this node.
        self.set_pending(1)
        assert self._judge is not None
        for answer in step(self._judge):
            self._send(answer)
        self.progress()
        self.set_pending(0)

    def _send(self, answer: Answer) -> None:
        if not self._link.send_decisions(answer.decisions, SEND_TIMEOUT_MS):
            # The gateway sends the frame again until it hears of its decisions.
            self.count('send_failed')
        if answer.predictions is not None and self._predictions.get_subscription_count():
            self.publish(self._predictions, predictions_to_msg(answer.predictions))

    def _held(self) -> bool:
        if not self.params.require_supervisor:
            return False
        silence_s = time.monotonic() - self._supervisor_heard_s
        return self._held_by_supervisor or silence_s > self.params.supervisor_lease_ms / 1e3

    def _listen(self) -> None:
        for beat in self._ears.take():
            self._supervisor_heard_s = time.monotonic()
            self._held_by_supervisor = beat.hold

    # ---- swaps ----------------------------------------------------------------------------------

    def _offer_swaps(self) -> None:
        # A group of its own: while one call waits for its answer, everything else goes on, and
        # another call is refused at once.
        group = ReentrantCallbackGroup()
        service = self.create_service(
            SwapBundle, '~/swap_bundle', self._on_swap, callback_group=group
        )
        self.defer(lambda: self.destroy_service(service))

    async def _on_swap(
        self, request: SwapBundle.Request, response: SwapBundle.Response
    ) -> SwapBundle.Response:
        outcome: Outcome | HeqisError
        if self._swapping:
            outcome = ConfigError('another swap is in progress: wait for its end')
        elif not self.active:
            outcome = ConfigError('the node is not active: bundles are swapped while frames flow')
        elif bool(request.path) == request.roll_back:
            outcome = ConfigError('give either the path of a bundle, or roll_back')
        else:
            job = _Job(request, Future(executor=self.executor))
            self._swapping = True
            self._jobs.put(job)
            outcome = await job.done
            self._swapping = False
        return self._response(outcome, response)

    def _response(
        self, outcome: Outcome | HeqisError, response: SwapBundle.Response
    ) -> SwapBundle.Response:
        assert self._judge is not None
        assert self._swap is not None
        response.accepted = isinstance(outcome, Outcome)
        response.agreement = float('nan')
        if isinstance(outcome, Outcome):
            response.message, response.shadow_frames, response.agreement = outcome
        else:
            response.message = one_line(outcome)
        response.bundle_id = self._judge.bundle.bundle_id
        previous = self._swap.previous
        response.previous_id = previous.bundle_id if previous else ''
        return response

    def _run_swaps(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                job = self._jobs.get(timeout=SWAP_POLL_S)
            except queue.Empty:
                continue
            self._answer(job, self._carry_out(job.request, stop))

    def _answer(self, job: _Job, outcome: Outcome | HeqisError) -> None:
        job.done.set_result(outcome)
        if self.executor is not None:
            self.executor.wake()

    def _carry_out(
        self, request: SwapBundle.Request, stop: threading.Event
    ) -> Outcome | HeqisError:
        assert self._swap is not None
        served = self._swap.judge.served
        self.set_counter('swapping', 1)
        try:
            if request.roll_back:
                outcome = self._swap.back(stop)
            else:
                outcome = self._swap.to(request.path, stop)
        except HeqisError as error:
            self._refuse(request, error)
            return error
        except Exception as error:
            # Whatever a bundle brings about here, the one that is served must go on.
            self.get_logger().error('swap failed\n' + traceback.format_exc())
            refused = HeqisError(f'{type(error).__name__}: {one_line(error)}')
            self._refuse(request, refused)
            return refused
        finally:
            self.set_counter('swapping', 0)
        if self._swap.judge.served is not served:
            self.count('swaps')
            self._show_served()
            bundle_id = self._swap.judge.bundle.bundle_id
            self._tell_event(Event.INFO, 'bundle_swap', bundle_id, outcome.text)
            self.get_logger().info(outcome.text)
        return outcome

    def _refuse(self, request: SwapBundle.Request, error: HeqisError) -> None:
        self.count('swaps_refused')
        self.get_logger().warning(f'swap refused: {one_line(error)}')
        if not isinstance(error, _ToldError):
            subject = request.path or 'roll-back'
            self._tell_event(Event.ERROR, 'bundle_refused', subject, one_line(error))

    def _open(self, path: str) -> Bundle:
        try:
            return self._door.open(path, self.params.trusted_keys)
        except HeqisError as error:
            raise _ToldError(str(error)) from error

    def _tell_event(self, level: int, kind: str, subject: str, text: str) -> None:
        event = Event(
            stamp_ns=time.time_ns(),
            level=level,
            source=self.get_fully_qualified_name(),
            kind=kind,
            subject=subject,
            text=text,
        )
        with contextlib.suppress(RCLError, InvalidHandle):
            self._events.publish(event)

    def _report(self) -> None:
        judge = self._judge
        if judge is None:
            return
        intake, counters = judge.intake.counters, judge.counters
        values = {
            'frames_received': intake.received,
            'frames_decided': counters.decided,
            'frames_duplicate': intake.duplicate,
            'frames_warmed': counters.warmed,
            'frames_recovered': intake.recovered,
            'frames_outdated': intake.outdated,
            'frames_foreign': counters.foreign,
            'gaps': intake.gaps,
            'drops': intake.lost,
            'decisions': counters.decisions,
            'signals': counters.signals,
        }
        for name, value in values.items():
            self.set_counter(name, value)
        if judge.served.choice is not None:
            for name, value in judge.served.choice.counters.items():
                self.set_counter(f'engine_{name}', value)
        for name, value in self._link.counters.items():
            self.set_counter(f'link_{name}', value)
        self.tell_fault(self._link.last_error, 'link')
        self.tell_fault(judge.foreign_text, 'frames')
        if judge.foreign_text:
            self.set_info(judge.foreign_text, degraded=True)
        elif self.vitals.degraded:
            self._show_served()


def main() -> int:
    """Run the compute process."""
    return run_process('compute', [ComputeNode])


if __name__ == '__main__':
    sys.exit(main())
