# SPDX-License-Identifier: Apache-2.0
"""Players: a step is AdamW on clipped gradients, and a state brings everything back."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import Tensor, nn

from heqis_training.device import Device
from heqis_training.player import Best, Player, make_player
from heqis_training.settings import FitSettings

FIT = FitSettings(learning_rate=0.01, weight_decay=0.1, gradient_clip=0.5)


def make(fit: FitSettings = FIT) -> Player:
    torch.manual_seed(0)
    return make_player('net', nn.Linear(4, 2), fit, Device())


def learn(player: Player, steps: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        (100 * player.network(x).square().sum()).backward()
        player.step(Device())


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def equal(one: object, other: object) -> bool:
    """Return whether two trees of tensors and plain values are the same bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_step_is_adamw_on_a_gradient_of_at_most_the_clipped_norm() -> None:
    player = make()
    torch.manual_seed(0)
    other = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    for scale in (1e-3, 100.0, 3.0):
        for network in (player.network, other):
            x = torch.full((3, 4), scale)
            network(x).square().sum().backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters()))
        for p in other.parameters():
            p.grad *= min(1.0, 0.5 / (norm + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        player.step(Device())
        assert all(p.grad is None for p in player.network.parameters())
        torch.testing.assert_close(weights(player.network), weights(other), rtol=0, atol=1e-6)


def test_a_state_brings_weights_moments_and_schedule_back_bit_for_bit() -> None:
    player = make(msgspec.structs.replace(FIT, plateau_patience=0))
    learn(player, 3)
    player.scheduler.step(1.0)
    kept = player.state()
    copy = player.state()
    learn(player, 2)
    player.scheduler.step(2.0)
    assert player.learning_rate == pytest.approx(0.001)
    assert not equal(player.state(), kept)
    assert equal(kept, copy)  # what trains on does not reach into a state that was taken
    for _ in range(2):  # a state can be used more than once
        player.load_state(kept)
        assert equal(player.state(), kept)
        assert player.learning_rate == pytest.approx(0.01)
        learn(player, 2)
        after = player.state()
    player.load_state(kept)
    learn(player, 2)
    assert equal(player.state(), after)


def test_the_learning_rate_falls_after_a_plateau_and_not_while_it_improves() -> None:
    player = make(msgspec.structs.replace(FIT, plateau_patience=2, plateau_factor=0.5))
    rates = []
    for loss in (5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 2.0):
        player.scheduler.step(loss)
        rates.append(player.learning_rate)
    assert rates == pytest.approx([0.01] * 4 + [0.005] * 3)


def test_the_best_state_is_that_of_the_lowest_finite_loss() -> None:
    player, best = make(), Best()
    best.restore(player.network)
    assert not player.network.training
    kept = []
    for epoch, loss in enumerate((math.nan, 3.0, math.inf, 2.0, 2.0, 4.0), start=1):
        learn(player, 1)
        kept.append(weights(player.network))
        assert best.offer(epoch, loss, player.network) == (epoch in (2, 4))
    assert (best.epoch, best.loss) == (4, 2.0)
    player.network.train()
    best.restore(player.network)
    assert torch.equal(weights(player.network), kept[3])
    assert not player.network.training
    learn(player, 1)
    assert torch.equal(torch.cat([x.flatten() for x in best.network.values()]), kept[3])
