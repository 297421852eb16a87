# SPDX-License-Identifier: Apache-2.0
"""A page without a browser: it speaks Dash's WebSocket messages as Dash's renderer does.

Nothing outside tests and benchmarks imports it. It draws nothing, so that many of them show how
the server fares, not how a browser does.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

Key = tuple[str, str]
"""Component and property."""

KEEP_PUSHES = 10_000
_PATCH = '__dash_patch_update'
_BEAT = ('beat', 'children')
"""What every push of the dashboard ends with."""


@dataclass
class Push:
    """What came at once.

    Attributes:
        time_ns: wall clock when its end was here, ns UTC.
        props: what was sent, by component and property; a Patch as it was sent.
    """

    time_ns: int = 0
    props: dict[Key, Any] = field(default_factory=dict)


class DashClient:
    """One open page.

    Attributes:
        props: its properties by component and property, of the layout and as pushed since; what a
            person would change on the page, a test changes here.
        pushes: what came, oldest first, the last `KEEP_PUSHES`.
        asleep: set to leave questions unanswered, as a page does that is busy or frozen.
        result: what the callback of the page ended with; None while it runs.
    """

    def __init__(self, url: str) -> None:
        """Take the address that a browser would take, as `http://127.0.0.1:8050`."""
        self.url = url.rstrip('/')
        self.props: dict[Key, Any] = {}
        self.pushes: deque[Push] = deque(maxlen=KEEP_PUSHES)
        self.asleep = False
        self.result: dict[str, Any] | None = None
        self.n_pushes = 0
        self._id = str(uuid.uuid4())
        self._output = ''
        self._callbacks: list[dict[str, Any]] = []
        self._requests = 0
        self._page = ''
        self._socket: ClientConnection | None = None
        self._unanswered: list[dict[str, Any]] = []
        self._push = Push()
        self._news = asyncio.Event()

    @property
    def figure(self) -> dict[str, Any]:
        """Return the figure that the page shows."""
        found: dict[str, Any] = self.props['chart', 'figure']
        return found

    async def connect(self) -> None:
        """Load the page and connect it; when it was loaded before, connect it again as it is."""
        if not self._output:
            layout, self._callbacks = await asyncio.to_thread(self._load)
            self._output = next(each['output'] for each in self._callbacks if each['persistent'])
            self.props = dict(_props_of(layout))
        self._push, self._unanswered, self.result = Push(), [], None
        self._socket = await connect(
            f'{self.url.replace("http", "ws", 1)}/_dash-ws-callback',
            origin=Origin(self.url),
            max_size=None,
            proxy=None,
        )
        self._page = await self._call(self._output, [])

    async def change(self, component: str, name: str, value: Any) -> None:
        """Change a property as a person does, and tell the callbacks that it is an input of."""
        self.props[component, name] = value
        for callback in self._callbacks:
            if {'id': component, 'property': name} in callback['inputs']:
                keys = [(each['id'], each['property']) for each in callback['inputs']]
                await self._call(callback['output'], keys, f'{component}.{name}')

    async def run(self) -> None:
        """Take pushes and answer questions until cancelled or until the server ends it."""
        assert self._socket is not None
        try:
            async for text in self._socket:
                parts = json.loads(text)
                await self._take(parts if isinstance(parts, list) else [parts])
        except ConnectionClosed:
            pass
        finally:
            await self._socket.close()

    async def wake(self) -> None:
        """Answer what was asked while asleep, and go on."""
        self.asleep = False
        questions, self._unanswered = self._unanswered, []
        for question in questions:
            await self._answer(question)

    async def until(self, condition: Callable[[], Any], timeout_s: float) -> None:
        """Wait for a push, or an end, after which something holds; raise TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self._news.clear()
            left_s = deadline_s - time.monotonic()
            try:
                await asyncio.wait_for(self._news.wait(), left_s)
            except asyncio.TimeoutError:
                raise TimeoutError(f'not within {timeout_s} s') from None

    def _load(self) -> tuple[Any, Any]:
        # Whatever proxies the environment names are not for this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def get(path: str) -> Any:
            with opener.open(f'{self.url}/{path}', timeout=10) as answer:
                return json.load(answer)

        return get('_dash-layout'), get('_dash-dependencies')

    async def _take(self, parts: list[dict[str, Any]]) -> None:
        # The renderer's worker hands properties over first, whatever stands between them.
        for part in parts:
            if part['type'] == 'set_props':
                payload = part['payload']
                for name, value in payload['props'].items():
                    self._set((payload['componentId'], name), value)
        for part in parts:
            if part['type'] == 'get_props_request':
                if self.asleep:
                    self._unanswered.append(part)
                else:
                    await self._answer(part)
            elif part['type'] == 'callback_response' and part['requestId'] == self._page:
                self.result = part['payload']
                self._news.set()

    def _set(self, key: Key, value: Any) -> None:
        self._push.props[key] = value
        if isinstance(value, dict) and _PATCH in value:
            extend(self.props[key], value['operations'])
        else:
            self.props[key] = value
        if key == _BEAT:
            self._push.time_ns = time.time_ns()
            self.pushes.append(self._push)
            self.n_pushes += 1
            self._push = Push()
            self._news.set()

    async def _call(self, output: str, inputs: list[Key], *changed: str) -> str:
        self._requests += 1
        request = f'{self._id}-{self._requests}'
        payload = {
            'output': output,
            'outputs': [],
            'inputs': [
                {'id': key[0], 'property': key[1], 'value': self.props.get(key)} for key in inputs
            ],
            'changedPropIds': list(changed),
            'parsedChangedPropsIds': list(changed),
        }
        await self._send(
            {
                'type': 'callback_request',
                'rendererId': self._id,
                'requestId': request,
                'payload': payload,
            }
        )
        return request

    async def _answer(self, question: dict[str, Any]) -> None:
        asked = question['payload']
        keys = [(asked['componentId'], name) for name in asked['properties']]
        await self._send(
            {
                'type': 'get_props_response',
                'rendererId': self._id,
                'requestId': question['requestId'],
                'payload': {key[1]: self.props[key] for key in keys if key in self.props},
            }
        )

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._socket is not None
        await self._socket.send(json.dumps(message))


def extend(target: Any, operations: list[dict[str, Any]]) -> None:
    """Apply a Patch that appends, or replaces all data; raise ValueError for any other."""
    for operation in operations:
        if operation['operation'] == 'Assign' and operation['location'] == ['data']:
            # What was sent stays as it was sent; the page's own grows.
            target['data'] = copy.deepcopy(operation['params']['value'])
            continue
        if operation['operation'] != 'Extend':
            raise ValueError(f'the page is appended to, but this came: {operation}')
        column = target
        for key in operation['location']:
            column = column[key]
        column.extend(operation['params']['value'])


def _props_of(component: Any) -> Iterator[tuple[Key, Any]]:
    if isinstance(component, list):
        for each in component:
            yield from _props_of(each)
    elif isinstance(component, dict) and 'props' in component:
        props = component['props']
        if 'id' in props:
            yield from (((props['id'], name), value) for name, value in props.items())
        yield from _props_of(props.get('children'))
