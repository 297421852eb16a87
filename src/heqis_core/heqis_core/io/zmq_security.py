# SPDX-License-Identifier: Apache-2.0
"""Who may talk over a ZeroMQ socket: CURVE keys, their files and the allow-list.

Loopback (and ipc, inproc) endpoints work without keys; everything else is refused without them. A
server admits exactly the public keys of its allow-list: CURVE alone would admit anyone who holds
the server's public key. docs/security.md lists what is refused and where that is reported.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from heqis_core.errors import LinkError
from heqis_core.hosts import is_loopback

ZAP_DOMAIN = 'heqis'
_ZAP_ENDPOINT = 'inproc://zeromq.zap.01'  # where libzmq looks for whoever answers for a context
_HEADER = '# HEQIS link key of {}: {}\nmetadata\ncurve\n'


@dataclass(frozen=True, slots=True)
class LinkSecurity:
    """The keys of one board.

    Attributes:
        public_key, secret_key: this board's key pair, Z85 text of 40 bytes.
        server_key: public key of the board whose sockets this one connects to; None if it connects
        nowhere. allowed: public keys that may connect to this board's sockets; as `load` makes
        it, it follows the files.
    """

    public_key: bytes
    secret_key: bytes
    server_key: bytes | None
    allowed: Set[bytes]

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
        files of further boards to admit. A file that is taken away later is no longer admitted, at
        the next handshake. Raises LinkError that names the file and what to do.
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
        if allow_folder is not None and not Path(allow_folder).is_dir():
            raise LinkError(
                f'{allow_folder}: not a folder; it should hold the .key files of the boards to '
                'admit'
            )
        for path in _key_files(None, allow_folder):
            _read(path)
        allowed = AdmittedKeys(peer_key_file, allow_folder)
        if not allowed:
            raise LinkError(
                f'{secret_path}: no peer is admitted; give peer_key_file or allow_folder'
            )
        return cls(public, secret, server, allowed)


class AdmittedKeys(Set[bytes]):
    """The public keys in a peer's key file and in a folder, as the files are now.

    A file that cannot be read admits nobody. The files are read again only when one has changed.
    """

    def __init__(self, peer_key_file: str | Path | None, allow_folder: str | Path | None) -> None:
        """Name the files; both may be None."""
        self._peer_key_file, self._allow_folder = peer_key_file, allow_folder
        self._seen: list[tuple[Path, tuple[int, ...]]] | None = None
        self._keys: frozenset[bytes] = frozenset()

    def __contains__(self, key: object) -> bool:
        """Return whether a key (Z85, 40 bytes) is admitted now."""
        return key in self._now()

    def __iter__(self) -> Iterator[bytes]:
        """Go through the keys."""
        return iter(self._now())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._now())

    def _now(self) -> frozenset[bytes]:
        seen = [
            (path, _identity(path)) for path in _key_files(self._peer_key_file, self._allow_folder)
        ]
        if seen != self._seen:
            keys = set()
            for path, _ in seen:
                with contextlib.suppress(LinkError):
                    keys.add(_read(path)[0])
            self._seen, self._keys = seen, frozenset(keys)
        return self._keys


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
    # Without this, libzmq lets everyone in when nobody answers for the context.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: zmq.Socket[bytes], security: LinkSecurity) -> None:
    """Make a socket that connects use CURVE; raise LinkError if the peer's key is not known."""
    if security.server_key is None:
        raise LinkError('the public key of the peer is not known; give peer_key_file')
    socket.curve_publickey = security.public_key
    socket.curve_secretkey = security.secret_key
    socket.curve_serverkey = security.server_key


class AllowList:
    """Answers for one ZeroMQ context, in a thread of its own, which public keys may connect.

    It is the context's ZAP handler (RFC 27, https://rfc.zeromq.org/spec/27). If it ends, nobody is
    let in any more.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: Set[bytes]) -> None:
        """Start admitting `allowed`; must come before the first socket of the context binds."""
        self.refused = 0
        self._allowed = allowed
        self._context = context
        self._closing = False
        self._fault = ''
        self._news: list[str] = []
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ZAP_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name='allow-list', daemon=True)
        self._thread.start()

    def news(self) -> list[str]:
        """Return who was refused, and that the thread has ended, since the last call."""
        news, self._news = self._news, []
        if not self._thread.is_alive() and not self._closing:
            self._closing = True
            news.append(
                f'the allow-list has ended ({self._fault}), so nobody is let in: restart the node'
            )
        return news

    def close(self) -> None:
        """Stop the thread."""
        self._closing = True
        with self._context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(_ZAP_ENDPOINT)
            if self._thread.is_alive():
                socket.send(b'')  # is no request, and wakes it up
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                parts = self._socket.recv_multipart()
                if not self._closing:
                    self._socket.send_multipart(self._answer(parts))
        except Exception as exc:  # whatever it is: `news` says that nobody is let in any more
            self._fault = repr(exc)
        finally:
            self._socket.close(0)

    def _answer(self, parts: list[bytes]) -> list[bytes]:
        version, request_id, domain, address, _, mechanism, *credentials = parts
        key = b''
        if mechanism == b'CURVE' and domain == ZAP_DOMAIN.encode() and len(credentials) == 1:
            key = z85.encode(credentials[0])
        if key and key in self._allowed:
            return [version, request_id, b'200', b'OK', key, b'']
        self.refused += 1
        self._note(
            f'a peer at {address.decode(errors="replace")} was refused: its key '
            f'{key.decode()!r} is not on the allow-list'
        )
        return [version, request_id, b'400', b'not on the allow-list', b'', b'']

    def _note(self, text: str) -> None:
        if not self._news:  # the first is enough until someone asks; `refused` counts all
            self._news = [text]


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


def _key_files(peer_key_file: str | Path | None, allow_folder: str | Path | None) -> list[Path]:
    files = [] if peer_key_file is None else [Path(peer_key_file)]
    return files if allow_folder is None else files + sorted(Path(allow_folder).glob('*.key'))


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes with a file's content; empty for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
