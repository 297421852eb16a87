# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime engine: one model, one thread, static shapes.

Tiles and padding live in `heqis_core.engine`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from heqis_core.engine import Arrays, TensorSpec, check_inputs
from heqis_core.errors import EngineError

_DTYPES = {
    'tensor(float)': np.float32,
    'tensor(float16)': np.float16,
    'tensor(double)': np.float64,
    'tensor(int64)': np.int64,
    'tensor(int32)': np.int32,
    'tensor(int8)': np.int8,
    'tensor(uint8)': np.uint8,
    'tensor(bool)': np.bool_,
}


class OrtEngine:
    """Run one ONNX file with ONNX Runtime on the processor.

    One thread and no spinning, so that a tile never takes a core from the rest of the board;
    prepacking stays on, because only then do rows keep their bits at every place of a tile.
    `infer` may be called from several threads at once.
    """

    kind = 'onnxruntime'

    def __init__(self) -> None:
        """Create an engine without a model."""
        self._session: ort.InferenceSession | None = None
        self._path = Path()
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()

    def load(self, path: Path) -> None:
        """Load an ONNX file, in place of the one that is loaded; on an error that one stays.

        Raises EngineError if the file is missing, is not a model, or has an input or output whose
        shape is not static or whose type is not known.
        """
        path = Path(path)
        if not path.is_file():
            raise EngineError(
                f'{path}: no such model file; check the path or export the bundle again'
            )
        session = _open_session(path)
        inputs = tuple(_spec(path, 'input', node) for node in session.get_inputs())
        outputs = tuple(_spec(path, 'output', node) for node in session.get_outputs())
        self._session, self._path, self._inputs, self._outputs = session, path, inputs, outputs

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of the loaded model; raise EngineError if there is none."""
        self._loaded()
        return self._inputs, self._outputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile: arrays by input name to arrays by output name.

        Raises EngineError that names the input if one is missing, unknown, or has another shape or
        dtype than `specs` says, and if the runtime itself fails.
        """
        session = self._loaded()
        check_inputs(self._path, self._inputs, inputs)
        try:
            values = session.run(None, inputs)
        except Exception as error:  # the runtime's own exceptions share no public base class
            raise EngineError(f'{self._path}: ONNX Runtime failed: {error}') from error
        return {spec.name: value for spec, value in zip(self._outputs, values, strict=True)}

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session = None
        self._inputs = self._outputs = ()

    def _loaded(self) -> ort.InferenceSession:
        if self._session is None:
            raise EngineError('no model is loaded; call load(path) first')
        return self._session


def _open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.inter_op.allow_spinning', '0')
    options.add_session_config_entry('session.disable_prepacking', '0')
    options.log_severity_level = (
        4  # what goes wrong comes back as an exception, with the file's name
    )
    try:
        return ort.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # the runtime's own exceptions share no public base class
        raise EngineError(
            f'{path}: not a model that ONNX Runtime {ort.__version__} can load: {error}; '
            'export it again'
        ) from error


def _spec(path: Path, what: str, node: ort.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise EngineError(
            f'{path}: {what} {node.name!r} has type {node.type}, expected one of {list(_DTYPES)}'
        )
    if not all(isinstance(size, int) and size > 0 for size in node.shape):
        raise EngineError(
            f'{path}: {what} {node.name!r} has shape {node.shape}, expected a static one; '
            'export the model with a fixed tile'
        )
    return TensorSpec(node.name, np.dtype(dtype), tuple(node.shape))


def open_engine(path: Path) -> OrtEngine:
    """Return an engine with a model file loaded; raise EngineError as `OrtEngine.load`."""
    engine = OrtEngine()
    engine.load(path)
    return engine
