# SPDX-License-Identifier: Apache-2.0
"""Both boards as processes, with a network between them that harms what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from heqis_bringup.testing_boards import (
    FRAMES,
    MARKET,
    board,
    decided_by_batch,
    figures,
    make_bundle,
    wait_for,
)
from heqis_core.io.fault_proxy import MILD, Fault, FaultProxy, seeded
from heqis_core.testing import free_port

pytestmark = [pytest.mark.graph, pytest.mark.timeout(120)]


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp('bundle'))


def test_a_harmed_network_between_two_boards_changes_no_decision(bundle, tmp_path):
    expected = decided_by_batch(bundle)
    assert expected.signals > 0
    frames, decisions, requests, control = (f'tcp://127.0.0.1:{free_port()}' for _ in range(4))
    proxies = [
        FaultProxy(endpoint, seed=i) for i, endpoint in enumerate((frames, decisions, requests))
    ]
    for seed, proxy in enumerate(proxies):
        proxy.forth = proxy.back = seeded(seed, 0.15, (*MILD, Fault.GARBLE))
    to_frames, to_decisions, to_requests = (proxy.endpoint for proxy in proxies)
    journal = tmp_path / 'gateway' / 'journal.db'
    gateway_words = [
        *(f'frames:={to_frames}', f'decisions:={decisions}', f'requests:={requests}'),
        *(f'control:={control}', f'bundle:={bundle}', f'state:={journal.parent}', 'pace:=0'),
        *('dashboard:=false', *MARKET),
    ]
    compute_words = [
        *(f'frames:={frames}', f'decisions:={to_decisions}', f'requests:={to_requests}'),
        *(f'control:={control}', f'bundle:={bundle}'),
    ]
    try:
        with (
            board('compute', tmp_path, *compute_words) as compute,
            board('gateway', tmp_path, *gateway_words) as gateway,
        ):
            wait_for(journal, FRAMES // 2, (compute, gateway), 40)
            for proxy in proxies:
                proxy.forth = proxy.back = None
            wait_for(journal, FRAMES, (compute, gateway), 40)
    finally:
        for proxy in proxies:
            proxy.close()
    assert figures(journal) == expected
    assert sum(sum(proxy.counts.values()) for proxy in proxies) >= 10
