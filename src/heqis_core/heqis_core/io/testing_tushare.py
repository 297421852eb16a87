# SPDX-License-Identifier: Apache-2.0
"""A local server that speaks Tushare Pro's protocol, and misbehaves on demand.

For tests and demonstrations without an account: `python -m heqis_core.io.testing_tushare` serves a
simulated market that lasts until yesterday, `--data DIR` real rows of Tushare's `daily` as CSV.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from heqis_core.errors import ConfigError, HeqisError
from heqis_core.io.testing_tushare_tables import (
    N_EXAMPLE,
    Tables,
    real_tables,
    simulated_tables,
    weekdays_until_yesterday,
)
from heqis_core.io.tushare_client import TOKEN_VARIABLE, URL_VARIABLE
from heqis_core.io.tushare_endpoints import ENDPOINTS, Endpoint

TOKEN = 'token-of-the-local-server'
RATE_TEXT = '抱歉，您每分钟最多访问该接口{}次，权限的具体详情访问：https://tushare.pro/document/1'

_START = '20150101'
_EXIT_ERROR = 2

Reply = dict[str, Any]


def _code(code: int, text: str) -> Callable[[Reply], Reply]:
    return lambda reply: {**reply, 'code': code, 'msg': text, 'data': None}


def _on_data(change: Callable[[Reply], Reply]) -> Callable[[Reply], Reply]:
    return lambda reply: {**reply, 'data': {**reply['data'], **change(reply['data'])}}


def _cells(change: Callable[[Any], Any]) -> Callable[[Reply], Reply]:
    return _on_data(
        lambda data: {'items': [[change(cell) for cell in row] for row in data['items']]}
    )


BODY_FAULTS: dict[str, Callable[[Reply], Reply]] = {
    'wrong_token': _code(40101, '您的token不对，请确认。'),
    'no_permission': _code(2002, '抱歉，您没有访问该接口的权限，权限的具体详情访问：https://tushare.pro'),
    'rate_text': _code(40203, RATE_TEXT.format(80)),
    'quota_text': _code(40203, '抱歉，您每天最多访问该接口5次'),
    'bad_params': _code(-2001, '参数校验失败'),
    'busy': _code(50101, '系统内部错误'),
    'unknown_code': _code(77777, '...'),
    'no_data': lambda reply: {**reply, 'data': None},
    'empty_frame': _on_data(lambda data: {'items': [], 'has_more': False}),
    'empty_more': _on_data(lambda data: {'items': [], 'has_more': True}),
    'has_more_forever': _on_data(lambda data: {'has_more': True}),
    'column_order': _on_data(
        lambda data: {
            'fields': data['fields'][::-1], 'items': [row[::-1] for row in data['items']],
        }
    ),
    'missing_column': _on_data(
        lambda data: {'fields': data['fields'][:-1], 'items': [row[:-1] for row in data['items']]}
    ),
    'short_row': _on_data(
        lambda data: {'items': [*data['items'][:-1], *(row[:-1] for row in data['items'][-1:])]}
    ),
    'double_rows': _on_data(lambda data: {'items': data['items'] + data['items'][:1]}),
    'other_symbol': _cells(lambda cell: '999999.SH' if _is_symbol(cell) else cell),
    'null_key': _cells(lambda cell: None if _is_symbol(cell) else cell),
    'nan_cells': _cells(lambda cell: float('nan') if cell is None else cell),
    'text_numbers': _cells(lambda cell: repr(cell) if isinstance(cell, (int, float)) else cell),
}  # fmt: skip
"""Answers whose HTTP is sound."""
HTTP_FAULTS = (
    'http_500', 'http_503', 'http_429', 'http_404', 'http_401', 'time_out', 'half_body', 'drip',
    'broken_json', 'no_object', 'redirect', 'hang_up', 'repeat_page',
)  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone: tests kill some."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class TushareServer:
    """The server, on loopback, while its context lasts.

    Attributes:
        url: to give the client.
        questions: (endpoint, parameters) of each request that came, without tokens.
        always: fault by endpoint, for each request.
    """

    def __init__(
        self, tables: Tables, *, page_rows: int = 0, token: str = TOKEN, port: int = 0
    ) -> None:
        """Serve rows by endpoint.

        Args:
            tables: rows by endpoint.
            page_rows: rows of a page at most; 0 means what the endpoint has.
            token: the one that is accepted.
            port: 0 takes a free one.
        """
        self.tables = tables
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.always: dict[str, str] = {}
        self._faults: list[tuple[str, str]] = []
        self._page_rows = page_rows
        self._token = token
        self._lock = threading.Lock()
        self._last: dict[str, Reply] = {}
        self._stopped = threading.Event()
        self.asked = threading.Condition()
        self._server = _Server(('127.0.0.1', port), _handler(self))
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}/dataapi'

    def __enter__(self) -> TushareServer:
        """Start serving."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving; hanging requests end."""
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def misbehave(self, *faults: str, api_name: str = '') -> None:
        """Let the next requests (of one endpoint) each meet one of these faults, in order."""
        for fault in faults:
            if fault and fault not in BODY_FAULTS and fault not in HTTP_FAULTS:
                raise ValueError(f'no fault {fault}')
        with self._lock:
            self._faults += [(api_name, fault) for fault in faults]

    def _take_fault(self, api_name: str) -> str:
        for index, (name, fault) in enumerate(self._faults):
            if name in ('', api_name):
                del self._faults[index]
                return fault
        return self.always.get(api_name, '')

    def _reply(self, question: Mapping[str, Any]) -> tuple[str, Reply]:
        """Return the fault to meet and the reply."""
        api_name = str(question.get('api_name'))
        params = {
            name: value
            for name, value in dict(question.get('params') or {}).items()
            if name != 'ts_type_name'
        }
        with self._lock:
            self.questions.append((api_name, params))
            fault = self._take_fault(api_name)
            reply: Reply = {'request_id': f'{len(self.questions):08d}', 'code': 0, 'msg': ''}
            if question.get('token') != self._token:
                reply = _code(40101, f'您的token不对，请确认。{question.get("token")}')(reply)
            elif api_name not in ENDPOINTS:
                reply = _code(40001, '请指定正确的接口名')(reply)
            else:
                reply['data'] = self._data(ENDPOINTS[api_name], question, params)
                if fault == 'repeat_page' and api_name in self._last:
                    reply['data'] = self._last[api_name]
                self._last[api_name] = reply['data']
                reply = BODY_FAULTS.get(fault, lambda same: same)(reply)
        with self.asked:
            self.asked.notify_all()
        return fault, reply

    def _data(
        self, endpoint: Endpoint, question: Mapping[str, Any], params: Mapping[str, Any]
    ) -> Reply:
        rows = [
            row for row in self.tables.get(endpoint.name, ()) if _matches(endpoint, row, params)
        ]
        offset = int(params.get('offset') or 0)
        most = min(
            n for n in (int(params.get('limit') or 0), self._page_rows, endpoint.page_rows) if n
        )
        page = rows[offset : offset + most]
        fields = [name for name in str(question.get('fields')).split(',') if name]
        fields = fields or list(endpoint.columns)
        return {
            'fields': fields,
            'items': [[row.get(name) for name in fields] for row in page],
            'has_more': offset + len(page) < len(rows),
            'count': -1,
        }


def _is_symbol(cell: Any) -> bool:
    return isinstance(cell, str) and cell.endswith(('.SH', '.SZ'))


def _matches(endpoint: Endpoint, row: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    day = row.get('trade_date') or row.get('cal_date')
    if day and not params.get('start_date', '') <= day <= params.get('end_date', '99999999'):
        return False
    for name in ('ts_code', 'trade_date', 'exchange', 'market'):
        if params.get(name) and str(row.get(name)) not in str(params[name]).split(','):
            return False
    return endpoint.name != 'stock_basic' or bool(
        row['list_status'] == params.get('list_status', 'L')
    )


def _handler(server: TushareServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            fault, reply = server._reply(question)
            body = json.dumps(reply, ensure_ascii=False).encode()
            if fault.startswith('http_'):
                self._send(int(fault[5:]), b'<html>sorry</html>', retry_after_s=30)
            elif fault == 'redirect':
                self.send_response(307)
                self.send_header('Location', server.url)
                self.send_header('Content-Length', '0')
                self.end_headers()
            elif fault == 'time_out':
                server._stopped.wait(60)
                self.close_connection = True
            elif fault == 'hang_up':
                self.close_connection = True
            elif fault == 'half_body':
                self._send(200, body[: len(body) // 2], len(body))
                self.close_connection = True
            elif fault == 'drip':
                self._drip(body)
            elif fault == 'broken_json':
                self._send(200, body[: len(body) // 2])
            elif fault == 'no_object':
                self._send(200, b'[]')
            else:
                self._send(200, body)

        def _drip(self, body: bytes) -> None:
            self._send(200, b'', len(body))
            for byte in body:
                if server._stopped.wait(0.05):
                    break
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    break
            self.close_connection = True

        def _send(
            self, status: int, body: bytes, length: int = -1, retry_after_s: int = 0
        ) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header('Retry-After', str(retry_after_s))
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(length if length >= 0 else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing: what is asked is in `questions`."""

    return Handler


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, and say what is here and how to fetch it; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='testing_tushare', description="A local server that speaks Tushare Pro's protocol."
    )
    parser.add_argument('--port', type=int, default=0, help='default: a free one')
    parser.add_argument('--data', type=Path, metavar='DIR', help='CSV files, columns of `daily`')
    parser.add_argument(
        '--symbols', type=int, metavar='N', help=f'simulated stocks; default {N_EXAMPLE}, those '
        'of config/universe.example.txt',
    )  # fmt: skip
    parser.add_argument(
        '--start', metavar='YYYYMMDD', help=f'of the simulated market; default {_START}'
    )
    args = parser.parse_args(argv)
    try:
        tables = _tables_of(args)
        server = TushareServer(tables, port=args.port)
    except (OSError, OverflowError) as error:
        _complain(f'port {args.port}: {error}; choose another --port')
        return _EXIT_ERROR
    except HeqisError as error:
        _complain(str(error))
        return _EXIT_ERROR
    with server:
        print('\n'.join(_greeting(server, args.data)), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def _complain(text: str) -> None:
    print(f'testing_tushare: {" ".join(text.split())}', file=sys.stderr)


def _tables_of(args: argparse.Namespace) -> Tables:
    if args.data is None:
        start = args.start or _START
        n_stocks = N_EXAMPLE if args.symbols is None else args.symbols
        return simulated_tables(
            n_stocks,
            weekdays_until_yesterday(start),
            start=f'{start[:4]}-{start[4:6]}-{start[6:]}',
        )
    if args.symbols is not None or args.start is not None:
        raise ConfigError('--symbols and --start are of the simulated market: leave out --data')
    return real_tables(args.data)


def _greeting(server: TushareServer, data: Path | None) -> list[str]:
    """Return what is served, and lines to paste into a shell."""
    tables = server.tables
    n_stocks = len(tables['stock_basic'])
    days = [row['cal_date'] for row in tables['trade_cal'] if row['is_open']]
    what = (
        f'the rows of daily in {data}. Derived from them: adj_factor (pre_close against the last '
        'close), trade_cal, suspend_d, stk_limit. Made up: stock_basic, daily_basic'
        if data
        else 'a simulated market, every row made up'
    )
    others = ('fund_basic', 'index_basic')
    codes = [row['ts_code'] for name in ('stock_basic', *others) for row in tables[name]]
    return [
        f'# Serves {what}.',
        f'# {n_stocks} stocks, {len(codes) - n_stocks} funds and indices, {len(days)} open days '
        f'from {days[-1]} to {days[0]}. Ctrl-C ends it. To fetch all of it in another shell:',
        f'export {URL_VARIABLE}={server.url} {TOKEN_VARIABLE}={TOKEN}',
        f'heqis fetch --symbols {" ".join(codes)} --start {days[-1]} --out output/local_market',
    ]


if __name__ == '__main__':
    sys.exit(main())
