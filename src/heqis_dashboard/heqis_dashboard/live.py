# SPDX-License-Identifier: Apache-2.0
"""What happens while a page is open: it gets what changed, no faster than it can show it.

A page is asked which symbol it shows before each push. Its answer comes after it has worked off
what it got before, so one push at most is on its way, however slow the browser is: nothing piles
up here, and a slow page gets several changes at once. A page that comes back after its connection
broke starts again with everything: the feed is its memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dash import Patch
from dash.exceptions import WebsocketDisconnected

from heqis_core.control import Level
from heqis_core.graph_state import GraphState
from heqis_dashboard.bell import Bell
from heqis_dashboard.chart import Chart, Style
from heqis_dashboard.feed import Feed
from heqis_dashboard.views import (
    Notice,
    Row,
    Sources,
    event_rows,
    flow_rows,
    kill_switch,
    latency_rows,
    market_text,
    node_rows,
    notices,
    signal_rows,
)

PAUSE_S = 0.1
"""Least time between two pushes to one page."""
TICK_S = 0.4
"""Longest time between two pushes: ages and states move without news."""
PARTS_S = 0.4
"""How old the banner and the tables may be that pages share."""
LATENCY_S = 1.0
ANSWER_S = 10.0
SILENT_ANSWERS = 3
"""A page that did not answer so often is gone, though the connection that it shared with others
is not, or its browser has put it to sleep: when it wakes, assets/heqis.js loads it again."""
SIGNALS_SHOWN = 20
EVENTS_SHOWN = 40


class Socket(Protocol):
    """What is used of Dash's WebSocket callback."""

    @property
    def is_shutdown(self) -> bool:
        """Whether the connection has ended."""

    def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
        """Send a property to the page."""

    async def get_prop(self, component_id: str, prop_name: str, timeout: float = ...) -> Any:
        """Ask the page for a property."""


Rows = Sequence[Row] | Sequence[Notice]


@dataclass(frozen=True)
class Part:
    """A table or the banner: what it says, and the same drawn."""

    rows: Rows
    drawn: Any


@dataclass
class PageData:
    """What all pages of a node show, and what they count; used in the web server's thread.

    Attributes:
        title: namespace and ROS domain.
        feed, state: bars, decisions and health.
        sources: what is wrong with where they come from.
        bell: rung when something new is known.
        style: of the charts.
        most: pages that may be open at once.
        on_failure: told of an exception that ended the service of a page.
        draw: makes a part's components from its id and rows.
        choices: grows when a person chooses a symbol on any page.
    """

    title: str
    feed: Feed
    state: GraphState
    sources: Callable[[], Sources]
    bell: Bell
    style: Style
    most: int
    on_failure: Callable[[BaseException], None]
    draw: Callable[[str, Rows], Any]
    choices: int = 0
    counters: dict[str, int] = field(
        default_factory=lambda: {'pages': 0, 'pages_refused': 0, 'pushes': 0}
    )
    _parts: dict[str, Part] = field(default_factory=dict)
    _parts_s: float = float('-inf')
    _latency_s: float = float('-inf')

    def parts(self, now_s: float) -> dict[str, Part]:
        """Return banner and tables by their id, made once for all pages.

        Drawing a table costs a hundred times more than sending what was drawn.
        """
        if now_s - self._parts_s >= PARTS_S:
            self._parts_s = now_s
            rows: dict[str, Rows] = {
                'banner': notices(self.state, self.sources(), now_s),
                'kill': [kill_switch(self.state, now_s)],
                'signals': signal_rows(self.feed.signals(SIGNALS_SHOWN), self.style.zone),
                'nodes': node_rows(self.state, now_s),
                'flow': flow_rows(self.state),
                'events': event_rows(self.state, self.style.zone, EVENTS_SHOWN),
            }
            if now_s - self._latency_s >= LATENCY_S:
                self._latency_s = now_s
                rows['latency'] = latency_rows(self.state)
            changed = {
                name: Part(found, self.draw(name, found))
                for name, found in rows.items()
                if name not in self._parts or self._parts[name].rows != found
            }
            self._parts = {**self._parts, **changed}
        return self._parts


class Live:
    """The service of one open page."""

    def __init__(self, data: PageData, socket: Socket | None) -> None:
        """Serve the page at the other end of `socket`."""
        self._data = data
        self._socket = socket
        self._chart: Chart | None = None
        self._kept: str | None = None
        self._layout: dict[str, Any] | None = None
        self._shown: dict[str, Any] = {}
        self._universe = -1
        self._change = -1
        self._beat = 0

    async def run(self) -> None:
        """Push until the page is gone."""
        data = self._data
        if self._socket is None:
            # Without a SharedWorker Dash falls back to single requests: nothing can be pushed.
            return
        if data.counters['pages'] >= data.most:
            data.counters['pages_refused'] += 1
            text = f'{data.most} pages are open already (parameter pages): close one, then reload'
            self._say(Notice(Level.WARN, text))
            return
        data.counters['pages'] += 1
        try:
            await self._serve(self._socket)
        except WebsocketDisconnected:
            return
        except Exception as error:
            data.on_failure(error)
            text = 'this page has failed, see the log of the dashboard node; it loads again soon'
            self._say(Notice(Level.ERROR, text))
        finally:
            data.counters['pages'] -= 1

    async def _serve(self, socket: Socket) -> None:
        kept = await self._ask(socket, 'kept', 'data')
        self._kept = kept if isinstance(kept, str) else None
        while not socket.is_shutdown:
            choices = self._data.choices
            # The answer comes when the page has taken in what was sent before.
            self._push(await self._ask(socket, 'symbol', 'value'))
            self._beat += 1
            self._set('beat', children=str(self._beat))
            self._data.counters['pushes'] += 1
            await asyncio.sleep(PAUSE_S)
            if self._data.feed.change == self._change and self._data.choices == choices:
                await self._data.bell.wait(TICK_S)

    async def _ask(self, socket: Socket, component: str, name: str) -> Any:
        for _ in range(SILENT_ANSWERS):
            try:
                return await socket.get_prop(component, name, timeout=ANSWER_S)
            except TimeoutError:
                if socket.is_shutdown:
                    break
        raise WebsocketDisconnected

    def _push(self, wish: str | None) -> None:
        data = self._data
        self._change = data.feed.change
        self._push_chart(wish)
        for name, part in data.parts(time.monotonic()).items():
            if self._shown.get(name) is not part:
                self._shown[name] = part
                self._set(name, children=part.drawn)
        clock = market_text(data.state, data.feed.last_time_ns(), time.time_ns(), data.style.zone)
        if self._shown.get('clock') != clock:
            self._shown['clock'] = clock
            self._set('clock', children=clock)

    def _say(self, notice: Notice) -> None:
        self._set('banner', children=self._data.draw('banner', [notice]))

    def _push_chart(self, wish: str | None) -> None:
        feed = self._data.feed
        if self._universe != feed.universe:
            self._universe = feed.universe
            choices = feed.choices()
            several = len({stream for stream, _ in choices}) > 1
            self._options = {f'{symbol}@{stream}': (stream, symbol) for stream, symbol in choices}
            options = [
                {'label': f'{symbol} ({stream})' if several else symbol, 'value': value}
                for value, (stream, symbol) in self._options.items()
            ]
            self._set('symbol', options=options)
        if wish not in self._options:
            # A page that was loaded again, or whose node was started again, shows what it did.
            known = self._kept in self._options
            wish = self._kept if known else next(iter(self._options), None)
            if wish is not None:
                self._set('symbol', value=wish)
        stream, symbol = self._options[wish] if wish is not None else ('', '')
        chart = self._chart
        if chart is None or (chart.stream, chart.symbol) != (stream, symbol):
            chart = self._chart = Chart(self._data.style, stream, symbol)
            if wish is not None:
                self._kept = wish
                self._set('kept', data=wish)
        self._push_figure(chart)

    def _push_figure(self, chart: Chart) -> None:
        news: dict[Any, Any] | None = chart.update(self._data.feed)
        if news is None:
            return
        figure = Patch()
        if 'data' in news:
            if news['layout'] == self._layout:
                # With the layout that the browser holds, a person's zoom stays too.
                figure['data'] = news['data']
                self._set('chart', figure=figure)
            else:
                self._layout = news['layout']
                self._set('chart', figure=news)
            return
        for trace, columns in news.items():
            for name, values in columns.items():
                figure['data'][trace][name].extend(values)
        self._set('chart', figure=figure)

    def _set(self, component: str, **props: Any) -> None:
        assert self._socket is not None
        for name, value in props.items():
            self._socket.set_prop_sync(component, name, value)
