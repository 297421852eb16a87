# SPDX-License-Identifier: Apache-2.0
"""`heqis chaos`: the table of faults, how trials are judged and shown, and a short real run."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from heqis_bringup.chaos import command, report
from heqis_bringup.chaos.campaign import SELDOM, GraphEnd, Result, rounds
from heqis_bringup.chaos.disturbance import BACK, DEADLOCK, FORWARD, HOUR_NS, SLOW
from heqis_bringup.chaos.faults import FAULTS
from heqis_bringup.chaos.feed import BarFeed
from heqis_bringup.chaos.measure import span, summarise
from heqis_bringup.chaos.record import Record, first
from heqis_bringup.chaos.soak import Soak, busy
from heqis_bringup.chaos.trial import FLOW_S, Trial, holes, resumed
from heqis_bringup.testing_demo import heqis
from heqis_core.control import Event, Level, NodeBeat, ProcessBeat
from heqis_core.errors import ConfigError
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_bundle import write_test_bundle
from heqis_ros.convert_health import beat_to_msg, event_to_msg

SYMBOLS, SEED, TRAINED = 4, 11, 100
GOOD = Trial('kill-compute', 0.85, 'event process_lost', 0.9, 2.5, 2.4, 2.4, interrupted=True)


# --- the table of faults ---


def test_there_are_faults_for_every_process_and_each_says_what_it_is() -> None:
    assert len(FAULTS) >= 16
    for process in ('gateway', 'compute', 'journal', 'supervisor', 'gateway-agent'):
        for word in ('kill', 'stop'):
            fault = FAULTS[f'{word}-{process}']
            assert fault.promised
            assert fault.within_s == 1.0
    assert all(name == fault.name and fault.text for name, fault in FAULTS.items())


def test_a_fault_that_nothing_may_show_restarts_nobody() -> None:
    quiet = [fault for fault in FAULTS.values() if not fault.signs]
    assert quiet
    assert not [fault.name for fault in quiet if fault.targets or fault.parts or fault.within_s]


def test_unknown_faults_are_refused_by_name_and_known_ones_come_in_the_order_given() -> None:
    with pytest.raises(ConfigError, match='kill-everything'):
        command.chosen_faults('kill-compute,kill-everything')
    with pytest.raises(ConfigError, match='none named'):
        command.chosen_faults(' , ')
    chosen = command.chosen_faults('stop-journal, kill-compute,stop-journal')
    assert [fault.name for fault in chosen] == ['stop-journal', 'kill-compute']


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_each_promised_fault_is_injected_every_time_and_the_others_a_third_as_often(
    times: int, seed: int
) -> None:
    faults = list(FAULTS.values())
    drawn = rounds(faults, times, random.Random(seed))
    assert drawn == rounds(faults, times, random.Random(seed))
    names = [fault.name for one in drawn for fault in one]
    for fault in faults:
        assert names.count(fault.name) == (times if fault.promised else -(-times // SELDOM))


# --- what is measured ---


@given(
    st.lists(st.floats(0.02, 0.4), max_size=20),
    st.floats(FLOW_S + 0.01, 20.0),
    st.lists(st.floats(0.02, 0.4), min_size=1, max_size=20),
)
def test_frames_go_on_at_the_end_of_the_last_time_without_any(
    steps: list[float], pause: float, later: list[float]
) -> None:
    began_s = 100.0
    times = list(itertools.accumulate([*steps, pause, *later], initial=began_s))[1:]
    assert resumed(times, began_s, began_s) == (True, times[len(steps)])
    even = list(itertools.accumulate([*steps, *later], initial=began_s))[1:]
    assert resumed(even, began_s, began_s) == (False, even[0])


def test_frames_that_never_go_on_have_no_time() -> None:
    assert resumed([100.1, 100.2], 100.0, 101.0) == (False, None)


@given(st.sets(st.integers(0, 50)), st.integers(-1, 20))
def test_a_hole_is_what_is_missing_between_the_first_and_the_newest(
    seqs: set[int], last: int
) -> None:
    newest = max(seqs, default=last)
    assert holes(list(seqs), last) == [n for n in range(last + 1, newest + 1) if n not in seqs]


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=40))
def test_percentiles_are_times_that_were_measured(values: list[float | None]) -> None:
    known = sorted(value for value in values if value is not None)
    found = span(values)
    if not known:
        assert found is None
        return
    assert found == (known[math.ceil(len(known) / 2) - 1], known[math.ceil(len(known) * 0.99) - 1])


def test_trials_as_expected_pass_and_a_slow_one_fails_by_what_was_promised() -> None:
    fault = FAULTS['kill-compute']
    row = summarise(fault, [GOOD, replace(GOOD, detected_s=0.8)])
    assert row.passed
    assert (row.times, row.detected, row.interrupted) == (2, (0.8, 0.85), 2)
    slow = summarise(fault, [GOOD, replace(GOOD, detected_s=1.2)])
    assert slow.problems == ('noticed after 1.20 s (p99), not within 1 s',)
    assert not slow.passed


def test_what_went_wrong_in_one_trial_fails_the_row_once() -> None:
    bad = replace(GOOD, lost_frames=2, touched=['journal'], problems=['touched: journal'])
    row = summarise(FAULTS['kill-compute'], [bad, GOOD, bad])
    assert row.problems == ('touched: journal',)
    assert (row.lost_frames, row.touched) == (4, ('journal',))


# --- what is heard ---


def beat(count: int, start_id: int = 1, state: int = 3, **counters: int) -> ProcessBeat:
    node = NodeBeat('/heqis/compute', state, counters=counters)
    return ProcessBeat('compute', 'compute', 'h', 7, start_id, count, 0, 'b', nodes=(node,))


def test_a_record_sees_starts_falls_rises_and_alarms_in_order() -> None:
    record = Record()
    for one in (beat(1), beat(2, holding=0), beat(3, holding=1), beat(4, state=2, holding=1)):
        record.heartbeat(beat_to_msg(one))
    record.event(
        event_to_msg(Event(0, Level.ERROR, 'supervisor', 'process_lost', 'compute/compute', 'x'))
    )
    record.heartbeat(beat_to_msg(beat(1, start_id=2)))
    seen = [(one.source, one.kind, one.subject) for one in record.seen(0.0)]
    assert seen == [
        ('heartbeat', 'start', 'compute/compute'),
        ('heartbeat', 'active', 'compute'),
        ('heartbeat', 'holding', 'compute'),
        ('heartbeat', 'not active', 'compute'),
        ('event', 'process_lost', 'compute/compute'),
        ('heartbeat', 'start', 'compute/compute'),
        ('heartbeat', 'active', 'compute'),
    ]
    assert record.starts == {'compute/compute': 2}
    found = first(record.seen(0.0), [('event', 'process_', 'compute/compute')])
    assert found is not None
    assert found.level == Level.ERROR
    assert first(record.seen(0.0), [('event', 'process_', 'gateway/gateway')]) is None
    assert record.seen(time.monotonic() + 1) == []


# --- what is shown ---


def result(*rows: Trial) -> Result:
    fault = FAULTS['kill-compute']
    ends = (GraphEnd('plain', 120, 40, True),)
    return Result((summarise(fault, rows),), ends, {'cable-pulled': 'no `ip` command'}, 61.0)


def test_the_table_is_on_the_terminal_in_markdown_and_in_json(tmp_path: Path) -> None:
    good, bad = result(GOOD), result(replace(GOOD, problems=['not well again']))
    for width in (80, 200):
        console = Console(width=width, record=True, file=(tmp_path / 'out').open('w'))
        console.print(report.terminal(good, width))
        text = console.export_text()
        assert 'kill-compute' in text
        assert '0.85' in text
    lines = report.markdown(good, '2 cores').splitlines()
    table = [line for line in lines if line.startswith('| kill-compute')]
    assert '0.85 / 0.85' in table[0]
    assert '| yes |' in table[0]
    assert 'not run: cable-pulled: no `ip` command' in report.remarks(good)
    assert any('120 frames' in line and 'as heqis batch' in line for line in report.remarks(good))
    assert (good.passed, bad.passed) == (True, False)
    document = json.loads(json.dumps(report.document(bad, {'cores': 2})))
    assert document['passed'] is False
    assert document['rows'][0]['problems'] == ['not well again']


def test_a_digest_that_differs_fails_the_campaign() -> None:
    end = GraphEnd('plain', 120, 40, False, 'see journal.db')
    assert not replace(result(GOOD), ends=(end,)).passed


def test_markdown_goes_between_the_marks_of_a_file_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / 'faults.md'
    page.write_text(f'# Faults\n\n{command.BEGIN}\nold\n{command.END}\n\nafter\n')
    command.write_markdown(page, result(GOOD))
    command.write_markdown(page, result(GOOD))
    text = page.read_text()
    assert text.startswith('# Faults\n')
    assert text.endswith('\n\nafter\n')
    assert text.count('| kill-compute | 1 |') == 1
    assert 'old' not in text
    other = tmp_path / 'other.md'
    command.write_markdown(other, result(GOOD))
    assert '| kill-compute | 1 |' in other.read_text()


def test_a_soak_fails_by_one_alarm_and_by_no_work() -> None:
    quiet = Soak(30.0, 2, 900_000, 400_000, 0, 0, 0, 0, ())
    assert quiet.passed
    assert '500 a second' in quiet.line()
    for name in ('alarms', 'restarts', 'leases', 'not_ok'):
        assert not replace(quiet, **{name: 1}).passed
    assert not replace(quiet, frames=0).passed


def test_busy_loops_end_with_their_block() -> None:
    def loops() -> list[psutil.Process]:
        return [
            child for child in psutil.Process().children() if 'pass' in child.cmdline()[-1:][0]
        ]

    with busy(2):
        wait_until(lambda: len(loops()) == 2, 10)
    assert loops() == []


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    for words, says in (
        (['--load'], '--soak'),
        (['--times', '0'], '--times is 0'),
        (['--pace', '0', '--bundle', str(tmp_path)], '--pace is 0'),
        (['--soak', '0'], '--soak is 0'),
        (['--faults', 'x'], 'x; `heqis chaos --list`'),
    ):
        args = parser.parse_args(['chaos', *words])
        with pytest.raises(ConfigError, match=says):
            command.run(args)


# --- what disturbs ---


@contextmanager
def feed(pace: float) -> Iterator[tuple[BarFeed, zmq.Socket[bytes]]]:
    port = free_port()
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(f'tcp://127.0.0.1:{port}')
        one = BarFeed(f'tcp://127.0.0.1:{port}', ('A', 'B', 'C'), 10**18, pace, 5)
        try:
            yield one, socket
        finally:
            one.close()


def take(socket: zmq.Socket[bytes]) -> dict[str, object]:
    assert socket.poll(5000)
    block: dict[str, object] = msgspec.msgpack.decode(socket.recv())
    return block


def test_a_feed_sends_sound_bars_without_a_gap_and_poison_only_where_it_is_asked_for() -> None:
    with feed(0.0) as (sender, socket):
        blocks = [take(socket) for _ in range(300)]
        sender.poison = (math.nan, math.inf)
        wait_until(lambda: sender.poisoned[0] > 0, 5)
        while not math.isnan((block := take(socket))['rows'][0]['close']):  # type: ignore[index]
            assert block['seq'] < 100_000  # type: ignore[operator]
    times = [block['rows'][0]['event_time_ns'] for block in blocks]  # type: ignore[index]
    assert {b - a for a, b in itertools.pairwise(times)} == {sender.step_ns}
    assert [block['seq'] for block in blocks] == list(range(300))
    for row in (row for one in blocks for row in one['rows']):  # type: ignore[attr-defined]
        assert row['low'] <= min(row['open'], row['close'])
        assert row['high'] >= max(row['open'], row['close'])
        assert 1 < row['close'] < 1000
    rows = block['rows']
    assert rows[1]['close'] == math.inf  # type: ignore[index]
    assert math.isfinite(rows[2]['close'])  # type: ignore[index]


def test_a_feed_that_is_paused_says_nothing_and_goes_on_where_it_was() -> None:
    with feed(50.0) as (sender, socket):
        before = take(socket)
        sender.pause()
        wait_until(lambda: not socket.poll(500) or not take(socket), 10, 'it is never silent')
        sent = sender.sent
        sender.resume()
        after = take(socket)
    assert after['seq'] == sent
    assert after['seq'] > before['seq']  # type: ignore[operator]


def test_live_bars_need_room_between_the_training_and_now() -> None:
    with pytest.raises(ConfigError, match='older data'):
        BarFeed(f'tcp://127.0.0.1:{free_port()}', ('A',), time.time_ns(), 1.0, 0)


def test_a_disturbed_process_is_blocked_in_its_executor_and_its_clock_moves() -> None:
    """The signals of the saboteur in a process of its own, with a real node in it."""
    helper = Path(__file__).with_name('disturbed_process.py')
    with subprocess.Popen(
        [sys.executable, helper], stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            lines: list[dict[str, int]] = []
            reader = threading.Thread(target=read_lines, args=(process, lines), daemon=True)
            reader.start()
            wait_until(lambda: any(line['spin'] > 1 for line in lines), 30, 'it never runs')
            process.send_signal(FORWARD)
            ahead = 3_000_000_000_000
            wait_until(lambda: lines[-1]['clock_ns'] - time.time_ns() > ahead, 5, 'forward')
            process.send_signal(BACK)
            wait_until(lambda: abs(lines[-1]['clock_ns'] - time.time_ns()) < HOUR_NS // 2, 5)
            process.send_signal(SLOW)
            spin = lines[-1]['spin']
            wait_until(lambda: lines[-1]['spin'] > spin + 3, 20, 'it goes on after a while')
            process.send_signal(DEADLOCK)
            wait_until(lambda: stands_still(lines), 10, 'it stands still, and still speaks')
        finally:
            process.kill()


def read_lines(process: subprocess.Popen[str], lines: list[dict[str, int]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(json.loads(line))


def stands_still(lines: list[dict[str, int]]) -> bool:
    last = lines[-20:]
    return len(last) == 20 and last[0]['spin'] == last[-1]['spin']


# --- a real graph ---


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    simulator = MarketSimulator(SYMBOLS, SEED)
    blocks = [simulator.next_block() for _ in range(TRAINED)]
    folder = tmp_path_factory.mktemp('bundle')
    return write_test_bundle(folder, trained_until_ns=blocks[-1].event_time_ns)


@pytest.mark.graph
@pytest.mark.timeout(150)
def test_faults_of_a_real_graph_are_noticed_lose_nothing_and_touch_nobody_else(
    bundle: Path, tmp_path: Path
) -> None:
    """One is killed, one stopped, one has no room; times are the bench's own affair."""
    names = ('kill-compute', 'stop-journal', 'disk-full')
    done = heqis(
        *('chaos', '--faults', ','.join(names), '--times', 1, '--bundle', bundle),
        *('--symbols', SYMBOLS, '--seed', SEED, '--run-dir', tmp_path / 'run'),
        *('--json', tmp_path / 'faults.json'),
    )
    found = json.loads((tmp_path / 'faults.json').read_text())
    late = 'not within'  # on a machine that other work shares
    assert [end['same'] for end in found['graphs']] == [True], done.stdout
    for row in found['rows']:
        assert [text for text in row['problems'] if late not in text] == [], done.stdout
        assert row['detected'] is not None
        assert (row['lost_frames'], row['lost_signals'], row['touched']) == (0, 0, [])
    assert {row['fault'] for row in found['rows']} == set(names)
    assert found['rows'][0]['by'].startswith('event process_')
    assert done.returncode == (0 if found['passed'] else 1)


@pytest.mark.graph
@pytest.mark.timeout(150)
def test_a_short_time_of_full_load_without_a_fault_raises_no_alarm(
    bundle: Path, tmp_path: Path
) -> None:
    done = heqis(
        *('chaos', '--soak', 0.2, '--bundle', bundle, '--symbols', SYMBOLS, '--seed', SEED),
        *('--run-dir', tmp_path / 'run', '--json', tmp_path / 'soak.json'),
    )
    found = json.loads((tmp_path / 'soak.json').read_text())
    assert found['frames'] > 100, done.stdout
    assert found['said'] == [], done.stdout
    assert done.returncode == 0
