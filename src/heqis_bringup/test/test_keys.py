# SPDX-License-Identifier: Apache-2.0
"""`heqis keys`: a pair that the link takes, a secret that others cannot read."""

from __future__ import annotations

import argparse
import stat

import pytest

from heqis_bringup import keys
from heqis_core.errors import LinkError
from heqis_core.io.zmq_security import LinkSecurity


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    keys.register(parser.add_subparsers())
    args = parser.parse_args(['keys', *map(str, words)])
    return int(args.func(args))


def test_two_boards_can_be_given_each_others_key(tmp_path, capsys):
    for board in ('gateway', 'compute'):
        assert run(board, '--dir', tmp_path) == 0
    secret = tmp_path / 'gateway.key_secret'
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    mine = LinkSecurity.load(secret, peer_key_file=tmp_path / 'compute.key')
    theirs = LinkSecurity.load(
        tmp_path / 'compute.key_secret', peer_key_file=tmp_path / 'gateway.key'
    )
    assert mine.server_key == theirs.public_key
    assert theirs.server_key == mine.public_key
    printed = capsys.readouterr().out
    assert str(secret) in printed
    assert mine.secret_key.decode() not in printed


def test_an_existing_key_is_never_replaced(tmp_path):
    run('gateway', '--dir', tmp_path)
    before = (tmp_path / 'gateway.key_secret').read_bytes()
    with pytest.raises(LinkError, match='gateway'):
        run('gateway', '--dir', tmp_path)
    assert (tmp_path / 'gateway.key_secret').read_bytes() == before


@pytest.mark.parametrize('name', ['', '../x', 'a b'])
def test_a_name_that_is_no_file_name_is_refused(name, tmp_path):
    with pytest.raises(LinkError, match='name of a board'):
        run(name, '--dir', tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(LinkError, match='file/keys'):
        run('gateway', '--dir', tmp_path / 'file' / 'keys')
