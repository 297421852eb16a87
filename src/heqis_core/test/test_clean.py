# SPDX-License-Identifier: Apache-2.0
"""The rules of cleaning: no broken bar gets through, and every refusal has one reason."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.bars import BAR_FIELDS, BarBlock, BarStatus
from heqis_core.clean import (
    CleaningReport,
    Fault,
    RejectedRow,
    clean_block,
    clean_rows,
    find_disguised,
    find_duplicates,
    no_limit,
    text_fault,
)

NAN, INF = float('nan'), float('inf')
GOOD = [10.0, 11.0, 9.0, 10.5, 1000.0, 10500.0]

ODD = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, -1.0, 5e-324, 1.0, 2.0, 3.0, 1e300])
ROWS = hnp.arrays(np.float64, st.tuples(st.just(6), st.integers(0, 30)), elements=ODD)


def row(**cells: float) -> npt.NDArray[np.float64]:
    """Return one good row, float64 (6, 1), with some of its cells changed."""
    values = np.array(GOOD)
    for name, value in cells.items():
        values[BAR_FIELDS.index(name)] = value
    return values[:, None]


@pytest.mark.parametrize(
    ('cells', 'reason', 'field'),
    [
        ({'open': INF}, 'not_a_number', 'open'),
        ({'amount': -INF}, 'not_a_number', 'amount'),
        ({'close': NAN}, 'missing_price', 'close'),
        ({'low': 0.0}, 'not_positive', 'low'),
        ({'open': -3.0}, 'not_positive', 'open'),
        ({'high': 8.0, 'open': 8.5, 'close': 8.5}, 'high_below_low', 'high'),
        ({'open': 11.01}, 'outside_range', 'open'),
        ({'close': 8.99}, 'outside_range', 'close'),
        ({'volume': -1.0}, 'negative_volume', 'volume'),
        ({'amount': -1.0}, 'negative_amount', 'amount'),
        # the first broken rule is the reason
        ({'open': NAN, 'low': -1.0}, 'missing_price', 'open'),
    ],
)
def test_each_broken_rule_has_its_reason_and_field(
    cells: dict[str, float], reason: str, field: str
) -> None:
    verdict = clean_rows(row(**cells))
    assert not verdict.valid[0]
    assert Fault(int(verdict.fault[0])).label == reason
    assert BAR_FIELDS[verdict.field[0]] == field


@pytest.mark.parametrize(
    'cells',
    [
        {},
        {'volume': NAN},
        {'amount': NAN},
        {'volume': 0.0, 'amount': 0.0},
        {'open': 11.0, 'close': 9.0},
    ],
)
def test_good_rows_pass(cells: dict[str, float]) -> None:
    assert clean_rows(row(**cells)).valid.all()


def test_volume_is_needed_where_it_is_asked_for() -> None:
    verdict = clean_rows(row(volume=NAN), needs_volume=np.array([True]))
    assert Fault(int(verdict.fault[0])) is Fault.MISSING_VOLUME


def test_text_counts_as_not_a_number_and_not_as_missing() -> None:
    text = np.zeros((6, 1), np.bool_)
    text[BAR_FIELDS.index('high')] = True
    verdict = clean_rows(row(high=NAN), text=text)
    assert Fault(int(verdict.fault[0])) is Fault.NOT_A_NUMBER
    assert BAR_FIELDS[verdict.field[0]] == 'high'


@given(ROWS)
def test_no_invalid_bar_ever_gets_through(values: npt.NDArray[np.float64]) -> None:
    verdict = clean_rows(values)
    assert (verdict.valid == (verdict.fault == 0)).all()
    for (opened, high, low, close, volume, amount), valid in zip(
        values.T.tolist(), verdict.valid, strict=True
    ):
        prices_fit = 0 < low <= opened <= high < INF and low <= close <= high
        extras_fit = all(np.isnan(extra) or 0 <= extra < INF for extra in (volume, amount))
        assert valid == (prices_fit and extras_fit)


@given(ROWS, st.randoms(use_true_random=False))
def test_rows_are_judged_each_on_its_own(values: npt.NDArray[np.float64], random: Random) -> None:
    order = list(range(values.shape[1]))
    random.shuffle(order)
    assert (clean_rows(values).fault[order] == clean_rows(values[:, order]).fault).all()


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('1,234.5', 'comma_in_number'),
        ('-10,5', 'comma_in_number'),
        ('1.234,5', 'comma_in_number'),
        ('１２.５', 'full_width_digits'),
        ('٣', 'full_width_digits'),
        ('1.2亿', 'unit_in_number'),
        ('10.5元', 'unit_in_number'),
        ('¥10', 'unit_in_number'),
        ('-3.5%', 'unit_in_number'),
        ('12K', 'unit_in_number'),
        ('#DIV/0!', 'spreadsheet_error'),
        ('#ref!', 'spreadsheet_error'),
        ('#####', 'spreadsheet_error'),
        ('1_000', 'not_a_number'),
        ('ten', 'not_a_number'),
        ('1O.5', 'not_a_number'),
        ('', 'not_a_number'),
    ],
)
def test_text_in_the_place_of_a_number_has_a_name(text: str, reason: str) -> None:
    assert text_fault(text).label == reason


def test_sentinels_of_limit_prices_mean_no_limit() -> None:
    up = np.array([99999.99, 100000.0, 999999.999, 11.0, NAN, 0.0, 11.0, 99999.98])
    down = np.array([0.0, 0.0, 0.01, 9.0, 9.0, 9.0, NAN, 0.01])
    assert no_limit(up, down).tolist() == [True, True, True, False, True, True, True, False]


HOUR_NS = 3_600_000_000_000


def disguised(
    closes: list[float], volumes: list[float], *, hours: int = 24, paused: int = -1, **cells: float
) -> list[int]:
    """Return the rows of one symbol that are found; where there is no volume they are flat."""
    n = len(closes)
    values = np.array([closes, closes, closes, closes, volumes, [NAN] * n], np.float64)
    traded = values[4] != 0
    values[1, traded] += 0.1
    values[2, traded] -= 0.1
    for name, value in cells.items():
        values[BAR_FIELDS.index(name), ~traded] = value
    flags = np.arange(n) == paused
    fault = clean_rows(values).fault
    when = np.arange(n) * hours * HOUR_NS
    order = np.random.default_rng(3).permutation(n)
    found = np.zeros(n, np.bool_)
    found[order] = find_disguised(
        when[order], np.zeros(n, np.int64), values[:, order], fault[order], flags[order]
    )
    return np.flatnonzero(found).tolist()


def test_days_without_volume_at_the_last_close_are_suspensions() -> None:
    assert disguised([10, 10, 10, 11, 11], [5, 0, 0, 7, 0]) == [1, 2, 4]


def test_vendors_write_zeros_or_nothing_for_what_was_not_traded() -> None:
    assert disguised([10, 10, 11], [5, 0, 7], open=0, high=0, low=0) == [1]
    assert disguised([10, 10, 11], [5, 0, 7], open=NAN, high=NAN, low=NAN) == [1]
    assert disguised([10, 10, 11], [5, 0, 7], open=0, high=0, low=9) == []
    assert disguised([10, 10, 11], [5, 0, 7], open=0, high=0, low=-1) == []


def test_a_first_day_or_one_at_another_price_is_no_suspension() -> None:
    assert disguised([10, 11, 12], [0, 7, 0]) == []


def test_a_minute_without_a_trade_is_no_suspension() -> None:
    assert disguised([10, 10, 10], [5, 0, 5], hours=1) == []


def test_a_suspension_that_says_so_is_not_found_again_and_moves_no_close() -> None:
    assert disguised([10, 99, 10], [5, 0, 0], paused=1) == [2]


def test_suspensions_of_one_symbol_do_not_look_at_another() -> None:
    values = np.repeat(row(), 3, axis=1)
    values[:4, 1:] = 10.5
    values[4, 1:] = 0
    symbol, when = np.array([0, 1, 0]), np.array([0, 24, 48]) * HOUR_NS
    fault = clean_rows(values).fault
    found = find_disguised(when, symbol, values, fault, np.zeros(3, np.bool_))
    assert found.tolist() == [False, False, True]


def test_the_same_row_again_is_a_duplicate_and_the_first_stays() -> None:
    values = np.repeat(row(amount=NAN), 3, axis=1)
    fault = find_duplicates(np.array([7, 3, 7]), values)
    assert fault.tolist() == [0, 0, Fault.DUPLICATE]


def test_of_rows_that_differ_none_stays() -> None:
    values = np.repeat(row(), 4, axis=1)
    values[BAR_FIELDS.index('close'), 2] = 10.6
    fault = find_duplicates(np.array([7, 3, 7, 7]), values)
    conflict = Fault.CONFLICTING_DUPLICATE
    assert fault.tolist() == [conflict, 0, conflict, conflict]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 2.0, NAN])), max_size=20),
    st.randoms(use_true_random=False),
)
def test_what_stays_of_duplicates_does_not_depend_on_the_order(
    rows: list[tuple[int, float]], random: Random
) -> None:
    def staying(some: list[tuple[int, float]]) -> list[tuple[int, str]]:
        values = np.tile(np.array([value for _, value in some]), (6, 1))
        fault = find_duplicates(np.array([key for key, _ in some], np.int64), values)
        return sorted((some[i][0], str(some[i][1])) for i in np.flatnonzero(fault == 0))

    shuffled = list(rows)
    random.shuffle(shuffled)
    kept = staying(rows)
    assert kept == staying(shuffled)
    by_key: dict[int, set[str]] = {}
    for key, value in rows:
        by_key.setdefault(key, set()).add(str(value))
    assert kept == sorted((key, *seen) for key, seen in by_key.items() if len(seen) == 1)


def block(event_ns: int, values: npt.NDArray[np.float64], status: list[int]) -> BarBlock:
    """Return a block of the symbols A, B, ..."""
    names = tuple('ABCDEF'[: len(status)])
    return BarBlock(event_ns, names, values, np.array(status, np.uint8))


def test_a_clean_block_passes_untouched() -> None:
    values = np.repeat(row(), 2, axis=1)
    values[:, 1] = NAN
    given_block = block(10, values, [BarStatus.VALID, BarStatus.SUSPENDED])
    assert clean_block(given_block) == (given_block, [])
    assert clean_block(given_block)[0] is given_block


def test_a_bad_bar_of_a_block_is_rejected_and_its_neighbour_stays() -> None:
    values = np.repeat(row(), 2, axis=1)
    values[BAR_FIELDS.index('low'), 0] = -1.0
    cleaned, rejected = clean_block(block(10, values, [1, 1]))
    assert cleaned.status.tolist() == [BarStatus.REJECTED, BarStatus.VALID]
    assert np.isnan(cleaned.values[:, 0]).all()
    assert (cleaned.values[:, 1] == GOOD).all()
    assert values[BAR_FIELDS.index('low'), 0] == -1.0
    assert rejected == [('A', 10, 'not_positive', 'low', -1.0)]


def test_a_symbol_that_has_volumes_needs_one() -> None:
    values = np.repeat(row(volume=NAN), 2, axis=1)
    cleaned, rejected = clean_block(
        block(10, values, [1, 1]), needs_volume=np.array([True, False])
    )
    assert cleaned.status.tolist() == [BarStatus.REJECTED, BarStatus.VALID]
    assert [(bar.symbol, bar.reason) for bar in rejected] == [('A', 'missing_volume')]


@given(st.lists(st.tuples(ODD, ODD, ODD), min_size=1, max_size=6))
def test_a_block_is_judged_by_the_rules_of_rows(bars: list[tuple[float, float, float]]) -> None:
    values = np.hstack([row(open=a, high=b, volume=c) for a, b, c in bars])
    cleaned, rejected = clean_block(block(10, values, [1] * len(bars)))
    assert (cleaned.status == BarStatus.VALID).tolist() == clean_rows(values).valid.tolist()
    assert len(rejected) == (cleaned.status == BarStatus.REJECTED).sum()


def test_report_counts_by_reason() -> None:
    report = CleaningReport()
    report.reject([RejectedRow('a.csv', 2, 'A', 'duplicate', 'date', '20240102')])
    report.reject([RejectedRow('b.csv', n, 'B', 'bad_date', 'date', 'x') for n in (3, 4)])
    assert report.counts == {'duplicate': 1, 'bad_date': 2}
    assert [one.line for one in report.rejected] == [2, 3, 4]
