# SPDX-License-Identifier: Apache-2.0
"""`heqis engines`: choose the engine of a bundle on this board and build it ahead of time.

A build takes minutes, the supervisor gives a node one to be configured: what was built here lies
in the cache when the node asks for it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from heqis_compute.engines.probe import ENGINES, candidates
from heqis_compute.engines.tensorrt_build import PRECISIONS, BuildFlags
from heqis_core.bundle import Bundle
from heqis_core.engine_probe import Choice, probe
from heqis_core.io.ort_engine import OrtEngine

_EXAMPLES = """examples, in the folder in which `heqis up compute` is started:
  heqis engines --bundle output/bundles/ID
  heqis engines --bundle output/bundles/ID --engine tensorrt --precision fp16
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `engines` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'engines',
        help="choose and build the engines of a bundle's generators on this board",
        description='Try the engines in their order on every generator of a bundle, as the '
        'compute node does: build, compare with the golden outputs, keep in the cache. Says '
        'what runs, why others do not, and the command of trtexec for the same build.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--bundle', metavar='DIR', type=Path, required=True)
    add('--engine', choices=ENGINES, default='auto', help='default %(default)s')
    add('--precision', choices=PRECISIONS, default='fp32', help='default %(default)s')
    add('--dla', action='store_true', help='use the DLA where the chip has one')
    add('--cache', metavar='DIR', type=Path, default=Path('run/engines'), help='%(default)s')
    add('--json', action='store_true', help='print one line of JSON instead')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Choose and build, print what came out; return 0. HeqisError if nothing works."""
    bundle = Bundle.load(args.bundle)
    bundle.verify_golden(OrtEngine)
    # The commands of trtexec, and why a cached engine was not used, go to stderr.
    logging.basicConfig(format='%(message)s')
    logging.getLogger('heqis_compute.engines').setLevel(logging.INFO)
    flags = BuildFlags(args.precision, args.dla)
    choice = probe(candidates(args.engine, bundle, flags, args.cache))
    print(json.dumps(_result(bundle, choice)) if args.json else _text(bundle, choice))
    return 0


def _result(bundle: Bundle, choice: Choice) -> dict[str, object]:
    return {
        'bundle': bundle.bundle_id,
        'engine': choice.kind,
        'passed_over': dict(choice.passed_over),
        'counters': dict(choice.counters),
    }


def _text(bundle: Bundle, choice: Choice) -> str:
    lines = [f'bundle {bundle.bundle_id}: its generators run on {choice.kind}']
    lines += [f'  {kind} is passed over: {reason}' for kind, reason in choice.passed_over]
    lines += [f'  {name} {value}' for name, value in choice.counters.items()]
    return '\n'.join(lines)
