# SPDX-License-Identifier: Apache-2.0
"""The Transformer trunk of a generator: pre-norm encoder blocks over the rows of a window.

Only the newest row is forecast from, so the last block asks for that row alone. Attention is
spelled out: it trains faster than the fused call at these sizes and exports to plain operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heqis_core.errors import ConfigError
from heqis_training.models.rope import Rope
from heqis_training.settings import TransformerSettings


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017) over the rows of a window.

    Raises ConfigError for heads that do not divide the width.
    """

    later: Tensor

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width, self.heads, self.window = settings.width, settings.heads, settings.window
        if width % self.heads:
            raise ConfigError(
                f'transformer: width is {width}, expected a multiple of its {self.heads} heads'
            )
        self.head_width = width // self.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.rope: Rope | None = None
        if settings.position == 'rope':
            self.rope = Rope(self.window, self.head_width, settings.rope_base)
        self.causal = settings.attention == 'causal'
        closed = torch.full((self.window, self.window), -torch.inf).triu(1)
        self.register_buffer('later', closed, persistent=False)

    def forward(self, rows: Tensor, newest_only: bool) -> Tensor:
        """Return what each of the rows (N, W, width) gathers, or what the newest one does."""
        asking = rows[:, -1:] if newest_only else rows
        query = self._split(self.query(asking), 1 if newest_only else self.window)
        key, value = self._split(self.key_value(rows), self.window).split(self.heads, dim=1)
        if self.rope is not None:
            key = self.rope(key)
            if not newest_only:  # the newest row is at position 0, where nothing turns
                query = self.rope(query)
        scores = (query * self.head_width**-0.5) @ key.transpose(2, 3)
        if self.causal and not newest_only:  # no row is later than the newest one
            scores = scores + self.later
        gathered = torch.softmax(scores, dim=3) @ value
        output: Tensor = self.output(gathered.transpose(1, 2).reshape(asking.shape))
        return output

    def _split(self, rows: Tensor, count: int) -> Tensor:
        """Return (N, heads, count, head width); plain numbers keep the exported shapes plain."""
        heads = rows.shape[2] // self.head_width
        return rows.view(-1, count, heads, self.head_width).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a feed-forward network, each on normalised rows and added to its input."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(settings)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, settings.feedforward),
            nn.ReLU(),
            nn.Linear(settings.feedforward, width),
        )

    def forward(self, rows: Tensor, newest_only: bool) -> Tensor:
        """Return the rows (N, W, width), or the newest one (N, 1, width), renewed."""
        asking = rows[:, -1:] if newest_only else rows
        renewed = asking + self.attention(self.attention_norm(rows), newest_only)
        return renewed + self.feedforward(self.feedforward_norm(renewed))


class TransformerTrunk(nn.Module):
    """Blocks over a linear projection of each row; `width` is that of the model.

    Raises ConfigError for a width that the heads do not divide, or a rotary head of odd width.
    """

    def __init__(self, settings: TransformerSettings, n_features: int) -> None:
        super().__init__()
        self.width = settings.width
        self.project = nn.Linear(n_features, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, window: Tensor) -> Tensor:
        """Return the newest row's state (N, width) of windows (N, W, F)."""
        rows = self.project(window)
        *earlier, last = self.blocks
        for block in earlier:
            rows = block(rows, newest_only=False)
        state: Tensor = self.norm(last(rows, newest_only=True).squeeze(1))
        return state
