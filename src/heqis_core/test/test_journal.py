# SPDX-License-Identifier: Apache-2.0
"""The journal keeps each committed decision exactly once, whatever happens to its writer."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heqis_core.control import Event, Level
from heqis_core.decision import Action, Decisions, Predictions, Reason
from heqis_core.errors import JournalError
from heqis_core.frame import N_STAGES, Stage
from heqis_core.io.journal import Journal
from heqis_core.io.journal_check import check
from heqis_core.io.journal_repair import main as repair_main
from heqis_core.testing_journal import DAY_NS, SYMBOLS, assert_same_frame, make_frame


def predictions(index: int) -> Predictions:
    rng = np.random.default_rng(index)
    values = rng.normal(size=(2, 3)).astype(np.float32), rng.random((2, 3, 3)).astype(np.float32)
    return Predictions(
        's', 7, index, index * DAY_NS, 0, 'b', ('gru', 'lstm'), 'gru', SYMBOLS, *values
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'state' / 'journal.sqlite3'


# --- commit and read back ---


def test_a_frame_comes_back_bit_for_bit(path: Path) -> None:
    frame = make_frame(3)
    with Journal.open(path) as journal:
        assert journal.commit([frame]) == [True]
    with Journal.open(path, read_only=True) as journal:
        (found,) = journal.frames()
    assert_same_frame(found, frame)
    assert found.stamps[Stage.COMMITTED] == frame.stamps[Stage.COMMITTED]
    assert abs(found.stamps[Stage.COMMITTED] - time.time_ns()) < 60e9


def test_the_same_key_again_changes_nothing(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.commit([make_frame(0), make_frame(1)]) == [True, True]
        before = journal.signals_digest()
        again = replace(make_frame(1), epoch=5, stamps=np.zeros(N_STAGES, np.int64))
        assert journal.commit([again, make_frame(2), make_frame(2)]) == [False, True, False]
        assert again.stamps[Stage.COMMITTED] == 0
        counts = journal.counts()
        assert (counts['frames'], counts['conflicts'], journal.duplicates) == (3, 0, 2)
        assert before != journal.signals_digest()
        assert [frame.epoch for frame in journal.frames()] == [
            make_frame(i).epoch for i in range(3)
        ]


@pytest.mark.parametrize('others', [('A', 'B', 'C'), SYMBOLS])
def test_a_batch_of_old_and_new_frames_keeps_the_new_ones_whole(
    path: Path, others: tuple[str, ...]
) -> None:
    fresh = [make_frame(i, symbols=others) for i in (1, 2)]
    with Journal.open(path) as journal:
        journal.commit([make_frame(0)])
    with Journal.open(path) as journal:
        assert journal.commit([fresh[0], make_frame(0), fresh[1]]) == [True, False, True]
        assert journal.commit([make_frame(3, symbols=others)]) == [True]
        assert [frame.seq for frame in journal.frames()] == [0, 1, 2, 3]
        assert [frame.symbols for frame in journal.frames()][1:] == [others] * 3
        assert check(journal).findings == []


def test_other_words_under_the_same_key_are_a_conflict_and_the_first_stays(path: Path) -> None:
    first = make_frame(1)
    other = replace(first, score=first.score + np.float32(0.5))
    with Journal.open(path) as journal:
        journal.commit([first])
        assert journal.commit([other, replace(first, bundle_id='ffff')]) == [False, False]
        assert journal.counts()['conflicts'] == 2
        assert [event.kind for event in journal.events()] == ['decision_conflict'] * 2
        (found,) = journal.frames()
        assert_same_frame(found, first)


def test_the_gates_own_refusal_is_no_conflict(path: Path) -> None:
    frame = replace(make_frame(1), action=np.array([2, 3, 1], np.uint8))
    with Journal.open(path) as journal:
        journal.commit([frame.refuse(np.array([True, False, False]), Reason.STALE)])
        journal.commit([frame, frame.refuse(np.array([True, True, True]), Reason.KILL_SWITCH)])
        counts = journal.counts()
    assert (counts['conflicts'], counts['signals'], counts['refused']) == (0, 1, 1)


@pytest.mark.parametrize('away_first', [True, False])
def test_a_board_that_was_away_is_no_conflict_but_another_word_of_a_present_one_is(
    path: Path, away_first: bool
) -> None:
    whole = make_frame(1)
    away = replace(
        whole,
        reasons=np.where([True, False, False], Reason.BOARD_AWAY, whole.reasons).astype('u4'),
        action=np.where([True, False, False], Action.NONE, whole.action).astype('u1'),
        score=np.where([True, False, False], np.nan, whole.score).astype('f4'),
    )
    with Journal.open(path) as journal:
        first, second = (away, whole) if away_first else (whole, away)
        assert journal.commit([first]) == [True]
        assert journal.commit([second]) == [False]
        assert journal.counts()['conflicts'] == 0
        assert_same_frame(next(iter(journal.frames())), first)
        moved = replace(second, score=second.score + np.array([0, 0, 0.5], 'f4'))
        journal.commit([moved])
        assert journal.counts()['conflicts'] == 1


def test_counts_index_and_signals_by_symbol(path: Path) -> None:
    frames = [make_frame(i) for i in range(20)]
    frames[4] = frames[4].refuse(np.ones(3, bool), Reason.KILL_SWITCH)
    signals = sum(int(frame.is_signal().sum()) for frame in frames)
    refused = int(make_frame(4).is_signal().sum())
    with Journal.open(path) as journal:
        journal.commit(frames)
        counts, by_symbol = journal.counts(), journal.signals_by_symbol()
    assert (counts['decisions'], counts['signals'], counts['refused']) == (60, signals, refused)
    assert sum(by_symbol.values()) == signals
    rows = sqlite3.connect(path).execute('SELECT action, reasons FROM signal_index').fetchall()
    assert sum(action >= Action.BUY for action, _ in rows) == signals
    assert [r & Reason.KILL_SWITCH for a, r in rows if a == Action.NONE] == [
        Reason.KILL_SWITCH
    ] * refused


def test_last_event_time_and_newest_frame_of_each_stream(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.last_event_time_ns() is None
        journal.commit([make_frame(5), make_frame(2), make_frame(9, stream='other')])
        assert journal.last_event_time_ns() == make_frame(9).event_time_ns
        assert journal.last_event_time_ns('s') == make_frame(5).event_time_ns
        assert journal.last_event_time_ns('nobody') is None
        assert {name: frame.seq for name, frame in journal.newest().items()} == {
            's': 5,
            'other': 9,
        }


def test_a_reader_takes_what_was_committed_since_it_last_asked(path: Path) -> None:
    frames = [make_frame(index) for index in range(7)]
    with Journal.open(path) as journal, Journal.open(path, read_only=True) as reader:
        assert reader.newer(0, 10) == ([], 0)
        journal.commit(frames[:5])
        journal.commit(frames[:2])
        first, position = reader.newer(0, 3)
        rest, position = reader.newer(position, 10)
        assert [item.seq for item in (*first, *rest)] == [0, 1, 2, 3, 4]
        assert position == reader.last_position() == 5
        journal.commit(frames[5:])
        assert [item.seq for item in reader.newer(position, 10)[0]] == [5, 6]


def test_the_last_events_come_oldest_first(path: Path) -> None:
    events = [Event(n, Level.INFO, 's', 'k', 'x', str(n)) for n in range(5)]
    with Journal.open(path) as journal:
        journal.add_events(events)
        assert journal.last_events(2) == events[-2:]
        assert journal.last_events(99) == events


def test_events_and_predictions_are_kept_up_to_their_limit(path: Path) -> None:
    events = [
        Event(i, Level.WARN, 'supervisor', 'killed', 'compute', f'no {i}') for i in range(600)
    ]
    with Journal.open(path, max_predictions=50, max_events=100) as journal:
        for i in range(600):
            journal.commit((), predictions=[predictions(i)], events=[events[i]])
        counts = journal.counts()
        assert 50 <= counts['predictions'] <= 50 + 256
        assert counts['predictions'] + counts['predictions_trimmed'] == 600
        assert counts['events'] + counts['events_trimmed'] == 600
        assert list(journal.events()) == events[-counts['events'] :]
        last = list(journal.predictions())[-1]
    assert last.generators == ('gru', 'lstm')
    np.testing.assert_array_equal(last.log_return, predictions(599).log_return)
    np.testing.assert_array_equal(last.probabilities, predictions(599).probabilities)


def test_a_column_of_the_wrong_length_is_refused_and_nothing_is_written(path: Path) -> None:
    bad = replace(make_frame(1), score=np.zeros(2, np.float32))
    with Journal.open(path) as journal:
        with pytest.raises(JournalError, match='107 bytes, not 37 for each of 3 symbols'):
            journal.commit([make_frame(0), bad])
        assert journal.counts()['frames'] == 0
        assert journal.commit([make_frame(0)]) == [True]


# --- order and digest ---


def reference_digest(frames: list[Decisions]) -> str:
    """The digest as documented, one decision at a time."""
    cells = {}
    for frame in frames:
        for s, symbol in enumerate(frame.symbols):
            record = struct.pack('<qIB', frame.event_time_ns, frame.revision, int(frame.action[s]))
            nan = np.isnan(frame.score[s])
            record += bytes.fromhex('0000c07f') if nan else struct.pack('<f', frame.score[s])
            record += struct.pack('<I', int(frame.reasons[s]))
            record += hashlib.sha256(frame.bundle_id.encode()).digest()
            key = (frame.event_time_ns, frame.revision)
            cells.setdefault((frame.stream.encode(), symbol.encode()), {})[key] = record
    digest = hashlib.sha256()
    for (stream, symbol), records in sorted(cells.items()):
        digest.update(
            struct.pack('<H', len(stream)) + stream + struct.pack('<H', len(symbol)) + symbol
        )
        digest.update(struct.pack('<Q', len(records)))
        for key in sorted(records):
            digest.update(records[key])
    return digest.hexdigest()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_digest_is_the_documented_one_in_whatever_order_frames_come(
    tmp_path: Path, data: st.DataObject
) -> None:
    keys = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 6),
                st.integers(0, 2),
                st.sampled_from(['a', 'b', 'ä']),
                st.sampled_from([SYMBOLS, SYMBOLS[::-1], SYMBOLS[1:], ('Ω', 'A')]),
            ),
            max_size=12,
            unique_by=lambda key: key[:3],
        )
    )
    frames = [
        make_frame(i, stream=stream, revision=r, symbols=names) for i, r, stream, names in keys
    ]
    name = f'{time.monotonic_ns()}.sqlite3'
    with Journal.open(tmp_path / name) as journal:
        journal.commit(frames)
        rows = [row[:4] for row in journal.decisions()]
        assert journal.signals_digest() == reference_digest(frames)
    wanted = [(f.stream, s, f.event_time_ns, f.revision) for f in frames for s in f.symbols]
    assert rows == sorted(wanted, key=lambda k: (k[0].encode(), k[1].encode(), *k[2:]))


def test_digest_does_not_depend_on_epoch_seq_stamps_or_batches(path: Path, tmp_path: Path) -> None:
    frames = [make_frame(i) for i in range(50)]
    with Journal.open(path) as journal:
        journal.commit(frames)
        one = journal.signals_digest()
    with Journal.open(tmp_path / 'other.sqlite3') as journal:
        for frame in reversed(frames):
            journal.commit([replace(frame, epoch=1, seq=0, stamps=np.zeros(N_STAGES, np.int64))])
        assert journal.signals_digest() == one
        journal.commit([replace(make_frame(50), action=np.full(3, Action.HOLD, np.uint8))])
        assert journal.signals_digest() != one


# --- latency ---


def test_latency_is_exact_and_counts_signals_at_their_first_delivery(path: Path) -> None:
    frames = [make_frame(i) for i in range(101)]
    base = time.time_ns() - 10_000_000_000
    for i, frame in enumerate(frames):
        frame.action[:] = Action.BUY if i else Action.HOLD
        frame.stamps[:] = base + np.arange(N_STAGES) * i * 1000
        frame.stamps[Stage.ENCODED] = 0
        frame.stamps[Stage.COMMITTED] = 0
    with Journal.open(path) as journal:
        journal.commit(frames)
        journal.commit([replace(frame, stamps=np.ones(N_STAGES, np.int64)) for frame in frames])
    with Journal.open(path, read_only=True) as journal:
        latency = journal.latency_us()
    assert 'encoded' not in latency
    assert latency['cleaned'] == {'p50': 50.0, 'p99': 99.0, 'count': 101}
    assert latency['sent'] == {'p50': 100.0, 'p99': 198.0, 'count': 101}, 'from FEATURES to SENT'
    committed = frames[0].stamps[Stage.COMMITTED]
    assert latency['ingest_to_signal']['count'] == 100
    assert latency['ingest_to_signal']['p50'] == pytest.approx((committed - base) / 1000)


def test_a_lost_commit_time_leaves_its_frames_out(path: Path) -> None:
    journal = Journal.open(path)
    journal.commit([make_frame(0)])
    journal.commit([make_frame(1), make_frame(2)])
    copy = crash_copy(journal)
    with Journal.open(copy) as found:
        stamps = {frame.seq: frame.stamps[Stage.COMMITTED] > 0 for frame in found.frames()}
    assert stamps == {0: True, 1: False, 2: False}
    journal.close()
    with Journal.open(path) as found:
        assert all(frame.stamps[Stage.COMMITTED] > 0 for frame in found.frames())


# --- what was published ---


def crash_copy(journal: Journal) -> Path:
    """Return a copy of the files as a kill would leave them now."""
    folder = journal.path.parent / f'copy-{time.monotonic_ns()}'
    folder.mkdir()
    for name in (journal.path.name, f'{journal.path.name}-wal'):
        shutil.copy(journal.path.parent / name, folder / name)
    return folder / journal.path.name


def test_frames_killed_between_commit_and_publication_come_once_more(path: Path) -> None:
    journal = Journal.open(path)
    journal.commit([make_frame(0), make_frame(1)])
    journal.mark_published()
    journal.commit([make_frame(2)])
    with Journal.open(crash_copy(journal)) as found:
        assert [frame.seq for frame in found.unpublished()] == [2]
        found.mark_published()
    journal.mark_published()
    journal.flush()
    with Journal.open(crash_copy(journal)) as found:
        assert found.unpublished() == []
    journal.close()


def test_a_clean_end_leaves_nothing_unpublished(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(0)])
        journal.mark_published()
    with Journal.open(path) as journal:
        assert journal.unpublished() == []
        journal.commit([make_frame(1)])
        assert [frame.seq for frame in journal.unpublished()] == [1]


# --- the file ---


def test_full_sync_wal_and_one_writer(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal._db.execute('PRAGMA synchronous').fetchone()[0] == 2
        assert journal._db.execute('PRAGMA journal_mode').fetchone()[0] == 'wal'
        with pytest.raises(JournalError, match=f'written by process {os.getpid()}'):
            Journal.open(path)
        with Journal.open(path, read_only=True) as reader:
            journal.commit([make_frame(0)])
            assert reader.counts()['frames'] == 1, 'a reader sees what is committed'
            with pytest.raises(JournalError, match='opened to be read'):
                reader.commit([make_frame(1)])
    Journal.open(path).close()


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match='no journal at'):
        Journal.open(tmp_path / 'none.sqlite3', read_only=True)


def test_reading_from_a_folder_that_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(0)])
    path.parent.chmod(0o555)
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write everywhere
    try:
        with Journal.open(path, read_only=True) as journal:
            assert journal.counts()['frames'] == 1
        assert not Path(f'{path}-shm').exists()
    finally:
        path.parent.chmod(0o755)


def test_another_database_or_another_schema_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / 'foreign.sqlite3'
    with sqlite3.connect(foreign) as db:
        db.execute('CREATE TABLE t (x)')
    before = foreign.read_bytes()
    with pytest.raises(JournalError, match='no HEQIS journal'):
        Journal.open(foreign)
    assert foreign.read_bytes() == before
    newer = tmp_path / 'newer.sqlite3'
    Journal.open(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute('PRAGMA user_version=99')
    with pytest.raises(JournalError, match='has schema 99'):
        Journal.open(newer)


def test_a_damaged_page_is_found_at_open_and_the_message_says_how_to_repair(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(i) for i in range(400)])
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 4] = os.urandom(4096)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r'damaged: .*journal_repair'):
        Journal.open(path)


def test_repair_saves_what_can_be_read_and_sends_nothing_again(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(i) for i in range(300)])
        journal.commit([make_frame(i) for i in range(300, 400)])
        journal.add_events([Event(1, Level.WARN, 'risk_gate', 'kill_switch', '', 'engaged')])
        journal.set_meta('kill_switch', 'engaged')
        intact = {frame.seq: frame for frame in journal.frames()}
    data = bytearray(path.read_bytes())
    page = 4096 * (len(data) // 8192)
    data[page : page + 4096] = os.urandom(4096)
    path.write_bytes(data)
    assert repair_main([str(path)]) == 0
    said = capsys.readouterr().out
    with Journal.open(f'{path}.repaired') as journal:
        found = {frame.seq: frame for frame in journal.frames()}
        assert 300 < len(found) < 400
        assert f'frames: {len(found)} saved, {400 - len(found)} lost' in said
        for seq, frame in found.items():
            assert_same_frame(frame, intact[seq])
            assert frame.stamps[Stage.COMMITTED] in (0, intact[seq].stamps[Stage.COMMITTED])
        assert journal.unpublished() == []
        assert journal.get_meta('kill_switch') == 'engaged'
        assert [event.text for event in journal.events()] == ['engaged']
    assert repair_main([str(path)]) == 1
    assert 'exists already' in capsys.readouterr().err


def test_a_repair_that_cannot_read_the_kill_switch_engages_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(i) for i in range(3)])
        journal.set_meta('kill_switch', 'cleared')
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meta'").fetchone()
    data = bytearray(path.read_bytes())
    data[4096 * (page - 1) : 4096 * page] = bytes(4096)
    path.write_bytes(data)
    assert repair_main([str(path)]) == 0
    assert 'the kill switch is engaged' in capsys.readouterr().out
    with Journal.open(f'{path}.repaired') as journal:
        assert len(list(journal.frames())) == 3
        assert journal.get_meta('kill_switch') == 'lost in a repair'


def test_a_changed_byte_in_a_packed_row_is_found_when_it_is_read(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(0)])
    with sqlite3.connect(path) as db:
        body = bytearray(db.execute('SELECT body FROM frames').fetchone()[0])
        body[30] ^= 1
        db.execute('UPDATE frames SET body = ?', (bytes(body),))
    with Journal.open(path) as journal, pytest.raises(JournalError, match='fails its checksum'):
        journal.signals_digest()


def test_garbage_instead_of_a_database(tmp_path: Path) -> None:
    path = tmp_path / 'j.sqlite3'
    path.write_bytes(b'not at all a database' * 500)
    with pytest.raises(JournalError, match='damaged: file is not a database'):
        Journal.open(path)


def test_a_full_disk_fails_the_commit_whole_and_goes_on_when_there_is_room(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(0)])
        pages = journal._db.execute('PRAGMA page_count').fetchone()[0]
        journal._db.execute(f'PRAGMA max_page_count={pages + 2}')
        batch = [make_frame(i, symbols=tuple(f'{s:06d}' for s in range(500))) for i in range(1, 9)]
        with pytest.raises(JournalError, match='make room'):
            journal.commit(batch)
        assert [frame.seq for frame in journal.frames()] == [0]
        assert all(
            frame.stamps[Stage.COMMITTED] == make_frame(i).stamps[Stage.COMMITTED]
            for i, frame in enumerate(batch, 1)
        )
        journal._db.execute('PRAGMA max_page_count=100000')
        assert journal.commit(batch) == [True] * 8
        assert [frame.seq for frame in journal.frames()] == list(range(9))
