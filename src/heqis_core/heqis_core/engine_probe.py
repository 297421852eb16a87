# SPDX-License-Identifier: Apache-2.0
"""Which class of engine runs a model: the first of an ordered list that works, and why not others.

Working means more than being installed: the driver answers, and the models have given their golden
outputs. What is in the list is each board's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from heqis_core.engine import Engine
from heqis_core.errors import EngineError, HeqisError

MakeEngine = Callable[[Path], Engine]


class Ready(NamedTuple):
    """What loads one model file, and what that class of engine counts."""

    make_engine: MakeEngine
    counters: Mapping[str, int]


class Candidate(NamedTuple):
    """One class of engine; `prepare` proves that it works, or raises HeqisError."""

    kind: str
    prepare: Callable[[], Ready]


class PassedOver(NamedTuple):
    """A class of engine that does not run, and why."""

    kind: str
    reason: str


class Choice(NamedTuple):
    """The class of engine that runs, what it counts, and which were passed over."""

    kind: str
    make_engine: MakeEngine
    counters: Mapping[str, int]
    passed_over: tuple[PassedOver, ...]

    def text(self) -> str:
        """Return the choice in one line: the kind first, then each reason."""
        reasons = ''.join(f'; {kind} passed over: {why}' for kind, why in self.passed_over)
        return f'{self.kind}{reasons}'


def probe(order: Sequence[Candidate]) -> Choice:
    """Return the first engine that works; raise EngineError with every reason if none does."""
    passed_over: list[PassedOver] = []
    for candidate in order:
        try:
            ready = candidate.prepare()
        except HeqisError as error:
            passed_over.append(PassedOver(candidate.kind, str(error)))
        else:
            return Choice(candidate.kind, *ready, tuple(passed_over))
    reasons = '; '.join(f'{kind}: {why}' for kind, why in passed_over)
    raise EngineError(f'no engine works: {reasons}')
