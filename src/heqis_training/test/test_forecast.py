# SPDX-License-Identifier: Apache-2.0
"""The contest of forecasts: who competes, on which windows, and who sees the test part: nobody."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heqis_core.bars import BAR_FIELDS, CLOSE, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data
from heqis_training import dataset, splits
from heqis_training.adversarial import pair_weights
from heqis_training.benchmark_features import reference_rows
from heqis_training.contestants import BASELINES, MULTI_GAN, NOT_SHRUNK, networks_of
from heqis_training.fold_frames import build_frames
from heqis_training.forecast import (
    Contest,
    Outcome,
    compete,
    own_bars,
    plain_contest,
    reference_contest,
)
from heqis_training.metrics import FLOORS, HINDSIGHT, PERSISTENCE
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    SplitSettings,
    TrainingSettings,
    TransformerSettings,
    load_settings,
)

ROOT = Path(__file__).resolve().parents[3]
SPEC = FeatureSpec((FeatureItem('return', {'n': 1}), FeatureItem('rsi', {'n': 4})))
TINY = TrainingSettings(
    encoder=EncoderSettings(kind='none'),
    generators=(GruSettings(window=4, hidden=6), LstmSettings(window=6, hidden=6)),
    discriminators=(DiscriminatorSettings(window=5, hidden=4),),
    adversarial=AdversarialSettings(identity_epochs=1, cross_every=2, cross_epochs=1),
    fit=FitSettings(epochs=2, learning_rate=0.01),
    horizons=(1,),
)
ALONE = msgspec.structs.replace(TINY, generators=(GruSettings(window=4, hidden=6),))
"""Multi-GAN and its rivals from one generator: three networks."""

ROWS = 240
TEST_FROM = splits.chronological(ROWS, TINY.split).test_from


@cache
def walk(n_rows: int = ROWS, n_symbols: int = 2) -> BarTable:
    """Return a random walk with some memory, in which every bar is VALID."""
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.01, (n_rows, n_symbols))
    noise[1:] += 0.3 * noise[:-1]
    close = 50 * np.exp(np.cumsum(noise, axis=0))
    values = np.repeat(close[:, None, :], len(BAR_FIELDS), axis=1)
    values[:, 1] *= 1.01
    values[:, 2] *= 0.99
    times_ns = np.arange(n_rows) * 86_400_000_000_000 + 1_577_862_000_000_000_000
    status = np.full((n_rows, n_symbols), BarStatus.VALID, np.uint8)
    return BarTable(tuple('ABCD')[:n_symbols], times_ns, values, status)


def altered(table: BarTable, start: int, stop: int) -> BarTable:
    """Return a copy whose prices from row `start` to before `stop` are others."""
    copy = dataset.head(table, len(table))
    rng = np.random.default_rng(9)
    copy.values[start:stop] *= rng.uniform(0.5, 2.0, (stop - start, 1, len(table.symbols)))
    return copy


def contest(table: BarTable, settings: TrainingSettings = ALONE, folds: int = 1) -> Contest:
    return plain_contest('walk', table, settings, SPEC, folds)


@cache
def outcome() -> Outcome:
    """Return two seeds of the contest of two generators, with the ablation."""
    return compete([contest(walk(), TINY)], 2, ablation=True)


def chosen(made: Outcome, *, until_fold: int = 0) -> dict[tuple[str, int, int], dict]:
    return {
        (one.model, one.fold, one.seed): one.chosen
        for one in made.choices
        if one.fold <= until_fold
    }


# --- who competes --------------------------------------------------------------------------------


def test_every_generator_competes_alone_and_with_one_discriminator_of_its_window() -> None:
    networks = networks_of(TINY)
    assert list(networks) == [
        MULTI_GAN, 'gru ERM', 'gru GAN', 'lstm ERM', 'lstm GAN', 'ensemble ERM',
    ]  # fmt: skip
    assert networks[MULTI_GAN] == TINY
    for name, part in zip(('gru', 'lstm'), TINY.generators, strict=True):
        erm, gan = networks[f'{name} ERM'], networks[f'{name} GAN']
        assert erm.generators == gan.generators == (part,)
        assert erm.discriminators == ()
        assert [(d.window, d.hidden) for d in gan.discriminators] == [(part.window, 4)]
        assert {(one.fit, one.shrink, one.split) for one in (erm, gan)} == {
            (TINY.fit, TINY.shrink, TINY.split)
        }
    assert networks['ensemble ERM'].generators == TINY.generators
    assert networks['ensemble ERM'].discriminators == ()
    assert 'ensemble ERM' not in networks_of(ALONE)


def test_the_one_pair_of_a_gan_weighs_1_in_every_epoch() -> None:
    rules = networks_of(TINY)['gru GAN'].adversarial
    weights = [pair_weights(rules, epoch, 1, [0.9]).tolist() for epoch in (1, 2, 50)]
    assert weights == [[[1.0]]] * 3


def test_all_models_stand_in_the_table_beside_every_floor() -> None:
    networks = [*networks_of(TINY)]
    expected = [*networks, *BASELINES, *(name + NOT_SHRUNK for name in networks)]
    table = outcome().table
    assert [row.model for row in table.rows] == [*expected, *FLOORS, HINDSIGHT]
    seeds = {row.model: row.seeds for row in table.rows}
    assert {seeds[name] for name in networks} == {2}
    assert {seeds[name] for name in (*BASELINES, *FLOORS)} == {1}


@pytest.mark.parametrize('floor', FLOORS)
def test_a_table_of_the_outcome_without_a_floor_is_impossible(floor: str) -> None:
    table = outcome().table
    rows = tuple(row for row in table.rows if row.model != floor)
    with pytest.raises(DataError, match=f'walk: no row of {floor}'):
        msgspec.structs.replace(table, rows=rows).__post_init__()


# --- on which windows ----------------------------------------------------------------------------


def test_all_models_are_judged_on_every_labelled_window_of_the_test_part() -> None:
    close = walk().values[:, CLOSE]
    returns = np.diff(np.log(close), axis=0)[TEST_FROM:]
    rows = {row.model: row for row in outcome().table.rows}
    assert {row.windows for row in rows.values()} == {returns.size}
    by_hand = 100 * np.mean(np.abs(1 - np.exp(-returns)))
    assert rows[PERSISTENCE].figures['mape_pct'] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize('rolling', [False, True])
def test_the_folds_of_a_walk_forward_tile_the_test_part(rolling: bool) -> None:
    made = compete([plain_contest('walk', walk(), ALONE, SPEC, 3, rolling)], 1)
    (windows,) = {row.windows for row in made.table.rows}
    assert windows == 2 * (ROWS - TEST_FROM - 1)
    assert {one.fold for one in made.choices} == {0, 1, 2}
    (ours,) = (row for row in made.table.rows if row.model == MULTI_GAN)
    assert 'mape_pct' in ours.figures
    assert 'gross_return_pct' not in ours.figures


def test_the_reference_protocol_judges_its_rows_whatever_the_settings_say() -> None:
    table, _ = load_bars(shared_data() / 'benchmark_daily' / 'csi300.csv')
    table = dataset.head(table, 500)
    rows = reference_rows(500)
    made = reference_contest('csi300', table, ALONE)
    row = {row.model: row for row in compete([made], 1).table.rows}[PERSISTENCE]
    close = table.values[rows.decide_from : rows.stop, CLOSE, 0]
    assert row.windows == len(close) - 1
    by_hand = 100 * np.mean(np.abs(close[:-1] / close[1:] - 1))
    assert row.figures['mape_pct'] == pytest.approx(by_hand, rel=1e-9)
    assert made.settings.flat_band == 1e-9
    assert len(made.spec.names) == 18
    assert made.folds[0].validation_from == rows.test_from - int(np.ceil(
        (rows.test_from - rows.first) * ALONE.split.validation_fraction
    ))  # fmt: skip


def test_each_symbol_alone_has_only_the_bars_that_are_its_own() -> None:
    table = dataset.head(walk(), 10)
    table.status[2:5, 0] = BarStatus.NO_BAR
    table.status[7, 0] = BarStatus.SUSPENDED
    parts = dict(own_bars(table))
    assert [len(parts[name]) for name in table.symbols] == [7, 10]
    assert parts['A'].event_time_ns.tolist() == np.delete(table.event_time_ns, [2, 3, 4]).tolist()
    assert (parts['A'].status == BarStatus.SUSPENDED).sum() == 1
    np.testing.assert_array_equal(parts['B'].values[:, :, 0], table.values[:, :, 1])


# --- nothing sees the test part ------------------------------------------------------------------


def test_other_test_bars_change_no_weights_thresholds_shrinkage_or_served_choice() -> None:
    other = compete([contest(altered(walk(), TEST_FROM, ROWS), TINY)], 2, ablation=True)
    assert chosen(other) == chosen(outcome())
    assert {'served', 'weights', 'buy_threshold', 'shrinkage_gru'} <= set(
        chosen(other)[MULTI_GAN, 0, 0]
    )
    for mine, theirs in zip(other.table.rows, outcome().table.rows, strict=True):
        assert mine.figures != theirs.figures


def test_another_last_bar_before_the_test_part_changes_choices_and_no_scaler() -> None:
    table, changed = walk(), altered(walk(), TEST_FROM - 1, TEST_FROM)
    first, second = (compete([contest(one)], 1) for one in (table, changed))
    assert chosen(first) != chosen(second)


def test_a_fold_learns_nothing_from_its_own_test_part_or_later_ones() -> None:
    contests = [contest(walk(), ALONE, 3)]
    second = contests[0].folds[1].test_from
    contests.append(contest(altered(walk(), second, ROWS), ALONE, 3))
    first, other = (compete([one], 1) for one in contests)
    assert chosen(first, until_fold=1) == chosen(other, until_fold=1)
    assert chosen(first, until_fold=2) != chosen(other, until_fold=2)


def test_the_scaler_of_a_rolling_fold_forgets_what_lies_before_it(tmp_path: Path) -> None:
    fold = splits.walk_forward(ROWS, 3, TINY.split, rolling=True)[2]
    assert fold.start > 20
    tables = (walk(), altered(walk(), 0, fold.start), altered(walk(), fold.start, ROWS))
    same, forgotten, seen = (
        build_frames(table, SPEC, TINY, fold, tmp_path / str(k)).features_id
        for k, table in enumerate(tables)
    )
    assert same == forgotten != seen


def test_an_encoder_is_trained_for_the_fold_and_sees_no_test_bar() -> None:
    encoder = EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=1))
    settings = msgspec.structs.replace(ALONE, encoder=encoder)
    tables = walk(), altered(walk(), TEST_FROM, ROWS)
    first, other = (compete([contest(table, settings)], 1) for table in tables)
    assert chosen(first) == chosen(other)
    plain = chosen(compete([contest(walk())], 1))
    assert chosen(first)[MULTI_GAN, 0, 0]['weights'] != plain[MULTI_GAN, 0, 0]['weights']


def test_the_frames_of_an_encoder_hold_its_factors(tmp_path: Path) -> None:
    encoder = EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=1))
    settings = msgspec.structs.replace(ALONE, encoder=encoder)
    (fold,) = splits.walk_forward(ROWS, 1, settings.split)
    key = build_frames(walk(), SPEC, settings, fold, tmp_path)
    assert key.names == (*SPEC.names, 'factor_0', 'factor_1')


# --- the same again ------------------------------------------------------------------------------


def test_two_processes_give_the_rows_and_choices_of_one_and_tell_every_model() -> None:
    seen: list[tuple[int, int]] = []
    two = compete(
        [contest(walk())], 2, jobs=2, told=lambda text, done, total: seen.append((done, total))
    )
    assert two == compete([contest(walk())], 2)
    total = 2 * len(networks_of(ALONE)) + len(BASELINES)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_seeds_give_other_weights_and_the_next_seed_is_that_of_the_settings_plus_1() -> None:
    found = chosen(outcome())
    for model in networks_of(TINY):
        assert found[model, 0, 0]['weights'] != found[model, 0, 1]['weights']
    later = msgspec.structs.replace(TINY, seed=TINY.seed + 1)
    again = chosen(compete([contest(walk(), later)], 1))
    for model in networks_of(TINY):
        assert again[model, 0, 0] == found[model, 0, 1]
    (ours,) = (row for row in outcome().table.rows if row.model == MULTI_GAN)
    assert ours.seed_spread['log_loss'] > 0


# --- shrinkage -----------------------------------------------------------------------------------


def test_the_ablation_rows_are_those_of_a_contest_without_shrinkage() -> None:
    without = msgspec.structs.replace(TINY, shrink=False)
    plain = {row.model: row for row in compete([contest(walk(), without)], 2).table.rows}
    rows = {row.model: row for row in outcome().table.rows}
    for model in networks_of(TINY):
        assert rows[model + NOT_SHRUNK].figures == plain[model].figures
        choice = chosen(outcome())[model, 0, 0]
        factors = [value for name, value in choice.items() if name.startswith('shrinkage_')]
        assert all(0 <= factor <= 1 for factor in factors)
        assert len(factors) == len(networks_of(TINY)[model].generators)


def test_what_validation_contradicts_forecasts_persistence() -> None:
    table = dataset.head(walk(600, 1), 600)
    (fold,) = splits.walk_forward(600, 1, ALONE.split)
    noise = np.random.default_rng(1).normal(0, 0.01, 600)
    for t in range(1, 600):
        noise[t] += (0.8 if t < fold.validation_from else -0.8) * noise[t - 1]
    table.values[:] = 50 * np.exp(np.cumsum(noise))[:, None, None]
    settings = msgspec.structs.replace(ALONE, fit=msgspec.structs.replace(ALONE.fit, epochs=6))
    spec = FeatureSpec((FeatureItem('return', {'n': 1}),))
    made = compete([plain_contest('turn', table, settings, spec)], 1, ablation=True)
    rows = {row.model: row.figures.get('mse_return_pct2') for row in made.table.rows}
    assert chosen(made)['gru ERM', 0, 0]['shrinkage_gru'] == 0
    assert rows['gru ERM'] == rows[PERSISTENCE] != rows['gru ERM' + NOT_SHRUNK]


# --- what cannot be ------------------------------------------------------------------------------


def test_too_few_bars_are_refused_with_the_asset_before_anything_is_trained() -> None:
    told: list[str] = []
    short = plain_contest('short', dataset.head(walk(), 60), TINY, SPEC)
    with pytest.raises(DataError, match=r'short: too little data .*A 60, B 60.*alone needs \d+'):
        compete([contest(walk()), short], 1, told=lambda text, done, total: told.append(text))
    assert not told


def test_prices_that_never_move_are_refused_with_the_asset() -> None:
    still = dataset.head(walk(), ROWS)
    still.values[:] = 10.0
    with pytest.raises(DataError, match=r'walk: all \d+ returns of the training part are zero'):
        compete([contest(still)], 1)


def test_a_training_that_diverges_is_refused_with_model_and_seed() -> None:
    fit = msgspec.structs.replace(ALONE.fit, learning_rate=1e30)
    wild = msgspec.structs.replace(ALONE, fit=fit, discriminators=())
    with pytest.raises(DataError, match=r'walk, Multi-GAN, seed 0: .*finite validation loss'):
        compete([contest(walk(), wild)], 1)


@pytest.mark.parametrize(
    ('seeds', 'jobs', 'message'),
    [(0, 1, 'seeds: 0; expected at least 1'), (1, 0, 'jobs: 0; expected at least 1')],
)
def test_numbers_that_cannot_be_are_refused(seeds: int, jobs: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compete([contest(walk())], seeds, jobs)


def test_an_ablation_of_settings_without_shrinkage_is_refused() -> None:
    without = msgspec.structs.replace(ALONE, shrink=False)
    with pytest.raises(ConfigError, match='ablation: the settings have shrink: false'):
        compete([contest(walk(), without)], 1, ablation=True)


def test_more_folds_than_event_times_are_refused() -> None:
    with pytest.raises(ConfigError, match='walk forward: 100 folds'):
        plain_contest('walk', walk(), TINY, SPEC, 100)


# --- the shipped settings ------------------------------------------------------------------------


def test_the_settings_of_the_benchmark_load_and_are_those_of_the_protocol() -> None:
    settings = load_settings(ROOT / 'config' / 'training.benchmark.yaml')
    kinds = [(type(part), part.window) for part in settings.generators]
    assert kinds == [(GruSettings, 5), (LstmSettings, 10), (TransformerSettings, 15)]
    assert [part.window for part in settings.discriminators] == [5, 10, 15]
    assert settings.encoder.kind == 'none'
    assert (settings.window, settings.past) == (15, 15)
    assert settings.flat_band == 1e-9
    assert settings.fit == FitSettings(
        epochs=40, patience=15, batch=64, learning_rate=1e-3, weight_decay=1e-3
    )
    assert settings.split == SplitSettings()
