# SPDX-License-Identifier: Apache-2.0
"""The kill switch by HTTP: the page's own request, and every one that is not."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from heqis_core.errors import HeqisError
from heqis_dashboard.actions import MAX_BODY_BYTES, PATH, why_not
from heqis_dashboard.page import layout

HOST = '127.0.0.1'


class Gate:
    """Whom the page asks."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, str]] = []
        self.trouble = ''

    async def act(self, engage: bool, reason: str) -> tuple[bool, str]:
        self.asked.append((engage, reason))
        if self.trouble:
            raise HeqisError(self.trouble)
        return engage, 'it says so'


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def page(serve: Callable[..., Any], gate: Gate) -> Any:
    return serve(HOST, gate.act)


def own_headers(page: Any, **other: str | None) -> dict[str, str]:
    """Return what the page's script sends, with other headers in place; None leaves one out."""
    headers: dict[str, str | None] = {
        'Host': f'{HOST}:{page.port}',
        'Origin': page.url,
        'Content-Type': 'application/json',
        'X-HEQIS-Action': 'kill-switch',
        'Sec-Fetch-Site': 'same-origin',
        **{name.replace('_', '-'): value for name, value in other.items()},
    }
    return {name: value for name, value in headers.items() if value is not None}


def ask(page: Any, body: Any, headers: dict[str, str], method: str = 'POST') -> Any:
    """Return status, headers and text of the answer."""
    connection = http.client.HTTPConnection(HOST, page.port, timeout=10)
    try:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, PATH, text, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()
    finally:
        connection.close()


WISH = {'engage': True, 'reason': ' smoke '}


def test_the_pages_own_request_reaches_the_gate_with_who_and_why(page: Any, gate: Gate) -> None:
    status, _, text = ask(page, WISH, own_headers(page))
    assert status == 200
    assert json.loads(text) == {'done': True, 'engaged': True, 'says': 'it says so'}
    assert ask(page, {'engage': False}, own_headers(page, Sec_Fetch_Site=None))[0] == 200
    assert gate.asked == [
        (True, 'the page, 127.0.0.1: smoke'),
        (False, 'the page, 127.0.0.1: no reason given'),
    ]


@pytest.mark.parametrize(
    'other',
    [
        {'X_HEQIS_Action': None},
        {'X_HEQIS_Action': 'yes'},
        {'Content_Type': None},
        {'Content_Type': 'text/plain'},
        {'Content_Type': 'application/x-www-form-urlencoded'},
        {'Content_Type': 'text/plain; application/json'},
        {'Origin': None},
        {'Origin': 'null'},
        {'Origin': 'http://evil.example'},
        {'Origin': 'http://127.0.0.1'},
        {'Origin': 'http://127.0.0.1:1'},
        {'Origin': 'file://'},
        {'Sec_Fetch_Site': 'cross-site'},
        {'Sec_Fetch_Site': 'same-site'},
    ],
)
def test_a_request_that_a_foreign_page_could_send_changes_nothing(
    page: Any, gate: Gate, other: dict[str, str | None]
) -> None:
    status, headers, text = ask(page, WISH, own_headers(page, **other))
    assert status == 403
    assert json.loads(text)['says'].startswith('refused: ')
    assert not [name for name in headers if name.lower().startswith('access-control')]
    assert gate.asked == []


def test_a_foreign_name_that_leads_here_changes_nothing(page: Any, gate: Gate) -> None:
    host = f'evil.example:{page.port}'
    assert ask(page, WISH, own_headers(page, Host=host, Origin=f'http://{host}'))[0] == 400
    assert gate.asked == []


def test_a_browser_that_asks_for_leave_gets_none(page: Any, gate: Gate) -> None:
    asks = {
        'Origin': 'http://evil.example',
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'x-heqis-action,content-type',
    }
    status, headers, _ = ask(page, b'', asks, 'OPTIONS')
    assert status == 405
    assert not [name for name in headers if name.lower().startswith('access-control')]
    # A link or a picture is a GET.
    ask(page, b'', own_headers(page), 'GET')
    assert gate.asked == []


@pytest.mark.parametrize(
    'body',
    [b'', b'{', b'[]', b'{"reason": "x"}', b'{"engage": "yes"}', b'{"engage": true, "x": 1}'],
)
def test_what_is_not_understood_changes_nothing(page: Any, gate: Gate, body: bytes) -> None:
    status, _, text = ask(page, body, own_headers(page))
    assert status == 400
    assert json.loads(text)['says'].startswith('not understood: ')
    assert gate.asked == []


def test_a_long_body_is_refused_before_it_is_whole(page: Any, gate: Gate) -> None:
    body = json.dumps({'engage': True, 'reason': 'x' * MAX_BODY_BYTES}).encode()
    status, _, text = ask(page, body, own_headers(page))
    assert status == 400
    assert f'more than {MAX_BODY_BYTES} bytes' in text
    assert gate.asked == []


def test_what_the_gate_cannot_do_is_said(page: Any, gate: Gate) -> None:
    gate.trouble = 'the risk gate is not there'
    status, _, text = ask(page, WISH, own_headers(page))
    assert status == 503
    assert json.loads(text) == {'done': False, 'says': 'the risk gate is not there'}


def test_a_page_that_only_looks_on_has_no_button_and_no_address_for_it(
    served: Any, data: Any
) -> None:
    assert ask(served, WISH, own_headers(served))[0] == 405
    assert 'kill-on' not in str(layout('x', data.style, False))
    assert 'kill-on' in str(layout('x', data.style, True))


# --- off loopback, where every Host header is answered ---


def request_of(host: str, origin: str) -> Request:
    headers = {
        'host': host,
        'origin': origin,
        'content-type': 'application/json',
        'x-heqis-action': 'kill-switch',
    }
    raw = [(name.encode(), value.encode('latin-1')) for name, value in headers.items()]
    return Request({'type': 'http', 'method': 'POST', 'headers': raw})


@pytest.mark.parametrize('host', ['192.0.2.7', '192.0.2.7:8050', '[2001:db8::1]:8050'])
def test_an_address_is_nobody_elses_name(host: str) -> None:
    assert why_not(request_of(host, f'http://{host}'), ['*']) == ''


@pytest.mark.parametrize(
    'host',
    [
        'evil.example',
        'evil.example:8050',
        '192.0.2.7.evil.example',
        '[::1',
        'user@192.0.2.7.x',
        '',
    ],
)
def test_a_name_may_have_been_led_here_and_is_refused(host: str) -> None:
    assert why_not(request_of(host, f'http://{host}'), ['*']) != ''


names = st.text(st.characters(codec='latin-1'), max_size=30)


@given(host=names, origin=names)
def test_no_header_is_too_odd_to_be_refused(host: str, origin: str) -> None:
    for claimed in (origin, f'http://{host}'):
        assert why_not(request_of(host, claimed), ['*']) != ''
