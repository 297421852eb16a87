# SPDX-License-Identifier: Apache-2.0
"""`heqis convert`: what it writes, what it leaves out, what it says; and the shipped encoders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.io.signing import sign_bundle, write_key_pair
from heqis_core.testing import shared_data
from heqis_training import tables
from heqis_training.bundling import write_run_bundle
from heqis_training.commands import convert
from heqis_training.convert.rknn_tool import default_python
from heqis_training.convert.testing_convert import (
    CONVOLUTION,
    Op,
    bundle_with,
    encoder_of,
    stand_in,
)
from heqis_training.recipe import run_training
from heqis_training.settings import (
    EncoderSettings,
    FitSettings,
    GruSettings,
    TrainingSettings,
    TransformerSettings,
)

ROWS, KNOWN, SEED = 400, 250, 5
BARS = ('--simulate', str(ROWS), '--symbols', '4', '--simulator_seed', str(SEED))
SOFTMAX: list[Op] = [CONVOLUTION, ('Softmax', [''], {'axis': 1}), ('Conv', ['', 'mix'], {})]
POOLED: list[Op] = [
    ('Conv', ['', 'weight', 'bias'], {'pads': [0, 1, 0, 2]}),
    ('Relu', [''], {}),
    ('GlobalAveragePool', [''], {}),
]


@pytest.fixture(scope='module')
def table() -> BarTable:
    return tables.simulate(4, ROWS, SEED)


@pytest.fixture
def bundle(table: BarTable, tmp_path: Path) -> Path:
    return bundle_with(tmp_path / 'bundles', None, int(table.event_time_ns[KNOWN]))


@pytest.fixture(scope='module')
def toolkit() -> Path:
    python = default_python()
    if not python.exists():
        pytest.skip(f'no RKNN toolkit in {python}: run `make rknn`')
    return python


def run(*args: str | Path) -> int:
    """Run `convert` in this process."""
    parser = argparse.ArgumentParser(prog='heqis')
    convert.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(['convert', *map(str, args)])
    return int(parsed.func(parsed))


def only(folder: Path) -> Bundle:
    (path,) = folder.iterdir()
    return Bundle.load(path)


# --- with a stand-in for the toolkit's process ---------------------------------------------------


def test_a_new_bundle_has_the_same_models_and_every_converted_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, python = tmp_path / 'out', stand_in(tmp_path, noise=1e-3)
    report = tmp_path / 'report.json'
    asked = ('--bundle', bundle, *BARS, '--target', 'all', '--out', out, '--report', report)
    assert run(*asked, '--rknn_python', python) == 0
    old, new = Bundle.load(bundle), only(out)
    new.verify_golden(OrtEngine)
    assert new.manifest.converted_from == old.bundle_id != new.bundle_id
    for name, entry in old.manifest.files.items():
        assert new.manifest.files[name] == entry
    assert {*new.manifest.files} - {*old.manifest.files} == {
        'encoder.rk3568.fp16.rknn', 'encoder.rk3568.int8.rknn', 'linear.fp16.onnx',
        'linear.int8.onnx',
    }  # fmt: skip
    npu = new.manifest.conversion('encoder', 'rk3568', 'int8')
    assert npu is not None
    assert npu.tool == 'stand-in 1.0'
    assert npu.figures['batch'] == 8
    assert npu.figures['operators_off_npu'] == 0
    assert npu.figures['margin'] == 0.005
    assert 0.5 < npu.figures['share_beyond_margin'] < 1
    assert (new.path / npu.file).stat().st_size == npu.figures['bytes']
    for name in ('linear.fp16.onnx', 'linear.int8.onnx'):
        engine = OrtEngine()
        engine.load(new.path / name)
        assert {spec.dtype for specs in engine.specs() for spec in specs} == {np.dtype('f')}
    written = json.loads(report.read_text())
    (told,) = written['bundles']
    assert written['passed'] is True
    assert told['written'] == str(new.path)
    assert [entry['figures'] for entry in told['outcomes']] == [
        entry.figures for entry in new.manifest.conversions
    ]
    said = capsys.readouterr().out
    for text in ('placement', 'all 1 on the NPU', 'decisions', f'written: {new.path}'):
        assert text in said


@pytest.mark.parametrize(
    ('broken', 'gate', 'found'),
    [
        ({'units': ('NPU', 'CPU')}, 'placement', 'Conv on CPU'),
        ({'noise': 0.5}, 'cosine', '0.'),
        ({'size': 9 << 20}, 'size', 'bytes'),
        ({'error': 'RuntimeError: build returned -1'}, 'build', 'build returned -1'),
    ],
)
def test_what_breaks_a_gate_is_left_out_by_name_and_the_rest_is_written(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: dict[str, object],
    gate: str,
    found: str,
) -> None:
    out, python = tmp_path / 'out', stand_in(tmp_path, **broken)  # type: ignore[arg-type]
    report = tmp_path / 'report.json'
    asked = ('--bundle', bundle, *BARS, '--out', out, '--rknn_python', python)
    status = run(*asked, '--target', 'all', '--precision', 'fp16', '--report', report)
    assert status == 1
    files = [entry.file for entry in only(out).manifest.conversions]
    assert files == ['linear.fp16.onnx']
    outcome = json.loads(report.read_text())['bundles'][0]['outcomes'][0]
    assert outcome['passed'] is False
    (told,) = [one for one in outcome['gates'] if one['name'] == gate]
    assert told['passed'] is False
    assert found in told['found']
    said = capsys.readouterr().out
    assert f'encoder, rk3568 fp16 is left out: {gate}' in said
    assert 'BROKEN' in said


def test_where_nothing_passes_no_bundle_is_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, python = tmp_path / 'out', stand_in(tmp_path, units=('CPU',))
    assert run('--bundle', bundle, *BARS, '--out', out, '--target', 'rk3568',
               '--rknn_python', python) == 1  # fmt: skip
    assert not out.exists()
    assert 'nothing passed: no bundle is written' in capsys.readouterr().out


def test_decisions_that_turn_break_the_gate_and_a_margin_that_hides_all_proves_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ('--bundle', bundle, *BARS, '--target', 'rk3568', '--precision', 'fp16')
    out = ('--out', tmp_path / 'out')
    noisy = ('--rknn_python', stand_in(tmp_path, noise=2.0))
    assert run(*asked, *out, *noisy) == 1
    said = capsys.readouterr().out
    assert 'is left out: decisions' in said
    assert run(*asked, *out, *noisy, '--margin', '.99') == 1
    assert 'too few to tell' in capsys.readouterr().out


def test_one_bundle_that_fails_does_not_stop_the_others(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered = bundle_with(tmp_path / 'altered', None, 0)
    (altered / 'encoder.onnx').write_bytes(b'')
    report = tmp_path / 'report.json'
    asked = ('--target', 'tensorrt', '--precision', 'fp16', *BARS)
    told = ('--out', tmp_path / 'out', '--report', report)
    assert run('--bundle', altered, bundle, tmp_path / 'nowhere', *asked, *told) == 1
    assert only(tmp_path / 'out').manifest.converted_from == bundle.name
    bad, good, none = json.loads(report.read_text())['bundles']
    assert 'encoder.onnx' in bad['error']
    assert 'no such folder' in none['error']
    assert good['error'] == ''
    errors = capsys.readouterr().err
    assert errors.count('heqis convert: ') == 2


def test_converting_again_replaces_what_was_asked_for_and_keeps_the_rest(
    bundle: Path, tmp_path: Path
) -> None:
    asked = (*BARS, '--target', 'tensorrt')
    assert run('--bundle', bundle, *asked, '--precision', 'fp16', '--out', tmp_path / 'a') == 0
    first = only(tmp_path / 'a')
    assert run('--bundle', first.path, *asked, '--out', tmp_path / 'b') == 0
    second = only(tmp_path / 'b')
    assert second.manifest.converted_from == first.bundle_id
    assert sorted(entry.file for entry in second.manifest.conversions) == [
        'linear.fp16.onnx', 'linear.int8.onnx',
    ]  # fmt: skip


def test_a_signature_is_not_carried_over_and_it_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, secret, _ = write_key_pair(tmp_path / 'keys', 'factory')
    sign_bundle(bundle, secret)
    asked = (*BARS, '--target', 'tensorrt', '--precision', 'fp16', '--out', tmp_path / 'out')
    assert run('--bundle', bundle, *asked) == 0
    assert not (only(tmp_path / 'out').path / 'signature.json').exists()
    assert 'the new bundle is not signed' in capsys.readouterr().out


@pytest.mark.usefixtures('no_pictures')
def test_of_a_bundle_without_an_encoder_the_generators_alone_are_converted(
    table: BarTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainingSettings(
        encoder=EncoderSettings(kind='none'),
        generators=(GruSettings(window=4, hidden=6),),
        discriminators=(),
        fit=FitSettings(epochs=1),
    )
    trained = write_run_bundle(run_training(table, tmp_path / 'run', settings), tmp_path / 'b')
    asked = ('--bundle', trained.path, *BARS, '--rknn_python', stand_in(tmp_path))
    assert run(*asked, '--target', 'rk3568', '--out', tmp_path / 'npu') == 1
    assert 'has no encoder' in capsys.readouterr().err
    assert not (tmp_path / 'npu').exists()
    run(*asked, '--target', 'all', '--precision', 'fp16', '--margin', '0', '--out', tmp_path / 'a')
    assert [one.file for one in only(tmp_path / 'a').manifest.conversions] == ['gru.fp16.onnx']
    assert 'without an encoder: nothing of it runs on an RK3568' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--target', 'rk3568', '--rknn_python', 'nowhere/python'), 'run `make rknn`'),
        (('--target', 'tensorrt', '--margin', '1'), '--margin 1: expected'),
        (('--target', 'tensorrt', '--windows', '0'), '--windows 0: expected'),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    assert run('--bundle', tmp_path / 'nowhere', *BARS, *args) == 1
    said, error = capsys.readouterr()
    assert error.startswith('heqis convert: ')
    assert error.count('\n') == 1
    assert message in error
    assert said == ''


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run('--help')
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in ('examples:', 'make rknn', '--target {rk3568,tensorrt,all}', 'heqis engines'):
        assert text in out


# --- with the toolkit ----------------------------------------------------------------------------


def test_an_encoder_with_a_softmax_is_refused_for_its_placement(
    toolkit: Path, table: BarTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until_ns = int(table.event_time_ns[KNOWN])
    bundle = bundle_with(tmp_path / 'bundles', encoder_of(SOFTMAX), until_ns)
    report, out = tmp_path / 'report.json', tmp_path / 'out'
    asked = ('--bundle', bundle, *BARS, '--target', 'rk3568', '--rknn_python', toolkit)
    assert run(*asked, '--out', out, '--report', report) == 1
    assert not out.exists()
    outcomes = json.loads(report.read_text())['bundles'][0]['outcomes']
    assert [one['precision'] for one in outcomes] == ['fp16', 'int8']
    for outcome in outcomes:
        broken = [gate for gate in outcome['gates'] if not gate['passed']]
        assert [gate['name'] for gate in broken] == ['placement']
        assert 'Softmax' in broken[0]['found']
        assert outcome['figures']['operators_off_npu'] == 1
    assert 'is left out: placement' in capsys.readouterr().out


def test_an_encoder_that_would_mix_rows_is_built_for_one_row_at_a_time(
    toolkit: Path, table: BarTable, tmp_path: Path
) -> None:
    until_ns = int(table.event_time_ns[KNOWN])
    bundle = bundle_with(tmp_path / 'bundles', encoder_of(POOLED), until_ns)
    asked = ('--target', 'rk3568', '--precision', 'fp16', '--rknn_python', toolkit)
    assert run('--bundle', bundle, *BARS, *asked, '--out', tmp_path / 'out') == 0
    (made,) = only(tmp_path / 'out').manifest.conversions
    assert made.figures['batch'] == 1
    assert made.figures['cosine_min'] > 0.9999


@pytest.mark.parametrize('kind', ['cae', 't3vae'])
@pytest.mark.usefixtures('no_pictures')
def test_the_shipped_encoders_pass_every_gate_on_real_bars(
    toolkit: Path, tmp_path: Path, kind: str
) -> None:
    from heqis_core.io.files import load_bars

    data = shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024'
    bars, _ = load_bars(data)
    settings = TrainingSettings(
        encoder=EncoderSettings(kind=kind, fit=FitSettings(epochs=4)),  # type: ignore[arg-type]
        generators=(GruSettings(), TransformerSettings(layers=1)),
        discriminators=(),
        fit=FitSettings(epochs=3),
    )
    trained = write_run_bundle(run_training(bars, tmp_path / 'run', settings), tmp_path / 'b')
    out = tmp_path / 'out'
    asked = ('--target', 'rk3568', '--data', data, '--rknn_python', toolkit, '--out', out)
    assert run('--bundle', trained.path, *asked) == 0
    for made in only(out).manifest.conversions:
        assert made.figures['batch'] == settings.tile_of(len(bars.symbols))
        assert made.figures['operators'] == 3
        assert made.figures['operators_off_npu'] == 0
        assert made.figures['cosine_min'] >= (0.9999 if made.precision == 'fp16' else 0.999)
        assert made.figures['agreement_beyond_margin'] >= 0.995
        assert made.figures['bars'] > 1000
