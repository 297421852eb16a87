# SPDX-License-Identifier: Apache-2.0
"""Two boards for tests, each a `heqis up` of its own that knows the other by the link alone.

Nothing outside a test imports it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from heqis_bringup.testing_demo import HEQIS, heqis
from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import free_domain_id, wait_until
from heqis_core.testing_bundle import write_test_bundle

DAYS, TRAINED, SYMBOLS, SEED = 220, 100, 4, 11
MARKET = ('source:=simulator', f'symbols:={SYMBOLS}', f'seed:={SEED}', f'limit:={DAYS}')
FRAMES = DAYS - TRAINED


class Figures(NamedTuple):
    """What a journal holds."""

    frames: int
    signals: int
    digest: str


def make_bundle(folder: Path) -> Path:
    """Write a bundle that decides the market of these boards from day TRAINED on."""
    simulator = MarketSimulator(SYMBOLS, SEED)
    blocks = [simulator.next_block() for _ in range(TRAINED)]
    return write_test_bundle(folder, trained_until_ns=blocks[-1].event_time_ns)


def figures(path: Path) -> Figures:
    """Return what a journal holds now; nothing while there is none."""
    try:
        with Journal.open(path, read_only=True, check=False) as journal:
            counts = journal.counts()
            return Figures(counts['frames'], counts['signals'], journal.signals_digest())
    except JournalError:
        return Figures(0, 0, '')


def decided_by_batch(bundle: Path) -> Figures:
    """Return what the journal of both boards must hold in the end: what `heqis batch` decides."""
    market = ('--symbols', SYMBOLS, '--seed', SEED, '--limit', DAYS)
    done = heqis('batch', '--bundle', bundle, *market, '--json')
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return Figures(result['frames'], result['signals'], result['signals_digest'])


def wait_for(
    journal: Path, frames: int, boards: Sequence[subprocess.Popen[bytes]], timeout_s: float
) -> None:
    """Wait until so many frames are durable; raise AssertionError if a board ends before."""

    def there() -> bool:
        assert all(board.poll() is None for board in boards), 'a board has ended: see its log'
        return figures(journal).frames >= frames

    wait_until(there, timeout_s, f'{frames} frames are not decided')


@contextmanager
def board(
    target: str,
    folder: Path,
    *words: str,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one board in a DDS domain of its own; its output comes into `folder`/TARGET.log.

    `prefix` is what the command is run by. Every process of it is gone afterwards.
    """
    command = [
        *prefix, *HEQIS, 'up', '--runner', '--log-dir', str(folder / f'{target}-log'),
        target, *words,
    ]  # fmt: skip
    domain = {'ROS_DOMAIN_ID': str(free_domain_id())}
    with (folder / f'{target}.log').open('wb') as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **domain, **(env or {})},
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    children = []
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    for left in alive:
        left.kill()
    assert not alive, f'left behind: {[p.pid for p in alive]}'
