# SPDX-License-Identifier: Apache-2.0
"""The vendor's own client against a server that speaks its protocol, well and badly."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError
from heqis_core.io.testing_tushare import BODY_FAULTS, HTTP_FAULTS, TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import simulated_tables
from heqis_core.io.tushare_client import CallLimiter, TushareClient, load_token
from heqis_core.io.tushare_endpoints import ENDPOINTS, Rows
from heqis_core.io.tushare_query import ask_symbol
from heqis_core.io.tushare_transport import TushareError, TushareKind, check_url, classify

pytest.importorskip('tushare')

SYMBOLS = ['600519.SH', '000858.SZ']
TABLES = simulated_tables(SYMBOLS, 40)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[TushareServer]:
    with TushareServer(TABLES, page_rows=13) as server:
        yield server


@pytest.fixture
def client(server: TushareServer, clock: Clock) -> TushareClient:
    return TushareClient(TOKEN, url=server.url, timeout_s=0.4, clock=clock, sleep=clock.sleep)


def basics(client: TushareClient) -> Rows:
    """Ask for rows that have empty cells, over several pages."""
    return ask_symbol(client, ENDPOINTS['daily_basic'], SYMBOLS[0], '20230101', '20230630')


def expected_days() -> list[str]:
    return [row['trade_date'] for row in TABLES['daily_basic'] if row['ts_code'] == SYMBOLS[0]]


HARMLESS = ('column_order', 'nan_cells', 'double_rows', 'text_numbers', 'has_more_forever')
RETRIED = {
    'http_500': 'server', 'http_503': 'server', 'busy': 'server',
    'http_429': 'rate', 'rate_text': 'rate',
    'time_out': 'network', 'half_body': 'network', 'drip': 'network', 'hang_up': 'network',
    'broken_json': 'protocol', 'no_object': 'protocol', 'no_data': 'protocol',
    'missing_column': 'protocol', 'short_row': 'protocol', 'other_symbol': 'protocol',
    'null_key': 'protocol', 'empty_frame': 'protocol', 'empty_more': 'protocol',
    'repeat_page': 'protocol',
}  # fmt: skip
FINAL = {
    'wrong_token': 'auth', 'http_401': 'auth', 'no_permission': 'permission',
    'quota_text': 'quota', 'bad_params': 'params', 'unknown_code': 'refused',
    'http_404': 'refused', 'redirect': 'refused',
}  # fmt: skip


def test_every_fault_of_the_server_is_tried_here() -> None:
    assert {*HARMLESS, *RETRIED, *FINAL} == {*BODY_FAULTS, *HTTP_FAULTS}


def test_all_pages_come_whole_and_in_the_order_of_the_server(client: TushareClient) -> None:
    rows = basics(client)
    assert rows.columns['trade_date'] == expected_days()
    assert rows.columns['pe'] == [None] * len(rows)
    assert rows.rejected == []
    assert client.counts == {'requests': -(-len(rows) // 13)}


@pytest.mark.parametrize('fault', HARMLESS)
def test_a_harmless_fault_on_the_second_page_changes_no_row(
    server: TushareServer, client: TushareClient, fault: str
) -> None:
    good = basics(client)
    server.misbehave('', fault)
    rows = basics(client)
    assert rows.columns == good.columns
    assert rows.rejected == []


@pytest.mark.parametrize('fault', RETRIED)
def test_a_passing_fault_on_the_second_page_is_retried_and_loses_and_doubles_nothing(
    server: TushareServer, client: TushareClient, fault: str
) -> None:
    good = basics(client)
    client.counts.clear()
    server.misbehave('', fault)
    rows = basics(client)
    assert rows.columns == good.columns
    assert client.counts[f'retry_{RETRIED[fault]}'] == 1


@pytest.mark.parametrize('fault', RETRIED)
def test_a_fault_that_stays_is_a_named_error_after_all_attempts(
    server: TushareServer, clock: Clock, fault: str
) -> None:
    client = TushareClient(
        TOKEN, url=server.url, timeout_s=0.15, attempts=2, clock=clock, sleep=clock.sleep
    )
    if fault in ('empty_frame', 'repeat_page'):
        # Sound on a first page: an answer without rows, and a page that nobody has seen.
        server.misbehave(*['', fault] * 4)
    else:
        server.always['daily_basic'] = fault
    with pytest.raises(TushareError) as caught:
        basics(client)
    assert caught.value.kind == TushareKind(RETRIED[fault])
    assert str(caught.value).startswith(f'Tushare daily_basic: {RETRIED[fault]}: ')


@pytest.mark.parametrize('fault', FINAL)
def test_what_no_retry_helps_is_a_named_error_at_once(
    server: TushareServer, client: TushareClient, fault: str
) -> None:
    server.misbehave(fault)
    with pytest.raises(TushareError) as caught:
        basics(client)
    assert caught.value.kind == TushareKind(FINAL[fault])
    assert client.counts == {'requests': 1}


def test_a_server_that_never_comes_to_an_end_is_a_named_error(
    server: TushareServer, client: TushareClient
) -> None:
    server.always['daily_basic'] = 'has_more_forever'
    with pytest.raises(TushareError, match='an empty page after') as caught:
        basics(client)
    assert caught.value.kind == TushareKind.PROTOCOL


def test_an_empty_answer_is_empty_because_the_server_said_so(client: TushareClient) -> None:
    rows = ask_symbol(client, ENDPOINTS['daily'], '600000.SH', '20230101', '20230630')
    assert len(rows) == 0
    assert client.counts == {'requests': 1}


def test_nobody_listens_is_a_network_error(clock: Clock) -> None:
    with TushareServer(TABLES) as server:
        url = server.url
    client = TushareClient(TOKEN, url=url, attempts=2, clock=clock, sleep=clock.sleep)
    with pytest.raises(TushareError) as caught:
        basics(client)
    assert caught.value.kind == TushareKind.NETWORK
    place = url.split('/')[2]
    assert str(caught.value).startswith(
        f'Tushare daily_basic: network: {place}: connection refused; check the network'
    )


@pytest.mark.parametrize(
    ('fault', 'text'),
    [
        ('time_out', 'time-out after 0.4 s'),
        ('hang_up', 'connection closed without an answer'),
        ('half_body', 'connection closed in the middle of the answer'),
    ],
)
def test_a_network_error_names_host_port_and_cause_and_nothing_more(
    server: TushareServer, clock: Clock, fault: str, text: str
) -> None:
    client = TushareClient(
        TOKEN, url=server.url, timeout_s=0.4, attempts=1, clock=clock, sleep=clock.sleep
    )
    server.always['daily_basic'] = fault
    with pytest.raises(TushareError) as caught:
        basics(client)
    place = server.url.split('/')[2]
    assert f': network: {place}: {text}; check' in str(caught.value)


def test_an_old_error_that_is_being_handled_is_not_taken_for_the_cause(clock: Clock) -> None:
    with TushareServer(TABLES) as server:
        url = server.url
    client = TushareClient(TOKEN, url=url, attempts=1, clock=clock, sleep=clock.sleep)
    try:
        raise ConnectionResetError(104, 'An older one')
    except ConnectionResetError:
        with pytest.raises(TushareError, match='connection refused'):
            basics(client)


def test_a_host_that_is_not_known_is_named(clock: Clock) -> None:
    client = TushareClient(
        TOKEN, url='https://host.invalid', attempts=1, clock=clock, sleep=clock.sleep
    )
    client._transport._session.trust_env = False
    with pytest.raises(TushareError, match=r'network: host\.invalid:443: name not known; check'):
        basics(client)


def test_the_limit_that_the_vendor_names_is_kept_from_then_on(
    server: TushareServer, client: TushareClient, clock: Clock
) -> None:
    server.misbehave('rate_text')
    basics(client)
    started_s = clock.now_s
    for _ in range(41):
        basics(client)
    # 80 calls within any minute, 4 pages for each question.
    assert clock.now_s - started_s > 60


def test_the_limiter_never_lets_more_calls_through_within_a_minute(clock: Clock) -> None:
    limiter = CallLimiter(7, clock, clock.sleep)
    calls = []
    for number in range(40):
        limiter.wait('daily')
        calls.append(clock.now_s)
        clock.sleep(0.1 + number % 3)
    for first, last in zip(calls, calls[7:], strict=False):
        assert last - first > 60 - 1e-6
    before_s = clock.now_s
    limiter.wait('adj_factor')
    assert clock.now_s == before_s, 'each interface has its own'


def test_http_429_with_retry_after_waits_that_long(
    server: TushareServer, client: TushareClient, clock: Clock
) -> None:
    server.misbehave('http_429')
    basics(client)
    assert clock.now_s >= 30, 'what the server of this test asks for'


def test_a_proxy_of_the_environment_sees_nothing_of_a_local_server(
    client: TushareClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    assert len(basics(client)) == len(expected_days())


def test_the_vendors_package_is_left_as_it_was(client: TushareClient) -> None:
    import requests
    from tushare.pro import client as vendor

    address = vendor.DataApi._DataApi__http_url
    basics(client)
    assert vendor.requests is requests
    assert vendor.DataApi._DataApi__http_url == address


@pytest.mark.parametrize('fault', ['', *FINAL, 'http_500', 'half_body', 'broken_json'])
def test_the_token_is_in_no_error_log_or_repr(
    server: TushareServer, clock: Clock, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = 'a-very-secret-token'
    client = TushareClient(secret, url=server.url, attempts=2, clock=clock, sleep=clock.sleep)
    # Without another fault the server refuses this token, and repeats it in its text.
    server.misbehave(fault, fault)
    with pytest.raises(TushareError) as caught:
        basics(client)
    shown = [str(caught.value), repr(caught.value), repr(client), caplog.text]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not [text for text in shown if secret in text]


@pytest.mark.parametrize(
    ('code', 'text', 'kind'),
    [
        (40203, '抱歉，您每分钟最多访问该接口500次，权限的具体详情访问：https://…', 'rate'),
        (40203, '抱歉，您每小时最多访问该接口20次', 'quota'),
        (40203, '抱歉，您每天最多访问该接口5次', 'quota'),
        (2002, '抱歉，您没有访问该接口的权限', 'permission'),
        (-2001, '必填参数', 'params'),
        (40101, '您的token不对，请确认。', 'auth'),
        (-1, '系统内部错误', 'server'),
        (1, 'no', 'refused'),
    ],
)
def test_the_text_of_an_answer_says_its_kind(code: int, text: str, kind: str) -> None:
    assert classify(code, text) == TushareKind(kind)


def test_the_token_comes_from_the_environment_or_a_file_of_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / 'token'
    path.write_text(' abc \n')
    path.chmod(0o600)
    assert load_token({'TUSHARE_TOKEN': 'xyz'}) == 'xyz'
    assert load_token({'TUSHARE_TOKEN_FILE': str(path)}) == 'abc'
    path.chmod(0o640)
    with pytest.raises(ConfigError, match='chmod 600'):
        load_token({'TUSHARE_TOKEN_FILE': str(path)})
    with pytest.raises(ConfigError, match='set TUSHARE_TOKEN'):
        load_token({})
    with pytest.raises(ConfigError, match='cannot be read'):
        load_token({'TUSHARE_TOKEN_FILE': str(tmp_path / 'none')})
    (tmp_path / 'empty').touch(0o600)
    with pytest.raises(ConfigError, match='empty'):
        load_token({'TUSHARE_TOKEN_FILE': str(tmp_path / 'empty')})


@pytest.mark.parametrize(
    'url',
    ['http://api.example.com', 'ftp://127.0.0.1', 'https://a:b@example.com', 'nonsense', '//x'],
)
def test_an_address_that_would_show_the_token_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match='HEQIS_TUSHARE_URL'):
        TushareClient.from_environment({'TUSHARE_TOKEN': 'x', 'HEQIS_TUSHARE_URL': url})


def test_https_and_loopback_are_accepted() -> None:
    assert check_url('https://example.com/dataapi/') == 'https://example.com/dataapi'
    assert check_url('http://[::1]:8000/') == 'http://[::1]:8000'


@pytest.mark.parametrize(
    'wrong', [{'token': ' '}, {'per_minute': 0}, {'attempts': 0}, {'timeout_s': 0.0}]
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match='expected'):
        TushareClient(**{'token': 'x', **wrong})  # type: ignore[arg-type]
