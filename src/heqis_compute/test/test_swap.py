# SPDX-License-Identifier: Apache-2.0
"""Swap: the stages without ROS; what is refused, at which stage, and that the old one goes on."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from heqis_compute.between import BetweenFrames, StoppedError
from heqis_compute.judge import Answer, Judge
from heqis_compute.served_state import FILE, read_state
from heqis_compute.swap import Swap
from heqis_compute.testing_swap import Frames, write_pair
from heqis_core.bundle import Bundle
from heqis_core.engine import Arrays
from heqis_core.engine_probe import Choice
from heqis_core.errors import BundleError, ConfigError, EngineError, HeqisError
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.link import MissedReply
from heqis_core.testing import wait_until
from heqis_core.testing_bundle import write_test_bundle

SHADOW = 4
NEVER = threading.Event()


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp('bundles'))


@pytest.fixture(scope='module')
def frames(pair: tuple[Path, Path]) -> Frames:
    return Frames(pair[0], distinct=100)


class Counted(OrtEngine):
    """An engine that says when it is loaded and freed, and fails when it is told to."""

    loaded = 0
    open = 0
    fail_in_frame = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.load(path)
        Counted.loaded += 1
        Counted.open += 1

    def infer(self, inputs: Arrays) -> Arrays:
        # The swap runs in the test's thread, the judge in its own.
        if Counted.fail_in_frame and threading.current_thread() is threading.main_thread():
            raise EngineError('the device has gone')
        return super().infer(inputs)

    def close(self) -> None:
        Counted.open -= 1
        super().close()


class Board:
    """A judge in a thread of its own, and a swap of it."""

    def __init__(self, pair: tuple[Path, Path], frames: Frames, state_dir: Path) -> None:
        Counted.loaded = Counted.open = 0
        Counted.fail_in_frame = False
        self.frames, self.sent = frames, 0
        self.answers: list[Answer] = []
        self.judge = Judge(Bundle.load(pair[0]), Counted)
        self.between = BetweenFrames()
        self.swap = Swap(
            self.judge, self.between, self.open, Bundle.load, self.choose,
            state_dir, pair[0], None, SHADOW, 10.0,
        )  # fmt: skip
        self.make_engine: Any = Counted
        self._arrivals: queue.SimpleQueue[FeatureFrame] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def open(self, path: str) -> Bundle:
        bundle = Bundle.load(path)
        bundle.verify_golden(OrtEngine)
        return bundle

    def choose(self, bundle: Bundle) -> Choice:
        return Choice('onnxruntime', self.make_engine, {}, ())

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.judge.close()

    def send(self, n: int) -> None:
        """Send n frames and wait for their answers."""
        for _ in range(n):
            self._arrivals.put(self.frames[self.sent])
            self.sent += 1
        wait_until(lambda: len(self.answers) == self.sent, 10)

    @contextmanager
    def flow(self) -> Iterator[None]:
        """Let frames flow while something else is done."""
        enough = threading.Event()

        def go_on() -> None:
            while not enough.is_set():
                self.send(1)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def served_by(self) -> list[str]:
        return [answer.decisions.bundle_id for answer in self.answers]

    def _run(self) -> None:
        while not self._stop.is_set():
            self.between.run()
            try:
                frame = self._arrivals.get(timeout=0.005)
            except queue.Empty:
                continue
            self.answers += self.judge.on_frame(frame)
            while (question := self.judge.intake.wanted()) is not None:
                _, first, last = question
                held = [self.frames[seq] for seq in range(first, last + 1)]
                reply = MissedReply(frame.epoch, 0, frame.seq + 1, 0, held)
                self.answers += self.judge.on_reply(reply)


@pytest.fixture
def board(pair: tuple[Path, Path], frames: Frames, tmp_path: Path) -> Iterator[Board]:
    board = Board(pair, frames, tmp_path / 'state')
    yield board
    board.close()
    assert board.judge._shadow is None, 'frames are still handed to a shadow'
    assert Counted.open == 0, 'an engine was not freed'


def state(board: Board) -> tuple[str, str]:
    found = read_state(board.swap.state_dir, board.swap.configured)
    assert found is not None
    return found.served.bundle_id, found.previous.bundle_id if found.previous else ''


def assert_refused(board: Board, path: Path, error: type[HeqisError], match: str) -> None:
    """Swap while frames flow; the refusal says why, and what was served before goes on alone."""
    served, before = board.judge.bundle.bundle_id, Counted.open
    known = board.swap.previous
    with board.flow(), pytest.raises(error, match=match):
        board.swap.to(str(path), NEVER)
    board.send(3)
    assert set(board.served_by()) == {served}
    assert board.swap.previous == known
    assert Counted.open == before


def test_each_frame_is_answered_by_the_bundle_it_names_and_one_change_is_one_swap(board, pair):
    board.send(30)
    with board.flow():
        outcome = board.swap.to(str(pair[1]), NEVER)
        wait_until(lambda: pair[1].name in board.served_by(), 10)
    assert outcome.shadow_frames == SHADOW + 1
    assert 0 < outcome.agreement < 1
    assert pair[1].name in outcome.text
    ids = board.served_by()
    turn = ids.index(pair[1].name)
    assert ids == [pair[0].name] * turn + [pair[1].name] * (len(ids) - turn)
    old, new = (board.frames.answers(path, board.sent) for path in pair)
    for answer, expected in zip(board.answers, [*old[:turn], *new[turn:]], strict=True):
        assert answer.decisions.score.tobytes() == expected.score.tobytes()
        assert answer.decisions.action.tobytes() == expected.action.tobytes()
    assert state(board) == (pair[1].name, pair[0].name)


def test_a_roll_back_loads_nothing_and_the_one_rolled_back_from_is_the_previous(board, pair):
    board.send(30)
    with board.flow():
        board.swap.to(str(pair[1]), NEVER)
    board.send(2)
    loaded = Counted.loaded
    for back_to, from_ in (pair, pair[::-1], pair):
        assert board.swap.back(NEVER).text == f'back to bundle {back_to.name}'
        board.send(2)
        assert board.served_by()[-2:] == [back_to.name] * 2
        assert state(board) == (back_to.name, from_.name)
    assert Counted.loaded == loaded
    expected = board.frames.answers(pair[0], board.sent)[-1]
    assert board.answers[-1].decisions.score.tobytes() == expected.score.tobytes()


def test_a_third_bundle_frees_the_first(board, pair, tmp_path):
    board.send(30)
    third = write_test_bundle(tmp_path, valid_for_s=60.0)
    with board.flow():
        board.swap.to(str(pair[1]), NEVER)
        board.swap.to(str(third), NEVER)
    assert Counted.open == 2
    assert state(board) == (third.name, pair[1].name)


def test_without_new_frames_the_last_windows_are_judged_once(board, pair):
    board.send(30)
    board.swap.shadow_s = 0.1
    outcome = board.swap.to(str(pair[1]), NEVER)
    assert outcome.shadow_frames == 1
    board.send(1)
    assert board.served_by()[-1] == pair[1].name


def test_before_any_frame_it_takes_over_after_the_time_of_the_shadow(board, pair):
    board.swap.shadow_s = 0.1
    outcome = board.swap.to(str(pair[1]), NEVER)
    assert outcome.shadow_frames == 0
    assert math.isnan(outcome.agreement)
    board.send(30)
    assert set(board.served_by()) == {pair[1].name}


def test_the_bundle_that_is_served_is_left_alone(board, pair):
    board.send(30)
    assert 'served already' in board.swap.to(str(pair[0]), NEVER).text
    assert Counted.loaded == 1
    assert not (board.swap.state_dir / FILE).exists()


def test_a_corrupt_bundle_is_refused(board, pair, tmp_path):
    path = write_test_bundle(tmp_path, valid_for_s=60.0)
    (path / 'linear.onnx').write_bytes((path / 'linear.onnx').read_bytes()[::-1])
    board.send(30)
    assert_refused(board, path, BundleError, 'linear.onnx')


def test_another_feature_spec_is_refused(board, tmp_path):
    board.send(30)
    assert_refused(board, write_test_bundle(tmp_path, seed=1), ConfigError, 'other features')


def test_an_engine_that_cannot_be_loaded_is_refused(board, pair):
    def fail(path: Path) -> Counted:
        raise EngineError(f'{path}: out of memory')

    board.make_engine = fail
    board.send(30)
    assert_refused(board, pair[1], EngineError, 'out of memory')


def test_an_engine_that_fails_in_the_shadow_is_refused_and_costs_no_frame(board, pair):
    board.send(30)
    judge_last = board.judge.start_shadow

    def fail_from_now(shadow: Any) -> None:
        judge_last(shadow)
        Counted.fail_in_frame = True

    board.judge.start_shadow = fail_from_now
    assert_refused(board, pair[1], EngineError, 'the device has gone')


def test_a_state_folder_that_cannot_be_written_is_refused(board, pair, tmp_path):
    (tmp_path / 'file').write_text('')
    board.swap.state_dir = tmp_path / 'file'
    board.send(30)
    assert_refused(board, pair[1], ConfigError, 'state_dir')


def test_symbols_that_change_during_the_shadow_are_refused_and_the_file_says_the_old_one(
    board, pair
):
    board.send(30)
    take_over = board.judge.take_over

    def other_symbols(new: Any) -> Any:
        board.judge.served.load(('X', 'Y'))
        return take_over(new)

    board.judge.take_over = other_symbols
    board.swap.shadow_s = 0.05
    with pytest.raises(ConfigError, match='other symbols'):
        board.swap.to(str(pair[1]), NEVER)
    assert state(board) == (pair[0].name, '')


def test_a_swap_that_is_stopped_in_the_shadow_changes_nothing(board, pair):
    board.send(30)
    stop = threading.Event()
    result: list[BaseException] = []

    def swap() -> None:
        try:
            board.swap.to(str(pair[1]), stop)
        except StoppedError as error:
            result.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    wait_until(lambda: Counted.open == 2, 10)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert result
    assert not (board.swap.state_dir / FILE).exists()
    board.send(3)
    assert set(board.served_by()) == {pair[0].name}


def test_a_roll_back_is_refused_without_a_swap_before_it(board):
    with pytest.raises(ConfigError, match='nothing has been swapped'):
        board.swap.back(NEVER)


def test_a_roll_back_to_a_folder_that_was_altered_is_refused(board, tmp_path):
    board.send(30)
    path = write_test_bundle(tmp_path, valid_for_s=60.0)
    board.swap.shadow_s = 0.05
    board.swap.to(str(path), NEVER)
    board.swap.back(NEVER)
    served = board.judge.bundle.bundle_id
    with (path / 'linear.onnx').open('ab') as file:
        file.write(b'x')
    with pytest.raises(BundleError, match='bytes'):
        board.swap.back(NEVER)
    board.send(1)
    assert board.served_by()[-1] == served
