# SPDX-License-Identifier: Apache-2.0
"""What runs the encoder on the gateway board: the NPU when all is well, else ONNX Runtime and why.

The NPU is a fake with the vendor's signatures that runs the converted file on ONNX Runtime.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from rclpy.lifecycle import TransitionCallbackReturn as Result

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.engine import infer_tiled
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import open_engine
from heqis_core.manifest import Conversion, Precision, converted_file
from heqis_core.testing_bundle import SPEC, TILE, bundle_parts
from heqis_gateway.engines.encoder_engine import PRECISIONS, Encoder, open_encoder
from heqis_gateway.engines.rknn_engine import ModelForm, RknnEngine, load_lite, rknn_obstacle
from heqis_gateway.engines.testing_rknn import FakeNpu, fake_rknnlite, write_board
from heqis_gateway.gateway_node import GatewayNode
from heqis_gateway.hub import Hub
from heqis_ros.testing import ros_graph

BATCH: dict[Precision, int] = {'int8': 1, 'fp16': 4}


@pytest.fixture(scope='module')
def converted(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle with an encoder for the NPU in both precisions, of different batches."""
    manifest, files = bundle_parts(trained_until_ns=int(table.event_time_ns[79]))
    conversions = []
    for precision, batch in BATCH.items():
        file = converted_file('encoder', 'rk3568', precision)
        files[file] = of_batch(files['encoder.onnx'], batch)
        conversions.append(
            Conversion(
                model='encoder',
                target='rk3568',
                precision=precision,
                file=file,
                tool='rknn-toolkit2 2.5.0',
                figures={'batch': batch},
            )
        )
    manifest = msgspec.structs.replace(manifest, conversions=tuple(conversions))
    return Bundle.load(write_bundle(tmp_path_factory.mktemp('converted'), manifest, files))


def of_batch(model: bytes, batch: int) -> bytes:
    """Return an ONNX model that takes its rows along the height of one image."""
    proto = onnx.load_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_value, dims[2].dim_value = 1, batch
    return bytes(proto.SerializeToString())


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> FakeNpu:
    """Return the NPU of an RK3568 whose vendor module can be imported."""
    chip = FakeNpu()
    for name, module in fake_rknnlite(chip).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    return chip


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return write_board(tmp_path / 'board')


def opened(bundle: Bundle, board: Path, precision: Precision = 'int8') -> Encoder:
    return open_encoder(bundle, 'auto', precision, board)


@pytest.mark.parametrize('precision', PRECISIONS)
def test_on_the_board_the_npu_gives_the_factors_of_onnx_runtime_whatever_its_batch(
    precision: Precision, converted: Bundle, npu: FakeNpu, board: Path
) -> None:
    encoder = opened(converted, board, precision)
    assert encoder.engine is not None
    assert (encoder.engine.kind, encoder.passed_over) == ('rknn', ())
    assert encoder.text == f'encoder on rknn {precision}, API version: 2.5.0 DRV version: ' + (
        'rknpu: 0.9.8'
    )
    rows = np.random.default_rng(1).normal(size=(11, len(SPEC.names), 1, 4)).astype(np.float32)
    expected = infer_tiled(open_engine(converted.path / 'encoder.onnx'), rows, TILE)
    found = infer_tiled(encoder.engine, rows, BATCH[precision])
    np.testing.assert_allclose(found['factors'], expected['factors'], rtol=1e-5, atol=1e-6)
    shape = (1, BATCH[precision], 4, len(SPEC.names))
    assert set(npu.inputs) == {(shape, np.dtype(np.float32))}, 'NHWC, as the vendor expects'
    assert npu.open == 1
    encoder.engine.close()
    encoder.engine.close()
    assert npu.open == 0


def test_the_features_id_tells_each_precision_and_the_processor_apart(
    converted: Bundle, npu: FakeNpu, board: Path
) -> None:
    ids = {opened(converted, board, precision).features_id for precision in PRECISIONS}
    ids.add(open_encoder(converted, 'onnxruntime', 'int8', board).features_id)
    assert len(ids) == 3
    assert ids == converted.features_ids(), 'and a compute board takes each of them'


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda npu, root: (root / 'proc/device-tree/compatible').unlink(), 'no RK3568'),
        (
            lambda npu, root: shutil.rmtree(root / 'sys/bus/platform/drivers/RKNPU'),
            "the kernel lacks the vendor's driver",
        ),
        (lambda npu, root: (root / 'usr/lib/librknnrt.so').unlink(), 'librknnrt.so is not inst'),
        (
            lambda npu, root: sys.modules.update({'rknnlite.api': None}),
            'rknnlite cannot be imported',
        ),
        (lambda npu, root: setattr(npu, 'fail', 'load_rknn'), 'load_rknn of the NPU .* -1'),
        (lambda npu, root: setattr(npu, 'fail', 'init_runtime'), 'init_runtime of the NPU .* -1'),
        (
            lambda npu, root: npu.__dict__.update(fail='init_runtime', how=AttributeError('fmt')),
            'init_runtime of the NPU runtime failed: AttributeError: fmt',
        ),
        (
            lambda npu, root: npu.__dict__.update(fail='inference', how=None),
            'answered nothing, expected one',
        ),
        (lambda npu, root: setattr(npu, 'noise', 1.0), 'cosine of 0.* with its golden factors'),
        (lambda npu, root: setattr(npu, 'scale', float('nan')), 'cosine of 0.00000'),
    ],
)
def test_whatever_is_wrong_with_the_npu_is_the_reason_and_onnx_runtime_goes_on(
    spoil: Any, reason: str, converted: Bundle, npu: FakeNpu, board: Path
) -> None:
    spoil(npu, board)
    encoder = opened(converted, board)
    assert encoder.engine is not None
    assert encoder.engine.kind == 'onnxruntime'
    ((kind, why),) = encoder.passed_over
    assert kind == 'rknn'
    assert re.search(reason, why), why
    assert f'rknn passed over: {why}' in encoder.text
    assert npu.open == 0, 'nothing is left on the NPU'


def test_the_driver_is_asked_before_the_module_is_touched(
    monkeypatch: pytest.MonkeyPatch, npu: FakeNpu, board: Path
) -> None:
    shutil.rmtree(board / 'sys/bus/platform/drivers/RKNPU/fde40000.npu')
    monkeypatch.setattr(
        'heqis_gateway.engines.rknn_engine.importlib.import_module',
        lambda name: pytest.fail(f'{name} was imported without a driver'),
    )
    with pytest.raises(EngineError, match='names no NPU'):
        load_lite(board)


def test_a_bundle_without_a_converted_encoder_says_how_to_make_one(
    bundle: Bundle, npu: FakeNpu, board: Path
) -> None:
    encoder = opened(bundle, board)
    assert encoder.engine is not None
    assert encoder.engine.kind == 'onnxruntime'
    assert 'heqis convert --target rk3568' in encoder.text
    with pytest.raises(EngineError, match=r'no engine works: rknn: .*no int8 encoder for rk3568'):
        open_encoder(bundle, 'rknn', 'int8', board)


def test_a_file_that_answers_another_number_of_factors_is_refused(
    converted: Bundle, npu: FakeNpu, board: Path
) -> None:
    good = opened(converted, board).engine
    assert isinstance(good, RknnEngine)
    (taken,), (given,) = good.specs()
    wrong = ModelForm(taken, given._replace(shape=(1, 5)))
    engine = RknnEngine(load_lite(board), wrong)
    engine.load(converted.path / converted_file('encoder', 'rk3568', 'int8'))
    with pytest.raises(EngineError, match='expected \\(1, 5, 1, 1\\); convert the bundle again'):
        engine.infer({taken.name: np.zeros(taken.shape, np.float32)})
    with pytest.raises(EngineError, match="input 'window' is missing"):
        engine.infer({})
    engine.close()
    with pytest.raises(EngineError, match='no model is loaded'):
        engine.infer({taken.name: np.zeros(taken.shape, np.float32)})
    with pytest.raises(EngineError, match='no such model file'):
        engine.load(converted.path / 'gone.rknn')


def test_here_the_obstacle_is_named() -> None:
    if platform.machine() == 'aarch64':
        pytest.skip('may be an RK3568')
    assert rknn_obstacle() == f'this machine ({platform.machine()}) is no RK3568'


def test_the_node_runs_the_encoder_on_the_npu_and_says_so(
    converted: Bundle,
    npu: FakeNpu,
    board: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_lite, '__defaults__', (board,))
    monkeypatch.setattr(open_encoder, '__defaults__', (board,))
    params = {
        'bundle': str(converted.path),
        'source': 'simulator',
        'limit': 30,
        'state_dir': str(tmp_path / 'state'),
        'transport': 'dds',
        'encoder_precision': 'fp16',
    }
    with ros_graph(params) as graph:
        node = graph.add(GatewayNode(Hub()))
        assert node.trigger_configure() == Result.SUCCESS
        assert 'encoder on rknn fp16, API version: 2.5.0' in str(node.status().info)
        assert npu.open == 1
        assert node.trigger_cleanup() == Result.SUCCESS
        assert npu.open == 0
