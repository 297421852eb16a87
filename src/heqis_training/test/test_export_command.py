# SPDX-License-Identifier: Apache-2.0
"""The `heqis export` command: a bundle or loose files of a finished run, and what it refuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heqis_core.bundle import Bundle
from heqis_training import tables
from heqis_training.bundling import write_run_bundle
from heqis_training.commands import export
from heqis_training.recipe import run_training
from heqis_training.run_folder import Run, finish_run, read_run
from heqis_training.settings import (
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
)

SETTINGS = TrainingSettings(
    encoder=EncoderSettings(window=4, factors=2, width=4, fit=FitSettings(epochs=1)),
    generators=(GruSettings(window=6, hidden=8), LstmSettings(window=5, hidden=8)),
    discriminators=(),
    fit=FitSettings(epochs=1),
    tile=16,
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('heqis_training.monitor.Curves._draw', lambda curves: None)
        table = tables.simulate(3, 300, seed=5)
        yield run_training(table, tmp_path_factory.mktemp('run'), SETTINGS)


def run(*args: str) -> int:
    """Run `export` in this process."""
    parser = argparse.ArgumentParser(prog='heqis')
    export.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['export', *args])
    return int(parsed.func(parsed))


@pytest.mark.parametrize('target', [[], ['--target', 'all']])
def test_all_is_the_bundle_that_training_would_have_written(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: list[str]
) -> None:
    assert run('--run', str(trained.path), '--out', str(tmp_path / 'out'), *target) == 0
    (path,) = (tmp_path / 'out').iterdir()
    assert capsys.readouterr().out == f'bundle {path.name} in {path}\n'
    assert Bundle.load(path).manifest.candidates() == ('gru', 'lstm', 'ensemble')
    assert write_run_bundle(trained, tmp_path / 'again').bundle_id == path.name


@pytest.mark.parametrize(
    ('target', 'models'), [('encoder', ['encoder']), ('generators', ['gru', 'lstm'])]
)
def test_one_kind_of_model_comes_with_scaler_and_spec_and_each_file_is_printed(
    trained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    models: list[str],
) -> None:
    out = tmp_path / 'a folder' / 'onnx'
    assert run('--run', str(trained.path), '--target', target, '--out', str(out)) == 0
    expected = sorted([*(f'{name}.onnx' for name in models), 'features.json', 'scaler.json'])
    assert sorted(path.name for path in out.iterdir()) == expected
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [str(out / name) for name in expected]


def test_the_default_folder_is_that_of_training(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run('--run', str(trained.path)) == 0
    (path,) = (tmp_path / 'output' / 'bundles').iterdir()
    assert Bundle.load(path)


@pytest.mark.parametrize('target', ['all', 'encoder', 'generators'])
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    trained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    monkeypatch.setattr('heqis_training.monitor.Curves._draw', lambda curves: None)
    table = tables.simulate(3, 300, seed=5)
    begun = run_training(table, tmp_path / 'begun', SETTINGS, mode='pretrain')
    lying = run_training(table, tmp_path / 'lying', SETTINGS, mode='pretrain')
    finish_run(lying)
    assert read_run(lying.path).finished
    (tmp_path / 'file').write_text('')
    out = tmp_path / 'out'
    for folder, into, message in (
        (tmp_path / 'nowhere', out, 'name the folder of a run of heqis train'),
        (tmp_path, out, 'name the folder of a run of heqis train'),
        (begun.path, out, 'training is not over; run `heqis train` to its end first'),
        (lying.path, out, 'best.safetensors'),
        (trained.path, tmp_path / 'file', 'file: cannot be written'),
    ):
        assert run('--run', str(folder), '--out', str(into), '--target', target) == 1
        said, error = capsys.readouterr()
        assert error.startswith('heqis export: ')
        assert error.count('\n') == 1
        assert message in error
        assert said == ''
    assert not out.exists()


def test_a_target_that_is_not_known_and_no_run_are_refused_by_the_parser() -> None:
    for args in (['--run', 'x', '--target', 'engine'], []):
        with pytest.raises(SystemExit) as caught:
            run(*args)
        assert caught.value.code == 2


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run('--help')
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in ('examples:', '--run DIR', '{all,encoder,generators}', 'output/bundles'):
        assert text in out


def test_without_torch_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert run('--run', 'x') == 1
    assert 'pip install -r requirements/training.txt' in capsys.readouterr().err
