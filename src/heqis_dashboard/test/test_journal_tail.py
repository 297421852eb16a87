# SPDX-License-Identifier: Apache-2.0
"""The tail of a journal: the newest first, then each frame once, whatever becomes of the file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.io.journal import Journal
from heqis_core.testing_link import make_decisions
from heqis_dashboard.journal_tail import BATCH, EVENTS, JournalTail


def write(path: Path, *seqs: int) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_decisions(seq) for seq in seqs])


def seqs_of(frames: list[Decisions]) -> list[int]:
    return [frame.seq for frame in frames]


def look(tail: JournalTail) -> list[int]:
    """Look once; there must be no error."""
    frames, _ = tail.look()
    assert tail.error == ''
    return seqs_of(frames)


def move_away(path: Path) -> None:
    """Move a journal away as its messages say: with all its files."""
    for file in path.parent.glob(f'{path.name}*'):
        file.rename(file.with_name(f'old-{file.name}'))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'state' / 'journal.sqlite3'


def test_missing_journal_is_an_error_that_names_it_until_it_appears(path: Path) -> None:
    tail = JournalTail(path, 10)
    assert tail.error == ''
    for _ in range(2):
        assert tail.look() == ([], [])
        assert str(path) in tail.error
        assert 'no journal' in tail.error
    write(path, 1, 2)
    assert look(tail) == [1, 2]
    assert look(tail) == []


def test_frames_come_whole_and_with_the_time_of_their_commit(path: Path) -> None:
    write(path, 3)
    ((frame,), _) = JournalTail(str(path), 10).look()
    expected = make_decisions(3)
    assert (frame.symbols, frame.event_time_ns) == (expected.symbols, expected.event_time_ns)
    np.testing.assert_array_equal(frame.probabilities, expected.probabilities)
    assert frame.stamps[-1] > 1_600_000_000 * 10**9


@given(
    before=st.integers(0, 12),
    frames=st.integers(1, 8),
    commits=st.lists(st.integers(0, 5), max_size=6),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_first_look_takes_the_newest_and_every_later_one_what_was_committed_since(
    tmp_path_factory: pytest.TempPathFactory, before: int, frames: int, commits: list[int]
) -> None:
    path = tmp_path_factory.mktemp('journal') / 'journal.sqlite3'
    with Journal.open(path) as journal:
        journal.commit([make_decisions(seq) for seq in range(before)])
        tail, n = JournalTail(path, frames), before
        assert look(tail) == list(range(max(0, before - frames), before))
        for count in commits:
            journal.commit([make_decisions(seq) for seq in range(n, n + count)])
            journal.commit([make_decisions(0)] if n else [])
            assert look(tail) == list(range(n, n + count))
            n += count
        tail.close()


def test_no_look_takes_more_than_a_batch_and_none_is_left_out(path: Path) -> None:
    n = 2 * BATCH + 7
    write(path, *range(n))
    tail = JournalTail(path, n - 1)
    found = [look(tail) for _ in range(4)]
    assert [len(batch) for batch in found] == [BATCH, BATCH, 6, 0]
    assert [seq for batch in found for seq in batch] == list(range(1, n))


def test_last_events_come_with_the_first_look_that_works_and_never_again(path: Path) -> None:
    events = [Event(n, Level.INFO, 's', 'k', 'x', str(n)) for n in range(EVENTS + 9)]
    tail = JournalTail(path, 10)
    assert tail.look() == ([], [])
    with Journal.open(path) as journal:
        journal.add_events(events)
        assert tail.look() == ([], events[-EVENTS:])
        journal.add_events(events[:1])
        assert tail.look() == ([], [])
    tail.close()


def test_closed_tail_goes_on_where_it_was(path: Path) -> None:
    write(path, 1, 2)
    tail = JournalTail(path, 1)
    tail.close()
    assert look(tail) == [2]
    tail.close()
    write(path, 3, 4, 5)
    assert look(tail) == [3, 4, 5]


def test_journal_that_was_replaced_is_read_anew_from_its_newest_frames(path: Path) -> None:
    write(path, *range(10))
    tail = JournalTail(path, 3)
    assert look(tail) == [7, 8, 9]
    move_away(path)
    write(path, *range(20, 40))
    assert look(tail) == [37, 38, 39]
    write(path, 40)
    assert look(tail) == [40]


def test_journal_that_was_deleted_and_made_anew_is_read_anew(path: Path) -> None:
    write(path, *range(10))
    tail = JournalTail(path, 20)
    look(tail)
    for file in path.parent.iterdir():
        file.unlink()
    assert tail.look() == ([], [])
    assert str(path) in tail.error
    # The file system may well give the new file the number of the old one.
    write(path, *range(20, 35))
    assert look(tail) == list(range(20, 35))


def test_journal_over_which_a_shorter_one_was_copied_is_read_anew(path: Path) -> None:
    write(path, *range(10))
    write(path.parent / 'other', 20, 21)
    tail = JournalTail(path, 20)
    look(tail)
    tail.close()
    number = path.stat().st_ino
    path.write_bytes((path.parent / 'other').read_bytes())
    assert path.stat().st_ino == number
    assert look(tail) == [20, 21]


@pytest.mark.parametrize('open_before', [True, False])
def test_damaged_journal_is_an_error_that_names_it_until_a_sound_one_is_there(
    path: Path, open_before: bool
) -> None:
    write(path, *range(10))
    sound = path.read_bytes()
    tail = JournalTail(path, 5)
    if open_before:
        look(tail)
        tail.close()
    path.write_bytes(b'no database at all ' * 1000)
    for _ in range(2):
        assert tail.look() == ([], [])
        assert f'journal {path} is damaged' in tail.error
        assert 'journal_repair' in tail.error
    path.write_bytes(sound)
    assert look(tail) == ([] if open_before else [5, 6, 7, 8, 9])
    write(path, 10)
    assert look(tail) == [10]


def test_frame_that_fails_its_checksum_is_named_and_nothing_of_it_is_shown(path: Path) -> None:
    write(path, 1, 2)
    data = path.read_bytes()
    body = make_decisions(2).score.tobytes()
    assert data.count(body) == 1
    path.write_bytes(data.replace(body, bytes(len(body))))
    tail = JournalTail(path, 10)
    assert tail.look() == ([], [])
    assert str(path) in tail.error
    assert 'fails its checksum' in tail.error


def test_journal_that_may_not_be_looked_at_is_an_error_that_names_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, 1)

    def refuse(self: Path, **_: bool) -> None:
        raise PermissionError(13, 'Permission denied', str(self))

    tail = JournalTail(path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'stat', refuse)
        assert tail.look() == ([], [])
    assert str(path) in tail.error
    assert 'Permission denied' in tail.error
    assert look(tail) == [1]


def test_folder_in_place_of_a_journal_is_an_error_that_names_it(path: Path) -> None:
    path.mkdir(parents=True)
    tail = JournalTail(path, 10)
    assert tail.look() == ([], [])
    assert str(path) in tail.error


def test_reader_has_each_frame_once_and_in_order_while_another_thread_writes(path: Path) -> None:
    n, faults = 300, []
    started = threading.Event()

    def keep_writing() -> None:
        try:
            with Journal.open(path) as journal:
                started.set()
                for seq in range(0, n, 3):
                    journal.commit([make_decisions(seq + more) for more in range(3)])
        except Exception as error:
            faults.append(error)
            started.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    assert started.wait(60)
    tail, found = JournalTail(path, n), []
    while writer.is_alive():
        found += look(tail)
    writer.join()
    found += look(tail)
    tail.close()
    assert faults == []
    assert found == list(range(n))
