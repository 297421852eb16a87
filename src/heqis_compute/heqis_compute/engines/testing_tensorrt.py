# SPDX-License-Identifier: Apache-2.0
"""Fakes of the module `tensorrt` 8.6, 10.3 and 11.0 that run models on ONNX Runtime, for tests.

Each class has the names of that version and no others, each call order that TensorRT refuses is
refused, and what a missing driver does to the real one (a null builder, a crash of the runtime)
raises here. Nothing outside a test imports this.
"""

from __future__ import annotations

import ctypes
import json
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from heqis_compute.engines.testing_cuda import FakeGpu, fake_runtime
from heqis_compute.engines.testing_tensorrt_api import API

_RELEASE = {'8.6': '8.6.1', '10.3': '10.3.0', '11.0': '11.0.0.114'}
_DTYPES = {'float': 'FLOAT', 'float16': 'HALF', 'int32': 'INT32', 'int8': 'INT8', 'bool': 'BOOL'}
_NUMPY = {'FLOAT': np.float32, 'HALF': np.float16, 'INT32': np.int32, 'INT8': np.int8}


class Crash(BaseException):
    """What would have been a segmentation fault: no `except Exception` may hide it."""


def board_modules(trt: Any, gpu: FakeGpu) -> dict[str, Any]:
    """Return what `sys.modules` holds beside the rest on a board with cuda-bindings alone."""
    packages = {name: ModuleType(name) for name in ('cuda', 'cuda.bindings')}
    runtime = fake_runtime(gpu)
    return {**packages, 'cuda.bindings.runtime': runtime, 'pycuda': None, 'tensorrt': trt}


def fake_tensorrt(version: str, gpu: FakeGpu, dla_cores: int = 0) -> Any:
    """Return the module of one of the versions in API, on that GPU.

    `module.builds` counts the networks that were built, `module.timings` the timing caches given
    to them, `module.scale` multiplies every float output (1.0; another value is a wrong result).
    """
    api = API[version]
    module: Any = ModuleType('tensorrt')
    module.__version__ = _RELEASE[version]
    module.builds = 0
    module.timings = []
    module.scale = 1.0

    def enum(name: str) -> Any:
        return IntEnum(name, sorted(api[name]), start=0)

    for name in ('BuilderFlag', 'DataType', 'DeviceType', 'MemoryPoolType', 'TensorIOMode'):
        setattr(module, name, enum(name))
    module.NetworkDefinitionCreationFlag = enum('NetworkDefinitionCreationFlag')

    class ILogger:
        Severity = IntEnum('Severity', 'INTERNAL_ERROR ERROR WARNING INFO VERBOSE', start=0)

    def driver() -> None:
        if not gpu.asked or not gpu.devices:
            raise Crash('TensorRT was touched on a machine without a driver')

    class Strict:
        """Has the names of its class in this version, and what starts with an underscore."""

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith('_') and name not in api[type(self).__name__]:
                raise AttributeError(f'TensorRT {version}: {type(self).__name__} has no {name!r}')
            try:
                return object.__getattribute__(self, name)
            except AttributeError:
                if name.startswith('_'):
                    raise
                # There in this version: `hasattr` must not say that it is not.
                raise NotImplementedError(f'the fake of {type(self).__name__}.{name}') from None

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith('_') and name not in api[type(self).__name__]:
                raise AttributeError(f'TensorRT {version}: {type(self).__name__} has no {name!r}')
            object.__setattr__(self, name, value)

    def error(log: Any, text: str) -> None:
        log.log(ILogger.Severity.ERROR, text)

    class ITensor(Strict):
        def __init__(self, info: Any) -> None:
            self.name = info.name
            dims = info.type.tensor_type.shape.dim
            self.shape = tuple(d.dim_value if d.HasField('dim_value') else -1 for d in dims)

    class INetworkDefinition(Strict):
        def __init__(self, flags: int) -> None:
            self._flags = flags
            self._model: Any = None

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        def get_input(self, index: int) -> ITensor:
            return ITensor(self._model.graph.input[index])

        def _has(self, flag: str) -> bool:
            number = getattr(module.NetworkDefinitionCreationFlag, flag, None)
            return number is not None and bool(self._flags >> int(number) & 1)

    class ParserError(Strict):
        def __init__(self, text: str) -> None:
            self._text = text

        def desc(self) -> Any:
            return self._text

    class OnnxParser(Strict):
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._log = network, logger
            self._errors: list[str] = []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            if version == '8.6' and not self._network._has('EXPLICIT_BATCH'):
                self._errors.append('network must be created with EXPLICIT_BATCH')
                return False
            try:
                self._network._model = onnx.load_from_string(model)
                onnx.checker.check_model(self._network._model)
            except Exception as problem:
                self._errors.append(f'ModelProto cannot be read: {type(problem).__name__}')
                return False
            return True

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(self._errors[index])

    class ITimingCache(Strict):
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> bytes:
            return self._data

    class IBuilderConfig(Strict):
        def __init__(self, logger: Any) -> None:
            self._log = logger
            self._flags = {'TF32'}
            self._timing: ITimingCache | None = None
            self.default_device_type = module.DeviceType.GPU
            self.DLA_core = -1

        def set_flag(self, flag: Any) -> None:
            self._flags.add(module.BuilderFlag(flag).name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(module.BuilderFlag(flag).name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            assert pool == module.MemoryPoolType.WORKSPACE
            assert pool_size >= 1 << 20

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            data = bytes(memoryview(serialized_timing_cache))
            if data.startswith(b'unreadable'):
                error(self._log, 'The timing cache will not be used!')
                return ITimingCache(data)
            good = not data or data.startswith(b'timing ')
            return ITimingCache(data) if good else None

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            # What could not be read is accepted all the same, as 8.6.0 does.
            known = (b'', f'timing {gpu.name}'.encode())
            if cache._data not in known and not cache._data.startswith(b'unreadable'):
                return False
            self._timing = cache
            return True

    class Builder(Strict):
        def __init__(self, logger: Any) -> None:
            driver()
            self._log = logger
            self.num_DLA_cores = dla_cores

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig(self._log)

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> Any:
            problem = refusal(network, config)
            if problem:
                error(self._log, problem)
                return None
            timing = config._timing
            if timing is not None:
                module.timings.append(timing._data)
                timing._data = f'timing {gpu.name}'.encode()
            module.builds += 1
            head = {'version': module.__version__, 'gpu': gpu.name, 'flags': sorted(config._flags)}
            head['device'] = module.DeviceType(config.default_device_type).name
            plan = json.dumps(head).encode() + b'\n' + network._model.SerializeToString()
            return memoryview(plan)

    def refusal(network: INetworkDefinition, config: IBuilderConfig) -> str:
        model = network._model
        if model is None:
            return 'the network is empty'
        typed = version == '11.0' or network._has('STRONGLY_TYPED')
        if typed and config._flags & {'FP16', 'INT8'}:
            return 'precision flags cannot be set for a strongly typed network'
        halves = any(w.data_type == TensorProto.FLOAT16 for w in model.graph.initializer)
        if halves and not typed and 'FP16' not in config._flags:
            return 'network has float16 tensors, but BuilderFlag.FP16 is not set'
        quantised = any(node.op_type == 'QuantizeLinear' for node in model.graph.node)
        if quantised and not typed and 'INT8' not in config._flags:
            return 'network has Q/DQ layers, but BuilderFlag.INT8 is not set'
        if any(size < 0 for i in range(network.num_inputs) for size in network.get_input(i).shape):
            return 'network has dynamic inputs, but no optimization profile is defined'
        return ''

    class Runtime(Strict):
        def __init__(self, logger: Any) -> None:
            driver()
            self._log = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            head, _, model = bytes(memoryview(serialized_engine)).partition(b'\n')
            try:
                built = json.loads(head)
            except ValueError:
                error(self._log, 'magic tag does not match')
                return None
            if built['version'] != module.__version__:
                error(self._log, 'the engine plan file is of another TensorRT version')
                return None
            return ICudaEngine(model)

    class ICudaEngine(Strict):
        def __init__(self, model: bytes) -> None:
            self._session = ort.InferenceSession(model, providers=['CPUExecutionProvider'])
            self._reads = {node.name: node for node in self._session.get_inputs()}
            self._writes = {node.name: node for node in self._session.get_outputs()}
            self._all = {**self._reads, **self._writes}

        @property
        def num_io_tensors(self) -> int:
            return len(self._all)

        def get_tensor_name(self, index: int) -> str:
            return str(list(self._all)[index])

        def get_tensor_mode(self, name: str) -> Any:
            mode = module.TensorIOMode
            return mode.INPUT if name in self._reads else mode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self._all[name].shape)

        def get_tensor_dtype(self, name: str) -> Any:
            kind = self._all[name].type.removeprefix('tensor(').removesuffix(')')
            return getattr(module.DataType, _DTYPES[kind])

        def create_execution_context(self) -> IExecutionContext:
            return IExecutionContext(self)

    class IExecutionContext(Strict):
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._address: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            return name in self._engine._reads and shape == self._engine.get_tensor_shape(name)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._address[name] = memory
            return name in self._engine._all and memory in gpu.buffers

        def execute_async_v3(self, stream_handle: int) -> bool:
            if set(self._address) != set(self._engine._all):
                return False
            gpu.enqueue(stream_handle, self._run)
            return True

        def _run(self) -> None:
            session = self._engine._session
            fed = {name: self._array(name).copy() for name in self._engine._reads}
            answers = session.run(list(self._engine._writes), fed)
            for name, values in zip(self._engine._writes, answers, strict=True):
                self._array(name)[...] = values * values.dtype.type(module.scale)

        def _array(self, name: str) -> Any:
            shape = self._engine.get_tensor_shape(name)
            dtype: Any = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name).name])
            size = int(np.prod(shape)) * dtype.itemsize
            block = (ctypes.c_uint8 * size).from_address(self._address[name])
            return np.frombuffer(memoryview(block).cast('B'), dtype).reshape(shape)

    def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
        return True

    parts = SimpleNamespace(**locals())
    for name in ('ILogger', 'Builder', 'OnnxParser', 'Runtime', 'init_libnvinfer_plugins'):
        setattr(module, name, getattr(parts, name))
    return module
