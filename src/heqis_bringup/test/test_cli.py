# SPDX-License-Identifier: Apache-2.0
"""The `heqis` command: plug-in subcommands, what is missing, errors as one line."""

from __future__ import annotations

import argparse
import re
import sys
import types
from importlib import metadata

import pytest

from heqis_bringup import cli
from heqis_core.errors import DataError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, metadata.EntryPoint]:
    """Return the table of installed subcommands, empty at first."""
    points: dict[str, metadata.EntryPoint] = {}
    monkeypatch.setattr(cli, 'entry_points', lambda: points)
    return points


def install(
    points: dict[str, metadata.EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    func: object,
) -> None:
    module = types.ModuleType(f'some_package_{name}')

    def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        parser = subparsers.add_parser(name, help=f'the {name} of a test')
        parser.add_argument('--loud', action='store_true')
        parser.set_defaults(func=func)

    module.register = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    points[name] = metadata.EntryPoint(name, f'{module.__name__}:register', cli.GROUP)


def test_a_command_is_found_run_and_its_status_returned(
    installed: dict[str, metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def func(args: argparse.Namespace) -> int:
        seen.append(args.loud)
        return 7

    install(installed, monkeypatch, 'sing', func)
    assert cli.main(['sing', '--loud']) == 7
    assert seen == [True]


def test_only_the_command_that_is_asked_for_is_imported(
    installed: dict[str, metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(installed, monkeypatch, 'sing', lambda args: 0)
    installed['heavy'] = metadata.EntryPoint('heavy', 'no_such_module:register', cli.GROUP)
    assert cli.main(['sing']) == 0


def test_an_error_of_heqis_is_one_line_and_status_2(
    installed: dict[str, metadata.EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def func(args: argparse.Namespace) -> int:
        raise DataError('prices.csv:7: close is "x";\n expected a number')

    install(installed, monkeypatch, 'sing', func)
    assert cli.main(['sing']) == cli.EXIT_ERROR
    out, err = capsys.readouterr()
    assert (out, err) == ('', 'heqis sing: prices.csv:7: close is "x"; expected a number\n')


def test_ctrl_c_is_no_traceback(
    installed: dict[str, metadata.EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def func(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    install(installed, monkeypatch, 'sing', func)
    assert cli.main(['sing']) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == 'heqis sing: interrupted\n'


def test_an_unexpected_error_keeps_its_traceback(
    installed: dict[str, metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def func(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    install(installed, monkeypatch, 'sing', func)
    with pytest.raises(ZeroDivisionError):
        cli.main(['sing'])


def test_a_command_whose_package_is_not_installed_says_which_and_how_to_get_it(
    installed: dict[str, metadata.EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not installed
    assert cli.main(['train', '--data', 'x']) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert err.startswith('heqis train: this command comes with heqis_training, which is not')
    assert 'pip install -r requirements/training.txt' in err


def test_a_command_that_lacks_a_module_names_it(
    installed: dict[str, metadata.EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    installed['train'] = metadata.EntryPoint('train', 'no_such_torch:register', cli.GROUP)
    assert cli.main(['train']) == cli.EXIT_ERROR
    assert 'heqis_training needs no_such_torch' in capsys.readouterr().err


def test_help_lists_every_command_with_examples(
    installed: dict[str, metadata.EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(installed, monkeypatch, 'up', lambda args: 0)
    with pytest.raises(SystemExit) as end:
        cli.main(['--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for name in cli.OFFERED_BY:
        assert re.search(rf'\n    {name}\s', text)
    assert 'examples:' in text
    flat = ' '.join(text.split())
    assert 'workstation) (not installed here: heqis_training)' in flat
    assert 'or of both (not installed' not in flat


def test_without_a_command_the_help_comes_and_status_2(
    installed: dict[str, metadata.EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([]) == cli.EXIT_ERROR
    assert 'examples:' in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(
    installed: dict[str, metadata.EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(['sign'])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "'sign'" in err
    assert 'doctor' in err


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, 'version', lambda name: {'heqis_bringup': '9.8.7'}[name])
    with pytest.raises(SystemExit) as end:
        cli.main(['--version'])
    assert end.value.code == 0
    assert capsys.readouterr().out == 'heqis 9.8.7\n'
