# SPDX-License-Identifier: Apache-2.0
"""What stands between Tushare's client and the network, and the names of what goes wrong there.

It posts as `requests` would, and lets nothing through but a whole answer with HTTP status 200.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from heqis_core.errors import ConfigError, HeqisError
from heqis_core.hosts import is_loopback

TOKEN_VARIABLE = 'TUSHARE_TOKEN'
FILE_VARIABLE = 'TUSHARE_TOKEN_FILE'
URL_VARIABLE = 'HEQIS_TUSHARE_URL'
RATE_TEXT = re.compile(r'每\s*(分钟|小时|天|日)\s*最多访问该接口\s*(\d+)?')

_MAX_BYTES = 64 << 20
"""Of one answer: 6,000 rows of the widest endpoint are about 2 MB."""
_CHUNK = 1 << 16
_SHOWN = 160
"""Characters of a vendor's text that an error shows."""
_WRAPPERS = ('ConnectionError', 'MaxRetryError', 'ProxyError')
"""Errors of requests and urllib3 that say only that there is another one inside."""


class TushareKind(Enum):
    """What went wrong with a question, and so what can be done about it."""

    AUTH = 'auth'
    """The token is missing, wrong or expired."""
    PERMISSION = 'permission'
    """The account may not use this endpoint."""
    PARAMS = 'params'
    """The vendor does not accept the parameters."""
    RATE = 'rate'
    """Too many calls a minute: waits and tries again."""
    QUOTA = 'quota'
    """The calls of the hour or of the day are used up."""
    SERVER = 'server'
    """HTTP 5xx or a failure inside the vendor's service: tries again."""
    NETWORK = 'network'
    """No connection, a time-out, a connection that broke: tries again."""
    PROTOCOL = 'protocol'
    """The answer is not whole or not what was asked for: tries again."""
    REFUSED = 'refused'
    """Any other answer that says no."""


_RETRIED = (TushareKind.RATE, TushareKind.SERVER, TushareKind.NETWORK, TushareKind.PROTOCOL)
_WHAT_TO_DO = {
    TushareKind.AUTH: f'check {TOKEN_VARIABLE} (your token is on your page at tushare.pro)',
    TushareKind.PERMISSION: 'leave this endpoint out, or raise the permissions of the account',
    TushareKind.PARAMS: 'check symbols and dates',
    TushareKind.RATE: 'ask for fewer calls a minute, then run again: what was fetched is kept',
    TushareKind.QUOTA: 'run again when the quota is renewed: what was fetched is kept',
    TushareKind.SERVER: 'run again later: what was fetched is kept',
    TushareKind.NETWORK: f'check the network and {URL_VARIABLE}, then run again',
    TushareKind.PROTOCOL: f'check {URL_VARIABLE}, then run again: what was fetched is kept',
    TushareKind.REFUSED: f'check {URL_VARIABLE} and the account',
}


class TushareError(HeqisError):
    """A question to Tushare Pro has no answer that can be used; `kind` says why."""

    def __init__(
        self, kind: TushareKind, api_name: str, text: str, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f'Tushare {api_name}: {kind.value}: {text}; {_WHAT_TO_DO[kind]}')
        self.kind = kind
        self.api_name = api_name
        self.retry_after_s = retry_after_s

    @property
    def is_retried(self) -> bool:
        """Whether the same question may have an answer a little later."""
        return self.kind in _RETRIED


class Page(NamedTuple):
    """One answer as it was sent."""

    fields: tuple[str, ...]
    items: list[list[Any]]
    has_more: bool | None
    """None where the server does not say."""


def classify(code: Any, text: str) -> TushareKind:
    """Return what an answer with a code that is not 0 means; the text decides, codes vary."""
    limit = RATE_TEXT.search(text)
    if limit:
        return TushareKind.RATE if limit[1] == '分钟' else TushareKind.QUOTA
    # The text of a missing permission may mention the token, so it comes first.
    if code == 2002 or '权限' in text or 'IP数量' in text or '积分' in text:
        return TushareKind.PERMISSION
    if code in (40001, 40101) or 'token' in text.lower():
        return TushareKind.AUTH
    if code == -2001 or '参数' in text or '必填' in text:
        return TushareKind.PARAMS
    if '系统' in text or '服务' in text or '超时' in text or '稍后' in text or '繁忙' in text:
        return TushareKind.SERVER
    return TushareKind.REFUSED


class _Answer:
    """What the vendor's client reads of a response: whether it went well, and the text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __bool__(self) -> bool:
        return True


class Transport:
    """Stands where the client expects `requests`: posts, and lets nothing but an answer through.

    Attributes:
        body: the JSON object of the last answer, None before the first.
        page: its rows, None if it has none because its code is not 0.
    """

    def __init__(self, timeout_s: float, *, is_local: bool) -> None:
        import requests
        import urllib3

        self.body: dict[str, Any] | None = None
        self.page: Page | None = None
        self._timeout_s = timeout_s
        self._errors = (requests.RequestException, urllib3.exceptions.HTTPError)
        self._session = requests.Session()
        # A proxy of the environment must not see what stays on this machine.
        self._session.trust_env = not is_local

    def forget(self) -> None:
        """Forget the last answer."""
        self.body = self.page = None

    def post(self, url: str, json: Mapping[str, Any], **_: Any) -> _Answer:
        """Send one question (the name of the argument is that of `requests.post`)."""
        api_name = str(json.get('api_name'))
        until_s = time.monotonic() + self._timeout_s
        response = None
        try:
            # A redirect would carry the token to a place that nobody named.
            response = self._session.post(
                url, json=json, timeout=self._timeout_s, stream=True, allow_redirects=False
            )
            if response.status_code != 200:
                raise _http_error(api_name, response)
            raw = bytearray()
            # What has arrived, so that an answer which trickles in cannot last for ever.
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                raw += chunk
                if time.monotonic() > until_s or len(raw) > _MAX_BYTES:
                    raise TushareError(
                        TushareKind.NETWORK,
                        api_name,
                        f'no end of the answer after {self._timeout_s:g} s, {len(raw)} bytes',
                    )
            response.raw.release_conn()
            response = None
        except self._errors as error:
            text = _network_text(url, error, self._timeout_s)
            raise TushareError(TushareKind.NETWORK, api_name, text) from None
        finally:
            if response is not None:
                response.close()
        self.body = _decode(api_name, raw)
        if self.body['code'] == 0:
            self.page = _page(api_name, self.body)
        return _Answer(raw.decode())


def _network_text(url: str, error: Exception, timeout_s: float) -> str:
    """Return host, port and the first cause that has a name of its own."""
    parts = urlsplit(url)
    place = f'{parts.hostname}:{parts.port or (443 if parts.scheme == "https" else 80)}'
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        # requests and urllib3 hand over what they wrap as an argument, or raise from it.
        wrapped = [one for one in cause.args if isinstance(one, BaseException)]
        cause = cause.__cause__ or cause.__context__ or next(iter(wrapped), None)
    if any(type(one).__name__ == 'ProxyError' for one in chain):
        place += ' through the proxy of the environment'
    for one in chain:
        text = _cause_text(one, timeout_s)
        if text:
            return f'{place}: {text}'
    inner = next((one for one in chain if type(one).__name__ not in _WRAPPERS), error)
    shown = str(inner)
    shown = shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}…'
    return f'{place}: {type(inner).__name__}: {shown}'


def _cause_text(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return 'connection refused'
    if isinstance(error, socket.gaierror):
        return 'name not known'
    if isinstance(error, TimeoutError):
        return f'time-out after {timeout_s:g} s'
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'certificate not accepted: {error.verify_message}'
    if isinstance(error, http.client.RemoteDisconnected):
        return 'connection closed without an answer'
    if isinstance(error, http.client.IncompleteRead):
        return 'connection closed in the middle of the answer'
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else ''


def _http_error(api_name: str, response: Any) -> TushareError:
    status = response.status_code
    kind = {
        401: TushareKind.AUTH,
        403: TushareKind.PERMISSION,
        408: TushareKind.NETWORK,
        429: TushareKind.RATE,
    }.get(status, TushareKind.SERVER if status >= 500 else TushareKind.REFUSED)
    after = str(response.headers.get('Retry-After', ''))
    return TushareError(
        kind,
        api_name,
        f'HTTP {status} {response.reason or ""}'.strip(),
        float(after) if after.isdigit() else 0.0,
    )


def _decode(api_name: str, raw: bytearray) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise TushareError(
            TushareKind.PROTOCOL,
            api_name,
            f'{len(raw)} bytes that are no whole JSON text ({str(error)[:_SHOWN]})',
        ) from None
    if not isinstance(body, dict):
        raise TushareError(
            TushareKind.PROTOCOL, api_name, f'a JSON {type(body).__name__}, expected an object'
        )
    if not isinstance(body.get('code'), int):
        raise TushareError(
            TushareKind.PROTOCOL, api_name, f"no number 'code' but {body.get('code')!r}"
        )
    return body


def _page(api_name: str, body: dict[str, Any]) -> Page:
    """Return the rows of an answer whose shape is that of the protocol."""

    def wrong(text: str) -> TushareError:
        return TushareError(TushareKind.PROTOCOL, api_name, text)

    data = body.get('data')
    if not isinstance(data, dict):
        raise wrong(f"no object 'data' but {type(data).__name__}")
    fields, items, has_more = data.get('fields'), data.get('items'), data.get('has_more')
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise wrong("'data.fields' is no list of names")
    if len(set(fields)) != len(fields):
        raise wrong(f"'data.fields' names a column twice: {', '.join(fields)[:_SHOWN]}")
    if not isinstance(items, list):
        raise wrong(f"'data.items' is no list but {type(items).__name__}")
    for row, item in enumerate(items):
        if not isinstance(item, list) or len(item) != len(fields):
            raise wrong(f"row {row} of 'data.items' is no list of {len(fields)} cells")
    if has_more is not None and not isinstance(has_more, bool):
        raise wrong(f"'data.has_more' is {has_more!r}, expected true or false")
    return Page(tuple(fields), items, has_more)


def check_url(url: str) -> str:
    """Return a base address without a slash at its end.

    Raise ConfigError unless it is https, or http on loopback: the token is in every question.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f'{URL_VARIABLE}: expected no user, password or query in the address')
    host = parts.hostname or ''
    if parts.scheme == 'https' and host:
        return url.rstrip('/')
    if parts.scheme == 'http' and is_loopback(host):
        return url.rstrip('/')
    raise ConfigError(
        f'{URL_VARIABLE}: {url!r} would show the token to the network; expected https://…, '
        'or http:// on loopback'
    )
