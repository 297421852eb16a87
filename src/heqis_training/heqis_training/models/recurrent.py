# SPDX-License-Identifier: Apache-2.0
"""The recurrent trunks of generators: GRU and LSTM, from a window to their last state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heqis_training.settings import GruSettings, LstmSettings


class GruTrunk(nn.Module):
    """A GRU (Cho et al., 2014) over the rows of a window; `width` is that of its state."""

    def __init__(self, settings: GruSettings, n_features: int) -> None:
        super().__init__()
        self.gru = nn.GRU(n_features, settings.hidden, settings.layers, batch_first=True)
        self.width = settings.hidden

    def forward(self, window: Tensor) -> Tensor:
        """Return the last state (N, width) of windows (N, W, F)."""
        _, states = self.gru(window)
        last: Tensor = states[-1]
        return last


class LstmTrunk(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber, 1997), in one or both directions.

    Each direction gives the state after its last row, so that both have seen the whole window;
    `width` is that of all directions together.
    """

    def __init__(self, settings: LstmSettings, n_features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            n_features,
            settings.hidden,
            settings.layers,
            batch_first=True,
            bidirectional=settings.bidirectional,
        )
        self.width = settings.hidden * (2 if settings.bidirectional else 1)

    def forward(self, window: Tensor) -> Tensor:
        """Return the last state (N, width) of windows (N, W, F)."""
        _, (states, _) = self.lstm(window)
        if self.lstm.bidirectional:
            return torch.cat((states[-2], states[-1]), dim=1)
        last: Tensor = states[-1]
        return last
