# SPDX-License-Identifier: Apache-2.0
"""`heqis kill-switch`: stop every signal of a running graph at once, or let them go out again."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket

from heqis_bringup.ros_env import join_local_graph
from heqis_core.errors import ConfigError

DONE, NOT_DONE = 0, 1
"""Exit status; a gate that does not answer is an error, and ends in 2."""

_EXAMPLES = """examples, on the gateway board:
  heqis kill-switch on --reason 'wrong prices'      every signal is refused from now on
  heqis kill-switch show                            engaged or not, by whom, since when and why
  heqis kill-switch off --reason 'prices mended'    signals go out again
  touch run/KILL                                    stops everything too, without ROS

The file (risk_gate's parameter kill_file) and the service engage the switch each for itself: off
does not lift what the file says.

Exit status: 0 done, 1 not done (the line says why), 2 no answer.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `kill-switch` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'kill-switch',
        help='stop every signal at once, or let them go out again',
        description='Engage, clear or show the kill switch of a running risk gate.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('action', choices=('on', 'off', 'show'))
    parser.add_argument('--reason', metavar='TEXT', default='', help='kept in the journal')
    parser.add_argument('--node', default='/heqis/risk_gate', help='default %(default)s')
    parser.add_argument(
        '--timeout', metavar='S', type=float, default=10.0, help='seconds; default %(default)g'
    )
    parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask the gate, say in which state its switch is; return the exit status."""
    if not args.node.startswith('/'):
        raise ConfigError(f'--node {args.node}: expected a full name such as /heqis/risk_gate')
    if args.action == 'show' and args.reason:
        raise ConfigError('--reason belongs to on and off; show changes nothing')
    join_local_graph()
    try:
        from heqis_bringup.kill_switch_node import call_switch, hear_switch
    except ImportError as error:
        raise ConfigError(
            f'this is a call over ROS 2, and {error.name} is missing: run it on the gateway '
            'board, in its environment, or make the file run/KILL there'
        ) from error
    if args.action == 'show':
        engaged, said = hear_switch(args.node, args.timeout)
        done = True
    else:
        wanted = args.action == 'on'
        engaged, said = call_switch(args.node, wanted, _signed(args.reason), args.timeout)
        done = engaged == wanted
    if args.json:
        print(json.dumps({'node': args.node, 'engaged': engaged, 'done': done, 'says': said}))
    else:
        print(f'{args.node}: {said}')
    return DONE if done else NOT_DONE


def _signed(reason: str) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f'uid {os.getuid()}'
    return f'{user}@{socket.gethostname()}: {reason or "no reason given"}'
