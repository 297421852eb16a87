# SPDX-License-Identifier: Apache-2.0
"""Files that are there after a power loss, whole or not at all. Errors are the system's own.

Who calls these says in its own error what the file was and what to do.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_forced(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts one after the other and force the file to the disk; raise OSError."""
    with path.open('wb') as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def replace_forced(path: Path, *parts: bytes | memoryview) -> None:
    """Put a file in the place of `path` in one step, by way of `*.partial`; raise OSError.

    What stood there stays until the new file is whole, and if that fails.
    """
    partial = path.with_name(f'{path.name}.partial')
    try:
        write_forced(partial, *parts)
        os.replace(partial, path)
        force_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def force_folder(folder: Path) -> None:
    """Force the names in a folder to the disk: what has been renamed there stays renamed."""
    if os.name == 'nt':
        return  # Windows has no handle of a folder to force; NTFS journals the rename
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
