# SPDX-License-Identifier: Apache-2.0
"""From a bar block to the tensors of a feature frame: indicators, scaler, factor encoder.

Training, backtest, batch, replay and the live gateway call this one pipeline. The scaler is
applied here and nowhere else; the factors of the encoder follow the scaled indicators as further
columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_core.bars import CLOSE, BarBlock, BarStatus, BarTable
from heqis_core.engine import Arrays, Engine, TiledEngine, Workers
from heqis_core.errors import DataError
from heqis_core.features.spec import FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.frame import Stage, new_stamps, stamp
from heqis_core.market_facts import limit_places, market_facts
from heqis_core.scaler import Scaler
from heqis_core.windows import Windows

# Plain numbers: numpy is slow with enums, and this is done for every frame.
_VALID, _WARMING = int(BarStatus.VALID), int(BarStatus.WARMING)


class _Step(NamedTuple):
    """One block, and the state before it."""

    seq: int
    block: BarBlock
    before: dict[str, npt.NDArray[np.generic]]


class FeaturePipeline:
    """Advance the features of S symbols by one bar block at a time.

    Args:
        symbols: S names, in the order of every block.
        spec: indicators to compute (F columns).
        scaler: fitted on the same F columns.
        encoder: loaded factor encoder, input float32 (tile, F, 1, T), one output float32 (tile, K)
            or (tile, K, 1, 1); None leaves the factors out.
        encoder_window: T, indicator rows that the encoder sees.
        encoder_tile: rows of one encoder call.
        horizon: frames within which those T rows must lie.
        channels: of every block, see `BarBlock.channels`.
        amendable: newest blocks that `amend` may still correct; each costs a copy of the state.
        threads: that run the encoder at once, the caller's among them; None takes the cores there
            are, see `Workers`. Their number changes no bit.

    Raises ConfigError if the spec reads a channel that is not there, EngineError for an encoder
    with another input.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        spec: FeatureSpec,
        scaler: Scaler,
        encoder: Engine | None,
        encoder_window: int,
        encoder_tile: int,
        horizon: int,
        channels: Sequence[str] = (),
        amendable: int = 0,
        threads: int | None = None,
    ) -> None:
        self.symbols = tuple(symbols)
        self._steps: deque[_Step] = deque(maxlen=amendable)
        self._channels = tuple(channels)
        self._limits = limit_places(self._channels)
        self._state = FeatureState(spec, len(self.symbols), self._channels)
        self._scaler = scaler
        self._workers = Workers(threads)
        self._n_indicators = len(spec.names)
        self._n_factors = 0
        self._encoder: TiledEngine | None = None
        if encoder is not None:
            shape = (encoder_tile, self._n_indicators, 1, encoder_window)
            self._encoder = TiledEngine(encoder, shape, self._workers.n)
            self._n_factors = self._encoder.outputs[0].shape[1]
        self._windows = Windows(len(self.symbols), encoder_window, self._n_indicators, horizon)
        factors = tuple(f'factor_{k}' for k in range(self._n_factors))
        self.feature_names: tuple[str, ...] = tuple(spec.names) + factors

    def step(
        self, seq: int, block: BarBlock, stamps: npt.NDArray[np.int64] | None = None
    ) -> Arrays:
        """Return the tensors of frame `seq`: `features` (S, F+K), `status` (S,), `close` (S,).

        `market` (S,) joins them where the channels hold the price limits of the day.
        A symbol is VALID only if each of its features is finite; a clean bar without that is
        WARMING.

        Raises DataError for a block with other channels than the pipeline was made for.
        """
        stamps = new_stamps() if stamps is None else stamps
        stamp(stamps, Stage.CLEANED)
        if self._steps.maxlen:
            self._steps.append(_Step(seq, block, self.save()))
        features = np.full((len(self.symbols), len(self.feature_names)), np.nan, np.float32)
        indicators = features[:, : self._n_indicators]
        if self._channels and block.channels != self._channels:
            raise DataError(
                f'block of {block.event_time_ns} carries the channels {list(block.channels)}; '
                f'expected {list(self._channels)}, in this order, in every block of the stream'
            )
        raw = self._state.step(block.values, block.status, block.event_time_ns, block.extra)
        indicators[:] = self._scaler.apply(raw)
        clean = block.status == _VALID
        ready = clean & np.isfinite(indicators).all(axis=1)
        stamp(stamps, Stage.FEATURES)
        if self._encoder is not None:
            ready = self._encode(seq, features, ready)
        status = block.status.copy()
        status[clean & ~ready] = _WARMING
        tensors: Arrays = {
            'features': features,
            'status': status,
            'close': block.values[CLOSE].copy(),
        }
        if self._limits is not None:
            tensors['market'] = market_facts(block, self._limits)
        stamp(stamps, Stage.ENCODED)
        return tensors

    def amend(self, block: BarBlock) -> bool:
        """Correct a block that was stepped, for the sake of what comes after it.

        The newest steps are done again, with `block` in the place of the one of its event time.
        Frames that were made of them stay as they are. Return False, and change nothing, if that
        block is no longer within reach.
        """
        steps = list(self._steps)
        times = [step.block.event_time_ns for step in steps]
        if block.event_time_ns not in times:
            return False
        place = times.index(block.event_time_ns)
        self._steps = deque(steps[:place], self._steps.maxlen)
        self.load(steps[place].before)
        for step in steps[place:]:
            again = block if step.block.event_time_ns == block.event_time_ns else step.block
            self.step(step.seq, again)
        return True

    def run(self, table: BarTable) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return features float32 (T, S, F+K), status uint8 (T, S) of a whole table from seq 0."""
        features = np.empty((len(table), len(self.symbols), len(self.feature_names)), np.float32)
        status = np.empty((len(table), len(self.symbols)), np.uint8)
        for index in range(len(table)):
            tensors = self.step(index, table.block(index))
            features[index] = cast('npt.NDArray[np.float32]', tensors['features'])
            status[index] = cast('npt.NDArray[np.uint8]', tensors['status'])
        return features, status

    def close(self) -> None:
        """End the threads; the encoder is the caller's."""
        self._workers.close()

    def save(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the whole state as arrays, so that `load` continues bit for bit."""
        parts = {'indicators': self._state.save(), 'windows': self._windows.save()}
        return {f'{part}.{name}': value for part, d in parts.items() for name, value in d.items()}

    def load(self, saved: dict[str, npt.NDArray[np.generic]]) -> None:
        """Continue from `save`; raise ConfigError if the spec or the symbols differ."""
        for part, target in (('indicators', self._state), ('windows', self._windows)):
            prefix = part + '.'
            target.load({k[len(prefix) :]: v for k, v in saved.items() if k.startswith(prefix)})

    def _encode(
        self, seq: int, features: npt.NDArray[np.float32], ready: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        encoder = self._encoder
        assert encoder is not None
        self._windows.push(seq, features[:, : self._n_indicators], ready)
        which = np.flatnonzero(ready & self._windows.ready(seq))

        def encode(tile: int, worker: int) -> None:
            some = which[tile * encoder.tile : (tile + 1) * encoder.tile]
            fill = partial(self._windows.gather_columns, some)
            (factors,) = encoder.infer(len(some), fill, worker).values()
            features[some, self._n_indicators :] = factors.reshape(len(some), self._n_factors)

        self._workers.run(encode, -(-len(which) // encoder.tile))
        return cast('npt.NDArray[np.bool_]', np.isfinite(features).all(axis=1))
