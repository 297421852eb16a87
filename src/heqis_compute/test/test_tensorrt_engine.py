# SPDX-License-Identifier: Apache-2.0
"""The TensorRT engine on three API generations (8.6, 10.3, 11.0) and both CUDA libraries."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from heqis_compute.engines.engine_cache import EngineKey, engine_file, write_engine
from heqis_compute.engines.tensorrt_build import BuildFlags, trtexec_line, version_of
from heqis_compute.engines.tensorrt_engine import Golden, TensorRt, TensorRtEngine, open_tensorrt
from heqis_compute.engines.testing_cuda import FakeGpu, fake_pycuda
from heqis_compute.engines.testing_tensorrt import Crash, board_modules, fake_tensorrt
from heqis_core.engine import TensorSpec
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import open_engine

VERSIONS = ('8.6', '10.3', '11.0')
FP32 = BuildFlags('fp32', False)
TILE, WIDTH, OUT = 4, 5, 3


def save(path: Path, nodes: list[Any], weights: list[Any], shape: tuple[Any, ...]) -> Path:
    graph = helper.make_graph(
        nodes,
        'model',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [shape[0], OUT])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def weight(dtype: type[np.generic], seed: int = 3) -> Any:
    values = np.random.default_rng(seed).normal(size=(WIDTH, OUT)).astype(dtype)
    return numpy_helper.from_array(values, 'w')


def write_model(path: Path, shape: tuple[Any, ...] = (TILE, WIDTH), seed: int = 3) -> Path:
    nodes = [
        helper.make_node('MatMul', ['x', 'w'], ['z']),
        helper.make_node('Tanh', ['z'], ['y']),
    ]
    return save(path, nodes, [weight(np.float32, seed)], shape)


def write_fp16(path: Path) -> Path:
    """Write the same model with float16 inside and float32 at its border."""
    nodes = [
        helper.make_node('Cast', ['x'], ['x16'], to=TensorProto.FLOAT16),
        helper.make_node('MatMul', ['x16', 'w'], ['z']),
        helper.make_node('Tanh', ['z'], ['y16']),
        helper.make_node('Cast', ['y16'], ['y'], to=TensorProto.FLOAT),
    ]
    return save(path, nodes, [weight(np.float16)], (TILE, WIDTH))


def write_int8(path: Path) -> Path:
    """Write the same model with its input quantised and de-quantised."""
    nodes = [
        helper.make_node('QuantizeLinear', ['x', 'scale', 'zero'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 'scale', 'zero'], ['d']),
        helper.make_node('MatMul', ['d', 'w'], ['z']),
        helper.make_node('Tanh', ['z'], ['y']),
    ]
    scale = numpy_helper.from_array(np.float32(0.04), 'scale')
    zero = numpy_helper.from_array(np.int8(0), 'zero')
    return save(path, nodes, [weight(np.float32), scale, zero], (TILE, WIDTH))


def tile(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(TILE, WIDTH)).astype(np.float32)


class Board:
    """A fake Jetson: its GPU, its TensorRT and the models and engines in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, version: str) -> None:
        self._monkeypatch = monkeypatch
        self.folder = folder
        self.model = write_model(folder / 'model.onnx')
        self.cache = folder / 'cache'
        self.version = version
        self.gpu = FakeGpu()
        self.dla_cores = 0
        self.cuda = 'cuda-bindings'
        self.boot()

    def boot(self) -> None:
        """Start a new process: fresh modules on the same GPU and the same files."""
        self.trt = fake_tensorrt(self.version, self.gpu, self.dla_cores)
        modules = board_modules(self.trt, self.gpu)
        if self.cuda == 'pycuda':
            modules |= {'cuda.bindings.runtime': None, 'pycuda': ModuleType('pycuda')}
            modules['pycuda.driver'] = fake_pycuda(self.gpu)
        for name, module in modules.items():
            self._monkeypatch.setitem(sys.modules, name, module)

    def open(self, flags: BuildFlags = FP32) -> TensorRt:
        return open_tensorrt(flags, self.cache)

    def load(self, flags: BuildFlags = FP32, golden: Golden | None = None) -> TensorRtEngine:
        engine = TensorRtEngine(self.open(flags), golden)
        engine.load(self.model)
        return engine

    def expected(self, x: Any) -> Any:
        return open_engine(self.model).infer({'x': x})['y']

    def golden(self, tolerance: float = 1e-4) -> Golden:
        rows = np.concatenate([tile(1), tile(2)[:1]])
        padded = np.concatenate([rows[TILE:], np.zeros((TILE - 1, WIDTH), np.float32)])
        answers = np.concatenate([self.expected(rows[:TILE]), self.expected(padded)[:1]])
        return Golden(rows, {'y': answers}, tolerance)


@pytest.fixture(params=VERSIONS)
def board(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Board:
    return Board(monkeypatch, tmp_path, request.param)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    """Return a board of JetPack 6 for what no version does in its own way."""
    return Board(monkeypatch, tmp_path, '10.3')


# ---- on every version ---------------------------------------------------------------------------


@pytest.mark.parametrize('cuda', ['cuda-bindings', 'pycuda'])
def test_a_model_is_built_specified_and_gives_the_numbers_of_onnx_runtime(
    board: Board, cuda: str
) -> None:
    board.cuda = cuda
    board.boot()
    engine = board.load(golden=board.golden())
    assert engine.kind == 'tensorrt'
    assert engine.specs() == (
        (TensorSpec('x', np.dtype(np.float32), (TILE, WIDTH)),),
        (TensorSpec('y', np.dtype(np.float32), (TILE, OUT)),),
    )
    for seed in range(4):
        np.testing.assert_array_equal(
            engine.infer({'x': tile(seed)})['y'], board.expected(tile(seed))
        )
    engine.close()
    assert board.gpu.leaks() == 0


def test_after_one_run_each_tile_is_one_launch_of_a_graph(board: Board) -> None:
    engine = board.load()
    for seed in range(3):
        engine.infer({'x': tile(seed)})
    assert board.gpu.launches == 3


def test_the_next_process_takes_the_engine_from_the_cache(board: Board) -> None:
    board.load(golden=board.golden()).close()
    board.boot()
    engine = board.load(golden=board.golden())
    assert board.trt.builds == 0
    np.testing.assert_array_equal(engine.infer({'x': tile()})['y'], board.expected(tile()))


@pytest.mark.parametrize(('precision', 'write'), [('fp16', write_fp16), ('int8', write_int8)])
def test_other_precisions_build_from_their_own_file_within_their_tolerance(
    board: Board, precision: str, write: Any
) -> None:
    write(board.folder / f'model.{precision}.onnx')
    engine = board.load(BuildFlags(precision, False), board.golden(0.1))
    answer = engine.infer({'x': tile()})['y']
    assert not np.array_equal(answer, board.expected(tile()))
    np.testing.assert_allclose(answer, board.expected(tile()), atol=0.1)
    with pytest.raises(EngineError, match=rf'model\.{precision}\.onnx.*golden'):
        board.load(BuildFlags(precision, False), board.golden(1e-9))


def test_tf32_is_off_and_the_dla_is_used_only_where_there_is_one(board: Board) -> None:
    flags = BuildFlags('fp16', True)
    write_fp16(board.folder / 'model.fp16.onnx')
    for cores, device in ((0, b'"GPU"'), (2, b'"DLA"')):
        board.gpu.name, board.dla_cores = f'Orin with {cores}', cores
        board.boot()
        board.load(flags)
        newest = max(board.cache.glob('*.engine'), key=lambda p: p.stat().st_mtime_ns)
        assert device in newest.read_bytes()
        assert (b'GPU_FALLBACK' in newest.read_bytes()) == (cores > 0)
        assert b'"TF32"' not in newest.read_bytes()


def test_a_file_that_is_no_model_is_an_error_that_names_it(board: Board) -> None:
    board.model.write_bytes(b'not a model')
    with pytest.raises(EngineError, match=r'model\.onnx: TensorRT .* cannot parse it: ModelProto'):
        board.load()
    assert board.gpu.leaks() == 0


def test_a_dynamic_shape_is_refused_with_what_to_do(board: Board) -> None:
    write_model(board.model, ('rows', WIDTH))
    with pytest.raises(EngineError, match=r"input 'x'.*fixed tile"):
        board.load()


def test_the_command_of_trtexec_has_the_options_of_its_version(board: Board) -> None:
    line = trtexec_line(board.trt, Path('a b/m.onnx'), BuildFlags('fp16', True), True)
    assert line.startswith("trtexec '--onnx=a b/m.onnx'")
    assert '--noTF32' in line
    assert '--useDLACore=0 --allowGPUFallback' in line
    assert ('--fp16' in line) == (board.version == '8.6')
    assert ('--stronglyTyped' in line) == (board.version == '10.3')
    assert ('--useCudaGraph' in line) == (board.version != '11.0')


def test_without_a_driver_tensorrt_is_never_touched(board: Board) -> None:
    board.gpu.devices = None
    with pytest.raises(EngineError, match='no CUDA device'):
        board.open()
    with pytest.raises(Crash):
        board.trt.Runtime(None)


# ---- cache --------------------------------------------------------------------------------------


def test_another_model_gpu_or_tensorrt_builds_again(orin: Board) -> None:
    orin.load().close()
    write_model(orin.model, seed=4)
    orin.load().close()
    orin.gpu.name = 'Orin NX'
    orin.load().close()
    assert orin.trt.builds == 3
    orin.version = '11.0'
    orin.boot()
    orin.load().close()
    assert orin.trt.builds == 1
    assert len(list(orin.cache.glob('*.engine'))) == 4


def test_a_damaged_engine_is_built_again_counted_and_replaced(
    orin: Board, caplog: pytest.LogCaptureFixture
) -> None:
    orin.load().close()
    (path,) = orin.cache.glob('*.engine')
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b'!')
    orin.boot()
    shared = orin.open()
    TensorRtEngine(shared).load(orin.model)
    assert (orin.trt.builds, shared.counters['cache_refused'], shared.counters['built']) == (
        1,
        1,
        1,
    )
    assert 'is damaged' in caplog.text
    assert path.read_bytes() == whole


def test_an_engine_that_tensorrt_refuses_is_built_again(orin: Board) -> None:
    shared = orin.open()
    engine = TensorRtEngine(shared)
    engine.load(orin.model)
    digest = hashlib.sha256(orin.model.read_bytes()).hexdigest()
    key = EngineKey(digest, '10.3.0', 'Orin', (8, 7), FP32.names())
    assert engine_file(orin.cache, key).is_file()
    write_engine(orin.cache, key, b'whole, and no plan')
    engine.load(orin.model)
    assert orin.trt.builds == 2
    assert shared.counters['cache_refused'] == 1


def test_a_wrong_engine_fails_its_golden_test_and_is_not_kept(orin: Board) -> None:
    orin.trt.scale = 1.01
    with pytest.raises(EngineError, match=r"model\.onnx: output 'y' differs .* TensorRT"):
        orin.load(golden=orin.golden())
    assert not list(orin.cache.glob('*'))
    assert orin.gpu.leaks() == 0


def test_a_cached_engine_that_fails_its_golden_test_is_built_again(orin: Board) -> None:
    orin.load().close()
    orin.trt.scale = 1.01
    with pytest.raises(EngineError, match='golden'):
        orin.load(golden=orin.golden())
    assert orin.trt.builds == 2


def test_a_cache_that_cannot_be_written_is_counted_and_the_engine_runs(
    orin: Board, caplog: pytest.LogCaptureFixture
) -> None:
    orin.cache.write_text('a file in the way')
    shared = orin.open()
    engine = TensorRtEngine(shared)
    engine.load(orin.model)
    assert shared.counters['cache_write_failed'] == 1
    assert 'cannot be written' in caplog.text
    np.testing.assert_array_equal(engine.infer({'x': tile()})['y'], orin.expected(tile()))


def test_the_timing_cache_reaches_the_next_build_and_a_damaged_one_does_not(orin: Board) -> None:
    orin.load().close()
    write_model(orin.model, seed=4)
    orin.load().close()
    (path,) = orin.cache.glob('*.timing')
    for damaged in (b'rubbish', b'timing of another GPU', b'unreadable'):
        path.write_bytes(damaged)
        write_model(orin.model, seed=5 + len(damaged))
        orin.load().close()
    assert orin.trt.timings == [b'', b'timing Orin', b'', b'', b'']
    assert path.read_bytes() == b'timing Orin'


def test_a_timing_cache_that_cannot_be_read_is_no_reason_of_a_build_that_fails(
    orin: Board,
) -> None:
    orin.version = '8.6'
    orin.boot()
    orin.load().close()
    (path,) = orin.cache.glob('*.timing')
    path.write_bytes(b'unreadable')
    write_int8(orin.model)  # without the flag for int8
    with pytest.raises(EngineError, match='cannot build it in fp32') as error:
        orin.load()
    assert 'timing cache' not in str(error.value)


# ---- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize('cuda', ['cuda-bindings', 'pycuda'])
def test_without_graphs_tiles_run_all_the_same_counted_and_logged_once(
    orin: Board, caplog: pytest.LogCaptureFixture, cuda: str
) -> None:
    orin.cuda, orin.gpu.refuses_capture = cuda, True
    orin.boot()
    shared = orin.open()
    engine = TensorRtEngine(shared, orin.golden())
    engine.load(orin.model)
    for seed in range(5):
        np.testing.assert_array_equal(
            engine.infer({'x': tile(seed)})['y'], orin.expected(tile(seed))
        )
    assert shared.counters['graphs_failed'] == 1
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert 'without a CUDA graph' in caplog.text


def test_loading_another_model_captures_again_and_frees_the_first(orin: Board) -> None:
    engine = orin.load()
    before = orin.gpu.leaks()
    write_model(orin.model, seed=9)
    engine.load(orin.model)
    np.testing.assert_array_equal(engine.infer({'x': tile()})['y'], orin.expected(tile()))
    assert orin.gpu.leaks() == before


def test_a_model_that_cannot_be_loaded_leaves_the_one_that_is(orin: Board) -> None:
    engine = orin.load()
    expected = orin.expected(tile())
    with pytest.raises(EngineError, match='nowhere'):
        engine.load(orin.folder / 'nowhere.onnx')
    np.testing.assert_array_equal(engine.infer({'x': tile()})['y'], expected)


def test_an_answer_is_not_overwritten_by_the_next_tile(orin: Board) -> None:
    engine = orin.load()
    first = engine.infer({'x': tile(1)})['y']
    kept = first.copy()
    engine.infer({'x': tile(2)})
    np.testing.assert_array_equal(first, kept)


def test_threads_share_one_engine_one_at_a_time_and_each_gets_its_own_answer(
    orin: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = orin.load()
    expected = [orin.expected(tile(seed)) for seed in range(8)]
    running, overlap, wait = [0], threading.Event(), orin.gpu.wait

    def slow(stream: int) -> None:
        running[0] += 1
        if running[0] > 1:
            overlap.set()
        overlap.wait(0.05)  # gives a second thread the time to come in
        wait(stream)
        running[0] -= 1

    monkeypatch.setattr(orin.gpu, 'wait', slow)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: engine.infer({'x': tile(seed)})['y'], range(8)))
    assert not overlap.is_set()
    assert all(np.array_equal(a, e) for a, e in zip(answers, expected, strict=True))


@pytest.mark.parametrize(
    ('inputs', 'what'),
    [
        ({}, "input 'x' is missing"),
        ({'x': np.zeros((TILE + 1, WIDTH), np.float32)}, r'\(5, 5\), expected float32 \(4, 5\)'),
        ({'x': np.zeros((TILE, WIDTH))}, 'has float64'),
        ({'x': np.zeros((TILE, WIDTH), np.float32), 'z': np.zeros(1)}, r"unknown input \['z'\]"),
    ],
)
def test_a_wrong_input_is_named(orin: Board, inputs: Any, what: str) -> None:
    with pytest.raises(EngineError, match=what):
        orin.load().infer(inputs)


def test_no_memory_on_the_device_is_an_error_and_nothing_is_left(orin: Board) -> None:
    orin.gpu.memory_left = 100
    with pytest.raises(EngineError, match='out of memory'):
        orin.load()
    assert orin.gpu.leaks() == 0


def test_an_engine_without_a_model_says_so_and_closes_twice(orin: Board) -> None:
    engine = TensorRtEngine(orin.open())
    with pytest.raises(EngineError, match='call load'):
        engine.infer({})
    engine.close()
    engine.close()


def test_a_precision_without_its_file_says_what_to_do(orin: Board) -> None:
    with pytest.raises(EngineError, match=r'model\.fp16\.onnx.*precision fp32'):
        orin.load(BuildFlags('fp16', False))


@pytest.mark.parametrize('text', ['8.4.1', '7.2', 'new'])
def test_a_tensorrt_that_is_too_old_or_unreadable_is_refused(orin: Board, text: str) -> None:
    orin.trt.__version__ = text
    with pytest.raises(EngineError, match=text):
        orin.open()


def test_importing_the_engine_imports_neither_cuda_nor_tensorrt() -> None:
    code = (
        'import sys, heqis_compute.engines.probe;'
        'print([m for m in sys.modules if m.split(".")[0] in ("cuda", "pycuda", "tensorrt")])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


# ---- the fakes are what they say ----------------------------------------------------------------


def test_the_fakes_lack_what_their_version_lacks(board: Board) -> None:
    assert version_of(board.trt) == tuple(int(n) for n in board.version.split('.'))
    old, new = board.version == '8.6', board.version == '11.0'
    board.open()
    builder = board.trt.Builder(None)
    if old:
        with pytest.raises(NotImplementedError, match='build_engine'):
            hasattr(builder, 'build_engine')
    else:
        assert not hasattr(builder, 'build_engine')
    assert hasattr(board.trt.BuilderFlag, 'FP16') == (not new)
    assert hasattr(board.trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED') == (not old)
    assert hasattr(board.trt.NetworkDefinitionCreationFlag, 'EXPLICIT_BATCH') == (not new)
    config = builder.create_builder_config()
    with pytest.raises(AttributeError, match='has no'):
        config.max_batch_size = 1


def test_the_fakes_refuse_a_wrong_order_of_calls(board: Board) -> None:
    shared = board.open()
    trt, network = board.trt, board.trt.Builder(shared.log).create_network(1)
    builder = trt.Builder(shared.log)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    board.load().close()
    (path,) = board.cache.glob('*.engine')
    plan = path.read_bytes().partition(b'\n')[2].partition(b'\n')[2][32:]
    context = shared.runtime.deserialize_cuda_engine(plan).create_execution_context()
    assert not context.execute_async_v3(shared.cuda.stream())
    assert not context.set_tensor_address('x', 12345)
    assert not context.set_input_shape('x', (1, 1))
