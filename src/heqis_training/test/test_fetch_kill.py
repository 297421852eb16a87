# SPDX-License-Identifier: Apache-2.0
"""`heqis fetch` killed with SIGKILL at random moments: the next run makes the store whole.

The command runs in processes of its own, forked from one that has the imports done: what is tried
is the fetching, not the start of Python.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('tushare')

from heqis_core.io.testing_tushare import TOKEN, TushareServer
from heqis_core.io.testing_tushare_tables import simulated_tables
from heqis_training.testing_fork import ForkServer

STOCKS = ['000001.SZ', '000858.SZ', '600519.SH']
START, BEFORE, END = '20230102', '20230228', '20230301'
DEADLINE_S = 30.0
KILLS = 10
"""Of each of the two ways to ask: 20 in all."""
PROGRAM = """
import argparse, json, os, sys
import pyarrow.parquet, requests, tushare.pro.client
from heqis_core.io import tushare_bars
from heqis_training import fetch, fetch_run
parser = argparse.ArgumentParser()
fetch.register(parser.add_subparsers(required=True))

def serve(line):
    os.dup2(2, 1)
    args = parser.parse_args(json.loads(line))
    return args.func(args)
"""


class Command(ForkServer):
    """Runs `heqis fetch` in a new process at a time."""

    def __init__(self, url: str, log: Path) -> None:
        environment = {'HEQIS_TUSHARE_URL': url, 'TUSHARE_TOKEN': TOKEN}
        super().__init__(PROGRAM, log, environment, DEADLINE_S)

    def fetch(self, folder: Path, end: str = END) -> int:
        """Start fetching into a folder and return the process id."""
        words = ['fetch', '--symbols', *STOCKS, '--start', START, '--end', end, '--rate', '100000']
        return self.start(json.dumps([*words, '--out', str(folder)]))

    def run(self, folder: Path, end: str = END) -> None:
        """Fetch to the end."""
        self.fetch(folder, end)
        assert self.wait() == 0, self.log.read_text()


@pytest.fixture(scope='module')
def server() -> Iterator[TushareServer]:
    with TushareServer(simulated_tables(STOCKS, 60), page_rows=15) as server:
        yield server


@pytest.fixture(scope='module')
def command(server: TushareServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(server.url, tmp_path_factory.mktemp('log') / 'errors')
    yield command
    command.close()


@pytest.fixture(scope='module')
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted fetch."""
    folder = tmp_path_factory.mktemp('whole')
    command.run(folder)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def kill_somewhere(
    server: TushareServer, command: Command, folder: Path, n_requests: int, moment: random.Random
) -> bool:
    """Start fetching, kill it after a random number of requests and a moment; say if that hit."""
    server.questions.clear()
    after = moment.randint(1, n_requests)
    pid = command.fetch(folder)
    with server.asked:
        assert server.asked.wait_for(lambda: len(server.questions) >= after, DEADLINE_S)
        server.asked.wait_for(lambda: False, moment.random() * 0.02)
    os.kill(pid, signal.SIGKILL)
    return command.wait() == -signal.SIGKILL


@pytest.mark.parametrize('way', ['by_symbol', 'by_day'])
def test_killed_at_random_moments_and_resumed_the_store_equals_an_uninterrupted_fetch(
    server: TushareServer, command: Command, whole: Path, tmp_path: Path, way: str
) -> None:
    good = tree(whole)
    before = tmp_path / 'before'
    before.mkdir()
    if way == 'by_day':
        # One day of three symbols is missing: it is asked for as a whole.
        command.run(before, end=BEFORE)
    server.questions.clear()
    shutil.copytree(before, tmp_path / 'count')
    command.run(tmp_path / 'count')
    n_requests = len(server.questions)
    assert any('trade_date' in params for _, params in server.questions) == (way == 'by_day')
    assert tree(tmp_path / 'count') == good
    seed = random.randrange(1 << 32)
    moment = random.Random(seed)
    hits = 0
    for number in range(KILLS):
        folder = tmp_path / f'{number}'
        shutil.copytree(before, folder)
        hits += kill_somewhere(server, command, folder, n_requests, moment)
        command.run(folder)
        assert tree(folder) == good, f'seed {seed}, kill {number}'
    assert hits >= KILLS // 2, 'most of the kills came before the end'


def test_killed_again_and_again_in_one_store_it_still_gets_to_the_same_end(
    server: TushareServer, command: Command, whole: Path, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    moment = random.Random(seed)
    for _ in range(6):
        # Each run begins with the same four questions for names and the calendar.
        kill_somewhere(server, command, tmp_path / 'store', 4 + moment.randrange(4), moment)
    command.run(tmp_path / 'store')
    assert tree(tmp_path / 'store') == tree(whole), f'seed {seed}'
