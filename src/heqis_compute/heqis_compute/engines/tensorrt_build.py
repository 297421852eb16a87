# SPDX-License-Identifier: Apache-2.0
"""From an ONNX file to a serialised TensorRT engine, on TensorRT 8.5 to 11.

What differs between versions stands here, behind `hasattr`. Precision is what the model file says:
where networks can be strongly typed (from 10 on) that is all there is; before, the builder needs a
flag for float16 and for int8. TF32 is off, else float32 would have 10 bits of mantissa.
"""

from __future__ import annotations

import shlex
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from heqis_core.errors import EngineError

PRECISIONS = ('fp32', 'fp16', 'int8')
OLDEST = (8, 5)
WORKSPACE_MB = 256
"""Most device memory that a layer may use while it is built and run."""

_FLAG_BEFORE_10 = {'fp16': 'FP16', 'int8': 'INT8'}


class BuildFlags(NamedTuple):
    """What is asked of the builder beside the model; `dla` counts only where there is one."""

    precision: str
    dla: bool

    def names(self) -> tuple[str, ...]:
        """Return every flag that changes the engine, for the key of the cache."""
        dla = ('dla',) if self.dla else ()
        return (self.precision, 'no-tf32', f'workspace-{WORKSPACE_MB}', *dla)


class Built(NamedTuple):
    """A serialised engine, the timing cache after its build, whether the DLA runs layers."""

    plan: bytes
    timing: bytes
    dla: bool


def version_of(trt: Any) -> tuple[int, int]:
    """Return major and minor version; raise EngineError if it is too old or not readable."""
    text = str(trt.__version__)
    try:
        major, minor = (int(part) for part in text.split('.')[:2])
    except ValueError:
        raise EngineError(f'TensorRT: version {text!r} is not readable') from None
    if (major, minor) < OLDEST:
        raise EngineError(f'TensorRT {text} is too old, at least 8.5 is needed: update JetPack')
    return major, minor


def make_log(trt: Any) -> Any:
    """Return a logger for TensorRT that keeps its last errors in `errors`."""
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, msg: str) -> None:
            if severity in severe:
                self.errors.append(msg)

        def take(self) -> str:
            text = '; '.join(self.errors) or 'TensorRT gave no reason'
            self.errors.clear()
            return text

    return Log()


def build_plan(
    trt: Any, log: Any, path: Path, model: bytes, flags: BuildFlags, timing: bytes
) -> Built:
    """Build the engine of a model; minutes for a large one.

    Args:
        trt: the module.
        log: of `make_log`.
        path: of the model, for errors.
        model: content of the ONNX file.
        flags: what is asked of the builder.
        timing: serialised timing cache, empty for none.

    Raises EngineError that names the file and gives TensorRT's own errors: not a model, an
    operator that it does not know, a shape that is not static, a build that failed.
    """
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what the binding makes of a null pointer
        raise EngineError(f'{path}: TensorRT has no builder: {log.take()}') from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise EngineError(
            f'{path}: TensorRT {trt.__version__} cannot parse it: '
            f'{"; ".join(errors) or log.take()}; export the bundle again or use onnxruntime'
        )
    _check_static(path, network)
    # Orin NX and AGX have one, Orin Nano has none.
    dla = flags.dla and builder.num_DLA_cores > 0
    config = _configure(trt, builder, flags, dla)
    cache = _timing_cache(config, timing, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f'{path}: TensorRT {trt.__version__} cannot build it in {flags.precision}: '
            f'{log.take()}; set another precision or use onnxruntime'
        )
    return Built(bytes(memoryview(plan)), bytes(memoryview(cache.serialize())), dla)


def trtexec_line(trt: Any, path: Path, flags: BuildFlags, dla: bool) -> str:
    """Return the command that builds and times the same engine with NVIDIA's own tool.

    `dla` says whether this GPU has a DLA that is used.
    """
    words = ['trtexec', f'--onnx={path}', f'--saveEngine={path.with_suffix(".plan")}', '--noTF32']
    words.append(f'--memPoolSize=workspace:{WORKSPACE_MB}')
    if version_of(trt)[0] < 11:  # from 11 on both are always so
        words.append('--useCudaGraph')
        if _strongly_typed(trt):
            words.append('--stronglyTyped')
        elif flags.precision in _FLAG_BEFORE_10:
            words.append(f'--{flags.precision}')
    if dla:
        words += ['--useDLACore=0', '--allowGPUFallback']
    return shlex.join(words)


def _strongly_typed(trt: Any) -> bool:
    return hasattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED')


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    if _strongly_typed(trt):
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH)


def _configure(trt: Any, builder: Any, flags: BuildFlags, dla: bool) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MB << 20)
    config.clear_flag(trt.BuilderFlag.TF32)
    if not _strongly_typed(trt) and flags.precision in _FLAG_BEFORE_10:
        config.set_flag(getattr(trt.BuilderFlag, _FLAG_BEFORE_10[flags.precision]))
    if dla:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = 0
        # What the DLA cannot run stays on the GPU.
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return config


def _timing_cache(config: Any, timing: bytes, log: Any) -> Any:
    log.errors.clear()
    cache = config.create_timing_cache(timing)
    # Damaged, or of another GPU: begin an empty one. 8.5 and 8.6 refuse what they have written
    # themselves, log that as an error, and accept a cache that they do not use.
    if cache is None or log.errors or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b'')
        config.set_timing_cache(cache, False)
    # No reason for a build that fails later.
    log.errors.clear()
    return cache


def _check_static(path: Path, network: Any) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(size < 1 for size in tuple(tensor.shape)):
            raise EngineError(
                f'{path}: input {tensor.name!r} has shape {tuple(tensor.shape)}, expected a '
                'static one; export the model with a fixed tile'
            )
