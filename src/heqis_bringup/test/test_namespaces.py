# SPDX-License-Identifier: Apache-2.0
"""The two boards as two machines: each in a network namespace and a DDS domain of its own.

Nothing but the link with its keys leads from one to the other; its cable is pulled once. This
needs a Linux that lets us make network namespaces (root, or CAP_NET_ADMIN).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from heqis_bringup.ament import find_share
from heqis_bringup.testing_boards import (
    FRAMES,
    MARKET,
    board,
    decided_by_batch,
    figures,
    make_bundle,
    wait_for,
)
from heqis_core.io.zmq_security import write_keys
from heqis_core.testing import wait_until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(120)]

PORTS = {'frames': 5555, 'decisions': 5556, 'requests': 5557, 'control': 5558}


class Machine(NamedTuple):
    """One end of the cable: namespace, interface and address."""

    name: str
    device: str
    address: str

    def run(self, *words: str) -> str:
        """Run a command in the namespace and return its output."""
        return ip('netns', 'exec', self.name, *words)


def ip(*words: str) -> str:
    done = subprocess.run(['ip', *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f'ip {" ".join(words)}: {done.stderr.strip()}')
    return done.stdout


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Lay a cable between two new network namespaces; skip with the reason where we may not."""
    if shutil.which('ip') is None:
        pytest.skip('no `ip` command (package iproute2)')
    number = os.getpid() % 100_000
    gateway = Machine(f'heqis-g{number}', f'hqg{number}', '10.213.77.1')
    compute = Machine(f'heqis-c{number}', f'hqc{number}', '10.213.77.2')
    made = []
    try:
        try:
            for machine in (gateway, compute):
                ip('netns', 'add', machine.name)
                made.append(machine.name)
            ip(
                *('link', 'add', gateway.device, 'netns', gateway.name, 'type', 'veth'),
                *('peer', 'name', compute.device, 'netns', compute.name),
            )
            for machine in (gateway, compute):
                ip('-n', machine.name, 'link', 'set', 'lo', 'up')
                ip(
                    '-n',
                    machine.name,
                    'addr',
                    'add',
                    f'{machine.address}/24',
                    'dev',
                    machine.device,
                )
                ip('-n', machine.name, 'link', 'set', machine.device, 'up')
                machine.run('true')
        except OSError as error:
            pytest.skip(f'network namespaces are not allowed here: {error}')
        yield gateway, compute
    finally:
        for name in made:
            ip('netns', 'del', name)


def configured(folder: Path, name: str, peer: str, admitted: str) -> Path:
    """Return a board's copy of the configuration, with its keys and its peer's in every file."""
    keys = folder / 'keys'
    config = Path(
        shutil.copytree(find_share('heqis_bringup') / 'config', folder / f'{name}-config')
    )
    allow = folder / f'{name}-allowed'
    allow.mkdir()
    shutil.copy(keys / f'{admitted}.key', allow)
    for file in ('gateway', 'compute', 'supervisor', 'agent'):
        path = config / f'{file}.yaml'
        # The supervisor is on the gateway board: every agent connects to the gateway's key.
        server = 'gateway' if file == 'agent' else peer
        text = path.read_text()
        for key, value in (
            ('secret_key_file', keys / f'{name}.key_secret'),
            ('peer_key_file', keys / f'{server}.key'),
            ('allow_folder', allow),
        ):
            assert f"{key}: ''" in text, f'{path}: no {key}'
            text = text.replace(f"{key}: ''", f'{key}: {value}')
        path.write_text(text)
    return config


def endpoints(bound: str, gateway: Machine, compute: Machine) -> list[str]:
    """Return launch arguments; a board binds its own on all its addresses."""
    hosts = dict.fromkeys(PORTS, gateway) | {'frames': compute}
    return [
        f'{name}:=tcp://{"0.0.0.0" if host.name == bound else host.address}:{PORTS[name]}'
        for name, host in hosts.items()
    ]


def test_two_machines_decide_as_one_process_although_the_cable_is_pulled(machines, tmp_path):
    gateway, compute = machines
    bundle = make_bundle(tmp_path / 'bundle')
    expected = decided_by_batch(bundle)
    for name in ('gateway', 'compute'):
        write_keys(tmp_path / 'keys', name)
    state = tmp_path / 'gateway'
    journal = state / 'journal.db'
    gateway_words = [
        *endpoints(gateway.name, gateway, compute),
        f'config:={configured(tmp_path, "gateway", "compute", "gateway")}',
        *(f'bundle:={bundle}', f'state:={state}', 'dashboard:=false', 'pace:=40', *MARKET),
    ]
    compute_words = [
        *endpoints(compute.name, gateway, compute),
        f'config:={configured(tmp_path, "compute", "gateway", "gateway")}',
        f'bundle:={bundle}',
    ]
    with (
        board(
            'compute', tmp_path, *compute_words, prefix=('ip', 'netns', 'exec', compute.name)
        ) as one,
        board(
            'gateway', tmp_path, *gateway_words, prefix=('ip', 'netns', 'exec', gateway.name)
        ) as other,
    ):
        wait_for(journal, FRAMES // 4, (one, other), 60)
        assert made_by(gateway, compute)
        assert len(made_by(compute, gateway)) >= len(PORTS) - 1
        ip('-n', compute.name, 'link', 'set', compute.device, 'down')
        for machine, peer in ((gateway, compute), (compute, gateway)):
            wait_until(
                lambda: not made_by(machine, peer),  # noqa: B023 - called in this turn
                10,
                f'{machine.name} does not notice that its connections are dead',
            )
        before = figures(journal).frames
        ip('-n', compute.name, 'link', 'set', compute.device, 'up')
        wait_for(journal, FRAMES, (one, other), 40)
    assert before < FRAMES
    assert figures(journal) == expected


def made_by(machine: Machine, peer: Machine) -> list[str]:
    """Return the established connections that a machine has made to the other one's ports."""
    ends = {f'{peer.address}:{port}' for port in PORTS.values()}
    lines = machine.run('ss', '-Htn', 'state', 'established').splitlines()
    return [line for line in lines if line.split()[-1] in ends]
