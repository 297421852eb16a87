# SPDX-License-Identifier: Apache-2.0
"""Who may reach the page, that it needs nothing from elsewhere, and that it ends when told."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import uvicorn

from heqis_core.errors import ConfigError, HeqisError
from heqis_core.testing import free_port, wait_until
from heqis_dashboard import server
from heqis_dashboard.bell import Bell
from heqis_dashboard.testing_client import DashClient

HOST = '127.0.0.1'
ENDS_S = 1.7
"""A process that is told to end has 1.8 s, and more to do than this."""
ELSEWHERE = re.compile(r'https?:(//|\\u002f\\u002f|\\/\\/)', re.IGNORECASE)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(('::1', 0))
    except OSError:
        return False
    return True


# --- where it listens ---


@pytest.mark.parametrize(
    'host', ['0.0.0.0', '::', '192.0.2.7', 'page.example', 'localhost.evil', '']
)
def test_an_address_off_loopback_is_refused_and_the_parameters_are_named(host, monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: pytest.fail('was looked up'))
    with pytest.raises(ConfigError, match='trusted_network') as refusal:
        server.bind(host, 0, trusted_network=False)
    assert f'host is {host!r}' in str(refusal.value)


def test_a_trusted_network_allows_a_name_off_loopback_and_every_host_header(monkeypatch):
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (HOST, 0))]
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: here)
    with server.bind('page.example', 0, trusted_network=True) as bound:
        assert bound.getsockname()[0] == HOST
    assert server.allowed_hosts('page.example') == ['*']


@pytest.mark.parametrize('host', ['a..b', 'a' * 70, ''])
def test_a_name_that_is_none_is_refused_with_the_parameter(host):
    with pytest.raises(ConfigError, match='parameters host and port'):
        server.bind(host, 0, trusted_network=True)


@pytest.mark.parametrize('listening', [True, False])
def test_a_port_that_another_program_has_is_refused_at_once_and_named(listening):
    with socket.socket() as other:
        other.bind((HOST, 0))
        port = other.getsockname()[1]
        if listening:
            other.listen()
        with pytest.raises(ConfigError, match=f'{HOST} port {port}: .*in use.*parameters') as why:
            server.bind(HOST, port, trusted_network=False)
        assert '\n' not in str(why.value)
    server.bind(HOST, port, trusted_network=False).close()


def test_a_port_is_taken_from_bind_on_and_free_again_once_closed():
    port = free_port()
    with server.bind(HOST, port, trusted_network=False) as bound:
        assert bound.getsockname()[1] == port
        with pytest.raises(ConfigError, match=str(port)):
            server.bind(HOST, port, trusted_network=False)
    server.bind(HOST, port, trusted_network=False).close()


def test_port_0_gives_a_free_one_that_the_address_names():
    with server.bind(HOST, 0, False) as one, server.bind(HOST, 0, False) as two:
        ports = [bound.getsockname()[1] for bound in (one, two)]
        assert len(set(ports)) == 2
        assert 0 not in ports
        assert server.address_of(one) == f'http://{HOST}:{ports[0]}'


class Named:
    """A socket that says where it is bound."""

    def __init__(self, *name: Any) -> None:
        self.name = name

    def getsockname(self) -> tuple[Any, ...]:
        return self.name


@pytest.mark.parametrize(
    ('name', 'address'),
    [
        (('0.0.0.0', 80), 'http://127.0.0.1:80'),
        (('::', 80, 0, 0), 'http://127.0.0.1:80'),
        (('::1', 80, 0, 0), 'http://[::1]:80'),
        (('10.0.0.7', 80), 'http://10.0.0.7:80'),
    ],
)
def test_the_address_is_one_that_a_browser_on_this_machine_takes(name, address):
    assert server.address_of(Named(*name)) == address


# --- who is answered ---


def status_of(port: int, host: str, path: str = '/', at: str = HOST, **headers: str) -> int:
    connection = http.client.HTTPConnection(at, port, timeout=10)
    try:
        connection.request('GET', path, headers={'Host': host, **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def upgrade(port: int, host: str, at: str = HOST, **headers: str) -> int:
    """Return the status with which a WebSocket is answered; 101 if it is opened."""
    return status_of(
        port,
        host,
        '/_dash-ws-callback',
        at,
        **{
            'Connection': 'Upgrade',
            'Upgrade': 'websocket',
            'Sec-WebSocket-Version': '13',
            'Sec-WebSocket-Key': 'MDEyMzQ1Njc4OTAxMjM0NQ==',
            **headers,
        },
    )


FOREIGN_HOSTS = [
    'evil.example',
    'evil.example:{port}',
    '127.0.0.1.evil.example',
    '192.0.2.7',
    '[::2]',
]


@pytest.mark.parametrize('foreign', FOREIGN_HOSTS)
def test_a_page_under_a_foreign_name_is_answered_400(served, foreign):
    """As after DNS rebinding: a foreign name that leads here."""
    host = foreign.format(port=served.port)
    for path in ('/', '/_dash-layout', '/_dash-dependencies', '/assets/heqis.js', '/elsewhere'):
        assert status_of(served.port, host, path) == 400, path
    assert upgrade(served.port, host, Origin=f'http://{host}') == 400


@pytest.mark.parametrize('name', ['127.0.0.1', 'localhost', 'LOCALHOST', '[::1]'])
def test_every_name_of_loopback_is_answered_with_any_port_as_through_a_tunnel(served, name):
    for host in (name, f'{name}:{served.port}', f'{name}:9999'):
        assert status_of(served.port, host) == 200
        assert upgrade(served.port, host, Origin=f'http://{host}') == 101


@pytest.mark.parametrize(
    'origin',
    ['http://evil.example', 'http://127.0.0.1:1', 'http://127.0.0.1', 'null', 'file://', None],
)
def test_a_websocket_from_a_foreign_page_is_refused(served, origin):
    headers = {} if origin is None else {'Origin': origin}
    assert upgrade(served.port, f'{HOST}:{served.port}', **headers) == 403


@pytest.mark.parametrize('host', ['::1', '0:0:0:0:0:0:0:1', '127.0.0.2', 'localhost'])
def test_any_address_of_loopback_answers_the_browser_that_takes_its_address(host, serve):
    if ':' in host and not has_ipv6():
        pytest.skip('this machine has no IPv6')
    page = serve(host)
    at, name = page.socket.getsockname()[0], page.url.removeprefix('http://')
    assert status_of(page.port, name, at=at) == 200
    assert upgrade(page.port, name, at=at, Origin=page.url) == 101
    assert status_of(page.port, 'evil.example', at=at) == 400


def test_more_connections_than_pages_need_are_turned_away_and_the_page_stays(served):
    name = f'{HOST}:{served.port}'
    idle = [socket.create_connection((HOST, served.port)) for _ in range(16 * 8 + 64)]
    try:
        wait_until(lambda: status_of(served.port, name) == 503, 10, 'all are answered')
    finally:
        for connection in idle:
            connection.close()
    wait_until(lambda: status_of(served.port, name) == 200, 10, 'none is answered any more')


# --- what is served ---


class Tags(HTMLParser):
    """What a page loads, and (id, text) of the scripts in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.links += [named[name] or '' for name in ('src', 'href', 'action') if name in named]
        self._script = named.get('id') or '' if tag == 'script' else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.texts.append((self._script, data))
            self._script = None


def get(served: Any, path: str) -> tuple[str, str]:
    """Return the kind and the text of what is served."""
    connection = http.client.HTTPConnection(HOST, served.port, timeout=10)
    try:
        connection.request('GET', path)
        answer = connection.getresponse()
        assert answer.status == 200, path
        return answer.headers['content-type'].partition(';')[0], answer.read().decode()
    finally:
        connection.close()


def test_the_page_loads_all_it_names_from_where_it_is_itself(served):
    kind, text = get(served, '/')
    assert kind == 'text/html'
    tags = Tags(text)
    assert any(link.startswith('/assets/heqis.js') for link in tags.links)
    assert any(link.startswith('/assets/heqis.css') for link in tags.links)
    assert any('dash_renderer' in link for link in tags.links)
    (config,) = (json.loads(text) for name, text in tags.texts if name == '_dash-config')
    for link in (*tags.links, config['websocket']['url'], config['websocket']['worker_url']):
        assert re.match('/[^/]', link), f'{link} is elsewhere'
    scripts = [link for link in tags.links if '.js' in link] + [config['websocket']['worker_url']]
    for script in scripts:
        kind, text = get(served, script)
        # The index is the answer to whatever is not there.
        assert kind.endswith('javascript'), script
        # Dash's question for a newer version: part of its menu for developers alone.
        assert 'dash_version_url' not in text, script
    assert not config['ui']
    written = [text for name, text in tags.texts if name != '_dash-config']
    for text in (*written, get(served, '/assets/heqis.js')[1]):
        assert not ELSEWHERE.search(text)
    kind, text = get(served, next(link for link in tags.links if '.css' in link))
    assert kind == 'text/css'
    assert not re.search(r'@import|url\(|//', re.sub(r'/\*.*?\*/', '', text, flags=re.DOTALL))


@pytest.mark.parametrize('path', ['/_dash-layout', '/_dash-dependencies'])
def test_nothing_in_the_layout_is_from_elsewhere(served, path):
    kind, text = get(served, path)
    assert kind == 'application/json'
    assert json.loads(text)
    assert not ELSEWHERE.search(text)
    assert '//' not in text


@pytest.mark.parametrize(
    'path', ['/docs', '/redoc', '/openapi.json', '/docs/oauth2-redirect', '/_mcp']
)
def test_no_page_of_the_framework_is_served(served, path):
    def page(path: str) -> tuple[str, str]:
        kind, text = get(served, path)
        return kind, re.sub('"end_id":"[^"]*"', '', text)  # a new one for each time it is loaded

    kind, text = page('/')
    assert page(path) == (kind, text)  # the answer to every path that is none
    assert not re.search('swagger|redoc\\b|"openapi"', text, re.IGNORECASE)


def test_without_a_websocket_the_service_of_a_page_ends_at_once_and_counts_no_page(served, data):
    """As in a browser without SharedWorker: Dash asks once, by HTTP."""
    output = json.loads(get(served, '/_dash-dependencies')[1])[0]['output']
    connection = http.client.HTTPConnection(HOST, served.port, timeout=10)
    body = json.dumps({'output': output, 'outputs': [], 'inputs': [], 'changedPropIds': []})
    connection.request(
        'POST', '/_dash-update-component', body, {'Content-Type': 'application/json'}
    )
    assert connection.getresponse().status in (200, 204)
    connection.close()
    assert data.counters == {'pages': 0, 'pages_refused': 0, 'pushes': 0}


# --- how it ends ---


async def open_page(url: str) -> tuple[DashClient, asyncio.Task[None]]:
    client = DashClient(url)
    await client.connect()
    task = asyncio.create_task(client.run())
    await client.until(lambda: client.n_pushes > 0, 10)
    return client, task


def test_it_ends_soon_with_an_open_page_and_serves_again_on_the_same_socket(served, data):
    async def visit() -> float:
        client, task = await open_page(served.url)
        assert data.counters['pages'] == 1
        took_s = await asyncio.to_thread(served.stop)
        await asyncio.wait_for(task, 10)
        # What the page was, it is when it comes back.
        served.start()
        await client.connect()
        task = asyncio.create_task(client.run())
        n = client.n_pushes
        await client.until(lambda: client.n_pushes > n, 10)
        assert data.counters['pages'] == 1
        task.cancel()
        return took_s

    for _ in range(2):
        assert asyncio.run(visit()) < ENDS_S
        wait_until(lambda: data.counters['pages'] == 0, 10, 'the page is gone')


def test_it_ends_soon_with_a_page_that_neither_reads_nor_answers(served, data):
    output = json.loads(get(served, '/_dash-dependencies')[1])[0]['output']
    payload = {'output': output, 'outputs': [], 'inputs': [], 'changedPropIds': []}
    request = {'type': 'callback_request', 'requestId': '1', 'rendererId': '', 'payload': payload}
    with socket.create_connection((HOST, served.port)) as silent:
        silent.sendall(
            b'GET /_dash-ws-callback HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n'
            b'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n'
            b'Sec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n'
        )
        assert b' 101 ' in silent.recv(4096)
        silent.sendall(text_frame(json.dumps(request).encode()))
        wait_until(lambda: data.counters['pages'] == 1, 10, 'the page is open')
        assert served.stop() < ENDS_S
    assert data.counters['pages'] == 0


def text_frame(text: bytes) -> bytes:
    """Return a text frame of the WebSocket protocol, masked with zeros."""
    assert 125 < len(text) < 1 << 16
    return b'\x81\xfe' + len(text).to_bytes(2, 'big') + bytes(4) + text


def test_it_ends_soon_with_idle_connections_and_half_a_request(served):
    with (
        socket.create_connection((HOST, served.port)),
        socket.create_connection((HOST, served.port)) as half,
    ):
        half.sendall(b'POST /_dash-update-component HTTP/1.1\r\nHost: localhost\r\nContent-Le')
        assert status_of(served.port, 'localhost') == 200
        assert served.stop() < ENDS_S


def test_it_ends_soon_with_a_request_whose_body_never_ends(served):
    with socket.create_connection((HOST, served.port)) as slow:
        slow.sendall(
            b'POST /_dash-update-component HTTP/1.1\r\nHost: localhost\r\n'
            b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"output":'
        )
        assert status_of(served.port, 'localhost') == 200
        assert served.stop() < ENDS_S


async def dies(scope: Any, receive: Any, send: Any) -> None:
    raise MemoryError('no room')


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({'type': 'lifespan.startup.failed', 'message': 'no'})


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with server.bind(HOST, 0, trusted_network=False) as bound:
        yield bound


@pytest.mark.parametrize('app', [dies, refuses])
def test_an_app_that_cannot_start_is_an_error_not_silence(app, bound):
    with pytest.raises(HeqisError, match='web server ended by itself'):
        server.serve(app, bound, Bell(), 4, threading.Event())


def test_a_server_that_ends_by_itself_is_an_error_not_silence(bound, monkeypatch):
    async def returns(*_: Any) -> None:
        """As after a signal that uvicorn takes for its own."""

    monkeypatch.setattr(uvicorn.Server, 'serve', returns)
    with pytest.raises(HeqisError, match='web server ended by itself'):
        server.serve(refuses, bound, Bell(), 4, threading.Event())


def test_a_stop_that_was_set_before_ends_it_at_once(served, data):
    served.stop()
    stop = threading.Event()
    stop.set()
    start_s = time.monotonic()
    server.serve(served.app, served.socket, data.bell, 4, stop)
    assert time.monotonic() - start_s < ENDS_S
