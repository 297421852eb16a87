# SPDX-License-Identifier: Apache-2.0
"""The indicators against a vendor's printed values: Tushare's, of three stocks and two indices.

Stocks: on qfq prices, taken as raw price * factor / last factor, because the printed qfq prices
are rounded to 0.00001 and an oscillator over a quiet window magnifies that. Every row is compared:
none is left out, not those around the factor's blips of 2024-06-25/26, and not the split of 002594
on 2025-07-29. The vendor's series began long before the files, so a recursive indicator is
compared from `Column.faded` on; how long a seed takes to fade is a test of its own.
"""

from __future__ import annotations

import csv
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.features.spec import FeatureItem
from heqis_core.io.files import load_bars
from heqis_core.testing import features_of, shared_data

Floats = npt.NDArray[np.float64]

FOLDER = 'ashare_daily/tushare_factor_2023_2025'
STOCKS = ('600519.SH', '600036.SH', '002594.SZ')
INDICES = ('510300.SH', '510500.SH')
"""The files of these two ETFs hold the factors of their index, CSI 300 and CSI 500."""

ROWS = 500
CLOSE_TO = 1.5e-3
"""What every printed value must be met within: they have three decimals, and more for indices."""


class Column(NamedTuple):
    """One column of the vendor: its names, how it comes from ours, when our seed has faded."""

    for_stock: str
    for_index: str
    """Empty where its files do not have it."""
    item: FeatureItem
    output: int
    faded: int
    """First row that is compared."""
    scale: float = 1.0
    """What ours is multiplied by."""


def item(kind: str, of: str = '', **params: float) -> FeatureItem:
    return FeatureItem(kind, params, of=of)


MACD, KDJ, BOLL = item('macd'), item('kdj'), item('boll')
RSI = {n: item('rsi', n=n) for n in (6, 12, 24)}

COLUMNS = [
    Column('macd_dif', 'macd_dif_bfq', MACD, 0, 160),
    Column('macd_dea', 'macd_dea_bfq', MACD, 1, 160),
    Column('macd', 'macd_bfq', MACD, 2, 160),
    Column('kdj_k', 'kdj_k_bfq', KDJ, 0, 45),
    Column('kdj_d', 'kdj_d_bfq', KDJ, 1, 45),
    Column('kdj_j', 'kdj_bfq', KDJ, 2, 45),
    *(Column(f'rsi_{n}', f'rsi_bfq_{n}', RSI[n], 0, 13 * n) for n in (6, 12, 24)),
    Column('boll_mid', 'boll_mid_bfq', BOLL, 0, 19),
    Column('boll_upper', 'boll_upper_bfq', BOLL, 1, 19),
    Column('boll_lower', 'boll_lower_bfq', BOLL, 2, 19),
    Column('cci', 'cci_bfq', item('cci', n=14), 0, 13),
    *(Column('', f'ma_bfq_{n}', item('ma', n=n), 0, n - 1) for n in (5, 10, 20, 30, 60)),
    *(Column('', f'ema_bfq_{n}', item('ema', n=n), 0, 7 * n) for n in (5, 10, 20, 30, 60)),
    Column('', 'roc_bfq', item('return', n=12), 0, 12, 100.0),
]


def read(symbol: str, table: str = 'techin') -> dict[str, Floats]:
    """Return the columns of a file by the vendor's name, oldest row first."""
    path = shared_data() / FOLDER / f'{symbol}_{table}.csv'
    prefix = f'indiv_{table}_'
    with path.open(encoding='utf-8') as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row[f'{prefix}trade_date'])
    names = [name for name in rows[0] if not name.endswith('ts_code')]
    return {
        name.removeprefix(prefix): np.array([float(row[name] or 'nan') for row in rows])
        for name in names
    }


def prices(vendor: dict[str, Floats]) -> dict[str, Floats]:
    """Return the bars that the vendor's indicators are of; the last row's prices are raw."""
    factor = vendor['adj_factor'] / vendor['adj_factor'][-1] if 'adj_factor' in vendor else 1.0
    bars = {name: vendor[name] * factor for name in BAR_FIELDS[:4]}
    return {**bars, 'volume': vendor['vol'] * 100, 'amount': vendor['amount'] * 1000}


@pytest.mark.parametrize('symbol', STOCKS + INDICES)
def test_every_row_after_the_seed_is_met_within_the_rounding_of_the_file(symbol: str) -> None:
    vendor = read(symbol)
    bars = prices(vendor)
    compared = 0
    for column in COLUMNS:
        name = column.for_index if symbol in INDICES else column.for_stock
        if not name:
            continue
        theirs, mine = (
            vendor[name],
            features_of(bars, column.item)[:, column.output] * column.scale,
        )
        assert len(theirs) == ROWS
        assert np.isfinite(theirs).all(), name
        error = np.abs(mine - theirs)[column.faded :]
        assert np.isfinite(error).all(), name
        assert error.max() <= CLOSE_TO, (name, error.argmax() + column.faded, error.max())
        # Nearer still: half a unit of the third decimal, and what is left of the seed.
        assert np.median(error) <= 0.5e-3, name
        assert np.mean(error <= 0.51e-3) >= 0.9, name
        compared += len(error)
    assert compared == sum(
        ROWS - c.faded for c in COLUMNS if (c.for_index if symbol in INDICES else c.for_stock)
    )


def test_printed_qfq_prices_are_too_coarse_for_a_cci_of_a_quiet_window() -> None:
    left_out = {}
    for symbol in STOCKS:
        vendor = read(symbol)
        printed = {name: vendor[f'{name}_qfq'] for name in BAR_FIELDS[:4]}
        bars = {**prices(vendor), **printed}
        error = np.abs(features_of(bars, item('cci', n=14))[:, 0] - vendor['cci'])[13:]
        left_out[symbol] = int((error > CLOSE_TO).sum())
        assert error.max() < 3e-3, symbol
    assert left_out == {'600519.SH': 0, '600036.SH': 2, '002594.SZ': 0}


@pytest.mark.parametrize('symbol', INDICES)
def test_the_vendors_atr_is_a_plain_mean_of_twenty_true_ranges(symbol: str) -> None:
    vendor = read(symbol)
    true_range = item('atr', n=1)
    (name,) = true_range.columns
    mine = features_of(prices(vendor), true_range, item('ma', n=20, of=name.name))[:, 1]
    assert np.abs(mine - vendor['atr_bfq'])[20:].max() <= 1e-5
    wilder = features_of(prices(vendor), item('atr', n=14))[:, 0]
    # So Wilder's of 14 stands elsewhere by up to a third: two definitions, not two roundings.
    assert 0.29 < (np.abs(wilder / vendor['atr_bfq'] - 1)[20:]).max() < 0.31


@pytest.mark.parametrize('symbol', INDICES)
def test_the_vendors_obv_moves_as_ours_from_another_start(symbol: str) -> None:
    vendor = read(symbol)
    mine = features_of(prices(vendor), item('obv'))[:, 0] / 1e6  # ten thousand lots
    offset = vendor['obv_bfq'] - mine
    assert np.ptp(offset) <= 1e-5 * ROWS
    assert np.abs(np.diff(mine) - np.diff(vendor['obv_bfq'])).max() <= 2e-5


@pytest.mark.parametrize('symbol', INDICES)
def test_the_vendors_williams_r_is_our_rsv_from_above(symbol: str) -> None:
    vendor = read(symbol)
    for name, n in (('wr_bfq', 10), ('wr1_bfq', 6)):
        rsv = features_of(prices(vendor), item('kdj', n=n, k=1, d=1))[:, 0]
        assert np.abs(100 - rsv - vendor[name])[n - 1 :].max() <= 0.51e-3


@pytest.mark.parametrize('symbol', STOCKS)
def test_the_vendors_volume_ratio_is_ours_to_its_two_decimals(symbol: str) -> None:
    daily_basic = read(symbol, 'din')
    mine = features_of(prices(read(symbol)), item('volume_ratio', n=5))[:, 0]
    theirs = daily_basic['volume_ratio']
    assert len(theirs) == ROWS
    assert np.abs(mine - theirs)[5:].max() <= 0.51e-2


FADES = [
    (item('ema', n=5), 30),
    (item('ema', n=20), 120),
    (item('ema', n=60), 360),
    (MACD, 140),
    (KDJ, 45),
    *((RSI[n], 13 * n) for n in (6, 12, 24)),
    (item('atr', n=14), 112),
]
"""Recursive items, and the bars after which two starts of one series are the same to 1.5e-3."""

LONG = ('wondertrader/SSE.600000Q_d.csv', 'baostock_600519_2005_2024_MIT/600519.SH.csv')


@pytest.mark.parametrize('name', LONG)
@pytest.mark.parametrize(('recursive', 'bars'), FADES)
def test_a_seed_fades_within_the_stated_number_of_bars(
    name: str, recursive: FeatureItem, bars: int
) -> None:
    table, _ = load_bars(shared_data() / 'ashare_daily' / name)
    valid = table.status[:, 0] == BarStatus.VALID
    series = {field: table.values[valid, k, 0] for k, field in enumerate(BAR_FIELDS)}
    whole = features_of(series, recursive)
    # Oscillators in points, prices in per cent of the close: what stands on a chart.
    in_points = recursive.kind in ('kdj', 'rsi')
    scale = np.ones(valid.sum()) if in_points else 100 / series['close']
    last = []
    for start in range(100, 2500, 300):
        late = features_of({field: column[start:] for field, column in series.items()}, recursive)
        apart = np.nanmax(np.abs(late - whole[start:]), axis=1, initial=0) * scale[start:]
        last.append(int(np.flatnonzero(apart > CLOSE_TO).max()) + 1)
    # And not much sooner, or the statement would be worth nothing.
    assert bars / 2 < max(last) <= bars
