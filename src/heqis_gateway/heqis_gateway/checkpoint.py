# SPDX-License-Identifier: Apache-2.0
"""The gateway's checkpoint: one file from which a killed gateway goes on as if never away.

It holds the source's cursor, the state of the pipeline, the tail of the ring and the counters, all
of one moment between two frames. The file is replaced as a whole, so a reader sees the old one or
the new one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.errors import DataError

Arrays = dict[str, npt.NDArray[np.generic]]
SCHEMA = 1


class CheckpointHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not an array.

    Attributes:
        schema: version of this layout.
        identity: what must match for the checkpoint to be of use (stream, features id, source,
            symbols).
        next_seq: seq of the frame that comes next.
        first_open: first frame whose decisions were not known to be durable.
        first_sent: seq of the first frame that was not warm-up; -1 before it.
        cursor: where the source goes on.
        counters: the gateway's counters.
    """

    schema: int
    identity: dict[str, str]
    next_seq: int
    first_open: int
    first_sent: int
    cursor: dict[str, Any]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One moment of the gateway: head, pipeline state, ring tail (arrays of `FrameRing.save`)."""

    head: CheckpointHead
    pipeline: Arrays
    ring: Arrays


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint and put it in the place of the old one; raise DataError if that fails.

    The file is not forced to the disk: it must outlive the process, which the page cache does.
    After a power loss an older one, or none, is found, and the stream starts again from there; the
    journal drops repeats.
    """
    arrays: Arrays = {'head': np.frombuffer(msgspec.json.encode(checkpoint.head), np.uint8)}
    for part, items in (('pipeline', checkpoint.pipeline), ('ring', checkpoint.ring)):
        arrays.update({f'{part}/{name}': value for name, value in items.items()})
    temporary = path.with_suffix('.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f'{path}: checkpoint cannot be written ({error}); free space or move state_dir'
        ) from error


def load_checkpoint(path: Path, identity: dict[str, str]) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint, or None and why there is none to go on from.

    Args:
        path: file of `save_checkpoint`.
        identity: must equal the identity in the file.
    """
    if not path.exists():
        return None, 'no checkpoint: the stream starts with its first bar'
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Arrays = {name: file[name] for name in file.files}
        head = msgspec.json.decode(arrays.pop('head').tobytes(), type=CheckpointHead)
    except Exception as error:
        # One flipped bit makes zipfile ask for a password, for lzma, or for a newer zipfile.
        return (
            None,
            f'{path}: checkpoint is damaged ({error}): the stream starts with its first bar',
        )
    if head.schema != SCHEMA:
        return None, f'{path}: checkpoint has schema {head.schema}, expected {SCHEMA}'
    for key, expected in identity.items():
        if head.identity.get(key) != expected:
            found = head.identity.get(key)
            return (
                None,
                f'{path}: checkpoint is of {key} {found!r}, now {expected!r}: starting anew',
            )
    return Checkpoint(
        head, _part(arrays, 'pipeline/'), _part(arrays, 'ring/')
    ), f'resumed at {head.next_seq}'


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
