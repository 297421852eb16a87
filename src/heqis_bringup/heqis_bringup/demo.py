# SPDX-License-Identifier: Apache-2.0
"""`heqis demo`: train if need be, start both boards, watch them live, end in good order, report.

The processes are those of launch/all.launch.yaml under our own runner; figures come from
heartbeats and, at the end, from the journal.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from heqis_bringup import report as reports
from heqis_bringup.ament import find_share
from heqis_bringup.course import Course, expected_nodes
from heqis_bringup.demo_setup import (
    ENDPOINTS,
    DataChoice,
    can_show_page,
    choose_domain,
    enter_domain,
    free_endpoints,
    page_port,
    train,
    training_command,
)
from heqis_bringup.launch_file import load_launch, parse_arguments
from heqis_bringup.launch_runner import LaunchRunner
from heqis_bringup.table import Screen, plain_line, render
from heqis_bringup.up import check_sources, launch_path, stop_signals
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError, HeqisError, JournalError
from heqis_core.graph_state import GraphState
from heqis_core.io.journal import Journal

if TYPE_CHECKING:
    from heqis_bringup.monitor_node import Monitor

DURATION_S = 30.0
"""Of a run that nobody asked to last and that has no page to look at."""
_PAGE = 'dashboard'
_ENGINES = ('onnxruntime', 'rknn', 'tensorrt')
_TICK_S = 0.1
_LIVE_S = 0.25
_LINE_S = 2.0
_EXAMPLES = """examples:
  heqis demo                                        eight simulated symbols, until Ctrl-C
  heqis demo --data prices/ --duration 30           train on the first part, stream the rest
  heqis demo --data prices/ --bundle output/bundles/ID --pace 0 --report run.json
  heqis demo --transport dds --duration 60 dashboard:=false
"""


_OPTIONS: dict[str, dict[str, Any]] = {
    'data': {'metavar': 'PATH', 'type': Path, 'help': 'CSV or Parquet, a file or a folder'},
    'duration': {
        'metavar': 'S',
        'type': float,
        'help': 'at most; default: until Ctrl-C with the page, 30 without (dashboard:=false)',
    },
    'transport': {'choices': ('zmq', 'dds'), 'default': 'zmq', 'help': 'default zmq'},
    'bundle': {'metavar': 'DIR', 'type': Path, 'help': 'run this bundle, do not train one'},
    'report': {'metavar': 'FILE', 'type': Path, 'help': 'write the summary as JSON'},
    'symbols': {
        'metavar': 'N',
        'type': int,
        'help': 'of the simulator (without --data); default 8',
    },
    'seed': {'metavar': 'N', 'type': int, 'default': 7, 'help': 'of simulator and training'},
    'epochs': {'metavar': 'N', 'type': int, 'help': 'of encoder and generators at most'},
    'pace': {
        'metavar': 'BARS_PER_S',
        'type': float,
        'default': 50.0,
        'help': 'event times a second, 0 = as fast as flow control allows; default 50',
    },
    'limit': {
        'metavar': 'N',
        'type': int,
        'default': 0,
        'help': 'end of the simulator, in event times with those of the training; 0 = none',
    },
    'run-dir': {
        'metavar': 'DIR',
        'type': Path,
        'help': 'checkpoints, journal and logs; one that holds an earlier run continues it',
    },
    'domain': {
        'metavar': 'N',
        'default': os.environ.get('ROS_DOMAIN_ID'),
        'help': 'ROS domain; default ROS_DOMAIN_ID, else a free one',
    },
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'demo',
        help='train, start both boards and watch them work',
        description='Train a bundle unless one is given, run the whole graph as separate '
        'processes, show it live here and on a page in the browser. With --duration it ends '
        'after the last bar or after that time, else on Ctrl-C.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, options in _OPTIONS.items():
        parser.add_argument(f'--{name}', **options)
    parser.add_argument(
        'arguments', nargs='*', metavar='name:=value', help='further launch arguments'
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo as asked; return 0 after a good run, raise HeqisError after another."""
    console = Console(highlight=False)
    data = _data_choice(args)
    runners: list[LaunchRunner] = []

    def on_signal(again: bool) -> None:
        for runner in runners if again else ():
            runner.stop(now=True)

    with stop_signals(on_signal) as stopped:
        began_s = time.monotonic()
        run_dir = args.run_dir or Path('run/demo') / time.strftime('%Y%m%d-%H%M%S')
        if args.bundle is None:
            command = training_command(data, run_dir, args.epochs)
            bundle = Bundle.load(train(command, stopped))
        else:
            bundle = Bundle.load(args.bundle)
        run_dir.mkdir(parents=True, exist_ok=True)
        demo = _Demo(args, data, bundle, run_dir.resolve(), console, stopped)
        runner = demo.make_runner()
        demo.course.seconds['set_up'] = time.monotonic() - began_s
        runners.append(runner)
        report = demo.run(runner)
    console.print(reports.summary(report), soft_wrap=True, markup=False)
    if args.report is not None:
        reports.write_report(args.report, report)
    if demo.course.problems:
        raise HeqisError('; '.join(demo.course.problems))
    return 0


def _data_choice(args: argparse.Namespace) -> DataChoice:
    if args.data is not None and args.symbols is not None:
        raise ConfigError('--symbols counts simulated symbols; a data set brings its own')
    if args.data is not None and not args.data.exists():
        raise ConfigError(f'--data {args.data}: no such file or folder')
    for name, low in (
        ('duration', 0.0),
        ('pace', 0.0),
        ('symbols', 1),
        ('limit', 0),
        ('epochs', 1),
    ):
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise ConfigError(f'--{name} is {value}; expected {low} or more')
    return DataChoice(args.data, args.symbols or 8, args.seed)


@dataclass
class _Demo:
    args: argparse.Namespace
    data: DataChoice
    bundle: Bundle
    run_dir: Path
    console: Console
    stopped: Callable[[], bool]
    course: Course = field(init=False)
    page: str = ''
    page_told: bool = False
    final_states: dict[str, str] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)

    def make_runner(self) -> LaunchRunner:
        """Return the runner of both boards, its ports, domain and files chosen."""
        extra = parse_arguments(self.args.arguments)
        given = {
            'transport': self.args.transport,
            'bundle': str(self.bundle.path.resolve()),
            'source': 'simulator' if self.data.path is None else 'file',
            'data': str(self.data.path.resolve()) if self.data.path else '',
            'symbols': str(self.data.symbols),
            'seed': str(self.data.seed),
            'limit': str(self.args.limit),
            'pace': str(self.args.pace),
            'state': str(self.run_dir),
            'dashboard': 'true' if can_show_page() else 'false',
            'dashboard_port': str(page_port()),
            **free_endpoints(ENDPOINTS, extra),
            **extra,
        }
        plan = load_launch(launch_path('all'), given, find_share=find_share)
        check_sources(plan)
        self.domain = choose_domain(self.args.domain)
        self.namespace = next(p.namespace for p in plan.processes) or '/'
        self.journal = Path(plan.values['journal'])
        graph = Path(plan.values['config']) / 'graph.yaml'
        started = {process.executable for process in plan.processes}
        if _PAGE in started:
            self.page = f'http://{plan.values["dashboard_host"]}:{plan.values["dashboard_port"]}'
        duration_s = self.args.duration
        if duration_s is None and not self.page:
            duration_s = DURATION_S
        self.course = Course(expected_nodes(graph, started), duration_s)
        enter_domain(self.domain, Path(plan.values['config']))
        return LaunchRunner(plan.processes, self.run_dir / 'log')

    def run(self, runner: LaunchRunner) -> dict[str, Any]:
        """Start, watch, stop; return the report."""
        self.console.print(
            f'run folder {self.run_dir}, ROS domain {self.domain}', soft_wrap=True, markup=False
        )
        if not self.page and not can_show_page():
            self.console.print('no page: requirements/dashboard.txt is not installed')
        self.started_s = time.monotonic()
        with runner:
            # Imported only now: the processes come up meanwhile.
            from heqis_bringup.monitor_node import Monitor

            monitor = Monitor(self.namespace, self.domain)
            try:
                self._watch(runner, monitor)
                now_s = time.monotonic()
                self.course.seconds['run'] = now_s - self.started_s
                self.final_states = {
                    view.name: view.state_name(now_s) for view in monitor.state.nodes.values()
                }
                # What is told from here on is the end itself.
                self.incidents = list(monitor.state.errors)
                runner.stop()
                runner.join()
                self.course.seconds['stop'] = time.monotonic() - now_s
            finally:
                monitor.close()
        return self._report(runner, monitor.state)

    def _watch(self, runner: LaunchRunner, monitor: Monitor) -> None:
        live = Live(console=self.console, auto_refresh=False, transient=False)
        shown_s = 0.0
        on_screen = self.console.is_terminal
        if on_screen:
            live.start()
        try:
            going_on = True
            while going_on:
                now_s = time.monotonic()
                phase, going_on = self.course.update(
                    now_s,
                    self.started_s,
                    monitor.state,
                    runner.processes(),
                    self.stopped(),
                )
                self._tell_page(monitor, now_s)
                if not going_on or now_s - shown_s >= (_LIVE_S if on_screen else _LINE_S):
                    shown_s = now_s
                    screen = self._screen(runner, phase, now_s)
                    if on_screen:
                        live.update(render(monitor.state, screen, now_s), refresh=True)
                    else:
                        print(plain_line(monitor.state, screen, now_s), flush=True)
                time.sleep(_TICK_S)
        finally:
            live.stop()

    def _tell_page(self, monitor: Monitor, now_s: float) -> None:
        """Print the address once, when something answers there."""
        if self.page and not self.page_told and monitor.state.all_active((_PAGE,), now_s):
            self.page_told = True
            how_long = 'until Ctrl-C' if self.course.duration_s is None else 'while this runs'
            self.console.print(f'page {self.page} ({how_long})', soft_wrap=True, markup=False)

    def _screen(self, runner: LaunchRunner, phase: str, now_s: float) -> Screen:
        views = runner.processes()
        source = 'simulator' if self.data.path is None else self.data.path.name
        title = f'{source}, {self.args.transport}, bundle {self.bundle.manifest.bundle_id}'
        return Screen(
            f'{title}, {self.page}' if self.page else title,
            phase,
            now_s - self.started_s,
            {view.name: view.restarts for view in views},
            {view.name: view.pid for view in views},
        )

    def _report(self, runner: LaunchRunner, state: GraphState) -> dict[str, Any]:
        figures = reports.JournalFigures()
        symbols: tuple[str, ...] = ()
        try:
            figures, symbols = read_journal(self.journal)
        except JournalError as error:
            if not self.course.problems:
                self.course.problems.append(str(error))
        if self.course.reason == 'finished' and not state.total('frames_sent', 'gateway'):
            until = _day(self.bundle.manifest.trained_until_ns)
            self.course.problems.append(
                f'the data holds no bar after {until}, the end of the training data of bundle '
                f'{self.bundle.manifest.bundle_id}: give newer data, or leave --bundle out'
            )
        if figures.counts.get('conflicts'):
            self.course.problems.append(
                'the journal got two decisions for one key: see its events'
            )
        lost = [name for name, text in self.final_states.items() if text != 'active']
        if 'up' in self.course.seconds and lost:
            self.course.problems.append(f'not active at the end: {", ".join(lost)}')
        compute = state.nodes.get('compute')
        facts = reports.RunFacts(
            transport=self.args.transport,
            engine=_engine(compute.info if compute else ''),
            bundle_id=self.bundle.manifest.bundle_id,
            bundle_path=str(self.bundle.path.resolve()),
            symbols=symbols or self.bundle.manifest.provenance.data.symbols,
            reason='failed' if self.course.problems else self.course.reason,
            problems=self.course.problems,
            incidents=self.incidents,
            seconds=self.course.seconds,
            restarts={view.name: view.restarts for view in runner.processes()},
            journal_path=str(self.journal),
            page=self.page,
        )
        return reports.build_report(state, figures, facts, self.final_states)


def read_journal(path: Path) -> tuple[reports.JournalFigures, tuple[str, ...]]:
    """Return what a journal holds, and the symbols of its newest frame; raise JournalError."""
    with Journal.open(path, read_only=True) as journal:
        newest = journal.newest()
        symbols = next(iter(newest.values())).symbols if newest else ()
        figures = reports.JournalFigures(
            journal.counts(),
            journal.latency_us(),
            journal.signals_digest(),
            journal.signals_by_symbol(),
        )
    return figures, symbols


def _engine(info: str) -> str:
    kind = info.split(',')[0]
    return kind if kind in _ENGINES else 'unknown'


def _day(event_time_ns: int) -> str:
    return datetime.fromtimestamp(event_time_ns / 1e9, timezone.utc).strftime('%Y-%m-%d')
