# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: it is created, gone on with, refused, locked and finished."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from heqis_core.errors import ConfigError
from heqis_core.features.spec import FeatureSpec, default_spec
from heqis_training.checkpoint import check_about, load_state, save_state
from heqis_training.run_folder import (
    Run,
    finish_run,
    hold_run,
    package_versions,
    read_run,
    setting_differences,
)
from heqis_training.settings import (
    DiscriminatorSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    load_settings,
)

SETTINGS = TrainingSettings(fit=FitSettings(learning_rate=2e-5))
DATA = '0f' * 32
DEADLINE_S = 60.0


def start(path: Path, settings: TrainingSettings = SETTINGS) -> Run:
    with hold_run(path, settings, default_spec(True), DATA) as run:
        return run


def test_a_new_run_writes_down_what_it_was_started_with(tmp_path: Path) -> None:
    path = tmp_path / 'runs' / 'one'
    with hold_run(path, SETTINGS, default_spec(True), DATA) as run:
        assert not run.resumed
        assert not run.finished
        assert run.status == f'{path}: new run'
    assert load_settings(path / 'settings.yaml') == SETTINGS
    assert FeatureSpec.load(run.spec) == default_spec(True)
    info = json.loads((path / 'run.json').read_text())
    assert info['settings'] == SETTINGS.id
    assert info['data'] == DATA
    assert info['features'] == list(default_spec(True).names)
    assert info['packages'] == package_versions()
    assert info['packages']['torch'] != 'absent'
    assert info['started'].endswith('+00:00')
    assert read_run(path) == run


def test_the_same_start_goes_on_and_a_finished_run_says_so(tmp_path: Path) -> None:
    first = start(tmp_path)
    with hold_run(tmp_path, SETTINGS, default_spec(True), DATA) as run:
        assert run.resumed
        assert run.info == first.info
        assert 'going on with the run that started at' in run.status
        assert finish_run(run).finished
    last = start(tmp_path)
    assert last.finished
    assert f'{tmp_path}: this run finished at {last.info.finished}' in last.status
    assert '--run' in last.status


def test_other_settings_are_refused_by_field_with_both_values(tmp_path: Path) -> None:
    start(tmp_path)
    other = TrainingSettings(seed=8, fit=FitSettings(learning_rate=1e-3))
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, other)
    text = str(caught.value)
    assert 'seed was 7, now 8; fit.learning_rate was 2e-05, now 0.001; ' in text
    assert str(tmp_path) in text
    assert '--run' in text
    assert load_settings(tmp_path / 'settings.yaml') == SETTINGS
    assert start(tmp_path).resumed, 'the lock was given back'


def test_setting_differences_name_parts_that_came_and_went() -> None:
    old = TrainingSettings(generators=(GruSettings(),), discriminators=())
    new = TrainingSettings(
        generators=(LstmSettings(),), discriminators=(DiscriminatorSettings(window=9),)
    )
    found = setting_differences(old, new)
    assert 'generators.0.type was gru, now lstm' in found
    assert 'generators.0.bidirectional was absent, now False' in found
    assert 'discriminators.0.window was absent, now 9' in found
    assert setting_differences(old, old) == []


def test_other_features_or_data_are_refused_by_name(tmp_path: Path) -> None:
    spec = default_spec(True)
    start(tmp_path)
    fewer = FeatureSpec(spec.features[1:])
    with (
        pytest.raises(ConfigError) as caught,
        hold_run(tmp_path, SETTINGS, fewer, 'ab' * 32),
    ):
        pytest.fail('it was opened')
    text = str(caught.value)
    assert f'feature spec was {spec.id}, now {fewer.id}' in text
    assert f'feature {spec.names[0]} is gone' in text
    assert f'fingerprint was {DATA[:16]}, now {"ab" * 8}' in text


def test_other_packages_are_a_warning_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tmp_path)
    packages = {**run.info.packages, 'torch': '1.0'}
    info = msgspec.structs.replace(run.info, packages=packages)
    (tmp_path / 'run.json').write_bytes(msgspec.json.encode(info))
    with caplog.at_level(logging.WARNING):
        assert start(tmp_path).resumed
    (record,) = caplog.records
    assert 'need not equal' in record.getMessage()
    assert f'torch was 1.0, now {run.info.packages["torch"]}' in record.getMessage()


def test_settings_that_were_edited_in_the_folder_are_refused(tmp_path: Path) -> None:
    start(tmp_path)
    file = tmp_path / 'settings.yaml'
    file.write_text(file.read_text().replace('seed: 7', 'seed: 9'))
    with pytest.raises(
        ConfigError, match=r'settings\.yaml: was changed after the run was started'
    ):
        start(tmp_path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', r'run\.json: not of a run'),
        (b'\xff', r'run\.json: not of a run'),
        (b'{"schema": 1}', r'run\.json: not of a run .*settings'),
    ],
)
def test_a_damaged_run_file_is_refused_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    start(tmp_path)
    (tmp_path / 'run.json').write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        start(tmp_path)


def test_a_run_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path)
    info = msgspec.structs.replace(run.info, schema=2)
    (tmp_path / 'run.json').write_bytes(msgspec.json.encode(info))
    with pytest.raises(ConfigError, match=r'run\.json: schema is 2, this version reads 1'):
        read_run(tmp_path)


def test_a_folder_with_something_else_a_file_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ConfigError, match=r'holds notes\.txt and no run'):
        start(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ['notes.txt']
    with pytest.raises(ConfigError, match='run folder cannot be made'):
        start(tmp_path / 'notes.txt')
    with pytest.raises(ConfigError, match='name the folder of a run of heqis train'):
        read_run(tmp_path)


def test_a_start_that_was_killed_before_run_json_begins_anew(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / 'run.json').rename(tmp_path / 'run.json.partial')
    (tmp_path / 'run.json.partial').write_bytes(b'{"sch')
    for name in ('run.owner', 'spec.json.partial'):
        (tmp_path / name).write_text('half')
    run = start(tmp_path)
    assert not run.resumed
    assert read_run(tmp_path) == run


def test_a_checkpoint_of_the_run_carries_its_identity(tmp_path: Path) -> None:
    run = start(tmp_path / 'a')
    save_state(run.checkpoint, {'epoch': 1}, run.about('training'))
    check_about(load_state(run.checkpoint), run.about('training'))
    other = start(tmp_path / 'b', TrainingSettings(seed=8))
    with pytest.raises(ConfigError, match=f'settings is {SETTINGS.id}, now {other.info.settings}'):
        check_about(load_state(run.checkpoint), other.about('training'))


def test_every_file_of_a_run_lies_in_its_folder_under_a_name_of_its_own(tmp_path: Path) -> None:
    run = start(tmp_path)
    names = [name for name, value in vars(Run).items() if isinstance(value, property)]
    paths = [value for name in names if isinstance(value := getattr(run, name), Path)]
    assert len(paths) >= 13
    assert {one.parent for one in paths} == {tmp_path}
    assert len({one.name for one in paths}) == len(paths)


HOLDER = """
import sys
from pathlib import Path
from heqis_core.features.spec import default_spec
from heqis_training.run_folder import hold_run
from heqis_training.settings import FitSettings, TrainingSettings
settings = TrainingSettings(fit=FitSettings(learning_rate=2e-5))
with hold_run(Path(sys.argv[1]), settings, default_spec(True), '0f' * 32) as run:
    print(run.resumed, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a run until its standard input ends."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(path)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == 'False'
            yield process
        finally:
            process.kill()


def test_two_trainings_never_hold_one_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(ConfigError) as caught:
            start(tmp_path)
        assert f'process {process.pid} on ' in str(caught.value)
        assert 'is training there' in str(caught.value)
        assert read_run(tmp_path).settings == SETTINGS, 'reading needs no lock'
        process.kill()
        process.wait(DEADLINE_S)
        assert (tmp_path / 'run.owner').exists(), 'it had no time to clear up'
        assert start(tmp_path).resumed


def test_a_second_holder_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with hold_run(tmp_path, SETTINGS, default_spec(True), DATA):
        with pytest.raises(ConfigError, match=f'process {os.getpid()} on .* is training there'):
            start(tmp_path)
        assert (tmp_path / 'run.owner').exists(), 'the refused one left the owner alone'
    assert not (tmp_path / 'run.owner').exists()


def test_an_error_inside_lets_go_of_the_run(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        hold_run(tmp_path, SETTINGS, default_spec(True), DATA),
    ):
        raise ZeroDivisionError
    assert start(tmp_path).resumed
