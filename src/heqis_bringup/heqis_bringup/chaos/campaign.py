# SPDX-License-Identifier: Apache-2.0
"""Which fault is injected when: graph after graph, in rounds, in an order that the seed draws."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heqis_bringup.chaos.graph import BenchError, Graph
from heqis_bringup.chaos.layout import Layer, Subject
from heqis_bringup.chaos.measure import Row, summarise
from heqis_bringup.chaos.trial import Fault, Trial, run_trial
from heqis_core.errors import ConfigError
from heqis_core.io.journal import Journal
from heqis_core.simulator import MarketSimulator

SELDOM = 3
"""Of how many rounds one injects the faults that no time is promised for."""
BATCH_LIMIT_S = 600.0

Told = Callable[[str, int], None]
"""Is told what happens now, and how many injections have been done."""


@dataclass(frozen=True)
class GraphEnd:
    """What the journal of one graph holds in the end, beside `heqis batch` on the same bars.

    Attributes:
        layer: name of its layout.
        frames, signals: in its journal.
        same: whether the digests are equal; None if there is nothing to compare with.
        note: why not compared, or what is wrong.
    """

    layer: str
    frames: int
    signals: int
    same: bool | None
    note: str = ''


@dataclass(frozen=True)
class Result:
    """Everything that a campaign found.

    Attributes:
        rows: one for each fault that was injected.
        ends: one for each graph.
        skipped: faults that could not be injected here, and why.
        seconds: how long it took.
    """

    rows: tuple[Row, ...]
    ends: tuple[GraphEnd, ...]
    skipped: dict[str, str]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether every expectation was met."""
        return all(row.passed for row in self.rows) and all(e.same is not False for e in self.ends)


def rounds(faults: Sequence[Fault], times: int, draw: random.Random) -> list[list[Fault]]:
    """Return what is injected in each round, in a drawn order."""
    result = []
    for number in range(times):
        chosen = [fault for fault in faults if fault.promised or number % SELDOM == 0]
        draw.shuffle(chosen)
        result.append(chosen)
    return [chosen for chosen in result if chosen]


def run_campaign(
    faults: Sequence[Fault],
    times: int,
    subject: Subject,
    folder: Path,
    seed: int,
    tell: Told,
    stopped: Callable[[], bool],
) -> Result:
    """Inject every fault and return what came of it; ends early once `stopped()` is true."""
    began_s = time.monotonic()
    layers: dict[Layer, list[Fault]] = {}
    for fault in faults:
        layers.setdefault(fault.layer, []).append(fault)
    trials: dict[str, list[Trial]] = {fault.name: [] for fault in faults}
    ends: list[GraphEnd] = []
    skipped: dict[str, str] = {}
    for layer, members in layers.items():
        waiting = rounds(members, times, random.Random(f'{seed} {layer.__name__}'))
        while waiting and not stopped():
            place = folder / f'{layer.__name__}-{len(ends)}'
            try:
                ends.append(_run_graph(layer, waiting, trials, subject, place, tell, stopped))
            except ConfigError as error:
                skipped.update(dict.fromkeys((f.name for f in members), str(error)))
                break
            except BenchError as error:
                for fault in {fault.name: fault for one in waiting for fault in one}.values():
                    trials[fault.name].append(Trial(fault.name, problems=[str(error)]))
                break
    rows = tuple(summarise(fault, trials[fault.name]) for fault in faults if trials[fault.name])
    return Result(rows, tuple(ends), skipped, time.monotonic() - began_s)


def _run_graph(
    layer: Layer,
    waiting: list[list[Fault]],
    trials: dict[str, list[Trial]],
    subject: Subject,
    folder: Path,
    tell: Told,
    stopped: Callable[[], bool],
) -> GraphEnd:
    """Work on the rounds until they are done or the graph does not get well again."""
    harmed = False

    def say(text: str) -> None:
        tell(f'{layer.__name__}: {text}', sum(map(len, trials.values())))

    say('starting')
    with Graph(layer, subject, folder) as graph:
        graph.wait_up()
        while waiting and not stopped():
            fault = min(waiting[0], key=lambda one: graph.rest_s(one.targets))
            if (rest_s := graph.rest_s(fault.targets)) > 1:
                say(f'{fault.name} in {rest_s:.0f} s')
            while graph.rest_s(fault.targets) > 0 and not stopped():
                time.sleep(0.1)
            if stopped():
                break
            say(fault.name)
            waiting[0].remove(fault)
            if not waiting[0]:
                waiting.pop(0)
            harmed = harmed or fault.harms
            try:
                trial = run_trial(graph, fault)
            except BenchError as error:
                trial = Trial(fault.name, problems=[str(error)])
            trials[fault.name].append(trial)
            if trial.well_s is None:
                break
    say('comparing with heqis batch')
    return _end(layer, graph, harmed)


def _end(layer: Layer, graph: Graph, harmed: bool) -> GraphEnd:
    with Journal.open(graph.layout.journal, read_only=True) as journal:
        counts, digest = journal.counts(), journal.signals_digest()
        newest_ns = journal.last_event_time_ns() or 0
    same: bool | None = None
    note = ''
    if harmed:
        note = 'its journal was damaged on purpose'
    elif graph.layout.feed is not None:
        note = 'live bars: nothing to compare with'
    elif not counts['frames']:
        same, note = False, 'no frame was decided'
    else:
        same = digest == _batch_digest(graph.subject, newest_ns)
        note = '' if same else f'see {graph.layout.journal}'
    if counts['conflicts']:
        same, note = False, f'{counts["conflicts"]} decisions came twice and differ; {note}'
    return GraphEnd(layer.__name__, counts['frames'], counts['signals'], same, note)


def _batch_digest(subject: Subject, newest_ns: int) -> str:
    """Return the digest of the same bars, up to an event time, decided without any graph."""
    simulator = MarketSimulator(subject.symbols, subject.seed)
    limit = 1
    while simulator.next_block().event_time_ns < newest_ns:
        limit += 1
    command = [
        *(sys.executable, '-m', 'heqis_bringup.cli', 'batch', '--json'),
        *('--bundle', str(subject.bundle.path), '--limit', str(limit)),
        *('--symbols', str(subject.symbols), '--seed', str(subject.seed)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BATCH_LIMIT_S, check=False
    )
    if done.returncode:
        raise BenchError(f'heqis batch ended with {done.returncode}: {done.stderr[-500:]}')
    digest: str = json.loads(done.stdout.splitlines()[-1])['signals_digest']
    return digest
