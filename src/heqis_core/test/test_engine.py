# SPDX-License-Identifier: Apache-2.0
"""Inference on padded tiles, and the workers that share them out."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.engine import Arrays, TensorSpec, TiledEngine, Workers, infer_tiled
from heqis_core.errors import ConfigError, EngineError
from heqis_core.testing import wait_until

F32 = np.dtype(np.float32)


class SquareEngine:
    """Engine that squares its tile, sums its rows, and keeps what it was given."""

    kind = 'square'

    def __init__(self, tile: int, width: int, n_inputs: int = 1) -> None:
        """Make an engine of that tile, with `n_inputs` inputs of that width."""
        self.tiles: list[np.ndarray] = []
        self.inputs = tuple(TensorSpec(f'x{i}', F32, (tile, width)) for i in range(n_inputs))
        self.outputs = (
            TensorSpec('square', F32, (tile, width)),
            TensorSpec('total', F32, (tile,)),
        )

    def load(self, path: Path) -> None:
        """Do nothing."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the specs."""
        return self.inputs, self.outputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Return square and row sums."""
        x = inputs['x0']
        self.tiles.append(x.copy())
        return {'square': x * x, 'total': x.sum(axis=1)}

    def close(self) -> None:
        """Do nothing."""


@given(n=st.integers(0, 40), tile=st.integers(1, 16), width=st.integers(1, 5))
def test_every_row_comes_back_once_and_padding_is_zero(n: int, tile: int, width: int) -> None:
    engine = SquareEngine(tile, width)
    rows = np.random.default_rng(n).normal(size=(n, width)).astype(np.float32)
    result = infer_tiled(engine, rows, tile)
    np.testing.assert_array_equal(result['square'], rows * rows)
    assert result['total'].shape == (n,)
    assert len(engine.tiles) == -(-n // tile)
    assert all(seen.shape == (tile, width) for seen in engine.tiles)
    if n % tile:
        assert not engine.tiles[-1][n % tile :].any()


def test_rows_of_an_earlier_tile_do_not_leak_into_the_padding() -> None:
    engine = SquareEngine(4, 1)
    infer_tiled(engine, np.full((5, 1), 7, np.float32), 4)
    np.testing.assert_array_equal(engine.tiles[1], [[7], [0], [0], [0]])


@pytest.mark.parametrize(('engine_tile', 'n_inputs'), [(4, 1), (8, 2)])
def test_another_tile_or_a_second_input_is_refused(engine_tile: int, n_inputs: int) -> None:
    with pytest.raises(EngineError, match=r'not one float32 input \(8, 2\)'):
        infer_tiled(SquareEngine(engine_tile, 2, n_inputs), np.zeros((3, 2), np.float32), 8)


def test_rows_of_another_width_or_an_input_of_another_type_are_refused() -> None:
    with pytest.raises(EngineError, match=r'not one float32 input \(8, 3\)'):
        infer_tiled(SquareEngine(8, 2), np.zeros((3, 3), np.float32), 8)
    halves = SquareEngine(8, 2)
    halves.inputs = (TensorSpec('x0', np.dtype(np.float16), (8, 2)),)
    with pytest.raises(EngineError, match='not one float32 input'):
        TiledEngine(halves, (8, 2))


@given(counts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=12))
def test_a_kept_tile_holds_its_rows_and_zeros_whatever_was_in_it_before(
    counts: list[tuple[int, int]],
) -> None:
    engine = SquareEngine(4, 2)
    tiled = TiledEngine(engine, (4, 2), 3)
    for value, (n, worker) in enumerate(counts, 1):
        out = tiled.infer(n, lambda rows, value=value: rows.fill(value), worker)
        assert out['square'].shape == (n, 2)
        assert (engine.tiles[-1][:n] == value).all()
        assert not engine.tiles[-1][n:].any()


@given(n=st.integers(1, 4), counts=st.lists(st.integers(0, 30), max_size=5))
def test_each_job_is_done_once_and_no_worker_does_two_at_a_time(n: int, counts: list[int]) -> None:
    workers = Workers(n)
    busy = [threading.Lock() for _ in range(n)]
    for count in counts:
        done: list[int] = []

        def job(i: int, worker: int, done: list[int] = done) -> None:
            assert busy[worker].acquire(blocking=False)
            done.append(i)
            busy[worker].release()

        workers.run(job, count)
        assert sorted(done) == list(range(count))
    workers.close()


def test_other_threads_really_help() -> None:
    workers = Workers(3)
    together = threading.Barrier(3, timeout=30)
    workers.run(lambda _i, _worker: together.wait(), 3)
    workers.close()


def test_little_work_stays_with_the_caller() -> None:
    workers = Workers(4)

    def caller_alone() -> bool:
        used: set[int] = set()
        workers.run(lambda _i, worker: used.add(worker), 4)
        return used == {0}

    wait_until(lambda: all(caller_alone() for _ in range(3)), 30)
    workers.close()


@pytest.mark.parametrize('bad', [0, 1, 2])
def test_the_error_of_a_job_comes_out_when_all_have_stopped_and_the_next_call_works(
    bad: int,
) -> None:
    workers = Workers(3)
    together = threading.Barrier(3, timeout=30)
    running = 0
    lock = threading.Lock()

    def job(i: int, _worker: int) -> None:
        nonlocal running
        with lock:
            running += 1
        together.wait()
        with lock:
            running -= 1
        if i == bad:
            raise EngineError(f'tile {i}')

    for _ in range(2):
        with pytest.raises(EngineError, match=f'tile {bad}'):
            workers.run(job, 3)
        assert running == 0
    done: list[int] = []
    workers.run(lambda i, _worker: done.append(i), 5)
    assert sorted(done) == list(range(5))
    workers.close()


def test_after_an_error_what_has_not_begun_is_left_out() -> None:
    workers = Workers(2)
    both_work = threading.Event()
    done: list[int] = []

    def job(i: int, worker: int) -> None:
        if worker == 0:
            assert both_work.wait(30)
            raise EngineError('tile 0')
        both_work.set()
        done.append(i)

    with pytest.raises(EngineError, match='tile 0'):
        workers.run(job, 300_000)
    assert 0 < len(done) < 299_999
    workers.close()


def test_close_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    workers = Workers(3)
    together = threading.Barrier(3, timeout=30)
    workers.run(lambda _i, _worker: together.wait(), 3)
    assert len(set(threading.enumerate()) - before) == 2
    workers.close()
    workers.close()
    assert set(threading.enumerate()) <= before


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match='n = 0'):
        Workers(0)
