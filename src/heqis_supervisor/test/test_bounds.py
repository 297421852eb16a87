# SPDX-License-Identifier: Apache-2.0
"""The bounds hold whatever comes, across repeats, failures and restarts; no SELL is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.decision import BOUNDS, Action, Decisions, Reason
from heqis_core.errors import ConfigError
from heqis_core.io.journal import Journal
from heqis_core.market.sessions import midnight_ns
from heqis_supervisor.bounds import MINUTE_NS, Bounds, RiskRules, load_risk_rules

SYMBOLS = ('000001.SZ', '300750.SZ', '600000.SH', '600519.SH', '688981.SH')
DAY_NS = midnight_ns(date(2024, 6, 28))
OPEN_NS = DAY_NS + 9 * 3600 * 10**9 + 31 * MINUTE_NS
NONE, HOLD, BUY, SELL = map(int, Action)


def make(
    actions: Sequence[int],
    *,
    scores: Sequence[float] | None = None,
    event_ns: int = OPEN_NS,
    revision: int = 0,
    symbols: tuple[str, ...] | None = None,
    stream: str = 's',
) -> Decisions:
    n = len(actions)
    action = np.array(actions, np.uint8)
    score = np.array(scores if scores is not None else [0.5] * n, np.float32)
    said = [0, Reason.INSIDE_BAND, Reason.UP, Reason.DOWN]
    target = [np.nan, np.nan, 1, 0]
    return Decisions(
        stream, 1, 1, event_ns, revision, 'b', 'g', symbols or SYMBOLS[:n], action,
        np.array([said[a] for a in actions], np.uint32), score,
        np.array([target[a] for a in actions], np.float32), np.ones((n, 3), np.float32),
        score, np.full(n, 2**62, np.int64),
    )  # fmt: skip


def released(bounds: Bounds, decisions: Decisions) -> Decisions:
    verdict = bounds.judge(decisions)
    bounds.settle(durable=True)
    return verdict


def bits(verdict: Decisions) -> list[int]:
    return (verdict.reasons & np.uint32(BOUNDS)).tolist()


# --- one bound after the other ---


def test_without_rules_everything_passes_and_is_counted_as_held() -> None:
    bounds = Bounds(RiskRules())
    first = make([BUY, BUY, HOLD, SELL])
    assert released(bounds, first) is first
    assert bounds.positions == 2
    released(bounds, make([SELL, HOLD, BUY, NONE]))
    assert bounds.positions == 2


def test_no_more_positions_than_allowed_the_best_scores_first() -> None:
    bounds = Bounds(RiskRules(max_positions=2))
    verdict = released(bounds, make([BUY] * 4, scores=[0.5, 0.9, 0.5, 0.7]))
    assert verdict.action.tolist() == [NONE, BUY, NONE, BUY]
    assert bits(verdict) == [Reason.MAX_POSITIONS, 0, Reason.MAX_POSITIONS, 0]
    assert np.isnan(verdict.target_position[0])
    again = released(bounds, make([BUY] * 4, scores=[1, 0.1, 0.1, 0.1]))
    assert again.action.tolist() == [NONE, BUY, NONE, BUY], 'what is held may be bought again'


def test_what_a_frame_sells_makes_room_for_what_it_buys() -> None:
    bounds = Bounds(RiskRules(max_positions=1))
    released(bounds, make([BUY, HOLD]))
    assert released(bounds, make([SELL, BUY])).action.tolist() == [SELL, BUY]
    assert released(bounds, make([BUY, HOLD])).action.tolist() == [NONE, HOLD]
    assert released(bounds, make([SELL, HOLD])).action.tolist() == [SELL, HOLD]


def test_ties_of_the_score_go_by_the_order_of_the_symbols() -> None:
    verdict = released(Bounds(RiskRules(max_buys_per_frame=2)), make([BUY] * 5))
    assert verdict.action.tolist() == [BUY, BUY, NONE, NONE, NONE]
    assert bits(verdict)[2] == Reason.MAX_BUYS


def test_a_refused_position_leaves_its_place_to_the_next_best() -> None:
    bounds = Bounds(RiskRules(max_positions=1, max_buys_per_frame=1))
    released(bounds, make([BUY, HOLD, HOLD]))
    verdict = released(bounds, make([BUY, BUY, BUY], scores=[0.1, 0.9, 0.8]))
    assert verdict.action.tolist() == [BUY, NONE, NONE], 'it is held, so it opens none'


def test_the_brake_of_a_minute_counts_sells_and_lets_them_through() -> None:
    bounds = Bounds(RiskRules(max_signals_per_minute=3))
    released(bounds, make([BUY, BUY, HOLD, HOLD]))
    verdict = released(bounds, make([BUY, SELL, SELL, BUY], event_ns=OPEN_NS + MINUTE_NS // 2))
    assert verdict.action.tolist() == [NONE, SELL, SELL, NONE]
    assert bits(verdict) == [Reason.MAX_SIGNALS, 0, 0, Reason.MAX_SIGNALS]
    later = released(bounds, make([BUY] * 4, event_ns=OPEN_NS + MINUTE_NS))
    assert later.action.tolist() == [BUY, BUY, BUY, NONE]
    late = released(bounds, make([BUY, HOLD], event_ns=OPEN_NS, revision=1))
    assert late.action.tolist() == [NONE, HOLD], 'an amended bar counts where it belongs'


def test_a_bar_of_a_wrong_time_does_not_hold_the_brake() -> None:
    bounds = Bounds(RiskRules(max_signals_per_minute=1))
    released(bounds, make([BUY], event_ns=OPEN_NS + 60 * MINUTE_NS))
    for minute in range(5):
        at = OPEN_NS + minute * MINUTE_NS
        assert released(bounds, make([BUY], event_ns=at)).action.tolist() == [BUY]
        assert released(bounds, make([BUY], event_ns=at + 1)).action.tolist() == [NONE]


def test_a_book_that_runs_for_long_stays_small() -> None:
    bounds = Bounds(RiskRules(max_signals_per_minute=1))
    for minute in range(20_000):
        released(bounds, make([BUY], event_ns=OPEN_NS + minute * MINUTE_NS))
    assert len(bounds._released) <= 8192
    last = make([BUY], event_ns=OPEN_NS + 19_999 * MINUTE_NS)
    assert released(bounds, last).action.tolist() == [NONE]


def test_the_day_of_the_brake_is_that_of_shanghai() -> None:
    bounds = Bounds(RiskRules(max_signals_per_day=1))
    evening, midnight = DAY_NS + 23 * 3600 * 10**9, DAY_NS + 24 * 3600 * 10**9
    assert released(bounds, make([BUY], event_ns=DAY_NS)).action.tolist() == [BUY]
    assert released(bounds, make([BUY], event_ns=evening)).action.tolist() == [NONE]
    assert released(bounds, make([BUY], event_ns=midnight)).action.tolist() == [BUY]


def test_blocked_symbols_are_sold_but_never_bought() -> None:
    bounds = Bounds(RiskRules(blocked=('600000.SH', 'nobody')))
    assert bounds.unknown == ()
    verdict = released(bounds, make([BUY, BUY, BUY, SELL]))
    assert verdict.action.tolist() == [BUY, BUY, NONE, SELL]
    assert bits(verdict)[2] == Reason.BLOCKED
    assert released(bounds, make([HOLD, HOLD, SELL])).action.tolist() == [HOLD, HOLD, SELL]
    assert bounds.unknown == ('nobody',)


def test_only_the_listed_symbols_are_bought_and_an_empty_list_is_none() -> None:
    only = Bounds(RiskRules(only=(SYMBOLS[1],)))
    assert released(only, make([BUY, BUY, SELL])).action.tolist() == [NONE, BUY, SELL]
    nothing = Bounds(RiskRules(only=()))
    assert released(nothing, make([BUY, SELL])).action.tolist() == [NONE, SELL]


def test_streams_have_books_of_their_own() -> None:
    bounds = Bounds(RiskRules(max_positions=1))
    released(bounds, make([BUY, HOLD]))
    assert released(bounds, make([HOLD, BUY], stream='t')).action.tolist() == [HOLD, BUY]
    assert bounds.positions == 2


def test_a_symbol_that_left_the_universe_still_counts() -> None:
    bounds = Bounds(RiskRules(max_positions=1))
    released(bounds, make([BUY, HOLD]))
    other = ('600000.SH', '600519.SH')
    assert released(bounds, make([BUY, BUY], symbols=other)).action.tolist() == [NONE, NONE]
    assert released(bounds, make([BUY, HOLD])).action.tolist() == [BUY, HOLD]
    assert released(bounds, make([SELL, HOLD])).action.tolist() == [SELL, HOLD]
    assert released(bounds, make([BUY, BUY], symbols=other)).action.tolist() == [BUY, NONE]


def test_what_did_not_become_durable_was_not_released() -> None:
    bounds = Bounds(RiskRules(max_positions=1))
    bounds.judge(make([BUY, HOLD]))
    bounds.settle(durable=False)
    assert bounds.positions == 0
    assert released(bounds, make([HOLD, BUY])).action.tolist() == [HOLD, BUY]


# --- the file ---


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('max_position: 3', r':1: .*unknown field `max_position`; expected one of max_positions'),
        ('\nmax_positions: -1', r':2: max_positions: Expected `int` >= 0'),
        ('max_positions: many', r':1: max_positions: Expected `int \| null`, got `str`'),
        ('blocked:\n- 600519.SH\n- 000001', r':3: blocked\[1\]: Expected `str`, got `int`'),
        ('blocked: [a b]', r':1: blocked\[0\]: Expected `str` matching regex'),
        ('only: [a, a]', 'only: a is there more than once'),
        ('only: [a]\nblocked: [a]', 'a is in blocked and in only'),
        ('- 1', r':1: Expected `object`, got `array`'),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_its_line(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / 'risk.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as error:
        load_risk_rules(path)
    assert str(error.value).startswith(f'{path}:')


def test_the_shipped_file_bounds_nothing() -> None:
    path = Path(__file__).resolve().parents[3] / 'config' / 'risk.yaml'
    if not path.is_file():
        pytest.skip('config/risk.yaml is not here: run from the source tree')
    assert load_risk_rules(path) == RiskRules()
    assert load_risk_rules('') == RiskRules()


# --- whatever comes ---

RULES = st.builds(
    RiskRules,
    max_positions=st.none() | st.integers(0, 4),
    max_buys_per_frame=st.none() | st.integers(0, 3),
    max_signals_per_minute=st.none() | st.integers(0, 6),
    max_signals_per_day=st.none() | st.integers(0, 12),
    blocked=st.none() | st.sampled_from([(SYMBOLS[0],), (SYMBOLS[4], SYMBOLS[2])]),
)
FRAMES = st.lists(
    st.tuples(
        st.lists(st.sampled_from([HOLD, BUY, BUY, SELL]), min_size=5, max_size=5),
        st.lists(st.sampled_from([0.2, 0.4, 0.6]), min_size=5, max_size=5),
        st.integers(0, 3),
        st.sampled_from(['on', 'on', 'on', 'again', 'restart', 'disk full']),
    ),
    min_size=1,
    max_size=14,
)


def one_by_one(
    rules: RiskRules, held: set[str], counts: tuple[int, int], proposal: Decisions
) -> list[tuple[int, int]]:
    """Return action and reason of each symbol by the plain reading of the rules."""
    found = {s: (int(a), 0) for s, a in zip(proposal.symbols, proposal.action, strict=True)}
    sells = {s for s, (action, _) in found.items() if action == SELL}
    n_minute, n_day = (n + len(sells) for n in counts)
    open_now, n_buys = held - sells, 0
    buys = [(-score, i) for i, score in enumerate(proposal.score) if proposal.action[i] == BUY]
    for _, i in sorted(buys):
        symbol = proposal.symbols[i]
        if symbol in (rules.blocked or ()):
            found[symbol] = (NONE, Reason.BLOCKED)
        elif symbol not in held and beyond(len(open_now) + 1, rules.max_positions):
            found[symbol] = (NONE, Reason.MAX_POSITIONS)
        elif beyond(n_buys + 1, rules.max_buys_per_frame):
            open_now, n_buys = open_now | {symbol}, n_buys + 1
            found[symbol] = (NONE, Reason.MAX_BUYS)
        else:
            open_now, n_buys = open_now | {symbol}, n_buys + 1
            n_minute, n_day = n_minute + 1, n_day + 1
            if beyond(n_minute, rules.max_signals_per_minute) or beyond(
                n_day, rules.max_signals_per_day
            ):
                found[symbol] = (NONE, Reason.MAX_SIGNALS)
    return list(found.values())


def beyond(n: int, bound: int | None) -> bool:
    return bound is not None and n > bound


@settings(max_examples=40, deadline=None)
@given(rules=RULES, steps=FRAMES)
def test_the_bounds_hold_across_repeats_failures_and_restarts(
    rules: RiskRules, steps: list[tuple[list[int], list[float], int, str]]
) -> None:
    """Expected is the rules read plainly, symbol by symbol; the journal is a real one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'journal.sqlite'
        journal, bounds = Journal.open(path), Bounds(rules)
        held: set[str] = set()
        event_ns, signals = OPEN_NS, [(OPEN_NS, 0)]
        for actions, scores, minutes, event in steps:
            event_ns += max(1, minutes * MINUTE_NS)
            proposal = make(actions, scores=scores, event_ns=event_ns)
            if event == 'disk full':
                bounds.judge(proposal)
                bounds.settle(durable=False)
            minute_ns = event_ns // MINUTE_NS * MINUTE_NS
            counts = (sum(n for t, n in signals if t >= minute_ns), sum(n for _, n in signals))
            expected = one_by_one(rules, held, counts, proposal)
            verdict = bounds.judge(proposal)
            assert list(zip(verdict.action.tolist(), bits(verdict), strict=True)) == expected
            assert journal.commit([verdict]) == [True]
            bounds.settle(durable=True)
            bought = {s for s, (a, _) in zip(SYMBOLS, expected, strict=True) if a == BUY}
            sold = {s for s, (a, _) in zip(SYMBOLS, expected, strict=True) if a == SELL}
            assert sold == {s for s, a in zip(SYMBOLS, actions, strict=True) if a == SELL}
            held = (held | bought) - sold
            signals.append((event_ns, len(bought) + len(sold)))
            assert len(held) <= (rules.max_positions if rules.max_positions is not None else 5)
            assert bounds.positions == len(held)
            if event == 'again':
                assert journal.fresh([proposal, proposal]) == [False, False]
            if event == 'restart':
                journal.close()
                journal, bounds = Journal.open(path), Bounds(rules)
                rows = [(row.stream, row.symbol) for row in journal.holdings()]
                bounds.resume(rows, journal.last_committed(), journal.released_since)
                assert bounds.positions == len(held)
        assert {row.symbol for row in journal.holdings()} == held
        journal.close()
