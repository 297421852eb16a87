# SPDX-License-Identifier: Apache-2.0
"""From settings to networks: a generator is a trunk of its kind, under heads that all share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_core.manifest import CLASSES
from heqis_training.models.discriminator import Discriminator
from heqis_training.models.recurrent import GruTrunk, LstmTrunk
from heqis_training.models.transformer import TransformerTrunk
from heqis_training.settings import (
    DiscriminatorSettings,
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    kind_of,
)

SHORTEST_WINDOW = 2
"""Rows of the shortest window: one row is no sequence, and attention over it is the identity."""


class Forecast(NamedTuple):
    """What a generator answers to N windows.

    Attributes:
        log_returns: float32 (N, H), one for each horizon, in units of the training spread.
        logits: float32 (N, 3), of the next bar's classes.
    """

    log_returns: Tensor
    logits: Tensor


class Generator(nn.Module):
    """A trunk, and over its dropped-out last state a linear head for returns and one for classes.

    The head for returns starts at zero: an untrained network forecasts persistence.

    Args:
        settings: of the kind to build.
        n_features: F, columns of a window row.
        n_horizons: H.

    Raises ConfigError for a window of one row and for sizes that do not fit one another.
    """

    def __init__(self, settings: GeneratorSettings, n_features: int, n_horizons: int) -> None:
        super().__init__()
        self.kind = kind_of(settings)
        self.window, self.n_features, self.n_horizons = settings.window, n_features, n_horizons
        if self.window < SHORTEST_WINDOW:
            raise ConfigError(
                f'{self.kind}: window is {self.window}, expected at least {SHORTEST_WINDOW} rows: '
                'one row is no sequence'
            )
        self.trunk = _trunk(settings, n_features)
        self.dropout = nn.Dropout(settings.dropout)
        self.return_head = nn.Linear(self.trunk.width, n_horizons)
        self.class_head = nn.Linear(self.trunk.width, len(CLASSES))
        nn.init.zeros_(self.return_head.weight)
        nn.init.zeros_(self.return_head.bias)

    def forward(self, window: Tensor) -> Forecast:
        """Return the forecast from windows, float32 (N, W, F), oldest row first.

        Raises ConfigError for windows of another shape than the network was built for.
        """
        if window.shape[1:] != (self.window, self.n_features):
            raise ConfigError(
                f'{self.kind}: windows are {tuple(window.shape)}, expected (N, {self.window}, '
                f'{self.n_features}) as the network was built'
            )
        state = self.dropout(self.trunk(window))
        return Forecast(self.return_head(state), self.class_head(state))


def build_generator(settings: GeneratorSettings, n_features: int, n_horizons: int) -> Generator:
    """Return a new generator; its weights come from torch's seed. Arguments: see `Generator`."""
    return Generator(settings, n_features, n_horizons)


def build_discriminator(settings: DiscriminatorSettings) -> Discriminator:
    """Return a new discriminator; its weights come from torch's seed."""
    return Discriminator(settings)


def _trunk(
    settings: GeneratorSettings, n_features: int
) -> GruTrunk | LstmTrunk | TransformerTrunk:
    if isinstance(settings, GruSettings):
        return GruTrunk(settings, n_features)
    if isinstance(settings, LstmSettings):
        return LstmTrunk(settings, n_features)
    return TransformerTrunk(settings, n_features)
