# SPDX-License-Identifier: Apache-2.0
"""The web server of the page: one socket, one event loop in a thread of the node's."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from typing import Any

import uvicorn

from heqis_core.errors import ConfigError, HeqisError
from heqis_core.hosts import is_loopback
from heqis_dashboard.bell import Bell

STOP_POLL_S = 0.05
_GRACE_S = 1
"""Time for open connections to end; whole seconds, as uvicorn wants them."""
_REQUEST_BYTES = 1 << 20
_CONNECTIONS_PER_PAGE = 8
"""A browser opens six to load a page, and one WebSocket."""


def bind(host: str, port: int, trusted_network: bool) -> socket.socket:
    """Return a bound socket; raise ConfigError if it may not or cannot be had."""
    if not (trusted_network or is_loopback(host)):
        raise ConfigError(
            f'parameter host is {host!r}, off loopback: the page has no password and is not '
            'encrypted; use a tunnel (ssh -L), or set trusted_network in config/dashboard.yaml'
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(found[4])
            # Another server on this port is refused now, not when the node becomes active.
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f'the page cannot listen on {host} port {port}: '
            f'{getattr(error, "strerror", "") or error}; '
            'choose another with the parameters host and port (dashboard_port:=N at launch)'
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the address that a browser on this machine takes."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = '127.0.0.1'
    return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'


def allowed_hosts(host: str) -> list[str]:
    """Return the Host headers that are answered.

    On loopback only its names, so that no foreign page can reach this one under a name of its
    own (DNS rebinding); off loopback the network is trusted.
    """
    if not is_loopback(host):
        return ['*']
    # All of 127.0.0.0/8 is this machine: the address that was asked for is a name too.
    return ['127.0.0.1', 'localhost', '[::1]', f'[{host}]' if ':' in host else host]


def serve(app: Any, bound: socket.socket, bell: Bell, pages: int, stop: threading.Event) -> None:
    """Serve an ASGI app until `stop` is set; the socket stays bound for the next time."""
    asyncio.run(_serve(app, bound.dup(), bell, pages, stop))


async def _serve(
    app: Any, listening: socket.socket, bell: Bell, pages: int, stop: threading.Event
) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level='warning',
        access_log=False,
        lifespan='on',
        limit_concurrency=_CONNECTIONS_PER_PAGE * pages + 64,
        timeout_graceful_shutdown=_GRACE_S,
        ws_max_size=_REQUEST_BYTES,
        server_header=False,
    )
    server = uvicorn.Server(config)
    with bell.hung():
        task = asyncio.create_task(_run(server, listening))
        while not task.done():
            if stop.is_set():
                server.should_exit = True
                bell.ring()
            await asyncio.wait((task,), timeout=STOP_POLL_S)
        await task
    if not stop.is_set():
        raise HeqisError(f'the web server ended by itself (process {os.getpid()})')


async def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    try:
        await server.serve([listening])
    except SystemExit:
        # Its answer to an app that does not start; it has logged why.
        raise HeqisError('the web server ended by itself: the page does not start') from None
