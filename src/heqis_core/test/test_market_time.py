# SPDX-License-Identifier: Apache-2.0
"""When the exchanges trade: sessions of a day, and trading days."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError, DataError
from heqis_core.market import (
    Board,
    Exchange,
    Session,
    TradingCalendar,
    bar_closes,
    calendar_from_days,
    calendar_from_events,
    calendar_from_trade_cal,
    is_open,
    local_days,
    midnight_ns,
    read_calendar,
    session_of,
    sessions_of,
)
from heqis_core.market.sessions import SCHEDULES
from heqis_core.testing import shared_data

ZONE = ZoneInfo('Asia/Shanghai')
WEEK = [20240102, 20240103, 20240104, 20240105, 20240108]


def at(text: str) -> int:
    """Event time of a local time, int ns UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZONE).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ('clock', 'session'),
    [
        ('09:14:59', Session.CLOSED),
        ('09:15:00', Session.OPEN_CALL),
        ('09:25:00', Session.CLOSED),
        ('09:30:00', Session.CONTINUOUS),
        ('11:29:59', Session.CONTINUOUS),
        ('11:30:00', Session.CLOSED),
        ('13:00:00', Session.CONTINUOUS),
        ('14:56:59', Session.CONTINUOUS),
        ('14:57:00', Session.CLOSE_CALL),
        ('15:00:00', Session.CLOSED),
        ('15:05:00', Session.AFTER_HOURS),
        ('15:30:00', Session.CLOSED),
        ('23:59:59', Session.CLOSED),
    ],
)
def test_a_moment_belongs_to_the_session_that_has_begun(clock: str, session: Session) -> None:
    assert session_of(at(f'2026-07-06T{clock}'), Exchange.SSE, Board.MAIN) == session


@pytest.mark.parametrize(
    ('exchange', 'board', 'day', 'at_1458', 'at_1510'),
    [
        (Exchange.SSE, Board.MAIN, '2018-08-17', Session.CONTINUOUS, Session.CLOSED),
        (Exchange.SSE, Board.MAIN, '2018-08-20', Session.CLOSE_CALL, Session.CLOSED),
        (Exchange.SSE, Board.FUND, '2018-08-20', Session.CONTINUOUS, Session.CLOSED),
        (Exchange.SSE, Board.FUND, '2026-07-03', Session.CONTINUOUS, Session.CLOSED),
        (Exchange.SSE, Board.FUND, '2026-07-06', Session.CLOSE_CALL, Session.CLOSED),
        (Exchange.SZSE, Board.MAIN, '2006-06-30', Session.CONTINUOUS, Session.CLOSED),
        (Exchange.SZSE, Board.FUND, '2006-07-03', Session.CLOSE_CALL, Session.CLOSED),
        (Exchange.SZSE, Board.MAIN, '2026-07-03', Session.CLOSE_CALL, Session.CLOSED),
        (Exchange.SZSE, Board.MAIN, '2026-07-06', Session.CLOSE_CALL, Session.AFTER_HOURS),
        (Exchange.SSE, Board.STAR, '2019-07-22', Session.CLOSE_CALL, Session.AFTER_HOURS),
        (Exchange.SZSE, Board.CHINEXT, '2020-08-21', Session.CLOSE_CALL, Session.CLOSED),
        (Exchange.SZSE, Board.CHINEXT, '2020-08-24', Session.CLOSE_CALL, Session.AFTER_HOURS),
        (Exchange.BSE, Board.BSE, '2021-11-15', Session.CLOSE_CALL, Session.CLOSED),
    ],
)
def test_sessions_hold_from_their_dates_on(
    exchange: Exchange, board: Board, day: str, at_1458: Session, at_1510: Session
) -> None:
    times = [at(f'{day}T14:58'), at(f'{day}T15:10')]
    assert session_of(times, exchange, board).tolist() == [at_1458, at_1510]


def test_the_close_of_a_bar_belongs_to_the_session_that_it_ends() -> None:
    times = [at(f'2024-01-02T{clock}') for clock in ('09:30', '09:31', '11:30', '13:00', '15:00')]
    found = session_of(times, Exchange.SSE, Board.MAIN, closing=True)
    assert found.tolist() == [
        Session.CLOSED,
        Session.CONTINUOUS,
        Session.CONTINUOUS,
        Session.CLOSED,
        Session.CLOSE_CALL,
    ]


@pytest.mark.parametrize('minutes', [1, 5, 30, 60, 120])
def test_every_bar_of_a_day_closes_in_a_session(minutes: int) -> None:
    closes = bar_closes(date(2024, 1, 2), minutes)
    assert len(closes) == 240 // minutes
    assert closes[-1] == at('2024-01-02T15:00')
    assert at('2024-01-02T11:30') in closes
    sessions = session_of(closes, Exchange.SZSE, Board.MAIN, closing=True)
    assert np.isin(sessions, [Session.CONTINUOUS, Session.CLOSE_CALL]).all()
    assert (np.diff(closes) >= minutes * 60 * 10**9).all()


@pytest.mark.parametrize('minutes', [0, 7, 240])
def test_minutes_that_do_not_divide_a_half_day_are_refused(minutes: int) -> None:
    with pytest.raises(ConfigError, match=f'minutes: {minutes}; expected a divisor of 120'):
        bar_closes(date(2024, 1, 2), minutes)


def test_real_minutes_are_the_bars_of_their_days() -> None:
    path = shared_data() / 'ashare_minute/SSE.600009Q_m1.csv'
    lines = path.read_text(encoding='gb18030').splitlines()[1:]
    stamps = [(line.split(' ')[0].split('/'), line.split(',')[1]) for line in lines]
    times = np.array([at(f'{y}-{m:0>2}-{d:0>2}T{clock}') for (y, m, d), clock in stamps], np.int64)
    days = np.unique(local_days(times))
    expected = np.concatenate([bar_closes(day) for day in days.tolist()])
    assert len(lines) > 10_000
    assert np.isin(times, expected).all()
    sessions = session_of(times, Exchange.SSE, Board.MAIN, closing=True)
    assert (sessions != Session.CLOSED).all()


def test_open_needs_a_trading_day_and_a_session() -> None:
    calendar = calendar_from_days(WEEK)
    times = [at('2024-01-05T10:00'), at('2024-01-06T10:00'), at('2024-01-05T12:00')]
    assert is_open(calendar, times, Exchange.SSE, Board.MAIN).tolist() == [True, False, False]
    with pytest.raises(DataError, match='2024-01-09 is outside the trading calendar'):
        is_open(calendar, [at('2024-01-09T10:00')], Exchange.SSE, Board.MAIN)


def test_days_without_known_sessions_are_refused_by_name() -> None:
    with pytest.raises(DataError, match='board MAIN on SSE on 2001-11-30'):
        session_of([at('2024-01-02T10:00'), at('2001-11-30T10:00')], Exchange.SSE, Board.MAIN)
    with pytest.raises(DataError, match='board STAR on SSE on 2019-07-19'):
        sessions_of(Exchange.SSE, Board.STAR, date(2019, 7, 19))
    with pytest.raises(DataError, match='board CONVERTIBLE on SSE'):
        session_of(at('2024-01-02T10:00'), Exchange.SSE, Board.CONVERTIBLE)


def test_sessions_of_a_day_are_in_order_and_apart() -> None:
    for row in SCHEDULES:
        assert row.source
        assert all(span.start < span.end for span in row.spans)
        assert all(a.end <= b.start for a, b in pairwise(row.spans))


@given(
    st.datetimes(datetime(2002, 1, 1), datetime(2030, 1, 1)),
    st.sampled_from([(Exchange.SSE, Board.FUND), (Exchange.SZSE, Board.MAIN)]),
)
def test_sessions_of_moments_equal_those_of_their_day(
    moment: datetime, cell: tuple[Exchange, Board]
) -> None:
    local = moment.replace(microsecond=0)
    minute = local.hour * 60 + local.minute
    spans = sessions_of(*cell, local.date())
    inside = [span.session for span in spans if span.start <= minute < span.end]
    found = session_of(at(local.isoformat()), *cell)
    assert [Session(int(found))] == (inside or [Session.CLOSED])


@given(st.dates(date(1993, 1, 1), date(2100, 1, 1)), st.integers(0, 86_399))
def test_local_days_are_those_of_the_time_zone(day: date, second: int) -> None:
    time_ns = midnight_ns(day) + second * 10**9
    assert time_ns == at(day.isoformat()) + second * 10**9
    assert local_days([time_ns]).tolist() == [day]


def test_neighbours_of_trading_days_pass_over_weekends() -> None:
    calendar = calendar_from_days(WEEK)
    assert calendar.next(['2024-01-05', '2024-01-06']).tolist() == [date(2024, 1, 8)] * 2
    assert calendar.previous('2024-01-08').tolist() == date(2024, 1, 5)
    assert calendar.is_trading(['2024-01-06', '2024-01-08']).tolist() == [False, True]
    assert calendar.offset(np.array(['2024-01-02'], 'M8[D]'), 4).tolist() == [date(2024, 1, 8)]
    assert calendar.offset('2024-01-08', [-1, -4]).tolist() == [date(2024, 1, 5), date(2024, 1, 2)]
    assert calendar.count('2024-01-02', ['2024-01-02', '2024-01-06']).tolist() == [0, 4]
    assert calendar.count('2024-01-08', '2024-01-02') == -4


def test_days_listed_count_from_one_on_the_listing_day() -> None:
    calendar = calendar_from_days(WEEK)
    listed = ['2024-01-04', '2024-01-05', '2024-01-08', '1991-04-03', '2030-01-01']
    assert calendar.days_listed(listed, '2024-01-05').tolist() == [2, 1, 0, 4, 0]
    assert calendar.days_listed('2024-01-04', ['2024-01-04', '2024-01-08']).tolist() == [1, 3]


def test_days_outside_the_calendar_are_refused_by_name() -> None:
    calendar = calendar_from_days(WEEK)
    with pytest.raises(DataError, match=r'2024-01-09 is outside .* from 2024-01-02 to 2024-01-08'):
        calendar.is_trading(['2024-01-03', '2024-01-09'])
    with pytest.raises(DataError, match='the trading day after 2024-01-08 that is asked for'):
        calendar.next('2024-01-08')
    with pytest.raises(DataError, match='the trading day before 2024-01-02'):
        calendar.previous('2024-01-02')
    with pytest.raises(DataError, match='the trading day from 2024-01-05'):
        calendar.offset(['2024-01-02', '2024-01-05'], 3)
    with pytest.raises(DataError, match='2024-01-06 is no trading day'):
        calendar.offset('2024-01-06', 1)
    with pytest.raises(DataError, match='NaT is outside'):
        calendar.is_trading(['NaT'])
    with pytest.raises(DataError, match='no days; expected such as 2024-01-02'):
        calendar.is_trading(['someday'])


def test_a_calendar_can_know_closed_days_at_its_ends() -> None:
    calendar = calendar_from_days(WEEK, date(2024, 1, 1), date(2024, 1, 10))
    assert calendar.is_trading(['2024-01-01', '2024-01-10']).tolist() == [False, False]
    assert calendar.next('2024-01-01').tolist() == date(2024, 1, 2)
    with pytest.raises(ConfigError, match='leave out trading days'):
        calendar_from_days(WEEK, date(2024, 1, 3))


@given(st.sets(st.dates(date(2000, 1, 1), date(2001, 12, 31)), min_size=3, max_size=60), st.data())
def test_a_calendar_counts_as_a_sorted_list_does(trading: set[date], data: st.DataObject) -> None:
    known = sorted(trading)
    calendar = calendar_from_days(data.draw(st.permutations(known)))
    between = st.dates(known[0], known[-1])
    a, b = data.draw(between), data.draw(between)
    assert bool(calendar.is_trading(a)) == (a in trading)
    count = sum(min(a, b) <= day < max(a, b) for day in known)
    assert calendar.count(a, b) == (count if a <= b else -count)
    later, earlier = [d for d in known if d > a], [d for d in known if d < a]
    if later:
        assert calendar.next(a).tolist() == later[0]
    if earlier:
        assert calendar.previous(a).tolist() == earlier[-1]
    assert calendar.offset(known[0], np.arange(len(known))).tolist() == known
    assert calendar.index(known).tolist() == list(range(len(known)))


def test_the_vendors_calendar_and_the_days_of_real_bars_are_the_same() -> None:
    folder = shared_data() / 'ashare_daily'
    vendor = read_calendar(folder / 'tushare_factor_2023_2025/trade_cal.csv')
    text = (folder / 'tushare_raw_2020_2024/600519.SH.csv').read_text()
    bars = [line.split(',')[1] for line in text.splitlines()[1:]]
    events = np.array([midnight_ns(date.fromisoformat(f'{d[:4]}-{d[4:6]}-{d[6:]}')) for d in bars])
    found = calendar_from_events(events + 15 * 3_600 * 10**9)
    both = (found.days >= vendor.first) & (found.days <= vendor.last)
    shared = found.days[both]
    assert len(shared) > 250
    assert vendor.is_trading(shared).all()
    assert vendor.count(shared[0], shared[-1]) == len(shared) - 1


def test_trade_cal_keeps_closed_days_at_its_ends() -> None:
    calendar = calendar_from_trade_cal(['20240101', '20240103', '20240102'], ['0', '1', 1])
    assert calendar.days.tolist() == [date(2024, 1, 2), date(2024, 1, 3)]
    assert not calendar.is_trading('2024-01-01')


def test_files_of_both_forms_are_read(tmp_path: Path) -> None:
    table = tmp_path / 'trade_cal.csv'
    table.write_text('exchange,cal_date,is_open\nSSE,20240101,0\n\nSSE,20240102,1\n')
    assert read_calendar(table).days.tolist() == [date(2024, 1, 2)]
    plain = tmp_path / 'days.txt'
    plain.write_text('\ufeff# trading days\n2024-01-03\n20240102\n', encoding='utf-8')
    assert read_calendar(plain).days.tolist() == [date(2024, 1, 2), date(2024, 1, 3)]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no trading day in it'),
        ('2024-01-02\n2024-13-02\n', "line 2: '2024-13-02' is no day"),
        ('cal_date,is_open\n20240102,maybe\n', "is_open: 'maybe' on 2024-01-02"),
        ('cal_date,is_open\n20240102\n', 'fewer cells than the header'),
        ('cal_date,is_open\n20240102,1\n20240102,0\n', '2024-01-02 is open and closed'),
        ('cal_date,is_open\n20240102,0\n', 'no trading day'),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / 'days.csv'
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_calendar(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / 'days.bin'
    path.write_bytes(b'\xff\xfe\x00\x81')
    for wrong in (path, tmp_path / 'absent.csv', tmp_path):
        with pytest.raises(DataError, match='cannot be read as a trading calendar'):
            read_calendar(wrong)


def test_a_calendar_of_no_day_is_refused() -> None:
    with pytest.raises(DataError, match='no trading day; expected at least one'):
        calendar_from_days([])
    with pytest.raises(DataError, match="'someday' is no day"):
        calendar_from_days(['someday'])
    with pytest.raises(DataError, match='a day is missing'):
        calendar_from_days(np.array(['2024-01-02', 'NaT'], 'M8[D]'))


def test_weekdays_of_ten_years_are_asked_in_one_call() -> None:
    first = date(2015, 1, 1)
    weekdays = [first + timedelta(days=n) for n in range(3652)]
    calendar: TradingCalendar = calendar_from_days(d for d in weekdays if d.weekday() < 5)
    asked = np.arange('2015-01-01', '2024-12-27', dtype='M8[D]')
    following = calendar.next(asked)
    assert (np.is_busday(following)).all()
    assert (following > asked).all()
    assert ((following - asked).astype(int) <= 3).all()
