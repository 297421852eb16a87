# SPDX-License-Identifier: Apache-2.0
"""Signed bundles: what is accepted, and every way in which another one is refused by name."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bundle import Bundle, manifest_check
from heqis_core.errors import BundleError, ConfigError
from heqis_core.io.signing import (
    Signature,
    TrustedKeys,
    read_signature,
    sign_bundle,
    write_key_pair,
)
from heqis_core.manifest import Manifest
from heqis_core.testing_bundle import write_test_bundle

SIGNED = (
    'encoder.onnx', 'features.json', 'golden.npz', 'linear.onnx', 'manifest.json', 'scaler.json',
    'signature.json',
)  # fmt: skip


@pytest.fixture(scope='session')
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pairs `factory` and `stranger`; no test may change it."""
    folder = tmp_path_factory.mktemp('keys')
    for name in ('factory', 'stranger'):
        write_key_pair(folder, name)
    return folder


@pytest.fixture(scope='session')
def signed(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle signed by `factory` that no test may change."""
    path = write_test_bundle(tmp_path_factory.mktemp('signed'))
    sign_bundle(path, keys / 'factory.secret.pem')
    return path


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    """Return a copy of the signed bundle to break."""
    return Path(shutil.copytree(signed, tmp_path / 'bundle'))


@pytest.fixture
def trusted(keys: Path, tmp_path: Path) -> Path:
    """Return a folder that trusts `factory` alone."""
    path = tmp_path / 'trusted'
    path.mkdir()
    shutil.copy(keys / 'factory.pub.pem', path)
    return path


def fingerprint_of(folder: Path) -> str:
    found = read_signature(folder)
    assert found is not None
    return found.fingerprint


def refusal(folder: Path, trusted: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder, TrustedKeys.load(trusted).check)
    return str(caught.value)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of `signature.json`, in the form that signing writes."""
    found = read_signature(folder)
    assert found is not None
    (folder / 'signature.json').write_bytes(msgspec.structs.replace(found, **changes).to_bytes())


def fresh_manifest(folder: Path) -> None:
    """Give the folder a manifest that fits its files, as somebody without a key can."""
    path = folder / 'manifest.json'
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    files = {
        name: msgspec.structs.replace(
            entry,
            sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            bytes=(folder / name).stat().st_size,
        )
        for name, entry in manifest.files.items()
    }
    manifest = msgspec.structs.replace(manifest, files=files)
    manifest = msgspec.structs.replace(manifest, bundle_id=manifest.content_id())
    path.write_bytes(msgspec.json.encode(manifest))


# --- what is accepted ----------------------------------------------------------------------------


def test_a_bundle_signed_by_a_trusted_key_loads(signed: Path, trusted: Path) -> None:
    bundle = Bundle.load(signed, TrustedKeys.load(trusted).check)
    assert sorted(path.name for path in signed.iterdir()) == sorted(SIGNED)
    assert bundle.bundle_id == signed.name


def test_the_signature_is_plain_ed25519_over_the_bytes_of_the_manifest(
    signed: Path, keys: Path
) -> None:
    found = read_signature(signed)
    assert found is not None
    key: Any = serialization.load_pem_public_key((keys / 'factory.pub.pem').read_bytes())
    key.verify(base64.b64decode(found.signature), (signed / 'manifest.json').read_bytes())
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert found.fingerprint == hashlib.sha256(raw).hexdigest()
    assert (found.format, found.key) == (1, 'factory')


def test_signed_or_not_a_bundle_loads_where_no_key_is_asked_for(
    signed: Path, folder: Path
) -> None:
    assert Bundle.load(signed).bundle_id == signed.name
    (folder / 'signature.json').unlink()
    assert Bundle.load(folder).bundle_id == signed.name


def test_signing_again_gives_the_same_bytes_and_another_key_takes_its_place(
    folder: Path, keys: Path
) -> None:
    before = (folder / 'signature.json').read_bytes()
    sign_bundle(folder, keys / 'factory.secret.pem')
    assert (folder / 'signature.json').read_bytes() == before
    sign_bundle(folder, keys / 'stranger.secret.pem')
    assert read_signature(folder) is not None
    assert (folder / 'signature.json').read_bytes() != before
    assert Bundle.load(folder)


def test_nothing_is_interpreted_before_the_signature_is_verified(
    folder: Path, trusted: Path
) -> None:
    (folder / 'manifest.json').write_bytes(b'[' * 1000)
    assert 'signature.json: is no signature by key' in refusal(folder, trusted)


# --- what is refused -----------------------------------------------------------------------------


def flip(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(bytes(data))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_single_byte_flipped_anywhere_in_a_signed_bundle_is_refused(
    signed: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / 'flipped'
    if not base.exists():
        shutil.copytree(signed, base / 'bundle')
        (base / 'trusted').mkdir()
        shutil.copy(keys / 'factory.pub.pem', base / 'trusted')
    path = base / 'bundle' / data.draw(st.sampled_from(SIGNED))
    sound = path.read_bytes()
    try:
        at = data.draw(st.integers(0, len(sound) - 1))
        flip(path, at, data.draw(st.integers(1, 255)))
        refusal(base / 'bundle', base / 'trusted')
    finally:
        path.write_bytes(sound)


def test_every_byte_of_the_signature_file_counts(folder: Path, trusted: Path) -> None:
    path, keys = folder / 'signature.json', TrustedKeys.load(trusted)
    sound, manifest = path.read_bytes(), (folder / 'manifest.json').read_bytes()
    keys.check(folder, manifest)
    for at in range(len(sound)):
        # 0x03, 0x07, 0x29, 0x2a, 0x2d: one blank for another; 0x20: case.
        masks = (0x01, 0x03, 0x07, 0x20, 0x29, 0x2A, 0x2D)
        # The last digit of base64 has four bits that decoding ignores.
        for mask in range(1, 64) if sound[at + 1 : at + 3] == b'==' else masks:
            flip(path, at, mask)
            with pytest.raises(BundleError, match=r'signature\.json: '):
                keys.check(folder, manifest)
            path.write_bytes(sound)


def test_a_fresh_manifest_over_an_altered_file_fails_the_signature(
    folder: Path, trusted: Path
) -> None:
    data = (folder / 'scaler.json').read_bytes()
    (folder / 'scaler.json').write_bytes(data.replace(b'50.0', b'51.0'))
    fresh_manifest(folder)
    assert 51.0 in Bundle.load(folder).scaler.mean
    assert 'signature.json: is no signature by key' in refusal(folder, trusted)


def test_swapped_files_are_refused_with_the_old_manifest_and_with_a_fresh_one(
    folder: Path, trusted: Path
) -> None:
    a, b = folder / 'encoder.onnx', folder / 'linear.onnx'
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert 'encoder.onnx: ' in refusal(folder, trusted)
    fresh_manifest(folder)
    assert 'signature.json: is no signature' in refusal(folder, trusted)


def test_an_unsigned_bundle_is_refused(folder: Path, trusted: Path) -> None:
    (folder / 'signature.json').unlink()
    said = refusal(folder, trusted)
    assert 'signature.json: missing: the bundle is not signed' in said
    assert 'heqis bundle sign' in said


def test_the_signature_of_another_bundle_is_refused(
    folder: Path, trusted: Path, keys: Path, tmp_path: Path
) -> None:
    other = write_test_bundle(tmp_path / 'other', seed=1)
    sign_bundle(other, keys / 'factory.secret.pem')
    shutil.copy(other / 'signature.json', folder)
    assert 'altered or belongs to another bundle' in refusal(folder, trusted)


def test_an_unknown_key_is_refused_and_one_that_took_a_trusted_name_is_told_apart(
    folder: Path, trusted: Path, keys: Path, tmp_path: Path
) -> None:
    sign_bundle(folder, keys / 'stranger.secret.pem')
    said = refusal(folder, trusted)
    assert "key 'stranger' (" in said
    assert 'is unknown' in said
    _, impostor, _ = write_key_pair(tmp_path / 'impostor', 'factory')
    sign_bundle(folder, impostor)
    assert 'which holds another key of that name' in refusal(folder, trusted)


def test_a_trusted_key_under_another_name_is_refused(folder: Path, trusted: Path) -> None:
    rewrite(folder, key='boss')
    assert "key 'boss' (" in refusal(folder, trusted)
    assert "is called 'factory' in" in refusal(folder, trusted)


def test_a_revoked_key_is_refused_with_the_line_and_accepted_once_that_is_gone(
    folder: Path, trusted: Path
) -> None:
    revoked = trusted / 'revoked.txt'
    revoked.write_text(f'# lost laptop\n\n{fingerprint_of(folder)}  # 2026-11-25\n')
    said = refusal(folder, trusted)
    assert f'is revoked by {revoked}, line 3' in said
    revoked.write_text('# nothing\n')
    assert Bundle.load(folder, TrustedKeys.load(trusted).check)


def test_a_revoked_key_stays_refused_when_its_public_key_is_gone_or_renamed(
    folder: Path, trusted: Path, keys: Path
) -> None:
    (trusted / 'revoked.txt').write_text(fingerprint_of(folder))
    (trusted / 'factory.pub.pem').rename(trusted / 'factory2.pub.pem')
    assert 'is revoked by' in refusal(folder, trusted)
    (trusted / 'factory2.pub.pem').unlink()
    shutil.copy(keys / 'stranger.pub.pem', trusted)
    assert 'is revoked by' in refusal(folder, trusted)


@pytest.mark.parametrize('keep', [0, 1, 100, 200, -1])
def test_a_truncated_signature_file_is_refused(folder: Path, trusted: Path, keep: int) -> None:
    path = folder / 'signature.json'
    path.write_bytes(path.read_bytes()[:keep])
    assert 'signature.json: not ' in refusal(folder, trusted)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'signature': 'AAAA'}, 'not a signature'),
        ({'signature': 'A' * 85 + 'B=='}, 'not the text that signing writes'),
        ({'signature': 'A' * 86 + '==\n'}, 'not a'),
        ({'fingerprint': '0' * 63}, 'not a signature'),
        ({'fingerprint': '0' * 64}, 'is unknown'),
        ({'key': '../x'}, 'not a signature'),
        ({'format': 2}, 'format is 2, this version reads 1'),
        ({'signature': base64.b64encode(bytes(64)).decode()}, 'is no signature by key'),
    ],
)
def test_a_field_of_the_signature_that_cannot_be_is_refused(
    folder: Path, trusted: Path, change: dict[str, Any], message: str
) -> None:
    rewrite(folder, **change)
    assert message in refusal(folder, trusted)


def test_a_signature_with_one_more_field_is_refused(folder: Path, trusted: Path) -> None:
    path = folder / 'signature.json'
    path.write_bytes(path.read_bytes().replace(b'{', b'{"trust": true,', 1))
    assert 'unknown field `trust`' in refusal(folder, trusted)


def test_an_oversized_signature_or_manifest_is_not_read(folder: Path, trusted: Path) -> None:
    path = folder / 'signature.json'
    sound = path.read_bytes()
    path.write_bytes(sound + b' ' * 4096)
    assert 'at most 4096 are read' in refusal(folder, trusted)
    path.write_bytes(sound)
    with (folder / 'manifest.json').open('ab') as stream:
        stream.truncate(1 << 40)
    assert 'at most 1048576 are read' in refusal(folder, trusted)


@pytest.mark.parametrize('name', SIGNED)
def test_a_link_in_place_of_a_file_is_refused_even_to_the_same_content(
    folder: Path, trusted: Path, tmp_path: Path, name: str
) -> None:
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    said = refusal(folder, trusted)
    assert name in said
    assert 'link' in said or 'leads out of the bundle' in said


def test_a_link_inside_the_bundle_is_refused(folder: Path, trusted: Path) -> None:
    (folder / 'scaler.json').unlink()
    (folder / 'scaler.json').symlink_to('features.json')
    assert 'scaler.json: a link to features.json' in refusal(folder, trusted)


def test_a_file_that_no_manifest_lists_is_refused(folder: Path, trusted: Path) -> None:
    (folder / 'extra.onnx').write_bytes(b'x')
    assert 'extra.onnx: not listed in manifest.json' in refusal(folder, trusted)


@pytest.mark.parametrize('name', ['../outside.json', '/etc/passwd', 'signature.json'])
def test_even_a_trusted_signer_cannot_list_a_path_out_of_the_folder_or_the_signature(
    folder: Path, trusted: Path, keys: Path, name: str
) -> None:
    path = folder / 'manifest.json'
    content = msgspec.json.decode(path.read_bytes())
    content['files'][name] = content['files']['scaler.json']
    path.write_bytes(msgspec.json.encode(content))
    secret: Any = serialization.load_pem_private_key(
        (keys / 'factory.secret.pem').read_bytes(), None
    )
    rewrite(folder, signature=base64.b64encode(secret.sign(path.read_bytes())).decode())
    assert f'manifest.json: files is {name!r}' in refusal(folder, trusted)


def test_an_unsound_bundle_is_not_signed(folder: Path, keys: Path) -> None:
    (folder / 'signature.json').unlink()
    flip(folder / 'scaler.json', 3)
    with pytest.raises(BundleError, match='sha256'):
        sign_bundle(folder, keys / 'factory.secret.pem')
    assert not (folder / 'signature.json').exists()


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=400))
def test_no_signature_file_whatever_it_holds_raises_anything_but_bundle_error(
    signed: Path, tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    base = tmp_path_factory.getbasetemp() / 'noise'
    base.mkdir(exist_ok=True)
    (base / 'signature.json').write_bytes(text)
    with pytest.raises(BundleError):
        read_signature(base)


# --- keys ----------------------------------------------------------------------------------------


def test_a_new_secret_is_for_its_owner_alone_and_pairs_are_never_replaced(tmp_path: Path) -> None:
    public, secret, fingerprint = write_key_pair(tmp_path / 'keys', 'a-1_B')
    assert (public.name, secret.name) == ('a-1_B.pub.pem', 'a-1_B.secret.pem')
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert TrustedKeys.load(tmp_path / 'keys').keys[fingerprint][0] == 'a-1_B'
    before = secret.read_bytes()
    for path in (public, secret):
        with pytest.raises(ConfigError, match='exists already; choose another name'):
            write_key_pair(tmp_path / 'keys', 'a-1_B')
        path.unlink()
        assert not secret.exists() or secret.read_bytes() == before


@pytest.mark.parametrize('name', ['', '../x', 'a b', 'x' * 65, 'a.pub', 'ä'])
def test_a_name_that_is_no_key_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match='no name of a key'):
        write_key_pair(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o644, 0o660])
def test_a_secret_key_that_others_may_read_does_not_sign(
    folder: Path, tmp_path: Path, mode: int
) -> None:
    _, secret, _ = write_key_pair(tmp_path / 'keys', 'me')
    secret.chmod(mode)
    with pytest.raises(ConfigError, match=f'mode {mode:04o} lets others read it; run: chmod 600'):
        sign_bundle(folder, secret)


def pem(key: Any, kind: str, encryption: Any) -> bytes:
    if kind == 'public':
        return bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
    )


PLAIN = serialization.NoEncryption()


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: b'', 'not a plain secret key in PEM'),
        (lambda: b'x' * 5000, 'more than 4096 bytes, no key'),
        (lambda: pem(generate_private_key(65537, 2048), 'secret', PLAIN), 'another kind'),
        (lambda: pem(Ed25519PrivateKey.generate(), 'public', PLAIN), 'not a plain secret key'),
        (
            lambda: pem(
                Ed25519PrivateKey.generate(),
                'secret',
                serialization.BestAvailableEncryption(b'word'),
            ),
            'not a plain secret key',
        ),
    ],
    ids=['empty', 'large', 'rsa', 'public', 'encrypted'],
)
def test_what_is_no_secret_key_does_not_sign_and_is_not_quoted(
    folder: Path, tmp_path: Path, make: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / 'me.secret.pem'
    path.write_bytes(make())
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        sign_bundle(folder, path)
    assert 'BEGIN' not in str(caught.value)


def test_a_secret_key_file_that_is_not_there_or_has_no_name_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match='cannot be read: No such file'):
        sign_bundle(folder, tmp_path / 'me.secret.pem')
    with pytest.raises(ConfigError, match=r'expected a file NAME\.secret\.pem'):
        sign_bundle(folder, tmp_path / 'me.pem')


def test_a_folder_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no folder'):
        TrustedKeys.load(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match=r'holds no NAME\.pub\.pem'):
        TrustedKeys.load(tmp_path)


@pytest.mark.parametrize(
    ('name', 'make', 'message'),
    [
        ('a.pub.pem', lambda: b'not PEM', 'not a public key in PEM'),
        ('a.pub.pem', lambda: b'x' * 5000, 'more than 4096 bytes'),
        (
            'a.pub.pem',
            lambda: pem(generate_private_key(65537, 2048), 'public', PLAIN),
            'another kind than ed25519',
        ),
        ('a b.pub.pem', lambda: pem(Ed25519PrivateKey.generate(), 'public', PLAIN), 'expected a'),
        ('revoked.txt', lambda: b'97014F\n', 'line 1: .97014F., expected a fingerprint'),
        ('revoked.txt', lambda: b'# x\n' + b'0' * 63, 'line 2'),
        ('revoked.txt', lambda: b'\xff', 'cannot be read'),
    ],
)
def test_a_file_of_the_trusted_folder_that_cannot_be_used_is_named_and_trusts_nobody(
    trusted: Path, name: str, make: Callable[[], bytes], message: str
) -> None:
    (trusted / name).write_bytes(make())
    with pytest.raises(ConfigError, match=message) as caught:
        TrustedKeys.load(trusted)
    assert name in str(caught.value)


def test_one_key_under_two_names_is_refused(trusted: Path) -> None:
    shutil.copy(trusted / 'factory.pub.pem', trusted / 'other.pub.pem')
    with pytest.raises(ConfigError, match=r"other\.pub\.pem: the same key as 'factory'"):
        TrustedKeys.load(trusted)


def test_a_bundle_that_cannot_be_written_to_says_so(
    folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BundleError, match=r'signature\.json: cannot be written: .*No space'):
        sign_bundle(folder, keys / 'factory.secret.pem')
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_text_of_a_signature_reads_back(tmp_path: Path) -> None:
    one = Signature(format=1, key='k', fingerprint='0' * 64, signature='A' * 86 + '==')
    (tmp_path / 'signature.json').write_bytes(one.to_bytes())
    assert read_signature(tmp_path) == one
    assert read_signature(tmp_path / 'nowhere') is None


# --- the parameter `trusted_keys` ----------------------------------------------------------------


def test_an_empty_parameter_asks_for_no_signature_and_a_folder_for_one_of_its_keys(
    folder: Path, trusted: Path
) -> None:
    assert manifest_check('') is None
    assert Bundle.load(folder, manifest_check(str(trusted)))
    (folder / 'signature.json').unlink()
    with pytest.raises(BundleError, match='the bundle is not signed'):
        Bundle.load(folder, manifest_check(trusted))


def test_without_cryptography_trusted_keys_are_an_error_that_says_what_to_install(
    trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, 'heqis_core.io.signing')
    monkeypatch.setitem(sys.modules, 'cryptography.exceptions', None)
    with pytest.raises(ConfigError, match=r'need cryptography.*requirements/runtime\.txt'):
        manifest_check(trusted)
    assert manifest_check('') is None
