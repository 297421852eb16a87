# SPDX-License-Identifier: Apache-2.0
"""Kill the writer of a journal again and again, and look each time at what it had acknowledged.

`python scripts/kill_journal.py --kills 2000` prints a line every hundred kills; exit status 1 when
a frame was lost, twice there, or not as it was made. Its journal is then kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal
from heqis_core.testing_journal import check_after_crash, kill_writer

_KILLS_EACH = 5
"""Kills of writers of one journal; then a new one, so that each look stays short."""


def main() -> int:
    """Kill as often as was asked; return 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(prog='kill_journal', description=__doc__)
    parser.add_argument('--kills', type=int, default=2000, help='default %(default)s')
    parser.add_argument('--seed', type=int, help='default: another one each time')
    parser.add_argument('--folder', type=Path, help='where to write: the disk that is tested')
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    rng, started_s, frames = random.Random(seed), time.monotonic(), 0
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix='kill-journal-'))
    print(f'seed {seed}, {args.kills} kills, in {folder}', flush=True)
    for kill in range(args.kills):
        path = folder / f'{kill // _KILLS_EACH}.sqlite3'
        if kill % _KILLS_EACH == 0:
            shutil.rmtree(folder)
            folder.mkdir()
            Journal.open(path).close()
            before = 0
        acknowledged = kill_writer(path, rng)
        try:
            n = check_after_crash(path, acknowledged)
        except (AssertionError, JournalError) as error:
            print(f'kill {kill}: {acknowledged} acknowledged: {error}; kept in {path}')
            return 1
        frames, before = frames + n - before, n
        if (kill + 1) % 100 == 0:
            took_s = time.monotonic() - started_s
            print(f'{kill + 1} kills, {frames:,} frames, none lost, {took_s:.0f} s', flush=True)
    shutil.rmtree(folder)
    print(f'{args.kills} kills: {frames:,} frames, each acknowledged one there once')
    return 0


if __name__ == '__main__':
    sys.exit(main())
