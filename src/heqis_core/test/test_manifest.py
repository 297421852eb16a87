# SPDX-License-Identifier: Apache-2.0
"""The manifest: every field and file that `Bundle.load` refuses, and how the refusal names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bundle import Bundle, write_bundle
from heqis_core.errors import BundleError
from heqis_core.testing_bundle import bundle_parts, write_test_bundle

HASHED = ('features.json', 'scaler.json', 'encoder.onnx', 'linear.onnx', 'golden.npz')


@pytest.fixture(scope='session')
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound bundle that no test may change."""
    return write_test_bundle(tmp_path_factory.mktemp('sound'))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy of the sound bundle to break."""
    return Path(shutil.copytree(sound, tmp_path / 'bundle'))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as plain JSON."""
    path = folder / 'manifest.json'
    content = msgspec.json.decode(path.read_bytes())
    change(content)
    path.write_bytes(msgspec.json.encode(content))


def conversion(model: str) -> dict[str, Any]:
    """Return an entry for the int8 file of a model, as plain JSON."""
    return {
        'model': model,
        'target': 'tensorrt',
        'precision': 'int8',
        'file': f'{model}.int8.onnx',
        'tool': 'onnxruntime 1',
        'figures': {},
    }


def refusal(folder: Path) -> str:
    """Return what `Bundle.load` says against the folder."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    return str(caught.value)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    assert 'manifest.json: no manifest (no such folder)' in refusal(tmp_path / 'nowhere')
    assert 'manifest.json: no manifest (a folder without one)' in refusal(tmp_path)
    (tmp_path / 'ID.hqb').write_bytes(b'')
    assert '`heqis bundle unpack` makes one of an archive' in refusal(tmp_path / 'ID.hqb')


@pytest.mark.parametrize('name', HASHED)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f'{folder / name}: missing' in refusal(folder)


@pytest.mark.parametrize('name', HASHED)
def test_a_truncated_file_is_named_with_both_sizes(folder: Path, name: str) -> None:
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert f'{path}: {size // 2} bytes, the manifest says {size}' in refusal(folder)


@pytest.mark.parametrize('name', HASHED)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_one_changed_bit_anywhere_is_refused(sound: Path, name: str, data: st.DataObject) -> None:
    content = bytearray((sound / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = sound.parent / f'flipped-{name}'
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(content)
    assert f'{folder / name}: sha256 is ' in refusal(folder)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_change_of_the_manifest_passes_unnoticed(sound: Path, data: st.DataObject) -> None:
    """Whatever byte changes, loading fails or the content is the same but for timestamps."""
    content = bytearray((sound / 'manifest.json').read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    folder = sound.parent / 'altered-manifest'
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    (folder / 'manifest.json').write_bytes(content)
    before = Bundle.load(sound).manifest
    try:
        after = Bundle.load(folder).manifest
    except BundleError:
        return
    same = msgspec.structs.replace(after, created_at=before.created_at)
    same = msgspec.structs.replace(
        same,
        provenance=msgspec.structs.replace(
            after.provenance, training_s=before.provenance.training_s
        ),
    )
    assert same == before


@pytest.mark.parametrize('keep', [0, 1, 100, -2])
def test_a_truncated_manifest_is_refused(folder: Path, keep: int) -> None:
    path = folder / 'manifest.json'
    path.write_bytes(path.read_bytes()[:keep])
    assert f'{path}: not a manifest: ' in refusal(folder)


def test_an_oversized_manifest_is_not_read(folder: Path) -> None:
    path = folder / 'manifest.json'
    path.write_bytes(path.read_bytes() + b' ' * (1 << 20))
    assert 'at most 1048576 are read' in refusal(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda m: m.update(schema_version=1), 'schema_version is 1, this version reads 3'),
        (lambda m: m.update(colour='red'), 'unknown field `colour`'),
        (lambda m: m['encoder'].update(colour='red'), 'unknown field `colour` - at `$.encoder`'),
        (lambda m: m.pop('served'), 'missing required field `served`'),
        (lambda m: m.update(served='gru'), "served is 'gru', expected one of ['linear']"),
        (
            lambda m: m.update(served='ensemble'),
            "served is 'ensemble', expected one of ['linear']",
        ),
        (
            lambda m: m.update(ensemble={'members': ['linear']}),
            'length >= 2 - at `$.ensemble.members`',
        ),
        (
            lambda m: m.update(ensemble={'members': ['linear', 'linear']}),
            "ensemble.members is ('linear', 'linear'), expected different names out of ['linear']",
        ),
        (
            lambda m: m.update(ensemble={'members': ['linear', 'gru']}),
            "ensemble.members is ('linear', 'gru'), expected",
        ),
        (
            lambda m: m['provenance']['selection'].update(scores={'gru': 1.0}),
            "provenance.selection.scores is ['gru'], expected names out of ['linear'], the served",
        ),
        (lambda m: m.update(classes=['up', 'flat', 'down']), "classes is ('up', 'flat', 'down')"),
        (lambda m: m.update(flat_band=0), 'flat_band is 0.0, expected a positive log return'),
        (lambda m: m['strategy'].update(sell_threshold=0.2), 'strategy is (0.2, 0.1), expected'),
        (lambda m: m['strategy'].update(valid_for_s=-1), 'strategy.valid_for_s is -1.0'),
        (lambda m: m['window'].update(horizon=5), 'window.horizon is 5, expected at least 6'),
        (lambda m: m['encoder'].update(horizon=3), 'encoder.horizon is 3, expected at least 4'),
        (lambda m: m['window'].update(length=7), 'window.length is 7, expected the longest of'),
        (lambda m: m['window'].update(length=0), 'Expected `int` >= 1 - at `$.window.length`'),
        (lambda m: m['generators'][0].update(tile='8'), 'Expected `int`, got `str` - at `$.gen'),
        (lambda m: m['generators'].append(m['generators'][0]), 'different names'),
        (lambda m: m['generators'][0].update(name='encoder'), "none of ['encoder', 'ensemble']"),
        (lambda m: m.update(generators=[]), "served is 'linear', expected one of []"),
        (lambda m: m['generators'][0].update(file='gru.onnx'), "'gru.onnx', expected one of the"),
        (lambda m: m.update(scaler_file='other.json'), "scaler_file is 'other.json', expected"),
        (lambda m: m.update(trained_until_ns=-1), 'trained_until_ns is -1, expected at least 0'),
        (lambda m: m.update(flat_band=0.006), 'bundle_id is '),
        (lambda m: m.update(bundle_id='0' * 16), "bundle_id is '0000000000000000', expected "),
        (lambda m: m['provenance'].update(seed=1), 'bundle_id is '),
        (lambda m: m.update(conversions=[conversion('gru')]), "model is 'gru', expected one of"),
        (
            lambda m: m.update(conversions=[conversion('linear')]),
            "file is 'linear.int8.onnx', exp",
        ),
        (
            lambda m: m.update(conversions=[conversion('linear') | {'file': 'linear.onnx'}]),
            "conversions[0].file is 'linear.onnx', expected 'linear.int8.onnx'",
        ),
        (
            lambda m: m.update(
                conversions=[conversion('linear')] * 2,
                files=m['files'] | {'linear.int8.onnx': m['files']['linear.onnx']},
            ),
            'expected each once',
        ),
        (
            lambda m: m.update(conversions=[conversion('linear') | {'target': 'rk3588'}]),
            "Invalid enum value 'rk3588' - at `$.conversions[0].target`",
        ),
        (lambda m: m.update(converted_from='x'), '$.converted_from'),
        (lambda m: m['files']['scaler.json'].update(sha256='x'), 'at `$.files[...].sha256`'),
        (lambda m: m['files']['scaler.json'].update(bytes=1 << 40), 'at `$.files[...].bytes`'),
    ],
)
def test_a_wrong_field_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    said = refusal(folder)
    assert f'{folder}/manifest.json: ' in said
    assert message in said


@pytest.mark.parametrize(
    'name',
    ['../scaler.json', '/etc/passwd', 'a/../../b', 'a//b', '.hidden', 'a\\b', '', 'c:x', 'a/'],
)
def test_a_path_that_could_lead_out_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda m: m['files'].update({name: m['files']['scaler.json']}))
    assert f'files is {name!r}, expected plain relative paths' in refusal(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / 'outside.json'
    shutil.move(folder / 'scaler.json', outside)
    (folder / 'scaler.json').symlink_to(outside)
    assert f'scaler.json: leads out of the bundle to {outside}' in refusal(folder)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder: Path) -> None:
    (folder / 'scaler.json').unlink()
    os.mkfifo(folder / 'scaler.json')
    assert 'scaler.json: not a plain file' in refusal(folder)


@pytest.mark.parametrize('name', ['extra.onnx', 'deep/extra.onnx', '.extra'])
def test_an_unlisted_file_is_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('x')
    assert f'{folder / name}: not listed in manifest.json' in refusal(folder)


def test_a_linked_folder_is_unlisted(folder: Path, tmp_path: Path) -> None:
    (folder / 'more').symlink_to(tmp_path, target_is_directory=True)
    assert 'more: not listed' in refusal(folder)


def test_files_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    path = write_bundle(tmp_path, manifest, files)
    loaded = Bundle.load(path).manifest
    entry = msgspec.structs.replace(loaded.files['encoder.onnx'], bytes=512 << 20)
    big = msgspec.structs.replace(
        loaded, files=loaded.files | {f'big{index}.onnx': entry for index in range(5)}
    )
    big = msgspec.structs.replace(big, bundle_id=big.content_id())
    (path / 'manifest.json').write_bytes(msgspec.json.encode(big))
    assert 'at most 2147483648 are read' in refusal(path)
