# SPDX-License-Identifier: Apache-2.0
"""A network in training: its parameters with what steps them, and its best state so far."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from heqis_training.device import Device
from heqis_training.settings import FitSettings


@dataclass
class Player:
    """A network with what steps it.

    Attributes:
        name: for reports and files.
        network: its parameters.
        optimizer: fused, of this network alone.
        scheduler: lowers the learning rate on a plateau.
        clip: largest norm of a gradient.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    clip: float

    def step(self, device: Device) -> None:
        """Take one step along the gradients that are there, and drop them."""
        device.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        parts = (self.network, self.optimizer, self.scheduler)
        network, optimizer, scheduler = (copy.deepcopy(part.state_dict()) for part in parts)
        return {'network': network, 'optimizer': optimizer, 'scheduler': scheduler}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(copy.deepcopy(state['optimizer']))
        self.scheduler.load_state_dict(state['scheduler'])

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Return the parameters; to look for them takes a tenth of a step of a small network."""
        return list(self.network.parameters())

    @property
    def learning_rate(self) -> float:
        """Return the present learning rate."""
        return float(self.optimizer.param_groups[0]['lr'])


@dataclass
class Best:
    """The state of a network in its best validation epoch; epoch 0 is none."""

    epoch: int = 0
    loss: float = math.inf
    network: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, epoch: int, loss: float, network: nn.Module) -> bool:
        """Keep the state of `network` if its loss is lower, and return whether it is."""
        if not loss < self.loss:
            return False
        self.epoch, self.loss = epoch, loss
        self.network = {k: value.detach().clone() for k, value in network.state_dict().items()}
        return True

    def restore(self, network: nn.Module) -> None:
        """Put the kept state into `network`, if there is one, and set it to evaluation."""
        if self.epoch:
            network.load_state_dict(self.network)
        network.eval()


def make_player(name: str, network: nn.Module, settings: FitSettings, device: Device) -> Player:
    """Put a network on the device and give it AdamW and a schedule of its own."""
    network.to(device.name)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
    )
    return Player(name, network, optimizer, scheduler, settings.gradient_clip)
