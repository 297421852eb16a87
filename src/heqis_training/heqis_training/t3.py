# SPDX-License-Identifier: Apache-2.0
"""The closed forms of the t3-VAE and of the Gaussian VAE: constants, regulariser, draws.

Nothing here is a network. Symbols are those of Kim et al., "t3-Variational Autoencoder: Learning
Heavy-tailed Data with Student's t and Power Divergence", ICLR 2024 (arXiv 2312.01133).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from heqis_core.errors import ConfigError

LOG_2_PI = math.log(2 * math.pi)
_ASYMPTOTIC_FROM = 64.0
"""Arguments from which the series of ln Γ is exact to 1e-15 with the terms used here."""


@dataclass(frozen=True)
class T3:
    """The three t distributions of a t3-VAE, tied together by one ν.

    Prior `t_m(0, I, ν)`, decoder `t_n(μ_θ(z), (1 + |z|²/ν) / (1 + m/ν) σ² I, ν + m)`, encoder
    `t_m(μ, Σ / (1 + n/ν), ν + n)` with a diagonal Σ.

    Args:
        nu: degrees of freedom of the prior, above 2.
        n: numbers of an observation x.
        m: numbers of a latent z.
        sigma: scale of the decoder.

    Raises ConfigError for a value out of range.
    """

    nu: float
    n: int
    m: int
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not (math.isfinite(self.nu) and self.nu > 2):
            raise ConfigError(f't3-VAE: nu is {self.nu}, expected a number above 2')
        _check(self.n, self.m, self.sigma)

    @property
    def gamma(self) -> float:
        """Return γ of the power divergence: -2 / (ν + n + m)."""
        return -2 / (self.nu + self.n + self.m)

    @cached_property
    def log_c1(self) -> float:
        """Return ln C1; C1 |Σ|^(-γ / (2 (1 + γ))) is the (1 + γ)-norm of the encoder's density."""
        rest, whole = self.nu + self.n - 2, self.nu + self.n + self.m - 2
        density = self.m / 2 * math.log1p(self.n / self.nu) + log_constant(
            self.nu + self.n, self.m
        )
        return (whole + 2) / whole * math.log1p(self.m / rest) - 2 / whole * density

    @cached_property
    def log_c2(self) -> float:
        """Return ln C2, the factor of the cross entropy between encoder and decoder."""
        both = self.n + self.m
        density = log_constant(self.nu, both) - self.n * math.log(self.sigma)
        return 2 / (self.nu + both - 2) * (math.log1p(both / (self.nu - 2)) - density)

    @cached_property
    def log_variance_at_rest(self) -> float:
        """Return ln(τ² (1 + n/ν)), the log of each element of Σ where the regulariser is least."""
        density = log_constant(self.nu, self.n) - self.n * math.log(self.sigma)
        return 2 / (self.nu + self.n - 2) * (density - math.log1p(self.n / (self.nu - 2)))

    @property
    def log_tau2(self) -> float:
        """Return ln τ², of the squared scale of the distribution that latents are drawn from."""
        return self.log_variance_at_rest - math.log1p(self.n / self.nu)

    @property
    def offset(self) -> float:
        """Return ν τ² (1 + n/ν), what `regulariser` adds so that its least value is 0."""
        return self.nu * math.exp(self.log_variance_at_rest)

    def regulariser(self, mu: Tensor, log_variance: Tensor) -> Tensor:
        """Return the γ-regulariser of each row, (N,), from (N, m) means and log elements of Σ.

        It is `|μ|² + ν / (ν + n - 2) tr Σ - (ν C1 / C2) |Σ|^(-γ / (2 (1 + γ)))` plus `offset`:
        ν / C2 times the γ-power divergence between encoder and `t_m(0, τ² I, ν + n)`, so 0 at
        best, and for ν → ∞ twice the Kullback-Leibler divergence of the Gaussian VAE. Written
        in deviations from that best Σ: the terms of size ν cancel on paper, not in float32.
        """
        rest, whole = self.nu + self.n - 2, self.nu + self.n + self.m - 2
        deviation = log_variance - self.log_variance_at_rest
        gap = torch.expm1(deviation).sum(-1) - whole * torch.expm1(deviation.sum(-1) / whole)
        return mu.square().sum(-1) + self.offset / rest * gap

    def sample_posterior(self, mu: Tensor, log_variance: Tensor) -> Tensor:
        """Draw one latent of each row, `μ + sqrt(ν/δ) σ_φ ε`, with one δ ~ χ²(ν + n) per row."""
        noise = torch.randn_like(mu) * torch.exp(0.5 * log_variance)
        return mu + noise * _inverse_root(mu, self.nu + self.n, self.nu)

    def sample_prior(self, count: int) -> Tensor:
        """Draw (count, m) latents from the prior of the model, `t_m(0, I, ν)`."""
        noise = torch.randn(count, self.m)
        return noise * _inverse_root(noise, self.nu, self.nu)

    def sample_generation(self, count: int) -> Tensor:
        """Draw (count, m) latents to generate from, `t_m(0, τ² I, ν + n)`."""
        noise = torch.randn(count, self.m) * math.exp(0.5 * self.log_tau2)
        return noise * _inverse_root(noise, self.nu + self.n, self.nu + self.n)

    def sample_decoder(self, mean: Tensor, z: Tensor) -> Tensor:
        """Draw observations (N, n) around the decoder's means, wider where |z| (N, m) is large."""
        spread = self.sigma * torch.sqrt(self.nu + z.square().sum(-1, keepdim=True))
        return mean + torch.randn_like(mean) * spread * _inverse_root(mean, self.nu + self.m, 1.0)


@dataclass(frozen=True)
class Gaussian:
    """The distributions of the usual VAE, the limit of `T3` for ν → ∞, with the same methods.

    Prior `N(0, I)`, decoder `N(μ_θ(z), σ² I)`, encoder `N(μ, Σ)` with a diagonal Σ. Raises
    ConfigError for a value out of range.
    """

    n: int
    m: int
    sigma: float = 1.0
    log_variance_at_rest: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self.n, self.m, self.sigma)

    def regulariser(self, mu: Tensor, log_variance: Tensor) -> Tensor:
        """Return twice the Kullback-Leibler divergence from the prior, of each row, (N,)."""
        return (mu.square() + torch.expm1(log_variance) - log_variance).sum(-1)

    def sample_posterior(self, mu: Tensor, log_variance: Tensor) -> Tensor:
        """Draw one latent of each row."""
        return mu + torch.randn_like(mu) * torch.exp(0.5 * log_variance)

    def sample_prior(self, count: int) -> Tensor:
        """Draw (count, m) latents."""
        return torch.randn(count, self.m)

    def sample_generation(self, count: int) -> Tensor:
        """Draw (count, m) latents to generate from: the prior."""
        return self.sample_prior(count)

    def sample_decoder(self, mean: Tensor, z: Tensor) -> Tensor:
        """Draw observations (N, n) around the decoder's means; the latents do not matter."""
        return mean + self.sigma * torch.randn_like(mean)


Family = T3 | Gaussian


def log_constant(nu: float, d: int) -> float:
    """Return ln C_{ν,d}, `C = Γ((ν+d)/2) / (Γ(ν/2) (νπ)^(d/2))`, of a d-dimensional t density.

    Exact to about 1e-13 of its size for every ν > 0: for large ν the gamma functions, which would
    cancel, are left out and what remains of their quotient is summed.
    """
    return -d / 2 * LOG_2_PI + _log_gamma_excess(nu / 2, d / 2)


def _log_gamma_excess(a: float, h: float) -> float:
    """Return ln Γ(a + h) - ln Γ(a) - h ln a, which goes to 0 as a grows."""
    if a < _ASYMPTOTIC_FROM:
        return math.lgamma(a + h) - math.lgamma(a) - h * math.log(a)
    leading = (a + h - 0.5) * math.log1p(h / a) - h
    return leading + _stirling_tail(a + h) - _stirling_tail(a)


def _stirling_tail(a: float) -> float:
    """Return the terms of Stirling's series of ln Γ(a) beyond the elementary ones."""
    square = a * a
    return (1 / 12 - (1 / 360 - 1 / 1260 / square) / square) / a


def _inverse_root(like: Tensor, freedom: float, numerator: float) -> Tensor:
    """Draw sqrt(numerator / δ), δ ~ χ²(freedom), (N, 1): one for all numbers of a row."""
    half = torch.full((len(like), 1), freedom / 2, dtype=like.dtype, device=like.device)
    rate = torch.tensor(0.5, dtype=like.dtype, device=like.device)
    delta = torch.distributions.Gamma(half, rate, validate_args=False).sample()
    return torch.sqrt(numerator / delta)


def _check(n: int, m: int, sigma: float) -> None:
    if n < 1 or m < 1:
        raise ConfigError(f'VAE: n is {n} and m is {m}, expected at least 1 number each')
    if not (math.isfinite(sigma) and sigma > 0):
        raise ConfigError(f'VAE: sigma is {sigma}, expected a number above 0')
