# SPDX-License-Identifier: Apache-2.0
"""The training loop: it learns, stops early, keeps the best state and repeats itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError, DataError
from heqis_training.train import BatchLoss, Epoch, FitSettings, deterministic, evaluate, fit


def linear_problem(n_windows: int = 256) -> tuple[nn.Module, BatchLoss, int]:
    """Return a model, its loss and the number of rows of a noiseless linear problem."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_windows, 4, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0])
    model = nn.Linear(4, 1)

    def loss(index: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x[index])[:, 0], y[index])

    return model, loss, n_windows


def ignore(epoch: Epoch) -> None:
    """Take an epoch and do nothing."""


def test_the_loss_goes_down_and_every_epoch_is_reported() -> None:
    seen: list[Epoch] = []
    with deterministic(1):
        model, loss, count = linear_problem()
        settings = FitSettings(epochs=30, learning_rate=0.1, batch=32)
        history = fit('m', model, (loss, count), (loss, count), settings, seen.append)
    assert seen == history
    assert [epoch.number for epoch in history] == list(range(1, len(history) + 1))
    assert [epoch.last for epoch in history] == [False] * (len(history) - 1) + [True]
    assert history[-1].validation_loss < 0.01 * history[0].validation_loss
    assert not model.training


def test_the_best_state_comes_back_and_patience_ends_the_training() -> None:
    weights: list[Tensor] = []
    scripted = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    with deterministic(1):
        model, loss, count = linear_problem()

        def validation(index: Tensor) -> Tensor:
            weights.append(model.weight.detach().clone())  # type: ignore[operator, union-attr]
            return torch.tensor(scripted[len(weights) - 1])

        settings = FitSettings(epochs=6, patience=3)
        history = fit('m', model, (loss, count), (validation, 8), settings, ignore)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5]
    assert history[-1].best == 2
    assert torch.equal(model.weight, weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[1], weights[4])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def train(seed: int) -> Tensor:
        with deterministic(seed):
            model, loss, count = linear_problem()
            fit('m', model, (loss, count), (loss, count), FitSettings(epochs=3), ignore)
            return model.weight.detach().clone()  # type: ignore[operator, union-attr]

    torch.manual_seed(123)
    first = train(7)
    torch.manual_seed(456)
    assert torch.equal(train(7), first)
    assert not torch.equal(train(8), first)


def test_what_was_set_before_comes_back_even_after_an_error() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()

    def fail() -> None:
        with deterministic(1):
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_never_finite_is_refused() -> None:
    with deterministic(1):
        model, loss, count = linear_problem()

        def nan(index: Tensor) -> Tensor:
            return torch.tensor(math.nan)

        with pytest.raises(DataError, match='m: no epoch of 5 had a finite validation loss'):
            fit('m', model, (loss, count), (nan, 4), FitSettings(), ignore)


def test_an_epoch_draws_at_most_max_windows() -> None:
    drawn: list[Tensor] = []
    with deterministic(1):
        model, loss, count = linear_problem()

        def counted(index: Tensor) -> Tensor:
            drawn.append(index)
            return loss(index)

        settings = FitSettings(epochs=2, max_windows=100, batch=64)
        fit('m', model, (counted, count), (loss, count), settings, ignore)
    assert [len(index) for index in drawn] == [64, 36, 64, 36]
    assert len(torch.cat(drawn[:2]).unique()) == 100
    assert not torch.equal(drawn[0], drawn[2])


def test_the_mean_of_an_evaluation_counts_windows_and_not_batches() -> None:
    values = torch.arange(5000, dtype=torch.float64)
    found = evaluate(nn.Linear(1, 1), lambda index: values[index].mean(), 5000, 10_000)
    assert found == pytest.approx(2499.5)
    spread = evaluate(nn.Linear(1, 1), lambda index: values[index].mean(), 5000, 100)
    assert spread == pytest.approx(values[::50].mean().item())


@pytest.mark.parametrize(
    'wrong',
    [
        {'epochs': 0},
        {'patience': 0},
        {'batch': -1},
        {'max_windows': 0},
        {'learning_rate': 0.0},
        {'learning_rate': math.inf},
        {'gradient_clip': -1.0},
    ],
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f'{next(iter(wrong))} is '):
        FitSettings(**wrong)  # type: ignore[arg-type]
