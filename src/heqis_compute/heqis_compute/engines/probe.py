# SPDX-License-Identifier: Apache-2.0
"""Which engine runs the generators: the first of an ordered list that works, and why not others.

Working means more than being installed: the driver answers, and every generator of the bundle has
been built and has given its golden outputs. ONNX Runtime comes last and needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.engines.tensorrt_engine import (
    Golden,
    TensorRt,
    TensorRtEngine,
    load_tensorrt,
    open_tensorrt,
)
from heqis_core.bundle import GOLDEN_TOLERANCE, Bundle
from heqis_core.engine import Engine
from heqis_core.errors import EngineError, HeqisError
from heqis_core.io.ort_engine import OrtEngine, open_engine

MakeEngine = Callable[[Path], Engine]

TOLERANCE = {'fp32': GOLDEN_TOLERANCE, 'fp16': 1e-2, 'int8': 5e-2}
"""Largest difference of a golden output from float32 on ONNX Runtime, absolute plus relative."""

ENGINES = ('auto', TensorRtEngine.kind, OrtEngine.kind)
"""What can be asked for; `auto` is the order of the rest."""


class Ready(NamedTuple):
    """What loads one model file, and what that class of engine counts."""

    make_engine: MakeEngine
    counters: Mapping[str, int]


class Candidate(NamedTuple):
    """One class of engine; `prepare` proves that it works, or raises HeqisError."""

    kind: str
    prepare: Callable[[], Ready]


class PassedOver(NamedTuple):
    """A class of engine that does not run, and why."""

    kind: str
    reason: str


class Choice(NamedTuple):
    """The class of engine that runs, what it counts, and which were passed over."""

    kind: str
    make_engine: MakeEngine
    counters: Mapping[str, int]
    passed_over: tuple[PassedOver, ...]

    def text(self) -> str:
        """Return the choice in one line: the kind first, then each reason."""
        reasons = ''.join(f'; {kind} passed over: {why}' for kind, why in self.passed_over)
        return f'{self.kind}{reasons}'


def probe(order: Sequence[Candidate]) -> Choice:
    """Return the first engine that works; raise EngineError with every reason if none does."""
    passed_over: list[PassedOver] = []
    for candidate in order:
        try:
            ready = candidate.prepare()
        except HeqisError as error:
            passed_over.append(PassedOver(candidate.kind, str(error)))
        else:
            return Choice(candidate.kind, *ready, tuple(passed_over))
    reasons = '; '.join(f'{kind}: {why}' for kind, why in passed_over)
    raise EngineError(f'no engine works: {reasons}')


def candidates(engine: str, bundle: Bundle, flags: BuildFlags, cache: Path) -> list[Candidate]:
    """Return the order for one of ENGINES, to run the generators of a verified bundle.

    Args:
        engine: one of ENGINES; a single kind is an order of one.
        bundle: `verify_golden` has passed on ONNX Runtime.
        flags: how TensorRT builds.
        cache: folder of engines that TensorRT has built.
    """
    order = [
        Candidate(TensorRtEngine.kind, lambda: _prepare_tensorrt(bundle, flags, cache)),
        Candidate(OrtEngine.kind, lambda: Ready(open_engine, {})),
    ]
    return [c for c in order if engine in ('auto', c.kind)]


def tensorrt_obstacle() -> str | None:
    """Return why TensorRT cannot run on this machine; None if nothing is known to be in the way.

    For a look at the machine alone: nothing is built, and no bundle is needed.
    """
    try:
        load_tensorrt()
    except EngineError as error:
        return str(error)
    return None


def golden_of(bundle: Bundle, tolerance: float) -> dict[Path, Golden]:
    """Return golden rows and outputs by model file; the bundle has passed `verify_golden`."""
    arrays = bundle.golden()
    golden = {}
    for name, model in bundle.manifest.model_files().items():
        parts = {k.partition('/')[2]: v for k, v in arrays.items() if k.startswith(f'{name}/')}
        golden[bundle.path / model] = Golden(parts.pop('input'), parts, tolerance)
    return golden


def _prepare_tensorrt(bundle: Bundle, flags: BuildFlags, cache: Path) -> Ready:
    shared = open_tensorrt(flags, cache)
    golden = golden_of(bundle, TOLERANCE[flags.precision])

    def make_engine(path: Path) -> TensorRtEngine:
        return _open(shared, path, golden.get(path))

    # Built, tested and cached here, so that the first frame does not wait for it.
    for part in bundle.manifest.generators:
        make_engine(bundle.generator_path(part.name)).close()
    return Ready(make_engine, shared.counters)


def _open(shared: TensorRt, path: Path, golden: Golden | None) -> TensorRtEngine:
    engine = TensorRtEngine(shared, golden)
    engine.load(path)
    return engine
