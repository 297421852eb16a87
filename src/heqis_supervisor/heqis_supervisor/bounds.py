# SPDX-License-Identifier: Apache-2.0
"""The risk rules: what may be bought, how much at once, how often. Pure; no clock, no journal.

A bound refuses a BUY and never a SELL. What counts is what was released: the holdings of a stream
are the symbols whose last released signal is a BUY.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
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
_NEVER = -(1 << 63)

Count = Annotated[int, msgspec.Meta(ge=0)]
Symbol = Annotated[str, msgspec.Meta(min_length=1, pattern=r'^\S+$')]


class RiskRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules of a file; what it leaves out, or leaves empty, bounds nothing.

    Attributes:
        max_positions: symbols that a stream holds at once.
        max_buys_per_frame: BUYs of one frame: the highest scores, ties in the order of symbols.
        max_signals_per_minute, max_signals_per_day: signals of a stream in a minute, and in a day
            of Shanghai, by the time of its bars; SELLs count and are let through.
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
        minute_ns, day_ns: when the minute and the day of its newest bar began.
        in_minute, in_day: signals since then.
    """

    symbols: tuple[str, ...] = ()
    held: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    barred: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    elsewhere: frozenset[str] = frozenset()
    minute_ns: int = _NEVER
    day_ns: int = _NEVER
    in_minute: int = 0
    in_day: int = 0

    def names(self) -> frozenset[str]:
        return self.elsewhere | {self.symbols[i] for i in np.flatnonzero(self.held)}

    def positions(self) -> int:
        return int(self.held.sum()) + len(self.elsewhere)

    def at(self, event_time_ns: int) -> _Book:
        """Return it at the time of a bar; time never goes back."""
        minute_ns = event_time_ns // MINUTE_NS * MINUTE_NS
        if minute_ns <= self.minute_ns:
            return self
        day_ns = _day_ns(event_time_ns)
        in_day = self.in_day if day_ns == self.day_ns else 0
        return replace(self, minute_ns=minute_ns, day_ns=day_ns, in_minute=0, in_day=in_day)

    def after(self, verdict: Decisions) -> _Book:
        """Return it after the signals of a frame have been released."""
        bought, sold = verdict.action == _BUY, verdict.action == _SELL
        n = int(bought.sum()) + int(sold.sum())
        if not n:
            return self
        return replace(
            self,
            held=(self.held | bought) & ~sold,
            in_minute=self.in_minute + n,
            in_day=self.in_day + n,
        )


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

    @property
    def positions(self) -> int:
        """Return how many positions are held, of all streams."""
        return sum(book.positions() for book in list(self._books.values()))

    def resume(
        self,
        held: Iterable[tuple[str, str]],
        newest: Iterable[Decisions],
        released_since: Callable[[str, int], int],
    ) -> None:
        """Go on after a journal.

        Args:
            held: stream and symbol of each position.
            newest: the newest frame of each stream.
            released_since: signals of a stream from its first frame of an event time on.
        """
        books: dict[str, _Book] = {}
        for stream, symbol in held:
            book = books.get(stream, _Book())
            books[stream] = replace(book, elsewhere=book.elsewhere | {symbol})
        for frame in newest:
            book = books.get(frame.stream, _Book()).at(frame.event_time_ns)
            books[frame.stream] = replace(
                book,
                in_minute=released_since(frame.stream, book.minute_ns),
                in_day=released_since(frame.stream, book.day_ns),
            )
        self._books, self._trial = books, dict(books)

    def settle(self, durable: bool) -> None:
        """Take what was judged since the last call for released, or forget it."""
        if durable:
            self._books = dict(self._trial)
        else:
            self._trial = dict(self._books)

    def judge(self, decisions: Decisions) -> Decisions:
        """Return the decisions with every BUY refused that is out of bounds.

        In this order: BLOCKED; then MAX_POSITIONS, MAX_BUYS and MAX_SIGNALS, of which each leaves
        the highest scores of what the one before has left. What a frame sells makes room for what
        it buys.
        """
        book = self._trial.get(decisions.stream, _Book())
        book = self._of(book.at(decisions.event_time_ns), decisions.symbols)
        why = self._why(book, decisions)
        verdict = decisions if why is None else decisions.refuse(why != 0, why)
        self._trial[decisions.stream] = book.after(verdict)
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
        room = self._signals_left(book, decisions)
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

    def _signals_left(self, book: _Book, decisions: Decisions) -> int | None:
        """Return how many BUYs the brakes leave; None where there is none."""
        sells = int((decisions.action == _SELL).sum())
        bounds = (
            (self.rules.max_signals_per_minute, book.in_minute),
            (self.rules.max_signals_per_day, book.in_day),
        )
        left = [bound - n - sells for bound, n in bounds if bound is not None]
        return max(0, min(left)) if left else None


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ', '.join(shown[:5]) + (f' and {len(shown) - 5} more' if len(shown) > 5 else '')


def _day_ns(event_time_ns: int) -> int:
    day: date = local_days(event_time_ns).astype(object).item()
    return midnight_ns(day)
