# SPDX-License-Identifier: Apache-2.0
"""The risk rules: what may be bought, how much at once, how often. Pure; no clock, no journal.

A bound refuses a BUY and never a SELL. What counts is what was released: the holdings of a stream
are the symbols whose last released signal is a BUY.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.io.yaml_struct import load_struct
from heqis_core.market.sessions import local_days, midnight_ns

MINUTE_NS = 60_000_000_000
_BUY, _SELL = np.uint8(int(Action.BUY)), np.uint8(int(Action.SELL))
_MOST_SPANS = 8192
"""Minutes and days whose signals are remembered; of a bar that is older none are."""

_Span = tuple[str, str, int]
"""A stream, `minute` or `day`, and when it began."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Symbol = Annotated[str, msgspec.Meta(min_length=1, pattern=r'^\S+$')]


class RiskRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules of a file; what it leaves out, or leaves empty, bounds nothing.

    Attributes:
        max_positions: symbols that a stream holds at once.
        max_buys_per_frame: BUYs of one frame: the highest scores, ties in the order of symbols.
        max_signals_per_minute, max_signals_per_day: signals of a stream from the bars of a minute,
            and of a day of Shanghai; SELLs count and are let through.
        blocked: symbols that are never bought.
        only: the only symbols that are bought; None is all, an empty list is none.
    """

    max_positions: Count | None = None
    max_buys_per_frame: Count | None = None
    max_signals_per_minute: Count | None = None
    max_signals_per_day: Count | None = None
    blocked: tuple[Symbol, ...] | None = None
    only: tuple[Symbol, ...] | None = None

    def __post_init__(self) -> None:
        """Check what concerns more than one entry."""
        for name in ('blocked', 'only'):
            names = getattr(self, name) or ()
            twice = [one for one, n in Counter(names).items() if n > 1]
            if twice:
                raise ValueError(f'{name}: {_some(twice)} is there more than once')
        both = set(self.blocked or ()) & set(self.only or ())
        if both:
            raise ValueError(f'{_some(both)} is in blocked and in only; take it out of one')


_NO_RULES = RiskRules()


def load_risk_rules(path: str | Path) -> RiskRules:
    """Return the rules of a YAML file; an empty path is a file without rules.

    Raises ConfigError as `file:line: field: what is wrong`.
    """
    return load_struct(path, RiskRules) if str(path) else _NO_RULES


@dataclass(frozen=True)
class _Book:
    """What one stream has released.

    Attributes:
        symbols: S names of its newest frame.
        held: bool (S,), which of them are held.
        barred: bool (S,), which of them the rules never buy.
        elsewhere: symbols that are held and are not in that frame.
    """

    symbols: tuple[str, ...] = ()
    held: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    barred: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    elsewhere: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        return self.elsewhere | {self.symbols[i] for i in np.flatnonzero(self.held)}

    def positions(self) -> int:
        return int(self.held.sum()) + len(self.elsewhere)


class Bounds:
    """Judges frames by the rules, in the order in which they become durable.

    `judge` counts what it lets through as released; `settle` says whether it became so.

    Attributes:
        rules: what it judges by.
        unknown: symbols that the rules name and no stream has, sorted; empty before a frame came.
    """

    def __init__(self, rules: RiskRules) -> None:
        """Start with nothing held."""
        self.rules = rules
        self.unknown: tuple[str, ...] = ()
        self._blocked = frozenset(rules.blocked or ())
        self._only = None if rules.only is None else frozenset(rules.only)
        self._named = {*self._blocked, *(self._only or ())}
        self._books: dict[str, _Book] = {}
        self._trial: dict[str, _Book] = {}
        self._released: dict[_Span, int] = {}
        self._released_on_trial: dict[_Span, int] = {}

    @property
    def positions(self) -> int:
        """Return how many positions are held, of all streams."""
        return sum(book.positions() for book in list(self._books.values()))

    def resume(
        self,
        held: Iterable[tuple[str, str]],
        newest: Mapping[str, int],
        released_since: Callable[[str, int], Iterable[tuple[int, int]]],
    ) -> None:
        """Go on after a journal: with what is held, and the day of each stream's newest frame.

        Args:
            held: stream and symbol of each position.
            newest: event time of the frame of each stream that was released last.
            released_since: event time and number of signals of each frame of a stream from an
                event time on.
        """
        names: dict[str, set[str]] = {}
        for stream, symbol in held:
            names.setdefault(stream, set()).add(symbol)
        self._books = {s: _Book(elsewhere=frozenset(found)) for s, found in names.items()}
        self._released = {}
        for stream, event_time_ns in newest.items():
            for moment_ns, n in released_since(stream, _day_ns(event_time_ns)):
                _add(self._released, _spans(stream, moment_ns), n)
        self.settle(durable=False)

    def settle(self, durable: bool) -> None:
        """Take what was judged since the last call for released, or forget it."""
        if durable:
            self._books = self._trial
            for span, n in self._released_on_trial.items():
                _add(self._released, (span,), n)
            while len(self._released) > _MOST_SPANS:
                del self._released[next(iter(self._released))]
        self._trial = dict(self._books)
        self._released_on_trial = {}

    def judge(self, decisions: Decisions) -> Decisions:
        """Return the decisions with every BUY refused that is out of bounds.

        In this order: BLOCKED; then MAX_POSITIONS, MAX_BUYS and MAX_SIGNALS, of which each leaves
        the highest scores of what the one before has left. What a frame sells makes room for what
        it buys.
        """
        book = self._trial.get(decisions.stream, _Book())
        book = self._of(book, decisions.symbols)
        why = self._why(book, decisions)
        verdict = decisions if why is None else decisions.refuse(why != 0, why)
        bought, sold = verdict.action == _BUY, verdict.action == _SELL
        n = int(bought.sum()) + int(sold.sum())
        if n:
            book = replace(book, held=(book.held | bought) & ~sold)
            spans = _spans(decisions.stream, decisions.event_time_ns)
            _add(self._released_on_trial, spans, n)
        self._trial[decisions.stream] = book
        return verdict

    def _of(self, book: _Book, symbols: tuple[str, ...]) -> _Book:
        """Return a book with the symbols of a frame."""
        if symbols is book.symbols or symbols == book.symbols:
            return book
        self._named.difference_update(symbols)
        self.unknown = tuple(sorted(self._named))
        names = book.names()
        return replace(
            book,
            symbols=symbols,
            held=np.array([name in names for name in symbols], np.bool_),
            barred=np.array([self._bars(name) for name in symbols], np.bool_),
            elsewhere=frozenset(names.difference(symbols)),
        )

    def _bars(self, symbol: str) -> bool:
        listed = self._only is None or symbol in self._only
        return not listed or symbol in self._blocked

    def _why(self, book: _Book, decisions: Decisions) -> npt.NDArray[np.uint32] | None:
        """Return why each BUY is refused, uint32 (S,), 0 where it is not; None if none is."""
        rules = self.rules
        if rules == _NO_RULES:
            return None
        buys = np.flatnonzero(decisions.action == _BUY)
        barred = book.barred[buys]
        refused = [(buys[barred], Reason.BLOCKED)]
        buys = buys[~barred]
        best_first = buys[np.argsort(-decisions.score[buys], kind='stable')]
        if rules.max_positions is not None:
            kept = book.positions() - int((book.held & (decisions.action == _SELL)).sum())
            opens = ~book.held[best_first]
            too_many = opens & (np.cumsum(opens) > rules.max_positions - kept)
            refused.append((best_first[too_many], Reason.MAX_POSITIONS))
            best_first = best_first[~too_many]
        room = self._signals_left(decisions)
        for bound, reason in (
            (rules.max_buys_per_frame, Reason.MAX_BUYS),
            (room, Reason.MAX_SIGNALS),
        ):
            if bound is not None:
                refused.append((best_first[bound:], reason))
                best_first = best_first[:bound]
        if not any(len(places) for places, _ in refused):
            return None
        why = np.zeros(len(decisions.symbols), np.uint32)
        for places, reason in refused:
            why[places] = reason
        return why

    def _signals_left(self, decisions: Decisions) -> int | None:
        """Return how many BUYs the brakes leave; None where there is none."""
        bounds = (self.rules.max_signals_per_minute, self.rules.max_signals_per_day)
        if bounds == (None, None):
            return None
        sells = int((decisions.action == _SELL).sum())
        left = [
            bound - self._released.get(span, 0) - self._released_on_trial.get(span, 0) - sells
            for bound, span in zip(
                bounds, _spans(decisions.stream, decisions.event_time_ns), strict=True
            )
            if bound is not None
        ]
        return max(0, min(left))


def _spans(stream: str, event_time_ns: int) -> tuple[_Span, _Span]:
    """Return the minute and the day of a bar."""
    minute_ns = event_time_ns // MINUTE_NS * MINUTE_NS
    return (stream, 'minute', minute_ns), (stream, 'day', _day_ns(event_time_ns))


def _add(counts: dict[_Span, int], spans: Iterable[_Span], n: int) -> None:
    for span in spans:
        counts[span] = counts.get(span, 0) + n


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ', '.join(shown[:5]) + (f' and {len(shown) - 5} more' if len(shown) > 5 else '')


def _day_ns(event_time_ns: int) -> int:
    day: date = local_days(event_time_ns).astype(object).item()
    return midnight_ns(day)
