# SPDX-License-Identifier: Apache-2.0
"""Tushare as a live source: the real client, a local server, and a clock that the test turns."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

pytest.importorskip('tushare')

from heqis_core.bars import BarBlock, BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.testing_tushare import TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import simulated_tables
from heqis_core.io.tushare_client import TushareClient, TushareError
from heqis_core.io.tushare_source import Timetable, TushareReadings, TushareSource, day_of
from heqis_core.simulator import MarketSimulator

N_DAYS = 40
SYMBOLS = ('600519.SH', '000001.SZ', '300750.SZ')
START = '20230102'


class Clock:
    """Local time in Shanghai, as the test says."""

    def __init__(self, text: str) -> None:
        self.set(text)

    def set(self, text: str) -> None:
        local = datetime.strptime(text, '%Y%m%d %H:%M').replace(tzinfo=ZoneInfo('Asia/Shanghai'))
        self.now_s = local.timestamp()

    def __call__(self) -> float:
        return self.now_s


HALTED, PART_OF_IT = 20, 30
"""Days: on one the second symbol does not trade at all, on the other for a part of the day."""


@pytest.fixture(scope='module')
def tables():
    made = simulated_tables(SYMBOLS, N_DAYS)
    days = sorted({row['trade_date'] for row in made['daily']})
    halt = {'ts_code': SYMBOLS[1], 'suspend_type': 'S'}
    made['suspend_d'] = [
        {**halt, 'trade_date': days[HALTED], 'suspend_timing': None},
        {**halt, 'trade_date': days[PART_OF_IT], 'suspend_timing': '09:30-10:00'},
    ]
    made['daily'] = [
        row
        for row in made['daily']
        if (row['ts_code'], row['trade_date']) != (SYMBOLS[1], days[HALTED])
    ]
    return made


@pytest.fixture
def server(tables):
    with TushareServer(tables, page_rows=17) as running:
        yield running


def made(server, clock, kind=TushareSource, *args, check_s: float = 0.0):
    def connect() -> TushareClient:
        return TushareClient(TOKEN, url=server.url, attempts=2, sleep=lambda _s: None)

    return kind(connect, SYMBOLS, Timetable(START, check_s=check_s, now=clock), *args)


def drain(source, most: int = 2) -> list:
    """Poll until nothing more comes."""
    found, empty = [], 0
    while empty < most:
        block = source.poll(0.0)
        empty = 0 if block else empty + 1
        if block:
            found.append(block)
    return found


def expected() -> list[BarBlock]:
    """What the server's market looks like from inside: the simulator with the same seed."""
    simulator = MarketSimulator([*SYMBOLS, '510300.SH', '000300.SH'], 7, '2023-01-02')
    blocks = [simulator.next_block() for _ in range(N_DAYS)]
    blocks[HALTED].values[:, 1] = np.nan
    blocks[HALTED].status[1] = BarStatus.SUSPENDED
    return blocks


def test_a_day_comes_once_it_is_published_and_the_days_before_it_first(server) -> None:
    days = [day_of(b.event_time_ns) for b in expected()]
    clock = Clock(f'{days[9]} 16:59')
    source = made(server, clock)
    source.open(None)
    before = drain(source)
    assert [day_of(b.event_time_ns) for b in before] == days[:9], 'the tenth is not ready'
    clock.set(f'{days[9]} 17:00')
    (tenth,) = drain(source)
    assert day_of(tenth.event_time_ns) == days[9]
    clock.set('20231231 12:00')
    rest = drain(source)
    for got, real in zip([*before, tenth, *rest], expected(), strict=True):
        assert got.event_time_ns == real.event_time_ns
        assert got.symbols == SYMBOLS
        assert got.status.tolist() == real.status[: len(SYMBOLS)].tolist()
        np.testing.assert_allclose(
            got.values[:4], real.values[:4, : len(SYMBOLS)], rtol=0, atol=1e-9
        )
        np.testing.assert_allclose(got.values[4], real.values[4, : len(SYMBOLS)])


@pytest.mark.parametrize('after', [0, 1, 25, N_DAYS])
def test_it_goes_on_after_its_cursor_without_a_day_twice_or_lost(server, after) -> None:
    clock = Clock('20231231 12:00')
    first = made(server, clock)
    first.open(None)
    found = [block for _ in range(after) for block in [first.poll(0.0)] if block]
    assert len(found) == after
    second = made(server, clock)
    second.open(first.cursor())
    times = [b.event_time_ns for b in found + drain(second)]
    assert times == [b.event_time_ns for b in expected()]


def test_a_day_that_is_not_there_yet_is_asked_for_again_and_not_skipped(server, tables) -> None:
    days = [day_of(b.event_time_ns) for b in expected()]
    server.tables = {**tables, 'daily': [r for r in tables['daily'] if r['trade_date'] != days[9]]}
    clock = Clock(f'{days[9]} 18:00')
    source = made(server, clock)
    source.open(None)
    assert len(drain(source)) == 9
    server.tables = tables
    assert [day_of(b.event_time_ns) for b in drain(source)] == [days[9]]


def test_nothing_is_asked_between_two_checks(server) -> None:
    source = made(server, Clock('20231231 12:00'), check_s=3600.0)
    source.open(None)
    drain(source)
    asked = len(server.questions)
    assert drain(source) == []
    assert len(server.questions) == asked


def test_an_answer_that_cannot_be_used_is_raised_and_nothing_is_lost(server) -> None:
    source = made(server, Clock('20231231 12:00'))
    source.open(None)
    server.misbehave('half_body', 'http_500', api_name='daily')
    with pytest.raises(TushareError):
        source.poll(0.0)
    assert len(drain(source)) == N_DAYS


def test_columns_of_a_daily_endpoint_come_as_readings_of_their_day(server, tables) -> None:
    source = made(server, Clock('20231231 12:00'), TushareReadings, ['turnover_rate'])
    source.open()
    found = [reading for part in drain(source) for reading in part]
    rows = [r for r in tables['daily_basic'] if r['ts_code'] in SYMBOLS]
    assert {(day_of(r.event_time_ns), r.symbol, r.value) for r in found} == {
        (r['trade_date'], r['ts_code'], r['turnover_rate']) for r in rows
    }
    assert len(found) == len(rows)
    assert source.complete_ns == expected()[-1].event_time_ns


@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ({'symbols': ()}, 'symbols: none'),
        ({'timetable': Timetable('2023')}, 'start'),
        ({'timetable': Timetable(START, ready='5pm')}, 'ready'),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(how, words) -> None:
    given = {'symbols': SYMBOLS, 'timetable': Timetable(START), **how}
    with pytest.raises(ConfigError, match=words):
        TushareSource(lambda: None, **given)


def test_a_channel_that_the_endpoint_lacks_is_named(server) -> None:
    with pytest.raises(ConfigError, match='channel turnover: no number of daily_basic'):
        made(server, Clock('20231231 12:00'), TushareReadings, ['turnover'])


def test_a_cursor_of_another_source_is_refused(server) -> None:
    with pytest.raises(DataError, match='remove the checkpoint'):
        made(server, Clock('20231231 12:00')).open({'kind': 'table', 'index': 3})
