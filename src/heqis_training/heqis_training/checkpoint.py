# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: nested states of networks and optimisers in one safetensors file, without pickle.

Tensors lie in the file under their path in the tree (`/networks/gru/head.weight`); everything else
is JSON in its metadata. A sha256 covers every byte, so damage is found before anything is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load, save
from torch import Tensor, nn

from heqis_core.durable import force_folder, replace_forced, write_forced
from heqis_core.errors import ConfigError, DataError

FORMAT = '1'
"""Version of the layout that this module writes and reads."""

_FORMAT, _ABOUT, _TREE, _SHA256 = 'heqis_checkpoint', 'about', 'tree', 'sha256'
_NO_DIGEST = '0' * 64
_TENSOR, _TUPLE, _DICT, _FLOAT = '$tensor', '$tuple', '$dict', '$float'
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHOWN = 6
"""Differences that a message names one by one."""
_log = logging.getLogger(__name__)


class State(NamedTuple):
    """What a checkpoint holds, and the file that it came from."""

    path: Path
    tree: Any
    about: dict[str, str]


def save_state(path: Path, tree: Any, about: Mapping[str, str]) -> None:
    """Write a tree of states, keep the file that was there as `*.previous`.

    Args:
        path: file to write; its folder exists.
        tree: nested dicts, lists and tuples of tensors, numbers, strings, None and bools, as
            `state_dict()` gives them. Keys of any of these plain types, floats and tensors come
            back bit for bit; tensors come back on the CPU, subclasses of dict as dict.
        about: what must match when the file is loaded, such as kind, settings id and fingerprint
            of the data.

    The file is written beside its place, forced to the disk and moved: `path` and its previous one
    are always whole. Raises DataError, which says how much room is needed, if it cannot be
    written, and TypeError that names the place of a value that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    head = {
        _FORMAT: FORMAT,
        _ABOUT: json.dumps(dict(about), sort_keys=True),
        _TREE: json.dumps(_encode(tree, '', tensors), allow_nan=False),
        _SHA256: _NO_DIGEST,
    }
    data = save(tensors, metadata=head)
    at = data.index(_digest_field(_NO_DIGEST))
    field = _digest_field(hashlib.sha256(data).hexdigest())
    view = memoryview(data)
    partial = path.with_name(f'{path.name}.partial')
    try:
        write_forced(partial, view[:at], field, view[at + len(field) :])
        if path.exists():
            _keep_as_previous(path)
        os.replace(partial, path)
        force_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _not_written(path, len(data), error) from error


def load_state(path: Path) -> State:
    """Return what `save_state` wrote.

    Raises DataError for a file that is absent, cut, altered or of another program, and ConfigError
    for one of another format version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: checkpoint cannot be read ({error.strerror})') from error
    head = _head(path, data)
    if head[_FORMAT] != FORMAT:
        raise ConfigError(
            f'{path}: checkpoint of format {head[_FORMAT]}, this version reads {FORMAT}; go on '
            'with the version that wrote it, or train into another folder (--run)'
        )
    tensors = load(data)
    tree = _decode(json.loads(head[_TREE]), tensors)
    return State(path, tree, json.loads(head[_ABOUT]))


def load_latest(path: Path) -> State | None:
    """Return the newest whole checkpoint, `path` or its previous one; None where there is none.

    Going back is logged as a warning that says why. The previous file then takes the place of the
    newest, and a damaged one is renamed to `*.damaged`: so only a process that holds the run may
    make the first call; further ones only read. Raises DataError if both files are bad.
    """
    previous = previous_of(path)
    if not path.exists() and not previous.exists():
        return None
    try:
        return load_state(path)
    except DataError as error:
        reason = str(error)
    if not previous.exists():
        raise DataError(
            f'{reason}; there is no {previous.name} to go back to: remove {path.name} to start '
            'anew, or train into another folder (--run)'
        )
    try:
        state = load_state(previous)
    except DataError as error:
        raise DataError(
            f'{reason}; nor can the one before be used: {error}; remove both to start anew, or '
            'train into another folder (--run)'
        ) from error
    kept = ''
    try:
        if path.exists():
            damaged = path.with_name(f'{path.name}.damaged')
            os.replace(path, damaged)
            kept = f'; the damaged file is kept as {damaged.name}'
        os.replace(previous, path)
    except OSError as error:
        raise DataError(
            f'{reason}; the one before, {previous}, cannot take its place ({error.strerror}); '
            'make the folder one that can be written'
        ) from error
    _log.warning('%s; going on from the one before, %s%s', reason, previous.name, kept)
    return State(path, state.tree, state.about)


def check_about(state: State, expected: Mapping[str, str]) -> None:
    """Raise ConfigError that names each entry of `about` which is not as expected."""
    differing = [
        f'{key} is {state.about.get(key, "absent")}, now {value}'
        for key, value in expected.items()
        if state.about.get(key) != value
    ]
    if differing:
        raise ConfigError(
            f'{state.path}: checkpoint of another run: {"; ".join(differing)}; train into another '
            "folder (--run), or bring back the settings and data of this one's run"
        )


def check_weights(
    path: Path, networks: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Refuse the weights of another architecture before any of them is loaded.

    Args:
        path: checkpoint that they come from.
        networks: modules of the present settings, by name.
        weights: a `state_dict()` for each of them.

    Raises ConfigError that names the networks, tensors, types and shapes that differ.
    """
    differing = list(_differing_names('network', networks, weights))
    for name in networks:
        if name in weights:
            differing += [
                f'{name}: {text}'
                for text in _differing_tensors(networks[name].state_dict(), weights[name])
            ]
    if differing:
        rest = len(differing) - _SHOWN
        more = f'; and {rest} more' if rest > 0 else ''
        raise ConfigError(
            f'{path}: checkpoint of another architecture: '
            f'{"; ".join(differing[:_SHOWN])}{more}; train into another folder (--run), or bring '
            'back the settings of this one'
        )


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name(f'{path.name}.previous')


def write_durable(path: Path, data: bytes) -> None:
    """Write a file beside its place, force it to the disk, move it; raise DataError if not."""
    try:
        replace_forced(path, data)
    except OSError as error:
        raise _not_written(path, len(data), error) from error


def _keep_as_previous(path: Path) -> None:
    """Name the file also as the previous one, so that `path` is never missing, even if killed."""
    spare = path.with_name(f'{path.name}.previous.partial')
    try:
        spare.unlink(missing_ok=True)
        os.link(path, spare)
    except OSError:  # a file system without hard links: `load_latest` knows how to go on
        os.replace(path, previous_of(path))
        return
    os.replace(spare, previous_of(path))


def _not_written(path: Path, needed: int, error: OSError) -> DataError:
    """Return the error of a file that could not be written, once what was begun is cleared."""
    intact = 'what was written before is intact, and the same command goes on from it'
    reason = error.strerror or error
    if error.errno not in _NO_ROOM:
        return DataError(f'{path}: cannot be written ({reason}); make it so: {intact}')
    try:
        free = f'{_size(shutil.disk_usage(path.parent).free)} are free'
    except OSError:
        free = 'less is free'
    return DataError(
        f'{path}: cannot be written ({reason}): it needs {_size(needed)} and {free}; make '
        f'room there, or raise the limit: {intact}'
    )


def _size(n_bytes: int) -> str:
    return f'{n_bytes / 1e6:.3f} MB' if n_bytes >= 1e6 else f'{n_bytes / 1e3:.1f} kB'


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return the JSON of a value; its tensors go into `tensors` under the place in the tree."""
    if isinstance(value, Tensor):
        name = place or '/'
        while name in tensors:  # the keys 1 and '1' of one dict
            name += '~'
        tensors[name] = value.detach().to('cpu', copy=True).contiguous()
        return {_TENSOR: name}
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        # JSON has no infinity, and one NaN where floats have many
        return float(value) if math.isfinite(value) else {_FLOAT: struct.pack('>d', value).hex()}
    if isinstance(value, list):
        return [_encode(one, f'{place}/{i}', tensors) for i, one in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(one, f'{place}/{i}', tensors) for i, one in enumerate(value)]}
    if isinstance(value, dict):
        return _encode_dict(value, place, tensors)
    raise TypeError(
        f'checkpoint: {place or "/"} is a {type(value).__name__}, expected a tensor, number, '
        'string, bool, None, dict, list or tuple'
    )


def _encode_dict(value: dict[Any, Any], place: str, tensors: dict[str, Tensor]) -> Any:
    def below(key: Any) -> str:
        return f'{place}/{str(key).replace("~", "~0").replace("/", "~1")}'

    if all(isinstance(key, str) and not key.startswith('$') for key in value):
        return {key: _encode(one, below(key), tensors) for key, one in value.items()}
    return {
        _DICT: [
            [_encode(key, below(key), tensors), _encode(one, below(key), tensors)]
            for key, one in value.items()
        ]
    }


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _FLOAT in value:
        return struct.unpack('>d', bytes.fromhex(value[_FLOAT]))[0]
    if _TUPLE in value:
        return tuple(_decode(one, tensors) for one in value[_TUPLE])
    if _DICT in value:
        return {_decode(key, tensors): _decode(one, tensors) for key, one in value[_DICT]}
    return {key: _decode(one, tensors) for key, one in value.items()}


def _digest_field(digest: str) -> bytes:
    """Return how the digest stands in a file; in a string of it the quotes would be escaped."""
    return f'"{_SHA256}":"{digest}"'.encode()


def _head(path: Path, data: bytes) -> dict[str, str]:
    """Return the metadata of a file whose bytes are as they were written, or raise DataError."""
    try:
        (length,) = struct.unpack_from('<Q', data)
        if length > len(data) - 8:
            raise ValueError(f'a header of {length} bytes in a file of {len(data)}')
        header = json.loads(data[8 : 8 + length])
        head = {key: str(header['__metadata__'][key]) for key in (_FORMAT, _ABOUT, _TREE, _SHA256)}
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: no checkpoint of heqis train, or a damaged one ({error})'
        ) from error
    expected = 8 + length + _size_of_tensors(header)
    if len(data) < expected:
        raise DataError(f'{path}: checkpoint is cut: {len(data)} of {expected} bytes are there')
    blank = data.replace(_digest_field(head[_SHA256]), _digest_field(_NO_DIGEST), 1)
    if hashlib.sha256(blank).hexdigest() != head[_SHA256]:
        raise DataError(f'{path}: checkpoint is damaged: its sha256 is not the one written in it')
    return head


def _size_of_tensors(header: dict[str, Any]) -> int:
    try:
        return max(
            (int(one['data_offsets'][1]) for name, one in header.items() if name[:2] != '__'),
            default=0,
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return 0  # damaged: the digest tells


def _differing_names(
    what: str, expected: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[str]:
    yield from (f'it has no {what} {name}' for name in expected if name not in found)
    yield from (f'{what} {name} is not in the settings' for name in found if name not in expected)


def _differing_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> Iterator[str]:
    yield from _differing_names('tensor', expected, found)
    for name in expected:
        if name in found and _kind(expected[name]) != _kind(found[name]):
            yield f'{name} is {_kind(found[name])}, now {_kind(expected[name])}'


def _kind(tensor: Tensor) -> str:
    return f'{str(tensor.dtype).removeprefix("torch.")} {tuple(tensor.shape)}'
