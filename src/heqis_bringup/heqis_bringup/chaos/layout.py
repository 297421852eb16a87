# SPDX-License-Identifier: Apache-2.0
"""How the graph of a fault is laid out: what stands between the boards, and what feeds it.

Every layout is the processes of launch/gateway.launch.yaml and launch/compute.launch.yaml with
the shipped parameters; a layout differs in endpoints, in where bars come from, or in the script
that a process is started by.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import yaml

from heqis_bringup.ament import find_executable, find_share
from heqis_bringup.chaos.cable import Cable, keyed_config
from heqis_bringup.chaos.feed import BarFeed
from heqis_bringup.demo_setup import ENDPOINTS, free_endpoints
from heqis_bringup.launch_file import LaunchPlan, ProcessSpec, load_launch
from heqis_bringup.up import check_sources, launch_path
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError
from heqis_core.io.fault_proxy import FaultProxy
from heqis_core.io.zmq_security import write_keys
from heqis_core.simulator import default_symbols

GATEWAY, JOURNAL, SUPERVISOR = 'gateway/gateway', 'gateway/journal', 'gateway/supervisor'
GATEWAY_AGENT, COMPUTE, COMPUTE_AGENT = 'gateway/agent', 'compute/compute', 'compute/agent'
WATCHED = (GATEWAY, COMPUTE, JOURNAL)
"""Processes that the supervisor watches by the leases of the rules."""
AGENTS = (GATEWAY_AGENT, COMPUTE_AGENT)
EVERYONE = (*WATCHED, SUPERVISOR, *AGENTS)
BOARD_ENV = 'HEQIS_BOARD'
_PACKAGE = 'heqis_chaos_{board}'


@dataclass(frozen=True)
class Subject:
    """What every graph of a bench runs.

    Attributes:
        bundle: decides; trained on this market where the simulator is the source.
        symbols, seed: of the simulated market.
        pace: event times a second; 0 = as fast as flow control allows.
        config: folder of the parameter files; None for the shipped ones.
    """

    bundle: Bundle
    symbols: int
    seed: int
    pace: float
    config: Path | None = None


@dataclass
class Layout:
    """One graph, ready to be started.

    Attributes:
        specs: its processes.
        rules: its graph.yaml.
        config: folder of the parameter files.
        namespace, journal, endpoints: as launch has them.
        prefix: folder of an ament index that comes before the others; None for no such.
        proxies: what stands between the boards.
        feed: what sends bars, in place of the simulator.
        cable: what connects the boards.
        heard: boards whose topics reach the bench.
    """

    specs: list[ProcessSpec]
    rules: Path
    config: Path
    namespace: str
    journal: Path
    endpoints: dict[str, str]
    prefix: Path | None = None
    proxies: list[FaultProxy] = field(default_factory=list)
    feed: BarFeed | None = None
    cable: Cable | None = None
    heard: tuple[str, ...] = ('gateway', 'compute')


Words = dict[str, str]
Layer = Callable[[Subject, Path, ExitStack], Layout]


def key_of(spec: ProcessSpec) -> str:
    """Return `board/process` of a process, as the rules name it."""
    return f'{spec.env[BOARD_ENV]}/{spec.executable}'


def plain(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Run both boards on this machine, fed by the simulator."""
    return _layout(subject, folder, {}, {})


def spoilt(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Give a graph of its own to faults that destroy what it has stored."""
    return plain(subject, folder, undo)


def disturbable(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Start each process by the bench's own script (`saboteur_node`)."""
    layout = plain(subject, folder, undo)
    layout.prefix = folder / 'prefix'
    layout.specs = [_scripted(spec, layout.prefix, _saboteur(spec)) for spec in layout.specs]
    return layout


def linked(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Put a fault proxy on each connection between the boards."""
    ends = free_endpoints(ENDPOINTS, {})
    proxies = {name: FaultProxy(end, seed=subject.seed) for name, end in ends.items()}
    for proxy in proxies.values():
        undo.callback(proxy.close)
    # Who connects takes the proxy: the gateway for frames, the compute board for the rest.
    through = {name: proxy.endpoint for name, proxy in proxies.items()}
    layout = _layout(
        subject,
        folder,
        {**ends, 'frames': through['frames']},
        {**through, 'frames': ends['frames']},
    )
    layout.proxies = list(proxies.values())
    return layout


def fed(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Feed live bars over ZeroMQ, from the bench."""
    endpoint = free_endpoints(('feed',), {})['feed']
    symbols = default_symbols(subject.symbols)
    sources = folder / 'sources.yaml'
    source = {'name': 'bench', 'kind': 'feed', 'endpoint': endpoint, 'symbols': list(symbols)}
    sources.write_text(yaml.safe_dump({'sources': [source]}), encoding='utf-8')
    # The bench paces the bars, the gateway takes what comes.
    words = {'source': 'several', 'sources': str(sources), 'pace': '0'}
    layout = _layout(subject, folder, words, {})
    after_ns = subject.bundle.manifest.trained_until_ns
    layout.feed = BarFeed(endpoint, symbols, after_ns, subject.pace, subject.seed)
    undo.callback(layout.feed.close)
    return layout


def cabled(subject: Subject, folder: Path, undo: ExitStack) -> Layout:
    """Put the compute board into a network namespace; a cable with CURVE leads there."""
    cable = Cable(here=True)
    undo.callback(cable.close)
    for board in ('gateway', 'compute'):
        write_keys(folder / 'keys', board)
    shipped = subject.config or find_share('heqis_bringup') / 'config'
    configs = {
        board: str(keyed_config(shipped, folder, board, peer))
        for board, peer in (('gateway', 'compute'), ('compute', 'gateway'))
    }
    ends = {
        name: end.replace('127.0.0.1', (cable.far if name == 'frames' else cable.near).address)
        for name, end in free_endpoints(ENDPOINTS, {}).items()
    }
    layout = _layout(
        subject,
        folder,
        {**ends, 'config': configs['gateway']},
        {**ends, 'config': configs['compute']},
    )
    layout.cable, layout.prefix, layout.heard = cable, folder / 'prefix', ('gateway',)
    layout.specs = [
        spec if key_of(spec).startswith('gateway/') else _scripted(spec, layout.prefix, text)
        for spec in layout.specs
        for text in [_in_namespace(spec, cable.far.name)]
    ]
    return layout


def _layout(subject: Subject, folder: Path, gateway: Words, compute: Words) -> Layout:
    common = {'bundle': str(subject.bundle.path.resolve()), 'state': str(folder)}
    if subject.config is not None:
        common['config'] = str(subject.config)
    ends = free_endpoints(ENDPOINTS, {})
    market = {
        'symbols': str(subject.symbols),
        'seed': str(subject.seed),
        'pace': str(subject.pace),
        'dashboard': 'false',
    }
    plans: list[LaunchPlan] = [
        load_launch(launch_path(board), {**common, **ends, **words}, find_share=find_share)
        for board, words in (('gateway', {**market, **gateway}), ('compute', compute))
    ]
    values = plans[0].values
    check_sources(plans[0])
    config = Path(values['config'])
    return Layout(
        specs=[spec for plan in plans for spec in plan.processes],
        rules=config / 'graph.yaml',
        config=config,
        namespace=plans[0].processes[0].namespace or '/',
        journal=Path(values['journal']),
        endpoints={name: values[name] for name in ENDPOINTS},
    )


def _scripted(spec: ProcessSpec, prefix: Path, text: str) -> ProcessSpec:
    """Return the process, started by a script of the same name in a package of the bench."""
    package = _PACKAGE.format(board=spec.env[BOARD_ENV])
    marker = prefix / 'share/ament_index/resource_index/packages' / package
    script = prefix / 'lib' / package / spec.executable
    for path in (marker, script):
        path.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    script.write_text(text, encoding='utf-8')
    script.chmod(0o755)
    return replace(spec, package=package)


def _saboteur(spec: ProcessSpec) -> str:
    points = metadata.distribution(spec.package).entry_points
    found = [
        point for point in points.select(group='console_scripts') if point.name == spec.executable
    ]
    if not found:
        raise ConfigError(f'{spec.package} names no program {spec.executable}; build it again')
    return (
        f'#!{sys.executable}\nimport sys\n'
        'from heqis_bringup.chaos.saboteur_node import main\n'
        f'sys.exit(main([{found[0].module!r}, *sys.argv[1:]]))\n'
    )


def _in_namespace(spec: ProcessSpec, namespace: str) -> str:
    path = shlex.quote(str(find_executable(spec.package, spec.executable)))
    return f'#!/bin/sh\nexec ip netns exec {namespace} {path} "$@"\n'
