# SPDX-License-Identifier: Apache-2.0
"""The Dash app: its layout, and the callback that lives as long as a page is open.

Everything is served from this machine. The page looks on; what a person may change with it, where
that is allowed, is the kill switch (`actions`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from dash import Dash, Input, ctx, dcc, html
from fastapi import FastAPI
from plotly.io.json import to_json_plotly
from starlette.middleware.trustedhost import TrustedHostMiddleware

from heqis_dashboard.actions import Act, add_kill_switch
from heqis_dashboard.chart import Style, blank_figure
from heqis_dashboard.live import Live, PageData, Rows
from heqis_dashboard.views import Notice, Row

_ASSETS = Path(__file__).resolve().parent / 'assets'
_LEVELS = ('info', 'warn', 'error')
HEADINGS = {
    'signals': ('bar', 'symbol', 'signal', 'score', 'predicted', 'reasons', 'bundle'),
    'nodes': ('board', 'node', 'state', 'heard', 'restarts', 'drops', 'waiting', 'says'),
    'latency': ('to stage', 'p50 ms', 'p99 ms'),
    'flow': ('flow', 'count'),
    'events': ('time', 'source', 'event', 'of', 'what happened'),
}
"""Tables of the page, by id."""
MEANINGS = {
    'signal': 'BUY: the score reached the upper threshold of the bundle; SELL: the lower one. It '
    'says that the score is unusual for this model, not that a rise is likelier than a fall',
    'score': 'P(up) − P(down), as the served generator puts it',
    'predicted': "the generator's own estimate of the log return to the next bar",
    'reasons': 'up, down: which threshold the score passed',
    'heard': 'age of the last heartbeat',
    'drops': 'what its bounded queues let go or refused',
    'waiting': 'units of work that wait for it now',
    'to stage': 'time from the stage before, over the last 4,096 frames that this node has seen',
    'count': 'a process counts from its start; starts that this page has seen are added up',
}
"""What a heading means, shown when one points at it."""


def make_app(data: PageData, hosts: Sequence[str], act: Act | None = None) -> Dash:
    """Return the app of one node.

    Args:
        data: what its pages show.
        hosts: Host headers that are answered; `*` is any.
        act: works the kill switch; None for a page that only looks on.
    """
    # No pages of FastAPI's own: they would load scripts from elsewhere.
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if act is not None:
        add_kill_switch(server, act, hosts)
    app = Dash(
        'heqis_dashboard',
        server=server,
        assets_folder=str(_ASSETS),
        title=f'HEQIS {data.title}',
        update_title='',
        enable_mcp=False,
        # There is always traffic; a page that nobody looks at must not fall silent.
        websocket_inactivity_timeout=0,
        websocket_heartbeat_interval=5000,
    )
    # Added last, so asked first.
    server.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.layout = lambda: layout(data.title, data.style, act is not None)

    async def live() -> None:
        await Live(data, ctx.websocket).run()

    async def chosen(_symbol: str) -> None:
        data.choices += 1
        data.bell.ring()  # the page is asked at once what it shows now

    app.callback(websocket=True, persistent=True)(live)
    app.callback(Input('symbol', 'value'), websocket=True, prevent_initial_call=True)(chosen)
    return app


def layout(title: str, style: Style, acts: bool) -> html.Div:
    """Return the page before anything is known, with buttons if it acts."""
    # assets/heqis.js asks for a reason and sends it.
    buttons = [
        html.Button('stop all signals …', id='kill-on'),
        html.Button('let signals out again …', id='kill-off'),
    ]
    return html.Div(
        [
            html.Header(
                [
                    html.H1(['HEQIS ', html.Span(title)]),
                    html.Div(id='clock'),
                    # Grows with everything that is pushed: assets/heqis.js watches it.
                    html.Div('0', id='beat', hidden=True),
                ]
            ),
            html.Div(html.P('connecting…', className='info'), id='banner', role='status'),
            html.Div(
                [html.Div(id='kill', role='status'), *(buttons if acts else [])], id='switch'
            ),
            html.Main(
                [
                    html.Section(
                        [
                            dcc.Dropdown(id='symbol', placeholder='symbol', clearable=False),
                            dcc.Graph(
                                id='chart',
                                config={
                                    'displaylogo': False,
                                    'scrollZoom': True,
                                    'responsive': True,
                                    'modeBarButtonsToRemove': ['select2d', 'lasso2d'],
                                },
                                figure=blank_figure(style),
                                style={'height': '460px'},
                            ),
                        ],
                        id='market',
                    ),
                    _section('latest signals', 'signals'),
                    _section('nodes', 'nodes'),
                    html.Section(
                        [_section('latency', 'latency'), _section('flow', 'flow')], id='figures'
                    ),
                    html.Section(_section('events', 'events'), id='happened'),
                ]
            ),
            html.Footer('No investment advice: no signal is a promise of profit.'),
            dcc.Store(id='kept', storage_type='session'),
        ]
    )


def _section(heading: str, name: str) -> html.Section:
    return html.Section([html.H2(heading), html.Div(table(name, []), id=name)])


def table(name: str, rows: Sequence[Row]) -> Any:
    """Return the rows of one of the tables as components."""
    head = html.Thead(html.Tr([_heading(text) for text in HEADINGS[name]]))
    body = [
        html.Tr([*map(html.Td, row.cells[:-1]), _last_cell(row)], className=_class_of(name, row))
        for row in rows
    ]
    return html.Table([head, html.Tbody(body)])


def _heading(text: str) -> Any:
    return html.Th(text, title=MEANINGS[text]) if text in MEANINGS else html.Th(text)


def _last_cell(row: Row) -> Any:
    # It may be cut off: whole when one points at it.
    return html.Td(row.cells[-1], title=row.cells[-1])


def draw(name: str, rows: Rows) -> Any:
    """Return notices or a table as the plain data that the browser gets, ready to be sent."""
    if name in ('banner', 'kill'):
        drawn = banner(cast('Sequence[Notice]', rows))
    else:
        drawn = table(name, cast('Sequence[Row]', rows))
    return json.loads(to_json_plotly(drawn))


def _class_of(name: str, row: Row) -> str:
    return row.cells[2].lower() if name == 'signals' else _LEVELS[row.level]


def banner(found: Sequence[Notice]) -> Any:
    """Return the notices as components; nothing to say is said too."""
    if not found:
        return html.P('all is well', className='fine')
    return [html.P(notice.text, className=_LEVELS[notice.level]) for notice in found]
