# SPDX-License-Identifier: Apache-2.0
"""From bar-in to signal-out over two processes: one symbol, 300, and the whole market.

The bundle has the default models at full size: windows of 60 × 32, GRU, LSTM and Transformer of
64, a convolutional encoder. Each bar goes the whole path there and back, then its bare parts are
run on the same arrays; the floor of a bar is their sum. See `_path.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _harness import Row, main, paired_ratio, say
from _models import NAMES, write_models
from _path import THREADS, Times, compute_loop, gateway_loop
from _two_processes import answer, other_process
from _ways import N_PORTS, open_ways

from heqis_core.testing import free_port

AIM = 1.5
"""Greatest ratio of path to floor for one symbol, at p50."""
AIM_MARKET_MS = 1000.0
AIM_ENGINES = 1.3
"""Greatest ratio of the whole market's path to its bare tiled engines, at p50."""
MARKET = 5400
ENGINES = ('encoder', *NAMES)
FLOOR = ('features', *ENGINES, 'transport')
"""Bare parts that add up to the floor."""


class Case(NamedTuple):
    """So many symbols through models of that tile, and how many bars are measured."""

    symbols: int
    tile: int
    bars: int

    @property
    def text(self) -> str:
        """Return what the table says."""
        symbols = '1 symbol' if self.symbols == 1 else f'{self.symbols:,} symbols'
        return f'{symbols}, tile {self.tile}, {self.bars} bars'


CASES = (Case(1, 1, 3000), Case(1, 64, 400), Case(300, 64, 200), Case(MARKET, 64, 40))
QUICK_CASES = (Case(1, 1, 400), Case(1, 64, 40), Case(300, 64, 20), Case(MARKET, 64, 4))


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure every case; about three minutes, a fifth of that with --quick."""
    cases = QUICK_CASES if args.quick else CASES
    with tempfile.TemporaryDirectory() as folder:
        for tile in {case.tile for case in cases}:
            write_models(Path(folder) / str(tile), tile)
        settings: dict[str, Any] = {
            'ports': [free_port() for _ in range(N_PORTS)],
            'control': free_port(),
            'dds': False,
            'models': folder,
        }
        with other_process(settings) as control:
            ways = open_ways(settings['ports'], False, first=True)
            try:
                control.recv_json()
                return [
                    row for case in cases for row in measure_case(settings, control, ways, case)
                ]
            finally:
                for way in ways.values():
                    way.close()


def measure_case(settings: dict[str, Any], control: Any, ways: Any, case: Case) -> list[Row]:
    """Measure one case."""
    say(f'{case.text}, {THREADS} threads')
    control.send_json(case._asdict())
    models = Path(settings['models']) / str(case.tile)
    path, times = gateway_loop(models, ways['bypass'], ways['bare'], case.symbols, case.bars)
    return case_rows(case, path, {**times, **control.recv_json()})


def obey(settings: dict[str, Any], ways: dict[str, Any], order: Any) -> Times:
    """Be the compute process for one case."""
    models = Path(settings['models']) / str(order['tile'])
    return compute_loop(models, ways['bypass'], ways['bare'], order['symbols'], order['bars'])


def case_rows(case: Case, path: list[float], times: Times) -> list[Row]:
    """Return path beside floor, and each part."""
    floor = np.sum([times[name] for name in FLOOR], axis=0)
    rows = []
    for percent in (50, 99, 99.9):
        ours, theirs = (float(np.percentile(values, percent)) for values in (path, floor))
        ratio = paired_ratio(path, floor) if percent == 50 else ours / theirs
        row = Row(case.text, f'path p{percent}', 'us', ours, theirs, None, ratio)
        rows.append(row.aiming(AIM) if percent == 50 and case.symbols == 1 else row)
    if case.symbols == MARKET:
        engines = np.sum([times[name] for name in ENGINES], axis=0)
        total, bare = (float(np.median(values)) / 1000 for values in (path, engines))
        rows.append(Row(case.text, 'path p50', 'ms', total).aiming(AIM_MARKET_MS))
        ratio = paired_ratio(path, list(engines))
        row = Row(case.text, 'path p50 over engines', 'ms', total, bare, None, ratio)
        rows.append(row.aiming(AIM_ENGINES))
    for name in (*FLOOR, 'windows'):
        rows.append(Row(case.text, f'bare {name} p50', 'us', float(np.median(times[name]))))
    return rows


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peer']:
        sys.exit(answer(json.loads(sys.argv[2]), obey))
    sys.exit(main('tick_to_signal', (__doc__ or '').splitlines()[0], measure))
