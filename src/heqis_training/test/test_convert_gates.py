# SPDX-License-Identifier: Apache-2.0
"""The gates of conversions: what passes, what does not, and what cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.decision import Action
from heqis_core.manifest import Precision
from heqis_training.convert.gates import (
    MAX_BYTES,
    MIN_BARS,
    Agreement,
    agreement,
    cosine_gate,
    cosines,
    decision_gate,
    golden_distance,
    golden_gate,
    placement_gate,
    size_gate,
)
from heqis_training.convert.rknn_tool import Op

CONV, SOFTMAX = Op('Conv', 'INT8', 'NPU', 9, 'c'), Op('Softmax', 'INT8', 'CPU', 9, 's')
SELL, BUY = -0.1, 0.2
NONE = (Action.NONE, np.nan)


def test_one_operator_off_the_npu_breaks_the_placement_and_is_named() -> None:
    assert placement_gate([CONV, CONV]).passed
    broken = placement_gate([CONV, SOFTMAX])
    assert not broken.passed
    assert broken.found == 'Softmax on CPU (s)'


@pytest.mark.parametrize(
    ('precision', 'lowest', 'passes'),
    [
        ('fp16', 0.9999, True),
        ('fp16', 0.99989, False),
        ('int8', 0.999, True),
        ('int8', 0.9989, False),
    ],
)
def test_the_lowest_tile_decides(precision: Precision, lowest: float, passes: bool) -> None:
    assert cosine_gate('cosine', np.array([1.0, lowest, 1.0]), precision).passed is passes


def test_cosines_are_those_of_full_tiles_as_vectors() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 2, 1, 1)).astype(np.float32)
    turned = rows.copy()
    turned[3:6] *= -1
    turned[6] = 0  # the last tile is not full
    assert cosines(turned, rows, 3) == pytest.approx([1, -1])
    assert cosines(turned[:2], rows[:2], 3) == pytest.approx([1])
    assert len(cosines(rows, rows, 1)) == 7


def test_what_is_not_a_number_breaks_every_gate_of_numbers() -> None:
    rows = np.ones((3, 2), np.float32)
    broken = np.where(np.eye(3, 2) > 0, np.nan, rows).astype(np.float32)
    assert not cosine_gate('cosine', cosines(broken, rows, 3), 'int8').passed
    assert not golden_gate(golden_distance(broken, rows), 'int8').passed


@given(st.floats(-3, 3), st.floats(1e-3, 1.0))
def test_the_golden_distance_is_the_tolerance_that_just_holds(value: float, by: float) -> None:
    expected = np.array([value, 0.5])
    found = expected + np.array([by * (1 + abs(value)), 0.0])
    distance = golden_distance(found.astype(np.float32), expected.astype(np.float32))
    assert distance == pytest.approx(by, rel=1e-3, abs=1e-6)
    assert np.allclose(found, expected, rtol=distance * 1.01, atol=distance * 1.01)


def test_the_golden_gate_asks_what_the_compute_board_asks() -> None:
    assert golden_gate(9e-3, 'fp16').passed
    assert not golden_gate(1.1e-2, 'fp16').passed
    assert golden_gate(4e-2, 'int8').passed
    assert not golden_gate(6e-2, 'int8').passed


def judge(*bars: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return actions and scores as one row of event times."""
    return np.array([[a for a, _ in bars]], np.uint8), np.array([[s for _, s in bars]], np.float32)


def test_agreement_counts_bars_beyond_the_margin_and_all() -> None:
    reference = judge((3, -0.3), (1, -0.095), (1, 0.0), (2, 0.21), (2, 0.5), NONE)
    other = judge((3, -0.31), (3, -0.105), (2, 0.3), (1, 0.19), NONE, (2, 0.9))
    found = agreement(*reference, *other, (SELL, BUY), 0.02)
    # decided: 5; within the margin: -0.095 and 0.21; the same: the first alone
    assert found[:2] == (5, 3)
    assert found.far_agreed == pytest.approx(1 / 3)
    assert found.agreed == pytest.approx(1 / 5)
    assert 0.2 < found.score_moved <= 0.3


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), st.floats(0.001, 0.3))
def test_equal_decisions_agree_wholly_and_a_wider_margin_leaves_no_more_bars(
    scores: list[float], margin: float
) -> None:
    made = judge(*[(3 if s <= SELL else 2 if s >= BUY else 1, s) for s in scores])
    narrow = agreement(*made, *made, (SELL, BUY), margin)
    wide = agreement(*made, *made, (SELL, BUY), 2 * margin)
    assert narrow.agreed == 1.0
    assert narrow.far_agreed in (0.0, 1.0)
    assert narrow.bars == len(scores) >= narrow.far >= wide.far


def test_nothing_decided_is_no_agreement() -> None:
    assert agreement(*judge(NONE), *judge(NONE), (SELL, BUY), 0.0) == (0, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ('far', 'share', 'passes'),
    [
        (MIN_BARS, 0.995, True),
        (MIN_BARS, 0.9949, False),
        (MIN_BARS - 1, 1.0, False),
        (0, 0.0, False),
    ],
)
def test_decisions_must_agree_and_be_enough_to_tell(far: int, share: float, passes: bool) -> None:
    gate = decision_gate(Agreement(1000, far, share, 1.0, 0.0), 0.005)
    assert gate.passed is passes
    assert ('too few to tell' in gate.found) is (far < MIN_BARS)


def test_a_file_may_be_as_large_as_the_bound_and_no_larger() -> None:
    assert size_gate(MAX_BYTES).passed
    assert not size_gate(MAX_BYTES + 1).passed
