# SPDX-License-Identifier: Apache-2.0
"""One gateway and three compute boards as processes: what is decided is what one board decides.

Each board is a `heqis up` in a DDS domain of its own; the symbols are spread over the boards.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from heqis_bringup.ament import find_share
from heqis_bringup.testing_boards import (
    FRAMES,
    MARKET,
    SYMBOLS,
    board,
    decided_by_batch,
    figures,
    make_bundle,
    wait_for,
)
from heqis_core.decision import Decisions, Reason
from heqis_core.io.journal import Journal
from heqis_core.testing import free_port

pytestmark = [pytest.mark.graph, pytest.mark.timeout(180)]

BOARDS = ('jetson_1', 'jetson_2', 'jetson_3')
START_S = 90


def tcp() -> str:
    return f'tcp://127.0.0.1:{free_port()}'


def configured(folder: Path, lease_ms: int) -> tuple[Path, dict[str, dict[str, str]]]:
    """Return a copy of the configuration for three boards, and each board's endpoints."""
    config = Path(shutil.copytree(find_share('heqis_bringup') / 'config', folder / 'config'))
    endpoints = {
        name: {word: tcp() for word in ('frames', 'decisions', 'requests')} for name in BOARDS
    }
    boards = [{'name': name, **ends, 'peer_key': ''} for name, ends in endpoints.items()]
    (config / 'boards.yaml').write_bytes(msgspec.yaml.encode({'boards': boards}))
    path = config / 'gateway.yaml'
    text = path.read_text()
    for was, now in (
        ("boards: '' ", f'boards: {config / "boards.yaml"} '),
        ('board_lease_ms: 2000', f'board_lease_ms: {lease_ms}'),
    ):
        assert was in text
        text = text.replace(was, now)
    path.write_text(text)
    rules = msgspec.yaml.decode((config / 'graph.yaml').read_bytes())
    one = rules['boards'].pop('compute')
    rules['boards']['gateway']['gateway']['nodes']['gateway']['depends_on'].remove('compute')
    for name in BOARDS:
        rules['boards'][name] = {
            'compute': {'nodes': {name: one['compute']['nodes']['compute']}},
            'agent': {'nodes': {f'{name}_agent': one['agent']['nodes']['compute_agent']}},
        }
    (config / 'graph.yaml').write_bytes(msgspec.yaml.encode(rules))
    return config, endpoints


@contextmanager
def graph(folder: Path, bundle: Path, pace: str, lease_ms: int) -> Iterator[list[psutil.Process]]:
    """Run gateway and boards; yield the processes of `heqis up`, the gateway's first."""
    config, endpoints = configured(folder, lease_ms)
    common = (f'bundle:={bundle}', f'config:={config}', f'control:={tcp()}')
    market = (*MARKET, f'pace:={pace}', 'dashboard:=false', 'state:=state')
    with ExitStack() as stack:
        up = [stack.enter_context(board('gateway', folder, *common, *market))]
        for name, ends in endpoints.items():
            place = folder / name
            place.mkdir()
            words = (*common, f'board:={name}', *(f'{k}:={v}' for k, v in ends.items()))
            up.append(stack.enter_context(board('compute', place, *words)))
        yield up


def decisions(journal: Path) -> list[Decisions]:
    with Journal.open(journal, read_only=True, check=False) as found:
        return list(found.frames())


def test_three_boards_decide_what_one_decides(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / 'bundles')
    expected = decided_by_batch(bundle)
    journal = tmp_path / 'state' / 'journal.db'
    with graph(tmp_path, bundle, '0', lease_ms=30_000) as up:
        wait_for(journal, FRAMES, up, START_S)
        assert figures(journal) == expected
    assert expected.signals > 0


def test_a_board_that_is_killed_costs_its_own_symbols_alone_and_comes_back(
    tmp_path: Path,
) -> None:
    bundle = make_bundle(tmp_path / 'bundles')
    journal = tmp_path / 'state' / 'journal.db'
    with graph(tmp_path, bundle, '20', lease_ms=1000) as up:
        wait_for(journal, 30, up, START_S)
        (node,) = [
            child
            for child in psutil.Process(up[2].pid).children(recursive=True)
            if any(word.endswith('heqis_compute/compute') for word in child.cmdline())
        ]
        node.kill()
        wait_for(journal, FRAMES, up, START_S)
    kept = decisions(journal)
    away = np.array([(frame.reasons & Reason.BOARD_AWAY) != 0 for frame in kept])
    assert [frame.seq for frame in kept] == list(range(kept[0].seq, kept[0].seq + FRAMES))
    assert {len(frame.symbols) for frame in kept} == {SYMBOLS}
    absent = Counter(np.flatnonzero(away.any(axis=0)).tolist())
    assert len(absent) < SYMBOLS, 'the other boards went on'
    assert not away[-1].any(), 'it is back'
