# SPDX-License-Identifier: Apache-2.0
"""Whole answers of Tushare Pro: every page of a question, checked, none lost and none twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import ConfigError
from heqis_core.event_time import TimeParser
from heqis_core.io.tushare_client import TushareClient, TushareError, TushareKind
from heqis_core.io.tushare_endpoints import (
    ENDPOINTS,
    Endpoint,
    KeyCellError,
    Rows,
    check_rows,
    parse_day,
)

_MOST_PAGES = 200
"""Of one answer; more means that the server never comes to an end."""
VENDOR_FIELDS = ('open', 'high', 'low', 'close', 'vol', 'amount')
UNITS = (1.0, 1.0, 1.0, 1.0, 100.0, 1_000.0)
"""What a vendor's cell of each of `BAR_FIELDS` is multiplied by: lots and thousand CNY."""


class _WrongAnswerError(TushareError):
    """Answers that are sound one by one, but together not what was asked for."""


class DailyRows(NamedTuple):
    """Daily bars of N (symbol, day) pairs, sorted by day, then symbol; not yet cleaned."""

    symbols: tuple[str, ...]
    """N `ts_code`s."""
    days: tuple[str, ...]
    """N days, YYYYMMDD."""
    event_time_ns: npt.NDArray[np.int64]
    """int64 (N,), 15:00 in Shanghai as ns UTC."""
    values: npt.NDArray[np.float64]
    """float64 (6, N), rows in `BAR_FIELDS` order, CNY and shares; NaN where the cell is empty."""
    pre_close: npt.NDArray[np.float64]
    """float64 (N,), ex-right, CNY."""
    rejected: dict[str, int]
    """Rows that are not here, by reason."""


def ask(
    client: TushareClient,
    endpoint: Endpoint,
    params: Mapping[str, str],
    *,
    page_rows: int = 0,
) -> Rows:
    """Return all rows of one question; pages are asked for until the server has no more.

    Raise TushareError if a page fails for good, lacks a column, holds a row that was not asked
    for, or repeats rows of a page before it.
    """

    def answer() -> Rows:
        rows = _ask(client, endpoint, params, page_rows or endpoint.page_rows)
        if not rows.notes.get('duplicate'):
            return rows
        # Rows that come twice shift the pages behind them, unless the vendor really has them so.
        again = _ask(client, endpoint, params, page_rows or endpoint.page_rows)
        if again.notes.get('duplicate') and again.columns != rows.columns:
            raise _wrong(endpoint, 'rows that come twice, other ones each time')
        return again

    return client.retried(answer, _WrongAnswerError)


def _ask(
    client: TushareClient, endpoint: Endpoint, params: Mapping[str, str], page_rows: int
) -> Rows:
    items: list[list[Any]] = []
    fields: tuple[str, ...] = ()
    seen: set[tuple[Any, ...]] = set()
    said_more = False
    for _ in range(_MOST_PAGES):
        page = client.call(
            endpoint.name,
            endpoint.columns,
            {**params, 'limit': page_rows, 'offset': len(items)},
        )
        missing = [name for name in endpoint.columns if name not in page.fields]
        if missing:
            raise _wrong(
                endpoint,
                f'no column {", ".join(missing)}; the answer has {", ".join(page.fields)}',
            )
        # Pages may differ in the order of their columns.
        fields = endpoint.columns
        at = [page.fields.index(name) for name in fields]
        rows = [[item[index] for index in at] for item in page.items]
        repeated = seen.intersection(new := {_key(endpoint, row) for row in rows})
        if repeated:
            raise _wrong(endpoint, f'row {min(repeated)} came again on a later page')
        seen |= new
        items += rows
        if not rows and (page.has_more or said_more):
            raise _wrong(endpoint, f'an empty page after {len(items)} rows that said has_more')
        if not rows or not (page.has_more or len(rows) >= page_rows):
            break
        said_more = bool(page.has_more) and len(rows) < page_rows
    else:
        raise _wrong(endpoint, f'no end after {_MOST_PAGES} pages, {len(items)} rows')
    try:
        checked = check_rows(endpoint, fields, items)
    except KeyCellError as error:
        raise _wrong(endpoint, str(error)) from None
    _check_asked(endpoint, params, checked)
    return checked


def _key(endpoint: Endpoint, row: list[Any]) -> tuple[str, ...]:
    return tuple(str(row[endpoint.columns.index(name)]) for name in endpoint.key)


def _wrong(endpoint: Endpoint, text: str) -> _WrongAnswerError:
    return _WrongAnswerError(TushareKind.PROTOCOL, endpoint.name, text)


def _check_asked(endpoint: Endpoint, params: Mapping[str, str], rows: Rows) -> None:
    """Raise TushareError for a row of another symbol or day than the question names."""
    day = 'trade_date' if endpoint.is_series else 'cal_date' if 'cal_date' in rows.columns else ''
    keys = [*zip(*(rows.columns[name] for name in endpoint.key), strict=True)]
    keys += [one.key for one in rows.rejected]
    for key in keys:
        cells = dict(zip(endpoint.key, key, strict=True))
        symbol = params.get('ts_code', '')
        if symbol and cells['ts_code'] != symbol:
            raise _wrong(endpoint, f'a row of {cells["ts_code"]}, asked for {symbol}')
        if not day:
            continue
        first = params.get('trade_date') or params.get('start_date', '')
        last = params.get('trade_date') or params.get('end_date', '')
        if (first and cells[day] < first) or (last and cells[day] > last):
            raise _wrong(endpoint, f'a row of {cells[day]}, asked for {first} to {last}')


def ask_symbol(
    client: TushareClient, endpoint: Endpoint, symbol: str, start: str, end: str
) -> Rows:
    """Return the rows of one symbol from day `start` to day `end`, both included."""
    return ask(client, endpoint, {'ts_code': symbol, 'start_date': start, 'end_date': end})


def ask_day(client: TushareClient, endpoint: Endpoint, day: str) -> Rows:
    """Return the rows of the whole market of one day."""
    return ask(client, endpoint, {'trade_date': day})


def ask_series(
    client: TushareClient, endpoint: Endpoint, symbols: Sequence[str], start: str, end: str
) -> list[Rows]:
    """Return the rows of some symbols from day `start` to day `end`, in as few calls as possible.

    Days are asked for as a whole where they are fewer than the symbols: other symbols come along.
    """
    days = [day for day in days_between(start, end) if _is_weekday(day)]
    if endpoint.by_date and len(days) < len(symbols):
        return [ask_day(client, endpoint, day) for day in days]
    return [ask_symbol(client, endpoint, symbol, start, end) for symbol in symbols]


def ask_calendar(client: TushareClient, start: str, end: str) -> Rows:
    """Return the trading calendar from `start` to `end`, which the SSE and the SZSE share.

    The vendor publishes it until the end of a year: days beyond are not there.

    Raises ConfigError if it begins after `start`, TushareError if another day before the last one
    is missing.
    """
    facts = ENDPOINTS['trade_cal']

    def answer(last: str) -> Rows:
        return ask(client, facts, {'exchange': 'SSE', 'start_date': start, 'end_date': last})

    def whole() -> Rows:
        rows = answer(end)
        have = set(rows.columns['cal_date'])
        first = min(have, default='')
        if first != start and not len(answer(_day_before(first) if first else end)):
            # Twice the same, so nothing was lost on the way.
            raise ConfigError(
                f'start {start}: the calendar of this server begins on {first}; choose a start '
                'from then on'
                if first
                else f'days {start} to {end}: the calendar of this server has none of them; '
                'choose others'
            )
        gaps = [day for day in days_between(start, max(have, default=start)) if day not in have]
        if gaps:
            raise _wrong(facts, f'no row of {gaps[0]}')
        return rows

    return client.retried(whole, _WrongAnswerError)


def _day_before(day: str) -> str:
    return f'{parse_day(day, "day") - timedelta(1):%Y%m%d}'


def days_between(start: str, end: str) -> list[str]:
    """Return every day of the calendar from `start` to `end`, both included; none without end."""
    if not end:
        return []
    first, last = parse_day(start, 'start'), parse_day(end, 'end')
    return [f'{first + timedelta(n):%Y%m%d}' for n in range((last - first).days + 1)]


def fetch_daily(
    client: TushareClient,
    symbols: Iterable[str],
    start: str,
    end: str,
    *,
    endpoint: str = 'daily',
) -> DailyRows:
    """Return the daily bars of symbols from day `start` to day `end`, in as few calls as possible.

    Days are asked for as a whole where they are fewer than the symbols. What the vendor has not
    published yet is not there; nothing is filled.

    Args:
        client: the client.
        symbols: `ts_code`s.
        start: YYYYMMDD, first day.
        end: YYYYMMDD, last day.
        endpoint: `daily`, `fund_daily` or `index_daily`.

    Raises:
        ConfigError: another endpoint, or no day.
        TushareError: an answer that cannot be used.
    """
    if endpoint not in ('daily', 'fund_daily', 'index_daily'):
        raise ConfigError(f"endpoint: '{endpoint}'; expected daily, fund_daily or index_daily")
    facts = ENDPOINTS[endpoint]
    wanted = sorted(set(symbols))
    answers = ask_series(client, facts, wanted, start, end)
    return _daily_rows(facts, answers, frozenset(wanted))


def _is_weekday(day: str) -> bool:
    return date(int(day[:4]), int(day[4:6]), int(day[6:])).weekday() < 5


def _daily_rows(facts: Endpoint, answers: Sequence[Rows], wanted: frozenset[str]) -> DailyRows:
    names = ('trade_date', 'ts_code', *VENDOR_FIELDS, 'pre_close')
    rows: list[tuple[Any, ...]] = []
    rejected: dict[str, int] = {}
    for answer in answers:
        rows += zip(*(answer.columns[name] for name in names), strict=True)
        for one in answer.rejected:
            if one.key[facts.key.index('ts_code')] in wanted:
                rejected[one.reason] = rejected.get(one.reason, 0) + 1
    rows = sorted(row for row in rows if row[1] in wanted)
    days = tuple(row[0] for row in rows)
    numbers = np.array([row[2:] for row in rows], np.float64).reshape(-1, len(BAR_FIELDS) + 1).T
    return DailyRows(
        tuple(row[1] for row in rows),
        days,
        closes_ns(days),
        np.ascontiguousarray(numbers[:-1] * np.array(UNITS)[:, None]),
        np.ascontiguousarray(numbers[-1]),
        rejected,
    )


def closes_ns(days: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the event times int64 (N,) of daily bars: 15:00 in Shanghai, as `load_bars` has."""
    parser = TimeParser()
    return parser.event_times([parser.parse(days)])[0]
