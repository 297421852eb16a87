# SPDX-License-Identifier: Apache-2.0
"""Damage data files for some minutes and hold the readers to what must be true of them.

`python scripts/fuzz_readers.py --minutes 10` prints cases and findings; exit status 1 where an
invariant was broken. A finding is printed with the numbers that make it again (`--seed`, case),
and its file is kept in `--keep`. Real files are damaged too where `../shared/data` is there.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from heqis_core.testing_fuzz import OPERATIONS, Case, Operation, clean_files, mutate, verify

_REAL = (
    'ashare_daily/tushare_raw_2020_2024/600519.SH.csv',
    'ashare_daily/joinquant_qfq_limits_2005_2023/000004.XSHE.csv',
    'ashare_daily/tushare_factor_2023_2025/002594.SZ_techin.csv',
    'ashare_daily/wondertrader/SSE.600000Q_d.csv',
    'ashare_minute/SSE.600009Q_m1.csv',
    'benchmark_daily/csi300.csv',
    'benchmark_daily/corn_dce.csv',
    'futures_cn/CFFEX.IF.HOT_m5.csv.gz',
)
_ROWS = 40
_MOST = 5
"""Findings after which a run ends: more of the same help nobody."""


def main() -> int:
    """Run until the time is up; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog='fuzz_readers', description=__doc__)
    parser.add_argument('--minutes', type=float, default=1.0, help='default %(default)s')
    parser.add_argument('--seed', type=int, help='of all damage; default: another one each time')
    parser.add_argument('--keep', type=Path, default=Path('output/fuzz'), metavar='DIR')
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    draw, files = random.Random(seed), clean_files() + real_files()
    end, said = time.monotonic() + 60 * args.minutes, time.monotonic()
    results: Counter[str] = Counter()
    findings = 0
    print(f'seed {seed}, {len(files)} files, {args.minutes:g} minutes', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end and findings < _MOST:
            case = damaged(draw.choice(files), draw)
            try:
                results[verify(Path(folder), case)] += 1
            except Exception:
                findings += 1
                args.keep.mkdir(parents=True, exist_ok=True)
                kept = args.keep / f'{seed}-{results.total()}-{case.name}'
                kept.write_bytes(case.content)
                print(f'finding in {kept}:\n{traceback.format_exc()}', flush=True)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f'{results.total():,} cases: {dict(results)}', flush=True)
    print(f'{results.total() + findings:,} cases: {dict(results)}; {findings} findings')
    return 1 if findings else 0


def damaged(file: Case, draw: random.Random) -> Case:
    """Return the file with one to six damages."""
    operations = [
        Operation(draw.randrange(OPERATIONS), *(draw.randrange(1 << 20) for _ in range(3)))
        for _ in range(draw.randint(1, 6))
    ]
    return Case(file.name, mutate(file.content, file.name, operations))


def real_files() -> list[Case]:
    """Return the first rows of real files, none where there are none."""
    root = Path(__file__).resolve().parents[2] / 'shared' / 'data'
    files = []
    for name in _REAL:
        path = root / name
        if path.is_file():
            packed = path.name.endswith('.gz')
            content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
            head = b'\n'.join(content.split(b'\n')[:_ROWS]) + b'\n'
            files.append(Case(path.name, gzip.compress(head, mtime=0) if packed else head))
    return files


if __name__ == '__main__':
    sys.exit(main())
