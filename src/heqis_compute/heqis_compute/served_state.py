# SPDX-License-Identifier: Apache-2.0
"""Which bundle was swapped in, on disk: a process that was killed goes on with it.

The file counts only while the node is configured with the bundle that the swaps began from.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from heqis_core.bundle import Bundle
from heqis_core.durable import replace_forced
from heqis_core.errors import ConfigError

FILE = 'served.json'
SCHEMA = 1


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle: its absolute folder, and the id that it must have."""

    path: str
    bundle_id: str

    @classmethod
    def of(cls, bundle: Bundle) -> Place:
        """Return the place of a bundle, whatever links led there."""
        return cls(str(bundle.path.resolve()), bundle.bundle_id)


class ServedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is served, and what would be after a roll-back.

    Attributes:
        schema: version of this file.
        configured: absolute folder of the bundle that the parameter `bundle` named.
        served: the bundle that is served.
        previous: the one before it; None if there is none.
    """

    schema: int
    configured: str
    served: Place
    previous: Place | None


def read_state(folder: Path, configured: Path) -> ServedState | None:
    """Return what was swapped in since the node was configured with `configured`; None if nothing.

    Raises ConfigError if there is a file that cannot be read or understood.
    """
    path = folder / FILE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=ServedState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path}: which bundle was swapped in cannot be read: {error}; swap again'
        ) from error
    if state.schema != SCHEMA:
        raise ConfigError(f'{path}: schema is {state.schema}, expected {SCHEMA}; swap again')
    return state if state.configured == str(configured.resolve()) else None


def check_place(bundle: Bundle, place: Place) -> None:
    """Raise ConfigError if the folder of `place` holds another bundle by now."""
    if bundle.bundle_id != place.bundle_id:
        raise ConfigError(
            f'{place.path} holds bundle {bundle.bundle_id} by now, not {place.bundle_id}'
        )


def write_state(folder: Path, configured: Path, served: Place, previous: Place | None) -> None:
    """Put the file in place, forced to the disk; raise ConfigError if that fails."""
    state = ServedState(SCHEMA, str(configured.resolve()), served, previous)
    text = msgspec.json.format(msgspec.json.encode(state), indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_forced(folder / FILE, text, b'\n')
    except OSError as error:
        raise ConfigError(
            f'{folder / FILE}: cannot be written: {error}; free space or set state_dir: without '
            'it, a process that is started again would serve another bundle'
        ) from error


def forget_state(folder: Path) -> None:
    """Remove the file, if there is one; raise ConfigError if that fails."""
    try:
        (folder / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f'{folder / FILE}: cannot be removed: {error}; remove it, or set state_dir'
        ) from error
