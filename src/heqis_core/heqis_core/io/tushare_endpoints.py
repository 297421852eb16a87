# SPDX-License-Identifier: Apache-2.0
"""The facts about Tushare Pro's endpoints, one table, and the check of rows against them.

Columns and limits as in the vendor's documentation (tushare.pro/document/2, 2025). What a row
breaks is named; rows are never dropped without a reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from heqis_core.errors import ConfigError

DAY = re.compile(r'\d{8}')

_PRICES = ('open', 'high', 'low', 'close', 'pre_close', 'change', 'pct_chg', 'vol', 'amount')


class Endpoint(NamedTuple):
    """What is known of one endpoint before it is asked."""

    name: str
    texts: tuple[str, ...]
    """Columns of text; dates are text of the form YYYYMMDD."""
    numbers: tuple[str, ...]
    """Columns of numbers, stored as float64 as they were sent."""
    key: tuple[str, ...]
    """Columns that no two rows share."""
    page_rows: int
    """Rows that one call may give."""
    is_series: bool = False
    """Has `ts_code` and `trade_date`, and takes `ts_code` with `start_date` and `end_date`."""
    by_date: bool = False
    """Takes `trade_date` alone for the whole market."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, texts first."""
        return self.texts + self.numbers


_KEY = ('ts_code', 'trade_date')

ENDPOINTS: dict[str, Endpoint] = {
    one.name: one
    for one in (
        Endpoint(
            'stock_basic',
            (
                'ts_code', 'symbol', 'name', 'area', 'industry', 'market', 'exchange',
                'list_status', 'list_date', 'delist_date', 'is_hs',
            ),
            (), ('ts_code',), 6_000,
        ),
        Endpoint(
            'fund_basic',
            (
                'ts_code', 'name', 'management', 'fund_type', 'invest_type', 'type', 'status',
                'market', 'list_date', 'delist_date', 'benchmark',
            ),
            (), ('ts_code',), 6_000,
        ),
        Endpoint(
            'index_basic',
            (
                'ts_code', 'name', 'fullname', 'market', 'publisher', 'index_type', 'category',
                'base_date', 'list_date', 'exp_date',
            ),
            ('base_point',), ('ts_code',), 6_000,
        ),
        Endpoint(
            'trade_cal', ('exchange', 'cal_date', 'pretrade_date'), ('is_open',),
            ('exchange', 'cal_date'), 6_000,
        ),
        Endpoint('daily', _KEY, _PRICES, _KEY, 6_000, True, True),
        Endpoint(
            'daily_basic', _KEY,
            (
                'close', 'turnover_rate', 'turnover_rate_f', 'volume_ratio', 'pe', 'pe_ttm', 'pb',
                'ps', 'ps_ttm', 'dv_ratio', 'dv_ttm', 'total_share', 'float_share', 'free_share',
                'total_mv', 'circ_mv',
            ),
            _KEY, 6_000, True, True,
        ),
        Endpoint('index_daily', _KEY, _PRICES, _KEY, 6_000, True),
        Endpoint('fund_daily', _KEY, _PRICES, _KEY, 5_000, True, True),
        Endpoint('adj_factor', _KEY, ('adj_factor',), _KEY, 6_000, True, True),
        Endpoint(
            'stk_limit', _KEY, ('pre_close', 'up_limit', 'down_limit'), _KEY, 5_800, True, True
        ),
        Endpoint(
            'suspend_d', (*_KEY, 'suspend_timing', 'suspend_type'), (),
            (*_KEY, 'suspend_type', 'suspend_timing'), 5_000, True, True,
        ),
    )
}  # fmt: skip

SERIES: dict[str, tuple[str, ...]] = {
    'stock': ('daily', 'suspend_d', 'adj_factor', 'stk_limit', 'daily_basic'),
    'fund': ('fund_daily', 'stk_limit'),
    'index': ('index_daily',),
}
"""Time series that exist for a kind of symbol; the first one holds its bars."""

_DATES = frozenset(('trade_date', 'cal_date'))
_EMPTY = frozenset(('', 'nan', 'none', 'null'))


class Rejected(NamedTuple):
    """One row that breaks what is known of its endpoint."""

    key: tuple[str, ...]
    """Cells of the endpoint's key."""
    reason: str
    """`not_a_number`, `not_a_text` or `conflicting_duplicate`."""
    field: str
    text: str
    """The row as JSON."""


class Rows(NamedTuple):
    """Rows of one endpoint, by name of column; texts or None, floats or None."""

    columns: dict[str, list[Any]]
    rejected: list[Rejected]
    notes: dict[str, int]
    """Counted, but no fault of a row: `number_as_text`, `duplicate`."""

    def __len__(self) -> int:
        """Return the number of good rows."""
        return len(next(iter(self.columns.values())))


class KeyCellError(ValueError):
    """A row without a usable key: the answer as a whole cannot be trusted."""


def parse_day(text: str, what: str) -> date:
    """Return the day of a text YYYYMMDD; raise ConfigError that names `what`."""
    if not DAY.fullmatch(text):
        raise ConfigError(f"{what}: '{text}' is no day; expected YYYYMMDD, such as 20240102")
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError as error:
        raise ConfigError(f"{what}: '{text}': {error}; expected a day of the calendar") from error


def check_rows(endpoint: Endpoint, fields: Sequence[str], items: list[list[Any]]) -> Rows:
    """Return the rows, whatever the order of the sent columns; columns nobody asked for are left.

    The good rows keep the order of the answer. Of equal rows the first one stays; of rows with
    equal keys that differ none does.

    Raises KeyCellError if a column is missing, or a row has no key.
    """
    missing = [name for name in endpoint.columns if name not in fields]
    if missing:
        raise KeyCellError(
            f'no column {", ".join(missing)}; the answer has {", ".join(fields) or "none"}'
        )
    at = [fields.index(name) for name in endpoint.columns]
    n_texts = len(endpoint.texts)
    notes: dict[str, int] = {}
    rejected: list[Rejected] = []
    good: dict[tuple[str, ...], tuple[Any, ...]] = {}
    conflicts: set[tuple[str, ...]] = set()
    keys = [endpoint.columns.index(name) for name in endpoint.key]
    needed = [endpoint.columns.index(name) for name in endpoint.key if name != 'suspend_timing']
    dates = [index for index, name in enumerate(endpoint.texts) if name in _DATES]
    for item in items:
        cells = [item[index] for index in at]
        fault = ''
        for index in range(n_texts):
            cells[index], wrong = _text(cells[index])
            fault = fault or (f'not_a_text {endpoint.columns[index]}' if wrong else '')
        for index in range(n_texts, len(cells)):
            cells[index], note = _number(cells[index])
            if note == 'number_as_text':
                notes[note] = notes.get(note, 0) + 1
            elif note:
                fault = fault or f'{note} {endpoint.columns[index]}'
        text = json.dumps(item, ensure_ascii=False)
        _check_key(endpoint, cells, needed, dates, text)
        key = tuple(cells[index] or '' for index in keys)
        if fault:
            reason, field = fault.split(' ')
            rejected.append(Rejected(key, reason, field, text))
            continue
        row = tuple(cells)
        if key not in good:
            good[key] = row
        elif good[key] == row:
            notes['duplicate'] = notes.get('duplicate', 0) + 1
        else:
            conflicts.add(key)
            rejected.append(Rejected(key, 'conflicting_duplicate', '', text))
    for key in sorted(conflicts):
        text = json.dumps(good.pop(key), ensure_ascii=False)
        rejected.append(Rejected(key, 'conflicting_duplicate', '', text))
    columns = list(zip(*good.values(), strict=True)) or [()] * len(at)
    return Rows(dict(zip(endpoint.columns, map(list, columns), strict=True)), rejected, notes)


def _check_key(
    endpoint: Endpoint, cells: list[Any], needed: list[int], dates: list[int], text: str
) -> None:
    for index in needed:
        if not cells[index]:
            raise KeyCellError(f'a row without {endpoint.columns[index]}: {text[:200]}')
    for index in dates:
        try:
            parse_day(cells[index], endpoint.columns[index])
        except ConfigError as error:
            raise KeyCellError(str(error)) from None


def _text(cell: Any) -> tuple[str | None, bool]:
    """Return the text of a cell, and whether it is none."""
    if isinstance(cell, str):
        return cell.strip() or None, False
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None, False
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell), False
    return None, True


def _number(cell: Any) -> tuple[float | None, str]:
    """Return the number of a cell, and what is odd about it."""
    if cell is None:
        return None, ''
    note = ''
    if isinstance(cell, str):
        if cell.strip().lower() in _EMPTY:
            return None, ''
        note = 'number_as_text'
        # float() takes 1_000 for a number; no vendor does.
        cell = math.inf if '_' in cell else cell
    elif isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return None, 'not_a_number'
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None, 'not_a_number'
    if math.isnan(number):
        return None, ''
    return (None, 'not_a_number') if math.isinf(number) else (number, note)
