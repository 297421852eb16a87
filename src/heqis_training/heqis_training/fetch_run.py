# SPDX-License-Identifier: Apache-2.0
"""One run of `heqis fetch`: which days of which symbols are missing, and getting them stored.

A run that ends in any way is gone on with by the next one: what is stored says itself what it is
complete for. What there is to ask for is `fetch_plan`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from heqis_core.errors import ConfigError, DataError
from heqis_core.io import tushare_store as store
from heqis_core.io.tushare_bars import count_statuses, update_bars
from heqis_core.io.tushare_client import TushareClient, TushareError, TushareKind
from heqis_core.io.tushare_endpoints import ENDPOINTS, SERIES, Endpoint, Rows
from heqis_core.io.tushare_query import ask, ask_calendar, ask_day, ask_symbol
from heqis_core.io.tushare_store import VendorRows
from heqis_core.io.tushare_universe import (
    Security,
    Universe,
    resolve,
    to_securities,
)
from heqis_training.fetch_plan import FetchPlan, Run, Step, check_plan, day_before, plan_steps

_BLOCK_DAYS = 250
"""Open days whose answers are merged at once: bounds memory, and how often a file is written."""
_TRIES = 3
"""Answers to one question of which two in a row must agree, where rows seem to be missing."""


class Progress(NamedTuple):
    """How far a run is."""

    done: int
    total: int
    text: str


@dataclass
class Outcome:
    """What a run found and did."""

    universe: Universe
    securities: list[Security]
    changes: Counter[str] = field(default_factory=Counter)
    """Rows `added`, `changed`, `removed`; `added` counts those of the vendor's files."""
    notes: Counter[str] = field(default_factory=Counter)
    """Oddities that lost nothing, such as `duplicate`."""
    bars: Counter[str] = field(default_factory=Counter)
    """Rows of the clean files by status."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Vendor rows that are stored as refused, by endpoint and reason."""
    corrected: dict[str, int] = field(default_factory=dict)
    """By endpoint and symbol, rows of earlier fetches that the vendor has changed or removed."""
    holes: dict[str, list[str]] = field(default_factory=dict)
    """By symbol, open days with neither a bar nor a suspension."""


def run_fetch(
    client: TushareClient,
    plan: FetchPlan,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    today: str = '',
) -> Outcome:
    """Bring the store up to the plan; return what was found and done.

    Raises ConfigError for days or endpoints that make no sense, DataError if nothing in the
    universe is known or the store cannot be used, TushareError for an answer that cannot be used.
    """
    today = today or f'{datetime.now(ZoneInfo("Asia/Shanghai")):%Y%m%d}'
    check_plan(plan, today)
    with store.lock_store(plan.out):
        run = Run(client, plan, today)
        universe = _resolve(run)
        securities = universe.securities()
        outcome = Outcome(universe, securities)
        if not securities:
            raise DataError(
                f'nothing to fetch: none of {len(plan.entries)} entries is known; '
                f'the first: {universe.unresolved[0].entry.text}: {universe.unresolved[0].hint}'
            )
        run.securities = {one.ts_code: one for one in securities}
        _fetch_calendar(run)
        _write_universe(plan.out, universe)
        if plan.refresh:
            store.clear_stage(plan.out)
        _run_steps(run, outcome, report)
        _write_rejected(run, outcome)
        store.clear_stage(plan.out)
    return outcome


def _resolve(run: Run) -> Universe:
    def table(kind: str, *questions: dict[str, str]) -> Callable[[], list[Security]]:
        def fetch() -> list[Security]:
            facts = ENDPOINTS[f'{kind}_basic']
            answers = [ask(run.client, facts, question) for question in questions]
            columns = {
                name: [cell for answer in answers for cell in answer.columns[name]]
                for name in facts.columns
            }
            rejected = [one for answer in answers for one in answer.rejected]
            store.write_whole(run.plan.out, facts, Rows(columns, rejected, {}))
            return to_securities(kind, columns)

        return fetch

    return resolve(
        run.plan.entries,
        (
            # Without list_status the vendor gives the listed ones alone.
            table('stock', *({'list_status': status} for status in 'LDP')),
            table('fund', {'market': 'E'}),
            table(
                'index', *({'market': market} for market in ('SSE', 'SZSE', 'CSI', 'CICC', 'SW'))
            ),
        ),
    )


def _fetch_calendar(run: Run) -> None:
    """Store the calendar of everything that is stored, and of this run."""
    facts = ENDPOINTS['trade_cal']
    have = store.read_rows(run.plan.out, facts).table['cal_date'].to_pylist()
    rows = ask_calendar(run.client, min([run.plan.start, *have]), max([run.plan.end, *have]))
    days = rows.columns['cal_date']
    if max(days) < run.complete_until:
        raise ConfigError(
            f'end {run.plan.end}: the calendar of this server ends on {max(days)}; choose an end '
            'until then'
        )
    store.write_whole(run.plan.out, facts, rows)
    run.open = dict(zip(days, map(bool, rows.columns['is_open']), strict=True))


def _run_steps(run: Run, outcome: Outcome, report: Callable[[Progress], None]) -> None:
    by_date, by_symbol = plan_steps(run)
    total = sum(len(run.open_days(step.start, step.end)) for step in by_date)
    total += sum(map(len, by_symbol.values())) + len(by_symbol)
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        done += 1
        report(Progress(done, total, text))

    for step in by_date:
        _run_by_date(run, step, outcome, tell)
        if step.endpoint.name == 'suspend_d':
            run.learn_suspended(step.symbols)
    for symbol, steps in by_symbol.items():
        for endpoint, group in _by_endpoint(steps):
            for step in group:
                _run_by_symbol(run, step, outcome)
                tell(f'{symbol} {endpoint}')
            if endpoint == 'suspend_d':
                run.learn_suspended([symbol])
        _finish_symbol(run, run.securities[symbol], outcome)
        tell(f'{symbol} bars')


def _by_endpoint(steps: Sequence[Step]) -> Iterator[tuple[str, list[Step]]]:
    """Yield the steps of each endpoint, suspensions first: they explain what others lack."""
    names = sorted(
        dict.fromkeys(step.endpoint.name for step in steps), key=lambda name: name != 'suspend_d'
    )
    for name in names:
        yield name, [step for step in steps if step.endpoint.name == name]


def _run_by_symbol(run: Run, step: Step, outcome: Outcome) -> None:
    symbol = step.symbols[0]
    answer = store.no_rows(step.endpoint)
    if run.open_days(step.start, step.end):
        expected = {
            (symbol, day) for day in run.expected(step.endpoint, symbol, step.start, step.end)
        }
        rows = _confirmed(
            lambda: ask_symbol(run.client, step.endpoint, symbol, step.start, step.end),
            expected,
            step.endpoint,
        )
        outcome.notes.update(rows.notes)
        answer = _without_closed_days(run, store.to_answer(step.endpoint, rows), outcome)
    _merge(run, step, symbol, answer, outcome)


def _run_by_date(run: Run, step: Step, outcome: Outcome, tell: Callable[[str], None]) -> None:
    days = run.open_days(step.start, step.end)
    for first in range(0, max(len(days), 1), _BLOCK_DAYS):
        block = days[first : first + _BLOCK_DAYS]
        start = block[0] if first else step.start
        is_last = first + _BLOCK_DAYS >= len(days)
        end = step.end if is_last else day_before(days[first + _BLOCK_DAYS])
        answers = []
        for day in block:
            answers.append(_answer_of_day(run, step, day, outcome))
            tell(f'{day} {step.endpoint.name}')
        for symbol, answer in _by_symbol(step, answers):
            part = Step(step.endpoint, start, end, (symbol,), True)
            _merge(run, part, symbol, answer, outcome)
        store.clear_stage(run.plan.out, step.endpoint.name)


def _answer_of_day(run: Run, step: Step, day: str, outcome: Outcome) -> VendorRows:
    """Return the rows of the step's symbols of one day, from an earlier run that was cut if so."""
    kept = None
    if day <= run.complete_until:
        kept = store.read_stage(run.plan.out, step.endpoint, day, step.symbols)
    if kept is not None:
        return kept
    expected = {
        (symbol, day) for symbol in step.symbols if run.expected(step.endpoint, symbol, day, day)
    }
    rows = _confirmed(lambda: ask_day(run.client, step.endpoint, day), expected, step.endpoint)
    outcome.notes.update(rows.notes)
    answer = _only(step.symbols, store.to_answer(step.endpoint, rows))
    if day <= run.complete_until:
        store.write_stage(run.plan.out, step.endpoint, day, step.symbols, answer)
    return answer


def _confirmed(
    question: Callable[[], Rows], expected: set[tuple[str, str]], endpoint: Endpoint
) -> Rows:
    """Return an answer; where rows seem to be missing, one that came twice in a row."""
    before: Rows | None = None
    for _ in range(_TRIES):
        rows = question()
        keys = {tuple(one.key[:2]) for one in rows.rejected}
        keys.update(zip(rows.columns['ts_code'], rows.columns['trade_date'], strict=True))
        if expected <= keys or (before is not None and before.columns == rows.columns):
            return rows
        before = rows
    raise TushareError(
        TushareKind.PROTOCOL, endpoint.name, f'{_TRIES} answers to one question that all differ'
    )


def _without_closed_days(run: Run, answer: VendorRows, outcome: Outcome) -> VendorRows:
    """Leave out rows of days on which the exchanges were closed: by date nobody asks for them."""
    days = answer.table['trade_date'].to_pylist()
    keep = np.array([run.open.get(day, True) for day in days], np.bool_)
    if keep.all():
        return answer
    outcome.notes['closed_day'] += int((~keep).sum())
    return answer._replace(table=answer.table.filter(keep))


def _only(symbols: Sequence[str], answer: VendorRows) -> VendorRows:
    import pyarrow
    from pyarrow import compute

    wanted = pyarrow.array(symbols, pyarrow.string())
    table = answer.table.filter(compute.is_in(answer.table['ts_code'], value_set=wanted))
    own = set(symbols)
    return VendorRows(table, (), tuple(one for one in answer.rejected if one.key[0] in own))


def _by_symbol(step: Step, answers: Sequence[VendorRows]) -> Iterator[tuple[str, VendorRows]]:
    """Yield the rows of each symbol of the step, those of a symbol without any too."""
    import pyarrow

    table = pyarrow.concat_tables(
        [store.no_rows(step.endpoint).table, *(answer.table for answer in answers)]
    ).sort_by('ts_code')
    codes = np.array(table['ts_code'].to_pylist(), np.str_)
    for symbol in step.symbols:
        first, last = np.searchsorted(codes, symbol), np.searchsorted(codes, symbol, 'right')
        rejected = tuple(
            one for answer in answers for one in answer.rejected if one.key[0] == symbol
        )
        yield symbol, VendorRows(table.slice(first, last - first), (), rejected)


def _merge(run: Run, step: Step, symbol: str, answer: VendorRows, outcome: Outcome) -> None:
    old = store.read_rows(run.plan.out, step.endpoint, symbol)
    rows, changes = store.merge(
        step.endpoint, old, answer, step.start, step.end, run.complete_until
    )
    store.write_rows(run.plan.out, step.endpoint, symbol, rows)
    outcome.changes.update(changes._asdict())
    if changes.changed or changes.removed:
        name = f'{step.endpoint.name} {symbol}'
        outcome.corrected[name] = (
            outcome.corrected.get(name, 0) + changes.changed + changes.removed
        )


def _finish_symbol(run: Run, security: Security, outcome: Outcome) -> None:
    """Write the clean bars, and count what they are."""
    table = update_bars(run.plan.out, security.ts_code, security.kind)
    main = SERIES[security.kind][0]
    if table is None or main not in run.plan.endpoints:
        return
    outcome.bars.update(count_statuses(table))
    expected = run.expected(ENDPOINTS[main], security.ts_code, run.plan.start, run.end)
    holes = sorted(expected.difference(table['trade_date'].to_pylist()))
    if holes:
        outcome.holes[security.ts_code] = holes


def _write_universe(out: Path, universe: Universe) -> None:
    rows = [('ts_code', 'name', 'kind', 'list_date', 'delist_date', 'sector', 'text', 'note')]
    for entry, one, note in universe.resolved:
        rows.append(
            (
                one.ts_code, one.name, one.kind, one.list_date, one.delist_date, entry.sector,
                entry.text, note,
            )
        )  # fmt: skip
    for entry, reason, hint in universe.unresolved:
        rows.append(('', '', reason, '', '', entry.sector, entry.text, hint))
    _write_csv(out, 'universe.csv', rows)


def _write_rejected(run: Run, outcome: Outcome) -> None:
    """List the refused rows of everything that is stored of these symbols."""
    rows: list[tuple[Any, ...]] = [('endpoint', 'ts_code', 'trade_date', 'reason', 'field', 'row')]
    for symbol, security in run.securities.items():
        for name in SERIES[security.kind]:
            for one in store.read_head(run.plan.out, ENDPOINTS[name], symbol).rejected:
                rows.append((name, *one.key[:2], one.reason, one.field, one.text))
                outcome.rejected[f'{name}: {one.reason}'] += 1
    _write_csv(run.plan.out, 'rejected.csv', rows)


def _write_csv(out: Path, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    store.replace_file(out, store.list_path(out, name), text.getvalue().encode())
