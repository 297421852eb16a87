# SPDX-License-Identifier: Apache-2.0
"""`heqis bundle swap`: another bundle on a compute board while frames flow, or the one before."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from heqis_bringup.ros_env import join_local_graph
from heqis_core.errors import ConfigError

SWAPPED, REFUSED = 0, 1
"""Exit status; a call that got no answer is an error, and ends in 2."""

_EXAMPLES = """examples, on the compute board:
  heqis bundle swap /opt/heqis/bundles/ID                  verify, load, shadow, take over
  heqis bundle swap --roll-back                            back to the bundle before
  heqis bundle swap ID --node /lab/compute --timeout 900   another graph; time to build engines

Exit status: 0 served, 1 refused (the bundle that was served goes on), 2 no answer.
"""


def register(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `swap` to the commands of `heqis bundle`."""
    parser = actions.add_parser(
        'swap',
        help='swap the bundle of a compute board that runs',
        description='Serve another bundle on a compute board while frames flow.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'bundle', metavar='DIR', nargs='?', default='', help='bundle folder on that board'
    )
    parser.add_argument(
        '--node', default='/heqis/compute', help='compute node; default %(default)s'
    )
    parser.add_argument(
        '--roll-back', action='store_true', help='serve the bundle before the last swap again'
    )
    parser.add_argument(
        '--timeout', metavar='S', type=float, default=120.0, help='seconds; default %(default)g'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Call the node, say what happened; return the exit status."""
    if bool(args.bundle) == args.roll_back:
        raise ConfigError('give either a bundle folder, or --roll-back')
    if not args.node.startswith('/'):
        raise ConfigError(f'--node {args.node}: expected a full name such as /heqis/compute')
    join_local_graph()
    try:
        from heqis_bringup.swap_node import call_swap
    except ImportError as error:
        raise ConfigError(
            f'a swap is a call over ROS 2, and {error.name} is missing: run this on the compute '
            'board, in its environment'
        ) from error
    path = str(Path(args.bundle).absolute()) if args.bundle else ''
    answer = call_swap(args.node, path, args.roll_back, args.timeout)
    print(f'{"served" if answer.accepted else "REFUSED"}: {answer.message}')
    print(f'bundle     {answer.bundle_id}')
    print(f'before it  {answer.previous_id or "none: there is nothing to go back to"}')
    if answer.shadow_frames:
        share = 'none judged' if math.isnan(answer.agreement) else f'{answer.agreement:.1%} same'
        print(f'shadow     {answer.shadow_frames} frames, decisions {share}')
    return SWAPPED if answer.accepted else REFUSED
