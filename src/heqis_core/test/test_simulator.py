# SPDX-License-Identifier: Apache-2.0
"""The simulated market: A-share rules hold every day, and a seed or a saved state says it all."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import BAR_FIELDS, BarBlock, BarStatus, BarTable
from heqis_core.clean import clean_rows
from heqis_core.errors import ConfigError, DataError
from heqis_core.market import board_of, limit_percent, limit_ticks, to_ticks
from heqis_core.simulator import MarketSimulator, default_symbols

OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(len(BAR_FIELDS))
BOARDS = ('600519.SH', '300750.SZ', '688981.SH', '920002.BJ')


def run(simulator: MarketSimulator, n: int) -> BarTable:
    """Return the next `n` days."""
    return BarTable.from_blocks([simulator.next_block() for _ in range(n)])


def same(one: BarBlock, other: BarBlock) -> bool:
    """Return whether two blocks are equal bit for bit."""
    return (
        one.event_time_ns == other.event_time_ns
        and one.symbols == other.symbols
        and one.values.tobytes() == other.values.tobytes()
        and one.status.tobytes() == other.status.tobytes()
    )


def assert_rules(table: BarTable) -> None:
    """Check each bar against the limits of its day, which follow from the last close."""
    prices = np.where(np.isnan(table.values), 0, table.values)[:, :4]
    ticks = to_ticks(prices)
    for s, symbol in enumerate(table.symbols):
        valid = table.status[:, s] == BarStatus.VALID
        assert np.isnan(table.values[~valid, :, s]).all()
        assert set(table.status[~valid, s].tolist()) <= {BarStatus.SUSPENDED}
        bars = ticks[valid, :, s]
        days = [
            datetime.fromtimestamp(ns // 10**9, timezone.utc).date()
            for ns in table.event_time_ns[valid]
        ]
        board = board_of(symbol)
        percents = np.array([limit_percent(board, day) for day in days])
        low, high = limit_ticks(bars[:-1, CLOSE], percents[1:], truncate=board.value == 'bse')
        assert (bars[1:, HIGH] <= high).all(), symbol
        assert (bars[1:, LOW] >= low).all(), symbol
        assert clean_rows(table.values[valid, :, s].T).valid.all()


@settings(max_examples=25)
@given(st.integers(0, 2**63), st.integers(1, 12), st.integers(2, 60))
def test_bars_are_on_ticks_and_within_limits(seed: int, n_symbols: int, days: int) -> None:
    assert_rules(run(MarketSimulator(n_symbols, seed), days))


def test_long_run_keeps_the_rules_on_every_board() -> None:
    table = run(MarketSimulator(BOARDS, seed=2, start_date='2022-01-03'), 3000)
    assert_rules(table)
    assert (table.status == BarStatus.SUSPENDED).any()


def test_limits_are_reached_and_follow_the_date() -> None:
    # ChiNext went from 10 % to 20 % on 2020-08-24.
    simulator = MarketSimulator([f'3000{i:02d}.SZ' for i in range(40)], 5, '2019-01-02')
    table = run(simulator, 1000)
    assert_rules(table)
    change = np.abs(table.values[1:, CLOSE] / table.values[:-1, CLOSE] - 1)
    day = np.datetime64('2020-08-24').astype('datetime64[ns]').astype(np.int64)
    before = table.event_time_ns[1:] < day
    assert 0.099 < np.nanmax(change[before]) < 0.11
    assert 0.11 < np.nanmax(change[~before]) < 0.21


def test_volume_comes_in_lots_and_amount_fits_it() -> None:
    table = run(MarketSimulator(8, seed=4), 200)
    values = table.values[:, :, :].transpose(1, 0, 2)[:, table.status == BarStatus.VALID]
    assert (values[VOLUME] >= 100).all()
    assert (values[VOLUME] % 100 == 0).all()
    average = values[AMOUNT] / values[VOLUME]
    assert (average >= values[LOW] - 0.01).all()
    assert (average <= values[HIGH] + 0.01).all()


def test_days_are_weekdays_at_the_close_in_shanghai() -> None:
    table = run(MarketSimulator(1, seed=1, start_date=date(2024, 6, 1)), 30)
    shanghai = timezone(timedelta(hours=8))
    times = [datetime.fromtimestamp(ns // 10**9, shanghai) for ns in table.event_time_ns]
    assert times[0] == datetime(2024, 6, 3, 15, tzinfo=shanghai)
    assert all(time.weekday() < 5 and (time.hour, time.minute) == (15, 0) for time in times)
    assert all(1 <= (b - a).days <= 3 for a, b in pairwise(times))


def test_returns_look_like_a_market() -> None:
    table = run(MarketSimulator(200, seed=9), 1500)
    returns = np.diff(np.log(table.values[:, CLOSE]), axis=0)
    pool = returns[np.isfinite(returns)]
    kurtosis = ((pool - pool.mean()) ** 4).mean() / pool.var() ** 2
    assert 0.01 < pool.std() < 0.04
    assert kurtosis > 5, 'tails are heavier than a normal distribution has'
    size = np.nanmean(np.abs(returns), axis=1)
    assert np.corrcoef(size[:-1], size[1:])[0, 1] > 0.2, 'volatility comes in regimes'
    market = np.nanmean(returns, axis=1)
    assert market.std() > 3 * pool.std() / np.sqrt(200), 'symbols share a factor'
    suspended = (table.status == BarStatus.SUSPENDED).mean()
    assert 0.005 < suspended < 0.02


def test_equal_seeds_are_equal_and_others_differ() -> None:
    first, second = MarketSimulator(5, seed=3), MarketSimulator(5, seed=3)
    assert all(same(first.next_block(), second.next_block()) for _ in range(50))
    other = run(MarketSimulator(5, seed=4), 50)
    assert (other.values != run(MarketSimulator(5, seed=3), 50).values).any()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 40))
def test_a_saved_state_goes_on_bit_for_bit(seed: int, n_symbols: int, days: int) -> None:
    first = MarketSimulator(n_symbols, seed)
    for _ in range(days):
        first.next_block()
    text = json.dumps(first.save())
    second = MarketSimulator(n_symbols, seed + 1, start_date='2023-05-01')
    second.load(json.loads(text))
    assert json.dumps(second.save()) == text
    assert all(same(first.next_block(), second.next_block()) for _ in range(10))


def test_a_state_saved_during_suspensions_goes_on_bit_for_bit() -> None:
    first, second = MarketSimulator(40, seed=6), MarketSimulator(40, seed=7)
    while (first.next_block().status == BarStatus.SUSPENDED).sum() < 2:
        pass
    # One more day: what the suspended symbols missed of the market must be in the state too.
    assert (first.next_block().status == BarStatus.SUSPENDED).any()
    second.load(json.loads(json.dumps(first.save())))
    assert all(same(first.next_block(), second.next_block()) for _ in range(60))


def test_state_holds_no_number_beyond_64_bits() -> None:
    def numbers(value: object) -> list[int]:
        if isinstance(value, dict):
            return [n for part in value.values() for n in numbers(part)]
        if isinstance(value, list):
            return [n for part in value for n in numbers(part)]
        return [value] if isinstance(value, int) else []

    assert all(abs(n) < 2**63 for n in numbers(MarketSimulator(3, seed=2**60).save()))


def test_symbols_share_one_tuple() -> None:
    simulator = MarketSimulator(['b', 'a'], seed=0)
    assert simulator.symbols == ('b', 'a')
    assert simulator.next_block().symbols is simulator.symbols


@pytest.mark.parametrize('n', [1, 8, 10_000])
def test_made_up_symbols_are_sorted_and_differ(n: int) -> None:
    names = default_symbols(n)
    assert len(set(names)) == n
    assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        ({'symbols': 0}, 'symbols: 0 symbols'),
        ({'symbols': 'A'}, "symbols: 'A' is one text"),
        ({'symbols': []}, 'at least one name'),
        ({'symbols': ['A', 'A']}, 'each of them once'),
        ({'seed': -1}, 'seed: -1'),
        ({'seed': 1.5}, 'seed: 1.5'),
        ({'tick': 0.0}, 'tick: 0.0'),
        ({'start_date': '2024-13-01'}, "start_date: '2024-13-01' is no date"),
        ({'start_date': '1990-01-01'}, 'expected 1997-01-01 or later'),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MarketSimulator(**{'symbols': 2, 'seed': 1, **arguments})  # type: ignore[arg-type]


def test_state_of_another_simulator_or_a_damaged_one_is_refused() -> None:
    simulator = MarketSimulator(2, seed=1)
    before = json.dumps(simulator.save())
    with pytest.raises(DataError, match='this simulator has'):
        simulator.load(MarketSimulator(3, seed=1).save())
    for change in ({'random': {'state': 'x', 'inc': '1'}}, {'pre_close': [1]}, {'day': 'never'}):
        with pytest.raises(DataError, match='damaged'):
            simulator.load({**simulator.save(), **change})
    assert json.dumps(simulator.save()) == before
