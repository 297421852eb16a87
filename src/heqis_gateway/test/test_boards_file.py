# SPDX-License-Identifier: Apache-2.0
"""The boards file: the shipped example, and every fault by file, field and value."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import yaml

from heqis_core.errors import ConfigError
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_link import make_frame
from heqis_gateway.boards_file import load_boards, open_boards

EXAMPLE = Path(__file__).resolve().parents[3] / 'config' / 'boards.example.yaml'
FIELDS = ('frames', 'decisions', 'requests')


def board(name: str, **changes: object) -> dict[str, object]:
    ends = {field: f'tcp://127.0.0.1:{free_port()}' for field in FIELDS}
    return {'name': name, **ends, **changes}


def ends_of(entry: dict[str, object]) -> list[str]:
    return [str(entry[field]) for field in FIELDS]


def write(folder: Path, *boards: dict[str, object]) -> Path:
    path = folder / 'boards.yaml'
    path.write_text(yaml.safe_dump({'boards': list(boards)}), encoding='utf-8')
    return path


def test_the_shipped_example_names_three_boards_of_this_machine():
    boards = load_boards(EXAMPLE)
    assert [item.name for item in boards] == ['jetson_1', 'jetson_2', 'jetson_3']
    assert len({item.frames for item in boards}) == 3


def test_each_board_gets_a_link_of_its_own_in_the_order_of_the_file(tmp_path):
    entries = [board('z'), board('a')]
    links = open_boards(write(tmp_path, *entries))
    try:
        assert list(links) == ['z', 'a']
        for entry in entries:
            ends = links[str(entry['name'])].endpoints
            assert list(ends.values()) == ends_of(entry)
    finally:
        for link in links.values():
            link.close()


@pytest.mark.parametrize(
    ('boards', 'words'),
    [
        ([], ['boards', 'length >= 1']),
        ([{'name': 'a', 'frames': 'x', 'decisions': 'y'}], ['boards[0]', 'requests']),
        ([board('a b')], ['boards[0].name', 'regex']),
        ([board('a', port=1)], ['boards[0]', 'port', 'expected one of', 'peer_key']),
        ([board('a'), board('a')], ['boards[1]', 'name', "'a'", 'boards[0]']),
        (
            [board('a', frames='tcp://127.0.0.1:7'), board('b', requests='tcp://127.0.0.1:7')],
            ['boards[1] (b)', 'requests', 'tcp://127.0.0.1:7', 'boards[0] (a): frames'],
        ),
        ([board('a', peer_key='no.key')], ['peer_key', 'no.key', 'copy']),
    ],
)
def test_a_fault_is_named_by_file_field_and_value(boards, words, tmp_path):
    path = write(tmp_path, *boards)
    with pytest.raises(ConfigError) as caught:
        load_boards(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'frames': 'tcp://192.0.2.7:5555'}, ['board b', 'frames', '192.0.2.7', 'CURVE']),
        ({'decisions': 'udp://127.0.0.1:1'}, ['board b', 'decisions', 'udp://127.0.0.1:1']),
    ],
)
def test_what_a_link_refuses_names_board_and_field_and_leaves_no_port_taken(
    changes, words, tmp_path
):
    first = board('a')
    path = write(tmp_path, first, board('b', **changes))
    with pytest.raises(ConfigError) as caught:
        open_boards(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    GatewayLink(*ends_of(first)).close()


def test_a_board_is_served_with_its_own_key_and_refused_at_the_ports_of_another(tmp_path):
    keys = tmp_path / 'keys'
    for name in ('gateway', 'a', 'b'):
        write_keys(keys, name)
    entries = [board(name, peer_key=f'keys/{name}.key') for name in ('a', 'b')]
    own = LinkSecurity.load(keys / 'a.key_secret', peer_key_file=keys / 'gateway.key')
    frame = make_frame(3)
    with ExitStack() as stack:
        path = write(tmp_path, *entries)
        links = open_boards(path, str(keys / 'gateway.key_secret'))
        for link in links.values():
            stack.callback(link.close)
        first = stack.enter_context(closing(ComputeLink(*ends_of(entries[0]), security=own)))
        wait_until(lambda: links['a'].send(frame, 100), 10)
        got = first.recv(2000)
        assert got is not None
        assert got.seq == 3
        where = [f'tcp://127.0.0.1:{free_port()}', *ends_of(entries[1])[1:]]
        thief = stack.enter_context(closing(ComputeLink(*where, security=own)))
        assert thief.request(0, 1, 0, 300) is None
        wait_until(lambda: links['b'].counters['refused'] > 0, 5)


def test_with_a_secret_key_a_board_without_a_peer_key_is_refused(tmp_path):
    write_keys(tmp_path, 'gateway')
    path = write(tmp_path, board('a'))
    with pytest.raises(ConfigError, match=r'board a: .*peer'):
        open_boards(path, str(tmp_path / 'gateway.key_secret'))
