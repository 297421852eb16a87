# SPDX-License-Identifier: Apache-2.0
"""The few CUDA calls that an engine needs, as a protocol, and the first library that offers them.

Two libraries implement it: cuda-bindings (the default) and pycuda (what many JetPack images
carry). Addresses, streams and graphs are plain ints, as TensorRT takes them. Always device 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from heqis_core.errors import EngineError

Array = npt.NDArray[np.generic]


class Device(NamedTuple):
    """Name and compute capability (major, minor) of a GPU."""

    name: str
    capability: tuple[int, int]


class Cuda(Protocol):
    """CUDA on device 0. Each method raises EngineError that names the call and its error."""

    name: str
    """The library behind it."""

    def device_count(self) -> int:
        """Return the number of devices; the driver's first answer."""

    def device(self) -> Device:
        """Return name and compute capability of device 0."""

    def current(self) -> AbstractContextManager[object]:
        """Make device 0 current in this thread; every other call happens inside."""

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""

    def free(self, address: int) -> None:
        """Free what `malloc` returned."""

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """Return a C-ordered array in page-locked memory, content undefined."""

    def free_pinned(self, array: Array) -> None:
        """Free what `pinned` returned; nobody may read the array after that."""

    def stream(self) -> int:
        """Return a new stream that does not wait for the default one."""

    def free_stream(self, stream: int) -> None:
        """Free what `stream` returned."""

    def to_device(self, address: int, array: Array, stream: int) -> None:
        """Copy a pinned array to the device, in stream order."""

    def to_host(self, array: Array, address: int, stream: int) -> None:
        """Copy from the device into a pinned array, in stream order."""

    def synchronise(self, stream: int) -> None:
        """Wait for everything in the stream."""

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Record what `enqueue` puts into the stream, without running it, as a graph."""

    def launch(self, graph: int, stream: int) -> None:
        """Put a whole graph into the stream."""

    def free_graph(self, graph: int) -> None:
        """Free what `capture` returned."""


def open_bindings() -> Cuda:
    """Return CUDA by cuda-bindings; raise EngineError if the package is not there."""
    from heqis_compute.engines.cuda_bindings_port import BindingsCuda

    return BindingsCuda()


def open_pycuda() -> Cuda:
    """Return CUDA by pycuda; raise EngineError if it is not there or finds no driver."""
    from heqis_compute.engines.pycuda_port import PyCuda

    return PyCuda()


def open_cuda(ports: Sequence[Callable[[], Cuda]] = (open_bindings, open_pycuda)) -> Cuda:
    """Return the first CUDA library whose driver answers with at least one device.

    Raises EngineError that gives the reason of each library. Nothing that could crash without a
    driver has been touched until this has returned.
    """
    reasons = []
    for open_port in ports:
        try:
            cuda = open_port()
            if cuda.device_count() > 0:
                return cuda
            reasons.append(f'{cuda.name}: the CUDA driver finds no device')
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError('no CUDA device: ' + '; '.join(reasons))
