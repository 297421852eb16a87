# SPDX-License-Identifier: Apache-2.0
"""Processor time and memory of each process of a running graph: when it is idle, and under load.

Idle is a bar every five seconds. The bundle's models are tiny: the figures are those of the
processes and not of the models. Processor time is that of a process with its threads, in percent
of one core; memory is the resident set, and the unique set (what would be free without it).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from _harness import Row, main, say

from heqis_bringup.testing_demo import HEQIS
from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal
from heqis_core.testing_bundle import write_test_bundle

AIM_IDLE_PERCENT = 5.0
CASES = (
    ('idle, 8 symbols', 8, 0.2),
    ('50 bars/s, 8 symbols', 8, 50.0),
    ('1 bar/s, 5,400 symbols', 5400, 1.0),
)
START_S = 120
SETTLE_S = 5.0
MB = 1e6


def journal_works(path: Path) -> bool:
    """Whether a journal holds a frame."""
    try:
        with Journal.open(path, read_only=True, check=False) as journal:
            return journal.counts()['frames'] > 0
    except JournalError:
        return False


def processes_below(parent: psutil.Process) -> dict[str, psutil.Process]:
    """Return the processes of a graph by executable, from all that a process started."""
    found = {}
    for child in parent.children(recursive=True):
        words = [word for word in child.cmdline() if '/lib/heqis_' in word]
        if words:
            board = child.environ().get('HEQIS_BOARD', '')
            name = Path(words[0]).name
            found[f'{name} ({board})' if name == 'agent' else name] = child
    return found


class Graph:
    """One `heqis demo` with simulated bars, in the background."""

    def __init__(self, folder: Path, symbols: int, pace: float) -> None:
        """Start it; everything it writes goes to `folder`."""
        bundle = write_test_bundle(folder / 'bundles')
        self._journal = folder / 'run' / 'journal.db'
        command = (
            *(*HEQIS, 'demo', '--bundle', bundle, '--run-dir', folder / 'run'),
            *('--symbols', symbols, '--pace', pace, '--duration', 3600, 'dashboard_port:=0'),
        )
        self._log = (folder / 'log').open('w')
        self._process = subprocess.Popen(
            [str(word) for word in command], stdout=self._log, stderr=subprocess.STDOUT
        )

    def wait(self) -> None:
        """Wait until a frame has gone all the way."""
        deadline_s = time.monotonic() + START_S
        while not journal_works(self._journal):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f'no frame within {START_S} s:\n{self._log_tail()}')
            time.sleep(1.0)  # each look opens the journal: it is not to be measured

    def _log_tail(self) -> str:
        return Path(self._log.name).read_text(encoding='utf-8')[-2000:]

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes of the graph by executable."""
        return processes_below(psutil.Process(self._process.pid))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def measure(args: argparse.Namespace) -> list[Row]:
    """Run one graph after another."""
    rows: list[Row] = []
    for case, symbols, pace in CASES:
        say(f'{case}: {args.seconds:g} s')
        with tempfile.TemporaryDirectory() as folder:
            graph = Graph(Path(folder), symbols, pace)
            try:
                graph.wait()
                time.sleep(SETTLE_S)  # compilers and discovery come to rest
                rows += _watch(case, graph.processes(), args.seconds, idle=pace < 1)
            finally:
                graph.close()
    return rows


def _watch(
    case: str, processes: dict[str, psutil.Process], seconds: float, *, idle: bool
) -> list[Row]:
    before = {name: spent_s(process) for name, process in processes.items()}
    start = time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - start
    rows = []
    for name, process in sorted(processes.items()):
        percent = 100 * (spent_s(process) - before[name]) / lasted
        row = Row(case, f'{name} processor', '%', percent)
        rows.append(row.aiming(AIM_IDLE_PERCENT) if idle else row)
        memory = process.memory_full_info()
        rows.append(Row(case, f'{name} resident', 'MB', memory.rss / MB))
        rows.append(Row(case, f'{name} unique', 'MB', memory.uss / MB))
    return rows


def spent_s(process: psutil.Process) -> float:
    """Return the processor time of a process with its threads, seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--seconds', type=float, default=30.0, help='watched in each case; default %(default)s'
    )


if __name__ == '__main__':
    raise SystemExit(main('footprint', (__doc__ or '').splitlines()[0], measure, _options))
