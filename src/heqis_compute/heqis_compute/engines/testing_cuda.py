# SPDX-License-Identifier: Apache-2.0
"""A GPU in host memory behind fakes of `cuda.bindings.runtime` and `pycuda.driver`, for tests.

Streams run nothing until they are waited for, so that a missing wait shows as old data; a stream
that captures runs nothing at all. Function names and arguments are those of cuda-bindings 12.9 and
13 and of pycuda 2022 to 2026. Nothing outside a test imports this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class CudaError(Exception):
    """An error of the driver: its number and its text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


class FakeGpu:
    """Memory, streams and graphs of one device.

    Attributes:
        devices: what the driver counts; None for a machine without a driver.
        name, capability: of device 0.
        asked: whether someone has asked how many devices there are.
        refuses_capture: make the end of each capture fail, as a model that synchronises would.
        memory_left: bytes that can still be allocated.
        launches: graphs launched so far.
        blocking: streams that wait for the default one.
    """

    def __init__(self, devices: int | None = 1) -> None:
        self.devices = devices
        self.name = 'Orin'
        self.capability = (8, 7)
        self.asked = False
        self.refuses_capture = False
        self.memory_left = 1 << 30
        self.launches = 0
        self.buffers: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.captures: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.blocking: set[int] = set()
        self._next = 100

    def count(self) -> int:
        """Return the number of devices, as the driver does."""
        self.asked = True
        if self.devices is None:
            raise CudaError(35, 'CUDA driver version is insufficient for CUDA runtime version')
        return self.devices

    def new(self) -> int:
        """Return a number that no handle has."""
        self._next += 1
        return self._next

    def new_stream(self, flags: int) -> int:
        """Return a stream; flag 1 says that it does not wait for the default one."""
        stream = self.new()
        self.streams[stream] = []
        if not flags & 1:
            self.blocking.add(stream)
        return stream

    def allocate(self, size: int, place: dict[int, Any]) -> int:
        """Return the address of new bytes, kept in `place`."""
        if self.captures:
            raise CudaError(900, 'operation not permitted when stream is capturing')
        if size > self.memory_left:
            raise CudaError(2, 'out of memory')
        self.memory_left -= size
        block = (ctypes.c_uint8 * size)()
        place[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def release(self, address: int, place: dict[int, Any]) -> None:
        """Free what `allocate` returned."""
        if address not in place:
            raise CudaError(1, 'invalid argument')
        self.memory_left += len(place.pop(address))

    def enqueue(self, stream: int, work: Work) -> None:
        """Let a stream do something later, or record it in its capture."""
        if stream not in self.streams:
            raise CudaError(400, 'invalid resource handle')
        self.captures.get(stream, self.streams[stream]).append(work)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy between buffers in stream order."""
        for address in (to, source):
            known = self.buffers.get(address, self.pinned.get(address))
            if known is None or size > len(known):
                raise CudaError(1, 'invalid argument')
        self.enqueue(stream, lambda: void(ctypes.memmove(to, source, size)))

    def wait(self, stream: int) -> None:
        """Do everything that is in the stream."""
        if stream in self.captures:
            raise CudaError(900, 'operation not permitted when stream is capturing')
        if stream not in self.streams:
            raise CudaError(400, 'invalid resource handle')
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()

    def leaks(self) -> int:
        """Return how many buffers, streams, graphs and captures are still there."""
        parts = (self.buffers, self.pinned, self.streams, self.graphs, self.captures)
        return sum(len(part) for part in parts)


def void(_: object) -> None:
    """Drop a result."""


class Handle:
    """A handle class of cuda-bindings: converts to int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value


cudaError_t = IntEnum(  # noqa: N816
    'cudaError_t',
    {
        'cudaSuccess': 0,
        'cudaErrorInvalidValue': 1,
        'cudaErrorMemoryAllocation': 2,
        'cudaErrorInsufficientDriver': 35,
        'cudaErrorInvalidResourceHandle': 400,
        'cudaErrorStreamCaptureUnsupported': 900,
        'cudaErrorStreamCaptureInvalidated': 901,
    },
)
cudaMemcpyKind = IntEnum(  # noqa: N816
    'cudaMemcpyKind', {'cudaMemcpyHostToDevice': 1, 'cudaMemcpyDeviceToHost': 2}
)
cudaStreamCaptureMode = IntEnum(  # noqa: N816
    'cudaStreamCaptureMode',
    {
        'cudaStreamCaptureModeGlobal': 0,
        'cudaStreamCaptureModeThreadLocal': 1,
        'cudaStreamCaptureModeRelaxed': 2,
    },
)


def fake_runtime(gpu: FakeGpu) -> Any:
    """Return a module with the functions of `cuda.bindings.runtime` that the port calls."""
    module: Any = ModuleType('cuda.bindings.runtime')
    module.cudaError_t = cudaError_t
    module.cudaMemcpyKind = cudaMemcpyKind
    module.cudaStreamCaptureMode = cudaStreamCaptureMode
    module.cudaStreamNonBlocking = 1
    texts: dict[int, str] = {}

    def function(outputs: int) -> Callable[[Callable[..., Any]], None]:
        def wrap(body: Callable[..., Any]) -> None:
            def call(*arguments: Any) -> tuple[Any, ...]:
                try:
                    result = body(*arguments)
                except CudaError as fault:
                    texts[fault.number] = fault.text
                    return (cudaError_t(fault.number), *[None] * outputs)
                return (cudaError_t.cudaSuccess, *([result] * outputs))

            setattr(module, body.__name__, call)

        return wrap

    @function(1)
    def cudaGetDeviceCount() -> int:  # noqa: N802
        return gpu.count()

    @function(1)
    def cudaGetDeviceProperties(device: int) -> Any:  # noqa: N802
        major, minor = gpu.capability
        return SimpleNamespace(name=gpu.name.encode() + b'\0', major=major, minor=minor)

    @function(1)
    def cudaMalloc(size: int) -> int:  # noqa: N802
        return gpu.allocate(size, gpu.buffers)

    @function(0)
    def cudaFree(devPtr: int) -> None:  # noqa: N802, N803
        gpu.release(devPtr, gpu.buffers)

    @function(1)
    def cudaMallocHost(size: int) -> int:  # noqa: N802
        return gpu.allocate(size, gpu.pinned)

    @function(0)
    def cudaFreeHost(ptr: int) -> None:  # noqa: N802
        gpu.release(ptr, gpu.pinned)

    @function(1)
    def cudaStreamCreateWithFlags(flags: int) -> Handle:  # noqa: N802
        return Handle(gpu.new_stream(flags))

    @function(0)
    def cudaStreamDestroy(stream: int) -> None:  # noqa: N802
        del gpu.streams[int(stream)]

    @function(0)
    def cudaStreamSynchronize(stream: int) -> None:  # noqa: N802
        gpu.wait(int(stream))

    @function(0)
    def cudaMemcpyAsync(  # noqa: N802
        dst: int, src: int, count: int, kind: int, stream: int
    ) -> None:
        into_device = dst in gpu.buffers
        if into_device != (kind == cudaMemcpyKind.cudaMemcpyHostToDevice):
            raise CudaError(1, 'invalid argument')
        gpu.copy(dst, src, count, int(stream))

    @function(0)
    def cudaStreamBeginCapture(stream: int, mode: int) -> None:  # noqa: N802
        if int(stream) in gpu.captures or gpu.streams[int(stream)]:
            raise CudaError(900, 'operation not permitted when stream is capturing')
        gpu.captures[int(stream)] = []

    @function(1)
    def cudaStreamEndCapture(stream: int) -> Handle:  # noqa: N802
        work = gpu.captures.pop(int(stream))
        if gpu.refuses_capture:
            raise CudaError(901, 'operation failed due to a previous error during capture')
        graph = gpu.new()
        gpu.graphs[graph] = work
        return Handle(graph)

    @function(1)
    def cudaGraphInstantiate(graph: Handle, flags: int) -> Handle:  # noqa: N802
        executable = gpu.new()
        gpu.graphs[executable] = list(gpu.graphs[int(graph)])
        return Handle(executable)

    @function(0)
    def cudaGraphDestroy(graph: Handle) -> None:  # noqa: N802
        del gpu.graphs[int(graph)]

    @function(0)
    def cudaGraphExecDestroy(graphExec: int) -> None:  # noqa: N802, N803
        del gpu.graphs[int(graphExec)]

    @function(0)
    def cudaGraphLaunch(graphExec: int, stream: int) -> None:  # noqa: N802, N803
        gpu.launches += 1
        for work in gpu.graphs[int(graphExec)]:
            gpu.enqueue(int(stream), work)

    @function(0)
    def cudaGetLastError() -> None:  # noqa: N802
        return None

    def cudaGetErrorString(error: int) -> tuple[Any, bytes]:  # noqa: N802
        return cudaError_t.cudaSuccess, texts[int(error)].encode()

    module.cudaGetErrorString = cudaGetErrorString
    return module


def fake_pycuda(gpu: FakeGpu) -> Any:
    """Return a module with the classes of `pycuda.driver` that the port calls.

    Every call outside a pushed context fails, and `pushed` says how many contexts are.
    """
    module: Any = ModuleType('pycuda.driver')
    module.pushed = 0
    initialised = False

    class Error(Exception):
        """Base of pycuda's exceptions."""

    def checked(body: Callable[..., Any], *arguments: Any, context: bool = True) -> Any:
        if context and module.pushed == 0:
            raise Error('invalid device context')
        try:
            return body(*arguments)
        except CudaError as fault:
            raise Error(fault.text) from fault

    def init(flags: int = 0) -> None:
        nonlocal initialised
        if gpu.devices is None:
            raise Error('cuInit failed: no CUDA-capable device is detected')
        initialised = True

    class Context:
        def push(self) -> None:
            module.pushed += 1

        @staticmethod
        def pop() -> None:
            module.pushed -= 1

    class Device:
        def __init__(self, ordinal: int) -> None:
            if not initialised:
                raise Error('cuDeviceGet failed: initialization error')

        @staticmethod
        def count() -> int:
            return int(checked(gpu.count, context=False))

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return gpu.capability

        def retain_primary_context(self) -> Context:
            return Context()

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self._address = gpu.allocate(size, gpu.buffers)

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            checked(gpu.release, self._address, gpu.buffers)

    class PagelockedHostAllocation:
        def __init__(self, shape: Any, dtype: Any) -> None:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._address = gpu.allocate(size, gpu.pinned)
            self.__array_interface__ = {
                'version': 3,
                'shape': tuple(shape),
                'typestr': np.dtype(dtype).str,
                'data': (self._address, False),
            }

        def free(self) -> None:
            checked(gpu.release, self._address, gpu.pinned)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = gpu.new_stream(flags)

        def synchronize(self) -> None:
            checked(gpu.wait, self.handle)

        def __del__(self) -> None:
            gpu.streams.pop(self.handle, None)

    def pagelocked_empty(shape: Any, dtype: Any, order: str = 'C', mem_flags: int = 0) -> Any:
        # numpy keeps the allocation as the base of the array.
        return np.asarray(checked(PagelockedHostAllocation, shape, dtype))

    def memcpy_htod_async(dest: int, src: Any, stream: Any = None) -> None:
        checked(gpu.copy, dest, src.ctypes.data, src.nbytes, stream.handle)

    def memcpy_dtoh_async(dest: Any, src: int, stream: Any = None) -> None:
        checked(gpu.copy, dest.ctypes.data, src, dest.nbytes, stream.handle)

    module.Error, module.init, module.Device, module.Context = Error, init, Device, Context
    module.mem_alloc = lambda size: checked(DeviceAllocation, size)
    module.Stream = lambda flags=0: checked(Stream, flags)
    module.pagelocked_empty = pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    return module
