# SPDX-License-Identifier: Apache-2.0
"""Variational autoencoders, heavy-tailed (t3-VAE) or Gaussian: one for vectors, one for windows.

The networks are here; the distributions that they parametrise are `heqis_training.t3`. Loss and
notation: Kim et al., ICLR 2024 (arXiv 2312.01133).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from heqis_training.t3 import Family

if TYPE_CHECKING:
    from heqis_training.models.encoder import FactorEncoder

LOG_VARIANCE_BOUND = 20.0
"""How far a log-variance may be from where the regulariser is least: e^20 squared fits float32."""


class VectorVae(nn.Module):
    """A VAE of vectors (N, n) with two hidden layers in encoder and decoder.

    Args:
        family: `T3` or `Gaussian`; it says n, m and σ.
        hidden: width of the hidden layers.
        beta: weight of the regulariser; 1 is the VAE, anything else a β-VAE.
    """

    def __init__(self, family: Family, hidden: int = 64, beta: float = 1.0) -> None:
        super().__init__()
        self.family, self.beta = family, beta
        self.layers = nn.Sequential(
            nn.Linear(family.n, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU()
        )
        self.latent = nn.Linear(hidden, family.m)
        self.log_variance = nn.Linear(hidden, family.m)
        self.decoder = nn.Sequential(
            nn.Linear(family.m, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, family.n),
        )

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean over (N, n) rows of ½ (|x - μ_θ(z)|² / σ² + β regulariser).

        One z is drawn per row, in evaluation too. With a `T3` it is the γ-loss plus the constant
        `offset` / 2.
        """
        hidden = self.layers(x)
        mu = self.latent(hidden)
        log_variance = bounded(self.log_variance(hidden), self.family)
        z = self.family.sample_posterior(mu, log_variance)
        error = (x - self.decoder(z)).square().sum(-1) / self.family.sigma**2
        return 0.5 * (error + self.beta * self.family.regulariser(mu, log_variance)).mean()

    @torch.no_grad()
    def generate(self, z: Tensor) -> Tensor:
        """Return one observation (N, n), decoder noise included, for each latent (N, m)."""
        return self.family.sample_decoder(self.decoder(z), z)


class WindowVae(nn.Module):
    """A VAE of windows (N, F, 1, T), n = F T, around the encoder that is exported.

    The encoder's factors are μ; what gives the log-variances is only there to train. So the
    exported graph is that of the CAE: convolutions along time and ReLU.

    Args:
        family: `T3` or `Gaussian`, of n = F T and m = K.
        encoder: gives μ, (N, K, 1, 1).
        decoder: rebuilds windows from (N, K, 1, 1).
    """

    def __init__(self, family: Family, encoder: FactorEncoder, decoder: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.encoder = encoder
        self.decoder = decoder
        latent = encoder.latent
        self.log_variance = nn.Conv2d(
            latent.in_channels, latent.out_channels, (1, latent.kernel_size[1])
        )

    def loss(self, window: Tensor) -> Tensor:
        """Return the loss of `VectorVae.loss`, over the n numbers of a window, times 2 σ² / n.

        That is the mean squared error plus σ² / n times the regulariser: the size of the CAE's
        loss, so that learning rate, gradient clip and curves compare; the minimum is the same.
        """
        hidden = self.encoder.layers(window)
        mu = self.encoder.latent(hidden).flatten(1)
        log_variance = bounded(self.log_variance(hidden).flatten(1), self.family)
        z = self.family.sample_posterior(mu, log_variance)
        error = nn.functional.mse_loss(self.decoder(z[:, :, None, None]), window)
        weight = self.family.sigma**2 / self.family.n
        return error + weight * self.family.regulariser(mu, log_variance).mean()


def bounded(head: Tensor, family: Family) -> Tensor:
    """Return log-variances from what a network's last layer gives.

    0 stands for the log-variance at which the family's regulariser is least. A tanh keeps within
    `LOG_VARIANCE_BOUND` of it: unlike a clamp it leaves a gradient that leads back.
    """
    bound = LOG_VARIANCE_BOUND
    return family.log_variance_at_rest + bound * torch.tanh(head / bound)
