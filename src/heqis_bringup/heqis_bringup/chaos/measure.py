# SPDX-License-Identifier: Apache-2.0
"""Trials of one fault become one row, and what was promised of it is judged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from heqis_bringup.chaos.trial import Fault, Trial

Span = tuple[float, float]
"""p50 and p99, seconds, nearest rank; of few trials the p99 is the longest."""


@dataclass(frozen=True)
class Row:
    """One line of the table; a time is None where no trial had it.

    Attributes:
        fault, text: name and what was done.
        times: trials.
        detected, by: first sign, from the injection, and what it was, most often first.
        diagnosed: first /diagnostics that is not OK, from the injection.
        frame, signal, well: next released frame, next signal, and all well again.
        interrupted: trials in which frames stopped at all.
        lost_frames, lost_signals, again: over all trials.
        touched: who was touched and should not have been.
        within_s: what detected and diagnosed may take, p99.
        problems: what was not as expected, each once.
    """

    fault: str
    text: str
    times: int
    detected: Span | None
    by: str
    diagnosed: Span | None
    frame: Span | None
    signal: Span | None
    well: Span | None
    interrupted: int
    lost_frames: int
    lost_signals: int
    again: int
    touched: tuple[str, ...]
    within_s: float | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether everything was as expected."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), 'passed': self.passed}


def summarise(fault: Fault, trials: Sequence[Trial]) -> Row:
    """Return the row of a fault's trials."""
    detected = span(trial.detected_s for trial in trials)
    diagnosed = span(trial.diagnosed_s for trial in trials)
    by = Counter(trial.detected_by for trial in trials if trial.detected_by)
    problems = dict.fromkeys(text for trial in trials for text in trial.problems)
    for what, found in (('noticed', detected), ('on /diagnostics', diagnosed)):
        if fault.within_s is not None and found is not None and found[1] > fault.within_s:
            problems[f'{what} after {found[1]:.2f} s (p99), not within {fault.within_s:g} s'] = (
                None
            )
    return Row(
        fault=fault.name,
        text=fault.text,
        times=len(trials),
        detected=detected,
        by=', '.join(name for name, _ in by.most_common()),
        diagnosed=diagnosed,
        frame=span(trial.frame_s for trial in trials),
        signal=span(trial.signal_s for trial in trials),
        well=span(trial.well_s for trial in trials),
        interrupted=sum(trial.interrupted for trial in trials),
        lost_frames=sum(trial.lost_frames for trial in trials),
        lost_signals=sum(trial.lost_signals for trial in trials),
        again=sum(trial.again for trial in trials),
        touched=tuple(sorted({name for trial in trials for name in trial.touched})),
        within_s=fault.within_s,
        problems=tuple(problems),
    )


def span(values: Iterable[float | None]) -> Span | None:
    """Return p50 and p99 of the values that are there; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    p50, p99 = np.percentile(known, (50, 99), method='inverted_cdf')
    return float(p50), float(p99)
