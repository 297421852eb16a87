# SPDX-License-Identifier: Apache-2.0
"""The metrics table: each figure against its definition, and thresholds that give both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.manifest import MetricRow
from heqis_core.strategy import StrategyConfig
from heqis_training import metrics
from heqis_training.dataset import Samples, classify
from heqis_training.metrics import Answers

BAND = 0.005


def make_samples(seed: int = 0, n_times: int = 120, n_symbols: int = 3) -> Samples:
    """Return windows of every symbol at every time, with seeded returns."""
    t, s = (axis.ravel() for axis in np.indices((n_times, n_symbols)))
    returns = np.random.default_rng(seed).normal(0, 0.01, len(t))
    return Samples(t, s, t[:, None], t + 1, returns)


def make_answers(samples: Samples, seed: int = 1) -> Answers:
    """Return seeded answers."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((2, 2, 2), len(samples)).astype(np.float32)
    return Answers(rng.normal(0, 0.01, len(samples)).astype(np.float32), probabilities)


def make_table(answers: Answers, samples: Samples) -> dict[str, MetricRow]:
    """Return the rows by model."""
    strategy = metrics.thresholds(answers, 60, (0.2, 0.8))
    rows = metrics.table('gru', answers, samples, BAND, 1, strategy, seed=5)
    return {row.model: row for row in rows}


@given(seed=st.integers(0, 99), low=st.floats(0.05, 0.45), high=st.floats(0.55, 0.95))
def test_thresholds_give_each_side_its_share(seed: int, low: float, high: float) -> None:
    answers = make_answers(make_samples(), seed)
    config = metrics.thresholds(answers, 60, (low, high))
    score = answers.probabilities[:, 2] - answers.probabilities[:, 0]
    assert config.sell_threshold < config.buy_threshold
    assert np.mean(score >= config.buy_threshold) == pytest.approx(1 - high, abs=0.01)
    assert np.mean(score <= config.sell_threshold) == pytest.approx(low, abs=0.01)
    assert config.valid_for_s == 60


@pytest.mark.parametrize('row', [(1, 0, 0), (0, 0, 1), (0.3, 0.4, 0.3)])
def test_a_generator_without_an_opinion_gets_no_signal(row: tuple[float, ...]) -> None:
    probabilities = np.tile(np.array(row, np.float32), (50, 1))
    config = metrics.thresholds(Answers(np.zeros(50, np.float32), probabilities), 60, (0.2, 0.8))
    assert -1 <= config.sell_threshold < config.buy_threshold <= 1


def test_a_generator_that_knows_the_future_is_perfect() -> None:
    samples = make_samples()
    classes = classify(samples.log_return, BAND)
    answers = Answers(samples.log_return.astype(np.float32), np.eye(3, dtype=np.float32)[classes])
    row = make_table(answers, samples)['gru']
    assert row.mape_pct == pytest.approx(0, abs=1e-4)
    assert row.accuracy_pct == 100
    assert row.accuracy_interval_pct == (100, 100)
    floor = make_table(answers, samples)['buy and hold'].gross_return_pct
    assert floor is not None
    assert row.gross_return_pct is not None
    assert row.gross_return_pct > floor


def test_the_floors_are_what_their_names_say() -> None:
    samples = make_samples()
    rows = make_table(make_answers(samples), samples)
    assert list(rows) == ['gru', 'persistence', 'majority class', 'buy and hold']
    unmoved = np.abs(1 - np.exp(samples.log_return)) / np.exp(samples.log_return)
    assert rows['persistence'].mape_pct == pytest.approx(100 * unmoved.mean(), abs=1e-3)
    flat = np.mean(np.abs(samples.log_return) <= BAND)
    assert rows['majority class'].accuracy_pct == pytest.approx(100 * flat, abs=1e-3)
    totals = [np.exp(samples.log_return[samples.s == s].sum()) - 1 for s in range(3)]
    assert rows['buy and hold'].gross_return_pct == pytest.approx(100 * np.mean(totals), abs=1e-3)
    assert {row.samples for row in rows.values()} == {360}
    assert {row.part for row in rows.values()} == {'validation'}


def test_every_figure_lies_in_its_interval_and_the_seed_fixes_the_interval() -> None:
    samples = make_samples()
    rows = make_table(make_answers(samples), samples)
    assert rows == make_table(make_answers(samples), samples)
    for row in rows.values():
        for value, interval in (
            (row.mape_pct, row.mape_interval_pct),
            (row.accuracy_pct, row.accuracy_interval_pct),
        ):
            assert (value is None) == (interval is None)
            if value is not None and interval is not None:
                assert interval[0] < value < interval[1]


def test_symbols_that_move_as_one_widen_the_interval_as_if_there_were_one() -> None:
    one = make_samples(n_symbols=1)
    index = np.repeat(np.arange(len(one)), 50)
    many = Samples(
        one.t[index],
        np.tile(np.arange(50), len(one)),
        one.rows[index],
        one.label_row[index],
        one.log_return[index],
    )
    answers = make_answers(one)
    copied = Answers(answers.log_return[index], answers.probabilities[index])
    assert make_table(copied, many)['persistence'].mape_interval_pct == (
        make_table(answers, one)['persistence'].mape_interval_pct
    )


def test_the_gross_return_holds_from_buy_to_sell_and_starts_flat() -> None:
    returns = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    scores = [0.0, 0.9, 0.0, -0.9, 0.0]  # hold, buy, hold, sell, hold
    probabilities = np.array([[max(-s, 0), 0, max(s, 0)] for s in scores], np.float32)
    t = np.arange(5)
    samples = Samples(t, np.zeros(5, np.int64), t[:, None], t + 1, returns)
    rows = metrics.table(
        'gru',
        Answers(np.zeros(5, np.float32), probabilities),
        samples,
        BAND,
        1,
        StrategyConfig(0.5, -0.5),
        seed=0,
    )
    assert rows[0].gross_return_pct == pytest.approx(100 * np.expm1(0.2 + 0.3), abs=1e-3)


def test_the_note_says_what_the_figures_are_not() -> None:
    assert 'No figure here is a statement of profit' in metrics.NOTE
