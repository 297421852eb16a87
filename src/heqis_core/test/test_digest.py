# SPDX-License-Identifier: Apache-2.0
"""Key order and digest do not depend on how frames come or how much memory there is.

That the digest is the documented one is tested with the journal, in test_journal.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.digest import in_key_order, rows, signals_digest
from heqis_core.frame import N_STAGES

SYMBOLS = ('000001.SZ', '600000.SH', '600519.SH')


def make(index: int, symbols: tuple[str, ...] = SYMBOLS, bundle: str = 'b') -> Decisions:
    """Return the frame that belongs to an index."""
    n = len(symbols)
    score = np.random.default_rng(index).normal(size=n).astype(np.float32)
    return Decisions(
        's',
        7,
        index,
        1000 + index,
        0,
        bundle,
        'gru',
        symbols,
        np.full(n, Action.BUY, np.uint8),
        np.full(n, Reason.UP, np.uint32),
        score,
        np.ones(n, np.float32),
        np.zeros((n, 3), np.float32),
        np.zeros(n, np.float32),
        np.full(n, 2000 + index, np.int64),
        np.ones(N_STAGES, np.int64),
    )


def digest(frames: list[Decisions]) -> str:
    return signals_digest(lambda: frames)


def test_symbols_are_walked_in_groups_without_a_difference() -> None:
    frames = [make(i, SYMBOLS if i % 3 else SYMBOLS[:2]) for i in range(30)]
    names = [item.symbol for item in in_key_order(lambda: frames, max_cells=25)]
    assert names == sorted(SYMBOLS)
    assert signals_digest(lambda: frames, max_cells=25) == digest(frames)


@given(st.permutations(range(12)))
def test_the_order_in_which_frames_come_does_not_matter(order: list[int]) -> None:
    frames = [make(i, SYMBOLS[i % 2 :]) for i in range(12)]
    assert digest([frames[i] for i in order]) == digest(frames)


def test_whatever_a_decision_says_changes_the_digest_and_nothing_else_does() -> None:
    frame = make(1)
    one = digest([frame])
    other = np.array([1, 2, 3], np.uint8)
    assert digest([replace(frame, action=other)]) != one
    assert digest([replace(frame, reasons=frame.reasons + np.uint32(1))]) != one
    assert digest([replace(frame, score=np.nextafter(frame.score, np.float32(9)))]) != one
    assert digest([replace(frame, bundle_id='c')]) != one
    assert digest([replace(frame, revision=1)]) != one
    assert digest([replace(frame, stream='t')]) != one
    assert digest([]) != one
    carried = replace(frame, epoch=9, seq=9, stamps=np.zeros(N_STAGES, np.int64))
    assert digest([carried]) == one


def test_every_nan_is_the_same_nan() -> None:
    frame = make(1)
    quiet = np.array([0x7FC00000] * 3, np.uint32).view(np.float32)
    odd = np.array([0xFFC00001, 0x7FC00001, 0x7FC00000], np.uint32).view(np.float32)
    assert digest([replace(frame, score=quiet)]) == digest([replace(frame, score=odd)])


def test_rows_are_plain_values_in_key_order() -> None:
    frames = [make(2, bundle='new'), make(1, bundle='old')]
    found = list(rows(lambda: frames))
    assert [row.event_time_ns for row in found[:2]] == [1001, 1002]
    assert [row.bundle_id for row in found[:2]] == ['old', 'new']
    assert [row.symbol for row in found[::2]] == sorted(SYMBOLS)
    assert found[0].action is Action.BUY
    assert found[0].score == float(frames[1].score[0])
    assert found[0].valid_until_ns == 2001
