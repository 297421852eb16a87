# SPDX-License-Identifier: Apache-2.0
"""`heqis journal`: what is shown, exported and found is what the journal holds."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from heqis_core.commands import journal as command
from heqis_core.control import Event, Level
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.errors import ConfigError, DataError, JournalError
from heqis_core.frame import Stage
from heqis_core.io import journal_archive
from heqis_core.io.journal import Journal
from heqis_core.testing_journal import SYMBOLS, make_frame

EVENTS = [
    Event(1_600_000_000_000_000_000, Level.WARN, 'risk_gate', 'kill_switch', 'risk_gate', '[red]'),
    Event(1_700_000_000_000_000_000, Level.ERROR, 'supervisor', 'reset_done', 'compute', 'boot 2'),
]


@pytest.fixture
def frames() -> list[Decisions]:
    frames = [make_frame(i) for i in range(30)]
    frames[4] = frames[4].refuse(np.ones(3, bool), Reason.KILL_SWITCH)
    return frames


@pytest.fixture
def path(tmp_path: Path, frames: list[Decisions]) -> Path:
    path = tmp_path / 'journal.sqlite'
    with Journal.open(path) as journal:
        journal.commit(frames[:20])
        journal.commit(frames[20:], events=EVENTS)
    return path


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(['journal', *map(str, words)])
    return int(args.func(args))


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert run('show', *words, '--json') == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def signals_of(frames: list[Decisions]) -> list[tuple[int, str]]:
    return [
        (f.seq, s) for f in frames for s, hit in zip(f.symbols, f.is_signal(), strict=True) if hit
    ]


# --- show ---


def test_the_last_signals_oldest_first(path: Path, frames, capsys) -> None:
    rows = shown(capsys, path, '--last', 7)
    assert [row['symbol'] for row in rows] == [s for _, s in signals_of(frames)[-7:]]
    assert rows[-1]['action'] in ('BUY', 'SELL')
    assert rows[-1]['reasons'] == 'up'
    assert rows[-1]['committed'] is not None


def test_signals_of_one_symbol_since_a_day(path: Path, frames, capsys) -> None:
    day = '2020-09-25'
    rows = shown(capsys, path, '--symbol', SYMBOLS[1], '--since', day, '--last', 99)
    assert {row['symbol'] for row in rows} == {SYMBOLS[1]}
    assert all(row['event_time'] >= day for row in rows)
    since = [f for f in frames if f.event_time_ns >= 1_600_963_200_000_000_000]
    assert len(rows) == sum(s == SYMBOLS[1] for _, s in signals_of(since)) > 0


def test_frames_events_and_resets(path: Path, frames, capsys) -> None:
    rows = shown(capsys, path, 'frames', '--last', 30)
    assert [row['signals'] for row in rows] == [int(f.is_signal().sum()) for f in frames]
    assert sum(row['refused'] for row in rows) == int(make_frame(4).is_signal().sum())
    assert [row['kind'] for row in shown(capsys, path, 'events')] == ['kill_switch', 'reset_done']
    assert [row['text'] for row in shown(capsys, path, 'resets')] == ['boot 2']
    assert shown(capsys, path, 'events', '--since', '2023-01-01T00:00')[0]['kind'] == 'reset_done'


def test_holdings_are_what_was_bought_and_not_sold(path: Path, frames, capsys) -> None:
    last: dict[str, int] = {}
    for item in frames:
        for symbol, action in zip(item.symbols, item.action, strict=True):
            if action >= Action.BUY:
                last[symbol] = action
    rows = shown(capsys, path, 'holdings')
    assert sorted(row['symbol'] for row in rows) == sorted(
        symbol for symbol, action in last.items() if action == Action.BUY
    )
    assert [row['since'] for row in rows] == sorted(row['since'] for row in rows)
    assert shown(capsys, path, 'holdings', '--symbol', rows[0]['symbol']) == rows[:1]
    assert shown(capsys, path, 'holdings', '--since', '2030-01-01') == []


def test_the_table_is_for_people_and_text_is_no_markup(path: Path, capsys) -> None:
    assert run('show', path, 'events') == 0
    said = capsys.readouterr().out
    assert '[red]' in said
    assert '2020-09-13 20:26:40.000+08:00' in said
    assert run('show', path, '--symbol', 'nobody') == 0
    assert 'no signals' in capsys.readouterr().out


def test_what_cannot_be_asked_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='events have no symbol'):
        run('show', path, 'events', '--symbol', 'x')
    with pytest.raises(ConfigError, match="'yesterday' is no time"):
        run('show', path, '--since', 'yesterday')
    with pytest.raises(ConfigError, match="no time zone 'Mars'"):
        run('show', path, '--tz', 'Mars')
    with pytest.raises(JournalError, match='no journal at'):
        run('show', tmp_path / 'none')


# --- export ---


@pytest.mark.parametrize('block', [1, 7, 50_000])
def test_the_export_is_the_journal_whatever_is_held_at_a_time(
    path: Path, frames, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(journal_archive, 'BLOCK_ROWS', block)
    assert run('export', path, '--out', tmp_path / 'out') == 0
    assert f'decisions.parquet: {90} decisions' in capsys.readouterr().out
    table = parquet.read_table(tmp_path / 'out' / 'decisions.parquet')
    rows = table.to_pydict()
    assert rows['symbol'] == list(SYMBOLS) * 30
    assert rows['seq'] == [f.seq for f in frames for _ in SYMBOLS]
    assert rows['epoch'] == [f.epoch for f in frames for _ in SYMBOLS]
    times = np.array(table['event_time'].cast('int64'))
    assert times.tolist() == [f.event_time_ns for f in frames for _ in SYMBOLS]
    assert rows['action'] == [Action(a).name for f in frames for a in f.action]
    for name in ('score', 'target_position', 'predicted_return'):
        wanted = np.concatenate([getattr(f, name) for f in frames])
        assert np.array(rows[name], 'f4').tobytes() == wanted.tobytes()
    wanted = np.concatenate([f.probabilities for f in frames])
    columns = [np.array(rows[name], 'f4') for name in ('p_down', 'p_flat', 'p_up')]
    np.testing.assert_array_equal(np.stack(columns, 1), wanted)
    assert rows['committed_ns'][::3] == [int(f.stamps[Stage.COMMITTED]) for f in frames]
    assert rows['ingest_ns'][::3] == [int(f.stamps[Stage.INGEST]) for f in frames]
    refused = make_frame(4).is_signal()
    reasons = np.array(rows['reasons'][12:15])
    assert all('kill_switch' in text for text in reasons[refused])
    signals = parquet.read_table(tmp_path / 'out' / 'signals.parquet').to_pydict()
    assert list(zip(signals['seq'], signals['symbol'], strict=True)) == signals_of(frames)
    events = parquet.read_table(tmp_path / 'out' / 'events.parquet').to_pydict()
    assert events['text'] == ['[red]', 'boot 2']
    assert events['level'] == ['WARN', 'ERROR']


def test_an_export_of_some_tables_since_a_day(path: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    assert run('export', path, '--out', out, '--only', 'signals', '--since', '2020-09-25') == 0
    assert [file.name for file in out.iterdir()] == ['signals.parquet']
    times = parquet.read_table(out / 'signals.parquet')['event_time'].to_pylist()
    assert min(times).isoformat() >= '2020-09-24T16'


def test_an_empty_journal_exports_empty_tables(tmp_path: Path) -> None:
    Journal.open(tmp_path / 'j').close()
    assert run('export', tmp_path / 'j', '--out', tmp_path) == 0
    assert len(parquet.read_table(tmp_path / 'decisions.parquet')) == 0


def test_what_stood_there_stays_if_the_export_fails(path: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    assert run('export', path, '--out', out) == 0
    before = (out / 'decisions.parquet').read_bytes()
    change(path, 'UPDATE frames SET body = zeroblob(length(body)) WHERE id = 25')
    with pytest.raises(JournalError, match='fails its checksum'):
        run('export', path, '--out', out)
    assert (out / 'decisions.parquet').read_bytes() == before
    assert not list(out.glob('*.partial'))
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match='name another folder'):
        run('export', path, '--out', tmp_path / 'file')


# --- check ---


def change(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()


def test_a_whole_journal_has_no_findings(path: Path, frames, capsys) -> None:
    assert run('check', path) == 0
    said = capsys.readouterr().out
    assert f'30 frames with {len(signals_of(frames))} signals' in said
    assert 'no findings' in said


@pytest.mark.parametrize(
    ('sql', 'finding'),
    [
        ('UPDATE frames SET body = zeroblob(111) WHERE id = 3', 'frame 3 .*checksum'),
        ('UPDATE frames SET body = zeroblob(5) WHERE id = 3', 'frame 3 cannot be read'),
        ('UPDATE frames SET n_signals = n_signals + 1 WHERE id = 9', 'frame 9 .*counts'),
        ('DELETE FROM frames WHERE id = 12', '1 frames are missing'),
        ('DELETE FROM signal_index WHERE frame = 20', 'frame 20 .*index'),
        ('UPDATE signal_index SET action = 5 - action WHERE frame = 20', 'frame 20 .*index'),
        ("INSERT INTO signal_index VALUES (99, 0, 'x', 2, 0, 0)", 'belong to no frame'),
        ('UPDATE frames SET universe = 9 WHERE id = 2', '1 frames name symbols'),
        ('UPDATE commits SET last_frame = 25 WHERE first_frame = 1', 'commit of 21'),
    ],
)
def test_what_is_wrong_is_found_and_the_repair_is_named(
    path: Path, capsys, sql: str, finding: str
) -> None:
    change(path, sql)
    assert run('check', path) == 1
    said = capsys.readouterr().out
    assert any(re.search(finding, line) for line in said.splitlines()), said
    assert f'journal_repair {path}' in said
    assert run('check', path, '--json') == 1
    assert json.loads(capsys.readouterr().out)['well'] is False


def test_a_damaged_page_is_a_finding(path: Path, capsys) -> None:
    data = bytearray(path.read_bytes())
    leaf = 1 + data.index(make_frame(7).symbols[1].encode()) // 4096  # a page of the index
    data[4096 * (leaf - 1) : 4096 * leaf] = b'\x5a' * 4096
    path.write_bytes(data)
    assert run('check', path) == 1
    assert 'journal_repair' in capsys.readouterr().out


def test_a_journal_that_is_written_can_be_checked(path: Path, capsys) -> None:
    with Journal.open(path) as journal:
        journal.commit([make_frame(i) for i in range(30, 200)])
        assert run('check', path) == 0
    assert '200 frames' in capsys.readouterr().out
