# SPDX-License-Identifier: Apache-2.0
"""The GRU generator: shapes, units, order of the window."""

from __future__ import annotations

import torch

from heqis_training.models.gru import GruGenerator


def make(return_scale: float = 0.02) -> GruGenerator:
    torch.manual_seed(0)
    return GruGenerator(5, 8, return_scale).eval()


def test_outputs_have_their_shapes_and_probabilities_add_up() -> None:
    log_return, logits, probabilities = make()(torch.randn(7, 12, 5))
    assert log_return.shape == (7,)
    assert logits.shape == probabilities.shape == (7, 3)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(7))
    assert torch.equal(probabilities.argmax(dim=1), logits.argmax(dim=1))


def test_the_log_return_is_in_units_of_the_labels_spread() -> None:
    window = torch.randn(7, 12, 5)
    assert torch.allclose(make(0.04)(window)[0], 2 * make(0.02)(window)[0])


def test_the_newest_row_counts_and_the_order_too() -> None:
    window = torch.randn(3, 12, 5)
    newest = window.clone()
    newest[:, -1] += 1
    assert not torch.allclose(make()(newest)[1], make()(window)[1], atol=1e-4)
    assert not torch.allclose(make()(window.flip(1))[1], make()(window)[1], atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    window = torch.randn(6, 12, 5)
    alone = make()(window[2:3])[1]
    assert torch.allclose(make()(window)[1][2:3], alone, atol=1e-6)
