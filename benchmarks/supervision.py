# SPDX-License-Identifier: Apache-2.0
"""What it costs to be watched: the idle graph with supervisor, agents and heartbeats, and without.

Both are the processes of launch/all.launch.yaml with a bar every five seconds and tiny models. In
the second, supervisor and agents are left out, a heartbeat is sent every ten seconds, and this
program brings the nodes up. Runs of both kinds take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil
from _harness import Row, main, say
from footprint import SETTLE_S, journal_works, processes_below, spent_s
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node

from heqis_bringup.ament import find_share
from heqis_bringup.demo_setup import free_endpoints
from heqis_bringup.launch_file import ProcessSpec, load_launch
from heqis_bringup.launch_runner import LaunchRunner
from heqis_core.testing_bundle import write_test_bundle
from heqis_ros.testing import Graph, ros_graph
from heqis_supervisor.rules import load_rules

ROOT = Path(__file__).resolve().parents[1]
CONTROL = {'supervisor', 'agent'}
RARELY = {'HEQIS_HEARTBEAT_HZ': '0.1'}
START_S = 120
AIM_PERCENT = 2.0


@contextmanager
def idle_graph(folder: Path, *, watched: bool) -> Iterator[dict[str, psutil.Process]]:
    """Run a graph; yield its processes by name once a frame has gone all the way."""
    config = folder / 'config'
    shutil.copytree(ROOT / 'config', config)
    for name in ('compute.yaml', 'journal.yaml'):
        text = (config / name).read_text(encoding='utf-8')
        required = 'require_supervisor: true'
        if required not in text:
            raise RuntimeError(f'{name} has no line {required}')
        text = text.replace(required, f'require_supervisor: {str(watched).lower()}')
        (config / name).write_text(text, encoding='utf-8')
    given = {
        **free_endpoints(('frames', 'decisions', 'requests', 'control'), {}),
        **{'bundle': str(write_test_bundle(folder / 'bundles')), 'state': str(folder / 'run')},
        **{'config': str(config), 'pace': '0.2', 'dashboard_port': '0'},
    }
    plan = load_launch(ROOT / 'launch' / 'all.launch.yaml', given, find_share=find_share)
    specs = list(plan.processes)
    if not watched:
        specs = [_alone(spec) for spec in specs if spec.executable not in CONTROL]
    with ros_graph() as graph, LaunchRunner(specs, folder / 'log', console=None):
        if not watched:
            bring_up(graph, config / 'graph.yaml', {spec.executable for spec in specs})
        deadline_s = time.monotonic() + START_S
        while not journal_works(folder / 'run' / 'journal.db'):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f'no frame within {START_S} s; see {folder}')
            time.sleep(1.0)
        yield processes_below(psutil.Process())


def _alone(spec: ProcessSpec) -> ProcessSpec:
    return replace(spec, env={**spec.env, **RARELY})


def bring_up(graph: Graph, rules: Path, started: set[str]) -> None:
    """Configure and activate every managed node, dependencies first."""
    node = graph.add(Node('bringer'))
    for rule in load_rules(rules).nodes.values():
        if not rule.managed or rule.process not in started:
            continue
        client = node.create_client(ChangeState, f'/heqis/{rule.name}/change_state')
        graph.spin_until(client.service_is_ready, START_S, rule.name)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request()
            request.transition.id = transition
            future = client.call_async(request)
            graph.spin_until(future.done, START_S, rule.name)
            if not future.result().success:
                raise RuntimeError(f'{rule.name} refused transition {transition}')


def spent_in(processes: dict[str, psutil.Process], seconds: float) -> dict[str, float]:
    """Return the processor time of each process, in seconds a minute."""
    before = {name: spent_s(process) for name, process in processes.items()}
    start = time.monotonic()
    time.sleep(seconds)
    minutes = (time.monotonic() - start) / 60
    return {n: (spent_s(process) - before[n]) / minutes for n, process in processes.items()}


def measure(args: argparse.Namespace) -> list[Row]:
    """Run both kinds in turn."""
    seconds, rounds = (15.0, 1) if args.quick else (args.seconds, args.rounds)
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for number in range(rounds):
        for watched in (True, False):
            kind = 'with' if watched else 'without'
            say(f'round {number + 1} of {rounds}, {kind} supervision: {seconds:g} s')
            with (
                tempfile.TemporaryDirectory() as name,
                idle_graph(Path(name), watched=watched) as processes,
            ):
                time.sleep(SETTLE_S)
                runs[watched].append(spent_in(processes, seconds))
    return list(_rows(runs[True], runs[False]))


def _rows(ours: Sequence[dict[str, float]], bare: Sequence[dict[str, float]]) -> Iterator[Row]:
    for name in sorted(ours[0]):
        value = median(run[name] for run in ours)
        floor = median(run[name] for run in bare) if name in bare[0] else None
        ratio = value / floor if floor else None
        yield Row('idle graph', f'{name} processor', 's/min', value, floor=floor, ratio=ratio)
    whole = median(sum(run.values()) for run in ours)
    alone = median(sum(run.values()) for run in bare)
    yield Row('idle graph', 'all processor', 's/min', whole, floor=alone, ratio=whole / alone)
    percent = 100 * (whole - alone) / 60
    yield Row('idle graph', 'supervision, of one core', '%', percent).aiming(AIM_PERCENT)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--seconds', type=float, default=60.0, help='of a run; %(default)s')
    parser.add_argument('--rounds', type=int, default=3, help='of both kinds; %(default)s')


if __name__ == '__main__':
    raise SystemExit(main('supervision', (__doc__ or '').splitlines()[0], measure, _options))
