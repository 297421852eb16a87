# SPDX-License-Identifier: Apache-2.0
"""The sources file: what it names is opened and joined, and what is wrong is named by line."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from heqis_core.bars import BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.source import EndOfStream
from heqis_core.testing import wait_until
from heqis_gateway.sources import open_group

ROOT = Path(__file__).resolve().parents[3]
CSV = 'symbol,date,open,high,low,close,volume\n'
DEADLINE_S = 20.0


def write(folder: Path, text: str, name: str = 'sources.yaml') -> Path:
    file = folder / name
    file.write_text(text, encoding='utf-8')
    return file


def bars(folder: Path, name: str, symbol: str, days, close: float = 10.0) -> None:
    rows = [f'{symbol},2024-01-{day:02d},{close},{close},{close},{close},100\n' for day in days]
    write(folder, CSV + ''.join(rows), name)


def read_all(group) -> list:
    blocks = []
    deadline_s = time.monotonic() + DEADLINE_S
    group.open(None)
    try:
        while time.monotonic() < deadline_s:
            block = group.poll(0.2)
            if block is not None:
                blocks.append(block)
    except EndOfStream:
        return blocks
    finally:
        group.close()
    raise AssertionError(f'no end; {len(blocks)} blocks')


def test_the_shipped_example_is_sound() -> None:
    group = open_group(ROOT / 'config/sources.example.yaml')
    assert group.symbols == ('600519.SH', '000001.SZ', '601318.SH', 'IF.CFFEX')
    assert group.channels == ('turnover_rate', 'last_price')


def test_two_files_become_one_stream(tmp_path) -> None:
    bars(tmp_path, 'a.csv', 'AAA', [2, 3, 5])
    bars(tmp_path, 'b.csv', 'BBB', [3, 4, 5])
    file = write(
        tmp_path,
        'sources:\n'
        '- {name: one, kind: file, path: a.csv}\n'
        '- {name: two, kind: file, path: b.csv}\n',
    )
    blocks = read_all(open_group(file))
    status = np.array([block.status for block in blocks])
    no, valid = BarStatus.NO_BAR, BarStatus.VALID
    assert status.tolist() == [[valid, no], [valid, valid], [no, valid], [valid, valid]]


def test_rows_that_loading_a_file_refuses_are_kept_beside_the_quarantine(tmp_path) -> None:
    write(tmp_path, CSV + 'AAA,2024-01-02,1,1,1,1,5\nAAA,2024-01-03,1,0.5,1,1,5\n', 'a.csv')
    file = write(tmp_path, 'sources:\n- {name: a, kind: file, path: a.csv}\n')
    group = open_group(file, tmp_path / 'kept' / 'quarantine.csv')
    assert group.counts == {'a.high_below_low': 1}
    kept = (tmp_path / 'kept' / 'quarantine-a.csv').read_text().splitlines()
    assert len(kept) == 2
    assert 'high_below_low' in kept[1]


def test_a_column_of_a_file_is_joined_as_of_its_day(tmp_path) -> None:
    """The second day lacks the column; a tolerance of nothing makes it missing there."""
    head = CSV.rstrip() + ',turnover_rate\n'
    rows = ['AAA,2024-01-02,1,1,1,1,5,0.5\n', 'AAA,2024-01-03,1,1,1,1,5,\n']
    write(tmp_path, head + ''.join(rows), 'a.csv')
    for tolerance, expected in ((0, float('nan')), (86_400_000, 0.5)):
        file = write(
            tmp_path,
            'sources:\n- {name: a, kind: file, path: a.csv, columns: [turnover_rate]}\n'
            f'channels:\n- {{name: turnover_rate, source: a, tolerance_ms: {tolerance}}}\n',
        )
        blocks = read_all(open_group(file))
        np.testing.assert_equal([block.extra[0, 0] for block in blocks], [0.5, expected])


def test_a_feed_beside_a_simulator_and_readings_of_a_program_are_joined(tmp_path) -> None:
    """Bars and readings come over a socket from a program that knows pyzmq and msgpack alone."""
    file = write(
        tmp_path,
        'sources:\n'
        '- {name: desk, kind: feed, endpoint: "tcp://127.0.0.1:0", symbols: [IF]}\n'
        '- {name: notes, kind: feed_readings, endpoint: "tcp://127.0.0.1:0"}\n'
        'channels:\n- {name: mood, source: notes, tolerance_ms: 60000}\n',
    )
    group = open_group(file)
    group.open(None)
    try:
        by_name = {one.feed.name: one.source for one in group._joined}
        deadline_s = time.monotonic() + DEADLINE_S
        wait_until(
            lambda: not any(source.endpoint.endswith(':0') for source in by_name.values()),
            DEADLINE_S,
        )
        now = time.time_ns() - 10**9
        with zmq.Context() as context:
            for name, kind, row in (
                ('notes', 'readings', {'symbol': '*', 'channel': 'mood', 'value': 0.5}),
                ('desk', 'bars', dict(symbol='IF', open=1.0, high=2.0, low=0.5, close=1.5)),
            ):
                with context.socket(zmq.PUSH) as socket:
                    socket.connect(by_name[name].endpoint)
                    socket.send(msgpack.packb(message(kind, {'event_time_ns': now, **row})))
                if name == 'notes':
                    while not group.own_counts['notes.rows']:
                        assert time.monotonic() < deadline_s
                        group.poll(0.02)
            block = None
            while block is None:
                assert time.monotonic() < deadline_s
                block = group.poll(0.1)
    finally:
        group.close()
    assert block.event_time_ns == now
    assert block.values[3].tolist() == [1.5]
    assert block.extra.tolist() == [[0.5]]


def test_rows_that_a_feed_does_not_use_are_told_once_and_kept(tmp_path) -> None:
    """Late rows, an unknown symbol, a wrong clock and lost messages of one producer."""
    file = write(
        tmp_path,
        'sources:\n- {name: desk, kind: feed, endpoint: "tcp://127.0.0.1:0", symbols: [IF]}\n',
    )
    said: list[str] = []
    kept = tmp_path / 'quarantine.csv'
    group = open_group(file, kept, said.append)
    group.open(None)
    now = time.time_ns() - 10**9
    prices = dict(open=1.0, high=2.0, low=0.5, close=1.5)
    rows = [
        {'symbol': 'IF', 'event_time_ns': now, **prices},
        {'symbol': 'IF', 'event_time_ns': now - 10**12, **prices},
        {'symbol': 'ZZZ', 'event_time_ns': now, **prices},
        {'symbol': 'IF', 'event_time_ns': now + 10**13, **prices},
        {'symbol': 'IF', 'event_time_ns': now + 10**8, **prices},
    ]
    try:
        source = group._joined[0].source
        wait_until(lambda: not source.endpoint.endswith(':0'), DEADLINE_S)
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(source.endpoint)
            for seq, row in zip((0, 1, 2, 3, 9), rows, strict=True):
                socket.send(msgpack.packb({**message('bars', row), 'seq': seq}))
                if seq == 0:
                    block = None
                    while block is None:
                        block = group.poll(0.1)
            wait_until(lambda: group.poll(0.05) is not None, DEADLINE_S)
    finally:
        group.close()
    assert group.own_counts['desk.lost_messages'] == 5
    assert group.counts == {'desk.late_rows': 1, 'desk.unknown_symbols': 1, 'desk.bad_times': 1}
    reasons = [line.split(',')[3] for line in kept.read_text().splitlines()[1:]]
    assert reasons == ['late_rows', 'unknown_symbols', 'bad_times']
    for words in ('has gone out', 'not one of those configured', 'after now', 'seq 9 came'):
        assert sum(words in line for line in said) == 1, (words, said)


def message(kind: str, row: dict[str, object]) -> dict[str, object]:
    head = {'version': 1, 'kind': kind, 'producer': 'test', 'epoch': 1, 'seq': 0}
    return {**head, 'rows': [row]}


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('sources: []\n', 'none gives bars'),
        (
            'sources:\n- {name: a, kind: fax}\n',
            "2: sources[0].kind: Invalid value 'fax'; expected one of file",
        ),
        ('sources:\n- {name: a, kind: file}\n', '2: sources[0]: Object missing required field'),
        (
            'sources:\n- {name: a, kind: simulator, seed: x}\n',
            '2: sources[0].seed: Expected `int`',
        ),
        (
            'sources:\n- {name: a, kind: simulator, sede: 1}\n',
            'unknown field `sede`; expected one of kind, name, wait_ms, lateness_ms, symbols',
        ),
        (
            'sources:\n- {name: a, kind: simulator}\n- {name: a, kind: simulator, symbols: [X]}\n',
            'source a: two of this name',
        ),
        (
            'sources:\n- {name: a, kind: simulator}\nchannels:\n- {name: x, source: b}\n',
            "no source 'b'; there are a",
        ),
        (
            'sources:\n- {name: a, kind: simulator}\nlate: amend\namend_blocks: 0\n',
            'amend_blocks = 0',
        ),
        ('sources:\n- {name: a, kind: simulator, lateness_ms: -1}\n', 'lateness_ms = -1'),
        ('sources:\n- {name: a, kind: modbus, map: none.yaml}\n', 'none.yaml: cannot be read'),
        (
            'sources:\n- {name: a, kind: feed, symbols: [X], endpoint: "tcp://0.0.0.0:5"}\n',
            '0.0.0.0',
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        open_group(file)
    assert str(file.parent) in str(caught.value)


def test_a_file_of_bars_that_is_not_there_is_named(tmp_path) -> None:
    file = write(tmp_path, 'sources:\n- {name: a, kind: file, path: no.csv}\n')
    with pytest.raises(DataError, match=r'no\.csv: no such file'):
        open_group(file)
