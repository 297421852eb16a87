# SPDX-License-Identifier: Apache-2.0
"""What a graph's topics say, taken into a `GraphState`: one function for each topic.

Whoever shows a graph wires them to subscriptions or trays of its own. A message whose parts do
not fit together is counted in `refused` and left out: it must not end whoever only looks on.
"""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray

from heqis_core.control import Level
from heqis_core.decision import Action
from heqis_core.errors import WireError
from heqis_core.graph_state import GraphState
from heqis_msgs.msg import Decisions, Event, Heartbeat, Signals
from heqis_ros.convert_health import msg_to_beat, msg_to_event


class GraphEars:
    """Takes messages into one state; times are monotonic, of the moment they are taken."""

    def __init__(self, state: GraphState) -> None:
        """Fill `state`."""
        self.state = state
        self.refused = 0

    def heartbeat(self, message: Heartbeat) -> None:
        """Take the heartbeat of a process."""
        try:
            self.state.beat(msg_to_beat(message), time.monotonic())
        except WireError:
            self.refused += 1

    def decisions(self, message: Decisions) -> None:
        """Take the stage stamps of one judged frame."""
        self.state.decided(np.asarray(message.stamps, np.int64))

    def signals(self, message: Signals) -> None:
        """Take the released signals of one frame."""
        signals = [(s.symbol, Action(s.action).name, s.score) for s in message.signals]
        self.state.signalled(time.monotonic(), signals)

    def event(self, message: Event) -> None:
        """Take an event."""
        try:
            self.state.happened(msg_to_event(message))
        except WireError:
            self.refused += 1

    def diagnostics(self, message: DiagnosticArray) -> None:
        """Take what the supervisor says of each part; a level that is not known is an error."""
        for status in message.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            known = Level(min(level, int(Level.ERROR)))
            self.state.diagnosed(status.name, known, status.message)
