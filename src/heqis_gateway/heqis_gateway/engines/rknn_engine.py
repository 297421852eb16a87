# SPDX-License-Identifier: Apache-2.0
"""The RKNN engine: one converted model on the NPU of the RK3568, by the vendor's lite runtime.

The vendor's module answers a failure with -1 or None, and sometimes with an exception: all of them
become EngineError here. What was converted, and how, is in heqis_training.
"""

from __future__ import annotations

import importlib
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_core.conversion import from_image, to_image
from heqis_core.engine import Arrays, TensorSpec, check_inputs
from heqis_core.errors import EngineError

LiteClass = Callable[..., Any]
"""`rknnlite.api.RKNNLite`."""

_DRIVER = 'sys/bus/platform/drivers/RKNPU'
_BOARD = 'proc/device-tree/compatible'
_CHIP = 'rk3568'
_RUNTIME = ('usr/lib', 'usr/lib64', 'usr/lib/aarch64-linux-gnu')


class ModelForm(NamedTuple):
    """What a `.rknn` file was made from: it does not tell by itself.

    Attributes:
        input: name, float32, shape (batch, C, 1, T) as in the ONNX file but for the batch. The
            file takes them as one image (1, C, batch, T), see `heqis_core.conversion.to_image`.
        output: name, float32, shape of the one output, (batch, K) or (batch, K, 1, 1).
    """

    input: TensorSpec
    output: TensorSpec


def load_lite(root: Path = Path('/')) -> LiteClass:
    """Return the vendor's class once the NPU's driver has answered.

    `root` is where the system's files are looked for. Raises EngineError that says what is
    missing: the chip, its driver, the runtime library or the Python module, in this order.
    """
    if platform.machine() != 'aarch64' or _CHIP not in _compatible(root):
        raise EngineError(f'this machine ({platform.machine()}) is no {_CHIP.upper()}')
    # A driver that has found its NPU holds a link to it.
    if not any((root / _DRIVER).glob('*npu*')):
        raise EngineError(
            f"/{_DRIVER} names no NPU: the kernel lacks the vendor's driver; use a kernel of the "
            "board's BSP"
        )
    if not any((root / folder / 'librknnrt.so').exists() for folder in _RUNTIME):
        raise EngineError(
            "librknnrt.so is not installed: take the one of the board's BSP, at least as new as "
            'the toolkit that converted the bundle'
        )
    try:
        lite: LiteClass = importlib.import_module('rknnlite.api').RKNNLite
    except Exception as error:  # the module loads libraries: whatever fails is the reason
        raise EngineError(
            f'rknnlite cannot be imported ({type(error).__name__}: {error}): '
            'pip install -r requirements/board-rk3568.txt'
        ) from error
    return lite


def rknn_obstacle() -> str | None:
    """Return why the NPU cannot be used on this machine; None if nothing is known to be so."""
    try:
        load_lite()
    except EngineError as error:
        return str(error)
    return None


class RknnEngine:
    """Run one `.rknn` file on the NPU. Several threads may call it; one at a time runs.

    Args:
        lite: of `load_lite`.
        form: what the file was made from.
    """

    kind = 'rknn'

    def __init__(self, lite: LiteClass, form: ModelForm) -> None:
        """Create an engine without a model."""
        self._lite = lite
        self._form = form
        self._path = Path()
        self._runtime: Any = None
        self._lock = threading.Lock()
        self.version = ''
        """Versions of the runtime and the driver, as they tell them; empty before `load`."""

    def load(self, path: Path) -> None:
        """Load a `.rknn` file, in place of the one that is loaded; on an error that one stays.

        Raises EngineError that names the file and the call that failed.
        """
        path = Path(path)
        if not path.is_file():
            raise EngineError(f'{path}: no such model file; convert the bundle (heqis convert)')
        # Without arguments that older releases lack: defaults are what is wanted.
        runtime = _call(path, 'RKNNLite', self._lite)
        try:
            for name, arguments in (('load_rknn', (str(path),)), ('init_runtime', ())):
                status = _call(path, name, getattr(runtime, name), *arguments)
                if status != 0:
                    raise EngineError(
                        f'{path}: {name} of the NPU runtime answered {status}; its log says why '
                        '(a model of a newer toolkit than librknnrt.so, or of another chip?)'
                    )
            version = _call(path, 'get_sdk_version', runtime.get_sdk_version)
        except EngineError:
            runtime.release()
            raise
        with self._lock:
            self._release()
            self._runtime, self._path = runtime, path
            self.version = ' '.join(str(version or 'unknown').split())

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of the loaded model; raise EngineError if there is none."""
        self._loaded()
        return (self._form.input,), (self._form.output,)

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one batch: arrays by input name to arrays by output name.

        Raises EngineError that names the input if one is missing, unknown, or has another shape or
        dtype than `specs` says, and if the NPU fails or answers another number of values.
        """
        form = self._form
        with self._lock:
            runtime = self._loaded()
            check_inputs(self._path, (form.input,), inputs)
            rows = cast('npt.NDArray[np.float32]', inputs[form.input.name])
            # Rank 4 is NHWC unless told otherwise, and releases differ in how to tell.
            image = np.ascontiguousarray(to_image(rows).transpose(0, 2, 3, 1))
            outputs = _call(self._path, 'inference', runtime.inference, inputs=[image])
        if outputs is None or len(outputs) != 1:
            found = 'nothing' if outputs is None else f'{len(outputs)} outputs'
            raise EngineError(f'{self._path}: inference on the NPU answered {found}, expected one')
        values = np.asarray(outputs[0], np.float32)
        batch, factors = form.output.shape[:2]
        if values.shape != (1, factors, batch, 1):
            raise EngineError(
                f'{self._path}: the NPU answered {values.shape}, expected '
                f'{(1, factors, batch, 1)}; convert the bundle again'
            )
        return {form.output.name: from_image(values).reshape(form.output.shape)}

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.release()

    def _loaded(self) -> Any:
        if self._runtime is None:
            raise EngineError('no model is loaded; call load(path) first')
        return self._runtime


def _call(path: Path, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:  # the vendor's own errors share no class
        raise EngineError(
            f'{path}: {name} of the NPU runtime failed: {type(error).__name__}: {error}'
        ) from error


def _compatible(root: Path) -> str:
    try:
        return (root / _BOARD).read_bytes().decode('ascii', 'replace')
    except OSError:
        return ''
