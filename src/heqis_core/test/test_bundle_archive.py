# SPDX-License-Identifier: Apache-2.0
"""Bundle archives: the same content gives the same bytes; anything else is refused by name."""

from __future__ import annotations

import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bundle import Bundle
from heqis_core.errors import BundleError
from heqis_core.io.bundle_archive import MAX_ARCHIVE_BYTES, pack_bundle, unpack_bundle
from heqis_core.io.signing import TrustedKeys, sign_bundle, write_key_pair
from heqis_core.testing_bundle import write_test_bundle

FILE = 0o100644 << 16


@pytest.fixture(scope='session')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle signed by `factory` that no test may change."""
    base = tmp_path_factory.mktemp('packed')
    write_key_pair(base / 'keys', 'factory')
    path = write_test_bundle(base / 'bundles')
    sign_bundle(path, base / 'keys' / 'factory.secret.pem')
    return path


@pytest.fixture(scope='session')
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of that bundle; no test may change it."""
    return pack_bundle(bundle, tmp_path_factory.mktemp('archive') / 'sound.hqb')


@pytest.fixture(scope='session')
def trusted(bundle: Path) -> TrustedKeys:
    return TrustedKeys.load(bundle.parents[1] / 'keys')


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def refusal(archive: Path, out: Path, trusted: TrustedKeys | None = None) -> str:
    """Return why an archive is refused, after which nothing has been left behind."""
    before = sorted(out.rglob('*')) if out.exists() else []
    with pytest.raises(BundleError) as caught:
        unpack_bundle(archive, out, trusted.check if trusted else None)
    assert sorted(out.rglob('*')) == before
    return str(caught.value)


def write_zip(
    path: Path, bundle: Path, change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], object]
) -> Path:
    """Write the files of a bundle as packing does, after a change of entries or content."""
    entries = []
    for name, data in sorted(contents(bundle).items()):
        entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        entry.create_system, entry.external_attr = 3, FILE
        entries.append((entry, data))
    change(entries)
    with zipfile.ZipFile(path, 'w') as out:
        for entry, data in entries:
            out.writestr(entry, data, entry.compress_type)
    return path


def add(name: str, data: bytes = b'x', mode: int = FILE) -> Callable[..., None]:
    def change(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
        entry = zipfile.ZipInfo('x', (1980, 1, 1, 0, 0, 0))
        # Afterwards: the constructor would make a plain name of some of them.
        entry.filename = name
        entry.create_system, entry.external_attr = 3, mode
        entries.append((entry, data))

    return change


# --- what comes back -----------------------------------------------------------------------------


def test_a_packed_bundle_comes_back_to_the_byte_under_its_id(
    bundle: Path, archive: Path, trusted: TrustedKeys, tmp_path: Path
) -> None:
    found = unpack_bundle(archive, tmp_path / 'out', trusted.check)
    assert found == tmp_path / 'out' / bundle.name
    assert contents(found) == contents(bundle)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [bundle.name]
    assert Bundle.load(found, trusted.check).bundle_id == bundle.name


def test_the_same_content_gives_the_same_bytes_whatever_clock_mode_and_order_of_the_folder(
    bundle: Path, archive: Path, tmp_path: Path
) -> None:
    other = tmp_path / 'copy'
    other.mkdir()
    for at, (name, data) in enumerate(sorted(contents(bundle).items(), reverse=True)):
        (other / name).write_bytes(data)
        (other / name).chmod(0o600)
        os.utime(other / name, (at, time.time() + at))
    assert pack_bundle(other, tmp_path / 'b.hqb').read_bytes() == archive.read_bytes()


def test_the_test_helper_writes_what_packing_writes(
    bundle: Path, archive: Path, tmp_path: Path
) -> None:
    same = write_zip(tmp_path / 'x.hqb', bundle, lambda _: None)
    assert same.read_bytes() == archive.read_bytes()


def test_an_unsigned_bundle_is_packed_and_refused_only_where_keys_are_asked_for(
    bundle: Path, trusted: TrustedKeys, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(bundle, tmp_path / 'plain'))
    (plain / 'signature.json').unlink()
    packed = pack_bundle(plain, tmp_path / 'plain.hqb')
    said = refusal(packed, tmp_path / 'out', trusted)
    assert f'{packed}/signature.json: missing: the bundle is not signed' in said
    assert contents(unpack_bundle(packed, tmp_path / 'out')) == contents(plain)


def test_unpacking_twice_keeps_the_first_and_never_replaces_another(
    bundle: Path, archive: Path, tmp_path: Path
) -> None:
    first = unpack_bundle(archive, tmp_path)
    inode = (first / 'linear.onnx').stat().st_ino
    assert unpack_bundle(archive, tmp_path) == first
    assert (first / 'linear.onnx').stat().st_ino == inode
    (first / 'signature.json').unlink()
    assert 'is there already and differs' in refusal(archive, tmp_path)
    shutil.copy(bundle / 'signature.json', first)
    with (first / 'linear.onnx').open('r+b') as stream:
        stream.write(b'X')
    assert 'is there already and differs' in refusal(archive, tmp_path)


def test_an_unsound_bundle_is_not_packed_and_no_archive_is_left(
    bundle: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / 'broken'))
    (broken / 'scaler.json').write_bytes(b'{}')
    with pytest.raises(BundleError, match=r'scaler\.json'):
        pack_bundle(broken, tmp_path / 'x.hqb')
    assert [path.name for path in tmp_path.iterdir()] == ['broken']


def test_an_archive_is_not_written_into_the_bundle_itself(bundle: Path) -> None:
    with pytest.raises(BundleError, match='lies in the bundle itself'):
        pack_bundle(bundle, bundle / 'x.hqb')
    assert Bundle.load(bundle)


def test_a_place_that_an_archive_cannot_be_written_to_is_named(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / 'file').write_text('x')
    for out in (tmp_path / 'file' / 'x.hqb', tmp_path / 'nowhere' / 'x.hqb'):
        with pytest.raises(BundleError, match=r'x\.hqb: cannot be written: '):
            pack_bundle(bundle, out)


def test_a_linked_signature_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    linked = Path(shutil.copytree(bundle, tmp_path / 'linked'))
    (linked / 'signature.json').unlink()
    (linked / 'signature.json').symlink_to('/etc/hostname')
    with pytest.raises(BundleError, match=r'signature\.json: a link'):
        pack_bundle(linked, tmp_path / 'x.hqb')


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name',
    [
        '../evil.json', '/etc/evil', 'a/../../evil', 'a\\b', 'C:evil', '.hidden', 'deep//x', './x',
        'x\0y', '',
    ],
)  # fmt: skip
def test_a_path_that_could_lead_out_is_refused_before_anything_is_unpacked(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    bad = write_zip(tmp_path / 'x.hqb', bundle, add(name))
    assert 'is no plain relative path' in refusal(bad, tmp_path / 'out')
    assert not (tmp_path / 'evil.json').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (add('link', b'/etc/passwd', 0o120777 << 16), "entry 'link' is a link"),
        (add('folder', b'', (0o040755 << 16) | 0x10), "entry 'folder' is a link, a folder"),
        (add('run.sh', b'x', 0o100755 << 16), 'no plain file'),
        (add('extra.onnx'), "entry 'extra.onnx' is not listed in the manifest"),
        (add('scaler.json', b'{}'), "entry 'scaler.json' is there twice"),
        (lambda e: e.pop(0), "entry 'encoder.onnx' is missing"),
        (lambda e: e.pop(4), "entry 'manifest.json' is missing"),
        (lambda e: e.reverse(), 'in another form than heqis bundle make writes'),
        (lambda e: setattr(e[0][0], 'date_time', (2020, 1, 1, 0, 0, 0)), 'in another form'),
        (lambda e: setattr(e[0][0], 'comment', b'hello'), 'in another form'),
        (lambda e: setattr(e[0][0], 'extra', b'\x99\x99\x04\x00abcd'), 'in another form'),
        (lambda e: e.__setitem__(0, (e[0][0], e[0][1] + b'x')), 'the manifest says 292'),
        (lambda e: e.__setitem__(0, (e[0][0], b'x' * 292)), 'encoder.onnx: sha256 is'),
        (
            lambda e: setattr(e[2][0], 'compress_type', zipfile.ZIP_DEFLATED),
            "entry 'golden.npz' is compressed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else 'entry',
)
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_an_entry_that_packing_does_not_write_is_refused_by_name(
    bundle: Path, tmp_path: Path, change: Callable[..., object], message: str
) -> None:
    bad = write_zip(tmp_path / 'x.hqb', bundle, change)
    said = refusal(bad, tmp_path / 'out')
    assert message in said
    assert str(bad) in said


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_second_manifest_is_refused_even_if_the_first_is_sound(
    bundle: Path, tmp_path: Path
) -> None:
    bad = write_zip(tmp_path / 'x.hqb', bundle, add('manifest.json', b'{}'))
    assert "entry 'manifest.json' is there twice" in refusal(bad, tmp_path / 'out')


def test_a_bomb_of_compressed_zeros_is_refused_before_it_is_unpacked(
    bundle: Path, tmp_path: Path
) -> None:
    def bomb(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
        add('bomb.onnx', bytes(64 << 20))(entries)
        entries[-1][0].compress_type = zipfile.ZIP_DEFLATED

    bad = write_zip(tmp_path / 'x.hqb', bundle, bomb)
    assert bad.stat().st_size < 1 << 20
    assert "entry 'bomb.onnx' is compressed" in refusal(bad, tmp_path / 'out')


def patch_directory(archive: Path, path: Path, change: Callable[[bytearray, int], None]) -> Path:
    """Write the archive with its central directory changed, which starts at the given offset."""
    data = bytearray(archive.read_bytes())
    change(data, struct.unpack_from('<L', data, len(data) - 6)[0])
    path.write_bytes(bytes(data))
    return path


def test_a_size_that_the_directory_only_claims_is_refused(archive: Path, tmp_path: Path) -> None:
    def claim(data: bytearray, at: int) -> None:
        struct.pack_into('<LL', data, at + 20, 300 << 20, 300 << 20)

    bad = patch_directory(archive, tmp_path / 'x.hqb', claim)
    assert 'the entries overlap' in refusal(bad, tmp_path / 'out')


def test_an_entry_larger_than_any_file_may_be_is_refused(archive: Path, tmp_path: Path) -> None:
    def claim(data: bytearray, at: int) -> None:
        struct.pack_into('<LL', data, at + 20, 600 << 20, 600 << 20)

    bad = patch_directory(archive, tmp_path / 'x.hqb', claim)
    assert "entry 'encoder.onnx' has 629145600 bytes, at most" in refusal(bad, tmp_path / 'out')


def test_stored_entries_that_would_grow_are_refused(archive: Path, tmp_path: Path) -> None:
    def claim(data: bytearray, at: int) -> None:
        struct.pack_into('<L', data, at + 24, 1 << 20)

    bad = patch_directory(archive, tmp_path / 'x.hqb', claim)
    assert 'has 1048576 bytes out of 292 stored ones' in refusal(bad, tmp_path / 'out')


def test_an_oversized_manifest_or_signature_is_refused_before_it_is_read(
    bundle: Path, tmp_path: Path
) -> None:
    for name, size in (('manifest.json', 1 << 20), ('signature.json', 4096)):

        def grow(
            entries: list[tuple[zipfile.ZipInfo, bytes]], name: str = name, size: int = size
        ) -> None:
            at = next(i for i, (entry, _) in enumerate(entries) if entry.filename == name)
            entries[at] = (entries[at][0], bytes(size + 1))

        bad = write_zip(tmp_path / 'x.hqb', bundle, grow)
        assert f'entry {name!r} has {size + 1} bytes, at most' in refusal(bad, tmp_path / 'out')


def test_a_directory_that_is_too_large_is_not_read(bundle: Path, tmp_path: Path) -> None:
    def many(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
        for at in range(1100):
            add(f'f{at}')(entries)

    bad = write_zip(tmp_path / 'x.hqb', bundle, many)
    assert '1107 entries in a directory of' in refusal(bad, tmp_path / 'out')


def test_an_archive_that_is_too_large_is_not_opened(archive: Path, tmp_path: Path) -> None:
    bad = tmp_path / 'x.hqb'
    with bad.open('wb') as stream:
        stream.truncate(MAX_ARCHIVE_BYTES + 1)
    assert f'at most {MAX_ARCHIVE_BYTES} are read' in refusal(bad, tmp_path / 'out')


@pytest.mark.parametrize(
    'change',
    [
        lambda data: b'PK' + data,
        lambda data: data + b'\0',
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[-22:],
        lambda data: b'',
        lambda data: b'not an archive ' * 9,
        lambda data: data[:-42] + b'PK\x06\x07' + data[-38:],
        lambda data: data[:-2] + b'\x05\x00hello',
    ],
    ids=['before', 'behind', 'short', 'half', 'tail', 'empty', 'text', 'zip64', 'comment'],
)
def test_what_is_no_whole_archive_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    bad = tmp_path / 'x.hqb'
    bad.write_bytes(change(archive.read_bytes()))
    said = refusal(bad, tmp_path / 'out')
    assert str(bad) in said
    assert 'does not end as a bundle archive' in said or 'too short for' in said


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert 'nowhere.hqb: cannot be unpacked' in refusal(tmp_path / 'nowhere.hqb', tmp_path / 'out')


def test_a_folder_that_cannot_be_made_is_named(archive: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('x')
    with pytest.raises(BundleError, match=r'cannot be unpacked into .*file/out'):
        unpack_bundle(archive, tmp_path / 'file' / 'out')


def test_the_signature_is_judged_before_any_other_entry_is_unpacked(
    bundle: Path, trusted: TrustedKeys, tmp_path: Path
) -> None:
    seen: list[list[str]] = []

    def check(root: Path, manifest: bytes) -> None:
        seen.append(sorted(path.name for path in root.iterdir()))
        trusted.check(root, manifest)

    bad = write_zip(
        tmp_path / 'x.hqb', bundle, lambda e: e.__setitem__(4, (e[4][0], e[4][1] + b' '))
    )
    with pytest.raises(BundleError, match='is no signature by key'):
        unpack_bundle(bad, tmp_path / 'out', check)
    assert seen == [['manifest.json', 'signature.json']]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_single_byte_flipped_anywhere_in_an_archive_is_refused(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / 'flips'
    base.mkdir(exist_ok=True)
    content = bytearray(archive.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (base / 'x.hqb').write_bytes(bytes(content))
    refusal(base / 'x.hqb', base / 'out')


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 7000), st.binary(max_size=30)), min_size=1, max_size=4)
)
def test_no_damage_raises_anything_but_bundle_error(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bytes]]
) -> None:
    base = tmp_path_factory.getbasetemp() / 'damage'
    base.mkdir(exist_ok=True)
    sound = archive.read_bytes()
    content = bytearray(sound)
    for at, piece in cuts:
        # Never the end: what comes after it is another matter, and is tested above.
        at = min(at, len(sound) - 22 - len(piece))
        content[at : at + len(piece)] = piece
    (base / 'x.hqb').write_bytes(bytes(content))
    if bytes(content) != sound:
        refusal(base / 'x.hqb', base / 'out')
