# SPDX-License-Identifier: Apache-2.0
"""Dates as people write them: known forms are the same moment, unclear ones are refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.clean import Fault
from heqis_core.errors import ConfigError
from heqis_core.event_time import TimeParser

SHANGHAI = timezone(timedelta(hours=8))


def ns(year: int, month: int, day: int, hour: int = 15, minute: int = 0, second: int = 0) -> int:
    """Return a Shanghai time as int64 ns UTC."""
    moment = datetime(year, month, day, hour, minute, second, tzinfo=SHANGHAI)
    return int(moment.timestamp()) * 1_000_000_000


def read(*dates: str, times: list[str] | None = None) -> tuple[list[int], list[str]]:
    """Return event times and faults of one file with these cells."""
    parser = TimeParser()
    event_ns, fault = parser.event_times([parser.parse(list(dates), times)])
    return event_ns.tolist(), [Fault(code).label for code in fault.tolist()]


@pytest.mark.parametrize(
    'text',
    [
        '20240102',
        '2024-01-02',
        '2024/1/2',
        '2024.1.2',
        ' 2024/01/02 ',
        '20240102.0',
        '2024年1月2日',
        '2024/1/2 星期二',
        '2024/1/2(周二)',
        '2024年1月2日星期二',
        '2024/1/2 \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd',
        '2024-01-02 Tuesday',
        '2024-01-02 15:00',
        '2024-01-02 15:00:00',
        '2024/1/2 15:00:00.000',
        '2024-01-02T15:00:00+08:00',
        '2024-01-02T15:00:00+0800',
        '2024-01-02 07:00:00Z',
        '2024-01-02 02:00:00-05',
        '202401021500',
        '20240102150000',
        '20240102150000000',
        '1704178800',
        '1704178800000',
        '1704178800000000',
        '1704178800000000000',
    ],
)
def test_every_known_form_is_the_same_moment(text: str) -> None:
    assert read(text) == ([ns(2024, 1, 2)], ['none'])


@pytest.mark.parametrize(
    ('text', 'fault'),
    [
        ('', 'missing_date'),
        ('NaN', 'missing_date'),
        ('01/02/2024', 'ambiguous_date'),
        ('13-02-2024', 'ambiguous_date'),
        ('24-01-02', 'ambiguous_date'),
        ('1.2.24 10:00', 'ambiguous_date'),
        ('240102', 'ambiguous_date'),
        ('2034010203', 'ambiguous_date'),
        ('2024-02-30', 'bad_date'),
        ('20241301', 'bad_date'),
        ('2024-01-02 24:00', 'bad_date'),
        ('1969-12-31', 'bad_date'),
        ('2262-05-01', 'bad_date'),
        ('2024-1/2', 'unknown_date_format'),
        ('yesterday', 'unknown_date_format'),
        ('2-Jan-24', 'unknown_date_format'),
        ('2024', 'unknown_date_format'),
        ('２０２４-01-0x', 'unknown_date_format'),
        ('２０２４-01-02', 'unknown_date_format'),
        ('2024-01-1２', 'unknown_date_format'),
        ('2024-01-1٢', 'unknown_date_format'),
        ('2024-01-1²', 'unknown_date_format'),
        ('2024/1/1睺瞧', 'unknown_date_format'),
        ('2024-01-02 １５:００', 'unknown_date_format'),
        ('45293', 'spreadsheet_date'),
        ('45293.625', 'spreadsheet_date'),
    ],
)
def test_what_is_unclear_is_refused_with_a_reason(text: str, fault: str) -> None:
    # The second row shows that a bad cell does not spoil its neighbours.
    assert read(text, '2024-01-02') == ([0, ns(2024, 1, 2)], [fault, 'none'])


def test_formats_may_change_from_row_to_row() -> None:
    event_ns, faults = read('20240102', '2024-01-03', '2024/1/4', '2024-01-05 10:30')
    assert faults == ['none'] * 4
    assert event_ns == [ns(2024, 1, 2), ns(2024, 1, 3), ns(2024, 1, 4), ns(2024, 1, 5, 10, 30)]


@pytest.mark.parametrize(
    ('cell', 'expected'),
    [
        ('09:31:00', ns(2020, 1, 2, 9, 31)),
        ('9:31', ns(2020, 1, 2, 9, 31)),
        ('931', ns(2020, 1, 2, 9, 31)),
        ('93100', ns(2020, 1, 2, 9, 31)),
        ('093100', ns(2020, 1, 2, 9, 31)),
        ('93100.0', ns(2020, 1, 2, 9, 31)),
        ('20200102093100000', ns(2020, 1, 2, 9, 31)),
        ('', ns(2020, 1, 2)),
    ],
)
def test_time_column_beside_a_date_column(cell: str, expected: int) -> None:
    event_ns, faults = read('2020/1/2', '2020/1/2', times=[cell, '10:00'])
    assert faults == ['none', 'none']
    assert event_ns == [expected, ns(2020, 1, 2, 10)]


@pytest.mark.parametrize(
    ('date', 'cell', 'fault'),
    [
        ('2020-01-02', '25:00', 'bad_date'),
        ('2020-01-02', 'noon', 'unknown_date_format'),
        ('2020-01-02', '2020-01-03 10:00', 'unknown_date_format'),
        ('2020-01-02 09:30', '10:00', 'ambiguous_date'),
        ('soon', '10:00', 'unknown_date_format'),
    ],
)
def test_time_column_that_cannot_be_read(date: str, cell: str, fault: str) -> None:
    assert read(date, times=[cell]) == ([0], [fault])


def test_a_file_of_midnights_holds_days() -> None:
    assert read('2024-01-02 00:00:00', '2024-01-03') == (
        [ns(2024, 1, 2), ns(2024, 1, 3)],
        ['none', 'none'],
    )
    assert read('1999-11-10', times=['0']) == ([ns(1999, 11, 10)], ['none'])


def test_midnight_among_other_times_is_midnight() -> None:
    event_ns, _ = read('2024-01-02 00:00:00', '2024-01-02 09:31:00')
    assert event_ns == [ns(2024, 1, 2, 0), ns(2024, 1, 2, 9, 31)]


def test_files_are_judged_one_by_one() -> None:
    parser = TimeParser()
    files = [
        parser.parse(['2024-01-02 00:00']),
        parser.parse(['2024-01-02 00:00', '20240102 01:00']),
    ]
    event_ns, _ = parser.event_times(files)
    assert event_ns.tolist() == [ns(2024, 1, 2), ns(2024, 1, 2, 0), ns(2024, 1, 2, 1)]


def test_around_clock_changes_nothing_is_guessed() -> None:
    parser = TimeParser('America/New_York', '16:00')
    cells = [
        '2024-03-10 02:30',
        '2024-11-03 01:30',
        '2024-07-01',
        '2024-12-02',
        '2024-11-03 05:30Z',
    ]
    event_ns, fault = parser.event_times([parser.parse(cells)])
    assert [Fault(code).label for code in fault.tolist()] == [
        'bad_date', 'ambiguous_date', 'none', 'none', 'none',
    ]  # fmt: skip
    expected = ['2024-07-01T20:00', '2024-12-02T21:00', '2024-11-03T05:30']
    assert event_ns[2:].tolist() == [
        int(np.datetime64(text, 'ns').astype(int)) for text in expected
    ]


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30)),
    st.sampled_from(['%Y%m%d', '%Y-%m-%d', '%Y/%m/%d', '%Y.%m.%d']),
    st.sampled_from(['%H:%M:%S', '%H:%M:%S.%f']),
)
def test_any_moment_survives_writing_and_reading(moment: datetime, day: str, clock: str) -> None:
    # A second row at noon says that this is no file of days; UTC has no clock changes.
    exact = moment.replace(microsecond=moment.microsecond if '%f' in clock else 0)
    parser = TimeParser('UTC')
    text = exact.strftime(f'{day} {clock}')
    event_ns, fault = parser.event_times([parser.parse([text, '2024-01-02 12:00'])])
    wanted = (exact - datetime(1970, 1, 1)) // timedelta(microseconds=1) * 1000
    assert (event_ns[0], fault[0]) == (wanted, 0)


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_text_is_read_or_refused_and_never_raises(cells: list[str]) -> None:
    parser = TimeParser()
    codes = parser.parse(cells)
    event_ns, fault = parser.event_times([codes])
    assert ((event_ns == 0) == (fault != 0)).all()
    assert [parser.text(code) for code in codes.tolist()] == cells


@pytest.mark.parametrize(
    ('tz', 'close', 'named'),
    [
        ('Mars/Olympus', '15:00', "tz: no time zone 'Mars/Olympus'"),
        ('', '15:00', 'tz: no time zone'),
        ('Asia/Shanghai', '25:00', "close_time: '25:00'"),
        ('Asia/Shanghai', 'late', "close_time: 'late'"),
    ],
)
def test_zone_or_close_that_does_not_exist_is_a_config_error(
    tz: str, close: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        TimeParser(tz, close)
