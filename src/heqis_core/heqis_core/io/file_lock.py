# SPDX-License-Identifier: Apache-2.0
"""A file that one process holds and that names it; the kernel lets go when the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class HeldError(Exception):
    """Somebody else holds the file; `owner` is the number of its process, or `unknown`."""

    def __init__(self, owner: str) -> None:
        super().__init__(f'held by process {owner}')
        self.owner = owner


def hold_file(path: Path) -> IO[str]:
    """Return the file, held until it is closed; raise HeldError or OSError.

    Its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.open('a+', encoding='ascii')
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        owner = held.read().strip() or 'unknown'
        held.close()
        raise HeldError(owner) from None
    except OSError:
        held.close()
        raise
    held.seek(0)
    held.truncate()
    held.write(str(os.getpid()))
    held.flush()
    return held
