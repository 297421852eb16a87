# SPDX-License-Identifier: Apache-2.0
"""The factor encoder, trained unsupervised over scaled indicators, in a CAE or in a t3-VAE.

Only `FactorEncoder` is exported. It holds nothing but convolutions along time and ReLU on rank-4
tensors [N, C, 1, T], which an NPU runs whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.t3vae import WindowVae
from heqis_training.settings import EncoderSettings
from heqis_training.t3 import T3


class FactorEncoder(nn.Module):
    """Reduce windows (N, F, 1, T) to K latent factors (N, K, 1, 1).

    Args:
        n_features: F indicators.
        window: T rows, a multiple of 4.
        factors: K.
        width: channels in between.

    Raises ConfigError for a window that is not a multiple of 4.
    """

    def __init__(self, n_features: int, window: int, factors: int, width: int) -> None:
        super().__init__()
        if window < 4 or window % 4:
            raise ConfigError(f'encoder window is {window}, expected a multiple of 4')
        self.layers = nn.Sequential(
            nn.Conv2d(n_features, width, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.ReLU(),
            nn.Conv2d(width, width, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.ReLU(),
        )
        self.latent = nn.Conv2d(width, factors, (1, window // 4))

    def forward(self, window: Tensor) -> Tensor:
        """Return the factors."""
        factors: Tensor = self.latent(self.layers(window))
        return factors


class FactorAutoencoder(nn.Module):
    """The encoder and the decoder it is trained against; arguments as for `FactorEncoder`."""

    def __init__(self, n_features: int, window: int, factors: int, width: int) -> None:
        super().__init__()
        self.encoder = FactorEncoder(n_features, window, factors, width)
        self.decoder = window_decoder(n_features, window, factors, width)

    def forward(self, window: Tensor) -> Tensor:
        """Return the reconstruction (N, F, 1, T)."""
        reconstruction: Tensor = self.decoder(self.encoder(window))
        return reconstruction

    def loss(self, window: Tensor) -> Tensor:
        """Return the mean squared error of the reconstruction."""
        return nn.functional.mse_loss(self(window), window)


Autoencoder = FactorAutoencoder | WindowVae
"""What is trained: `loss(window)` is the mean over the batch, `encoder` is what is exported."""


def build_autoencoder(settings: EncoderSettings, n_features: int) -> Autoencoder:
    """Return the autoencoder that the settings ask for, for windows of `n_features` indicators.

    Its `encoder` takes (N, F, 1, T) and gives (N, K, 1, 1). Raises ConfigError for the kind `none`
    and for a window that is not a multiple of 4.
    """
    shape = n_features, settings.window, settings.factors, settings.width
    if settings.kind == 'cae':
        return FactorAutoencoder(*shape)
    if settings.kind == 't3vae':
        family = T3(settings.nu, n_features * settings.window, settings.factors, settings.sigma)
        return WindowVae(family, FactorEncoder(*shape), window_decoder(*shape))
    raise ConfigError(
        f'encoder kind is {settings.kind}: there is nothing to build; use cae, t3vae'
    )


def window_decoder(n_features: int, window: int, factors: int, width: int) -> nn.Sequential:
    """Return the network that rebuilds (N, F, 1, T) from (N, K, 1, 1); it is never exported."""
    return nn.Sequential(
        nn.ConvTranspose2d(factors, width, (1, window // 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width, (1, 4), stride=(1, 2), padding=(0, 1)),
        nn.ReLU(),
        nn.ConvTranspose2d(width, n_features, (1, 4), stride=(1, 2), padding=(0, 1)),
    )


def standardise(encoder: FactorEncoder, factors: Tensor) -> None:
    """Fold mean 0 and deviation 1 over these factors, (N, K, 1, 1), into the last convolution.

    `factors` are what the encoder answers to its training windows. The generators then see them on
    the scale of the indicators, and the graph gains no operation.
    """
    mean = factors.mean(dim=(0, 2, 3))
    scale = factors.std(dim=(0, 2, 3), unbiased=False).clamp_min(1e-6)
    with torch.no_grad():
        encoder.latent.weight.div_(scale[:, None, None, None])
        encoder.latent.bias.sub_(mean).div_(scale)
