# SPDX-License-Identifier: Apache-2.0
"""What a demo run needs before its graph starts: a bundle, free ports, a free DDS domain."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heqis_bringup.launch_runner import in_child
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError, DataError, HeqisError
from heqis_core.io.files import load_bars

SIMULATED_BARS = 1500
"""Event times of a simulated market that a demo trains on; the graph streams what follows."""

PAGE_PORT = 8050
"""Where the page is if nothing else is."""

ENDPOINTS = ('frames', 'decisions', 'requests', 'control')
"""Launch arguments that name a socket between the boards."""

_PORTS = range(20_000, 32_000)
_DOMAINS = range(1, 102)
_TICK_S = 0.2


@dataclass(frozen=True)
class DataChoice:
    """What a run is about: files at `path`, or if that is None `symbols` simulated ones."""

    path: Path | None
    symbols: int
    seed: int


def check_data(data: DataChoice, bundle: Bundle) -> None:
    """Read the files once before the graph does; raise DataError if nothing is left to decide."""
    if data.path is None:
        return
    table, _ = load_bars(data.path)
    until_ns = bundle.manifest.trained_until_ns
    if table.event_time_ns[-1] <= until_ns:
        last, until = (
            np.datetime64(int(ns), 'ns').astype('datetime64[s]')
            for ns in (table.event_time_ns[-1], until_ns)
        )
        raise DataError(
            f'{data.path}: its last bar is of {last} UTC, bundle {bundle.bundle_id} was trained '
            f'until {until} UTC: give later bars, or train on these (without a bundle)'
        )


def training_command(data: DataChoice, run_dir: Path, epochs: int | None) -> list[str]:
    """Return the `heqis train` that makes a bundle for `data` below the folder of a run."""
    words = [sys.executable, '-m', 'heqis_bringup.cli', 'train', '--json']
    words += ['--run', str(run_dir / 'training'), '--out', str(run_dir / 'bundles')]
    words += ['--seed', str(data.seed)]
    if data.path is None:
        words += ['--simulate', str(SIMULATED_BARS), '--symbols', str(data.symbols)]
    else:
        words += ['--data', str(data.path)]
    if epochs is None:
        return words
    return [*words, '--num_epochs', str(epochs), '--encoder_epochs', str(epochs)]


def train(command: Sequence[str], stopped: Callable[[], bool]) -> Path:
    """Run a training command, its progress on standard error, and return the folder of the bundle.

    It ends at once when `stopped()` turns true. Raises HeqisError if it fails or is stopped.
    """
    parent = os.getpid()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: in_child(parent),
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=_TICK_S)
                break
            except subprocess.TimeoutExpired:
                if stopped():
                    process.send_signal(signal.SIGKILL)
    if stopped():
        raise HeqisError('interrupted during the training; nothing was started')
    if process.returncode:
        raise HeqisError(f'the training ended with exit status {process.returncode}, see above')
    try:
        return Path(json.loads(output.strip().splitlines()[-1])['bundle']['path'])
    except (IndexError, KeyError, ValueError):
        raise HeqisError(f'the training named no bundle; it said {output[-200:]!r}') from None


def free_endpoints(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return a loopback endpoint with a free port for each name that is not given."""
    ports = random.SystemRandom().sample(_PORTS, len(_PORTS))
    result: dict[str, str] = {}
    for name in names:
        if name in given:
            continue
        port = next((p for p in ports if _can_bind(socket.SOCK_STREAM, p)), None)
        if port is None:
            raise ConfigError(
                f'no free TCP port in {_PORTS.start}..{_PORTS.stop - 1} on 127.0.0.1'
            )
        ports.remove(port)
        result[name] = f'tcp://127.0.0.1:{port}'
    return result


def page_port() -> int:
    """Return the port of the dashboard's page: the usual one, or a free one if that is taken."""
    if _can_bind(socket.SOCK_STREAM, PAGE_PORT):
        return PAGE_PORT
    endpoint = free_endpoints(('page',), {})['page']
    return int(endpoint.rpartition(':')[2])


def can_show_page() -> bool:
    """Whether the dashboard and what it needs are installed."""
    return all(map(importlib.util.find_spec, ('heqis_dashboard', 'dash', 'fastapi', 'uvicorn')))


def choose_domain(given: str | None) -> int:
    """Return the ROS domain that is given, or a free one; raise ConfigError if it cannot be."""
    if given:
        if not given.isdigit() or int(given) > 232:
            raise ConfigError(f'the ROS domain is {given!r}; expected a number from 0 to 232')
        return int(given)
    for domain in random.SystemRandom().sample(_DOMAINS, len(_DOMAINS)):
        # 7400 + 250 * domain + 10: where the first participant of a domain listens
        if _can_bind(socket.SOCK_DGRAM, 7410 + 250 * domain):
            return domain
    raise ConfigError(
        'every ROS domain from 1 to 101 is in use; end another graph, or give --domain'
    )


def enter_domain(domain: int, config: Path) -> None:
    """Set the environment of a ROS domain on this machine, for this process and its children.

    `config` is the folder that holds fastdds.xml.
    """
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(config / 'fastdds.xml'))


def _can_bind(kind: socket.SocketKind, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(('127.0.0.1', port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
