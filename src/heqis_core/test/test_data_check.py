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
from heqis_core.io.check import check_files, find_spellings
from heqis_core.io.files import load_bars
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import shared_data

HEADER = 'symbol,date,open,high,low,close,volume'


def run(*words: str | Path, command: str = 'check') -> int:
    """Run `heqis data check`, or another command of it, and return its exit status."""
    parser = argparse.ArgumentParser(prog='heqis')
    register(parser.add_subparsers())
    args = parser.parse_args(['data', command, *map(str, words)])
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
        '0 suspicions; 1 files, 0 of no use; clean\n'
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
    assert out.endswith('5 rejected; 0 suspicions; 1 files, 0 of no use; findings\n')


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
    assert run(tmp_path / 'data', '--json', tmp_path / 'out/report.json') == 1
    found: dict[str, Any] = json.loads((tmp_path / 'out/report.json').read_text())
    assert (found['clean'], found['rows'], found['valid']) == (False, 14, 13)
    assert found['rejected'] == {'not_positive': 1}
    assert found['rejected_rows'] == [
        {
            'file': str(tmp_path / 'data/a.csv'), 'line': 9, 'symbol': 'A',
            'reason': 'not_positive', 'field': 'close', 'value': '-1.0',
        }
    ]  # fmt: skip
    assert [one['symbol'] for one in found['symbols']] == ['A', 'B']
    assert found['symbols'][1]['missing'] == ['2024-01-04']
    assert [bool(one['error']) for one in found['files']] == [False, False, True]
    assert 'no bars' in found['files'][2]['error']
    assert 'line 1: no bars' in capsys.readouterr().out


def test_quarantine_is_the_one_of_load_bars(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.csv', *bars('A', DAYS), *bars('A', [2]), 'A,x,1,1,1,1,1', 'A,1')
    assert run(path, '--quarantine', tmp_path / 'q/check.csv') == 1
    load_bars(path, quarantine=tmp_path / 'q/load.csv')
    with (tmp_path / 'q/check.csv').open(newline='') as file:
        rows = list(csv.reader(file))
    assert [row[3] for row in rows[1:]] == ['duplicate', 'unknown_date_format', 'wrong_cell_count']
    assert (tmp_path / 'q/check.csv').read_bytes() == (tmp_path / 'q/load.csv').read_bytes()


@pytest.mark.parametrize('option', ['--json', '--quarantine'])
def test_files_that_cannot_be_written_are_named(tmp_path: Path, option: str) -> None:
    write(tmp_path / 'a.csv', *bars('A', DAYS))
    with pytest.raises(DataError, match='cannot be written'):
        run(tmp_path, option, tmp_path / 'a.csv' / 'x')


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


TECHIN = 'ashare_daily/tushare_factor_2023_2025/002594.SZ_techin.csv'


def adjusted(path: Path) -> dict[str, dict[str, float]]:
    """Return close and factor by day of what `adjust` has written."""
    with path.open(newline='') as file:
        return {
            row['date'][:10]: {name: float(row[name]) for name in ('close', 'adj_factor')}
            for row in csv.DictReader(file)
        }


def test_adjust_writes_hfq_that_never_changes_and_qfq_as_it_stood(tmp_path: Path) -> None:
    path = shared_data() / TECHIN
    out = tmp_path / 'a.csv'
    assert run(path, '--hfq', '--out', out, command='adjust') == 0
    backward = adjusted(out)
    assert len(backward) == 500
    # 111.42 on the first day after three shares for one, 337.00 before it.
    assert backward['2025-07-29']['close'] == pytest.approx(111.42 * 3.1499, rel=2e-4)
    assert backward['2025-07-28']['close'] == pytest.approx(337.0 * 1.0376, rel=2e-4)
    assert run(path, '--qfq', '2025-07-28', '--out', out, command='adjust') == 0
    before = adjusted(out)
    assert max(before) == '2025-07-28'
    assert before['2025-07-28']['close'] == 337.0
    assert run(path, '--qfq', '2025-07-29', '--out', out, command='adjust') == 0
    after = adjusted(out)
    assert after['2025-07-29']['close'] == 111.42
    assert after['2025-07-28']['close'] == pytest.approx(111.01, rel=1e-4)


def test_adjust_needs_a_factor_or_a_reference_price_and_a_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / 'a.csv', *bars('A', DAYS))
    with pytest.raises(DataError, match='A: neither adj_factor nor pre_close'):
        run(tmp_path, '--hfq', '--out', tmp_path / 'o.csv', command='adjust')
    with pytest.raises(SystemExit):
        run(tmp_path, '--qfq', 'June', '--out', tmp_path / 'o.csv', command='adjust')
    assert "'June' is no day; expected such as 2024-06-28" in capsys.readouterr().err
    (tmp_path / 'b.csv').write_text('x\n')
    with pytest.raises(DataError, match=r'b\.csv: line 1: no bars'):
        run(tmp_path, '--hfq', '--out', tmp_path / 'o.csv', command='adjust')


def test_real_raw_dailies_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared_data() / 'ashare_daily/tushare_raw_2020_2024') == 0
    assert '2024-12-31' in capsys.readouterr().out


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run('--help')
    assert ended.value.code == 0
    assert 'heqis data check prices/ --json report.json' in capsys.readouterr().out
