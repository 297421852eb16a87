# SPDX-License-Identifier: Apache-2.0
"""The one thing that the page can change: a person engages or clears the kill switch.

A request must come from the page itself. Any web page that a person has open may send requests to
this address, so each is asked for what a foreign page cannot send: a header of our own, JSON, and
the Origin of this address under a name that nobody else can own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from heqis_core.errors import HeqisError

PATH = '/kill-switch'
HEADER, HEADER_VALUE = 'X-HEQIS-Action', 'kill-switch'
"""A page elsewhere can add it only after asking for leave, which is never given."""
MAX_BODY_BYTES = 4096


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person asks for on the page."""

    engage: bool
    reason: str = ''


Act = Callable[[bool, str], Awaitable[tuple[bool, str]]]
"""Engages or clears with a reason; returns whether it is engaged now, and the gate's word."""


def add_kill_switch(app: FastAPI, act: Act, own_names: Collection[str]) -> None:
    """Serve `POST /kill-switch` for the page under an IP address or one of `own_names`."""

    async def kill_switch(request: Request) -> JSONResponse:
        problem = why_not(request, own_names)
        if problem:
            return JSONResponse({'done': False, 'says': f'refused: {problem}'}, 403)
        try:
            wish = msgspec.json.decode(await _body(request), type=Wish)
        except (msgspec.DecodeError, ClientDisconnect) as error:
            return JSONResponse({'done': False, 'says': f'not understood: {error}'}, 400)
        who = request.client.host if request.client else 'nobody'
        reason = f'the page, {who}: {wish.reason.strip() or "no reason given"}'
        try:
            engaged, says = await act(wish.engage, reason)
        except HeqisError as error:
            return JSONResponse({'done': False, 'says': str(error)}, 503)
        done = engaged == wish.engage
        return JSONResponse({'done': done, 'engaged': engaged, 'says': says})

    app.add_api_route(PATH, kill_switch, methods=['POST'], response_model=None)


def why_not(request: Request, own_names: Collection[str]) -> str:
    """Return why a request is not one of the page's own; empty if it is."""
    headers = request.headers
    host, origin = headers.get('host', ''), headers.get('origin', '')
    if headers.get(HEADER) != HEADER_VALUE:
        return f'header {HEADER} is missing'
    if headers.get('content-type', '').partition(';')[0].strip().lower() != 'application/json':
        return 'the content is not JSON'
    if not host or origin not in (f'http://{host}', f'https://{host}'):
        return f'it comes from {origin or "nowhere"}, and not from this page'
    if headers.get('sec-fetch-site', 'same-origin') != 'same-origin':
        return 'the browser says that it comes from another site'
    if not _is_own(host, own_names):
        return f'{host} is a name that may belong to somebody else: take the address'
    return ''


def _is_own(host: str, own_names: Collection[str]) -> bool:
    # A foreign name can be made to lead here (DNS rebinding), an address cannot.
    name = ''
    try:
        name = urlsplit(f'//{host}').hostname or ''
        ipaddress.ip_address(name)
    except ValueError:
        return name in own_names
    return True


async def _body(request: Request) -> bytes:
    body = b''
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise msgspec.DecodeError(f'more than {MAX_BODY_BYTES} bytes')
    return body
