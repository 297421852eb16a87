# SPDX-License-Identifier: Apache-2.0
"""Batch: the same decisions as frame by frame, and none on a bar that training has seen."""

from __future__ import annotations

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action
from heqis_core.digest import signals_digest
from heqis_core.io.ort_engine import open_engine
from heqis_core.source import TableSource
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle

N, SPLIT = 120, 70


@pytest.fixture(scope='module')
def table() -> BarTable:
    return simulated_table(4, N, seed=2)


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[SPLIT - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))


def test_the_first_decision_follows_the_training_data_with_warm_windows(bundle, table):
    made = list(decide_all(bundle, TableSource(table), open_engine))
    assert [d.event_time_ns for d in made] == table.event_time_ns[SPLIT:].tolist()
    assert [d.seq for d in made] == list(range(SPLIT, N))
    assert (made[0].action != Action.NONE).any()


def test_without_that_start_every_bar_is_decided_and_the_common_part_is_equal(bundle, table):
    late = list(decide_all(bundle, TableSource(table), open_engine))
    whole = list(decide_all(bundle, TableSource(table), open_engine, start_after_training=False))
    assert len(whole) == N
    assert signals_digest(lambda: whole[SPLIT:]) == signals_digest(lambda: late)


def test_bars_that_come_later_change_no_earlier_decision(bundle, table):
    cut = SPLIT + 20
    values = table.values.copy()
    values[cut:, :4] *= 1.5
    changed = BarTable(table.symbols, table.event_time_ns, values, table.status)
    before = list(decide_all(bundle, TableSource(table), open_engine))
    after = list(decide_all(bundle, TableSource(changed), open_engine))
    first = cut - SPLIT
    assert signals_digest(lambda: before[:first]) == signals_digest(lambda: after[:first])
    assert any(
        not np.array_equal(a.score, b.score, equal_nan=True)
        for a, b in zip(before[first:], after[first:], strict=True)
    )
