# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al., 2021): it turns queries and keys inside an attention head.

It never touches the input features. Two rows then meet at a score that depends on how far apart
they are, and not on where they stand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError


def rotary_tables(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines, float64 (P, width) each, that turn rows at `positions`.

    Numbers k and k + width/2 of a head are one plane; position p turns it by p·base^(−2k/width).

    Args:
        positions: (P,), any real numbers.
        width: numbers of a head, even.
        base: of the angles, above 1.

    Raises ConfigError for an odd width.
    """
    if width < 2 or width % 2:
        raise ConfigError(f'rope: a head has {width} numbers, expected an even number')
    planes = torch.arange(width // 2, dtype=torch.float64)
    angles = positions.to(torch.float64)[:, None] * base ** (-2 * planes / width)
    sines = angles.sin()
    return angles.cos().repeat(1, 2), torch.cat((-sines, sines), dim=1)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return `heads` (…, P, width), turned by tables (P, width) of `rotary_tables`."""
    half = heads.shape[-1] // 2
    return heads * cosines + heads.roll(half, dims=-1) * sines


class Rope(nn.Module):
    """Turn heads over a window of `length` rows; the newest row is at position 0, so it stays.

    The tables are buffers, neither trained nor in a checkpoint. Arguments and errors: see
    `rotary_tables`.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, length: int, width: int, base: float) -> None:
        super().__init__()
        cosines, sines = rotary_tables(torch.arange(1 - length, 1), width, base)
        self.register_buffer('cosines', cosines.float(), persistent=False)
        self.register_buffer('sines', sines.float(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Return heads (N, heads, length, width), each row turned by its position."""
        return rotate(heads, self.cosines, self.sines)
