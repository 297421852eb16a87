# SPDX-License-Identifier: Apache-2.0
"""What the bench hears of a graph, each thing with the moment at which it came.

Topics come in by `GraphEars`, in the monitor's thread; the launch runner and the bench itself add
what they see. Times are monotonic seconds of this process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from diagnostic_msgs.msg import DiagnosticArray

from heqis_core.control import Event as EventData
from heqis_core.control import Level, NodeState, ProcessBeat
from heqis_core.errors import WireError
from heqis_core.graph_state import GraphState
from heqis_msgs.msg import Decisions, Event, Heartbeat, Signals
from heqis_ros.convert_health import msg_to_beat, msg_to_event
from heqis_ros.graph_ears import GraphEars

KEEP = 50_000
"""Frames, signals and sightings that are kept: some minutes of a graph flat out."""
RISING = frozenset({'bars_rejected', 'commit_errors', 'failures', 'holding'})
"""Counters whose rise is a sighting."""

Key = tuple[str, int, int]
"""Stream, event time and revision of a frame."""


class Seen(NamedTuple):
    """One sign that something is not as it was.

    Attributes:
        at_s: when it reached the bench.
        source: event, diagnostics, runner, heartbeat or answer.
        kind: kind of an event; level of a part; what the runner did; name of a counter.
        subject: process (`board/process`), node or part that it is about.
        text: for people.
        level: WARN and ERROR are alarms.
    """

    at_s: float
    source: str
    kind: str
    subject: str
    text: str = ''
    level: Level = Level.INFO


class Record(GraphEars):
    """Ears of a monitor that also write down when they heard what."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__(GraphState())
        self.starts: dict[str, int] = {}
        """Start identity of each process, by `board/process`."""
        self.began_s: dict[str, float] = {}
        """When its first heartbeat came."""
        self.parts: dict[str, Level] = {}
        """Level of each part, as /diagnostics said last."""
        self.told_s = 0.0
        """When /diagnostics came last."""
        self.newest_ns = 0
        """Event time of the last frame that was released."""
        self._seen: deque[Seen] = deque(maxlen=KEEP)
        self._released: deque[float] = deque(maxlen=KEEP)
        self._signals: deque[tuple[float, Key]] = deque(maxlen=KEEP)
        self._counters: dict[tuple[str, str], int] = {}
        self._states: dict[str, int] = {}
        self._lock = threading.Lock()

    # --- what comes in ---

    def note(
        self, source: str, kind: str, subject: str, text: str = '', level: Level = Level.INFO
    ) -> None:
        """Write a sighting down; any thread."""
        with self._lock:
            self._seen.append(Seen(time.monotonic(), source, kind, subject, text, level))

    def heartbeat(self, message: Heartbeat) -> None:
        """Take a heartbeat: who started anew, who is not active, what counts up."""
        try:
            beat = msg_to_beat(message)
        except WireError:
            self.refused += 1
            return
        if self.state.beat(beat, time.monotonic()):
            self._take(beat)

    def _take(self, beat: ProcessBeat) -> None:
        key = f'{beat.board}/{beat.process}'
        if self.starts.get(key) != beat.start_id:
            self.starts[key], self.began_s[key] = beat.start_id, time.monotonic()
            self.note('heartbeat', 'start', key, f'pid {beat.pid}')
        for node in beat.nodes:
            name = node.name.rpartition('/')[2]
            if self._states.get(name) != node.state:
                self._states[name] = node.state
                state = 'active' if node.state == NodeState.ACTIVE else 'not active'
                self.note('heartbeat', state, name, node.info)
            for counter in RISING & node.counters.keys():
                value = node.counters[counter]
                if value > self._counters.get((name, counter), 0):
                    self.note('heartbeat', counter, name, node.info)
                self._counters[name, counter] = value

    def decisions(self, message: Decisions) -> None:
        """Take a frame that the risk gate has let go."""
        super().decisions(message)
        with self._lock:
            self._released.append(time.monotonic())
            self.newest_ns = message.event_time_ns

    def signals(self, message: Signals) -> None:
        """Take the released signals of a frame."""
        super().signals(message)
        key = (message.stream, message.event_time_ns, message.revision)
        with self._lock:
            self._signals.append((time.monotonic(), key))

    def event(self, message: Event) -> None:
        """Take an event."""
        try:
            event: EventData = msg_to_event(message)
        except WireError:
            self.refused += 1
            return
        self.state.happened(event)
        self.note('event', event.kind, event.subject, event.text, event.level)

    def diagnostics(self, message: DiagnosticArray) -> None:
        """Take /diagnostics; only a change of level is a sighting."""
        super().diagnostics(message)
        self.told_s = time.monotonic()
        for name, (level, text) in self.state.diagnostics.items():
            part = name.removeprefix('heqis/')
            if self.parts.get(part, Level.INFO) != level:
                word = 'OK' if level == Level.INFO else level.name
                self.note('diagnostics', word, part, text, level)
            self.parts[part] = level

    # --- what is asked ---

    def seen(self, since_s: float) -> list[Seen]:
        """Return the sightings since then, in order."""
        with self._lock:
            return [one for one in self._seen if one.at_s >= since_s]

    def released(self, since_s: float) -> list[float]:
        """Return when frames were released since then."""
        with self._lock:
            return [at_s for at_s in self._released if at_s >= since_s]

    def signalled(self, since_s: float) -> list[tuple[float, Key]]:
        """Return when signals came since then, and of which frames."""
        with self._lock:
            return [one for one in self._signals if one[0] >= since_s]


def first(seen: Iterable[Seen], signs: Iterable[tuple[str, str, str]]) -> Seen | None:
    """Return the first sighting that is one of `signs`: source, begin of its kind, subject.

    An empty subject stands for any.
    """
    wanted = list(signs)
    for one in seen:
        for source, kind, subject in wanted:
            fits = one.source == source and one.kind.startswith(kind)
            if fits and subject in ('', one.subject):
                return one
    return None
