# SPDX-License-Identifier: Apache-2.0
"""What the tests of page and server share: what a page shows, and a server of it on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo

import pytest

from heqis_core.graph_state import GraphState
from heqis_dashboard import server
from heqis_dashboard.actions import Act
from heqis_dashboard.bell import Bell
from heqis_dashboard.chart import Style
from heqis_dashboard.feed import Feed
from heqis_dashboard.live import PageData
from heqis_dashboard.page import draw, make_app
from heqis_dashboard.views import Sources


@pytest.fixture
def failures() -> list[BaseException]:
    """Return the exceptions that ended the service of a page."""
    return []


@pytest.fixture
def data(failures: list[BaseException]) -> PageData:
    """Return what pages show: nothing yet, in a graph that nobody is heard of."""
    return PageData(
        title='/desk in ROS domain 7',
        feed=Feed(200, 10_000_000),
        state=GraphState(),
        sources=lambda: Sources('/desk in ROS domain 7'),
        bell=Bell(),
        style=Style(100, ZoneInfo('UTC'), 'red'),
        most=16,
        on_failure=failures.append,
        draw=draw,
    )


class Served:
    """The page, served by a thread on a free port of loopback; can be served again."""

    def __init__(self, data: PageData, host: str = '127.0.0.1', act: Act | None = None) -> None:
        self.data = data
        self.socket = server.bind(host, 0, trusted_network=False)
        self.url = server.address_of(self.socket)
        self.port: int = self.socket.getsockname()[1]
        self.app = make_app(data, server.allowed_hosts(host), act).server
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='served')
        self._thread.start()

    def _run(self) -> None:
        try:
            server.serve(self.app, self.socket, self.data.bell, self.data.most, self._stop)
        except BaseException as error:
            self.error = error

    def stop(self) -> float:
        """End it; return how long that took, s."""
        start_s = time.monotonic()
        self._stop.set()
        self._thread.join(20.0)
        assert not self._thread.is_alive(), 'the server does not end'
        assert self.error is None, repr(self.error)
        return time.monotonic() - start_s


@pytest.fixture
def serve(data: PageData) -> Iterator[Callable[..., Served]]:
    """Return a function that serves the page, ended after the test whatever happens."""
    pages: list[Served] = []

    def serve(host: str = '127.0.0.1', act: Act | None = None) -> Served:
        pages.append(Served(data, host, act))
        pages[-1].start()
        return pages[-1]

    yield serve
    for page in pages:
        page.stop()
        page.socket.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """Return the page being served."""
    return serve()
