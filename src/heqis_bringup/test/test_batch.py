# SPDX-License-Identifier: Apache-2.0
"""`heqis batch`: repeats itself bit for bit, keeps what it decided, names what it cannot read."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest

from heqis_bringup import batch
from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.errors import BundleError, ConfigError, DataError
from heqis_core.io.journal import Journal
from heqis_core.simulator import MarketSimulator
from heqis_core.testing_bundle import write_test_bundle

DAYS, SPLIT, SYMBOLS, SEED = 120, 70, 3, 4


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    simulator = MarketSimulator(SYMBOLS, SEED)
    blocks = [simulator.next_block() for _ in range(SPLIT)]
    return write_test_bundle(tmp_path / 'bundles', trained_until_ns=blocks[-1].event_time_ns)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    batch.register(parser.add_subparsers())
    args = parser.parse_args(['batch', *map(str, words), '--json'])
    assert args.func(args) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def simulated(bundle: Path) -> list[object]:
    return ['--bundle', bundle, '--symbols', SYMBOLS, '--seed', SEED, '--limit', DAYS]


def test_two_runs_are_equal_and_another_market_is_not(capsys, bundle):
    first, second = (run(capsys, *simulated(bundle)) for _ in range(2))
    assert first == second
    assert first['frames'] == DAYS - SPLIT
    assert first['decisions'] == first['frames'] * SYMBOLS == sum(first['actions'].values())
    assert first['signals'] > 0
    other = run(capsys, '--bundle', bundle, '--symbols', SYMBOLS, '--seed', 5, '--limit', DAYS)
    assert other['signals_digest'] != first['signals_digest']


def test_a_symbol_that_was_never_judged_is_named(capsys, bundle, tmp_path):
    simulator = MarketSimulator(SYMBOLS, SEED)
    lines = {name: [','.join(('date', *BAR_FIELDS))] for name in simulator.symbols}
    sparse = simulator.symbols[1]
    for i in range(DAYS):
        block = simulator.next_block()
        day = time.strftime('%Y-%m-%d', time.gmtime(block.event_time_ns / 1e9))
        for s, name in enumerate(simulator.symbols):
            if block.status[s] == BarStatus.VALID and (name != sparse or i % 20 == 0):
                lines[name].append(','.join([day, *(repr(float(v)) for v in block.values[:, s])]))
    for name, rows in lines.items():
        (tmp_path / f'{name}.csv').write_text('\n'.join(rows) + '\n')
    result = run(capsys, '--bundle', bundle, '--data', tmp_path)
    assert result['never_judged'] == [sparse]
    assert result['actions']['NONE'] < result['decisions']


def test_the_journal_holds_what_was_decided(capsys, bundle, tmp_path):
    path = tmp_path / 'batch.sqlite'
    result = run(capsys, *simulated(bundle), '--journal', path)
    with Journal.open(path, read_only=True) as journal:
        assert journal.signals_digest() == result['signals_digest']
        counts = journal.counts()
    assert counts['frames'] == result['frames']
    assert counts['signals'] == result['signals']


def test_what_cannot_be_read_is_named(capsys, bundle, tmp_path):
    with pytest.raises(ConfigError, match='--limit'):
        run(capsys, '--bundle', bundle)
    with pytest.raises(BundleError, match='nowhere'):
        run(capsys, '--bundle', tmp_path / 'nowhere', '--limit', 9)
    with pytest.raises(DataError, match=r'none\.csv'):
        run(capsys, '--bundle', bundle, '--data', tmp_path / 'none.csv')
