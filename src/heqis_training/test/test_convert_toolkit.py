# SPDX-License-Identifier: Apache-2.0
"""The process around the RKNN toolkit: its contract, its failures, and the toolkit itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from heqis_core.conversion import to_image
from heqis_core.errors import ConfigError, EngineError
from heqis_training.convert import rknn_worker
from heqis_training.convert.derive import rows_in_height
from heqis_training.convert.outcome import answers_of
from heqis_training.convert.rknn_tool import build_rknn, default_python
from heqis_training.convert.testing_convert import CONVOLUTION, FEATURES, encoder_of, stand_in

ENCODER = encoder_of([CONVOLUTION])
IMAGE = rows_in_height(ENCODER, 8)
ROWS = np.random.default_rng(0).normal(size=(8, FEATURES, 1, 4)).astype(np.float32)
INPUTS = to_image(ROWS)[None]


@pytest.fixture(scope='module')
def toolkit() -> Path:
    python = default_python()
    if not python.exists():
        pytest.skip(f'no RKNN toolkit in {python}: run `make rknn`')
    return python


# --- around the process --------------------------------------------------------------------------


def test_a_built_model_comes_back_with_placement_and_answers(tmp_path: Path) -> None:
    python = stand_in(tmp_path, units=('NPU', 'CPU'))
    built = build_rknn(python, IMAGE, [INPUTS[0], INPUTS[0]], INPUTS)
    assert built.data == b'rknn' * 3
    assert [op.unit for op in built.ops] == ['NPU', 'CPU']
    assert built.tool == 'stand-in 1.0'
    (expected,) = answers_of(IMAGE, INPUTS[0]).values()
    np.testing.assert_allclose(built.outputs[0], expected, rtol=1e-6)


def test_what_the_toolkit_raises_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    python = stand_in(tmp_path, error='RuntimeError: build returned -1')
    with pytest.raises(EngineError, match=r'stand-in 1\.0: RuntimeError: build returned -1; the'):
        build_rknn(python, IMAGE, [], INPUTS)


def test_a_process_that_dies_is_told_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match='the RKNN toolkit ended with status 7'):
        build_rknn(stand_in(tmp_path, status=7), IMAGE, [], INPUTS)


def test_a_process_that_hangs_is_killed_after_its_time(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(EngineError, match=r'took more than 0\.5 s'):
        build_rknn(stand_in(tmp_path, hang=True), IMAGE, [], INPUTS, timeout_s=0.5)
    assert time.monotonic() - started_s < 30
    running = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True, check=True)
    assert str(tmp_path / 'stand_in') not in running.stdout


def test_without_a_toolkit_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='run `make rknn`'):
        build_rknn(tmp_path / 'python', IMAGE, [], INPUTS)


# --- inside the process --------------------------------------------------------------------------


class Toolkit:
    """The vendor's class as far as a job calls it; `fails` answers as it does when it fails."""

    fails: ClassVar[str] = ''
    answer: ClassVar[Any] = None
    said: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self, verbose: bool) -> None:
        assert verbose  # placement is printed only then
        self.said.clear()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> int:
            assert not args or name == 'export_rknn'
            self.said.append((name, kwargs))
            return -1 if name == self.fails else 0

        return call

    def inference(self, inputs: list[np.ndarray], data_format: list[str]) -> Any:
        assert data_format == ['nchw']
        return self.answer


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a job in the current folder, with the class above in the place of the vendor's."""
    package, api = ModuleType('rknn'), ModuleType('rknn.api')
    api.RKNN = Toolkit  # type: ignore[attr-defined]
    for name, module in (('rknn', package), ('rknn.api', api)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Toolkit, 'fails', '')
    monkeypatch.setattr(Toolkit, 'answer', [np.ones((1, 2, 8, 1))])
    monkeypatch.chdir(tmp_path)
    np.save('inputs.npy', np.concatenate([INPUTS, INPUTS]))
    return {'onnx': 'm.onnx', 'platform': 'rk3568', 'calibration': [], 'inputs': 'inputs.npy'}


def test_a_job_builds_in_fp16_or_quantises_with_the_files_it_names(job: dict[str, Any]) -> None:
    rknn_worker.build(job)
    said = dict(Toolkit.said)
    assert said['config'] == {'target_platform': 'rk3568'}
    assert said['build'] == {'do_quantization': False}
    assert said['init_runtime'] == {}  # a target would start a server on this machine
    assert np.load(rknn_worker.OUTPUTS).shape == (2, 1, 2, 8, 1)
    rknn_worker.build(job | {'calibration': ['a.npy', 'b.npy']})
    assert dict(Toolkit.said)['build'] == {
        'do_quantization': True,
        'dataset': 'calibration.txt',
    }
    assert Path('calibration.txt').read_text() == 'a.npy\nb.npy\n'


@pytest.mark.parametrize('step', ['config', 'load_onnx', 'build', 'export_rknn', 'init_runtime'])
def test_a_step_that_returns_minus_one_ends_the_job_by_name(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(Toolkit, 'fails', step)
    with pytest.raises(RuntimeError, match=f'{step} returned -1'):
        rknn_worker.build(job)
    assert Toolkit.said[-1][0] == step


@pytest.mark.parametrize('answer', [None, [], [np.ones(2), np.ones(2)]])
def test_a_simulation_without_one_output_ends_the_job(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(Toolkit, 'answer', answer)
    with pytest.raises(RuntimeError, match='expected one output'):
        rknn_worker.build(job)


def test_what_a_job_raises_becomes_its_result(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def traceback_as_text(self: Toolkit, **kwargs: Any) -> int:
        raise ValueError('Traceback (most recent call last):\n  File "x"\nno such operator')

    monkeypatch.setattr(Toolkit, 'load_onnx', traceback_as_text, raising=False)
    monkeypatch.setattr(rknn_worker, 'version', lambda name: '9.9')
    monkeypatch.setattr(sys, 'argv', ['rknn_worker.py'])
    Path('job.json').write_text(json.dumps(job))
    assert rknn_worker.main() == 0
    result = json.loads(Path(rknn_worker.RESULT).read_text())
    assert result == {'tool': 'rknn-toolkit2 9.9', 'error': 'ValueError: no such operator'}
    assert 'no such operator' in capsys.readouterr().err


# --- the toolkit itself --------------------------------------------------------------------------


def test_the_toolkit_builds_and_simulates_fp16_and_int8_on_the_npu(toolkit: Path) -> None:
    (expected,) = answers_of(IMAGE, INPUTS[0]).values()
    for calibration, dtype, most in (([], 'FLOAT16', 2e-3), ([INPUTS[0]], 'INT8', 5e-2)):
        built = build_rknn(toolkit, IMAGE, calibration, INPUTS)
        assert [(op.dtype, op.unit) for op in built.ops] == [(dtype, 'NPU')]
        assert built.tool == 'rknn-toolkit2 2.5.0'
        assert 0 < np.abs(built.outputs[0] - expected).max() < most


def test_the_toolkit_s_own_errors_come_back_as_one_line_and_its_log(toolkit: Path) -> None:
    with pytest.raises(EngineError, match=r'rknn-toolkit2 2\.5\.0: .*Error.*; the end of its log'):
        build_rknn(toolkit, b'no model', [], INPUTS)
    with pytest.raises(EngineError, match=r'is wrong, expect .*nchw'):
        build_rknn(toolkit, IMAGE, [], INPUTS[:, :, :2])
