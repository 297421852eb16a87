# SPDX-License-Identifier: Apache-2.0
"""The path from a bar to its decisions in two processes, and its bare parts on the same arrays.

The path: bar block, feature pipeline with factor encoder, frame, link, windows, generators,
strategy, decisions, link. The bare parts: the feature kernels with the scaler, ONNX Runtime's
session on each tile of encoder and generators, as many threads as the path has, and pyzmq with as
many bytes there and back. What the path has above them is windows, tiles, strategy, frame and
wire. Nothing else is measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _models import FACTORS, NAMES, WINDOW, spec

from heqis_core import wire
from heqis_core.bars import BarBlock, BarStatus
from heqis_core.decider import Decider, Generator
from heqis_core.engine import Workers
from heqis_core.features.state import FeatureState
from heqis_core.frame import FeatureFrame, Stage, new_stamps
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_core.simulator import MarketSimulator
from heqis_core.strategy import StrategyConfig
from heqis_core.windows import Windows

HORIZON = 2 * WINDOW
WARM_UP = spec().warmup_bars + 2 * WINDOW + 10
"""Bars: indicators, then the encoder's window, then the generators'; some are suspended."""
THREADS = Workers().n
SEED = 5
US = 1e-3

Times = dict[str, list[float]]
"""By part, us, an entry for each bar."""


class BareModel:
    """The runtime's session on tiles that lie ready, without anything of ours around it."""

    def __init__(self, engine: OrtEngine, n_symbols: int) -> None:
        """Make room for the tiles of so many symbols."""
        name, dtype, shape = engine.specs()[0][0]
        self._name = name
        self._session: Any = engine._session
        self.tile = shape[0]
        self._tiles = np.zeros((-(-n_symbols // self.tile), *shape), dtype)
        self._count = 0
        self._pool = ThreadPoolExecutor(THREADS)

    def fill(self, which: npt.NDArray[np.int64], gather: Callable[..., object]) -> None:
        """Write the windows of these symbols."""
        self._count = -(-len(which) // self.tile)
        for k, tile in enumerate(self._tiles[: self._count]):
            some = which[k * self.tile : (k + 1) * self.tile]
            gather(some, tile[: len(some)])
            tile[len(some) :] = 0

    def run_us(self) -> float:
        """Run them all; return us."""
        start = time.perf_counter_ns()
        if self._count > 1:
            list(self._pool.map(self._share, range(THREADS)))
        else:
            self._share(0)
        return (time.perf_counter_ns() - start) * US

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _share(self, k: int) -> None:
        for tile in self._tiles[k : self._count : THREADS]:
            self._session.run(None, {self._name: tile})


class GatewaySide:
    """Bars to frames, and the bare features and encoder on the same bars."""

    def __init__(self, models: Path, n_symbols: int) -> None:
        """Build the pipeline for a simulated market."""
        names = spec().names
        self._market = MarketSimulator(n_symbols, seed=SEED)
        self._scaler = Scaler(names, [0.0] * len(names), [1.0] * len(names))
        encoder = open_engine(models / 'encoder.onnx')
        self._pipeline = FeaturePipeline(
            self._market.symbols,
            spec(),
            self._scaler,
            encoder,
            WINDOW,
            encoder.specs()[0][0].shape[0],
            HORIZON,
        )
        self._state = FeatureState(spec(), n_symbols)
        self._windows = Windows(n_symbols, WINDOW, len(names), HORIZON)
        self._model = BareModel(encoder, n_symbols)

    def next_block(self) -> BarBlock:
        """Return the next bar block."""
        return self._market.next_block()

    def frame(self, seq: int, block: BarBlock) -> FeatureFrame:
        """Make the frame of one bar block."""
        stamps = new_stamps()
        stamps[Stage.INGEST] = time.time_ns()
        tensors = self._pipeline.step(seq, block, stamps)
        return FeatureFrame(
            'bench', 1, seq, block.event_time_ns, 0, '0' * 16, block.symbols, tensors, stamps
        )

    def bare(self, seq: int, block: BarBlock) -> dict[str, float]:
        """Return the bare times of features and encoder for the block of the last frame."""
        start = time.perf_counter_ns()
        raw = self._scaler.apply(self._state.step(block.values, block.status))
        features_us = (time.perf_counter_ns() - start) * US
        ready = (block.status == BarStatus.VALID) & np.isfinite(raw).all(axis=1)
        self._windows.push(seq, raw, ready)
        which = np.flatnonzero(ready & self._windows.ready(seq))
        self._model.fill(which, self._windows.gather_columns)
        return {'features': features_us, 'encoder': self._model.run_us()}

    def close(self) -> None:
        """End the threads."""
        self._pipeline.close()
        self._model.close()


class ComputeSide:
    """Frames to decisions, and the bare generators on the same windows."""

    def __init__(self, models: Path, symbols: tuple[str, ...]) -> None:
        """Build the decider for these symbols."""
        n_features = len(spec().names) + FACTORS
        engines = [open_engine(models / f'{name}.onnx') for name in NAMES]
        tile = engines[0].specs()[0][0].shape[0]
        self._models = [BareModel(engine, len(symbols)) for engine in engines]
        self._windows = Windows(len(symbols), WINDOW, n_features, HORIZON)
        self._decider = Decider(
            symbols,
            n_features,
            WINDOW,
            HORIZON,
            [Generator(n, e, tile, WINDOW) for n, e in zip(NAMES, engines, strict=True)],
            'ensemble',
            StrategyConfig(0.05, -0.05),
            '0' * 16,
            NAMES,
        )

    def decide(self, frame: FeatureFrame) -> Any:
        """Return the decisions of one frame."""
        return self._decider.decide(frame)[0]

    def bare(self, frame: FeatureFrame) -> dict[str, float]:
        """Return the bare time of each generator for the last frame, and that of its windows.

        The windows are written by one thread, once for all generators.
        """
        status: Any = frame.tensors['status']
        features: Any = frame.tensors['features']
        start = time.perf_counter_ns()
        valid = status == BarStatus.VALID
        self._windows.push(frame.seq, features, valid)
        which = np.flatnonzero(valid & self._windows.ready(frame.seq))
        self._models[0].fill(which, self._windows.gather)
        times = {'windows': (time.perf_counter_ns() - start) * US}
        for model in self._models[1:]:
            model.fill(which, self._windows.gather)
        for name, model in zip(NAMES, self._models, strict=True):
            times[name] = model.run_us()
        return times

    def close(self) -> None:
        """End the threads."""
        self._decider.close()
        for model in self._models:
            model.close()


def compute_loop(models: Path, way: Any, bare: Any, n_symbols: int, count: int) -> Times:
    """Serve the bars of `gateway_loop` in the other process; return its bare times."""
    side = ComputeSide(models, MarketSimulator(n_symbols, seed=SEED).symbols)
    times: Times = {}
    for _ in range(WARM_UP + count):
        frame = way.recv_frame()
        decisions = side.decide(frame)
        way.send_decisions(decisions)
        bare.use_bytes(wire.encode_decisions(decisions))
        bare.recv()
        bare.send()
        _append(times, side.bare(frame))
        bare.send()
    side.close()
    return {name: values[WARM_UP:] for name, values in times.items()}


def gateway_loop(
    models: Path, way: Any, bare: Any, n_symbols: int, count: int
) -> tuple[list[float], Times]:
    """Send bars through both processes; return path and bare times in us of the last `count`.

    The path and its bare parts take turns bar by bar, so that a slow phase of the machine meets
    both.
    """
    side = GatewaySide(models, n_symbols)
    path: list[float] = []
    times: Times = {}
    for seq in range(WARM_UP + count):
        block = side.next_block()
        start = time.perf_counter_ns()
        frame = side.frame(seq, block)
        way.send_frame(frame)
        decisions = way.recv_decisions()
        path.append((time.perf_counter_ns() - start) * US)
        if decisions.seq != seq:
            raise RuntimeError(f'decisions of frame {decisions.seq} came, expected {seq}')
        _append(times, side.bare(seq, block))
        bare.use_bytes(wire.encode_frame(frame))
        start = time.perf_counter_ns()
        bare.send()
        bare.recv()
        _append(times, {'transport': (time.perf_counter_ns() - start) * US})
        bare.recv()  # the other process has run its bare part
    side.close()
    return path[WARM_UP:], {name: values[WARM_UP:] for name, values in times.items()}


def _append(times: Times, more: dict[str, float]) -> None:
    for name, value in more.items():
        times.setdefault(name, []).append(value)
