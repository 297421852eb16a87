# SPDX-License-Identifier: Apache-2.0
"""The doctor: never fails, says why an engine is passed over and how to get what is missing."""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest
from rich.console import Console

from heqis_bringup import doctor, probes
from heqis_bringup.doctor import BROKEN, MISSING, NOTE, OK, USED, Finding
from heqis_core.testing import free_port


def test_every_part_is_looked_at_and_nothing_raises() -> None:
    findings = doctor.examine()
    assert {item.section for item in findings} >= set(doctor.PROBES)
    assert {item.status for item in findings} <= {OK, USED, NOTE, MISSING, BROKEN}
    names = {(item.section, item.name): item for item in findings}
    assert names[('machine', 'python')].status == OK
    assert names[('packages', 'numpy')].status == OK
    assert names[('packages', 'numpy')].detail


def test_what_is_broken_or_missing_comes_with_a_way_out() -> None:
    for item in doctor.examine():
        if item.status in (BROKEN, MISSING):
            assert item.fix, f'{item.section} {item.name}: {item.detail}'


def test_a_probe_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def bad() -> Iterator[Finding]:
        yield Finding('a', 'before', OK)
        raise PermissionError('not you')

    def good() -> Iterator[Finding]:
        yield Finding('b', 'after', OK)

    findings = doctor.examine({'a': bad, 'b': good})
    assert [item.status for item in findings] == [OK, NOTE, OK]
    assert 'PermissionError: not you' in findings[1].detail


def test_an_empty_environment_is_broken_but_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AMENT_PREFIX_PATH', '')
    monkeypatch.setenv('PATH', '')
    gateway = next(f for f in doctor.examine() if f.name == 'heqis_gateway')
    assert gateway.status == BROKEN
    assert 'install/setup.bash' in gateway.fix


@pytest.mark.parametrize('status', [OK, BROKEN])
def test_json_and_exit_status(
    status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe() -> Iterator[Finding]:
        yield Finding('part', 'thing', status, 'detail', 'do this')

    monkeypatch.setattr(doctor, 'PROBES', {'part': probe})
    assert doctor.run(argparse.Namespace(json=True)) == int(status == BROKEN)
    (item,) = json.loads(capsys.readouterr().out)
    assert item == {
        'section': 'part',
        'name': 'thing',
        'status': status,
        'detail': 'detail',
        'fix': 'do this',
    }


def test_the_table_shows_text_as_it_is() -> None:
    out = io.StringIO()
    table = doctor.as_table([Finding('p', 'n', BROKEN, 'path [red]/x[/red]', 'run [this]')])
    Console(file=out, width=120).print(table)
    assert '[red]/x[/red]' in out.getvalue()
    assert '-> run [this]' in out.getvalue()


def test_a_port_names_its_holder() -> None:
    port = free_port()
    assert probes.port_holder(port) is None
    with socket.socket() as server:
        server.bind(('127.0.0.1', port))
        server.listen()
        holder = probes.port_holder(port)
    assert holder is not None
    assert f'(pid {os.getpid()})' in holder or 'another user' in holder
    assert probes.port_holder(port) is None


def engine(name: str, reason: str | None, module: str = 'json') -> probes.EngineProbe:
    return probes.EngineProbe(name, module, lambda: reason, lambda: f'{name} 1.0', f'get {name}')


def test_the_first_engine_that_works_is_used_and_the_others_say_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = (engine('npu', 'no driver'), engine('gpu', None), engine('cpu', None))
    monkeypatch.setattr(probes, 'ENGINE_ORDER', {'encoder': order})
    npu, gpu, cpu = doctor.examine({'engines': doctor.PROBES['engines']})
    assert (npu.status, npu.detail, npu.fix) == (NOTE, 'passed over: no driver', 'get npu')
    assert (gpu.status, gpu.detail) == (USED, 'gpu 1.0')
    assert cpu.status == OK


def test_without_any_engine_the_part_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, 'ENGINE_ORDER', {'encoder': (engine('npu', 'none'),)})
    findings = doctor.examine({'engines': doctor.PROBES['engines']})
    assert [item.status for item in findings] == [NOTE, BROKEN]


def test_hardware_that_works_without_a_driver_of_ours_is_passed_over() -> None:
    assert 'no driver for it' in str(engine('gpu', None, 'heqis_core_no_such').passed_over())


def test_an_engine_probe_that_fails_is_a_reason() -> None:
    def fail() -> str | None:
        raise OSError('cannot load')

    probe = probes.EngineProbe('gpu', 'json', fail, str, '')
    assert probe.passed_over() == 'OSError: cannot load'


def test_onnx_runtime_serves_every_part_on_this_machine() -> None:
    findings = doctor.examine({'engines': doctor.PROBES['engines']})
    used = [item for item in findings if item.status == USED]
    assert len(used) == len(probes.ENGINE_ORDER)


def test_a_middleware_that_is_not_installed_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = tmp_path / 'share/ament_index/resource_index/rmw_typesupport'
    index.mkdir(parents=True)
    (index / 'rmw_cyclonedds_cpp').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'none'))
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp')
    assert middleware().status == OK
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_nix')
    finding = middleware()
    assert (finding.status, finding.detail) == (BROKEN, 'rmw_nix is not installed')
    assert 'rmw_cyclonedds_cpp' in finding.fix


def middleware() -> Finding:
    if util.find_spec('rclpy') is None:
        pytest.skip('no ROS 2 here')
    return next(f for f in doctor.examine() if f.name == 'middleware')


def test_the_page_is_looked_at_and_missing_parts_of_it_break_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probe = {'dashboard': doctor.PROBES['dashboard']}
    here = {item.name: item for item in doctor.examine(probe)}
    assert set(here) == {
        *('program', 'chromium'),
        *('dash', 'plotly', 'fastapi', 'starlette', 'uvicorn', 'websockets'),
    }
    assert here['dash'].status == OK
    assert here['dash'].detail[0].isdigit()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(doctor, '_version', lambda _: '')
    for item in doctor.examine(probe):
        assert item.status == NOTE
        assert item.fix
        assert 'dashboard:=false' in item.fix or item.name == 'chromium'
    (tmp_path / 'chromium').write_text('')
    (tmp_path / 'chromium').chmod(0o755)
    assert probes.chromium() == tmp_path / 'chromium'


def test_the_clock_probe_answers_or_says_that_it_cannot() -> None:
    assert probes.clock_synchronised() in (True, False, None)


def test_a_tushare_token_is_said_to_be_there_and_never_shown(tmp_path, monkeypatch) -> None:
    probe = {'sources': doctor.PROBES['sources']}
    token = tmp_path / 'token'
    token.write_text('secret-of-the-account')
    monkeypatch.delenv('TUSHARE_TOKEN', raising=False)
    monkeypatch.delenv('TUSHARE_TOKEN_FILE', raising=False)

    def found() -> doctor.Finding:
        findings = doctor.examine(probe)
        assert not any('secret-of' in item.detail + item.fix for item in findings)
        return next(item for item in findings if item.name == 'Tushare token')

    assert found().status == doctor.NOTE
    monkeypatch.setenv('TUSHARE_TOKEN_FILE', str(token))
    token.chmod(0o644)
    assert 'lets others read it' in found().detail
    token.chmod(0o600)
    assert found().status == doctor.OK
