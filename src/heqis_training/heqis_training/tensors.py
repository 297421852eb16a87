# SPDX-License-Identifier: Apache-2.0
"""Batches of windows as tensors, gathered when asked for: no window is stored twice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heqis_training.dataset import Samples


class WindowTensors:
    """Gather batches of windows out of one frame table, float32 (T, S, F)."""

    def __init__(self, features: npt.NDArray[np.float32], samples: Samples) -> None:
        _, n_symbols, width = features.shape
        self._flat = torch.from_numpy(features).reshape(-1, width)
        self._index = torch.from_numpy(samples.rows * n_symbols + samples.s[:, None])

    def rows(self, index: Tensor) -> Tensor:
        """Return (N, W, F)."""
        return self._flat[self._index[index]]

    def images(self, index: Tensor) -> Tensor:
        """Return (N, F, 1, W), contiguous."""
        return self.rows(index).transpose(1, 2)[:, :, None, :].contiguous()
