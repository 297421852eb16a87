# SPDX-License-Identifier: Apache-2.0
"""`heqis data check` as a user calls it: table, examples, JSON, quarantine and exit status."""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heqis_core.commands.data import register
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.check import check_files
from heqis_core.io.files import load_bars
from heqis_core.simulator import MarketSimulator
from heqis_core.suspicion import find_spellings
from heqis_core.testing import shared_data

HEADER = 'symbol,date,open,high,low,close,volume'


def run(*words: str | Path) -> int:
    """Run `heqis data check` and return its exit status."""
    parser = argparse.ArgumentParser(prog='heqis')
    register(parser.add_subparsers())
    args = parser.parse_args(['data', 'check', *map(str, words)])
    return int(args.func(args))


def write(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([HEADER, *rows]) + '\n', encoding='utf-8')
    return path


def bars(symbol: str, days: list[int]) -> list[str]:
    """Return clean rows of January 2024."""
    return [f'{symbol},2024-01-{day:02d},10,10.2,9.9,10.1,{100 + day}' for day in days]


DAYS = [2, 3, 4, 5, 8, 9, 10]


def test_clean_data_ends_in_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / 'a.csv', *bars('A', DAYS))
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r'│ A +│ +7 +│ +7 +│ +0 +│ +│ +│ 2024-01-02 +│ 2024-01-10', out)
    assert out.endswith(
        '7 rows: 7 valid, 0 suspended (0 in disguise), 0 rejected; '
        '0 suspicions; 1 file, 0 of no use; clean\n'
    )


def test_findings_end_in_1_and_are_shown_with_file_line_field_and_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = [row.replace(',10.1,', ',1O.1,') for row in bars('A', [11, 12, 15, 16])]
    path = write(tmp_path / 'a.csv', *bars('A', DAYS), *spoilt, *bars('A', [2]))
    assert run(tmp_path, '--examples', '2') == 1
    out = capsys.readouterr().out
    assert 'duplicate 1, not_a_number 4' in out
    lines = out.split('\n')
    at = lines.index('rejected: not_a_number 4')
    assert lines[at + 1 : at + 3] == [f'A  {path}:9:close:1O.1', f'A  {path}:10:close:1O.1']
    assert not lines[at + 3].startswith('A ')
    assert out.endswith('5 rejected; 0 suspicions; 1 file, 0 of no use; findings\n')


@pytest.mark.parametrize('content', ['', 'x,y\n1,2\n', f'{HEADER}\nA,?,1,1,1,1,1\n'])
def test_what_holds_no_bar_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / 'a.csv').write_text(content)
    with pytest.raises(DataError, match=r'a\.csv|not one valid bar in 1 rows'):
        run(tmp_path)
    with pytest.raises(DataError, match='no such file or folder'):
        run(tmp_path / 'nothing')
    with pytest.raises(DataError, match='path: empty'):
        run(' ')


def test_a_zone_that_does_not_exist_is_named(tmp_path: Path) -> None:
    write(tmp_path / 'a.csv', *bars('A', DAYS))
    with pytest.raises(ConfigError, match="no time zone 'Mars'"):
        run(tmp_path, '--tz', 'Mars')


def test_json_holds_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / 'data/a.csv', *bars('A', DAYS), 'A,2024-01-11,10,10.2,9.9,-1,5')
    write(tmp_path / 'data/b.csv', *bars('B', DAYS[:2]), *bars('B', DAYS[3:]))
    (tmp_path / 'data/c.csv').write_text('x\n')
    assert run(tmp_path / 'data', '--json', tmp_path / 'report.json') == 1
    found: dict[str, Any] = json.loads((tmp_path / 'report.json').read_text())
    assert (found['clean'], found['rows'], found['valid']) == (False, 14, 13)
    assert found['rejected'] == {'not_positive': 1}
    assert found['rejected_rows'] == [
        {
            'file': str(tmp_path / 'data/a.csv'), 'line': 9, 'symbol': 'A',
            'reason': 'not_positive', 'field': 'close', 'value': '-1.0', 'note': '',
        }
    ]  # fmt: skip
    assert [one['symbol'] for one in found['symbols']] == ['A', 'B']
    assert found['symbols'][1]['missing'] == ['2024-01-04']
    assert [bool(one['error']) for one in found['files']] == [False, False, True]
    assert 'no bars' in found['files'][2]['error']
    assert 'line 1: no bars' in capsys.readouterr().out


def test_quarantine_is_the_one_of_load_bars(tmp_path: Path) -> None:
    path = write(
        tmp_path / 'data/a.csv', *bars('A', DAYS), *bars('A', [2]), 'A,x,1,1,1,1,1', 'A,1'
    )
    assert run(path, '--quarantine', tmp_path / 'q1.csv') == 1
    load_bars(path, quarantine=tmp_path / 'q2.csv')
    with (tmp_path / 'q1.csv').open(newline='') as file:
        rows = list(csv.reader(file))
    assert [row[3] for row in rows[1:]] == ['duplicate', 'unknown_date_format', 'wrong_cell_count']
    assert (tmp_path / 'q1.csv').read_bytes() == (tmp_path / 'q2.csv').read_bytes()


@pytest.mark.parametrize('option', ['--json', '--quarantine'])
def test_files_that_cannot_be_written_are_named(tmp_path: Path, option: str) -> None:
    write(tmp_path / 'data/a.csv', *bars('A', DAYS))
    (tmp_path / 'folder').mkdir()
    with pytest.raises(DataError, match='folder: the file cannot be written'):
        run(tmp_path / 'data', option, tmp_path / 'folder')


@pytest.mark.parametrize('option', ['--json', '--quarantine'])
def test_files_are_not_written_where_no_folder_is_nor_among_the_bars(
    tmp_path: Path, option: str
) -> None:
    path = write(tmp_path / 'data/a.csv', *bars('A', DAYS), 'A,x')
    write(tmp_path / 'data/symbol=B/b.csv', *bars('B', DAYS))
    before = sorted(tmp_path.rglob('*'))
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=f'{option} .*no folder .*nope; create it'):
        run(tmp_path / 'data', option, tmp_path / 'nope/x')
    for data, out in (
        (path, path), (tmp_path / 'data', path), (tmp_path / 'data', path.parent / 'new.csv.gz'),
        (tmp_path / 'data', path.parent / 'symbol=B/new.parquet'),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f'{option} .*would stand among the bars of'):
            run(data, option, out)
    assert sorted(tmp_path.rglob('*')) == before
    assert path.read_bytes() == content
    # What is never read as bars may stand there.
    assert run(tmp_path / 'data', option, tmp_path / 'data/found.txt') == 1
    assert (tmp_path / 'data/found.txt').is_file()


@pytest.mark.parametrize('text', ['-3', 'x', '1.5', ''])
def test_a_number_of_examples_below_zero_is_none(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, '--examples', text)
    assert ended.value.code == 2
    assert f"'{text}' is no number of rows; expected 0 or more" in capsys.readouterr().err


def test_a_conflicting_duplicate_names_what_it_differs_from_and_in_which_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / 'data/a.csv', *bars('A', DAYS), *bars('A', [3]))
    b = write(tmp_path / 'data/b.csv', 'A,2024-01-03,10,10.3,9.9,10.2,103', *bars('B', DAYS))
    assert run(tmp_path / 'data', '--json', tmp_path / 'r.json') == 1
    notes = {
        (row['file'], row['line']): row['note']
        for row in json.loads((tmp_path / 'r.json').read_text())['rejected_rows']
    }
    assert notes == {
        (str(a), 3): f'differs from {b}:2 in high, close',
        (str(a), 9): f'differs from {b}:2 in high, close',
        (str(b), 2): f'differs from {a}:3 in high, close',
    }
    out = capsys.readouterr().out
    assert f'A  {b}:2:date:2024-01-03  (differs from {a}:3 in high, close)\n' in out


def test_an_amount_and_none_differ_in_amount(tmp_path: Path) -> None:
    row = '2024-01-02,10,10.2,9.9,10.1'
    path, other = tmp_path / 'x.csv', '2024-01-03,10,10.2,9.9,10.1,7'
    path.write_text(f'date,open,high,low,close,amount\n{row},\n{row},5\n{other}\n')
    assert check_files(path).conflicts == {
        (str(path), 2): f'differs from {path}:3 in amount',
        (str(path), 3): f'differs from {path}:2 in amount',
    }


def test_what_is_deeper_or_packed_is_hinted_at(tmp_path: Path) -> None:
    write(tmp_path / 'data/deep/a.csv', *bars('A', DAYS))
    with pytest.raises(DataError, match=r'folders below it are not searched.*such as deep') as one:
        run(tmp_path / 'data')
    assert 'archives' not in str(one.value)
    (tmp_path / 'data/A.ZIP').write_bytes(b'PK')
    with pytest.raises(DataError, match=r'archives are not read: unpack A\.ZIP; folders below'):
        run(tmp_path / 'data')
    with pytest.raises(DataError, match=r'unknown kind of file; .*: unpack A\.ZIP$'):
        run(tmp_path / 'data/A.ZIP')


def test_a_day_is_missing_where_most_others_have_it(tmp_path: Path) -> None:
    write(tmp_path / 'a.csv', *bars('A', DAYS))
    write(tmp_path / 'b.csv', *bars('B', [2, 3, 5, 8, 9]))
    write(tmp_path / 'c.csv', *bars('C', [3, 4, 8, 10]))
    missing = {one.symbol: one.missing for one in check_files(tmp_path).symbols}
    # Of C's days, 5 is witnessed by both others, 9 too; before its first day it lacks nothing.
    assert missing == {'A': [], 'B': ['2024-01-04'], 'C': ['2024-01-05', '2024-01-09']}


def test_a_refused_row_is_no_missing_day_and_no_ex_date_follows_it(tmp_path: Path) -> None:
    header = 'ts_code,trade_date,open,high,low,close,pre_close\n'
    rows = [
        '600519.SH,20240102,10,10.2,9.9,10.1,10',
        '600519.SH,20240103,10,10.5,9.9,0,10.1',
        '600519.SH,20240104,10.4,10.6,10.3,10.5,10.4',
        '600519.SH,20240105,10.4,10.6,10.2,10.3,10.2',
    ]
    (tmp_path / 'a.csv').write_text(header + '\n'.join(rows) + '\n')
    found = check_files(tmp_path).symbols[0]
    assert found.missing == []
    assert [(one.date, one.kind) for one in found.actions] == [('2024-01-05', 'cash')]


def test_a_store_that_is_partitioned_by_symbol_is_read(tmp_path: Path) -> None:
    when = pd.to_datetime(['2024-01-02 07:00', '2024-01-03 07:00']).tz_localize('UTC')
    for symbol in ('000001.SZ', '600519.SH'):
        frame = pd.DataFrame(
            {
                'event_time': when, 'trade_date': ['20240102', '20240103'],
                'open': 10.0, 'high': 10.2, 'low': 9.9, 'close': [10.1, None],
                'volume': [1200.0, None], 'suspended': [False, True],
            }
        )  # fmt: skip
        folder = tmp_path / f'symbol={symbol}'
        folder.mkdir()
        frame.to_parquet(folder / 'bars.parquet')
    table, report = load_bars(tmp_path)
    assert table.symbols == ('000001.SZ', '600519.SH')
    assert (report.valid, report.suspended, report.counts) == (2, 2, {})
    assert table.values[0, 4].tolist() == [1200.0, 1200.0]
    assert [str(time) for time in table.event_time_ns.astype('datetime64[ns]')] == [
        '2024-01-02T07:00:00.000000000', '2024-01-03T07:00:00.000000000',
    ]  # fmt: skip
    assert check_files(tmp_path).clean


def test_a_simulated_market_is_clean(tmp_path: Path) -> None:
    simulator = MarketSimulator(12, 5)
    rows = []
    for _ in range(120):
        block = simulator.next_block()
        day = str(np.datetime64(block.event_time_ns, 'ns').astype('datetime64[D]'))
        for symbol, bar in zip(block.symbols, block.values.T.tolist(), strict=True):
            if np.isfinite(bar[0]):
                rows.append(','.join([symbol, day, *map(repr, bar)]))
    (tmp_path / 'a.csv').write_text('\n'.join([f'{HEADER},amount', *rows]) + '\n')
    found = check_files(tmp_path)
    assert found.clean, found.suspects[:5]
    assert found.report.valid == len(rows) > 1000


def test_spellings_of_one_symbol_are_grouped() -> None:
    names = ['600519.SH', 'sh.600519', '600519', 'SSE.600519', '000001.SZ', '000001.SH', 'x', 'X ']
    groups = {frozenset(group) for group in find_spellings(names)}
    assert groups == {
        frozenset(['600519.SH', 'sh.600519', '600519', 'SSE.600519']), frozenset(['x', 'X ']),
    }  # fmt: skip


def test_real_raw_dailies_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared_data() / 'ashare_daily/tushare_raw_2020_2024') == 0
    assert '2024-12-31' in capsys.readouterr().out


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run('--help')
    assert ended.value.code == 0
    assert 'heqis data check prices/ --json report.json' in capsys.readouterr().out
