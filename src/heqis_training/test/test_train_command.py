# SPDX-License-Identifier: Apache-2.0
"""The `heqis train` command: what it prints, what it refuses, that it stops and goes on."""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heqis_core
import heqis_training
from heqis_core.bundle import Bundle
from heqis_core.features.spec import FeatureItem, FeatureSpec, default_spec
from heqis_core.testing import wait_until
from heqis_training import dataset, splits, tables
from heqis_training.commands import train
from heqis_training.run_folder import hold_run, read_run
from heqis_training.settings import load_settings

DEADLINE_S = 60.0
CONFIG = """
encoder:
  {window: 4, factors: 2, width: 4, fit: {epochs: 1}}
generators:
  - {type: gru, window: 6, hidden: 8}
  - {type: lstm, window: 5, hidden: 8}
discriminators: [{window: 3, hidden: 8}]
fit: {epochs: 2, batch: 64}
tile: 16
"""
BARS = ['--simulate', '300', '--symbols', '3', '--device', 'cpu']


def run(*args: str) -> int:
    """Run `train` in this process."""
    parser = argparse.ArgumentParser(prog='heqis')
    train.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['train', *args])
    return int(parsed.func(parsed))


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Return the arguments of a training that takes a second and writes below `tmp_path`."""
    config = tmp_path / 'config.yaml'
    config.write_text(CONFIG)
    run_folder, out = tmp_path / 'run', tmp_path / 'out'
    return [*BARS, '--config', str(config), '--run', str(run_folder), '--out', str(out)]


def write_csv(path: Path, n_rows: int) -> Path:
    """Write simulated bars of one symbol without gaps as plain OHLCV."""
    table = tables.simulate(['600519.SH'], n_rows, 3)
    rows = ['date,open,high,low,close,volume']
    for t in range(n_rows):
        if np.isfinite(table.values[t, :5, 0]).all():
            day = np.datetime64(int(table.event_time_ns[t]), 'ns').astype('datetime64[D]')
            cells = [str(day), *(f'{value:.2f}' for value in table.values[t, :5, 0])]
            rows.append(','.join(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(rows) + '\n')
    return path


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Hold that the command ends with status 1 and one line on stderr; return that line."""
    capsys.readouterr()
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert error.startswith('heqis train: ')
    assert error.count('\n') == 1
    assert 'Traceback' not in error
    return error


# --- what it prints and writes -------------------------------------------------------------------


def test_the_last_line_is_json_and_names_run_and_bundle(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*small, '--json') == 0
    out, err = capsys.readouterr()
    assert out.count('\n') == 1
    said = json.loads(out)
    bundle = Bundle.load(said['bundle']['path'])
    manifest = bundle.manifest
    assert Path(said['bundle']['path']).is_absolute()
    assert said['bundle']['id'] == bundle.bundle_id
    assert said['run'] == str((tmp_path / 'run').resolve())
    assert said['trained_until_ns'] == manifest.trained_until_ns
    assert said['symbols'] == list(manifest.provenance.data.symbols)
    assert said['served'] == manifest.served
    assert said['selection']['scores'] == manifest.provenance.selection.scores
    models = [row['model'] for row in said['metrics']]
    assert models == ['gru', 'lstm', 'ensemble', 'persistence', 'majority class', 'buy and hold']
    told = ' '.join(err.split())
    assert 'No figure here is a statement of profit' in told
    for text in ('300 event times of 3 symbols', 'new run', 'epoch 1/1', 'epoch 2/2'):
        assert text in told


def test_without_json_the_table_and_the_bundle_go_to_stdout_and_the_run_has_its_files(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*small) == 0
    out, err = capsys.readouterr()
    (path,) = (tmp_path / 'out').iterdir()
    assert f'bundle {path.name} in {path}' in out
    served = Bundle.load(path).manifest.served
    for text in ('persistence', 'majority class', 'buy and hold', f'served: {served}, by '):
        assert text in out
    assert err == ''
    trained = read_run(tmp_path / 'run')
    assert trained.finished
    assert trained.curves.read_bytes().startswith(b'\x89PNG')
    assert trained.history.read_text().startswith('network,epoch,epochs,note,')
    assert {one.name for one in trained.tensorboard.iterdir()} >= {'encoder', 'gru', 'lstm'}


def test_started_again_it_says_that_nothing_is_left_and_gives_the_same_bundle(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*small, '--json') == 0
    first = json.loads(capsys.readouterr().out)
    assert run(*small, '--json') == 0
    out, err = capsys.readouterr()
    assert json.loads(out)['bundle'] == first['bundle']
    assert 'nothing is left to train' in err
    assert 'epoch 1' not in err


def test_the_default_folders_are_below_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.yaml').write_text(CONFIG)
    assert run(*BARS, '--config', 'config.yaml', '--json') == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said['run']).parent == tmp_path / 'output' / 'runs'
    assert Path(said['bundle']['path']).parent == tmp_path / 'output' / 'bundles'


def test_pretrain_gives_an_encoder_and_train_goes_on_with_it(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 'no encoder is trained there yet' in refused(capsys, *small, '--mode', 'train')
    assert run(*small, '--mode', 'pretrain', '--json') == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {'run', 'seconds'}
    assert (tmp_path / 'run' / 'encoder.onnx').exists()
    assert not (tmp_path / 'out').exists()
    assert run(*small, '--mode', 'train', '--json') == 0
    assert Bundle.load(json.loads(capsys.readouterr().out)['bundle']['path']).manifest.encoder


def test_options_come_on_top_of_the_file_and_the_file_on_top_of_the_defaults(
    small: list[str], tmp_path: Path
) -> None:
    spec = tmp_path / 'spec.json'
    spec.write_text(FeatureSpec((FeatureItem('return'), FeatureItem('rsi', {'n': 6}))).to_json())
    options = ['--seed', '3', '--num_epochs', '1', '--encoder_epochs', '3', '--window', '7']
    options += ['--train_fraction', '0.8', '--flat_band', '0.01', '--spec', str(spec)]
    assert run(*small, *options) == 0
    settings = load_settings(tmp_path / 'run' / 'settings.yaml')
    assert settings.seed == 3
    assert (settings.fit.epochs, settings.fit.batch) == (1, 64)
    assert (settings.encoder.fit.epochs, settings.encoder.width) == (3, 4)
    assert [part.window for part in settings.generators] == [7, 7]
    assert [part.hidden for part in settings.generators] == [8, 8]  # type: ignore[union-attr]
    assert (settings.split.train_fraction, settings.split.validation_fraction) == (0.8, 0.15)
    assert settings.flat_band == 0.01
    assert settings.tile == 16
    assert read_run(tmp_path / 'run').info.features == ('return_1', 'rsi_6')


def test_a_csv_file_trains_and_its_short_brother_is_refused_with_numbers(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write_csv(tmp_path / '600519.SH.csv', 400)
    assert run('--data', str(long), *small[4:]) == 0
    short = tmp_path / 'short' / '600519.SH.csv'
    short.parent.mkdir()
    short.write_text('\n'.join(long.read_text().splitlines()[:4]) + '\n')
    out = tmp_path / 'none'
    args = ['--data', str(short), '--run', str(tmp_path / 'second'), '--out', str(out)]
    error = refused(capsys, *args)
    assert 'too little data to train on: clean bars: 600519.SH 3.' in error
    assert 'needs 224 clean bars' in error
    assert not out.exists()
    assert not (tmp_path / 'second').exists()


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', 'nowhere.csv'], 'nowhere.csv'),
        (['--simulate', '0'], '0 simulated bars, expected at least 1'),
        (['--simulate', '300', '--symbols', '0'], '--symbols 0: expected names'),
        (
            ['--simulate', '300', '--num_epochs', '0'],
            '--num_epochs: Expected `int` >= 1',
        ),
        (['--simulate', '300', '--window', '1'], '--window: Expected `int` >= 2'),
        (['--simulate', '300', '--train_fraction', '2'], '--train_fraction: Expected'),
        (['--simulate', '300', '--flat_band', '-1'], '--flat_band: Expected'),
        (['--simulate', '300', '--config', 'nowhere.yaml'], 'nowhere.yaml: cannot be read'),
        (['--simulate', '300', '--spec', 'nowhere.json'], 'nowhere.json'),
        (['--simulate', '300', '--device', 'nonsense'], "device 'nonsense': expected auto, cpu"),
    ],
)
def test_a_wrong_argument_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('seed: 7\nfitt: {}\n', 'config.yaml:1: Object contains unknown field `fitt`; expected'),
        ('seed: 7\n\nfit:\n  epochs: many\n', 'config.yaml:4: fit.epochs: Expected `int`'),
        ('seed: 7\nfit:\n  epoch: 3\n', 'config.yaml:3: fit: Object contains unknown field'),
        (
            'generators:\n  - {type: gru}\n  - {type: cnn}\n',
            'config.yaml:3: generators[1].type: Invalid',
        ),
        ('generators:\n  - type: gru\n    window: 1\n', 'config.yaml:3: generators[0].window'),
        ('encoder: {window: 6}\n', 'config.yaml:1: encoder.window: '),
        ('horizons: [2, 3]\n', 'config.yaml: horizons are [2, 3], expected 1, then ascending'),
        ('signal_quantiles: [0.8, 0.2]\n', 'config.yaml: signal_quantiles are 0.8, 0.2'),
        ('seed: [\n', 'config.yaml:2: not YAML'),
        ('- 1\n', 'config.yaml:1: Expected `object`, got `array`'),
    ],
)
def test_a_wrong_config_is_named_by_file_line_and_field(
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    (tmp_path / 'config.yaml').write_text(text)
    assert f'heqis train: {tmp_path}/{message}' in refused(capsys, *small)
    assert [one.name for one in tmp_path.iterdir()] == ['config.yaml']


def test_a_spec_with_a_channel_that_is_not_there_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / 'spec.json'
    spec.write_text(FeatureSpec((FeatureItem('return', of='channel:pe_ttm'),)).to_json())
    assert 'pe_ttm' in refused(capsys, *small, '--spec', str(spec))
    long = write_csv(tmp_path / 'bars' / '600519.SH.csv', 400)
    error = refused(capsys, '--data', str(long), *small[4:], '--spec', str(spec))
    assert 'pe_ttm' in error
    assert not (tmp_path / 'out').exists()


def test_a_bundle_folder_that_cannot_be_written_loses_no_training(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'out').write_text('a file')
    error = refused(capsys, *small)
    assert f'{tmp_path}/out: cannot be written: ' in error
    assert 'choose another folder' in error
    assert run(*small[:-1], str(tmp_path / 'other')) == 0
    assert 'nothing is left to train' in capsys.readouterr().out
    assert len(list((tmp_path / 'other').iterdir())) == 1


def test_a_run_folder_in_use_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(tmp_path / 'config.yaml')
    table = tables.simulate(3, 300, settings.seed)
    known = dataset.head(table, splits.chronological(300, settings.split).test_from)
    data = dataset.fingerprint(known)
    with hold_run(tmp_path / 'run', settings, default_spec(True), data):
        assert f'process {os.getpid()} on ' in refused(capsys, *small)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('args', [[], ['--data', 'x', '--simulate', '3'], ['--simulate', 'x']])
def test_a_call_that_makes_no_sense_is_refused_by_the_parser(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*args)
    assert caught.value.code == 2


def test_the_help_has_examples_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run('--help')
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in (
        'examples:', '--num_epochs', '--simulate N', '--data PATH', '--json', '--config FILE',
        '{pretrain,train,all}', 'torchrun', 'no statement of profit',
    ):  # fmt: skip
        assert text in out


def test_without_torch_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert run('--simulate', '300') == 1
    assert 'pip install -r requirements/training.txt' in capsys.readouterr().err


# --- a process of its own ------------------------------------------------------------------------

PROGRAM = """
import argparse, json, sys
from heqis_training.commands import train
parser = argparse.ArgumentParser()
train.register(parser.add_subparsers())
assert 'torch' not in sys.modules
args = parser.parse_args(['train', *sys.argv[1:]])
status = args.func(args)
assert not [name for name in sys.modules if name.split('.')[0] in ('rclpy', 'heqis_ros')]
ours = [name for name in sys.modules if name.startswith(('heqis_core', 'heqis_training'))]
print(json.dumps([sys.modules[name].__file__ for name in ours]))
sys.exit(status)
"""


@pytest.mark.skipif(os.name == 'nt', reason='sends SIGINT to another process')
def test_ctrl_c_ends_with_one_line_and_status_130_and_the_same_command_goes_on(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = 12
    args = [*small, '--num_epochs', str(epochs)]
    args[args.index('--config') + 1] = str(tmp_path / 'patient.yaml')
    (tmp_path / 'patient.yaml').write_text(CONFIG.replace('batch: 64', 'batch: 32, patience: 99'))
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *args],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            checkpoint = tmp_path / 'run' / 'checkpoint.safetensors'
            wait_until(
                lambda: checkpoint.exists() or process.poll() is not None, DEADLINE_S, 'epoch 1'
            )
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    said = 'heqis train: interrupted; the same command goes on from here\n'
    assert process.returncode == 130, err
    assert err.endswith(said)
    loaded = {Path(file).resolve() for file in json.loads(out.splitlines()[-1])}
    assert loaded <= {path.resolve() for path in sources()}, 'what POSIX lacks is looked for there'
    assert not (tmp_path / 'out').exists()
    assert run(*args) == 0
    assert 'going on with the run that started at' in capsys.readouterr().out
    rows = read_run(tmp_path / 'run').history.read_text().splitlines()
    numbers = [int(row.split(',')[1]) for row in rows if row.startswith('gru,')]
    assert numbers == list(range(1, epochs + 1))


# --- what stands in the way of Windows -----------------------------------------------------------

POSIX_MODULES = {'fcntl', 'grp', 'pwd', 'pty', 'resource', 'syslog', 'termios', 'tty'}
POSIX_CALLS = {
    'chown', 'fork', 'forkpty', 'geteuid', 'getpgid', 'getuid', 'killpg', 'mkfifo', 'nice',
    'setsid', 'sched_getaffinity', 'sched_setaffinity', 'statvfs', 'sysconf', 'uname', 'wait4',
    'waitid', 'waitpid',
}  # fmt: skip
SIGNALS_EVERYWHERE = {'SIGINT', 'SIGTERM', 'SIG_DFL', 'signal'}
NOT_OF_TRAINING = ('tushare_store', 'journal_file', 'file_lock')
"""Modules of heqis_core that lock files as POSIX does; train, evaluate and export load neither."""
LINUX_ALONE = ('rknn_tool', 'rknn_worker', 'testing_convert')
"""The vendor of the NPU has its toolkit for no other system."""


def sources() -> list[Path]:
    """Return every module of ours that may be loaded on the way from bars to a bundle."""
    core = [
        path
        for path in Path(heqis_core.__file__).parent.rglob('*.py')
        if path.stem not in NOT_OF_TRAINING and not path.stem.startswith('testing')
    ]
    ours = Path(heqis_training.__file__).parent.rglob('*.py')
    return [*(path for path in ours if path.stem not in LINUX_ALONE), *core]


@pytest.mark.parametrize('path', sources(), ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_a_module_that_training_needs_asks_for_nothing_that_only_posix_has(path: Path) -> None:
    found: list[Any] = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module in POSIX_MODULES else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == 'os' and node.attr in POSIX_CALLS:
                found.append(f'os.{node.attr}')
            if node.value.id == 'signal' and node.attr not in SIGNALS_EVERYWHERE:
                found.append(f'signal.{node.attr}')
        elif isinstance(node, ast.Constant) and node.value in ('fork', 'forkserver'):
            found.append(node.value)
    assert found == []
