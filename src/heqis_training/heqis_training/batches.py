# SPDX-License-Identifier: Apache-2.0
"""One part of the data as the networks see it: windows, past returns and labels by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from heqis_training.adversarial import N_CLASSES, Next, Past
from heqis_training.dataset import DOWN, UP, classify
from heqis_training.settings import FitSettings
from heqis_training.store import FrameStore, Samples
from heqis_training.tensors import WindowTensors

EVALUATION_BATCH = 2048
"""Windows of one step without gradients."""


@dataclass(frozen=True)
class Scale:
    """What turns log returns into what networks learn, from the training part alone.

    Attributes:
        spread: standard deviation of the training labels, one for each horizon.
        band: log return up to which a bar is flat.
    """

    spread: tuple[float, ...]
    band: float

    @classmethod
    def of(cls, training: Samples, band: float) -> Scale:
        """Return the scale of these labelled training windows."""
        spread = np.maximum(training.log_return.std(axis=0), 1e-6)
        return cls(tuple(float(value) for value in spread), band)


@dataclass(frozen=True)
class Batch:
    """N windows.

    Attributes:
        rows: float32 (N, W, F), as long as the longest generator sees.
        past: returns of the window's rows, as many as the longest discriminator sees.
        targets: float32 (N, H), log returns in units of the training spread.
        classes: int64 (N,), of the next bar.
        t: int64 (N,), row of the bar table of each window's last bar; on the CPU.
    """

    rows: Tensor
    past: Past
    targets: Tensor
    classes: Tensor
    t: Tensor

    @property
    def real(self) -> Next:
        """Return what really followed."""
        return Next(self.targets[:, 0], one_hot(self.classes))


class Part:
    """The windows of one part of the data, gathered by batch.

    Args:
        store: packed frames.
        samples: windows with labels.
        scale: of the training part.
        window: rows of the longest generator.
        past: past returns of the longest discriminator; 0 without discriminators.
        device: where the tensors go.
    """

    def __init__(
        self,
        store: FrameStore,
        samples: Samples,
        scale: Scale,
        window: int,
        past: int,
        device: str = 'cpu',
    ) -> None:
        self._windows = WindowTensors(store, samples, device)
        self._window, self._past = window, past
        self._spread = scale.spread[0]
        self._edge = scale.band / self._spread
        targets = samples.log_return / np.array(scale.spread)
        self._targets = torch.from_numpy(targets.astype(np.float32)).to(device)
        classes = classify(samples.log_return[:, 0], scale.band)
        self._classes = torch.from_numpy(classes).to(device)
        self._t = torch.from_numpy(samples.t)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._targets)

    def batch(self, index: Tensor) -> Batch:
        """Return the windows at `index`, int64 (N,) on the CPU."""
        values = self._windows.past(index, self._past) / self._spread
        labels = torch.ones_like(values, dtype=torch.int64)
        labels[values > self._edge] = UP
        labels[values < -self._edge] = DOWN
        return Batch(
            self._windows.rows(index, self._window),
            Past(values, one_hot(labels)),
            self._targets[index],
            self._classes[index],
            self._t[index],
        )

    def shuffled(self, settings: FitSettings) -> Iterator[Batch]:
        """Yield the batches of one epoch in an order drawn from torch's generator."""
        order = torch.randperm(len(self))[: settings.max_windows]
        for index in torch.split(order, settings.batch):
            yield self.batch(index)

    def in_order(self, at_most: int) -> Iterator[Batch]:
        """Yield every window, or `at_most` of them, evenly spread, in order of time."""
        for index in spread(len(self), at_most):
            yield self.batch(index)


def spread(count: int, at_most: int) -> Iterator[Tensor]:
    """Yield the places of `count` windows, or of `at_most` evenly spread ones, in batches."""
    step = max(1, math.ceil(count / at_most))
    yield from torch.split(torch.arange(0, count, step), EVALUATION_BATCH)


def one_hot(classes: Tensor) -> Tensor:
    """Return float32 (..., 3) of int64 (...)."""
    return functional.one_hot(classes, N_CLASSES).float()
