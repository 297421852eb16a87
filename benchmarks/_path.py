# SPDX-License-Identifier: Apache-2.0
"""Bar-in to signal-out over two processes, beside the sum of its bare parts on the same arrays.

The path: bar block, feature pipeline with factor encoder, frame, link, windows, generator,
strategy, decisions, link. The bare parts: the feature kernels with the scaler, one session call
for each tile of encoder and generator, and pyzmq with as many bytes there and back. What the path
has above them is windows, tiles, strategy, frame and wire. Nothing else is measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _harness import Row
from _models import ENCODER_WINDOW, FACTORS, TILE, WINDOW, write_encoder, write_generator

from heqis_core import wire
from heqis_core.bars import BarBlock
from heqis_core.decider import Decider, Generator
from heqis_core.engine import Arrays
from heqis_core.features.spec import default_spec
from heqis_core.features.state import FeatureState
from heqis_core.frame import FeatureFrame, Stage, new_stamps
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_core.simulator import MarketSimulator
from heqis_core.strategy import StrategyConfig

SYMBOLS = (3, 300)
WARM_UP = 80
"""Bars: indicators, then the encoder's window, then the generator's."""
MODELS = ('encoder', 'generator')
US = 1e-3


class CountingEngine(OrtEngine):
    """The engine, and how many tiles it ran: the bare part runs as many."""

    tiles = 0

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile."""
        self.tiles += 1
        return super().infer(inputs)


def write_models(folder: Path) -> None:
    """Write both models."""
    n = len(default_spec().names)
    write_encoder(folder / 'encoder.onnx', n)
    write_generator(folder / 'generator.onnx', n + FACTORS)


def load(folder: Path, name: str) -> CountingEngine:
    """Load one of the two models."""
    engine = CountingEngine()
    engine.load(folder / f'{name}.onnx')
    return engine


class BareModel:
    """The runtime's session on a full tile, without anything of ours around it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open it as the engine does."""
        engine = load(folder, name)
        spec = engine.specs()[0][0]
        self._session = engine._session
        rng = np.random.default_rng(0)
        self._feed = {spec.name: rng.standard_normal(spec.shape).astype(np.float32)}

    def run(self, tiles: int) -> int:
        """Run so many tiles; return ns."""
        start = time.perf_counter_ns()
        for _ in range(tiles):
            self._session.run(None, self._feed)
        return time.perf_counter_ns() - start


class GatewaySide:
    """Bars to frames, and the bare features and encoder on the same bars."""

    def __init__(self, folder: Path, n_symbols: int) -> None:
        """Build the pipeline for a simulated market."""
        spec = default_spec()
        names = spec.names
        self._market = MarketSimulator(n_symbols, seed=5)
        self._scaler = Scaler(names, [0.0] * len(names), [1.0] * len(names))
        self._engine = load(folder, 'encoder')
        self._bare_state = FeatureState(spec, n_symbols)
        self._bare_encoder = BareModel(folder, 'encoder')
        self._pipeline = FeaturePipeline(
            self._market.symbols,
            spec,
            self._scaler,
            self._engine,
            ENCODER_WINDOW,
            TILE,
            2 * ENCODER_WINDOW,
        )

    def next_block(self) -> BarBlock:
        """Return the next bar block."""
        return self._market.next_block()

    def frame(self, seq: int, block: BarBlock) -> FeatureFrame:
        """Make the frame of one bar block."""
        self._engine.tiles = 0
        stamps = new_stamps()
        stamps[Stage.INGEST] = time.time_ns()
        tensors = self._pipeline.step(seq, block, stamps)
        return FeatureFrame(
            'bench', 1, seq, block.event_time_ns, 0, '0' * 16, block.symbols, tensors, stamps
        )

    def bare(self, block: BarBlock) -> tuple[int, int]:
        """Return the bare times in ns of features and encoder for the block of the last frame."""
        start = time.perf_counter_ns()
        self._scaler.apply(self._bare_state.step(block.values, block.status))
        features_ns = time.perf_counter_ns() - start
        return features_ns, self._bare_encoder.run(self._engine.tiles)


class ComputeSide:
    """Frames to decisions, and the bare generator on as many tiles."""

    def __init__(self, folder: Path, symbols: tuple[str, ...]) -> None:
        """Build the decider for these symbols."""
        self._engine = load(folder, 'generator')
        self._bare_generator = BareModel(folder, 'generator')
        self._decider = Decider(
            symbols,
            len(default_spec().names) + FACTORS,
            WINDOW,
            2 * WINDOW,
            [Generator('gru', self._engine, TILE, WINDOW)],
            'gru',
            StrategyConfig(0.05, -0.05),
            '0' * 16,
        )

    def decide(self, frame: FeatureFrame) -> Any:
        """Return the decisions of one frame."""
        self._engine.tiles = 0
        return self._decider.decide(frame)[0]

    def bare(self) -> int:
        """Return the bare time in ns of the generator for the last frame."""
        return self._bare_generator.run(self._engine.tiles)


@dataclass
class Measured:
    """Times in us, one entry for each bar."""

    path: list[float]
    parts: dict[str, list[float]]

    def rows(self, n_symbols: int) -> list[Row]:
        """Return path beside sum, and each part."""
        case = f'bar to signal, {n_symbols} symbols'
        path, sums = np.array(self.path), np.sum(list(self.parts.values()), axis=0)
        rows = []
        for percent in (50, 99):
            value, floor = (float(np.percentile(times, percent)) for times in (path, sums))
            ratio = float(np.median(path / sums)) if percent == 50 else value / floor
            rows.append(Row(case, f'p{percent}', 'us', value, floor, None, ratio))
        for name, times in self.parts.items():
            rows.append(Row(case, f'bare {name} p50', 'us', float(np.median(times))))
        return rows


def compute_loop(settings: dict[str, Any], way: Any, bare: Any, n_symbols: int, count: int) -> Any:
    """Serve `count` bars in the other process; return the bare generator times in ns."""
    market = MarketSimulator(n_symbols, seed=5)
    side = ComputeSide(Path(settings['models']), market.symbols)
    times = []
    for _ in range(count):
        frame = way.recv_frame()
        decisions = side.decide(frame)
        way.send_decisions(decisions)
        bare.recv()
        bare.use_bytes(wire.encode_decisions(decisions))
        bare.send()
        times.append(side.bare())
        bare.send()
    return times


def gateway_loop(
    settings: dict[str, Any],
    way: Any,
    bare: Any,
    n_symbols: int,
    count: int,
    result: Callable[[], Any],
) -> Measured:
    """Send `WARM_UP + count` bars through both processes, and measure the last `count`."""
    side = GatewaySide(Path(settings['models']), n_symbols)
    parts: dict[str, list[float]] = {'features': [], 'encoder': [], 'transport': []}
    path = []
    for seq in range(WARM_UP + count):
        block = side.next_block()
        start = time.perf_counter_ns()
        frame = side.frame(seq, block)
        way.send_frame(frame)
        decisions = way.recv_decisions()
        path.append((time.perf_counter_ns() - start) * US)
        if decisions.seq != seq:
            raise RuntimeError(f'decisions of frame {decisions.seq} came, expected {seq}')
        for name, spent_ns in zip(('features', 'encoder'), side.bare(block), strict=True):
            parts[name].append(spent_ns * US)
        bare.use_bytes(wire.encode_frame(frame))
        start = time.perf_counter_ns()
        bare.send()
        bare.recv()
        parts['transport'].append((time.perf_counter_ns() - start) * US)
        bare.recv()  # the other process has run its bare part
    parts['generator'] = [value * US for value in result()]
    return Measured(path[WARM_UP:], {name: times[WARM_UP:] for name, times in parts.items()})
