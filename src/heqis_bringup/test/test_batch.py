# SPDX-License-Identifier: Apache-2.0
"""`heqis batch`: repeats itself bit for bit, keeps what it decided, names what it cannot read."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heqis_bringup import batch
from heqis_core.bars import BAR_FIELDS, CLOSE, BarStatus
from heqis_core.decision import Action
from heqis_core.errors import BundleError, ConfigError, DataError
from heqis_core.io.journal import Journal
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle

DAYS, SPLIT, SYMBOLS, SEED = 120, 70, 3, 4


def write_bundle(folder: Path, seed: int) -> Path:
    simulator = MarketSimulator(SYMBOLS, SEED)
    blocks = [simulator.next_block() for _ in range(SPLIT)]
    return write_test_bundle(folder, seed, trained_until_ns=blocks[-1].event_time_ns)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / 'bundles', 0)


@pytest.fixture
def buyer(tmp_path: Path) -> Path:
    """Return a bundle that buys and sells often."""
    return write_bundle(tmp_path / 'bundles', 2)


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


def test_the_risk_rules_refuse_as_the_gate_does(capsys, buyer, tmp_path):
    plain = run(capsys, *simulated(buyer))
    rules, path = tmp_path / 'risk.yaml', tmp_path / 'batch.sqlite'
    rules.write_text('max_positions: 1\n')
    result = run(capsys, *simulated(buyer), '--risk', rules, '--journal', path)
    assert result['refused']['max_positions'] > 0
    assert plain['refused'] == {}
    assert result['actions']['SELL'] == plain['actions']['SELL']
    assert result['not_judged'] == plain['not_judged'], 'a refusal is none of its own'
    held: set[str] = set()
    with Journal.open(path, read_only=True) as journal:
        assert journal.counts()['refused'] == result['refused']['max_positions']
        for frame in journal.frames():
            said = list(zip(frame.symbols, frame.action, strict=True))
            held -= {symbol for symbol, action in said if action == Action.SELL}
            held |= {symbol for symbol, action in said if action == Action.BUY}
            assert len(held) <= 1
        assert {row.symbol for row in journal.holdings()} == held
    rules.write_text('max_positions: one\n')
    with pytest.raises(ConfigError, match=r'risk\.yaml:1: max_positions'):
        run(capsys, *simulated(buyer), '--risk', rules)


def test_what_is_at_its_limit_by_the_file_is_not_bought(capsys, buyer, tmp_path):
    table = simulated_table(SYMBOLS, DAYS, seed=SEED)
    days = table.event_time_ns.astype('datetime64[ns]').astype('datetime64[D]')
    rows = ['date,symbol,open,high,low,close,volume,up_limit,down_limit']
    for t, day in enumerate(days):
        for s in np.flatnonzero(table.status[t] == BarStatus.VALID):
            prices = ','.join(f'{x:.2f}' for x in table.values[t, :4, s])
            close = table.values[t, CLOSE, s]
            up = close if t % 2 else close + 1
            rows.append(f'{day},{table.symbols[s]},{prices},1000,{up:.2f},{close - 1:.2f}')
    path = tmp_path / 'bars.csv'
    path.write_text('\n'.join(rows))
    result = run(capsys, '--bundle', buyer, '--data', path)
    plain = tmp_path / 'plain.csv'
    plain.write_text('\n'.join(row.rsplit(',', 2)[0] for row in rows))
    free = run(capsys, '--bundle', buyer, '--data', plain)
    assert free['refused'] == {}
    assert 0 < result['refused']['price_limit'] < free['actions']['BUY']
    assert result['actions']['BUY'] + result['refused']['price_limit'] == free['actions']['BUY']
    assert result['actions']['SELL'] == free['actions']['SELL']
