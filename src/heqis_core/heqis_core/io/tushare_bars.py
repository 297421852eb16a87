# SPDX-License-Identifier: Apache-2.0
"""Clean bars of one symbol from the vendor's rows of all endpoints, joined by day.

The rules are `heqis_core.clean`. What the vendor sent stands beside in `raw_` columns, as sent.
Nothing is filled: a day is here if the vendor sent a bar, a bar that was refused, or says that
trading was suspended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, VOLUME, BarStatus
from heqis_core.clean import Fault, clean_rows, no_limit
from heqis_core.io.tushare_endpoints import ENDPOINTS, SERIES
from heqis_core.io.tushare_query import UNITS, VENDOR_FIELDS, closes_ns
from heqis_core.io.tushare_store import (
    VendorRows,
    bars_path,
    read_parquet,
    read_rows,
    rows_path,
    write_parquet,
)

_RAW_DAILY = (*VENDOR_FIELDS[:4], 'pre_close', 'change', 'pct_chg', *VENDOR_FIELDS[4:])
_RAW_LIMITS = ('up_limit', 'down_limit')
_BASIC = ('turnover_rate', 'turnover_rate_f', 'volume_ratio')
"""Columns of `daily_basic`, as sent: turnover in percent."""


def update_bars(root: Path, symbol: str, kind: str) -> Any:
    """Write the clean bars of a symbol if its vendor rows have changed.

    Return them as a pyarrow Table, see `build_bars`; None if nothing was fetched.
    """
    sources = {}
    for name in SERIES[kind]:
        path = rows_path(root, name, symbol)
        if path.exists():
            sources[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if SERIES[kind][0] not in sources:
        return None
    path = bars_path(root, symbol)
    if path.exists():
        table, meta = read_parquet(path)
        if meta.get('sources') == sources:
            return table
    rows = {name: read_rows(root, ENDPOINTS[name], symbol) for name in sources}
    table = build_bars(symbol, kind, rows)
    if len(table) or path.exists():
        write_parquet(root, path, table, {'sources': sources, 'symbol': symbol})
    return table


def count_statuses(table: Any) -> dict[str, int]:
    """Return the number of rows by status, refused ones as `rejected:<reason>`."""
    counts: dict[str, int] = {}
    for status, fault in zip(table['status'].to_pylist(), table['fault'].to_pylist(), strict=True):
        name = f'rejected:{fault}' if fault else status.lower()
        counts[name] = counts.get(name, 0) + 1
    return counts


def build_bars(symbol: str, kind: str, rows: Mapping[str, VendorRows]) -> Any:
    """Return the clean bars as a pyarrow Table, sorted by day.

    Args:
        symbol: `ts_code`.
        kind: `stock`, `fund` or `index`.
        rows: by endpoint, what is stored; the endpoint of the bars must be there.
    """
    import pyarrow

    main = rows[SERIES[kind][0]]
    refused = _refused(main)
    suspended = _suspended(rows.get('suspend_d'))
    sent = main.table['trade_date'].to_pylist()
    days = sorted({*sent, *refused, *(suspended or ())})
    raw = {name: _column(main, name, days) for name in _RAW_DAILY}
    values = np.stack([raw[name] for name in VENDOR_FIELDS]) * np.array(UNITS)[:, None]
    fault = clean_rows(
        values, needs_volume=np.full(len(days), bool(np.isfinite(values[VOLUME]).any()))
    ).fault
    whole = [bool(suspended) and day in (suspended or ()) for day in days]
    # A suspended day has no row, or one without any trade.
    idle = np.array(whole, np.bool_) & ~(values[VOLUME] > 0)
    reasons: list[str | None] = []
    status = np.empty(len(days), object)
    for index, day in enumerate(days):
        reason = refused.get(day) or (
            Fault(int(fault[index])).label if fault[index] and not idle[index] else None
        )
        reasons.append(reason)
        status[index] = (
            BarStatus.REJECTED
            if reason
            else BarStatus.SUSPENDED
            if idle[index]
            else BarStatus.VALID
        ).name
    values[:, status != BarStatus.VALID.name] = np.nan
    limits = {name: _column(rows.get('stk_limit'), name, days) for name in _RAW_LIMITS}
    without = no_limit(*limits.values())
    numbers: dict[str, npt.NDArray[np.float64]] = {
        **dict(zip(BAR_FIELDS, values, strict=True)),
        'pre_close': np.where(status == BarStatus.VALID.name, raw['pre_close'], np.nan),
        'adj_factor': _column(rows.get('adj_factor'), 'adj_factor', days),
        **{name: np.where(without, np.nan, column) for name, column in limits.items()},
        **{name: _column(rows.get('daily_basic'), name, days) for name in _BASIC},
    }
    beside = {f'raw_{name}': column for name, column in {**raw, **limits}.items()}
    texts = pyarrow.string()
    columns = {
        'ts_code': pyarrow.array([symbol] * len(days), texts),
        'trade_date': pyarrow.array(days, texts),
        'event_time': pyarrow.array(closes_ns(days), pyarrow.timestamp('ns', 'UTC')),
        **{name: _nullable(column) for name, column in numbers.items()},
        'suspended': pyarrow.array(
            idle.tolist() if suspended is not None else [None] * len(days), pyarrow.bool_()
        ),
        'status': pyarrow.array(status.tolist(), texts),
        'fault': pyarrow.array(reasons, texts),
        **{name: _nullable(column) for name, column in beside.items()},
    }
    return pyarrow.table(columns)


def _nullable(column: npt.NDArray[np.float64]) -> Any:
    import pyarrow

    return pyarrow.array(column, pyarrow.float64(), from_pandas=True)


def _refused(rows: VendorRows) -> dict[str, str]:
    """Return by day why the vendor's row was refused before cleaning."""
    place = ENDPOINTS['daily'].key.index('trade_date')
    return {one.key[place]: one.reason for one in rows.rejected}


def _suspended(rows: VendorRows | None) -> set[str] | None:
    """Return the days of which trading was suspended from open to close; None if unknown."""
    if rows is None:
        return None
    columns = (rows.table[name].to_pylist() for name in ('trade_date', 'suspend_type'))
    timing = rows.table['suspend_timing'].to_pylist()
    return {
        day
        for day, kind, when in zip(*columns, timing, strict=True)
        if kind == 'S' and when is None
    }


def _column(rows: VendorRows | None, name: str, days: list[str]) -> npt.NDArray[np.float64]:
    """Return float64 (N,): the cell of each day, NaN where there is none."""
    out = np.full(len(days), np.nan)
    if rows is None or not len(rows.table) or not days:
        return out
    have = np.array(rows.table['trade_date'].to_pylist())
    place = np.minimum(np.searchsorted(have, days), len(have) - 1)
    found = have[place] == np.array(days)
    cells = rows.table[name].to_numpy()
    out[found] = cells[place[found]]
    return out
