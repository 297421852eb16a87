# SPDX-License-Identifier: Apache-2.0
"""A bundle as one file, `.hqb`: a ZIP of stored files in fixed order, and its safe unpacking.

The same content gives the same bytes. What differs from the bytes that packing would write is
refused, so nothing can hide between, before or after the entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from heqis_core.bundle import Bundle
from heqis_core.bundle_files import ManifestCheck, check_files, read_bounded, read_manifest
from heqis_core.durable import force_folder
from heqis_core.errors import BundleError
from heqis_core.manifest import (
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    MAX_TOTAL_BYTES,
    RELATIVE_PATH,
    SIGNATURE_FILE,
    Manifest,
)

SUFFIX = '.hqb'
MAX_DIRECTORY_BYTES = 1 << 20
MAX_ENTRIES = 1024
MAX_ARCHIVE_BYTES = MAX_TOTAL_BYTES + 4 * MAX_DIRECTORY_BYTES

_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_UNIX = 3
_END = struct.Struct('<4s4H2LH')
_LOCATOR_BYTES = 20
_CHUNK = 1 << 20
_AGAIN = 'copy the archive again, or make it again with: heqis bundle make'


def pack_bundle(root: Path | str, out: Path | str) -> Path:
    """Write the archive of a sound bundle folder to `out`, whole or not at all; return `out`.

    Raises BundleError if the bundle is not sound, is too large, or `out` cannot be written.
    """
    folder, target = Path(root), Path(out)
    bundle = Bundle.load(folder)
    part = target.with_name(f'{target.name}.part')
    if target.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f'{target}: lies in the bundle itself; name a file outside of {folder}')
    try:
        with part.open('wb') as stream:
            _pack(folder, bundle.manifest, stream)
            stream.flush()
            os.fsync(stream.fileno())
        _check_end(part)
        os.replace(part, target)
        force_folder(target.parent)
    except OSError as error:
        raise BundleError(f'{target}: cannot be written: {error}') from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return target


def unpack_bundle(
    archive: Path | str, parent: Path | str, check: ManifestCheck | None = None
) -> Path:
    """Unpack into `<parent>/<bundle id>` and return it; nothing appears there before it is sound.

    Only names, sizes, manifest and signature are read before `check` has judged the manifest. The
    same bundle that is there already stays; another one of that id is left alone and refused.
    Raises BundleError that names archive and entry.
    """
    source, folder = Path(archive), Path(parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.partial-', dir=folder) as name:
            partial = Path(name) / 'bundle'
            partial.mkdir()
            try:
                bundle_id = _unpack(source, partial, check)
            except BundleError as error:
                raise BundleError(str(error).replace(f'{partial}', f'{source}')) from error
            return _install(partial, folder / bundle_id, source)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise BundleError(f'{source}: not a bundle archive: {error}; {_AGAIN}') from error
    except OSError as error:
        raise BundleError(f'{source}: cannot be unpacked into {folder}: {error}') from error


def _pack(root: Path, manifest: Manifest, stream: IO[bytes]) -> None:
    signature = root / SIGNATURE_FILE
    signed = [SIGNATURE_FILE] if signature.is_symlink() or signature.exists() else []
    if signed:
        read_bounded(signature, MAX_SIGNATURE_BYTES)  # the one file that no manifest bounds
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted([MANIFEST_FILE, *signed, *manifest.files]):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = _UNIX, _MODE
            entry.file_size = (root / name).stat().st_size
            with (root / name).open('rb') as file, archive.open(entry, 'w') as target:
                shutil.copyfileobj(file, target, _CHUNK)


def _check_end(path: Path) -> None:
    """Raise BundleError unless the last bytes are the plain end of a small directory.

    `zipfile` would read a directory of any size into memory, and search for an end of its own.
    """
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        raise BundleError(f'{path}: {size} bytes, at most {MAX_ARCHIVE_BYTES} are read; {_AGAIN}')
    with path.open('rb') as stream:
        stream.seek(max(0, size - _END.size - _LOCATOR_BYTES))
        tail = stream.read()
    if len(tail) < _END.size + _LOCATOR_BYTES:
        raise BundleError(f'{path}: {size} bytes, too short for a bundle archive; {_AGAIN}')
    magic, disk, first_disk, here, entries, directory, offset, comment = _END.unpack(
        tail[-_END.size :]
    )
    plain = magic == b'PK\x05\x06' and disk == first_disk == comment == 0 and here == entries
    if not plain or tail.startswith(b'PK\x06\x07') or offset + directory + _END.size != size:
        raise BundleError(
            f'{path}: does not end as a bundle archive: truncated, with something before or '
            f'behind it, or no archive; {_AGAIN}'
        )
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise BundleError(
            f'{path}: {entries} entries in a directory of {directory} bytes, at most '
            f'{MAX_ENTRIES} in {MAX_DIRECTORY_BYTES} are read; {_AGAIN}'
        )


def _unpack(source: Path, partial: Path, check: ManifestCheck | None) -> str:
    _check_end(source)
    with zipfile.ZipFile(source) as archive:
        entries = _entries(source, archive.infolist())
        for name in (MANIFEST_FILE, SIGNATURE_FILE):
            if name in entries:
                _extract(archive, entries[name], partial)
        manifest = read_manifest(partial, check)
        wanted = {MANIFEST_FILE, *manifest.files}
        if odd := sorted({*entries} - {SIGNATURE_FILE} ^ wanted):
            what = 'not listed in the manifest' if odd[0] in entries else 'missing'
            raise BundleError(f'{source}: entry {odd[0]!r} is {what}; {_AGAIN}')
        for name, listed in manifest.files.items():
            if entries[name].file_size != listed.bytes:
                raise BundleError(
                    f'{source}: entry {name!r} has {entries[name].file_size} bytes, the manifest '
                    f'says {listed.bytes}; {_AGAIN}'
                )
        for name in manifest.files:
            _extract(archive, entries[name], partial)
    Bundle.load(partial, check)
    with source.open('rb') as stream, tempfile.TemporaryFile(dir=partial.parent) as again:
        _pack(partial, manifest, again)
        again.seek(0)
        if _digest(stream) != _digest(again):
            raise BundleError(
                f'{source}: holds the files of a sound bundle in another form than '
                f'heqis bundle make writes; {_AGAIN}'
            )
    return manifest.bundle_id


def _entries(source: Path, found: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name, or raise BundleError: nothing has been unpacked yet."""
    own = {MANIFEST_FILE: MAX_MANIFEST_BYTES, SIGNATURE_FILE: MAX_SIGNATURE_BYTES}
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in found:
        name = entry.orig_filename
        limit = own.get(name, MAX_FILE_BYTES)
        problem = ''
        if not RELATIVE_PATH.fullmatch(name) or name != entry.filename:
            problem = 'is no plain relative path'
        elif name in entries:
            problem = 'is there twice'
        elif entry.external_attr != _MODE:
            problem = 'is a link, a folder or no plain file'
        elif entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            problem = 'is compressed or encrypted'
        elif entry.file_size != entry.compress_size:
            problem = f'has {entry.file_size} bytes out of {entry.compress_size} stored ones'
        elif entry.file_size > limit:
            problem = f'has {entry.file_size} bytes, at most {limit} are read'
        if problem:
            raise BundleError(f'{source}: entry {name[:200]!r} {problem}; {_AGAIN}')
        entries[name] = entry
    # Entries that share bytes would add up to more than the file: a bomb without compression.
    total = sum(entry.file_size for entry in found)
    if total > source.stat().st_size:
        raise BundleError(f'{source}: the entries overlap: {total} bytes together; {_AGAIN}')
    if MANIFEST_FILE not in entries:
        raise BundleError(f'{source}: entry {MANIFEST_FILE!r} is missing; {_AGAIN}')
    return entries


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, partial: Path) -> None:
    target = partial / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as stream, target.open('xb') as file:
        # Never more than the directory promised, whatever the entry's own header says.
        left = entry.file_size
        while left and (chunk := stream.read(min(left, _CHUNK))):
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _digest(stream: IO[bytes]) -> bytes:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.digest()


def _install(partial: Path, final: Path, source: Path) -> Path:
    if not final.is_symlink() and not final.exists():
        partial.rename(final)
        return final
    own = [
        (folder / name).read_bytes() if (folder / name).is_file() else b''
        for name in (MANIFEST_FILE, SIGNATURE_FILE)
        for folder in (partial, final)
    ]
    try:
        check_files(final, read_manifest(final))
        same = own[0] == own[1] and own[2] == own[3]
    except BundleError:
        same = False
    if not same:
        raise BundleError(
            f'{final}: is there already and differs from {source} (altered, or signed '
            'otherwise); remove it, or unpack into another folder'
        )
    return final
