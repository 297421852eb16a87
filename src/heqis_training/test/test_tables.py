# SPDX-License-Identifier: Apache-2.0
"""Tables to train on: the simulator's bars in the order of a table, and a choice of symbols."""

from __future__ import annotations

import numpy as np
import pytest

from heqis_core.errors import ConfigError
from heqis_core.simulator import MarketSimulator
from heqis_training import tables


def test_simulated_bars_are_the_simulators_with_symbols_in_order() -> None:
    names = ['600519.SH', '000001.SZ', '300750.SZ']
    table = tables.simulate(names, 30, seed=4)
    assert table.symbols == tuple(sorted(names))
    simulator = MarketSimulator(names, 4)
    for t in range(30):
        block = simulator.next_block()
        assert table.event_time_ns[t] == block.event_time_ns
        for s, name in enumerate(table.symbols):
            source = block.symbols.index(name)
            np.testing.assert_array_equal(table.values[t, :, s], block.values[:, source])
            assert table.status[t, s] == block.status[source]


def test_the_seed_decides_and_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = tables.simulate(3, 20, 1), tables.simulate(3, 40, 1)
    np.testing.assert_array_equal(short.values, long.values[:20])
    assert not np.array_equal(short.values, tables.simulate(3, 20, 2).values)


def test_no_bar_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match='0 simulated bars, expected at least 1'):
        tables.simulate(3, 0, 1)
