# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding: relative, norm-preserving, equal to its definition by complex numbers."""

from __future__ import annotations

import cmath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heqis_core.errors import ConfigError
from heqis_training.models.rope import Rope, rotary_tables, rotate

widths = st.sampled_from([2, 4, 8, 16, 64])
bases = st.sampled_from([10.0, 500.0, 10000.0])
seeds = st.integers(0, 2**31)


def heads(seed: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 3, rows, width, generator=generator, dtype=torch.float64)
    return query, key


def scores(query: Tensor, key: Tensor, positions: Tensor, base: float) -> Tensor:
    tables = rotary_tables(positions, query.shape[-1], base)
    return rotate(query, *tables) @ rotate(key, *tables).transpose(-1, -2)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, width=widths, base=bases, shift=st.floats(-1e6, 1e6))
def test_scores_stay_when_all_positions_shift_by_any_amount(
    seed: int, width: int, base: float, shift: float
) -> None:
    query, key = heads(seed, 12, width)
    positions = torch.arange(12, dtype=torch.float64)
    torch.testing.assert_close(
        scores(query, key, positions + shift, base),
        scores(query, key, positions, base),
        rtol=0,
        atol=1e-6,
    )


def test_scores_do_change_when_one_position_moves() -> None:
    query, key = heads(0, 12, 8)
    positions = torch.arange(12, dtype=torch.float64)
    moved = positions.clone()
    moved[4] += 1
    difference = (
        scores(query, key, moved, 10000.0) - scores(query, key, positions, 10000.0)
    ).abs()
    others = torch.arange(12) != 4
    assert (difference[..., 4, others] > 1e-4).all()
    assert (difference[..., others, :][..., others] < 1e-12).all()
    assert (difference[..., 4, 4] < 1e-12).all()  # it moved with itself


@settings(max_examples=40, deadline=None)
@given(seed=seeds, width=widths, base=bases)
def test_turning_keeps_the_length_of_every_row(seed: int, width: int, base: float) -> None:
    query, _ = heads(seed, 9, width)
    turned = rotate(query, *rotary_tables(torch.arange(-4, 5), width, base))
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1), rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, width=widths, m=st.integers(-50, 50), n=st.integers(-50, 50))
def test_a_score_is_the_real_part_of_the_complex_definition(
    seed: int, width: int, m: int, n: int
) -> None:
    query, key = heads(seed, 1, width)
    found = rotate(query, *rotary_tables(torch.tensor([m]), width, 10000.0)) * rotate(
        key, *rotary_tables(torch.tensor([n]), width, 10000.0)
    )
    q, k = query[0, 0, 0].tolist(), key[0, 0, 0].tolist()
    expected = 0.0
    for plane in range(width // 2):
        theta = 10000.0 ** (-2 * plane / width)
        a = complex(q[plane], q[plane + width // 2])
        b = complex(k[plane], k[plane + width // 2])
        expected += (a * b.conjugate() * cmath.exp(1j * (m - n) * theta)).real
    assert found[0, 0, 0].sum().item() == pytest.approx(expected, abs=1e-9)


def test_tables_of_the_module_are_the_rounded_float64_ones_up_to_the_newest_row_at_0() -> None:
    rope = Rope(20, 8, 10000.0)
    cosines, sines = rotary_tables(torch.arange(-19, 1), 8, 10000.0)
    assert cosines.dtype == sines.dtype == torch.float64
    assert torch.equal(rope.cosines, cosines.float())
    assert torch.equal(rope.sines, sines.float())
    query = torch.randn(2, 3, 20, 8)
    assert torch.equal(rope(query)[:, :, -1], query[:, :, -1])
    assert not torch.allclose(rope(query)[:, :, -2], query[:, :, -2])


def test_tables_are_neither_trained_nor_kept_in_checkpoints() -> None:
    rope = Rope(20, 8, 10000.0)
    assert not list(rope.parameters())
    assert not rope.state_dict()
    assert {name for name, _ in rope.named_buffers()} == {'cosines', 'sines'}


@pytest.mark.parametrize('width', [0, 1, 7])
def test_a_head_of_odd_width_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f'a head has {width} numbers, expected an even number'):
        Rope(20, width, 10000.0)
