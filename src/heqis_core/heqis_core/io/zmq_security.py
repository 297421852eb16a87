# SPDX-License-Identifier: Apache-2.0
"""Who may talk over a ZeroMQ socket: CURVE keys, their files and the allow-list.

Loopback (and ipc, inproc) endpoints work without keys; everything else is refused without them. A
server admits exactly the public keys of its allow-list: CURVE alone would admit anyone who holds
the server's public key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zmq

from heqis_core.errors import LinkError
from heqis_core.hosts import is_loopback

ZAP_DOMAIN = 'heqis'
_HEADER = '# HEQIS link key of {}: {}\nmetadata\ncurve\n'


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """The keys of one board.

    Attributes:
        public_key, secret_key: this board's key pair, Z85 text of 40 bytes.
        server_key: public key of the board whose sockets this one connects to; None if it connects
        nowhere. allowed: public keys that may connect to this board's sockets.
    """

    public_key: bytes
    secret_key: bytes
    server_key: bytes | None
    allowed: frozenset[bytes]

    def __repr__(self) -> str:
        """Show everything but the secret key."""
        keys = f'public_key={self.public_key!r}, server_key={self.server_key!r}'
        return f'LinkSecurity({keys}, {len(self.allowed)} allowed)'

    @classmethod
    def load(
        cls,
        secret_key_file: str | Path,
        *,
        peer_key_file: str | Path | None = None,
        allow_folder: str | Path | None = None,
    ) -> LinkSecurity:
        """Read the key files.

        `secret_key_file` must be readable by its owner alone (0600). `peer_key_file` holds the
        public key of the board to connect to, which is admitted too; `allow_folder` holds `*.key`
        files of further boards to admit. Raises LinkError that names the file and what to do.
        """
        secret_path = Path(secret_key_file)
        public, secret = _read(secret_path)
        if secret is None:
            raise LinkError(
                f'{secret_path}: holds no secret key; give the .key_secret file of this board'
            )
        mode = stat.S_IMODE(secret_path.stat().st_mode)
        if mode & 0o077:
            raise LinkError(
                f'{secret_path}: mode {mode:04o} lets others read it; run: chmod 600 {secret_path}'
            )
        server = _read(Path(peer_key_file))[0] if peer_key_file is not None else None
        allowed = set(_read_folder(Path(allow_folder))) if allow_folder is not None else set()
        if server is not None:
            allowed.add(server)
        if not allowed:
            raise LinkError(
                f'{secret_path}: no peer is admitted; give peer_key_file or allow_folder'
            )
        return cls(public, secret, server, frozenset(allowed))


def optional_security(
    secret_key_file: str, peer_key_file: str, allow_folder: str
) -> LinkSecurity | None:
    """Read the key files that parameters name, an empty text being none; None if all are empty.

    Raises LinkError as `LinkSecurity.load`, and if a peer is named without a secret key.
    """
    if not secret_key_file:
        if peer_key_file or allow_folder:
            raise LinkError('peer_key_file or allow_folder is set, but secret_key_file is empty')
        return None
    return LinkSecurity.load(
        secret_key_file, peer_key_file=peer_key_file or None, allow_folder=allow_folder or None
    )


def write_keys(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Make a key pair: `<name>.key` (public, for the peer) and `<name>.key_secret` (0600, stays).

    Raises LinkError if one of the files exists already, cannot be written, or for a name that is
    not letters, digits, `_` and `-`.
    """
    if not re.fullmatch(r'[A-Za-z0-9_-]+', name):
        raise LinkError(f'{name!r} is no name of a board; use letters, digits, _ and -')
    public, secret = (key.decode() for key in zmq.curve_keypair())
    base = Path(folder)
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise LinkError(f'{base}: cannot be made: {exc}; choose another folder') from exc
    paths = base / f'{name}.key', base / f'{name}.key_secret'
    pair = f'    public-key = "{public}"\n'
    texts = (
        _HEADER.format(name, 'public, copy it to the peer') + pair,
        _HEADER.format(name, 'SECRET, stays here') + pair + f'    secret-key = "{secret}"\n',
    )
    for path, text, mode in zip(paths, texts, (0o644, 0o600), strict=True):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), 'w') as file:
                file.write(text)
        except FileExistsError as exc:
            raise LinkError(
                f'{path}: exists already; remove it first if its key is to be replaced'
            ) from exc
        except OSError as exc:
            raise LinkError(f'{path}: cannot be written: {exc}; choose another folder') from exc
    return paths


def is_local(endpoint: str) -> bool:
    """Return whether an endpoint cannot be reached from another machine."""
    scheme, _, rest = endpoint.partition('://')
    if scheme in ('ipc', 'inproc'):
        return True
    return is_loopback(rest.rpartition(':')[0].strip('[]'))


def check_endpoints(endpoints: Iterable[str], security: LinkSecurity | None) -> None:
    """Raise LinkError if an endpoint is malformed, or open to other machines without keys."""
    for endpoint in endpoints:
        scheme, found, rest = endpoint.partition('://')
        host, _, port = rest.rpartition(':')
        if (
            not found
            or scheme not in ('tcp', 'ipc', 'inproc')
            or (scheme == 'tcp' and not (host and port))
        ):
            raise LinkError(
                f'endpoint {endpoint!r}: expected tcp://HOST:PORT, for example '
                f'tcp://127.0.0.1:5555'
            )
        if security is None and not is_local(endpoint):
            raise LinkError(
                f'endpoint {endpoint!r} can be reached from other machines: give CURVE keys '
                '(own secret key and the public key of the peer), or use tcp://127.0.0.1:PORT'
            )


def secure_server(socket: zmq.Socket[bytes], security: LinkSecurity) -> None:
    """Make a socket that binds demand CURVE; its context needs an `AllowList`."""
    socket.curve_publickey = security.public_key
    socket.curve_secretkey = security.secret_key
    socket.curve_server = True
    socket.zap_domain = ZAP_DOMAIN.encode()


def secure_client(socket: zmq.Socket[bytes], security: LinkSecurity) -> None:
    """Make a socket that connects use CURVE; raise LinkError if the peer's key is not known."""
    if security.server_key is None:
        raise LinkError('the public key of the peer is not known; give peer_key_file')
    socket.curve_publickey = security.public_key
    socket.curve_secretkey = security.secret_key
    socket.curve_serverkey = security.server_key


class AllowList:
    """Answers for one ZeroMQ context, in a thread of its own, which public keys may connect."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: frozenset[bytes]) -> None:
        """Start admitting `allowed`; must come before the first socket of the context binds."""
        from zmq.auth.thread import (
            ThreadAuthenticator,
        )  # imports asyncio: only where keys are used

        self.refused = 0
        self._allowed = allowed
        self._thread = ThreadAuthenticator(context)
        self._thread.start()
        self._thread.configure_curve_callback(ZAP_DOMAIN, credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key is admitted; called by the authenticator."""
        admitted = key in self._allowed
        self.refused += not admitted
        return admitted

    def close(self) -> None:
        """Stop the thread."""
        self._thread.stop()


def _read(path: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate  # imports asyncio: only where keys are used

    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as exc:
        raise LinkError(f'{path}: cannot be read as a CURVE key file: {exc}') from exc
    for key in (public, secret):
        if key is not None and len(key) != 40:
            raise LinkError(f'{path}: a key has {len(key)} characters, expected 40 (Z85)')
    return public, secret


def _read_folder(folder: Path) -> list[bytes]:
    if not folder.is_dir():
        raise LinkError(
            f'{folder}: not a folder; it should hold the .key files of the boards to admit'
        )
    return [_read(path)[0] for path in sorted(folder.glob('*.key'))]
