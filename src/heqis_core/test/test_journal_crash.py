# SPDX-License-Identifier: Apache-2.0
"""Killed at any point, cut at any byte: every signal that was acknowledged is there, once."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from heqis_core.control import Event, Level
from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal
from heqis_core.io.journal_check import check
from heqis_core.io.journal_repair import repair
from heqis_core.testing_journal import (
    SYMBOLS,
    assert_same_frame,
    check_after_crash,
    kill_writer,
    make_frame,
)

KILL_POINTS = int(os.environ.get('HEQIS_KILL_POINTS', '40'))
CUT_POINTS = int(os.environ.get('HEQIS_CUT_POINTS', '40'))
_KILLS_EACH = 4
"""Kills of writers of one journal, one after the other."""


def test_killed_at_random_points_under_load_every_committed_frame_is_there_once(
    tmp_path: Path,
) -> None:
    rng = random.Random(20240607)
    for point in range(0, KILL_POINTS, _KILLS_EACH):
        path = tmp_path / f'{point}.sqlite3'
        Journal.open(path).close()
        for _ in range(_KILLS_EACH):
            acknowledged = kill_writer(path, rng)
            n = check_after_crash(path, acknowledged)
        with Journal.open(path, read_only=True) as journal:
            found = check(journal)
        assert (found.findings, found.frames) == ([], n)


# --- the WAL ---


@pytest.fixture
def running(tmp_path: Path):
    """A journal with 40 commits of two frames in its WAL, and where in the WAL each ended."""
    journal = Journal.open(tmp_path / 'journal.sqlite3')
    wal = Path(f'{journal.path}-wal')
    ends = [wal.stat().st_size if wal.exists() else 0]
    for index in range(40):
        journal.commit([make_frame(2 * index), make_frame(2 * index + 1)])
        ends.append(wal.stat().st_size)
    yield journal, ends
    journal.close()


def copy_of(path: Path, name: str) -> Path:
    folder = path.parent / name
    folder.mkdir()
    for file in (path.name, f'{path.name}-wal'):
        shutil.copy(path.parent / file, folder / file)
    return folder / path.name


@pytest.mark.parametrize('rest', ['gone', 'zeros', 'noise'])
def test_a_wal_cut_at_any_byte_opens_with_whole_transactions_in_order(running, rest: str) -> None:
    journal, ends = running
    rng = random.Random(rest)
    for point in range(CUT_POINTS):
        copy = copy_of(journal.path, str(point))
        size = rng.randrange(ends[0], ends[-1] + 1)
        with open(f'{copy}-wal', 'r+b') as wal:
            wal.truncate(size)
            wal.seek(size)
            if rest != 'gone':
                left = ends[-1] - size
                wal.write(bytes(left) if rest == 'zeros' else rng.randbytes(left))
        whole = sum(end <= size for end in ends[1:])
        with Journal.open(copy) as found:
            frames = list(found.frames())
        # A byte of noise or zero may be the very byte that stood there.
        more = 2 if rest != 'gone' else 0
        assert 2 * whole <= len(frames) <= 2 * whole + more
        for seq, frame in enumerate(frames):
            assert_same_frame(frame, make_frame(seq))
        shutil.rmtree(copy.parent)


# --- the database ---


def test_power_lost_at_any_byte_of_a_checkpoint_loses_nothing(running) -> None:
    journal, _ = running
    rng = random.Random(11)
    journal._db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    old = journal.path.read_bytes()
    for index in range(80, 160, 2):
        journal.commit([make_frame(index), make_frame(index + 1)])
    before = copy_of(journal.path, 'before')
    journal._db.execute('PRAGMA wal_checkpoint(PASSIVE)')
    new = journal.path.read_bytes()
    assert old != new[: len(old)]
    for _ in range(CUT_POINTS):
        at = rng.randrange(len(new) + 1)
        copy = copy_of(before, str(at))
        copy.write_bytes(new[:at] + old[at:])
        with Journal.open(copy) as found:
            assert [frame.seq for frame in found.frames()] == list(range(160))
        shutil.rmtree(copy.parent)


@pytest.fixture(scope='module')
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[int, int]]:
    """A journal of 400 frames, some of them wide; by its size after a checkpoint, how many then.

    The first checkpoint comes when the first leaf has been split: until then its rows move.
    """
    path = tmp_path_factory.mktemp('grown') / 'journal.sqlite3'
    wide = tuple(f'{i:06d}.SH' for i in range(300))
    synced = {0: 0}
    with Journal.open(path) as journal:
        for index in range(0, 400, 5):
            frames = [frame_of(i, wide) for i in range(index, index + 5)]
            journal.commit(frames, events=[event_of(index)])
            if index % 20 == 15:
                journal._db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
                synced[path.stat().st_size] = index + 5
    return path.read_bytes(), synced


@cache
def frame_of(index: int, wide: tuple[str, ...]):
    return make_frame(index, symbols=wide if index % 50 == 7 else SYMBOLS)


def event_of(index: int) -> Event:
    return Event(index, Level.WARN, 'supervisor', 'killed', 'compute', f'event {index}')


def test_a_database_cut_at_any_byte_is_refused_and_repair_saves_what_was_synced_before_it(
    tmp_path: Path, grown: tuple[bytes, dict[int, int]]
) -> None:
    data, synced = grown
    rng = random.Random(5)
    wide = tuple(f'{i:06d}.SH' for i in range(300))
    saved_some = 0
    for at in (rng.randrange(1, len(data)) for _ in range(CUT_POINTS // 2)):
        path = tmp_path / f'{at}' / 'journal.sqlite3'
        path.parent.mkdir()
        path.write_bytes(data[:at])
        due = max(n for size, n in synced.items() if size <= at)
        with pytest.raises(JournalError, match=r'journal_repair|no HEQIS journal'):
            Journal.open(path)
        if not due:
            with suppress(JournalError):  # nothing can be read: the message says to start anew
                repair(path, f'{path}.repaired')
            continue
        repair(path, f'{path}.repaired')
        with Journal.open(f'{path}.repaired') as found:
            frames = {frame.seq: frame for frame in found.frames()}
            events = list(found.events())
            assert check(found).findings == []
        assert set(range(due)) <= set(frames), f'cut at {at}'
        for seq, frame in frames.items():
            assert_same_frame(frame, frame_of(seq, wide))
        assert all(event == event_of(event.stamp_ns) for event in events)
        saved_some += 1
        shutil.rmtree(path.parent)
    assert saved_some > CUT_POINTS // 4


@pytest.mark.parametrize('seed', range(6))
def test_any_page_of_noise_costs_the_rows_in_it_alone(
    tmp_path: Path, grown: tuple[bytes, dict[int, int]], seed: int
) -> None:
    data, _ = grown
    rng = random.Random(seed)
    page = rng.randrange(2, len(data) // 4096)
    path = tmp_path / 'journal.sqlite3'
    path.write_bytes(data[: 4096 * page] + rng.randbytes(4096) + data[4096 * (page + 1) :])
    with pytest.raises(JournalError, match='journal_repair'):
        Journal.open(path)
    saved = repair(path, f'{path}.repaired')
    assert sum(saved['frames']) == 400
    assert saved['frames'][1] <= 20
    assert saved['events'][0] >= 40
