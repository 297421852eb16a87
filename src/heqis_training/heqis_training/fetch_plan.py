# SPDX-License-Identifier: Apache-2.0
"""What a run of `heqis fetch` has to ask for: which days of which symbols, by day or by symbol.

What is missing is told from the store alone. Few days of many symbols are asked for day by day,
everything else symbol by symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from heqis_core.errors import ConfigError
from heqis_core.io import tushare_store as store
from heqis_core.io.tushare_client import TushareClient
from heqis_core.io.tushare_endpoints import ENDPOINTS, SERIES, Endpoint, parse_day
from heqis_core.io.tushare_query import days_between
from heqis_core.io.tushare_universe import Entry, Security

_FIRST_DAY = '19901219'
"""Opening of the SSE; the vendor's calendar begins here."""
_DAY_COST = 2
"""Calls that one day of the whole market may take."""
_EVERY_DAY = {
    'daily': 'suspend_d', 'daily_basic': 'suspend_d', 'adj_factor': '', 'fund_daily': '',
    'index_daily': '',
}  # fmt: skip
"""Endpoints of which every open day has a row, and the one that lists the exceptions."""


class FetchPlan(NamedTuple):
    """What to fetch, and where to."""

    out: Path
    entries: tuple[Entry, ...]
    start: str
    """First day, YYYYMMDD."""
    end: str
    """Last day, YYYYMMDD."""
    endpoints: frozenset[str]
    """Time series; those that a kind of symbol does not have are left out for it."""
    refresh: bool = False
    """Ask again for days that are stored, too."""


class Step(NamedTuple):
    """Something to ask for: days of one symbol, or of all symbols of a group by day."""

    endpoint: Endpoint
    start: str
    end: str
    symbols: tuple[str, ...]
    by_date: bool


class Run:
    """What the steps of one run share."""

    def __init__(self, client: TushareClient, plan: FetchPlan, today: str) -> None:
        self.client = client
        self.plan = plan
        self.end = min(plan.end, today)
        # What the vendor has of today may be short of what it will have.
        last = min(self.end, store.shift_day(today, -1))
        self.complete_until = last if last >= plan.start else ''
        self.open: dict[str, bool] = {}
        self.securities: dict[str, Security] = {}
        self.suspended: dict[str, frozenset[str]] = {}

    def open_days(self, start: str, end: str) -> list[str]:
        """Return the days on which the exchanges are open, or may be."""
        return [day for day in days_between(start, end) if self.open.get(day, True)]

    def expected(self, endpoint: Endpoint, symbol: str, start: str, end: str) -> set[str]:
        """Return the days of which the vendor should have a row."""
        security = self.securities[symbol]
        first = max(start, security.list_date or '99999999')
        last = min(end, self.complete_until, day_before(security.delist_date))
        if first > last:
            return set()
        exceptions = _EVERY_DAY.get(endpoint.name)
        if exceptions is None or (exceptions and symbol not in self.suspended):
            return set()
        days = {day for day in self.open_days(first, last) if day in self.open}
        return days - (self.suspended[symbol] if exceptions else frozenset())

    def learn_suspended(self, symbols: Sequence[str]) -> None:
        """Read the days on which trading of stocks was suspended from what is stored."""
        if 'suspend_d' not in self.plan.endpoints:
            return
        for symbol in symbols:
            rows = store.read_rows(self.plan.out, ENDPOINTS['suspend_d'], symbol).table
            self.suspended[symbol] = frozenset(
                day
                for day, kind in zip(
                    rows['trade_date'].to_pylist(), rows['suspend_type'].to_pylist(), strict=True
                )
                if kind == 'S'
            )


def check_plan(plan: FetchPlan, today: str) -> None:
    """Raise ConfigError for days or endpoints that cannot be fetched."""
    first, last = parse_day(plan.start, 'start'), parse_day(plan.end, 'end')
    if first > last:
        raise ConfigError(f'start {plan.start} is after end {plan.end}')
    if plan.start < _FIRST_DAY:
        raise ConfigError(f'start {plan.start} is before the first trading day, {_FIRST_DAY}')
    if plan.start > today:
        raise ConfigError(f'start {plan.start} is in the future: today is {today}')
    known = {name for names in SERIES.values() for name in names}
    unknown = sorted(plan.endpoints - known)
    if unknown or not plan.endpoints:
        raise ConfigError(
            f'endpoints: {", ".join(unknown) or "none"}; expected '
            f'some of {", ".join(sorted(known))}'
        )


def plan_steps(run: Run) -> tuple[list[Step], dict[str, list[Step]]]:
    """Return the steps for groups of symbols by day, and those of every symbol."""
    plan = run.plan
    groups: dict[tuple[str, store.Ranges], list[str]] = {}
    for symbol, security in run.securities.items():
        for name in SERIES[security.kind]:
            if name not in plan.endpoints:
                continue
            covered = (
                () if plan.refresh else store.read_head(plan.out, ENDPOINTS[name], symbol).covered
            )
            ranges = store.missing_ranges(covered, plan.start, run.end)
            if ranges:
                groups.setdefault((name, ranges), []).append(symbol)
    by_date: list[Step] = []
    by_symbol: dict[str, list[Step]] = {symbol: [] for symbol in run.securities}
    for (name, ranges), symbols in groups.items():
        facts = ENDPOINTS[name]
        days = sum(len(run.open_days(start, end)) for start, end in ranges)
        if facts.by_date and _DAY_COST * days < len(symbols) * len(ranges):
            by_date += [Step(facts, start, end, tuple(symbols), True) for start, end in ranges]
        else:
            for symbol in symbols:
                by_symbol[symbol] += [
                    Step(facts, start, end, (symbol,), False) for start, end in ranges
                ]
    by_date.sort(key=lambda step: step.endpoint.name != 'suspend_d')
    run.learn_suspended([name for name, one in run.securities.items() if one.kind == 'stock'])
    return by_date, by_symbol


def day_before(day: str) -> str:
    """Return the day before; for no day one after all days."""
    return store.shift_day(day, -1) if day else '99999999'
