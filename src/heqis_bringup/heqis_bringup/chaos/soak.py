# SPDX-License-Identifier: Apache-2.0
"""No fault at all under full load: every alarm of such a run is a false one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from heqis_bringup.chaos.graph import Graph
from heqis_bringup.chaos.layout import Subject, fed
from heqis_bringup.launch_runner import in_child
from heqis_core.control import Level

_BUSY = 'while True: pass'
_TICK_S = 0.2
_TOLD = 20


@dataclass(frozen=True)
class Soak:
    """What a run without a fault showed.

    Attributes:
        minutes: how long, from the moment at which everything was well.
        load: busy loops beside it.
        frames, signals: made durable meanwhile.
        alarms: events of level WARN or more.
        restarts: processes that started anew.
        leases: leases that ran out: of a process, of an agent, of the supervisor at the compute
            node.
        not_ok: times that a part stopped being OK on /diagnostics.
        said: the first of all these, for people.
    """

    minutes: float
    load: int
    frames: int
    signals: int
    alarms: int
    restarts: int
    leases: int
    not_ok: int
    said: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether there was no false alarm, and work was done."""
        return self.frames > 0 and not (self.alarms or self.restarts or self.leases or self.not_ok)

    def line(self) -> str:
        """Return one line of evidence."""
        rate = self.frames / (60 * self.minutes)
        return (
            f'{self.minutes:.1f} minutes, source flat out, {self.load} busy loops beside it: '
            f'{self.frames:,} frames ({rate:.0f} a second), {self.signals:,} signals; '
            f'{self.alarms} events of WARN or more, {self.restarts} restarts, '
            f'{self.leases} leases run out, {self.not_ok} times not OK on /diagnostics'
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), 'passed': self.passed, 'line': self.line()}


def run_soak(
    minutes: float,
    load: int,
    subject: Subject,
    folder: Path,
    tell: Callable[[float], None],
    stopped: Callable[[], bool],
) -> Soak:
    """Run a graph fed flat out for some minutes and count what it complains about.

    `tell` gets the share that is done. Raises BenchError if the graph does not come up.
    """
    with Graph(fed, replace(subject, pace=0.0), folder / 'soak') as graph:
        graph.wait_up()
        began_s = time.monotonic()
        before = graph.counts()
        restarts = sum(graph.restarts().values())
        with busy(load):
            while (passed_s := time.monotonic() - began_s) < 60 * minutes and not stopped():
                tell(passed_s / (60 * minutes))
                time.sleep(_TICK_S)
        after = graph.counts()
        seen = [s for s in graph.record.seen(began_s) if s.kind != 'bars_rejected']
        alarms = [s for s in seen if s.source == 'event' and s.level >= Level.WARN]
        leases = [s for s in seen if s.kind in ('process_lost', 'agent_lost', 'holding')]
        not_ok = [s for s in seen if s.source == 'diagnostics' and s.level >= Level.WARN]
        return Soak(
            minutes=passed_s / 60,
            load=load,
            frames=after['frames'] - before['frames'],
            signals=after['signals'] - before['signals'],
            alarms=len(alarms),
            restarts=sum(graph.restarts().values()) - restarts,
            leases=len(leases),
            not_ok=len(not_ok),
            said=tuple(
                f'{s.source} {s.kind} {s.subject}: {s.text}'
                for s in dict.fromkeys([*alarms, *leases, *not_ok])
            )[:_TOLD],
        )


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep so many cores busy meanwhile."""
    parent = os.getpid()
    processes = [
        subprocess.Popen([sys.executable, '-c', _BUSY], preexec_fn=lambda: in_child(parent))
        for _ in range(loops)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
