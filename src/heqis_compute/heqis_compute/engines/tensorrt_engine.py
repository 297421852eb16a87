# SPDX-License-Identifier: Apache-2.0
"""The TensorRT engine: one model of a bundle on the GPU, built here from its ONNX file.

A built engine is kept in a cache folder under everything that it depends on. Whether its numbers
are right is measured: golden inputs go through it before it is kept or served.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_compute.engines.cuda_port import Cuda, Device, open_cuda
from heqis_compute.engines.engine_cache import (
    EngineKey,
    read_engine,
    read_timing,
    replace_file,
    timing_file,
    write_engine,
)
from heqis_compute.engines.tensorrt_build import (
    BuildFlags,
    build_plan,
    make_log,
    trtexec_line,
    version_of,
)
from heqis_compute.engines.tensorrt_run import Execution
from heqis_core.engine import Arrays, Engine, TensorSpec, beyond, check_inputs, infer_tiled
from heqis_core.errors import EngineError

_log = logging.getLogger(__name__)

COUNTERS = (
    'built',
    'cache_hits',
    'cache_refused',
    'cache_write_failed',
    'graphs_captured',
    'graphs_failed',
)


class Golden(NamedTuple):
    """What a model must answer.

    Attributes:
        rows: (n, ...) of the one input.
        outputs: expected answers by output name, first axis n.
        tolerance: largest difference, absolute plus relative.
    """

    rows: npt.NDArray[np.generic]
    outputs: Mapping[str, npt.NDArray[np.generic]]
    tolerance: float


@dataclass(frozen=True)
class TensorRt:
    """TensorRT of this process on device 0; every engine shares it. Make one with `open_tensorrt`.

    Attributes:
        cuda: the device.
        trt: the module `tensorrt`.
        log: what TensorRT logs its errors to.
        runtime: loads built engines.
        device: name and compute capability.
        flags: how engines are built.
        cache: folder of built engines; made when the first is written.
        counters: see COUNTERS; since it was opened.
    """

    cuda: Cuda
    trt: Any
    log: Any
    runtime: Any
    device: Device
    flags: BuildFlags
    cache: Path
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))


def load_tensorrt() -> tuple[Cuda, Any]:
    """Return CUDA and the module `tensorrt`; raise EngineError that says what is missing.

    The driver is asked first: without one, TensorRT's runtime ends the process.
    """
    cuda = open_cuda()
    try:
        trt = import_module('tensorrt')
    except ImportError as error:
        raise EngineError(
            f'the module tensorrt cannot be imported: {error}; it comes with JetPack'
        ) from error
    version_of(trt)
    return cuda, trt


def open_tensorrt(flags: BuildFlags, cache: Path) -> TensorRt:
    """Return TensorRT on device 0; raise EngineError that says what is missing."""
    cuda, trt = load_tensorrt()
    device = cuda.device()
    log = make_log(trt)
    with cuda.current():
        # Some operators of 8.x are plug-ins, InstanceNormalization among them.
        trt.init_libnvinfer_plugins(log, '')
        runtime = trt.Runtime(log)
    return TensorRt(cuda, trt, log, runtime, device, flags, cache)


class TensorRtEngine:
    """Run one model with TensorRT. `infer` may be called from several threads, one at a time runs.

    Args:
        shared: of `open_tensorrt`.
        golden: what the model must answer; None leaves that check to the caller.
    """

    kind = 'tensorrt'

    def __init__(self, shared: TensorRt, golden: Golden | None = None) -> None:
        """Create an engine without a model."""
        self._shared = shared
        self._golden = golden
        self._lock = threading.Lock()
        self._execution: Execution | None = None
        self._path = Path()

    def load(self, path: Path) -> None:
        """Load an ONNX file, in place of the one that is loaded; on an error that one stays.

        With precision fp16 or int8 the file beside it is loaded (`model.onnx`: `model.fp16.onnx`).
        The engine is taken from the cache, or built, which may take minutes.

        Raises EngineError that names the file if it is missing, cannot be built or run, or if a
        golden output differs by more than the tolerance.
        """
        source = model_file(Path(path), self._shared.flags.precision)
        try:
            model = source.read_bytes()
        except OSError as error:
            raise EngineError(
                f'{source}: cannot be read: {error}; convert the bundle, or set precision fp32'
            ) from error
        with self._lock, self._shared.cuda.current():
            execution = self._open(source, model)
            previous, self._execution, self._path = self._execution, execution, source
            if previous is not None:
                previous.close()

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of the loaded model; raise EngineError if there is none."""
        execution = self._loaded()
        return execution.specs()

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile: arrays by input name to arrays by output name.

        Raises EngineError that names the input if one is missing, unknown, or has another shape or
        dtype than `specs` says, and if CUDA or TensorRT fail.
        """
        with self._lock:
            execution = self._loaded()
            check_inputs(self._path, execution.inputs, inputs)
            with self._shared.cuda.current():
                return execution.infer(inputs)

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        with self._lock:
            execution, self._execution = self._execution, None
            if execution is not None:
                with self._shared.cuda.current():
                    execution.close()

    def _loaded(self) -> Execution:
        if self._execution is None:
            raise EngineError('no model is loaded; call load(path) first')
        return self._execution

    def _open(self, source: Path, model: bytes) -> Execution:
        shared = self._shared
        key = EngineKey(
            hashlib.sha256(model).hexdigest(),
            str(shared.trt.__version__),
            shared.device.name,
            shared.device.capability,
            shared.flags.names(),
        )
        return self._open_cached(source, key) or self._open_built(source, model, key)

    def _open_cached(self, source: Path, key: EngineKey) -> Execution | None:
        counters = self._shared.counters
        plan, refused = read_engine(self._shared.cache, key)
        if plan is not None:
            try:
                execution = self._start(source, plan)
            except EngineError as error:
                refused = str(error)
            else:
                counters['cache_hits'] += 1
                return execution
        if refused:
            counters['cache_refused'] += 1
            _log.warning('cached engine is not used, it is built again: %s', refused)
        return None

    def _open_built(self, source: Path, model: bytes, key: EngineKey) -> Execution:
        shared = self._shared
        timing = read_timing(shared.cache, key)
        built = build_plan(shared.trt, shared.log, source, model, shared.flags, timing)
        shared.counters['built'] += 1
        line = trtexec_line(shared.trt, source, shared.flags, built.dla)
        _log.info('%s: built for %s; the same by hand: %s', source, shared.device.name, line)
        execution = self._start(source, built.plan)
        try:
            write_engine(shared.cache, key, built.plan)
            replace_file(timing_file(shared.cache, key), built.timing)
        except EngineError as error:
            # It runs all the same; the next start builds again.
            shared.counters['cache_write_failed'] += 1
            _log.warning('%s', error)
        return execution

    def _start(self, source: Path, plan: bytes) -> Execution:
        shared = self._shared
        shared.log.errors.clear()
        engine = shared.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f'{source}: TensorRT cannot load its engine: {shared.log.take()}')
        execution = Execution(shared.cuda, shared.trt, engine, str(source), shared.counters)
        try:
            if self._golden is not None:
                _check_golden(source, execution, self._golden)
        except BaseException:
            execution.close()
            raise
        return execution


def model_file(path: Path, precision: str) -> Path:
    """Return the file of a model in that precision: the file itself is float32."""
    return path if precision == 'fp32' else path.with_suffix(f'.{precision}.onnx')


def _check_golden(source: Path, execution: Execution, golden: Golden) -> None:
    inputs = execution.inputs
    if len(inputs) != 1 or golden.rows.dtype != inputs[0].dtype:
        raise EngineError(
            f'{source}: inputs are {inputs}, golden rows are {golden.rows.dtype}; '
            'export the bundle again'
        )
    rows = cast('npt.NDArray[np.float32]', golden.rows)
    answers = infer_tiled(cast('Engine', execution), rows, inputs[0].shape[0])
    for name, expected in golden.outputs.items():
        values = answers.get(name)
        if values is None or values.shape != expected.shape:
            raise EngineError(
                f'{source}: output {name!r} is {"missing" if values is None else values.shape}, '
                f'expected shape {expected.shape}; export the bundle again'
            )
        limit = golden.tolerance
        worst = beyond(values, expected, limit)
        if worst is not None:
            raise EngineError(
                f'{source}: output {name!r} differs from its golden output by '
                f'{worst:.3g} on TensorRT, at most {limit:g} is '
                'accepted; set another precision or use onnxruntime'
            )
