# SPDX-License-Identifier: Apache-2.0
"""Several sources as one: aligned, counted, back after failures, gone on with after a kill."""

from __future__ import annotations

import csv
import json
import threading
import time

import numpy as np
import pytest

from heqis_core.align import Channel, Feed
from heqis_core.bars import BarBlock, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.io.quarantine import Quarantine
from heqis_core.readings import NEVER_NS, Reading
from heqis_core.simulator import MarketSimulator
from heqis_core.source import EndOfStream, SimulatorSource, TableSource
from heqis_gateway import member
from heqis_gateway.member import JoinedBars, JoinedReadings
from heqis_gateway.source_group import SourceGroup

DEADLINE_S = 20.0
N = 30


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch) -> None:
    monkeypatch.setattr(member, 'BACK_OFF_S', 0.01)


def table(symbols=('A', 'B'), step: int = 10, n: int = N, first: int = 100) -> BarTable:
    simulator = MarketSimulator(len(symbols), seed=len(symbols))
    source = SimulatorSource(simulator, n)
    source.open(None)
    made = BarTable.from_blocks([source.poll(0) for _ in range(n)])
    times = first + step * np.arange(n, dtype=np.int64)
    return BarTable(tuple(symbols), times, made.values, made.status)


class Script:
    """Readings that come as a list says, then an end or silence."""

    complete_ns = NEVER_NS

    def __init__(self, readings, ends: bool = True) -> None:
        self.counts: dict[str, int] = {}
        self._all, self._ends = list(readings), ends
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        self._left = list(self._all)

    def poll(self, timeout_s: float) -> list[Reading]:
        if not self._left and self._ends:
            raise EndOfStream
        found, self._left = self._left[:3], self._left[3:]
        return found

    def close(self) -> None:
        self.closed = True


class Flaky(TableSource):
    """A table that fails once at each of some rows, as a device does that is switched off."""

    def __init__(self, data: BarTable, fail_at=()) -> None:
        super().__init__(data)
        self.fail_at = set(fail_at)

    def poll(self, timeout_s: float) -> BarBlock | None:
        if self._next in self.fail_at:
            self.fail_at.discard(self._next)
            raise OSError('no route to host')
        return super().poll(timeout_s)


def bars(name: str, source, **how) -> JoinedBars:
    return JoinedBars(Feed(name, source.symbols), source, **how)


def read(group: SourceGroup, n: int | None = None) -> list[BarBlock]:
    blocks: list[BarBlock] = []
    deadline_s = time.monotonic() + DEADLINE_S
    while n is None or len(blocks) < n:
        assert time.monotonic() < deadline_s, f'{len(blocks)} blocks in time'
        try:
            block = group.poll(0.2)
        except EndOfStream:
            break
        if block is not None:
            blocks.append(block)
    return blocks


def plain(blocks):
    return [
        (
            b.event_time_ns,
            b.values.tobytes(),
            b.status.tobytes(),
            b'' if b.extra is None else b.extra.tobytes(),
        )
        for b in blocks
    ]


@pytest.fixture
def closing():
    groups: list[SourceGroup] = []
    yield lambda group: groups.append(group) or group
    for group in groups:
        group.close()
    left = [t.name for t in threading.enumerate() if t.name.startswith('source ')]
    assert left == []


def two(closing, **how) -> SourceGroup:
    slow = [Reading(95 + 50 * k, 'A', 'rate', float(k)) for k in range(8)]
    group = SourceGroup(
        [
            bars('stocks', Flaky(table(), **how)),
            bars('funds', TableSource(table(('C',), step=20))),
            JoinedReadings(Feed('basic'), Script(slow), None, live=False),
        ],
        [Channel('rate', 'basic')],
    )
    return closing(group)


def test_sources_of_different_pace_come_out_as_one_in_order_of_event_time(closing) -> None:
    group = two(closing)
    assert group.symbols == ('A', 'B', 'C')
    assert group.channels == ('rate',)
    assert group.finite
    group.open(None)
    blocks = read(group)
    stocks, funds = table(), table(('C',), step=20)
    assert [b.event_time_ns for b in blocks] == sorted(
        {*stocks.event_time_ns.tolist(), *funds.event_time_ns.tolist()}
    )
    for b in blocks:
        for part, columns in ((stocks, slice(0, 2)), (funds, slice(2, 3))):
            at = np.flatnonzero(part.event_time_ns == b.event_time_ns)
            if len(at):
                assert (b.status[columns] == part.status[at[0]]).all()
                np.testing.assert_array_equal(b.values[:, columns], part.values[at[0]])
            else:
                assert (b.status[columns] == BarStatus.NO_BAR).all()
        known = [k for k in range(8) if 95 + 50 * k <= b.event_time_ns]
        np.testing.assert_equal(b.extra, [[known[-1], np.nan, np.nan]])
    assert group.fates['basic.delivered'] == 8
    assert group.counts == {}


def test_a_source_that_dies_comes_back_where_it_was_and_nobody_misses_a_bar(closing) -> None:
    said: list[str] = []
    quiet, shaken = two(closing), two(closing, fail_at=(0, 3, 4, 20))
    shaken._log = said.append
    quiet.open(None)
    shaken.open(None)
    assert plain(read(shaken)) == plain(read(quiet))
    assert shaken.restarts == {'stocks': 4, 'funds': 0, 'basic': 0}
    assert shaken.problems == {}
    assert 'source stocks: OSError: no route to host; it is tried again' in said
    assert 'source stocks: runs again' in said


@pytest.mark.parametrize('at', [1, 7, 29, 41])
def test_a_group_opened_at_a_cursor_goes_on_bit_for_bit(closing, at) -> None:
    whole, first, second = two(closing), two(closing), two(closing)
    whole.open(None)
    first.open(None)
    before = read(first, at)
    cursor = json.loads(json.dumps(first.cursor()))
    second.open(cursor)
    assert plain(before + read(second)) == plain(read(whole))
    assert second.fates == whole.fates | {'basic.repeated': second.fates['basic.repeated']}
    assert not any('late' in name for name in second.fates)


def test_nobody_waits_for_a_silent_source_longer_than_it_deserves(closing) -> None:
    """One source never speaks: the other's bars go out, each without a wait of its own."""
    silent = TableSource(table(('C',)))
    silent.poll = lambda timeout_s: time.sleep(0.01)  # type: ignore[method-assign]
    group = closing(
        SourceGroup(
            [bars('stocks', TableSource(table())), bars('funds', silent, wait_s=0.05)],
        )
    )
    group.open(None)
    began_s = time.monotonic()
    blocks = read(group, N)
    assert time.monotonic() - began_s < N * 0.05, 'it was waited for once, not with every block'
    assert all((b.status[2] == BarStatus.NO_BAR) for b in blocks)


def test_bars_that_come_after_their_block_are_late_or_amend_it(closing, tmp_path) -> None:
    gate = threading.Event()
    slow = Flaky(table(('C',), n=3))
    fast_poll = slow.poll
    slow.poll = lambda t: fast_poll(t) if gate.wait(0.01) else None  # type: ignore[method-assign]
    file = tmp_path / 'kept' / 'quarantine.csv'
    group = closing(
        SourceGroup(
            [bars('stocks', TableSource(table(n=3))), bars('funds', slow, wait_s=0.0)],
            amend=1,
            quarantine=Quarantine(file),
        )
    )
    group.open(None)
    first = read(group, 3)
    assert [b.revision for b in first] == [0, 0, 0]
    gate.set()
    (amended,) = read(group)
    assert (amended.revision, amended.event_time_ns) == (1, first[2].event_time_ns)
    assert amended.status[2] == BarStatus.VALID
    assert group.counts == {'funds.late': 2}
    assert group.fates['funds.amended'] == 1
    rows = list(csv.DictReader(file.open(encoding='utf-8')))
    assert [(r['source'], r['symbol'], r['reason']) for r in rows] == [('funds', 'C', 'late')] * 2


def test_bars_of_a_live_source_are_judged_when_they_come_and_kept_apart(closing, tmp_path) -> None:
    made = table(n=4)
    made.values[1, 1, 0] = 0.01
    made.values[2, 0, 1] = np.inf
    file = tmp_path / 'quarantine.csv'
    group = closing(
        SourceGroup([bars('feed', TableSource(made), live=True)], quarantine=Quarantine(file))
    )
    group.open(None)
    blocks = read(group)
    assert blocks[1].status.tolist() == [BarStatus.REJECTED, made.status[1, 1]]
    assert np.isnan(blocks[1].values[:, 0]).all()
    assert blocks[2].status[1] == BarStatus.REJECTED
    assert group.counts == {'feed.high_below_low': 1, 'feed.not_a_number': 1}
    rows = list(csv.DictReader(file.open(encoding='utf-8')))
    assert [(r['symbol'], r['reason'], r['field'], r['value']) for r in rows] == [
        ('A', 'high_below_low', 'high', '0.01'),
        ('B', 'not_a_number', 'open', 'inf'),
    ]


def test_a_live_bar_from_the_future_is_refused_and_does_not_hold_the_cursor(closing) -> None:
    ahead = table(n=3)
    ahead.event_time_ns[1] = time.time_ns() + 10**15
    group = closing(SourceGroup([bars('feed', TableSource(ahead), live=True)]))
    group.open(None)
    assert [b.event_time_ns for b in read(group)] == [100, 120]
    assert group.counts == {'feed.ahead': int((ahead.status[1] != BarStatus.NO_BAR).sum())}
    assert group.cursor()['sources']['feed']['index'] == 3


def test_a_source_that_cannot_be_opened_is_named_and_the_rest_goes_on(closing) -> None:
    broken = TableSource(table(('C',)))
    broken.poll = _raise(DataError('x.csv: no such file'))  # type: ignore[method-assign]
    group = closing(
        SourceGroup(
            [bars('stocks', TableSource(table())), bars('funds', broken, wait_s=0.05)],
        )
    )
    group.open(None)
    assert len(read(group, N)) == N
    assert group.problems == {'funds': 'DataError: x.csv: no such file'}


def _raise(error: Exception):
    def poll(timeout_s: float) -> None:
        raise error

    return poll


def test_a_cursor_of_another_kind_is_refused(closing) -> None:
    group = two(closing)
    with pytest.raises(DataError, match='remove the checkpoint'):
        group.open({'kind': 'table', 'index': 3})


def test_sources_that_share_a_symbol_are_refused() -> None:
    with pytest.raises(ConfigError, match='A is given by one too'):
        SourceGroup([bars('one', TableSource(table())), bars('two', TableSource(table()))])


def test_a_quarantine_is_bounded_and_never_stops_the_stream(tmp_path, caplog) -> None:
    from heqis_core.io.quarantine import QuarantineRow

    row = QuarantineRow('feed', 'A', 1, 'late', 'close', 1.0)
    small = Quarantine(tmp_path / 'q.csv', max_bytes=200)
    for _ in range(40):
        small.keep(row)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['q.csv', 'q.csv.1']
    assert all(path.stat().st_size < 300 for path in tmp_path.iterdir())
    assert small.kept == 40
    blocked = Quarantine(tmp_path / 'q.csv' / 'below_a_file.csv')
    blocked.keep(row)
    blocked.keep(row)
    assert (blocked.kept, blocked.failed) == (0, 2)
    assert caplog.text.count('refused rows cannot be kept') == 1
