# SPDX-License-Identifier: Apache-2.0
"""The boards file: which compute boards share the symbols, and where each is reached.

Everything is checked before a socket is opened. Keys stand in files that are named, never here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from heqis_core.errors import ConfigError, LinkError
from heqis_core.io.yaml_struct import load_struct
from heqis_core.io.zmq_link import GatewayLink
from heqis_core.io.zmq_security import LinkSecurity, check_endpoints, optional_security

_ENDPOINTS = ('frames', 'decisions', 'requests')


class Board(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One compute board.

    Attributes:
        name: decides with a symbol's name whether the board serves it; letters, digits, _ and -.
        frames: where the board listens for frames.
        decisions: where the gateway listens for this board's decisions.
        requests: where the gateway listens for its requests for missed frames.
        peer_key: file of the board's CURVE public key; needed off loopback.
    """

    name: Annotated[str, Meta(pattern='^[A-Za-z0-9_-]{1,40}$')]
    frames: str
    decisions: str
    requests: str
    peer_key: str = ''


class _File(Struct, forbid_unknown_fields=True):
    boards: Annotated[list[Board], Meta(min_length=1)]


def load_boards(path: str | Path) -> tuple[Board, ...]:
    """Return the boards of a YAML file; a key file's path is relative to that file.

    Raises ConfigError with file, field and value if it cannot be read, a name or an endpoint
    comes twice, or a key file is not there.
    """
    path = Path(path)
    boards = tuple(load_struct(path, _File).boards)
    seen: dict[str, str] = {}
    for index, board in enumerate(boards):
        where = f'boards[{index}] ({board.name})'
        for field in ('name', *_ENDPOINTS):
            value = getattr(board, field)
            if value in seen:
                raise ConfigError(
                    f'{path}: {where}: {field}: {value!r} stands at {seen[value]} too; '
                    'each board has a name and three endpoints of its own'
                )
            seen[value] = f'{where}: {field}'
        if board.peer_key and not (path.parent / board.peer_key).is_file():
            raise ConfigError(
                f'{path}: {where}: peer_key: there is no file {path.parent / board.peer_key}; '
                "copy the board's .key file there"
            )
    return boards


def open_boards(
    path: str | Path, secret_key_file: str = '', allow_folder: str = ''
) -> dict[str, GatewayLink]:
    """Open the gateway's end of the link to each board of a file, by name, in the file's order.

    `secret_key_file` and `allow_folder` are as in `optional_security`. Raises ConfigError as
    `load_boards`, or with file, board and what the link refused; nothing stays open then.
    """
    links: dict[str, GatewayLink] = {}
    for board in load_boards(path):
        try:
            links[board.name] = _open(board, Path(path).parent, secret_key_file, allow_folder)
        except LinkError as error:
            for link in links.values():
                link.close()
            raise ConfigError(f'{path}: board {board.name}: {error}') from error
    return links


def _open(board: Board, folder: Path, secret_key_file: str, allow_folder: str) -> GatewayLink:
    peer = str(folder / board.peer_key) if board.peer_key else ''
    security: LinkSecurity | None = optional_security(secret_key_file, peer, allow_folder)
    for field in _ENDPOINTS:
        try:
            check_endpoints([getattr(board, field)], security)
        except LinkError as error:
            raise LinkError(f'{field}: {error}') from error
    return GatewayLink(board.frames, board.decisions, board.requests, security=security)
