# SPDX-License-Identifier: Apache-2.0
"""The recurrent trunks: their last state, in each direction and layer, checked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from heqis_training.models.recurrent import GruTrunk, LstmTrunk
from heqis_training.settings import GruSettings, LstmSettings

WINDOW, FEATURES, HIDDEN = 12, 5, 8

KINDS = ['gru', 'gru2', 'lstm', 'bilstm2']


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = 2 if kind.endswith('2') else 1
    if kind.startswith('gru'):
        return GruTrunk(GruSettings(hidden=HIDDEN, layers=layers), FEATURES)
    return LstmTrunk(
        LstmSettings(hidden=HIDDEN, layers=layers, bidirectional=kind.startswith('bi')), FEATURES
    )


def windows(n: int = 4) -> Tensor:
    return torch.randn(n, WINDOW, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('kind', KINDS)
def test_the_state_has_the_width_that_the_trunk_says(kind: str) -> None:
    trunk = make(kind)
    assert trunk(windows()).shape == (4, trunk.width)
    assert trunk.width == (2 * HIDDEN if kind.startswith('bi') else HIDDEN)


@pytest.mark.parametrize('kind', KINDS)
def test_every_row_counts_and_their_order_too(kind: str) -> None:
    trunk, window = make(kind), windows()
    with torch.no_grad():
        before = trunk(window)
        for row in range(WINDOW):
            other = window.clone()
            other[:, row] += 1
            assert not torch.equal(trunk(other), before)
        assert not torch.allclose(trunk(window.flip(1)), before, atol=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_the_state_is_that_of_the_last_layer_so_every_weight_has_a_part_in_it(kind: str) -> None:
    trunk = make(kind)
    trunk(windows()).square().sum().backward()
    assert all(weight.grad is not None for weight in trunk.parameters())
    assert all((weight.grad != 0).any() for weight in trunk.parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_a_window_does_not_depend_on_its_neighbours(kind: str) -> None:
    trunk, window = make(kind), windows(6)
    with torch.no_grad():
        torch.testing.assert_close(trunk(window)[2:3], trunk(window[2:3]), rtol=0, atol=1e-6)


def test_the_gru_follows_its_equations_step_by_step() -> None:
    trunk, window = make('gru').double(), windows().double()
    w_in, w_state, b_in, b_state = (weight.detach() for weight in trunk.gru.parameters())
    state = torch.zeros(4, HIDDEN, dtype=torch.float64)
    for row in window.unbind(dim=1):
        r_in, z_in, n_in = (row @ w_in.T + b_in).chunk(3, dim=1)
        r_state, z_state, n_state = (state @ w_state.T + b_state).chunk(3, dim=1)
        reset, update = torch.sigmoid(r_in + r_state), torch.sigmoid(z_in + z_state)
        new = torch.tanh(n_in + reset * n_state)
        state = (1 - update) * new + update * state
    torch.testing.assert_close(trunk(window).detach(), state, rtol=0, atol=1e-9)


def test_both_directions_give_the_state_after_their_last_row() -> None:
    both = LstmTrunk(LstmSettings(hidden=HIDDEN, bidirectional=True), FEATURES)
    one = LstmTrunk(LstmSettings(hidden=HIDDEN), FEATURES)
    weights = both.lstm.state_dict()
    window = windows()
    with torch.no_grad():
        state = both(window)
        for part, suffix, seen in ((0, '', window), (1, '_reverse', window.flip(1))):
            one.lstm.load_state_dict(
                {name: weights[f'{name}{suffix}'] for name in one.lstm.state_dict()}
            )
            expected = state[:, part * HIDDEN : (part + 1) * HIDDEN]
            torch.testing.assert_close(one(seen), expected, rtol=0, atol=1e-6)
