# SPDX-License-Identifier: Apache-2.0
"""The forecast table of the reference protocol: Multi-GAN beside floors and rivals on real bars.

CSI 300, SSE 50, S&P 500 and DCE corn, each with networks of its own, and every setting from
config/training.benchmark.yaml. The floor of Multi-GAN's MAPE is persistence on the same windows.
Against each single generator (ERM and GAN) it counts the assets on which the paired bootstrap says
better, tie or worse. The whole table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from _harness import Row, main, say

from heqis_core.io.files import load_bars
from heqis_training.commands.evaluate import write_results
from heqis_training.contestants import MULTI_GAN, networks_of
from heqis_training.forecast import compete, reference_contest
from heqis_training.forecast_table import ForecastRow, to_markdown
from heqis_training.metrics import PERSISTENCE
from heqis_training.settings import TrainingSettings, load_settings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config' / 'training.benchmark.yaml'
ASSETS = ('csi300', 'sse50', 'sp500', 'corn_dce')
AIM_MAPE = 1.0
"""Most MAPE of Multi-GAN, as a ratio to persistence."""
AIM_BETTER = 2
"""Assets on which Multi-GAN is to be better than each single ERM and GAN; worse on none."""


def data_folder() -> Path:
    """Return where the daily bars are, there or not."""
    shared = os.environ.get('HEQIS_TEST_DATA') or ROOT.parent / 'shared' / 'data'
    return Path(shared) / 'benchmark_daily'


def settings_of(args: argparse.Namespace) -> TrainingSettings:
    """Return the settings of the file; fewer epochs for a look."""
    settings = load_settings(CONFIG)
    if not args.quick:
        return settings
    return msgspec.structs.replace(settings, fit=msgspec.structs.replace(settings.fit, epochs=2))


def mape_rows(rows: list[ForecastRow]) -> list[Row]:
    """Return Multi-GAN's MAPE beside persistence, and its skill, of each asset."""
    found = {(row.asset, row.model): row for row in rows}
    made = []
    for asset in dict.fromkeys(row.asset for row in rows):
        ours, floor = found[asset, MULTI_GAN], found[asset, PERSISTENCE]
        value, below = ours.figures['mape_pct'], floor.figures['mape_pct']
        case = f'{asset}, windows {ours.windows}, seeds {ours.seeds}'
        row = Row(case, f'{MULTI_GAN} MAPE', '%', value, floor=below, ratio=value / below)
        made.append(row.aiming(AIM_MAPE))
        made.append(Row(case, f'{MULTI_GAN} skill', '1', ours.figures['skill']))
    return made


def rival_rows(rows: list[ForecastRow], settings: TrainingSettings) -> list[Row]:
    """Return on how many assets Multi-GAN is better than each network, as good, or worse."""
    made = []
    for rival in networks_of(settings):
        if rival == MULTI_GAN:
            continue
        # A mark says what the rival is against Multi-GAN.
        marks: Counter[str] = Counter(row.mark for row in rows if row.model == rival)
        better, tie, worse = (
            Row(f'{MULTI_GAN} against {rival}', figure, 'assets', marks[mark])
            for figure, mark in (('better', 'worse'), ('tie', 'tie'), ('worse', 'better'))
        )
        if not rival.startswith('ensemble'):
            better = replace(better, aim=AIM_BETTER, reached=better.value >= AIM_BETTER)
            worse = worse.aiming(0)
        made += [better, tie, worse]
    return made


def measure(args: argparse.Namespace) -> list[Row]:
    """Train everything, print the table, return the figures."""
    folder = data_folder()
    if not folder.is_dir():
        say(f'skipped: no daily bars in {folder}; set HEQIS_TEST_DATA to the folder above it')
        return []
    settings = settings_of(args)
    contests = [
        reference_contest(asset, load_bars(folder / f'{asset}.csv')[0], settings, args.form)
        for asset in (args.assets[:1] if args.quick else args.assets)
    ]

    def told(text: str, done: int, total: int) -> None:
        say(f'{done}/{total} {text}')

    outcome = compete(contests, 1 if args.quick else args.seeds, args.jobs, args.ablation, told)
    print(to_markdown(outcome.table))
    if args.out is not None:
        write_results(args.out, outcome.table, {'choices.json': outcome.choices})
    rows = list(outcome.table.rows)
    return mape_rows(rows) + rival_rows(rows, settings)


def options(parser: argparse.ArgumentParser) -> None:
    """Add how much is trained."""
    listed: dict[str, Any] = {'nargs': '+', 'choices': ASSETS, 'default': list(ASSETS)}
    parser.add_argument('--assets', **listed, help='default: all')
    parser.add_argument('--seeds', type=int, default=5, help='of each network (default: 5)')
    parser.add_argument('--jobs', type=int, default=2, help='models at a time (default: 2)')
    parser.add_argument(
        '--form', choices=('relative', 'levels'), default='relative', help='of the 18 features'
    )
    parser.add_argument('--ablation', action='store_true', help='also without shrinkage')
    parser.add_argument('--out', type=Path, metavar='DIR', help='CSV, Markdown, JSON of the table')


if __name__ == '__main__':
    sys.exit(main('forecast', __doc__ or '', measure, options))
