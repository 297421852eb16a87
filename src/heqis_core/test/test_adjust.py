# SPDX-License-Identifier: Apache-2.0
"""Ex-dates and adjusted prices: real corporate actions are found, a vendor's noise is none."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.adjust import factor_of, find_ex_dates, find_untold, hfq, qfq
from heqis_core.testing import shared_data

Floats = npt.NDArray[np.float64]
NAN = float('nan')

FACTORS = 'ashare_daily/tushare_factor_2023_2025'
RAW = 'ashare_daily/tushare_raw_2020_2024'
JOINQUANT = 'ashare_daily/joinquant_qfq_limits_2005_2023'
EX_DATES = {
    '600519.SH': [
        ('20231220', 'cash'), ('20240619', 'cash'), ('20241220', 'cash'), ('20250626', 'cash'),
    ],
    '600036.SH': [('20240711', 'cash'), ('20250711', 'cash')],
    '002594.SZ': [('20240729', 'cash'), ('20250729', 'shares')],
}  # fmt: skip
"""Ex-dates of three stocks from 2023-09-25 to 2025-10-23."""


def columns(path: Path, prefix: str = '', *, newest_first: bool = True) -> dict[str, list[str]]:
    """Return the columns of a CSV file by name, oldest row first."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        rows = list(csv.DictReader(file))[:: -1 if newest_first else 1]
    return {name.removeprefix(prefix): [row[name] for row in rows] for name in rows[0]}


def numbers(cells: list[str]) -> Floats:
    return np.array(cells, np.float64)


def techin(symbol: str) -> tuple[list[str], dict[str, Floats]]:
    """Return the days and the number columns of a real `*_techin` file."""
    found = columns(shared_data() / FACTORS / f'{symbol}_techin.csv', 'indiv_techin_')
    prices = ('open', 'high', 'low', 'close')
    wanted = [*prices, 'pre_close', 'adj_factor']
    wanted += [f'{field}_{way}' for field in prices for way in ('hfq', 'qfq')]
    return found['trade_date'], {name: numbers(found[name]) for name in wanted}


@pytest.mark.parametrize('symbol', EX_DATES)
@pytest.mark.parametrize('source', ['both', 'adj_factor', 'pre_close'])
def test_real_ex_dates_are_found_from_either_source_and_blips_are_none(
    symbol: str, source: str
) -> None:
    days, data = techin(symbol)
    blips = [days.index('20240625'), days.index('20240626')]
    assert (np.diff(data['adj_factor'])[np.array(blips) - 1] != 0).all()
    found = find_ex_dates(
        data['close'],
        pre_close=None if source == 'adj_factor' else data['pre_close'],
        adj_factor=None if source == 'pre_close' else data['adj_factor'],
    )
    assert [(days[one.row], one.kind) for one in found] == EX_DATES[symbol]
    assert all(one.confirmed for one in found)


def test_the_split_of_byd_gives_three_shares_for_one() -> None:
    days, data = techin('002594.SZ')
    found = find_ex_dates(
        data['close'], pre_close=data['pre_close'], adj_factor=data['adj_factor']
    )
    assert days[found[-1].row] == '20250729'
    assert found[-1].step == pytest.approx(3.1499 / 1.0376)
    assert found[-1].step == pytest.approx(337.0 / 111.01, rel=1e-5)


@pytest.mark.parametrize('symbol', EX_DATES)
def test_hfq_and_qfq_are_the_vendor_s_but_for_its_blips(symbol: str) -> None:
    _, data = techin(symbol)
    last = len(data['close']) - 1
    factor = factor_of(data['close'], pre_close=data['pre_close'], adj_factor=data['adj_factor'])
    for field in ('open', 'high', 'low', 'close'):
        # The vendor's own factor gives its columns to their rounding ...
        vendor = hfq(data[field], data['adj_factor'])
        assert np.abs(vendor - data[f'{field}_hfq']).max() < 1e-5
        assert np.abs(qfq(data[field], data['adj_factor'], last) - data[f'{field}_qfq']).max() < (
            0.005 + 1e-9
        )
        # ... and ours, without the blips, differs by at most what they are worth.
        assert np.abs(hfq(data[field], factor) / data[f'{field}_hfq'] - 1).max() < 2.1e-4
        assert np.abs(qfq(data[field], factor, last) / data[f'{field}_qfq'] - 1).max() < 2.1e-4


@pytest.mark.parametrize(('symbol', 'steps'), [('510300.SH', 2), ('510500.SH', 2)])
def test_factors_of_funds_have_three_decimals_and_agree_within_them(
    symbol: str, steps: int
) -> None:
    bars = columns(shared_data() / FACTORS / f'{symbol}_d.csv', 'indiv_d_')
    factors = columns(shared_data() / FACTORS / f'{symbol}_adj_d.csv', 'indiv_adj_d_')
    assert bars['trade_date'] == factors['trade_date']
    close, pre_close = numbers(bars['close']), numbers(bars['pre_close'])
    factor = numbers(factors['adj_factor'])
    found = find_ex_dates(close, pre_close=pre_close, adj_factor=factor, tick=0.001)
    assert len(found) == steps == (np.diff(factor) != 0).sum()
    assert all(one.confirmed and one.kind == 'cash' for one in found)


@pytest.mark.parametrize('symbol', ['000001.XSHE', '000004.XSHE'])
def test_joinquant_s_factor_gives_its_own_qfq_and_its_own_ex_dates(symbol: str) -> None:
    data = columns(shared_data() / JOINQUANT / f'{symbol}.csv', newest_first=False)
    theirs, factor = numbers(data['close']), numbers(data['factor'])
    paused = numbers(data['paused']) > 0
    # What is sold is rounded after the adjustment: undone, raw prices are good to half a tick.
    raw = np.where(paused, NAN, np.round(theirs / factor, 2))
    found = find_ex_dates(raw, adj_factor=factor)
    stepped = np.flatnonzero(np.diff(factor) != 0) + 1
    assert [one.row for one in found] == stepped.tolist()
    ours = factor_of(raw, adj_factor=factor)
    assert np.allclose(ours, factor, rtol=1e-12)
    assert np.abs(qfq(raw, ours, len(raw) - 1) - theirs)[~paused].max() <= 0.005 + 1e-9


@pytest.mark.parametrize(('symbol', 'n'), [('000001.SZ', 6), ('600519.SH', 8), ('601318.SH', 10)])
def test_reference_prices_of_raw_dailies_show_every_dividend(symbol: str, n: int) -> None:
    data = columns(shared_data() / RAW / f'{symbol}.csv')
    found = find_ex_dates(numbers(data['close']), pre_close=numbers(data['pre_close']))
    assert len(found) == n
    assert {one.kind for one in found} == {'cash'}


def test_a_suspension_hides_no_ex_date_and_makes_none() -> None:
    close = np.array([10.0, NAN, NAN, 9.5, 9.6, NAN, 9.7])
    pre_close = np.array([9.9, NAN, NAN, 9.5, 9.5, NAN, 9.6])
    found = find_ex_dates(close, pre_close=pre_close)
    assert [(one.row, one.kind) for one in found] == [(3, 'cash')]
    assert found[0].step == pytest.approx(10 / 9.5)


def test_a_factor_that_changes_while_trading_is_suspended_counts_on_the_day_of_return() -> None:
    close = np.array([10.0, NAN, NAN, 5.1])
    factor = np.array([1.0, 1.0, 2.0, 2.0])
    found = find_ex_dates(close, adj_factor=factor)
    assert [(one.row, one.step, one.kind) for one in found] == [(3, 2.0, 'shares')]


def test_a_consolidation_is_told_by_its_step() -> None:
    found = find_ex_dates(np.array([1.0, 2.1]), pre_close=np.array([1.0, 2.0]), tick=0.001)
    assert [(one.step, one.kind) for one in found] == [(0.5, 'consolidation')]


def test_a_disagreement_is_said_and_the_factor_decides() -> None:
    close = np.array([10.0, 9.1])
    found = find_ex_dates(close, pre_close=np.array([10.0, 9.5]), adj_factor=np.array([1.0, 1.2]))
    assert [(one.row, one.step, one.confirmed) for one in found] == [(1, 1.2, False)]


def test_a_dividend_below_a_blip_is_seen_by_the_reference_price_alone() -> None:
    close = np.array([100.0, 100.0])
    factor = np.array([1.0, 1.0002])
    assert find_ex_dates(close, adj_factor=factor) == []
    found = find_ex_dates(close, pre_close=np.array([100.0, 99.98]), adj_factor=factor)
    assert [(one.kind, one.confirmed) for one in found] == [('cash', True)]
    assert found[0].step == pytest.approx(100 / 99.98)


def test_without_factor_and_reference_nothing_is_adjusted() -> None:
    close = np.array([10.0, 5.0, 5.1])
    assert find_ex_dates(close) == []
    assert factor_of(close).tolist() == [1.0, 1.0, 1.0]


def series(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    """Return close, pre_close and factor of a made-up stock with dividends, splits and blips."""
    n = draw(st.integers(2, 30))
    moves = draw(st.lists(st.integers(-90, 90), min_size=n, max_size=n))
    steps = draw(st.lists(st.sampled_from([1.0] * 8 + [1.02, 1.1, 2.0]), min_size=n, max_size=n))
    blips = draw(st.lists(st.sampled_from([0.0] * 5 + [1e-4, -2e-4]), min_size=n, max_size=n))
    price, close, pre_close = 50.0, [], []
    for move, step in zip(moves, steps, strict=True):
        reference = round(price / step, 2)
        price = max(round(reference * (1 + move / 1000), 2), 1.0)
        close.append(price)
        pre_close.append(reference)
    factor = np.round(np.cumprod(steps), 4) + np.array(blips)
    return np.array(close), np.array(pre_close), factor


made_up = st.composite(series)


@given(made_up())
def test_no_later_row_changes_what_is_said_of_an_earlier_one(
    data: tuple[Floats, Floats, Floats],
) -> None:
    close, pre_close, factor = data
    cut = len(close) // 2 + 1
    whole = factor_of(close, pre_close=pre_close, adj_factor=factor)
    part = factor_of(close[:cut], pre_close=pre_close[:cut], adj_factor=factor[:cut])
    assert (whole[:cut] == part).all()
    as_of = cut - 1
    assert (qfq(close, whole, as_of) == qfq(close[:cut], part, as_of)).all()


@given(made_up())
def test_qfq_ends_in_the_raw_price_and_keeps_the_returns_of_hfq(
    data: tuple[Floats, Floats, Floats],
) -> None:
    close, pre_close, factor = data
    ours = factor_of(close, pre_close=pre_close, adj_factor=factor)
    for as_of in range(len(close)):
        forward = qfq(close, ours, as_of)
        assert forward[-1] == close[as_of]
        backward = hfq(close, ours)[: as_of + 1]
        assert np.allclose(forward[1:] / forward[:-1], backward[1:] / backward[:-1], rtol=1e-12)


@given(st.floats(4, 90), st.lists(st.integers(-5, 5), min_size=2, max_size=20))
def test_some_units_of_a_factor_s_fourth_decimal_are_no_ex_date(
    level: float, units: list[int]
) -> None:
    factor = np.round(level, 4) + 1e-4 * np.array(units)
    assert find_ex_dates(np.full(len(units), 10.0), adj_factor=factor) == []


@given(made_up(), st.data())
def test_a_hole_in_the_factor_hides_no_step_and_doubles_none(
    data: tuple[Floats, Floats, Floats], draw: st.DataObject
) -> None:
    close, pre_close, factor = data
    holes = np.array(draw.draw(st.lists(st.booleans(), min_size=len(close), max_size=len(close))))
    # The first and the last are known, the reference price on some days.
    holes[[0, -1]] = False
    known = np.array(draw.draw(st.lists(st.booleans(), min_size=len(close), max_size=len(close))))
    reference = np.where(known, pre_close, NAN)
    ours = factor_of(close, pre_close=reference, adj_factor=np.where(holes, NAN, factor))
    # For each row a blip, or the rounding of prices, may be off.
    slack = len(close) * (1e-3 + 0.02 / pre_close.min())
    assert abs(np.log(ours[-1] / ours[0]) - np.log(factor[-1] / factor[0])) < slack


def test_a_factor_that_steps_while_it_is_missing_is_a_step_from_where_it_is_known() -> None:
    close, factor = np.array([10.0, 5.1, 5.0, 5.2]), np.array([1.0, NAN, 2.0, 2.0])
    found = find_ex_dates(close, adj_factor=factor)
    assert [(one.row, one.step) for one in found] == [(2, 2.0)]
    assert find_untold(close, adj_factor=factor).tolist() == [False, True, False, False]
    # The reference price has shown it on its day: it counts once.
    reference = np.array([10.0, 5.0, 5.1, 5.0])
    found = find_ex_dates(close, pre_close=reference, adj_factor=factor)
    assert [(one.row, one.step) for one in found] == [(1, 2.0)]
    assert not find_untold(close, pre_close=reference, adj_factor=factor).any()


def test_of_rows_without_factor_and_reference_nothing_is_known_but_of_the_first() -> None:
    close = np.array([NAN, 10.0, 10.1, NAN, 10.2, 10.3])
    assert find_untold(close).tolist() == [False, False, True, False, True, True]
    factor = np.array([1.0, NAN, NAN, 1.0, 1.0, 1.0])
    # What is known of a suspended day is held against no price.
    assert find_untold(close, adj_factor=factor).tolist() == [False] * 2 + [
        True,
        False,
        True,
        False,
    ]


def test_several_prices_are_adjusted_at_once() -> None:
    prices = np.array([[10.0, 5.0], [12.0, 6.0]])
    factor = np.array([1.0, 2.0])
    assert hfq(prices, factor).tolist() == [[10.0, 10.0], [12.0, 12.0]]
    assert qfq(prices, factor, 1).tolist() == [[5.0, 5.0], [6.0, 6.0]]
    assert qfq(prices, factor, 0).tolist() == [[10.0], [12.0]]
