# SPDX-License-Identifier: Apache-2.0
"""What is known of a running graph, from its heartbeats and decisions: bounded, no ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from heqis_core.control import Event, Level, NodeBeat, NodeState, ProcessBeat
from heqis_core.frame import N_STAGES, Stage

LATENCY_FRAMES = 4096
"""Frames whose stamps the live percentiles are taken over."""
SILENT_S = 2.0
"""A node that was not heard for this long counts as lost."""

GAUGES = frozenset({'frames_open', 'hold', 'holding', 'kill_switch', 'source_done'})
"""Counters that say how things are now, not how often something happened."""
LOSSES = frozenset(
    {
        *('bad_messages', 'drops', 'events_dropped', 'link_dropped', 'overflow'),
        *('predictions_dropped', 'publish_failed', 'queue_dropped'),
    }
)
"""Counters of what a queue of a node refused or let go."""
RESUMING_NODES = frozenset({'gateway'})
"""Nodes whose counters go on from a checkpoint when their process starts again."""

_KEEP_STARTS = 16
_KEEP_TEXTS = 50


@dataclass
class NodeView:
    """One node as its heartbeats show it.

    Attributes:
        name: last part of the fully qualified name.
        process, board: where it runs.
        state: lifecycle state.
        counters: totals over every start of its process; `GAUGES` are of now.
        stages_us: last duration of each of its stages, microseconds.
        info: its own word.
        pending: units of work that wait.
        heard_s: monotonic time of the last heartbeat.
    """

    name: str
    process: str
    board: str
    state: NodeState = NodeState.UNKNOWN
    counters: dict[str, int] = field(default_factory=dict)
    stages_us: Mapping[str, int] = field(default_factory=dict)
    info: str = ''
    pending: int = 0
    heard_s: float = 0.0
    _before: dict[str, int] = field(default_factory=dict)

    @property
    def drops(self) -> int:
        """Return how much its queues have let go."""
        return sum(n for name, n in self.counters.items() if name in LOSSES)

    def state_name(self, now_s: float, silent_s: float = SILENT_S) -> str:
        """Return the state in lower case, `lost` for a node that is no longer heard."""
        return 'lost' if now_s - self.heard_s > silent_s else self.state.name.lower()

    def began_anew(self) -> None:
        """Note that the process started again: what it counts from zero adds to what was."""
        if self.name not in RESUMING_NODES:
            self._before = dict(self.counters)

    def take(self, beat: NodeBeat, now_s: float) -> None:
        """Take over what a heartbeat says."""
        self.state = _state(beat.state)
        self.stages_us, self.info, self.pending = beat.stages_us, beat.info, beat.pending
        self.heard_s = now_s
        # A new dict each time: another thread may be reading the old one.
        counters = dict(self.counters)
        for name, value in beat.counters.items():
            before = 0 if name in GAUGES else self._before.get(name, 0)
            counters[name] = before + value
        self.counters = counters


@dataclass
class _Process:
    start_id: int
    count: int = -1
    restarts: int = 0
    pid: int = 0
    hold: bool = False
    old_starts: deque[int] = field(default_factory=lambda: deque(maxlen=_KEEP_STARTS))


class GraphState:
    """Everything that the live table, the report and the dashboard show of a graph's health.

    One thread writes, others may read.

    Attributes:
        nodes: every node heard of, by name.
        events: the last events.
        errors: those of level ERROR as one line each.
        error_count: events of level ERROR.
        signals: the last released signals: symbol, action, score.
        symbols: every symbol that had a signal.
        first_signal_s: when the first came.
        diagnostics: level and message of each part that the supervisor reports on.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, NodeView] = {}
        self.events: deque[Event] = deque(maxlen=_KEEP_TEXTS)
        self.errors: deque[str] = deque(maxlen=_KEEP_TEXTS)
        self.error_count = 0
        self.signals: deque[tuple[str, str, float]] = deque(maxlen=8)
        self.symbols: set[str] = set()
        self.first_signal_s: float | None = None
        self.diagnostics: dict[str, tuple[Level, str]] = {}
        self._processes: dict[tuple[str, str], _Process] = {}
        self._stamps = np.zeros((LATENCY_FRAMES, N_STAGES), np.int64)
        self._n_frames = 0

    def beat(self, beat: ProcessBeat, now_s: float) -> bool:
        """Take a heartbeat; return False for one heard before or from an old start."""
        key = (beat.board, beat.process)
        process = self._processes.get(key)
        if process is None:
            process = self._processes[key] = _Process(beat.start_id)
        elif beat.start_id in process.old_starts:
            return False
        elif beat.start_id != process.start_id:
            process.old_starts.append(process.start_id)
            process.start_id, process.count = beat.start_id, -1
            process.restarts += 1
            for view in self.nodes.values():
                if (view.board, view.process) == key:
                    view.began_anew()
        if beat.count <= process.count:
            return False
        process.count, process.pid, process.hold = beat.count, beat.pid, beat.hold
        for node in beat.nodes:
            name = node.name.rpartition('/')[2]
            if name not in self.nodes:
                self.nodes[name] = NodeView(name, beat.process, beat.board)
            self.nodes[name].take(node, now_s)
        return True

    def decided(self, stamps: npt.NDArray[np.int64]) -> None:
        """Take the stage stamps of one judged frame, int64 (N_STAGES,) ns."""
        self._stamps[self._n_frames % LATENCY_FRAMES] = stamps
        self._n_frames += 1

    def signalled(self, now_s: float, signals: Iterable[tuple[str, str, float]]) -> None:
        """Take released signals: symbol, action, score."""
        for signal in signals:
            self.first_signal_s = now_s if self.first_signal_s is None else self.first_signal_s
            self.symbols.add(signal[0])
            self.signals.append(signal)

    def happened(self, event: Event) -> None:
        """Take an event; those of level ERROR are counted and kept apart."""
        self.events.append(event)
        text = f'{event.source} {event.kind} {event.subject}: {event.text}'
        if event.level >= Level.ERROR:
            self.errors.append(text)
            self.error_count += 1

    def diagnosed(self, name: str, level: Level, message: str) -> None:
        """Take what the supervisor reports on one part."""
        self.diagnostics[name] = (level, message)

    @property
    def hold(self) -> bool:
        """Whether the supervisor says that output must be held."""
        return any(process.hold for process in list(self._processes.values()))

    def restarts(self, name: str) -> int:
        """Return how often the process of a node began anew.

        It is what was seen here, or what the supervisor counts if that is more: it may be older.
        """
        view = self.nodes[name]
        process = self._processes[(view.board, view.process)]
        return max(process.restarts, self.total(f'restarts.{view.board}/{view.process}'))

    def pid(self, name: str) -> int:
        """Return the process id of a node as its last heartbeat says."""
        view = self.nodes[name]
        return self._processes[(view.board, view.process)].pid

    def total(self, counter: str, *nodes: str) -> int:
        """Return a counter summed over the named nodes, or over all."""
        views = [self.nodes[n] for n in nodes or list(self.nodes) if n in self.nodes]
        return sum(view.counters.get(counter, 0) for view in views)

    def all_active(self, expected: Iterable[str], now_s: float) -> bool:
        """Whether each expected node is heard and ACTIVE."""
        return all(
            name in self.nodes and self.nodes[name].state_name(now_s) == 'active'
            for name in expected
        )

    def stream_done(self) -> bool:
        """Whether a finite source has ended and each of its frames is durable."""
        gateway = self.nodes.get('gateway')
        if gateway is None or gateway.state != NodeState.ACTIVE:
            return False
        return bool(gateway.counters.get('source_done')) and not gateway.counters.get(
            'frames_open'
        )

    def latency_us(self) -> dict[str, tuple[float, float]]:
        """Return (p50, p99) in microseconds by stage and of ingest_to_signal, last frames."""
        stamps = self._stamps[: min(self._n_frames, LATENCY_FRAMES)]
        result: dict[str, tuple[float, float]] = {}
        reached = stamps[:, Stage.INGEST]
        for stage in list(Stage)[1:]:
            column = stamps[:, stage]
            _percentiles(result, stage.name.lower(), reached, column)
            reached = np.where(column > 0, column, reached)
        _percentiles(
            result, 'ingest_to_signal', stamps[:, Stage.INGEST], stamps[:, Stage.COMMITTED]
        )
        return result


def _percentiles(
    result: dict[str, tuple[float, float]],
    name: str,
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
) -> None:
    spans = (end - start)[(end > 0) & (start > 0)]
    if len(spans):
        p50, p99 = np.percentile(spans, (50, 99), method='inverted_cdf') / 1000
        result[name] = (float(p50), float(p99))


def _state(code: int) -> NodeState:
    try:
        return NodeState(code)
    except ValueError:
        return NodeState.UNKNOWN
