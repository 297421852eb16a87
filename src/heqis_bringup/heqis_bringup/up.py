# SPDX-License-Identifier: Apache-2.0
"""`heqis up`: start the nodes of a board by `ros2 launch` where it works, else by our runner."""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from heqis_bringup.ament import find_executable, find_share
from heqis_bringup.child_watch import ENVIRONMENT
from heqis_bringup.launch_file import LaunchPlan, load_launch, parse_arguments
from heqis_bringup.launch_runner import LaunchRunner
from heqis_bringup.service import Service
from heqis_core.bundle import Bundle, manifest_check
from heqis_core.errors import ConfigError
from heqis_core.io.notify import Notifier
from heqis_gateway.sources import read_sources

TARGETS = ('all', 'gateway', 'compute', 'replay', 'dashboard')
_PAGE_NEEDS = ('dash', 'plotly', 'fastapi', 'uvicorn', 'websockets')
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXAMPLES = """examples:
  heqis up gateway bundle:=output/bundles/ID source:=file data:=prices/
  heqis up compute bundle:=output/bundles/ID
  heqis up all --show-args
  heqis up dashboard namespace:=lab dashboard_port:=8051    the page alone
  ROS_DOMAIN_ID=2 heqis up all bundle:=DIR namespace:=lab state:=run/lab \\
    frames:=tcp://127.0.0.1:6555 decisions:=tcp://127.0.0.1:6556 \\
    requests:=tcp://127.0.0.1:6557 control:=tcp://127.0.0.1:6558 \\
    dashboard_port:=8051                                      a second graph beside the first
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `up` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'up',
        help='start the nodes of a board, of both, or the page alone',
        description='Start the processes of launch/TARGET.launch.yaml, and again when they end.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'target', nargs='?', metavar='TARGET', help=f'{", ".join(TARGETS)}; default all'
    )
    parser.add_argument('arguments', nargs='*', metavar='name:=value', help='launch arguments')
    parser.add_argument('--runner', action='store_true', help='do not use ros2 launch')
    parser.add_argument(
        '--show-args', action='store_true', help='list the launch arguments and end'
    )
    parser.add_argument(
        '--log-dir', type=Path, help="of the runner; default: log/TARGET in the state's folder"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Start, stay until a signal or until every process has ended; return the exit status."""
    words = [word for word in (args.target, *args.arguments) if word]
    target = words.pop(0) if words and ':=' not in words[0] else 'all'
    if target not in TARGETS:
        raise ConfigError(
            f'there is no launch file {target!r}; expected one of {", ".join(TARGETS)}'
        )
    given = parse_arguments(words)
    path = launch_path(target)
    if args.show_args and target == 'replay':
        given.setdefault('data', '')  # the one that must be given is listed without it
    plan = load_launch(path, given, find_share=find_share)
    if args.show_args:
        print(describe_arguments(plan))
        return 0
    check_bundle(plan)
    check_sources(plan)
    check_dashboard(plan)
    if not args.runner and ros2_launch_works():
        print(f'heqis up: {target} by ros2 launch', flush=True)
        # The time-outs make every process gone within 5 s, as with our own runner.
        words += ['sigterm_timeout:=2', 'sigkill_timeout:=1.5']
        leave_to_ros2(Notifier())
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's `&` would have it ignored
        os.execvp('ros2', ['ros2', 'launch', str(path), *words])
    why = 'as asked' if args.runner else 'no usable ros2 launch on this machine'
    log_dir = args.log_dir or log_folder(plan, target)
    runner = LaunchRunner(plan.processes, log_dir, console=_console)
    service = Service(runner, Notifier())
    with only_one(log_dir), stop_signals(lambda again: service.stop(now=again)) as stopped:
        print(
            f'heqis up: {target} by the runner of HEQIS ({why}), logs in {log_dir}',
            flush=True,
        )
        with runner:
            while not runner.join(0.2):
                service.tell()
    return 0 if stopped() else 1


def leave_to_ros2(notifier: Notifier) -> None:
    """Say READY for `ros2 launch`, which tells systemd nothing: it is watched no further."""
    notifier.send('READY=1', 'STATUS=ros2 launch')
    notifier.watch(0)
    for name in ENVIRONMENT:
        os.environ.pop(name, None)


def check_bundle(plan: LaunchPlan) -> None:
    """Refuse a bundle that no node would take, before anything starts.

    Raises ConfigError if none is named, BundleError if it is not sound.
    """
    if 'bundle' not in plan.values:
        return
    if not plan.values['bundle']:
        raise ConfigError('no bundle: give bundle:=DIR, the folder that `heqis train` printed')
    _open_bundle(plan)


def _open_bundle(plan: LaunchPlan) -> Bundle:
    """Return the bundle of a plan, its signature checked where the plan names trusted keys."""
    check = manifest_check(plan.values.get('trusted_keys', ''))
    return Bundle.load(plan.values['bundle'], check)


def check_sources(plan: LaunchPlan) -> None:
    """Refuse a sources file that no gateway would take, before anything starts.

    Raises ConfigError that names file, line and field, or a channel that the bundle's features
    read and the file does not join.
    """
    source = plan.values.get('source')
    if source == 'simulator':  # the default, so perhaps nobody meant it
        for argument, needed in (('data', 'file'), ('sources', 'several')):
            if plan.values[argument]:
                raise ConfigError(
                    f'{argument}:={plan.values[argument]} is not read with source:={source}; give '
                    f'source:={needed} as well'
                )
    if source != 'several':
        return
    if not plan.values['sources']:
        raise ConfigError('no sources: give sources:=FILE, as config/sources.example.yaml')
    path = Path(plan.values['sources'])
    joined = [rule.name for rule in read_sources(path).channels]
    spec = _open_bundle(plan).spec
    missing = [name for name in spec.channels if name not in joined]
    if missing:
        raise ConfigError(
            f'{path}: the features of the bundle read {", ".join(missing)}; list it under '
            '`channels:` with the source that says it'
        )


def check_dashboard(plan: LaunchPlan) -> None:
    """Refuse a page that is not installed, before anything starts; raises ConfigError."""
    hint = ', or start without the page: dashboard:=false' if 'dashboard' in plan.values else ''
    for process in plan.processes:
        if process.package == 'heqis_dashboard':
            try:
                find_executable(process.package, process.executable)
            except ConfigError as error:
                raise ConfigError(f'{process.where}: {error}{hint}') from None
            if lacks := [name for name in _PAGE_NEEDS if importlib.util.find_spec(name) is None]:
                raise ConfigError(
                    f'{process.where}: the page needs {", ".join(lacks)}; '
                    f'pip install -r requirements/dashboard.txt{hint}'
                )


def log_folder(plan: LaunchPlan, target: str) -> Path:
    """Return the folder of logs and launch values: one for each state, or each namespace."""
    state = plan.values.get('state') or Path('run') / plan.values['namespace']
    return Path(state) / 'log' / target


@contextmanager
def only_one(log_dir: Path) -> Iterator[None]:
    """Hold the folder of logs and launch values; raise ConfigError if another graph does."""
    log_dir.mkdir(parents=True, exist_ok=True)
    with (log_dir / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f'{log_dir}: what runs already keeps its logs here; give a further board of this '
                'graph its own state:=, and a second graph its own state:=, namespace:=, '
                'endpoints and ROS_DOMAIN_ID'
            ) from error
        yield


def launch_path(target: str) -> Path:
    """Return the installed launch file of a target; raise ConfigError if it is not installed."""
    path = find_share('heqis_bringup') / 'launch' / f'{target}.launch.yaml'
    if not path.is_file():
        raise ConfigError(f'{path} is missing; build heqis_bringup again')
    return path


def describe_arguments(plan: LaunchPlan) -> str:
    """Return one line for each launch argument: name, default, description."""
    width = max((len(argument.name) for argument in plan.arguments), default=0)
    lines = []
    for argument in plan.arguments:
        choices = f' ({" | ".join(argument.choices)})' if argument.choices else ''
        default = 'required' if argument.default is None else f'default {argument.default!r}'
        lines.append(f'  {argument.name:<{width}}  {argument.description}{choices}; {default}')
    return '\n'.join(lines)


def ros2_launch_works() -> bool:
    """Whether `ros2 launch` is on PATH and starts."""
    if shutil.which('ros2') is None:
        return False
    try:
        answer = subprocess.run(
            ['ros2', 'launch', '--help'], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


@contextmanager
def stop_signals(stop: Callable[[bool], None]) -> Iterator[Callable[[], bool]]:
    """Call `stop(again)` on SIGINT, SIGTERM and SIGHUP, with True from the second one on.

    Yields a function that says whether a signal came. Use it in the main thread.
    """
    came: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        stop(len(came) > 1)

    before = {number: signal.signal(number, handle) for number in _STOP_SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _console(name: str, line: str) -> None:
    sys.stdout.write(f'[{name}] {line}\n')
    sys.stdout.flush()
