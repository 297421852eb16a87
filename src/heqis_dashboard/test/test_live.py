# SPDX-License-Identifier: Apache-2.0
"""What a page gets, when, and what becomes of it when it is slow, silent, gone or one too many."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from dash._utils import to_json
from dash.exceptions import WebsocketDisconnected

from heqis_core.bars import BarStatus
from heqis_core.control import Event, Level
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import new_stamps
from heqis_core.testing import simulated_table
from heqis_core.testing_graph import make_beat
from heqis_dashboard import live
from heqis_dashboard.chart import BUY, CANDLES, REFUSED, SELL, VOLUME, Chart
from heqis_dashboard.live import Live, PageData
from heqis_dashboard.page import HEADINGS, draw
from heqis_dashboard.testing_client import extend
from heqis_dashboard.views import Notice, Row

SOON_S = 10.0
BARS = simulated_table(3, 60, 1)
A, B, C = BARS.symbols
TABLES = tuple(HEADINGS)


class Page:
    """The other end of the connection: what was sent, and answers when the test lets it.

    What is sent is turned into JSON at once, as Dash's socket does.
    """

    def __init__(self, **props: Any) -> None:
        """Show nothing yet; `kept` and `symbol` are the values that the browser remembers."""
        self.props: dict[tuple[str, str], Any] = {}
        for name, value in props.items():
            self.props[name, 'data' if name == 'kept' else 'value'] = value
        self.sent: list[tuple[str, str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.n = 0
        self.answers = True
        self.is_shutdown = False
        self._changed = asyncio.Event()
        self._open: list[asyncio.Future[Any]] = []

    def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
        key, value = (component_id, prop_name), json.loads(to_json(value))
        self.sent.append((*key, value))
        if isinstance(value, dict) and '__dash_patch_update' in value:
            extend(self.props[key], value['operations'])
        else:
            self.props[key] = value
        self.n += component_id == 'beat'
        self._changed.set()

    async def get_prop(self, component_id: str, prop_name: str, timeout: float = 30.0) -> Any:
        self.asked.append((component_id, prop_name))
        self._changed.set()
        if not self.answers:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._open.append(future)
            try:
                await asyncio.wait_for(future, timeout)
            except asyncio.TimeoutError:
                raise TimeoutError('no answer') from None
            finally:
                self._open.remove(future)
        await asyncio.sleep(0)
        return self.props.get((component_id, prop_name))

    @property
    def waited_for(self) -> bool:
        """Whether a question is open."""
        return bool(self._open)

    def answer(self) -> None:
        """Answer what is asked, and from now on."""
        self.answers = True
        for future in self._open:
            future.set_result(None)

    def disconnect(self) -> None:
        """End the connection as Dash does."""
        self.is_shutdown = True
        for future in self._open:
            future.set_exception(WebsocketDisconnected())

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline_s = time.monotonic() + SOON_S
        while not condition():
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline_s - time.monotonic())
            except asyncio.TimeoutError:
                raise AssertionError(f'not within {SOON_S} s') from None

    async def pushes(self, more: int) -> None:
        """Wait for so many pushes from now on."""
        n = self.n + more
        await self.until(lambda: self.n >= n)

    def sent_of(self, component: str, name: str = 'children') -> list[Any]:
        """Return every value that was sent of a property."""
        return [value for *key, value in self.sent if key == [component, name]]

    def forget(self) -> None:
        self.sent.clear()

    @property
    def figure(self) -> Any:
        return self.props['chart', 'figure']

    @property
    def closes(self) -> list[float]:
        found: list[float] = self.figure['data'][CANDLES]['close']
        return found


@asynccontextmanager
async def opened(data: PageData, *pages: Page) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Serve pages; whatever is left at the end is cancelled as when a connection is lost."""
    with data.bell.hung():
        tasks = [asyncio.create_task(Live(data, each).run()) for each in pages]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pushes follow one another fast, those without news too, and nothing be old."""
    monkeypatch.setattr(live, 'PAUSE_S', 0.001)
    monkeypatch.setattr(live, 'TICK_S', 0.01)
    monkeypatch.setattr(live, 'PARTS_S', 0.0)


def add_bars(data: PageData, first: int, end: int, stream: str = 'daily') -> None:
    for i in range(first, end):
        data.feed.add_bars(stream, i, BARS.block(i))
    data.bell.ring()


def add_decisions(data: PageData, i: int, actions: tuple[Action, ...], reasons: int = 0) -> None:
    """Decide on A, B and C at one event time."""
    n = len(actions)
    data.feed.add_decisions(
        Decisions(
            'daily',
            1,
            i,
            int(BARS.event_time_ns[i]),
            0,
            'bundle',
            'gru',
            BARS.symbols,
            np.array(actions, np.uint8),
            np.full(n, reasons, np.uint32),
            np.full(n, 0.5, np.float32),
            np.full(n, np.nan, np.float32),
            np.full((n, 3), 0.25, np.float32),
            np.full(n, np.nan, np.float32),
            np.full(n, 1, np.int64),
            new_stamps(),
        )
    )
    data.bell.ring()


def closes(symbol: str, first: int, end: int) -> list[float]:
    place = BARS.symbols.index(symbol)
    assert (BARS.status[first:end, place] == BarStatus.VALID).all()
    found: list[float] = BARS.values[first:end, 3, place].tolist()
    return found


def fresh_figure(data: PageData, symbol: str) -> Any:
    """Return the figure of a page that is opened now."""
    return json.loads(to_json(Chart(data.style, 'daily', symbol).update(data.feed)))


# --- what is pushed ---


def test_the_first_push_has_all_of_it_and_ends_with_the_beat(data) -> None:
    add_bars(data, 0, 30)
    add_decisions(data, 5, (Action.BUY, Action.SELL, Action.NONE))

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            first, beat = page.sent[:-1], page.sent[-1]
            assert beat[:2] == ('beat', 'children')
        assert {(component, name) for component, name, _ in first} == {
            ('symbol', 'options'),
            ('symbol', 'value'),
            ('kept', 'data'),
            ('chart', 'figure'),
            ('clock', 'children'),
            ('banner', 'children'),
            *((name, 'children') for name in (*TABLES, 'kill')),
        }
        assert len(first) == len({key[:2] for key in first})
        assert [option['label'] for option in page.props['symbol', 'options']] == [A, B, C]
        assert page.props['kept', 'data'] == page.props['symbol', 'value'] == f'{A}@daily'
        assert page.closes == closes(A, 0, 30)
        assert page.figure == fresh_figure(data, A)
        signals = to_json(page.props['signals', 'children'])
        assert all(text in signals for text in (A, B, 'BUY', 'SELL'))
        assert C not in signals
        assert 'no node is heard in /desk' in json.dumps(page.props['banner', 'children'])
        assert page.props['clock', 'children'].startswith('newest bar ')

    asyncio.run(main())


def test_a_page_without_any_data_says_so_and_gets_the_first_symbol_when_it_comes(data) -> None:
    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(2)
            assert page.props['symbol', 'options'] == []
            assert ('symbol', 'value') not in page.props
            assert page.closes == []
            assert 'no bars of any symbol' in json.dumps(page.figure['layout'])
            assert page.props['clock', 'children'] == 'no bar yet'
            add_bars(data, 0, 3)
            await page.until(lambda: page.closes == closes(A, 0, 3))
            assert page.props['symbol', 'value'] == f'{A}@daily'
            assert 'annotations' not in page.figure['layout']

    asyncio.run(main())


def test_news_of_the_shown_symbol_are_appended_and_make_the_figure_of_a_fresh_page(data) -> None:
    add_bars(data, 0, 30)
    add_decisions(data, 29, (Action.BUY, Action.HOLD, Action.HOLD))

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            page.forget()
            for i in range(30, 36):
                n = len(page.sent_of('chart', 'figure'))
                add_bars(data, i, i + 1)
                await page.until(lambda n=n: len(page.sent_of('chart', 'figure')) > n)
            marks = (Action.SELL, 0), (Action.BUY, 0), (Action.NONE, Reason.HELD)
            for i, (action, reasons) in enumerate(marks, 31):
                n = len(page.sent_of('chart', 'figure'))
                add_decisions(data, i, (action, Action.HOLD, Action.HOLD), reasons)
                await page.until(lambda n=n: len(page.sent_of('chart', 'figure')) > n)
        patches = page.sent_of('chart', 'figure')
        assert len(patches) == 9
        for i, patch in enumerate(patches):
            operations = patch['operations']
            assert {each['operation'] for each in operations} == {'Extend'}
            assert {len(each['params']['value']) for each in operations} == {1}
            traces = {each['location'][1] for each in operations}
            assert traces == ({CANDLES, VOLUME} if i < 6 else {(SELL, BUY, REFUSED)[i - 6]})
        assert page.closes == closes(A, 0, 36)
        fresh = fresh_figure(data, A)
        assert page.figure['data'][:BUY] == fresh['data'][:BUY]
        for mine, theirs in zip(page.figure['data'][BUY:], fresh['data'][BUY:], strict=True):
            # How far a mark stands from its candle is settled when a figure is made.
            assert (mine['x'], mine['text']) == (theirs['x'], theirs['text'])

    asyncio.run(main())


def test_news_of_other_symbols_send_no_chart(data) -> None:
    add_bars(data, 0, 10)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            page.forget()
            change = data.feed.change
            add_decisions(data, 9, (Action.HOLD, Action.BUY, Action.HOLD))
            assert data.feed.change > change
            await page.until(lambda: page.sent_of('signals'))
            await page.pushes(2)
            assert page.sent_of('chart', 'figure') == []

    asyncio.run(main())


def test_another_symbol_brings_a_whole_figure_and_is_kept(data) -> None:
    add_bars(data, 0, 20)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            page.forget()
            page.props['symbol', 'value'] = f'{C}@daily'
            await page.until(lambda: page.sent_of('chart', 'figure'))
            await page.pushes(2)
            assert page.sent_of('chart', 'figure') == [fresh_figure(data, C)]
            assert page.sent_of('kept', 'data') == [f'{C}@daily']
            assert page.sent_of('symbol', 'value') == []
            add_bars(data, 20, 21)
            await page.until(lambda: page.closes == closes(C, 0, 21))

    asyncio.run(main())


@pytest.mark.parametrize('name', ['nothing', '', None, f'{A}@other', 7])
def test_a_symbol_that_does_not_exist_falls_back_to_the_first(name, data) -> None:
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page(kept=name, symbol=name)
        async with opened(data, page):
            await page.pushes(3)
        assert page.sent_of('symbol', 'value') == [f'{A}@daily']
        assert page.sent_of('kept', 'data') == [f'{A}@daily']
        assert page.closes == closes(A, 0, 5)
        assert len(page.sent_of('chart', 'figure')) == 1

    asyncio.run(main())


def test_a_page_that_is_loaded_again_shows_the_symbol_that_it_showed(data) -> None:
    """The browser remembers `kept` alone: the choice on the page is made anew."""
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page(kept=f'{B}@daily')
        async with opened(data, page):
            await page.pushes(4)
        assert page.props['symbol', 'value'] == f'{B}@daily'
        assert page.sent_of('chart', 'figure') == [fresh_figure(data, B)]

    asyncio.run(main())


def test_what_was_chosen_while_the_connection_was_lost_counts_when_it_is_back(data) -> None:
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page(kept=f'{B}@daily', symbol=f'{C}@daily')
        async with opened(data, page):
            await page.pushes(3)
        assert page.sent_of('symbol', 'value') == []
        assert page.props['kept', 'data'] == f'{C}@daily'
        assert page.sent_of('chart', 'figure') == [fresh_figure(data, C)]

    asyncio.run(main())


@pytest.mark.parametrize('chosen', [f'{C}@daily', None])
def test_a_page_keeps_its_symbol_over_a_restart_of_the_dashboard_without_data(
    chosen, data
) -> None:
    """None as from a drop-down list that lets go of what its options no longer have."""

    async def main() -> None:
        page = Page(kept=f'{C}@daily', symbol=chosen)
        async with opened(data, page):
            await page.pushes(3)
            assert page.props['kept', 'data'] == f'{C}@daily'
            add_bars(data, 0, 5)
            await page.until(lambda: page.closes == closes(C, 0, 5))
            await page.pushes(2)
            assert page.props['symbol', 'value'] == f'{C}@daily'
            assert page.closes == closes(C, 0, 5)

    asyncio.run(main())


def test_a_page_that_comes_back_gets_everything(data) -> None:
    add_bars(data, 0, 10)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(2)
            sent = {key[:2] for key in page.sent}
        add_bars(data, 10, 20)
        page.forget()
        async with opened(data, page):
            await page.pushes(1)
            assert {key[:2] for key in page.sent} == sent - {('symbol', 'value')}
            assert page.closes == closes(A, 0, 20)
            assert page.figure == fresh_figure(data, A)

    asyncio.run(main())


def test_symbols_of_several_streams_are_told_apart(data) -> None:
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            page.forget()
            add_bars(data, 7, 9, 'hourly')
            await page.until(lambda: page.sent_of('symbol', 'options'))
            labels = [option['label'] for option in page.props['symbol', 'options']]
            assert labels == [f'{s} ({t})' for t in ('daily', 'hourly') for s in BARS.symbols]
            assert page.closes == closes(A, 0, 5)
            page.props['symbol', 'value'] = f'{A}@hourly'
            await page.until(lambda: page.closes == closes(A, 7, 9))

    asyncio.run(main())


def test_what_did_not_change_is_not_sent_again_and_what_did_is(data, monkeypatch) -> None:
    monkeypatch.setattr(live, 'LATENCY_S', 0.0)
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(6)
            counts = {key[:2]: 0 for key in page.sent}
            for *key, _ in page.sent:
                counts[tuple(key)] += 1
            assert counts.pop(('beat', 'children')) >= 6
            assert set(counts.values()) == {1}
            page.forget()
            data.state.beat(make_beat('gateway', 1, 1, bars_in=12345), time.monotonic())
            await page.until(lambda: page.sent_of('flow'))
            assert '12,345' in to_json(page.sent_of('flow')[-1])
            assert page.sent_of('banner')
            assert page.sent_of('nodes')
            assert page.sent_of('signals') == page.sent_of('latency') == []
            assert page.sent_of('events') == []
            assert page.sent_of('clock') == page.sent_of('chart', 'figure') == []

    asyncio.run(main())


def test_a_page_without_news_still_beats(data, monkeypatch) -> None:
    monkeypatch.setattr(live, 'TICK_S', 0.05)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(3)
            page.forget()
            await page.pushes(2)
            assert {key[:2] for key in page.sent} == {('beat', 'children')}
            assert page.sent_of('beat') == ['4', '5']

    asyncio.run(main())


def test_news_do_not_wait_for_the_next_tick(data, monkeypatch) -> None:
    monkeypatch.setattr(live, 'TICK_S', 60.0)
    add_bars(data, 0, 5)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            for i in range(5, 15):
                deadline_s = time.monotonic() + SOON_S
                while not data.bell._waiters and time.monotonic() < deadline_s:
                    await asyncio.sleep(0)
                thread = threading.Thread(target=add_bars, args=(data, i, i + 1))
                thread.start()
                await page.until(lambda i=i: page.closes == closes(A, 0, i + 1))
                thread.join()

    asyncio.run(main())


# --- a page that is slow ---


def test_while_a_page_has_not_answered_it_gets_nothing_and_then_all_of_it_at_once(data) -> None:
    add_bars(data, 0, 10)

    async def main() -> None:
        slow, quick = Page(), Page()
        async with opened(data, slow, quick):
            await slow.pushes(1)
            slow.answers = False
            await slow.until(lambda: slow.waited_for)
            slow.forget()
            for i in range(10, 40):
                add_bars(data, i, i + 1)
                await quick.until(lambda i=i: quick.closes == closes(A, 0, i + 1))
            assert slow.sent == []
            assert len(slow.asked) <= 4
            slow.answer()
            await slow.pushes(1)
            (patch,) = slow.sent_of('chart', 'figure')
            assert {len(each['params']['value']) for each in patch['operations']} == {30}
            assert slow.closes == closes(A, 0, 40)
            assert slow.figure == quick.figure

    asyncio.run(main())


def test_every_push_is_answered_before_the_next(data) -> None:
    class Careful(Page):
        def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
            assert self.n == self.asked.count(('symbol', 'value')) - 1
            super().set_prop_sync(component_id, prop_name, value)

    async def main() -> None:
        page = Careful()
        async with opened(data, page) as (task,):
            for i in range(20):
                add_bars(data, i, i + 1)
                await page.pushes(1)
            assert not task.done()

    asyncio.run(main())


def test_a_page_that_never_answers_is_given_up(data, failures, monkeypatch) -> None:
    monkeypatch.setattr(live, 'ANSWER_S', 0.02)

    async def main() -> None:
        page = Page()
        async with opened(data, page) as (task,):
            await page.pushes(1)
            page.answers = False
            await page.until(lambda: page.waited_for)
            page.forget()
            page.asked.clear()
            await asyncio.wait_for(task, SOON_S)
            assert len(page.asked) <= live.SILENT_ANSWERS
            assert page.sent == []

    asyncio.run(main())
    assert data.counters['pages'] == 0
    assert failures == []


def test_a_page_that_answers_late_once_goes_on(data, monkeypatch) -> None:
    monkeypatch.setattr(live, 'ANSWER_S', 0.05)

    async def main() -> None:
        page = Page()
        async with opened(data, page):
            await page.pushes(1)
            page.answers = False
            await page.until(lambda: page.waited_for)
            n = len(page.asked)
            await page.until(lambda: len(page.asked) > n and page.waited_for)
            page.answer()
            await page.pushes(2)

    asyncio.run(main())


# --- pages that end ---


def test_one_page_more_than_allowed_is_told_so_and_counts_nowhere_else(data) -> None:
    data.most = 2

    async def main() -> None:
        first, second, third = Page(), Page(), Page()
        async with opened(data, first, second):
            await first.pushes(1)
            await second.pushes(1)
            async with opened(data, third) as (task,):
                await asyncio.wait_for(task, SOON_S)
            ((component, name, value),) = third.sent
            assert (component, name) == ('banner', 'children')
            assert '2 pages are open already (parameter pages)' in to_json(value)
            assert third.asked == []
            assert data.counters['pages'] == 2
            assert data.counters['pages_refused'] == 1
        async with opened(data, third):
            await third.pushes(1)
            assert data.counters['pages'] == 1

    asyncio.run(main())
    assert data.counters['pages'] == 0


def test_an_exception_is_reported_and_the_page_told_and_others_go_on(data, failures) -> None:
    add_bars(data, 0, 5)

    class Broken(Page):
        def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
            if component_id == 'flow':
                raise ValueError('no table')
            super().set_prop_sync(component_id, prop_name, value)

    async def main() -> None:
        page, other = Broken(), Page()
        async with opened(data, other):
            async with opened(data, page) as (task,):
                await asyncio.wait_for(task, SOON_S)
            await other.pushes(2)
            assert data.counters['pages'] == 1
        notice = to_json(page.props['banner', 'children'])
        assert 'this page has failed' in notice
        assert '"error"' in notice
        assert page.n == 0

    asyncio.run(main())
    assert [str(error) for error in failures] == ['no table']
    assert data.counters['pages'] == 0


@pytest.mark.parametrize('how', ['cancelled', 'disconnected', 'shut down'])
def test_a_page_whose_connection_is_lost_ends_quietly(how, data, failures) -> None:
    async def main() -> None:
        page, other = Page(), Page()
        async with opened(data, other, page) as (_, task):
            await page.pushes(1)
            assert data.counters['pages'] == 2
            page.answers = how == 'shut down'
            if how != 'shut down':
                await page.until(lambda: page.waited_for)
            page.forget()
            if how == 'cancelled':
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == 'disconnected':
                page.disconnect()
                await asyncio.wait_for(task, SOON_S)
            else:
                page.is_shutdown = True
                await asyncio.wait_for(task, SOON_S)
            assert data.counters['pages'] == 1
            assert 'banner' not in [name for name, *_ in page.sent]
            await other.pushes(2)

    asyncio.run(main())
    assert data.counters['pages'] == 0
    assert failures == []


def test_a_browser_without_a_websocket_gets_nothing_and_counts_nowhere(data) -> None:
    asyncio.run(Live(data, None).run())
    assert data.counters == {'pages': 0, 'pages_refused': 0, 'pushes': 0}


# --- many pages ---


ROWS = (
    *('notices', 'kill_switch', 'signal_rows', 'node_rows'),
    *('flow_rows', 'event_rows', 'latency_rows'),
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often the rows of each table are made."""
    made: Counter[str] = Counter()
    for name in ROWS:
        original = getattr(live, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            made[name] += 1
            return original(*args)

        monkeypatch.setattr(live, name, counted)
    return made


def test_ten_pages_share_one_computation_of_what_all_of_them_show(data, made, monkeypatch) -> None:
    monkeypatch.setattr(live, 'PARTS_S', 3600.0)
    data.state.beat(make_beat('gateway', 1, 1), time.monotonic())
    drawn: Counter[str] = Counter()

    def counted(name: str, rows: Any) -> Any:
        drawn[name] += 1
        return draw(name, rows)

    data.draw = counted

    async def main() -> None:
        pages = [Page() for _ in range(10)]
        async with opened(data, *pages):
            for page in pages:
                await page.pushes(5)
        for page in pages:
            for name in (*TABLES, 'banner', 'kill'):
                assert page.props[name, 'children'] == pages[0].props[name, 'children']
                assert len(page.sent_of(name)) == 1

    asyncio.run(main())
    assert made == dict.fromkeys(ROWS, 1)
    assert drawn == dict.fromkeys((*TABLES, 'banner', 'kill'), 1)
    assert data.counters['pushes'] >= 50


def test_what_is_shared_is_made_again_once_it_is_old_and_drawn_again_once_it_changed(
    data, made, monkeypatch
) -> None:
    monkeypatch.setattr(live, 'PARTS_S', 0.5)
    monkeypatch.setattr(live, 'LATENCY_S', 1.5)
    first = data.parts(100.0)
    for now_s in (100.25, 100.5, 100.75, 101.0, 101.5, 101.75, 102.0):
        assert {name: part.drawn for name, part in data.parts(now_s).items()} == {
            name: part.drawn for name, part in first.items()
        }
        assert all(part is first[name] for name, part in data.parts(now_s).items())
    assert made == {**dict.fromkeys(ROWS, 5), 'latency_rows': 2}
    data.state.happened(Event(0, Level.WARN, 'supervisor', 'kind', 'subject', 'text'))
    changed = {name for name, part in data.parts(103.0).items() if part is not first[name]}
    assert changed == {'events'}


def test_a_heartbeat_that_comes_while_the_tables_are_made_does_no_harm(data) -> None:
    """Another thread takes heartbeats than the one that makes the tables."""
    data.state.beat(make_beat('gateway', 1, 1, drops=1, first=2), time.monotonic())
    counters = iter(data.state.nodes['gateway'].counters.items())
    next(counters)
    data.state.beat(make_beat('gateway', 1, 2, drops=2, second=3), time.monotonic())
    assert list(counters) == [('first', 2)]
    assert data.state.nodes['gateway'].drops == 2


def test_what_a_node_says_is_text_on_the_page_whatever_it_is() -> None:
    evil = '<img src=x onerror=alert(1)>'
    (line,) = draw('banner', [Notice(Level.ERROR, evil)])
    assert line['props']['children'] == evil
    assert evil in json.dumps(draw('nodes', [Row((evil,) * 8)]))
    assert 'dangerously' not in json.dumps([line, draw('nodes', [Row((evil,) * 8)])])
