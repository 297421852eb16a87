# SPDX-License-Identifier: Apache-2.0
"""A reboot command for tests: `python reboot_board.py FILE BOARD` ends all that runs on a board.

First it writes another boot identity into the file, so that what starts again is of a new boot.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[1])


def on_board(pid: int, board: str) -> bool:
    """Whether a process was started for a board."""
    environ = Path(f'/proc/{pid}/environ').read_bytes()
    return f'HEQIS_BOARD={board}'.encode() in environ.split(b'\0')


if __name__ == '__main__':
    identity = Path(sys.argv[1])
    identity.write_text(identity.read_text(encoding='ascii') + '+', encoding='ascii')
    agent = os.getppid()
    test = parent(agent)
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            pid = int(folder.name)
            if parent(pid) == test and on_board(pid, sys.argv[2]) and pid != agent:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # it has ended, or is not ours
    os.kill(agent, signal.SIGKILL)
