# SPDX-License-Identifier: Apache-2.0
"""The closed forms of the t3-VAE: the reference's numbers, high precision, integrals and draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor

from heqis_core.errors import ConfigError
from heqis_training.t3 import T3, Family, Gaussian, log_constant

GRID = [
    (nu, n, m, sigma)
    for nu in (2.001, 2.5, 3.0, 10.0, 18.0, 127.0, 129.0, 1e4, 1e7, 1e12)
    for n, m in ((1, 1), (1, 64), (352, 4), (1320, 64), (5000, 512))
    for sigma in (0.1, 1.0, 3.0)
]


def exact(nu: float, n: int, m: int, sigma: float) -> dict[str, mpmath.mpf]:
    """Return the constants as the paper writes them, to 60 digits, with no form of ours."""
    with mpmath.workdps(60):
        v, s = mpmath.mpf(nu), mpmath.mpf(sigma)
        g = -2 / (v + n + m)

        def c(freedom: mpmath.mpf, d: int) -> mpmath.mpf:
            lead = mpmath.loggamma((freedom + d) / 2) - mpmath.loggamma(freedom / 2)
            return lead - mpmath.mpf(d) / 2 * mpmath.log(freedom * mpmath.pi)

        k = (v + m + n - 2) / (v + n - 2)
        log_c1 = mpmath.log(k) + g * m / 2 * mpmath.log(1 + n / v) + g * c(v + n, m)
        inner = mpmath.log((v + m + n - 2) / (v - 2)) + n * mpmath.log(s) - c(v, m + n)
        tau = -n * mpmath.log(s) + c(v, n) - mpmath.log(1 + n / (v - 2))
        return {
            'c': c(v, n),
            'c1': log_c1 / (1 + g),
            'c2': -g / (1 + g) * inner,
            'tau2': -mpmath.log(1 + n / v) + 2 / (v + n - 2) * tau,
        }


def exact_regulariser(
    nu: float, n: int, m: int, sigma: float, mu: list[float], log_variance: list[float]
) -> float:
    """Return the four terms of the paper plus the constant, to 60 digits."""
    with mpmath.workdps(60):
        v, constants = mpmath.mpf(nu), exact(nu, n, m, sigma)
        g = -2 / (v + n + m)
        power = -g / (2 * (1 + g)) * sum(map(mpmath.mpf, log_variance))
        found = sum(mpmath.mpf(x) ** 2 for x in mu)
        found += v / (v + n - 2) * sum(mpmath.exp(mpmath.mpf(x)) for x in log_variance)
        found -= v * mpmath.exp(constants['c1'] - constants['c2'] + power)
        found += v * (1 + n / v) * mpmath.exp(constants['tau2'])
        return float(found)


def rows(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# --- constants -----------------------------------------------------------------------------------


def test_the_reference_numbers_of_one_dimension() -> None:
    family = T3(3, 1, 1)
    assert family.gamma == -0.4
    assert math.exp(family.log_c1) == pytest.approx(3.4341427, rel=1e-7)
    assert math.exp(family.log_c2) == pytest.approx(7.082731, rel=1e-7)
    assert math.exp(family.log_tau2) == pytest.approx(0.137832, rel=1e-5)


def test_the_reference_numbers_of_a_window_of_60_by_22() -> None:
    family = T3(10, 1320, 64)
    assert family.log_c1 == pytest.approx(-0.09426352, rel=1e-7)
    assert family.log_c2 == pytest.approx(-2.1118908365, rel=1e-10)
    assert math.exp(family.log_tau2) == pytest.approx(0.0593192, rel=1e-6)


@pytest.mark.parametrize(('nu', 'n', 'm', 'sigma'), GRID)
def test_constants_equal_60_digits_for_any_size_freedom_and_scale(
    nu: float, n: int, m: int, sigma: float
) -> None:
    family, wanted = T3(nu, n, m, sigma), exact(nu, n, m, sigma)
    found = {
        'c': log_constant(nu, n),
        'c1': family.log_c1,
        'c2': family.log_c2,
        'tau2': family.log_tau2,
    }
    for name, value in found.items():
        assert value == pytest.approx(float(wanted[name]), rel=1e-12, abs=1e-12), name


@given(
    nu=st.floats(2.01, 1e9),
    n=st.integers(1, 4000),
    m=st.integers(1, 256),
    sigma=st.floats(0.01, 10),
)
def test_c1_over_c2_is_the_slope_that_puts_the_minimum_at_tau(
    nu: float, n: int, m: int, sigma: float
) -> None:
    family = T3(nu, n, m, sigma)
    best = math.log1p(n / nu) + family.log_tau2
    power = -family.gamma / (2 * (1 + family.gamma))
    slope_of_trace = math.log(nu / (nu + n - 2)) + best
    slope_of_power = (
        math.log(nu) + family.log_c1 - family.log_c2 + math.log(power) + power * m * best
    )
    assert slope_of_trace == pytest.approx(slope_of_power, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ((2.0, 1, 1, 1.0), 'nu is 2.0, expected a number above 2'),
        ((math.nan, 1, 1, 1.0), 'nu is nan'),
        ((math.inf, 1, 1, 1.0), 'nu is inf'),
        ((3.0, 0, 1, 1.0), 'n is 0'),
        ((3.0, 1, 0, 1.0), 'm is 0'),
        ((3.0, 1, 1, 0.0), 'sigma is 0.0, expected a number above 0'),
    ],
)
def test_values_out_of_range_are_refused(
    values: tuple[float, int, int, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        T3(*values)


# --- against the definitions ---------------------------------------------------------------------


def density(z: float, mu: float, scale2: float, freedom: float) -> float:
    """Return the density of a one-dimensional t, by scipy."""
    return float(stats.t.pdf(z, freedom, mu, math.sqrt(scale2)))


def integral(function: Callable[[float], float]) -> float:
    return float(integrate.quad(function, -math.inf, math.inf, limit=400, epsabs=1e-12)[0])


@pytest.mark.parametrize(('nu', 'n', 'sigma'), [(3.0, 1, 1.0), (3.0, 7, 0.3), (18.0, 2, 2.0)])
@pytest.mark.parametrize(('mu', 'variance'), [(0.0, 1.0), (0.7, 0.2), (-2.0, 5.0)])
def test_the_regulariser_is_the_power_divergence_from_the_generation_prior(
    nu: float, n: int, sigma: float, mu: float, variance: float
) -> None:
    family = T3(nu, n, 1, sigma)
    g, freedom = family.gamma, nu + n
    tau2 = math.exp(family.log_tau2)

    def q(z: float) -> float:
        return density(z, mu, variance / (1 + n / nu), freedom)

    def p(z: float) -> float:
        return density(z, 0.0, tau2, freedom)

    norm_q = integral(lambda z: q(z) ** (1 + g)) ** (1 / (1 + g))
    norm_p = integral(lambda z: p(z) ** (1 + g)) ** (1 / (1 + g))
    cross = integral(lambda z: q(z) * (p(z) / norm_p) ** g)
    wanted = nu / math.exp(family.log_c2) * (cross - norm_q)
    found = family.regulariser(rows(mu), rows(math.log(variance)))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_c1_is_the_norm_of_an_encoder_of_two_latents() -> None:
    nu, n = 4.0, 3
    family = T3(nu, n, 2)
    encoder = stats.multivariate_t([0, 0], torch.eye(2).numpy() / (1 + n / nu), nu + n)

    def ring(radius: float) -> float:
        height = float(encoder.pdf([radius, 0.0]))
        return 2 * math.pi * radius * math.pow(height, 1 + family.gamma)

    norm = integrate.quad(ring, 0, math.inf, epsabs=0, epsrel=1e-11, limit=400)[0] ** (
        1 / (1 + family.gamma)
    )
    assert math.exp(family.log_c1) == pytest.approx(norm, rel=1e-7)


def test_c2_is_the_norm_of_the_joint_density_of_observation_and_latent() -> None:
    nu, sigma = 5.0, 0.6
    family = T3(nu, 1, 1, sigma)
    peak = math.exp(log_constant(nu, 2)) / sigma

    def joint(x: float, z: float) -> float:  # a decoder whose mean is 0
        spread2 = (1 + z * z / nu) / (1 + 1 / nu) * sigma**2
        return density(z, 0.0, 1.0, nu) * density(x, 0.0, spread2, nu + 1)

    whole = integrate.dblquad(
        lambda x, z: joint(x, z) ** (1 + family.gamma), 0, math.inf, 0, math.inf, epsabs=1e-6
    )[0]
    norm = (4 * whole) ** (1 / (1 + family.gamma))
    assert math.exp(family.log_c2) == pytest.approx((peak / norm) ** family.gamma, rel=1e-4)


# --- the regulariser -----------------------------------------------------------------------------


@pytest.mark.parametrize(('nu', 'n', 'm', 'sigma'), [grid for grid in GRID if grid[2] < 100])
def test_the_regulariser_equals_60_digits_in_float64_and_float32(
    nu: float, n: int, m: int, sigma: float
) -> None:
    family = T3(nu, n, m, sigma)
    mu = [0.4 * math.sin(k) for k in range(m)]
    log_variance = [family.log_variance_at_rest + math.cos(3 * k) for k in range(m)]
    wanted = exact_regulariser(nu, n, m, sigma, mu, log_variance)
    assert float(family.regulariser(rows(*mu), rows(*log_variance))) == pytest.approx(
        wanted, rel=1e-10
    )
    coarse = family.regulariser(rows(*mu).float(), rows(*log_variance).float())
    assert float(coarse) == pytest.approx(wanted, rel=3e-5)


@given(
    nu=st.floats(2.1, 1e8),
    n=st.integers(1, 2000),
    mu=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    deviation=st.lists(st.floats(-8, 8), min_size=3, max_size=3),
)
def test_the_regulariser_is_never_below_0_and_0_at_rest(
    nu: float, n: int, mu: list[float], deviation: list[float]
) -> None:
    family = T3(nu, n, 3)
    rest = family.log_variance_at_rest
    found = float(family.regulariser(rows(*mu), rows(*deviation) + rest))
    assert found >= -1e-9 * family.offset
    assert float(family.regulariser(rows(0, 0, 0), rows(rest, rest, rest))) == 0.0


def test_a_large_freedom_gives_the_gaussian_divergence() -> None:
    mu, log_variance = rows(0.3), rows(-0.2)
    wanted = float(Gaussian(1, 1).regulariser(mu, log_variance)) / 2
    found = float(T3(1e7, 1, 1).regulariser(mu, log_variance)) / 2
    assert found == pytest.approx(wanted, abs=3e-8)
    assert float(T3(1e12, 1, 1).regulariser(mu, log_variance)) / 2 == pytest.approx(
        wanted, abs=1e-12
    )


def test_the_gaussian_divergence_is_that_of_torch() -> None:
    mu, log_variance = rows(0.3, -1.2), rows(-0.2, 0.9)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * log_variance))
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    wanted = torch.distributions.kl_divergence(q, p).sum(-1)
    found = Gaussian(1, 2).regulariser(mu, log_variance) / 2
    assert torch.allclose(found, wanted)


def test_the_minimiser_over_sigma_found_by_descent_is_tau_times_one_plus_n_over_nu() -> None:
    family = T3(3, 2, 2, 0.7)
    log_variance = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_variance],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn='strong_wolfe',
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = family.regulariser(rows(0, 0), log_variance).sum()
        value.backward()
        return value

    optimizer.step(closure)
    found = torch.exp(log_variance.detach()) / (1 + 2 / 3)
    assert torch.allclose(found, torch.full_like(found, math.exp(family.log_tau2)), rtol=1e-6)


# --- draws ---------------------------------------------------------------------------------------

DRAWS = 200_000


def spread_of(z: Tensor, scale2: Tensor | float) -> Tensor:
    """Return |z|² in units of scale and dimension: F(d, ν) where z is t_d(0, scale², ν)."""
    return (z.square() / scale2).mean(-1)


def assert_f(found: Tensor, d: int, freedom: float) -> None:
    result = stats.kstest(found.numpy(), stats.f(d, freedom).cdf)
    assert result.pvalue > 1e-3


def test_a_posterior_draw_shares_one_chi_square_among_its_latents() -> None:
    torch.manual_seed(1)
    family, m = T3(4, 2, 3), 3
    mu = torch.tensor([1.0, -2.0, 0.5]).expand(DRAWS, m)
    log_variance = torch.tensor([0.0, 1.0, -1.0]).expand(DRAWS, m)
    z = family.sample_posterior(mu, log_variance)
    scaled = (z - mu) / torch.exp(0.5 * log_variance) * math.sqrt(1 + 2 / 4)
    assert_f(spread_of(scaled, 1.0), m, 6)  # with a draw per latent this is no F distribution
    for k in range(m):
        assert stats.kstest(scaled[:, k].numpy(), stats.t(6).cdf).pvalue > 1e-3
    apart = torch.stack([scaled[k::m, k][: DRAWS // m] for k in range(m)], dim=1)
    assert stats.kstest(spread_of(apart, 1.0).numpy(), stats.f(m, 6).cdf).pvalue < 1e-6


def test_priors_are_the_t_distributions_that_they_claim() -> None:
    torch.manual_seed(2)
    family = T3(5, 3, 2, 0.4)
    assert_f(spread_of(family.sample_prior(DRAWS), 1.0), 2, 5)
    assert_f(spread_of(family.sample_generation(DRAWS), math.exp(family.log_tau2)), 2, 8)


def test_decoder_noise_grows_with_the_latent_and_is_one_t_draw_per_row() -> None:
    torch.manual_seed(3)
    nu, sigma = 4.0, 0.3
    family = T3(nu, 3, 2, sigma)
    z = torch.tensor([2.0, -1.0]).expand(DRAWS, 2)
    x = family.sample_decoder(torch.full((DRAWS, 3), 7.0), z)
    scale2 = (1 + 5 / nu) / (1 + 2 / nu) * sigma**2
    assert_f(spread_of(x - 7, scale2), 3, nu + 2)


def test_gaussian_draws_are_gaussian() -> None:
    torch.manual_seed(4)
    family = Gaussian(2, 2, 0.5)
    mu, log_variance = torch.ones(DRAWS, 2), torch.full((DRAWS, 2), math.log(4.0))
    z = family.sample_posterior(mu, log_variance)
    assert stats.kstest(((z - mu) / 2).flatten().numpy(), 'norm').pvalue > 1e-3
    assert stats.kstest(family.sample_generation(DRAWS).flatten().numpy(), 'norm').pvalue > 1e-3
    x = family.sample_decoder(mu, z)
    assert stats.kstest(((x - mu) / 0.5).flatten().numpy(), 'norm').pvalue > 1e-3


@pytest.mark.parametrize('family', [T3(6, 3, 2, 0.5), T3(1e7, 3, 2, 0.5), Gaussian(3, 2, 0.5)])
def test_gradients_through_draws_are_those_of_the_exact_loss(family: Family) -> None:
    """With a linear decoder the expected squared error has a closed form."""
    torch.manual_seed(5)
    decoder = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.0]], dtype=torch.float64)
    x = rows(0.5, -1.0, 2.0)
    mu = rows(0.4, -0.6).requires_grad_()
    log_variance = rows(-0.5, 0.3).requires_grad_()
    variance = log_variance.exp()
    if isinstance(family, T3):
        variance = variance * family.nu / (family.nu + family.n - 2)
    error = (x - mu @ decoder.T).square().sum() + (decoder.square() @ variance.T).sum()
    exact_loss = error / family.sigma**2 + family.regulariser(mu, log_variance).sum()
    wanted = torch.autograd.grad(exact_loss, (mu, log_variance))

    z = family.sample_posterior(mu.expand(DRAWS, 2), log_variance.expand(DRAWS, 2))
    error = (x - z @ decoder.T).square().sum(-1).mean()
    loss = error / family.sigma**2 + family.regulariser(mu, log_variance).sum()
    found = torch.autograd.grad(loss, (mu, log_variance))
    assert loss.item() == pytest.approx(exact_loss.item(), rel=0.01)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.1)


def test_the_series_of_the_gamma_function_meets_the_function_itself() -> None:
    for a in (63.9, 64.0, 64.1):
        wanted = special.loggamma(a + 2.5) - special.loggamma(a)
        found = log_constant(2 * a, 5) + 2.5 * math.log(2 * a * math.pi)
        assert found == pytest.approx(wanted, rel=1e-13)
