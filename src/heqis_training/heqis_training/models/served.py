# SPDX-License-Identifier: Apache-2.0
"""What is exported of a generator: its forecast in the units and shapes that a bundle promises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.build import Generator


def output_names(n_horizons: int) -> tuple[str, ...]:
    """Return the names of what `ServedGenerator` answers, in its order."""
    names = ('log_return', 'logits', 'probabilities')
    return names if n_horizons == 1 else (*names, 'log_returns')


class ServedGenerator(nn.Module):
    """A generator whose returns are log returns, and whose classes have probabilities.

    Args:
        generator: the trained network; its weights are shared, not copied.
        spread: of the training labels, a log return for each horizon; the network learned in units
            of it.

    Raises ConfigError for another number of spreads, and for one that is not a number above 0.
    """

    spread: Tensor

    def __init__(self, generator: Generator, spread: Sequence[float]) -> None:
        super().__init__()
        if len(spread) != generator.n_horizons:
            raise ConfigError(
                f'{len(spread)} spreads for {generator.n_horizons} horizons; expected one for each'
            )
        for value in spread:
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f'spread is {value}, expected numbers above 0')
        self.generator = generator
        self.register_buffer('spread', torch.tensor(spread, dtype=torch.float32))

    def forward(self, window: Tensor) -> tuple[Tensor, ...]:
        """Return log return (N,), logits and probabilities (N, 3) of windows (N, W, F).

        The log return is that of the first horizon; with more than one, log returns (N, H) of all
        of them come last.
        """
        forecast = self.generator(window)
        log_returns = forecast.log_returns * self.spread
        probabilities = torch.softmax(forecast.logits, dim=1)
        served = (log_returns[:, 0], forecast.logits, probabilities)
        return served if self.generator.n_horizons == 1 else (*served, log_returns)
