# SPDX-License-Identifier: Apache-2.0
"""The journal stays small, and what leaves it is in the archive first: each frame in one place."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.frame import Stage
from heqis_core.io.journal import Journal
from heqis_core.io.journal_check import check
from heqis_core.testing import wait_until
from heqis_core.testing_journal import assert_same_frame, make_frame
from heqis_supervisor.retention import Retention
from heqis_supervisor.store import Dropping, Store

WIDE = tuple(f'{i:06d}.SH' for i in range(400))
"""A frame of these is some 15 kB."""


class Gate:
    """A gate that publishes everything; readers acknowledge while `received`."""

    def __init__(self) -> None:
        self.received = True
        self.published: list[int] = []

    def judge(self, decisions: Decisions) -> Decisions:
        return decisions

    def settle(self, durable: bool) -> None:
        """Nothing is remembered of what was judged."""

    def ready(self) -> bool:
        return True

    def acknowledged(self) -> bool:
        return self.received

    def publish_frames(self, decisions: Sequence[Decisions], new: Sequence[bool]) -> bool:
        self.published += [item.seq for item, fresh in zip(decisions, new, strict=True) if fresh]
        return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'journal.sqlite'


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def store(path: Path, gate: Gate) -> Iterator[Store]:
    store = Store()
    store.open(path, max_events=0)
    store.attach(gate, batch=16, queue=10_000)
    yield store
    store.close()


def fill(store: Store, first: int, last: int) -> None:
    for index in range(first, last):
        assert store.put_decisions(make_frame(index, symbols=WIDE))
    wait_until(lambda: store.pending == 0, 30)


def until_published(path: Path, position: int) -> None:
    with Journal.open(path, read_only=True) as journal:
        wait_until(lambda: journal.published() >= position, 10)


def keeper(store: Store, path: Path, **limits: int) -> Retention:
    limits = {'keep_mb': 2, 'keep_events': 1000} | limits
    return Retention(store, path, folder=path.parent / 'archive', **limits)


def settle(retention: Retention, store: Store) -> None:
    """Look until nothing is left to do."""
    for _ in range(5):
        retention.look()
        assert retention.error == ''
        wait_until(lambda: not store.dropping, 20)


def archived_seqs(path: Path) -> list[int]:
    files = sorted((path.parent / 'archive').glob('decisions-*.parquet'))
    tables = [parquet.read_table(file, columns=['seq', 'symbol']) for file in files]
    return sorted(
        seq
        for table in tables
        for seq, symbol in zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
        if symbol == WIDE[0]
    )


def test_it_shrinks_to_its_size_and_each_frame_is_in_the_archive_or_in_the_journal(
    path: Path, store: Store, gate: Gate
) -> None:
    fill(store, 0, 400)
    until_published(path, 400)
    before = path.stat().st_size
    retention = keeper(store, path)
    settle(retention, store)
    with Journal.open(path, read_only=True) as journal:
        assert journal.used_bytes() <= 2_000_000
        assert check(journal).findings == []
        kept = {frame.seq: frame for frame in journal.frames()}
        assert journal.free_pages() <= 0.05 * 2_000_000 / 4096
    assert archived_seqs(path) == [seq for seq in range(400) if seq not in kept]
    assert max(kept) == 399
    for seq, frame in kept.items():
        frame.stamps[Stage.GATED] = make_frame(seq).stamps[Stage.GATED]
        assert_same_frame(frame, make_frame(seq, symbols=WIDE))
    store._journal._db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    assert path.stat().st_size < before / 2
    fill(store, 400, 420)
    assert gate.published == list(range(420))


def test_the_archive_says_what_the_frames_said(path: Path, store: Store) -> None:
    fill(store, 0, 300)
    until_published(path, 300)
    with Journal.open(path, read_only=True) as journal:
        committed_ns = int(next(journal.frames()).stamps[Stage.COMMITTED])
    settle(keeper(store, path), store)
    (file, *_) = sorted((path.parent / 'archive').glob('decisions-*.parquet'))
    table = parquet.read_table(file)
    rows = table.slice(0, len(WIDE)).to_pydict()
    first = make_frame(0, symbols=WIDE)
    assert rows['symbol'] == list(WIDE)
    assert rows['epoch'][0] == first.epoch
    for name in ('score', 'target_position', 'predicted_return'):
        np.testing.assert_array_equal(np.array(rows[name], 'f4'), getattr(first, name))
    np.testing.assert_array_equal(np.array(rows['p_up'], 'f4'), first.probabilities[:, 2])
    assert set(rows['committed_ns']) == {committed_ns}


def test_what_no_reader_has_acknowledged_stays_whatever_the_size(
    path: Path, store: Store, gate: Gate
) -> None:
    fill(store, 0, 50)
    until_published(path, 50)
    gate.received = False
    fill(store, 50, 300)
    settle(keeper(store, path, keep_mb=1), store)
    with Journal.open(path, read_only=True) as journal:
        assert [frame.seq for frame in journal.unpublished()] == list(range(50, 300))
        assert journal.counts()['frames'] >= 250
    assert set(archived_seqs(path)) <= set(range(50))


def test_a_frame_that_was_dropped_never_counts_as_new_again(
    path: Path, store: Store, gate: Gate
) -> None:
    fill(store, 0, 300)
    until_published(path, 300)
    settle(keeper(store, path), store)
    assert 3 in archived_seqs(path)
    said = len(gate.published)
    fill(store, 0, 5)
    fill(store, 300, 301)
    assert gate.published[said:] == [300]
    assert store.counters['duplicates'] == 5


def test_the_newest_frame_of_each_stream_stays(path: Path, store: Store) -> None:
    assert store.put_decisions(make_frame(0, symbols=WIDE, stream='ended'))
    fill(store, 1, 300)
    until_published(path, 300)
    settle(keeper(store, path), store)
    with Journal.open(path, read_only=True) as journal:
        assert {name: frame.seq for name, frame in journal.newest().items()} == {
            'ended': 0,
            's': 299,
        }
        assert journal.newest()['ended'].stamps[Stage.COMMITTED] > 0, 'with the time of its commit'
        assert check(journal).findings == []


def test_killed_after_the_archive_was_written_nothing_is_twice_in_it(
    path: Path, store: Store, tmp_path: Path
) -> None:
    fill(store, 0, 300)
    until_published(path, 300)
    store.set_meta('name', 'a-name')
    with store._stepping:  # the kill comes before anything is dropped
        keeper(store, path).look()
        folder = tmp_path / 'after'
        folder.mkdir()
        for file in (path.name, f'{path.name}-wal'):
            shutil.copy(path.parent / file, folder / file)
        shutil.copytree(path.parent / 'archive', folder / 'archive')
    again, other = Store(), folder / path.name
    again.open(other, max_events=0)
    again.attach(Gate(), batch=16, queue=100)
    try:
        settle(keeper(again, other), again)
    finally:
        again.close()
    with Journal.open(other, read_only=True) as journal:
        kept = [frame.seq for frame in journal.frames()]
    assert sorted(archived_seqs(other) + kept) == list(range(300))


def test_an_archive_that_cannot_be_written_drops_nothing_and_says_so(
    path: Path, store: Store
) -> None:
    fill(store, 0, 300)
    until_published(path, 300)
    (path.parent / 'archive').write_text('a file, no folder')
    retention = keeper(store, path)
    retention.look()
    assert 'give it a folder' in retention.error
    assert not store.dropping
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()['frames'] == 300
    (path.parent / 'archive').unlink()
    settle(retention, store)
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()['frames'] < 300


def test_older_events_go_into_the_archive_too(path: Path, store: Store) -> None:
    events = [Event(n, Level.INFO, 'a', 'k', 's', f'{n}') for n in range(1500)]
    for i in range(0, 1500, 500):
        for event in events[i : i + 500]:
            store.put_event(event)
        wait_until(lambda: not store._events, 10)
    settle(keeper(store, path, keep_events=200), store)
    (file,) = (path.parent / 'archive').glob('events-*.parquet')
    with Journal.open(path, read_only=True) as journal:
        kept = [event.text for event in journal.events()]
    assert len(kept) == 200
    assert parquet.read_table(file)['text'].to_pylist() + kept == [e.text for e in events]


def test_dropping_delays_no_commit_by_more_than_one_step(path: Path, store: Store) -> None:
    fill(store, 0, 500)
    until_published(path, 500)
    retention = keeper(store, path, keep_mb=1)
    steps: list[float] = []
    drop_some = store._drop_some

    def timed(journal: Journal) -> None:
        start_s = time.perf_counter()
        drop_some(journal)
        steps.append(time.perf_counter() - start_s)

    store._drop_some = timed  # type: ignore[method-assign]
    worker = threading.Thread(target=retention.look)
    worker.start()
    index = 500
    while worker.is_alive() or store.dropping:
        fill(store, index, index + 1)
        index += 1
    worker.join()
    assert retention.error == ''
    assert len(steps) > 10, 'little by little'
    assert max(steps) < 2.0, 'on a machine that does other things too'
    with Journal.open(path, read_only=True) as journal:
        assert journal.last_position() == index
        assert journal.counts()['frames'] < index
        assert check(journal).findings == []


def test_an_order_that_cannot_be_carried_out_is_counted_and_commits_go_on(
    path: Path, store: Store, gate: Gate
) -> None:
    refuse = "SELECT RAISE(FAIL, 'no') WHERE NEW.key LIKE 'archived%'"
    with store._stepping:
        store._journal._db.execute(
            f'CREATE TEMP TRIGGER no BEFORE INSERT ON main.meta BEGIN {refuse}; END'
        )
    store.drop(Dropping({'frames': 1}, (), 0, 0))
    wait_until(lambda: store.counters['drop_errors'] == 1, 10)
    fill(store, 0, 3)
    assert gate.published == [0, 1, 2]
    assert store.error == ''
