# SPDX-License-Identifier: Apache-2.0
"""The Transformer trunk: who sees whom, in which order, and equality with torch's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.rope import Rope, rotary_tables
from heqis_training.models.transformer import Attention, TransformerTrunk
from heqis_training.settings import TransformerSettings

WINDOW, FEATURES, WIDTH, HEADS = 12, 5, 16, 2


def config(**changes: Any) -> TransformerSettings:
    values = {'window': WINDOW, 'width': WIDTH, 'heads': HEADS, 'layers': 2, 'feedforward': 32}
    return TransformerSettings(**(values | changes))


def make(**changes: Any) -> TransformerTrunk:
    torch.manual_seed(0)
    trunk: TransformerTrunk = TransformerTrunk(config(**changes), FEATURES).double().eval()
    return trunk


def windows(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, WINDOW, FEATURES, generator=generator, dtype=torch.float64)


def hidden_states(trunk: TransformerTrunk, window: Tensor) -> Tensor:
    """Return what the full stack makes of every row, not of the newest one alone."""
    rows = trunk.project(window)
    for block in trunk.blocks:
        rows = block(rows, newest_only=False)
    return trunk.norm(rows)


def changed_rows(trunk: TransformerTrunk, row: int) -> list[bool]:
    """Return which rows' states change with one row of the window."""
    window = windows()
    other = window.clone()
    other[:, row] += 1
    with torch.no_grad():
        difference = (hidden_states(trunk, other) - hidden_states(trunk, window)).abs()
    return [bool(size > 1e-9) for size in difference.amax(dim=(0, 2))]


def shift(rope: Rope, by: float) -> None:
    positions = torch.arange(1 - WINDOW, 1, dtype=torch.float64) + by
    rope.cosines, rope.sines = rotary_tables(positions, WIDTH // HEADS, 10000.0)


@settings(max_examples=25, deadline=None)
@given(by=st.floats(-1e6, 1e6), attention=st.sampled_from(['full', 'causal']))
def test_states_stay_when_all_positions_shift_by_any_amount(by: float, attention: str) -> None:
    trunk = make(attention=attention)
    ropes = [block.attention.rope for block in trunk.blocks]
    with torch.no_grad():
        for rope in ropes:
            shift(rope, 0)
        before = hidden_states(trunk, windows())
        for rope in ropes:
            shift(rope, by)
        torch.testing.assert_close(hidden_states(trunk, windows()), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize('position', ['rope', 'none'])
@pytest.mark.parametrize('attention', ['full', 'causal'])
@pytest.mark.parametrize('layers', [1, 3])
def test_asking_for_the_newest_row_alone_gives_what_the_full_stack_gives_it(
    position: str, attention: str, layers: int
) -> None:
    trunk = make(position=position, attention=attention, layers=layers)
    with torch.no_grad():
        expected = hidden_states(trunk, windows())[:, -1]
        torch.testing.assert_close(trunk(windows()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('row', range(WINDOW))
def test_causal_no_later_row_changes_an_earlier_state(row: int) -> None:
    changed = changed_rows(make(attention='causal', layers=3), row)
    assert changed == [later >= row for later in range(WINDOW)]


@pytest.mark.parametrize('row', [0, 5, WINDOW - 1])
def test_full_every_row_changes_every_state(row: int) -> None:
    assert changed_rows(make(), row) == [True] * WINDOW


@pytest.mark.parametrize(
    ('position', 'attention', 'order_counts'),
    [
        ('rope', 'full', True),
        ('none', 'full', False),
        ('rope', 'causal', True),
        ('none', 'causal', True),  # the second layer knows how much each row could see
    ],
)
def test_the_order_of_earlier_rows_counts_unless_there_are_no_positions(
    position: str, attention: str, order_counts: bool
) -> None:
    trunk = make(position=position, attention=attention)
    window = windows()
    mixed = window.clone()
    mixed[:, :-1] = window[:, :-1].flip(1)
    with torch.no_grad():
        difference = (trunk(mixed) - trunk(window)).abs().amax(dim=1)
    assert ((difference > 1e-3) if order_counts else (difference < 1e-9)).all()


def test_rope_turns_queries_and_keys_and_nothing_else() -> None:
    # with queries of zero every row counts the same, so nothing of the turning may be left
    outputs = []
    for position in ('rope', 'none'):
        trunk = make(position=position)
        with torch.no_grad():
            for block in trunk.blocks:
                block.attention.query.weight.zero_()
                block.attention.query.bias.zero_()
            outputs.append(trunk(windows()))
    assert torch.equal(*outputs)


@pytest.mark.parametrize('attention', ['full', 'causal'])
def test_without_positions_attention_is_that_of_torch(attention: str) -> None:
    torch.manual_seed(0)
    ours = Attention(config(position='none', attention=attention)).double()
    peer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key_value.weight)))
        peer.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key_value.bias)))
        peer.out_proj.load_state_dict(ours.output.state_dict())
        rows = torch.randn(3, WINDOW, WIDTH, dtype=torch.float64)
        closed = torch.ones(WINDOW, WINDOW).triu(1).bool() if attention == 'causal' else None
        expected, _ = peer(rows, rows, rows, attn_mask=closed, need_weights=False)
        torch.testing.assert_close(ours(rows, newest_only=False), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            ours(rows, newest_only=True), expected[:, -1:], rtol=0, atol=1e-9
        )


def test_more_layers_and_width_mean_more_weights_and_tables_are_none_of_them() -> None:
    trunk = make(layers=3)
    assert len(trunk.blocks) == 3
    assert trunk(windows()).shape == (4, trunk.width) == (4, WIDTH)
    assert set(trunk.state_dict()) == {name for name, _ in trunk.named_parameters()}


def test_heads_that_do_not_divide_the_width_or_are_odd_are_refused() -> None:
    with pytest.raises(ConfigError, match='width is 16, expected a multiple of its 3 heads'):
        make(heads=3)
    with pytest.raises(ConfigError, match='a head has 5 numbers, expected an even number'):
        make(width=10)
    assert make(width=10, position='none').width == 10
