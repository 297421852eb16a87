# SPDX-License-Identifier: Apache-2.0
"""What the gateway's tests share: a small table of simulated bars and a bundle that fits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.simulator import MarketSimulator
from heqis_core.source import tabulate
from heqis_core.testing_bundle import tiny_bundle

SPLIT = 80


@pytest.fixture(scope='session')
def table() -> BarTable:
    """Return 200 simulated days of 4 symbols."""
    return tabulate(MarketSimulator(4, seed=11), 200)


@pytest.fixture(scope='session')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle whose training data ends before the table does."""
    folder: Path = tmp_path_factory.mktemp('bundles')
    return tiny_bundle(folder, table, split=SPLIT)
