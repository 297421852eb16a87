# SPDX-License-Identifier: Apache-2.0
"""Who made a bundle: ed25519 keys, `signature.json`, the folder of keys that a board trusts.

Signed are the exact bytes of `manifest.json`, which lists size and sha256 of every other file, so
one signature stands for the whole folder. docs/bundle.md has the threat model.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from heqis_core.bundle import Bundle
from heqis_core.bundle_files import read_bounded
from heqis_core.durable import replace_forced
from heqis_core.errors import BundleError, ConfigError
from heqis_core.manifest import EXPORT_AGAIN, MANIFEST_FILE, MAX_SIGNATURE_BYTES, SIGNATURE_FILE

FORMAT_VERSION = 1
PUBLIC_SUFFIX, SECRET_SUFFIX = '.pub.pem', '.secret.pem'
REVOKED_FILE = 'revoked.txt'
MAX_KEY_BYTES = 4096
MAX_REVOKED_BYTES = 1 << 20

_NAME = r'[A-Za-z0-9_-]{1,64}'
_MAKE_KEY = 'make a pair with: heqis bundle key NAME'


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `signature.json` holds.

    Attributes:
        format: version of these fields, 1: ed25519 over the bytes of `manifest.json`.
        key: name of the key.
        fingerprint: SHA-256 of the 32 bytes of the public key, hexadecimal.
        signature: 64 bytes, base64.
    """

    format: int
    key: Annotated[str, msgspec.Meta(pattern=f'^{_NAME}$')]
    fingerprint: Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{64}$')]
    signature: Annotated[str, msgspec.Meta(pattern='^[A-Za-z0-9+/]{86}==$')]

    def to_bytes(self) -> bytes:
        """Return the one text that `read_signature` accepts for these values."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b'\n'


@dataclass(frozen=True)
class TrustedKeys:
    """The keys whose bundles a board runs. Make one with `TrustedKeys.load`.

    Attributes:
        folder: where they stand.
        keys: name and key by fingerprint.
        revoked: line of `revoked.txt` by fingerprint.
    """

    folder: Path
    keys: Mapping[str, tuple[str, Ed25519PublicKey]]
    revoked: Mapping[str, int]

    @classmethod
    def load(cls, folder: Path | str) -> TrustedKeys:
        """Read every `NAME.pub.pem`, and `revoked.txt` where there is one.

        Raises ConfigError that names file and line: no folder, no key, no ed25519 public key, one
        key under two names, a line that is no fingerprint.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ConfigError(f'{root}: no folder; put NAME{PUBLIC_SUFFIX} files there')
        keys: dict[str, tuple[str, Ed25519PublicKey]] = {}
        for path in sorted(root.glob(f'*{PUBLIC_SUFFIX}')):
            key = _read_public(path)
            name, print_ = key_name(path, PUBLIC_SUFFIX), fingerprint(key)
            if print_ in keys:
                raise ConfigError(f'{path}: the same key as {keys[print_][0]!r}; remove one')
            keys[print_] = (name, key)
        if not keys:
            raise ConfigError(
                f'{root}: holds no NAME{PUBLIC_SUFFIX}, so no bundle could be run; {_MAKE_KEY}'
            )
        return cls(root, keys, _read_revoked(root / REVOKED_FILE))

    def check(self, root: Path, manifest: bytes) -> None:
        """Raise BundleError unless a trusted key has signed these bytes for the bundle `root`.

        A `ManifestCheck`. Refused by name: no signature, a file that is no signature, a key that
        is revoked, unknown or known under another name, a signature of something else.
        """
        path = root / SIGNATURE_FILE
        found = read_signature(root)
        if found is None:
            raise BundleError(
                f'{path}: missing: the bundle is not signed, and only what a key in {self.folder} '
                'has signed is run; sign it where it was made with: heqis bundle sign'
            )
        who = f'key {found.key!r} ({found.fingerprint[:16]}…)'
        if found.fingerprint in self.revoked:
            line = self.revoked[found.fingerprint]
            raise BundleError(
                f'{path}: {who} is revoked by {self.folder / REVOKED_FILE}, line {line}; '
                'use a bundle that another key has signed'
            )
        if found.fingerprint not in self.keys:
            same = any(name == found.key for name, _ in self.keys.values())
            other = ', which holds another key of that name' if same else ''
            raise BundleError(
                f'{path}: {who} is unknown: not in {self.folder}{other}; copy its public key '
                'there if you trust it'
            )
        name, key = self.keys[found.fingerprint]
        if name != found.key:
            raise BundleError(f'{path}: {who} is called {name!r} in {self.folder}; {EXPORT_AGAIN}')
        try:
            key.verify(base64.b64decode(found.signature), manifest)
        except InvalidSignature:
            raise BundleError(
                f'{path}: is no signature by {who} of this {MANIFEST_FILE}: one of them was '
                f'altered or belongs to another bundle; {EXPORT_AGAIN}'
            ) from None


def read_signature(root: Path) -> Signature | None:
    """Return what `signature.json` says, unverified; None where the bundle is not signed.

    Raises BundleError for a link, too many bytes, another format or anything but the exact text
    that signing writes: no byte of a signed bundle can change and still be accepted.
    """
    path = root / SIGNATURE_FILE
    if not path.is_symlink() and not path.exists():
        return None
    data = read_bounded(path, MAX_SIGNATURE_BYTES)
    try:
        found = msgspec.json.decode(data, type=Signature)
        text = base64.b64encode(base64.b64decode(found.signature, validate=True)).decode()
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleError(f'{path}: not a signature: {error}; {EXPORT_AGAIN}') from error
    if found.format != FORMAT_VERSION:
        raise BundleError(
            f'{path}: format is {found.format}, this version reads {FORMAT_VERSION}; sign the '
            'bundle with this version of HEQIS'
        )
    if found.to_bytes() != data or text != found.signature:
        raise BundleError(f'{path}: not the text that signing writes; {EXPORT_AGAIN}')
    return found


def sign_bundle(root: Path | str, secret_file: Path | str) -> Signature:
    """Check the bundle, sign its manifest, write `signature.json` in place of an earlier one.

    Raises BundleError if the bundle is not sound or cannot be written to, ConfigError if
    `secret_file` is no ed25519 key of this name, or others may read it.
    """
    folder, path = Path(root), Path(secret_file)
    key = _read_secret(path)
    seen: list[bytes] = []
    Bundle.load(folder, lambda _, manifest: seen.append(manifest))
    signature = Signature(
        format=FORMAT_VERSION,
        key=key_name(path, SECRET_SUFFIX),
        fingerprint=fingerprint(key.public_key()),
        signature=base64.b64encode(key.sign(seen[0])).decode(),
    )
    target = folder / SIGNATURE_FILE
    try:
        replace_forced(target, signature.to_bytes())
    except OSError as error:
        raise BundleError(f'{target}: cannot be written: {error}') from error
    return signature


def write_key_pair(folder: Path | str, name: str) -> tuple[Path, Path, str]:
    """Make `NAME.pub.pem` (for the boards) and `NAME.secret.pem` (0600); never replace a file.

    Returns both paths and the fingerprint. Raises ConfigError for a name that is not letters,
    digits, `_` and `-` (64 at most), a file that is there, or a folder that cannot be written.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f'{name!r} is no name of a key; use 1 to 64 letters, digits, _ and -')
    base = Path(folder)
    public, secret = base / f'{name}{PUBLIC_SUFFIX}', base / f'{name}{SECRET_SUFFIX}'
    key = Ed25519PrivateKey.generate()
    private_text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path in (public, secret):
        if path.exists():
            raise ConfigError(f'{path}: exists already; choose another name')
    try:
        base.mkdir(parents=True, exist_ok=True)
        for path, text, mode in ((secret, private_text, 0o600), (public, public_text, 0o644)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(path, flags, mode), 'wb') as stream:
                stream.write(text)
    except OSError as error:
        raise ConfigError(f'{base}: cannot be written: {error}; choose another folder') from error
    return public, secret, fingerprint(key.public_key())


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of the 32 bytes of a public key, hexadecimal."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def key_name(path: Path, suffix: str) -> str:
    """Return the name of a key from its file's name, or raise ConfigError."""
    name = path.name.removesuffix(suffix)
    if name == path.name or not re.fullmatch(_NAME, name):
        raise ConfigError(
            f'{path}: expected a file NAME{suffix}, the name of letters, digits, _ and -'
        )
    return name


def _read_key(path: Path) -> bytes:
    try:
        with path.open('rb') as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read: {error.strerror}; {_MAKE_KEY}') from error
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f'{path}: more than {MAX_KEY_BYTES} bytes, no key; {_MAKE_KEY}')
    return data


def _read_public(path: Path) -> Ed25519PublicKey:
    data = _read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f'{path}: not a public key in PEM; {_MAKE_KEY}') from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f'{path}: a public key of another kind than ed25519; {_MAKE_KEY}')
    return key


def _read_secret(path: Path) -> Ed25519PrivateKey:
    key_name(path, SECRET_SUFFIX)
    data = _read_key(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == 'posix' and mode & 0o077:
        raise ConfigError(f'{path}: mode {mode:04o} lets others read it; run: chmod 600 {path}')
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: what a parser says of a secret file stays out of logs.
        raise ConfigError(f'{path}: not a plain secret key in PEM; {_MAKE_KEY}') from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f'{path}: a secret key of another kind than ed25519; {_MAKE_KEY}')
    return key


def _read_revoked(path: Path) -> dict[str, int]:
    if not path.is_symlink() and not path.exists():
        return {}
    try:
        with path.open('rb') as stream:
            data = stream.read(MAX_REVOKED_BYTES + 1)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: cannot be read: {error}') from error
    if len(data) > MAX_REVOKED_BYTES:
        raise ConfigError(f'{path}: more than {MAX_REVOKED_BYTES} bytes')
    revoked: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition('#')[0].strip()
        if not text:
            continue
        if not re.fullmatch('[0-9a-f]{64}', text):
            # A typing error here would leave a key in force that somebody meant to revoke.
            raise ConfigError(
                f'{path}, line {number}: {text[:80]!r}, expected a fingerprint of 64 digits 0-9a-f'
            )
        revoked.setdefault(text, number)
    return revoked
