# SPDX-License-Identifier: Apache-2.0
"""The rules against what others hold: a vendor's limits, real rows, and dated records.

`joinquant_qfq_limits_2005_2023` has prices multiplied by a factor and rounded to 0.01. A price in
ticks can be recovered where only one whole number gives the written price: on every row with
factor 1, on some with a factor of about 0.6 to 1, on none below 0.5, where a cent is two ticks or
more. Of 8,984 rows 480 are paused (the columns repeat the price) and 3 have no limit; of the other
8,501 the reference price can be recovered on 5,619, and both limits of all of them come out. On
the rest some candidate has to give both limits, which holds on all but one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heqis_core.errors import DataError
from heqis_core.market import (
    NO_HIGH,
    NO_LOW,
    Board,
    Exchange,
    FundKind,
    Session,
    Status,
    board_of,
    exchange_of,
    fee_rates,
    holding_days,
    price_limits,
    sessions_of,
    status_of,
    tick_of,
    to_ticks,
    within_limits,
)
from heqis_core.market.fees import COMMISSION_CAP_PPM, COMMISSION_MINIMUM_FEN
from heqis_core.testing import shared_data

SSE, SZSE, BSE = Exchange.SSE, Exchange.SZSE, Exchange.BSE
SLACK = Fraction(1, 10**9)
"""Cents that the vendor's own floating point may be off."""


def status_of_000001(day: date) -> Status:
    if day == date(2007, 6, 20):  # first day after the share reform
        return Status.FREE
    return status_of('S深发展A' if day < date(2007, 6, 20) else '平安银行', day)


def status_of_000004(day: date) -> Status:
    if day in (date(2006, 8, 18), date(2007, 5, 28)):  # reform; resumption
        return Status.FREE
    special = date(2006, 4, 21) <= day < date(2011, 6, 8)
    special = special or date(2022, 5, 6) <= day < date(2023, 6, 28)
    return Status.ST if special else Status.NORMAL


def candidates(written: str, factor: Fraction) -> range:
    """Whole ticks that the vendor's factor and rounding turn into the written price."""
    cents = Fraction(written) * 100
    half = Fraction(1, 2) + SLACK
    return range(ceil((cents - half) / factor), floor((cents + half) / factor) + 1)


@pytest.mark.parametrize(
    ('name', 'status', 'recovered', 'unlimited', 'against_the_rule'),
    [
        # Its reference price is 19.10 or near. 5 % below 19.10 are 18.145, which is 18.15 by the
        # rule; the vendor has 18.14, while on 1,178 other exact halves it rounds up as we do.
        ('000001.XSHE', status_of_000001, 1649, 1, ['2007-02-09']),
        ('000004.XSHE', status_of_000004, 3970, 2, []),
    ],
)
def test_every_limit_whose_price_scale_allows_it_equals_the_vendors(
    name: str,
    status: Callable[[date], Status],
    recovered: int,
    unlimited: int,
    against_the_rule: list[str],
) -> None:
    path = shared_data() / f'ashare_daily/joinquant_qfq_limits_2005_2023/{name}.csv'
    found = {'recovered': 0, 'unlimited': 0}
    wrong: list[str] = []
    for row in read_rows(path):
        if float(row['paused']):
            continue
        day, factor = date.fromisoformat(row['']), Fraction(row['factor'])
        references = candidates(row['pre_close'], factor)
        low, high = price_limits(references, day, exchange_of(name), board_of(name), status(day))
        if float(row['high_limit']) > 1e6:
            found['unlimited'] += 1
            assert (low == NO_LOW).all(), day
            assert (high == NO_HIGH).all(), day
            continue
        up, down = candidates(row['high_limit'], factor), candidates(row['low_limit'], factor)
        agrees = [int(h) in up and int(w) in down for w, h in zip(low, high, strict=True)]
        if len(references) == 1:
            found['recovered'] += 1
            assert agrees == [True], (day, int(references[0]), int(low[0]), int(high[0]))
        elif not any(agrees):
            wrong.append(row[''])
    assert found == {'recovered': recovered, 'unlimited': unlimited}
    assert wrong == against_the_rule


@pytest.mark.parametrize('symbol', ['000001.SZ', '600519.SH', '601318.SH'])
def test_no_real_price_is_outside_its_limits(symbol: str) -> None:
    rows = read_rows(shared_data() / f'ashare_daily/tushare_raw_2020_2024/{symbol}.csv')
    assert len(rows) == 1212
    at_limit = 0
    for row in rows:
        day = date(
            int(row['trade_date'][:4]), int(row['trade_date'][4:6]), int(row['trade_date'][6:])
        )
        prices = to_ticks([float(row[name]) for name in ('open', 'high', 'low', 'close')])
        low, high = price_limits(
            to_ticks(float(row['pre_close'])), day, exchange_of(symbol), board_of(symbol)
        )
        assert within_limits(prices, int(low), int(high)).all(), row
        at_limit += int((prices == high).any() or (prices == low).any())
    # the limits are not merely wide: some day reached one
    assert at_limit > 0


# marina-rules: scope -> (board, status, days listed); the exchange comes from the record
SCOPES: dict[str, tuple[Board, Status, int]] = {
    'main_board': (Board.MAIN, Status.NORMAL, 0),
    'st_main': (Board.MAIN, Status.ST, 0),
    'chinext': (Board.CHINEXT, Status.NORMAL, 0),
    'st_chinext': (Board.CHINEXT, Status.ST, 0),
    'star': (Board.STAR, Status.NORMAL, 0),
    'st_star': (Board.STAR, Status.ST, 0),
    'bse': (Board.BSE, Status.NORMAL, 0),
    'st_bse': (Board.BSE, Status.ST, 0),
    'b_share': (Board.B_SHARE, Status.NORMAL, 0),
    'st_b_share': (Board.B_SHARE, Status.ST, 0),
    'etf': (Board.FUND, Status.NORMAL, 0),
    'etf_20pct': (Board.FUND_20, Status.NORMAL, 0),
    'reits': (Board.REIT, Status.NORMAL, 0),
    'reits_day1': (Board.REIT, Status.NORMAL, 1),
    'convertible': (Board.CONVERTIBLE, Status.NORMAL, 0),
    'convertible_day1': (Board.CONVERTIBLE, Status.NORMAL, 1),
    'ipo_day1_main': (Board.MAIN, Status.NORMAL, 1),
    'ipo_day1_bse': (Board.BSE, Status.NORMAL, 1),
    'ipo_first5_main': (Board.MAIN, Status.NORMAL, 1),
    'ipo_first5_chinext': (Board.CHINEXT, Status.NORMAL, 1),
    'ipo_first5_star': (Board.STAR, Status.NORMAL, 1),
    'delisting': (Board.MAIN, Status.DELISTING, 0),
    'delisting_day1': (Board.MAIN, Status.DELISTING_FIRST, 0),
    'delisting_chinext': (Board.CHINEXT, Status.DELISTING, 0),
    'delisting_star': (Board.STAR, Status.DELISTING, 0),
    'delisting_day1_star': (Board.STAR, Status.DELISTING_FIRST, 0),
    'delisting_bse': (Board.BSE, Status.DELISTING, 0),
    'delisting_day1_bse': (Board.BSE, Status.DELISTING_FIRST, 0),
}
MARKETS = {'XSHG': SSE, 'XSHE': SZSE, 'BJSE': BSE}
KINDS = {
    'etf_bond': FundKind.BOND,
    'etf_money': FundKind.MONEY,
    'etf_gold': FundKind.GOLD,
    'etf_commodity': FundKind.COMMODITY,
    'etf_crossborder': FundKind.CROSS_BORDER,
}
STOCKS = {SSE: (Board.MAIN, Board.STAR), SZSE: (Board.MAIN, Board.CHINEXT), BSE: (Board.BSE,)}
OPENED = {Board.STAR: date(2019, 7, 22), Board.CHINEXT: date(2009, 10, 30)}


def boards_of_scope(scope: str, exchange: Exchange, day: date) -> list[Board]:
    if scope == 'stock':
        return [board for board in STOCKS[exchange] if day >= OPENED.get(board, day)]
    if scope in KINDS:
        return [Board.FUND]
    return [SCOPES[scope][0]]


def check_share(record: Any, exchange: Exchange, day: date) -> None:
    board, status, age = SCOPES[record.scope]
    reference = 1_000_000
    low, high = price_limits(reference, day, exchange, board, status, age)
    if record.value == 'unlimited':
        assert (int(low), int(high)) == (NO_LOW, NO_HIGH)
        return
    share = (
        record.value
        if isinstance(record.value, dict)
        else dict(up=record.value, down=record.value)
    )
    assert int(high) == reference + round(reference * share['up'])
    assert int(low) == reference - round(reference * share['down'])


def check_lowest_prices(record: Any, exchange: Exchange, day: date) -> None:
    marina_rules = pytest.importorskip('marina_rules', reason='a development requirement')
    scope = 'main_board' if record.scope == 'stock' else record.scope
    board, status, age = SCOPES[scope]
    market = next(name for name, each in MARKETS.items() if each is exchange)
    for reference in (*range(1, 12), 105, 1005):
        theirs = marina_rules.limit_price(reference / 100, scope, day.isoformat(), market)
        low, high = price_limits(reference, day, exchange, board, status, age)
        assert theirs is not None
        # their lower limit of 0.01 less a tick is 0, at which nothing trades
        assert (int(low), int(high)) == (max(round(theirs[1] * 100), 1), round(theirs[0] * 100))


def check_tick(record: Any, exchange: Exchange, day: date) -> None:
    for board in boards_of_scope(record.scope, exchange, day):
        assert tick_of(board, exchange) == record.value


def check_holding(record: Any, exchange: Exchange, day: date) -> None:
    kind = KINDS.get(record.scope, FundKind.EQUITY)
    for board in boards_of_scope(record.scope, exchange, day):
        assert holding_days(exchange, board, day, kind) == record.value


def check_sessions(record: Any, exchange: Exchange, day: date) -> None:
    def clock(minute: int) -> str:
        return f'{minute // 60:02d}:{minute % 60:02d}'

    for board in boards_of_scope(record.scope, exchange, day):
        spans: dict[Session, list[list[str]]] = {}
        for span in sessions_of(exchange, board, day):
            spans.setdefault(span.session, []).append([clock(span.start), clock(span.end)])
        assert spans[Session.OPEN_CALL] == [record.value['open_call']]
        assert spans[Session.CONTINUOUS] == record.value['continuous']
        close_call = record.value['close_call']
        assert spans.get(Session.CLOSE_CALL) == ([close_call] if close_call else None)


def check_stamp(record: Any, exchange: Exchange, day: date) -> None:
    for board in boards_of_scope(record.scope, exchange, day):
        rates = fee_rates(board, day, transfer_ppm=0)
        assert (int(rates.stamp_buy_ppm), int(rates.stamp_sell_ppm)) == (0, record.value * 1e6)


def check_transfer(record: Any, exchange: Exchange, day: date) -> None:
    for board in boards_of_scope(record.scope, exchange, day):
        assert int(fee_rates(board, day).transfer_ppm) == round(record.value * 1e6)


def check_commission_cap(record: Any, exchange: Exchange, day: date) -> None:
    assert record.value * 1e6 == COMMISSION_CAP_PPM


def check_commission_minimum(record: Any, exchange: Exchange, day: date) -> None:
    assert record.value * 100 == COMMISSION_MINIMUM_FEN


def check_rounding(record: Any, exchange: Exchange, day: date) -> None:
    assert record.value == 'half_up_2dp'
    low, high = price_limits([1005, 1015], day, exchange, Board.MAIN)
    assert low.tolist() == [905, 914]
    assert high.tolist() == [1106, 1117]


CHECKS: dict[str, Callable[[Any, Exchange, date], None]] = {
    'price_limit_pct': check_share,
    'price_limit_pct_of_issue_price': check_share,
    'limit_price_min_tick': check_lowest_prices,
    'limit_price_rounding': check_rounding,
    'tick_size': check_tick,
    'min_holding_days': check_holding,
    'session_schedule': check_sessions,
    'stamp_duty_sell': check_stamp,
    'transfer_fee_each_side': check_transfer,
    'commission_cap': check_commission_cap,
    'commission_min_per_order_cny': check_commission_minimum,
}


def in_force(records: list[Any], like: Any, day: date) -> Any | None:
    for record in records:
        same = (record.rule, record.scope, record.market) == (like.rule, like.scope, like.market)
        if same and record.active_on(day.isoformat()):
            return record
    return None


def test_every_dated_record_of_marina_rules_holds_on_its_day_and_the_days_around_it() -> None:
    marina_rules = pytest.importorskip('marina_rules', reason='a development requirement')
    records = list(marina_rules.records())
    checked = set()
    for record in records:
        edges = [date.fromisoformat(record.effective_from)]
        if record.effective_to:
            edges.append(date.fromisoformat(record.effective_to))
        for day in (edge + timedelta(days=n) for edge in edges for n in (-1, 0, 1)):
            current = in_force(records, record, day)
            if current is None:
                continue
            for market in current.market.split('+'):
                CHECKS[current.rule](current, MARKETS[market], day)
            checked.add(current.id)
    assert checked == {record.id for record in records}
    assert len(checked) > 80


def test_limit_prices_of_marina_rules_equal_ours_to_the_tick() -> None:
    marina_rules = pytest.importorskip('marina_rules', reason='a development requirement')
    random = np.random.default_rng(11)
    references = np.unique(np.concatenate([np.arange(1, 400), random.integers(400, 200_000, 400)]))
    for scope, market in (('main_board', 'XSHG'), ('st_main', 'XSHE'), ('chinext', 'XSHE'),
                          ('ipo_day1_main', 'XSHE'), ('star', 'XSHG')):  # fmt: skip
        for day in (date(2020, 8, 21), date(2022, 12, 30)):
            board, status, age = SCOPES[scope]
            low, high = price_limits(references, day, MARKETS[market], board, status, age)
            theirs = [
                marina_rules.limit_price(int(reference) / 100, scope, day.isoformat(), market)
                for reference in references
            ]
            assert high.tolist() == [round(limit[0] * 100) for limit in theirs], scope
            assert low.tolist() == [max(round(limit[1] * 100), 1) for limit in theirs], scope


def sample_bars() -> Iterator[tuple[str, list[dict[str, str]]]]:
    marina_rules = pytest.importorskip('marina_rules', reason='a development requirement')
    for path in sorted(Path(marina_rules.DATA_DIR).glob('samples/cn_bars/*.csv')):
        yield path.stem, read_rows(path)


def test_closes_of_the_sample_bars_of_marina_rules_are_within_the_limits() -> None:
    # Adjusted prices with four decimals: a ten-thousandth is the tick here, and the rounding of
    # the real limit to a cent may add up to half of one: 0.1 % of a price of 5 CNY.
    rows_seen, beyond_regular = 0, 0
    for name, rows in sample_bars():
        listed_within = name in ('sh.603375', 'sh.688981', 'sz.301499')
        for index, row in enumerate(rows[1:], 1):
            day = date.fromisoformat(row['date'])
            # these three begin on the second day after the listing
            age = index + 2 if listed_within else 0
            reference, close = (round(float(row[c]) * 10_000) for c in ('preclose', 'close'))
            cell = (exchange_of(name), board_of(name))
            slack = reference // 1000
            low, high = price_limits(reference, day, *cell, Status.NORMAL, age)
            assert within_limits(close, int(low) - slack, int(high) + slack), (name, row)
            low, high = price_limits(reference, day, *cell)
            beyond_regular += not within_limits(close, int(low) - slack, int(high) + slack)
            rows_seen += 1
    assert rows_seen > 10_000
    # the free first days are needed, or the test would say nothing of them
    assert beyond_regular > 0


def test_what_marina_rules_calls_a_gap_between_two_rules_is_not_hidden() -> None:
    # Stamp duty before the table, and a transfer fee that was by face value, have no number.
    with pytest.raises(DataError, match='no stamp duty is known for board MAIN on 2001-11-15'):
        fee_rates(Board.MAIN, date(2001, 11, 15), transfer_ppm=0)
    with pytest.raises(DataError, match='no transfer fee is known for board MAIN on 2015-07-31'):
        fee_rates(Board.MAIN, date(2015, 7, 31))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))
