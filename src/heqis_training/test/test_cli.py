# SPDX-License-Identifier: Apache-2.0
"""The `heqis train` command: what it prints, what it refuses, and that it runs without ROS."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bundle import Bundle
from heqis_training import cli, tables

SMALL = ['--simulate', '300', '--symbols', '3', '--epochs', '2', '--encoder_epochs', '2']


def run(*args: str) -> int:
    """Run `train` in this process."""
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['train', *args])
    return int(parsed.func(parsed))


def write_csv(path: Path, n_rows: int) -> Path:
    """Write simulated bars of one symbol without gaps as plain OHLCV."""
    table = tables.simulate(['600519.SH'], n_rows, 3)
    rows = ['date,open,high,low,close,volume']
    for t in range(n_rows):
        if np.isfinite(table.values[t, :5, 0]).all():
            day = np.datetime64(int(table.event_time_ns[t]), 'ns').astype('datetime64[D]')
            rows.append(
                ','.join([str(day), *(f'{value:.2f}' for value in table.values[t, :5, 0])])
            )
    path.write_text('\n'.join(rows) + '\n')
    return path


def test_the_last_line_is_json_and_names_a_sound_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, '--out', str(tmp_path), '--json') == 0
    out, err = capsys.readouterr()
    assert out.count('\n') == 1
    said = json.loads(out)
    bundle = Bundle.load(said['bundle']['path'])
    assert Path(said['bundle']['path']).is_absolute()
    assert said['bundle']['id'] == bundle.bundle_id
    assert said['trained_until_ns'] == bundle.manifest.trained_until_ns
    assert said['symbols'] == list(bundle.manifest.provenance.data.symbols)
    assert said['windows']['training'] > 64
    assert said['metrics'][0]['model'] == 'gru'
    assert 'No figure here is a statement of profit' in ' '.join(err.split())


def test_without_json_the_table_and_the_bundle_go_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, '--out', str(tmp_path)) == 0
    out = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert f'bundle {path.name} in {path}' in out
    for text in ('persistence', 'majority class', 'buy and hold', 'best epoch'):
        assert text in out


def test_a_csv_file_trains_and_its_short_brother_is_refused_with_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write_csv(tmp_path / '600519.SH.csv', 400)
    assert run('--data', str(long), *SMALL[4:], '--out', str(tmp_path / 'out')) == 0
    short = tmp_path / 'short' / '600519.SH.csv'
    short.parent.mkdir()
    short.write_text('\n'.join(long.read_text().splitlines()[:4]) + '\n')
    capsys.readouterr()
    assert run('--data', str(short), '--out', str(tmp_path / 'none')) == 1
    error = capsys.readouterr().err
    assert 'heqis train: too little data to train on: clean bars: 600519.SH 3.' in error
    assert 'needs 224 clean bars' in error
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--data', 'nowhere.csv'], 'nowhere.csv'),
        (['--simulate', '0'], '0 simulated bars'),
        (['--simulate', '300', '--symbols', '0'], '--symbols 0: expected names'),
        (['--simulate', '300', '--num_epochs', '0'], 'epochs is 0'),
        (['--simulate', '300', '--window', '0'], 'window is 0'),
        (['--simulate', '300', '--train_fraction', '2'], 'train_fraction is 2'),
        (['--simulate', '300', '--flat_band', '-1'], 'flat_band is -1'),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run(*args, '--out', str(tmp_path / 'out')) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith('heqis train: ')
    assert message in error
    assert 'Traceback' not in error


@pytest.mark.parametrize('args', [[], ['--data', 'x', '--simulate', '3'], ['--simulate', 'x']])
def test_a_call_that_makes_no_sense_is_refused_by_the_parser(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*args)
    assert caught.value.code == 2


def test_the_help_has_examples_and_the_alias(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run('--help')
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in ('examples:', '--num_epochs', '--simulate N', '--data PATH', '--json'):
        assert text in out


def test_without_torch_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert run('--simulate', '300') == 1
    assert 'pip install -r requirements/training.txt' in capsys.readouterr().err


def test_a_process_of_its_own_loads_torch_late_and_no_ros_and_gives_the_same_bundle(
    tmp_path: Path,
) -> None:
    assert run(*SMALL, '--out', str(tmp_path / 'here')) == 0
    program = f"""
import argparse, sys
from heqis_training import cli
parser = argparse.ArgumentParser()
cli.register(parser.add_subparsers())
assert 'torch' not in sys.modules
args = parser.parse_args(['train', *{SMALL!r}, '--out', {str(tmp_path / 'there')!r}])
assert args.func(args) == 0
assert 'torch' in sys.modules
assert not [name for name in sys.modules if name.split('.')[0] in ('rclpy', 'heqis_ros')]
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, '-c', program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / 'there') == os.listdir(tmp_path / 'here')
