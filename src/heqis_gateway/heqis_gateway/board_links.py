# SPDX-License-Identifier: Apache-2.0
"""The bridge's links to one compute board or to several, behind one set of calls. No ROS.

`send` is called by one thread, the stream's; `receive` and `serve` by one thread for each board.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Protocol

from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame
from heqis_core.link import GatewayEnd, MissedReply, MissedRequest
from heqis_gateway.boards import Merge, part_of

SEND_TIMEOUT_MS = 50

Publish = Callable[[Decisions], None]
Missed = Callable[[MissedRequest], MissedReply]


class Links(Protocol):
    """What the bridge needs of the compute side; every loss is in `counters`."""

    names: tuple[str, ...]

    @property
    def away(self) -> frozenset[str]:
        """Return the names of the boards that are away."""

    def send(self, frame: FeatureFrame) -> bool:
        """Hand one frame over; return False if it has to be handed over once more."""

    def receive(self, board: str, timeout_ms: int) -> None:
        """Take at most one message of decisions from a board and publish what it completes."""

    def serve(self, board: str, missed: Missed, timeout_ms: int) -> bool:
        """Answer at most one request of a board; return whether one was answered."""

    def counters(self) -> dict[str, int]:
        """Return a snapshot of what was sent, received, refused and lost since the start."""

    def faults(self) -> dict[str, str]:
        """Return the most recent fault of each board that had one, as one line."""

    def close(self) -> None:
        """Free everything; a call that waits in another thread returns empty-handed."""


class OneBoard:
    """One board that serves every symbol: what it says is published as it comes."""

    def __init__(self, link: GatewayEnd, publish: Publish) -> None:
        """Take over the link; `publish` is called by the thread that receives."""
        self.names: tuple[str, ...] = ('compute',)
        self._link = link
        self._publish = publish

    @property
    def away(self) -> frozenset[str]:
        """Return none: a single board that is away is waited for."""
        return frozenset()

    def send(self, frame: FeatureFrame) -> bool:
        """Hand one frame over; return False if no peer took it in time."""
        return self._link.send(frame, SEND_TIMEOUT_MS)

    def receive(self, board: str, timeout_ms: int) -> None:
        """Publish the next decisions, if any come in time."""
        decisions = self._link.recv_decisions(timeout_ms)
        if decisions is not None:
            self._publish(decisions)

    def serve(self, board: str, missed: Missed, timeout_ms: int) -> bool:
        """Answer at most one request."""
        return self._link.serve(missed, timeout_ms)

    def counters(self) -> dict[str, int]:
        """Return the link's counters, as `link_NAME`."""
        return {f'link_{name}': value for name, value in self._link.counters.items()}

    def faults(self) -> dict[str, str]:
        """Return the link's most recent fault."""
        return {self.names[0]: self._link.last_error} if self._link.last_error else {}

    def close(self) -> None:
        """Close the link."""
        self._link.close()


class SeveralBoards:
    """Boards that share the symbols: each gets its rows of a frame, the answers are put together.

    A board that is away gets frames too, as soon as its socket takes them, but nobody waits for
    it. See `Merge` for when a board is away.
    """

    def __init__(self, links: Mapping[str, GatewayEnd], lease_s: float, publish: Publish) -> None:
        """Take over the links; `publish` may be called by any thread that calls this object."""
        self.names = tuple(links)
        self._links = dict(links)
        self._publish = publish
        self._lock = threading.Lock()
        self._merge = Merge(self.names, lease_s)
        self._handing: tuple[int, int] | None = None
        self._taken: set[str] = set()

    @property
    def away(self) -> frozenset[str]:
        """Return the names of the boards that are away."""
        with self._lock:
            return frozenset(self._merge.away)

    def send(self, frame: FeatureFrame) -> bool:
        """Hand each board its rows; return False while a board that is not away lacks them.

        Call again with the same frame then: it goes only to those that lack it. A frame whose
        decisions were published already is published again, and goes to no board.
        """
        key = (frame.epoch, frame.seq)
        again = key == self._handing
        with self._lock:
            known = self._merge.offer(frame)
            missing = self._merge.missing(frame.seq)
        if known is not None:
            self._handing = None
            if not again:
                self._publish(known)
            return True
        if not again:
            self._handing, self._taken = key, set()
        for name in [name for name in missing if name not in self._taken]:
            self._hand(name, part_of(frame, missing[name]), 0)
        away = self.away
        lacking = [name for name in missing if name not in self._taken]
        waited_for = [name for name in lacking if name not in away]
        if lacking and (waited_for or not self._taken):
            name = (waited_for or lacking)[0]
            self._hand(name, part_of(frame, missing[name]), SEND_TIMEOUT_MS)
        done = bool(self._taken) and self._taken | self.away >= missing.keys()
        if done:
            self._handing = None
        return done

    def receive(self, board: str, timeout_ms: int) -> None:
        """Take at most one part from a board and publish the frames that need not wait longer."""
        link = self._links[board]
        part = link.recv_decisions(0)
        if part is None:
            # Only now that its socket is empty: what lies there did come in time, however late
            # it is read, be it that nobody listened to the topic or that this process was busy.
            with self._lock:
                ready = self._merge.overdue(board, time.monotonic())
            for decisions in ready:
                self._publish(decisions)
            part = link.recv_decisions(timeout_ms)
        if part is not None:
            with self._lock:
                whole = self._merge.part(board, part, time.monotonic())
            if whole is not None:
                self._publish(whole)

    def serve(self, board: str, missed: Missed, timeout_ms: int) -> bool:
        """Answer at most one request of a board, with its rows of the frames."""
        return self._links[board].serve(
            lambda request: self._rows(board, missed(request)), timeout_ms
        )

    def counters(self) -> dict[str, int]:
        """Return the sums of the links' counters as `link_NAME`, and each board's own beside.

        They are `board.NAME.sent`, `.received`, `.send_timeouts`, `.away` (1 or 0) and those of
        `BoardCounters`.
        """
        found: dict[str, int] = {}
        with self._lock:
            own = {name: asdict(counters) for name, counters in self._merge.counters.items()}
        away = self.away
        for board, link in self._links.items():
            counted = link.counters
            for name, value in counted.items():
                found[f'link_{name}'] = found.get(f'link_{name}', 0) + value
            own[board] |= {name: counted[name] for name in ('sent', 'received', 'send_timeouts')}
            own[board]['away'] = int(board in away)
            found |= {f'board.{board}.{name}': value for name, value in own[board].items()}
        return found

    def faults(self) -> dict[str, str]:
        """Return the most recent fault of each board that had one."""
        return {
            name: f'board {name}: {link.last_error}'
            for name, link in self._links.items()
            if link.last_error
        }

    def close(self) -> None:
        """Close every link."""
        for link in self._links.values():
            link.close()

    def _hand(self, board: str, part: FeatureFrame, timeout_ms: int) -> None:
        if self._links[board].send(part, timeout_ms):
            self._taken.add(board)

    def _rows(self, board: str, reply: MissedReply) -> MissedReply:
        frames = []
        for frame in reply.frames:
            with self._lock:
                share = self._merge.shares.of(frame.symbols).get(board)
            if share is not None:
                frames.append(part_of(frame, share))
        return replace(reply, frames=frames)
