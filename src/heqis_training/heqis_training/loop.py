# SPDX-License-Identifier: Apache-2.0
"""Epochs: one loop for everything that is trained, with early stopping, checkpoints and resume.

What an epoch does belongs to the trainee; files belong to `checkpoint`, reports to `monitor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from heqis_core.errors import DataError
from heqis_training.interrupt import raise_if_interrupted
from heqis_training.monitor import EpochFigures, Monitor, Note

Tree = dict[str, Any]
"""Nested dicts and lists of tensors and plain values: what a checkpoint holds."""


class Trainee(Protocol):
    """Networks that learn epoch by epoch."""

    def run_epoch(self, number: int) -> tuple[Mapping[str, Mapping[str, float]], bool]:
        """Train one epoch, from 1; return figures by network, and whether one improved."""

    def notes(self) -> list[str]:
        """Return what happened in the last epoch beyond its figures, and forget it."""

    def state(self) -> Tree:
        """Return everything that the next epoch depends on, but for torch's generator."""

    def load_state(self, state: Tree) -> None:
        """Continue from there."""


@dataclass
class Progress:
    """How far a training is: epochs done, and how many of the last ones improved nothing."""

    done: int = 0
    stale: int = 0
    improved_ever: bool = False


@contextlib.contextmanager
def deterministic(seed: int, threads: int = 1) -> Iterator[None]:
    """Seed torch, fix its threads, deterministic kernels; what was set before comes back.

    The bits of a sum depend on how many threads share it.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(before)


def run_epochs(
    name: str,
    trainee: Trainee,
    epochs: int,
    patience: int,
    monitor: Monitor,
    *,
    saved: Tree | None = None,
    save: Callable[[Tree], None] = lambda tree: None,
) -> Progress:
    """Train until `epochs` are done, or `patience` of them in a row improved nothing.

    Args:
        name: of the training, for the message when nothing ever improved.
        trainee: what is trained.
        epochs: at most, those of `saved` included.
        patience: see above.
        monitor: told of every epoch.
        saved: what `save` was given before; the training goes on from there, bit for bit.
        save: called after each epoch with everything that going on needs.

    Raises DataError if no epoch had a finite validation loss, and KeyboardInterrupt after the save
    of the epoch in which something swallowed it (see `interrupt`). Call it inside `deterministic`.
    """
    progress = Progress()
    if saved is not None:
        progress = Progress(**saved['progress'])
        trainee.load_state(saved['trainee'])
        torch.set_rng_state(saved['rng'])
        if torch.cuda.is_available() and saved.get('cuda_rng'):
            torch.cuda.set_rng_state_all(saved['cuda_rng'])
    while progress.done < epochs and progress.stale < patience:
        number = progress.done + 1
        figures, improved = trainee.run_epoch(number)
        stale = 0 if improved else progress.stale + 1
        progress = Progress(number, stale, progress.improved_ever or improved)
        last = number == epochs or stale == patience
        planned = number if last else epochs
        monitor.epoch([EpochFigures(n, number, planned, dict(v)) for n, v in figures.items()])
        for text in trainee.notes():
            monitor.note(Note(number, text))
        save(_tree(progress, trainee))
        raise_if_interrupted()
    if not progress.improved_ever:
        raise DataError(
            f'{name}: no epoch of {progress.done} had a finite validation loss; lower the '
            'learning rate or check the data'
        )
    return progress


def _tree(progress: Progress, trainee: Trainee) -> Tree:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        'progress': vars(progress).copy(),
        'trainee': trainee.state(),
        'rng': torch.get_rng_state(),
        'cuda_rng': cuda,
    }
