# SPDX-License-Identifier: Apache-2.0
"""Where networks are trained: the CPU, a GPU, or one GPU for each process of `torchrun`.

Each process takes its share of every batch, and gradients are averaged before a step. Weights
start equal because every process draws them from the same seed, and stay equal because every
decision (learning rate, best epoch, what is undone) is taken from figures that are averaged too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from heqis_core.errors import ConfigError
from heqis_training.adversarial import Past
from heqis_training.batches import Batch

_PREPARING = timedelta(hours=24)
"""How long the others wait at most while the first process makes features and the encoder."""


@dataclass(frozen=True)
class Device:
    """A device and this process's place among those that train together.

    Attributes:
        name: as torch names it: `cpu`, `cuda:0`.
        precision: `float32`, or `bfloat16` for mixed precision.
        rank, world: this process and their number.
    """

    name: str = 'cpu'
    precision: str = 'float32'
    rank: int = 0
    world: int = 1

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute what can be in the chosen precision; weights stay float32."""
        kind = self.name.partition(':')[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == 'bfloat16'):
            yield

    def share(self, batch: Batch) -> Batch:
        """Return this process's part of a batch; all of one that has too few windows to share.

        Every part is as large: the mean of their gradients is that of them all, and dropout draws
        as many numbers in each process. Up to `world - 1` windows are left out for that.
        """
        each = len(batch.classes) // self.world
        if not each or self.world == 1:
            return batch
        mine = slice(self.rank, each * self.world, self.world)
        return replace(
            batch,
            rows=batch.rows[mine],
            past=Past(batch.past.values[mine], batch.past.classes[mine]),
            targets=batch.targets[mine],
            classes=batch.classes[mine],
            t=batch.t[mine],
        )

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            distributed.barrier()

    def alone(self) -> Device:
        """Return this device for work that the other processes do not share."""
        return replace(self, rank=0, world=1)

    def mean(self, figures: Tensor) -> Tensor:
        """Return the mean of these figures over all processes: the same bits in each."""
        if self.world == 1:
            return figures
        total = figures.to(self.name, copy=True)
        distributed.all_reduce(total)
        return total / self.world

    def average_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.world == 1:
            return
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        at = 0
        for gradient in gradients:
            size = gradient.numel()
            gradient.copy_(flat[at : at + size].view_as(gradient))
            at += size


def is_first() -> bool:
    """Return whether this is the process that prints, saves and exports."""
    return int(os.environ.get('RANK', '0')) == 0


@contextlib.contextmanager
def open_device(wanted: str, precision: str) -> Iterator[Device]:
    """Yield the device to train on; under `torchrun`, join the other processes first.

    Args:
        wanted: `auto` takes a GPU where there is one; else a name that torch knows.
        precision: see `Device`.

    Under `torchrun`, `cuda` is one GPU for each process. Raises ConfigError for a device that is
    not there.
    """
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', wanted):
        raise ConfigError(f'device {wanted!r}: expected auto, cpu, cuda or cuda:N')
    world, rank = int(os.environ.get('WORLD_SIZE', '1')), int(os.environ.get('RANK', '0'))
    local = int(os.environ.get('LOCAL_RANK', '0'))
    name = wanted
    if wanted == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda':
        name = f'cuda:{local}'
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ConfigError(f'device {name}: torch {torch.__version__} sees no GPU; use `cpu`')
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise ConfigError(f'device {name}: cannot be used ({reason}); use `cpu`') from error
    if name.startswith('cuda'):
        torch.cuda.set_device(name)
    if world == 1:
        yield Device(name, precision)
        return
    backend = 'nccl' if name.startswith('cuda') else 'gloo'
    distributed.init_process_group(backend, timeout=_PREPARING)
    try:
        yield Device(name, precision, rank, world)
    finally:
        distributed.destroy_process_group()
