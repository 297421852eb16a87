# SPDX-License-Identifier: Apache-2.0
"""One built TensorRT engine, ready to run: context, stream, buffers and CUDA graph.

Shapes and buffers never change, so the copies in, the kernels and the copies out are recorded once
as a graph, after one run without it, and each tile is one launch. Another model gets another
execution and with it another graph.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from heqis_compute.engines.cuda_port import Array, Cuda
from heqis_core.engine import Arrays, TensorSpec
from heqis_core.errors import EngineError

_log = logging.getLogger(__name__)

_DTYPES = {
    'FLOAT': np.float32,
    'HALF': np.float16,
    'INT8': np.int8,
    'UINT8': np.uint8,
    'INT32': np.int32,
    'INT64': np.int64,
    'BOOL': np.bool_,
}
"""By name: numpy 1.24 and later break the `nptype` of TensorRT 8.5; INT64 came with 10."""


class Execution:
    """The one context and the one stream of a model; for one thread at a time.

    Args:
        cuda: the device; current in the calling thread, here and in every method.
        trt: the TensorRT module.
        engine: deserialised ICudaEngine.
        name: of the model, for errors.
        counters: `graphs_captured` and `graphs_failed` are counted here.

    Raises EngineError that names the model: no memory, a tensor of unknown type or shape.
    """

    def __init__(
        self, cuda: Cuda, trt: Any, engine: Any, name: str, counters: dict[str, int]
    ) -> None:
        self._cuda = cuda
        self._name = name
        self._engine = engine
        self._context: Any = None
        self._stream: int | None = None
        self._graph: int | None = None
        self._host: dict[str, Array] = {}
        self._device: dict[str, int] = {}
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        try:
            self._prepare(trt)
            self._enqueue()
            cuda.synchronise(self._stream_handle())
            self._capture(counters)
        except BaseException:
            self.close()
            raise

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and the outputs."""
        return self.inputs, self.outputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile; the arrays are as `specs` says."""
        for name, values in inputs.items():
            np.copyto(self._host[name], values)
        stream = self._stream_handle()
        if self._graph is not None:
            self._cuda.launch(self._graph, stream)
        else:
            self._enqueue()
        self._cuda.synchronise(stream)
        return {spec.name: self._host[spec.name].copy() for spec in self.outputs}

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        cuda = self._cuda
        if self._graph is not None:
            cuda.free_graph(self._graph)
        self._graph = None
        # The context before its engine, both before the buffers that they point at.
        self._context = self._engine = None
        while self._device:
            cuda.free(self._device.popitem()[1])
        while self._host:
            cuda.free_pinned(self._host.popitem()[1])
        if self._stream is not None:
            cuda.free_stream(self._stream)
        self._stream = None

    def _prepare(self, trt: Any) -> None:
        engine = self._engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f'{self._name}: TensorRT has no memory for its context; serve fewer generators'
            )
        self._stream = self._cuda.stream()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        reads = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        writes = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        self.inputs = tuple(self._bind(trt, name, True) for name in reads)
        self.outputs = tuple(self._bind(trt, name, False) for name in writes)

    def _bind(self, trt: Any, name: str, is_input: bool) -> TensorSpec:
        spec = TensorSpec(name, self._dtype(trt, name), tuple(self._engine.get_tensor_shape(name)))
        if any(size < 1 for size in spec.shape):
            raise EngineError(
                f'{self._name}: tensor {name!r} has shape {spec.shape}, expected a static one; '
                'export the model with a fixed tile'
            )
        if is_input and not self._context.set_input_shape(name, spec.shape):
            raise EngineError(f'{self._name}: TensorRT refuses {spec.shape} for input {name!r}')
        host = self._host[name] = self._cuda.pinned(spec.shape, spec.dtype)
        host[...] = 0
        size = math.prod(spec.shape) * spec.dtype.itemsize
        address = self._device[name] = self._cuda.malloc(size)
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f'{self._name}: TensorRT refuses the buffer of {name!r}')
        return spec

    def _dtype(self, trt: Any, name: str) -> np.dtype[np.generic]:
        found = self._engine.get_tensor_dtype(name)
        for word, dtype in _DTYPES.items():
            if found == getattr(trt.DataType, word, None):
                return np.dtype(dtype)
        raise EngineError(
            f'{self._name}: tensor {name!r} has type {found}, expected one of {list(_DTYPES)}'
        )

    def _enqueue(self) -> None:
        stream = self._stream_handle()
        for spec in self.inputs:
            self._cuda.to_device(self._device[spec.name], self._host[spec.name], stream)
        if not self._context.execute_async_v3(stream):
            raise EngineError(f'{self._name}: TensorRT could not start the model')
        for spec in self.outputs:
            self._cuda.to_host(self._host[spec.name], self._device[spec.name], stream)

    def _capture(self, counters: dict[str, int]) -> None:
        try:
            self._graph = self._cuda.capture(self._stream_handle(), self._enqueue)
            counters['graphs_captured'] += 1
        except EngineError as error:
            counters['graphs_failed'] += 1
            _log.warning('%s: runs without a CUDA graph: %s', self._name, error)

    def _stream_handle(self) -> int:
        assert self._stream is not None
        return self._stream
