# SPDX-License-Identifier: Apache-2.0
"""From feature frames to decisions: windows, generators on padded tiles, strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BarStatus
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, Decisions, Predictions, Reason
from heqis_core.engine import Engine, TiledEngine, Workers
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.jit import one_layout, strict_njit
from heqis_core.manifest import ENSEMBLE
from heqis_core.market_facts import MarketFact
from heqis_core.strategy import StrategyConfig, Verdict, decide
from heqis_core.windows import Windows

# Plain numbers: numpy is slow with enums, and this is done for every frame.
_VALID = int(BarStatus.VALID)
_REASON_OF_STATUS = np.zeros(256, np.uint32)
_REASON_OF_STATUS[BarStatus.NO_BAR] = Reason.NO_BAR
_REASON_OF_STATUS[BarStatus.SUSPENDED] = Reason.SUSPENDED
_REASON_OF_STATUS[BarStatus.REJECTED] = Reason.REJECTED
_REASON_OF_STATUS[BarStatus.WARMING] = Reason.WARMING
_REASON_OF_FACTS = np.zeros(256, np.uint32)
for _fact, _reason in (
    (MarketFact.AT_LIMIT_UP, Reason.AT_LIMIT_UP),
    (MarketFact.AT_LIMIT_DOWN, Reason.AT_LIMIT_DOWN),
):
    _REASON_OF_FACTS[np.arange(256) & _fact != 0] |= np.uint32(_reason)
_NONE = int(Action.NONE)


@dataclass(frozen=True, slots=True)
class Generator:
    """One loaded generator of a bundle.

    Attributes:
        name: as in the bundle's manifest.
        engine: input float32 (tile, window, F); outputs `log_return` (tile,) and `probabilities`
            (tile, 3).
        tile: rows of one call.
        window: rows that this generator sees; at most the bundle's window.
    """

    name: str
    engine: Engine
    tile: int
    window: int


class Decider:
    """Keep the windows of S symbols and turn each frame into exactly one decision per symbol.

    Args:
        symbols: S names, in the order of every frame.
        n_features: columns of a frame's `features`.
        window: rows of the longest window.
        horizon: frames within which those rows must lie.
        generators: what the bundle holds.
        served: name of the generator that the strategy uses, or `ensemble`.
        strategy: thresholds.
        bundle_id: id of the bundle.
        members: generators whose mean is the ensemble; empty without one.
        threads: that run tiles at once, the caller's among them; None takes the cores there are,
            see `Workers`. Their number changes no bit.

    Raises EngineError for a generator whose input is not of its tile, window and columns.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        n_features: int,
        window: int,
        horizon: int,
        generators: Sequence[Generator],
        served: str,
        strategy: StrategyConfig,
        bundle_id: str,
        members: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        self.symbols = tuple(symbols)
        self.bundle_id = bundle_id
        self.served = served
        self._generators = tuple(generators)
        names = [generator.name for generator in self._generators]
        self._members = np.array([names.index(name) for name in members], np.int64)
        self._names = (*names, ENSEMBLE) if members else tuple(names)
        self._served_index = self._names.index(served)
        self._strategy = strategy
        self._valid_for_ns = int(strategy.valid_for_s * 1e9)
        self._horizon = horizon
        self._windows = Windows(len(self.symbols), window, n_features, horizon)
        self._workers = Workers(threads)
        self._tiled = [
            TiledEngine(g.engine, (g.tile, g.window, n_features), self._workers.n)
            for g in self._generators
        ]
        self._hole_seq: int | None = None
        # Compiles before the first frame is due.
        nobody = np.empty(0, np.float32)
        decide(strategy, nobody.reshape(0, 3), nobody, np.empty(0, np.uint32))
        mean_of(nobody.reshape(1, 0))

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        symbols: Sequence[str],
        make_engine: Callable[[Path], Engine],
        threads: int | None = None,
    ) -> Decider:
        """Load every generator of a verified bundle; raise EngineError if one cannot be loaded."""
        manifest = bundle.manifest
        generators: list[Generator] = []
        try:
            for part in manifest.generators:
                engine = make_engine(bundle.generator_path(part.name))
                generators.append(Generator(part.name, engine, part.tile, part.window))
            return cls(
                symbols,
                len(manifest.features.names),
                manifest.window.length,
                manifest.window.horizon,
                generators,
                manifest.served,
                manifest.strategy,
                bundle.bundle_id,
                manifest.ensemble.members if manifest.ensemble else (),
                threads,
            )
        except BaseException:
            for generator in generators:
                generator.engine.close()
            raise

    def close(self) -> None:
        """End the threads and free the engines."""
        self._workers.close()
        for generator in self._generators:
            generator.engine.close()

    def restart(self) -> None:
        """Drop every window: a new history begins."""
        self._windows.reset()
        self._hole_seq = None

    def hole(self, seq: int) -> None:
        """Let no window reach across the frames just before `seq`."""
        self._windows.hole(seq)
        self._hole_seq = seq

    def take_windows(self, other: Decider) -> None:
        """Continue with the windows of `other`, whose features are the same: a swap."""
        self._windows.load(other._windows.save())
        self._hole_seq = other._hole_seq

    def warm(self, frame: FeatureFrame) -> None:
        """Push a frame into the windows without judging it."""
        features = cast('npt.NDArray[np.float32]', frame.tensors['features'])
        self._windows.push(frame.seq, features, _status(frame) == _VALID)

    def decide(self, frame: FeatureFrame) -> tuple[Decisions, Predictions]:
        """Push a frame and judge it; INFERRED and DECIDED go into a copy of its stamps."""
        self.warm(frame)
        return self.judge(frame)

    def judge(self, frame: FeatureFrame) -> tuple[Decisions, Predictions]:
        """Judge the frame that was pushed last; stamps as in `decide`."""
        status = _status(frame)
        valid = status == _VALID
        ready = valid & self._windows.ready(frame.seq)
        reasons = _REASON_OF_STATUS[status]
        reasons[valid & ~ready] = self._why_not_ready(frame.seq)
        log_return, probabilities = self._infer(np.flatnonzero(ready))
        stamps = frame.stamps.copy()
        stamp(stamps, Stage.INFERRED)
        best = self._served_index
        verdict = decide(self._strategy, probabilities[best], log_return[best], reasons)
        _add_facts(frame, verdict)
        decisions = Decisions(
            frame.stream,
            frame.epoch,
            frame.seq,
            frame.event_time_ns,
            frame.revision,
            self.bundle_id,
            self.served,
            frame.symbols,
            verdict.action,
            verdict.reasons,
            verdict.score,
            verdict.target_position,
            probabilities[best],
            log_return[best],
            np.full(len(self.symbols), frame.event_time_ns + self._valid_for_ns, np.int64),
            stamps,
        )
        stamp(stamps, Stage.DECIDED)
        return decisions, self._predictions(frame, log_return, probabilities)

    def _why_not_ready(self, seq: int) -> np.uint32:
        behind_hole = self._hole_seq is not None and seq - self._hole_seq < self._horizon
        return np.uint32(Reason.GAP if behind_hole else Reason.WARMING)

    def _infer(
        self, which: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        shape = (len(self._names), len(self.symbols))
        log_return = np.full(shape, np.nan, np.float32)
        probabilities = np.full((*shape, 3), np.nan, np.float32)
        # By tile, then generator: engines that run one tile at a time are all kept busy.
        jobs = sorted(
            (start, g)
            for g, generator in enumerate(self._generators)
            for start in range(0, len(which), generator.tile)
        )

        def infer(job: int, worker: int) -> None:
            start, g = jobs[job]
            some = which[start : start + self._tiled[g].tile]
            out = self._tiled[g].infer(len(some), partial(self._windows.gather, some), worker)
            log_return[g, some] = cast('npt.NDArray[np.float32]', out['log_return'])
            probabilities[g, some] = cast('npt.NDArray[np.float32]', out['probabilities'])

        self._workers.run(infer, len(jobs))
        if len(self._members):
            log_return[-1] = mean_of(log_return[self._members])
            probabilities[-1] = mean_of(probabilities[self._members])
        return log_return, probabilities

    def _predictions(
        self,
        frame: FeatureFrame,
        log_return: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32],
    ) -> Predictions:
        return Predictions(
            frame.stream,
            frame.epoch,
            frame.seq,
            frame.event_time_ns,
            frame.revision,
            self.bundle_id,
            self._names,
            self.served,
            frame.symbols,
            log_return,
            probabilities,
        )


def mean_of(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean over the first axis, added up in order, so that it has one result."""
    flat = one_layout(answers, np.float32).reshape(len(answers), -1)
    return _mean_of(flat).reshape(answers.shape[1:])


@strict_njit
def _mean_of(answers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mean: npt.NDArray[np.float32] = answers[0].copy()
    for k in range(1, len(answers)):
        for i in range(len(mean)):
            mean[i] += answers[k, i]
    for i in range(len(mean)):
        mean[i] /= np.float32(len(answers))
    return mean


def _status(frame: FeatureFrame) -> npt.NDArray[np.uint8]:
    return cast('npt.NDArray[np.uint8]', frame.tensors['status'])


def _add_facts(frame: FeatureFrame, verdict: Verdict) -> None:
    """Add what is known of the market to the reasons, in place; a NONE gives its own alone."""
    facts = cast('npt.NDArray[np.uint8] | None', frame.tensors.get('market'))
    if facts is not None:
        said = np.where(verdict.action == _NONE, np.uint32(0), _REASON_OF_FACTS[facts])
        np.bitwise_or(verdict.reasons, said, out=verdict.reasons)
