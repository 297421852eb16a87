# SPDX-License-Identifier: Apache-2.0
"""Where the bars of a training run come from: a selection of files, or the seeded simulator."""

from __future__ import annotations

import numpy as np

from heqis_core.bars import BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.simulator import MarketSimulator


def select(table: BarTable, symbols: list[str]) -> BarTable:
    """Return the table with these symbols only; raise DataError that names one that it lacks."""
    missing = [name for name in symbols if name not in table.symbols]
    if missing:
        known = ', '.join(table.symbols[:10]) + (' ...' if len(table.symbols) > 10 else '')
        raise DataError(f'no bars of {missing}; the data has {known}')
    chosen = sorted(set(symbols))
    columns = [table.symbols.index(name) for name in chosen]
    return BarTable(
        tuple(chosen),
        table.event_time_ns,
        np.ascontiguousarray(table.values[:, :, columns]),
        np.ascontiguousarray(table.status[:, columns]),
    )


def simulate(symbols: int | list[str], n_rows: int, seed: int) -> BarTable:
    """Return the first `n_rows` bars of a simulated market, or raise ConfigError for none."""
    if n_rows < 1:
        raise ConfigError(f'{n_rows} simulated bars, expected at least 1')
    simulator = MarketSimulator(symbols, seed)
    blocks = [simulator.next_block() for _ in range(n_rows)]
    order = np.argsort(np.array(blocks[0].symbols))
    return BarTable(
        tuple(blocks[0].symbols[index] for index in order),
        np.array([block.event_time_ns for block in blocks], np.int64),
        np.stack([block.values for block in blocks])[:, :, order],
        np.stack([block.status for block in blocks])[:, order],
    )
