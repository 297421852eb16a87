# SPDX-License-Identifier: Apache-2.0
"""The compute end of the path on DDS: the same calls as the ZeroMQ link, on topics and a service.

The node makes the ports and passes them in. Frames are taken by the executor's thread and handed
to
the worker through a bounded queue: policy drop, counted; a drop is a gap, and gaps are asked for
again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from heqis_core.decision import Decisions
from heqis_core.errors import WireError
from heqis_core.frame import FeatureFrame
from heqis_core.link import MissedReply, MissedRequest
from heqis_ros.convert import decisions_to_msg, msg_to_frame, srv_to_reply


class DdsLink:
    """Frames from a topic, decisions to a topic, questions to the gateway's service.

    Args:
        publish: sends a Decisions message; False if it could not.
        ask: starts a call of the MissedFrames service; returns its future, or None
            if the service is not there.
        depth: bound of the queue of frames.
    """

    def __init__(
        self,
        publish: Callable[[Any], bool],
        ask: Callable[[MissedRequest], Any | None],
        depth: int = 256,
    ) -> None:
        self._publish = publish
        self._ask = ask
        self._frames: queue.Queue[Any] = queue.Queue(depth)
        self.counters = {'received': 0, 'dropped': 0, 'bad': 0, 'sent': 0, 'asked': 0}
        self.last_error = ''

    def on_message(self, msg: Any) -> None:
        """Take a FeatureFrame message from the executor's thread."""
        self.counters['received'] += 1
        try:
            self._frames.put_nowait(msg)
        except queue.Full:
            self.counters['dropped'] += 1

    def recv(self, timeout_ms: int) -> FeatureFrame | None:
        """Return the next frame, or None if none came in time."""
        try:
            return msg_to_frame(self._frames.get(timeout=timeout_ms / 1e3))
        except queue.Empty:
            return None
        except WireError as error:
            self._bad(error)
            return None

    def send_decisions(self, decisions: Decisions, timeout_ms: int) -> bool:
        """Publish the decisions of one frame."""
        del timeout_ms  # a publication does not wait
        self.counters['sent'] += 1
        return self._publish(decisions_to_msg(decisions))

    def request(
        self, epoch: int, first_seq: int, last_seq: int, timeout_ms: int
    ) -> MissedReply | None:
        """Ask the gateway for frames again; None if no answer came in time."""
        future = self._ask(MissedRequest(epoch, first_seq, last_seq))
        if future is None:
            return None
        self.counters['asked'] += 1
        answered = threading.Event()
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(timeout_ms / 1e3):
            future.cancel()
            return None
        response = future.result()
        if response is None or response.epoch == 0:
            return None
        try:
            return srv_to_reply(response)
        except WireError as error:
            self._bad(error)
            return None

    def close(self) -> None:
        """Drop what waits; the node frees the ports."""
        while not self._frames.empty():
            self._frames.get_nowait()

    def _bad(self, error: WireError) -> None:
        self.counters['bad'] += 1
        self.last_error = str(error)
