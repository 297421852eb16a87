# SPDX-License-Identifier: Apache-2.0
"""The course of a run: coming up, streaming, over, or hopeless. Pure: times are arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heqis_bringup.launch_runner import ProcessView
from heqis_core.errors import ConfigError
from heqis_core.graph_state import GraphState
from heqis_supervisor.rules import load_rules

START_LIMIT_S = 90.0
"""Longest time until every node is ACTIVE."""
QUICK_ENDS = 3
"""A process that ended this often before the graph was up will not get there."""


@dataclass
class Course:
    """Where a run stands.

    Attributes:
        expected: nodes that make the graph complete.
        duration_s: after so long the run is over; None if only a person ends it.
        reason: why it is over: finished, duration, interrupted; `failed` until then.
        seconds: times from the start: `up` (all nodes active), `first_signal`.
        problems: one line for each thing that went wrong.
    """

    expected: Sequence[str]
    duration_s: float | None
    reason: str = 'failed'
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def update(
        self,
        now_s: float,
        started_s: float,
        state: GraphState,
        processes: Sequence[ProcessView],
        interrupted: bool,
    ) -> tuple[str, bool]:
        """Return what happens now, for people, and whether to go on; monotonic times."""
        elapsed_s = now_s - started_s
        if state.first_signal_s is not None:
            self.seconds.setdefault('first_signal', state.first_signal_s - started_s)
        if state.all_active(self.expected, now_s):
            self.seconds.setdefault('up', elapsed_s)
        up = 'up' in self.seconds
        finished = up and state.stream_done()
        if finished:
            self.reason = 'finished'
        elif interrupted:
            self.reason = 'interrupted'
        if interrupted or (finished and self.duration_s is not None):
            return f'ending ({self.reason})', False
        if finished:
            return 'finished, Ctrl-C ends it', True
        if self.duration_s is not None and elapsed_s >= self.duration_s:
            self.reason = 'duration'
            if not up:
                self.problems.append(self._not_up(state, now_s, elapsed_s))
        elif not up and (loop := _crash_loop(processes)):
            self.problems.append(loop)
        elif not up and elapsed_s > START_LIMIT_S:
            self.problems.append(self._not_up(state, now_s, elapsed_s))
        elif up:
            return 'streaming', True
        else:
            active = sum(state.all_active((name,), now_s) for name in self.expected)
            return f'starting, {active} of {len(self.expected)} nodes active', True
        return f'ending ({self.reason})', False

    def _not_up(self, state: GraphState, now_s: float, elapsed_s: float) -> str:
        waiting = []
        for name in self.expected:
            view = state.nodes.get(name)
            text = 'not heard' if view is None else view.state_name(now_s)
            if text != 'active':
                waiting.append(
                    f'{name} {text}' + (f' ({view.info})' if view and view.info else '')
                )
        return f'the graph did not come up within {elapsed_s:.0f} s: {"; ".join(waiting)}'


def expected_nodes(graph: Path, started: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of the nodes that make a graph.yaml complete, dependencies first.

    Nodes of optional processes count only if `started` names their process; other names there
    change nothing. Raises ConfigError if the file describes no graph or no node is left.
    """
    rules = load_rules(graph)
    names = tuple(
        node.name
        for node in rules.nodes.values()
        if node.process in started or not rules.processes[f'{node.board}/{node.process}'].optional
    )
    if not names:
        raise ConfigError(f'{graph} names no node of a process that is always started')
    return names


def _crash_loop(processes: Sequence[ProcessView]) -> str:
    for view in processes:
        if view.restarts >= QUICK_ENDS:
            said = next((line for line in reversed(view.tail) if line.strip()), 'nothing')
            return f'{view.name} ended {view.restarts} times; its last words: {said}'
    return ''
