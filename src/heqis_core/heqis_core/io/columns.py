# SPDX-License-Identifier: Apache-2.0
"""Which column of a file is what, told from the header alone, and the rows that it gives.

Units: in Tushare's `daily` (and `index_daily`, `fund_daily`: `ts_code`, `trade_date` and `vol`
together) volume is in lots of 100 and amount in thousand CNY; in every other file volume is in
shares and amount in CNY, unless the header says so in Chinese, as in 成交量(手).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, VOLUME
from heqis_core.clean import Fault
from heqis_core.errors import DataError
from heqis_core.event_time import TimeParser
from heqis_core.io.cells import SUFFIXES, CellFile, Column, to_floats, to_texts

_MOMENT = ('event_time', 'datetime', 'date_time', 'timestamp', 'trade_time')
"""Columns that hold date and time together."""
_DAY = ('trade_date', 'tradedate', 'trading_date', 'date', 'day', '日期', '交易日期')
"""Columns that hold a date, and perhaps the time of day too."""
_CLOCK = ('time', '时间', '交易时间')
"""The time of day beside a date column; the whole moment where there is none."""
_INDEX = ('', 'index', 'unnamed:_0')
"""What an unnamed first column is called; a date where nothing else is."""
_PANDAS_INDEX = ('__index_level_0__',)
"""The unnamed index of a data frame in a Parquet file, wherever it stands."""

_VALUES: dict[str, tuple[str, ...]] = {
    'open': ('open', 'open_price', '开盘', '开盘价'),
    'high': ('high', 'high_price', '最高', '最高价'),
    'low': ('low', 'low_price', '最低', '最低价'),
    'close': ('close', 'close_price', '收盘', '收盘价'),
    # `volumn` is how WonderTrader writes it.
    'volume': ('volume', 'vol', 'volumn', '成交量'),
    # `turnover` is an amount for some vendors and a rate for others: never taken.
    'amount': ('amount', 'amt', 'money', '成交额', '成交金额'),
}
EXTRAS: Mapping[str, tuple[str, ...]] = {
    'pre_close': ('pre_close', 'preclose', 'prev_close', '昨收', '昨收盘', '前收盘价'),
    'up_limit': ('up_limit', 'high_limit', 'limit_up', '涨停价'),
    'down_limit': ('down_limit', 'low_limit', 'limit_down', '跌停价'),
    'adj_factor': ('adj_factor', 'factor', '复权因子'),
}
"""What a file may say beside its bars, for checks and adjustment, with the names it goes by."""
Extras = Mapping[str, Sequence[str]]
"""Further columns that are wanted: name, and what they go by in a file."""

_SYMBOL = (
    'symbol', 'ts_code', 'code', 'ticker', 'instrument', 'stock_code', 'vt_symbol',
    '代码', '股票代码', '证券代码',
)  # fmt: skip
_PAUSED = ('paused', 'is_paused', 'suspended', 'is_suspended')
_UNITS = {'手': 100.0, '股': 1.0, '元': 1.0, '千元': 1_000.0, '万元': 10_000.0}
_SHOWN = 12
"""Columns that an error shows."""

_PRICES = BAR_FIELDS[:4]


class Layout(NamedTuple):
    """Indices of the columns of one file; None where it has none."""

    kind: str
    """`tushare` or `ohlcv`."""
    date: int
    time: int | None
    symbol: int | None
    paused: int | None
    values: tuple[int | None, ...]
    """One for each of `BAR_FIELDS`."""
    scale: tuple[float, ...]
    """What a cell of each of `BAR_FIELDS` is multiplied by to give shares and CNY."""
    extras: tuple[int | None, ...]
    """One for each further column that is wanted."""


@dataclass(slots=True)
class FileRows:
    """The rows of one file before the rules, N of them, in the order of the file.

    Attributes:
        path: the file.
        lines: int64 (N,), see `CellFile`.
        symbol: int64 (N,), codes of the symbols, -1 where the row has none.
        moment: int64 (N,), codes of `TimeParser`.
        values: float64 (6, N), rows in `BAR_FIELDS` order, in shares and CNY; NaN where empty.
        paused: bool (N,), rows that say that trading was suspended.
        extras: float64 (N,) by name, of the further columns that are wanted and there.
        unread: cells of these that are no number, by name; they count as empty.
        texts: by (row, field) what is no number.
        scale: see `Layout`.
        refused: line, text and fault of what is no row.
        remarks: what is odd about the file as a whole, `unfinished` or `mixed_ends`.
    """

    path: Path
    lines: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int64]
    moment: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    paused: npt.NDArray[np.bool_]
    extras: dict[str, npt.NDArray[np.float64]]
    unread: dict[str, int]
    texts: dict[tuple[int, int], str]
    scale: tuple[float, ...]
    refused: list[tuple[int, str, Fault]]
    remarks: tuple[str, ...]


_NO_ROWS: tuple[npt.NDArray[Any], ...] = (
    *(np.zeros(0, np.int64) for _ in range(3)),
    np.zeros((len(BAR_FIELDS), 0)),
    np.zeros(0, np.bool_),
)
PARTITION = 'symbol='
"""How the folder of one symbol begins in a folder that is partitioned by symbol."""

_TRUE = frozenset(('true', 't', 'yes', 'y', '是', '停牌'))


def read_file(
    path: Path, parser: TimeParser, names: dict[str, int], *, extras: Extras | None = None
) -> FileRows:
    """Read one file.

    New symbols are added to `names`, name → code. The symbol is the symbol column, or the name of
    the file without its suffix. Raise DataError if the file holds no bars, or nothing at all.
    """
    file = CellFile(path)
    extras = extras or {}
    layout = find_layout(path, file.header, file.header_line, extras)
    places = (*layout[1:5], *layout.values, *layout.extras)
    wanted = [index for index in places if index is not None]
    # Of each chunk: lines, symbols, moments, values, paused, extras; the first is for no chunk.
    parts: list[tuple[npt.NDArray[Any], ...]] = [(*_NO_ROWS, np.zeros((len(extras), 0)))]
    unread: Counter[str] = Counter()
    texts: dict[tuple[int, int], str] = {}
    refused: list[tuple[int, str, Fault]] = []
    n = 0
    for chunk in file.chunks(wanted):
        column = dict(zip(wanted, chunk.columns, strict=True))
        rows = len(chunk.lines)
        times = None if layout.time is None else to_texts(column[layout.time])
        parts.append(
            (
                np.asarray(chunk.lines, np.int64),
                _symbol_codes(column, layout, symbol_of(path), rows, names),
                parser.parse(to_texts(column[layout.date]), times),
                _values(column, layout, rows, n, texts),
                _flags(None if layout.paused is None else column[layout.paused], rows),
                _extras(column, layout, tuple(extras), rows, unread),
            )
        )
        refused += chunk.refused
        n += rows
    if not n and not refused:
        raise DataError(
            f'{path}: the file is empty: a header and no rows; fetch it again, or remove it'
        )
    lines, symbol, moment, values, paused, more_values = (
        np.concatenate(some, axis=-1) for some in zip(*parts, strict=True)
    )
    return FileRows(
        path,
        lines,
        symbol,
        moment,
        values,
        paused,
        {
            name: cells
            for name, cells, at in zip(extras, more_values, layout.extras, strict=True)
            if at is not None
        },
        dict(unread),
        texts,
        layout.scale,
        refused,
        tuple(name for name in ('unfinished', 'mixed_ends') if getattr(file, name)),
    )


def symbol_of(path: Path) -> str:
    """Return the name of a data file without its suffix, or what its folder `symbol=…` says."""
    if path.parent.name.startswith(PARTITION):
        return path.parent.name[len(PARTITION) :]
    suffix = next(
        suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if path.name.lower().endswith(suffix)
    )
    return path.name[: -len(suffix)]


def _symbol_codes(
    column: dict[int, Column], layout: Layout, stem: str, rows: int, names: dict[str, int]
) -> npt.NDArray[np.int64]:
    if layout.symbol is None:
        return np.full(rows, names.setdefault(stem, len(names)), np.int64)
    cells = [cell.strip() for cell in to_texts(column[layout.symbol])]
    # dict.fromkeys, not a set: codes must not depend on the hash seed
    codes = {
        cell: -1
        if cell.lower() in ('', 'nan', 'none', 'null')
        else names.setdefault(cell, len(names))
        for cell in dict.fromkeys(cells)
    }
    return np.fromiter(map(codes.__getitem__, cells), np.int64, rows)


def _values(
    column: dict[int, Column],
    layout: Layout,
    rows: int,
    first_row: int,
    texts: dict[tuple[int, int], str],
) -> npt.NDArray[np.float64]:
    out = np.full((len(BAR_FIELDS), rows), np.nan)
    for field, index in enumerate(layout.values):
        if index is None:
            continue
        numbers, wrong = to_floats(column[index])
        out[field] = numbers * layout.scale[field]
        texts.update({(first_row + row, field): text for row, text in wrong.items()})
    return out


def _flags(cells: Column | None, rows: int) -> npt.NDArray[np.bool_]:
    if cells is None:
        return np.zeros(rows, np.bool_)
    numbers, texts = to_floats(cells)
    flags: npt.NDArray[np.bool_] = np.nan_to_num(numbers) != 0
    for row, text in texts.items():
        flags[row] = text.strip().lower() in _TRUE
    return flags


def _extras(
    column: dict[int, Column],
    layout: Layout,
    names: Sequence[str],
    rows: int,
    unread: Counter[str],
) -> npt.NDArray[np.float64]:
    out = np.full((len(names), rows), np.nan)
    for place, (name, index) in enumerate(zip(names, layout.extras, strict=True)):
        if index is not None:
            out[place], wrong = to_floats(column[index])
            if wrong:
                unread[name] += len(wrong)
    return out


def find_layout(
    path: Path, header: Sequence[str], header_line: int = 1, extras: Extras = EXTRAS
) -> Layout:
    """Return what the columns are, `extras` those that are wanted beside the bars.

    Raise DataError that names the file, the line, what is there and what is missing. Case, blanks,
    `<>`, quotes and a prefix that all columns share do not matter.
    """
    names, units = _normalise(header)
    layout = _layout(names, units, extras)
    if layout is None:
        shared = _shared_start(names)
        names = [name[shared.rfind('_') + 1 :] for name in names]
        layout = _layout(names, units, extras)
    if layout is None:
        found = ', '.join(repr(name) for name in header[:_SHOWN])
        more = f' and {len(header) - _SHOWN} more' if len(header) > _SHOWN else ''
        raise DataError(
            f'{_place(path, header_line)}: no bars: found the columns {found}{more}; expected '
            f'{_missing(names)}: name the columns so in the first line, '
            'or point at the file with the bars'
        )
    used = [layout.date, layout.time, layout.symbol, *layout.values]
    taken = [index for index in used if index is not None and names[index]]
    twice = [header[index] for index in taken if names.count(names[index]) > 1]
    if twice:
        raise DataError(
            f'{_place(path, header_line)}: two columns are named '
            f"'{twice[0]}': rename or remove one"
        )
    return layout


def _shared_start(names: list[str]) -> str:
    if len(names) < 2:
        return ''
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return ''.join(letters[0] for letters in alike)


def _place(path: Path, header_line: int) -> str:
    return f'{path}: line {header_line}' if header_line else f'{path}'


def _normalise(header: Sequence[str]) -> tuple[list[str], list[float | None]]:
    """Return the plain names, and the unit that a name says in brackets."""
    names, units = [], []
    for raw in header:
        name = re.sub(r'[\s-]+', '_', raw.strip().strip('\ufeff<>"\'').strip().lower())
        unit = re.fullmatch(r'(.+?)_?[(（](手|股|元|千元|万元)[)）]', name)
        names.append(unit[1] if unit else name)
        units.append(_UNITS[unit[2]] if unit else None)
    return names, units


def _layout(names: list[str], units: list[float | None], extras: Extras) -> Layout | None:
    values = tuple(_first(names, _VALUES[field]) for field in BAR_FIELDS)
    date, time = _date_columns(names)
    if date is None or None in values[:4]:
        return None
    volume = values[VOLUME]
    tushare = {'ts_code', 'trade_date'} <= set(names) and volume is not None
    tushare = tushare and names[volume or 0] == 'vol'
    scale = [1.0, 1.0, 1.0, 1.0, 100.0, 1_000.0] if tushare else [1.0] * 6
    for field, index in enumerate(values):
        said = units[index] if index is not None else None
        scale[field] = scale[field] if said is None else said
    return Layout(
        'tushare' if tushare else 'ohlcv',
        date, time, _first(names, _SYMBOL), _first(names, _PAUSED), values, tuple(scale),
        tuple(_only(names, aliases) for aliases in extras.values()),
    )  # fmt: skip


def _date_columns(names: list[str]) -> tuple[int | None, int | None]:
    moment, day, clock = (_first(names, aliases) for aliases in (_MOMENT, _DAY, _CLOCK))
    if moment is not None:
        return moment, None
    if day is not None:
        return day, clock
    if clock is not None:
        return clock, None
    if names and names[0] in _INDEX:
        return 0, None
    return _first(names, _PANDAS_INDEX), None


def _first(names: list[str], aliases: Sequence[str]) -> int | None:
    return next((names.index(alias) for alias in aliases if alias in names), None)


def _only(names: list[str], aliases: Sequence[str]) -> int | None:
    """Return where the name stands; None also where two columns have it."""
    found = _first(names, aliases)
    return found if found is not None and names.count(names[found]) == 1 else None


def _missing(names: list[str]) -> str:
    wanted = (
        []
        if _date_columns(names)[0] is not None
        else [f'a date ({", ".join((*_DAY[:4], *_MOMENT[:3]))})']
    )
    wanted += [f"'{field}'" for field in _PRICES if _first(names, _VALUES[field]) is None]
    return ', '.join(wanted)
