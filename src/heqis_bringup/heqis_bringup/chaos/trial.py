# SPDX-License-Identifier: Apache-2.0
"""One injection: the fault goes in, the bench watches until the graph is well again, and says.

What is lost is counted from the journal and from what reached the bench; who was touched, from
the start identities before and after.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from heqis_bringup.chaos.graph import FLOW_S, TICK_S, BenchError, Graph, Stored
from heqis_bringup.chaos.layout import Layer
from heqis_bringup.chaos.record import Key, Seen, first
from heqis_core.control import Level

NOTICE_S = 30.0
"""A fault that nothing has shown after this time counts as unnoticed."""
QUIET_S = 2.0
"""How long a fault that nothing must show is watched."""
BACK_S = 90.0
SETTLE_S = 1.0
"""What shows only after everything is well again still belongs to the fault."""
ARRIVE_S = 5.0
"""Time for open frames to reach the journal, and for signals in it to reach the bench."""

REPAIRED = 'repaired'
"""Kind of the answer whose text says, as JSON, what a repair saved and lost of each table."""

Sign = tuple[str, str, str]
Undo = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    """One entry of the table of faults.

    Attributes:
        name, text: for people, one line.
        layer: the layout of its graph.
        inject: does it, and returns what ends it; None if nothing has to.
        signs: what shows it, any of them; empty: nothing may show, and nothing may be alarmed.
        parts: parts on /diagnostics, one of which must stop being OK; empty: not judged.
        within_s: p99 of both, at most; None: any time.
        targets: processes that may start anew; nobody else may.
        restarts: whether each of them must.
        hold_s: how long it stays after it has shown.
        promised: whether it is one of those that a time is promised for: injected every time,
            the others a third as often.
        check: says what else is wrong afterwards.
        harms: whether it destroys what was stored; then what is lost is the check's business.
    """

    name: str
    text: str
    layer: Layer
    inject: Callable[[Graph], Undo | None]
    signs: tuple[Sign, ...] = ()
    parts: tuple[str, ...] = ()
    within_s: float | None = None
    targets: tuple[str, ...] = ()
    restarts: bool = False
    hold_s: float = 0.0
    promised: bool = False
    check: Callable[[Graph, Sequence[Seen], Stored], list[str]] | None = None
    harms: bool = False


@dataclass
class Trial:
    """What came of one injection; times in seconds, None where there was no such moment.

    Attributes:
        fault: its name.
        detected_s, detected_by: the first sign, from the injection.
        diagnosed_s: the first /diagnostics that is not OK.
        well_s, frame_s, signal_s: until all is well, until the next released frame and signal
            after the interruption; from the injection, or from its end where it is held.
        interrupted: whether no frame came for `FLOW_S`.
        lost_frames, lost_signals: missing in the journal; in the journal, never published.
        again: signals that came more than once, as after a kill they may.
        touched: processes that started anew and should not have, or nodes that fell.
        problems: what was not as expected; none if it passed.
    """

    fault: str
    detected_s: float | None = None
    detected_by: str = ''
    diagnosed_s: float | None = None
    well_s: float | None = None
    frame_s: float | None = None
    signal_s: float | None = None
    interrupted: bool = False
    lost_frames: int = 0
    lost_signals: int = 0
    again: int = 0
    touched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Before:
    began_s: float
    position: int
    last_seq: int
    starts: Mapping[str, int]
    restarts: Mapping[str, int]


def run_trial(graph: Graph, fault: Fault) -> Trial:
    """Inject a fault once and watch; raise BenchError if the graph is not well before."""
    graph.wait(lambda: graph.well() and graph.flowing(), BACK_S, f'not ready for {fault.name}')
    trial = Trial(fault.name)
    before = _before(graph)
    undo = fault.inject(graph)
    try:
        sign = _await_sign(graph, fault, before.began_s)
        _sleep_until(max(time.monotonic(), before.began_s) + fault.hold_s)
    finally:
        if undo is not None:
            undo()
    ended_s = time.monotonic() if undo is not None else before.began_s
    if sign is not None:
        trial.detected_s = sign.at_s - before.began_s
        trial.detected_by = f'{sign.source} {sign.kind}'
    elif fault.signs:
        trial.problems.append(f'not noticed within {NOTICE_S:.0f} s')
    _await_recovery(graph, fault, trial, before, ended_s)
    time.sleep(SETTLE_S)
    _judge(graph, fault, trial, before, ended_s)
    return trial


def _before(graph: Graph) -> _Before:
    position = graph.position()
    stored = graph.stored(max(0, position - 1))
    return _Before(
        time.monotonic(),
        stored.position,
        max(stored.seqs, default=-1),
        dict(graph.record.starts),
        graph.restarts(),
    )


def _await_sign(graph: Graph, fault: Fault, began_s: float) -> Seen | None:
    end_s = began_s + (NOTICE_S if fault.signs else QUIET_S)
    sign: Seen | None = None
    while time.monotonic() < end_s:
        seen = graph.record.seen(began_s)
        sign = first(seen, fault.signs)
        if sign is not None and (not fault.parts or _not_ok(seen, fault.parts)):
            break
        time.sleep(TICK_S)
        if sign is not None:  # the same on /diagnostics comes soon after, or never
            end_s = min(end_s, sign.at_s + QUIET_S)
    return sign


def _not_ok(seen: Sequence[Seen], parts: Sequence[str]) -> Seen | None:
    levels = (level.name for level in (Level.WARN, Level.ERROR))
    return first(seen, [('diagnostics', level, part) for level in levels for part in parts])


def _await_recovery(
    graph: Graph, fault: Fault, trial: Trial, before: _Before, ended_s: float
) -> None:
    def back() -> bool:
        anew = all(graph.record.starts.get(k) != before.starts.get(k) for k in fault.targets)
        return graph.well() and graph.flowing() and (anew or not fault.restarts)

    try:
        graph.wait(back, BACK_S, 'not well again')
        trial.well_s = time.monotonic() - ended_s
    except BenchError as error:
        trial.problems.append(str(error))


def _judge(graph: Graph, fault: Fault, trial: Trial, before: _Before, ended_s: float) -> None:
    seen = graph.record.seen(before.began_s)
    diagnosed = _not_ok(seen, fault.parts)
    if diagnosed is not None:
        trial.diagnosed_s = diagnosed.at_s - before.began_s
    elif fault.parts:
        trial.problems.append('/diagnostics said OK throughout')
    trial.interrupted, frame_s = resumed(
        graph.record.released(before.began_s), before.began_s, ended_s
    )
    signals = [at_s for at_s, _ in graph.record.signalled(before.began_s)]
    trial.frame_s = None if frame_s is None else frame_s - ended_s
    after = [at_s for at_s in signals if frame_s is not None and at_s >= frame_s - TICK_S]
    trial.signal_s = max(0.0, after[0] - ended_s) if after else None
    trial.touched = _touched(graph, fault, before, seen)
    trial.problems += [f'touched: {name}' for name in trial.touched]
    if not fault.signs:
        alarms = [s for s in seen if s.source == 'event' and s.level >= Level.WARN]
        trial.problems += [f'alarm: {s.kind} {s.subject}: {s.text}' for s in alarms[:3]]
    stored = graph.stored(before.position) if fault.harms else _all_stored(graph, before)
    if fault.harms:
        trial.lost_frames = _lost_in_repair(seen)
    else:
        _count_losses(graph, trial, before, stored)
    if fault.check is not None:
        trial.problems += fault.check(graph, seen, stored)


def resumed(
    released: Sequence[float], began_s: float, ended_s: float
) -> tuple[bool, float | None]:
    """Return whether frames stopped for a while, and when they went on; None if they did not.

    An interruption is a time of `FLOW_S` without a frame. Without one, the next frame after the
    end of the fault counts.
    """
    times = [began_s, *released]
    gaps = [b for a, b in itertools.pairwise(times) if b - a > FLOW_S]
    if gaps:
        return True, max(gaps[-1], ended_s)
    return False, next((at_s for at_s in released if at_s >= ended_s), None)


def _touched(graph: Graph, fault: Fault, before: _Before, seen: Sequence[Seen]) -> list[str]:
    spared = [key for key in graph.keys if key not in fault.targets or not fault.restarts]
    restarts = graph.restarts()
    touched = [
        key
        for key in spared
        if graph.record.starts.get(key) != before.starts.get(key)
        or restarts[key] != before.restarts[key]
    ]
    of_targets = {name for key in fault.targets for name in graph.rules[key].nodes}
    fallen = [s.subject for s in seen if (s.source, s.kind) == ('heartbeat', 'not active')]
    failed = [s.subject for s in seen if (s.source, s.kind) == ('heartbeat', 'failures')]
    return touched + sorted({*fallen, *failed} - of_targets)


def _all_stored(graph: Graph, before: _Before) -> Stored:
    """Return what came into the journal, once what is still open has been sent again."""
    end_s = time.monotonic() + ARRIVE_S
    while holes((stored := graph.stored(before.position)).seqs, before.last_seq):
        if time.monotonic() > end_s:
            break
        time.sleep(5 * TICK_S)
    return stored


def _count_losses(graph: Graph, trial: Trial, before: _Before, stored: Stored) -> None:
    trial.lost_frames = len(holes(stored.seqs, before.last_seq))
    end_s = time.monotonic() + ARRIVE_S
    while True:
        # From a little before: what was published just before the fault is in the journal after.
        counts: Counter[Key] = Counter(
            key for _, key in graph.record.signalled(before.began_s - ARRIVE_S)
        )
        missing = stored.signals - counts.keys()
        if not missing or time.monotonic() > end_s:
            break
        time.sleep(TICK_S)
    trial.lost_signals = len(missing)
    trial.again = sum(n - 1 for key, n in counts.items() if key in stored.signals)
    if trial.lost_frames:
        trial.problems.append(f'{trial.lost_frames} frames are missing in the journal')
    if missing:
        trial.problems.append(f'{trial.lost_signals} signals were journalled, never published')


def _lost_in_repair(seen: Sequence[Seen]) -> int:
    found = first(seen, [('answer', REPAIRED, '')])
    return 0 if found is None else int(json.loads(found.text)['frames'][1])


def holes(seqs: Sequence[int], last: int) -> list[int]:
    """Return the seq that are missing between the last one before and the newest."""
    return sorted(set(range(last + 1, max(seqs, default=last) + 1)) - set(seqs))


def _sleep_until(end_s: float) -> None:
    time.sleep(max(0.0, end_s - time.monotonic()))
