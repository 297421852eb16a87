# SPDX-License-Identifier: Apache-2.0
"""A corrected block: what comes after it is as if it had been right from the start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from heqis_core.bars import BarStatus
from heqis_core.bundle import Bundle
from heqis_core.io.ort_engine import open_engine
from heqis_core.pipeline import FeaturePipeline
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle

N = 60


@pytest.fixture(scope='module')
def table():
    return simulated_table(4, N, seed=5)


@pytest.fixture(scope='module')
def bundle(table, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp('bundles')
    path = write_test_bundle(folder, trained_until_ns=int(table.event_time_ns[10]))
    return Bundle.load(path)


def make(bundle: Bundle, table, amendable: int) -> FeaturePipeline:
    encoder = open_engine(bundle.encoder_path)
    return bundle.pipeline(table.symbols, encoder, amendable=amendable)


def same(one, other) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize(('wrong', 'late_by'), [(40, 0), (40, 1), (45, 2), (52, 2)])
def test_what_follows_is_bit_for_bit_that_of_a_stream_without_the_error(
    bundle, table, wrong, late_by
) -> None:
    right, shaken = make(bundle, table, 0), make(bundle, table, 3)
    for k in range(N):
        block = table.block(k)
        given = block
        if k == wrong:
            given = replace(block, values=block.values * 1.07)
        expected, found = right.step(k, block), shaken.step(k, given)
        in_error = wrong <= k <= wrong + late_by
        if not in_error:
            assert same(expected, found), k
        elif k == wrong:
            assert not same(expected, found), 'the error shows, or this tests nothing'
        if k == wrong + late_by:
            assert shaken.amend(replace(table.block(wrong), revision=1))


def test_a_missing_bar_that_comes_late_counts_from_then_on(bundle, table) -> None:
    right, shaken = make(bundle, table, 0), make(bundle, table, 1)
    for k in range(50):
        block = table.block(k)
        status = block.status.copy()
        if k == 48:
            status[1] = BarStatus.NO_BAR
        expected, found = right.step(k, block), shaken.step(k, replace(block, status=status))
        if k == 48:
            assert shaken.amend(replace(block, revision=1))
    assert same(expected, found)


def test_a_block_out_of_reach_changes_nothing(bundle, table) -> None:
    pipeline = make(bundle, table, 2)
    for k in range(30):
        pipeline.step(k, table.block(k))
    before = pipeline.save()
    assert not pipeline.amend(replace(table.block(27), revision=1))
    after = pipeline.save()
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    assert pipeline.amend(replace(table.block(28), revision=1))
