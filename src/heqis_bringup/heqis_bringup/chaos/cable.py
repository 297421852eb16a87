# SPDX-License-Identifier: Apache-2.0
"""A second machine on this one: a network namespace, and a cable to it that can be pulled.

It needs a Linux that lets us make network namespaces: root, or CAP_NET_ADMIN.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from heqis_core.errors import ConfigError


class Machine(NamedTuple):
    """One end of the cable: namespace (empty: the one we are in), interface and address."""

    name: str
    device: str
    address: str

    def run(self, *words: str) -> str:
        """Run a command in the namespace and return its output; raise OSError if it fails."""
        return _run('ip', 'netns', 'exec', self.name, *words) if self.name else _run(*words)

    def ip(self, *words: str) -> str:
        """Run an `ip` command in the namespace."""
        return _run('ip', *(('-n', self.name) if self.name else ()), *words)


class Cable:
    """Two machines that nothing but a cable connects.

    Attributes:
        near, far: its ends.
    """

    def __init__(self, *, here: bool = False) -> None:
        """Lay it; the near end is in this process's namespace with `here`, else in a new one.

        Raises ConfigError with the reason where this is not allowed.
        """
        if shutil.which('ip') is None:
            raise ConfigError('no `ip` command (package iproute2)')
        number = os.getpid() % 100_000
        net = f'10.213.{77 + here}'
        self.near = Machine('' if here else f'heqis-g{number}', f'hqg{number}', f'{net}.1')
        self.far = Machine(f'heqis-c{number}', f'hqc{number}', f'{net}.2')
        self._made: list[str] = []
        try:
            self._lay()
        except OSError as error:
            self.close()
            raise ConfigError(f'network namespaces are not allowed here: {error}') from error

    def _lay(self) -> None:
        near, far = self.near, self.far
        for machine in (near, far):
            if machine.name:
                _run('ip', 'netns', 'add', machine.name)
                self._made.append(machine.name)
        at_near = ('netns', near.name) if near.name else ()
        at_far = ('peer', 'name', far.device, 'netns', far.name)
        _run('ip', 'link', 'add', near.device, *at_near, 'type', 'veth', *at_far)
        for machine in (near, far):
            machine.ip('addr', 'add', f'{machine.address}/24', 'dev', machine.device)
            machine.ip('link', 'set', machine.device, 'up')
            if machine.name:
                machine.ip('link', 'set', 'lo', 'up')
            machine.run('true')

    def pull(self) -> None:
        """Take the cable out at the far end."""
        self.far.ip('link', 'set', self.far.device, 'down')

    def plug(self) -> None:
        """Put it in again."""
        self.far.ip('link', 'set', self.far.device, 'up')

    def close(self) -> None:
        """Take the namespaces away, and the cable with them."""
        for name in self._made:
            _run('ip', 'netns', 'del', name)
        self._made.clear()


def keyed_config(shipped: Path, folder: Path, board: str, peer: str) -> Path:
    """Return a copy of the parameter files for a board with CURVE keys, both boards' keys named.

    The keys are in `folder`/keys; the supervisor is on the board `gateway`, so every agent
    connects to its key, and it admits itself.
    """
    keys = folder / 'keys'
    config = Path(shutil.copytree(shipped, folder / f'{board}-config'))
    allow = folder / f'{board}-allowed'
    allow.mkdir()
    shutil.copy(keys / 'gateway.key', allow)
    for name in ('gateway', 'compute', 'supervisor', 'agent'):
        server = 'gateway' if name == 'agent' else peer
        path = config / f'{name}.yaml'
        text = path.read_text(encoding='utf-8')
        for key, value in (
            ('secret_key_file', keys / f'{board}.key_secret'),
            ('peer_key_file', keys / f'{server}.key'),
            ('allow_folder', allow),
        ):
            if f"{key}: ''" not in text:
                raise ConfigError(f'{path}: {key} is set already; take the shipped files')
            text = text.replace(f"{key}: ''", f'{key}: {value}')
        path.write_text(text, encoding='utf-8')
    return config


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f'{" ".join(words)}: {done.stderr.strip()}')
    return done.stdout
