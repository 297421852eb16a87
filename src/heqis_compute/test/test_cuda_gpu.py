# SPDX-License-Identifier: Apache-2.0
"""The CUDA port on a real GPU, by cuda-bindings and by pycuda; skipped where no driver answers.

What happened is asked of the driver's C interface, so that no library vouches for itself.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_compute.engines.cuda_port import Cuda, open_bindings, open_cuda, open_pycuda
from heqis_core.errors import EngineError

try:
    open_cuda()
except EngineError as error:
    pytest.skip(str(error), allow_module_level=True)

MB = 1 << 20
DTYPES = (np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_)

INCREMENT = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry increment(.param .u64 where, .param .u32 count)
{
    .reg .pred %done;
    .reg .b32 %i, %n, %block, %value;
    .reg .b64 %base, %offset;
    ld.param.u64 %base, [where];
    ld.param.u32 %n, [count];
    mov.u32 %i, %ctaid.x;
    mov.u32 %block, %ntid.x;
    mov.u32 %value, %tid.x;
    mad.lo.u32 %i, %i, %block, %value;
    setp.ge.u32 %done, %i, %n;
    @%done bra end;
    cvta.to.global.u64 %base, %base;
    mul.wide.u32 %offset, %i, 4;
    add.u64 %base, %base, %offset;
    ld.global.u32 %value, [%base];
    add.u32 %value, %value, 1;
    st.global.u32 [%base], %value;
end:
    ret;
}
"""
"""A kernel that adds 1 to each of `count` numbers; the driver compiles it for the GPU."""


class Driver:
    """The driver's C interface; the context of the calling thread is the one of the port."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL('libcuda.so.1')

    def _call(self, function: str, *arguments: Any, accepted: tuple[int, ...] = (0,)) -> int:
        code = int(getattr(self._library, function)(*arguments))
        assert code in accepted, f'{function}: error {code}'
        return code

    def name_and_capability(self) -> tuple[str, tuple[int, int]]:
        name, values = ctypes.create_string_buffer(256), []
        self._call('cuDeviceGetName', name, len(name), 0)
        for attribute in (75, 76):  # compute capability, major and minor
            value = ctypes.c_int()
            self._call('cuDeviceGetAttribute', ctypes.byref(value), attribute, 0)
            values.append(value.value)
        return name.value.decode(), (values[0], values[1])

    def memory_type(self, address: int) -> str:
        value = ctypes.c_uint()
        where = ctypes.c_uint64(address)
        # 2 asks for the type; of memory that it does not know the driver says invalid value.
        known = self._call('cuPointerGetAttribute', ctypes.byref(value), 2, where, accepted=(0, 1))
        return 'unknown' if known else {1: 'page-locked', 2: 'device'}[value.value]

    def waits_for_the_default_stream(self, stream: int) -> bool:
        flags = ctypes.c_uint()
        self._call('cuStreamGetFlags', ctypes.c_void_p(stream), ctypes.byref(flags))
        return not flags.value & 1

    def is_done(self, stream: int) -> bool:
        return self._call('cuStreamQuery', ctypes.c_void_p(stream), accepted=(0, 600)) == 0

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call('cuMemGetInfo_v2', ctypes.byref(free), ctypes.byref(total))
        return free.value

    def increment(self) -> Callable[[int, int, int], None]:
        """Return the kernel, as a function of address, count and stream."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call('cuModuleLoadData', ctypes.byref(module), INCREMENT)
        self._call('cuModuleGetFunction', ctypes.byref(function), module, b'increment')

        def launch(address: int, count: int, stream: int) -> None:
            values = ctypes.c_uint64(address), ctypes.c_uint32(count)
            given = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
            grid = [ctypes.c_uint(n) for n in (-(-count // 128), 1, 1, 128, 1, 1, 0)]
            self._call('cuLaunchKernel', function, *grid, ctypes.c_void_p(stream), given, None)

        return launch


def open_port(name: str) -> Cuda:
    """Return a port whose driver answers with a device, or skip with what it says."""
    try:
        cuda = {'cuda-bindings': open_bindings, 'pycuda': open_pycuda}[name]()
        devices = cuda.device_count()
    except EngineError as error:
        pytest.skip(str(error))
    if not devices:
        pytest.skip(f'{name}: the CUDA driver finds no device')
    return cuda


@pytest.fixture(params=['cuda-bindings', 'pycuda'])
def cuda(request: pytest.FixtureRequest) -> Iterator[Cuda]:
    port = open_port(request.param)
    with port.current():
        port.free_stream(port.stream())  # the context exists
        yield port


@pytest.fixture
def bindings() -> Iterator[Cuda]:
    """Return the port that has graphs."""
    port = open_port('cuda-bindings')
    with port.current():
        port.free_stream(port.stream())
        yield port


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Driver:
    request.getfixturevalue('cuda' if 'cuda' in request.fixturenames else 'bindings')
    return Driver()


class Echo:
    """A stream, page-locked arrays and device memory of n bytes: there and back again."""

    def __init__(self, cuda: Cuda, n: int = 4096) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.source, self.target = (cuda.pinned((n,), np.dtype(np.uint8)) for _ in range(2))
        self.source[...] = self.target[...] = 0
        self.address = cuda.malloc(n)

    def enqueue(self) -> None:
        self.cuda.to_device(self.address, self.source, self.stream)
        self.cuda.to_host(self.target, self.address, self.stream)

    def check(self, value: int, start: Callable[[], None] | None = None) -> None:
        self.source[...] = value
        (start or self.enqueue)()
        self.cuda.synchronise(self.stream)
        assert (self.target == value).all()

    def close(self) -> None:
        self.cuda.free(self.address)
        self.cuda.free_pinned(self.source)
        self.cuda.free_pinned(self.target)
        self.cuda.free_stream(self.stream)


@pytest.fixture
def echo(bindings: Cuda) -> Iterator[Echo]:
    echo = Echo(bindings)
    yield echo
    echo.close()


# ---- memory and streams -------------------------------------------------------------------------


def test_name_and_capability_are_those_of_the_driver(cuda: Cuda, driver: Driver) -> None:
    assert cuda.device() == driver.name_and_capability()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(max_dims=4, max_side=12)),
)
def test_what_goes_to_the_device_comes_back(cuda: Cuda, values: Any) -> None:
    stream = cuda.stream()
    there, back = (cuda.pinned(values.shape, values.dtype) for _ in range(2))
    there[...] = values
    address = cuda.malloc(values.nbytes)
    cuda.to_device(address, there, stream)
    cuda.to_host(back, address, stream)
    cuda.synchronise(stream)
    assert back.tobytes() == values.tobytes()
    cuda.free(address)
    cuda.free_pinned(there)
    cuda.free_pinned(back)
    cuda.free_stream(stream)


@pytest.mark.parametrize('n', [1, 4095, 4097, MB + 1, 64 * MB])
def test_no_byte_is_lost_at_any_size(cuda: Cuda, n: int) -> None:
    echo = Echo(cuda, n)
    echo.source[...] = np.random.default_rng(n).integers(0, 256, n, np.uint8)
    echo.enqueue()
    cuda.synchronise(echo.stream)
    assert np.array_equal(echo.source, echo.target)
    echo.close()


def test_the_driver_knows_pinned_arrays_as_page_locked(cuda: Cuda, driver: Driver) -> None:
    for dtype in DTYPES:
        array = cuda.pinned((3, 5), np.dtype(dtype))
        assert (array.shape, array.dtype, array.flags.carray) == ((3, 5), np.dtype(dtype), True)
        assert driver.memory_type(array.ctypes.data) == 'page-locked'
        assert driver.memory_type(array.ctypes.data + array.nbytes - 1) == 'page-locked'
        cuda.free_pinned(array)
    assert driver.memory_type(np.zeros(15).ctypes.data) == 'unknown'
    address = cuda.malloc(60)
    assert driver.memory_type(address) == 'device'
    cuda.free(address)


def test_a_stream_does_not_wait_for_the_default_one(cuda: Cuda, driver: Driver) -> None:
    stream = cuda.stream()
    assert not driver.waits_for_the_default_stream(stream)
    cuda.free_stream(stream)


def test_copies_return_before_they_are_done_and_run_in_their_order(
    cuda: Cuda, driver: Driver
) -> None:
    """2 GB go to the device in 32 copies: were they waited for, the stream would be done."""
    echo = Echo(cuda, 64 * MB)
    last = cuda.pinned((64 * MB,), np.dtype(np.uint8))
    last[...] = 7
    for _ in range(32):
        cuda.to_device(echo.address, echo.source, echo.stream)
    cuda.to_device(echo.address, last, echo.stream)
    cuda.to_host(echo.target, echo.address, echo.stream)
    assert not driver.is_done(echo.stream)
    cuda.synchronise(echo.stream)
    assert driver.is_done(echo.stream)
    assert (echo.target == 7).all()
    cuda.free_pinned(last)
    echo.close()


# ---- graphs -------------------------------------------------------------------------------------


def test_nothing_runs_while_it_is_captured_and_each_launch_reads_anew(echo: Echo) -> None:
    echo.source[...] = 3
    graph = echo.cuda.capture(echo.stream, echo.enqueue)
    echo.cuda.synchronise(echo.stream)
    assert not echo.target.any()
    for launch in range(1000):
        echo.check(launch % 255 + 1, partial(echo.cuda.launch, graph, echo.stream))
    echo.cuda.free_graph(graph)


def test_kernels_run_inside_a_graph_between_the_copies(echo: Echo, driver: Driver) -> None:
    increment = driver.increment()
    numbers = echo.source.view(np.uint32)
    n = len(numbers)

    def enqueue() -> None:
        echo.cuda.to_device(echo.address, echo.source, echo.stream)
        for _ in range(3):
            increment(echo.address, n, echo.stream)
        echo.cuda.to_host(echo.target, echo.address, echo.stream)

    graph = echo.cuda.capture(echo.stream, enqueue)
    for launch in range(100):
        numbers[...] = np.arange(n) * launch
        echo.cuda.launch(graph, echo.stream)
        echo.cuda.synchronise(echo.stream)
        assert np.array_equal(echo.target.view(np.uint32), np.arange(n) * launch + 3)
    echo.cuda.free_graph(graph)


def test_another_thread_may_allocate_and_wait_in_the_middle_of_a_capture(echo: Echo) -> None:
    def use_the_device() -> None:
        with echo.cuda.current():
            other = Echo(echo.cuda)
            other.check(9)
            other.close()

    def enqueue() -> None:
        echo.cuda.to_device(echo.address, echo.source, echo.stream)
        pool.submit(use_the_device).result()
        echo.cuda.to_host(echo.target, echo.address, echo.stream)

    with ThreadPoolExecutor(1) as pool:
        for value in range(1, 11):
            graph = echo.cuda.capture(echo.stream, enqueue)
            echo.check(value, partial(echo.cuda.launch, graph, echo.stream))
            echo.cuda.free_graph(graph)


def test_two_threads_capture_at_once(bindings: Cuda) -> None:
    both = threading.Barrier(2, timeout=30)

    def work(value: int) -> None:
        with bindings.current():
            echo = Echo(bindings)

            def enqueue() -> None:
                both.wait()
                echo.enqueue()
                both.wait()

            graph = bindings.capture(echo.stream, enqueue)
            echo.check(value, partial(bindings.launch, graph, echo.stream))
            bindings.free_graph(graph)
            echo.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))


def test_a_capture_that_raises_ends_and_the_stream_works_on(echo: Echo) -> None:
    def fail() -> None:
        echo.enqueue()
        raise LookupError('in the middle')

    with pytest.raises(LookupError, match='in the middle'):
        echo.cuda.capture(echo.stream, fail)
    echo.check(5)
    graph = echo.cuda.capture(echo.stream, echo.enqueue)
    echo.check(6, partial(echo.cuda.launch, graph, echo.stream))
    echo.cuda.free_graph(graph)


def test_a_wait_inside_a_capture_is_an_error_and_the_stream_works_on(echo: Echo) -> None:
    with pytest.raises(EngineError, match='cudaStreamSynchronize failed: error 900'):
        echo.cuda.capture(echo.stream, partial(echo.cuda.synchronise, echo.stream))
    echo.check(5)


def test_a_capture_that_was_spoiled_is_an_error_when_it_ends(echo: Echo) -> None:
    def spoil() -> None:
        echo.enqueue()
        with pytest.raises(EngineError, match='error 900'):
            echo.cuda.synchronise(echo.stream)

    with pytest.raises(EngineError, match='cudaStreamEndCapture failed: error 901'):
        echo.cuda.capture(echo.stream, spoil)
    echo.check(5)


def test_pycuda_has_no_graphs() -> None:
    port = open_port('pycuda')
    with port.current():
        stream = port.stream()
        with pytest.raises(EngineError, match='cannot capture graphs'):
            port.capture(stream, lambda: None)
        port.free_stream(stream)


# ---- errors and leaks ---------------------------------------------------------------------------


def test_too_large_an_allocation_is_a_named_error_and_the_next_one_works(cuda: Cuda) -> None:
    with pytest.raises(EngineError, match=r'(cudaMalloc|mem_alloc) failed: .*out of memory'):
        cuda.malloc(1 << 46)
    cuda.free(cuda.malloc(MB))


def test_memory_that_is_freed_twice_is_a_named_error(cuda: Cuda) -> None:
    address = cuda.malloc(MB)
    cuda.free(address)
    with pytest.raises(EngineError, match=r'(cudaFree|DeviceAllocation\.free) failed: .*invalid'):
        cuda.free(address)
    cuda.free(cuda.malloc(MB))


def test_pinned_memory_that_is_freed_twice_is_a_named_error(cuda: Cuda) -> None:
    array = cuda.pinned((MB,), np.dtype(np.uint8))
    cuda.free_pinned(array)
    with pytest.raises(EngineError, match=r'(cudaFreeHost|PagelockedHost\S+) failed: .*invalid'):
        cuda.free_pinned(array)


def test_a_thousand_rounds_leave_nothing_behind(cuda: Cuda, driver: Driver) -> None:
    """A round takes 1 MB of the device and 2 MB of page-locked memory: a leak would be 3 GB."""

    def rounds(n: int) -> None:
        for _ in range(n):
            echo = Echo(cuda, MB)
            echo.check(1)
            if cuda.name == 'cuda-bindings':
                graph = cuda.capture(echo.stream, echo.enqueue)
                echo.check(2, partial(cuda.launch, graph, echo.stream))
                cuda.free_graph(graph)
            echo.close()

    rounds(20)
    device, host = driver.free_bytes(), mapped_bytes()
    rounds(1000)
    assert device - driver.free_bytes() < 256 * MB
    assert mapped_bytes() - host < 512 * MB


def mapped_bytes() -> int:
    """Return the memory that this process maps; what is page-locked need not count as resident."""
    return int(Path('/proc/self/statm').read_text().split()[0]) * mmap.PAGESIZE
