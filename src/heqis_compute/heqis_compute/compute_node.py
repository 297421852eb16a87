# SPDX-License-Identifier: Apache-2.0
"""The compute node: frames from the link or topic to the judge, decisions back the same way."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from heqis_compute.dds_link import DdsLink
from heqis_compute.engines.probe import Choice, PassedOver, candidates, probe
from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.judge import Answer, Judge
from heqis_compute.params import COMPUTE
from heqis_core.bundle import Bundle
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
from heqis_ros.process import run_process

POLL_MS = 50
SEND_TIMEOUT_MS = 200
HOLD_POLL_S = 0.02
COUNTERS_PERIOD_S = 0.1
LISTEN_PERIOD_S = 0.05
SWAP_TIMEOUT_S = 5.0


class ComputeNode(ManagedNode):
    """Turns each feature frame into one decision per symbol."""

    PARAMS = COMPUTE

    def __init__(self) -> None:
        """Create an unconfigured node."""
        super().__init__()
        self._lock = threading.Lock()
        self._judge: Judge | None = None
        self._door = BundleDoor(self)

    def configure(self, params: Any) -> None:
        """Verify the bundle and open this end of the link, or refuse with the reason."""
        if not params.bundle:
            raise ConfigError(
                'parameter bundle is empty: name the folder that `heqis train` printed'
            )
        bundle = self._door.open(params.bundle, params.trusted_keys)
        self._passed_over: tuple[PassedOver, ...] = ()
        choice = self._choose(bundle, params)
        self._judge = Judge(bundle, choice.make_engine)
        self.defer(self._judge.close)
        self._predictions = self.publisher(Predictions, 'predictions', qos.PREDICTIONS)
        self._events = self.publisher(Event, 'events', qos.EVENTS)
        self._link = self._open_link(params)
        self.defer(self._link.close)
        self._supervisor_heard_s = 0.0
        self._held_by_supervisor = False
        self._told = ''
        self._ears = Ears(self, lambda _, process: process == 'supervisor')
        self.defer(self._ears.close)
        self.timer(LISTEN_PERIOD_S, self._listen)
        self.service(SwapBundle, '~/swap_bundle', self._on_swap)
        self.timer(COUNTERS_PERIOD_S, self._report)
        self.worker('judge', self._run)
        self._serve(choice, bundle)

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

    def _serve(self, choice: Choice, bundle: Bundle) -> None:
        self._engine_counters = choice.counters
        reasons = choice.text().removeprefix(choice.kind)
        self.set_info(f'{choice.kind}, bundle {bundle.bundle_id}{reasons}')

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
        while not stop.is_set():
            if self._held():
                # Frames stay open at the gateway meanwhile: nothing is lost, nothing goes out.
                self.set_counter('holding', 1)
                stop.wait(HOLD_POLL_S)
                continue
            self.set_counter('holding', 0)
            frame = self._link.recv(POLL_MS)
            if frame is not None:
                self._work(lambda judge, frame=frame: judge.on_frame(frame))
            self._ask_for_missing(stop)

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
        with self._lock:
            assert self._judge is not None
            answers = step(self._judge)
            for answer in answers:
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

    def _on_swap(
        self, request: SwapBundle.Request, response: SwapBundle.Response
    ) -> SwapBundle.Response:
        assert self._judge is not None
        response.bundle_id = self._judge.bundle.bundle_id
        try:
            bundle = self._door.open(request.path, self.params.trusted_keys)
            if not self._judge.same_features(bundle):
                raise ConfigError(
                    f'bundle {bundle.bundle_id} reads other features or windows than '
                    f'{response.bundle_id}: configure both boards with it'
                )
            # Before the lock: frames go on while engines of the new bundle are built.
            choice = self._choose(bundle, self.params)
            if not self._lock.acquire(timeout=SWAP_TIMEOUT_S):
                raise ConfigError('the node is busy with one frame for too long: try again')
            try:
                self._swap(bundle, choice)
            finally:
                self._lock.release()
        except HeqisError as error:
            response.message = str(error)
            return response
        response.accepted = True
        response.bundle_id = bundle.bundle_id
        response.message = 'served from the next frame on'
        self._serve(choice, bundle)
        self.publish(
            self._events,
            Event(
                stamp_ns=time.time_ns(),
                level=Event.INFO,
                source=self.get_fully_qualified_name(),
                kind='bundle_swap',
                subject=bundle.bundle_id,
                text=f'bundle {bundle.bundle_id} is served',
            ),
        )
        return response

    def _swap(self, bundle: Bundle, choice: Choice) -> None:
        judge = self._judge
        assert judge is not None
        before, judge.make_engine = judge.make_engine, choice.make_engine
        try:
            judge.swap(bundle)
        except HeqisError:
            judge.make_engine = before
            raise

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
        for name, value in self._engine_counters.items():
            self.set_counter(f'engine_{name}', value)
        for name, value in self._link.counters.items():
            self.set_counter(f'link_{name}', value)
        self._tell(judge.foreign_text or self._link.last_error)

    def _tell(self, text: str) -> None:
        if text and text != self._told:
            self._told = text
            self.set_info(text)
            self.get_logger().error(text)


def main() -> int:
    """Run the compute process."""
    return run_process('compute', [ComputeNode])


if __name__ == '__main__':
    sys.exit(main())
