# SPDX-License-Identifier: Apache-2.0
"""The GRU generator: a window in; next-bar log return, class logits and probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUTPUTS = ('log_return', 'logits', 'probabilities')


class GruGenerator(nn.Module):
    """One GRU layer, and over its last state a linear head for the return and one for classes.

    Args:
        n_features: F, columns of a window row.
        hidden: width of the GRU.
        return_scale: spread of the training labels; the head learns in units of it.
        dropout: share of the last state that is dropped while training.
    """

    return_scale: Tensor

    def __init__(
        self, n_features: int, hidden: int, return_scale: float, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.gru = nn.GRU(n_features, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.return_head = nn.Linear(hidden, 1)
        self.class_head = nn.Linear(hidden, 3)
        self.register_buffer('return_scale', torch.tensor(return_scale, dtype=torch.float32))

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log return (N,), logits (N, 3) and probabilities (N, 3) of windows (N, W, F)."""
        _, last = self.gru(window)
        state = self.dropout(last[0])
        logits = self.class_head(state)
        log_return = self.return_head(state).squeeze(1) * self.return_scale
        return log_return, logits, torch.softmax(logits, dim=1)
