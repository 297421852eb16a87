# SPDX-License-Identifier: Apache-2.0
"""One question to Tushare Pro through the vendor's own client, with an answer that can be trusted.

The client (`tushare.pro.client.DataApi`) turns HTTP errors into empty frames and bad bodies into
whatever its parser says. Here its transport is ours (`tushare_transport`), and what is no answer
is a `TushareError` of a named kind. Paging and columns: `tushare_query`.
"""

from __future__ import annotations

import logging
import os
import random
import stat
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from heqis_core.errors import ConfigError
from heqis_core.hosts import is_loopback
from heqis_core.io.tushare_transport import (
    FILE_VARIABLE,
    RATE_TEXT,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    Page,
    Transport,
    TushareError,
    TushareKind,
    check_url,
    classify,
)

__all__ = [
    'FILE_VARIABLE',
    'TOKEN_VARIABLE',
    'URL_VARIABLE',
    'CallLimiter',
    'Page',
    'TushareClient',
    'TushareError',
    'TushareKind',
    'load_token',
]

_T = TypeVar('_T')
_LOG = logging.getLogger(__name__)
_WINDOW_S = 60.0
_MARGIN_S = 0.001
_MOST_TEXT = 640
"""Characters of an error."""
_BACK_OFF_S = 0.5
_RATE_BACK_OFF_S = 8.0
_LONGEST_WAIT_S = 60.0


class CallLimiter:
    """At most `per_minute` calls within any 60 s, for each interface on its own."""

    def __init__(
        self,
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raise ConfigError if `per_minute` is below 1."""
        if per_minute < 1:
            raise ConfigError(f'rate: {per_minute} calls a minute; expected at least 1')
        self._default = per_minute
        self._learned: dict[str, int] = {}
        self._calls: dict[str, deque[float]] = {}
        self._clock = clock
        self._sleep = sleep

    def limit(self, api_name: str) -> int:
        """Return the calls a minute that this interface may take."""
        return min(self._default, self._learned.get(api_name, self._default))

    def learn(self, api_name: str, per_minute: int) -> None:
        """Take over the limit that the vendor names, if it is the lower one."""
        if 1 <= per_minute < self.limit(api_name):
            self._learned[api_name] = per_minute
            _LOG.warning(
                'Tushare %s: the account may call it %d times a minute', api_name, per_minute
            )

    def wait(self, api_name: str) -> None:
        """Return when the interface may be called, and count the call."""
        calls = self._calls.setdefault(api_name, deque())
        while True:
            now = self._clock()
            while calls and now - calls[0] >= _WINDOW_S:
                calls.popleft()
            if len(calls) < self.limit(api_name):
                calls.append(now)
                return
            oldest_s = calls[len(calls) - self.limit(api_name)]
            # A little more: a sleep may end early, and a sum of floats fall short.
            self._sleep(oldest_s + _WINDOW_S - now + _MARGIN_S)


class TushareClient:
    """The vendor's client behind checks, a limiter and retries; used from one thread.

    Attributes:
        counts: `requests` that were sent, and `retry_<kind>` by kind.
    """

    def __init__(
        self,
        token: str,
        *,
        url: str = '',
        per_minute: int = 200,
        timeout_s: float = 30.0,
        attempts: int = 6,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raise ConfigError if the package is missing, or an argument cannot be used.

        Args:
            token: of the account; never logged and in no error text.
            url: base address instead of the vendor's; https, or http on loopback.
            per_minute: calls of each interface within 60 s.
            timeout_s: for the connection, and for a whole answer.
            attempts: times that one question is sent before its error counts.
            clock: seconds that never go back, for the limiter.
            sleep: how to wait.
        """
        try:
            from tushare.pro import client as vendor
        except ImportError as error:
            raise ConfigError(
                f'tushare: {error}; install it with `pip install tushare six`'
            ) from error
        if not token.strip():
            raise ConfigError(f'{TOKEN_VARIABLE}: empty; expected the token of a Tushare account')
        if attempts < 1 or not timeout_s > 0:
            raise ConfigError(
                f'attempts {attempts}, timeout {timeout_s:g} s: expected at least 1, above 0'
            )
        self._token = token.strip()
        self._api = vendor.DataApi(self._token, timeout=timeout_s)
        if url:
            self._api._DataApi__http_url = check_url(url)
        is_local = is_loopback(urlsplit(url).hostname or '')
        self._transport = Transport(timeout_s, is_local=is_local)
        # The client's own code, with our transport where it looks for `requests`: of this
        # instance alone, so that other users of the package in this process see nothing of it.
        query = vendor.DataApi.query
        self._query = types.FunctionType(
            query.__code__,
            {**query.__globals__, 'requests': self._transport},
            query.__name__,
            query.__defaults__,
        )
        self._attempts = attempts
        self._sleep = sleep
        self._limiter = CallLimiter(per_minute, clock, sleep)
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        """Say nothing about the token."""
        return f'TushareClient({dict(self.counts)})'

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, **options: Any
    ) -> TushareClient:
        """Return the client of the token, and the address, that the environment names.

        Raises ConfigError as `load_token` and the constructor.
        """
        environment = os.environ if environment is None else environment
        options.setdefault('url', environment.get(URL_VARIABLE, ''))
        return cls(load_token(environment), **options)

    def call(
        self, api_name: str, fields: tuple[str, ...], params: Mapping[str, str | int]
    ) -> Page:
        """Return one answer, asked again with back-off where that can help.

        Raise TushareError of the last attempt.
        """
        return self.retried(lambda: self.call_once(api_name, fields, params))

    def retried(self, ask: Callable[[], _T], fault: type[TushareError] = TushareError) -> _T:
        """Return what `ask` returns, called again after a `fault` that is worth it."""
        for attempt in range(self._attempts):
            try:
                return ask()
            except fault as error:
                if not error.is_retried or attempt + 1 == self._attempts:
                    raise
                self.counts[f'retry_{error.kind.value}'] += 1
                wait_s = _wait_s(error, attempt)
                _LOG.info('%s (attempt %d, again in %.1f s)', error, attempt + 1, wait_s)
                self._sleep(wait_s)
        raise AssertionError('unreachable: the last attempt returns or raises')

    def call_once(
        self, api_name: str, fields: tuple[str, ...], params: Mapping[str, str | int]
    ) -> Page:
        """Return one answer to one request; raise TushareError if it is none."""
        self._limiter.wait(api_name)
        self.counts['requests'] += 1
        transport = self._transport
        transport.forget()
        try:
            frame = self._query(self._api, api_name, ','.join(fields), **params)
        except TushareError as error:
            raise self._without_token(error) from None
        except Exception as error:
            # What the vendor's code raises: for a code that is not 0 a bare Exception.
            raise self._explain(api_name, error) from None
        page = transport.page
        if page is None:
            raise TushareError(
                TushareKind.PROTOCOL, api_name, 'this version of the client has another transport'
            )
        if tuple(map(str, frame.columns)) != page.fields or len(frame) != len(page.items):
            raise TushareError(
                TushareKind.PROTOCOL,
                api_name,
                f'the client made {frame.shape} of {len(page.items)} rows of {len(page.fields)}',
            )
        return page

    def _explain(self, api_name: str, error: Exception) -> TushareError:
        body = self._transport.body
        if not body or body['code'] == 0:
            text = f'the client failed: {type(error).__name__}: {self._scrub(str(error))}'
            return TushareError(TushareKind.PROTOCOL, api_name, text)
        text = self._scrub(str(body.get('msg')))
        kind = classify(body['code'], text)
        limit = RATE_TEXT.search(text)
        if kind == TushareKind.RATE and limit and limit[2]:
            self._limiter.learn(api_name, int(limit[2]))
        return TushareError(kind, api_name, f'code {body["code"]}: {text}')

    def _without_token(self, error: TushareError) -> TushareError:
        error.args = (self._scrub(str(error)),)
        return error

    def _scrub(self, text: str) -> str:
        return ' '.join(text.replace(self._token, '***').split())[:_MOST_TEXT]


def load_token(environment: Mapping[str, str]) -> str:
    """Return the token that `TUSHARE_TOKEN`, or the 0600 file of `TUSHARE_TOKEN_FILE`, holds.

    Raise ConfigError if neither is set, or others may read the file.
    """
    token = environment.get(TOKEN_VARIABLE, '').strip()
    if token:
        return token
    named = environment.get(FILE_VARIABLE, '').strip()
    if not named:
        raise ConfigError(
            f'no Tushare token: set {TOKEN_VARIABLE}, or set {FILE_VARIABLE} to a file of mode '
            '0600 that holds it'
        )
    path = Path(named)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f'{path}: mode {mode:04o} lets others read it; run: chmod 600 {path}'
            )
        token = path.read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: cannot be read: {error}; check {FILE_VARIABLE}') from error
    if not token:
        raise ConfigError(f'{path}: empty; expected the token of a Tushare account')
    return token


def _wait_s(error: TushareError, attempt: int) -> float:
    base = _RATE_BACK_OFF_S if error.kind == TushareKind.RATE else _BACK_OFF_S
    longest = min(_LONGEST_WAIT_S, base * 2.0**attempt)
    # Not below half: a limit by the minute is not waited out by luck.
    return max(min(error.retry_after_s, _LONGEST_WAIT_S), longest * random.uniform(0.5, 1.0))
