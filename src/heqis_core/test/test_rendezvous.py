# SPDX-License-Identifier: Apache-2.0
"""Rendezvous hashing: stated weights, minimal movement, even shares."""

from __future__ import annotations

from hashlib import blake2b
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.rendezvous import owner, split, weight

NAMES = st.lists(
    st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']), min_size=1),
    min_size=1,
    max_size=6,
    unique=True,
)
SYMBOLS = st.lists(st.text(st.characters(exclude_categories=['Cs'])), max_size=40, unique=True)
MARKET = [f'{code:06d}.SZ' for code in range(5400)]


def owners(symbols: list[str], boards: list[str]) -> dict[str, str]:
    return {symbol: owner(symbol, boards) for symbol in symbols}


def test_a_weight_is_the_hash_that_the_module_states():
    digest = blake2b(b'jetson-1\x00600519.SH', digest_size=8).digest()
    assert weight('jetson-1', '600519.SH') == int.from_bytes(digest, 'big')


def test_owners_stay_what_they_are_across_releases():
    # Another owner after an update would move windows between boards that run.
    boards = ['jetson-1', 'jetson-2', 'jetson-3']
    found = [owner(s, boards) for s in ('600519.SH', '000001.SZ', '300750.SZ', '430047.BJ')]
    assert found == ['jetson-2', 'jetson-2', 'jetson-3', 'jetson-1']


@given(SYMBOLS, NAMES, st.randoms(use_true_random=False))
def test_the_order_of_the_boards_does_not_matter(symbols, boards, random):
    shuffled = list(boards)
    random.shuffle(shuffled)
    assert owners(symbols, boards) == owners(symbols, shuffled)


@given(SYMBOLS, NAMES.filter(lambda boards: len(boards) > 1), st.data())
def test_a_board_that_goes_or_comes_moves_its_own_symbols_and_no_other(symbols, boards, data):
    gone = data.draw(st.sampled_from(boards))
    before = owners(symbols, boards)
    after = owners(symbols, [board for board in boards if board != gone])
    assert {s for s in symbols if before[s] != after[s]} == {
        s for s in symbols if before[s] == gone
    }


@given(SYMBOLS, NAMES)
def test_a_split_names_every_place_once_in_order_and_no_board_without_symbols(symbols, boards):
    parts = split(symbols, boards)
    assert sorted(np.concatenate([*parts.values(), np.empty(0, np.int64)]).tolist()) == list(
        range(len(symbols))
    )
    for board, places in parts.items():
        assert len(places)
        assert places.tolist() == sorted(places.tolist())
        assert {owner(symbols[place], boards) for place in places} == {board}


@pytest.mark.parametrize('n', [2, 3, 5, 8])
def test_shares_of_a_whole_market_are_even_within_five_standard_deviations(n):
    # Independent uniform weights make each share binomial.
    shares = [len(p) for p in split(MARKET, [f'jetson-{i}' for i in range(n)]).values()]
    mean = len(MARKET) / n
    assert len(shares) == n
    assert max(abs(share - mean) for share in shares) < 5 * sqrt(mean * (1 - 1 / n))


def test_symbols_of_a_board_that_goes_are_spread_evenly_over_the_others():
    boards = [f'jetson-{i}' for i in range(4)]
    mine = [MARKET[place] for place in split(MARKET, boards)['jetson-2']]
    shares = [len(p) for p in split(mine, [b for b in boards if b != 'jetson-2']).values()]
    mean = len(mine) / 3
    assert max(abs(share - mean) for share in shares) < 5 * sqrt(mean * 2 / 3)


def test_without_a_board_nobody_owns_anything():
    with pytest.raises(ValueError, match='empty'):
        owner('600519.SH', [])
