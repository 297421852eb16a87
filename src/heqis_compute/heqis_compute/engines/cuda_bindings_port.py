# SPDX-License-Identifier: Apache-2.0
"""CUDA by `cuda.bindings.runtime` of NVIDIA's cuda-python, 12.9 and 13.

Every function there returns a tuple whose first item is the error. Handles are kept as ints, which
each function takes as well as its own handle classes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import numpy as np

from heqis_compute.engines.cuda_port import Array, Device
from heqis_core.errors import EngineError

INSTALL = 'pip install -r requirements/board-jetson.txt'


class BindingsCuda:
    """CUDA on device 0 by the runtime API, whose device 0 is current in every thread."""

    name = 'cuda-bindings'

    def __init__(self) -> None:
        """Import the package; no driver is asked yet."""
        try:
            self._runtime: Any = import_module('cuda.bindings.runtime')
        except ImportError as error:
            raise EngineError(
                f'{self.name}: cannot be imported: {error}; {INSTALL} on the Jetson'
            ) from error

    def device_count(self) -> int:
        """Return the number of devices."""
        return int(self._call('cudaGetDeviceCount'))

    def device(self) -> Device:
        """Return name and compute capability of device 0."""
        found = self._call('cudaGetDeviceProperties', 0)
        name = bytes(found.name).rstrip(b'\0').decode('utf-8', 'replace').strip()
        return Device(name, (int(found.major), int(found.minor)))

    def current(self) -> AbstractContextManager[object]:
        """Do nothing: the runtime API makes device 0 current by itself."""
        return nullcontext()

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        return int(self._call('cudaMalloc', size))

    def free(self, address: int) -> None:
        """Free memory of the device."""
        self._call('cudaFree', address)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """Return a C-ordered array in page-locked memory."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        address = int(self._call('cudaMallocHost', size))
        block = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memoryview(block).cast('B'), dtype).reshape(shape)

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory."""
        self._call('cudaFreeHost', array.ctypes.data)

    def stream(self) -> int:
        """Return a new non-blocking stream."""
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._call('cudaStreamCreateWithFlags', flags))

    def free_stream(self, stream: int) -> None:
        """Free a stream."""
        self._call('cudaStreamDestroy', stream)

    def to_device(self, address: int, array: Array, stream: int) -> None:
        """Copy a pinned array to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call('cudaMemcpyAsync', address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: Array, address: int, stream: int) -> None:
        """Copy from the device into a pinned array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call('cudaMemcpyAsync', array.ctypes.data, address, array.nbytes, kind, stream)

    def synchronise(self, stream: int) -> None:
        """Wait for everything in the stream."""
        self._call('cudaStreamSynchronize', stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Record what `enqueue` puts into the stream as a graph."""
        # Thread-local: another model that allocates meanwhile does not break this capture.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call('cudaStreamBeginCapture', stream, mode)
        try:
            enqueue()
        except BaseException:
            self._abandon(stream)
            raise
        graph = self._call('cudaStreamEndCapture', stream)
        try:
            return int(self._call('cudaGraphInstantiate', graph, 0))
        finally:
            self._call('cudaGraphDestroy', graph)

    def launch(self, graph: int, stream: int) -> None:
        """Put a whole graph into the stream."""
        self._call('cudaGraphLaunch', graph, stream)

    def free_graph(self, graph: int) -> None:
        """Free a graph."""
        self._call('cudaGraphExecDestroy', graph)

    def _abandon(self, stream: int) -> None:
        # Ends the capture whatever became of it, and clears the error that it leaves behind.
        error, graph = self._runtime.cudaStreamEndCapture(stream)
        if int(error) == 0 and int(graph):
            self._runtime.cudaGraphDestroy(graph)
        self._runtime.cudaGetLastError()

    def _call(self, function: str, *arguments: object) -> Any:
        try:
            error, *values = getattr(self._runtime, function)(*arguments)
        except RuntimeError as problem:  # a driver or a function of it that cannot be loaded
            raise EngineError(f'{self.name}: {function} failed: {problem}') from problem
        if int(error) != 0:
            # Otherwise the next call that succeeds would report it once more.
            self._runtime.cudaGetLastError()
            raise EngineError(f'{self.name}: {function} failed: {self._text(error)}')
        return values[0] if values else None

    def _text(self, error: Any) -> str:
        answer = self._runtime.cudaGetErrorString(error)
        text = answer[1].decode() if int(answer[0]) == 0 else 'unknown error'
        return f'error {int(error)}, {text}'
