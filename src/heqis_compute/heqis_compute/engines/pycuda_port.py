# SPDX-License-Identifier: Apache-2.0
"""CUDA by `pycuda.driver`, for images that carry pycuda and not cuda-bindings.

The driver API has no current device of its own: each use pushes the primary context of device 0,
which TensorRT uses too, and pops it again; a thread that ended with a context pushed would abort
the process. pycuda cannot capture graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from heqis_compute.engines.cuda_port import Array, Device
from heqis_core.errors import EngineError

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, for which pycuda has no name."""


class PyCuda:
    """CUDA on device 0 by the driver API."""

    name = 'pycuda'

    def __init__(self) -> None:
        """Import the package and initialise the driver."""
        try:
            self._driver: Any = import_module('pycuda.driver')
        except ImportError as error:
            raise EngineError(f'{self.name}: cannot be imported: {error}') from error
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._context: Any = None
        with self._named('init'):
            self._driver.init()

    def device_count(self) -> int:
        """Return the number of devices."""
        with self._named('Device.count'):
            return int(self._driver.Device.count())

    def device(self) -> Device:
        """Return name and compute capability of device 0."""
        with self._named('Device'):
            device = self._driver.Device(0)
            major, minor = device.compute_capability()
            return Device(str(device.name()).strip(), (int(major), int(minor)))

    def current(self) -> AbstractContextManager[object]:
        """Push the primary context of device 0, and pop it at the end."""
        return self._pushed()

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        with self._named('mem_alloc'):
            allocation = self._driver.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Free memory of the device."""
        allocation = self._allocations.pop(address, None)
        if allocation is None:
            raise EngineError(
                f'{self.name}: DeviceAllocation.free failed: {address:#x} is invalid, it is not '
                'allocated'
            )
        with self._named('DeviceAllocation.free'):
            allocation.free()

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """Return a C-ordered array in page-locked memory."""
        with self._named('pagelocked_empty'):
            array: Array = self._driver.pagelocked_empty(shape, dtype)
        return array

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory."""
        allocation: Any = array.base
        with self._named('PagelockedHostAllocation.free'):
            allocation.free()

    def stream(self) -> int:
        """Return a new non-blocking stream."""
        with self._named('Stream'):
            stream = self._driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def free_stream(self, stream: int) -> None:
        """Free a stream: pycuda does it with the last reference."""
        del self._streams[stream]

    def to_device(self, address: int, array: Array, stream: int) -> None:
        """Copy a pinned array to the device."""
        with self._named('memcpy_htod_async'):
            self._driver.memcpy_htod_async(address, array, self._streams[stream])

    def to_host(self, array: Array, address: int, stream: int) -> None:
        """Copy from the device into a pinned array."""
        with self._named('memcpy_dtoh_async'):
            self._driver.memcpy_dtoh_async(array, address, self._streams[stream])

    def synchronise(self, stream: int) -> None:
        """Wait for everything in the stream."""
        with self._named('Stream.synchronize'):
            self._streams[stream].synchronize()

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Raise EngineError: pycuda has no graphs."""
        raise EngineError(f'{self.name}: cannot capture graphs; install cuda-bindings for them')

    def launch(self, graph: int, stream: int) -> None:
        """Raise EngineError: pycuda has no graphs."""
        raise EngineError(f'{self.name}: has no graphs to launch')

    def free_graph(self, graph: int) -> None:
        """Raise EngineError: pycuda has no graphs."""
        raise EngineError(f'{self.name}: has no graphs to free')

    @contextmanager
    def _pushed(self) -> Iterator[None]:
        with self._named('Context.push'):
            if self._context is None:
                self._context = self._driver.Device(0).retain_primary_context()
            self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    @contextmanager
    def _named(self, call: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise EngineError(f'{self.name}: {call} failed: {error}') from error
