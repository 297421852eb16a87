# SPDX-License-Identifier: Apache-2.0
"""The engine protocol of RKNN, TensorRT and ONNX Runtime, and inference on padded tiles.

A tile is a batch of the bundle's fixed size: attention and some kernels change bits with the batch
size, so every engine always sees the same shape, and rows past the end are padded with zeros and
thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from heqis_core.errors import EngineError

Arrays = dict[str, npt.NDArray[np.generic]]


class TensorSpec(NamedTuple):
    """Name, dtype and static shape of one input or output; the first axis is the tile."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Engine(Protocol):
    """One loaded model."""

    kind: str
    """Class of engine: `onnxruntime`, `rknn`, `tensorrt`; part of the features id."""

    def load(self, path: Path) -> None:
        """Load a model file; raise EngineError that names the file and the cause."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and the outputs of the loaded model."""

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one tile: arrays by input name to arrays by output name."""

    def close(self) -> None:
        """Free the model."""


def check_inputs(path: Path, specs: Sequence[TensorSpec], inputs: Arrays) -> None:
    """Raise EngineError that names the input of a model that is missing, unknown, or another."""
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise EngineError(
                f'{path}: input {spec.name!r} is missing; got {sorted(inputs) or "no input"}'
            )
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise EngineError(
                f'{path}: input {spec.name!r} has {array.dtype} {array.shape}, '
                f'expected {spec.dtype} {spec.shape}'
            )
    if len(inputs) != len(specs):
        known = [spec.name for spec in specs]
        unknown = sorted(set(inputs) - set(known))
        raise EngineError(f'{path}: unknown input {unknown}, the model has {known}')


def beyond(
    found: npt.NDArray[np.generic], expected: npt.NDArray[np.generic], tolerance: float
) -> float | None:
    """Return the largest difference if an element is off by more than `tolerance`, else None.

    The tolerance is absolute plus relative to `expected`; what is not a number is off.
    """
    if np.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return None
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())


def infer_tiled(engine: Engine, rows: npt.NDArray[np.float32], tile: int) -> Arrays:
    """Run `rows` (n, ...) through a one-input engine in tiles, the last one padded with zeros.

    Returns arrays by output name with first axis n. Raises EngineError if the engine has more than
    one input or its tile is another.
    """
    inputs, outputs = engine.specs()
    if len(inputs) != 1 or inputs[0].shape[0] != tile:
        raise EngineError(
            f'engine expects {inputs}, not one input with a tile of {tile}; export the model again'
        )
    spec = inputs[0]
    n = len(rows)
    result: Arrays = {out.name: np.empty((n, *out.shape[1:]), out.dtype) for out in outputs}
    padded = np.zeros(spec.shape, spec.dtype)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        padded[: stop - start] = rows[start:stop]
        padded[stop - start :] = 0
        for name, values in engine.infer({spec.name: padded}).items():
            result[name][start:stop] = values[: stop - start]
    return result
