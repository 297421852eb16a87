# SPDX-License-Identifier: Apache-2.0
"""Candles with their marks as a Plotly figure, and how it grows. Plain data, no Dash.

A page gets the whole figure once and then only what comes at its end. The x axis is of category
kind, in the order of the candles: no gap for nights, weekends and suspended days, and no label
comes twice: when clocks go back, the hour that comes again says its UTC offset.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

from heqis_dashboard.feed import Changes, Feed
from heqis_dashboard.marks import Mark

CANDLES, VOLUME, BUY, SELL, REFUSED = range(5)
"""Places of the traces in a figure."""
_TRACE_OF = {'BUY': BUY, 'SELL': SELL, 'REFUSED': REFUSED}
ROOM = 1.0
"""How many more candles than asked for a figure may hold, as a part, until it is made anew."""
_COLOURS = {'red': ('#c8372d', '#1a7f5a'), 'green': ('#1a7f5a', '#c8372d')}
_FORMATS = ('%Y-%m-%d', '%Y-%m-%d %H:%M', '%Y-%m-%d %H:%M:%S', '%Y-%m-%d %H:%M:%S.%f')
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Style:
    """How a chart looks.

    Attributes:
        candles: how many are shown.
        zone: time zone of the labels.
        rising: colour of a rising candle, red or green.
    """

    candles: int
    zone: tzinfo
    rising: str


@dataclass
class Chart:
    """What one page shows of one symbol, and how far it has come."""

    style: Style
    stream: str
    symbol: str
    since: int = -1
    _format: str = _FORMATS[0]
    _n: int = 0
    _last_ns: int = -1
    _first_ns: int = 0
    _clearance: float = 0.0

    def update(self, feed: Feed) -> dict[str, Any] | dict[int, Columns] | None:
        """Return the whole figure (text keys), rows to append (by trace), or None for no news."""
        changes = feed.changes(self.stream, self.symbol, self.since, self.style.candles)
        if not changes.whole and not self._fits(changes):
            changes = feed.changes(self.stream, self.symbol, -1, self.style.candles)
        drawn, self.since = self.since >= 0, changes.change
        if drawn and not self._n and not changes.candles:
            return None
        if changes.whole:
            return self._figure(changes)
        return self._rows(changes) if changes.candles or changes.marks else None

    def _fits(self, changes: Changes) -> bool:
        """Whether everything new can stand at the end of what is drawn."""
        if not self._n or self._n + len(changes.candles) > self.style.candles * (1 + ROOM):
            return False
        times = [candle.time_ns for candle in changes.candles]
        if times and times[0] <= self._last_ns:
            return False
        # The label before them too: daily bars have no clock until one comes at another hour.
        return _format_of([self._last_ns, *times], self.style.zone) <= self._format

    def _figure(self, changes: Changes) -> dict[str, Any]:
        times = [candle.time_ns for candle in changes.candles]
        self._format = _format_of(times, self.style.zone)
        self._n, self._last_ns = 0, -1
        self._first_ns = times[0] if times else 0
        spans = sorted(candle.high - candle.low for candle in changes.candles)
        self._clearance = 0.6 * spans[len(spans) // 2] if spans else 0.0
        rows = self._rows(changes)
        traces = [{**trace, **rows.get(place, {})} for place, trace in enumerate(_traces(self))]
        return {'data': traces, 'layout': _layout(self, empty=not times)}

    def _rows(self, changes: Changes) -> dict[int, Columns]:
        rows: dict[int, Columns] = {}
        if changes.candles:
            labels = [self._label(candle.time_ns) for candle in changes.candles]
            prices = {
                name: [getattr(candle, name) for candle in changes.candles]
                for name in ('open', 'high', 'low', 'close')
            }
            volumes = [candle.volume for candle in changes.candles]
            rows[CANDLES] = {'x': labels, **prices}
            rows[VOLUME] = {'x': labels, 'y': volumes}
            self._n += len(labels)
            self._last_ns = changes.candles[-1].time_ns
        for mark, candle in changes.marks:
            if mark.time_ns < self._first_ns:
                continue
            columns = rows.setdefault(_TRACE_OF[mark.kind], {'x': [], 'y': [], 'text': []})
            below = mark.kind == 'BUY'
            columns['x'].append(self._label(mark.time_ns))
            columns['y'].append(
                candle.low - self._clearance if below else candle.high + self._clearance
            )
            columns['text'].append(hover_text(mark, self.style.zone))
        return rows

    def _label(self, time_ns: int) -> str:
        return _text(time_ns, self.style.zone, self._format)


def blank_figure(style: Style) -> dict[str, Any]:
    """Return the figure of a page that knows nothing yet, as plain data.

    It has the axes of every later one: Plotly draws an axis that is new while the figure before
    is still being resized before it has given that axis a place.
    """
    chart = Chart(style, '', '')
    return {'data': _traces(chart), 'layout': _layout(chart, empty=False)}


def hover_text(mark: Mark, zone: tzinfo) -> str:
    """Return what a mark says when one points at it; HTML as far as Plotly knows it."""
    down, flat, up = mark.probabilities
    kind = mark.kind
    if kind == 'REFUSED':
        kind += ' BUY' if 'up' in mark.reasons else ' SELL'
    lines = [
        f'<b>{kind}</b> {html.escape(mark.symbol)} {clock_text(mark.time_ns, zone)}',
        f'score {mark.score:+.3f}, predicted return {mark.predicted_return:+.2%}',
        f'down {down:.2f}, flat {flat:.2f}, up {up:.2f}',
        f'reasons: {", ".join(mark.reasons) or "none"}',
        f'bundle {html.escape(mark.bundle_id)} by {html.escape(mark.generator)}',
        f'valid until {clock_text(mark.valid_until_ns, zone)}',
    ]
    return '<br>'.join(lines)


def local_time(time_ns: int, zone: tzinfo) -> datetime:
    """Return a time, ns UTC, in a zone; exact to the microsecond."""
    return (_EPOCH + timedelta(microseconds=time_ns // 1000)).astimezone(zone)


def clock_text(time_ns: int, zone: tzinfo) -> str:
    """Return a time for people, ns UTC: to the minute, or finer where it is finer."""
    return _text(time_ns, zone, max(_FORMATS[1], _format_of([time_ns], zone)))


def _text(time_ns: int, zone: tzinfo, form: str) -> str:
    when = local_time(time_ns, zone)
    return when.strftime(f'{form} %z' if when.fold else form)


def _format_of(times_ns: Sequence[int], zone: tzinfo) -> str:
    """Return the shortest label that tells times apart: those of daily bars need no clock."""
    if any(ns % 1_000_000_000 for ns in times_ns):
        return _FORMATS[3]
    clocks = {local_time(ns, zone).time() for ns in times_ns}
    if any(clock.second for clock in clocks):
        return _FORMATS[2]
    return _FORMATS[1 if len(clocks) > 1 else 0]


def _traces(chart: Chart) -> list[dict[str, Any]]:
    rising, falling = _COLOURS[chart.style.rising]

    def marks(name: str, shape: str, colour: str) -> dict[str, Any]:
        marker = {'symbol': shape, 'size': 9, 'color': colour}
        edge = {'line': {'width': 1, 'color': '#ffffff'}}
        look = {'mode': 'markers', 'marker': {**marker, **edge}, 'hoverinfo': 'text'}
        return {'type': 'scatter', 'name': name, 'x': [], 'y': [], 'text': [], **look}

    candle_colours = {
        'increasing': {'line': {'color': rising, 'width': 1}, 'fillcolor': rising},
        'decreasing': {'line': {'color': falling, 'width': 1}, 'fillcolor': falling},
    }
    columns: Columns = {'x': [], 'open': [], 'high': [], 'low': [], 'close': []}
    return [
        {'type': 'candlestick', 'name': html.escape(chart.symbol), **candle_colours, **columns},
        {
            'type': 'bar',
            'name': 'volume',
            'yaxis': 'y2',
            'marker': {'color': '#9aa7b4'},
            'hoverinfo': 'y',
            # Always there, even if the candles are hidden: the axis takes its order from it.
            'showlegend': False,
            'x': [],
            'y': [],
        },
        marks('BUY', 'triangle-up', '#1f5fbf'),
        marks('SELL', 'triangle-down', '#8a3ffc'),
        marks('refused', 'x-thin-open', '#6b7280'),
    ]


def _layout(chart: Chart, empty: bool) -> dict[str, Any]:
    axis = {'gridcolor': '#e6e9ed', 'zeroline': False, 'linecolor': '#c3cad2'}
    layout: dict[str, Any] = {
        # Zoom and pan stay while rows are appended, and begin anew with another symbol.
        'uirevision': f'{chart.stream} {chart.symbol}',
        'margin': {'l': 56, 'r': 12, 't': 12, 'b': 44},
        'paper_bgcolor': '#ffffff',
        'plot_bgcolor': '#ffffff',
        'font': {'family': 'inherit', 'size': 12, 'color': '#1f2933'},
        'hovermode': 'closest',
        'dragmode': 'pan',
        'showlegend': True,
        'legend': {'orientation': 'h', 'y': 1.06, 'x': 0},
        'xaxis': {
            **axis,
            'type': 'category',
            'categoryorder': 'trace',
            'rangeslider': {'visible': False},
            'nticks': 8,
            'tickangle': 0,
        },
        'yaxis': {**axis, 'domain': [0.24, 1], 'tickformat': ',.2f', 'title': {'text': 'price'}},
        'yaxis2': {
            **axis,
            'domain': [0, 0.18],
            'tickformat': '.2s',
            'nticks': 3,
            'title': {'text': 'shares'},
        },
    }
    if empty:
        what = chart.symbol or 'any symbol'
        note = {'text': f'no bars of {html.escape(what)} yet', 'showarrow': False}
        layout['annotations'] = [{**note, 'xref': 'paper', 'yref': 'paper', 'x': 0.5, 'y': 0.6}]
    return layout
