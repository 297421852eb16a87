# SPDX-License-Identifier: Apache-2.0
"""Alignment: nothing from the future, no matter who comes first, and every row accounted for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core import align
from heqis_core.align import ALWAYS_NS, Aligner, Channel, Fate, Feed
from heqis_core.bars import BarBlock, BarStatus
from heqis_core.errors import ConfigError
from heqis_core.readings import Reading

SYMBOLS = ('A', 'B')
OTHER = ('C',)
CHANNELS = (Channel('x', 'plant', 20), Channel('y', 'plant'))


def block(when_ns: int, closes: dict[str, float], symbols=SYMBOLS, status=BarStatus.VALID):
    values = np.full((6, len(symbols)), np.nan)
    said = np.full(len(symbols), BarStatus.NO_BAR, np.uint8)
    for symbol, close in closes.items():
        values[:4, symbols.index(symbol)] = close
        said[symbols.index(symbol)] = status
    return BarBlock(when_ns, symbols, values, said, 0, 7)


def aligner(lateness_ns: int = 0, **options) -> Aligner:
    feeds = (
        Feed('stocks', SYMBOLS, lateness_ns),
        Feed('funds', OTHER, lateness_ns),
        Feed('plant', (), lateness_ns),
    )
    return Aligner(feeds, CHANNELS, **options)


def drain(one: Aligner, ignore=frozenset()) -> list[BarBlock]:
    blocks = []
    while (found := one.pop(ignore)) is not None:
        blocks.append(found)
    return blocks


def end(one: Aligner) -> list[BarBlock]:
    for name in one.feeds:
        one.advance(name, ALWAYS_NS)
    return drain(one)


def put(one: Aligner, row) -> None:
    if isinstance(row, Reading):
        one.put_readings('plant', [row])
    else:
        one.put_block('funds' if row.symbols == OTHER else 'stocks', row)


def plain(blocks: list[BarBlock]):
    return [
        (b.event_time_ns, b.revision, b.values.tobytes(), b.status.tobytes(), b.extra.tobytes())
        for b in blocks
    ]


def n_rows(rows) -> int:
    return sum(
        1 if isinstance(row, Reading) else int((row.status != BarStatus.NO_BAR).sum())
        for row in rows
    )


def when(row) -> int:
    return row.event_time_ns


times = st.integers(0, 60)
values = st.sampled_from([1.0, 2.0, 3.0, math.nan])
readings = st.builds(
    Reading, times, st.sampled_from(['A', 'B', 'C', '*']), st.sampled_from(['x', 'y']), values
)
stock_bars = st.builds(
    block, times, st.dictionaries(st.sampled_from(SYMBOLS), st.sampled_from([1.0, 2.0]))
)
fund_bars = st.builds(lambda t, c: block(t, {'C': c}, OTHER), times, st.sampled_from([5.0, 6.0]))
rows_of_all = st.lists(st.one_of(readings, stock_bars, fund_bars), max_size=40)


@given(rows_of_all, st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_neither_blocks_nor_counts(rows, random) -> None:
    one, other = aligner(1000), aligner(1000)
    for row in rows:
        put(one, row)
    shuffled = list(rows)
    random.shuffle(shuffled)
    for row in shuffled:
        put(other, row)
    assert plain(end(one)) == plain(end(other))
    assert one.ledger.counts == other.ledger.counts


@given(rows_of_all, st.lists(st.integers(0, 10), min_size=40, max_size=40))
def test_rows_late_by_no_more_than_allowed_come_out_as_if_in_time(rows, delays) -> None:
    at_the_end, at_once = aligner(1000), aligner(10)
    for row in rows:
        put(at_the_end, row)
    arriving = sorted(zip(rows, delays, strict=False), key=lambda pair: when(pair[0]) + pair[1])
    out = []
    for row, _ in arriving:
        put(at_once, row)
        out += drain(at_once)
    assert plain(out + end(at_once)) == plain(end(at_the_end))
    assert at_once.ledger.counts == at_the_end.ledger.counts


@given(rows_of_all, times)
def test_what_comes_after_an_event_time_does_not_change_what_was_known_then(rows, cut) -> None:
    whole, part = aligner(1000), aligner(1000)
    for row in rows:
        put(whole, row)
        if when(row) <= cut:
            put(part, row)
    until_cut = [b for b in end(whole) if b.event_time_ns <= cut]
    assert plain(until_cut) == plain(end(part))


@given(rows_of_all, st.sets(st.sampled_from(['stocks', 'funds', 'plant'])), st.integers(0, 3))
def test_every_row_is_in_one_count_or_pending_whatever_the_policy(rows, ignored, amend) -> None:
    one = aligner(0, amend=amend)
    for number, row in enumerate(rows):
        put(one, row)
        drain(one, frozenset(ignored))
        counted = sum(sum(counts.values()) for counts in one.ledger.counts.values())
        # Of readings that were joined but are not yet used nothing is left after a pop.
        assert counted + one.n_pending == n_rows(rows[: number + 1])
        assert all(n >= 0 for counts in one.ledger.counts.values() for n in counts.values())
    end(one)
    counted = sum(sum(counts.values()) for counts in one.ledger.counts.values())
    waiting = one.n_pending
    assert counted + waiting == n_rows(rows)


def naive_as_of(found: list[Reading], channel: Channel, symbol: str, now: int) -> float:
    of_it = [r for r in found if r.channel == channel.name and r.event_time_ns <= now]
    best = (-1, 0, math.nan)
    for name, rank in (('*', 0), (symbol, 1)):
        for r in of_it:
            twins = [
                s for s in of_it if (s.symbol, s.event_time_ns) == (r.symbol, r.event_time_ns)
            ]
            if r.symbol != name or len({str(s.value) for s in twins}) > 1:
                continue
            best = max(best, (r.event_time_ns, rank, r.value), key=lambda b: b[:2])
    too_old = best[0] >= 0 and now - best[0] > channel.tolerance_ns
    return math.nan if too_old else best[2]


@given(st.lists(readings, max_size=25), st.lists(times, min_size=1, max_size=6))
def test_a_block_carries_the_newest_reading_within_its_tolerance(found, moments) -> None:
    one = aligner(1000)
    for moment in moments:
        put(one, block(moment, {'A': 1.0}))
    for reading in found:
        put(one, reading)
    for got in end(one):
        for c, channel in enumerate(CHANNELS):
            for s, symbol in enumerate(one.symbols):
                expected = naive_as_of(found, channel, symbol, got.event_time_ns)
                np.testing.assert_equal(got.extra[c, s], expected)


def test_a_block_waits_for_every_feed_and_says_for_whom() -> None:
    one = aligner()
    put(one, block(10, {'A': 1.0}))
    assert one.pop() is None
    assert one.waits_for() == ('funds', 'plant')
    put(one, block(10, {'C': 5.0}, OTHER))
    put(one, Reading(10, 'A', 'x', 3.0))
    assert one.waits_for() == ('plant',), 'a further reading of time 10 may come'
    put(one, Reading(11, 'A', 'x', 4.0))
    got = one.pop()
    assert got is not None
    assert got.symbols == ('A', 'B', 'C')
    assert got.status.tolist() == [BarStatus.VALID, BarStatus.NO_BAR, BarStatus.VALID]
    assert got.values[3, [0, 2]].tolist() == [1.0, 5.0]
    assert got.channels == ('x', 'y')
    np.testing.assert_equal(got.extra, [[3.0, np.nan, np.nan], [np.nan] * 3])
    assert got.ingest_ns == 7


def test_a_feed_that_is_ignored_holds_nobody_up_and_its_bars_are_late() -> None:
    one = aligner()
    put(one, block(10, {'A': 1.0}))
    assert one.pop(frozenset({'funds', 'plant'})) is not None
    put(one, block(10, {'C': 5.0}, OTHER))
    assert drain(one) == []
    assert one.ledger.counts['funds'] == {Fate.LATE.value: 1}
    [(fate, refused)] = one.ledger.take_refused()
    assert fate is Fate.LATE
    assert refused == align.Refused('funds', 10, 'C', '', 5.0)
    assert one.ledger.take_refused() == []


def test_a_late_bar_amends_a_block_that_may_still_change() -> None:
    one = aligner(amend=1)
    others = frozenset({'funds', 'plant'})
    put(one, block(10, {'A': 1.0}))
    first = one.pop(others)
    put(one, block(10, {'C': 5.0}, OTHER))
    put(one, block(10, {'A': 1.0}))
    amended = one.pop(others)
    assert amended is not None
    assert first is not None
    assert (amended.event_time_ns, amended.revision) == (10, 1)
    assert amended.values[3, 2] == 5.0
    assert first.status[2] == BarStatus.NO_BAR, 'what was handed over stays as it was'
    assert one.ledger.counts['funds'] == {Fate.AMENDED.value: 1}
    assert one.ledger.counts['stocks'] == {Fate.DELIVERED.value: 1, Fate.DUPLICATE.value: 1}
    put(one, block(20, {'A': 1.0}))
    one.pop(others)
    put(one, block(10, {'C': 6.0}, OTHER))
    assert one.pop(others) is None, 'only the last block may change'
    assert one.ledger.counts['funds'][Fate.LATE.value] == 1


def test_bars_that_differ_are_both_refused_and_the_symbol_says_so() -> None:
    one = aligner()
    put(one, block(10, {'A': 1.0, 'B': 2.0}))
    put(one, block(10, {'A': 1.5}))
    [got] = end(one)
    assert got.status.tolist() == [BarStatus.REJECTED, BarStatus.VALID, BarStatus.NO_BAR]
    assert one.ledger.counts['stocks'] == {
        Fate.CONFLICTING.value: 2,
        Fate.DELIVERED.value: 1,
    }


def test_a_clock_gone_wrong_does_not_make_everything_after_it_late() -> None:
    one = aligner()
    one.put_block('stocks', block(10**9, {'A': 1.0}), not_after_ns=100)
    one.put_readings('plant', [Reading(10**9, 'A', 'x', 1.0)], not_after_ns=100)
    put(one, block(10, {'A': 1.0}))
    assert len(end(one)) == 1
    assert one.ledger.counts['stocks'] == {Fate.AHEAD.value: 1, Fate.DELIVERED.value: 1}
    assert one.ledger.counts['plant'] == {Fate.AHEAD.value: 1}


@pytest.mark.parametrize(
    ('reading', 'fate'),
    [
        (Reading(5, 'Z', 'x', 1.0), Fate.UNKNOWN_SYMBOL),
        (Reading(5, 'A', 'x', math.inf), Fate.NOT_A_NUMBER),
    ],
)
def test_a_reading_that_fits_nowhere_is_counted_and_kept_apart(reading, fate) -> None:
    one = aligner()
    put(one, reading)
    assert one.ledger.counts['plant'] == {fate.value: 1}
    assert one.ledger.take_refused()[0][0] is fate


def test_a_reading_that_nobody_asked_for_is_counted_and_not_kept() -> None:
    one = aligner()
    put(one, Reading(5, 'A', 'z', 1.0))
    assert one.ledger.counts['plant'] == {Fate.UNKNOWN_CHANNEL.value: 1}
    assert one.ledger.take_refused() == []


def test_pending_blocks_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr('heqis_core.align.blocks.MAX_PENDING_BLOCKS', 2)
    one = aligner()
    for moment in range(1, 5):
        put(one, block(moment, {'A': 1.0}))
    assert one.n_pending == 2
    assert one.ledger.counts['stocks'] == {Fate.OVERFLOW.value: 2}


def test_pending_readings_are_bounded_and_the_newest_stay_without_a_look_ahead(
    monkeypatch,
) -> None:
    """Hours of readings wait for one bar: the old ones give way, and no block sees a later one."""
    monkeypatch.setattr('heqis_core.align.asof.MAX_PENDING', 3)
    one = aligner(amend=0)
    for moment in range(1, 8):
        put(one, Reading(moment, 'A', 'y', float(moment)))
    put(one, Reading(2, 'A', 'y', 2.5))
    assert one.n_pending == 4
    put(one, block(3, {'A': 1.0}))
    put(one, block(6, {'A': 1.0}))
    early, later = drain(one, frozenset({'funds', 'plant'}))
    assert math.isnan(early.extra[1, 0]), 'of time 3 nothing is known any longer'
    assert later.extra[1, 0] == 6.0
    assert one.ledger.counts['plant'] == {Fate.SUPERSEDED.value: 6, Fate.DELIVERED.value: 1}
    assert one.n_pending == 1


@settings(max_examples=50)
@given(rows_of_all, times)
def test_a_restart_goes_on_with_the_same_blocks_when_sources_repeat_themselves(rows, cut) -> None:
    """The rows up to the cut come out, the process dies, the sources say all of it again."""
    before, undisturbed = aligner(1000), aligner(1000)
    for row in rows:
        put(undisturbed, row)
        if when(row) <= cut:
            put(before, row)
    for name in before.feeds:
        before.advance(name, cut)
    out = drain(before)
    last = out[-1].event_time_ns if out else -1
    after = aligner(1000)
    after.load(before.save())
    for row in rows:
        put(after, row)
    assert plain(out + end(after)) == plain(end(undisturbed))
    late = sum(counts[Fate.LATE.value] for counts in after.ledger.counts.values())
    assert late == 0
    again = sum(n_rows([row]) for row in rows if when(row) <= last)
    repeated = sum(counts[Fate.REPEATED.value] for counts in after.ledger.counts.values())
    assert repeated == again


def test_a_bar_that_never_came_out_is_late_after_a_restart_and_not_repeated() -> None:
    """The funds were silent when the process died; their bar of that time comes only now."""
    before = aligner()
    put(before, block(10, {'A': 1.0}))
    assert before.pop(frozenset({'funds', 'plant'})) is not None
    after = aligner()
    after.load(before.save())
    put(after, block(10, {'A': 1.0}))
    put(after, block(10, {'C': 5.0}, OTHER))
    assert after.ledger.counts['stocks'][Fate.REPEATED.value] == 1
    assert after.ledger.counts['funds'] == {Fate.LATE.value: 1}
    assert after.ledger.take_refused()[0][0] is Fate.LATE


@pytest.mark.parametrize(
    ('feeds', 'channels', 'words'),
    [
        ([Feed('a', ('X',)), Feed('b', ('X',))], [], 'X is given by a too'),
        ([Feed('a', ('X',)), Feed('a', ('Y',))], [], 'two of this name'),
        ([Feed('a')], [], 'none gives bars'),
        ([Feed('a', ('X',))], [Channel('x', 'b')], "no source 'b'"),
        ([Feed('a', ('X',))], [Channel('x', 'a'), Channel('x', 'a')], 'given twice'),
    ],
)
def test_feeds_that_cannot_be_aligned_are_named(feeds, channels, words) -> None:
    with pytest.raises(ConfigError, match=words):
        Aligner(feeds, channels)
