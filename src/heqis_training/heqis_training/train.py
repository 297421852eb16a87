# SPDX-License-Identifier: Apache-2.0
"""The training loop: seeded, early stopping on validation, best state kept. Knows no market."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError, DataError

EVALUATION_BATCH = 2048
"""Windows of one step without gradients."""


@dataclass(frozen=True)
class FitSettings:
    """How one network is trained.

    Attributes:
        epochs: at most this many.
        patience: stop after this many epochs without a better validation loss.
        batch: windows of one step.
        learning_rate, weight_decay: of AdamW.
        max_windows: windows of one epoch; from more, each epoch draws this many.
        gradient_clip: largest norm of a step's gradient.
    """

    epochs: int = 20
    patience: int = 5
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    max_windows: int = 8192
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ('epochs', 'patience', 'batch', 'max_windows'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} is {getattr(self, name)}, expected at least 1')
        for name in ('learning_rate', 'gradient_clip'):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f'{name} is {getattr(self, name)}, expected a number above 0')


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: mean losses over windows, the best epoch so far, whether it is last."""

    model: str
    number: int
    epochs: int
    training_loss: float
    validation_loss: float
    best: int
    last: bool


Report = Callable[[Epoch], None]
"""Called after each epoch."""

BatchLoss = Callable[[Tensor], Tensor]
"""From the indices of a batch of windows to their mean loss."""


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed torch, one thread, deterministic kernels; what was set before comes back."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # sums depend on how many threads share them
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(threads)


def fit(
    name: str,
    model: nn.Module,
    training: tuple[BatchLoss, int],
    validation: tuple[BatchLoss, int],
    settings: FitSettings,
    report: Report,
) -> list[Epoch]:
    """Train `model` and leave it in evaluation mode with the state of its best validation epoch.

    Args:
        name: for the reports.
        model: what the losses call.
        training: loss of a batch of window indices, and the number of windows.
        validation: the same for validation.
        settings: see `FitSettings`.
        report: called after each epoch.

    Returns one entry per epoch. Raises DataError if no epoch had a finite validation loss. Call it
    inside `deterministic`.
    """
    batch_loss, n_windows = training
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    history: list[Epoch] = []
    best_loss, best_number, best_state = math.inf, 0, copy.deepcopy(model.state_dict())
    for number in range(1, settings.epochs + 1):
        model.train()
        total, count = 0.0, 0
        for index in _batches(n_windows, settings):
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss(index)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            total += loss.item() * len(index)
            count += len(index)
        validation_loss = evaluate(model, *validation, settings.max_windows)
        if validation_loss < best_loss:
            best_loss, best_number = validation_loss, number
            best_state = copy.deepcopy(model.state_dict())
        last = number == settings.epochs or number - best_number >= settings.patience
        epoch = Epoch(
            name, number, settings.epochs, total / count, validation_loss, best_number, last
        )
        history.append(epoch)
        report(epoch)
        if last:
            break
    if not best_number:
        raise DataError(
            f'{name}: no epoch of {len(history)} had a finite validation loss '
            f'(last {history[-1].validation_loss}); lower the learning rate or check the data'
        )
    model.load_state_dict(best_state)
    model.eval()
    return history


def evaluate(model: nn.Module, batch_loss: BatchLoss, n_windows: int, max_windows: int) -> float:
    """Return the mean loss over the windows, or over `max_windows` of them, evenly spread."""
    model.eval()
    step = max(1, math.ceil(n_windows / max_windows))
    total, count = 0.0, 0
    with torch.no_grad():
        for index in torch.split(torch.arange(0, n_windows, step), EVALUATION_BATCH):
            total += batch_loss(index).item() * len(index)
            count += len(index)
    return total / count


def _batches(n_windows: int, settings: FitSettings) -> tuple[Tensor, ...]:
    batches: tuple[Tensor, ...] = torch.split(
        torch.randperm(n_windows)[: settings.max_windows], settings.batch
    )
    return batches
