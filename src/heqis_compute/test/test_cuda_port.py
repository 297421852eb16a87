# SPDX-License-Identifier: Apache-2.0
"""The CUDA port by cuda-bindings and by pycuda, on a GPU in host memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_compute.engines.cuda_port import Cuda, Device, open_bindings, open_cuda, open_pycuda
from heqis_compute.engines.testing_cuda import FakeGpu, fake_pycuda, fake_runtime
from heqis_core.errors import EngineError

PORTS = {'cuda-bindings': open_bindings, 'pycuda': open_pycuda}


def install(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, *libraries: str) -> None:
    """Let these libraries be importable, and no other."""
    there = {
        'cuda.bindings.runtime': fake_runtime(gpu) if 'cuda-bindings' in libraries else None,
        'pycuda.driver': fake_pycuda(gpu) if 'pycuda' in libraries else None,
    }
    for name, module in there.items():
        for parent in ('.'.join(name.split('.')[:n]) for n in range(1, name.count('.') + 1)):
            monkeypatch.setitem(sys.modules, parent, module and type(sys)(parent))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=PORTS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    gpu = FakeGpu()
    install(monkeypatch, gpu, request.param)
    return gpu, PORTS[request.param]()


def test_the_device_is_named_with_its_compute_capability(machine: tuple[FakeGpu, Cuda]) -> None:
    _, cuda = machine
    assert cuda.device_count() == 1
    assert cuda.device() == Device('Orin', (8, 7))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.uint8]),
        hnp.array_shapes(max_dims=3, max_side=9),
    )
)
def test_what_goes_to_the_device_comes_back_after_a_wait(
    machine: tuple[FakeGpu, Cuda], values: Any
) -> None:
    gpu, cuda = machine
    with cuda.current():
        stream = cuda.stream()
        there = cuda.pinned(values.shape, values.dtype)
        back = cuda.pinned(values.shape, values.dtype)
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
    assert gpu.leaks() == 0


def test_too_large_an_allocation_is_an_error_that_names_the_call(
    machine: tuple[FakeGpu, Cuda],
) -> None:
    gpu, cuda = machine
    gpu.memory_left = 10
    with cuda.current(), pytest.raises(EngineError, match=r'(cudaMalloc|mem_alloc).*memory'):
        cuda.malloc(11)


def test_memory_that_is_freed_twice_is_an_error_that_names_the_call(
    machine: tuple[FakeGpu, Cuda],
) -> None:
    _, cuda = machine
    with cuda.current():
        address = cuda.malloc(8)
        cuda.free(address)
        with pytest.raises(EngineError, match=r'(cudaFree|Allocation\.free) failed: .*invalid'):
            cuda.free(address)


def test_streams_do_not_wait_for_the_default_one(machine: tuple[FakeGpu, Cuda]) -> None:
    gpu, cuda = machine
    with cuda.current():
        assert cuda.stream() in gpu.streams
    assert not gpu.blocking


def bindings(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeGpu, Cuda]:
    gpu = FakeGpu()
    install(monkeypatch, gpu, 'cuda-bindings')
    return gpu, open_bindings()


def test_a_captured_graph_runs_only_when_it_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cuda = bindings(monkeypatch)
    stream, address = cuda.stream(), cuda.malloc(4)
    source, target = (cuda.pinned((4,), np.dtype(np.uint8)) for _ in range(2))
    target[...] = 0

    def enqueue() -> None:
        cuda.to_device(address, source, stream)
        cuda.to_host(target, address, stream)

    source[...] = 3
    graph = cuda.capture(stream, enqueue)
    cuda.synchronise(stream)
    assert not target.any()
    for value in (5, 6):
        source[...] = value
        cuda.launch(graph, stream)
        cuda.synchronise(stream)
        assert (target == value).all()
    cuda.free_graph(graph)
    assert not gpu.graphs


def test_a_capture_that_raises_ends_and_the_stream_works_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, cuda = bindings(monkeypatch)
    stream = cuda.stream()

    def enqueue() -> None:
        cuda.malloc(8)

    with pytest.raises(EngineError, match='cudaMalloc failed: error 900'):
        cuda.capture(stream, enqueue)
    cuda.synchronise(stream)
    assert not gpu.captures
    assert not gpu.graphs


def test_a_capture_that_the_driver_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cuda = bindings(monkeypatch)
    gpu.refuses_capture = True
    with pytest.raises(EngineError, match='cudaStreamEndCapture failed: error 901'):
        cuda.capture(cuda.stream(), lambda: None)
    assert not gpu.captures


def test_pycuda_says_that_it_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu(), 'pycuda')
    cuda = open_pycuda()
    with cuda.current(), pytest.raises(EngineError, match='cannot capture graphs'):
        cuda.capture(cuda.stream(), lambda: None)


def test_pycuda_leaves_no_context_pushed_even_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, FakeGpu(), 'pycuda')
    cuda = open_pycuda()
    driver = sys.modules['pycuda.driver']
    with cuda.current(), cuda.current():
        assert driver.pushed == 2
    with pytest.raises(EngineError, match='mem_alloc'), cuda.current():
        cuda.malloc(1 << 40)
    assert driver.pushed == 0
    with pytest.raises(EngineError, match='context'):
        cuda.malloc(8)


@pytest.mark.parametrize(
    ('libraries', 'chosen'),
    [(('cuda-bindings', 'pycuda'), 'cuda-bindings'), (('pycuda',), 'pycuda')],
)
def test_cuda_bindings_comes_first_and_pycuda_serves_where_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...], chosen: str
) -> None:
    install(monkeypatch, FakeGpu(), *libraries)
    assert open_cuda().name == chosen


@pytest.mark.parametrize(
    ('devices', 'libraries', 'reasons'),
    [
        (1, (), ['cuda-bindings: cannot be imported', 'pycuda: cannot be imported']),
        (None, ('cuda-bindings', 'pycuda'), ['error 35', 'init failed']),
        (0, ('cuda-bindings',), ['cuda-bindings: the CUDA driver finds no device']),
    ],
)
def test_without_a_device_each_library_gives_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    devices: int | None,
    libraries: tuple[str, ...],
    reasons: list[str],
) -> None:
    install(monkeypatch, FakeGpu(devices), *libraries)
    with pytest.raises(EngineError) as error:
        open_cuda()
    assert all(reason in str(error.value) for reason in reasons)
