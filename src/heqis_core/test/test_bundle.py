# SPDX-License-Identifier: Apache-2.0
"""Bundles: names that must fit, what the id covers, golden checks, atomic writing."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from heqis_core.bundle import Bundle, features_id, write_bundle
from heqis_core.engine import Arrays
from heqis_core.errors import BundleError
from heqis_core.features.spec import FeatureSpec
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import Conversion, Precision, converted_file
from heqis_core.scaler import Scaler
from heqis_core.strategy import StrategyConfig
from heqis_core.testing_bundle import FACTORS, SPEC, TILE, bundle_parts, write_test_bundle

PRECISIONS: tuple[Precision, ...] = ('fp16', 'int8')


@pytest.fixture(scope='session')
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound bundle that no test may change."""
    return write_test_bundle(tmp_path_factory.mktemp('sound'))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy of the sound bundle to break."""
    return Path(shutil.copytree(sound, tmp_path / 'bundle'))


def parts_with_golden(change: Callable[[Arrays], object]) -> tuple[Any, dict[str, bytes]]:
    """Return manifest and files of a bundle whose golden arrays were changed before hashing."""
    manifest, files = bundle_parts()
    with np.load(io.BytesIO(files['golden.npz'])) as arrays:
        golden = {name: arrays[name].copy() for name in arrays.files}
    change(golden)
    buffer = io.BytesIO()
    np.savez(buffer, **golden)
    files['golden.npz'] = buffer.getvalue()
    return manifest, files


def parts_without_encoder() -> tuple[Any, dict[str, bytes]]:
    """Return manifest and files of a bundle of indicators alone; its generator is not run."""
    manifest, files = bundle_parts()
    del files['encoder.onnx']
    features = msgspec.structs.replace(manifest.features, names=SPEC.names)
    return msgspec.structs.replace(manifest, encoder=None, features=features), files


def test_a_sound_bundle_loads_and_its_golden_outputs_come_back(sound: Path) -> None:
    bundle = Bundle.load(sound)
    bundle.verify_golden(OrtEngine)
    assert bundle.bundle_id == sound.name == bundle.manifest.content_id()
    assert bundle.spec == SPEC
    assert bundle.manifest.features.names == (*SPEC.names, 'factor_0', 'factor_1')
    assert bundle.generator('linear').name == 'linear'
    assert bundle.generator_path('linear') == sound / 'linear.onnx'
    assert bundle.encoder_path == sound / 'encoder.onnx'


def test_a_link_to_a_bundle_loads(sound: Path, tmp_path: Path) -> None:
    link = tmp_path / 'current'
    link.symlink_to(sound, target_is_directory=True)
    assert Bundle.load(link).bundle_id == sound.name


def test_an_unknown_generator_is_named(sound: Path) -> None:
    with pytest.raises(BundleError, match=r"no generator 'gru', the bundle has \['linear'\]"):
        Bundle.load(sound).generator('gru')


def test_the_pipeline_is_the_one_of_the_manifest(sound: Path) -> None:
    bundle = Bundle.load(sound)
    engine = OrtEngine()
    assert bundle.encoder_path is not None
    engine.load(bundle.encoder_path)
    pipeline = bundle.pipeline(('A', 'B'), engine)
    assert pipeline.feature_names == bundle.manifest.features.names
    with pytest.raises(BundleError, match='has an encoder, but the pipeline was given none'):
        bundle.pipeline(('A',), None)


# --- spec, scaler and names ----------------------------------------------------------------------


def test_a_spec_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    other = FeatureSpec(SPEC.features[::-1])
    files['features.json'] = other.to_json().encode()
    with pytest.raises(BundleError, match=f'features.json: spec id is {other.id}.*{SPEC.id}'):
        write_bundle(tmp_path, manifest, files)


def test_a_spec_that_cannot_be_read_is_refused_with_its_cause(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    files['features.json'] = files['features.json'].replace(b'rsi', b'xyz')
    with pytest.raises(BundleError, match=r"features\.json: cannot be read: .*'xyz': unknown"):
        write_bundle(tmp_path, manifest, files)


def test_names_that_are_not_the_specs_are_refused(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    names = ('return_1', 'x', 'rsi_4', 'factor_0', 'factor_1')
    part = msgspec.structs.replace(manifest.features, names=names)
    with pytest.raises(BundleError, match=r"features\.names is \('return_1', 'x'.*'ma_3_rel'"):
        write_bundle(tmp_path, msgspec.structs.replace(manifest, features=part), files)


def test_a_scaler_of_other_names_is_refused(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    files['scaler.json'] = Scaler(('a', 'b', 'c'), [0] * 3, [1] * 3).to_json().encode()
    with pytest.raises(BundleError, match=r"scaler\.json: names are \('a', 'b', 'c'\), the spec"):
        write_bundle(tmp_path, manifest, files)


# --- the id --------------------------------------------------------------------------------------


def test_the_id_knows_the_content_and_no_clock() -> None:
    manifest, _ = bundle_parts()
    replace = msgspec.structs.replace
    same = replace(
        manifest,
        created_at='2024-02-29T12:00:00+00:00',
        provenance=replace(manifest.provenance, training_s=9.5),
    )
    assert same.content_id() == manifest.content_id()
    for other in (
        replace(manifest, flat_band=0.0050001),
        replace(manifest, trained_until_ns=1),
        replace(manifest, strategy=StrategyConfig(0.1, -0.1, 60)),
        replace(manifest, provenance=replace(manifest.provenance, packages={'numpy': '1'})),
    ):
        assert other.content_id() != manifest.content_id()


def test_the_features_id_knows_all_that_a_feature_depends_on(sound: Path) -> None:
    bundle = Bundle.load(sound)
    sha256 = bundle.manifest.files['encoder.onnx'].sha256
    ids = [
        features_id(bundle.spec, bundle.scaler, sha256, 'onnxruntime'),
        features_id(bundle.spec, bundle.scaler, sha256, 'rknn'),
        features_id(bundle.spec, bundle.scaler, None, 'onnxruntime'),
        features_id(bundle.spec, Scaler(SPEC.names, [0] * 3, [1] * 3), sha256, 'onnxruntime'),
        features_id(FeatureSpec(SPEC.features[::-1]), bundle.scaler, sha256, 'onnxruntime'),
    ]
    assert bundle.features_id('onnxruntime') == ids[0]
    assert bundle.features_ids() == {ids[0]}
    assert len(set(ids)) == len(ids)
    assert all(len(entry) == 16 for entry in ids)


def test_a_gateway_may_send_features_of_every_npu_file_and_of_the_canonical_encoder(
    tmp_path: Path,
) -> None:
    manifest, files = bundle_parts()
    converted = [
        Conversion(
            model='encoder',
            target='rk3568',
            precision=precision,
            file=converted_file('encoder', 'rk3568', precision),
            tool='a tool 1.0',
            figures={'cosine_min': 0.9999},
        )
        for precision in PRECISIONS
    ]
    files |= {one.file: one.precision.encode() for one in converted}
    manifest = msgspec.structs.replace(manifest, conversions=tuple(converted))
    bundle = Bundle.load(write_bundle(tmp_path, manifest, files))
    ids = {bundle.features_id('rknn', one.file) for one in converted}
    assert bundle.features_ids() == {bundle.features_id('onnxruntime'), *ids}
    assert len(bundle.features_ids()) == 3
    assert bundle.manifest.conversion('encoder', 'rk3568', 'int8') == converted[1]
    assert bundle.manifest.conversion('linear', 'rk3568', 'int8') is None


def test_a_figure_given_as_a_whole_number_has_the_id_that_it_has_when_it_is_read(
    tmp_path: Path,
) -> None:
    manifest, files = bundle_parts()
    figures = {'batch': 1}
    one = Conversion(
        model='linear', target='tensorrt', precision='int8', file='linear.int8.onnx', tool='a',
        figures=figures,
    )  # fmt: skip
    files['linear.int8.onnx'] = b'a model'
    path = write_bundle(tmp_path, msgspec.structs.replace(manifest, conversions=(one,)), files)
    assert Bundle.load(path).manifest.conversions[0].figures == {'batch': 1.0}
    one.figures['batch'] = float('nan')
    with pytest.raises(BundleError, match='the manifest cannot be written'):
        write_bundle(tmp_path, msgspec.structs.replace(manifest, conversions=(one,)), files)


def test_without_an_encoder_there_is_one_features_id_whatever_the_engine(tmp_path: Path) -> None:
    bundle = Bundle.load(write_bundle(tmp_path, *parts_without_encoder()))
    assert bundle.features_ids() == {bundle.features_id('none')}
    assert bundle.features_id('none') == bundle.features_id('onnxruntime')


# --- golden outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'output', ['encoder/factors', 'linear/log_return', 'linear/probabilities']
)
def test_a_golden_output_beyond_the_tolerance_names_model_and_output(
    tmp_path: Path, output: str
) -> None:
    def change(golden: Arrays) -> None:
        golden[output].reshape(-1)[-1] += 1e-2

    model, name = output.split('/')
    bundle = Bundle.load(write_bundle(tmp_path, *parts_with_golden(change)))
    with pytest.raises(BundleError, match=f"model '{model}', output '{name}' differs .* 0.01 "):
        bundle.verify_golden(OrtEngine)


def test_a_difference_within_the_tolerance_passes(tmp_path: Path) -> None:
    def change(golden: Arrays) -> None:
        golden['linear/log_return'] += np.float32(5e-5)

    Bundle.load(write_bundle(tmp_path, *parts_with_golden(change))).verify_golden(OrtEngine)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda g: g.pop('encoder/input'), "'encoder/input' is missing, expected float32"),
        (lambda g: g.pop('linear/log_return'), "'linear/log_return' is missing, expected shape"),
        (
            lambda g: g.update({'linear/input': g['linear/input'][:, 1:]}),
            "'linear/input' is float3",
        ),
        (lambda g: g.update({'linear/input': g['linear/input'][:0]}), "'linear/input' is float32"),
        (
            lambda g: g.update({'linear/log_return': g['linear/log_return'][1:]}),
            r"'linear/log_return' is \(2,\), expected shape \(3,\)",
        ),
        (
            lambda g: g.update({'linear/log_return': g['linear/log_return'] * np.nan}),
            "output 'log_return' differs",
        ),
    ],
)
def test_golden_arrays_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[Arrays], object], message: str
) -> None:
    bundle = Bundle.load(write_bundle(tmp_path, *parts_with_golden(change)))
    with pytest.raises(BundleError, match=message):
        bundle.verify_golden(OrtEngine)


def test_an_engine_that_answers_nan_is_refused(sound: Path) -> None:
    class Broken(OrtEngine):
        def infer(self, inputs: Arrays) -> Arrays:
            return {
                name: values * np.float32(np.nan) for name, values in super().infer(inputs).items()
            }

    with pytest.raises(BundleError, match="model 'encoder', output 'factors' differs"):
        Bundle.load(sound).verify_golden(Broken)


def test_every_engine_is_closed(sound: Path) -> None:
    open_engines: set[int] = set()

    class Counted(OrtEngine):
        def load(self, path: Path) -> None:
            super().load(path)
            open_engines.add(id(self))

        def close(self) -> None:
            super().close()
            open_engines.discard(id(self))

    Bundle.load(sound).verify_golden(Counted)
    assert not open_engines


def test_a_model_with_another_shape_than_the_manifest_says_is_named(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    part = msgspec.structs.replace(manifest.generators[0], tile=2 * TILE)
    bundle = Bundle.load(
        write_bundle(tmp_path, msgspec.structs.replace(manifest, generators=(part,)), files)
    )
    with pytest.raises(
        BundleError, match=r"model 'linear' has inputs .*\(8, 6, 5\).*\(16, 6, 5\)"
    ):
        bundle.verify_golden(OrtEngine)


def test_models_in_each_others_place_are_refused(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    files['encoder.onnx'], files['linear.onnx'] = files['linear.onnx'], files['encoder.onnx']
    bundle = Bundle.load(write_bundle(tmp_path, manifest, files))
    with pytest.raises(BundleError, match="model 'encoder' has inputs and outputs"):
        bundle.verify_golden(OrtEngine)


def test_a_model_file_that_is_no_model_is_refused_with_its_cause(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    files['linear.onnx'] = b'no model'
    bundle = Bundle.load(write_bundle(tmp_path, manifest, files))
    with pytest.raises(BundleError, match=r"model 'linear' cannot be run: .*linear\.onnx"):
        bundle.verify_golden(OrtEngine)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / 'sprung',))

    manifest, files = bundle_parts()
    buffer = io.BytesIO()
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(buffer, allow_pickle=True, **{'encoder/input': trap})
    for number, data in enumerate((buffer.getvalue(), pickle.dumps(Trap()))):
        files['golden.npz'] = data
        bundle = Bundle.load(write_bundle(tmp_path / str(number), manifest, files))
        with pytest.raises(BundleError, match=r'golden\.npz: not a file of plain golden arrays'):
            bundle.verify_golden(OrtEngine)
    assert not (tmp_path / 'sprung').exists()


def test_golden_arrays_that_unpack_to_too_much_are_not_read(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{'encoder/input': np.zeros(20 << 20, np.float32)})
    files['golden.npz'] = buffer.getvalue()
    bundle = Bundle.load(write_bundle(tmp_path, manifest, files))
    with pytest.raises(BundleError, match='at most 67108864 are read'):
        bundle.verify_golden(OrtEngine)


def test_golden_arrays_that_changed_after_loading_are_refused(folder: Path) -> None:
    bundle = Bundle.load(folder)
    data = bytearray((folder / 'golden.npz').read_bytes())
    data[100] ^= 1
    (folder / 'golden.npz').write_bytes(data)
    with pytest.raises(BundleError, match=r'golden\.npz: sha256 is'):
        bundle.verify_golden(OrtEngine)


# --- writing -------------------------------------------------------------------------------------


def test_writing_twice_keeps_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = write_test_bundle(tmp_path)
    first = (path / 'manifest.json').stat()
    assert write_test_bundle(tmp_path) == path
    assert (path / 'manifest.json').stat().st_ino == first.st_ino
    assert os.listdir(tmp_path) == [path.name]


def test_writing_replaces_an_altered_bundle_of_the_same_id(tmp_path: Path) -> None:
    path = write_test_bundle(tmp_path)
    (path / 'scaler.json').write_text('{}')
    assert write_test_bundle(tmp_path) == path
    Bundle.load(path)
    assert os.listdir(tmp_path) == [path.name]


def test_another_seed_is_another_bundle(tmp_path: Path) -> None:
    assert write_test_bundle(tmp_path, seed=1) != write_test_bundle(tmp_path, seed=2)


@pytest.mark.parametrize('name', ['../out', '/tmp/out', 'a/../b'])
def test_a_file_outside_the_folder_is_not_written(tmp_path: Path, name: str) -> None:
    manifest, files = bundle_parts()
    with pytest.raises(BundleError, match='not a plain relative path'):
        write_bundle(tmp_path / 'bundles', manifest, files | {name: b'x'})
    assert os.listdir(tmp_path) == ['bundles']
    assert not os.listdir(tmp_path / 'bundles')


def test_an_interrupted_write_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(BundleError, match=r'cannot be written: .*No space left'):
        write_test_bundle(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(BundleError, match=r'file/bundles: cannot be written: .*choose another'):
        write_test_bundle(tmp_path / 'file' / 'bundles')


def test_the_tiny_bundle_has_what_its_docstring_says(sound: Path) -> None:
    manifest = Bundle.load(sound).manifest
    assert (manifest.window.length, manifest.window.horizon) == (6, 12)
    assert manifest.encoder is not None
    assert (manifest.encoder.window, manifest.encoder.horizon) == (4, 8)
    assert manifest.encoder.factors == FACTORS == 2
    assert (SPEC.warmup_bars, len(SPEC.names), TILE) == (4, 3, 8)
