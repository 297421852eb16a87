# SPDX-License-Identifier: Apache-2.0
"""The catalogue of dirty data: each kind of defect with what must be said of it, and no more.

A defect is put into a clean made-up file (or is a real file's own); what is refused, what is
suspended and what is suspicious must come out exactly, and every row must be accounted for.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from heqis_core.bars import BarStatus
from heqis_core.clean import Fault
from heqis_core.errors import DataError
from heqis_core.io.check import DataCheck, check_files
from heqis_core.io.files import load_bars
from heqis_core.suspicion import Suspicion

Rows = list[dict[str, str]]
N = 24
AT = 10
"""The row that is hurt; the days before and after it are clean."""

VALID, SUSPENDED, REJECTED = (
    int(one) for one in (BarStatus.VALID, BarStatus.SUSPENDED, BarStatus.REJECTED)
)


class Defect(NamedTuple):
    """A way to spoil rows, then the text of the file, and what must come of it."""

    name: str
    rows: Callable[[Rows], object] = lambda rows: None
    text: Callable[[str], str | bytes] = lambda text: text
    rejected: dict[str, int] = {}  # noqa: RUF012
    suspicious: dict[str, int] = {}  # noqa: RUF012
    suspended: int = 0
    disguised: int = 0
    status: int | None = VALID
    """Of the hurt row's day; None where the day is gone."""
    n_rows: int = N


def clean_rows() -> Rows:
    """Return rows as Tushare's endpoints give them, joined; a stock, oldest first, no event."""
    rows: Rows = []
    day, last = date(2024, 1, 2), 10_000
    while len(rows) < N:
        if day.weekday() < 5:
            i = len(rows)
            close = last + (37 * i) % 101 - 50
            opened = last + (17 * i) % 21 - 10
            high, low = max(opened, close) + 9 + i, min(opened, close) - 8 - i
            lots, paid = 1_000 + 7 * i, (high + low) / 2
            prices = {'open': opened, 'high': high, 'low': low, 'close': close, 'pre_close': last}
            rows.append(
                {'ts_code': '600519.SH', 'trade_date': f'{day:%Y%m%d}'}
                | {name: f'{ticks / 100:.2f}' for name, ticks in prices.items()}
                | {'vol': f'{lots}.0', 'amount': f'{lots * paid / 1000:.3f}'}
                | {'adj_factor': '8.0204', 'paused': '0'}
                | {'up_limit': f'{last * 1.1 / 100:.2f}', 'down_limit': f'{last * 0.9 / 100:.2f}'}
            )
            last = close
        day += timedelta(days=1)
    return rows


def as_text(rows: Rows) -> str:
    lines = [','.join(rows[0]), *(','.join(row.values()) for row in rows)]
    return '\n'.join(lines) + '\n'


def put(**cells: str) -> Callable[[Rows], object]:
    """Return what writes these cells into the hurt row."""
    return lambda rows: rows[AT].update(cells)


def scale(factor: float, *names: str, whole: bool = False) -> Callable[[Rows], object]:
    """Return what multiplies cells of the hurt row, or of every row."""

    def change(rows: Rows) -> None:
        for row in rows if whole else [rows[AT]]:
            row.update({name: f'{float(row[name]) * factor:.3f}' for name in names})

    return change


def line(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return what changes the line of the hurt row."""

    def edit(text: str) -> str:
        lines = text.split('\n')
        lines[AT + 1] = change(lines[AT + 1])
        return '\n'.join(lines)

    return edit


def again(**cells: str) -> Callable[[Rows], object]:
    """Return what writes the hurt row once more, with these cells."""
    return lambda rows: rows.append(rows[AT] | cells)


def all_rows(**cells: str) -> Callable[[Rows], object]:
    return lambda rows: [row.update(cells) for row in rows]


def formats(rows: Rows) -> None:
    shapes = ('{}{}{}', '{}-{}-{}', '{}/{}/{}', '{}.{}.{}', '{}年{}月{}日', '{}-{}-{} 15:00:00')
    for index, row in enumerate(rows):
        day = row['trade_date']
        shape = shapes[index % len(shapes)]
        row['trade_date'] = shape.format(day[:4], day[4:6], day[6:])


def repeat_before(*names: str) -> Callable[[Rows], object]:
    """Return what makes the hurt row repeat cells of the one before it."""
    return lambda rows: rows[AT].update({name: rows[AT - 1][name] for name in names})


def flat(rows: Rows, **cells: str) -> None:
    """Make the hurt row a day without trading at the last close, and the next one follow it."""
    last = rows[AT - 1]['close']
    rows[AT].update(dict.fromkeys(('open', 'high', 'low', 'close'), last) | cells)
    rows[AT].update(vol='0.0', amount='0.0')
    rows[AT + 1]['pre_close'] = last


class _Lost(TypedDict):
    suspicious: dict[str, int]
    status: None


LOST = _Lost(suspicious={}, status=None)
"""The day has no row; that the next one's reference price is another close is no surprise."""

PRICES = ('open', 'high', 'low', 'close')
OHLCV = (*PRICES, 'vol', 'amount')

REJECTIONS = (
    Defect('a cell too few', text=line(lambda row: row.rsplit(',', 1)[0]),
           rejected={'wrong_cell_count': 1}, **LOST),
    Defect('a cell too many', text=line(lambda row: row + ',7'),
           rejected={'wrong_cell_count': 1}, **LOST),
    Defect('a quote that never closes', text=line(lambda row: '"' + row),
           rejected={'wrong_cell_count': 1}, **LOST),
    Defect('NUL', text=line(lambda row: row.replace('600519', '600\x00519')),
           rejected={'damaged_line': 1}, **LOST),
    Defect('a byte of no encoding',
           text=lambda text: text.encode().replace(b'20240116', b'2024\xff116'),
           rejected={'damaged_line': 1}, **LOST),
    Defect('a last line that breaks off', text=lambda text: text + '600519.SH,2024020',
           rejected={'truncated_line': 1}, suspicious={'unfinished': 1}, n_rows=N + 1),
    Defect('the header in the middle', text=lambda text: text + text.split('\n', 1)[0] + '\n',
           rejected={'repeated_header': 1}, n_rows=N + 1),
    Defect('no symbol', put(ts_code=''), rejected={'missing_symbol': 1}, **LOST),
    Defect('no date', put(trade_date=''), rejected={'missing_date': 1}, **LOST),
    Defect('a date of no form', put(trade_date='Jan 16'),
           rejected={'unknown_date_format': 1}, **LOST),
    Defect('full-width digits in a date', put(trade_date='2024-01-1６'),
           rejected={'unknown_date_format': 1}, **LOST),
    Defect('a serial day', put(trade_date='45307'),
           rejected={'spreadsheet_date': 1}, **LOST),
    Defect('day or month first', put(trade_date='01/02/2024'),
           rejected={'ambiguous_date': 1}, **LOST),
    Defect('a day that does not exist', put(trade_date='20240230'),
           rejected={'bad_date': 1}, **LOST),
    Defect('a century too early', put(trade_date='18990116'),
           rejected={'bad_date': 1}, **LOST),
    Defect('text for a price', put(close='n/a?'), rejected={'not_a_number': 1}, status=REJECTED),
    Defect('an infinity', put(high='inf'), rejected={'not_a_number': 1}, status=REJECTED),
    Defect('underscores', put(open='1_00.5'), rejected={'not_a_number': 1}, status=REJECTED),
    Defect('a thousands separator', put(vol='"1,070.0"'),
           rejected={'comma_in_number': 1}, status=REJECTED),
    Defect('a decimal comma', put(close='"100,5"'),
           rejected={'comma_in_number': 1}, status=REJECTED),
    Defect('full-width digits', put(close='１００.５'),
           rejected={'full_width_digits': 1}, status=REJECTED),
    Defect('a unit', put(amount='1.07万'), rejected={'unit_in_number': 1}, status=REJECTED),
    Defect('a currency', put(close='¥100.5'), rejected={'unit_in_number': 1}, status=REJECTED),
    Defect('an error of a spreadsheet', put(close='#REF!'),
           rejected={'spreadsheet_error': 1}, status=REJECTED),
    Defect('a column too narrow', put(close='########'),
           rejected={'spreadsheet_error': 1}, status=REJECTED),
    Defect('no close', put(close=''), rejected={'missing_price': 1}, status=REJECTED),
    Defect('a low of zero', put(low='0'), rejected={'not_positive': 1}, status=REJECTED),
    Defect('a negative price', put(open='-100.5'), rejected={'not_positive': 1}, status=REJECTED),
    Defect('high and low swapped', lambda rows: rows[AT].update(
        high=rows[AT]['low'], low=rows[AT]['high']),
           rejected={'high_below_low': 1}, status=REJECTED),
    Defect('a close above the high', put(close='104.99'),
           rejected={'outside_range': 1}, status=REJECTED),
    Defect('no volume', put(vol=''), rejected={'missing_volume': 1}, status=REJECTED),
    Defect('a negative volume', put(vol='-1'), rejected={'negative_volume': 1}, status=REJECTED),
    Defect('a negative amount', put(amount='-1'),
           rejected={'negative_amount': 1}, status=REJECTED),
    Defect('a row twice', again(), rejected={'duplicate': 1}, n_rows=N + 1),
    Defect('a day twice, and not the same', again(vol='999.0'),
           rejected={'conflicting_duplicate': 2}, status=REJECTED, n_rows=N + 1),
)  # fmt: skip

SUSPENSIONS = (
    Defect('a row that says paused', lambda rows: flat(rows, paused='1'),
           suspended=1, status=SUSPENDED),
    Defect('paused in words', lambda rows: flat(rows, paused='True'),
           suspended=1, status=SUSPENDED),
    Defect('no volume and the last close', flat, suspended=1, disguised=1, status=SUSPENDED),
    Defect('zeros but the last close', lambda rows: flat(rows, open='0', high='0', low='0'),
           suspended=1, disguised=1, status=SUSPENDED),
    Defect('blanks but the last close', lambda rows: flat(rows, open='', high='', low=''),
           suspended=1, disguised=1, status=SUSPENDED),
)  # fmt: skip

HARMLESS = (
    Defect('nothing'),
    Defect('newest first', lambda rows: rows.reverse()),
    Defect('no order at all', lambda rows: rows.sort(key=lambda row: row['vol'][-3:])),
    Defect('a date format for each row', formats),
    Defect('a byte order mark', text=lambda text: text.encode('utf-8-sig')),
    Defect('UTF-16', text=lambda text: text.encode('utf-16')),
    Defect('GBK and a Chinese header',
           text=lambda text: text.replace('trade_date', '交易日期').encode('gbk')
           .replace(b',vol,', '成交量(手)'.encode('gbk').join([b',', b',']))
           .replace(b',amount,', '成交额(千元)'.encode('gbk').join([b',', b',']))),
    Defect('semicolons', text=lambda text: text.replace(',', ';')),
    Defect('lines that end as on Windows', text=lambda text: text.replace('\n', '\r\n')),
    Defect('blank lines', text=lambda text: '\n\n' + text.replace('\n', '\n \n')),
    Defect('quotes', text=lambda text: text.replace('600519.SH', '"600519.SH"')),
    Defect('a sentinel for no limit', put(up_limit='99999.99', down_limit='0')),
    Defect('another sentinel', put(up_limit='100000', down_limit='0')),
    Defect('a third one', put(up_limit='999999.999', down_limit='0.01')),
    Defect('days as floats', lambda rows: [row.update(trade_date=row['trade_date'] + '.0')
                                           for row in rows]),
)  # fmt: skip

SUSPICIONS = (
    Defect('a slipped decimal point', scale(10, *PRICES),
           suspicious={'price_jump': 1, 'outside_limits': 1, 'units_changed': 1,
                       'reference_mismatch': 1}),
    Defect('a price beyond the limits of its row', put(up_limit='90.00'),
           suspicious={'outside_limits': 1}),
    Defect('"no limit" in the place of a price', put(high='99999.99'),
           suspicious={'placeholder_price': 1, 'price_jump': 1, 'outside_limits': 1}),
    Defect('a price on no tick', lambda rows: rows[AT].update(close=rows[AT]['close'] + '4'),
           suspicious={'off_tick': 1}),
    Defect('the day before once more', repeat_before(*OHLCV),
           suspicious={'stale_repeat': 1, 'reference_mismatch': 1}),
    Defect('a day that moves without volume', put(vol='0.0', amount='0.0'),
           suspicious={'zero_volume': 1}),
    Defect('an amount that nobody paid', scale(1.15, 'amount'),
           suspicious={'amount_outside_range': 1}),
    Defect('shares among lots', scale(100, 'vol'), suspicious={'units_changed': 1}),
    Defect('CNY among thousands', scale(1000, 'amount'), suspicious={'units_changed': 1}),
    Defect('shares in the place of lots', scale(100, 'vol', whole=True),
           suspicious={'units': 1}),
    Defect('CNY in the place of thousands', scale(1000, 'amount', whole=True),
           suspicious={'units': 1}),
    Defect('backward-adjusted prices', scale(3.17, *PRICES, 'pre_close', 'up_limit', 'down_limit',
                                             whole=True),
           suspicious={'looks_adjusted': 1}),
    Defect('a Saturday', lambda rows: rows[-1].update(trade_date='20240203'),
           suspicious={'weekend': 1}),
    Defect('a factor that trembles', put(adj_factor='8.0205'), suspicious={'factor_blip': 2}),
    Defect('a factor that is missing', put(adj_factor=''), suspicious={'missing_factor': 1}),
    Defect('a reference price that no factor knows', put(pre_close='99.01'),
           suspicious={'reference_mismatch': 1}),
    Defect('a factor that no reference price knows',
           lambda rows: [row.update(adj_factor='8.5') for row in rows[AT:]],
           suspicious={'unconfirmed_ex_date': 1}),
    Defect('no end of line', text=lambda text: text.rstrip('\n'), suspicious={'unfinished': 1}),
    Defect('lines that end in two ways', text=lambda text: text.replace('\n', '\r\n', 5),
           suspicious={'mixed_ends': 1}),
)  # fmt: skip

CATALOGUE = REJECTIONS + SUSPENSIONS + HARMLESS + SUSPICIONS


def make(folder: Path, defect: Defect) -> Path:
    """Write the spoilt file and return its path."""
    rows = clean_rows()
    defect.rows(rows)
    text = defect.text(as_text(rows))
    path = folder / 'bars.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    return path


def reasons(found: DataCheck) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in found.suspects:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return counts


@pytest.mark.parametrize('defect', CATALOGUE, ids=[defect.name for defect in CATALOGUE])
def test_each_defect_is_counted_by_its_name_and_nothing_else_is_said(
    tmp_path: Path, defect: Defect
) -> None:
    path = make(tmp_path, defect)
    table, report = load_bars(path)
    found = check_files(path)
    assert report.counts == defect.rejected
    assert reasons(found) == defect.suspicious
    assert (report.suspended, report.disguised) == (defect.suspended, defect.disguised)
    assert report.rows == defect.n_rows
    assert report.rows == report.valid + report.suspended + sum(report.counts.values())
    assert found.report == report
    assert found.clean == (not defect.rejected and not defect.suspicious)
    day = int(np.datetime64('2024-01-16T07:00', 'ns').astype(np.int64))
    at = np.flatnonzero(table.event_time_ns == day)
    assert table.status[at, 0].tolist() == ([] if defect.status is None else [defect.status])


def test_the_catalogue_is_long_enough_and_names_every_reason() -> None:
    hurt = REJECTIONS + SUSPENSIONS + SUSPICIONS
    assert len(hurt) >= 25
    named = {reason for defect in hurt for reason in defect.rejected}
    # Only live blocks are out of order: files may be in any.
    assert named == {fault.label for fault in Fault} - {'none'}
    seen = {reason for defect in hurt for reason in defect.suspicious}
    others = {'outside_session', 'time_zone', 'spellings'}
    assert seen == {one.value for one in Suspicion} - others


def test_the_documentation_explains_every_name() -> None:
    text = (Path(__file__).resolve().parents[3] / 'docs/cleaning.md').read_text(encoding='utf-8')
    names = {fault.label for fault in Fault if fault} | {one.value for one in Suspicion}
    assert {name for name in names if f'`{name}`' not in text} == set()


def minutes(first: int, step: int = 1) -> str:
    rows = [
        f'600519.SH,2024-01-02 {at // 60:02d}:{at % 60:02d},10,10.2,9.9,10.1,{100 + at}'
        for at in range(first, first + 100 * step, step)
    ]
    return '\n'.join(['symbol,datetime,open,high,low,close,volume', *rows]) + '\n'


def test_minutes_at_noon_are_outside_the_sessions(tmp_path: Path) -> None:
    (tmp_path / 'm.csv').write_text(minutes(10 * 60 + 1))
    found = check_files(tmp_path)
    assert reasons(found) == {'outside_session': 10}
    assert (found.suspects[0].line, found.suspects[0].value) == (92, '1131')


def test_minutes_in_utc_are_told_from_the_sessions(tmp_path: Path) -> None:
    (tmp_path / 'm.csv').write_text(minutes(1 * 60 + 31))
    found = check_files(tmp_path)
    assert reasons(found) == {'time_zone': 1}
    assert found.suspects[0].value == '8'
    assert 'moved by +8 h' in found.suspects[0].note


def test_one_symbol_in_two_spellings_is_found_and_not_joined(tmp_path: Path) -> None:
    rows = clean_rows()
    (tmp_path / 'a.csv').write_text(as_text(rows[:12]))
    for row in rows:
        row['ts_code'] = 'sh600519'
    (tmp_path / 'b.csv').write_text(as_text(rows[12:]))
    found = check_files(tmp_path)
    assert reasons(found) == {'spellings': 2}
    assert [one.symbol for one in found.symbols] == ['600519.SH', 'sh600519']


def test_a_split_that_nothing_tells_is_a_jump(tmp_path: Path) -> None:
    text = as_text(clean_rows()).replace('pre_close', 'x').replace('adj_factor', 'y')
    lines = text.replace('up_limit', 'z').split('\n')
    split = []
    for index, row in enumerate(lines[1:-1]):
        cells = row.split(',')
        if index >= AT:
            cells[2:6] = [f'{float(cell) / 2:.2f}' for cell in cells[2:6]]
            cells[7] = f'{float(cells[7]) * 2}'
        split.append(','.join(cells))
    (tmp_path / 'a.csv').write_text('\n'.join([lines[0], *split]) + '\n')
    found = check_files(tmp_path)
    assert reasons(found) == {'price_jump': 1}
    assert 'a split or dividend that nothing here tells?' in found.suspects[0].note


def test_a_split_that_factor_and_reference_tell_is_an_action_and_no_finding(
    tmp_path: Path,
) -> None:
    rows = clean_rows()
    for index, row in enumerate(rows[AT:]):
        halved = [*PRICES, 'up_limit', 'down_limit', *(['pre_close'] if index else [])]
        row.update({name: f'{float(row[name]) / 2:.2f}' for name in halved})
        row.update(vol=f'{float(row["vol"]) * 2}', adj_factor='16.0408')
    for before, row in zip(rows[AT:], rows[AT + 1 :], strict=False):
        row['pre_close'] = before['close']
    rows[AT]['pre_close'] = f'{float(rows[AT - 1]["close"]) / 2:.2f}'
    (tmp_path / 'a.csv').write_text(as_text(rows))
    found = check_files(tmp_path)
    assert found.clean, found.suspects
    actions = found.symbols[0].actions
    assert [(one.date, one.kind) for one in actions] == [('2024-01-16', 'shares')]
    assert actions[0].step == pytest.approx(2)


def test_first_days_of_a_listing_may_jump(tmp_path: Path) -> None:
    rows = clean_rows()
    (tmp_path / 'old.csv').write_text(as_text(rows))
    listed = [
        f'301999.SZ,{row["trade_date"]},{p},{p * 1.3},{p * 0.8},{p},1000'
        for row, p in zip(rows[3:9], (10, 16, 11, 17, 12, 18), strict=True)
    ]
    header = 'symbol,date,open,high,low,close,volume\n'
    (tmp_path / 'new.csv').write_text(header + '\n'.join(listed) + '\n')
    found = check_files(tmp_path)
    # The sixth day is no first day any more.
    jumps = [one.line for one in found.suspects if one.reason == 'price_jump']
    assert jumps == [7]


def test_a_file_of_no_use_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    good = as_text(clean_rows())
    (tmp_path / 'a_good.csv').write_text(good)
    (tmp_path / 'b_cut.csv.gz').write_bytes(gzip.compress(good.encode())[:-30])
    (tmp_path / 'c_empty.csv').write_text('')
    (tmp_path / 'd_header.csv').write_text(good.split('\n', 1)[0] + '\n')
    (tmp_path / 'e_other.csv').write_text('cal_date,is_open\n20240102,1\n')
    (tmp_path / 'f_twice.csv').write_text(good.replace('pre_close', 'close'))
    (tmp_path / 'g_damaged.csv').write_bytes(good.encode().replace(b'high', b'hi\xffgh', 1))
    (tmp_path / 'h_cut.parquet').write_bytes(b'PAR1 and no more')
    found = check_files(tmp_path)
    errors = [one.error.removeprefix(f'{one.path}: ') for one in found.files]
    assert [one.path for one in found.files if not one.error] == [str(tmp_path / 'a_good.csv')]
    for error, named in zip(
        errors[1:],
        (
            'not a whole gzip file', 'the file is empty', 'the file is empty: a header',
            'line 1: no bars', "line 1: two columns are named 'close'",
            'line 1: the header is damaged',
            'not a whole Parquet file',
        ),
        strict=True,
    ):  # fmt: skip
        assert error.startswith(named), error
    assert found.report.valid == N
    assert not found.clean


def test_a_parquet_file_with_a_wrong_checksum_is_no_use(tmp_path: Path) -> None:
    columns = {name: [10.0] * 50 for name in ('open', 'high', 'low', 'close', 'volume')}
    days = [f'2024{1 + at // 28:02d}{1 + at % 28:02d}' for at in range(50)]
    path = tmp_path / 'a.parquet'
    parquet.write_table(
        pa.table({'date': days, **columns}), path, write_page_checksum=True, compression='none',
        use_dictionary=False,
    )  # fmt: skip
    assert load_bars(path)[1].valid == 50
    content = bytearray(path.read_bytes())
    at = content.index(np.float64(10).tobytes() * 3)
    content[at + 6] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match='damaged Parquet file'):
        load_bars(path)
