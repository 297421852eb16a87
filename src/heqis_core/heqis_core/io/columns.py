# SPDX-License-Identifier: Apache-2.0
"""Which column of a file is what: Tushare's `daily` or plain OHLCV, told from the header alone.

Units: in Tushare's `daily` (and `index_daily`, `fund_daily`: `ts_code`, `trade_date` and `vol`
together) volume is in lots of 100 and amount in thousand CNY; in every other file volume is in
shares and amount in CNY, unless the header says so in Chinese, as in 成交量(手).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import DataError

_MOMENT = ('datetime', 'date_time', 'timestamp', 'trade_time')
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


def find_layout(path: Path, header: Sequence[str], header_line: int = 1) -> Layout:
    """Return what the columns are.

    Raise DataError that names the file, the line, what is there and what is missing. Case, blanks,
    `<>`, quotes and a prefix that all columns share do not matter.
    """
    names, units = _normalise(header)
    layout = _layout(names, units)
    if layout is None:
        shared = _shared_start(names)
        names = [name[shared.rfind('_') + 1 :] for name in names]
        layout = _layout(names, units)
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


def _layout(names: list[str], units: list[float | None]) -> Layout | None:
    values = tuple(_first(names, _VALUES[field]) for field in BAR_FIELDS)
    date, time = _date_columns(names)
    if date is None or None in values[:4]:
        return None
    tushare = {'ts_code', 'trade_date', 'vol'} <= set(names)
    scale = [1.0, 1.0, 1.0, 1.0, 100.0, 1_000.0] if tushare else [1.0] * 6
    for field, index in enumerate(values):
        said = units[index] if index is not None else None
        scale[field] = scale[field] if said is None else said
    return Layout(
        'tushare' if tushare else 'ohlcv',
        date, time, _first(names, _SYMBOL), _first(names, _PAUSED), values, tuple(scale),
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


def _missing(names: list[str]) -> str:
    wanted = (
        []
        if _date_columns(names)[0] is not None
        else [f'a date ({", ".join((*_DAY[:4], *_MOMENT[:3]))})']
    )
    wanted += [f"'{field}'" for field in _PRICES if _first(names, _VALUES[field]) is None]
    return ', '.join(wanted)
