# SPDX-License-Identifier: Apache-2.0
"""`heqis data adjust` as a user calls it: what is written, what is refused, what is said."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from heqis_core.commands.data import register
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.check import check_files
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data

HEADER = 'symbol,date,open,high,low,close,volume'
RAW = 'ashare_daily/tushare_raw_2020_2024'
STEP = 20.25 / 19.25
"""Of the stock that is made up, on its ex-date."""
TECHIN = 'ashare_daily/tushare_factor_2023_2025/002594.SZ_techin.csv'


def run(*words: str | Path) -> int:
    """Run `heqis data adjust` and return its exit status."""
    parser = argparse.ArgumentParser(prog='heqis')
    register(parser.add_subparsers())
    args = parser.parse_args(['data', 'adjust', *map(str, words)])
    return int(args.func(args))


def write(path: Path, *rows: str, more: str = '') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([HEADER + more, *rows]) + '\n', encoding='utf-8')
    return path


def adjusted(path: Path) -> dict[str, dict[str, float]]:
    """Return close and factor by day of what `adjust` has written."""
    with path.open(newline='') as file:
        return {
            row['date'][:10]: {name: float(row[name]) for name in ('close', 'adj_factor')}
            for row in csv.DictReader(file)
        }


def made_up(n: int) -> list[list[str]]:
    """Return rows of a stock that pays 1 on its sixth day: cells, then pre_close, adj_factor."""
    rows, last, day = [], 20.0, date(2024, 1, 1)
    for at in range(n):
        reference = last - (1.0 if at == 5 else 0.0)
        last = round(reference + (-1) ** at * 0.25, 2)
        low, high = min(reference, last) - 0.1, max(reference, last) + 0.1
        bar = [f'{reference:.2f}', f'{high:.2f}', f'{low:.2f}', f'{last:.2f}', f'{1000 + at}']
        factor = '1.0' if at < 5 else f'{STEP:.4f}'
        rows.append(['600519.SH', str(day + timedelta(at)), *bar, f'{reference:.2f}', factor])
    return rows


def as_file(path: Path, rows: list[list[str]], *, factor: bool) -> Path:
    """Write rows of `made_up`, with the factor or with the reference price alone."""
    lines = [','.join(row if factor else row[:-1]) for row in rows]
    return write(path, *lines, more=',pre_close' + ',adj_factor' * factor)


def test_adjust_writes_hfq_that_never_changes_and_qfq_as_it_stood(tmp_path: Path) -> None:
    path = shared_data() / TECHIN
    out = tmp_path / 'a.csv'
    assert run(path, '--hfq', '--out', out) == 0
    backward = adjusted(out)
    assert len(backward) == 500
    # 111.42 on the first day after three shares for one, 337.00 before it.
    assert backward['2025-07-29']['close'] == pytest.approx(111.42 * 3.1499, rel=2e-4)
    assert backward['2025-07-28']['close'] == pytest.approx(337.0 * 1.0376, rel=2e-4)
    assert run(path, '--qfq', '2025-07-28', '--out', out) == 0
    before = adjusted(out)
    assert max(before) == '2025-07-28'
    assert before['2025-07-28']['close'] == 337.0
    assert run(path, '--qfq', '2025-07-29', '--out', out) == 0
    after = adjusted(out)
    assert after['2025-07-29']['close'] == 111.42
    assert after['2025-07-28']['close'] == pytest.approx(111.01, rel=1e-4)


def test_adjust_needs_a_factor_or_a_reference_price_and_a_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / 'data', tmp_path / 'o.csv'
    as_file(data / 'a.csv', made_up(4), factor=True)
    # The column stands in another file of the folder, or is empty: nothing to adjust B by.
    write(data / 'b.csv', 'B,2024-01-02,10,10.2,9.9,10.1,100')
    write(data / 'c.csv', 'C,2024-01-02,10,10.2,9.9,10.1,100,,0', more=',pre_close,adj_factor')
    for force in ((), ('--force',)):
        with pytest.raises(DataError, match='B, C: nothing to adjust by: no adj_factor above'):
            run(data, '--hfq', '--out', out, *force)
    assert not out.exists()
    with pytest.raises(SystemExit):
        run(data, '--qfq', 'June', '--out', out)
    assert "'June' is no day; expected such as 2024-06-28" in capsys.readouterr().err
    (data / 'b.csv').write_text('x\n')
    with pytest.raises(DataError, match=r'b\.csv: line 1: no bars'):
        run(data, '--hfq', '--out', out)


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('joinquant_qfq_limits_2005_2023', ('000001.XSHE, 000004.XSHE', 'steps on 14 days')),
        ('vnpy_tushare_qfq_2014_2020', ('000001.SZ, 600000.SH', 'rows are on no tick')),
        ('tushare_factor_2023_2025/600519.SH_d.csv', ('600519.SH', 'rows are on no tick')),
    ],
)
def test_prices_that_look_adjusted_are_refused_and_named_unless_forced(
    tmp_path: Path, name: str, why: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = shared_data() / 'ashare_daily' / name, tmp_path / 'a.csv'
    with pytest.raises(DataError, match=': the prices look adjusted already; of .*'.join(why)):
        run(path, '--hfq', '--out', out)
    assert not out.exists()
    assert run(path, '--hfq', '--out', out, '--force') == 0
    assert f'{out}: ' in capsys.readouterr().out


def test_parquet_and_csv_hold_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data() / RAW
    raw, _ = load_bars(path)
    rows = 3 * int((raw.event_time_ns < np.datetime64('2024-06-29', 'ns').astype(np.int64)).sum())
    for name in ('csv/a.csv', 'parquet/a.PARQUET'):
        (tmp_path / name).parent.mkdir()
        assert run(path, '--qfq', '2024-06-28', '--out', tmp_path / name) == 0
        assert capsys.readouterr().out == (
            f'{tmp_path / name}: {rows:,} rows of 3 symbols\n'
            f'{path}: 3,636 rows: 3,636 valid, 0 suspended, 0 rejected\n'
        )
    text, _ = load_bars(tmp_path / 'csv', channels=['adj_factor'])
    binary, _ = load_bars(tmp_path / 'parquet', channels=['adj_factor'])
    assert text.symbols == binary.symbols
    assert (text.event_time_ns == binary.event_time_ns).all()
    np.testing.assert_array_equal(text.values, binary.values)
    assert text.extra is not None
    np.testing.assert_array_equal(text.extra, binary.extra)
    # The last day is raw, and when a bar closes is as before.
    np.testing.assert_array_equal(text.values[-1], raw.values[len(text) - 1])
    assert (text.event_time_ns == raw.event_time_ns[: len(text)]).all()


def test_a_volume_that_is_not_known_is_empty_in_csv_and_parquet(tmp_path: Path) -> None:
    rows = [[*row[:6], '', *row[7:]] for row in made_up(4)]
    path = as_file(tmp_path / 'data/a.csv', rows, factor=True)
    for name in ('a.csv', 'a.parquet'):
        assert run(path, '--hfq', '--out', tmp_path / name) == 0
        assert not load_bars(tmp_path / name)[0].has_volume


def test_bad_places_to_write_to_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = as_file(tmp_path / 'data/a.csv', made_up(4), factor=True)
    content = path.read_bytes()
    for out, named in (
        ('a.txt', 'a.txt: expected a name that ends in .csv or .parquet'),
        ('a.csv.gz', 'a.csv.gz: expected a name that ends in .csv or .parquet'),
        ('data/b.csv', 'would stand among the bars of'),
        ('data/a.csv', 'would stand among the bars of'),
        ('data/symbol=X/b.parquet', 'would stand among the bars of'),
        ('nope/a.csv', 'no folder .*nope; create it, or name another'),
    ):
        with pytest.raises(ConfigError, match=f'--out .*{named}'):
            run(path.parent, '--hfq', '--out', tmp_path / out)
    assert path.read_bytes() == content
    assert sorted(tmp_path.rglob('*')) == [path.parent, path]


def test_a_day_before_the_data_is_refused_and_one_after_them_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_file(tmp_path / 'data/a.csv', made_up(8), factor=True)
    out = tmp_path / 'a.csv'
    with pytest.raises(DataError, match='begins on 2024-01-01 and ends on 2024-01-08; name a day'):
        run(path, '--qfq', '2023-12-31', '--out', out)
    assert not out.exists()
    assert run(path, '--qfq', '2024-01-08', '--out', out) == 0
    assert capsys.readouterr().err == ''
    last = out.read_bytes()
    assert run(path, '--qfq', '2024-01-09', '--out', out) == 0
    assert f'--qfq 2024-01-09: {path} ends on 2024-01-08' in capsys.readouterr().err
    assert out.read_bytes() == last


def test_symbols_without_a_row_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made_up(8)
    later = [['B.SZ', *row[1:]] for row in rows[4:]]
    spoilt = [['C.SZ', rows[0][1], '0', *rows[0][3:]]]
    path = as_file(tmp_path / 'data/a.csv', rows + later + spoilt, factor=True)
    assert run(path, '--qfq', '2024-01-04', '--out', tmp_path / 'a.csv') == 0
    said = capsys.readouterr()
    assert said.err == 'no row of B.SZ, C.SZ\n'
    assert said.out.startswith(f'{tmp_path}/a.csv: 4 rows of 1 symbol\n')


SPOILT: dict[str, Callable[[list[str]], list[str]]] = {
    'a price of zero': lambda row: [*row[:5], '0', *row[6:]],
    'a cell too few': lambda row: row[:-1],
    'no symbol': lambda row: ['', *row[1:]],
    'a date of no form': lambda row: [row[0], 'Jan 3', *row[2:]],
}


@pytest.mark.parametrize('newest_first', [False, True])
@pytest.mark.parametrize('spoil', SPOILT.values(), ids=list(SPOILT))
def test_a_gap_of_rejected_rows_is_no_ex_date_and_is_said(
    tmp_path: Path,
    spoil: Callable[[list[str]], list[str]],
    newest_first: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = made_up(10)
    out = tmp_path / 'a.csv'
    assert run(as_file(tmp_path / 'whole/a.csv', rows, factor=False), '--hfq', '--out', out) == 0
    whole = adjusted(out)
    assert [one['adj_factor'] for one in whole.values()] == pytest.approx([1.0] * 5 + [STEP] * 5)
    capsys.readouterr()
    rows[2] = [*spoil(rows[2][:-1]), '']
    path = as_file(tmp_path / 'spoilt/a.csv', rows[::-1] if newest_first else rows, factor=False)
    assert run(path, '--hfq', '--out', out) == 0
    said = capsys.readouterr()
    assert re.search(r': 10 rows: 9 valid, 0 suspended, 1 rejected \(\w+ 1\)\n$', said.out)
    assert said.err == (
        '1 row without a factor, and without a reference price that can be held against the row '
        'before: 600519.SH 2024-01-04; taken for no ex-dates\n'
    )
    del whole['2024-01-03']
    assert adjusted(out) == whole
    # The check says the same of the day.
    assert [one.date for one in check_files(path).symbols[0].actions] == ['2024-01-06']


def test_the_factor_tells_what_a_rejected_row_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made_up(10)
    rows[4][5] = rows[5][5] = '0'
    path, out = as_file(tmp_path / 'data/a.csv', rows, factor=True), tmp_path / 'a.csv'
    assert run(path, '--hfq', '--out', out) == 0
    assert capsys.readouterr().err == ''
    factors = [one['adj_factor'] for one in adjusted(out).values()]
    assert factors == pytest.approx([1.0] * 4 + [STEP] * 4, abs=1e-4)


def test_the_reference_price_of_a_day_says_nothing_of_its_minutes(tmp_path: Path) -> None:
    rows = [
        f'600519.SH,2024-01-02 10:{at:02d},{10 + at / 10},{10.2 + at / 10},{9.9 + at / 10},'
        f'{10.1 + at / 10},{100 + at},10'
        for at in range(8)
    ]
    path, out = write(tmp_path / 'data/a.csv', *rows, more=',pre_close'), tmp_path / 'a.csv'
    with pytest.raises(DataError, match=r'600519\.SH: nothing to adjust by: .*pre_close of a day'):
        run(path, '--hfq', '--out', out)
    write(path, *[f'{row},2.5' for row in rows], more=',pre_close,adj_factor')
    assert run(path, '--hfq', '--out', out) == 0
    with out.open(newline='') as file:
        assert {row['adj_factor'] for row in csv.DictReader(file)} == {'2.5'}


def test_an_index_has_no_ex_dates_whatever_stands_beside_it(tmp_path: Path) -> None:
    rows = [['000300.SH', *row[1:]] for row in made_up(8)]
    path, out = as_file(tmp_path / 'data/a.csv', rows, factor=False), tmp_path / 'a.csv'
    assert run(path, '--hfq', '--out', out) == 0
    assert {one['adj_factor'] for one in adjusted(out).values()} == {1.0}
