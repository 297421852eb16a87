# SPDX-License-Identifier: Apache-2.0
"""Batch: the same decisions as frame by frame, and none on a bar that training has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action
from heqis_core.digest import signals_digest
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.simulator import MarketSimulator
from heqis_core.source import TableSource
from heqis_core.testing_bundle import write_test_bundle

N, SPLIT = 120, 70


@pytest.fixture(scope='module')
def table() -> BarTable:
    simulator = MarketSimulator(4, seed=2)
    return BarTable.from_blocks([simulator.next_block() for _ in range(N)])


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[SPLIT - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))


def load(path: Path) -> OrtEngine:
    engine = OrtEngine()
    engine.load(path)
    return engine


def test_the_first_decision_follows_the_training_data_with_warm_windows(bundle, table):
    made = list(decide_all(bundle, TableSource(table), load))
    assert [d.event_time_ns for d in made] == table.event_time_ns[SPLIT:].tolist()
    assert [d.seq for d in made] == list(range(SPLIT, N))
    assert (made[0].action != Action.NONE).any()


def test_without_that_start_every_bar_is_decided_and_the_common_part_is_equal(bundle, table):
    late = list(decide_all(bundle, TableSource(table), load))
    whole = list(decide_all(bundle, TableSource(table), load, start_after_training=False))
    assert len(whole) == N
    assert signals_digest(lambda: whole[SPLIT:]) == signals_digest(lambda: late)


def test_bars_that_come_later_change_no_earlier_decision(bundle, table):
    cut = SPLIT + 20
    values = table.values.copy()
    values[cut:, :4] *= 1.5
    changed = BarTable(table.symbols, table.event_time_ns, values, table.status)
    before = list(decide_all(bundle, TableSource(table), load))
    after = list(decide_all(bundle, TableSource(changed), load))
    first = cut - SPLIT
    assert signals_digest(lambda: before[:first]) == signals_digest(lambda: after[:first])
    assert any(
        not np.array_equal(a.score, b.score, equal_nan=True)
        for a, b in zip(before[first:], after[first:], strict=True)
    )
