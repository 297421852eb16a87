# SPDX-License-Identifier: Apache-2.0
"""The engine protocol of RKNN, TensorRT and ONNX Runtime, and inference on padded tiles.

A tile is a batch of the bundle's fixed size: attention and some kernels change bits with the batch
size, so every engine always sees the same shape, and rows past the end are padded with zeros and
thrown away. Which thread runs a tile changes no bit either.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, EngineError

Arrays = dict[str, npt.NDArray[np.generic]]


class TensorSpec(NamedTuple):
    """Name, dtype and static shape of one input or output; the first axis is the tile."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Engine(Protocol):
    """One loaded model."""

    kind: str
    """Class of engine: `onnxruntime`, `rknn`, `tensorrt`; part of the features id."""

    def load(self, path: Path) -> None:
        """Load a model file; raise EngineError that names the file and the cause."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and the outputs of the loaded model."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile: arrays by input name to arrays by output name.

        Several threads may call it at once; an engine that runs one tile at a time lets them wait.
        The inputs are read before it returns, the outputs are the caller's.
        """

    def close(self) -> None:
        """Free the model."""


def check_inputs(path: Path, specs: Sequence[TensorSpec], inputs: Arrays) -> None:
    """Raise EngineError that names the input of a model that is missing, unknown, or another."""
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise EngineError(
                f'{path}: input {spec.name!r} is missing; got {sorted(inputs) or "no input"}'
            )
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise EngineError(
                f'{path}: input {spec.name!r} has {array.dtype} {array.shape}, '
                f'expected {spec.dtype} {spec.shape}'
            )
    if len(inputs) != len(specs):
        known = [spec.name for spec in specs]
        unknown = sorted(set(inputs) - set(known))
        raise EngineError(f'{path}: unknown input {unknown}, the model has {known}')


def beyond(
    found: npt.NDArray[np.generic], expected: npt.NDArray[np.generic], tolerance: float
) -> float | None:
    """Return the largest difference if an element is off by more than `tolerance`, else None.

    The tolerance is absolute plus relative to `expected`; what is not a number is off.
    """
    if np.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return None
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())


class TiledEngine:
    """An engine with one float32 input, and a padded tile of it for each worker.

    The tiles are kept and filled again, so that a frame allocates none.

    Args:
        engine: loaded.
        shape: of its input, the tile first.
        n_workers: how many may call `infer` at once, each with its own number.

    Raises EngineError if the engine has more than one input, or one of another type or shape.
    """

    def __init__(self, engine: Engine, shape: tuple[int, ...], n_workers: int = 1) -> None:
        inputs, self.outputs = engine.specs()
        if [spec[1:] for spec in inputs] != [(np.dtype(np.float32), shape)]:
            raise EngineError(
                f'engine expects {inputs}, not one float32 input {shape}; export the model again'
            )
        self.tile = shape[0]
        self._engine = engine
        self._name = inputs[0].name
        self._padded = [np.zeros(shape, np.float32) for _ in range(n_workers)]
        self._filled = [0] * n_workers

    def infer(
        self, n: int, fill: Callable[[npt.NDArray[np.float32]], object], worker: int = 0
    ) -> Arrays:
        """Run the n rows, at most a tile, that `fill` writes into the array (n, ...) it is given.

        Returns arrays by output name with first axis n.
        """
        padded = self._padded[worker]
        # What an earlier and fuller tile left behind the rows of this one.
        if n < self._filled[worker]:
            padded[n:] = 0
        self._filled[worker] = n
        fill(padded[:n])
        answers = self._engine.infer({self._name: padded})
        return {name: values[:n] for name, values in answers.items()}


def infer_tiled(engine: Engine, rows: npt.NDArray[np.float32], tile: int) -> Arrays:
    """Run `rows` (n, ...) through a one-input engine in tiles, the last one padded with zeros.

    Returns arrays by output name with first axis n. Raises EngineError as `TiledEngine`.
    """
    tiled = TiledEngine(engine, (tile, *rows.shape[1:]))
    n = len(rows)
    result: Arrays = {out.name: np.empty((n, *out.shape[1:]), out.dtype) for out in tiled.outputs}
    for start in range(0, n, tile):
        part = rows[start : start + tile]
        for name, values in tiled.infer(len(part), partial(np.copyto, src=part)).items():
            result[name][start : start + tile] = values
    return result


MOST_WORKERS = 8
"""Cores that one call takes at most, unless told otherwise."""
_WORTH_NS = 1_000_000
"""Work that is shared out: waking the other threads costs up to a fifth of that."""


class Workers:
    """The caller of `run`, and threads that help it where the work is worth waking them.

    Threads start when they are first needed, sleep between calls and end with `close`.

    Args:
        n: workers, the caller among them; None takes the cores of this process, up to
            MOST_WORKERS.

    Raises ConfigError for less than one.
    """

    def __init__(self, n: int | None = None) -> None:
        if n is not None and n < 1:
            raise ConfigError(f'workers: n = {n}; expected at least 1')
        self.n = min(_cores(), MOST_WORKERS) if n is None else n
        self._pool = ThreadPoolExecutor(max(self.n - 1, 1), thread_name_prefix='tiles')
        self._job_ns = _WORTH_NS

    def run(self, job: Callable[[int, int], None], count: int) -> None:
        """Call `job(i, worker)` once for each i below `count`; return when all have ended.

        No two calls with the same worker, a number below `n`, overlap. The caller never waits for
        a thread that has not woken yet: it does what nobody else has begun. Raises the first error
        of a job; what has not begun by then is left out. Only one thread at a time may call it.
        """
        left = deque(range(count))

        def work(worker: int) -> None:
            try:
                while left:
                    try:
                        i = left.popleft()
                    except IndexError:  # another worker was faster
                        return
                    job(i, worker)
            except BaseException:
                left.clear()
                raise

        n = min(self.n, count) if count * self._job_ns > _WORTH_NS else 1
        start_ns = time.perf_counter_ns()
        helpers = [self._pool.submit(work, worker) for worker in range(1, n)]
        try:
            work(0)
        finally:
            errors = [error for helper in helpers if (error := _end(helper)) is not None]
        if errors:
            raise errors[0]
        if count:
            self._job_ns = (time.perf_counter_ns() - start_ns) * n // count

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._pool.shutdown()


def _cores() -> int:
    """Return the cores that this process may use; of the machine where the system does not say."""
    affinity = getattr(os, 'sched_getaffinity', None)
    return (len(affinity(0)) if affinity else os.cpu_count()) or 1


def _end(helper: Future[None]) -> BaseException | None:
    """Wait for a helper, unless it has not begun; return what it raised."""
    return None if helper.cancel() else helper.exception()
