# SPDX-License-Identifier: Apache-2.0
"""What may run the generators, in order: TensorRT, then ONNX Runtime, which needs nothing.

TensorRT works when its driver answers, and when every generator of the bundle has been built and
has given its golden outputs. How the first that works is found: `heqis_core.engine_probe`.
"""

from __future__ import annotations

from pathlib import Path

from heqis_compute.engines.tensorrt_build import BuildFlags
from heqis_compute.engines.tensorrt_engine import (
    Golden,
    TensorRt,
    TensorRtEngine,
    load_tensorrt,
    open_tensorrt,
)
from heqis_core.bundle import GOLDEN_TOLERANCE, Bundle
from heqis_core.conversion import TOLERANCE
from heqis_core.engine_probe import Candidate, Ready
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine, open_engine

_TOLERANCE = {'fp32': GOLDEN_TOLERANCE, 'fp16': TOLERANCE['fp16'], 'int8': TOLERANCE['int8']}
"""By precision: largest difference of a golden output from float32 on ONNX Runtime."""

ENGINES = ('auto', TensorRtEngine.kind, OrtEngine.kind)
"""What can be asked for; `auto` is the order of the rest."""


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
    golden = golden_of(bundle, _TOLERANCE[flags.precision])

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
