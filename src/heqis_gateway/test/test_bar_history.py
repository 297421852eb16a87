# SPDX-License-Identifier: Apache-2.0
"""The bar history: the newest run that fits, no hole, pages that lead to its end."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.bars import BarBlock
from heqis_gateway.bar_history import BarHistory

NAMES = tuple('abcdefgh')


def make_block(seq: int, symbols: int = 1) -> BarBlock:
    values = np.full((6, symbols), float(seq))
    return BarBlock(seq, NAMES[:symbols], values, np.ones(symbols, np.uint8))


SIZE = make_block(0).nbytes
"""What a block of one symbol counts for."""


def filled(max_bytes: int, first: int, count: int) -> BarHistory:
    history = BarHistory(max_bytes)
    for seq in range(first, first + count):
        history.append(seq, make_block(seq))
    return history


def newest_run_that_fits(
    taken: list[tuple[int, BarBlock]], max_bytes: int
) -> list[tuple[int, BarBlock]]:
    """Return the longest end of `taken` without a hole within the bound, at least one block."""
    run = taken[-1:]
    for seq, block in reversed(taken[:-1]):
        total = sum(held.nbytes for _, held in run) + block.nbytes
        if seq != run[0][0] - 1 or total > max_bytes:
            break
        run.insert(0, (seq, block))
    return run


# Mostly the next seq, now and then one that jumps, repeats or starts anew.
STEPS = st.lists(
    st.tuples(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)), st.integers(1, 8)),
    max_size=30,
)
SEQS = st.integers(-3, 45)


@given(STEPS, st.integers(1, 20 * SIZE), SEQS, SEQS)
def test_history_holds_the_newest_run_that_fits_and_counts_the_rest(
    steps: list[tuple[int | None, int]], max_bytes: int, first: int, last: int
) -> None:
    history, taken, seq = BarHistory(max_bytes), [], 0
    for jump, symbols in steps:
        seq = seq if jump is None else jump
        taken.append((seq, make_block(seq, symbols)))
        history.append(*taken[-1])
        seq += 1
        held = newest_run_that_fits(taken, max_bytes)
        assert history.range(held[0][0], held[-1][0]) == held
        assert (history.oldest_seq, history.next_seq) == (held[0][0], seq)
        assert history.dropped == len(taken) - len(held)
    held = newest_run_that_fits(taken, max_bytes)
    assert history.range(first, last) == [item for item in held if first <= item[0] <= last]


@given(STEPS, st.integers(1, 20 * SIZE), SEQS, SEQS, st.integers(1, 5), st.integers(1, 12 * SIZE))
def test_pages_within_their_bounds_lead_to_all_that_was_asked_for(
    steps: list[tuple[int | None, int]],
    max_bytes: int,
    first: int,
    last: int,
    page_blocks: int,
    page_bytes: int,
) -> None:
    history, seq = BarHistory(max_bytes), 0
    for jump, symbols in steps:
        seq = seq if jump is None else jump
        history.append(seq, make_block(seq, symbols))
        seq += 1
    found, ask = [], first
    while blocks := history.page(ask, last, page_blocks, page_bytes).blocks:
        assert len(blocks) <= page_blocks
        assert len(blocks) == 1 or sum(block.nbytes for _, block in blocks) <= page_bytes
        found += blocks
        ask = blocks[-1][0] + 1
    assert found == history.range(first, last)


def test_empty_history_stands_where_it_was_told_until_a_block_of_any_seq_comes() -> None:
    history = BarHistory(SIZE, first_seq=17)
    assert (history.oldest_seq, history.next_seq, history.range(0, 99)) == (17, 17, [])
    history.append(20, make_block(20))
    assert (history.oldest_seq, history.next_seq, history.dropped) == (20, 21, 0)


@pytest.mark.parametrize('seq', [0, 4, 6, 30])
def test_block_that_does_not_follow_starts_the_history_anew(seq: int) -> None:
    history = filled(99 * SIZE, 0, 5)
    history.append(seq, make_block(seq))
    assert [held for held, _ in history.range(0, 99)] == [seq]
    assert (history.oldest_seq, history.next_seq, history.dropped) == (seq, seq + 1, 5)


def test_block_larger_than_the_bound_stays_until_the_next_one_comes() -> None:
    history = filled(2 * SIZE, 0, 2)
    history.append(2, make_block(2, symbols=8))
    assert [seq for seq, _ in history.range(0, 99)] == [2]
    history.append(3, make_block(3))
    assert [seq for seq, _ in history.range(0, 99)] == [3]


def test_page_says_the_position_with_and_without_blocks() -> None:
    history = filled(4 * SIZE, 10, 9)
    page = history.page(0, 2**64 - 1, max_blocks=3)
    assert [seq for seq, _ in page.blocks] == [15, 16, 17]
    assert (page.oldest_seq, page.next_seq) == (15, 19)
    position = history.page(1, 0)
    assert (position.oldest_seq, position.next_seq, position.blocks) == (15, 19, [])


def test_history_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match='max_bytes of the bar history is 0'):
        BarHistory(0)


def test_readers_see_pages_without_a_hole_while_another_thread_appends() -> None:
    history, stop, faults = BarHistory(8 * SIZE), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            page = history.page(0, 2**64 - 1)
            seqs = [seq for seq, _ in page.blocks]
            times = [block.event_time_ns for _, block in page.blocks]
            if not (seqs == times == list(range(page.oldest_seq, page.next_seq))):
                faults.append((page.oldest_seq, page.next_seq, seqs, times))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for seq in range(3000):
        history.append(seq, make_block(seq))
    stop.set()
    for reader in readers:
        reader.join(5)
    assert faults == []
    assert history.dropped == 3000 - 8


def test_a_corrected_block_takes_the_place_of_the_one_it_corrects() -> None:
    history = BarHistory(10**6)
    for seq in range(3):
        history.append(seq, make_block(seq))
    corrected = replace(make_block(1), revision=1)
    assert history.amend(1, corrected)
    assert [b.revision for _, b in history.range(0, 2)] == [0, 1, 0]
    assert not history.amend(3, corrected)
    assert not history.amend(-1, corrected)
