# SPDX-License-Identifier: Apache-2.0
"""What the gateway's tests share: a small table of simulated bars and a bundle that fits it."""

from __future__ import annotations

import pytest

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle

SPLIT = 80


@pytest.fixture(scope='session')
def table() -> BarTable:
    """Return 200 simulated days of 4 symbols."""
    return simulated_table(4, 200, seed=11)


@pytest.fixture(scope='session')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle whose training data ends before the table does."""
    until_ns = int(table.event_time_ns[SPLIT - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))
