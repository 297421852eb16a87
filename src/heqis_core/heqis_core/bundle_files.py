# SPDX-License-Identifier: Apache-2.0
"""Reading the files of a bundle: each bounded, plain, listed and not altered.

What the manifest must say is in `heqis_core.manifest`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from heqis_core.errors import BundleError
from heqis_core.manifest import (
    EXPORT_AGAIN,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_TOTAL_BYTES,
    SCHEMA_VERSION,
    SIGNATURE_FILE,
    FileEntry,
    Manifest,
    check_fields,
)

ManifestCheck = Callable[[Path, bytes], None]
"""Raises BundleError unless the manifest with these bytes may be read, in this bundle folder."""


def read_manifest(root: Path, check: ManifestCheck | None = None) -> Manifest:
    """Return the manifest of a bundle folder, or raise BundleError that names the wrong field.

    `check` sees its bytes before anything of them is interpreted.
    """
    path = root / MANIFEST_FILE
    if not path.is_file():
        found = 'a folder without one' if root.is_dir() else 'no such folder'
        if root.is_file():
            found = 'a file, no folder: `heqis bundle unpack` makes one of an archive'
        raise BundleError(
            f'{path}: no manifest ({found}); give the folder that holds {MANIFEST_FILE}'
        )
    data = read_bounded(path, MAX_MANIFEST_BYTES)
    if check is not None:
        check(root, data)
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f'{path}: schema_version is {version}, this version reads {SCHEMA_VERSION}; '
                'export the bundle with this version of HEQIS (heqis export)'
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f'{path}: not a manifest: {error}; {EXPORT_AGAIN}') from error
    check_fields(path, manifest)
    return manifest


def read_bounded(path: Path, limit: int) -> bytes:
    """Return a file's bytes, or raise BundleError: a link, no plain file, more than `limit`."""
    if path.is_symlink() or not path.is_file():
        what = 'a link' if path.is_symlink() else 'not a plain file'
        raise BundleError(f'{path}: {what}; {EXPORT_AGAIN}')
    # The size first, for the message; then the read is bounded whatever the file has become.
    try:
        size = path.stat().st_size
        with path.open('rb') as stream:
            data = stream.read(limit + 1) if size <= limit else b''
    except OSError as error:
        raise BundleError(f'{path}: cannot be read: {error.strerror}') from error
    if max(size, len(data)) > limit:
        raise BundleError(f'{path}: {size} bytes, at most {limit} are read; {EXPORT_AGAIN}')
    return data


def check_files(root: Path, manifest: Manifest) -> None:
    """Raise BundleError unless the folder holds exactly the listed files, none of them altered.

    `signature.json` may stand beside them.
    """
    total = sum(entry.bytes for entry in manifest.files.values())
    if total > MAX_TOTAL_BYTES:
        raise BundleError(
            f'{root}: the files have {total} bytes, at most {MAX_TOTAL_BYTES} are read'
        )
    listed = {MANIFEST_FILE, SIGNATURE_FILE, *manifest.files}
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if relative not in listed:
                raise BundleError(
                    f'{root / relative}: not listed in {MANIFEST_FILE}; remove it, '
                    f'or {EXPORT_AGAIN}'
                )
    for name, entry in manifest.files.items():
        path = _plain_file(root, name, entry)
        with path.open('rb') as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        _check_digest(path, digest.hexdigest(), entry)


def read_checked(root: Path, name: str, entry: FileEntry) -> bytes:
    """Return the bytes of one listed file, checked as they are read."""
    path = _plain_file(root, name, entry)
    data = path.read_bytes()
    _check_digest(path, hashlib.sha256(data).hexdigest(), entry)
    return data


class _Version(msgspec.Struct):
    schema_version: int


def _plain_file(root: Path, name: str, entry: FileEntry) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f'{path}: leads out of the bundle to {path.resolve()}; {EXPORT_AGAIN}')
    if path.is_symlink():
        raise BundleError(f'{path}: a link to {os.readlink(path)}; {EXPORT_AGAIN}')
    if not path.is_file():
        raise BundleError(
            f'{path}: {"not a plain file" if path.exists() else "missing"}; {EXPORT_AGAIN}'
        )
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f'{path}: {size} bytes, the manifest says {entry.bytes}; {EXPORT_AGAIN}')
    return path


def _check_digest(path: Path, found: str, entry: FileEntry) -> None:
    if found != entry.sha256:
        raise BundleError(
            f'{path}: sha256 is {found}, the manifest says {entry.sha256}; {EXPORT_AGAIN}'
        )
