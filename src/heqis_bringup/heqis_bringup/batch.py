# SPDX-License-Identifier: Apache-2.0
"""`heqis batch`: the decisions of a data set and a bundle without any graph, and their digest."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, Decisions, reason_names
from heqis_core.digest import signals_digest
from heqis_core.errors import ConfigError
from heqis_core.io.journal import Journal
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.source import Source, SourceConfig, open_source
from heqis_supervisor.bounds import Bounds, load_risk_rules
from heqis_supervisor.risk_gate import EventClock, GateState, judge

COMMIT_FRAMES = 256
_EXAMPLES = """examples:
  heqis batch --data prices/ --bundle output/bundles/ID
  heqis batch --symbols 8 --seed 7 --limit 2000 --bundle output/bundles/ID --json
  heqis batch --data prices/ --bundle output/bundles/ID --journal batch.sqlite
  heqis batch --data prices/ --bundle output/bundles/ID --risk config/risk.yaml
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `batch` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'batch',
        help='decide a whole data set without a graph',
        description='Run bars through pipeline, generators, strategy and risk gate in one loop. '
        'The digest equals that of a graph that streamed the same bars with the same bundle.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--bundle', metavar='DIR', type=Path, required=True)
    add('--data', metavar='PATH', help='CSV or Parquet, a file or a folder; default: simulator')
    add('--symbols', metavar='N', type=int, default=8, help='of the simulator; default 8')
    add('--seed', metavar='N', type=int, default=7, help='of the simulator; default 7')
    add(
        '--limit',
        metavar='N',
        type=int,
        help='event times to simulate, with those of the training',
    )
    add('--stream', default='daily', help="name in the decisions' keys; default %(default)s")
    add('--risk', metavar='FILE', type=Path, help='risk rules, like config/risk.yaml')
    add('--journal', metavar='FILE', type=Path, help='keep the decisions in a journal')
    add('--json', action='store_true', help='end with one line of JSON')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Decide, print a summary; return 0."""
    console = Console(highlight=False, stderr=args.json)
    bounds = Bounds(load_risk_rules(args.risk or ''))
    bundle = Bundle.load(args.bundle)
    bundle.verify_golden(OrtEngine)
    source = _source(args, bundle.spec.channels)
    clock, gate = EventClock(), GateState()
    made: list[Decisions] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('deciding', total=source.total)
        for decisions in decide_all(bundle, source, open_engine, stream=args.stream):
            fresh = judge(decisions, clock.now_ns(decisions), gate)
            made.append(bounds.judge(fresh))
            bounds.settle(durable=True)
            progress.advance(task)
    if args.journal is not None:
        _keep(args.journal, made)
    result = _result(args, bundle, source, made)
    console.print(_summary(result))
    console.print(f'signals digest {result["signals_digest"]}', soft_wrap=True)
    if args.json:
        print(json.dumps(result))
    return 0


def _source(args: argparse.Namespace, channels: Sequence[str]) -> Source:
    if args.data is None and not args.limit:
        raise ConfigError('a simulated batch needs --limit; or give --data')
    kind = 'file' if args.data else 'simulator'
    return open_source(
        SourceConfig(
            kind=kind,
            path=args.data or '',
            symbols=args.symbols,
            seed=args.seed,
            limit=args.limit,
            channels=channels,
        )
    )


def _keep(path: Path, made: list[Decisions]) -> None:
    with Journal.open(path) as journal:
        for start in range(0, len(made), COMMIT_FRAMES):
            journal.commit(made[start : start + COMMIT_FRAMES])


def _result(
    args: argparse.Namespace, bundle: Bundle, source: Source, made: list[Decisions]
) -> dict[str, Any]:
    codes = np.concatenate([d.action for d in made]) if made else np.zeros(0, np.uint8)
    actions = Counter({action.name: int((codes == action).sum()) for action in Action})
    return {
        'bundle': {'id': bundle.bundle_id, 'path': str(args.bundle)},
        'symbols': list(source.symbols),
        'bars_rejected': sum(source.counts.values()),
        'frames': len(made),
        'decisions': len(codes),
        'signals': actions['BUY'] + actions['SELL'],
        'actions': dict(actions),
        'not_judged': _reasons(made),
        'never_judged': _never_judged(made),
        'refused': _refused(made),
        'signals_digest': signals_digest(lambda: made),
    }


def _reasons(made: list[Decisions]) -> dict[str, int]:
    """Return how many decisions were NONE before the gate, by each reason that they give."""
    found: Counter[str] = Counter()
    for decisions in made:
        none = (decisions.action == Action.NONE) & ~decisions.is_refused()
        for value, count in zip(
            *np.unique(decisions.reasons[none], return_counts=True), strict=True
        ):
            found.update(dict.fromkeys(reason_names(int(value)), int(count)))
    return dict(found)


def _refused(made: list[Decisions]) -> dict[str, int]:
    """Return how many signals the gate refused, by its reason."""
    found: Counter[str] = Counter()
    for decisions in made:
        found.update(decisions.refusals())
    return dict(found)


def _never_judged(made: list[Decisions]) -> list[str]:
    """Return the symbols that the strategy never answered, as of one with too sparse bars."""
    if not made:
        return []
    judged = np.any([(d.action != Action.NONE) | d.is_refused() for d in made], axis=0)
    return [name for name, ever in zip(made[0].symbols, judged, strict=True) if not ever]


def _summary(result: dict[str, Any]) -> Table:
    table = Table(title=f'batch of bundle {result["bundle"]["id"]}', show_header=False)
    rows = {
        'symbols': _some(result['symbols']),
        'frames': result['frames'],
        'bars refused': result['bars_rejected'],
        'decisions': ', '.join(f'{n} {name}' for name, n in result['actions'].items()),
        'not judged': ', '.join(f'{name} {n}' for name, n in result['not_judged'].items()),
        'refused': ', '.join(f'{name} {n}' for name, n in result['refused'].items()),
    }
    if result['never_judged']:
        rows['never judged'] = (
            f'{_some(result["never_judged"])}: no window of theirs was ever full, or no bar good'
        )
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _some(names: list[str]) -> str:
    return ' '.join(names[:12]) + (f' … ({len(names)})' if len(names) > 12 else '')
