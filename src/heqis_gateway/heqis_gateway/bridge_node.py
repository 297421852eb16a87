# SPDX-License-Identifier: Apache-2.0
"""The bridge node: the gateway board's end of the link, and what comes back over it."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.errors import ConfigError
from heqis_core.frame import FeatureFrame
from heqis_core.io.zmq_link import GatewayLink
from heqis_core.io.zmq_security import optional_security
from heqis_gateway.board_links import Links, OneBoard, SeveralBoards
from heqis_gateway.boards_file import open_boards
from heqis_gateway.hub import Hub
from heqis_gateway.params import BRIDGE
from heqis_msgs import msg as m
from heqis_ros import qos
from heqis_ros.convert import decisions_to_msg
from heqis_ros.convert_health import event_to_msg
from heqis_ros.node import ManagedNode

POLL_MS = 100
NOBODY_THERE_S = 0.01
COUNTERS_PERIOD_S = 0.1


class BridgeNode(ManagedNode):
    """Carries frames out, decisions in, and answers requests for missed frames."""

    PARAMS = BRIDGE

    def __init__(self, hub: Hub) -> None:
        """Share `hub` with the gateway node of this process."""
        super().__init__()
        self._hub = hub
        self._links: Links | None = None

    def configure(self, params: Any) -> None:
        """Bind and connect the sockets; refused if a port is taken or an endpoint needs keys."""
        self._links = self._open(params)
        self.defer(self._links.close)
        self._proposed = self.publisher(m.Decisions, 'decisions/proposed', qos.DECISIONS)
        self._events = self.publisher(m.Event, 'events', qos.EVENTS)
        self._where = (
            f'frames to boards {", ".join(self._links.names)}'
            if params.boards
            else f'frames to {params.frames_endpoint}'
        )
        self.set_info(self._where)
        self._away: frozenset[str] = frozenset()
        self.timer(COUNTERS_PERIOD_S, self._report)
        for name in self._links.names:
            self.worker(f'decisions {name}', functools.partial(self._receive, name))
            self.worker(f'requests {name}', functools.partial(self._serve, name))

    def activate(self) -> None:
        """Open the way for frames."""
        self._hub.send = self._send

    def deactivate(self) -> None:
        """Close it; frames wait at the gateway node."""
        self._hub.send = None

    def _open(self, params: Any) -> Links:
        if params.boards:
            if params.peer_key_file:
                raise ConfigError(
                    'parameter peer_key_file is set beside boards: name the key of each board as '
                    f'peer_key in {params.boards}'
                )
            links = open_boards(params.boards, params.secret_key_file, params.allow_folder)
            return SeveralBoards(links, params.board_lease_ms / 1e3, self._propose)
        security = optional_security(
            params.secret_key_file, params.peer_key_file, params.allow_folder
        )
        return OneBoard(
            GatewayLink(
                params.frames_endpoint,
                params.decisions_endpoint,
                params.requests_endpoint,
                security=security,
            ),
            self._propose,
        )

    def _send(self, frame: FeatureFrame) -> bool:
        assert self._links is not None
        return self._links.send(frame)

    def _propose(self, decisions: Decisions) -> None:
        self.publish(self._proposed, decisions_to_msg(decisions))
        self.count('decisions_received')
        self.progress()

    def _receive(self, board: str, stop: threading.Event) -> None:
        assert self._links is not None
        while not stop.is_set():
            if self._proposed.get_subscription_count():
                self._links.receive(board, POLL_MS)
            else:
                # DDS would drop them at once; in the socket they wait for the risk gate.
                stop.wait(NOBODY_THERE_S)

    def _serve(self, board: str, stop: threading.Event) -> None:
        assert self._links is not None
        while not stop.is_set():
            missed = self._hub.missed
            if missed is None:
                # Without the gateway node there is no answer; the asker asks again after its
                # time-out.
                stop.wait(POLL_MS / 1e3)
            elif self._links.serve(board, missed, POLL_MS):
                self.count('requests_served')

    def _report(self) -> None:
        assert self._links is not None
        for name, value in self._links.counters().items():
            self.set_counter(name, value)
        for board, text in self._links.faults().items():
            self.tell_fault(text, board)
        self._tell_away(self._links.away)

    def _tell_away(self, away: frozenset[str]) -> None:
        if away == self._away:
            return
        for board in sorted(away - self._away):
            self._tell(Level.ERROR, 'board_away', board, 'its symbols are NONE until it is back')
        for board in sorted(self._away - away):
            self._tell(Level.INFO, 'board_back', board, 'it answers in time again')
        self._away = away
        missing = f'; away: {", ".join(sorted(away))}' if away else ''
        self.set_info(self._where + missing, degraded=bool(away))

    def _tell(self, level: Level, kind: str, board: str, text: str) -> None:
        text = f'board {board}: {text}'
        source = self.get_fully_qualified_name()
        event = Event(time.time_ns(), level, source, kind, board, text)
        self.publish(self._events, event_to_msg(event))
        if level is Level.ERROR:
            self.get_logger().error(text)
        else:
            self.get_logger().info(text)
