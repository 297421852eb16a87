# SPDX-License-Identifier: Apache-2.0
"""Who tries to get in without the right to: refused, and reported within a second.

Reported means what a node passes on: a counter, `last_error` or `on_error` of the end that
refused. docs/security.md has the list of threats and names these tests.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth

from heqis_core import wire
from heqis_core.bundle import Bundle
from heqis_core.errors import BundleError
from heqis_core.io.signing import TrustedKeys, sign_bundle, write_key_pair
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_bundle import write_test_bundle
from heqis_core.testing_link import make_frame

REPORTED_S = 1.0
GREETING = b'\xff' + bytes(8) + b'\x7f' + b'\x03\x00' + b'NULL'.ljust(20, b'\0') + bytes(32)


class Guarded:
    """A compute board with keys. It admits the gateway's key by a file in a folder."""

    def __init__(self, folder: Path) -> None:
        """Make the keys and open the board's end."""
        names = ('compute', 'peer', 'gateway', 'stranger')
        self.files = {name: write_keys(folder, name) for name in names}
        self.allowed = folder / 'allowed'
        self.allowed.mkdir()
        self.admit('gateway')
        self.endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
        self.told: list[str] = []
        keys = LinkSecurity.load(
            self.files['compute'][1],
            peer_key_file=self.files['peer'][0],
            allow_folder=self.allowed,
        )
        self.board = ComputeLink(*self.endpoints, security=keys, on_error=self.told.append)
        self._gateways: list[GatewayLink] = []

    def admit(self, name: str) -> Path:
        """Put a board's public key into the folder of those that may connect."""
        public = self.files[name][0]
        return Path(shutil.copy(public, self.allowed / public.name))

    def connect(self, name: str) -> GatewayLink:
        """Open a gateway's end with the keys of `name`."""
        link = GatewayLink(
            self.endpoints[0],
            *(f'tcp://127.0.0.1:{free_port()}' for _ in range(2)),
            security=LinkSecurity.load(
                self.files[name][1], peer_key_file=self.files['compute'][0]
            ),
        )
        self._gateways.append(link)
        return link

    def close(self) -> None:
        """Close all ends."""
        for link in (self.board, *self._gateways):
            link.close()

    def reported(self, counter: str, text: str) -> None:
        """Fail unless the board says it within a second, and has let nothing in."""
        started_s = time.monotonic()
        wait_until(lambda: self.board.counters[counter] > 0, 5, f'{counter} stays 0')
        wait_until(lambda: any(text in told for told in self.told), 5, f'nobody says {text!r}')
        assert time.monotonic() - started_s < REPORTED_S
        assert text in self.board.last_error or len(self.told) > 1
        assert self.board.recv(50) is None
        assert self.board.counters['received'] == 0


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    made.close()


@pytest.fixture
def stranger() -> Iterator[Callable[..., zmq.Socket]]:
    """Return a way to open a plain ZeroMQ socket with options; all end with the test."""
    context: zmq.Context = zmq.Context()

    def make(endpoint: str, kind: int = zmq.PUSH, **options: object) -> zmq.Socket:
        made = context.socket(kind)
        made.linger = 0
        for name, value in options.items():
            setattr(made, name, value)
        made.connect(endpoint)
        return made

    yield make
    context.destroy(linger=0)


def arrives(guarded: Guarded, gateway: GatewayLink) -> bool:
    """Return whether a frame gets through now."""
    return gateway.send(make_frame(), 100) and guarded.board.recv(200) is not None


def test_a_key_in_the_folder_works_and_nothing_is_reported(guarded):
    gateway = guarded.connect('gateway')
    wait_until(lambda: arrives(guarded, gateway), 5)
    assert guarded.board.counters['refused'] == guarded.board.counters['handshakes_failed'] == 0
    assert guarded.told == []


def test_a_peer_without_a_key_is_refused_and_reported(guarded, stranger):
    stranger(guarded.endpoints[0]).send(wire.encode_frame(make_frame()))
    guarded.reported('handshakes_failed', 'a peer was refused')


def test_an_unknown_key_is_refused_and_reported_with_key_and_address(guarded):
    gateway = guarded.connect('stranger')
    guarded.reported('refused', 'is not on the allow-list')
    (told,) = (text for text in guarded.told if 'is not on the allow-list' in text and "'" in text)
    key = zmq.auth.load_certificate(guarded.files['stranger'][0])[0]
    assert f'a peer at 127.0.0.1 was refused: its key {key.decode()!r}' in told
    wait_until(lambda: 'the peer refused our key' in gateway.last_error, REPORTED_S)
    assert not gateway.send(make_frame(), 100)


def test_a_peer_that_takes_us_for_another_board_is_refused_and_reported(guarded, stranger):
    public, secret = zmq.curve_keypair()
    other, _ = zmq.curve_keypair()
    keys = {'curve_publickey': public, 'curve_secretkey': secret, 'curve_serverkey': other}
    with contextlib.suppress(zmq.Again):
        stranger(guarded.endpoints[0], **keys).send(b'x', zmq.DONTWAIT)
    guarded.reported('handshakes_failed', 'a peer was refused')


def test_a_revoked_key_is_refused_from_the_next_handshake_on_without_a_restart(guarded):
    gateway = guarded.connect('gateway')
    wait_until(lambda: arrives(guarded, gateway), 5)
    (guarded.allowed / 'gateway.key').unlink()
    gateway.close()
    received = guarded.board.counters['received']
    started_s = time.monotonic()
    again = guarded.connect('gateway')
    wait_until(lambda: guarded.board.counters['refused'] > 0, 5)
    wait_until(lambda: any('not on the allow-list' in text for text in guarded.told), 5)
    assert time.monotonic() - started_s < REPORTED_S
    assert not again.send(make_frame(), 200)
    assert guarded.board.counters['received'] == received


def test_a_key_that_is_put_into_the_folder_is_admitted_without_a_restart(guarded):
    gateway = guarded.connect('stranger')
    wait_until(lambda: guarded.board.counters['refused'] > 0, 5)
    guarded.admit('stranger')
    wait_until(lambda: arrives(guarded, gateway), 5, 'the key is admitted now')


def test_a_key_file_that_becomes_unreadable_admits_nobody_and_the_others_go_on(guarded):
    path = guarded.admit('stranger')
    path.write_text('no key file')
    stranger, gateway = guarded.connect('stranger'), guarded.connect('gateway')
    wait_until(lambda: guarded.board.counters['refused'] > 0, 5)
    wait_until(lambda: arrives(guarded, gateway), 5)
    assert not stranger.send(make_frame(), 200)


def test_without_an_authenticator_nobody_is_let_in_and_it_is_reported(guarded):
    """The thread ends as it would by a fault of its own; libzmq alone would let everyone in."""
    allow = guarded.board._allow
    with zmq.Socket(guarded.board._context, zmq.REQ) as request:
        request.linger = 0
        request.connect('inproc://zeromq.zap.01')
        request.send(b'is no request')
        wait_until(lambda: not allow._thread.is_alive(), 5)
    gateway = guarded.connect('gateway')
    guarded.reported('handshakes_failed', 'nobody is let in: restart the node')
    assert not gateway.send(make_frame(), 200)


def say(endpoint: str, data: bytes) -> socket.socket:
    """Connect by TCP and send bytes."""
    host, _, port = endpoint.removeprefix('tcp://').rpartition(':')
    made = socket.create_connection((host, int(port)), 5)
    made.settimeout(5)
    made.sendall(data)
    return made


def ended(connection: socket.socket) -> bool:
    """Read what comes until the other side ends the connection."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


HUGE = struct.pack('>BQ', 4 | 2, 1 << 62)
"""Header of a ZMTP command of 4 EiB."""


@pytest.mark.parametrize(
    ('data', 'counter', 'text'),
    [
        (b'GET / HTTP/1.1\r\nHost: x\r\n\r\n' * 8, 'disconnects', 'a connection has ended'),
        (GREETING + HUGE, 'handshakes_failed', 'a peer was refused'),
        (GREETING + bytes(64), 'handshakes_failed', 'a peer was refused'),
    ],
    ids=['another protocol', 'oversized header', 'no handshake'],
)
def test_what_is_no_peer_is_thrown_out_and_reported(guarded, data, counter, text):
    with say(guarded.endpoints[0], data) as connection:
        assert ended(connection)
        guarded.reported(counter, text)


@pytest.fixture
def open_board() -> Iterator[tuple[ComputeLink, list[str]]]:
    """Return a compute board without keys, as on loopback, and what it tells."""
    told: list[str] = []
    endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
    board = ComputeLink(*endpoints, on_error=told.append)
    yield board, told
    board.close()


def test_an_oversized_message_ends_its_connection_and_is_reported(open_board):
    """The header alone says 4 EiB: nothing of that size is ever allocated."""
    board, told = open_board
    ready = b'\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH'
    hello = GREETING + struct.pack('BB', 4, len(ready)) + ready
    with say(board.endpoints['frames'], hello) as connection:
        connection.recv(128)
        started_s = time.monotonic()
        connection.sendall(struct.pack('>BQ', 2, 1 << 62) + bytes(1000))
        assert ended(connection)
        wait_until(lambda: board.counters['disconnects'] > 0, 5)
        assert time.monotonic() - started_s < REPORTED_S
    assert any('a connection has ended' in text for text in told)
    assert board.counters['received'] == 0


def test_a_peer_with_keys_at_a_board_without_is_refused_and_reported(open_board, stranger):
    board, told = open_board
    public, secret = zmq.curve_keypair()
    keys = {'curve_publickey': public, 'curve_secretkey': secret, 'curve_serverkey': public}
    started_s = time.monotonic()
    stranger(board.endpoints['frames'], **keys)
    wait_until(lambda: board.counters['handshakes_failed'] > 0, 5)
    assert time.monotonic() - started_s < REPORTED_S
    assert any('a peer was refused' in text for text in told)


def test_a_thousand_refused_handshakes_are_counted_and_leave_nothing_behind(guarded):
    for _ in range(1000):
        say(guarded.endpoints[0], GREETING + HUGE).close()
    wait_until(lambda: guarded.board.counters['handshakes_failed'] >= 1000, 20)
    gateway = guarded.connect('gateway')
    wait_until(lambda: arrives(guarded, gateway), 5, 'the rightful peer is let in all the same')
    assert len(guarded.told) <= 2, 'each kind is told once'


def test_an_altered_bundle_with_a_fresh_manifest_is_refused_within_a_second(tmp_path):
    """Whoever writes to the folder can make the hashes fit, but not the signature."""
    public, secret, _ = write_key_pair(tmp_path / 'keys', 'factory')
    trusted = tmp_path / 'trusted'
    trusted.mkdir()
    shutil.copy(public, trusted)
    folder = write_test_bundle(tmp_path / 'bundles')
    sign_bundle(folder, secret)
    check = TrustedKeys.load(trusted).check
    Bundle.load(folder, check)
    other = write_test_bundle(tmp_path / 'others', seed=1)
    for path in other.iterdir():
        shutil.copy(path, folder / path.name)
    started_s = time.monotonic()
    with pytest.raises(BundleError, match=r'signature\.json: is no signature by key'):
        Bundle.load(folder, check)
    assert time.monotonic() - started_s < REPORTED_S
