# SPDX-License-Identifier: Apache-2.0
"""What the released signals add up to: durable with them, and longer than they are."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal
from heqis_core.io.journal_repair import repair
from heqis_core.testing_journal import SYMBOLS, kill_writer, make_frame


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'journal.sqlite'


def expected(frames: Iterable[Decisions]) -> dict[tuple[str, str], int]:
    """Return since when each symbol is held, from the frames in the order of their commit."""
    held: dict[tuple[str, str], int] = {}
    for frame in frames:
        for symbol, action in zip(frame.symbols, frame.action, strict=True):
            if action == Action.BUY:
                held.setdefault((frame.stream, symbol), frame.event_time_ns)
            elif action == Action.SELL:
                held.pop((frame.stream, symbol), None)
    return held


def held(journal: Journal) -> dict[tuple[str, str], int]:
    return {(row.stream, row.symbol): row.since_ns for row in journal.holdings()}


def by_commit(journal: Journal) -> list[Decisions]:
    return journal.newer(0, 10**6)[0]


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 40), max_size=6), min_size=1, max_size=8),
    streams=st.lists(st.sampled_from('st'), min_size=41, max_size=41),
)
def test_holdings_are_what_the_new_frames_add_up_to(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], streams: list[str]
) -> None:
    path = tmp_path_factory.mktemp('holdings') / 'journal.sqlite'
    new: list[Decisions] = []
    for batch in batches:
        with Journal.open(path) as journal:
            items = [make_frame(i, stream=streams[i]) for i in batch]
            fresh = journal.fresh(items)
            assert journal.commit(items) == fresh, 'what was said before is what came of it'
            new += [item for item, is_new in zip(items, fresh, strict=True) if is_new]
            assert held(journal) == expected(new)


def test_a_refused_signal_moves_no_position(path: Path) -> None:
    frame = make_frame(1)
    frame.action[:] = Action.BUY
    with Journal.open(path) as journal:
        journal.commit([frame.refuse(np.array([True, False, False]), Reason.MAX_POSITIONS)])
        assert set(held(journal)) == {('s', SYMBOLS[1]), ('s', SYMBOLS[2])}
        journal.commit([frame])
        assert len(held(journal)) == 2, 'the same frame again releases nothing'


def test_a_commit_that_fails_leaves_them_as_they_were(path: Path) -> None:
    frame = make_frame(1)
    frame.action[:] = Action.BUY
    broken = replace(frame, event_time_ns=2, score=frame.score[:1])
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match='the columns have'):
            journal.commit([frame, broken])
        assert held(journal) == {}
        journal.commit([frame])
        assert len(held(journal)) == 3


def test_they_outlive_the_frames_that_are_dropped(path: Path) -> None:
    frames = [make_frame(i) for i in range(40)]
    with Journal.open(path) as journal:
        journal.commit(frames)
        journal.mark_published()
        journal.flush()
        journal.set_archived('frames', 40)
        while journal.drop_archived(journal.newest_positions()):
            pass
        assert journal.counts()['frames'] == 1
        assert held(journal) == expected(frames)
    with Journal.open(path) as journal:
        later = make_frame(50)
        journal.commit([later])
        assert held(journal) == expected([*frames, later])


def test_after_a_kill_they_belong_to_the_frames_that_are_there(path: Path) -> None:
    rng = random.Random(3)
    for _ in range(4):
        kill_writer(path, rng)
        with Journal.open(path) as journal:
            assert held(journal) == expected(by_commit(journal))


def test_the_signals_of_a_stream_since_a_time(path: Path) -> None:
    frames = [make_frame(i) for i in range(10)]
    late = replace(make_frame(8), revision=1)
    with Journal.open(path) as journal:
        journal.commit([*frames, make_frame(9, stream='t'), late])
        wanted = {(item.event_time_ns, int(item.is_signal().sum())) for item in frames[6:]}
        found = journal.released_since('s', frames[6].event_time_ns)
        assert set(found) == {(at, n) for at, n in wanted if n}
        assert found.count((late.event_time_ns, int(late.is_signal().sum()))) == 2
        assert journal.released_since('nobody', 0) == []
        at = {'s': late.event_time_ns, 't': frames[9].event_time_ns}
        assert journal.last_committed() == at


def older(path: Path) -> None:
    """Make a journal what the version before wrote."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript('DROP TABLE holdings; PRAGMA user_version=1;')


def test_a_journal_of_the_version_before_gets_them_from_its_signals(path: Path) -> None:
    frames = [make_frame(i, stream='st'[i % 2]) for i in range(30)]
    with Journal.open(path) as journal:
        journal.commit(frames)
        assert journal.counts()['signals'] > 20
    older(path)
    with Journal.open(path, read_only=True) as journal:
        assert len(list(journal.frames())) == 30
        with pytest.raises(JournalError, match='an older version wrote it'):
            journal.holdings()
    with Journal.open(path) as journal:
        assert set(held(journal)) == set(expected(frames))
        journal.commit([make_frame(31)])
        assert set(held(journal)) == set(expected([*frames, make_frame(31)]))


def test_a_repair_keeps_them_although_frames_are_lost(path: Path) -> None:
    frames = [make_frame(i) for i in range(300)]
    with Journal.open(path) as journal:
        journal.commit(frames)
        wanted = held(journal)
    data = bytearray(path.read_bytes())
    middle = 4096 * (len(data) // 8192)
    data[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(data)
    saved, lost = repair(path, f'{path}.repaired')['frames']
    assert saved < 300 <= saved + lost
    with Journal.open(f'{path}.repaired') as journal:
        assert held(journal) == wanted
        journal.commit([make_frame(301)])
        assert set(held(journal)) == set(expected([*frames, make_frame(301)]))
