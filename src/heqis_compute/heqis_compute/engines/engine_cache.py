# SPDX-License-Identifier: Apache-2.0
"""Files of built TensorRT engines and of the timing cache.

An engine fits one model file, one TensorRT, one GPU and one set of flags: all of them are in the
key, and a file under another key is never loaded. What is damaged counts as not there.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from heqis_core.errors import EngineError

_MAGIC = b'HEQIS-TRT-1\n'
_DIGEST_BYTES = 32


class EngineKey(NamedTuple):
    """Everything that a built engine depends on."""

    onnx_sha256: str
    tensorrt: str
    gpu: str
    capability: tuple[int, int]
    flags: tuple[str, ...]

    def text(self) -> bytes:
        """Return the key as JSON."""
        return msgspec.json.encode(self._asdict())


def engine_file(folder: Path, key: EngineKey) -> Path:
    """Return the file of an engine with that key."""
    digest = hashlib.sha256(key.text()).hexdigest()
    return folder / f'{key.onnx_sha256[:16]}-{digest[:16]}.engine'


def timing_file(folder: Path, key: EngineKey) -> Path:
    """Return the timing cache, which all models share on one TensorRT and one GPU."""
    parts = '\n'.join((key.tensorrt, key.gpu, str(key.capability)))
    return folder / f'{hashlib.sha256(parts.encode()).hexdigest()[:16]}.timing'


def read_engine(folder: Path, key: EngineKey) -> tuple[bytes | None, str]:
    """Return the engine, or None and why the file there cannot be used; '' if there is none."""
    path = engine_file(folder, key)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ''
    except OSError as error:
        return None, f'{path}: cannot be read: {error}'
    head = _MAGIC + key.text() + b'\n'
    if not data.startswith(head):
        return None, f'{path}: is of another model, TensorRT, GPU or set of flags'
    digest, plan = data[len(head) :][:_DIGEST_BYTES], data[len(head) + _DIGEST_BYTES :]
    if hashlib.sha256(plan).digest() != digest:
        return None, f'{path}: is damaged'
    return plan, ''


def write_engine(folder: Path, key: EngineKey, plan: bytes) -> None:
    """Write an engine in one step; raise EngineError if that fails."""
    digest = hashlib.sha256(plan).digest()
    replace_file(engine_file(folder, key), _MAGIC + key.text() + b'\n' + digest + plan)


def read_timing(folder: Path, key: EngineKey) -> bytes:
    """Return the timing cache; empty if there is none. TensorRT checks what it holds."""
    try:
        return timing_file(folder, key).read_bytes()
    except OSError:
        return b''


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the place, force to the disk, rename; raise EngineError if that fails.

    The name beside it is another each time: two processes may build the same engine at once.
    """
    temporary = ''
    try:
        # For the owner alone: an engine is code of the GPU.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix='.partial-', dir=path.parent)
        with os.fdopen(descriptor, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise EngineError(
            f'{path}: cannot be written: {error}; free space or set another engine_cache'
        ) from error
