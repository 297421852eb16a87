# SPDX-License-Identifier: Apache-2.0
"""The whole graph as separate processes: how frames get there does not change what is decided.

Every run is a `heqis demo` of its own, in its own domain and on its own ports. The reference is
`heqis batch`, which has no graph; each run's digest over the journal must equal it, also when
processes are killed in mid-stream.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymodbus.client import ModbusTcpClient

from heqis_bringup import testing_demo
from heqis_bringup.testing_demo import Run, heqis
from heqis_core.bars import BAR_FIELDS, BarStatus
from heqis_core.simulator import MarketSimulator
from heqis_core.testing import free_port, wait_until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(200)]

DAYS, SYMBOLS = 520, 4


@dataclass(frozen=True)
class Case:
    """Data, bundle and the digest that every run must have."""

    data: Path
    bundle: Path
    digest: str
    frames: int


@pytest.fixture(scope='session')
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Write simulated bars as files, train on their first part, decide the rest alone."""
    folder = tmp_path_factory.mktemp('graph')
    data = write_bars(folder / 'bars')
    trained = heqis(
        *('train', '--data', data, '--run', folder / 'run', '--out', folder / 'bundles'),
        *('--num_epochs', 2, '--seed', 1, '--json'),
    )
    assert trained.returncode == 0, trained.stderr
    bundle = Path(json.loads(trained.stdout.splitlines()[-1])['bundle']['path'])
    batch = heqis('batch', '--data', data, '--bundle', bundle, '--json')
    assert batch.returncode == 0, batch.stderr
    result = json.loads(batch.stdout.splitlines()[-1])
    assert result['signals'] > 0
    return Case(data, bundle, result['signals_digest'], result['frames'])


def write_bars(folder: Path) -> Path:
    """Write one CSV per simulated symbol; suspended days have no row, as in Tushare's `daily`."""
    folder.mkdir()
    simulator = MarketSimulator(SYMBOLS, seed=21)
    lines: dict[str, list[str]] = {name: [] for name in simulator.symbols}
    for _ in range(DAYS):
        block = simulator.next_block()
        day = time.strftime('%Y-%m-%d', time.gmtime(block.event_time_ns / 1e9))
        for s, name in enumerate(simulator.symbols):
            if block.status[s] == BarStatus.VALID:
                cells = ','.join(repr(float(value)) for value in block.values[:, s])
                lines[name].append(f'{day},{cells}')
    for name, rows in lines.items():
        text = '\n'.join([','.join(('date', *BAR_FIELDS)), *rows]) + '\n'
        (folder / f'{name}.csv').write_text(text)
    return folder


def running(case: Case, folder: Path, *options: object) -> AbstractContextManager[Run]:
    # Without the page: test_page.py has it, and shows that it changes no decision.
    given = ('--duration', 120, *options, 'dashboard:=false')
    return testing_demo.running(case.data, case.bundle, folder, *given)


def check_complete(case: Case, report: dict[str, Any]) -> None:
    assert report['signals_digest'] == case.digest
    assert report['frames_sent'] == case.frames
    assert report['frames_received'] == case.frames
    assert report['decisions'] == case.frames * SYMBOLS
    assert report['bundle']['path'] == str(case.bundle)
    assert report['errors'] == []
    assert {node['state'] for node in report['nodes'].values()} == {'active'}


@pytest.mark.parametrize('transport', ['zmq', 'dds'])
@pytest.mark.parametrize('pace', [50, 0])
def test_a_run_has_the_digest_of_the_batch_run(transport, pace, case, tmp_path):
    with running(case, tmp_path, '--transport', transport, '--pace', pace) as run:
        report = run.report()
    check_complete(case, report)
    assert report['transport'] == transport
    assert report['drops'] == 0
    assert report['signals'] > 0
    stages = report['latency_us']
    assert 0 < stages['ingest_to_signal']['p50'] <= stages['ingest_to_signal']['p99']


@pytest.mark.parametrize(
    ('package', 'executable'),
    [
        ('heqis_compute', 'compute'),
        ('heqis_gateway', 'gateway'),
        ('heqis_supervisor', 'supervisor'),
        ('heqis_supervisor', 'journal'),
    ],
)
@pytest.mark.parametrize('transport', ['zmq', 'dds'])
def test_a_process_killed_in_mid_stream_comes_back_and_changes_no_decision(
    transport, package, executable, case, tmp_path
):
    if transport == 'dds' and executable in ('supervisor', 'journal'):
        pytest.skip('the transport ends before these: the same path as over zmq')
    with running(case, tmp_path, '--transport', transport, '--pace', 50) as run:
        wait_until(lambda: run.committed() >= 40, 40, 'no 40 frames were decided')
        run.kill(package, executable)
        report = run.report()
    check_complete(case, report)
    restarts = sum(node['restarts'] for node in report['nodes'].values())
    assert restarts >= 1


def test_several_sources_and_a_kill_change_no_decision_and_a_plc_can_read_it(case, tmp_path):
    """The files of one folder come as two sources; the gateway is killed; a PLC looks on."""
    files = sorted(case.data.glob('*.csv'))
    sources = tmp_path / 'sources.yaml'
    lines = ['sources:']
    for name, part in (('one', files[:1]), ('two', files[1:])):
        folder = tmp_path / name
        folder.mkdir()
        for file in part:
            (folder / file.name).write_bytes(file.read_bytes())
        lines.append(f'- {{name: {name}, kind: file, path: {name}}}')
    sources.write_text('\n'.join(lines) + '\n')
    port = free_port()
    arguments = ['source:=several', f'sources:={sources}', 'modbus:=true', f'modbus_port:={port}']
    with running(case, tmp_path, '--pace', 50, *arguments) as run:
        wait_until(lambda: run.committed() >= 40, 40, 'no 40 frames were decided')
        run.kill('heqis_gateway', 'gateway')
        wait_until(lambda: run.committed() >= 80, 40, 'nothing was decided after the kill')
        registers = read_registers(port)
        report = run.report()
    check_complete(case, report)
    assert bytes.fromhex(f'{registers[0]:04x}{registers[1]:04x}') == b'HEQI'
    assert registers[5] == SYMBOLS
    assert report['nodes']['gateway']['restarts'] >= 1


def read_registers(port: int) -> list[int]:
    with ModbusTcpClient('127.0.0.1', port=port, timeout=5) as plc:
        answer = plc.read_holding_registers(0, count=16)
    assert not answer.isError(), answer
    return answer.registers


def test_two_graphs_run_beside_each_other_each_in_its_namespace(case, tmp_path):
    folders = [tmp_path / name for name in ('a', 'b')]
    for folder in folders:
        folder.mkdir()
    with (
        running(case, folders[0], '--pace', 100) as a,
        running(case, folders[1], 'namespace:=desk/lab') as b,
    ):
        reports = [a.report(), b.report()]
    for report in reports:
        check_complete(case, report)


def test_sigterm_ends_every_process_in_time_and_still_reports(case, tmp_path):
    with running(case, tmp_path, '--pace', 5) as run:
        wait_until(lambda: run.committed() >= 3, 40, 'nothing was decided')
        children = run.children()
        started = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        report = run.report()
        psutil.wait_procs(children, timeout=5)
        assert time.monotonic() - started < 10
        assert not [child for child in children if child.is_running()]
    assert report['finished'] is False
    assert report['decisions'] > 0


def test_a_graph_on_a_port_that_is_taken_says_so(case, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = heqis(
            'demo', '--data', case.data, '--bundle', case.bundle, '--run-dir', tmp_path,
            '--duration', 15, f'decisions:=tcp://127.0.0.1:{port}', 'dashboard:=false',
            env=os.environ,
        )  # fmt: skip
    assert done.returncode != 0
    assert str(port) in done.stdout + done.stderr
