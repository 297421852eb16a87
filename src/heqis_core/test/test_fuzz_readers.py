# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every kind: no crash, no row lost, no number that the text does not say.

`make fuzz` is the long run of the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from heqis_core.clean import Fault
from heqis_core.io import cells, columns
from heqis_core.testing import shared_data
from heqis_core.testing_fuzz import OPERATIONS, Case, Operation, clean_files, mutate, verify

FILES = clean_files()
NUMBERS = st.integers(0, 1 << 20)
DAMAGE = st.lists(
    st.builds(Operation, st.integers(0, OPERATIONS - 1), NUMBERS, NUMBERS, NUMBERS),
    min_size=1,
    max_size=6,
)
CASES = st.sampled_from(FILES)
QUICK = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize('case', FILES, ids=[case.name for case in FILES])
def test_what_is_not_damaged_is_read_whole(tmp_path: Path, case: Case) -> None:
    assert verify(tmp_path, case) == 'read'


@settings(QUICK, derandomize=True)
@given(case=CASES, damage=DAMAGE)
def test_the_same_damage_every_time(tmp_path: Path, case: Case, damage: list[Operation]) -> None:
    content = mutate(case.content, case.name, damage)
    assert verify(tmp_path, Case(case.name, content)) in ('read', 'refused')


@QUICK
@given(case=CASES, damage=DAMAGE)
def test_other_damage_each_time(tmp_path: Path, case: Case, damage: list[Operation]) -> None:
    content = mutate(case.content, case.name, damage)
    assert verify(tmp_path, Case(case.name, content)) in ('read', 'refused')


@settings(QUICK, max_examples=60)
@given(
    name=st.sampled_from(
        (
            'tushare_raw_2020_2024/600519.SH.csv',
            'joinquant_qfq_limits_2005_2023/000004.XSHE.csv',
            'wondertrader/SSE.600000Q_d.csv',
        )
    ),
    damage=DAMAGE,
)
def test_damage_to_real_files(tmp_path: Path, name: str, damage: list[Operation]) -> None:
    path = shared_data() / 'ashare_daily' / name
    content = b'\n'.join(path.read_bytes().split(b'\n')[:40]) + b'\n'
    case = Case(path.name, mutate(content, path.name, damage))
    assert verify(tmp_path, case) in ('read', 'refused')


@settings(QUICK, max_examples=60)
@given(content=st.binary(max_size=200), name=st.sampled_from(['a.csv', 'a.csv.gz', 'a.parquet']))
@example(content=b'\xff\xfe', name='a.csv')
@example(content=b'\xff\xfea', name='a.csv')
@example(content=b'\xef\xbb\xbf', name='a.csv')
@example(content=b'"' * 9, name='a.csv')
@example(content=b'a\n' + b'x' * 200_000, name='a.csv')
def test_bytes_that_are_no_data_at_all(tmp_path: Path, content: bytes, name: str) -> None:
    assert verify(tmp_path, Case(name, content)) == 'refused'


HEADER = 'date,open,high,low,close,volume\n2024-01-02,10,11,9,10.5,100\n'
FOUND = (
    # What the long run has found once.
    HEADER.encode() + b'2024-01-03,"10.2"5,11,9,10.5,100\n',
    HEADER.encode() + b'2024-01-03,10,11,1e-320,10.5,100\n',
    HEADER.encode() + '\u2028\n'.encode(),
    HEADER.encode() + b'\xff\n\xef\xbb\xbf\n',
    HEADER.encode() + b'2024-01-03,10,11,9,10.5,1,234.5\n',
    HEADER.encode() + '2024-01-0３,10,11,9,10.5,100\n2024-01-1２,10,11,9,10.5,100\n'.encode(),
    HEADER.encode() + '2024-01-1\u00b2,10,11,9,10.5,100\n'.encode(),
)


@pytest.mark.parametrize('content', FOUND)
def test_what_was_found_once_stays_mended(tmp_path: Path, content: bytes) -> None:
    assert verify(tmp_path, Case('a.csv', content)) == 'read'


def lenient(
    given_cells: cells.Column,
) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Read as float() does: it takes 1_000 and １２ for numbers."""
    values, texts = cells.to_floats(given_cells)
    for row, text in list(texts.items()):
        try:
            values[row] = float(text)
            del texts[row]
        except ValueError:
            continue
    return values, texts


@pytest.mark.parametrize('number', ['1_0', '１０'])
def test_a_reader_that_takes_more_for_a_number_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    case = Case('a.csv', f'{HEADER}2024-01-03,{number},11,9,10.5,100\n'.encode())
    assert verify(tmp_path, case) == 'read'
    monkeypatch.setattr(columns, 'to_floats', lenient)
    with pytest.raises(AssertionError):
        verify(tmp_path, case)


def test_a_reader_that_drops_a_line_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case('a.csv', f'{HEADER}2024-01-03,10,11\n'.encode())
    assert verify(tmp_path, case) == 'read'
    monkeypatch.setattr(cells.CellFile, '_refuse', lambda *_: {3: ('', Fault.NONE)})
    with pytest.raises(AssertionError):
        verify(tmp_path, case)
