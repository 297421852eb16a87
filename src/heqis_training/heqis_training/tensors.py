# SPDX-License-Identifier: Apache-2.0
"""Batches of windows as tensors, gathered when asked for: no window is stored twice.

The windows of a packed array overlap in memory, so that one copy of consecutive rows gathers a
window; on a GPU the packed array is there once, for all parts of the data.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from heqis_core.errors import ConfigError
from heqis_training.dataset import Samples
from heqis_training.store import FrameStore

_KEPT_FREE = 0.25
"""Part of a GPU's free memory that the packed array leaves to networks and batches."""


class _Packed(NamedTuple):
    """The arrays of a store that windows are gathered from, on the device or on the host."""

    features: Tensor
    past: Tensor


_packed: WeakKeyDictionary[FrameStore, dict[torch.device, _Packed]] = WeakKeyDictionary()


class WindowTensors:
    """Gather batches of windows out of a frame store.

    Args:
        store: packed frames; its arrays are moved to a GPU once, however many samples use them,
            if they fit into three quarters of the memory that is free there. Where they do not,
            each batch is gathered into pinned memory and follows by itself.
        samples: windows of that store.
        device: where the batches are to be.
    """

    def __init__(
        self, store: FrameStore, samples: Samples, device: torch.device | str = 'cpu'
    ) -> None:
        self._device = _placed(torch.device(device))
        of_store = _packed.setdefault(store, {})
        if self._device not in of_store:
            of_store[self._device] = _pack(store, self._device)
        self._features, self._past = of_store[self._device]
        self._longest = samples.length
        self._end = torch.from_numpy(samples.end).to(self._features.device)

    def rows(self, index: Tensor, length: int) -> Tensor:
        """Return the last `length` rows of the windows at `index`, float32 (N, length, F).

        Args:
            index: int64 (N,), places in the samples.
            length: at most that of the samples, else ConfigError.
        """
        width = self._features.shape[1]
        return self._gather(self._features, index, length).view(-1, length, width)

    def images(self, index: Tensor, length: int) -> Tensor:
        """Return the same rows as float32 (N, F, 1, length), contiguous."""
        return self.rows(index, length).transpose(1, 2)[:, :, None, :].contiguous()

    def past(self, index: Tensor, length: int) -> Tensor:
        """Return the past returns of the same rows, float32 (N, length), oldest first."""
        return self._gather(self._past, index, length)

    def _gather(self, packed: Tensor, index: Tensor, length: int) -> Tensor:
        if not 0 <= length <= self._longest:
            raise ConfigError(
                f'{length} rows of windows of {self._longest} are asked for; make the samples '
                'with the longest window that any network sees'
            )
        width = packed.shape[1]
        end = self._end[index.to(self._end.device)]
        if not length or not len(end):
            return packed.new_empty((len(end), length * width)).to(self._device)
        # Every window as one row of a view: gathering copies whole windows, not rows.
        views = packed.as_strided((len(packed) - length + 1, length * width), (width, 1))
        start = end - (length - 1)
        if packed.device == self._device:
            return views.index_select(0, start)
        batch = torch.empty((len(start), length * width), dtype=packed.dtype, pin_memory=True)
        torch.index_select(views, 0, start, out=batch)
        return batch.to(self._device, non_blocking=True)


def _placed(device: torch.device) -> torch.device:
    """Return the device with its number, as tensors name it."""
    if device.type == 'cuda' and device.index is None:
        return torch.device('cuda', torch.cuda.current_device())
    return device


def _pack(store: FrameStore, device: torch.device) -> _Packed:
    past = store.past_return.astype(np.float32)[:, None]
    packed = _Packed(torch.from_numpy(store.features), torch.from_numpy(past))
    if device.type == 'cpu':
        return packed
    size = sum(tensor.nbytes for tensor in packed)
    free, _ = torch.cuda.mem_get_info(device)
    if size > (1 - _KEPT_FREE) * free:
        return packed
    return _Packed(packed.features.to(device), packed.past.to(device))
