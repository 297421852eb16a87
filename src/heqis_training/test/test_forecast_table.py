# SPDX-License-Identifier: Apache-2.0
"""The forecast table: its rows, marks and floors, and each form that it is written in."""

from __future__ import annotations

import csv
import io
import json
from functools import cache

import msgspec
import numpy as np
import pytest
from rich.console import Console

from heqis_core.errors import ConfigError, DataError
from heqis_core.strategy import StrategyConfig
from heqis_training.forecast_table import (
    ForecastRow,
    ForecastTable,
    compare,
    from_json,
    to_csv,
    to_json,
    to_markdown,
    to_rich,
)
from heqis_training.metrics import FIGURES, FLOORS, HINDSIGHT, Answers, Truth, judge, make_truth

SHARES = (0.4, 0.2, 0.4)


def make_truth_of(n_times: int = 400, n_symbols: int = 1) -> Truth:
    t, s = (axis.ravel() for axis in np.indices((n_times, n_symbols)))
    log_return = np.random.default_rng(99).normal(0, 0.01, len(t))
    return make_truth(t, s, np.full(len(t), 50.0), log_return, 0.003)


def answers(truth: Truth, seed: int, noise: float, knows: float) -> Answers:
    """Return answers that know this share of the return, with noise."""
    rng = np.random.default_rng(seed)
    count = len(truth.t)
    log_return = knows * truth.log_return + rng.normal(0, noise, count)
    probabilities = rng.dirichlet((2, 2, 2), count) + knows * np.eye(3)[truth.classes]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Answers(log_return.astype(np.float32), probabilities.astype(np.float32))


@cache
def rows(asset: str = 'corn', reference: str = 'persistence') -> tuple[ForecastRow, ...]:
    truth = make_truth_of()
    strategy = StrategyConfig(0.2, -0.2)
    models = [
        judge('seer', [answers(truth, k, 0.001, 0.5) for k in range(3)], truth, [strategy] * 3),
        judge('noise', [answers(truth, k, 0.01, 0) for k in range(2)], truth),
        judge('nothing', [answers(truth, 0, 1e-6, 0)], truth),
    ]
    return compare(asset, models, truth, SHARES, reference, seed=1)


def make_table(reference: str = 'persistence') -> ForecastTable:
    both = rows('corn', reference) + rows('S&P | [500]', reference)
    return ForecastTable(rows=both, reference=reference, marked_on='mape_pct')


def test_marks_say_better_worse_and_tie_against_persistence() -> None:
    marks = {row.model: row.mark for row in rows()}
    assert marks == {
        'seer': 'better',
        'noise': 'worse',
        'nothing': 'tie',
        'persistence': 'reference',
        'majority class': '',
        'buy and hold': '',
        HINDSIGHT: '',
    }
    found = {row.model: row.difference for row in rows()}
    assert found['seer'] is not None
    assert found['seer'].high < 0
    assert found['noise'] is not None
    assert found['noise'].low > 0
    assert found['majority class'] is found['persistence'] is None


def test_another_reference_and_a_figure_of_which_more_is_better_turn_the_marks() -> None:
    against_noise = {row.model: row.mark for row in rows('corn', 'noise')}
    assert against_noise['seer'] == against_noise['persistence'] == 'better'
    truth = make_truth_of()
    models = [judge('seer', [answers(truth, 0, 0.001, 0.5)], truth)]
    found = compare('corn', models, truth, SHARES, 'majority class', 1, 'accuracy_pct')
    assert {row.model: row.mark for row in found}['seer'] == 'better'
    assert {row.model: row.mark for row in found}['persistence'] == ''


def test_a_reference_or_figure_that_cannot_be_is_refused_with_what_can() -> None:
    truth = make_truth_of()
    model = judge('seer', [answers(truth, 0, 0.001, 0.5)], truth)
    with pytest.raises(ConfigError, match="'gru'; expected one of: seer, persistence, majority"):
        compare('corn', [model], truth, SHARES, 'gru', 1)
    for figure in ('skill', 'gross_return_pct', 'mapee'):
        with pytest.raises(ConfigError, match=f"{figure}', which seer does not .* mape_pct"):
            compare('corn', [model], truth, SHARES, 'seer', 1, figure)
    with pytest.raises(ConfigError, match="'mapee': unknown; expected one of mse_price"):
        ForecastTable(rows=rows(), reference='seer', marked_on='mapee')


def test_every_model_has_every_figure_with_intervals_and_the_spread_of_its_seeds() -> None:
    seer = rows()[0]
    names = [figure.name for figure in FIGURES]
    assert list(seer.figures) == names
    assert list(seer.seed_spread) == names
    assert set(seer.intervals) == set(names) - {'gross_return_pct'}
    assert all(spread > 0 for spread in seer.seed_spread.values())
    for name, (low, high) in seer.intervals.items():
        assert low < seer.figures[name] < high, name
    assert (seer.seeds, seer.windows, seer.block) == (3, 400, 20)
    nothing = rows()[2]
    assert nothing.seeds == 1
    assert nothing.seed_spread == {}
    assert 'gross_return_pct' not in nothing.figures


def test_a_table_of_many_symbols_has_no_figure_in_prices() -> None:
    truth = make_truth_of(60, 5)
    found = compare('all', [], truth, SHARES, 'persistence', 1)
    assert [row.model for row in found] == [*FLOORS, HINDSIGHT]
    assert not any('price' in name for row in found for name in row.figures)


@pytest.mark.parametrize('floor', FLOORS)
def test_a_table_without_a_floor_cannot_be_made_nor_read(floor: str) -> None:
    without = tuple(row for row in rows() if row.model != floor)
    with pytest.raises(DataError, match=f'corn: no row of {floor}'):
        ForecastTable(rows=without, reference='seer', marked_on='mape_pct')
    table = make_table()
    with pytest.raises(DataError, match=f'S&P .*: no row of {floor}'):
        ForecastTable(
            rows=tuple(r for r in table.rows if r.model != floor or r.asset == 'corn'),
            reference='seer',
            marked_on='mape_pct',
        )
    plain = json.loads(to_json(table))
    plain['rows'] = [row for row in plain['rows'] if row['model'] != floor]
    with pytest.raises(DataError, match=f'no row of {floor}'):
        from_json(json.dumps(plain).encode())


def test_a_table_with_mixed_windows_doubles_or_nothing_is_refused() -> None:
    def table(*given: ForecastRow) -> ForecastTable:
        return ForecastTable(rows=given, reference='persistence', marked_on='mape_pct')

    with pytest.raises(DataError, match='no rows'):
        table()
    with pytest.raises(DataError, match='seer stands there twice'):
        table(*rows(), rows()[0])
    fewer = msgspec.structs.replace(rows()[0], windows=399)
    with pytest.raises(DataError, match=r'judged on \[399, 400\] windows'):
        table(fewer, *rows()[1:])
    with pytest.raises(DataError, match='no forecast table'):
        from_json(b'{"rows": 3}')


def test_json_reads_back_equal_and_holds_every_figure() -> None:
    table = make_table()
    assert from_json(to_json(table)) == table
    plain = json.loads(to_json(table))
    assert plain['part'] == 'test'
    assert plain['rows'][0]['figures'] == table.rows[0].figures
    assert plain['rows'][0]['mark'] == 'better'


def test_csv_holds_every_figure_and_an_empty_cell_where_one_does_not_apply() -> None:
    table = make_table()
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == len(table.rows) == 14
    for line, row in zip(lines, table.rows, strict=True):
        assert None not in line
        assert (line['asset'], line['model'], line['mark']) == (row.asset, row.model, row.mark)
        for figure in FIGURES:
            value = row.figures.get(figure.name)
            assert line[figure.name] == ('' if value is None else repr(value))
            low = row.intervals.get(figure.name, (None, None))[0]
            assert line[f'{figure.name}_low'] == ('' if low is None else repr(low))
        assert (line['p_value'] != '') == (row.difference is not None)


def test_markdown_shows_figures_intervals_marks_and_the_note() -> None:
    table = make_table()
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert len(lines) == 2 + len(table.rows)
    assert 'S&P \\| [500]' in text  # a bar would be a further column
    assert len({line.replace('\\|', '').count('|') for line in lines}) == 1
    seer = table.rows[0]
    low, high = seer.intervals['mape_pct']
    assert f'{seer.figures["mape_pct"]:.3f} [{low:.3f}, {high:.3f}]' in lines[2]
    assert lines[2].endswith('| better |')
    assert '–' in lines[5]
    assert 'in blocks of 20 on average' in text
    assert 'MAPE % against persistence' in text
    assert text.endswith('statement of profit.\n')


@pytest.mark.parametrize('width', [72, 140])
def test_the_terminal_shows_each_row_with_its_marks_and_cuts_no_figure(width: int) -> None:
    table = make_table()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(table, ('mape_pct', 'accuracy_pct')))
    text = console.export_text()
    assert '…' not in text
    for row in table.rows:
        assert row.mark in text
        for name in ('mape_pct', 'accuracy_pct'):
            if name in row.figures:
                digits = {figure.name: figure.digits for figure in FIGURES}[name]
                assert f'{row.figures[name]:.{digits}f}' in text
    if width == 140:
        assert '[500]' in text  # no markup
        for name in (*FLOORS, 'seer', 'noise'):
            assert name in text


def test_a_figure_that_rounds_to_nothing_has_no_sign() -> None:
    row = msgspec.structs.replace(rows()[0], figures={'mcc': -1e-9}, intervals={})
    table = ForecastTable(rows=(row, *rows()[1:]), reference='persistence', marked_on='mape_pct')
    assert '| 0.000 |' in to_markdown(table, ('mcc',)).splitlines()[4]


def test_a_model_that_forecasts_what_the_reference_does_is_equal_and_no_tie() -> None:
    rng = np.random.default_rng(0)
    count = 300
    zeros = np.zeros(count, np.int64)
    truth = make_truth(
        np.arange(count), zeros, np.full(count, 10.0), rng.normal(0, 0.01, count), 0.004
    )
    shares = np.tile(np.float32(SHARES), (count, 1))
    same = judge('same', [Answers(np.zeros(count, np.float32), shares)], truth)
    noise = Answers(rng.normal(0, 1e-6, count).astype(np.float32), shares)
    models = [same, judge('nearly', [noise], truth)]
    rows = compare('corn', models, truth, SHARES, 'persistence', 0)
    marks = {row.model: row.mark for row in rows}
    assert (marks['same'], marks['nearly'], marks['persistence']) == ('equal', 'tie', 'reference')
