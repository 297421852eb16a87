# SPDX-License-Identifier: Apache-2.0
"""Bar tables: made of blocks, cut to symbols, read as blocks again."""

from __future__ import annotations

import numpy as np
import pytest

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import DataError
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import simulated_table


def test_blocks_of_a_table_are_the_blocks_that_it_was_made_of() -> None:
    simulator = MarketSimulator(3, 1)
    blocks = [simulator.next_block() for _ in range(12)]
    table = BarTable.from_blocks(blocks)
    for index, block in enumerate(blocks):
        again = table.block(index, ingest_ns=5)
        assert (again.event_time_ns, again.symbols, again.ingest_ns) == (
            block.event_time_ns,
            block.symbols,
            5,
        )
        np.testing.assert_array_equal(again.values, block.values)
        np.testing.assert_array_equal(again.status, block.status)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='at least one block'):
        BarTable.from_blocks([])


def test_volume_is_seen_only_if_some_bar_has_one() -> None:
    table = simulated_table(2, 5, 1)
    assert table.has_volume
    table.values[:, 4] = np.nan
    assert not table.has_volume


def test_a_choice_keeps_the_bars_of_the_chosen_and_nothing_else() -> None:
    table = simulated_table(5, 40, 1)
    names = [table.symbols[3], table.symbols[1]]
    chosen = table.select(names)
    assert chosen.symbols == tuple(sorted(names))
    np.testing.assert_array_equal(chosen.values, table.values[:, :, [1, 3]])
    np.testing.assert_array_equal(chosen.status, table.status[:, [1, 3]])


def test_event_times_at_which_no_chosen_symbol_has_a_bar_stay() -> None:
    table = simulated_table(2, 10, 1)
    table.status[4, 0] = BarStatus.NO_BAR
    assert len(table.select([table.symbols[0]])) == 10


def test_an_unknown_symbol_is_named_with_some_that_are_there() -> None:
    table = simulated_table(2, 5, 1)
    with pytest.raises(DataError, match=rf'no bars of XX; the data has {table.symbols[0]}'):
        table.select([table.symbols[0], 'XX'])
