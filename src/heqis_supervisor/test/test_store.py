# SPDX-License-Identifier: Apache-2.0
"""Nothing is published before it is durable, and nothing durable stays unpublished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions, Predictions, Reason
from heqis_core.errors import ConfigError, JournalError
from heqis_core.frame import Stage
from heqis_core.io.journal import Journal
from heqis_core.testing import wait_until
from heqis_supervisor.store import Store


class Recorder:
    """A gate that lets everything through and remembers what it was told to publish."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published: list[tuple[int, bool]] = []
        self.durable_at_publication: list[bool] = []
        self.listening = True
        self.works = True
        self.received = True
        self.judged = 0
        self.settled: list[bool] = []
        self.block = threading.Event()
        self.block.set()

    def judge(self, decisions: Decisions) -> Decisions:
        self.judged += 1
        assert self.block.wait(10)
        return decisions

    def settle(self, durable: bool) -> None:
        self.settled.append(durable)

    def ready(self) -> bool:
        return self.listening

    def acknowledged(self) -> bool:
        return self.received

    def publish_frames(self, decisions: Sequence[Decisions], new: Sequence[bool]) -> bool:
        with Journal.open(self.path, read_only=True) as journal:
            found = {item.seq for item in journal.frames()}
        for item, fresh in zip(decisions, new, strict=True):
            self.published.append((item.seq, fresh))
            self.durable_at_publication.append(item.seq in found)
        return self.works


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'journal.sqlite'


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store()
    store.open(path)
    yield store
    if store._users:
        store.close()


@pytest.fixture
def gate(path: Path) -> Recorder:
    return Recorder(path)


@pytest.fixture
def make(frame) -> Callable[[int], Decisions]:
    return lambda seq: frame(seq, 1000 + seq, 10**18)


def until(condition: Callable[[], bool], what: str = '') -> None:
    wait_until(condition, 10, what)


def test_signals_are_durable_before_anyone_hears_of_them(
    store: Store, gate: Recorder, make
) -> None:
    store.attach(gate, batch=8, queue=1000)
    items = [make(seq) for seq in range(100)]
    for item in items:
        assert store.put_decisions(item)
    until(lambda: len(gate.published) == 100)
    assert gate.published == [(seq, True) for seq in range(100)]
    assert all(gate.durable_at_publication)
    assert all(item.stamps[Stage.GATED] <= item.stamps[Stage.COMMITTED] for item in items)
    assert store.counters['frames'] == 100
    assert store.commit_us > 0


def test_a_frame_that_comes_again_is_answered_but_is_not_new(
    store: Store, gate: Recorder, make
) -> None:
    store.attach(gate, batch=8, queue=1000)
    store.put_decisions(make(1))
    until(lambda: len(gate.published) == 1)
    store.put_decisions(replace(make(1), epoch=9))
    until(lambda: len(gate.published) == 2)
    assert gate.published == [(1, True), (1, False)]
    assert store.counters['duplicates'] == 1


def test_only_new_frames_are_judged_and_settled_when_they_are_durable(
    path: Path, store: Store, gate: Recorder, make
) -> None:
    with store._stepping:  # the thread stands still: all of them are one batch
        store.attach(gate, batch=8, queue=1000)
        for seq in (1, 2, 1, 2, 3):
            store.put_decisions(make(seq))
    until(lambda: len(gate.published) == 5)
    assert gate.published == [(1, True), (2, True), (1, False), (2, False), (3, True)]
    assert gate.judged == 3
    assert gate.settled[-1]
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()['frames'] == 3
        assert journal.counts()['conflicts'] == 0


def test_what_could_not_be_written_is_settled_as_not_released_and_judged_again(
    store: Store, gate: Recorder, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, failures = Journal.commit, [JournalError('disk full'), JournalError('disk full')]

    def fail(journal: Journal, decisions, **options) -> list[bool]:
        if failures and decisions:  # the thread may have committed before the first one came
            raise failures.pop()
        return commit(journal, decisions, **options)

    monkeypatch.setattr(Journal, 'commit', fail)
    store.attach(gate, batch=8, queue=1000)
    store.put_decisions(make(1))
    until(lambda: gate.published == [(1, True)])
    assert gate.settled[:3] == [False, False, True]
    assert gate.judged == 3


def test_refusals_are_counted_by_reason_once_for_each_frame(
    store: Store, gate: Recorder, make
) -> None:
    refused = make(1).refuse(np.ones(4, bool), Reason.MAX_BUYS)
    store.attach(gate, batch=8, queue=1000)
    for item in (refused, refused, make(2), make(3).refuse(np.ones(4, bool), Reason.STALE)):
        store.put_decisions(item)
    until(lambda: len(gate.published) == 4)
    counted = {k: n for k, n in store.counters.items() if k.startswith('refused.') and n}
    assert counted == {'refused.max_buys': 2, 'refused.stale': 2}


def test_what_was_not_published_is_published_at_the_next_start(path: Path, make) -> None:
    with Journal.open(path) as journal:
        journal.commit([make(1)])
        journal.mark_published()
        journal.commit([make(2), make(3)])
    store, gate = Store(), Recorder(path)
    gate.listening = False
    store.open(path)
    store.attach(gate, batch=8, queue=1000)
    store.put_decisions(make(4))
    store.set_meta('a', 'b')  # the thread runs
    assert gate.published == [], 'nobody would hear it yet'
    gate.listening = True
    until(lambda: len(gate.published) == 3)
    assert gate.published == [(2, True), (3, True), (4, True)]
    assert store.counters['republished'] == 2
    store.close()
    with Journal.open(path) as journal:
        assert journal.unpublished() == []


def test_what_no_reader_has_acknowledged_is_published_again_after_a_kill(
    path: Path, store: Store, gate: Recorder, make
) -> None:
    store.attach(gate, batch=8, queue=1000)
    store.put_decisions(make(1))
    until(lambda: len(gate.published) == 1)
    until(lambda: mark(path) == '1')
    gate.received = False
    store.put_decisions(make(2))
    until(lambda: len(gate.published) == 2)
    store.set_meta('some', 'thing')
    assert mark(path) == '1'
    gate.received = True
    until(lambda: mark(path) == '2')


def mark(path: Path) -> str | None:
    with Journal.open(path, read_only=True) as journal:
        return journal.get_meta('published')


def test_frames_whose_publication_failed_are_published_later(
    store: Store, gate: Recorder, make
) -> None:
    gate.works = False
    store.attach(gate, batch=8, queue=1000)
    store.put_decisions(make(1))
    until(lambda: len(gate.published) >= 2)
    gate.works = True
    store.put_decisions(make(2))
    until(lambda: (2, True) in gate.published)
    assert gate.published[-2:] == [(1, True), (2, True)]


def test_a_full_queue_refuses_and_counts(store: Store, gate: Recorder, make) -> None:
    gate.block.clear()
    store.attach(gate, batch=1, queue=5)
    taken = [store.put_decisions(make(seq)) for seq in range(10)]
    assert taken == [True] * 5 + [False] * 5
    assert store.counters['overflow'] == 5
    gate.block.set()
    until(lambda: len(gate.published) == 5)


def test_without_a_gate_decisions_are_refused_and_detaching_drops_what_waits(
    store: Store, gate: Recorder, make
) -> None:
    assert not store.put_decisions(make(0))
    gate.listening = False
    store.attach(gate, batch=1, queue=5)
    store.detach()
    assert not store.put_decisions(make(1))
    assert store.pending == 0


def test_events_and_predictions_are_written_and_their_losses_counted(path: Path) -> None:
    store = Store()
    store.open(path, queue=10, max_predictions=1000, max_events=1000)
    event = Event(1, Level.INFO, 'a', 'b', 'c', 'd')
    values = np.zeros((1, 2), np.float32), np.zeros((1, 2, 3), np.float32)
    predictions = Predictions('s', 1, 2, 3, 0, 'b', ('g',), 'g', ('x', 'y'), *values)
    with store._stepping:  # the thread stands still
        for _ in range(25):
            store.put_event(event)
            store.put_predictions(predictions)
    store.close()
    with Journal.open(path, read_only=True) as journal:
        counts = journal.counts()
    dropped = store.counters
    assert counts['events'] + dropped['events_dropped'] == 25
    assert counts['predictions'] + dropped['predictions_dropped'] == 25
    assert 10 <= counts['events'] <= 20


def test_a_full_disk_holds_decisions_and_they_flow_when_there_is_room(
    store: Store, gate: Recorder, frame
) -> None:
    journal = store._journal
    assert journal is not None
    with store._stepping:
        pages = journal._db.execute('PRAGMA page_count').fetchone()[0]
        journal._db.execute(f'PRAGMA max_page_count={pages}')
    store.attach(gate, batch=4, queue=1000)
    wide = tuple(f'{i:05d}' for i in range(2000))
    big = frame(0)
    columns = {
        name: np.resize(getattr(big, name), (2000, *getattr(big, name).shape[1:]))
        for name in ('action', 'reasons', 'score', 'target_position', 'probabilities')
    }
    for seq in range(4):
        store.put_decisions(
            replace(
                big,
                seq=seq,
                event_time_ns=seq,
                symbols=wide,
                predicted_return=np.zeros(2000, np.float32),
                valid_until_ns=np.full(2000, 10**18),
                **columns,
            )
        )
    until(lambda: store.counters['commit_errors'] > 0)
    assert 'make room' in store.error
    assert gate.published == []
    assert store.pending == 4
    with store._stepping:
        journal._db.execute('PRAGMA max_page_count=1000000')
    until(lambda: len(gate.published) == 4)
    until(lambda: store.error == '')
    assert store.pending == 0


def test_settings_are_durable_when_the_call_returns(path: Path, store: Store) -> None:
    store.set_meta('kill_switch', 'engaged')
    with Journal.open(path, read_only=True) as journal:
        assert journal.get_meta('kill_switch') == 'engaged'
    assert store.get_meta('kill_switch') == 'engaged'
    assert store.get_meta('nothing') is None


def test_a_setting_comes_after_the_frames_that_were_being_judged(
    store: Store, gate: Recorder, make
) -> None:
    gate.block.clear()
    store.attach(gate, batch=8, queue=8)
    store.put_decisions(make(1))
    until(lambda: gate.judged == 1)
    caller = threading.Thread(target=store.set_meta, args=('kill_switch', 'x'))
    caller.start()
    assert caller.is_alive()
    gate.block.set()
    caller.join(5)
    assert gate.published == [(1, True)]


def test_two_nodes_share_one_journal_and_the_last_frees_it(path: Path, tmp_path: Path) -> None:
    store = Store()
    store.open(path)
    store.open(path)
    with pytest.raises(ConfigError, match='give risk_gate and journal the same'):
        store.open(tmp_path / 'other.sqlite')
    store.close()
    with pytest.raises(JournalError, match='is being written by'):
        Journal.open(path)
    store.close()
    Journal.open(path).close()
    store.open(path)
    store.close()


def test_a_bug_in_the_thread_is_not_silent(store: Store, gate: Recorder, make) -> None:
    def broken(_: Decisions) -> Decisions:
        raise ValueError('a bug')

    gate.judge = broken  # type: ignore[method-assign]
    store.attach(gate, batch=1, queue=5)
    store.put_decisions(make(1))
    until(lambda: store.failure is not None)
    with pytest.raises(RuntimeError, match='a bug'):
        store.check()
