# SPDX-License-Identifier: Apache-2.0
"""The files of a fetched store: equal bytes however they came about, and nothing half written."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('pyarrow')

from heqis_core.errors import DataError
from heqis_core.io import tushare_store as store
from heqis_core.io.tushare_endpoints import ENDPOINTS, Rejected, check_rows
from heqis_core.io.tushare_query import days_between
from heqis_core.io.tushare_store import VendorRows, add_range, merge, missing_ranges

FACTOR = ENDPOINTS['adj_factor']
DAYS = days_between('20231220', '20240131')
LAST = '20991231'


def answer(cells: dict[str, float], symbol: str = 'A.SH') -> VendorRows:
    rows = check_rows(FACTOR, FACTOR.columns, [[symbol, day, x] for day, x in cells.items()])
    return store.to_answer(FACTOR, rows)


def stored(rows: VendorRows) -> dict[str, float]:
    table = rows.table
    return dict(zip(table['trade_date'].to_pylist(), table['adj_factor'].to_pylist(), strict=True))


day_ranges = st.tuples(st.sampled_from(DAYS), st.sampled_from(DAYS)).map(lambda two: sorted(two))


@given(st.lists(day_ranges), day_ranges)
def test_missing_days_are_exactly_those_that_no_range_covers(
    ranges: list[list[str]], asked: list[str]
) -> None:
    covered: store.Ranges = ()
    for first, last in ranges:
        covered = add_range(covered, first, last)
    have = {day for first, last in ranges for day in days_between(first, last)}
    assert {day for first, last in covered for day in days_between(first, last)} == have
    gaps = [
        day for first, last in missing_ranges(covered, *asked) for day in days_between(first, last)
    ]
    assert gaps == [day for day in days_between(*asked) if day not in have]
    for (_, end), (start, _) in itertools.pairwise(covered):
        assert store.shift_day(end, 1) < start, 'touching ranges are one'


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / 'notes.txt').write_text('mine')
    with (
        pytest.raises(DataError, match=r'holds notes\.txt and nothing of a store'),
        store.lock_store(tmp_path),
    ):
        raise AssertionError('not refused')
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.parametrize('folder', ['', '_stage', '_tmp', '_vendor', 'symbol=600519.SH'])
def test_an_empty_folder_and_a_store_with_other_files_are_taken(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    if folder in ('_vendor', 'symbol=600519.SH'):
        (tmp_path / 'notes.txt').write_text('mine')
    for _ in range(2):
        with store.lock_store(tmp_path):
            assert (tmp_path / '.lock').exists()


@given(st.sets(st.sampled_from(DAYS)), st.lists(day_ranges, max_size=4))
def test_any_order_of_partial_fetches_gives_the_bytes_of_one_whole_fetch(
    tmp_path_factory: pytest.TempPathFactory,
    days: set[str],
    parts: list[list[str]],
) -> None:
    root = tmp_path_factory.mktemp('store')
    cells = {day: 1.0 + int(day) / 7 for day in days}
    whole, _ = merge(FACTOR, store.no_rows(FACTOR), answer(cells), DAYS[0], DAYS[-1], LAST)
    store.write_rows(root, FACTOR, 'A.SH', whole)
    for first, last in [*parts, [DAYS[0], DAYS[-1]]]:
        old = store.read_rows(root, FACTOR, 'B.SH')
        for start, end in missing_ranges(old.covered, first, last):
            part = {day: x for day, x in cells.items() if start <= day <= end}
            old, changes = merge(FACTOR, old, answer(part), start, end, LAST)
            assert changes == store.Changes(added=len(part))
        store.write_rows(root, FACTOR, 'B.SH', old)
    one, two = (
        store.rows_path(root, 'adj_factor', name).read_bytes() for name in ('A.SH', 'B.SH')
    )
    assert one == two


def test_rows_and_bookkeeping_come_back_as_they_were_written(tmp_path: Path) -> None:
    refused = Rejected(('A.SH', '20240103'), 'not_a_number', 'adj_factor', '["A.SH", "…"]')
    new = answer({'20240102': 1.5})._replace(rejected=(refused,))
    rows, _ = merge(FACTOR, store.no_rows(FACTOR), new, '20240101', '20240105', LAST)
    store.write_rows(tmp_path, FACTOR, 'A.SH', rows)
    back = store.read_rows(tmp_path, FACTOR, 'A.SH')
    assert back.table.equals(rows.table)
    assert (back.covered, back.rejected) == ((('20240101', '20240105'),), (refused,))
    head = store.read_head(tmp_path, FACTOR, 'A.SH')
    assert (head.covered, head.rejected, len(head.table)) == (back.covered, back.rejected, 0)
    # The row that was refused comes right in a later answer.
    mended, changes = merge(FACTOR, back, answer({'20240103': 2.0}), '20240103', '20240103', LAST)
    assert mended.rejected == ()
    assert changes == store.Changes(added=1)


def test_what_the_vendor_changed_or_removed_is_counted_and_taken_over() -> None:
    old, _ = merge(
        FACTOR, store.no_rows(FACTOR), answer({'20240102': 1.0, '20240103': 2.0, '20240104': 3.0}),
        '20240101', '20240105', LAST,
    )  # fmt: skip
    new, changes = merge(
        FACTOR, old, answer({'20240102': 1.0, '20240103': 2.5, '20240105': 4.0}),
        '20240101', '20240105', LAST,
    )  # fmt: skip
    assert changes == store.Changes(added=1, changed=1, removed=1)
    assert stored(new) == {'20240102': 1.0, '20240103': 2.5, '20240105': 4.0}


def test_days_that_the_vendor_may_still_add_to_stay_uncovered() -> None:
    rows, _ = merge(
        FACTOR,
        store.no_rows(FACTOR),
        answer({'20240104': 1.0}),
        '20240101',
        '20240105',
        '20240103',
    )
    assert rows.covered == (('20240101', '20240103'),)
    assert stored(rows) == {'20240104': 1.0}
    assert missing_ranges(rows.covered, '20240101', '20240105') == (('20240104', '20240105'),)
    none, _ = merge(FACTOR, store.no_rows(FACTOR), answer({}), '20240105', '20240105', '20240103')
    assert none.covered == ()


def test_a_second_process_is_kept_out_and_leftovers_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / '_tmp' / 'rows.parquet'
    leftover.parent.mkdir()
    leftover.write_bytes(b'half')
    with store.lock_store(tmp_path):
        assert not leftover.exists()
        with pytest.raises(DataError, match='another heqis fetch'), store.lock_store(tmp_path):
            pytest.fail('two at once')
    with store.lock_store(tmp_path):
        pass


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = merge(FACTOR, store.no_rows(FACTOR), answer({'20240102': 1.0}), *DAYS[:2], LAST)
    store.write_rows(tmp_path, FACTOR, 'A.SH', rows)
    before = store.rows_path(tmp_path, 'adj_factor', 'A.SH').read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(DataError, match='No space left'):
        store.write_rows(tmp_path, FACTOR, 'A.SH', rows._replace(covered=()))
    assert store.rows_path(tmp_path, 'adj_factor', 'A.SH').read_bytes() == before


@pytest.mark.parametrize('cut', [0, 10, 400])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    rows, _ = merge(FACTOR, store.no_rows(FACTOR), answer({'20240102': 1.0}), *DAYS[:2], LAST)
    store.write_rows(tmp_path, FACTOR, 'A.SH', rows)
    path = store.rows_path(tmp_path, 'adj_factor', 'A.SH')
    path.write_bytes(path.read_bytes()[:cut])
    for read in (store.read_rows, store.read_head):
        with pytest.raises(DataError, match=r'symbol=A\.SH'):
            read(tmp_path, FACTOR, 'A.SH')


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    store.write_parquet(
        tmp_path, store.rows_path(tmp_path, 'adj_factor', 'A.SH'), answer({}).table, {'version': 9}
    )
    with pytest.raises(DataError, match='not written by this version'):
        store.read_rows(tmp_path, FACTOR, 'A.SH')


def test_a_kept_day_serves_only_symbols_that_it_was_asked_for(tmp_path: Path) -> None:
    with store.lock_store(tmp_path):
        rows = answer({'20240102': 1.0})
        store.write_stage(tmp_path, FACTOR, '20240102', ['A.SH', 'B.SH'], rows)
        kept = store.read_stage(tmp_path, FACTOR, '20240102', ['A.SH'])
        assert kept is not None
        assert kept.table.equals(rows.table)
        assert store.read_stage(tmp_path, FACTOR, '20240102', ['A.SH', 'C.SH']) is None
        assert store.read_stage(tmp_path, FACTOR, '20240103', ['A.SH']) is None
        store.clear_stage(tmp_path, 'adj_factor')
        assert store.read_stage(tmp_path, FACTOR, '20240102', ['A.SH']) is None


@pytest.mark.parametrize('symbol', ['../x', 'a/b', '.', '..', '.SH', 'A..B', 'A\n'])
def test_a_symbol_of_the_vendor_that_is_no_code_names_no_path(tmp_path: Path, symbol: str) -> None:
    for path in (
        lambda: store.rows_path(tmp_path, 'daily', symbol),
        lambda: store.bars_path(tmp_path, symbol),
    ):
        with pytest.raises(DataError, match='no ts_code'):
            path()
