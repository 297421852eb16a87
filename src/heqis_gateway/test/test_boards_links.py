# SPDX-License-Identifier: Apache-2.0
"""One stream over several boards on real sockets: the decisions of one board, whatever goes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, Decisions, Reason
from heqis_core.digest import signals_digest
from heqis_core.io.ort_engine import open_engine
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.source import TableSource
from heqis_core.testing import free_port, simulated_table, wait_until
from heqis_core.testing_board import PlayingBoard, playing
from heqis_core.testing_link import make_decisions, make_frame
from heqis_gateway.board_links import SeveralBoards
from heqis_gateway.boards import Shares
from heqis_gateway.stream import FrameStream, StreamSettings

NAMES = ('jetson-1', 'jetson-2', 'jetson-3')
SYMBOLS, ROWS, SPLIT = 12, 500, 80
PLAYER = 'heqis_core.testing_board'


@pytest.fixture(scope='module')
def market() -> BarTable:
    return simulated_table(SYMBOLS, ROWS, seed=11)


@pytest.fixture(scope='module')
def expected(bundle: Bundle, market: BarTable) -> dict[int, Decisions]:
    """Return what one board says, by event time."""
    answers = decide_all(bundle, TableSource(market), open_engine)
    return {item.event_time_ns: item for item in answers}


class Gate:
    """Stands for the risk gate: keeps what is new, and lets a frame be durable when it may be."""

    def __init__(self) -> None:
        self.kept: dict[int, Decisions] = {}
        self.seen: list[int] = []
        self.last_seq = sys.maxsize
        self.loses: Callable[[int], bool] = lambda _seq: False
        self.close: Callable[[list[int]], None] = lambda _seqs: None
        self._lock = threading.Lock()

    def take(self, decisions: Decisions) -> None:
        with self._lock:
            first = decisions.seq not in self.seen
            self.seen.append(decisions.seq)
            if first and self.loses(decisions.seq):
                return
            self.kept.setdefault(decisions.seq, decisions)
        self.allow(self.last_seq)

    def allow(self, last_seq: int) -> None:
        with self._lock:
            self.last_seq = last_seq
            durable = [seq for seq in self.kept if seq <= last_seq]
        self.close(durable)


class Rig:
    """A gateway without ROS: stream, links to the boards, their threads, and a gate."""

    def __init__(
        self, bundle: Bundle, market: BarTable, folder: Path, lease_s: float, resend_s: float
    ) -> None:
        self.endpoints = {
            name: [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)] for name in NAMES
        }
        self.gate = Gate()
        links = {name: GatewayLink(*where) for name, where in self.endpoints.items()}
        self.boards = SeveralBoards(links, lease_s, self.gate.take)
        self.shares = Shares(NAMES).of(tuple(market.symbols))
        encoder = open_engine(bundle.encoder_path) if bundle.encoder_path else None
        settings = StreamSettings(
            stream='daily',
            epoch=1,
            features_id=bundle.features_id('onnxruntime'),
            warm_until_ns=bundle.manifest.trained_until_ns,
            horizon=bundle.manifest.window.horizon,
            max_in_flight=8,
            resend_after_s=resend_s,
            checkpoint=folder / 'checkpoint.npz',
            checkpoint_s=3600.0,
            identity={'stream': 'daily'},
        )
        pipeline = bundle.pipeline(market.symbols, encoder)
        self.stream = FrameStream(settings, TableSource(market), pipeline, self.boards.send)
        self.stream.resume()
        self.gate.close = self.stream.close_frames

    def done(self) -> bool:
        return bool(self.stream.counters.source_done and self.stream.n_open == 0)

    def counter(self, board: str, name: str) -> int:
        return self.boards.counters()[f'board.{board}.{name}']

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def receive(name: str) -> None:
            while not stop.is_set():
                self.boards.receive(name, 20)

        def serve(name: str) -> None:
            while not stop.is_set():
                self.boards.serve(name, self.stream.missed, 20)

        jobs = [(self.stream.run, stop), *((f, n) for n in NAMES for f in (receive, serve))]
        threads = [threading.Thread(target=job, args=(with_,)) for job, with_ in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
            self.boards.close()
            assert not any(thread.is_alive() for thread in threads)


@contextmanager
def rig(
    bundle: Bundle, market: BarTable, folder: Path, lease_s: float = 30.0, resend_s: float = 60.0
) -> Iterator[Rig]:
    made = Rig(bundle, market, folder, lease_s, resend_s)
    with made.running():
        yield made


def play(stack: ExitStack, bundle: Bundle, made: Rig, *names: str) -> list[PlayingBoard]:
    return [stack.enter_context(playing(bundle, made.endpoints[name])) for name in names]


def assert_as_expected(
    made: Rig, expected: dict[int, Decisions], may_be_none: str = ''
) -> list[int]:
    """Compare with one board bit for bit; return the seqs in which `may_be_none` was away."""
    away = []
    kept = made.gate.kept
    assert sorted(kept) == list(range(SPLIT, SPLIT + len(expected)))
    for seq, item in sorted(kept.items()):
        want = expected[item.event_time_ns]
        assert item.symbols == want.symbols
        none = (item.reasons & Reason.BOARD_AWAY) != 0
        if none.any():
            away.append(seq)
            assert np.flatnonzero(none).tolist() == made.shares[may_be_none].places.tolist()
            assert (item.action[none] == Action.NONE).all()
            assert np.isnan(item.score[none]).all()
        for column in ('action', 'reasons', 'score', 'probabilities', 'valid_until_ns'):
            got, right = getattr(item, column)[~none], getattr(want, column)[~none]
            assert got.tobytes() == right.tobytes(), (seq, column)
    return away


def test_three_boards_without_a_failure_give_the_digest_of_one(bundle, market, expected, tmp_path):
    """The boards start one after the other: the stream waits for the last one."""
    with rig(bundle, market, tmp_path) as made, ExitStack() as stack:
        for name in NAMES:
            assert not made.gate.kept
            play(stack, bundle, made, name)
        wait_until(made.done, 30)
        counters = made.boards.counters()
    assert assert_as_expected(made, expected) == []
    one = signals_digest(lambda: expected.values())
    assert signals_digest(lambda: made.gate.kept.values()) == one
    assert all(len(made.shares[name].places) for name in NAMES)
    for name in NAMES:
        assert counters[f'board.{name}.merged'] == len(expected)
        assert counters[f'board.{name}.absences'] == 0
    assert made.gate.seen == list(range(SPLIT, ROWS))


def test_decisions_that_the_risk_gate_lost_come_again_and_no_board_is_asked_twice(
    bundle, market, expected, tmp_path
):
    with rig(bundle, market, tmp_path, resend_s=0.1) as made, ExitStack() as stack:
        boards = play(stack, bundle, made, *NAMES)
        made.gate.loses = lambda seq: seq % 60 == 7
        wait_until(made.done, 40)
    assert assert_as_expected(made, expected) == []
    assert len(made.gate.seen) > len(made.gate.kept)
    for board in boards:
        assert board.decided == list(range(SPLIT, ROWS))


def test_a_board_that_hangs_holds_nobody_and_is_right_from_the_frame_on_that_it_is_back(
    bundle, market, expected, tmp_path
):
    with rig(bundle, market, tmp_path, lease_s=1.5) as made, ExitStack() as stack:
        boards = dict(zip(NAMES, play(stack, bundle, made, *NAMES), strict=True))
        made.gate.allow(SPLIT + 50)
        wait_until(lambda: SPLIT + 50 in made.gate.kept, 20)
        boards['jetson-2'].awake.clear()
        made.gate.allow(SPLIT + 150)
        wait_until(lambda: SPLIT + 150 in made.gate.kept, 20)
        assert made.boards.away == {'jetson-2'}
        boards['jetson-2'].awake.set()
        last = let_pass_until(made, lambda: not made.boards.away)
        made.gate.allow(sys.maxsize)
        wait_until(made.done, 30)
        counters = made.boards.counters()
    away = assert_as_expected(made, expected, 'jetson-2')
    assert away == list(range(min(away), max(away) + 1))
    assert min(away) > SPLIT + 50
    assert SPLIT + 150 <= max(away) <= last + 8
    assert counters['board.jetson-2.frames_none'] == len(away)
    assert counters['board.jetson-2.absences'] == 1
    assert counters['board.jetson-1.frames_none'] == 0


def test_a_board_that_is_killed_and_starts_again_has_warm_windows_when_it_is_back(
    bundle, market, expected, tmp_path
):
    """No decision after its return is WARMING or GAP where one board would have decided."""
    with rig(bundle, market, tmp_path, lease_s=2.5) as made, ExitStack() as stack:
        made.gate.allow(SPLIT)
        with process(bundle, made.endpoints['jetson-3']):
            play(stack, bundle, made, 'jetson-1', 'jetson-2')
            let_pass_until(made, lambda: len(made.gate.kept) >= 60)
            assert made.counter('jetson-3', 'merged') >= 60
        made.gate.allow(made.gate.last_seq + 60)
        wait_until(lambda: made.gate.last_seq in made.gate.kept, 20)
        assert made.boards.away == {'jetson-3'}
        with process(bundle, made.endpoints['jetson-3']):
            back = let_pass_until(made, lambda: not made.boards.away)
            made.gate.allow(sys.maxsize)
            wait_until(made.done, 30)
    away = assert_as_expected(made, expected, 'jetson-3')
    assert len(away) >= 50
    assert max(away) <= back + 8
    assert max(away) < ROWS - 20


def test_while_every_board_is_away_nothing_is_decided_and_nothing_lost(
    bundle, market, expected, tmp_path
):
    with rig(bundle, market, tmp_path, lease_s=5.0, resend_s=0.2) as made:
        with ExitStack() as stack:
            play(stack, bundle, made, *NAMES)
            made.gate.allow(SPLIT + 30)
            wait_until(lambda: SPLIT + 38 in made.gate.kept, 20, 'all that may be open')
        so_far = len(made.gate.kept)
        made.gate.allow(sys.maxsize)
        waits = made.stream.counters.send_waits
        wait_until(lambda: made.stream.counters.send_waits > waits + 20, 20)
        assert len(made.gate.kept) == so_far
        assert made.boards.away == frozenset()
        with ExitStack() as stack:
            play(stack, bundle, made, *NAMES)
            wait_until(made.done, 30)
    assert assert_as_expected(made, expected) == []


def test_a_frame_is_handed_over_until_each_board_has_it_and_to_none_of_them_twice():
    endpoints = {name: [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)] for name in NAMES}
    frame = make_frame(seq=3, symbols=SYMBOLS)
    with ExitStack() as stack:
        links = {name: GatewayLink(*where) for name, where in endpoints.items()}
        boards = SeveralBoards(links, 60.0, lambda _decisions: None)
        stack.callback(boards.close)
        assert not boards.send(frame)
        first = [stack.enter_context(closing(ComputeLink(*endpoints[name]))) for name in NAMES[:2]]
        wait_until(lambda: not boards.send(frame) and sent(links) == 2, 10)
        assert not boards.send(frame)
        last = stack.enter_context(closing(ComputeLink(*endpoints[NAMES[2]])))
        wait_until(lambda: boards.send(frame), 10)
        assert sent(links) == 3
        for board in (*first, last):
            got = board.recv(2000)
            assert got is not None
            assert got.seq == 3
        # Now it comes again because its decisions are not durable: to all, nobody has answered.
        assert boards.send(frame)
        assert sent(links) == 6


def test_parts_that_wait_in_the_sockets_while_nobody_reads_them_make_no_board_away():
    """Scenario: the risk gate is gone for longer than the lease; then one thread reads at once."""
    endpoints = {name: [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)] for name in NAMES}
    frame = make_frame(seq=3, symbols=SYMBOLS)
    published: list[Decisions] = []
    with ExitStack() as stack:
        links = {name: GatewayLink(*where) for name, where in endpoints.items()}
        boards = SeveralBoards(links, 0.2, published.append)
        stack.callback(boards.close)
        ends = {name: ComputeLink(*where) for name, where in endpoints.items()}
        for end in ends.values():
            stack.callback(end.close)
        wait_until(lambda: boards.send(frame), 10)
        for name, end in ends.items():
            got = end.recv(2000)
            assert got is not None
            answer = make_decisions(seq=3, symbols=len(got.symbols))
            answer.symbols, answer.revision = got.symbols, got.revision
            assert end.send_decisions(answer, 2000), name
        boards.receive(NAMES[0], 2000)
        threading.Event().wait(0.4)
        for name in NAMES[1:]:
            boards.receive(name, 2000)
        assert boards.away == frozenset()
    assert [item.symbols for item in published] == [frame.symbols]
    assert not (published[0].reasons & Reason.BOARD_AWAY).any()


def sent(links: dict[str, GatewayLink]) -> int:
    return sum(link.counters['sent'] for link in links.values())


def let_pass_until(made: Rig, condition: Callable[[], bool]) -> int:
    """Let one frame pass after the other until it is so; return the last one that may pass."""

    def step() -> bool:
        seq = made.gate.last_seq
        if seq in made.gate.kept:
            made.gate.allow(seq + 1)
        return condition()

    wait_until(step, 30)
    return made.gate.last_seq


@contextmanager
def process(bundle: Bundle, endpoints: list[str]) -> Iterator[None]:
    """Run a board in a process of its own from when it listens; it is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, '-m', PLAYER, str(bundle.path), *endpoints], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b'listens\n'
        yield
        assert child.poll() is None, 'the board has ended by itself'
    finally:
        child.kill()
        child.communicate(timeout=10)
