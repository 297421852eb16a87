# SPDX-License-Identifier: Apache-2.0
"""The served page and clients that speak as Dash's renderer does, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from heqis_core.testing import simulated_table, wait_until
from heqis_dashboard import live
from heqis_dashboard.live import PageData
from heqis_dashboard.page import HEADINGS
from heqis_dashboard.testing_client import DashClient

SOON_S = 10.0
BARS = simulated_table(3, 60, 1)
A, B, C = BARS.symbols


def add_bars(data: PageData, first: int, end: int) -> None:
    for i in range(first, end):
        data.feed.add_bars('daily', i, BARS.block(i))
    data.bell.ring()


def closes(symbol: str, end: int) -> list[float]:
    found: list[float] = BARS.values[:end, 3, BARS.symbols.index(symbol)].tolist()
    return found


def shown(client: DashClient) -> list[float]:
    traces = client.figure['data']
    return traces[0]['close'] if traces else []


@asynccontextmanager
async def opened(*clients: DashClient) -> AsyncIterator[None]:
    """Connect pages and let them run, then close them."""
    await asyncio.gather(*(client.connect() for client in clients))
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in ended if isinstance(error, Exception)]


def test_a_page_gets_everything_then_only_what_is_new(served, data) -> None:
    add_bars(data, 0, 30)

    async def main() -> None:
        client = DashClient(served.url)
        async with opened(client):
            await client.until(lambda: client.pushes, SOON_S)
            assert {('chart', 'figure'), ('symbol', 'options'), ('banner', 'children')} <= set(
                client.pushes[0].props
            )
            assert {(name, 'children') for name in HEADINGS} <= set(client.pushes[0].props)
            assert shown(client) == closes(A, 30)
            n = client.n_pushes
            add_bars(data, 30, 31)
            await client.until(lambda: shown(client) == closes(A, 31), SOON_S)
            sent = [
                push.props['chart', 'figure']
                for push in list(client.pushes)[n:]
                if ('chart', 'figure') in push.props
            ]
            assert [set(patch) for patch in sent] == [{'__dash_patch_update', 'operations'}]
            await client.change('symbol', 'value', f'{B}@daily')
            await client.until(lambda: shown(client) == closes(B, 31), SOON_S)
            assert client.props['kept', 'data'] == f'{B}@daily'
            times_ns = [push.time_ns for push in client.pushes]
            assert times_ns == sorted(times_ns)
            assert client.result is None

    asyncio.run(main())
    wait_until(lambda: data.counters['pages'] == 0, SOON_S, 'the page is still counted')


def test_a_choice_is_shown_at_once_though_nothing_is_new(served, data, monkeypatch) -> None:
    monkeypatch.setattr(live, 'TICK_S', 60.0)
    monkeypatch.setattr(live, 'PAUSE_S', 0.0)  # a choice in the pause waits for the next look
    add_bars(data, 0, 10)

    async def main() -> None:
        client = DashClient(served.url)
        async with opened(client):
            await client.until(lambda: client.pushes, SOON_S)
            for symbol in (B, C, A):
                await client.change('symbol', 'value', f'{symbol}@daily')
                expected = closes(symbol, 10)
                await client.until(lambda e=expected: shown(client) == e, SOON_S)

    asyncio.run(main())


def test_ten_pages_at_once_all_get_the_news_soon(served, data) -> None:
    add_bars(data, 0, 30)

    async def main() -> None:
        clients = [DashClient(served.url) for _ in range(10)]
        async with opened(*clients):
            choices = [BARS.symbols[i % 3] for i in range(10)]
            for client, symbol in zip(clients, choices, strict=True):
                client.props['symbol', 'value'] = f'{symbol}@daily'
            for end in range(30, 61, 2):
                add_bars(data, end - 2, end)
                for client, symbol in zip(clients, choices, strict=True):
                    expected = closes(symbol, end)
                    await client.until(lambda c=client, e=expected: shown(c) == e, SOON_S)
            assert data.counters['pages'] == 10
            assert all(client.result is None for client in clients)

    asyncio.run(main())


def test_a_page_that_does_not_answer_gets_nothing_and_holds_nobody_up(served, data) -> None:
    add_bars(data, 0, 10)

    async def main() -> None:
        slow, quick = DashClient(served.url), DashClient(served.url)
        async with opened(slow, quick):
            await slow.until(lambda: shown(slow) == closes(A, 10), SOON_S)
            slow.asleep = True
            n = slow.n_pushes
            for end in range(11, 22):
                add_bars(data, end - 1, end)
                await quick.until(lambda end=end: shown(quick) == closes(A, end), SOON_S)
            # One more at most: the answer to the last question may have been on its way.
            assert slow.n_pushes <= n + 1
            n = slow.n_pushes
            await slow.wake()
            await slow.until(lambda: slow.n_pushes > n, SOON_S)
            assert shown(slow) == closes(A, 21)
            assert slow.figure == quick.figure

    asyncio.run(main())


def test_a_page_whose_connection_broke_comes_back_with_all_it_missed(served, data) -> None:
    add_bars(data, 0, 10)

    async def main() -> None:
        client = DashClient(served.url)
        async with opened(client):
            client.props['symbol', 'value'] = f'{C}@daily'
            await client.until(lambda: shown(client) == closes(C, 10), SOON_S)
        add_bars(data, 10, 20)
        async with opened(client):
            await client.until(lambda: shown(client) == closes(C, 20), SOON_S)
            assert client.props['symbol', 'value'] == f'{C}@daily'

    asyncio.run(main())


def test_one_page_too_many_is_told_so_and_gets_in_when_another_has_gone(served, data) -> None:
    data.most = 1

    async def main() -> None:
        first, second = DashClient(served.url), DashClient(served.url)
        async with opened(first):
            await first.until(lambda: first.pushes, SOON_S)
            async with opened(second):
                await second.until(lambda: second.result, SOON_S)
                assert second.result is not None
                assert second.result['status'] != 'error'
                assert 'pages are open already' in json.dumps(second.props['banner', 'children'])
                assert not second.pushes
        await asyncio.to_thread(wait_until, lambda: data.counters['pages'] == 0, SOON_S)
        async with opened(second):
            await second.until(lambda: second.pushes, SOON_S)

    asyncio.run(main())


def test_a_page_that_fails_is_told_so_and_the_next_one_works(served, data, failures) -> None:
    good = data.draw

    async def main() -> None:
        client = DashClient(served.url)
        data.draw = lambda name, rows: good(name, rows) if name == 'banner' else 1 / 0
        async with opened(client):
            await client.until(lambda: client.result, SOON_S)
            assert 'this page has failed' in json.dumps(client.props['banner', 'children'])
        assert [type(error) for error in failures] == [ZeroDivisionError]
        data.draw = good
        async with opened(client):
            await client.until(lambda: client.pushes, SOON_S)

    asyncio.run(main())


def test_a_request_for_something_else_than_the_page_gets_nothing(served, data, failures) -> None:
    """No callback of that name, and a message that is none."""

    async def main() -> None:
        client, other = DashClient(served.url), DashClient(served.url)
        async with opened(other):
            await other.until(lambda: other.pushes, SOON_S)
            await client.connect()
            socket = client._socket
            assert socket is not None
            await socket.send('{"type": "callback_request", "payload": {"output": "no.such"}}')
            await asyncio.wait_for(client.run(), SOON_S)
            assert client._socket is not None
            n = other.n_pushes
            await other.until(lambda: other.n_pushes > n + 2, SOON_S)

    asyncio.run(main())
    assert failures == []
    wait_until(lambda: data.counters['pages'] == 0, SOON_S, 'a page is still counted')
