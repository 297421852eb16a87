# SPDX-License-Identifier: Apache-2.0
"""The feed: whatever is lost, late or given twice, what it shows is what came, within bounds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.bars import BarBlock, BarStatus
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import Stage
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data
from heqis_core.testing_graph import make_stamps
from heqis_dashboard.feed import KEEP_SIGNALS, MAX_STREAMS, Changes, Feed
from heqis_dashboard.marks import Candle, Mark

STREAM = 'ashare'
SYMBOLS = ('600000.SH', '600519.SH')
PLENTY = 1_000_000_000
ALL = 1_000_000

SHOWN = (
    (Action.BUY, Reason.UP, 'BUY'),
    (Action.SELL, Reason.DOWN, 'SELL'),
    (Action.HOLD, Reason.INSIDE_BAND, ''),
    (Action.NONE, Reason.WARMING, ''),
    (Action.NONE, Reason.UP | Reason.HELD, 'REFUSED'),
)
"""What a decision can say, and the mark that it makes."""


def make_bars(
    time_ns: int,
    symbols: tuple[str, ...] = SYMBOLS,
    status: Sequence[int] | None = None,
    revision: int = 0,
) -> BarBlock:
    """Return a block whose prices tell event time, symbol and revision."""
    base = [time_ns % 1000 + 10 + len(name) + ord(name[0]) + revision / 8 for name in symbols]
    values = np.array(base) + np.array([[0.0], [0.5], [-0.5], [0.25], [100.0], [0.0]])
    codes = np.array([BarStatus.VALID] * len(symbols) if status is None else status, np.uint8)
    values[:, codes != BarStatus.VALID] = np.nan
    return BarBlock(time_ns, symbols, values, codes, revision)


def make_decisions(
    time_ns: int,
    symbols: tuple[str, ...] = SYMBOLS,
    action: Sequence[int] | int = Action.BUY,
    reasons: Sequence[int] | int = Reason.UP,
    revision: int = 0,
    stream: str = STREAM,
) -> Decisions:
    """Return decisions whose validity tells event time, place and revision."""
    n = len(symbols)
    places = np.arange(n)
    return Decisions(
        stream=stream,
        epoch=7,
        seq=time_ns,
        event_time_ns=time_ns,
        revision=revision,
        bundle_id='fedcba9876543210',
        generator='gru',
        symbols=symbols,
        action=np.broadcast_to(np.uint8(action), n).copy(),
        reasons=np.broadcast_to(np.uint32(reasons), n).copy(),
        score=(places / 8).astype(np.float32),
        target_position=np.full(n, np.nan, np.float32),
        probabilities=np.tile(np.float32([0.25, 0.125, 0.625]), (n, 1)),
        predicted_return=np.full(n, 0.5, np.float32),
        valid_until_ns=time_ns * 100 + revision * 10 + places,
    )


def view(feed: Feed, symbol: str, stream: str = STREAM) -> Changes:
    return feed.changes(stream, symbol, -1, ALL)


# --- whatever the order ---


@dataclass(frozen=True)
class Part:
    """Bars or decisions of one event time; a code for each symbol chooses what they say."""

    is_bars: bool
    time_ns: int
    revision: int
    symbols: tuple[str, ...]
    codes: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int, bool]:
        return self.time_ns, self.revision, self.is_bars

    def made(self) -> BarBlock | Decisions:
        codes = self.codes[: len(self.symbols)]
        if self.is_bars:
            status = [max(BarStatus.VALID, code) for code in codes]
            return make_bars(self.time_ns, self.symbols, status, self.revision)
        said = [SHOWN[code][:2] for code in codes]
        action, reasons = zip(*said, strict=True)
        return make_decisions(self.time_ns, self.symbols, action, reasons, self.revision)

    def give(self, feed: Feed) -> bool:
        made = self.made()
        if isinstance(made, BarBlock):
            return feed.add_bars(STREAM, self.time_ns, made)
        return feed.add_decisions(made)


UNIVERSES = (('A', 'B'), ('A', 'B'), ('B', 'A'), ('C', 'B', 'A'), ('C',))


def parts(universes: Sequence[tuple[str, ...]] = UNIVERSES, times: int = 6) -> st.SearchStrategy:
    return st.builds(
        Part,
        is_bars=st.booleans(),
        time_ns=st.integers(1, times),
        revision=st.integers(0, 2),
        symbols=st.sampled_from(universes),
        codes=st.tuples(*[st.sampled_from((0, 0, 1, 1, 2, 3, 4))] * 3),
    )


def distinct(of: st.SearchStrategy, most: int = 16) -> st.SearchStrategy:
    return st.lists(of, max_size=most, unique_by=lambda part: part.key)


@st.composite
def deliveries(draw: st.DrawFn, of: st.SearchStrategy) -> list[Part]:
    """Return each of some parts at least once, in any order."""
    given_once = draw(distinct(of))
    again = draw(st.lists(st.sampled_from(given_once), max_size=8)) if given_once else []
    return draw(st.permutations(given_once + again))


def newest(came: Iterable[Part]) -> dict[tuple[int, bool], Part]:
    """Return what counts of each event time, bars and decisions apart: the highest revision."""
    return {(part.time_ns, part.is_bars): part for part in sorted(came, key=lambda p: p.key)}


def universe_of(came: Iterable[Part]) -> tuple[str, ...]:
    """Return the symbols of the newest bars, or of the newest decisions if there are no bars."""
    told = sorted(newest(came).values(), key=lambda part: (part.is_bars, part.time_ns))
    return told[-1].symbols if told else ()


def expected_view(came: Sequence[Part], symbol: str) -> tuple[list[tuple], list[tuple]]:
    """Return what a symbol shows: (time, close) of its candles, (time, kind, version) of marks."""
    candles, marks = [], []
    told = newest(came) if symbol in universe_of(came) else {}
    for time_ns, is_bars in sorted(told):
        if not is_bars:
            continue
        bars, said = told[time_ns, True].made(), told.get((time_ns, False))
        if symbol not in bars.symbols or bars.status[bars.symbols.index(symbol)] != 1:
            continue
        candles.append((time_ns, bars.values[3, bars.symbols.index(symbol)]))
        if said is not None and symbol in said.symbols:
            place = said.symbols.index(symbol)
            kind = SHOWN[said.codes[place]][2]
            if kind:
                marks.append((time_ns, kind, time_ns * 100 + said.revision * 10 + place))
    return candles, marks


def expected_signals(came: Iterable[Part]) -> list[tuple]:
    found = [
        (said.time_ns, symbol, SHOWN[code][2])
        for (_, is_bars), said in newest(came).items()
        if not is_bars
        for symbol, code in zip(said.symbols, said.codes, strict=False)
    ]
    return sorted((row for row in found if row[2] in ('BUY', 'SELL')), reverse=True)


def seen(changes: Changes) -> tuple[list[tuple], list[tuple]]:
    candles = [(candle.time_ns, candle.close) for candle in changes.candles]
    marks = [(mark.time_ns, mark.kind, mark.valid_until_ns) for mark, _ in changes.marks]
    by_time = dict(zip([row[0] for row in candles], changes.candles, strict=True))
    assert all(by_time[mark.time_ns] == candle for mark, candle in changes.marks)
    return candles, marks


def bytes_of(came: Iterable[Part]) -> int:
    return sum(part.made().nbytes for part in newest(came).values())


@given(deliveries(parts()))
def test_feed_in_any_order_and_however_often_shows_the_newest_revisions_of_the_newest_universe(
    given_parts: list[Part],
) -> None:
    feed, highest = Feed(100, PLENTY), {}
    for part in given_parts:
        of = (part.time_ns, part.is_bars)
        change = feed.change
        assert part.give(feed) is (part.revision > highest.get(of, -1))
        assert (feed.change > change) is (part.revision > highest.get(of, -1))
        highest[of] = max(part.revision, highest.get(of, -1))
    universe = universe_of(given_parts)
    assert feed.choices() == tuple((STREAM, symbol) for symbol in sorted(universe))
    for symbol in 'ABCD':
        changes = view(feed, symbol)
        assert changes.whole
        assert seen(changes) == expected_view(given_parts, symbol)
    signals = [(mark.time_ns, mark.symbol, mark.kind) for mark in feed.signals(ALL)]
    assert signals == expected_signals(given_parts)
    assert feed.n_bytes == bytes_of(given_parts)
    assert feed.last_time_ns() == max((part.time_ns for part in given_parts), default=0)


@given(deliveries(parts((SYMBOLS,), times=9)), st.integers(1, 9), st.integers(0, 20))
def test_feed_within_bounds_shows_the_newest_that_fits_in_whatever_order_it_came(
    given_parts: list[Part], history: int, thousands: int
) -> None:
    feed = Feed(history, max_bytes=thousands * 1000)
    one_moment = make_bars(1).nbytes + make_decisions(1).nbytes
    for part in given_parts:
        part.give(feed)
        assert feed.n_bytes <= max(thousands * 1000, one_moment)
    kept: list[Part] = []
    for time_ns in sorted({part.time_ns for part in given_parts}, reverse=True)[:history]:
        more = kept + [part for part in given_parts if part.time_ns == time_ns]
        if kept and bytes_of(more) > thousands * 1000:
            break
        kept = more
    assert feed.n_bytes == bytes_of(kept)
    for symbol in SYMBOLS:
        assert seen(view(feed, symbol)) == expected_view(kept, symbol)


# --- what changed ---


@dataclass
class Reader:
    """Keeps what it was told of one symbol."""

    symbol: str
    since: int = -1
    candles: dict[int, Candle] = field(default_factory=dict)
    marks: dict[int, tuple[Mark, Candle]] = field(default_factory=dict)

    def read(self, feed: Feed) -> Changes:
        changes = feed.changes(STREAM, self.symbol, self.since, ALL)
        assert changes.change >= self.since
        if changes.whole:
            self.candles, self.marks = {}, {}
        self.since = changes.change
        self.candles |= {candle.time_ns: candle for candle in changes.candles}
        self.marks |= {mark.time_ns: (mark, candle) for mark, candle in changes.marks}
        assert [candle.time_ns for candle in changes.candles] == sorted(
            {candle.time_ns for candle in changes.candles}
        )
        return changes


@given(
    st.lists(st.one_of(st.none(), parts(), parts(UNIVERSES[:1], times=30)), max_size=60),
    st.one_of(st.integers(1, 6), st.just(100)),
    st.sampled_from('AB'),
)
def test_reader_of_changes_in_any_chunks_has_the_whole_view_and_at_most_older_ones_before_it(
    steps: list[Part | None], history: int, symbol: str
) -> None:
    feed, reader = Feed(history, PLENTY), Reader(symbol)
    for step in [*steps, None]:
        if step is not None:
            step.give(feed)
            continue
        reader.read(feed)
        whole = view(feed, symbol)
        n = len(whole.candles) if feed.counters['moments_dropped'] else len(reader.candles)
        told = [reader.candles[time_ns] for time_ns in sorted(reader.candles)]
        assert told[len(told) - n :] == whole.candles
        begin = whole.candles[0].time_ns if n and whole.candles else 1 << 62
        marks = [reader.marks[time_ns] for time_ns in sorted(reader.marks) if time_ns >= begin]
        assert marks == whole.marks


def test_reader_who_is_up_to_date_gets_nothing_and_only_what_came_since() -> None:
    feed, reader = Feed(100, PLENTY), Reader('600519.SH')
    for time_ns in (1, 2, 3):
        feed.add_bars(STREAM, time_ns, make_bars(time_ns))
    assert len(reader.read(feed).candles) == 3
    again = reader.read(feed)
    assert (again.whole, again.candles, again.marks) == (False, [], [])
    feed.add_bars(STREAM, 4, make_bars(4))
    assert [candle.time_ns for candle in reader.read(feed).candles] == [4]


def test_other_streams_are_no_news_of_a_stream() -> None:
    feed, reader = Feed(100, PLENTY), Reader('600519.SH')
    feed.add_bars(STREAM, 1, make_bars(1))
    reader.read(feed)
    for time_ns in range(1, 99):
        feed.add_bars('futures', time_ns, make_bars(time_ns))
    news = reader.read(feed)
    assert (news.whole, news.candles, news.change) == (False, [], feed.change)


def test_reader_who_slept_longer_than_changes_are_remembered_gets_all() -> None:
    feed, reader = Feed(2, PLENTY), Reader('600519.SH')
    feed.add_bars(STREAM, 1, make_bars(1))
    reader.read(feed)
    # The newest comes first: its change is the first that is forgotten.
    for time_ns in (100, *range(2, 20)):
        feed.add_bars(STREAM, time_ns, make_bars(time_ns))
    news = reader.read(feed)
    assert news.whole
    assert [candle.time_ns for candle in news.candles] == [19, 100]


def test_reader_who_slept_learns_what_was_taken_back_however_many_changes_follow() -> None:
    for n_after in range(12):
        feed, reader = Feed(2, PLENTY), Reader('600519.SH')
        for time_ns in (*range(1, 9), 100):
            feed.add_bars(STREAM, time_ns, make_bars(time_ns))
        feed.add_decisions(make_decisions(100))
        reader.read(feed)
        feed.add_decisions(make_decisions(100, action=Action.HOLD, revision=1))
        for time_ns in range(9, 9 + n_after):
            feed.add_bars(STREAM, time_ns, make_bars(time_ns))
        reader.read(feed)
        assert (100 in reader.candles, reader.marks) == (True, {})


def test_same_symbols_in_another_tuple_are_no_other_universe() -> None:
    feed, reader = Feed(10, PLENTY), Reader('600519.SH')
    feed.add_bars(STREAM, 1, make_bars(1))
    reader.read(feed)
    universe = feed.universe
    feed.add_bars(STREAM, 2, make_bars(2, tuple(list(SYMBOLS))))
    assert (reader.read(feed).whole, feed.universe) == (False, universe)


def test_whole_view_is_the_last_candles_up_to_the_limit_and_only_their_marks() -> None:
    feed = Feed(100, PLENTY)
    for time_ns in range(1, 11):
        status = BarStatus.SUSPENDED if time_ns % 2 else BarStatus.VALID
        feed.add_bars(STREAM, time_ns, make_bars(time_ns, status=[1, status]))
        feed.add_decisions(make_decisions(time_ns))
    changes = feed.changes(STREAM, '600519.SH', -1, 3)
    assert [candle.time_ns for candle in changes.candles] == [6, 8, 10]
    assert [mark.time_ns for mark, _ in changes.marks] == [6, 8, 10]


@pytest.mark.parametrize(('stream', 'symbol'), [(STREAM, 'nobody'), ('nowhere', '600519.SH')])
def test_unknown_stream_or_symbol_has_nothing_to_show(stream: str, symbol: str) -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1))
    assert feed.changes(stream, symbol, -1, ALL) == Changes(feed.change, True, [], [])


# --- candles and marks ---


def test_candle_is_the_bar_of_its_symbol_and_a_volume_that_is_not_there_is_none() -> None:
    block = make_bars(5)
    block.values[:, 1] = [10.0, 12.0, 9.5, 11.0, np.nan, np.nan]
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, block)
    assert view(feed, '600519.SH').candles == [Candle(5, 10.0, 12.0, 9.5, 11.0, None)]
    (other,) = view(feed, '600000.SH').candles
    assert other.volume == block.values[4, 0]


@pytest.mark.parametrize('status', [status for status in BarStatus if status != BarStatus.VALID])
def test_day_without_a_valid_bar_has_no_candle_and_its_decision_no_mark(status: int) -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1, status=[BarStatus.VALID, status]))
    feed.add_decisions(make_decisions(1))
    assert (view(feed, '600519.SH').candles, view(feed, '600519.SH').marks) == ([], [])
    assert len(view(feed, '600000.SH').candles) == len(view(feed, '600000.SH').marks) == 1


def test_mark_waits_for_its_candle() -> None:
    feed, reader = Feed(10, PLENTY), Reader('600519.SH')
    feed.add_bars(STREAM, 1, make_bars(1))
    reader.read(feed)
    feed.add_decisions(make_decisions(2))
    assert reader.read(feed).marks == []
    feed.add_bars(STREAM, 2, make_bars(2))
    news = reader.read(feed)
    assert (news.whole, [candle.time_ns for candle in news.candles]) == (False, [2])
    assert [(mark.time_ns, candle) for mark, candle in news.marks] == [(2, news.candles[0])]


def test_mark_that_comes_after_its_candle_comes_alone() -> None:
    feed, reader = Feed(10, PLENTY), Reader('600519.SH')
    feed.add_bars(STREAM, 1, make_bars(1))
    (candle,) = reader.read(feed).candles
    feed.add_decisions(make_decisions(1))
    news = reader.read(feed)
    assert (news.whole, news.candles) == (False, [])
    assert [(mark.time_ns, on) for mark, on in news.marks] == [(1, candle)]


def test_mark_carries_all_that_was_decided() -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1))
    decisions = make_decisions(1, action=[1, 3], reasons=[0, Reason.DOWN | Reason.GAP])
    feed.add_decisions(replace(decisions, stamps=make_stamps((Stage.COMMITTED, 77))))
    ((mark, _),) = view(feed, '600519.SH').marks
    assert mark == Mark(
        stream=STREAM,
        symbol='600519.SH',
        time_ns=1,
        kind='SELL',
        score=0.125,
        probabilities=(0.25, 0.125, 0.625),
        predicted_return=0.5,
        reasons=('gap', 'down'),
        bundle_id='fedcba9876543210',
        generator='gru',
        valid_until_ns=101,
        released_ns=77,
    )
    assert feed.signals(5) == [mark]


@pytest.mark.parametrize('reason', [Reason.STALE, Reason.HELD, Reason.KILL_SWITCH])
def test_signal_that_the_risk_gate_refused_is_a_mark_of_its_own_and_no_signal(
    reason: Reason,
) -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1))
    feed.add_decisions(make_decisions(1).refuse(np.array([False, True]), reason))
    ((mark, _),) = view(feed, '600519.SH').marks
    assert mark.kind == 'REFUSED'
    assert set(mark.reasons) == {'up', reason.name.lower()}
    assert mark.score == 0.125
    assert [signal.symbol for signal in feed.signals(5)] == ['600000.SH']


@pytest.mark.parametrize(
    'reason', [Reason.WARMING, Reason.GAP, Reason.SUSPENDED, Reason.NOT_FINITE, 0]
)
def test_no_statement_without_a_refusal_is_no_mark(reason: int) -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1))
    feed.add_decisions(make_decisions(1, action=Action.NONE, reasons=reason))
    feed.add_decisions(make_decisions(2, action=Action.HOLD, reasons=Reason.STALE))
    assert (view(feed, '600519.SH').marks, feed.signals(5)) == ([], [])


def test_action_that_nobody_knows_is_no_mark_and_harms_nobody() -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1))
    assert feed.add_decisions(make_decisions(1, action=[Action.BUY, 77]))
    assert view(feed, '600519.SH').marks == []
    assert [mark.symbol for mark in feed.signals(5)] == ['600000.SH']


def test_higher_revision_takes_back_candle_mark_and_signal_of_the_lower_one() -> None:
    feed, reader = Feed(10, PLENTY), Reader('600519.SH')
    for time_ns in (1, 2):
        feed.add_bars(STREAM, time_ns, make_bars(time_ns))
        feed.add_decisions(make_decisions(time_ns))
    reader.read(feed)
    feed.add_decisions(make_decisions(1, action=[2, 1], revision=1))
    reader.read(feed)
    assert sorted(reader.marks) == [2]
    assert [(mark.time_ns, mark.symbol) for mark in feed.signals(9)] == [
        (2, '600519.SH'),
        (2, '600000.SH'),
        (1, '600000.SH'),
    ]
    feed.add_bars(STREAM, 3, make_bars(2, status=[1, BarStatus.REJECTED], revision=1))
    reader.read(feed)
    assert (sorted(reader.candles), sorted(reader.marks)) == ([1], [])


# --- symbols ---


def test_stream_shows_each_symbol_where_it_stands_when_its_universe_changes() -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 1, make_bars(1, ('A', 'B')))
    feed.add_decisions(make_decisions(1, ('A', 'B'), action=[2, 3]))
    universe = feed.universe
    feed.add_bars(STREAM, 2, make_bars(2, ('C', 'A', 'B')))
    feed.add_decisions(make_decisions(2, ('C', 'A', 'B'), action=[1, 3, 2]))
    assert feed.universe > universe
    assert feed.choices() == ((STREAM, 'A'), (STREAM, 'B'), (STREAM, 'C'))
    kinds = {s: [(m.time_ns, m.kind) for m, _ in view(feed, s).marks] for s in 'ABC'}
    assert kinds == {'A': [(1, 'BUY'), (2, 'SELL')], 'B': [(1, 'SELL'), (2, 'BUY')], 'C': []}
    opens = [candle.open for candle in view(feed, 'A').candles]
    assert opens == [make_bars(1, ('A',)).values[0, 0], make_bars(2, ('A',)).values[0, 0]]


def test_late_bar_of_an_older_universe_does_not_bring_it_back() -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars(STREAM, 2, make_bars(2, ('A', 'C')))
    universe = feed.universe
    feed.add_bars(STREAM, 1, make_bars(1, ('A', 'B')))
    assert (feed.choices(), feed.universe) == (((STREAM, 'A'), (STREAM, 'C')), universe)
    assert [candle.time_ns for candle in view(feed, 'A').candles] == [1, 2]


def test_reader_of_a_symbol_that_left_and_came_back_gets_all_of_it_again() -> None:
    feed, reader = Feed(10, PLENTY), Reader('B')
    for time_ns, symbols in enumerate((('A', 'B'), ('A',), ('A', 'B')), 1):
        feed.add_bars(STREAM, time_ns, make_bars(time_ns, symbols))
        reader.read(feed)
        assert sorted(reader.candles) == [[1], [], [1, 3]][time_ns - 1]


def test_choices_are_sorted_over_all_streams_and_known_from_decisions_alone() -> None:
    feed = Feed(10, PLENTY)
    feed.add_bars('z', 1, make_bars(1, ('B', 'A')))
    feed.add_decisions(make_decisions(1, ('C',), stream='a'))
    assert feed.choices() == (('a', 'C'), ('z', 'A'), ('z', 'B'))
    assert feed.changes('a', 'C', -1, 9).candles == []


# --- bounds ---


def test_of_two_streams_the_longer_one_gives_way_and_one_bar_of_each_stays() -> None:
    size = make_bars(1).nbytes
    feed = Feed(100, 10 * size)
    for time_ns in range(1, 9):
        feed.add_bars('long', time_ns, make_bars(time_ns))
    for time_ns in range(1, 4):
        feed.add_bars('short', time_ns, make_bars(time_ns))
    assert [c.time_ns for c in view(feed, '600519.SH', 'long').candles] == list(range(2, 9))
    assert [c.time_ns for c in view(feed, '600519.SH', 'short').candles] == [1, 2, 3]
    assert feed.n_bytes == 10 * size
    tight = Feed(100, max_bytes=1)
    for time_ns in range(1, 4):
        tight.add_bars('a', time_ns, make_bars(time_ns))
        tight.add_bars('b', time_ns, make_bars(time_ns))
    assert [c.time_ns for c in view(tight, '600519.SH', 'a').candles] == [3]
    assert [c.time_ns for c in view(tight, '600519.SH', 'b').candles] == [3]
    assert tight.counters['moments_dropped'] == 4


def test_what_was_dropped_for_want_of_room_does_not_come_back_between_what_stayed() -> None:
    size, room = make_bars(1).nbytes, make_bars(1).nbytes + make_decisions(1).nbytes
    feed = Feed(100, 2 * room)
    feed.add_bars(STREAM, 1, make_bars(1))
    for time_ns in (2, 3):
        feed.add_bars(STREAM, time_ns, make_bars(time_ns))
        feed.add_decisions(make_decisions(time_ns))
    feed.add_bars(STREAM, 4, make_bars(4))
    assert feed.n_bytes == room + size
    assert not feed.add_bars(STREAM, 1, make_bars(1))
    assert not feed.add_decisions(make_decisions(2))
    assert [candle.time_ns for candle in view(feed, '600519.SH').candles] == [3, 4]


def test_sixteen_streams_are_taken_and_one_more_is_refused_and_counted() -> None:
    feed = Feed(10, PLENTY)
    for index in range(MAX_STREAMS):
        assert feed.add_bars(f's{index}', 1, make_bars(1))
    assert not feed.add_bars('one more', 1, make_bars(1))
    assert not feed.add_decisions(make_decisions(1, stream='and another'))
    assert feed.counters['streams_refused'] == 2
    assert feed.add_decisions(make_decisions(1, stream='s0'))
    assert len({stream for stream, _ in feed.choices()}) == MAX_STREAMS
    assert feed.changes('one more', '600519.SH', -1, 9).candles == []


def test_newest_signals_are_kept_and_come_newest_first() -> None:
    feed = Feed(1000, PLENTY)
    order = np.random.default_rng(3).permutation(KEEP_SIGNALS).tolist()
    for time_ns in order:
        feed.add_decisions(make_decisions(time_ns + 1))
    expected = [
        (time_ns, symbol)
        for time_ns in range(KEEP_SIGNALS, 0, -1)
        for symbol in ('600519.SH', '600000.SH')
    ]
    found = [(mark.time_ns, mark.symbol) for mark in feed.signals(ALL)]
    assert found == expected[:KEEP_SIGNALS]
    assert [(mark.time_ns, mark.symbol) for mark in feed.signals(3)] == expected[:3]
    assert feed.signals(0) == []


def test_frame_with_more_signals_than_are_kept_leaves_as_many_as_are_kept() -> None:
    symbols = tuple(f'{number:06d}.SZ' for number in range(KEEP_SIGNALS + 50))
    feed = Feed(10, PLENTY)
    feed.add_decisions(make_decisions(1, symbols))
    feed.add_decisions(make_decisions(2, SYMBOLS))
    found = feed.signals(ALL)
    assert len(found) == KEEP_SIGNALS
    assert [mark.time_ns for mark in found[:3]] == [2, 2, 1]


@pytest.mark.parametrize('revision', [0, 1])
def test_memory_of_changes_and_seqs_is_bounded_however_long_the_stream(revision: int) -> None:
    history = 7
    feed = Feed(history, PLENTY)
    for seq in range(1000):
        feed.add_bars(STREAM, seq, make_bars(seq + 1))
        feed.add_decisions(make_decisions(seq + 1, revision=revision))
        feed.add_bars(STREAM, seq, make_bars(max(1, seq - 3), revision=revision))
    (inside,) = feed._streams.values()
    assert len(inside.seqs) <= 2 * history
    assert len(inside.log) <= 4 * history
    assert len(inside.times) == len(inside.moments) == history
    kept = range(1001 - history, 1001)
    assert [candle.time_ns for candle in view(feed, '600519.SH').candles] == [*kept]
    assert feed.n_bytes == history * (make_bars(1).nbytes + make_decisions(1).nbytes)


# --- what never came ---


@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(1, 25),
    st.integers(0, 50),
    st.integers(0, 5),
    st.booleans(),
)
def test_newest_run_that_never_came_is_asked_for_and_nothing_older_than_the_history(
    seqs: list[int], history: int, oldest_seq: int, ahead: int, ask_between: bool
) -> None:
    feed = Feed(history, PLENTY)
    next_seq = max([*seqs, 0]) + 1 + ahead
    came: set[int] = set()
    for seq in seqs:
        feed.add_bars(STREAM, seq, make_bars(seq + 1))
        came.add(seq)
        if ask_between:
            feed.missing_bars(STREAM, oldest_seq, max(came) + 1)
    window = range(max(oldest_seq, next_seq - history), next_seq)
    missing = [seq for seq in window if seq not in came]
    found = feed.missing_bars(STREAM, oldest_seq, next_seq)
    if not missing:
        assert found is None
        return
    first = last = missing[-1]
    while first - 1 in missing:
        first -= 1
    assert found == (first, last)


@given(st.sets(st.integers(0, 59)), st.integers(1, 80), st.integers(1, 7))
def test_asking_for_run_after_run_fetches_all_that_is_within_the_history(
    lost: set[int], history: int, page: int
) -> None:
    feed = Feed(history, PLENTY)
    for seq in range(60):
        if seq not in lost:
            feed.add_bars(STREAM, seq, make_bars(seq + 1))
    asked: set[int] = set()
    while (run := feed.missing_bars(STREAM, 0, 60)) is not None:
        for seq in range(run[0], min(run[1], run[0] + page - 1) + 1):
            assert seq not in asked
            asked.add(seq)
            feed.add_bars(STREAM, seq, make_bars(seq + 1))
    assert asked == {seq for seq in lost if seq >= 60 - history}
    shown = [candle.time_ns - 1 for candle in view(feed, '600519.SH').candles]
    assert shown == list(range(max(0, 60 - history), 60))


def test_bars_of_a_stream_that_is_not_known_are_all_missing() -> None:
    feed = Feed(10, PLENTY)
    assert feed.missing_bars('new', 3, 8) == (3, 7)
    assert feed.missing_bars('new', 0, 100) == (90, 99)
    assert feed.missing_bars('new', 5, 5) is None


def test_bars_of_a_stream_that_is_refused_are_not_asked_for_again_and_again() -> None:
    feed = Feed(10, PLENTY)
    for index in range(MAX_STREAMS):
        feed.add_bars(f's{index}', 1, make_bars(1))
    assert feed.missing_bars('one more', 0, 8) is None
    assert feed.missing_bars('s0', 0, 8) == (2, 7)


def test_bar_that_cannot_be_read_is_not_asked_for_again() -> None:
    feed = Feed(10, PLENTY)
    feed.skip_bars(STREAM, 4)
    assert feed.missing_bars(STREAM, 0, 6) == (5, 5)
    feed.add_bars(STREAM, 5, make_bars(5))
    assert feed.missing_bars(STREAM, 0, 6) == (0, 3)
    assert [candle.time_ns for candle in view(feed, '600519.SH').candles] == [5]


def test_bar_that_came_and_did_not_fit_is_not_missing() -> None:
    feed = Feed(10, max_bytes=1)
    for seq in (2, 1, 0):
        feed.add_bars(STREAM, seq, make_bars(seq + 1))
    assert [candle.time_ns for candle in view(feed, '600519.SH').candles] == [3]
    assert feed.missing_bars(STREAM, 0, 3) is None


# --- real bars, and threads ---


def test_real_daily_bars_shuffled_and_half_of_them_twice_are_the_last_days_of_the_table() -> None:
    table, _ = load_bars(shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024')
    rng = np.random.default_rng(11)
    n = len(table)
    order = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, n // 2)]))
    feed = Feed(250, PLENTY)
    for index in order.tolist():
        feed.add_bars(STREAM, index, table.block(index))
    for place, symbol in enumerate(table.symbols):
        candles = view(feed, symbol).candles
        assert [c.time_ns for c in candles] == table.event_time_ns[-250:].tolist()
        columns = [(c.open, c.high, c.low, c.close, c.volume) for c in candles]
        np.testing.assert_array_equal(columns, table.values[-250:, :5, place])
    assert feed.missing_bars(STREAM, 0, n) is None


def test_two_threads_write_the_same_while_a_reader_reads_and_nothing_is_torn() -> None:
    n, faults = 400, []
    feed, reader = Feed(n, PLENTY), Reader('600519.SH')
    blocks = [make_bars(time_ns) for time_ns in range(1, n + 1)]
    frames = [make_decisions(time_ns) for time_ns in range(1, n + 1)]

    def write(seed: int) -> None:
        try:
            for index in np.random.default_rng(seed).permutation(2 * n).tolist():
                if index < n:
                    feed.add_bars(STREAM, index, blocks[index])
                else:
                    feed.add_decisions(frames[index - n])
                feed.missing_bars(STREAM, 0, n)
        except Exception as error:
            faults.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            for mark, candle in reader.read(feed).marks:
                assert mark.time_ns == candle.time_ns
                assert candle == reader.candles[candle.time_ns]
            signals = [mark.time_ns for mark in feed.signals(ALL)]
            assert signals == sorted(signals, reverse=True)
        for writer in writers:
            writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []
    reader.read(feed)
    assert sorted(reader.candles) == sorted(reader.marks) == list(range(1, n + 1))
    assert [reader.candles[t] for t in sorted(reader.candles)] == view(feed, '600519.SH').candles
    assert feed.counters == {
        'bars': n,
        'frames': n,
        'streams_refused': 0,
        'moments_dropped': 0,
    }
    assert feed.n_bytes == sum(item.nbytes for item in (*blocks, *frames))
