# SPDX-License-Identifier: Apache-2.0
"""The game on one batch: aligned as the reference says, signs right, gradients where they belong.

Every loss is held against the literal sum of single calls, and each known defect of public
implementations that could sit in these losses has a test that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from heqis_training.adversarial import (
    Next,
    Past,
    adversarial_losses,
    discriminator_loss,
    distillation_loss,
    pair_weights,
    sequence,
    soft_class,
)
from heqis_training.models.build import build_discriminator
from heqis_training.models.discriminator import Discriminator
from heqis_training.settings import AdversarialSettings, DiscriminatorSettings

N = 6
LONGEST = 9
bce = functional.binary_cross_entropy_with_logits


def one_hot(classes: Tensor) -> Tensor:
    return functional.one_hot(classes, 3).float()


def random_past(generator: torch.Generator, n: int = N, length: int = LONGEST) -> Past:
    values = torch.randn(n, length, generator=generator)
    return Past(values, one_hot(torch.randint(3, (n, length), generator=generator)))


def random_next(generator: torch.Generator, n: int = N) -> Next:
    logits = torch.randn(n, 3, generator=generator)
    return Next(torch.randn(n, generator=generator), logits.softmax(1))


class Game:
    """Discriminators, a past, what really followed and fakes that could have."""

    def __init__(
        self, n_fakes: int = 3, windows: tuple[int, ...] = (2, 5, LONGEST), seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.against = [build_discriminator(DiscriminatorSettings(window=w)) for w in windows]
        self.past, self.real = random_past(generator), random_next(generator)
        self.fakes = [random_next(generator) for _ in range(n_fakes)]
        for fake in self.fakes:
            fake.value.requires_grad_()
            fake.classes.requires_grad_()
        self.weights = torch.rand(len(windows), n_fakes, generator=generator).double() + 0.1


def logits_of(discriminator: Discriminator, past: Past, following: Next) -> Tensor:
    """Return what the whole-sequence forward says, assembled by hand."""
    start = past.values.shape[1] - discriminator.window
    values = torch.cat([past.values[:, start:], following.value[:, None]], dim=1)
    classes = torch.cat([past.classes[:, start:], following.classes[:, None]], dim=1)
    logits: Tensor = discriminator(values, classes)
    return logits


# --- alignment -----------------------------------------------------------------------------------


@given(own=st.integers(1, 8), other=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_sequence_is_the_literal_alignment_for_every_pair_of_windows(
    own: int, other: int, seed: int
) -> None:
    """`own` is W_i of the generator, `other` W_j of the discriminator."""
    generator = torch.Generator().manual_seed(seed)
    past, fake = random_past(generator, length=max(own, other)), random_next(generator)
    for found, y, y_hat in zip(
        sequence(past, fake, other),
        (past.values.numpy(), past.classes.numpy()),
        (fake.value.numpy(), fake.classes.numpy()),
        strict=True,
    ):
        y_j, y_i = y[:, -other:], y[:, -own:]
        if own < other:
            parts = [y_j[:, : other - own], y_i[:, :own], y_hat[:, None]]
            expected = np.concatenate(parts, axis=1)
        else:
            expected = np.concatenate([y_i, y_hat[:, None]], axis=1)[:, -(other + 1) :]
        assert expected.shape[1] == other + 1
        assert np.array_equal(found.numpy(), expected)


# --- losses are the literal sums -----------------------------------------------------------------


@given(seed=st.integers(0, 99), n_fakes=st.integers(1, 4), zero=st.booleans())
@settings(max_examples=15)
def test_the_discriminators_loss_is_the_sum_of_single_calls(
    seed: int, n_fakes: int, zero: bool
) -> None:
    made = Game(n_fakes, seed=seed)
    if zero:
        made.weights[:, 0] = 0
    for j, discriminator in enumerate(made.against):
        logits = logits_of(discriminator, made.past, made.real)
        expected = bce(logits, torch.ones(N))
        for i, fake in enumerate(made.fakes):
            logits = logits_of(discriminator, made.past, fake)
            expected = expected + made.weights[j, i].item() * bce(logits, torch.zeros(N))
        found = discriminator_loss(
            discriminator, made.past, made.real, made.fakes, made.weights[j]
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            gradients(found, discriminator), gradients(expected, discriminator), rtol=0, atol=1e-6
        )


@given(seed=st.integers(0, 99), n_fakes=st.integers(1, 4), zero=st.booleans())
@settings(max_examples=15)
def test_the_generators_losses_are_the_sums_of_single_calls(
    seed: int, n_fakes: int, zero: bool
) -> None:
    made = Game(n_fakes, seed=seed)
    if zero:
        made.weights[1] = 0
    found = adversarial_losses(made.against, made.past, made.fakes, made.weights)
    assert found.shape == (n_fakes,)
    for i, fake in enumerate(made.fakes):
        expected = torch.zeros(())
        for j, discriminator in enumerate(made.against):
            logits = logits_of(discriminator, made.past, fake)
            expected = expected + made.weights[j, i].item() * bce(logits, torch.ones(N))
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)
        for part in fake:
            (ours,) = torch.autograd.grad(found[i], part, retain_graph=True)
            (theirs,) = torch.autograd.grad(expected, part, retain_graph=True)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_fake_of_weight_0_is_not_looked_at() -> None:
    made = Game()
    made.weights[:, 1] = 0
    nowhere = Next(torch.full((N,), math.nan), torch.full((N, 3), math.nan))
    made.fakes[1] = nowhere
    for j, discriminator in enumerate(made.against):
        loss = discriminator_loss(discriminator, made.past, made.real, made.fakes, made.weights[j])
        assert torch.isfinite(loss)
    found = adversarial_losses(made.against, made.past, made.fakes, made.weights)
    assert torch.isfinite(found).all()
    assert found[1] == 0


def test_without_discriminators_no_generator_loses_anything() -> None:
    made = Game(2)
    assert adversarial_losses([], made.past, made.fakes, torch.zeros(0, 2)).tolist() == [0.0, 0.0]


# --- signs ---------------------------------------------------------------------------------------


def certainty(made: Game, fakes: list[Next]) -> float:
    """Return how sure the discriminators are, on average, that fakes are fakes."""
    with torch.no_grad():
        logits = [logits_of(d, made.past, fake) for d in made.against for fake in fakes]
        return float(torch.sigmoid(-torch.stack(logits)).mean())


def test_a_generators_step_lowers_their_certainty_and_target_0_would_raise_it() -> None:
    made = Game()

    def after_step(loss: Tensor) -> float:
        steps = torch.autograd.grad(loss, [part for fake in made.fakes for part in fake])
        moved = [
            part.detach() - 0.1 * step
            for part, step in zip(
                (part for fake in made.fakes for part in fake), steps, strict=True
            )
        ]
        return certainty(made, [Next(*pair) for pair in zip(moved[::2], moved[1::2], strict=True)])

    before = certainty(made, made.fakes)
    ours = adversarial_losses(made.against, made.past, made.fakes, made.weights).sum()
    detected = torch.stack(
        [
            made.weights[j, i].item() * bce(logits_of(d, made.past, fake), torch.zeros(N))
            for j, d in enumerate(made.against)
            for i, fake in enumerate(made.fakes)
        ]
    ).sum()
    assert after_step(ours) < before < after_step(detected)


def test_a_discriminators_step_makes_it_more_certain_of_both() -> None:
    made = Game(windows=(5,))
    (discriminator,) = made.against

    def logits() -> tuple[float, float]:
        with torch.no_grad():
            real = logits_of(discriminator, made.past, made.real).mean()
            fake = torch.stack([logits_of(discriminator, made.past, f) for f in made.fakes]).mean()
        return float(real), float(fake)

    real, fake = logits()
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        discriminator_loss(
            discriminator, made.past, made.real, made.fakes, made.weights[0]
        ).backward()
        optimizer.step()
    assert logits()[0] > real
    assert logits()[1] < fake


@pytest.mark.parametrize('logit', [-30.0, 30.0])
def test_a_logit_of_30_costs_30_so_no_sigmoid_is_taken_twice(logit: float) -> None:
    made = Game(1, windows=(5,))
    (discriminator,) = made.against
    nn.init.zeros_(discriminator.head.weight)
    nn.init.constant_(discriminator.head.bias, logit)
    weights = torch.ones(1, 1)
    expected = max(logit, 0.0)  # BCE(30, 0) = 30, and BCE(30, 1) = 0 to 1e-13
    fooled = adversarial_losses([discriminator], made.past, made.fakes, weights)
    assert fooled.item() == pytest.approx(expected - logit, abs=1e-6)
    loss = discriminator_loss(discriminator, made.past, made.real, made.fakes, weights[0])
    assert loss.item() == pytest.approx(30.0, abs=1e-6)


# --- gradients -----------------------------------------------------------------------------------


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True))


@pytest.mark.parametrize('how', ['straight_through', 'gumbel'])
def test_a_generators_step_reaches_value_and_class_head_and_no_discriminator(how: str) -> None:
    made = Game()
    head = nn.Linear(4, 4)
    torch.manual_seed(1)
    answer = head(torch.randn(N, 4))
    fake = Next(answer[:, 0], soft_class(answer[:, 1:], how))
    adversarial_losses(made.against, made.past, [fake], made.weights[:, :1]).sum().backward()
    assert head.weight.grad is not None
    assert (head.weight.grad != 0).all()  # row 0 is the value, the others are the classes
    for discriminator in made.against:
        assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())


def test_a_discriminators_step_reaches_no_generator() -> None:
    made = Game()
    for j, discriminator in enumerate(made.against):
        loss = discriminator_loss(discriminator, made.past, made.real, made.fakes, made.weights[j])
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in discriminator.parameters())
    assert all(part.grad is None for fake in made.fakes for part in fake)


def test_parameters_that_were_frozen_before_stay_so() -> None:
    made = Game()
    made.against[0].embedding.weight.requires_grad_(False)
    adversarial_losses(made.against, made.past, made.fakes, made.weights)
    assert not made.against[0].embedding.weight.requires_grad
    assert made.against[0].head.weight.requires_grad


# --- the class that a discriminator sees ---------------------------------------------------------


def test_the_straight_through_class_is_the_likeliest_with_the_gradient_of_the_softmax() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    towards = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    found = soft_class(logits, 'straight_through')
    torch.testing.assert_close(found, one_hot(logits.argmax(1)), rtol=0, atol=1e-6)
    (ours,) = torch.autograd.grad((found * towards).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(1) * towards).sum(), logits)
    torch.testing.assert_close(ours, soft)
    assert (ours != 0).all()  # an argmax would give none


def test_the_gumbel_class_is_drawn_by_the_seed_with_the_chances_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0]).expand(20_000, 3)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return soft_class(logits, 'gumbel')

    first = drawn(3)
    assert torch.equal(first, drawn(3))
    assert not torch.equal(first, drawn(4))
    assert torch.equal(first.round().sum(1), torch.ones(20_000))
    torch.testing.assert_close(first.mean(0), logits[0].softmax(0), rtol=0, atol=0.02)


@pytest.mark.parametrize('how', ['straight_through', 'gumbel'])
def test_the_class_of_half_precision_logits_is_finite_and_float32(how: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(100_000, 3).bfloat16()
    found = soft_class(logits, how)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


# --- weights of the pairs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('n_discriminators', 'n_generators', 'expected'),
    [
        (3, 3, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (2, 3, [[1, 0, 1], [0, 1, 0]]),
        (3, 2, [[1, 0], [0, 1], [1, 0]]),
        (1, 2, [[1, 1]]),
        (2, 1, [[1], [1]]),
    ],
)
@pytest.mark.parametrize('kind', ['uniform', 'dynamic'])
def test_in_the_first_epochs_each_plays_its_own_opponent(
    n_discriminators: int, n_generators: int, expected: list[list[int]], kind: str
) -> None:
    rules = msgspec.convert({'identity_epochs': 4, 'weights': kind}, AdversarialSettings)
    for epoch in (1, 4):
        found = pair_weights(rules, epoch, n_discriminators, [0.5] * n_generators)
        assert found.tolist() == expected
    assert pair_weights(rules, 5, n_discriminators, [0.5] * n_generators).min() > 0


@given(n_discriminators=st.integers(1, 6), n_generators=st.integers(1, 6))
def test_each_has_an_opponent_whatever_their_numbers(
    n_discriminators: int, n_generators: int
) -> None:
    found = pair_weights(AdversarialSettings(), 1, n_discriminators, [1.0] * n_generators)
    assert found.shape == (n_discriminators, n_generators)
    assert (found.sum(0) >= 1).all()
    assert (found.sum(1) >= 1).all()
    assert found.sum() == max(n_discriminators, n_generators)


def test_after_that_uniform_weights_are_one_over_n() -> None:
    rules = AdversarialSettings(identity_epochs=0, weights='uniform')
    assert pair_weights(rules, 1, 2, [0.1, 5.0, 1.0, 2.0]).tolist() == [[0.25] * 4] * 2


@given(mse=st.lists(st.floats(0, 50), min_size=1, max_size=5), n=st.integers(1, 5))
def test_dynamic_weights_are_the_softmax_of_negative_mse_and_1_for_the_own_pair(
    mse: list[float], n: int
) -> None:
    rules = AdversarialSettings(identity_epochs=3, weights='dynamic')
    found = pair_weights(rules, 4, n, mse)
    powers = np.exp(-np.array(mse) + min(mse))
    own = pair_weights(rules, 3, n, mse).numpy()
    np.testing.assert_allclose(found.numpy(), powers / powers.sum() + own, rtol=1e-12)


def test_without_discriminators_there_are_no_pairs() -> None:
    for epoch in (1, 50):
        assert pair_weights(AdversarialSettings(), epoch, 0, [1.0, 2.0]).shape == (0, 2)


# --- distillation --------------------------------------------------------------------------------


@given(
    alpha=st.floats(0, 1), heat=st.floats(0.5, 5), share=st.floats(0, 2), seed=st.integers(0, 99)
)
def test_distillation_is_the_formula_written_out_in_numpy(
    alpha: float, heat: float, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(2, 7, 3))
    forecast, targets = rng.normal(size=(2, 7, 2))
    classes = rng.integers(3, size=7)

    def shares(logits: np.ndarray) -> np.ndarray:
        powers: np.ndarray = np.exp(logits)
        powers /= powers.sum(axis=1, keepdims=True)
        return powers

    p, q = shares(teacher / heat), shares(student / heat)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    entropy = -np.log(shares(student)[np.arange(7), classes]).mean()
    mse = ((forecast - targets) ** 2).mean()
    expected = alpha * heat**2 * divergence + (1 - alpha) * entropy + (1 - alpha) * share * mse
    rules = AdversarialSettings(distil_alpha=alpha, distil_temperature=heat, distil_lambda=share)
    found = distillation_loss(
        torch.from_numpy(teacher),
        torch.from_numpy(student),
        torch.from_numpy(forecast),
        torch.from_numpy(classes),
        torch.from_numpy(targets).float(),
        rules,
    )
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_step_of_distillation_alone_brings_the_student_nearer_to_its_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(9, 3), torch.randn(9, 3).requires_grad_()
    rules = AdversarialSettings(distil_alpha=1.0)
    nothing = torch.zeros(9, 1)

    def loss(of: Tensor) -> Tensor:
        return distillation_loss(
            teacher, of, nothing, torch.zeros(9, dtype=torch.int64), nothing, rules
        )

    before = loss(student)
    (step,) = torch.autograd.grad(before, student)
    assert 0 < loss(student - 0.5 * step) < before
    assert loss(teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('part', [discriminator_loss, adversarial_losses])
def test_losses_under_bfloat16_are_computed_in_float32(part: Callable[..., Tensor]) -> None:
    made = Game()
    with torch.autocast('cpu', torch.bfloat16):
        if part is discriminator_loss:
            half = part(made.against[0], made.past, made.real, made.fakes, made.weights[0])
            full = logits_of(made.against[0], made.past, made.real)
        else:
            half = part(made.against, made.past, made.fakes, made.weights)
            full = logits_of(made.against[0], made.past, made.fakes[0])
    assert full.dtype == torch.bfloat16  # so the networks do use it
    assert half.dtype == torch.float32
