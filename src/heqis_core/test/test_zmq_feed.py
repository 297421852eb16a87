# SPDX-License-Identifier: Apache-2.0
"""ZeroMQ feed: real sockets, blocks out of rows, gaps, faults, keys, the example of the docs."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
import zmq.auth
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import CLOSE, VOLUME, BarBlock, BarStatus
from heqis_core.clean import clean_block
from heqis_core.errors import ConfigError, DataError, LinkError, WireError
from heqis_core.io.zmq_feed import MOST_PENDING, FeedBars, FeedReadings
from heqis_core.io.zmq_feed_format import Bars, decode
from heqis_core.io.zmq_feed_socket import FeedConfig
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.readings import Reading
from heqis_core.testing import free_port, wait_until

ANY = 'tcp://127.0.0.1:*'
SYMBOLS = ('000001.SZ', '600519.SH')
T0 = 1_700_000_000_000_000_000
DOCS = Path(__file__).resolve().parents[3] / 'docs' / 'feed.md'


def row(symbol: str, at: int = 0, close: float = 10.0, **more: object) -> dict[str, object]:
    prices = {name: close for name in ('open', 'high', 'low', 'close')}
    return {'event_time_ns': T0 + at, 'symbol': symbol, **prices, 'volume': 100, **more}


def reading(value: float = 1.5, channel: str = 'c', at: int = 0) -> dict[str, object]:
    return {'event_time_ns': T0 + at, 'symbol': 'S', 'channel': channel, 'value': value}


class Producer:
    """Any program that sends to a feed."""

    def __init__(self, endpoint: str, kind: int = zmq.PUSH, name: str = 'p', epoch: int = 1):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.name, self.epoch, self.seq = name, epoch, 0
        if kind == zmq.PUB:
            self.socket.bind(endpoint)
        else:
            self.socket.connect(endpoint)

    def send(self, rows: list[dict[str, object]], kind: str = 'bars', **more: object) -> None:
        head = {'kind': kind, 'version': 1, 'producer': self.name, 'epoch': self.epoch}
        self.socket.send(msgspec.msgpack.encode({**head, 'seq': self.seq, 'rows': rows, **more}))
        self.seq += 1

    def close(self) -> None:
        self.context.destroy(0)


@contextmanager
def producer_of(endpoint: str, **more: Any) -> Iterator[Producer]:
    found = Producer(endpoint, **more)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def bars_feed(
    cursor: dict[str, Any] | None = None, errors: list[str] | None = None, **more: Any
) -> Iterator[tuple[FeedBars, Producer]]:
    config = FeedConfig(**{'endpoint': ANY, 'symbols': SYMBOLS, 'close_after_s': 30.0, **more})
    feed = FeedBars(config, errors.append if errors is not None else None)
    feed.open(cursor)
    try:
        with producer_of(feed.endpoint) as producer:
            yield feed, producer
    finally:
        feed.close()


def take(feed: FeedBars, n: int) -> list[BarBlock]:
    """Return the next n blocks."""
    blocks: list[BarBlock] = []
    deadline_s = time.monotonic() + 10.0
    while len(blocks) < n:
        assert time.monotonic() < deadline_s, f'{len(blocks)} of {n} blocks: {feed.counts}'
        block = feed.poll(0.1)
        blocks.extend([block] if block is not None else [])
    return blocks


def poll_until(feed: FeedBars | FeedReadings, condition: Callable[[], bool]) -> None:
    def polled() -> bool:
        feed.poll(0.05)
        return condition()

    wait_until(polled, 10.0, str(feed.counts))


# --- blocks ---


def test_a_block_goes_out_when_every_symbol_has_its_row():
    with bars_feed() as (feed, producer):
        assert (feed.finite, feed.total, feed.symbols) == (False, None, SYMBOLS)
        producer.send([row(SYMBOLS[1], close=20.0)])
        producer.send([row(SYMBOLS[0], close=10.0, amount=1e3)])
        before_ns = time.time_ns()
        (block,) = take(feed, 1)
        assert block.event_time_ns == T0
        assert block.symbols is feed.symbols
        assert block.values[CLOSE].tolist() == [10.0, 20.0]
        assert block.values[VOLUME].tolist() == [100.0, 100.0]
        assert block.values[5, 0] == 1e3
        assert math.isnan(block.values[5, 1])
        assert block.status.tolist() == [BarStatus.VALID, BarStatus.VALID]
        assert before_ns - 10**9 <= block.ingest_ns <= time.time_ns()


def test_a_batch_of_many_event_times_in_any_order_comes_out_in_order():
    rows = [row(symbol, at, close=at + 1.0) for symbol in SYMBOLS for at in range(500)]
    with bars_feed() as (feed, producer):
        producer.send(rows)
        blocks = take(feed, 500)
        assert [block.event_time_ns - T0 for block in blocks] == list(range(500))
        assert all(
            block.values[CLOSE].tolist() == [at + 1.0] * 2 for at, block in enumerate(blocks)
        )
        assert feed.counters['incomplete_blocks'] == feed.counts['late_rows'] == 0


def test_complete_sends_a_block_off_without_the_missing_symbol():
    with bars_feed() as (feed, producer):
        producer.send([row(SYMBOLS[0], 0), row(SYMBOLS[0], 1)], complete=True)
        first, second = take(feed, 2)
        assert (first.event_time_ns, second.event_time_ns) == (T0, T0 + 1)
        assert first.status.tolist() == [BarStatus.VALID, BarStatus.NO_BAR]
        assert np.isnan(first.values[:, 1]).all()
        assert feed.counters['incomplete_blocks'] == 2


def test_a_missing_symbol_is_waited_for_only_so_long_and_its_late_row_is_counted():
    with bars_feed(close_after_s=0.1) as (feed, producer):
        producer.send([row(SYMBOLS[0])])
        (block,) = take(feed, 1)
        assert block.status.tolist() == [BarStatus.VALID, BarStatus.NO_BAR]
        producer.send([row(SYMBOLS[1])])
        producer.send([row(symbol, 1) for symbol in SYMBOLS])
        (block,) = take(feed, 1)
        assert block.event_time_ns == T0 + 1
        assert feed.counts['late_rows'] == 1


def test_no_more_event_times_wait_than_allowed():
    with bars_feed() as (feed, producer):
        producer.send([row(SYMBOLS[0], at) for at in range(MOST_PENDING + 5)])
        assert [block.event_time_ns - T0 for block in take(feed, 5)] == [0, 1, 2, 3, 4]
        assert len(feed._pending) == MOST_PENDING
        assert feed.poll(0.0) is None


def test_a_suspended_and_a_repeated_row_are_what_they_are():
    with bars_feed() as (feed, producer):
        producer.send([row(SYMBOLS[0], close=9.0), row(SYMBOLS[0]), row(SYMBOLS[1])])
        (block,) = take(feed, 1)
        assert block.values[CLOSE, 0] == 10.0
        assert feed.counts['repeated_rows'] == 1
        producer.send([row(SYMBOLS[0], 1, suspended=True), row(SYMBOLS[1], 1, volume=None)])
        (block,) = take(feed, 1)
        assert block.status.tolist() == [BarStatus.SUSPENDED, BarStatus.VALID]
        assert np.isnan(block.values[:, 0]).all()
        assert math.isnan(block.values[VOLUME, 1])
        assert feed.counters['blocks'] == 2
        assert feed.counters['rows'] == 5


def test_rows_that_no_rule_accepts_are_refused_where_live_blocks_are_judged():
    with bars_feed() as (feed, producer):
        bare = {'event_time_ns': T0, 'symbol': SYMBOLS[0], 'close': 1.0}
        producer.send([bare, row(SYMBOLS[1], high=1.0)])
        producer.send([row(SYMBOLS[0], 1, close=math.inf), row(SYMBOLS[1], 1, volume=-1.0)])
        reasons = []
        for block in take(feed, 2):
            cleaned, rejected = clean_block(block)
            assert cleaned.status.tolist() == [BarStatus.REJECTED] * 2
            reasons += [bar.reason for bar in rejected]
        assert reasons == ['missing_price', 'high_below_low', 'not_a_number', 'negative_volume']


def test_rows_of_unknown_symbols_and_impossible_times_are_counted_and_told_once():
    errors: list[str] = []
    far = time.time_ns() - T0 + 3_600 * 10**9
    with bars_feed(errors=errors) as (feed, producer):
        bad = [row('X'), row('X'), row(SYMBOLS[0], -T0), row(SYMBOLS[0], far)]
        producer.send([*bad, row(SYMBOLS[0], 2**60), *(row(symbol) for symbol in SYMBOLS)])
        take(feed, 1)
        assert (feed.counts['unknown_symbols'], feed.counts['bad_times']) == (2, 3)
        assert len(errors) == 2
        assert f"'X' at event_time_ns {T0}: is not one of those configured" in errors[0]
        assert 'is not between 1970 and 60 s after now' in errors[1]


def test_a_restart_goes_on_after_the_cursor_and_repeats_nothing():
    with bars_feed() as (feed, producer):
        producer.send([row(symbol, at) for symbol in SYMBOLS for at in range(3)])
        take(feed, 2)
        cursor = msgspec.json.decode(msgspec.json.encode(feed.cursor()))
        assert cursor['event_time_ns'] == T0 + 1
    with bars_feed(cursor) as (feed, producer):
        producer.send([row(symbol, at) for symbol in SYMBOLS for at in range(4)])
        assert [block.event_time_ns - T0 for block in take(feed, 2)] == [2, 3]
        assert feed.counts['late_rows'] == 4


@pytest.mark.parametrize(
    'cursor', [{}, {'event_time_ns': 'x'}, {'event_time_ns': 5, 'symbols': 'other'}]
)
def test_a_cursor_of_another_feed_is_refused(cursor):
    feed = FeedBars(FeedConfig(ANY, symbols=SYMBOLS))
    with pytest.raises(DataError, match='is not of a feed of these 2 symbols'):
        feed.open(cursor)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_blocks_are_the_same_in_whatever_order_and_portions_rows_arrive(data):
    table = [row(s, at, close=1.0 + at + n) for n, s in enumerate(SYMBOLS) for at in range(5)]
    rows = data.draw(st.permutations(table))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    feed = FeedBars(FeedConfig(ANY, symbols=SYMBOLS, close_after_s=30.0))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    for part in parts:
        head = {'kind': 'bars', 'version': 1, 'producer': 'p', 'epoch': 1, 'seq': 0}
        message = decode(msgspec.msgpack.encode({**head, 'rows': part}))
        assert isinstance(message, Bars)
        feed._take(message)
        feed._fill()
    blocks = []
    while feed._due_s() < 0:
        blocks.append(feed._finish())
    assert [block.event_time_ns - T0 for block in blocks] == list(range(5))
    assert [block.values[CLOSE].tolist() for block in blocks] == [[1 + a, 2 + a] for a in range(5)]


# --- readings ---


@contextmanager
def readings_feed(**more: Any) -> Iterator[tuple[FeedReadings, Producer]]:
    feed = FeedReadings(FeedConfig(**{'endpoint': ANY, **more}))
    feed.open()
    try:
        with producer_of(feed.endpoint) as producer:
            yield feed, producer
    finally:
        feed.close()


def test_readings_and_ticks_come_as_readings_oldest_first():
    with readings_feed() as (feed, producer):
        producer.send([reading(2.0, at=5), reading(1.0, 'd')], 'readings')
        assert feed.poll(10.0) == [Reading(T0, 'S', 'd', 1.0), Reading(T0 + 5, 'S', 'c', 2.0)]
        tick = {'event_time_ns': T0, 'symbol': 'S', 'price': 9.5}
        producer.send([tick, {**tick, 'volume': 300}], 'ticks')
        price = Reading(T0, 'S', 'tick_price', 9.5)
        assert feed.poll(10.0) == [price, price, Reading(T0, 'S', 'tick_volume', 300.0)]
        assert feed.counts['readings'] == 5


def test_a_value_that_is_not_finite_and_a_symbol_that_is_not_wanted_give_no_reading():
    with readings_feed(symbols=('S',)) as (feed, producer):
        producer.send([reading(math.nan), reading(math.inf)], 'readings')
        producer.send([reading(7.0), {**reading(), 'symbol': 'T'}], 'readings')
        assert feed.poll(10.0) == [Reading(T0, 'S', 'c', 7.0)]
        assert (feed.counts['bad_values'], feed.counts['unknown_symbols']) == (2, 1)


def test_each_kind_of_feed_counts_what_is_for_the_other_kind():
    with readings_feed() as (feed, producer):
        producer.send([row('S')])
        producer.send([reading()], 'readings')
        assert len(feed.poll(10.0)) == 1
        assert feed.counts['other_kind'] == 1
    with bars_feed() as (feed, producer):
        producer.send([reading()], 'readings')
        producer.send([row(symbol) for symbol in SYMBOLS])
        take(feed, 1)
        assert feed.counters['other_kind'] == 1


# --- producers ---


def test_gaps_repetitions_and_restarts_are_counted_for_each_producer():
    with readings_feed() as (feed, one), producer_of(feed.endpoint, name='q') as two:
        one.seq = 40  # joined late: nothing is missing yet
        for seq in (40, 41, 45, 45, 44, 46):
            one.seq = seq
            one.send([reading()], 'readings')
        poll_until(feed, lambda: feed.counts['messages'] == 6)
        assert feed.counts['lost_messages'] == 3
        assert feed.counts['repeated_messages'] == 2
        two.send([reading()], 'readings')
        one.epoch, one.seq = 2, 3
        one.send([reading()], 'readings')
        poll_until(feed, lambda: feed.counts['messages'] == 8)
        assert feed.counts['producer_restarts'] == 1
        assert feed.counts['lost_messages'] == 6
        assert feed.counts['readings'] == 6


def test_a_subscriber_hears_a_publisher_that_comes_later_and_counts_what_it_missed():
    endpoint = f'tcp://127.0.0.1:{free_port()}'
    config = FeedConfig(endpoint, pattern='sub', bind=False, symbols=SYMBOLS)
    bars, readings = FeedBars(config), FeedReadings(FeedConfig(endpoint, 'sub', bind=False))
    bars.open(None)
    readings.open()
    try:
        with producer_of(endpoint, kind=zmq.PUB) as producer:
            at = [0]

            def heard() -> bool:
                at[0] += 1
                producer.send([row(symbol, at[0]) for symbol in SYMBOLS])
                producer.send([reading()], 'readings')
                return bars.poll(0.05) is not None and bool(readings.poll(0.05))

            wait_until(heard, 10.0)
            assert bars.counters['lost_messages'] == 0
            producer.seq += 2
            wait_until(heard, 10.0)
            wait_until(lambda: heard() and bars.counters['lost_messages'] == 2, 10.0)
    finally:
        bars.close()
        readings.close()


def test_a_full_queue_makes_a_pushing_producer_wait_and_nothing_is_lost():
    with readings_feed(hwm=2) as (feed, producer):
        producer.socket.setsockopt(zmq.SNDTIMEO, 200)
        padding = 'x' * 100_000
        sent = 0
        with contextlib.suppress(zmq.Again):
            while sent < 10_000:
                producer.send([reading(float(sent), padding)], 'readings')
                sent += 1
        assert sent < 10_000
        got = 0
        while found := feed.poll(0.5):
            assert found[0].value == got
            got += 1
        assert got == sent


# --- faults ---


def message(**changes: object) -> bytes:
    head = {'kind': 'readings', 'version': 1, 'producer': 'p', 'epoch': 1, 'seq': 0}
    fields = {**head, 'rows': [reading()], **changes}
    return msgspec.msgpack.encode({k: v for k, v in fields.items() if v is not ...})


FAULTS = [
    (b'', 'bad_msgpack', 'not a message of a feed'),
    (b'\xc1', 'bad_msgpack', 'not a message of a feed'),
    (b'\x91' * 5000, 'bad_fields', 'not a message of a feed'),
    (b'\xdd\xff\xff\xff\xff', 'bad_fields', 'not a message of a feed'),
    (message()[:-3], 'bad_msgpack', 'not a message of a feed'),
    (message() + b'\x00', 'bad_msgpack', 'not a message of a feed'),
    (b'hello', 'bad_fields', 'not a message of a feed'),
    (message(version=2), 'bad_version', 'version 2, this program reads 1'),
    (message(version=2, news=1), 'bad_version', 'version 2, this program reads 1'),
    (message(version=...), 'bad_fields', 'version'),
    (message(kind='orders'), 'bad_fields', "Invalid value 'orders'"),
    (message(kind=...), 'bad_fields', 'kind'),
    (message(producer=5), 'bad_fields', r'Expected `str`, got `int` - at `$.producer`'),
    (message(seq='1'), 'bad_fields', '$.seq'),
    (message(extra=1), 'bad_fields', 'unknown field `extra`'),
    (message(rows=[{**reading(), 'valeu': 1}]), 'bad_fields', 'unknown field `valeu`'),
    (message(rows=[{**reading(), 'value': '1'}]), 'bad_fields', '$.rows[0].value'),
    (message(rows=[{**reading(), 'value': None}]), 'bad_fields', '$.rows[0].value'),
    (message(rows={}), 'bad_fields', '$.rows'),
]


@pytest.mark.parametrize('number', range(len(FAULTS)))
def test_a_message_that_is_none_is_counted_with_its_reason_and_the_next_one_is_read(number):
    data, counter, reason = FAULTS[number]
    with readings_feed() as (feed, producer):
        producer.socket.send(data)
        producer.socket.send(message())
        assert feed.poll(10.0) == [Reading(T0, 'S', 'c', 1.5)]
        assert feed.counts[counter] == 1
        assert reason in feed.last_error
        assert feed.last_error.startswith(f'feed {feed.endpoint}: ')


def test_a_message_of_several_parts_is_counted():
    with readings_feed() as (feed, producer):
        producer.socket.send_multipart([b'topic', message()])
        producer.socket.send(message())
        assert len(feed.poll(10.0)) == 1
        assert feed.counts['bad_parts'] == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_named_error(data):
    with pytest.raises(WireError, match=r'message|version'):
        decode(data)


@settings(max_examples=300)
@given(st.data())
def test_a_message_with_any_bytes_altered_is_a_message_or_a_named_error(data):
    raw = bytearray(message(rows=[reading(), reading()]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    text = 'message'
    try:
        decode(bytes(raw))
    except WireError as error:
        text = str(error)
    assert 'message' in text or 'version' in text


# --- sockets ---


def test_an_endpoint_off_loopback_needs_keys():
    for endpoint in ('tcp://0.0.0.0:5570', 'tcp://*:5570', 'tcp://192.0.2.1:5570'):
        with pytest.raises(LinkError, match='can be reached from other machines'):
            FeedReadings(FeedConfig(endpoint))
    with pytest.raises(LinkError, match='expected tcp://HOST:PORT'):
        FeedReadings(FeedConfig('5570'))


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(ConfigError, match="pattern: 'pub'; expected sub or pull"):
        FeedReadings(FeedConfig(ANY, pattern='pub'))
    with pytest.raises(ConfigError, match='symbols: none given'):
        FeedBars(FeedConfig(ANY))
    with pytest.raises(ConfigError, match='a name is given twice'):
        FeedBars(FeedConfig(ANY, symbols=('a', 'a')))


def test_an_endpoint_that_is_taken_is_named_and_may_be_opened_later():
    with readings_feed() as (first, _):
        second = FeedReadings(FeedConfig(first.endpoint))
        with pytest.raises(LinkError, match='is in use by another program'):
            second.open()
    second.open()
    second.close()


def test_only_producers_with_an_admitted_key_are_heard(tmp_path):
    for name in ('gateway', 'quotes', 'stranger'):
        write_keys(tmp_path / name, name)
    allow = tmp_path / 'allow'
    allow.mkdir()
    (allow / 'quotes.key').write_bytes((tmp_path / 'quotes' / 'quotes.key').read_bytes())
    keys = LinkSecurity.load(tmp_path / 'gateway' / 'gateway.key_secret', allow_folder=allow)
    with readings_feed(security=keys) as (feed, open_producer):
        open_producer.send([reading(1.0)], 'readings')
        producers = []
        for name, value in (('stranger', 2.0), ('quotes', 3.0)):
            public, secret = zmq.auth.load_certificate(tmp_path / name / f'{name}.key_secret')
            producer = Producer(feed.endpoint, name=name)
            producers.append(producer)
            producer.socket.disconnect(feed.endpoint)
            producer.socket.curve_publickey, producer.socket.curve_secretkey = public, secret
            producer.socket.curve_serverkey = keys.public_key
            producer.socket.connect(feed.endpoint)
            producer.send([reading(value)], 'readings')
        try:
            assert [r.value for r in feed.poll(10.0)] == [3.0]
            assert feed.poll(0.3) == []
        finally:
            for producer in producers:
                producer.close()


def test_close_from_another_thread_wakes_a_poll_and_open_listens_again():
    feed = FeedBars(FeedConfig(ANY, symbols=SYMBOLS))
    feed.open(None)
    done: list[BarBlock | None] = []
    thread = threading.Thread(target=lambda: done.append(feed.poll(60.0)))
    thread.start()
    feed.close()
    thread.join(10.0)
    assert done == [None]
    assert feed.poll(0.0) is None
    feed.open(None)
    with producer_of(feed.endpoint) as producer:
        producer.send([row(symbol) for symbol in SYMBOLS])
        take(feed, 1)
    feed.close()


# --- the docs ---


def test_the_example_of_the_docs_runs_and_its_bars_arrive(tmp_path):
    pytest.importorskip('msgpack')
    program = re.search(r'```python\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.DOTALL)
    assert program is not None
    (tmp_path / 'producer.py').write_text(program[1], encoding='utf-8')
    with bars_feed() as (feed, _):
        run = [sys.executable, str(tmp_path / 'producer.py'), feed.endpoint]
        process = subprocess.Popen(run, stderr=subprocess.PIPE)
        try:
            blocks = take(feed, 3)
        finally:
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b'')
        assert [block.values[CLOSE].tolist() for block in blocks] == [
            [10.0] * 2,
            [10.1] * 2,
            [10.2] * 2,
        ]
        steps = np.diff([block.event_time_ns for block in blocks])
        assert (steps == 60 * 10**9).all()
        assert all((block.status == BarStatus.VALID).all() for block in blocks)
        assert feed.counters['lost_messages'] == 0


def test_the_docs_name_every_counter():
    text = DOCS.read_text(encoding='utf-8')
    bars = FeedBars(FeedConfig(ANY, symbols=SYMBOLS))
    names = {*bars.counts, *bars.counters}
    names |= {*FeedReadings(FeedConfig(ANY)).counts}
    assert [name for name in sorted(names) if f'`{name}`' not in text] == []
