# SPDX-License-Identifier: Apache-2.0
"""`heqis evaluate`: a bundle on later bars against a computation by hand, and the contest."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.batch import answer_all, decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, reason_names
from heqis_core.errors import DataError
from heqis_core.io.ort_engine import open_engine
from heqis_core.source import TableSource
from heqis_core.testing import shared_data
from heqis_core.testing_bundle import write_test_bundle
from heqis_training import dataset, tables
from heqis_training.bundling import write_run_bundle
from heqis_training.commands import evaluate
from heqis_training.evaluation import SERVED, BundleReport, judge_bundle
from heqis_training.forecast_table import from_json
from heqis_training.metrics import FLOORS, HINDSIGHT, MAJORITY
from heqis_training.recipe import run_training
from heqis_training.settings import (
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
)

ROWS, SYMBOLS, SEED = 360, 3, 5
CONFIG = """
encoder: {kind: none}
generators: [{type: gru, window: 4, hidden: 6}]
discriminators: [{window: 5, hidden: 4}]
fit: {epochs: 1}
"""


@pytest.fixture(scope='module')
def table() -> BarTable:
    """Return a simulated market in which one symbol is suspended for some days at the end."""
    made = tables.simulate(SYMBOLS, ROWS, SEED)
    made.status[ROWS - 40 : ROWS - 34, 1] = BarStatus.SUSPENDED
    made.values[ROWS - 40 : ROWS - 34, :, 1] = np.nan
    return made


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a trained bundle of two generators and their ensemble."""
    settings = TrainingSettings(
        encoder=EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=1)),
        generators=(GruSettings(window=6, hidden=6), LstmSettings(window=8, hidden=6)),
        discriminators=(),
        fit=FitSettings(epochs=2),
    )
    folder = tmp_path_factory.mktemp('trained')
    return write_run_bundle(run_training(table, folder / 'run', settings), folder / 'bundles')


@pytest.fixture(scope='module')
def report(bundle: Bundle, table: BarTable) -> BundleReport:
    return judge_bundle(bundle, table)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / 'tiny.yaml'
    path.write_text(CONFIG, encoding='utf-8')
    return str(path)


def run(*args: str) -> int:
    """Run `evaluate` in this process."""
    parser = argparse.ArgumentParser()
    evaluate.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['evaluate', *args])
    return int(parsed.func(parsed))


def next_closes(table: BarTable) -> dict[tuple[int, int], tuple[float, float]]:
    """Return close and next close of every VALID bar that has one, by event time and symbol."""
    found = {}
    for s in range(len(table.symbols)):
        rows = [t for t in range(len(table)) if table.status[t, s] == BarStatus.VALID]
        for t, following in itertools.pairwise(rows):
            pair = float(table.values[t, CLOSE, s]), float(table.values[following, CLOSE, s])
            found[int(table.event_time_ns[t]), s] = pair
    return found


# --- a bundle ------------------------------------------------------------------------------------


def test_the_served_row_equals_a_computation_by_hand_from_its_decisions(
    bundle: Bundle, table: BarTable, report: BundleReport
) -> None:
    closes, band = next_closes(table), bundle.manifest.flat_band
    errors, right, told = [], [], Counter[str]()
    position, growth = [0.0] * SYMBOLS, [0.0] * SYMBOLS
    for made in decide_all(bundle, TableSource(table), open_engine):
        for s in range(SYMBOLS):
            key = made.event_time_ns, s
            if made.action[s] == Action.NONE or key not in closes:
                continue
            close, following = closes[key]
            told[Action(made.action[s]).name] += 1
            errors.append(abs(close * math.exp(made.predicted_return[s]) / following - 1))
            moved = math.log(following / close)
            came = 2 if moved > band else 0 if moved < -band else 1
            right.append(int(np.argmax(made.probabilities[s])) == came)
            if made.action[s] in (Action.BUY, Action.SELL):
                position[s] = float(made.action[s] == Action.BUY)
            growth[s] += position[s] * moved
    (row,) = (row for row in report.table.rows if row.model.endswith(SERVED))
    assert row.model == bundle.manifest.served + SERVED
    assert row.windows == len(errors)
    assert row.figures['mape_pct'] == pytest.approx(100 * np.mean(errors), rel=1e-9)
    assert row.figures['accuracy_pct'] == pytest.approx(100 * np.mean(right), rel=1e-12)
    by_hand = 100 * np.mean([math.expm1(value) for value in growth])
    assert row.figures['gross_return_pct'] == pytest.approx(by_hand, rel=1e-9)
    assert report.actions == dict(told)


def test_every_generator_and_the_ensemble_has_a_row_of_its_own_answers(
    bundle: Bundle, table: BarTable, report: BundleReport
) -> None:
    closes = next_closes(table)
    squared: dict[str, list[float]] = {}
    for made, predictions in answer_all(bundle, TableSource(table), open_engine):
        for g, name in enumerate(predictions.generators):
            for s in range(SYMBOLS):
                key = made.event_time_ns, s
                if made.action[s] != Action.NONE and key in closes:
                    moved = math.log(closes[key][1] / closes[key][0])
                    error = 100 * (float(predictions.log_return[g, s]) - moved)
                    squared.setdefault(name, []).append(error**2)
    assert list(squared) == ['gru', 'lstm', 'ensemble']
    served = bundle.manifest.served
    names = [name + SERVED if name == served else name for name in squared]
    rows = {row.model: row for row in report.table.rows}
    assert list(rows) == [*names, *FLOORS, HINDSIGHT]
    for name, values in zip(names, squared.values(), strict=True):
        assert rows[name].figures['mse_return_pct2'] == pytest.approx(np.mean(values), rel=1e-9)
        assert ('gross_return_pct' in rows[name].figures) == name.endswith(SERVED)


def test_every_window_after_the_training_is_judged_or_counted_by_its_reason(
    bundle: Bundle, table: BarTable, report: BundleReport
) -> None:
    after = int((table.event_time_ns > bundle.manifest.trained_until_ns).sum())
    judged = report.table.rows[0].windows
    assert judged + sum(report.not_judged.values()) == after * SYMBOLS
    reasons = Counter[str]()
    for made in decide_all(bundle, TableSource(table), open_engine):
        bits = made.reasons[made.action == Action.NONE].tolist()
        reasons.update(reason_names(one)[0] for one in bits)
    assert reasons['suspended'] > 0
    assert {k: v for k, v in report.not_judged.items() if k != 'no_next_bar'} == dict(reasons)
    assert 1 <= report.not_judged['no_next_bar'] <= SYMBOLS
    assert sum(report.actions.values()) == judged


def test_the_majority_class_is_that_of_the_bars_up_to_the_training(
    bundle: Bundle, table: BarTable, report: BundleReport
) -> None:
    until_ns = bundle.manifest.trained_until_ns

    def class_of(close: float, following: float) -> int:
        moved, band = math.log(following / close), bundle.manifest.flat_band
        return 2 if moved > band else 0 if moved < -band else 1

    known = dataset.head(table, int((table.event_time_ns <= until_ns).sum()))
    before = Counter(class_of(*pair) for pair in next_closes(known).values())
    closes = next_closes(table)
    judged = [
        class_of(*closes[made.event_time_ns, s])
        for made in decide_all(bundle, TableSource(table), open_engine)
        for s in range(SYMBOLS)
        if made.action[s] != Action.NONE and (made.event_time_ns, s) in closes
    ]
    (row,) = (row for row in report.table.rows if row.model == MAJORITY)
    majority, total = before.most_common(1)[0][0], before.total()
    share = 100 * np.mean([one == majority for one in judged])
    assert row.figures['accuracy_pct'] == pytest.approx(share, rel=1e-12)
    log_loss = -np.mean([math.log(before[one] / total) for one in judged])
    assert row.figures['log_loss'] == pytest.approx(log_loss, rel=1e-12)


def test_without_bars_of_the_training_the_majority_class_is_empty_and_a_note_says_why(
    bundle: Bundle, table: BarTable
) -> None:
    first = int((table.event_time_ns <= bundle.manifest.trained_until_ns).sum())
    late = BarTable(
        table.symbols, table.event_time_ns[first:], table.values[first:], table.status[first:]
    )
    found = judge_bundle(bundle, late)
    (row,) = (row for row in found.table.rows if row.model == MAJORITY)
    assert row.figures == {}
    assert 'the majority class is not known' in found.notes[1]
    assert found.not_judged['warming'] > 30 * SYMBOLS


def test_later_bars_change_no_earlier_window(bundle: Bundle, table: BarTable) -> None:
    whole = judge_bundle(bundle, table).table.rows[0].windows
    part = judge_bundle(bundle, dataset.head(table, ROWS - 20)).table.rows[0].windows
    assert whole - 20 * SYMBOLS <= part < whole


def test_a_bundle_that_was_trained_to_the_end_of_the_bars_is_refused_with_both_times(
    bundle: Bundle, table: BarTable
) -> None:
    until = int((table.event_time_ns <= bundle.manifest.trained_until_ns).sum())
    day = str(np.datetime64(int(table.event_time_ns[until - 1]), 'ns'))[:10]
    with pytest.raises(DataError, match=rf'trained until {day}T.* UTC and the bars end {day}T'):
        judge_bundle(bundle, dataset.head(table, until))


def test_bars_that_cannot_be_judged_are_refused_with_the_reasons(
    bundle: Bundle, table: BarTable
) -> None:
    until = int((table.event_time_ns <= bundle.manifest.trained_until_ns).sum())
    with pytest.raises(DataError, match=r'none of the 3 windows .* no_next_bar \d'):
        judge_bundle(bundle, dataset.head(table, until + 1))


def test_the_command_prints_the_table_and_writes_it_in_every_form(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = judge_bundle(bundle, tables.simulate(SYMBOLS, ROWS, SEED))
    args = ['--simulate', str(ROWS), '--symbols', str(SYMBOLS), '--simulator_seed', str(SEED)]
    out = tmp_path / 'made' / 'here'
    assert run('--bundle', str(bundle.path), *args, '--out', str(out)) == 0
    text = capsys.readouterr().out
    for expected in ('persistence', 'majority class', 'buy and hold', 'not judged: ', 'BUY '):
        assert expected in text
    assert '(served)' in text
    assert from_json((out / 'forecast.json').read_bytes()) == report.table
    with (out / 'forecast.csv').open(encoding='utf-8') as file:
        assert len(list(csv.DictReader(file))) == len(report.table.rows)
    assert (out / 'forecast.md').read_text(encoding='utf-8').startswith('**next close, test part')
    about = json.loads((out / 'bundle.json').read_text(encoding='utf-8'))
    assert about['bundle_id'] == bundle.bundle_id
    assert about['not_judged'] == report.not_judged


def test_a_bundle_of_one_generator_needs_no_training_of_ours(
    tmp_path: Path, table: BarTable
) -> None:
    until_ns = int(table.event_time_ns[200])
    path = write_test_bundle(tmp_path, trained_until_ns=until_ns)
    found = judge_bundle(Bundle.load(path), table)
    assert found.table.rows[0].model == 'linear' + SERVED


# --- the contest ---------------------------------------------------------------------------------


def test_each_symbol_is_an_asset_and_every_form_and_choice_is_written(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    args = ('--simulate', '300', '--symbols', '2', '--config', config, '--seeds', '1')
    assert run(*args, '--each', '--out', str(out)) == 0
    made = from_json((out / 'forecast.json').read_bytes())
    assets = list(dict.fromkeys(row.asset for row in made.rows))
    assert assets == list(tables.simulate(2, 300, 7).symbols)
    choices = json.loads((out / 'choices.json').read_text(encoding='utf-8'))
    assert [one['model'] for one in choices] == [
        'Multi-GAN', 'gru ERM', 'gru GAN', 'linear', 'boosting',
    ] * 2  # fmt: skip
    text = capsys.readouterr().out
    assert '10/10 models' in text
    assert 'Multi-GAN' in text


def test_the_symbols_of_a_pool_share_models_with_folds_and_the_ablation(
    tmp_path: Path, config: str
) -> None:
    args = ('--simulate', '300', '--symbols', '2', '--config', config, '--seeds', '1')
    out = ('--out', str(tmp_path / 'out'))
    assert run(*args, *out, '--folds', '2', '--rolling', '--ablation') == 0
    made = from_json((tmp_path / 'out' / 'forecast.json').read_bytes())
    assert {row.asset for row in made.rows} == {'2 symbols'}
    assert 'gru GAN, not shrunk' in {row.model for row in made.rows}
    choices = json.loads((tmp_path / 'out' / 'choices.json').read_text(encoding='utf-8'))
    assert {one['fold'] for one in choices} == {0, 1}


def test_the_reference_protocol_takes_each_file_of_a_folder(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'bars'
    folder.mkdir()
    for name in ('csi300', 'corn_dce'):
        lines = (shared_data() / 'benchmark_daily' / f'{name}.csv').read_text('utf-8').splitlines()
        (folder / f'{name}.csv').write_text('\n'.join(lines[:451]) + '\n', encoding='utf-8')
    out = tmp_path / 'out'
    args = ('--data', str(folder), '--config', config, '--seeds', '1', '--out', str(out))
    assert run(*args, '--protocol', 'reference', '--form', 'levels') == 0
    made = from_json((out / 'forecast.json').read_bytes())
    windows = {row.asset: row.windows for row in made.rows}
    assert windows == dict.fromkeys(('corn_dce', 'csi300'), 450 - 2 - (31 + int(0.7 * 418) + 14))


# --- what is refused -----------------------------------------------------------------------------

SIMULATED = ('--simulate', '300', '--symbols', '2')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--data', 'nowhere.csv'), 'nowhere.csv'),
        ((*SIMULATED, '--bundle', 'nowhere'), 'nowhere'),
        ((*SIMULATED, '--seeds', '0'), 'seeds: 0; expected at least 1'),
        ((*SIMULATED, '--jobs', '0'), 'jobs: 0; expected at least 1'),
        ((*SIMULATED, '--folds', '0'), 'walk forward: 0 folds'),
        ((*SIMULATED, '--form', 'levels'), '--form: belongs to --protocol reference'),
        (
            (*SIMULATED, '--protocol', 'reference', '--folds', '2', '--rolling'),
            '--protocol reference: has features and one split of its own; leave out --folds, '
            '--rolling',
        ),
        (
            (*SIMULATED, '--bundle', 'x', '--seeds', '0', '--each'),
            '--bundle: nothing is trained; leave out --seeds, --each',
        ),
        (('--simulate', '90', '--symbols', 'A', 'B', '--each'), 'A: too little data to train on'),
        (('--simulate', '60', '--protocol', 'reference'), '60 bars leave no test window of 15'),
        ((*SIMULATED, '--config', 'nowhere.yaml'), 'nowhere.yaml'),
    ],
)
def test_a_wrong_call_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str, config: str
) -> None:
    given = args if {'--config', '--bundle'} & {*args} else (*args, '--config', config)
    assert run(*given) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith('heqis evaluate: ')
    assert message in error
    assert '\n' not in error


def test_an_unknown_symbol_and_a_setting_that_is_none_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    path = tmp_path / 'bars.csv'
    rows = [f'2024-01-{day:02d},10,11,9,10,100' for day in range(2, 12)]
    path.write_text('\n'.join(['date,open,high,low,close,volume', *rows]) + '\n', 'utf-8')
    assert run('--data', str(path), '--symbols', 'nobody', '--config', config) == 1
    assert 'no bars of nobody; the data has bars' in capsys.readouterr().err
    Path(config).write_text('ssed: 1\n', encoding='utf-8')
    assert run(*SIMULATED, '--config', config) == 1
    assert 'ssed' in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'file').write_text('')
    assert run(*SIMULATED, '--out', str(tmp_path / 'file' / 'out')) == 1
    captured = capsys.readouterr()
    assert 'cannot be made' in captured.err
    assert captured.out == ''


def test_without_torch_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert run(*SIMULATED) == 1
    assert 'pip install -r requirements/training.txt' in capsys.readouterr().err


# --- what is shown -------------------------------------------------------------------------------


def test_the_help_has_examples_of_both_uses_and_loads_no_torch() -> None:
    program = """
import argparse, sys
from heqis_training import __main__ as training
sys.argv = ['heqis', 'evaluate', '--help']
try:
    training.main()
finally:
    assert 'torch' not in sys.modules
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, '-c', program],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ('examples:', '--bundle output/bundles/ID', '--protocol reference', '--seeds N'):
        assert text in done.stdout


def test_a_terminal_gets_a_bar_with_what_is_done_and_the_time_left() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with evaluate.progress(console, 'models') as told:
        told('csi300, gru ERM, seed 0', 3, 8)
    shown = text.getvalue()
    assert 'csi300, gru ERM, seed 0' in shown
    assert '3/8' in shown
    assert 'models' in shown


def test_elsewhere_the_last_line_is_always_shown() -> None:
    text = io.StringIO()
    with evaluate.progress(Console(file=text, width=40), 'models') as told:
        for done in range(1, 201):
            told('a long name of an asset, Multi-GAN, seed 3', done, 200)
    assert text.getvalue() == '200/200 models: a long name of an asset, Multi-GAN, seed 3\n'
