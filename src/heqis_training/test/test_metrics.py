# SPDX-License-Identifier: Apache-2.0
"""The metrics table: each figure against its definition, and thresholds that give both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from heqis_core.errors import DataError
from heqis_core.manifest import MetricRow
from heqis_core.strategy import StrategyConfig
from heqis_training import metrics
from heqis_training.bootstrap import resample_times
from heqis_training.metrics import Answers, Truth, judge, make_truth, summarise

BAND = 0.005
SHARES = (0.3, 0.4, 0.3)


def make_windows(seed: int = 0, n_times: int = 120, n_symbols: int = 3) -> Truth:
    """Return windows of every symbol at every time, with seeded returns."""
    t, s = (axis.ravel() for axis in np.indices((n_times, n_symbols)))
    returns = np.random.default_rng(seed).normal(0, 0.01, len(t))
    return make_truth(t, s, None, returns, BAND)


def make_answers(windows: Truth, seed: int = 1) -> Answers:
    """Return seeded answers."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((2, 2, 2), len(windows.t)).astype(np.float32)
    return Answers(rng.normal(0, 0.01, len(windows.t)).astype(np.float32), probabilities)


def make_table(answers: Answers, windows: Truth) -> dict[str, MetricRow]:
    """Return the rows by model."""
    strategy = metrics.thresholds(answers, 60, (0.2, 0.8))
    rows = metrics.validation_table({'gru': answers}, 'gru', windows, SHARES, strategy, seed=5)
    return {row.model: row for row in rows}


@given(seed=st.integers(0, 99), low=st.floats(0.05, 0.45), high=st.floats(0.55, 0.95))
def test_thresholds_give_each_side_its_share(seed: int, low: float, high: float) -> None:
    answers = make_answers(make_windows(), seed)
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
    windows = make_windows()
    certain = np.eye(3, dtype=np.float32)[windows.classes]
    answers = Answers(windows.log_return.astype(np.float32), certain)
    rows = make_table(answers, windows)
    figures, intervals = rows['gru'].figures, rows['gru'].intervals
    assert figures['mape_pct'] == pytest.approx(0, abs=1e-4)
    assert figures['skill'] == pytest.approx(1)
    assert figures['accuracy_pct'] == figures['hit_rate_pct'] == 100
    assert figures['mcc'] == pytest.approx(1)
    assert figures['brier'] == figures['log_loss'] == 0
    assert list(intervals['accuracy_pct']) == [100, 100]
    assert figures['gross_return_pct'] > rows['buy and hold'].figures['gross_return_pct']


def test_the_floors_are_what_their_names_say() -> None:
    windows = make_windows()
    rows = make_table(make_answers(windows), windows)
    assert list(rows) == ['gru', 'persistence', 'majority class', 'buy and hold']
    unmoved = np.abs(1 - np.exp(windows.log_return)) / np.exp(windows.log_return)
    figures = {name: row.figures for name, row in rows.items()}
    assert figures['persistence']['mape_pct'] == pytest.approx(100 * unmoved.mean(), abs=1e-3)
    assert figures['persistence']['skill'] == 0
    assert not {'accuracy_pct', 'hit_rate_pct', 'gross_return_pct'} & set(figures['persistence'])
    flat = np.mean(np.abs(windows.log_return) <= BAND)
    assert figures['majority class']['accuracy_pct'] == pytest.approx(100 * flat, abs=1e-3)
    assert figures['majority class']['mcc'] == 0
    totals = [np.exp(windows.log_return[windows.s == s].sum()) - 1 for s in range(3)]
    held = figures['buy and hold']
    assert held == {'gross_return_pct': pytest.approx(100 * np.mean(totals), abs=1e-3)}
    assert {row.samples for row in rows.values()} == {360}
    assert {row.part for row in rows.values()} == {'validation'}


def test_every_figure_lies_in_its_interval_and_the_seed_fixes_the_interval() -> None:
    windows = make_windows()
    rows = make_table(make_answers(windows), windows)
    assert rows == make_table(make_answers(windows), windows)
    for row in rows.values():
        assert set(row.intervals) == set(row.figures) - {'gross_return_pct'}
        for name, (low, high) in row.intervals.items():
            assert low <= row.figures[name] <= high
            exact = (row.model, name) in {('persistence', 'skill'), ('majority class', 'mcc')}
            assert (low < high) != exact


def test_symbols_that_move_as_one_widen_the_interval_as_if_there_were_one() -> None:
    one = make_windows(n_symbols=1)
    index = np.repeat(np.arange(len(one.t)), 50)
    symbols = np.tile(np.arange(50), len(one.t))
    many = make_truth(one.t[index], symbols, None, one.log_return[index], BAND)
    answers = make_answers(one)
    copied = Answers(answers.log_return[index], answers.probabilities[index])
    assert make_table(copied, many)['gru'].intervals == make_table(answers, one)['gru'].intervals


def test_the_gross_return_holds_from_buy_to_sell_and_starts_flat() -> None:
    returns = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    scores = [0.0, 0.9, 0.0, -0.9, 0.0]  # hold, buy, hold, sell, hold
    probabilities = np.array([[max(-s, 0), 1 - abs(s), max(s, 0)] for s in scores], np.float32)
    t = np.arange(5)
    windows = make_truth(t, np.zeros(5, np.int64), None, returns, BAND)
    answers = Answers(np.zeros(5, np.float32), probabilities)
    both = {'gru': answers, 'lstm': answers}
    strategy = StrategyConfig(0.5, -0.5)
    rows = metrics.validation_table(both, 'gru', windows, SHARES, strategy, seed=0)
    assert rows[0].figures['gross_return_pct'] == pytest.approx(
        100 * np.expm1(0.2 + 0.3), abs=1e-3
    )
    assert rows[1].model == 'lstm'
    assert 'gross_return_pct' not in rows[1].figures  # the thresholds are not its own


def test_the_figures_of_one_symbol_follow_their_definitions() -> None:
    close, log_return = np.array([10.0, 20.0, 40.0]), np.log([1.1, 1.0, 0.9])
    truth = make_truth(np.arange(3), np.zeros(3, np.int64), close, log_return, 0.01)
    answers = Answers(
        np.log([1.2, 1.1, 0.8]).astype(np.float32),
        np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.5, 0.5, 0.0]], np.float32),
    )
    figures, _ = summarise(judge('x', [answers], truth), truth, resample_times(truth.t, 0))
    errors = np.array([1.0, 2.0, -4.0])
    apart = np.log([1.2 / 1.1, 1.1, 0.8 / 0.9])
    assert figures == {
        'mse_price': pytest.approx((errors**2).mean(), rel=1e-5),
        'mae_price': pytest.approx(7 / 3, rel=1e-5),
        'mape_pct': pytest.approx(100 * (1 / 11 + 2 / 20 + 4 / 36) / 3, rel=1e-5),
        'mse_return_pct2': pytest.approx(1e4 * (apart**2).mean(), rel=1e-5),
        'skill': pytest.approx(1 - (apart**2).mean() / (log_return**2).mean(), rel=1e-5),
        'accuracy_pct': pytest.approx(200 / 3),
        'mcc': pytest.approx(matthews_corrcoef([2, 1, 0], [2, 0, 0])),
        'brier': pytest.approx((0.38 + 0.86 + 0.5) / 3, rel=1e-5),
        'log_loss': pytest.approx(-np.log([0.5, 0.3, 0.5]).mean(), rel=1e-5),
        'hit_rate_pct': 100,  # of the two windows that moved
    }


def test_prices_of_different_symbols_are_not_added() -> None:
    windows = make_windows()
    priced = windows._replace(close=np.full(len(windows.t), 10.0))
    assert not {'mse_price', 'mae_price'} & set(metrics.return_losses(windows.log_return, priced))
    one = make_windows(n_symbols=1)
    priced = one._replace(close=np.full(len(one.t), 10.0))
    assert {'mse_price', 'mae_price'} <= set(metrics.return_losses(one.log_return, priced))


@pytest.mark.filterwarnings('ignore:A single label was found')
@given(
    truth=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    seed=st.integers(0, 2**31),
    n=st.integers(1, 3),
)
def test_matthews_is_that_of_scikit_learn(truth: list[int], seed: int, n: int) -> None:
    said = np.random.default_rng(seed).integers(0, n, len(truth))
    counts = np.zeros((3, 3))
    np.add.at(counts, (np.array(truth), said), 1)
    ours = float(metrics.matthews(counts))
    assert ours == pytest.approx(matthews_corrcoef(truth, said), abs=1e-12)


def test_the_best_class_in_hindsight_is_that_of_the_judged_part() -> None:
    windows = make_windows()
    rows = {row.name: row for row in metrics.floors(windows, [0.8, 0.1, 0.1])}
    shares = np.bincount(windows.classes, minlength=3) / len(windows.t)
    assert rows['best class in hindsight'].losses['accuracy_pct'].mean() == pytest.approx(
        100 * shares.max()
    )
    assert rows['majority class'].losses['accuracy_pct'].mean() == pytest.approx(100 * shares[0])
    assert rows['majority class'].losses['brier'][0, windows.classes == 0][0] == pytest.approx(
        0.04 + 0.02
    )


def test_seeds_are_averaged_and_not_mixed_into_an_ensemble() -> None:
    windows = make_windows()
    each = [make_answers(windows, seed) for seed in (1, 2)]
    resampling = resample_times(windows.t, 0)
    together, _ = summarise(judge('x', each, windows), windows, resampling)
    alone = [summarise(judge('x', [a], windows), windows, resampling)[0] for a in each]
    for name, value in together.items():
        assert value == pytest.approx((alone[0][name] + alone[1][name]) / 2), name


@given(seed=st.integers(0, 10**6), threshold=st.floats(0.05, 0.9))
def test_positions_are_those_of_a_loop_over_each_symbol(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    windows = make_windows(seed, 12, 3)
    kept = np.sort(rng.choice(len(windows.t), 20, replace=False))
    windows = make_truth(windows.t[kept], windows.s[kept], None, windows.log_return[kept], BAND)
    answers = make_answers(windows, seed)
    strategy = StrategyConfig(threshold, -threshold)
    held = {0: 0.0, 1: 0.0, 2: 0.0}
    growth: dict[int, float] = {}
    score = answers.probabilities[:, 2] - answers.probabilities[:, 0]
    for k, symbol in enumerate(windows.s.tolist()):
        if score[k] >= np.float32(threshold):
            held[symbol] = 1.0
        elif score[k] <= np.float32(-threshold):
            held[symbol] = 0.0
        growth[symbol] = growth.get(symbol, 0.0) + held[symbol] * windows.log_return[k]
    judged = judge('x', [answers], windows, [strategy])
    assert judged.gross_return_pct is not None
    expected = 100 * np.mean(np.expm1(list(growth.values())))
    assert judged.gross_return_pct[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (lambda a: Answers(a.log_return[1:], a.probabilities), r'gru: answers of shapes \(359,\)'),
        (lambda a: Answers(a.log_return * np.nan, a.probabilities), '360 of 360 answers are not'),
        (lambda a: Answers(a.log_return, a.probabilities - 0.5), 'are these logits'),
        (lambda a: Answers(a.log_return, 3 * a.probabilities), 'are these logits'),
    ],
)
def test_answers_that_cannot_be_judged_are_refused_by_name(
    broken: Callable[[Answers], Answers], message: str
) -> None:
    windows = make_windows()
    with pytest.raises(DataError, match=message):
        judge('gru', [broken(make_answers(windows))], windows)


def test_windows_without_label_or_price_are_refused_with_their_place() -> None:
    t, s, ones = np.arange(5), np.zeros(5, np.int64), np.ones(5)
    unknown = np.array([0.1, 0.1, np.nan, 0.1, np.nan])
    with pytest.raises(DataError, match=r'2 of 5 windows lack a finite log return.* row 2'):
        make_truth(t, s, ones, unknown, BAND)
    with pytest.raises(DataError, match=r'1 of 5 windows lack a positive close.* row 4'):
        make_truth(t, s, np.array([1, 1, 1, 1, 0.0]), ones, BAND)
    with pytest.raises(DataError, match='no windows'):
        make_truth(t[:0], s[:0], None, ones[:0], BAND)


def test_the_note_says_what_the_figures_are_not() -> None:
    assert 'No figure here is a statement of profit' in metrics.NOTE
