# SPDX-License-Identifier: Apache-2.0
"""The discriminator of Multi-GAN: it tells real returns and classes from a generator's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_core.manifest import CLASSES
from heqis_training.settings import DiscriminatorSettings


class Discriminator(nn.Module):
    """A GRU over W + 1 steps, each a value beside the embedding of its class; then one logit.

    The embedding is a product with the class rows, so that gradients reach a generator's classes.
    A real sequence and its fakes share their W past steps: `encode` takes those once, and `judge`
    the last one of each.
    """

    def __init__(self, settings: DiscriminatorSettings) -> None:
        super().__init__()
        self.window = settings.window
        self.embedding = nn.Linear(len(CLASSES), settings.embedding, bias=False)
        self.gru = nn.GRU(1 + settings.embedding, settings.hidden, batch_first=True)
        self.head = nn.Linear(settings.hidden, 1)

    def forward(self, values: Tensor, classes: Tensor) -> Tensor:
        """Return logits (N,), above 0 for real; no sigmoid has been taken.

        Args:
            values: float32 (N, W + 1), returns in units of the training spread, oldest first.
            classes: float32 (N, W + 1, 3), of each value: one-hot, or shares that add up to 1.

        Raises ConfigError for another number of steps or classes.
        """
        self._check(values, classes, self.window + 1)
        return self.judge(
            self.encode(values[:, :-1], classes[:, :-1]), values[:, -1], classes[:, -1]
        )

    def encode(self, values: Tensor, classes: Tensor) -> Tensor:
        """Return the state (N, hidden) after the past: (N, W) values and (N, W, 3) classes."""
        self._check(values, classes, self.window)
        _, states = self.gru(self._steps(values, classes))
        state: Tensor = states[-1]
        return state

    def judge(self, state: Tensor, value: Tensor, classes: Tensor) -> Tensor:
        """Return logits (N,) of one more value (N,) with its class (N, 3) after that past."""
        _, states = self.gru(self._steps(value[:, None], classes[:, None]), state[None])
        logits: Tensor = self.head(states[-1]).squeeze(1)
        return logits

    def _steps(self, values: Tensor, classes: Tensor) -> Tensor:
        return torch.cat((values.unsqueeze(2), self.embedding(classes)), dim=2)

    @staticmethod
    def _check(values: Tensor, classes: Tensor, steps: int) -> None:
        expected = (steps, len(CLASSES))
        if values.ndim != 2 or values.shape[1] != steps or classes.shape[1:] != expected:
            raise ConfigError(
                f'discriminator: values are {tuple(values.shape)} and classes '
                f'{tuple(classes.shape)}, expected (N, {steps}) and (N, {steps}, {len(CLASSES)}) '
                'as the network was built'
            )
