# SPDX-License-Identifier: Apache-2.0
"""Key files and endpoints: what is refused, and that the error says which and what to do."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from heqis_core.errors import LinkError
from heqis_core.io.zmq_security import (
    AdmittedKeys,
    LinkSecurity,
    check_endpoints,
    is_local,
    write_keys,
)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Return public and secret key file of two boards."""
    return {name: write_keys(tmp_path / name, name) for name in ('gateway', 'compute')}


def test_written_keys_load_and_the_secret_is_for_its_owner_alone(keys: dict) -> None:
    public, secret = keys['gateway']
    security = LinkSecurity.load(secret, peer_key_file=keys['compute'][0])
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert security.secret_key not in public.read_bytes()
    assert security.allowed == {security.server_key}
    assert security.secret_key.decode() not in repr(security)


def test_existing_keys_are_never_overwritten(keys: dict) -> None:
    public, secret = keys['gateway']
    before = secret.read_bytes()
    with pytest.raises(LinkError, match=r'gateway.key: exists already; remove it first'):
        write_keys(public.parent, 'gateway')
    assert secret.read_bytes() == before


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o644, 0o660])
def test_secret_key_that_others_may_read_is_refused(keys: dict, mode: int) -> None:
    public, secret = keys['gateway']
    secret.chmod(mode)
    with pytest.raises(
        LinkError, match=rf'mode {mode:04o} lets others read it; run: chmod 600 {secret}'
    ):
        LinkSecurity.load(secret, peer_key_file=public)


def test_allow_folder_admits_every_key_in_it_and_no_secret_is_needed_there(
    keys: dict, tmp_path: Path
) -> None:
    folder = tmp_path / 'allowed'
    folder.mkdir()
    for public, _ in keys.values():
        (folder / public.name).write_bytes(public.read_bytes())
    security = LinkSecurity.load(keys['gateway'][1], allow_folder=folder)
    assert len(security.allowed) == 2
    assert security.server_key is None


def test_admitted_keys_follow_the_files_and_one_that_is_no_key_file_admits_nobody(
    keys: dict, tmp_path: Path
) -> None:
    folder = tmp_path / 'allowed'
    folder.mkdir()
    peer, other = keys['compute'][0], keys['gateway'][0]
    admitted = AdmittedKeys(peer, folder)
    (peer_key,) = admitted
    copy = folder / 'other.key'
    copy.write_bytes(other.read_bytes())
    (other_key,) = set(admitted) - {peer_key}
    assert other_key in admitted
    copy.write_text('no key file')
    assert set(admitted) == {peer_key}
    copy.write_bytes(other.read_bytes())
    assert len(admitted) == 2
    copy.unlink()
    peer.unlink()
    assert set(admitted) == set()
    folder.rmdir()
    assert peer_key not in admitted


def test_broken_key_file_in_the_folder_is_named_at_the_start(keys: dict, tmp_path: Path) -> None:
    folder = tmp_path / 'allowed'
    folder.mkdir()
    (folder / 'bad.key').write_text('no key file')
    with pytest.raises(LinkError, match=r'bad\.key: cannot be read as a CURVE key file'):
        LinkSecurity.load(
            keys['gateway'][1], peer_key_file=keys['compute'][0], allow_folder=folder
        )


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (None, 'cannot be read as a CURVE key file'),
        ('', 'cannot be read as a CURVE key file'),
        ('curve\n    public-key = "short"\n', '5 characters, expected 40'),
        ('curve\n    public-key = "' + 'a' * 40 + '"\n', 'holds no secret key'),
    ],
)
def test_unusable_key_files_are_named(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / 'board.key_secret'
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(LinkError, match=f'board.key_secret: .*{expected}'):
        LinkSecurity.load(path)


def test_keys_that_admit_nobody_are_refused(keys: dict, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match='no peer is admitted'):
        LinkSecurity.load(keys['gateway'][1])
    with pytest.raises(LinkError, match='absent: not a folder'):
        LinkSecurity.load(keys['gateway'][1], allow_folder=tmp_path / 'absent')


@pytest.mark.parametrize(
    'endpoint',
    [
        'tcp://127.0.0.1:1',
        'tcp://127.8.9.1:5',
        'tcp://localhost:*',
        'tcp://[::1]:7',
        'ipc:///run/x',
        'inproc://x',
    ],
)
def test_loopback_needs_no_keys(endpoint: str) -> None:
    assert is_local(endpoint)
    check_endpoints([endpoint], None)


@pytest.mark.parametrize(
    'endpoint',
    [
        'tcp://*:5555',
        'tcp://0.0.0.0:5555',
        'tcp://eth0:5555',
        'tcp://192.168.1.5:1',
        'tcp://[::]:5',
        'tcp://board:1',
    ],
)
def test_what_others_can_reach_needs_keys(keys: dict, endpoint: str) -> None:
    assert not is_local(endpoint)
    with pytest.raises(LinkError, match='give CURVE keys'):
        check_endpoints(['tcp://127.0.0.1:1', endpoint], None)
    check_endpoints(
        [endpoint], LinkSecurity.load(keys['gateway'][1], peer_key_file=keys['compute'][0])
    )


@pytest.mark.parametrize(
    'endpoint', ['', '127.0.0.1:5555', 'tcp://127.0.0.1', 'http://127.0.0.1:1', 'tcp://:5555']
)
def test_malformed_endpoints_are_named(endpoint: str) -> None:
    with pytest.raises(LinkError, match='expected tcp://HOST:PORT'):
        check_endpoints([endpoint], None)
