# SPDX-License-Identifier: Apache-2.0
"""The chart: a figure that grew by rows is the figure made at the end; labels keep times apart."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plotly.graph_objects import Figure

from heqis_core.bars import BarBlock, BarStatus
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data
from heqis_dashboard.chart import (
    BUY,
    CANDLES,
    REFUSED,
    ROOM,
    SELL,
    VOLUME,
    Chart,
    Style,
    blank_figure,
    clock_text,
    hover_text,
)
from heqis_dashboard.feed import Feed
from heqis_dashboard.marks import Mark

STREAM, SYMBOL = 'ashare', '600519.SH'
SHANGHAI, NEW_YORK = ZoneInfo('Asia/Shanghai'), ZoneInfo('America/New_York')
S = 1_000_000_000
DAY = 86_400 * S
CLOSE = 19_000 * DAY + 7 * 3600 * S
"""15:00 in Shanghai on 2022-01-08."""


def make_bars(
    time_ns: int, status: int = BarStatus.VALID, volume: float = 100.0, revision: int = 0
) -> BarBlock:
    """Return a bar of one symbol whose prices follow from its time; its range is 2."""
    opened = 50.0 + time_ns // S % 7 + revision
    values = np.array([opened, opened + 1, opened - 1, opened + 0.5, volume, 0.0]).reshape(6, 1)
    return BarBlock(time_ns, (SYMBOL,), values, np.array([status], np.uint8), revision)


def make_decisions(
    time_ns: int, action: int = Action.BUY, reasons: int = Reason.UP, revision: int = 0
) -> Decisions:
    one = np.ones(1, np.float32)
    return Decisions(
        stream=STREAM,
        epoch=7,
        seq=0,
        event_time_ns=time_ns,
        revision=revision,
        bundle_id='fedcba9876543210',
        generator='gru',
        symbols=(SYMBOL,),
        action=np.array([action], np.uint8),
        reasons=np.array([reasons], np.uint32),
        score=one / 2,
        target_position=one,
        probabilities=np.array([[0.125, 0.25, 0.625]], np.float32),
        predicted_return=one / 64,
        valid_until_ns=np.array([time_ns + DAY]),
    )


REFUSED_BUY = (Action.NONE, Reason.UP | Reason.HELD)


def feed_of(*times_ns: int) -> Feed:
    feed = Feed(10_000, 1 << 30)
    for time_ns in times_ns:
        feed.add_bars(STREAM, time_ns // S, make_bars(time_ns))
    return feed


def make_chart(candles: int = 500, zone: Any = SHANGHAI, rising: str = 'red') -> Chart:
    return Chart(Style(candles, zone, rising), STREAM, SYMBOL)


def figure_of(feed: Feed, candles: int = 500, zone: Any = SHANGHAI) -> dict[str, Any]:
    """Return the figure of a page that opens now."""
    figure = make_chart(candles, zone).update(feed)
    assert figure is not None
    return figure


def labels(figure: dict[str, Any]) -> list[str]:
    return figure['data'][CANDLES]['x']


def append(figure: dict[str, Any], rows: dict[int, dict[str, list[Any]]]) -> None:
    """Do what a page does with rows."""
    for place, columns in rows.items():
        trace = figure['data'][place]
        n_before = {len(trace[name]) for name in columns}
        assert len(n_before) == 1
        assert len({len(values) for values in columns.values()}) == 1
        for name, values in columns.items():
            trace[name] = trace[name] + values


def categories(figure: dict[str, Any], hidden: tuple[int, ...] = ()) -> list[str]:
    """Return what stands on the x axis, in the order in which Plotly draws it."""
    found = [
        label
        for place, trace in enumerate(figure['data'])
        if place not in hidden
        for label in trace['x']
    ]
    order = figure['layout']['xaxis']['categoryorder']
    assert order in ('trace', 'category ascending')
    unique = list(dict.fromkeys(found))
    return unique if order == 'trace' else sorted(unique)


def marks(figure: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """Return (label, text) of each trace of marks, sorted.

    Rows are appended as decisions come, so the order may differ. How far a mark stands from its
    candle depends on the candles that were there when the figure was made: that is not compared.
    """
    found = [figure['data'][place] for place in (BUY, SELL, REFUSED)]
    return [sorted(zip(trace['x'], trace['text'], strict=True)) for trace in found]


def assert_marks_stand_by_their_candles(figure: dict[str, Any]) -> None:
    candles = figure['data'][CANDLES]
    low = dict(zip(candles['x'], candles['low'], strict=True))
    high = dict(zip(candles['x'], candles['high'], strict=True))
    for place in (BUY, SELL, REFUSED):
        trace = figure['data'][place]
        for label, y in zip(trace['x'], trace['y'], strict=True):
            assert (y < low[label]) if place == BUY else (y > high[label])


# --- the figure grows ---

# Mostly daily bars in order; some have another clock, some come late.
_CLOCKS = (0, 0, 0, 0, 60 * S, 30 * S, S // 2)
_SAYS = ((Action.BUY, 1), (Action.SELL, 2), (Action.HOLD, 0), REFUSED_BUY)
_STEPS = st.one_of(
    st.tuples(st.just('bar'), st.sampled_from(_CLOCKS), st.integers(0, 1)),
    st.tuples(st.just('late bar'), st.integers(0, 30), st.integers(0, 1)),
    st.tuples(st.just('decision'), st.integers(-1, 4), st.sampled_from(_SAYS)),
    st.tuples(st.just('amended'), st.integers(0, 4), st.sampled_from(BarStatus)),
    st.tuples(st.just('look'), st.just(0), st.just(0)),
)


@given(
    steps=st.lists(_STEPS, max_size=60),
    candles=st.integers(1, 12),
    zone=st.sampled_from((SHANGHAI, NEW_YORK)),
    start=st.sampled_from(
        (CLOSE, int(datetime(2024, 10, 31, 5, 30, tzinfo=timezone.utc).timestamp()) * S)
    ),
)
def test_figure_that_grew_by_rows_is_the_figure_made_at_the_end_over_the_same_candles(
    steps: list[tuple[str, Any, Any]], candles: int, zone: ZoneInfo, start: int
) -> None:
    feed, chart = feed_of(), make_chart(candles, zone)
    figure, times, day = chart.update(feed), [start], 0
    assert figure is not None
    for kind, first, second in [*steps, ('look', 0, 0)]:
        if kind == 'bar':
            day += 1
            times.append(start + day * DAY + first)
            feed.add_bars(STREAM, day, make_bars(times[-1], status=second or BarStatus.SUSPENDED))
        elif kind == 'late bar':
            feed.add_bars(STREAM, 0, make_bars(start + first * DAY + 3600 * S * second))
        elif kind == 'decision':
            # Of a bar that is there, or of the next one.
            time_ns = start + (day + 1) * DAY if first < 0 else times[max(-len(times), -1 - first)]
            feed.add_decisions(make_decisions(time_ns, *second))
        elif kind == 'amended':
            time_ns = times[max(-len(times), -1 - first)]
            feed.add_bars(STREAM, 0, make_bars(time_ns, second, revision=1))
        else:
            news = chart.update(feed)
            assert chart.update(feed) is None
            if news is not None and 'data' in news:
                figure = news
                assert len(labels(figure)) <= candles
            elif news is not None:
                append(figure, news)
    n = len(labels(figure))
    assert n <= candles * (1 + ROOM)
    made = figure_of(feed, max(n, 1), zone)
    for place in (CANDLES, VOLUME):
        assert figure['data'][place] == made['data'][place]
    assert marks(figure) == marks(made)
    assert_marks_stand_by_their_candles(figure)
    assert figure['layout'] == made['layout']
    assert categories(figure) == labels(figure)
    # And that is the end of what a page would show that opens now.
    now = figure_of(feed, candles, zone)
    assert figure['data'][CANDLES]['close'][-candles:] == now['data'][CANDLES]['close']


def test_bars_at_the_end_come_as_rows_of_candles_and_volume_alone() -> None:
    feed, chart = feed_of(*(CLOSE + day * DAY for day in range(10))), make_chart()
    assert 'data' in chart.update(feed)
    feed.add_bars(STREAM, 0, make_bars(CLOSE + 10 * DAY))
    rows = chart.update(feed)
    opened = 50.0 + (CLOSE + 10 * DAY) // S % 7
    assert rows == {
        CANDLES: {
            'x': ['2022-01-18'],
            'open': [opened],
            'high': [opened + 1],
            'low': [opened - 1],
            'close': [opened + 0.5],
        },
        VOLUME: {'x': ['2022-01-18'], 'y': [100.0]},
    }
    assert chart.update(feed) is None


@pytest.mark.parametrize(
    ('said', 'place', 'offset'),
    [
        ((Action.BUY, Reason.UP), BUY, -1),
        ((Action.SELL, Reason.DOWN), SELL, 1),
        (REFUSED_BUY, REFUSED, 1),
    ],
)
def test_decision_after_its_bar_comes_as_one_mark_clear_of_its_candle(
    said: tuple[int, int], place: int, offset: int
) -> None:
    feed, chart = feed_of(CLOSE, CLOSE + DAY), make_chart()
    chart.update(feed)
    feed.add_decisions(make_decisions(CLOSE, *said))
    rows = chart.update(feed)
    assert list(rows) == [place]
    assert rows[place]['x'] == ['2022-01-08']
    edge = make_bars(CLOSE).values[2 if offset < 0 else 1, 0]
    assert rows[place]['y'] == [pytest.approx(edge + offset * 0.6 * 2.0)]


@pytest.mark.parametrize('said', [(Action.HOLD, 0), (Action.NONE, Reason.WARMING)])
def test_decision_that_makes_no_mark_is_no_news(said: tuple[int, int]) -> None:
    feed, chart = feed_of(CLOSE), make_chart()
    chart.update(feed)
    feed.add_decisions(make_decisions(CLOSE, *said))
    assert chart.update(feed) is None


@pytest.mark.parametrize('late', [1, 3])
def test_late_bar_brings_the_whole_figure_with_it_in_its_place(late: int) -> None:
    days = [day for day in range(6) if day != late]
    feed, chart = feed_of(*(CLOSE + day * DAY for day in days)), make_chart()
    chart.update(feed)
    feed.add_bars(STREAM, 0, make_bars(CLOSE + late * DAY))
    figure = chart.update(feed)
    assert labels(figure) == [f'2022-01-{8 + day:02d}' for day in range(6)]


def test_amended_bar_or_decision_brings_the_whole_figure_without_what_was_taken_back() -> None:
    feed, chart = feed_of(CLOSE, CLOSE + DAY), make_chart()
    feed.add_decisions(make_decisions(CLOSE + DAY))
    assert chart.update(feed)['data'][BUY]['x'] == ['2022-01-09']
    feed.add_decisions(make_decisions(CLOSE + DAY, Action.HOLD, 0, revision=1))
    assert marks(chart.update(feed)) == [[], [], []]
    feed.add_bars(STREAM, 0, make_bars(CLOSE + DAY, BarStatus.REJECTED, revision=1))
    assert labels(chart.update(feed)) == ['2022-01-08']


def test_late_decision_of_a_bar_older_than_the_figure_is_not_drawn() -> None:
    feed, chart = feed_of(*(CLOSE + day * DAY for day in range(20))), make_chart(candles=10)
    chart.update(feed)
    feed.add_decisions(make_decisions(CLOSE))
    assert not chart.update(feed)
    feed.add_decisions(make_decisions(CLOSE + 10 * DAY))
    assert chart.update(feed)[BUY]['x'] == ['2022-01-18']


def test_figure_is_made_anew_with_the_newest_candles_when_its_room_is_used_up() -> None:
    feed, chart = feed_of(*(CLOSE + day * DAY for day in range(10))), make_chart(candles=10)
    n, sizes = len(labels(chart.update(feed))), []
    for day in range(10, 34):
        feed.add_bars(STREAM, 0, make_bars(CLOSE + day * DAY))
        news = chart.update(feed)
        n = len(labels(news)) if 'data' in news else n + len(news[CANDLES]['x'])
        sizes.append(n)
    assert sizes == [*range(11, 21), *range(10, 21), *range(10, 13)]


def test_more_bars_than_there_is_room_for_bring_the_newest_alone() -> None:
    feed, chart = feed_of(CLOSE), make_chart(candles=10)
    chart.update(feed)
    for day in range(1, 100):
        feed.add_bars(STREAM, 0, make_bars(CLOSE + day * DAY))
    figure = chart.update(feed)
    assert labels(figure) == labels(figure_of(feed, candles=10))
    assert len(labels(figure)) == 10


# --- labels ---


@pytest.mark.parametrize(
    ('step', 'expected'),
    [
        (DAY, ['2022-01-08', '2022-01-09', '2022-01-10']),
        (60 * S, ['2022-01-08 15:00', '2022-01-08 15:01', '2022-01-08 15:02']),
        (30 * S, ['2022-01-08 15:00:00', '2022-01-08 15:00:30', '2022-01-08 15:01:00']),
        (
            S // 2,
            [
                '2022-01-08 15:00:00.000000',
                '2022-01-08 15:00:00.500000',
                '2022-01-08 15:00:01.000000',
            ],
        ),
    ],
)
def test_labels_are_as_long_as_it_takes_to_tell_bars_apart(step: int, expected: list[str]) -> None:
    assert labels(figure_of(feed_of(*(CLOSE + n * step for n in range(3))))) == expected


@pytest.mark.parametrize(
    ('later', 'shape'), [(3600 * S, '%H:%M'), (S, '%H:%M:%S'), (1000, '%H:%M:%S.%f')]
)
def test_bar_at_another_hour_brings_clocks_to_all_labels(later: int, shape: str) -> None:
    feed, chart = feed_of(CLOSE, CLOSE + DAY), make_chart()
    assert labels(chart.update(feed)) == ['2022-01-08', '2022-01-09']
    feed.add_bars(STREAM, 0, make_bars(CLOSE + DAY + later))
    figure = chart.update(feed)
    read = [datetime.strptime(label, f'%Y-%m-%d {shape}') for label in labels(figure)]
    assert read[1] - read[0] == timedelta(days=1)
    assert read[2] - read[1] == timedelta(microseconds=later / 1000)


def test_labels_are_of_the_zone_of_the_style() -> None:
    feed = feed_of(CLOSE, CLOSE + 60 * S)
    assert labels(figure_of(feed, zone=NEW_YORK)) == ['2022-01-08 02:00', '2022-01-08 02:01']
    feed = feed_of(CLOSE, CLOSE + DAY)
    assert labels(figure_of(feed, zone=timezone(timedelta(hours=14)))) == [
        '2022-01-08',
        '2022-01-09',
    ]


ZONES = (
    'UTC', 'Asia/Shanghai', 'Asia/Kathmandu', 'America/New_York', 'Europe/Berlin',
    'Australia/Lord_Howe', 'America/St_Johns', 'Antarctica/Casey', 'Pacific/Apia',
    'Africa/Casablanca',
)  # fmt: skip
"""Among them: half an hour of summer time, three hours back at once, a day that never was."""


def last_changes(name: str) -> list[int]:
    """Return seconds, near which the clocks of a zone change; one second if they never do."""
    zone, hour = ZoneInfo(name), 3600
    start = int(datetime(2008, 1, 1, tzinfo=timezone.utc).timestamp())
    found = [
        second
        for second in range(start, start + 17 * 366 * 24 * hour, 12 * hour)
        if offset(zone, second) != offset(zone, second + 12 * hour)
    ]
    return found or [start]


def offset(zone: ZoneInfo, second: int) -> timedelta | None:
    return datetime.fromtimestamp(second, zone).utcoffset()


CHANGES = {name: last_changes(name) for name in ZONES}


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, list[int]]:
    """Return a zone and bar times, ns, mostly around a change of its clocks."""
    zone = draw(st.sampled_from(ZONES))
    start = draw(st.sampled_from(CHANGES[zone])) + draw(st.integers(-8, 8)) * 900
    step = draw(st.sampled_from((1, 60, 900, 1800, 3600, 5400, 43_200, 86_400)))
    kept = draw(st.lists(st.integers(0, 100), min_size=1, max_size=60, unique=True).map(sorted))
    return zone, [(start + n * step) * S for n in kept]


FALL_BACK = int(datetime(2024, 11, 3, 5, 30, tzinfo=timezone.utc).timestamp())


@given(windows())
@example(('America/New_York', [(FALL_BACK + n * 900) * S for n in range(12)]))
@example(('America/New_York', [FALL_BACK * S, (FALL_BACK + 3600) * S]))
def test_labels_are_unique_say_the_time_and_stand_in_its_order_in_any_zone_at_any_change_of_clocks(
    window: tuple[str, list[int]],
) -> None:
    name, times = window
    zone = ZoneInfo(name)
    feed = feed_of(*times)
    for time_ns in times[::-2]:
        feed.add_decisions(make_decisions(time_ns, *_SAYS[time_ns // (900 * S) % len(_SAYS)]))
    figure = figure_of(feed, zone=zone)
    assert len(set(labels(figure))) == len(times)
    assert categories(figure) == labels(figure) == figure['data'][VOLUME]['x']
    # Of the candles and the volume one can be hidden by a click on the legend, and not both.
    assert categories(figure, hidden=(CANDLES,)) == labels(figure)
    assert figure['data'][VOLUME]['showlegend'] is False
    for label, time_ns in zip(labels(figure), times, strict=True):
        local = datetime.fromtimestamp(time_ns // S, zone)
        day, clock, said = [*label.split(' '), '', ''][:3]
        if clock[:1] in ('+', '-'):
            clock, said = '', clock
        assert day == local.date().isoformat()
        assert not clock or clock == local.time().isoformat()[: len(clock)]
        assert said == (local.strftime('%z') if local.fold else '')
    plain = [label for label in labels(figure) if label[-5:-4] not in ('+', '-')]
    assert plain == sorted(plain) or name in ('Antarctica/Casey', 'Pacific/Apia')


def test_rows_go_on_through_the_hour_that_comes_twice() -> None:
    times = [(FALL_BACK + n * 900) * S for n in range(10)]
    feed, chart = feed_of(*times[:2]), make_chart(zone=NEW_YORK)
    figure = chart.update(feed)
    for time_ns in times[2:]:
        feed.add_bars(STREAM, 0, make_bars(time_ns))
        append(figure, chart.update(feed))
    assert categories(figure) == [
        *('2024-11-03 01:30', '2024-11-03 01:45'),
        *('2024-11-03 01:00 -0500', '2024-11-03 01:15 -0500'),
        *('2024-11-03 01:30 -0500', '2024-11-03 01:45 -0500'),
        *('2024-11-03 02:00', '2024-11-03 02:15', '2024-11-03 02:30', '2024-11-03 02:45'),
    ]
    assert figure['data'] == figure_of(feed, zone=NEW_YORK)['data']


@pytest.mark.parametrize(
    ('time_ns', 'zone', 'text'),
    [
        (CLOSE, SHANGHAI, '2022-01-08 15:00'),
        (CLOSE + S, SHANGHAI, '2022-01-08 15:00:01'),
        (CLOSE + S // 1000, SHANGHAI, '2022-01-08 15:00:00.001000'),
        (0, timezone.utc, '1970-01-01 00:00'),
        (FALL_BACK * S, NEW_YORK, '2024-11-03 01:30'),
        ((FALL_BACK + 3600) * S, NEW_YORK, '2024-11-03 01:30 -0500'),
        ((1 << 63) - 1, timezone.utc, '2262-04-11 23:47:16.854775'),
    ],
)
def test_clock_for_people_is_to_the_minute_or_as_fine_as_the_time(
    time_ns: int, zone: Any, text: str
) -> None:
    assert clock_text(time_ns, zone) == text


# --- what it looks like ---


def test_figure_before_anything_is_known_has_the_axes_and_traces_of_every_later_one() -> None:
    style = Style(10, SHANGHAI, 'red')
    blank, later = blank_figure(style), Chart(style, STREAM, SYMBOL).update(feed_of())
    Figure(blank)
    assert [(t['type'], t.get('yaxis')) for t in blank['data']] == [
        (t['type'], t.get('yaxis')) for t in later['data']
    ]
    ranges = ('xaxis', 'yaxis', 'yaxis2', 'margin')
    assert all(blank['layout'][name] == later['layout'][name] for name in ranges)
    assert 'annotations' not in blank['layout'], 'it does not say that there are no bars'


@pytest.mark.parametrize('symbol', [SYMBOL, ''])
def test_chart_without_bars_says_so_once_until_one_comes(symbol: str) -> None:
    feed, chart = feed_of(), Chart(Style(10, SHANGHAI, 'red'), STREAM, symbol)
    figure = chart.update(feed)
    (note,) = figure['layout']['annotations']
    assert note['text'] == f'no bars of {symbol or "any symbol"} yet'
    assert [trace['x'] for trace in figure['data']] == [[]] * 5
    assert chart.update(feed) is None
    feed.add_bars(STREAM, 1, make_bars(CLOSE, BarStatus.SUSPENDED))
    feed.add_bars('other', 1, make_bars(CLOSE))
    assert chart.update(feed) is None
    feed.add_bars(STREAM, 1, make_bars(CLOSE + DAY))
    if symbol:
        figure = chart.update(feed)
        assert labels(figure) == ['2022-01-09']
        assert 'annotations' not in figure['layout']


def test_chart_whose_symbol_left_says_that_there_are_no_bars() -> None:
    feed, chart = feed_of(CLOSE), make_chart()
    chart.update(feed)
    block = make_bars(CLOSE + DAY)
    feed.add_bars(STREAM, 1, BarBlock(block.event_time_ns, ('X',), block.values, block.status))
    figure = chart.update(feed)
    assert labels(figure) == []
    assert figure['layout']['annotations']


def make_mark(**changed: Any) -> Mark:
    known = {
        'stream': STREAM,
        'symbol': SYMBOL,
        'time_ns': CLOSE,
        'kind': 'SELL',
        'score': -0.25,
        'probabilities': (0.5, 0.25, 0.25),
        'predicted_return': -0.0125,
        'reasons': ('gap', 'down'),
        'bundle_id': 'fedcba9876543210',
        'generator': 'gru',
        'valid_until_ns': CLOSE + DAY,
        'released_ns': 0,
    }
    return Mark(**{**known, **changed})


def test_hover_text_says_what_was_decided_why_by_whom_and_until_when() -> None:
    assert hover_text(make_mark(), SHANGHAI).split('<br>') == [
        '<b>SELL</b> 600519.SH 2022-01-08 15:00',
        'score -0.250, predicted return -1.25%',
        'down 0.50, flat 0.25, up 0.25',
        'reasons: gap, down',
        'bundle fedcba9876543210 by gru',
        'valid until 2022-01-09 15:00',
    ]
    assert 'reasons: none' in hover_text(make_mark(reasons=()), SHANGHAI)


@pytest.mark.parametrize('name', ['symbol', 'bundle_id', 'generator'])
def test_names_from_outside_are_no_html_in_a_hover_text(name: str) -> None:
    text = hover_text(make_mark(**{name: '<a href="x">&amp;</a>'}), SHANGHAI)
    assert '&lt;a href=&quot;x&quot;&gt;&amp;amp;&lt;/a&gt;' in text
    assert '<a' not in text


def test_symbol_is_no_html_in_the_legend_nor_in_the_note() -> None:
    figure = Chart(Style(10, SHANGHAI, 'red'), STREAM, '<i>x</i>').update(feed_of())
    assert figure['data'][CANDLES]['name'] == '&lt;i&gt;x&lt;/i&gt;'
    assert '<' not in figure['layout']['annotations'][0]['text']


def test_volume_that_is_not_there_is_a_hole() -> None:
    feed = feed_of()
    feed.add_bars(STREAM, 0, make_bars(CLOSE, volume=np.nan))
    feed.add_bars(STREAM, 1, make_bars(CLOSE + DAY, volume=0.0))
    figure = figure_of(feed)
    assert figure['data'][VOLUME]['y'] == [None, 0.0]
    json.dumps(figure, allow_nan=False)


def test_rising_candles_have_the_colour_that_was_asked_for() -> None:
    red, green = (make_chart(rising=rising).update(feed_of(CLOSE)) for rising in ('red', 'green'))
    red, green = red['data'][CANDLES], green['data'][CANDLES]
    assert red['increasing'] == green['decreasing'] != red['decreasing'] == green['increasing']
    value = int(red['increasing']['fillcolor'][1:], 16)
    assert value >> 16 > value >> 8 & 0xFF


def test_figure_of_real_bars_is_one_that_plotly_knows_and_json_can_carry() -> None:
    table, _ = load_bars(shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024')
    feed, chart = Feed(5000, 1 << 30), make_chart(candles=250)
    figure: dict[str, Any] = {}
    for index in range(len(table)):
        feed.add_bars(STREAM, index, table.block(index))
        if index % 3 == 0:
            news = chart.update(feed)
            figure = news if 'data' in news else figure
            if figure is not news:
                append(figure, news)
    news = chart.update(feed)
    append(figure, news or {})
    json.dumps(figure, allow_nan=False)
    Figure(figure)
    n = len(labels(figure))
    place = table.symbols.index(SYMBOL)
    days = [datetime.fromtimestamp(ns // S, SHANGHAI) for ns in table.event_time_ns[-n:].tolist()]
    assert labels(figure) == [day.date().isoformat() for day in days]
    for row, name in enumerate(('open', 'high', 'low', 'close')):
        assert figure['data'][CANDLES][name] == table.values[-n:, row, place].tolist()
    assert figure['data'][VOLUME]['y'] == table.values[-n:, 4, place].tolist()
