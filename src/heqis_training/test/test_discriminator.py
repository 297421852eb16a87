# SPDX-License-Identifier: Apache-2.0
"""The discriminator: gradients to values and classes, what it can tell, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.build import build_discriminator
from heqis_training.models.discriminator import Discriminator
from heqis_training.settings import DiscriminatorSettings

WINDOW = 6


def make() -> Discriminator:
    torch.manual_seed(0)
    return build_discriminator(DiscriminatorSettings(window=WINDOW))


def one_hot(classes: Tensor) -> Tensor:
    return nn.functional.one_hot(classes, 3).float()


def sequences(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return returns (n, W + 1) and their one-hot classes by sign and size."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, WINDOW + 1, generator=generator)
    return values, one_hot(1 + torch.sign(values).long() * (values.abs() > 0.4))


def test_gradients_reach_every_value_and_every_class_share() -> None:
    values, classes = sequences(5)
    values.requires_grad_()
    classes.requires_grad_()
    make()(values, classes).sum().backward()
    assert (values.grad != 0).all()
    assert (classes.grad != 0).all()
    # the three shares of a step differ in what they do, so a class can be learned from it
    assert (classes.grad.std(dim=2) > 0).all()


def test_shares_between_two_classes_lie_between_their_embeddings() -> None:
    model = make()
    soft = torch.tensor([0.25, 0.0, 0.75])
    table = model.embedding(torch.eye(3))
    torch.testing.assert_close(model.embedding(soft), 0.25 * table[0] + 0.75 * table[2])
    values, classes = sequences(5)
    torch.testing.assert_close(
        model(values, 0.5 * classes + 0.5 * classes), model(values, classes)
    )


def test_the_order_of_steps_and_the_classes_change_the_logit() -> None:
    model = make()
    values, classes = sequences(5)
    with torch.no_grad():
        before = model(values, classes)
        assert before.shape == (5,)
        assert ((model(values.flip(1), classes.flip(1)) - before).abs() > 1e-4).all()
        assert ((model(values, classes.roll(1, dims=2)) - before).abs() > 1e-4).all()


@pytest.mark.parametrize('fake', ['value', 'class'])
def test_it_learns_to_tell_a_last_value_or_class_that_does_not_fit(fake: str) -> None:
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def logits_and_truth(seed: int) -> tuple[Tensor, Tensor]:
        values, classes = sequences(256, seed)
        real = torch.arange(256) % 2 == 0
        if fake == 'value':
            values[:, -1] = torch.where(real, values[:, -1], values[:, -1] + 4)
        else:
            wrong = classes[:, -1].roll(1, dims=1)
            classes[:, -1] = torch.where(real[:, None], classes[:, -1], wrong)
        return model(values, classes), real

    for step in range(120):
        optimizer.zero_grad()
        logits, real = logits_and_truth(step)
        nn.functional.binary_cross_entropy_with_logits(logits, real.float()).backward()
        optimizer.step()
    with torch.no_grad():
        logits, real = logits_and_truth(10_000)
    assert ((logits > 0) == real).float().mean() > 0.85
    assert logits.min() < -1  # a logit: a probability could not be
    assert logits.max() > 1


@pytest.mark.parametrize(
    ('values', 'classes'),
    [
        ((4, WINDOW), (4, WINDOW, 3)),
        ((4, WINDOW + 2), (4, WINDOW + 2, 3)),
        ((4, WINDOW + 1), (4, WINDOW, 3)),
        ((4, WINDOW + 1), (4, WINDOW + 1, 2)),
        ((4, WINDOW + 1), (4, WINDOW + 1)),
        ((4, WINDOW + 1, 1), (4, WINDOW + 1, 3)),
    ],
)
def test_another_number_of_steps_or_classes_is_refused_by_name(
    values: tuple[int, ...], classes: tuple[int, ...]
) -> None:
    expected = r'expected \(N, 7\) and \(N, 7, 3\) as the network was built'
    with pytest.raises(ConfigError, match=expected):
        make()(torch.zeros(values), torch.zeros(classes))


def test_one_past_judged_with_several_next_values_equals_whole_sequences() -> None:
    model = make()
    values, classes = sequences(7, 3)
    state = model.encode(values[:, :-1], classes[:, :-1])
    for shift in (0.0, 1.5, -2.0):
        last = values[:, -1] + shift
        whole = torch.cat((values[:, :-1], last[:, None]), dim=1)
        expected = model(whole, classes)
        found = model.judge(state, last, classes[:, -1])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r'expected \(N, 6\)'):
        model.encode(values, classes)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
