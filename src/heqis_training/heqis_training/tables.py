# SPDX-License-Identifier: Apache-2.0
"""Where the bars of a training run come from: the seeded simulator."""

from __future__ import annotations

from heqis_core.bars import BarTable
from heqis_core.errors import ConfigError
from heqis_core.simulator import MarketSimulator


def simulate(symbols: int | list[str], n_rows: int, seed: int) -> BarTable:
    """Return the first `n_rows` bars of a simulated market, or raise ConfigError for none."""
    if n_rows < 1:
        raise ConfigError(f'{n_rows} simulated bars, expected at least 1')
    simulator = MarketSimulator(symbols, seed)
    table = BarTable.from_blocks([simulator.next_block() for _ in range(n_rows)])
    return table.select(table.symbols)
