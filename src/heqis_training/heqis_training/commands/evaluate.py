# SPDX-License-Identifier: Apache-2.0
"""`heqis evaluate`: a bundle on bars it never saw, or Multi-GAN beside everything it must beat.

The work is in `evaluation` and `forecast`; torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_training.commands.common import add_bars, load_bars_of, needs_torch
from heqis_training.interrupt import raise_if_interrupted, remembered

if TYPE_CHECKING:
    from heqis_training.forecast import Contest, Form
    from heqis_training.forecast_table import ForecastTable
    from heqis_training.settings import TrainingSettings

Told = Callable[[str, int, int], None]

SEEDS = 5
WIDE, NARROW = 132, 100
"""Columns of a terminal from which a table is shown whole, and from which without prices."""
_LINE_EVERY_S = 10.0
"""Between two lines of progress where there is no terminal."""
_TRAINING_ONLY = (
    'config', 'spec', 'seeds', 'folds', 'rolling', 'each', 'jobs', 'protocol', 'form', 'ablation',
)  # fmt: skip
EXAMPLES = """examples:
  heqis evaluate --bundle output/bundles/ID --data prices/      # on the bars after its training
  heqis evaluate --data prices/ --config config/training.example.yaml --seeds 5 --jobs 4
  heqis evaluate --data prices/ --folds 4 --rolling --each --out output/forecast
  heqis evaluate --data benchmark_daily/ --protocol reference --ablation \\
      --config config/training.benchmark.yaml --jobs 4 --out output/forecast

Without --bundle, Multi-GAN and its rivals are trained: each generator alone (ERM), each with one
discriminator (GAN), all without discriminators, linear models, boosting. Beside them stand
persistence, the majority class and buy and hold. The test part is read once, at the end. No figure
is a statement of profit.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'evaluate',
        help='judge a bundle, or Multi-GAN and its rivals, on bars that training never saw',
        description='Print the forecast table: a bundle on the bars after its training, or '
        'Multi-GAN beside all that it must beat, trained alike on the same windows.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bars(parser)
    parser.add_argument('--bundle', metavar='DIR', help='judge this bundle; nothing is trained')
    parser.add_argument(
        '--out', metavar='DIR', type=Path, help='also write the table as CSV, Markdown and JSON'
    )
    trained = parser.add_argument_group('without --bundle')
    trained.add_argument(
        '--config', metavar='FILE', help='settings as YAML; default: those of train'
    )
    trained.add_argument('--spec', metavar='FILE', help='feature spec as JSON, as for train')
    trained.add_argument(
        '--seeds', type=int, metavar='N', help=f'trainings of each network; default {SEEDS}'
    )
    trained.add_argument(
        '--folds', type=int, metavar='K', help='walk forward over K test parts; default 1'
    )
    trained.add_argument(
        '--rolling', action='store_true', help='with --folds: forget bars as new ones come'
    )
    trained.add_argument(
        '--each', action='store_true', help='each symbol is an asset of its own, with own models'
    )
    trained.add_argument(
        '--jobs', type=int, metavar='J', help='processes that train at once; default 1'
    )
    trained.add_argument(
        '--protocol',
        choices=('reference',),
        help='the daily protocol of the literature: 18 features, 70/30, each symbol alone',
    )
    trained.add_argument(
        '--form',
        choices=('relative', 'levels'),
        help='with --protocol: features without a trend (default), or prices as they are',
    )
    trained.add_argument(
        '--ablation', action='store_true', help='also each network without shrinkage'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate as `args` say; print the table, or the error to stderr. Return the exit status."""
    if not needs_torch('evaluate'):
        return 1
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)  # a file has no edge to fold at
    try:
        _refuse_contradictions(args)
        if args.out is not None:
            make_folder(args.out)
        with remembered():
            if args.bundle:
                _judge_bundle(args, console)
            else:
                _compete(args, console)
            raise_if_interrupted()
    except HeqisError as error:
        print(f'heqis evaluate: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('heqis evaluate: interrupted; nothing was kept', file=sys.stderr)
        return 130
    return 0


def write_results(out: Path, table: ForecastTable, also: Mapping[str, object]) -> list[Path]:
    """Write a table as `forecast.csv`, `.md` and `.json`, and `also` as JSON by file name.

    Returns the paths; raises DataError for a folder that cannot be written.
    """
    import msgspec

    from heqis_training.checkpoint import write_durable
    from heqis_training.forecast_table import to_csv, to_json, to_markdown

    files = {
        'forecast.csv': to_csv(table).encode(),
        'forecast.md': to_markdown(table).encode(),
        'forecast.json': to_json(table),
    }
    for name, value in also.items():
        files[name] = msgspec.json.format(msgspec.json.encode(value), indent=1) + b'\n'
    make_folder(out)
    for name, data in files.items():
        write_durable(out / name, data)
    return [out / name for name in files]


def make_folder(out: Path) -> None:
    """Make the folder of the results; call it before anything is trained for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{out}: cannot be made ({error.strerror}); choose another') from error


def contests_of(args: argparse.Namespace, console: Console) -> list[Contest]:
    """Return what `args` let compete on: all symbols together, or each alone."""
    from heqis_core.features.spec import FeatureSpec
    from heqis_training.forecast import own_bars, plain_contest, reference_contest
    from heqis_training.settings import load_settings

    settings: TrainingSettings = load_settings(args.config)
    spec = FeatureSpec.load(args.spec) if args.spec else None
    table = load_bars_of(args, console, settings.seed, spec.channels if spec else ())
    if args.protocol:
        form: Form = args.form or 'relative'
        return [reference_contest(name, own, settings, form) for name, own in own_bars(table)]
    folds = 1 if args.folds is None else args.folds
    if args.each:
        return [
            plain_contest(name, own, settings, spec, folds, args.rolling)
            for name, own in own_bars(table)
        ]
    name = table.symbols[0] if len(table.symbols) == 1 else f'{len(table.symbols)} symbols'
    return [plain_contest(name, table, settings, spec, folds, args.rolling)]


@contextlib.contextmanager
def progress(console: Console, what: str) -> Iterator[Told]:
    """Give what is told of each thing that is done: a bar on a terminal, else some lines."""
    if not console.is_terminal:
        shown_s = time.monotonic()

        def line(text: str, done: int, total: int) -> None:
            nonlocal shown_s
            now_s = time.monotonic()
            if done == total or now_s - shown_s >= _LINE_EVERY_S:
                shown_s = now_s
                console.print(f'{done}/{total} {what}: {text}', soft_wrap=True, markup=False)

        yield line
        return
    columns = (
        TextColumn('{task.description:<40}', markup=False), BarColumn(20), MofNCompleteColumn(),
        TextColumn(what), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task('getting ready', total=None)
        yield lambda text, done, total: bar.update(
            task, description=text, completed=done, total=total
        )


def _judge_bundle(args: argparse.Namespace, console: Console) -> None:
    from heqis_core.bundle import Bundle
    from heqis_training.evaluation import judge_bundle

    bundle = Bundle.load(args.bundle)
    table = load_bars_of(args, console, bundle.manifest.provenance.seed, bundle.spec.channels)
    with progress(console, 'event times') as told:
        report = judge_bundle(
            bundle, table, lambda done, total: told(bundle.bundle_id, done, total)
        )
    _show(console, report.table)
    for note in report.notes:
        console.print(note, markup=False)
    console.print(f'decisions on judged windows: {_counts(report.actions)}', soft_wrap=True)
    console.print(f'not judged: {_counts(report.not_judged)}', soft_wrap=True)
    if args.out is not None:
        about = {
            'bundle_id': bundle.bundle_id,
            'trained_until_ns': bundle.manifest.trained_until_ns,
            'served': bundle.manifest.served,
            'decisions': report.actions,
            'not_judged': report.not_judged,
            'notes': report.notes,
        }
        _tell(console, write_results(args.out, report.table, {'bundle.json': about}))


def _compete(args: argparse.Namespace, console: Console) -> None:
    from heqis_training.forecast import compete

    contests = contests_of(args, console)
    seeds, jobs = (
        default if given is None else given
        for given, default in ((args.seeds, SEEDS), (args.jobs, 1))
    )
    with progress(console, 'models') as told:
        outcome = compete(contests, seeds, jobs, args.ablation, told)
    _show(console, outcome.table)
    if args.out is not None:
        also = {'choices.json': outcome.choices}
        _tell(console, write_results(args.out, outcome.table, also))


def _show(console: Console, table: ForecastTable) -> None:
    from heqis_training.forecast_table import SHOWN, to_rich

    shown = [name for name in SHOWN if console.width >= WIDE or not name.endswith('_price')]
    if console.width < NARROW:
        shown = ['mape_pct', 'accuracy_pct', 'skill']
    console.print(to_rich(table, shown))


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that would be ignored."""
    given = [
        name
        for name in _TRAINING_ONLY
        if getattr(args, name) is not None and getattr(args, name) is not False
    ]
    if args.bundle and given:
        raise ConfigError(f'--bundle: nothing is trained; leave out --{", --".join(given)}')
    if args.protocol:
        fixed = [name for name in ('folds', 'rolling', 'spec') if name in given]
        if fixed:
            raise ConfigError(
                f'--protocol {args.protocol}: has features and one split of its own; leave out '
                f'--{", --".join(fixed)}'
            )
    elif args.form:
        raise ConfigError('--form: belongs to --protocol reference; give both, or neither')


def _counts(counts: dict[str, int]) -> str:
    return ', '.join(f'{name} {count}' for name, count in counts.items()) or 'none'


def _tell(console: Console, paths: list[Path]) -> None:
    console.print(f'written: {", ".join(map(str, paths))}', soft_wrap=True, markup=False)
