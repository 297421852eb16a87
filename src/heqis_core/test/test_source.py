# SPDX-License-Identifier: Apache-2.0
"""Sources: every bar once, in order, again from any cursor; paced ones keep their deadlines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import BarBlock, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.simulator import MarketSimulator
from heqis_core.source import (
    Cursor,
    EndOfStream,
    PacedSource,
    SimulatorSource,
    Source,
    SourceConfig,
    TableSource,
    open_source,
)
from heqis_core.testing import shared_data

DAY_NS = 86_400_000_000_000
CSV = """symbol,date,open,high,low,close,volume
A,2024-01-02,10,11,9,10,100
A,2024-01-03,10,11,9,10,100
B,2024-01-03,20,21,19,20,100
A,2024-01-04,10,oops,9,10,100
B,2024-01-05,20,21,19,20,100
"""


def table(n: int = 5, symbols: tuple[str, ...] = ('A', 'B')) -> BarTable:
    """Return `n` days of valid bars that tell one day from another."""
    values = np.arange(1.0, n + 1)[:, None, None] * np.ones((n, 6, len(symbols)))
    days = np.arange(1, n + 1, dtype=np.int64) * DAY_NS
    return BarTable(symbols, days, values, np.ones((n, len(symbols)), np.uint8))


def drain(source: Source) -> Iterator[BarBlock]:
    """Yield every block to the end."""
    while True:
        try:
            block = source.poll(1.0)
        except EndOfStream:
            return
        assert block is not None
        yield block


def key(block: BarBlock) -> tuple[int, bytes, bytes]:
    """Return what makes two blocks equal."""
    return block.event_time_ns, block.values.tobytes(), block.status.tobytes()


@pytest.fixture(params=['table', 'simulator', 'paced'])
def make(request: pytest.FixtureRequest) -> Callable[[], Source]:
    """Return a function that builds the same 7-block source each time."""

    def build() -> Source:
        if request.param == 'simulator':
            return SimulatorSource(MarketSimulator(3, seed=1), limit=7)
        source = TableSource(table(7), {'duplicate': 2})
        return PacedSource(source, 5000) if request.param == 'paced' else source

    return build


def test_every_block_comes_once_and_then_the_end(make: Callable[[], Source]) -> None:
    source = make()
    assert (source.finite, source.total) == (True, 7)
    before_ns = time.time_ns()
    blocks = list(drain(source))
    times = [block.event_time_ns for block in blocks]
    assert len(blocks) == 7
    assert times == sorted(set(times))
    assert all(before_ns <= block.ingest_ns <= time.time_ns() for block in blocks)
    assert all(block.symbols is source.symbols for block in blocks)
    with pytest.raises(EndOfStream):
        source.poll(0.0)
    source.close()


@pytest.mark.parametrize('cut', range(8))
def test_any_cursor_goes_on_with_the_next_block(make: Callable[[], Source], cut: int) -> None:
    expected = [key(block) for block in drain(make())]
    first, second = make(), make()
    first.open(None)
    got = [key(block) for block in islice(drain(first), cut)]
    cursor: Cursor = json.loads(json.dumps(first.cursor()))
    assert cursor['counts'] == dict(first.counts)
    # The second one has been elsewhere before.
    second.poll(1.0)
    second.open(cursor)
    got += [key(block) for block in drain(second)]
    assert got == expected
    second.open(None)
    assert [key(block) for block in drain(second)] == expected


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.integers(1, 4), st.integers(0, 20), st.integers(1, 10))
def test_simulator_cursor_equals_an_undisturbed_run(
    seed: int, symbols: int, cut: int, rest: int
) -> None:
    whole = SimulatorSource(MarketSimulator(symbols, seed), cut + rest)
    expected = [key(block) for block in drain(whole)]
    first = SimulatorSource(MarketSimulator(symbols, seed), cut + rest)
    got = [key(block) for block in islice(drain(first), cut)]
    second = SimulatorSource(MarketSimulator(symbols, seed), cut + rest)
    second.open(json.loads(json.dumps(first.cursor())))
    assert got + [key(block) for block in drain(second)] == expected


def test_endless_simulator_says_so() -> None:
    source = SimulatorSource(MarketSimulator(2, seed=1))
    assert (source.finite, source.total) == (False, None)
    assert all(source.poll(0.0) is not None for _ in range(100))


def test_cursor_of_other_data_is_refused() -> None:
    source = TableSource(table(5))
    for _ in range(3):
        source.poll(0.0)
    cursor = source.cursor()
    shifted = table(5)
    shifted.event_time_ns[2] += 1
    for other in (shifted, table(2), table(5, ('A', 'C'))):
        with pytest.raises(DataError, match='the data changed since the checkpoint'):
            TableSource(other).open(cursor)
    TableSource(table(9)).open(cursor)


@pytest.mark.parametrize('cursor', [{}, {'index': 'x'}, {'done': 3}])
def test_cursor_of_another_kind_is_refused(cursor: Cursor) -> None:
    for source in (TableSource(table()), SimulatorSource(MarketSimulator(2, seed=1))):
        with pytest.raises(DataError, match='remove the checkpoint'):
            source.open(cursor)


def test_pace_is_kept_without_drift() -> None:
    source = PacedSource(TableSource(table(21)), 100)
    start_s = time.monotonic()
    assert len(list(drain(source))) == 21
    # 21 blocks are 20 periods; the first one comes at once.
    assert 0.19 <= time.monotonic() - start_s < 2.0


def test_poll_comes_back_without_a_block_that_is_not_due() -> None:
    source = PacedSource(TableSource(table()), 0.5)
    assert source.poll(0.0) is not None
    start_s = time.monotonic()
    assert source.poll(0.05) is None
    assert 0.04 <= time.monotonic() - start_s < 1.0
    assert source.poll(0.0) is None
    assert source.cursor()['index'] == 1, 'a block that was not handed over is not passed by'


def test_warm_up_is_not_paced() -> None:
    source = PacedSource(TableSource(table(1000)), 0.1, unpaced_until_ns=999 * DAY_NS)
    start_s = time.monotonic()
    blocks = [source.poll(0.0) for _ in range(1000)]
    assert time.monotonic() - start_s < 5.0
    assert None not in blocks, 'warm-up and the first paced block come at once'


def test_a_long_stall_is_not_made_up_for_in_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr('heqis_core.source.time.monotonic', lambda: now_s[0])
    source = PacedSource(TableSource(table(100)), 10)
    assert source.poll(0.0) is not None
    now_s[0] += 5.0
    came = [source.poll(0.0) for _ in range(10)]
    assert [block is not None for block in came] == [True] + [False] * 9
    # A short one is: this block came 0.15 s late, the next is due 0.1 s after its deadline.
    now_s[0] += 0.25
    came = [source.poll(0.0) for _ in range(10)]
    assert [block is not None for block in came] == [True, True] + [False] * 8


def test_close_wakes_a_waiting_poll() -> None:
    source = PacedSource(TableSource(table()), 0.01)
    source.poll(0.0)
    came: list[BarBlock | None] = []
    thread = threading.Thread(target=lambda: came.append(source.poll(60.0)))
    thread.start()
    source.close()
    thread.join(5.0)
    assert came == [None]


def test_pace_zero_is_as_fast_as_possible() -> None:
    source = PacedSource(TableSource(table(500)), 0)
    assert all(source.poll(0.0) is not None for _ in range(500))


@pytest.mark.parametrize('pace', [-1.0, float('nan'), float('inf')])
def test_pace_that_is_none_is_refused(pace: float) -> None:
    with pytest.raises(ConfigError, match='bars_per_s'):
        PacedSource(TableSource(table()), pace)


def test_file_source_counts_what_cleaning_refused(tmp_path: Path) -> None:
    (tmp_path / 'bars.csv').write_text(CSV)
    kept = tmp_path / 'state' / 'quarantine.csv'
    source = open_source(
        SourceConfig('file', path=str(tmp_path / 'bars.csv'), quarantine=str(kept))
    )
    assert source.symbols == ('A', 'B')
    assert (source.finite, source.total) == (True, 4)
    assert source.counts == {'not_a_number': 1}
    assert 'oops' in kept.read_text()
    blocks = list(drain(source))
    assert [block.status.tolist() for block in blocks] == [
        [BarStatus.VALID, BarStatus.NO_BAR],
        [BarStatus.VALID, BarStatus.VALID],
        [BarStatus.REJECTED, BarStatus.NO_BAR],
        [BarStatus.NO_BAR, BarStatus.VALID],
    ]
    assert source.cursor()['counts'] == {'not_a_number': 1}


def test_symbols_and_limit_take_a_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / 'bars.csv').write_text(CSV)
    path = str(tmp_path / 'bars.csv')
    source = open_source(SourceConfig('file', path=path, symbols=('B',), limit=2))
    blocks = list(drain(source))
    assert source.symbols == ('B',)
    assert [block.status.tolist() for block in blocks] == [[0], [1]]
    assert blocks[1].values[:, 0].tolist()[:5] == [20, 21, 19, 20, 100]
    with pytest.raises(DataError, match=r'no bars of C; the data has A, B'):
        open_source(SourceConfig('file', path=path, symbols=('A', 'C')))


def test_simulator_by_number_and_by_names() -> None:
    config = SourceConfig('simulator', symbols=3, seed=5, limit=4, start_date='2024-01-02')
    source = open_source(config)
    assert (len(source.symbols), source.total) == (3, 4)
    assert [key(block) for block in drain(source)] == [
        key(block) for block in drain(open_source(config))
    ]
    assert open_source(SourceConfig('simulator', symbols=('A', 'B'))).symbols == ('A', 'B')


def test_pace_in_the_config_paces() -> None:
    source = open_source(SourceConfig('simulator', bars_per_s=0.1))
    assert source.poll(0.0) is not None
    assert source.poll(0.0) is None


@pytest.mark.parametrize(
    ('config', 'error', 'named'),
    [
        (SourceConfig('tape'), ConfigError, "kind: 'tape'; expected file or simulator"),
        (SourceConfig('file'), DataError, 'path: empty'),
        (SourceConfig('file', path='/nowhere/at/all'), DataError, 'no such file or folder'),
        (SourceConfig('simulator', limit=-1), ConfigError, 'limit: -1'),
        (SourceConfig('simulator', symbols=0), ConfigError, 'symbols: 0'),
        (SourceConfig('simulator', seed=-1), ConfigError, 'seed: -1'),
        (SourceConfig('simulator', bars_per_s=float('nan')), ConfigError, 'bars_per_s: nan'),
    ],
)
def test_configs_that_cannot_be_used_are_named(
    config: SourceConfig, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        open_source(config)


def test_three_real_series_stream_from_end_to_end() -> None:
    folder = shared_data() / 'ashare_daily/tushare_raw_2020_2024'
    source = open_source(SourceConfig('file', path=str(folder)))
    assert source.symbols == ('000001.SZ', '600519.SH', '601318.SH')
    blocks = list(drain(source))
    assert len(blocks) == source.total == 1212
    assert all((block.status == BarStatus.VALID).all() for block in blocks)
    assert blocks[-1].event_time_ns == int(
        np.datetime64('2024-12-31T07:00', 'ns').astype(np.int64)
    )
