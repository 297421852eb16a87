# SPDX-License-Identifier: Apache-2.0
"""The `heqis fetch` command: what it prints, its exit status, and that the token is nowhere."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('tushare')

from heqis_core.errors import ConfigError
from heqis_core.io.testing_tushare import TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import simulated_tables
from heqis_training import fetch

STOCKS = ['000001.SZ', '000858.SZ', '600519.SH']
NAMES = [*STOCKS, '510300.SH', '000300.SH']
START, MIDDLE = '20230102', '20230215'


@pytest.fixture
def server() -> Iterator[TushareServer]:
    with TushareServer(simulated_tables(STOCKS, 60), page_rows=25) as server:
        yield server


def command(*args: str) -> int:
    parser = argparse.ArgumentParser()
    fetch.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['fetch', *args])
    return int(parsed.func(parsed))


@pytest.fixture
def environment(server: TushareServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HEQIS_TUSHARE_URL', server.url)
    monkeypatch.setenv('TUSHARE_TOKEN', TOKEN)


ARGS = ['--start', START, '--end', MIDDLE]


@pytest.mark.usefixtures('environment')
def test_the_command_says_what_it_found_and_exits_with_1_for_unknown_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    universe = tmp_path / 'universe.txt'
    universe.write_text('[白酒]\n贵州茅台、五粮液、没有的\n[指数]\n沪深300\n')
    args = ['--universe', str(universe), *ARGS, '--out', str(tmp_path / 'a')]
    assert command(*args) == fetch.EXIT_FINDINGS
    out = capsys.readouterr().out
    assert 'line 2: 没有的: unknown: renamed or misspelt' in out
    assert 'line 4: 沪深300: ambiguous: could be 000300.SH' in out
    for text in ('symbols: stock', 'unresolved names', 'requests', 'bars in the store: valid'):
        assert text in out
    assert command(*args, '--allow_unresolved', '--json') == 0
    said = json.loads(capsys.readouterr().out)
    assert said['symbols'] == ['000858.SZ', '600519.SH']
    assert [one['text'] for one in said['unresolved']] == ['没有的', '沪深300']
    listed = (tmp_path / 'a' / '_vendor' / 'universe.csv').read_text()
    assert '600519.SH,贵州茅台,stock,20230102,,白酒,贵州茅台,' in listed
    assert ',,unknown,,,白酒,没有的,' in listed


@pytest.mark.usefixtures('environment')
def test_the_store_reads_as_one_data_set_of_other_tools(tmp_path: Path) -> None:
    pandas = pytest.importorskip('pandas')
    assert command('--symbols', *NAMES, *ARGS, '--out', str(tmp_path / 'a')) == 0
    bars = pandas.read_parquet(tmp_path / 'a')
    assert sorted(bars['ts_code'].unique()) == sorted(NAMES)
    assert (bars['ts_code'] == bars['symbol'].astype(str)).all()
    assert not bars.duplicated(['ts_code', 'trade_date']).any()
    daily = pandas.read_parquet(tmp_path / 'a' / '_vendor' / 'daily')
    assert len(daily) == (bars['raw_vol'].notna() & bars['ts_code'].isin(STOCKS)).sum()


@pytest.mark.usefixtures('environment')
def test_without_a_terminal_progress_is_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command('--symbols', STOCKS[0], *ARGS, '--out', str(tmp_path / 'a')) == 0
    out = capsys.readouterr().out
    assert '6/6 000001.SZ bars\n' in out
    assert '\x1b' not in out


def test_without_a_token_the_command_says_how_to_give_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv('TUSHARE_TOKEN', raising=False)
    monkeypatch.delenv('TUSHARE_TOKEN_FILE', raising=False)
    with pytest.raises(ConfigError, match='set TUSHARE_TOKEN'):
        command('--symbols', STOCKS[0], *ARGS, '--out', str(tmp_path / 'a'))


def test_the_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command('--help')
    out = capsys.readouterr().out
    for text in ('examples:', 'TUSHARE_TOKEN_FILE', '--refresh', 'Exit status: 0', '--rate N'):
        assert text in out


def test_the_token_is_nowhere_in_what_a_process_of_its_own_writes(
    server: TushareServer, tmp_path: Path
) -> None:
    secret = 'a-very-secret-token-of-this-test'
    program = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from heqis_training import fetch
import argparse
parser = argparse.ArgumentParser()
fetch.register(parser.add_subparsers(required=True))
args = parser.parse_args(sys.argv[1:])
sys.exit(args.func(args))
"""
    token_file = tmp_path / 'token'
    token_file.write_text(secret)
    token_file.chmod(0o600)
    for accepted, status in ((TOKEN, 1), (secret, 0)):
        with TushareServer(server.tables, token=accepted) as own:
            own.misbehave('http_500')
            environment = {
                **os.environ, 'PYTHONPATH': os.pathsep.join(sys.path),
                'HEQIS_TUSHARE_URL': own.url, 'TUSHARE_TOKEN_FILE': str(token_file),
            }  # fmt: skip
            environment.pop('TUSHARE_TOKEN', None)
            done = subprocess.run(
                [
                    sys.executable, '-c', program, 'fetch', '--symbols', STOCKS[0], *ARGS,
                    '--out', str(tmp_path / 'a'),
                ],
                env=environment, capture_output=True, timeout=100,
            )  # fmt: skip
        assert done.returncode == status, done.stderr.decode()
        assert secret.encode() not in done.stdout + done.stderr
        written = [path for path in (tmp_path / 'a').rglob('*') if path.is_file()]
        assert written
        assert not [path for path in written if secret.encode() in path.read_bytes()]
