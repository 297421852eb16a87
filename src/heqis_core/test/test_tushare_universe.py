# SPDX-License-Identifier: Apache-2.0
"""Universe files: what every spelling of a symbol resolves to, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_core.io.tushare_universe import (
    Entry,
    Security,
    Universe,
    normalise,
    read_universe,
    resolve,
    to_securities,
)


def stock(code: str, name: str, *, is_listed: bool = True) -> Security:
    return Security(code, name, 'stock', is_listed, '20000101', '')


STOCKS = [
    stock('600519.SH', '贵州茅台'), stock('000858.SZ', '五 粮 液'), stock('000001.SZ', '平安银行'),
    stock('000002.SZ', '万  科Ａ'), stock('600555.SH', '*ST海创'), stock('000010.SZ', 'ST美丽'),
    stock('688981.SH', '中芯国际'), stock('688001.SH', '云从科技-UW'),
    stock('600001.SH', '邯郸钢铁', is_listed=False), stock('600002.SH', '老名字', is_listed=False),
    stock('600003.SH', '老名字'), stock('600004.SH', '同名'), stock('600005.SH', '同名'),
    stock('000100.SZ', 'TCL科技'), stock('300001.SZ', 'N新股'),
]  # fmt: skip
FUNDS = [Security('510300.SH', '沪深300ETF', 'fund', True, '20120528', '')]
INDICES = [
    Security('000300.SH', '沪深300', 'index', True, '20050408', ''),
    Security('399300.SZ', '沪深300', 'index', True, '20050408', ''),
    Security('000001.SH', '上证指数', 'index', True, '19910715', ''),
    Security('H30269.CSI', '红利低波', 'index', True, '20131219', ''),
]
TABLES = (lambda: STOCKS, lambda: FUNDS, lambda: INDICES)


def find(*texts: str) -> Universe:
    return resolve([Entry(text, '', n) for n, text in enumerate(texts)], TABLES)


def codes(*texts: str) -> list[str]:
    found = find(*texts)
    assert found.unresolved == ()
    return [one.security.ts_code for one in found.resolved]


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('600519.SH', '600519.SH'), ('600519', '600519.SH'), ('sh600519', '600519.SH'),
        ('SH.600519', '600519.SH'), ('600519.XSHG', '600519.SH'), ('600519.ss', '600519.SH'),
        ('６００５１９.ＳＨ', '600519.SH'), ('贵州茅台', '600519.SH'),
        ('贵 州 茅 台', '600519.SH'),
        ('五粮液', '000858.SZ'), ('五 粮 液', '000858.SZ'), ('万科A', '000002.SZ'),
        ('万 科Ａ', '000002.SZ'), ('tcl科技', '000100.SZ'), ('000001', '000001.SZ'),
        ('000001.SH', '000001.SH'), ('上证指数', '000001.SH'), ('沪深300ETF', '510300.SH'),
        ('510300', '510300.SH'), ('H30269.CSI', 'H30269.CSI'), ('邯郸钢铁', '600001.SH'),
    ],
)  # fmt: skip
def test_each_way_of_writing_a_symbol_finds_it(text: str, code: str) -> None:
    found = find(text)
    assert [one.security.ts_code for one in found.resolved] == [code]
    assert found.resolved[0].note == ''
    assert found.unresolved == ()


@pytest.mark.parametrize(
    ('text', 'code', 'name'),
    [
        ('ST海创', '600555.SH', '*ST海创'), ('海创', '600555.SH', '*ST海创'),
        ('XD贵州茅台', '600519.SH', '贵州茅台'), ('美丽', '000010.SZ', 'ST美丽'),
        ('*ST美丽', '000010.SZ', 'ST美丽'), ('云从科技', '688001.SH', '云从科技-UW'),
        ('新股', '300001.SZ', 'N新股'),
    ],
)  # fmt: skip
def test_a_name_with_another_mark_is_found_and_that_is_said(
    text: str, code: str, name: str
) -> None:
    (one,) = find(text).resolved
    assert one.security.ts_code == code
    assert one.note == f'{text} is now called {name}'


def test_a_listed_stock_goes_before_a_delisted_one_of_the_same_name_and_that_is_said() -> None:
    (one,) = find('老名字').resolved
    assert one.security.ts_code == '600003.SH'
    assert 'delisted' in one.note


@pytest.mark.parametrize(
    ('text', 'reason', 'hint'),
    [
        ('同名', 'ambiguous', 'could be 600004.SH 同名, 600005.SH 同名: give the code'),
        ('沪深300', 'ambiguous', '000300.SH 沪深300, 399300.SZ 沪深300'),
        ('茅台', 'unknown', 'perhaps 贵州茅台 600519.SH'),
        ('XD贵州茅', 'unknown', 'perhaps 贵州茅台 600519.SH'),
        ('600519.SZ', 'unknown', 'no stock, listed fund or index has this code'),
        ('999999', 'unknown', 'no stock, listed fund or index has this code'),
        ('白酒', 'unknown', 'a sector is written [name]'),
    ],
)
def test_what_is_unknown_or_ambiguous_is_listed_with_a_hint(
    text: str, reason: str, hint: str
) -> None:
    found = find(text, '600519.SH')
    assert len(found.resolved) == 1
    (lost,) = found.unresolved
    assert (lost.entry.text, lost.reason) == (text, reason)
    assert hint in lost.hint


def test_blanks_separate_where_the_whole_is_no_name() -> None:
    assert codes('贵州茅台 平安银行 510300.SH') == ['000001.SZ', '510300.SH', '600519.SH']
    found = find('贵州茅台 没有')
    assert [one.security.ts_code for one in found.resolved] == ['600519.SH']
    assert [one.entry.text for one in found.unresolved] == ['没有']


def test_funds_and_indices_are_asked_for_only_when_stocks_do_not_know_a_name() -> None:
    asked: list[str] = []

    def table(name: str, rows: list[Security]) -> Callable[[], list[Security]]:
        def give() -> list[Security]:
            asked.append(name)
            return rows

        return give

    tables = [table('stock', STOCKS), table('fund', FUNDS), table('index', INDICES)]
    resolve([Entry('贵州茅台', '', 1)], tables)
    assert asked == ['stock']
    resolve([Entry('沪深300ETF', '', 1)], tables)
    assert asked == ['stock', 'stock', 'fund']


def test_a_symbol_named_twice_is_one_security_of_two_entries() -> None:
    found = find('600519.SH', '贵州茅台')
    assert len(found.resolved) == 2
    assert [one.ts_code for one in found.securities()] == ['600519.SH']


TEXT = """# the symbols of a test
[白酒]
贵州茅台、五 粮 液   # both
【银行】平安银行,招商银行
科技：中芯国际；TCL科技
医药: 恒瑞医药|药明康德
600519.SH\t000001.SZ
"""


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'gb18030'])
def test_a_file_by_sector_gives_its_entries_with_line_and_sector(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / 'universe.txt'
    path.write_bytes(TEXT.encode(encoding))
    assert [(one.sector, one.text, one.line) for one in read_universe(path)] == [
        ('白酒', '贵州茅台', 3), ('白酒', '五 粮 液', 3), ('银行', '平安银行', 4),
        ('银行', '招商银行', 4), ('科技', '中芯国际', 5), ('科技', 'TCL科技', 5),
        ('医药', '恒瑞医药', 6), ('医药', '药明康德', 6), ('医药', '600519.SH', 7),
        ('医药', '000001.SZ', 7),
    ]  # fmt: skip


def test_the_example_file_reads() -> None:
    root = next(
        folder for folder in Path(__file__).resolve().parents if (folder / 'config').is_dir()
    )
    entries = read_universe(root / 'config' / 'universe.example.txt')
    assert {'白酒', '银行', '指数'} <= {one.sector for one in entries}


@pytest.mark.parametrize(
    ('raw', 'message'), [(b'# nothing\n\n[a]\n', 'names no symbol'), (b'\xff\xff\xff', 'neither')]
)
def test_a_file_that_is_no_universe_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / 'universe.txt'
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_universe(path)
    with pytest.raises(DataError, match='cannot be read'):
        read_universe(tmp_path / 'none')


@given(
    st.lists(
        st.text('贵州茅台五粮液平安银行ST*XD NC60519.SH-', min_size=1, max_size=9), max_size=5
    )
)
def test_every_entry_is_resolved_or_listed(texts: list[str]) -> None:
    texts = [text for text in texts if text.strip()]
    found = find(*texts)
    said = {one.entry.line for one in (*found.resolved, *found.unresolved)}
    assert said == set(range(len(texts)))


@given(st.sampled_from(STOCKS[:4]), st.sampled_from(['', ' ', '　', '  ']), st.booleans())
def test_blanks_and_full_width_letters_do_not_matter(
    one: Security, blank: str, is_wide: bool
) -> None:
    text = blank.join(one.name)
    if is_wide:
        text = ''.join(chr(ord(c) + 0xFEE0) if '!' <= c <= '~' else c for c in text)
    assert normalise(text) == normalise(one.name)
    assert codes(text) == [one.ts_code]


def test_rows_of_the_vendor_become_securities_once_each() -> None:
    columns: dict[str, list[str | None]] = {
        'ts_code': ['A.SH', 'A.SH'], 'name': ['a', 'a'], 'list_date': ['20200101'] * 2,
        'exp_date': [None, None],
    }  # fmt: skip
    assert to_securities('index', columns) == [
        Security('A.SH', 'a', 'index', True, '20200101', '')
    ]
