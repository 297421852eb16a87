# SPDX-License-Identifier: Apache-2.0
"""The two boards as two machines: each in a network namespace and a DDS domain of its own.

Nothing but the link with its keys leads from one to the other; its cable is pulled once. This
needs a Linux that lets us make network namespaces (root, or CAP_NET_ADMIN).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heqis_bringup.ament import find_share
from heqis_bringup.chaos.cable import Cable, Machine, keyed_config
from heqis_bringup.testing_boards import (
    FRAMES,
    MARKET,
    board,
    decided_by_batch,
    figures,
    make_bundle,
    wait_for,
)
from heqis_core.errors import ConfigError
from heqis_core.io.zmq_security import write_keys
from heqis_core.testing import wait_until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(120)]

PORTS = {'frames': 5555, 'decisions': 5556, 'requests': 5557, 'control': 5558}


@pytest.fixture
def cable() -> Iterator[Cable]:
    """Lay a cable between two new network namespaces; skip with the reason where we may not."""
    try:
        laid = Cable()
    except ConfigError as error:
        pytest.skip(str(error))
    yield laid
    laid.close()


def endpoints(bound: str, gateway: Machine, compute: Machine) -> list[str]:
    """Return launch arguments; a board binds its own on all its addresses."""
    hosts = dict.fromkeys(PORTS, gateway) | {'frames': compute}
    return [
        f'{name}:=tcp://{"0.0.0.0" if host.name == bound else host.address}:{PORTS[name]}'
        for name, host in hosts.items()
    ]


def test_two_machines_decide_as_one_process_although_the_cable_is_pulled(cable, tmp_path):
    gateway, compute = cable.near, cable.far
    shipped = find_share('heqis_bringup') / 'config'
    bundle = make_bundle(tmp_path / 'bundle')
    expected = decided_by_batch(bundle)
    for name in ('gateway', 'compute'):
        write_keys(tmp_path / 'keys', name)
    state = tmp_path / 'gateway'
    journal = state / 'journal.db'
    gateway_words = [
        *endpoints(gateway.name, gateway, compute),
        f'config:={keyed_config(shipped, tmp_path, "gateway", "compute")}',
        *(f'bundle:={bundle}', f'state:={state}', 'dashboard:=false', 'pace:=40', *MARKET),
    ]
    compute_words = [
        *endpoints(compute.name, gateway, compute),
        f'config:={keyed_config(shipped, tmp_path, "compute", "gateway")}',
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
        cable.pull()
        for machine, peer in ((gateway, compute), (compute, gateway)):
            wait_until(
                lambda: not made_by(machine, peer),  # noqa: B023 - called in this turn
                10,
                f'{machine.name} does not notice that its connections are dead',
            )
        before = figures(journal).frames
        cable.plug()
        wait_for(journal, FRAMES, (one, other), 40)
    assert before < FRAMES
    assert figures(journal) == expected


def made_by(machine: Machine, peer: Machine) -> list[str]:
    """Return the established connections that a machine has made to the other one's ports."""
    ends = {f'{peer.address}:{port}' for port in PORTS.values()}
    lines = machine.run('ss', '-Htn', 'state', 'established').splitlines()
    return [line for line in lines if line.split()[-1] in ends]
