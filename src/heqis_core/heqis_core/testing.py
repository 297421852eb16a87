# SPDX-License-Identifier: Apache-2.0
"""Helpers that the tests of every package share: data, waiting, free ports and domains.

No fixtures live here. Nothing outside a test imports it.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS, BarTable
from heqis_core.features.spec import FeatureItem, FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.simulator import MarketSimulator

_PORTS = range(20_000, 32_000)
"""Below the kernel's ephemeral range, so that no outgoing connection takes the port in between."""

_DOMAINS = range(1, 102)
"""Domains whose DDS ports (7400 + 250 * domain + ...) stay below the ephemeral range."""

_given_ports: set[int] = set()
_domain_locks: list[IO[str]] = []


def shared_data() -> Path:
    """Return the folder of real market data, or skip the calling test with the reason.

    It is `HEQIS_TEST_DATA` where that is set, else `../shared/data` from the project's root.
    """
    import pytest

    named = os.environ.get('HEQIS_TEST_DATA', '')
    if named:
        if not Path(named).is_dir():
            pytest.skip(f'HEQIS_TEST_DATA={named} is not a folder')
        return Path(named)
    for root in _project_roots():
        folder = root.parent / 'shared' / 'data'
        if folder.is_dir():
            return folder
    pytest.skip(
        'no real market data: set HEQIS_TEST_DATA, or put it at ../shared/data of the project'
    )


def features_of(bars: Mapping[str, npt.ArrayLike], *items: FeatureItem) -> npt.NDArray[np.float64]:
    """Return the features (N, F) of one symbol whose N bars are all VALID.

    `bars` are columns by name of `BAR_FIELDS`, which may lack some: those are NaN.
    """
    n = len(np.asarray(bars['close']))
    columns = [np.asarray(bars.get(name, np.full(n, np.nan)), np.float64) for name in BAR_FIELDS]
    values = np.stack(columns, axis=1)[:, :, None]
    made = FeatureState(FeatureSpec(items), 1).batch(values, np.ones((n, 1), np.uint8))
    return made[:, 0]


def _project_roots() -> Iterator[Path]:
    """Yield the folders above this file and above the working folder that hold the sources."""
    for start in (Path(__file__).resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / 'src' / 'heqis_core').is_dir():
                yield folder


def wait_until(predicate: Callable[[], bool], timeout_s: float, message: str = '') -> None:
    """Wait until `predicate()` is true.

    Raise AssertionError with `message` after `timeout_s` seconds. The predicate is asked every 10
    ms, at least once, and a last time when the time is up.
    """
    deadline_s = time.monotonic() + timeout_s
    while not predicate():
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise AssertionError(f'not so within {timeout_s:g} s: {message or predicate}')
        time.sleep(min(0.01, left_s))


def free_port() -> int:
    """Return a TCP port that is free on loopback now and was not given to this process before.

    Raises OSError if there is none.
    """
    ports = list(_PORTS)
    random.SystemRandom().shuffle(ports)
    for port in ports:
        if port not in _given_ports and _can_bind(socket.SOCK_STREAM, port):
            _given_ports.add(port)
            return port
    raise OSError(f'no free TCP port on 127.0.0.1 in {_PORTS.start}..{_PORTS.stop - 1}')


def free_domain_id() -> int:
    """Return a ROS_DOMAIN_ID that no other test process holds.

    It stays taken until this process ends. Raises OSError if all are taken.
    """
    domains = list(_DOMAINS)
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        # 7400 + 250 * domain + 10: where the first participant of a domain listens for discovery
        if not _can_bind(socket.SOCK_DGRAM, 7410 + 250 * domain):
            continue
        lock = _lock_domain(domain)
        if lock is not None:
            _domain_locks.append(lock)
            return domain
    raise OSError(
        'every ROS_DOMAIN_ID from 1 to 101 is in use: end the test processes that hold them'
    )


def _lock_domain(domain: int) -> IO[str] | None:
    """Return an open, locked file for the domain, or None where another process holds it."""
    path = Path(tempfile.gettempdir()) / f'heqis-test-domain-{os.getuid()}-{domain}.lock'
    lock = path.open('w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _can_bind(kind: socket.SocketKind, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            return False
    return True


def simulated_table(symbols: int, n: int, seed: int) -> BarTable:
    """Return the first `n` event times of a simulated market."""
    simulator = MarketSimulator(symbols, seed)
    return BarTable.from_blocks([simulator.next_block() for _ in range(n)])
