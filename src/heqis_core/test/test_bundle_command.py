# SPDX-License-Identifier: Apache-2.0
"""`heqis bundle`: what each command does, says and returns; what docs/bundle.md promises."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from heqis_core.bundle import Bundle, write_bundle
from heqis_core.commands import bundle as command
from heqis_core.commands.bundle_tables import differences
from heqis_core.errors import BundleError, ConfigError
from heqis_core.io.signing import Signature, read_signature
from heqis_core.manifest import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    MAX_TOTAL_BYTES,
    SCHEMA_VERSION,
    Manifest,
    MetricRow,
)
from heqis_core.strategy import StrategyConfig
from heqis_core.testing_bundle import bundle_parts, write_test_bundle

DOCUMENT = Path(__file__).resolve().parents[3] / 'docs' / 'bundle.md'


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(['bundle', *map(str, words)])
    status: int = args.func(args)
    return status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_test_bundle(tmp_path / 'bundles')


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    run('key', 'factory', '--dir', tmp_path / 'keys')
    return tmp_path / 'keys'


def test_a_key_pair_is_made_and_no_secret_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('key', 'factory', '--dir', tmp_path) == 0
    said = capsys.readouterr().out
    secret = (tmp_path / 'factory.secret.pem').read_text().splitlines()
    assert not any(line in said for line in secret)
    assert f'{tmp_path / "factory.pub.pem"}: copy it' in said
    assert re.search(r'^fingerprint [0-9a-f]{64}$', said, re.MULTILINE)


def test_the_whole_way_from_the_workstation_to_a_board(
    folder: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = tmp_path / 'trusted'
    trusted.mkdir()
    shutil.copy(keys / 'factory.pub.pem', trusted)
    packed = tmp_path / 'x.hqb'
    assert run('sign', folder, '--key', keys / 'factory.secret.pem') == 0
    assert run('make', folder, '--out', packed) == 0
    assert f'{packed}: {packed.stat().st_size} bytes, signed' in capsys.readouterr().out
    assert run('unpack', packed, '--out', tmp_path / 'board', '--trusted', trusted) == 0
    there = Path(capsys.readouterr().out.strip())
    assert there == tmp_path / 'board' / folder.name
    assert run('verify', there, '--trusted', trusted) == 0
    said = capsys.readouterr().out
    assert f'bundle     {folder.name}' in said
    assert 'hashes     ok, 5 files' in said
    assert 'signature  ok, key factory, fingerprint' in said
    assert 'golden     ok on onnxruntime' in said


def test_make_without_a_name_takes_the_id(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run('make', folder) == 0
    assert (tmp_path / f'{folder.name}.hqb').is_file()


def test_verify_never_calls_good_what_it_did_not_check(
    folder: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('verify', folder, '--no-golden') == 0
    said = capsys.readouterr().out
    assert 'signature  none: nothing says who made this bundle' in said
    assert 'golden     NOT CHECKED' in said
    run('sign', folder, '--key', keys / 'factory.secret.pem')
    assert run('verify', folder) == 0
    assert 'signature  NOT CHECKED, claims key factory' in capsys.readouterr().out


def test_verify_refuses_an_unsigned_bundle_where_keys_are_given(folder: Path, keys: Path) -> None:
    with pytest.raises(BundleError, match='the bundle is not signed'):
        run('verify', folder, '--trusted', keys)
    with pytest.raises(ConfigError, match='no folder'):
        run('verify', folder, '--trusted', keys / 'nowhere')


def test_verify_runs_the_golden_inputs_unless_told_not_to(tmp_path: Path) -> None:
    manifest, files = bundle_parts()
    golden = tmp_path / 'golden.npz'
    golden.write_bytes(files['golden.npz'])
    with np.load(golden) as arrays:
        changed = dict(arrays)
    changed['linear/log_return'] = changed['linear/log_return'] + np.float32(0.5)
    np.savez(golden, **changed)
    files['golden.npz'] = golden.read_bytes()
    wrong = write_bundle(tmp_path / 'bundles', manifest, files)
    assert run('verify', wrong, '--no-golden') == 0
    with pytest.raises(BundleError, match="'linear', output 'log_return' differs"):
        run('verify', wrong)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Return a bundle with metrics and settings."""
    manifest, files = bundle_parts()
    provenance = msgspec.structs.replace(
        manifest.provenance,
        settings={'epochs': 3, 'name': '[bold]x[/bold]'},
        metrics=(
            MetricRow(
                model='linear',
                part='validation',
                samples=12,
                figures={'accuracy_pct': 51.25, 'mape_pct': 1.5},
                intervals={'accuracy_pct': (40.0, 60.5)},
            ),
            MetricRow(model='persistence', part='validation', samples=12, figures={}),
        ),
    )
    return write_bundle(
        tmp_path / 'measured', msgspec.structs.replace(manifest, provenance=provenance), files
    )


def test_show_says_everything_that_a_person_asks_of_a_bundle(
    measured: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run('sign', measured, '--key', keys / 'factory.secret.pem')
    capsys.readouterr()
    assert run('show', measured) == 0
    said = capsys.readouterr().out
    for text in (
        measured.name,
        '3 indicators and 2 factors, spec ',
        'return_1 ma_3_rel rsi_4 factor_0 factor_1',
        'encoder.onnx: 4 rows within 8 frames to 2 factors, tiles of 8',
        'linear: linear.onnx, 6 rows, tiles of 8',
        'rule: none: random weights',
        'scores: linear 0',
        'BUY from score 0.1 on, SELL up to -0.1',
        '1 bars of 1 symbols, 1970-01-01T00:00Z',
        'epochs=3, name=[bold]x[/bold]',
        '5 files, ',
        'accuracy_pct',
        '51.25',
        '40 … 60.5',
        'Random weights, for tests.',
        'key factory, fingerprint',
        'not verified here',
    ):
        assert text in said, text


def test_show_as_json_holds_manifest_and_signature(
    folder: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('show', folder, '--json') == 0
    content = json.loads(capsys.readouterr().out)
    assert content['signature'] is None
    manifest = msgspec.convert(content['manifest'], Manifest)
    assert manifest == Bundle.load(folder).manifest
    run('sign', folder, '--key', keys / 'factory.secret.pem')
    capsys.readouterr()
    run('show', folder, '--json')
    signature = json.loads(capsys.readouterr().out)['signature']
    assert msgspec.convert(signature, Signature) == read_signature(folder)


def test_show_refuses_an_altered_bundle(folder: Path) -> None:
    (folder / 'scaler.json').write_bytes(b'{}')
    with pytest.raises(BundleError, match=r'scaler\.json'):
        run('show', folder)


def test_the_same_content_made_at_another_time_is_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('diff', folder, folder) == 0
    assert capsys.readouterr().out == f'the same content: bundle {folder.name}\n'
    manifest, files = bundle_parts()
    later = msgspec.structs.replace(manifest, created_at='2024-02-29T12:00:00+00:00')
    assert run('diff', folder, write_bundle(tmp_path / 'later', later, files)) == 0
    said = capsys.readouterr().out
    assert 'created_at' in said
    assert 'the same content' in said


def test_a_diff_names_settings_features_thresholds_metrics_and_files(
    measured: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('diff', folder, measured) == 1
    said = capsys.readouterr().out
    assert 'linear, validation.figures.accuracy_pct' in said
    assert 'the same content' not in said
    one, _ = bundle_parts()
    part, provenance = msgspec.structs.replace, one.provenance
    names = ('return_1', 'rsi_4', 'new_5', 'factor_0', 'factor_1')
    other = part(
        one,
        features=part(one.features, names=names),
        strategy=StrategyConfig(0.2, -0.1, 345600.0),
        flat_band=0.006,
        encoder=None,
        provenance=part(
            provenance,
            settings={'epochs': 4},
            data=part(provenance.data, symbols=('A', 'B'), bars=2),
        ),
    )
    found = {(row.section, row.field): (row.a, row.b) for row in differences(one, other)}
    assert found[('features', 'names.ma_3_rel')] == ('1', '—')
    assert found[('features', 'names.new_5')] == ('—', '2')
    assert found[('strategy', 'buy_threshold')] == ('0.1', '0.2')
    assert found[('flat_band', '')] == ('0.005', '0.006')
    assert found[('settings', 'epochs')] == ('—', '4')
    assert found[('data', 'symbols.B')] == ('—', 'there')
    assert found[('encoder', 'file')] == ('encoder.onnx', '—')
    assert ('strategy', 'sell_threshold') not in found
    assert not differences(one, one)


def test_a_diff_with_an_unsound_bundle_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match='no such folder'):
        run('diff', folder, tmp_path / 'nowhere')


def fields(kind: Any, prefix: str = '') -> set[str]:
    """Return the dotted names of a struct's fields; lists and maps of structs add `[]`."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        name = f'{prefix}{field.name}'
        found.add(name)
        inner, many = struct_in(field.type)
        if inner is not None:
            found |= fields(inner, f'{name}[].' if many else f'{name}.')
    return found


def struct_in(kind: Any, many: bool = False) -> tuple[Any, bool]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, many
    repeated = typing.get_origin(kind) in (tuple, dict)
    for inner in typing.get_args(kind):
        found = struct_in(inner, many or repeated)
        if found[0] is not None:
            return found
    return None, False


@pytest.mark.skipif(not DOCUMENT.is_file(), reason='installed without the documents')
def test_the_document_has_every_field_of_manifest_and_signature_and_no_other() -> None:
    assert struct_in(int | None) == (None, False)
    assert isinstance(int | None, types.UnionType)
    text = DOCUMENT.read_text(encoding='utf-8')
    for title, kind in (('## Manifest', Manifest), ('## Signature', Signature)):
        section = text.partition(f'{title}\n')[2].partition('\n## ')[0]
        written = re.findall(r'^\| `([a-z0-9_.\[\]]+)` \|', section, re.MULTILINE)
        assert sorted(written) == sorted(fields(kind)), title


@pytest.mark.skipif(not DOCUMENT.is_file(), reason='installed without the documents')
def test_the_document_states_the_limits_that_the_code_has() -> None:
    text = DOCUMENT.read_text(encoding='utf-8')
    for bytes_, written in (
        (MAX_MANIFEST_BYTES, '1 MiB'),
        (MAX_SIGNATURE_BYTES, '4 KiB'),
        (MAX_FILE_BYTES, '512 MiB'),
        (MAX_TOTAL_BYTES, '2 GiB'),
    ):
        number, unit = written.split()
        assert bytes_ == int(number) << {'KiB': 10, 'MiB': 20, 'GiB': 30}[unit]
        assert written in text
    assert f'schema {SCHEMA_VERSION}' in text
