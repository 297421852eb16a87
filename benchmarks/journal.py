# SPDX-License-Identifier: Apache-2.0
"""Signals made durable per second, beside bare SQLite rows with the same durability.

Bare is the least that could do the job: one row of 200 bytes a signal, WAL, `synchronous=FULL`,
one transaction a batch. Ours adds the packed frame with every decision, the index of signals,
checksum, stamps and idempotence. Rounds of both alternate; ratios are medians over pairs.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _harness import Row, main, paired_ratio, say

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import N_STAGES
from heqis_core.io.journal import Journal

ROW_BYTES = 200
DAY_NS = 86_400_000_000_000
Batch = Callable[[], float]
"""Writes one batch and returns how long it took, in seconds."""


def frames(n_symbols: int, n_signals: int) -> Iterator[Decisions]:
    """Yield frames without end; `n_signals` of their decisions are a BUY."""
    symbols = tuple(f'{i:06d}.SH' for i in range(n_symbols))
    rng = np.random.default_rng(7)
    seq = 0
    while True:
        action = np.full(n_symbols, Action.HOLD, np.uint8)
        action[:n_signals] = Action.BUY
        yield Decisions(
            'bench',
            1,
            seq,
            seq * DAY_NS,
            0,
            '0123456789abcdef',
            'gru',
            symbols,
            action,
            np.full(n_symbols, Reason.UP, np.uint32),
            rng.random(n_symbols, np.float32),
            np.ones(n_symbols, np.float32),
            rng.random((n_symbols, 3), np.float32),
            rng.random(n_symbols, np.float32),
            np.full(n_symbols, seq * DAY_NS, np.int64),
            np.ones(N_STAGES, np.int64),
        )
        seq += 1


def ours(journal: Journal, source: Iterator[Decisions], per_batch: int) -> Batch:
    """Return a function that commits one batch of frames."""

    def batch() -> float:
        items = [next(source) for _ in range(per_batch)]
        start = time.perf_counter()
        new = journal.commit(items)
        took = time.perf_counter() - start
        assert all(new)
        return took

    return batch


def bare(db: sqlite3.Connection, n_rows: int) -> Batch:
    """Return a function that writes one batch of plain rows."""
    payload = bytes(ROW_BYTES)

    def batch() -> float:
        rows = [(payload,)] * n_rows
        start = time.perf_counter()
        db.execute('BEGIN IMMEDIATE')
        db.executemany('INSERT INTO signals (body) VALUES (?)', rows)
        db.execute('COMMIT')
        return time.perf_counter() - start

    return batch


def open_bare(path: Path) -> sqlite3.Connection:
    """Open a database with the durability of the journal."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute('PRAGMA journal_mode=WAL')
    db.execute('PRAGMA synchronous=FULL')
    db.execute('CREATE TABLE signals (id INTEGER PRIMARY KEY, body BLOB NOT NULL)')
    return db


def case(folder: Path, name: str, shape: tuple[int, int, int], rounds: int) -> list[Row]:
    """Measure one shape: symbols a frame, signals a frame, frames a batch."""
    n_symbols, n_signals, per_batch = shape
    say(f'{name} …')
    n_rows = n_signals * per_batch
    place = Path(tempfile.mkdtemp(dir=folder))
    db = open_bare(place / 'bare.sqlite')
    with Journal.open(place / 'journal.sqlite') as journal:
        pair = ours(journal, frames(n_symbols, n_signals), per_batch), bare(db, n_rows)
        for batch in pair:
            batch()
        times = np.array([[batch() for batch in pair] for _ in range(rounds)]) * 1e6
    db.close()
    per_signal = times / n_rows
    p99 = np.percentile(times, 99, axis=0)
    speed = Row(
        name,
        'time per signal, p50',
        'us',
        float(np.median(per_signal[:, 0])),
        floor=float(np.median(per_signal[:, 1])),
        ratio=paired_ratio(times[:, 0], times[:, 1]),
    )
    tail = Row(name, 'commit p99', 'us', *map(float, p99), ratio=float(p99[0] / p99[1]))
    rates = n_rows * rounds / times.sum(axis=0) * 1e6
    rate = Row(
        name,
        'signals made durable',
        '1/s',
        float(rates[0]),
        floor=float(rates[1]),
        ratio=float(rates[0] / rates[1]),
    )
    # 1.25 times the time of bare SQLite is 0.8 of its rate.
    return [speed.aiming(1.25), tail.aiming(3.0), rate]


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure every shape."""
    rounds = 40 if args.quick else 300
    shapes = {
        '1 symbol, batches of 1': (1, 1, 1),
        '1 symbol, batches of 100': (1, 1, 100),
        '3 symbols, batches of 10': (3, 3, 10),
        '3 symbols, batches of 100': (3, 3, 100),
        '5400 symbols, 200 signals, batches of 1': (5400, 200, 1),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, shape in shapes.items():
            rows += case(Path(folder), name, shape, rounds)
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    """Add where to write."""
    parser.add_argument('--folder', help='where to write: the disk that is measured')


if __name__ == '__main__':
    sys.exit(main('journal', __doc__ or '', measure, options))
